"""Reports and rankings from the rows of benchmark runs.

`write_report` turns the folder of a run into `report.json`, `report.md`, `report.html` and figures; `rank` compares any
number of runs; `summarise` gives the numbers of rows at hand. Detection always stands beside over-refusal.
"""

from promptguard.evaluate.report.groups import Group, summarise
from promptguard.evaluate.report.published import Published
from promptguard.evaluate.report.ranking import Ranking, rank
from promptguard.evaluate.report.rates import Rate
from promptguard.evaluate.report.report import Report
from promptguard.evaluate.report.rows import read_run
from promptguard.evaluate.report.writing import write_report

__all__ = ["Group", "Published", "Ranking", "Rate", "Report", "rank", "read_run", "summarise", "write_report"]
