"""Calibration: the promised false-positive rate holds, and a threshold serves only what it was made for."""

from __future__ import annotations

import json
import math
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from oracle import TestFilter
from scipy.stats import beta
from typer.testing import CliRunner, Result

from promptguard.certify.erase_and_check import EraseAndCheck
from promptguard.certify.pace import OutOfTime
from promptguard.cli import app
from promptguard.erase import load_mode
from promptguard.errors import FilterError, InvalidArgument
from promptguard.evaluate.calibrate import calibrate, read_safe_texts
from promptguard.evaluate.calibration import Calibration, describe
from promptguard.evaluate.prompts import Prompt
from promptguard.evaluate.subject import Subject
from promptguard.score import as_filter
from promptguard.types import Filter
from promptguard.units import Chars, Words

DATA = "0" * 64
CANARY = "canary7431"


def largest(text: str) -> float:
    """The largest number in a text: erasing never raises it."""
    return max((float(word) for word in text.split() if word[0].isdigit()), default=0.0)


def hidden(text: str) -> float:
    """The first number, if it is the last word: erasing raises it."""
    words = text.split()
    return float(words[0]) if len(words) == 1 and words[0][0].isdigit() else 0.0


def made(texts: Sequence[str], filter_: Filter | None = None, **options: Any) -> Calibration:
    chosen = filter_ or TestFilter(largest)
    mode = options.pop("mode", load_mode("suffix", 2))
    options = dict[str, Any](max_fpr=0.2, confidence=0.8, data=DATA) | options
    return calibrate(chosen, mode, Words(), texts, **options)


def numbers(n: int, seed: int = 0) -> list[str]:
    rng = random.Random(seed)
    return [f"{rng.random():.9f}" for _ in range(n)]


# The promise


def test_the_threshold_is_an_order_statistic_decided_by_the_sample_size() -> None:
    texts = numbers(100)
    calibration = made(texts, max_fpr=0.05, confidence=0.9)
    scores = sorted(map(float, texts), reverse=True)
    k = calibration.allowed
    assert beta.sf(0.05, k + 1, 100 - k) <= 0.1 < beta.sf(0.05, k + 2, 99 - k)
    assert scores[k - 1] > calibration.threshold > scores[k]
    assert calibration.exceeding == k
    assert calibration.observed == k / 100
    assert calibration.bound <= 0.05


def test_the_promised_rate_holds_as_often_as_promised() -> None:
    """The whole procedure on uniform scores, whose true rate above t is 1 - t; a rank off would show."""
    runs, n, rate, confidence = 300, 40, 0.1, 0.8
    failed = sum(
        1 - made(numbers(n, seed), max_fpr=rate, confidence=confidence).threshold > rate for seed in range(runs)
    )
    k = made(numbers(n), max_fpr=rate, confidence=confidence).allowed
    law = float(beta.sf(rate, k + 1, n - k))
    assert law <= 1 - confidence
    assert abs(failed / runs - law) < 4 * math.sqrt(law * (1 - law) / runs)
    assert float(beta.sf(rate, k + 2, n - k - 1)) - law > 4 * math.sqrt(law * (1 - law) / runs)


def test_the_score_is_the_maximum_over_all_erasures() -> None:
    """The texts score nothing themselves; what is left when words are dropped does, and early stopping hides none."""
    flat = TestFilter(hidden, threshold=0.1)
    calibration = made([f"0.{i:02} and more" for i in range(10, 60)], flat, max_fpr=0.1)
    assert 0.5 < calibration.threshold < 0.6
    longer = made([f"0.{i:02} and some more" for i in range(10, 60)], flat, max_fpr=0.1)
    assert longer.threshold == math.nextafter(0.0, 1.0)  # three words are over the budget


def test_an_erasure_beyond_the_first_flagged_one_counts() -> None:
    rising = TestFilter(lambda text: 1.0 - len(text.split()) / 10, threshold=0.0)
    calibration = made(["a b c d"] * 20, rising)
    assert calibration.threshold == math.nextafter(0.8, 1.0)


def test_ties_are_not_flagged() -> None:
    texts = ["0.25"] * 90 + ["0.5"] * 10
    calibration = made(texts, max_fpr=0.1, confidence=0.9)
    assert 0 < calibration.allowed < 10
    assert calibration.threshold == math.nextafter(0.5, 1.0)
    assert calibration.exceeding == 0


