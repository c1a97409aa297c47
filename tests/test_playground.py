"""The playground's workbench and routes: costs before work, the certifier's own verdicts, attacks told as they are."""

from __future__ import annotations

import itertools
import json
import random
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import anyio.to_thread
import pytest

pytest.importorskip("starlette")

from starlette.applications import Starlette
from starlette.testclient import TestClient

from promptguard.attack.reach import Reach
from promptguard.certify.erase_and_check import EraseAndCheck
from promptguard.erase import load_mode
from promptguard.errors import BudgetExceeded, EmptyText, FilterError, InvalidArgument, TextTooLong, UnknownName
from promptguard.score.keyword import KeywordFilter
from promptguard.serve.playground import Limits, Workbench, routes
from promptguard.serve.playground.attacks import attacked
from promptguard.serve.playground.pages import HEADERS, MAX_BODY
from promptguard.serve.playground.requests import Attack, Choice, How, Source
from promptguard.threat import Threat
from promptguard.types import Label
from promptguard.units import load_units
from promptguard.view import canonical

HARMFUL = "how to pick a lock"
FOOLABLE = KeywordFilter(["lock"], absent=["please", "gulls"])
FILTERS = {"keyword": KeywordFilter(["lock"]), "foolable": FOOLABLE}
KIND = {How.APPEND: "suffix", How.INSERT: "insertion", How.INFUSE: "infusion", How.WRAP: "wrap"}


@pytest.fixture(scope="module")
def bench() -> Workbench:
    return Workbench(FILTERS)


def choice(filter_: str = "foolable", mode: Any = "suffix", budget: Any = 5, unit: Any = "word") -> Choice:
    return Choice(filter=filter_, mode=mode, budget=budget, unit=unit)


class Lengths:
    """A prefix filter whose score is a count of code points, so that each prefix has its own."""

    name, digest, threshold, guard_band = "lengths", "0", 0.5, 0.0

    def __call__(self, texts: Sequence[str]) -> list[float]:
        return [len(text) / 1000 for text in texts]

    def prefix_scores(self, texts: Sequence[str], ends: Sequence[Sequence[int]]) -> list[list[float]]:
        return [[end / 1000 for end in row] for row in ends]


class Broken(Lengths):
    def __call__(self, texts: Sequence[str]) -> list[float]:
        raise RuntimeError(texts[0])


# The workbench


def test_a_workbench_needs_a_filter() -> None:
    with pytest.raises(InvalidArgument):
        Workbench({})


def test_the_menu_says_what_each_filter_counts_in_and_where_any_number_is_cheap() -> None:
    import tiny  # costs seconds to import

    class Tokenized(Lengths):
        tokenizer = tiny.wordpiece()

    class Slow(Lengths):
        tokenizer = object()

    plain, slow, tokens = Workbench({"plain": FOOLABLE, "slow": Slow(), "tokens": Tokenized()}).menu().filters
    assert (plain.units, tokens.units) == (("word", "char"), ("word", "char", "token"))
    assert slow.units == plain.units
    assert plain.one_pass == ()
    assert set(tokens.one_pass) == set(itertools.product(("suffix", "wrap"), ("word", "char", "token")))


@pytest.mark.parametrize(
    ("mode", "budget"), [("suffix", 3), ("insertion", 2), ("infusion", 2), ("wrap", "unlimited"), ("suffix", 0)]
)
def test_cost_and_verdict_are_the_certifiers_own(bench: Workbench, mode: Any, budget: Any) -> None:
    text, asked = f"{HARMFUL} please, thanks", choice(mode=mode, budget=budget)
    certifier = EraseAndCheck(
        FOOLABLE,
        load_mode(mode, asked.max_erase),
        load_units("word"),
        max_checks=Limits().max_checks,
        max_chars=Limits().max_chars,
        max_work=Limits().max_work,
    )
    quote, cost = bench.cost(text, asked), certifier.cost(text)
    assert (quote.checks, quote.characters, quote.refusal) == (cost.checks, cost.characters, "")
    report, verdict = bench.check(text, asked), certifier.certify(text)
    assert (report.label, report.score, report.calls, report.checks) == (
        verdict.label,
        verdict.score,
        verdict.calls,
        verdict.checks,
    )
    assert report.erased == (verdict.witness.chars if verdict.witness else ())
    assert report.certified == (verdict.certificate is not None)
    if verdict.certificate:
        assert report.meaning == verdict.certificate.sentence()
        assert report.assumes == verdict.certificate.assumes
    assert report.plain == 0.0


