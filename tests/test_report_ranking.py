"""Ranking of guards: cohorts by prompts, places by threat, certified recall from plain runs."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from test_report import THREAT, Json, about, row, save
from test_report_files import Page, no_matplotlib

from promptguard.errors import InvalidArgument
from promptguard.evaluate.report import rank
from promptguard.evaluate.report.pictures import of_ranking

__all__ = ["no_matplotlib"]  # a fixture is used by its name


def rows(certified: int, flagged: int = 8, false: int = 1) -> list[Json]:
    """Ten harmful rows and 100 safe ones."""
    budgets = [3 if i < certified else 0 for i in range(flagged)]
    harmful = [row(f"h{i}", "harmful", 0.9 - i / 100, budget) for i, budget in enumerate(budgets)]
    harmful += [row(f"h{i}", "harmful", 0.05) for i in range(flagged, 10)]
    return harmful + [row(f"s{i}", "safe", 0.6 if i < false else 0.1) for i in range(100)]


def other_data(name: str) -> Json:
    return {"data": {"digest": name * 64, "files": [{"name": "p.jsonl", "sha256": "e" * 64}], "prompts": 0}}


def test_other_prompts_are_another_table(tmp_path: Path) -> None:
    first = save(tmp_path / "a", rows(5))
    second = save(tmp_path / "b", rows(7), about(**other_data("1")))
    third = save(tmp_path / "c", rows(6), about(filter="0" * 64))
    ranking = rank([first, second, third])
    assert [[entry.name for entry in cohort.entries] for cohort in ranking.cohorts] == [["c", "a"], ["b"]]
    ranking.write(tmp_path / "out")
    content = json.loads((tmp_path / "out" / "ranking.json").read_text())
    assert [len(cohort["entries"]) for cohort in content["cohorts"]] == [2, 1]
    assert [figure["name"] for figure in content["figures"]] == ["ranking-1", "ranking-2"]
    page = Page((tmp_path / "out" / "ranking.html").read_text(encoding="utf-8"))
    assert page.open == []
    assert len(page.all("table")) == 4
    assert "2 different sets of prompts" in page.text
    text = (tmp_path / "out" / "ranking.md").read_text(encoding="utf-8")
    table = text.partition("## Prompts 1")[2].partition("## Prompts 2")[0]
    assert "| a |" in table
    assert "| c |" in table
    assert "| b |" not in table


def test_the_same_prompts_under_other_file_names_are_one_cohort(tmp_path: Path) -> None:
    data = about()["data"] | {"files": [{"name": "other.csv", "sha256": "0" * 64}]}
    ranking = rank([save(tmp_path / "a", rows(5)), save(tmp_path / "b", rows(5), about(data=data))])
    assert len(ranking.cohorts) == 1


def test_places_count_within_one_threat(tmp_path: Path) -> None:
    weak = save(tmp_path / "weak", rows(2))
    strong = save(tmp_path / "strong", rows(6))
    stricter = save(tmp_path / "stricter", rows(6, false=4))
    wider = about(THREAT | {"budget": 5})
    wide = save(tmp_path / "wide", [r | {"certificate": None} for r in rows(0)], wider)
    (cohort,) = rank([weak, wide, stricter, strong]).cohorts
    assert [(entry.name, entry.place) for entry in cohort.entries] == [
        ("strong", 1), ("stricter", 2), ("weak", 3), ("wide", 1),
    ]  # fmt: skip
    assert {entry.threat for entry in cohort.entries} == {
        "up to 3 whole words appended",
        "up to 5 whole words appended",
    }


def test_tokens_of_two_tokenizers_are_two_threats(tmp_path: Path) -> None:
    def counted_in(unit: str, certified: int) -> tuple[list[Json], Json]:
        found = json.loads(json.dumps(rows(certified)).replace('"word"', f'"{unit}"'))
        return found, about(THREAT | {"unit": unit})

    small = save(tmp_path / "small", *counted_in("token:aaa", 3))
    large = save(tmp_path / "large", *counted_in("token:bbb", 5))
    (cohort,) = rank([small, large]).cohorts
    assert {entry.threat for entry in cohort.entries} == {"up to 3 tokens appended"}
    assert [(entry.name, entry.place) for entry in cohort.entries] == [("small", 1), ("large", 1)]


def test_a_plain_run_in_the_cohort_ranks_by_certified_recall_at_two_percent(tmp_path: Path) -> None:
    # Alone, "strict" certifies less at its own threshold; at 2 % false positives it certifies more.
    plain = rows(0, flagged=10)
    strict = [r if r["score"] >= 0.855 else r | {"verdict": "safe", "certificate": None} for r in rows(10, flagged=10)]
    one = save(tmp_path / "strict", strict, about(threshold=0.855))
    two = save(tmp_path / "unknown", rows(8), about(filter="0" * 64))
    zero = save(tmp_path / "plain", plain, about(THREAT | {"budget": 0}))
    (cohort,) = rank([two, one, zero]).cohorts
    by_name = {entry.name: entry for entry in cohort.entries}
    assert by_name["strict"].overall.certified is not None
    assert by_name["strict"].overall.certified.hits == 5
    at_two = by_name["strict"].certified_at(2)
    assert at_two is not None
    assert (at_two.hits, at_two.n) == (10, 10)
    assert by_name["unknown"].certified_at(2) is None
    assert (by_name["strict"].place, by_name["unknown"].place) == (1, 2)
    assert by_name["strict"].curve
    own = by_name["plain"].certified_at(2)  # a plain run certifies itself for budget 0
    assert own is not None
    assert own.hits == 10


@pytest.mark.usefixtures("no_matplotlib")
def test_other_machines_are_said(tmp_path: Path) -> None:
    runs = [save(tmp_path / "a", rows(5)), save(tmp_path / "b", rows(5), about(machine={"system": "Other"}))]
    rank(runs).write(tmp_path / "out")
    for name in ("ranking.md", "ranking.html"):
        assert "different machines" in (tmp_path / "out" / name).read_text(encoding="utf-8")
    rank(runs[:1]).write(tmp_path / "one")
    assert "different machines" not in (tmp_path / "one" / "ranking.md").read_text(encoding="utf-8")


def test_cohorts_without_certificates_have_a_table_and_no_figure(tmp_path: Path) -> None:
    ranking = rank([save(tmp_path / "a", rows(0, flagged=3), about(None))])
    ranking.write(tmp_path / "out")
    content = json.loads((tmp_path / "out" / "ranking.json").read_text())
    assert content["figures"] == []
    assert content["cohorts"][0]["entries"][0]["overall"]["certified"] is None


def test_many_guards_make_one_taller_figure(tmp_path: Path) -> None:
    runs = [save(tmp_path / f"_run{i}$x$", rows(i % 9), about(filter=f"{i:064d}")) for i in range(14)]
    few, many = (of_ranking(rank(some).cohorts).pictures[0] for some in (runs[:2], runs))
    assert len(many.svg) > len(few.svg)
    assert many.alt.count("certified") == 14


def test_a_ranking_of_nothing_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidArgument, match="at least one"):
        rank([])
    with pytest.raises(InvalidArgument, match=r"run\.json"):
        rank([tmp_path])