def test_batch_noise_flags_no_more_of_the_sample() -> None:
    noisy = TestFilter(largest, guard_band=0.01)
    texts = numbers(60)
    calibration = made(texts, noisy)
    over = sum(float(text) + noisy.guard_band >= calibration.threshold for text in texts)
    assert over == calibration.allowed
    assert calibration.exceeding <= over


def test_texts_that_cannot_be_checked_count_as_blocked() -> None:
    calibration = made([*numbers(99), " "], max_fpr=0.05)
    assert calibration.refused == 1
    assert calibration.exceeding == calibration.allowed > 1
    with pytest.raises(InvalidArgument, match="20 of 100 safe texts cannot be checked"):
        made([*numbers(80), *[" "] * 20], max_fpr=0.05)
    with pytest.raises(InvalidArgument, match="raise max_checks"):
        made(["1 2 3 4"] * 100, mode=load_mode("infusion", 2), max_checks=5)


def test_the_calibrated_certifier_keeps_the_rate_on_the_sample_and_on_new_texts() -> None:
    texts = numbers(400)
    calibration = made(texts, max_fpr=0.1, confidence=0.95)
    certifier = EraseAndCheck(TestFilter(largest, threshold=calibration.threshold), load_mode("suffix", 2), Words())
    calibration.check(certifier)
    rows = [Subject(certifier, {}).measure(Prompt(str(i), "s", "safe", text)) for i, text in enumerate(texts)]
    assert sum(row["verdict"] != "safe" for row in rows) == calibration.exceeding
    assert sum(certifier.certify(text).label == "harmful" for text in numbers(2000, 1)) < 0.1 * 2000


# What cannot be promised


def test_too_few_texts_are_an_error_that_says_how_many_are_needed() -> None:
    calls: list[object] = []
    filter_ = as_filter(lambda xs: calls.append(xs) or [0.0] * len(xs))  # type: ignore[func-returns-value]
    for n in (0, 1, 298):
        with pytest.raises(InvalidArgument, match="at least 299 are needed"):
            made(["a"] * n, filter_, max_fpr=0.01, confidence=0.95)
    assert calls == []
    assert made(["a"] * 299, filter_, max_fpr=0.01, confidence=0.95).allowed == 0


@pytest.mark.parametrize("options", [{"max_fpr": 0.0}, {"max_fpr": 1.0}, {"max_fpr": math.nan}, {"confidence": 1.0}])
def test_rates_outside_their_range_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(InvalidArgument, match="between 0 and 1"):
        made(numbers(50), **options)


def test_a_threshold_that_would_flag_nothing_is_refused() -> None:
    with pytest.raises(InvalidArgument, match="flag nothing"):
        made(["1.0"] * 50)
    assert made(["7.5"] * 50).threshold > 7.5  # no probabilities


def test_a_broken_filter_stops_the_calibration() -> None:
    with pytest.raises(FilterError):
        made(numbers(50), as_filter(lambda xs: [math.nan] * len(xs)))


# What it serves


def certifier(kind: str = "insertion", budget: float = 2, blocks: int = 2, **changes: Any) -> EraseAndCheck:
    threshold, units = changes.pop("threshold", 0.9), changes.pop("units", Words())
    filter_ = TestFilter(largest, threshold=threshold, **{"digest": "f" * 64, **changes})
    return EraseAndCheck(filter_, load_mode(kind, budget, blocks), units)


def for_insertion(**changes: Any) -> Calibration:
    about = made(numbers(50), TestFilter(largest, digest="f" * 64), mode=load_mode("insertion", 2, 2))
    return Calibration.model_validate(about.model_dump() | {"threshold": 0.9} | changes)


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"digest": "e" * 64}, r"filter test \(f{12}\), not test \(e{12}\)"),
        ({"units": Chars()}, "unit word, not char"),
        ({"kind": "infusion", "blocks": 1}, "mode insertion, not infusion"),
        ({"budget": 3}, "budget at most 2, not 3"),
        ({"budget": math.inf}, "budget at most 2, not unlimited"),
        ({"blocks": 3}, "blocks at most 2, not 3"),
        ({"guard_band": 0.1}, "guard band"),
        ({"threshold": 0.8}, "threshold 0.9, not 0.8"),
        ({"digest": "e" * 64, "units": Chars()}, "filter.*; unit"),
    ],
)
def test_another_filter_unit_or_mode_is_refused_by_name(changes: dict[str, Any], named: str) -> None:
    with pytest.raises(InvalidArgument, match=named) as caught:
        for_insertion().check(certifier(**changes))
    assert "\n" not in str(caught.value)