def test_costing_calls_no_filter() -> None:
    assert Workbench({"broken": Broken()}).cost("a b", choice("broken")).checks == 3


def test_the_witness_counts_code_points_beyond_the_basic_plane(bench: Workbench) -> None:
    text = f"🦊🦊 {HARMFUL} 🦊 please 🦊"
    report = bench.check(text, choice())
    ((start, end),) = report.erased
    assert (text[:start], text[start:end]) == (f"🦊🦊 {HARMFUL} 🦊", " please 🦊")


def test_what_is_safe_or_flagged_without_proof_says_so(bench: Workbench) -> None:
    safe = bench.check("how to bake bread", choice())
    assert (safe.label, safe.certified, safe.spent) == (Label.SAFE, False, None)
    assert "never certified" in safe.meaning
    flagged = bench.check(f"{HARMFUL} please", choice(mode="insertion"))
    assert (flagged.label, flagged.certified, flagged.spent) == (Label.HARMFUL, False, 1)
    assert "no certificate" in flagged.meaning


def test_costs_over_a_limit_are_told_before_and_refused() -> None:
    bench = Workbench(FILTERS, Limits(max_chars=500, max_checks=10, max_work=300))
    many = choice(mode="infusion")
    assert "10 checks" in bench.cost(HARMFUL, many).refusal
    with pytest.raises(BudgetExceeded):
        bench.check(HARMFUL, many)
    long = " ".join(["bread"] * 30)
    assert "characters" in bench.cost(long, choice(budget=8)).refusal
    with pytest.raises(TextTooLong):
        bench.check(long, choice(budget=8))
    with pytest.raises(TextTooLong):
        bench.cost("a" * 501, choice())


def test_numbers_that_no_browser_can_read_are_capped(bench: Workbench) -> None:
    quote = bench.cost("a " * 1_500, choice(mode="infusion", budget="unlimited"))
    assert quote.more
    assert quote.checks == quote.characters == 10**15
    assert quote.refusal


@pytest.mark.parametrize("text", ["", "  \u200b"])
def test_empty_texts_are_refused_everywhere(bench: Workbench, text: str) -> None:
    for ask in (bench.cost, bench.check, bench.prefixes):
        with pytest.raises(EmptyText):
            ask(text, choice())
    with pytest.raises(EmptyText):
        bench.attack(text, choice(), Attack(how=How.APPEND, source=Source.WORDS))


def test_unknown_filters_and_units_are_refused(bench: Workbench) -> None:
    for asked in (choice("other"), choice(unit="token")):
        with pytest.raises(UnknownName, match="keyword by word"):
            bench.check(HARMFUL, asked)


# Prefixes


@pytest.mark.parametrize("unit", ["word", "char"])
@pytest.mark.parametrize("text", ["a b  c", "🦊 bread\u200b and 🦊", "  lead, trail  "])
def test_each_prefix_has_its_own_score(text: str, unit: Any) -> None:
    bench = Workbench({"lengths": Lengths()})
    points = bench.prefixes(text, choice("lengths", unit=unit)).points
    assert points[-1].end == len(text)
    assert [p.units for p in points] == sorted({p.units for p in points})
    assert all(p.score == len(canonical(text[: p.end])) / 1000 for p in points)
    assert all(p.units == len(load_units(unit)(text[: p.end])) for p in points)


def test_prefixes_scored_one_by_one_are_those_of_one_pass() -> None:
    class Slow:
        name, digest, threshold, guard_band = "slow", "0", 0.5, 0.0
        __call__ = Lengths.__call__

    bench = Workbench({"fast": Lengths(), "slow": Slow()})
    text = "one two, three"
    assert bench.prefixes(text, choice("fast")) == bench.prefixes(text, choice("slow"))


def test_prefixes_are_marked_when_they_are_erasures_of_the_mode(bench: Workbench) -> None:
    text = "a b c d"
    assert [p.checked for p in bench.prefixes(text, choice(budget=2)).points] == [False, True, True, True]
    long = " ".join("abcde"[at % 5] for at in range(50))
    wrap = bench.prefixes(long, choice(mode="wrap", budget="unlimited")).points
    assert [p.checked for p in wrap] == [p.units <= 40 for p in wrap]
    erased = {long[: p.end] for p in wrap if p.checked}
    mode = load_mode("wrap", 100)
    pieces = load_units("word")(long)
    kept = {"".join(pieces[: e.runs[0][0]]) for e in mode.erasures(len(pieces)) if len(e.runs) == 1 and e.runs[0][0]}
    assert erased == kept


