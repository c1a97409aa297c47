"""What a report writes: JSON, Markdown, one self-contained page and figures; and the runs that it refuses."""

from __future__ import annotations

import base64
import importlib
import io
import json
import re
import sys
import xml.etree.ElementTree as ET
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from test_report import ROWS, THREAT, Json, about, row, save

from promptguard.errors import InvalidArgument
from promptguard.evaluate.report import Published, write_report
from promptguard.evaluate.report.pictures import HINT
from promptguard.evaluate.report.rows import read_run

HOSTILE = "<script>alert(1)</script>|`x`*_[a](http://evil.example/)\n# \"'$\\alpha$ 漢字"
VOID = {"meta", "img", "br"}


class Page(HTMLParser):
    """A page's tags in balance, its attributes and its text."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.tags if name == tag]


def read(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def shape(value: Any) -> Any:
    """A JSON value with its leaves as types: what readers of the format rely on."""
    if isinstance(value, dict):
        return {key: shape(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [shape(value[0])] if value else []
    return type(value).__name__


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A reported run with a plain run, published figures and a hostile name."""
    base = tmp_path_factory.mktemp("report")
    rows = [*ROWS, row("10", "harmful", 0.95, 3, source=HOSTILE), row("11", "safe", 0.3, source="_hidden")]
    plain = save(base / "plain", [r | {"certificate": None} for r in rows], about(THREAT | {"budget": 0}))
    run = save(base / "run", rows)
    published = [
        Published("recall", 0.99, "A paper, table 1"),
        Published("over_refusal", 0.0, "A paper", source="theirs"),
        Published("queries", 12.0, "<b>another</b> paper"),
    ]
    write_report(run, published=published, plain=plain)
    return run