def test_another_view_is_refused() -> None:
    with pytest.raises(InvalidArgument, match="canonical view 0, not canonical view"):
        for_insertion(view="canonical view 0").check(certifier())


@pytest.mark.parametrize("changes", [{}, {"budget": 1}, {"budget": 0}, {"blocks": 1}, {"threshold": 0.95}])
def test_fewer_erasures_and_a_higher_threshold_are_served(changes: dict[str, Any]) -> None:
    for_insertion().check(certifier(**changes))


def test_unlimited_covers_every_budget() -> None:
    suffix = made(numbers(50), TestFilter(largest, digest="f" * 64), mode=load_mode("suffix", math.inf))
    assert suffix.mode["budget"] == "unlimited"
    for budget in (0, 7, math.inf):
        suffix.check(certifier("suffix", budget, 1))


@pytest.mark.parametrize("kind", ["wrap", "wrap-boundary"])
def test_a_smaller_budget_in_a_wrap_mode_refuses_longer_texts_so_it_is_not_served(kind: str) -> None:
    wrapped = made(numbers(50), TestFilter(largest, digest="f" * 64), mode=load_mode(kind, math.inf))
    wrapped.check(certifier(kind, math.inf, 1, threshold=1e12))
    with pytest.raises(InvalidArgument, match="budget unlimited, not 0"):
        wrapped.check(certifier(kind, 0, 1, threshold=1e12))


def test_smaller_budgets_score_no_higher() -> None:
    """The reason why they are served: their erasures are a subset."""
    noise = TestFilter(lambda text: random.Random(text).random(), threshold=2.0)
    for kind, block in (("suffix", 1), ("insertion", 1), ("insertion", 2), ("infusion", 1)):
        for text in ("a b c d e", "b a", "c c b a b a"):
            scores = [
                EraseAndCheck(noise, load_mode(kind, budget, block), Words(), early_stop=False).certify(text).score
                for budget in (0, 1, 2, 3)
            ]
            assert scores == sorted(scores)


def test_a_time_budget_flags_no_more_and_what_it_leaves_unfinished_is_blocked_on_top() -> None:
    """What `Calibration.check` says of `max_seconds`: the bound stays one on flagged texts, not on blocked ones."""
    ticks = iter(range(10**9))
    settings: dict[str, Any] = {"early_stop": False, "batch_size": 1}
    timed = EraseAndCheck(
        TestFilter(lambda text: random.Random(text).random(), threshold=0.8),
        load_mode("suffix", 6), Words(), max_seconds=5.0, clock=lambda: float(next(ticks)), **settings,
    )  # fmt: skip
    whole = EraseAndCheck(timed.filter, timed.mode, timed.units, **settings)
    made(numbers(50), timed.filter, mode=timed.mode).model_copy(update={"threshold": 0.8}).check(timed)
    pairs = []
    for i in range(60):
        text = " ".join(f"w{i}x{j}" for j in range(7))
        try:
            mine = str(timed.certify(text).label)
        except OutOfTime:
            mine = "refused"
        pairs.append((mine, str(whole.certify(text).label)))
    assert ("harmful", "safe") not in pairs
    assert any(mine != "harmful" for mine, full in pairs if full == "harmful")
    assert any(mine in {"abstain", "refused"} for mine, full in pairs if full == "safe")


class Strange:
    """A mode of a third party with a parameter of its own."""

    def __init__(self, budget: float = 2) -> None:
        self.kind, self.budget, self.blocks = "strange", budget, 1


def test_every_parameter_of_a_mode_is_recorded() -> None:
    assert describe(load_mode("insertion", 2, 3)) == {"kind": "insertion", "budget": 2, "blocks": 3}
    assert describe(Strange(math.inf)) == {"kind": "strange", "budget": "unlimited", "blocks": 1}  # type: ignore[arg-type]
    calibration = for_insertion(mode={"kind": "insertion", "budget": 2, "blocks": 2, "max_prompt": 10})
    with pytest.raises(InvalidArgument, match="max_prompt 10, not None"):
        calibration.check(certifier())


# The file


def test_a_file_is_read_as_it_was_written(tmp_path: Path) -> None:
    for threshold in (5e-324, 0.1 + 0.2, 0.9999999999999999):
        calibration = for_insertion(threshold=threshold)
        calibration.save(tmp_path / "t.json")
        assert Calibration.load(tmp_path / "t.json") == calibration


