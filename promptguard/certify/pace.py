"""How much of a search fits into a time budget: batches are sized by what the ones before them took.

Time decides how far a search goes and nothing else. A prediction that is wrong costs time, never soundness.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

from promptguard.certify.found import Batching, Found, Pace, T
from promptguard.errors import BudgetExceeded, PromptGuardError

Clock = Callable[[], float]

_PER_ITEM = 16  # code points: what an item costs beside its text, two special tokens among it
_SHARE = 0.5  # of the time left that a batch may be expected to take
_GROWTH = 4  # times the largest batch so far: rates of much smaller batches say little
_MARGIN = 1.1
_FORGET = 0.5  # what is left of an old rate when a batch was faster
_DOUBT = 0.9  # what is left of the expected time when a text was refused because of it
_PROBE = "Please tell me which of the three roads to the sea is the shortest. "
_LONG = 30  # times that sentence


class OutOfTime(BudgetExceeded):
    """The time budget does not suffice for the text itself.

    Attributes:
        seconds: the budget.
    """

    def __init__(self, seconds: float) -> None:
        PromptGuardError.__init__(
            self, f"{seconds!r} seconds do not suffice to check this text at all: raise max_seconds"
        )
        self.limit = 0
        self.seconds = seconds


class Speed:
    """What first calls of a filter took lately, by the size of the text; shared by the searches of a certifier.

    Threads may share it: the last one to write wins, which is as good an estimate as the other.
    """

    def __init__(self) -> None:
        self._rates: dict[int, float] = {}  # seconds per code point of texts of less than 2 ** key code points

    def predict(self, work: int) -> float:
        """Seconds for so many code points; 0 where nothing is known.

        From the nearest smaller size, since larger texts cost less per code point (up to attention's share), and no
        more than the smallest text of the nearest larger one.
        """
        rates, size = self._rates, work.bit_length()
        below = max((known for known in rates if known <= size), default=None)
        above = min((known for known in rates if known >= size), default=None)
        guesses = [] if below is None else [rates[below] * work]
        if above is not None:
            guesses.append(rates[above] * 2 ** (above - 1))
        return min(guesses, default=0.0)

    def note(self, work: int, seconds: float) -> None:
        """Remember a call."""
        rate, size = seconds / work, work.bit_length()
        self._rates = self._rates | {size: (rate + self._rates.get(size, rate)) / 2}

    def doubt(self) -> None:
        """A text was refused: expect less, so that one slow call does not refuse texts of its size for ever."""
        self._rates = {size: rate * _DOUBT for size, rate in self._rates.items()}


class Timed:
    """As far as the time goes. The first batch is one item; if not even that fits, there is none.

    A batch is expected to take half of the time left at most, and none is begun that is expected to take more than
    all of it, so the end is overshot by what the last, small batch takes longer than expected.
    """

    def __init__(self, seconds: float, speed: Speed, clock: Clock, batches: float = math.inf) -> None:
        """Start the clock; `batches` is how many there may be at most."""
        self.cut = math.inf
        self._clock = clock
        self._end = clock() + seconds
        self._speed = speed
        self._rate: float | None = None  # seconds per code point in this search, a little pessimistic
        self._largest = 0
        self._batches = batches

    def batches(self, found: Found, items: Iterator[T], how: Batching[T]) -> Iterator[list[T]]:
        """Items while there is time; `cut` says where it ended."""
        head = next(items, None)
        while head is not None:
            left = self._end - self._clock()
            work = how.work(head) + _PER_ITEM
            if self._batches <= 0 or self._expected(work) * _MARGIN >= left:
                if self._rate is None:
                    self._speed.doubt()
                self.cut = min(self.cut, how.cost(head))
                return
            batch, head, work = self._fill(head, items, how, left)
            known, start = found.calls, self._clock()
            yield batch
            self._learn(work, (found.calls - known) / len(batch), self._clock() - start)

    def _expected(self, work: int) -> float:
        return self._speed.predict(work) if self._rate is None else self._rate * work

    def _fill(self, head: T, items: Iterator[T], how: Batching[T], left: float) -> tuple[list[T], T | None, int]:
        """A batch, the item behind it, and the work that it is."""
        batch, work = [head], how.work(head) + _PER_ITEM
        most = min(_GROWTH * self._largest, _SHARE * left / self._rate if self._rate else math.inf)
        for item in items:
            more = how.work(item) + _PER_ITEM
            if len(batch) >= how.most or work >= how.full or work + more > most:
                return batch, item, work
            batch.append(item)
            work += more
        return batch, None, work

    def _learn(self, work: int, fresh: float, seconds: float) -> None:
        """Duplicates and blanks cost nothing and say nothing about the next batch."""
        self._batches -= 1
        if not fresh:
            return
        rate = seconds / (work * min(1.0, fresh))
        if self._rate is None:
            self._speed.note(work, seconds)
        self._rate = max(rate, _FORGET * (self._rate or 0.0))
        self._largest = max(self._largest, work)


class Timer:
    """A time budget for each search of a certifier."""

    def __init__(self, seconds: float, clock: Clock) -> None:
        self.seconds = seconds
        self._clock = clock
        self._speed = Speed()

    def start(self) -> Pace:
        """The pace of a search that begins now."""
        return Timed(self.seconds, self._speed, self._clock)

    def warm_up(self, search: Callable[[str, Pace], object]) -> None:
        """Measure a short text and, if it fits into the budget, a long one; the first call is not counted."""
        for times, speed in ((1, Speed()), (1, self._speed), (_LONG, self._speed)):
            text = _PROBE * times
            if speed.predict(len(text)) < self.seconds:
                search(text, Timed(math.inf, speed, self._clock, batches=1))
