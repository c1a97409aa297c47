"""Write README.md from committed rows: `python -m benchmarks.readme`. `--check` only says whether it is up to date."""

from __future__ import annotations

import argparse
import importlib
import sys
from collections.abc import Iterator
from pathlib import Path

HERE = Path(__file__).resolve().parent
INTRODUCTION = """\
# Benchmarks

Written by `python -m benchmarks.readme` from the rows under `results/`. A run's folder holds `run.json` (settings,
filter and data digests, versions, machine) and `rows.jsonl` (one row per prompt, no text). Prompts are not committed:
`DATA` is a folder with `bench.jsonl`, `attacks.jsonl` and `suffixes.jsonl`, and the digest of what was read is in
`run.json`. Rates are in percent, with exact (Clopper-Pearson) 95 % intervals. Published figures are marked; they are
from the result files of Kumar et al. 2024, on their machine.

On your own filter and prompts the same rows, tables and figures come from one command:

```
promptguard bench PROMPTS.jsonl --safe SAFE.jsonl --filter your/model --mode suffix --max-erase 20 --out runs/mine
promptguard report runs/mine runs/other --out runs/ranking
accelerate launch -m promptguard.cli bench ...     # the same rows from several processes or machines
```

`minilm` runs at 0.0216 in the paper's experiments: the threshold that `promptguard calibrate` gives for at most 2 % of
safe texts under suffix erasures, from held-out training-side texts (`threshold.py`, `threshold.json`); no row of
`bench.jsonl` took part. Elsewhere filters run at the threshold they ship with.
"""
# Modules in order, with what stands behind `python -m benchmarks.<module>`.
SECTIONS = {
    "tasks.own": "",
    "tasks.certified": "DATA",
    "tasks.safe": "DATA",
    "tasks.votes": "DATA",
    "tasks.text_smoothing": "DATA --filter bag",
    "tasks.empirical": "DATA --limit 60 --lengths 4 10 20",
    "tasks.roc": "DATA --limit 60",
    "tasks.falsified": "DATA --prompts 3 --queries 20",
    "tasks.suffixes": "DATA",
    "tasks.whole": "DATA",
    "wrap_templates": "DATA/bench.jsonl --attacks DATA/attacks.jsonl --limit 2 --safe 1 --out ROWS",
    "one_pass": "--repeats 15 --threads 1 --out ROWS",
    "judge_positions": "--repeats 3 --out ROWS",
    "speed": "DATA/bench.jsonl --threads 2 --out ROWS",
    "latency": "clients --threads 2 --out ROWS",
    "tasks.serving": "--repeats 3 --threads 1 --out ROWS",
    "tasks.vision": "",
    "tasks.vision_lipschitz": "",
    "garak": "run --python .venv-garak/bin/python --probes suffix.GCGCached donotanswer.MaliciousUses "
    "badchars.BadCharacters --out runs/garak",
}


def section(name: str, arguments: str) -> Iterator[str]:
    """One module: its title, what its docstring says, the command, its tables."""
    module = importlib.import_module(f"benchmarks.{name}")
    about = (module.__doc__ or "").strip()
    yield f"## {module.TITLE}"
    yield about
    yield f"```\npython -m benchmarks.{name} {arguments}".rstrip() + "\n```"
    tables = [table for table in module.tables(HERE / "results") if table.rows]
    yield from (table.markdown() for table in tables)
    if figure := getattr(module, "FIGURE", None):
        dark, light = (f"results/{figure}-{scheme}.png" for scheme in ("dark", "light"))
        source = f'<source media="(prefers-color-scheme: dark)" srcset="{dark}">'
        shown = f'<img alt="{module.TITLE}: certified recall, false positives, time" src="{light}">'
        yield f"<picture>{source}{shown}</picture>"
    if not tables:
        yield "No rows are committed."


def readme() -> str:
    """The whole file."""
    parts = [INTRODUCTION.strip()]
    for name, arguments in SECTIONS.items():
        parts += section(name, arguments)
    return "\n\n".join(parts) + "\n"


def main() -> None:
    """Write, or compare."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--check", action="store_true", help="end with 1 if README.md is not what the rows give")
    path, text = HERE / "README.md", readme()
    if parser.parse_args().check:
        sys.exit(path.read_text(encoding="utf-8") != text)
    path.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