def test_the_file_says_what_was_measured_and_holds_no_text(tmp_path: Path) -> None:
    made([f"0.5 {CANARY}"] * 50).save(tmp_path / "t.json")
    text = (tmp_path / "t.json").read_text(encoding="utf-8")
    assert CANARY not in text
    written = json.loads(text)
    assert written["format"] == 1
    assert (written["texts"], written["data"], written["unit"]) == (50, DATA, "word")
    assert written["mode"] == {"kind": "suffix", "budget": 2, "blocks": 1}


@pytest.mark.parametrize(
    "change",
    [
        {"format": 2},
        {"threshold": math.nan},
        {"threshold": math.inf},
        {"threshold": "0.5"},
        {"bound": 0.001},
        {"max_fpr": 0.0001},
        {"confidence": 1.5},
        {"allowed": 40},
        {"exceeding": 49},
        {"refused": -1},
        {"texts": 0},
        {"mode": {"kind": "suffix"}},
        {"mode": {"kind": "suffix", "budget": -1, "blocks": 1}},
        {"mode": {"kind": "suffix", "budget": True, "blocks": 1}},
        {"mode": {"budget": 1, "blocks": 1}},
        {"mode": None},
        {"data": "no digest"},
        {CANARY: 1},
    ],
)
def test_files_that_do_not_add_up_are_refused(tmp_path: Path, change: dict[str, Any]) -> None:
    path = tmp_path / "t.json"
    path.write_text(json.dumps(for_insertion().model_dump() | change), encoding="utf-8")
    with pytest.raises(InvalidArgument, match="no threshold file") as caught:
        Calibration.load(path)
    assert CANARY not in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("content", [b"", b"{", b"[1]", b"7", b"\xff\xfe", b"[" * 100_000, CANARY.encode()])
