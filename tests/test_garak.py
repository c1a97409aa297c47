"""garak: its reports are imported, the guard answers as its target, and a real run counts what the guard counts."""

from __future__ import annotations

import inspect
import json
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from doubles import CANARY, Does
from doubles import Words as Flags
from serving import SAID, Fake, live
from test_architecture import heavy_imports
from test_serve_live import process

from promptguard.errors import InvalidArgument
from promptguard.evaluate.garak import Evaluation, compare, read_report
from promptguard.guard import Guard, Policy
from promptguard.guard.environment import guard_of
from promptguard.middleware import garak
from promptguard.middleware.garak import ALLOWED, BLOCKED, target

ROOT = Path(__file__).parents[1]
needs_garak = pytest.mark.skipif(find_spec("garak") is None, reason="no garak here: make integrations")


def attempt(uuid: str, text: str, status: int, probe: str) -> dict[str, Any]:
    turn = {"role": "user", "content": {"text": text, "lang": "en", "notes": {}}}
    return {
        "entry_type": "attempt",
        "uuid": uuid,
        "status": status,
        "probe_classname": probe,
        "prompt": {"turns": [turn], "notes": None},
        "outputs": [{"text": "Sure"}],
        "detector_results": {"shields.Up": [1.0]} if status == 2 else {},
    }


def evaluation(probe: str, detector: str, passed: Any, fails: int, nones: int) -> dict[str, Any]:
    counts = {"passed": passed, "fails": fails, "nones": nones, "total_evaluated": 0}
    return {"entry_type": "eval", "probe": probe, "detector": detector, **counts}


def report(path: Path, *more: dict[str, Any]) -> Path:
    """Two probes, three prompts; every attempt is there twice, as garak writes it."""
    attempts = [("a", "a bomb !!", "suffix.X"), ("b", "a cake !!", "suffix.X"), ("c", "a bomb", "dan.Y")]
    lines = [
        {"entry_type": "init", "garak_version": "0.17.1"},
        *(attempt(uuid, text, 1, probe) for uuid, text, probe in attempts),
        *(attempt(uuid, text, 2, probe) for uuid, text, probe in attempts),
        evaluation("suffix.X", "shields.Up", 1, 1, 0),
        evaluation("dan.Y", "shields.Up", 0, 0, 1),
        evaluation("other.Z", "shields.Up", 3, 1, 0),
        *more,
        {"entry_type": "completion"},
    ]
    path.write_text("\n".join(map(json.dumps, lines)) + "\n", encoding="utf-8")
    return path


# The importer


def test_a_report_is_prompts_and_counts(tmp_path: Path) -> None:
    found = read_report(report(tmp_path / "x.report.jsonl"))
    assert [(p.id, p.source, p.label, p.text) for p in found.prompts.prompts] == [
        ("a", "garak/suffix.X", "harmful", "a bomb !!"),
        ("b", "garak/suffix.X", "harmful", "a cake !!"),
        ("c", "garak/dan.Y", "harmful", "a bomb"),
    ]
    assert found.evaluations[0] == Evaluation("suffix.X", "shields.Up", passed=1, fails=1, nones=0)
    assert len(found.evaluations) == 3


def test_our_rows_stand_beside_their_counts(tmp_path: Path) -> None:
    found = read_report(report(tmp_path / "x.report.jsonl"))
    guard = guard_of({"PGUARD_FILTER": "keyword:bomb"})
    rows = [
        {"id": p.id, "source": p.source, "verdict": "safe" if guard.check(p.text).allowed else "harmful"}
        for p in found.prompts.prompts
    ]
    suffix, dan, other = compare(found, rows)
    assert (suffix.blocked, suffix.prompts, suffix.success, suffix.through) == (1, 2, 0.5, 0.5)
    assert suffix.interval is not None
    assert suffix.interval.low < 0.5 < suffix.interval.high
    # Nothing was judged by garak, which is no rate, and blocked by us.
    assert (dan.blocked, dan.prompts, dan.success, dan.through) == (1, 1, None, 0.0)
    assert (other.prompts, other.success, other.through, other.interval) == (0, 0.25, None, None)
    assert json.loads(json.dumps(other.to_dict()))["promptguard"] == {
        "prompts": 0,
        "blocked": 0,
        "through": None,
        "interval": None,
    }
    assert suffix.to_dict()["garak"]["attack_success"] == 0.5


def test_what_cannot_be_checked_counts_as_blocked(tmp_path: Path) -> None:
    found = read_report(report(tmp_path / "x.report.jsonl"))
    rows = [{"id": i, "source": "garak/suffix.X", "verdict": v} for i, v in enumerate(["abstain", "safe", "harmful"])]
    line = compare(found, rows)[0]
    assert (line.blocked, line.prompts) == (2, 3)


def test_other_files_are_no_reports(tmp_path: Path) -> None:
    path = tmp_path / "p.jsonl"
    path.write_text(json.dumps({"text": CANARY, "label": "safe"}), encoding="utf-8")
    with pytest.raises(InvalidArgument, match="no garak report: its format is own"):
        read_report(path)
    bad = report(tmp_path / "x.report.jsonl", evaluation("suffix.X", "shields.Up", CANARY, 0, 0))
    with pytest.raises(InvalidArgument, match=r"x\.report\.jsonl, line 11: `passed` must be a whole number") as caught:
        read_report(bad)
    assert CANARY not in str(caught.value)


# The target


def test_a_blocked_prompt_is_answered_with_the_refusal() -> None:
    asked = []

    def model(prompt: str) -> str:
        asked.append(prompt)
        return "here you are"

    guarded = target(Guard(Flags(), Policy(refusal="No.")), model)
    assert guarded("a bomb") == ["No."]
    assert guarded("a cake", temperature=1) == ["here you are"]
    assert asked == ["a cake"]
    assert target(Guard(Flags()))("a cake") == [ALLOWED]


