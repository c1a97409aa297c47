"""A shared filter is the filter: same scores, same capabilities, each caller its own answer; only calls are merged."""

from __future__ import annotations

import gc
import importlib
import inspect
import os
import threading
import time
import weakref
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import pytest
import tiny
from oracle import TestFilter, exact

from promptguard import capabilities
from promptguard.certify.enumeration import Screen
from promptguard.certify.erase_and_check import EraseAndCheck
from promptguard.certify.ways import cheapest
from promptguard.erase import load_mode
from promptguard.errors import FilterError, InvalidArgument
from promptguard.score import desk as desk_module
from promptguard.score.causal import CausalFilter
from promptguard.score.hf import HFFilter
from promptguard.score.keyword import KeywordFilter
from promptguard.score.screen import ScreenedFilter
from promptguard.score.shared import SharedFilter, shared
from promptguard.types import Filter
from promptguard.units import Words

PATIENCE = 20.0  # seconds after which a test that hangs fails


@dataclass
class Gate:
    """A filter whose calls are counted, and wait until they are let through."""

    score: Callable[[str], float] = len
    open: threading.Event = field(default_factory=threading.Event)
    began: threading.Event = field(default_factory=threading.Event)
    batches: list[list[str]] = field(default_factory=list)
    threads: set[int] = field(default_factory=set)
    threshold: float = 0.5
    guard_band: float = 0.0
    name: str = "gate"
    digest: str = "gate"

    def __call__(self, texts: Sequence[str]) -> list[float]:
        self.threads.add(threading.get_ident())
        self.began.set()
        if not self.open.wait(PATIENCE):
            raise TimeoutError
        self.batches.append(list(texts))
        return [float(self.score(text)) for text in texts]


def opened(**options: Any) -> Gate:
    gate = Gate(**options)
    gate.open.set()
    return gate


@pytest.fixture
def pool() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(32) as threads:
        yield threads


def waiting(filter_: SharedFilter, count: int) -> None:
    """Wait until so many calls wait at the desk."""
    desk: Any = vars(filter_)["_desk"]
    end = time.monotonic() + PATIENCE
    while len(desk._waiting) < count:
        assert time.monotonic() < end
        time.sleep(0.001)


def behind(gate: Gate, filter_: SharedFilter, pool: ThreadPoolExecutor, calls: Sequence[Sequence[str]]) -> list[Any]:
    """The answers to calls that came while another call held the filter; an error stands for itself."""
    first = pool.submit(filter_, ["first"])
    assert gate.began.wait(PATIENCE)
    futures: list[Future[Any]] = []
    for number, texts in enumerate(calls, 1):
        futures.append(pool.submit(filter_, texts))
        waiting(filter_, number)
    gate.open.set()
    assert first.result(PATIENCE) == [5.0]
    return [future.exception(PATIENCE) or future.result() for future in futures]


def test_calls_that_wait_become_one_and_each_gets_its_own_scores(pool: ThreadPoolExecutor) -> None:
    gate = Gate()
    with shared(gate) as filter_:
        calls = [["a", "bb"], [], ["ccc"], ["dd"] * 3]
        assert behind(gate, filter_, pool, calls) == [[1.0, 2.0], [], [3.0], [2.0] * 3]
    assert gate.batches == [["first"], ["a", "bb", "ccc", "dd", "dd", "dd"]]
    assert len(gate.threads) == 1
    assert threading.get_ident() not in gate.threads


def test_many_threads_get_what_the_filter_says(pool: ThreadPoolExecutor) -> None:
    gate = opened(score=lambda text: hash(text) % 1000)

    def ask(number: int) -> bool:
        texts = [f"{number}-{i}" for i in range(number % 7)]
        return all(filter_(texts) == [float(gate.score(text)) for text in texts] for _ in range(20))

    with shared(gate, max_texts=20) as filter_:
        assert all(pool.map(ask, range(32)))
    assert max(map(len, gate.batches)) <= 20
    assert len(gate.batches) < 32 * 20