def test_long_texts_show_some_prefixes_and_always_the_last() -> None:
    bench = Workbench({"lengths": Lengths(), "foolable": FOOLABLE}, Limits(max_points=10, max_extra=100))
    text = "bread " * 50
    fast, slow = (bench.prefixes(text, choice(name)).points for name in ("lengths", "foolable"))
    assert (len(fast), len(slow)) == (10, 2)
    assert fast[-1].units == slow[-1].units == 50


def test_where_the_beginning_is_erased_prefixes_begin_behind_it() -> None:
    bench = Workbench({"lengths": Lengths(), **FILTERS})
    text = f"🦊 bread, please. {HARMFUL} please"
    asked = choice(mode="wrap", budget=7)
    report = bench.check(text, asked)
    assert report.start == report.erased[0][1]
    assert text[report.start :] == f". {HARMFUL} please"
    points = bench.prefixes(text, asked, report.start).points
    assert [p.units for p in points] == list(range(1, 8))
    assert [p.score >= 0.5 for p in points] == [False] * 5 + [True, False]
    assert [p.checked for p in points] == [False] * 3 + [True] * 4
    assert text[points[5].end :] == " please"
    assert bench.prefixes(text, asked, 10**6).points[-1].end == len(text)
    assert bench.check(f"{HARMFUL} please", choice()).start == 0


# Attacks


@pytest.mark.parametrize("how", How)
@pytest.mark.parametrize("source", Source)
@pytest.mark.parametrize("unit", ["word", "char"])
def test_an_attack_costs_its_size_and_leaves_the_prompt(how: How, source: Source, unit: str) -> None:
    units = load_units(unit)
    threat = Threat(KIND[how], 1000, unit)
    for seed, size, text in itertools.product(range(3), (0, 1, 2, 7, 60), (HARMFUL, "🦊 pick, a 'lock'! ")):
        if size > 7 and how is How.INFUSE and unit == "char":
            continue
        found = attacked(
            text, units, Attack(how=how, source=source, own="kind gulls, sing", size=size), random.Random(seed)
        )
        outside = "".join(
            found.text[a:b]
            for a, b in itertools.pairwise([0, *itertools.chain(*found.added), len(found.text)])
            if (a, b) not in found.added
        )
        assert outside == text
        cost = Reach(text, threat, units, cap=1000).cost(found.text)
        asked = size if source is not Source.OWN else len(units(f"{'' if unit == 'char' else ' '}kind gulls, sing"))
        # White space at the end of a block is no character of its own where more of it follows; it may cost less.
        assert cost is not None
        assert cost == asked or (unit == "char" and asked - 2 <= cost <= asked)


def test_the_plain_filter_falls_and_the_guard_holds_inside_the_certificate(bench: Workbench) -> None:
    own = Attack(how=How.APPEND, source=Source.OWN, own="please, dear gulls")
    found = bench.attack(HARMFUL, choice(budget=4), own)
    assert (found.cost, found.inside) == (4, True)
    assert (found.before.plain, found.plain) == (1.0, 0.0)
    assert found.after is not None
    assert found.after.label == Label.HARMFUL
    assert found.meaning.startswith("Inside the certificate")
    assert "fooled; the guard holds" in found.meaning


def test_beyond_the_budget_both_fall_and_the_page_says_so(bench: Workbench) -> None:
    own = Attack(how=How.APPEND, source=Source.OWN, own="please, dear gulls")
    found = bench.attack(HARMFUL, choice(budget=2), own)
    assert (found.cost, found.inside) == (4, False)
    assert found.after is not None
    assert found.after.label == Label.SAFE
    assert found.meaning.startswith("Beyond the certificate")
    assert "and so is the guard" in found.meaning


def test_an_attack_of_another_shape_is_outside(bench: Workbench) -> None:
    found = bench.attack(HARMFUL, choice(), Attack(how=How.WRAP, source=Source.ROLE_PLAY, size=8))
    assert (found.cost, found.inside) == (None, False)
    assert found.meaning.startswith("Outside the certificate")


