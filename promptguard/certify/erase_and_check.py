"""Erase-and-check (Kumar et al. 2024, *Certifying LLM Safety against Adversarial Prompting*, section 3).

    Theorem. Let F flag P, and let E(x) hold P. Then max of F over E(x) flags x.

E(x) is the set of texts that an erase mode makes of x. The certifier computes the maximum over all of them, each in its
canonical view, in the cheapest way that the filter allows (`promptguard.certify.ways`): by scoring every one, or in one
pass. It certifies "harmful" only; "safe" says that no erasure was flagged.

What keeps the theorem true of this program, and not only on paper:

* Pieces are substrings of the original text, and F is applied to the canonical view, so P is recovered exactly.
* Blank texts are safe by definition: the filter never sees one, so nothing can be hidden behind an empty erasure.
* A filter's score may move with the composition of a batch. A certificate needs a score that is the filter's guard
  band above the threshold.
* One-pass ways have no limit of checks. Where every erasure is scored, a limit counts against the *attacked* text,
  which is longer than the checked one: the certified budget is the largest b for which the attacked text is still
  checked to the size that recovers the witness.
* Time is no function of the text, so no certificate may rest on how far a time budget goes. When the time is up and
  nothing was flagged, the answer is "abstain", never "safe": every attacked text is flagged or not let through,
  however slow the clock. An owner who takes the partial check for "safe" (`anytime`) is promised the text itself.
"""

from __future__ import annotations

import math
import time
from bisect import bisect_left
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

from promptguard.capabilities import TextMode
from promptguard.certify.found import Found, Pace, Settings, Unhurried
from promptguard.certify.pace import Clock, OutOfTime, Timer
from promptguard.certify.pieces import Pieces
from promptguard.certify.ways import cheapest
from promptguard.errors import BudgetExceeded, InvalidArgument, InvalidText, PromptGuardError, TextTooLong
from promptguard.threat import Threat
from promptguard.types import Certificate, EraseMode, Erasure, Filter, Label, Units, Verdict, Witness
from promptguard.view import VIEW, check_text

MAX_CHECKS = 10_000
MAX_CHARS = 100_000
MAX_WORK = 5_000_000


@dataclass(frozen=True, slots=True)
class Cost:
    """What a text costs to certify.

    Attributes:
        checks: scores that are compared with the threshold.
        characters: code points that the filter reads.
    """

    checks: int
    characters: int


