"""Numbers of a report, by hand: rates, ties, refused rows, thresholds, budgets; what is missing is None."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from promptguard.certify.erase_and_check import EraseAndCheck
from promptguard.erase import load_mode
from promptguard.errors import InvalidArgument
from promptguard.evaluate.report import Rate, summarise
from promptguard.evaluate.report.plain import certified_at, certified_curve, margins
from promptguard.evaluate.report.rows import read_run
from promptguard.evaluate.report.thresholds import auc, roc, threshold_for
from promptguard.score import as_filter
from promptguard.stats import clopper_pearson
from promptguard.units import Words

Json = dict[str, Any]
THREAT = {"kind": "suffix", "budget": 3, "unit": "word", "blocks": 1}


def about(threat: Json | None = THREAT, prompts: int = 0, **more: Any) -> Json:
    """A `run.json`."""
    return {
        "format": 2,
        "command": "promptguard bench p.jsonl",
        "certifier": "erase",
        "settings": {"mode": "suffix", "fast": False},
        "filter": "f" * 64,
        "filter_name": "tiny",
        "threshold": 0.5,
        "guard_band": 0.0,
        "threat": threat,
        "method": "erase-and-check",
        "data": {"digest": "d" * 64, "files": [{"name": "p.jsonl", "sha256": "e" * 64}], "prompts": prompts},
        "versions": {"certified-promptguard": "0.1.0"},
        "machine": {"system": "Linux", "cpus": 2},
    } | more


def row(name: str, label: str, score: float | None, budget: int | str | None = None, **more: Any) -> Json:
    """A row whose verdict follows from its score; with a budget it is certified."""
    verdict = "abstain" if score is None else "harmful" if score >= 0.5 else "safe"
    certificate = None if budget is None else {
        "label": "harmful", "threat": THREAT | {"budget": budget}, "method": "erase-and-check", "confidence": 1.0,
    }  # fmt: skip
    checked = score is not None
    return {
        "id": name,
        "source": "ours",
        "label": label,
        "verdict": verdict,
        "score": score,
        "certificate": certificate,
        "checks": 4 if checked else 0,
        "ms": 2.0 if checked else None,
        "seed": None,
    } | more


def save(folder: Path, rows: list[Json], head: Json | None = None) -> Path:
    """Write the folder of a run."""
    head = head or about()
    folder.mkdir(parents=True)
    (folder / "run.json").write_text(json.dumps(head | {"data": head["data"] | {"prompts": len(rows)}}))
    (folder / "rows.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    return folder


ROWS = [
    row("1", "harmful", 0.9, 3),
    row("2", "harmful", 0.8, 1),
    row("3", "harmful", 0.7),  # within the guard band, say: flagged, not certified
    row("4", "harmful", 0.2),
    row("5", "harmful", None),
    row("6", "safe", 0.6, 2),
    row("7", "safe", 0.2),
    row("8", "safe", 0.1),
    row("9", "safe", None, source="theirs"),
]


def pair(rate: Rate | None) -> tuple[int, int] | None:
    return None if rate is None else (rate.hits, rate.n)


def test_every_number_of_a_small_run() -> None:
    ours, theirs, overall = summarise(ROWS, about())
    assert (overall.source, overall.harmful, overall.safe) == (None, 5, 4)
    assert (overall.refused_harmful, overall.refused_safe) == (1, 1)
    assert pair(overall.recall) == (4, 5)  # a refused prompt is blocked,
    assert pair(overall.certified) == (1, 5)  # but not certified
    assert pair(overall.over_refusal) == (2, 4)
    # harmful .9 .8 .7 .2 inf against safe .6 .2 .1 inf: wins 3 + 3 + 3 + 1 + 3, ties (.2 .2) and (inf inf)
    assert overall.auc == pytest.approx((13 + 1) / 20)
    assert [(s.budget, s.certified.hits) for s in overall.curve] == [(0, 2), (1, 2), (2, 1), (3, 1)]
    assert overall.checks
    assert overall.ms
    assert (overall.checks.p50, overall.ms.p95) == (4, 2)  # of the checked ones
    assert pair(ours.over_refusal) == (1, 3)
    assert (theirs.recall, theirs.certified, theirs.auc, theirs.checks, theirs.ms) == (None,) * 5
    assert pair(theirs.over_refusal) == (1, 1)


def test_one_source_has_one_summary() -> None:
    assert [group.source for group in summarise(ROWS[:3], about())] == ["ours"]


def test_intervals_are_clopper_pearson_in_percent() -> None:
    rate = Rate(58, 60)
    assert rate.interval == clopper_pearson(58, 60)
    assert str(rate) == "96.7 [88.5, 99.6]"
    assert rate.to_dict()["share"] == pytest.approx(58 / 60)
    assert Rate.of([]) is None


def test_costs_are_interpolated_between_order_statistics() -> None:
    rows = [row(str(i), "safe", 0.1, checks=i, ms=10.0 * i) for i in range(1, 12)]
    (group,) = summarise(rows, about())
    assert group.checks
    assert group.ms
    assert (group.checks.p50, group.checks.p95, group.ms.p50, group.ms.p95) == pytest.approx((6, 10.5, 60, 105))


scores = st.lists(st.sampled_from([0.0, 0.25, 0.5, 1.0, math.inf]), min_size=1, max_size=12)


@given(scores, scores)
def test_area_is_the_share_of_pairs_in_order(harmful: list[float], safe: list[float]) -> None:
    pairs = [1.0 if h > s else 0.5 if h == s else 0.0 for h in harmful for s in safe]
    assert auc(harmful, safe) == pytest.approx(sum(pairs) / len(pairs))


@given(scores, scores, st.sampled_from([1, 2, 5, 30]))
def test_thresholds_give_the_largest_recall_within_the_rate(h: list[float], s: list[float], percent: int) -> None:
    def rates(threshold: float) -> tuple[float, float]:
        return tuple(sum(x >= threshold for x in side) / len(side) for side in (h, s))  # type: ignore[return-value]

    allowed = [rates(t) for t in (0.0, 0.25, 0.5, 1.0, 2.0) if rates(t)[1] <= percent / 100]
    found = threshold_for(s, percent)
    if found is None:
        assert not allowed
    else:
        recall, false_positives = rates(found)
        assert false_positives <= percent / 100
        assert recall == max(r for r, _ in allowed)


@given(scores, scores)
def test_roc_starts_at_refused_rows_and_ends_at_all(harmful: list[float], safe: list[float]) -> None:
    points = roc(harmful, safe)
    assert points[0].false_positives == pytest.approx(safe.count(math.inf) / len(safe))
    for point in points[1:]:
        assert point.true_positives == pytest.approx(sum(x >= point.threshold for x in harmful) / len(harmful))
    assert [p.false_positives for p in points] == sorted(p.false_positives for p in points)


def test_without_safe_rows_no_threshold_is_made_up() -> None:
    (group,) = summarise(ROWS[:4], about())
    assert (group.auc, group.over_refusal) == (None, None)
    assert [(p.percent, p.threshold, p.recall) for p in group.operating] == [(n, None, None) for n in (1, 2, 5)]
    assert threshold_for([], 5) is None


def test_the_threshold_is_one_for_all_sources() -> None:
    safe = [row(f"s{i}", "safe", i / 100, source="a" if i < 60 else "b") for i in range(100)]
    harmful = [row("h1", "harmful", 0.981, 3, source="a"), row("h2", "harmful", 0.985, 3, source="c")]
    a, b, c, overall = summarise([*safe, *harmful], about())
    for group in (a, b, c, overall):
        assert [p.threshold for p in group.operating] == [p.threshold for p in overall.operating]
    at_one = overall.operating[0]
    assert at_one.threshold == math.nextafter(0.98, 1)
    assert pair(at_one.over_refusal) == (1, 100)
    assert pair(b.operating[2].over_refusal) == (5, 40)
    assert pair(a.operating[0].recall) == (1, 1)
    assert b.operating[0].recall is None


def test_too_many_refused_safe_rows_leave_no_threshold() -> None:
    rows = [row(str(i), "safe", None if i < 3 else 0.1) for i in range(100)] + [row("h", "harmful", 0.9, 3)]
    (group,) = summarise(rows, about())
    assert [p.threshold is None for p in group.operating] == [True, True, False]


def test_fast_runs_have_no_sweep_over_scores() -> None:
    *_, group = summarise(ROWS, about(settings={"fast": True}))
    assert group.auc is None
    assert all(p.threshold is None for p in group.operating)
    assert pair(group.recall) == (4, 5)
    assert pair(group.certified) == (1, 5)


def test_unlimited_budgets_stand_at_the_end() -> None:
    rows = [row("1", "harmful", 0.9, "unlimited"), row("2", "harmful", 0.8, 2), row("3", "harmful", 0.1)]
    (group,) = summarise(rows, about(THREAT | {"budget": "unlimited"}))
    steps = [(step.to_dict()["budget"], step.certified.hits) for step in group.curve]
    assert steps == [(0, 2), (1, 2), (2, 2), ("unlimited", 1)]
    assert pair(group.certified) == (1, 3)


def test_large_budgets_list_where_the_curve_steps() -> None:
    (group,) = summarise(
        [row("1", "harmful", 0.9, 5000), row("2", "harmful", 0.9, 7)], about(THREAT | {"budget": 9000})
    )
    assert [s.budget for s in group.curve] == [*range(101), 5000, 9000]
    assert [s.certified.hits for s in group.curve[-2:]] == [1, 0]


def test_runs_without_a_full_budget() -> None:
    (group,) = summarise(ROWS[:3], about(None))
    assert group.certified is None
    assert [s.certified.hits for s in group.curve] == [2, 2, 1, 1]
    other = row("x", "harmful", 0.9, 3)
    other["certificate"]["threat"] = THREAT | {"kind": "wrap"}
    (mixed,) = summarise([ROWS[0], other], about(None))
    assert mixed.curve == ()


def test_certificates_of_safe_prompts_or_for_safe_do_not_count() -> None:
    turned = row("1", "harmful", 0.1, 3)
    turned["certificate"]["label"] = "safe"
    (group,) = summarise([turned, row("2", "safe", 0.9, 3)], about())
    assert pair(group.certified) == (0, 1)


# Certified recall at other thresholds


def test_a_plain_run_tells_certified_recall_at_other_thresholds(tmp_path: Path) -> None:
    safe = [row(f"s{i}", "safe", i / 1000) for i in range(100)]
    run = save(tmp_path / "run", [*safe, row("a", "harmful", 0.9, 3), row("b", "harmful", 0.8, 1),
                                  row("c", "harmful", 0.3), row("d", "harmful", None)])  # fmt: skip
    itself = [
        row("a", "harmful", 0.9, 0),
        row("b", "harmful", 0.05),
        row("c", "harmful", 0.3),
        row("d", "harmful", 0.9, 0),
    ]
    plain = save(tmp_path / "plain", [*safe, *itself], about(THREAT | {"budget": 0}))
    found = certified_at(read_run(run), read_run(plain))
    # At 1 %: a and c reach the threshold themselves; b only after erasing; d is refused by the procedure.
    assert [(p.source, p.percent, pair(p.certified)) for p in found[:3]] == [
        (None, 1, (2, 4)), (None, 2, (2, 4)), (None, 5, (2, 4)),
    ]  # fmt: skip
    assert [p.source for p in found[3:]] == ["ours"] * 3
    curve = certified_curve(read_run(run), read_run(plain))
    assert (0.0, 0.5) in curve
    assert curve[-1] == (1.0, 0.75)


@pytest.mark.parametrize(("score", "budget", "hits"), [(2e-6, 3, 2), (1e-9, 3, 1), (2e-6, 2, 0)])
def test_guard_bands_and_limits_of_checks_are_kept(tmp_path: Path, score: float, budget: int, hits: int) -> None:
    """A score within the guard band is not certified; after a sign of a limit, only what has a certificate."""
    safe = [row(f"s{i}", "safe", 0.0) for i in range(100)]
    rows = [*safe, row("a", "harmful", 0.9, budget), row("b", "harmful", score)]
    run = save(tmp_path / "run", rows, about(guard_band=1e-6))
    plain = save(tmp_path / "plain", rows, about(THREAT | {"budget": 0}, guard_band=1e-6))
    (at_one, *_) = certified_at(read_run(run), read_run(plain))
    assert pair(at_one.certified) == (hits, 2)


@pytest.mark.parametrize(
    ("checks", "settings", "budget", "hits"),
    [(4, {}, 3, 2), (5, {}, 3, 1), (4, {"anytime": True}, 3, 1), (5, {}, "unlimited", 2), (4, {}, None, 0)],
)
def test_a_limit_that_no_flagged_prompt_meets_may_be_met_by_others(
    tmp_path: Path, checks: int, settings: Json, budget: int | str | None, hits: int
) -> None:
    """Prompt b is not flagged, so its row would not say that texts attacked from it are refused."""
    safe = [row(f"s{i}", "safe", 0.0) for i in range(100)]
    threat = THREAT | ({"budget": budget} if budget == "unlimited" else {})
    score = 0.4 if budget is None else 0.9
    rows = [*safe, row("a", "harmful", score, budget), row("b", "harmful", 0.4, checks=checks)]
    run = save(tmp_path / "run", rows, about(threat, settings=settings))
    plain = save(tmp_path / "plain", rows, about(THREAT | {"budget": 0}))
    (at_one, *_) = certified_at(read_run(run), read_run(plain))
    assert pair(at_one.certified) == (hits, 2)


def test_a_prompt_that_only_a_lower_threshold_flags_may_be_too_long_for_the_limit(tmp_path: Path) -> None:
    """What is told of the long prompt is put to the certifier: an attacked text is refused."""
    texts = ["bomb cake", "pipe pipe pipe pipe pipe"]
    scores = {"bomb": 0.9, "pipe": 0.4}

    def rows(mode: str, budget: int, threshold: float) -> list[Json]:
        filter_ = as_filter(lambda found: [scores.get(text.split()[0], 0.0) for text in found], threshold=threshold)
        certifier = EraseAndCheck(filter_, load_mode(mode, budget), Words(), early_stop=False, max_checks=6)
        out = []
        for text in texts:
            verdict = certifier.certify(text)
            full = int(verdict.certificate.threat.budget) if verdict.certificate else None
            out.append(row(text, "harmful", verdict.score, full, checks=verdict.checks))
            if out[-1]["certificate"]:
                out[-1]["certificate"]["threat"] |= {"kind": mode}
        return out

    head = about(THREAT | {"kind": "infusion", "budget": 1})
    run = read_run(save(tmp_path / "run", rows("infusion", 1, 0.5), head))
    plain = read_run(save(tmp_path / "plain", rows("suffix", 0, 0.5), about(THREAT | {"budget": 0})))
    told = {found.id: margin for found, margin in margins(run, plain)}
    assert [rows("infusion", 1, 0.3)[at]["certificate"]["threat"]["budget"] for at in (0, 1)] == [1, 0]
    assert told == {texts[0]: 0.9, texts[1]: -math.inf}


@pytest.mark.parametrize(
    ("run", "plain", "why"),
    [
        ({}, {"threat": THREAT}, "max-erase 0"),
        ({}, {"filter": "0" * 64}, "another filter"),
        ({}, {"data": {"digest": "0" * 64, "files": [], "prompts": 0}}, "other prompts"),
        ({"threat": None}, {}, "one threat"),
        ({"method": "deletion-smoothing"}, {}, "one threat"),
        ({"settings": {"fast": True}}, {}, "fast"),
        ({"threat": THREAT | {"max_prompt": 40}}, {}, "bounded"),
    ],
)
def test_a_plain_run_that_does_not_fit_is_refused(tmp_path: Path, run: Json, plain: Json, why: str) -> None:
    rows = [row("a", "harmful", 0.9)]
    one = save(tmp_path / "run", rows, about() | run)
    other = save(tmp_path / "plain", rows, about(THREAT | {"budget": 0}) | plain)
    with pytest.raises(InvalidArgument, match=why):
        certified_at(read_run(one), read_run(other))


def test_other_ids_are_refused(tmp_path: Path) -> None:
    one = save(tmp_path / "run", [row("a", "harmful", 0.9)])
    other = save(tmp_path / "plain", [row("b", "harmful", 0.9)], about(THREAT | {"budget": 0}))
    with pytest.raises(InvalidArgument, match="other ids"):
        certified_at(read_run(one), read_run(other))


@pytest.mark.parametrize(
    ("kind", "limit"),
    [("suffix", None), ("insertion", None), ("infusion", None), ("wrap", None), ("wrap", 40), ("infusion", 30)],
)
def test_what_the_plain_run_tells_is_what_erase_and_check_certifies(
    tmp_path: Path, kind: str, limit: int | None
) -> None:
    """At every threshold, the rows said to be certified in full are those that the certifier certifies in full."""
    words = {"bomb": 0.9, "pipe": 0.6, "cake": -0.5, "tea": -0.2}
    texts = ["bomb", "bomb cake", "pipe", "tea pipe", "cake tea", "bomb pipe cake tea", "pipe bomb tea tea tea bomb"]
    budget = math.inf if kind == "wrap" else 2

    def score(found: Sequence[str]) -> list[float]:
        return [0.5 + 0.5 * sum(words[word] for word in text.split()) / len(text.split()) for text in found]

    def rows(mode: str, spend: float, threshold: float) -> list[Json]:
        certifier = EraseAndCheck(as_filter(score, threshold=threshold),
                                  load_mode(mode, spend, max_prompt=3 if mode == "wrap" else None),
                                  Words(), early_stop=False, max_checks=limit, anytime=True)  # fmt: skip
        out = []
        for text in texts:
            verdict = certifier.certify(text)
            proof = verdict.certificate and verdict.certificate.to_dict()
            kept = proof and {key: proof[key] for key in ("label", "threat", "method", "confidence")}
            out.append(row(text, "harmful", verdict.score, verdict=str(verdict.label), certificate=kept))
        return out

    thresholds = [t / 20 for t in range(21)]
    safe = row("s", "safe", 0.0)
    threat = {"kind": kind, "budget": "unlimited" if kind == "wrap" else 2, "unit": "word", "blocks": 1}
    head = about(threat | ({"max_prompt": 3} if kind == "wrap" else {}))
    run = read_run(save(tmp_path / "run", [*rows(kind, budget, 0.5), safe], head))
    plain = read_run(save(tmp_path / "plain", [*rows("suffix", 0, 0.5), safe], about(THREAT | {"budget": 0})))
    told = {found.id: margin for found, margin in margins(run, plain)}
    for threshold in thresholds:
        for found in rows(kind, budget, threshold):
            proof = found["certificate"]
            full = proof is not None and proof["threat"]["budget"] == threat["budget"]
            said = told[found["id"]] >= threshold
            assert said <= full  # never more than is proved
            assert kind == "wrap" or limit or said == full  # and exactly that where the budget is finite