def test_a_merged_call_has_at_most_max_texts_but_a_larger_call_goes_alone(pool: ThreadPoolExecutor) -> None:
    gate = Gate()
    with shared(gate, max_texts=4) as filter_:
        behind(gate, filter_, pool, [["a"] * 3, ["b"] * 9, ["c"], ["d"] * 2])
    assert gate.batches[1:] == [["a", "a", "a", "c"], ["b"] * 9, ["d", "d"]]


def test_one_caller_alone_never_waits() -> None:
    with shared(opened(), max_wait=PATIENCE) as filter_:
        start = time.monotonic()
        for _ in range(5):
            filter_(["a"])
    assert time.monotonic() - start < PATIENCE / 2


def test_threads_that_take_turns_never_wait_for_each_other() -> None:
    """As those of a pool do at the requests of one client."""
    with shared(opened(), max_wait=PATIENCE) as filter_:
        start = time.monotonic()
        for _ in range(5):
            turn = threading.Thread(target=filter_, args=(["a"],))
            turn.start()
            turn.join(PATIENCE)
    assert time.monotonic() - start < PATIENCE / 2


def crowd(gate: Gate, filter_: SharedFilter) -> None:
    """Two calls at once."""
    callers = [threading.Thread(target=filter_, args=([text],)) for text in "ab"]
    callers[0].start()
    assert gate.began.wait(PATIENCE)
    callers[1].start()
    while not filter_._desk._waiting:  # type: ignore[attr-defined]
        time.sleep(0.001)
    gate.open.set()
    for caller in callers:
        caller.join(PATIENCE)


def test_as_many_as_were_there_at_once_are_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """After the first round calls arrive apart, and still become one."""
    monkeypatch.setattr(desk_module, "_LATELY", PATIENCE)
    gate = Gate()
    with shared(gate, max_wait=0.5) as filter_:
        crowd(gate, filter_)
        for _ in range(2):
            first = threading.Thread(target=filter_, args=(["c"],))
            first.start()
            time.sleep(0.01)
            filter_(["d"])
            first.join(PATIENCE)
    assert gate.batches == [["a"], ["b"], ["c", "d"], ["c", "d"]]


def test_the_wait_ends_at_its_deadline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(desk_module, "_LATELY", PATIENCE)
    gate = Gate()
    with shared(gate, max_wait=0.02) as filter_:
        crowd(gate, filter_)
        start = time.monotonic()
        filter_(["c"])
        assert 0.02 <= time.monotonic() - start < PATIENCE / 2
    assert gate.batches == [["a"], ["b"], ["c"]]


def test_a_crowd_is_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(desk_module, "_LATELY", 0.01)
    gate = Gate()
    with shared(gate, max_wait=2.0) as filter_:
        crowd(gate, filter_)
        time.sleep(0.02)
        start = time.monotonic()
        filter_(["c"])
        assert time.monotonic() - start < 1.5


# Faults


def fussy(text: str) -> float:
    if text == "bad":
        raise ValueError(text)
    return float(len(text))


def test_an_error_hits_its_own_caller_only(pool: ThreadPoolExecutor) -> None:
    gate = Gate(score=fussy)
    with shared(gate) as filter_:
        good, bad, fine = behind(gate, filter_, pool, [["a"], ["x", "bad"], ["ccc"]])
    assert (good, fine) == ([1.0], [3.0])
    assert isinstance(bad, ValueError)


def test_a_panic_in_native_code_kills_no_thread() -> None:
    class Panic(BaseException):
        pass

    def panics(text: str) -> float:
        if text == "bad":
            raise Panic
        return 1.0

    with shared(opened(score=panics)) as filter_:
        with pytest.raises(Panic):
            filter_(["bad"])
        assert filter_(["good"]) == [1.0]


@dataclass
class Miscounts(Gate):
    """Forgets a score when it is asked about many texts."""

    def __call__(self, texts: Sequence[str]) -> list[float]:
        scores = super().__call__(texts)
        return scores[:-1] if len(scores) > 2 else scores


def test_a_wrong_number_of_scores_mixes_nobody_up(pool: ThreadPoolExecutor) -> None:
    gate = Miscounts()
    with shared(gate) as filter_:
        assert behind(gate, filter_, pool, [["a"], ["bb", "bb"], ["ccc"]]) == [[1.0], [2.0, 2.0], [3.0]]