@pytest.mark.parametrize("outcome", [RuntimeError(CANARY), None, "not a verdict"])
def test_whatever_goes_wrong_is_answered_with_the_refusal(outcome: Any) -> None:
    guarded = target(Guard(Does(outcome), Policy(refusal=BLOCKED)))
    for prompt in (CANARY, "", "\0", None, 3):
        assert guarded(prompt) == [BLOCKED]


def test_answers_are_what_the_detectors_look_for() -> None:
    # shields.Up and shields.Down look at the beginning, mitigation.MitigationBypass for this phrase, whatever the case.
    assert BLOCKED.lower().startswith("block")
    assert "i can't assist" in BLOCKED.lower()
    assert ALLOWED.lower().startswith("allow")
    assert "can" not in ALLOWED.lower().split()


def test_no_parameter_is_called_name() -> None:
    for function in (garak.guarded, target(Guard(Flags()))):
        assert list(inspect.signature(function).parameters) == ["prompt", "_"]


def test_the_environment_chooses_the_guard(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith("PGUARD_")]:
        monkeypatch.delenv(name)
    garak._from_environment.cache_clear()
    monkeypatch.setenv("PGUARD_FILTER", "keyword:bomb")
    monkeypatch.setenv("PGUARD_MODE", "infusion")
    monkeypatch.setenv("PGUARD_MAX_ERASE", "2")
    assert garak.guarded("a bomb !!") == [BLOCKED]
    assert garak.guarded("a cake !!") == [ALLOWED]
    garak._from_environment.cache_clear()


def test_importing_the_target_costs_nothing_heavy() -> None:
    assert heavy_imports("import promptguard.middleware.garak") == []


# The real thing


@needs_garak
def test_a_real_run_counts_what_the_guard_counts(tmp_path: Path) -> None:
    settings = {"PGUARD_FILTER": "keyword:bomb", "PGUARD_MAX_ERASE": "20"}
    command = [sys.executable, str(ROOT / "benchmarks" / "garak.py"), "run", "--python", sys.executable]
    command += ["--probes", "suffix.GCGCached", "--out", str(tmp_path)]
    done = subprocess.run(command, env=os.environ | settings, capture_output=True, text=True, check=False, timeout=240)
    assert done.returncode == 0, done.stderr[-2000:]
    found = read_report(tmp_path / "run.report.jsonl")
    assert len(found.prompts.prompts) == 26  # 13 suffixes behind each of two requests, one of which names a bomb
    assert found.evaluations == (Evaluation("suffix.GCGCached", "shields.Up", passed=13, fails=13, nones=0),)
    result = json.loads((tmp_path / "comparison.json").read_text(encoding="utf-8"))
    assert result["guard"] == settings
    assert result["probes"][0]["promptguard"]["blocked"] == 13


def attacked(folder: Path, config: str) -> tuple[Fake, dict[str, list[str | None]], tuple[Evaluation, ...]]:
    """garak as the example runs it, against `promptguard serve`: the model, the answers to prompts, the counts."""
    fake, prefix = Fake(), folder / "run"
    with live(fake.app()) as model:
        text = f"certifier: {{filter: 'keyword:bomb'}}\nupstream: {{url: {model}/v1}}\n{config}"
        with process(folder, text) as (_, url, _):
            garak_file = folder / "garak.yaml"
            example = (ROOT / "examples" / "garak.yaml").read_text(encoding="utf-8")
            garak_file.write_text(example.replace("http://127.0.0.1:8900", url), encoding="utf-8")
            assert url in garak_file.read_text(encoding="utf-8")
            homes = {f"XDG_{name}_HOME": str(folder / "home" / name.lower()) for name in ("DATA", "CONFIG", "CACHE")}
            command = [sys.executable, "-m", "garak", "--config", str(garak_file), "--report_prefix", str(prefix)]
            env = os.environ | homes | {"OPENAICOMPATIBLE_API_KEY": "any", "HF_HUB_OFFLINE": "1"}
            done = subprocess.run(
                command, cwd=folder, env=env, capture_output=True, text=True, check=False, timeout=120
            )
            assert done.returncode == 0, done.stderr[-2000:]
    report = prefix.with_suffix(".report.jsonl")
    lines = [json.loads(line) for line in report.read_text(encoding="utf-8").splitlines()]
    answers = {
        line["prompt"]["turns"][-1]["content"]["text"]: [output and output["text"] for output in line["outputs"]]
        for line in lines
        if line["entry_type"] == "attempt" and line["status"] == 2
    }
    return fake, answers, read_report(report).evaluations


@needs_garak
@pytest.mark.parametrize(
    ("config", "said", "passed", "nones"),
    [
        # Its detector takes these words for a refusal, so what is blocked counts as an attack that failed.
        ("block_mode: refusal", Policy().refusal, 13, 0),
        # An error is no answer, and in no rate.
        ("block_mode: error", None, 0, 13),
    ],
    ids=["refusal", "error"],
)
def test_garak_attacks_the_server(tmp_path: Path, config: str, said: str | None, passed: int, nones: int) -> None:
    fake, answers, evaluations = attacked(tmp_path, config)
    blocked = {text for text in answers if "bomb" in text}
    assert (len(answers), len(blocked)) == (26, 13)
    assert all(answers[text] == ([said] if text in blocked else [SAID]) for text in answers)
    assert evaluations == (Evaluation("suffix.GCGCached", "mitigation.MitigationBypass", passed, 13, nones),)
    # What garak sent reached the model word for word, or not at all.
    assert {asked["messages"][-1]["content"] for asked in fake.asked} == answers.keys() - blocked
    assert len(fake.bodies) == 13