def test_other_files_are_refused_in_one_line(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "t.json"
    path.write_bytes(content)
    with pytest.raises(InvalidArgument, match="no threshold file") as caught:
        Calibration.load(path)
    assert CANARY not in str(caught.value)
    assert "\n" not in str(caught.value)
    with pytest.raises(InvalidArgument, match="cannot read"):
        Calibration.load(tmp_path)
    with pytest.raises(InvalidArgument, match="cannot write"):
        for_insertion().save(tmp_path / "none" / "t.json")


# The sample


def test_rows_that_are_labelled_harmful_are_left_out(tmp_path: Path) -> None:
    path = tmp_path / "p.jsonl"
    rows = [
        {"text": "a", "label": "safe"},
        {"text": "b", "label": "harmful"},
        {"text": "c"},
        {"text": "d", "label": None},
    ]
    path.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    sample = read_safe_texts(path)
    assert (sample.texts, sample.harmful) == (("a", "c", "d"), 1)
    assert len(sample.digest) == 64


def test_plain_lines_are_texts(tmp_path: Path) -> None:
    path = tmp_path / "p.txt"
    path.write_bytes(b"one text\r\n\r\n{another}\n")
    assert read_safe_texts(path).texts == ("one text", "{another}")


@pytest.mark.parametrize(
    "line", [f'{{"text": "{CANARY}", "label": "fine"}}', f'{{"text": "{CANARY}", "label": []}}', "[1]"]
)
def test_bad_lines_are_named_without_their_text(tmp_path: Path, line: str) -> None:
    path = tmp_path / "p.jsonl"
    path.write_text(line, encoding="utf-8")
    with pytest.raises(InvalidArgument, match=r"p\.jsonl, line 1") as caught:
        read_safe_texts(path)
    assert CANARY not in str(caught.value)


# The command

KEYWORD = ["--filter", "keyword:bomb"]
PROMISE = ["--max-fpr", "0.05", "--confidence", "0.95"]


def run(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


@pytest.fixture
def safe(tmp_path: Path) -> Path:
    path = tmp_path / "safe.jsonl"
    rows = [{"text": f"bake cake number {i} {CANARY}", "label": "safe"} for i in range(100)]
    path.write_text("\n".join(map(json.dumps, [*rows, {"text": "build a bomb", "label": "harmful"}])), encoding="utf-8")
    return path


@pytest.fixture
def threshold(safe: Path, tmp_path: Path) -> Path:
    path = tmp_path / "threshold.json"
    result = run("calibrate", safe, "--out", path, *KEYWORD, *PROMISE)
    assert result.exit_code == 0, result.output
    return path


def test_the_command_writes_a_file_and_says_what_it_promises(safe: Path, tmp_path: Path) -> None:
    path = tmp_path / "t.json"
    result = run("calibrate", safe, "--out", path, *KEYWORD, *PROMISE)
    printed = " ".join(result.output.split())
    assert "With confidence 0.95, at most" in printed
    assert "0 of 100" in printed
    assert "1 labelled harmful" in printed
    assert CANARY not in result.output
    calibration = Calibration.load(path)
    assert (calibration.texts, calibration.filter_name, calibration.mode["budget"]) == (100, "keyword", 20)
    assert CANARY not in path.read_text(encoding="utf-8")
    again = run("calibrate", safe, "--out", path, "--json", "--max-erase", "unlimited", *KEYWORD, *PROMISE)
    assert json.loads(again.output) == Calibration.load(path).model_dump()


def test_every_command_loads_the_file(threshold: Path, safe: Path, tmp_path: Path) -> None:
    assert run("check", "bake a cake", "--threshold", threshold, *KEYWORD).exit_code == 0
    assert run("check", "build a bomb", "--threshold", threshold, *KEYWORD).exit_code == 1
    certified = json.loads(run("certify", "build a bomb", "--json", "--threshold", threshold, *KEYWORD).output)
    assert f"threshold {Calibration.load(threshold).threshold!r}," in certified["certificate"]["assumes"][0]
    result = run("bench", safe, "--out", tmp_path / "run", "--threshold", threshold, *KEYWORD)
    assert result.exit_code == 0, result.output
    about = json.loads((tmp_path / "run" / "run.json").read_text(encoding="utf-8"))
    assert about["settings"]["threshold"] == Calibration.load(threshold).threshold
    assert run("check", "build a bomb", "--threshold", threshold, "--max-erase", "5", *KEYWORD).exit_code == 1


@pytest.mark.parametrize(
    ("options", "named"),
    [
        (["--filter", "keyword:gun"], "filter keyword"),
        ([*KEYWORD, "--unit", "char"], "unit word, not char"),
        ([*KEYWORD, "--mode", "infusion"], "mode suffix, not infusion"),
        ([*KEYWORD, "--max-erase", "21"], "budget at most 20, not 21"),
        ([*KEYWORD, "--max-erase", "unlimited"], "budget at most 20, not unlimited"),
    ],
)
def test_a_file_for_something_else_exits_2_in_one_line(
    threshold: Path, safe: Path, tmp_path: Path, options: list[str], named: str
) -> None:
    for command in (["check", CANARY], ["certify", CANARY], ["bench", safe, "--out", tmp_path / "run"]):
        result = run(*command, "--threshold", threshold, *options)
        assert result.exit_code == 2
        assert named in result.output
        assert len(result.output.strip().splitlines()) == 1
        assert CANARY not in result.output


def test_a_threshold_may_still_be_a_number() -> None:
    assert run("check", "build a bomb", "--threshold", "1.5", *KEYWORD).exit_code == 0
    assert run("check", "build a bomb", "--threshold", "0.5", *KEYWORD).exit_code == 1
    for bad in ("nan", "inf", "no-such-file"):
        result = run("check", "build a bomb", "--threshold", bad, *KEYWORD)
        assert result.exit_code == 2
        assert len(result.output.strip().splitlines()) == 1


@pytest.mark.parametrize(
    "options",
    [
        ["--max-fpr", "0.001"],
        ["--max-fpr", "0"],
        ["--confidence", "1"],
        ["--mode", "prefix"],
        ["--out", "no/such/folder.json"],
        ["--filter", "keyword:cake"],  # flags every safe text
        ["--max-checks", "2"],  # refuses every safe text
    ],
)
def test_bad_calibrations_exit_2_in_one_line_and_write_nothing(safe: Path, tmp_path: Path, options: list[str]) -> None:
    path = tmp_path / "t.json"
    result = run("calibrate", safe, "--out", path, *KEYWORD, *PROMISE, *options)
    assert result.exit_code == 2
    assert len(result.output.strip().splitlines()) == 1
    assert CANARY not in result.output
    assert not path.exists()


def test_other_files_are_not_overwritten(safe: Path, threshold: Path, tmp_path: Path) -> None:
    before = safe.read_bytes()
    assert run("calibrate", safe, "--out", safe, *KEYWORD, *PROMISE).exit_code == 2
    assert safe.read_bytes() == before
    assert run("calibrate", safe, "--out", threshold, "--max-erase", "3", *KEYWORD, *PROMISE).exit_code == 0
    assert Calibration.load(threshold).mode["budget"] == 3
    assert run("calibrate", tmp_path / "none.jsonl", "--out", tmp_path / "t.json", *KEYWORD).exit_code == 2