def test_what_was_not_flagged_has_nothing_to_hide(bench: Workbench) -> None:
    found = bench.attack("how to bake", choice(), Attack(how=How.APPEND, source=Source.WORDS, size=3))
    assert not found.inside
    assert "nothing to hide" in found.meaning


@pytest.mark.parametrize("unit", ["word", "char"])
@pytest.mark.parametrize("mode", ["suffix", "insertion", "infusion", "wrap"])
def test_no_attack_inside_a_certificate_fools_the_guard(bench: Workbench, mode: Any, unit: Any) -> None:
    """The page never says "inside" of an attack that fools the guard, and some attacks do."""
    inside = outside = fooled = 0
    budget = 2 if mode == "infusion" else 6
    for how, source, size, own in itertools.product(How, Source, (1, 2, 6, 9), ("please", "please " * 8)):
        asked = Attack(how=how, source=source, own=own, size=size, seed=len(own))
        found = bench.attack(HARMFUL, choice(mode=mode, budget=budget, unit=unit), asked)
        holds = found.after is None or found.after.label == Label.HARMFUL
        assert holds or not found.inside
        inside += found.inside
        outside += not found.inside
        fooled += not holds
    assert inside > 5
    assert outside > 5
    assert fooled > 0


def test_a_seed_makes_the_same_attack_again(bench: Workbench) -> None:
    asked = Attack(how=How.INFUSE, source=Source.WORDS, size=4, seed=7)
    texts = [bench.attack(HARMFUL, choice(), asked.model_copy(update={"seed": seed})).text for seed in (7, 7, 8)]
    assert texts[0] == texts[1] != texts[2]


def test_of_the_draws_the_lowest_score_is_shown() -> None:
    class Falling(Lengths):
        def __call__(self, texts: Sequence[str]) -> list[float]:
            seen.append(list(texts))
            return [1 / len(text) for text in texts]

    seen: list[list[str]] = []
    bench = Workbench({"falling": Falling()})
    found = bench.attack(HARMFUL, choice("falling"), Attack(how=How.APPEND, source=Source.WORDS, size=4))
    drawn = max(seen, key=len)
    assert len(drawn) == 16
    assert canonical(found.text) == max(drawn, key=len)


def test_an_attacked_text_that_is_refused_counts_as_blocked() -> None:
    bench = Workbench(FILTERS, Limits(max_checks=12))
    found = bench.attack(
        HARMFUL, choice(mode="insertion", budget=2), Attack(how=How.APPEND, source=Source.OWN, own="a b")
    )
    assert found.after is None
    assert "12 checks" in found.refusal
    assert "refusing" in found.meaning


def test_attacks_over_the_limit_are_refused_before_they_are_made() -> None:
    bench = Workbench(FILTERS, Limits(max_chars=60))
    with pytest.raises(TextTooLong):
        bench.attack(HARMFUL, choice(), Attack(how=How.APPEND, source=Source.OWN, own="a" * 60))


# Routes


@pytest.fixture(scope="module")
def client() -> TestClient:
    bench = Workbench({**FILTERS, "broken": Broken()})
    return TestClient(Starlette(routes=routes(bench, anyio.to_thread.run_sync)), raise_server_exceptions=False)


def body(text: str = HARMFUL, **more: Any) -> dict[str, Any]:
    return {"text": text, "choice": choice().model_dump(), **more}


def test_the_page_and_its_files_come_from_here_alone(client: TestClient) -> None:
    page = client.get("/")
    assert page.headers["content-type"].startswith("text/html")
    paths = {part.split('"')[0] for part in page.text.split('="playground/')[1:]}
    assert {"style.css", "app.js", "icon.svg"} == paths
    for name in (*paths, "text.js", "strip.js", "attack.js"):
        file = client.get(f"/playground/{name}")
        assert file.status_code == 200
        assert "http" not in file.text.replace("http://www.w3.org/2000/svg", "")
    assert " style=" not in page.text
    assert "<style" not in page.text
    assert page.text.count("<script") == page.text.count('<script type="module" src=') == 1
    assert not [word for word in (" onclick", " onload", " oninput") if word in page.text]


@pytest.mark.parametrize("path", ["/", "/playground/app.js", "/playground/menu"])
def test_every_answer_has_the_security_headers(client: TestClient, path: str) -> None:
    for answer in (client.get(path), client.post("/playground/check", json=body()), client.post("/playground/check")):
        for name, value in HEADERS.items():
            assert answer.headers[name] == value
    assert "default-src 'self'" in HEADERS["content-security-policy"]
    assert "unsafe" not in HEADERS["content-security-policy"]