class EraseAndCheck:
    """Certifies that text added to a harmful prompt, as `mode` describes, does not hide it from `filter_`.

    Theorem: let F(P) >= threshold + guard band, and let x be P with at most d units added, where d is the budget of
    the certificate in `certify(P)`. Then `certify(x).label` is harmful, unless x is refused as `InvalidText` (too
    long, NUL bytes, lone surrogates).

    With `max_seconds` it is: `certify(x)` is harmful, or abstains, or is refused (as `OutOfTime`, for instance), and is
    never "safe". Erasures go cheapest first. If the time is up when all of cost r were checked and none was flagged,
    the verdict is `degraded` and its threat has budget r. The proof: "safe" takes the whole of E(x), which holds P.
    With `anytime` as well such a verdict is "safe", and the proof is gone: how far x is checked is up to the clock.
    Only the text itself is sure to be scored, so certificates then have budget 0, or there is none.

    Args:
        filter_: the filter F.
        mode: which erasures are checked.
        units: what the budget counts.
        max_checks: erasures allowed per text, None for no limit; the count is known before any inference. Ways that
            score all erasures in one pass take no notice of it.
        anytime: over the limit, check the largest erase budget that fits, and say so, instead of refusing; out of time,
            let pass as safe what was not flagged so far, instead of abstaining.
        early_stop: stop at the first erasure flagged beyond doubt; then `score` is not the maximum over all.
        batch_size: erasures scored per call of the filter; default 64, and 256 where none of them may be the last.
        max_chars: longest text accepted, in code points.
        max_work: code points that the filter reads for a text, None for no limit: what a request may cost.
        progress: called with (erasures checked, erasures to check) after each batch.
        max_seconds: time for a text, None for no limit. Batches are made to fit, and a text that would take longer by
            itself is refused; for that the filter is timed on a few sentences here. The other limits count beside it:
            a request that they refuse is refused at once.
        clock: seconds from any start, for `max_seconds`.

    Raises:
        InvalidArgument: a limit or size below 1, no positive number of seconds, or a filter whose threshold or guard
            band means nothing.
        FilterError: the filter broke its contract while it was timed.
    """

    method = "erase-and-check"

    def __init__(
        self,
        filter_: Filter,
        mode: EraseMode,
        units: Units,
        *,
        max_checks: int | None = MAX_CHECKS,
        anytime: bool = False,
        early_stop: bool = True,
        batch_size: int | None = None,
        max_chars: int = MAX_CHARS,
        max_work: int | None = MAX_WORK,
        progress: Callable[[int, int], None] | None = None,
        max_seconds: float | None = None,
        clock: Clock = time.monotonic,
    ) -> None:
        batch_size = (64 if early_stop else 256) if batch_size is None else batch_size
        sizes = [batch_size, max_chars, *(limit for limit in (max_checks, max_work) if limit is not None)]
        if not all(isinstance(size, int) and size >= 1 for size in sizes):
            raise InvalidArgument("max_checks, batch_size, max_chars and max_work must be whole numbers, at least 1")
        if max_seconds is not None and not 0 < max_seconds < math.inf:
            raise InvalidArgument("max_seconds must be a positive number, or None for no limit")
        if not math.isfinite(filter_.threshold) or not 0 <= filter_.guard_band < math.inf:
            raise InvalidArgument("the filter's threshold and guard band must be finite numbers, the band not negative")
        self.filter = filter_
        self.mode = mode
        self.units = units
        self.early_stop = early_stop
        self._settings = Settings(early_stop, batch_size, progress)
        self._way = cheapest(filter_, mode, units, self._settings)
        self._max_checks = max_checks if self._way.limited else None
        self._anytime = anytime
        self._max_chars = max_chars
        self._max_work = max_work
        self._timer = Timer(max_seconds, clock) if max_seconds is not None else None
        if self._timer:
            self._timer.warm_up(lambda text, pace: self._search(Pieces.of(text, units), mode, pace))

    @property
    def lists_erasures(self) -> bool:
        """Whether erasures are scored one by one, so that their number counts; else a few passes cover them all."""
        return self._way.limited

    def cost(self, x: str) -> Cost:
        """What `certify(x)` with the full budget comes to, before duplicates are removed; no inference.

        Raises:
            InvalidText: as `certify`.
        """
        pieces = Pieces.of(check_text(x, self._max_chars), self.units)
        mode = self._mode_for(pieces)
        return Cost(mode.count(len(pieces)), self._way.work(pieces, mode))

    def certify(self, x: str) -> Verdict:
        """Find the maximum score over all erasures of x.

        Raises:
            InvalidText: x is not text, empty, or too long, alone, over all its erasures, or for the mode.
            BudgetExceeded: more erasures than `max_checks`, unless `anytime`.
            OutOfTime: `max_seconds` does not suffice for the text itself; a `BudgetExceeded`.
            FilterError: the filter broke its contract.
        """
        pace = self._timer.start() if self._timer else Unhurried()
        pieces = Pieces.of(check_text(x, self._max_chars), self.units)
        n = len(pieces)
        budget = self._budget_within_limit(n)
        degraded = budget < self.mode.budget
        if degraded and not self._anytime:
            raise BudgetExceeded(self._max_checks or 0)
        mode = self._mode_for(pieces).with_budget(budget)
        if self._max_work is not None and (work := self._way.work(pieces, mode)) > self._max_work:
            raise TextTooLong(len(pieces.text), len(pieces.text) * self._max_work // work, "max_work")
        found = self._search(pieces, mode, pace)
        if not found.calls:
            raise self._nothing_to_check(degraded, pace)
        unflagged = Label.SAFE if self._anytime or math.isinf(pace.cut) else Label.ABSTAIN
        return self._verdict(pieces, found, min(budget, pace.cut - 1), unflagged)

    def _search(self, pieces: Pieces, mode: EraseMode, pace: Pace) -> Found:
        if self._timer is None:
            return self._way.search(pieces, mode)
        return cheapest(self.filter, self.mode, self.units, replace(self._settings, pace=pace)).search(pieces, mode)

    def _verdict(self, pieces: Pieces, found: Found, checked: float, unflagged: Label) -> Verdict:
        """The answer when every erasure of cost `checked` and below was looked at, or one was flagged for sure."""
        witness = found.sure or found.flagged
        return Verdict(
            label=Label.HARMFUL if witness else unflagged,
            score=found.best,
            threshold=self.filter.threshold,
            calls=found.calls,
            checks=found.checks,
            threat=self.threat(checked),
            certificate=self._certificate(len(pieces), found.sure) if found.sure else None,
            witness=Witness(witness.cost, witness.runs, pieces.chars(witness.runs)) if witness else None,
            degraded=checked < self.mode.budget,
        )

    def threat(self, budget: float | None = None) -> Threat:
        """The attacks that are undone, with the full budget or a smaller one."""
        spent = self.mode.budget if budget is None else budget
        prompt = getattr(self.mode, "max_prompt", None)
        return Threat(self.mode.kind, spent, self.units.name, self.mode.blocks, prompt)

    def _nothing_to_check(self, degraded: bool, pace: Pace) -> PromptGuardError:
        """No time, or no erasure is allowed: in wrap modes, of a text much longer than a prompt and the budget."""
        if self._timer and math.isfinite(pace.cut):
            return OutOfTime(self._timer.seconds)
        if degraded:
            return BudgetExceeded(self._max_checks or 0)
        return InvalidText(f"text has more units than this mode can undo: {self.threat().describe()}")

    def _mode_for(self, pieces: Pieces) -> EraseMode:
        return self.mode.of(pieces.cut()) if isinstance(self.mode, TextMode) else self.mode

    def _budget_within_limit(self, n: int) -> float:
        """The largest erase budget, up to the mode's own, whose erasures of n units are within `max_checks`."""
        limit = self._max_checks
        if limit is None or self.mode.count(n, limit) <= limit:
            return self.mode.budget

        def is_over(budget: int) -> bool:
            return self.mode.with_budget(budget).count(n, limit) > limit

        # The full budget is over the limit and budget 0 is one check. Doubling first keeps the counts small.
        top = 1
        while top < self.mode.budget and not is_over(top):
            top *= 2
        top = int(min(top, self.mode.budget))
        return bisect_left(range(1, top + 1), True, key=is_over)

    def _certificate(self, n: int, witness: Erasure) -> Certificate | None:
        left = self.mode.left(witness.cost)
        may_pass_unfinished = self._timer is not None and self._anytime
        if left is None or (may_pass_unfinished and witness.cost):
            return None
        budget = 0 if may_pass_unfinished else self._certified_budget(n, witness.cost, left)
        return Certificate(
            label=Label.HARMFUL,
            # Whatever the length of the checked text: the flagged substring stays in what is put around it.
            threat=replace(self.threat(budget), max_prompt=None),
            method=self.method,
            confidence=1.0,
            filter=self.filter.digest,
            assumes=tuple(self._assumptions()),
            degraded=budget < left,
            may_abstain=self._timer is not None and not self._anytime,
        )

    def _certified_budget(self, n: int, spent: int, left: float) -> float:
        """The largest b <= left such that every text attacked with b is checked to size spent + b, and not refused."""
        if self._max_checks is None:
            return left

        def is_out_of_reach(b: int) -> bool:
            checked = self._budget_within_limit(self.mode.longest(n, b))
            return checked < (spent + b if self._anytime else self.mode.budget)

        # Erase budget b asks for more than b checks, so b < max_checks.
        attacks = range(1, int(min(left, self._max_checks)) + 1)
        if self.threat().max_prompt is None:
            return bisect_left(attacks, True, key=is_out_of_reach)
        # Where the length of prompts is bounded, longer texts may have fewer erasures: every b up to the answer counts.
        return next((b - 1 for b in attacks if is_out_of_reach(b)), len(attacks))

    def _assumptions(self) -> Iterator[str]:
        yield f"filter {self.filter.name}, threshold {self.filter.threshold!r}, guard band {self.filter.guard_band!r}"
        yield f"texts are scored in the {VIEW}"
        yield f"unit {self.units.name} covers {self.units.covers}"
        if starts := getattr(self.mode, "covers", ""):
            yield f"mode {self.mode.kind} covers {starts}"
        yield f"erase budget: {self.threat().describe()}"
        if self._way.how:
            yield self._way.how
        if self._max_checks is not None:
            beyond = "fewer units are erased" if self._anytime else "it is refused"
            yield f"at most {self._max_checks} checks per text; beyond them {beyond}"
        if self._timer is not None:
            rest = "passes" if self._anytime else 'abstains: "stays harmful" then means that it is never called safe'
            yield f"at most {self._timer.seconds!r} seconds, or it is refused; what was not flagged by then {rest}"
        yield f"texts of at most {self._max_chars} code points, {self._max_work or 'any number of'} over all erasures"
        yield from getattr(self.filter, "assumes", ())
        yield "texts that are longer, or hold NUL bytes or lone surrogates, are refused"
