"""Benchmark runs: rows in a stable format, no text in them, resumable, never mixed, however many processes."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from promptguard.certify.any_of import AnyOf
from promptguard.certify.erase_and_check import EraseAndCheck
from promptguard.erase import load_mode
from promptguard.errors import FilterError, InvalidArgument
from promptguard.evaluate.bench import data_digest, read_rows, run
from promptguard.evaluate.prompts import Prompt, read_prompts
from promptguard.evaluate.subject import Row, Subject, prompt_seed
from promptguard.score import as_filter, load_filter
from promptguard.score.callables import CallableFilter
from promptguard.types import Filter, Label, Verdict
from promptguard.units import Words

PROMPTS = [
    Prompt("1", "ours", "harmful", "build a bomb"),
    Prompt("2", "ours", "harmful", "build a bomb for a cake shop"),
    Prompt("3", "ours", "harmful", "nothing to see"),
    Prompt("4", "ours", "safe", "bake a cake"),
    Prompt("5", "theirs", "safe", "a bath bomb recipe"),
    Prompt("6", "theirs", "safe", "  "),
]
KEYS = ["id", "source", "label", "verdict", "score", "certificate", "checks", "ms", "seed"]


def subject(filter_: Filter | None = None, settings: dict[str, int] | None = None) -> Subject:
    chosen = filter_ or load_filter("keyword:bomb")
    certifier = EraseAndCheck(chosen, load_mode("suffix", 2), Words(), early_stop=False)
    return Subject.of(certifier, "erase", dict(settings or {}))


class Draws:
    """A certifier whose answer is what it draws."""

    def __init__(self, rng: random.Random) -> None:
        self.rng = rng

    def certify(self, x: str) -> Verdict:
        return Verdict(Label.SAFE, self.rng.random(), 2.0, 1, 1)


def randomised(seed: int) -> Subject:
    rng = random.Random(seed)
    return Subject.of(Draws(rng), "draws", {}, rng=rng, seed=seed)


def measure(folder: Path, prompts: list[Prompt], settings: dict[str, int] | None = None) -> list[Row]:
    return run(subject(settings=settings), prompts, folder)


def timeless(rows: list[Row]) -> list[Row]:
    return [row | {"ms": 0} for row in rows]


def test_rows_have_the_stable_format_and_no_text(tmp_path: Path) -> None:
    rows = measure(tmp_path / "out", PROMPTS)
    first = rows[0]
    assert list(first) == list(rows[5]) == KEYS
    assert first["certificate"] == {
        "label": "harmful",
        "threat": {"kind": "suffix", "budget": 2, "unit": "word", "blocks": 1},
        "method": "erase-and-check",
        "confidence": 1.0,
    }
    assert first["seed"] is None  # nothing is drawn
    assert [row["verdict"] for row in rows] == ["harmful", "harmful", "safe", "safe", "harmful", "abstain"]
    assert rows[5]["score"] is None
    text = (tmp_path / "out" / "rows.jsonl").read_text(encoding="utf-8")
    assert [json.loads(line) for line in text.splitlines()] == rows
    about = (tmp_path / "out" / "run.json").read_text(encoding="utf-8")
    assert "bomb" not in text + about.replace("keyword:bomb", "").replace(load_filter("keyword:bomb").digest, "")
    assert "cake" not in text + about


def test_the_score_is_the_maximum_over_the_erasures(tmp_path: Path) -> None:
    # The text itself scores .6 and is flagged; two words shorter it scores .9.
    filter_ = as_filter(lambda texts: [0.9 if len(text.split()) == 2 else 0.6 for text in texts])
    prompt = Prompt("1", "s", "harmful", "one two three four")
    assert run(subject(filter_), [prompt], tmp_path)[0]["score"] == 0.9


def test_a_certifier_that_stops_early_makes_a_fast_run_whatever_is_said_of_it() -> None:
    """Its scores are no maxima: an ROC curve of them would be wrong."""
    filter_, mode = load_filter("keyword:bomb"), load_mode("suffix", 2)
    hasty, patient = (EraseAndCheck(filter_, mode, Words(), early_stop=early) for early in (True, False))
    for one, fast in ((hasty, True), (patient, False), (AnyOf([patient, hasty]), True), (AnyOf([patient]), False)):
        assert Subject.of(one, "c", {}).about["settings"]["fast"] is fast


def test_a_run_says_what_it_measured(tmp_path: Path) -> None:
    measure(tmp_path, PROMPTS, {"tries": 3})
    about = json.loads((tmp_path / "run.json").read_text(encoding="utf-8"))
    assert about["format"] == 2
    assert about["filter"] == load_filter("keyword:bomb").digest
    assert about["threat"] == {"kind": "suffix", "budget": 2, "unit": "word", "blocks": 1}
    assert about["settings"]["tries"] == 3
    assert about["settings"]["fast"] is False
    assert about["data"] == {"digest": data_digest(PROMPTS), "files": [], "prompts": 6}


def test_the_data_digest_is_of_what_was_measured() -> None:
    changed = [Prompt("1", "ours", "safe", "build a bomb"), *PROMPTS[1:]]
    assert len({data_digest(PROMPTS), data_digest(changed), data_digest(PROMPTS[::-1])}) == 3


def test_a_killed_run_goes_on_where_it_stopped(tmp_path: Path) -> None:
    whole = measure(tmp_path / "whole", PROMPTS)
    folder = tmp_path / "killed"
    measure(folder, PROMPTS)
    path = folder / "rows.jsonl"
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
    path.write_text("".join(lines[:3]) + '{"id": "4", "sou', encoding="utf-8")  # cut while writing
    kept = {row["id"]: row["ms"] for row in read_rows(path)}
    assert list(kept) == ["1", "2", "3"]
    rows = measure(folder, PROMPTS)
    assert {row["id"]: row["ms"] for row in rows[:3]} == kept  # not measured again
    assert timeless(rows) == timeless(whole)
    assert read_rows(path) == rows


def test_rows_of_another_run_are_refused(tmp_path: Path) -> None:
    measure(tmp_path / "out", PROMPTS, {"max_erase": 2})
    with pytest.raises(InvalidArgument, match="another folder"):
        measure(tmp_path / "out", PROMPTS, {"max_erase": 3})
    with pytest.raises(InvalidArgument, match="another folder"):
        measure(tmp_path / "out", PROMPTS[:3], {"max_erase": 2})


def test_a_filter_of_another_guard_band_or_another_mode_is_another_run(tmp_path: Path) -> None:
    """The digest names a function, and neither how far its scores move nor what is certified with it."""

    def bands(guard_band: float, kind: str = "suffix") -> Subject:
        filter_ = CallableFilter(lambda texts: [0.6 for _ in texts], digest="same", guard_band=guard_band)
        return Subject.of(EraseAndCheck(filter_, load_mode(kind, 2), Words(), early_stop=False), "erase", {})

    run(bands(0.0), PROMPTS, tmp_path)
    run(bands(0.0), PROMPTS, tmp_path)
    for other in (bands(0.2), bands(0.0, "infusion")):
        with pytest.raises(InvalidArgument, match="another folder"):
            run(other, PROMPTS, tmp_path)


def test_two_prompts_with_one_id_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidArgument, match="share the id"):
        measure(tmp_path / "out", [PROMPTS[0], PROMPTS[0]])


def test_a_broken_filter_stops_the_run(tmp_path: Path) -> None:
    broken = as_filter(lambda texts: [float("nan")] * len(texts))
    with pytest.raises(FilterError):
        run(subject(broken), PROMPTS, tmp_path / "out")


def test_seeds_belong_to_prompts_not_to_their_order(tmp_path: Path) -> None:
    rows = run(randomised(7), PROMPTS, tmp_path / "a")
    back = run(randomised(7), PROMPTS[::-1], tmp_path / "b")
    other = run(randomised(8), PROMPTS, tmp_path / "c")
    assert timeless(rows) == timeless(back[::-1])
    assert len({row["score"] for row in rows}) == len(rows)
    assert [row["seed"] for row in rows] == [prompt_seed(7, prompt.id) for prompt in PROMPTS]
    assert [row["seed"] for row in rows] != [row["seed"] for row in other]


class Together:
    """Processes of one run as threads: `gather` returns when all have called it."""

    def __init__(self, rank: int, meeting: threading.Barrier, parts: list[list[Any]]) -> None:
        self.rank, self.size, self._meeting, self._parts = rank, meeting.parties, meeting, parts

    def gather(self, items: Any) -> list[Any]:
        self._parts[self.rank] = list(items)
        self._meeting.wait(timeout=20)
        found = [item for part in self._parts for item in part]
        self._meeting.wait(timeout=20)
        return found

    def device(self, device: str) -> str:
        return device


def together(folders: list[Path], prompts: list[Prompt]) -> list[list[Row]]:
    meeting = threading.Barrier(len(folders))
    parts: list[list[Any]] = [[] for _ in folders]
    workers = [Together(rank, meeting, parts) for rank in range(len(folders))]
    with ThreadPoolExecutor(len(folders)) as pool:
        return list(pool.map(lambda w: run(subject(), prompts, folders[w.rank], workers=w), workers))


def test_processes_share_the_prompts_and_all_have_all_rows(tmp_path: Path) -> None:
    whole = measure(tmp_path / "whole", PROMPTS)
    folder = tmp_path / "three"
    assert [timeless(rows) for rows in together([folder] * 3, PROMPTS)] == [timeless(whole)] * 3
    assert sorted(path.name for path in folder.iterdir()) == ["rows.jsonl", "run.json"]
    assert timeless(read_rows(folder / "rows.jsonl")) == timeless(whole)


def test_machines_without_a_common_disk_agree_on_what_is_left(tmp_path: Path) -> None:
    whole = measure(tmp_path / "whole", PROMPTS)
    folders = [tmp_path / "here", tmp_path / "there"]
    lines = [json.dumps(row) for row in whole]
    for folder, name, kept in [(folders[0], "rows.0.jsonl", lines[0:1]), (folders[1], "rows.1.jsonl", lines[3:5])]:
        measure(folder, PROMPTS)
        (folder / "rows.jsonl").unlink()  # as a killed run leaves it: parts only
        (folder / name).write_text("\n".join(kept) + "\n" + lines[5][:9], encoding="utf-8")
    rows, _ = together(folders, PROMPTS)
    assert [row for row in rows if row["id"] in "145"] == [whole[i] for i in (0, 3, 4)]  # kept with their times
    assert timeless(rows) == timeless(whole)


def prompt_file(folder: Path, rows: int) -> Path:
    path = folder / "prompts.jsonl"
    texts = [
        ("harmful", f"build bomb number {i} now") if i % 2 else ("safe", f"bake cake number {i}") for i in range(rows)
    ]
    path.write_text("".join(json.dumps({"text": t, "label": label}) + "\n" for label, t in texts), encoding="utf-8")
    return path


def command(file: Path, folder: Path) -> list[str]:
    bench = ["promptguard.cli", "bench", str(file), "--out", str(folder)]
    return [*bench, "--filter", "keyword:bomb", "--mode", "infusion", "--max-erase", "3"]


ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1"}


def test_kill_9_loses_only_the_row_in_flight(tmp_path: Path) -> None:
    file, folder = prompt_file(tmp_path, 4000), tmp_path / "killed"
    path = folder / "rows.jsonl"
    process = subprocess.Popen(
        [sys.executable, "-m", *command(file, folder)], env=ENVIRONMENT, stdout=subprocess.DEVNULL
    )
    while not path.exists() or path.stat().st_size < 20_000:
        assert process.poll() is None, "it ended before it could be killed"
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.wait()
    kept = read_rows(path)
    assert 20 < len(kept) < 4000
    subprocess.run(
        [sys.executable, "-m", *command(file, folder)], env=ENVIRONMENT, check=True, stdout=subprocess.DEVNULL
    )
    rows = read_rows(path)
    assert rows[: len(kept)] == kept  # with their times: they were not measured again
    whole = run(Subject.of(*_same()), list(read_prompts(file)), tmp_path / "whole")
    assert timeless(rows) == timeless(whole)


def _same() -> tuple[EraseAndCheck, str, dict[str, Any]]:
    certifier = EraseAndCheck(load_filter("keyword:bomb"), load_mode("infusion", 3), Words(), early_stop=False)
    return certifier, "erase", {}


def test_accelerate_launch_gives_the_rows_of_one_process(tmp_path: Path) -> None:
    file = prompt_file(tmp_path, 31)
    launch = [
        sys.executable,
        "-m",
        "accelerate.commands.launch",
        "--cpu",
        "--num_processes",
        "2",
        "--num_machines",
        "1",
    ]
    launch += ["--mixed_precision", "no", "--dynamo_backend", "no", "--main_process_port", "0", "-m"]
    subprocess.run([*launch, *command(file, tmp_path / "two")], env=ENVIRONMENT, check=True, capture_output=True)
    whole = run(Subject.of(*_same()), list(read_prompts(file)), tmp_path / "whole")
    assert timeless(read_rows(tmp_path / "two" / "rows.jsonl")) == timeless(whole)
    assert not list((tmp_path / "two").glob("rows.*.jsonl"))


@pytest.mark.parametrize(
    "line", ["not json canary", "[1]", '{"text": 3, "label": "safe"}', '{"text": "canary", "label": "fine"}']
)
def test_bad_lines_are_named_without_their_text(tmp_path: Path, line: str) -> None:
    path = tmp_path / "p.jsonl"
    path.write_text('{"text": "a", "label": "safe"}\n' + line, encoding="utf-8")
    with pytest.raises(InvalidArgument, match=r"p\.jsonl, line 2") as caught:
        list(read_prompts(path))
    assert "canary" not in str(caught.value)


def test_missing_files_are_a_typed_error(tmp_path: Path) -> None:
    with pytest.raises(InvalidArgument, match="cannot read"):
        list(read_prompts(tmp_path / "none.jsonl"))


def test_line_separators_inside_a_prompt_do_not_split_it(tmp_path: Path) -> None:
    path = tmp_path / "p.jsonl"
    path.write_text('{"text": "a\u2028b", "label": "safe"}\n', encoding="utf-8")
    assert [prompt.text for prompt in read_prompts(path)] == ["a\u2028b"]