@pytest.fixture
def no_matplotlib(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if it were not installed."""
    for name in [name for name in sys.modules if name.partition(".")[0] == "matplotlib"]:
        monkeypatch.delitem(sys.modules, name)
    for name in ("figure", "drawings", "ranking_drawings"):
        monkeypatch.delitem(sys.modules, f"promptguard.evaluate.report.{name}", raising=False)
    monkeypatch.setitem(sys.modules, "matplotlib", None)


RATE = {"hits": "int", "n": "int", "share": "float", "low": "float", "high": "float"}


def test_report_json_has_its_format(folder: Path) -> None:
    report = read(folder / "report.json")
    assert list(report) == [
        "format", "run", "rows", "overall", "sources", "certified_at_false_positives", "published", "figures", "notes",
    ]  # fmt: skip
    assert shape(report["overall"]) == {
        "source": "NoneType",
        "harmful": {"n": "int", "refused": "int"},
        "safe": {"n": "int", "refused": "int"},
        "recall": RATE,
        "certified": RATE,
        "over_refusal": RATE,
        "auc": "float",
        "at_false_positives": [
            {"percent": "int", "threshold": "NoneType", "recall": "NoneType", "over_refusal": "NoneType"}
        ],
        "certified_by_budget": [{"budget": "int"} | RATE],
        "checks": {"p50": "float", "p95": "float"},
        "ms": {"p50": "float", "p95": "float"},
    }
    assert report["run"] == read(folder / "run.json")
    assert [group["source"] for group in report["sources"]] == ["ours", "theirs", HOSTILE, "_hidden"]
    theirs = report["sources"][1]
    assert [theirs[key] for key in ("recall", "certified", "auc", "certified_by_budget", "checks", "ms")] == [None] * 6
    assert report["published"][0]["measured"] == pytest.approx(report["overall"]["recall"]["share"])
    assert report["published"][0]["published"] == {"value": 0.99, "where": "A paper, table 1"}
    assert report["published"][2]["measured"] is None
    assert [p["percent"] for p in report["certified_at_false_positives"]][:3] == [1, 2, 5]
    assert "More safe prompts were refused" in report["notes"][0]


def test_the_page_is_well_formed_and_fetches_nothing(folder: Path) -> None:
    text = (folder / "report.html").read_text(encoding="utf-8")
    page = Page(text)
    assert page.open == []
    assert not page.all("script")
    assert not page.all("link")
    addresses = [value for _, a in page.tags for key, value in a.items() if key in {"src", "href", "srcset"}]
    assert addresses
    assert all(str(address).startswith("data:image/svg+xml;base64,") for address in addresses)
    assert "url(" not in text
    assert "@import" not in text
    assert "prefers-color-scheme: dark" in text
    assert all(image["alt"] for image in page.all("img"))
    assert len(page.all("table")) == len(page.all("caption"))
    assert next(tag for tag, _ in page.tags if tag in {"h1", "h2"}) == "h1"
    assert "(published)" in page.text


def test_names_from_outside_are_text_and_nothing_else(folder: Path) -> None:
    page = Page((folder / "report.html").read_text(encoding="utf-8"))
    assert HOSTILE in page.text
    assert not page.all("b")
    text = (folder / "report.md").read_text(encoding="utf-8")
    assert "\\<script\\>" in text
    assert not re.search(r"(?<!\\)<(?!/?picture|source |img )", text)
    tables = re.findall(r"(?:^\|.*\n)+", re.sub(r"\\.", "", text), re.M)
    assert len(tables) == 5
    for table in tables:  # a name adds no cell to its row, and no row to its table
        assert len({line.count("|") for line in table.splitlines()}) == 1


def test_markdown_shows_every_source_and_marks_what_is_published(folder: Path) -> None:
    text = (folder / "report.md").read_text(encoding="utf-8")
    assert "| all sources | 6 | 83.3 \\[35.9, 99.6\\] | 33.3 \\[4.3, 77.7\\] | 5 |" in text
    assert "99.0 % (published)" in text
    assert "| queries | all sources | – | 12 (published) |" in text
    assert "(figures/roc" not in text
    for path in re.findall(r'"(figures/[^"]+)"', text):
        assert (folder / path).is_file()


def test_figures_are_drawn_for_light_and_dark(folder: Path) -> None:
    figures = read(folder / "report.json")["figures"]
    assert [figure["name"] for figure in figures] == ["roc", "budget", "scores", "cost"]
    for figure in figures:
        light, dark = (
            np.asarray(Image.open(folder / figure["files"][kind]).convert("L"), dtype=float)
            for kind in ("light", "dark")
        )
        assert light.shape == dark.shape
        assert min(light.shape) > 400
        assert light.mean() > 200 > 90 > dark.mean()
        assert np.ptp(light) > 200  # ink on paper
        assert np.ptp(dark) > 180
        svg = (folder / figure["files"]["svg"]).read_text(encoding="utf-8")
        ET.fromstring(svg)
        assert "prefers-color-scheme:dark" in svg
        assert set(re.findall(r'(?:href|src)="([^#"][^"]*)"', svg)) == set()
        # Every colour is one of the palette's, so that none is lost on a dark page.
        body = svg.split("</style>", 1)[1]
        assert set(re.findall(r"#[0-9a-f]{6}\b", re.sub(r'(?:href|id)="[^"]*"|url\([^)]*\)', "", body))) == set()


def test_the_page_carries_the_very_figures(folder: Path) -> None:
    page = Page((folder / "report.html").read_text(encoding="utf-8"))
    carried = [base64.b64decode(str(image["src"]).partition(",")[2]) for image in page.all("img")]
    assert sorted(carried) == sorted(path.read_bytes() for path in (folder / "figures").glob("*.svg"))


def test_figures_are_the_same_every_time(folder: Path) -> None:
    before = {path.name: path.read_bytes() for path in (folder / "figures").iterdir()}
    write_report(folder, plain=folder.parent / "plain")
    assert {path.name: path.read_bytes() for path in (folder / "figures").iterdir()} == before


@pytest.mark.usefixtures("no_matplotlib")
def test_without_matplotlib_there_is_a_report_and_a_hint(tmp_path: Path) -> None:
    run = save(tmp_path / "run", ROWS)
    report = write_report(run)
    assert report.pictures == ()
    assert HINT in report.notes
    for name in ("report.md", "report.html"):
        assert "certified-promptguard" in (run / name).read_text(encoding="utf-8")
    assert not (run / "figures").exists()
    assert read(run / "report.json")["figures"] == []


def test_only_a_missing_matplotlib_is_forgiven(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    importlib.import_module("promptguard.evaluate.report.drawings")
    monkeypatch.setitem(sys.modules, "promptguard.evaluate.report.drawings", None)
    with pytest.raises(ModuleNotFoundError):
        write_report(save(tmp_path / "run", ROWS))


@pytest.mark.parametrize(
    ("rows", "head", "figures"),
    [
        ([row("1", "harmful", None)], about(), ["budget"]),
        ([row("1", "safe", 0.2)], about(), ["scores", "cost"]),
        ([row("1", "harmful", 7.5, 3), row("2", "safe", -3.0)], about(threshold=2.0, guard_band=None, command=None),
         ["roc", "budget", "scores", "cost"]),
        ([row("1", "harmful", 0.9, 0, ms=None), row("2", "safe", 0.1, ms=0.0)], about(THREAT | {"budget": 0}),
         ["roc", "scores", "cost"]),
        (ROWS, about(settings={"fast": True}), ["budget", "cost"]),
        ([row(str(i), "harmful", 0.9, "unlimited", source=f"s{i}", checks=10**i) for i in range(9)],
         about(THREAT | {"budget": "unlimited"}), ["budget", "scores", "cost"]),
    ],
)  # fmt: skip
def test_any_run_has_a_report(tmp_path: Path, rows: list[Json], head: Json, figures: list[str]) -> None:
    report = write_report(save(tmp_path / "run", rows, head))
    assert [picture.name for picture in report.pictures] == figures
    assert json.dumps(report.to_dict(), allow_nan=False)
    assert Page((tmp_path / "run" / "report.html").read_text(encoding="utf-8")).open == []
    for picture in report.pictures:
        assert np.ptp(np.asarray(Image.open(io.BytesIO(picture.light)).convert("L"), dtype=float)) > 200


def test_published_figures_of_unknown_sources_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidArgument, match="source"):
        write_report(save(tmp_path / "run", ROWS), published=[Published("recall", 0.5, "x", source="nowhere")])


# Damaged and foreign runs


def damage(folder: Path, file: str, text: str) -> Path:
    (folder / file).write_text(text, encoding="utf-8")
    return folder


def test_missing_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(InvalidArgument, match=r"nothing/run\.json: FileNotFoundError"):
        read_run(tmp_path / "nothing")
    run = save(tmp_path / "run", ROWS)
    (run / "rows.jsonl").unlink()
    with pytest.raises(InvalidArgument, match=r"rows\.jsonl: FileNotFoundError"):
        read_run(run)


@pytest.mark.parametrize(
    ("head", "why"),
    [
        ("[]", "not what promptguard bench writes"),
        ("{canary", "run.json: not JSON"),
        ('{"filter": "x"}', "older bench .format 1."),
        ('{"format": 3}', "newer bench"),
        ('{"format": 2}', "settings"),
        (json.dumps(about(threshold="canary")), r"\(threshold\)"),
        (json.dumps(about(threshold=float("nan"))), r"\(threshold\)"),
        (json.dumps(about(THREAT | {"budget": "canary"})), r"\(threat\.budget\)"),
        (json.dumps(about({"canary": 1})), r"\(threat\.kind"),
    ],
)
def test_a_damaged_run_json_is_refused(tmp_path: Path, head: str, why: str) -> None:
    run = damage(save(tmp_path / "run", ROWS), "run.json", head)
    with pytest.raises(InvalidArgument, match=why) as caught:
        read_run(run)
    assert "canary" not in str(caught.value)


@pytest.mark.parametrize(
    ("line", "why"),
    [
        ("{canary", "line 10: not JSON"),
        (json.dumps(row("x", "canary", 0.1)), r"line 10: .*\(label\)"),
        (json.dumps(row("x", "safe", 0.1) | {"text": "canary"}), "line 10"),
        (json.dumps(row("x", "safe", 0.1) | {"canary": 1}), "line 10"),
        (json.dumps(row("x", "safe", float("inf"))), r"\(score\)"),
        (json.dumps(row("x", "safe", 0.1, checks=-1)), r"\(checks\)"),
        (json.dumps(row("x", "safe", None, verdict="safe")), "line 10"),
        (json.dumps({"id": "x"}), r"source, label, verdict"),
        ("[]", "line 10"),
    ],
)
def test_a_damaged_row_is_named_without_its_content(tmp_path: Path, line: str, why: str) -> None:
    run = save(tmp_path / "run", ROWS)
    text = (run / "rows.jsonl").read_text(encoding="utf-8")
    with pytest.raises(InvalidArgument, match=why) as caught:
        read_run(damage(run, "rows.jsonl", text + line + "\n"))
    assert "canary" not in str(caught.value)


def test_unfinished_runs_are_refused_and_left_alone(tmp_path: Path) -> None:
    run = save(tmp_path / "run", ROWS)
    text = (run / "rows.jsonl").read_text(encoding="utf-8")
    lines = text.splitlines(keepends=True)
    with pytest.raises(InvalidArgument, match="ends inside a row"):
        read_run(damage(run, "rows.jsonl", text[:-9]))
    assert (run / "rows.jsonl").read_text(encoding="utf-8") == text[:-9]
    with pytest.raises(InvalidArgument, match="8 of 9 rows"):
        read_run(damage(run, "rows.jsonl", "".join(lines[:-1])))
    with pytest.raises(InvalidArgument, match="no rows"):
        read_run(damage(run, "rows.jsonl", ""))


def test_rows_of_several_runs_are_refused(tmp_path: Path) -> None:
    run = save(tmp_path / "run", ROWS)
    text = (run / "rows.jsonl").read_text(encoding="utf-8")
    with pytest.raises(InvalidArgument, match="more rows than prompts"):
        read_run(damage(run, "rows.jsonl", text + json.dumps(row("x", "safe", 0.1)) + "\n"))
    with pytest.raises(InvalidArgument, match="one id"):
        read_run(damage(run, "rows.jsonl", text + json.dumps(ROWS[0]) + "\n"))
    foreign = row("x", "harmful", 0.9, 3)
    foreign["certificate"]["threat"] = THREAT | {"kind": "infusion"}
    with pytest.raises(InvalidArgument, match="another threat"):
        read_run(damage(run, "rows.jsonl", text + json.dumps(foreign) + "\n"))


def test_an_unwritable_folder_is_a_typed_error(tmp_path: Path) -> None:
    run = save(tmp_path / "run", [row("1", "harmful", None)])
    (run / "figures").write_text("in the way")
    with pytest.raises(InvalidArgument, match="cannot write to run"):
        write_report(run)


@pytest.mark.usefixtures("no_matplotlib")
def test_fast_runs_say_what_is_missing(tmp_path: Path) -> None:
    run = save(tmp_path / "run", ROWS, about(settings={"fast": True}))
    report = write_report(run)
    assert "scores are not maxima" in report.notes[0]
    content = read(run / "report.json")
    assert content["overall"]["auc"] is None
    assert {point["recall"] for point in content["overall"]["at_false_positives"]} == {None}
    assert "false positives: threshold" not in (run / "report.md").read_text(encoding="utf-8")


@pytest.mark.usefixtures("no_matplotlib")
def test_a_plain_run_adds_certified_recall_to_the_page(tmp_path: Path) -> None:
    rows = [row("h", "harmful", 0.9, 3), *(row(f"s{i}", "safe", 0.1) for i in range(100))]
    run = save(tmp_path / "run", rows)
    plain = save(tmp_path / "plain", [row("h", "harmful", 0.9, 0), *rows[1:]], about(THREAT | {"budget": 0}))
    write_report(run)
    before = (run / "report.md").read_text(encoding="utf-8")
    assert read(run / "report.json")["certified_at_false_positives"] is None
    write_report(run, plain=plain)
    after = (run / "report.md").read_text(encoding="utf-8")
    assert "| source | recall | over-refusal |" in before
    assert "| source | recall | certified recall | over-refusal |" in after
    assert "| all sources | 100.0 \\[2.5, 100.0\\] | 100.0 \\[2.5, 100.0\\] | 0.0" in after


def test_importing_reports_does_not_import_matplotlib() -> None:
    import subprocess

    probe = "import sys, promptguard.evaluate.report; print('matplotlib' in sys.modules, 'torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", probe], capture_output=True, text=True, check=True, timeout=120)
    assert done.stdout.split() == ["False", "False"]