def test_the_routes_answer_as_the_workbench(client: TestClient, bench: Workbench) -> None:
    asked = Attack(how=How.APPEND, source=Source.WORDS, size=3, seed=1)
    quick = {"milliseconds": 0.0}
    cost = client.post("/playground/cost", json=body()).json()
    assert cost["checks"] == bench.cost(HARMFUL, choice()).checks
    check = client.post("/playground/check", json=body()).json()
    expected = replace(bench.check(HARMFUL, choice()), **quick)  # type: ignore[arg-type]
    assert check | quick == json.loads(json.dumps(expected, default=lambda o: {k: getattr(o, k) for k in o.__slots__}))
    prefixes = client.post("/playground/prefixes", json=body()).json()
    assert [p["score"] for p in prefixes["points"]] == [p.score for p in bench.prefixes(HARMFUL, choice()).points]
    outcome = client.post("/playground/attack", json=body(attack=asked.model_dump(mode="json"))).json()
    assert outcome["text"] == bench.attack(HARMFUL, choice(), asked).text
    assert {filter_["name"] for filter_ in client.get("/playground/menu").json()["filters"]} == {*FILTERS, "broken"}


CANARY = "canary 7f3a"
BAD = [
    b"",
    b"[]",
    b"{",
    b'{"text": "a", "text": "b"}',
    b'{"text": NaN}',
    json.dumps(body(extra=1)).encode(),
    json.dumps({**body(CANARY), CANARY: CANARY}).encode(),
    json.dumps(body(CANARY, choice={**choice().model_dump(), "budget": CANARY})).encode(),
    json.dumps(body(CANARY, choice={**choice().model_dump(), "budget": -1})).encode(),
    json.dumps(body(CANARY, choice={**choice().model_dump(), "budget": True})).encode(),
    json.dumps(body(CANARY, choice={**choice().model_dump(), "mode": CANARY})).encode(),
    json.dumps(body(CANARY, choice={**choice().model_dump(), "filter": CANARY})).encode(),
    json.dumps(body("\ud800")).encode(),
    json.dumps(body("\x00" + CANARY)).encode(),
    json.dumps(body(" ")).encode(),
    json.dumps(body(CANARY * 400)).encode(),
    json.dumps(body()).encode("utf-16"),
    json.dumps(body()).encode() + b" " * MAX_BODY,
]


@pytest.mark.parametrize("data", BAD, ids=range(len(BAD)))
def test_bad_requests_are_refused_in_words_that_quote_nothing(client: TestClient, data: bytes) -> None:
    answer = client.post("/playground/check", content=data, headers={"content-type": "application/json"})
    assert answer.status_code == 400
    assert answer.json()["error"]["message"]
    assert "canary" not in answer.text


@pytest.mark.parametrize(
    "headers", [{"content-type": "text/plain"}, {"content-type": "application/json", "content-encoding": "gzip"}, {}]
)
def test_other_types_and_encodings_are_refused(client: TestClient, headers: dict[str, str]) -> None:
    assert client.post("/playground/check", content=json.dumps(body()), headers=headers).status_code == 400


def test_a_filter_that_fails_is_a_server_error_without_text(client: TestClient) -> None:
    asked = {**body(CANARY), "choice": choice("broken").model_dump()}
    answer = client.post("/playground/check", json=asked)
    assert (answer.status_code, answer.json()["error"]["kind"]) == (500, FilterError.__name__)
    assert "canary" not in answer.text


def test_a_server_that_cannot_begin_says_so() -> None:
    async def full(_work: Any) -> Any:
        raise BudgetExceeded(3)

    client = TestClient(Starlette(routes=routes(Workbench(FILTERS), full)))
    answer = client.post("/playground/check", json=body())
    assert (answer.status_code, answer.headers["x-content-type-options"]) == (503, "nosniff")
    assert answer.json()["error"]["kind"] == "BudgetExceeded"


def test_work_goes_where_the_server_takes_it() -> None:
    taken = []

    async def run(work: Any) -> Any:
        taken.append(work)
        return await anyio.to_thread.run_sync(work)

    client = TestClient(Starlette(routes=routes(Workbench(FILTERS), run)))
    client.get("/playground/menu")
    assert not taken
    for name in ("cost", "check", "prefixes"):
        client.post(f"/playground/{name}", json=body())
    assert len(taken) == 3