def test_a_call_that_is_no_list_of_texts_goes_to_the_filter_as_it_is() -> None:
    model = HFFilter(tiny.bert(), tiny.wordpiece())
    with shared(model) as filter_, pytest.raises(FilterError, match="not one string"):
        filter_("how")


def test_a_caller_that_gave_up_costs_nothing(pool: ThreadPoolExecutor) -> None:
    gate = Gate()
    with shared(gate) as filter_:
        first = pool.submit(filter_, ["first"])
        assert gate.began.wait(PATIENCE)
        given_up, wanted = filter_.submit(["gone"]), filter_.submit(["here"])
        assert given_up.cancel()
        gate.open.set()
        assert (first.result(PATIENCE), wanted.result(PATIENCE)) == ([5.0], [4.0])
        with pytest.raises(CancelledError):
            given_up.result()
    assert gate.batches == [["first"], ["here"]]


# The end


def test_closing_answers_what_waits_and_refuses_the_rest(pool: ThreadPoolExecutor) -> None:
    gate = Gate()
    filter_ = shared(gate)
    first = pool.submit(filter_, ["first"])
    assert gate.began.wait(PATIENCE)
    last = pool.submit(filter_, ["last"])
    waiting(filter_, 1)
    closing = pool.submit(filter_.close)
    gate.open.set()
    closing.result(PATIENCE)
    assert (first.result(PATIENCE), last.result(PATIENCE)) == ([5.0], [4.0])
    with pytest.raises(FilterError, match="closed"):
        filter_(["late"])
    filter_.close()
    assert not any(thread.ident in gate.threads for thread in threading.enumerate())


def test_nothing_is_left_behind_when_a_filter_is_forgotten() -> None:
    gate = opened()
    filter_ = shared(gate)
    filter_(["a"])
    (thread,) = (t for t in threading.enumerate() if t.ident in gate.threads)
    assert thread.daemon
    gone = weakref.ref(filter_)
    del filter_
    gc.collect()
    assert gone() is None
    thread.join(PATIENCE)
    assert not thread.is_alive()


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_a_forked_child_has_a_thread_of_its_own() -> None:
    with shared(opened()) as filter_:
        filter_(["a"])
        child = os.fork()
        if child == 0:  # only what cannot hang or print
            os._exit(0 if filter_(["bb"]) == [2.0] else 1)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        assert filter_(["ccc"]) == [3.0]


@pytest.mark.parametrize("options", [{"max_wait": -1.0}, {"max_wait": float("nan")}, {"max_texts": 0}])
def test_settings_that_mean_nothing_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(InvalidArgument):
        shared(opened(), **options)


# The same filter


class Monotone(TestFilter):
    def monotone(self, kind: str, unit: str) -> bool:
        return kind == "suffix"


class Infusible(TestFilter):
    def infusion_scores(self, words: Sequence[str], budget: int) -> list[float]:
        return [float(len(words))] * (budget + 1)


def filters() -> dict[str, Filter]:
    """Filters of every kind of capability."""
    plain = exact("a b")
    return {
        "plain": plain,
        "keyword": KeywordFilter(["bomb"]),
        "monotone": Monotone(plain.score),
        "infusible": Infusible(plain.score),
        "bounded": ScreenedFilter(plain, plain),
        "classifier": HFFilter(tiny.bert(), tiny.wordpiece()),
        "causal": CausalFilter(tiny.llama(), tiny.bytelevel()),
    }


PROTOCOLS = [
    value
    for value in vars(capabilities).values()
    if inspect.isclass(value) and getattr(value, "_is_runtime_protocol", False) and Filter in value.__mro__
]


def test_every_capability_of_a_filter_is_tried() -> None:
    assert len(PROTOCOLS) >= 6
    for protocol in PROTOCOLS:
        assert any(isinstance(filter_, protocol) for filter_ in filters().values())


@pytest.mark.parametrize("name", list(filters()))
def test_a_shared_filter_has_the_identity_and_the_capabilities_of_its_filter(name: str) -> None:
    plain = filters()[name]
    with shared(plain) as filter_:
        for protocol in PROTOCOLS:
            assert isinstance(filter_, protocol) == isinstance(plain, protocol)
        for attribute in ("name", "digest", "threshold", "guard_band", "tokenizer", "assumes", "floor", "exact_band"):
            assert getattr(filter_, attribute, None) == getattr(plain, attribute, None)
        assert isinstance(filter_, SharedFilter)


@pytest.mark.parametrize("kind", ["suffix", "infusion", "insertion", "wrap"])
@pytest.mark.parametrize("name", list(filters()))
def test_the_same_way_leads_to_the_same_verdict(name: str, kind: str) -> None:
    plain, mode = filters()[name], load_mode(kind, 2)
    with shared(plain) as filter_:
        assert type(cheapest(filter_, mode, Words())) is type(cheapest(plain, mode, Words()))
        verdicts = [
            EraseAndCheck(f, mode, Words(), early_stop=False).certify("how to build a") for f in (plain, filter_)
        ]
    assert verdicts[0] == verdicts[1]


def test_prefixes_bounds_and_gradients_are_the_filters_own(pool: ThreadPoolExecutor) -> None:
    model = CausalFilter(tiny.llama(), tiny.bytelevel())
    texts, ends = ["how to build", "a b"], [[3, 6], [1]]
    with shared(model) as filter_:
        assert isinstance(filter_, capabilities.PrefixFilter)
        each = pool.map(lambda i: filter_.prefix_scores(texts[i : i + 1], ends=ends[i : i + 1]), [0, 1] * 8)
        for found, row in zip(each, model.prefix_scores(texts, ends) * 8, strict=True):
            assert found[0] == pytest.approx(row, abs=model.guard_band)
        with pytest.raises(ValueError, match="zip"):
            filter_.prefix_scores(texts, ends[:1])
    classifier = HFFilter(tiny.bert(), tiny.wordpiece())
    with shared(classifier) as filter_:
        assert isinstance(filter_, capabilities.DifferentiableFilter)
        assert filter_.mask_gradient(["how", " to"], mask=[1.0, 0.5]) == classifier.mask_gradient(
            ["how", " to"], [1, 0.5]
        )


def test_texts_are_merged_with_texts_and_bounds_with_bounds(pool: ThreadPoolExecutor) -> None:
    gate, screen = Gate(score=lambda text: 0.2), opened(score=lambda text: 0.4)
    with shared(ScreenedFilter(gate, screen)) as filter_:
        assert isinstance(filter_, capabilities.BoundedFilter)
        first = pool.submit(filter_.exact_scores, ["first"])
        assert gate.began.wait(PATIENCE)
        mixed = [pool.submit(ask, ["x"]) for ask in (filter_.upper_bounds, filter_.exact_scores) for _ in range(3)]
        waiting(filter_, 6)
        gate.open.set()
        assert first.result(PATIENCE) == [0.2]
        assert {round(future.result(PATIENCE)[0], 3) for future in mixed} == {0.2, 0.524}
    assert sorted(map(len, gate.batches)) == [1, 3]
    assert list(map(len, screen.batches)) == [3]
    assert isinstance(cheapest(filter_, load_mode("infusion", 1), Words()), Screen)


def test_verdicts_of_many_clients_are_those_of_one(pool: ThreadPoolExecutor) -> None:
    """A real model, whose scores move with the batch within the guard band."""
    model = HFFilter(tiny.bert(), tiny.wordpiece())
    texts = [" ".join(tiny._words()[i : i + 5]) for i in range(12)]
    mode = load_mode("insertion", 2)
    alone = [EraseAndCheck(model, mode, Words(), early_stop=False).certify(text) for text in texts]
    with shared(model) as filter_:
        certifier = EraseAndCheck(filter_, mode, Words(), early_stop=False)
        together = list(pool.map(certifier.certify, texts))
    for one, other in zip(alone, together, strict=True):
        assert other.score == pytest.approx(one.score, abs=model.guard_band)
        assert (other.label, other.checks, other.calls) == (one.label, one.checks, one.calls)


def test_importing_it_loads_no_torch() -> None:
    assert not hasattr(importlib.import_module("promptguard.score.shared"), "torch")
