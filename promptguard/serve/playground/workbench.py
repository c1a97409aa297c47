"""The playground in plain Python: cost of a check, its verdict, the score of each prefix, what an attack achieves."""

from __future__ import annotations

import random
import time
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Self

from promptguard.attack.reach import Reach
from promptguard.capabilities import SpanMode
from promptguard.certify.erase_and_check import EraseAndCheck
from promptguard.certify.scoring import score_all
from promptguard.certify.ways import cheapest
from promptguard.erase import load_mode
from promptguard.errors import BudgetExceeded, InvalidArgument, InvalidText, TextTooLong, UnknownName, UnsupportedThreat
from promptguard.score import load_filter
from promptguard.serve.playground.attacks import Attacked, attacked
from promptguard.serve.playground.limits import Limits, in_words
from promptguard.serve.playground.prefixes import strip
from promptguard.serve.playground.requests import MAX_SIZE, Attack, Choice
from promptguard.serve.playground.results import (
    Menu,
    Offer,
    Outcome,
    Quote,
    Report,
    Strip,
    meaning,
    outcome_meaning,
)
from promptguard.types import Certificate, EraseMode, Filter, Units
from promptguard.units import load_units
from promptguard.view import canonical

_DRAWS = 16  # attacks among which the one that the filter scores lowest is shown
_WRITABLE = 10**15  # larger numbers are not exact in a browser
_MAX_PROMPT = {"char": 240, "word": 40, "token": 60}  # what wrap mode protects
_MODES = ("suffix", "insertion", "infusion", "wrap")


@dataclass(frozen=True, slots=True)
class _Seat:
    """A choice, ready to work."""

    filter: Filter
    mode: EraseMode
    units: Units
    certifier: EraseAndCheck


class Workbench:
    """Answers for the page. It keeps no text, so threads may share one if they may share its filters.

    Args:
        filters: what may be chosen, by name.
        limits: what one request may cost.

    Raises:
        InvalidArgument: there is no filter.
    """

    def __init__(self, filters: Mapping[str, Filter], limits: Limits | None = None) -> None:
        if not filters:
            raise InvalidArgument("the playground needs at least one filter")
        self._filters = dict(filters)
        self._limits = limits if limits is not None else Limits()
        self._units = {(name, unit.name.partition(":")[0]): unit for name in filters for unit in _units(filters[name])}

    @classmethod
    def load(cls, names: Iterable[str], limits: Limits | None = None) -> Self:
        """A workbench of filters by name, each loaded once.

        Args:
            names: what `promptguard.score.load_filter` takes.
            limits: what one request may cost.

        Raises:
            PromptGuardError: a filter cannot be loaded.
        """
        return cls({name: load_filter(name) for name in names}, limits)

    def menu(self) -> Menu:
        """What there is to choose from."""
        return Menu(tuple(map(self._offer, self._filters)), self._limits.max_chars, MAX_SIZE)

    def cost(self, text: str, choice: Choice) -> Quote:
        """What `check` will cost; no inference.

        Raises:
            InvalidText: the text is empty, too long, or no text.
            UnknownName: there is no such filter, or it does not count in this unit.
        """
        seat, limits = self._seat(choice), self._limits
        cost = seat.certifier.cost(text)
        one_pass = not cheapest(seat.filter, seat.mode, seat.units).limited
        refusal = ""
        if not one_pass and cost.checks > limits.max_checks:
            refusal = in_words(BudgetExceeded(limits.max_checks))
        elif cost.characters > limits.max_work:
            refusal = in_words(TextTooLong(len(text), len(text) * limits.max_work // cost.characters, "max_work"))
        return Quote(
            units=len(seat.units(text)),
            checks=min(cost.checks, _WRITABLE),
            characters=min(cost.characters, _WRITABLE),
            more=max(cost.checks, cost.characters) > _WRITABLE,
            one_pass=one_pass,
            refusal=refusal,
        )

    def check(self, text: str, choice: Choice) -> Report:
        """The verdict of a text.

        Raises:
            InvalidText: the text is empty, too long, or no text.
            BudgetExceeded: it needs more checks than the page allows.
            UnknownName: there is no such filter, or it does not count in this unit.
            FilterError: the filter broke its contract.
        """
        return self._judge(text, self._seat(choice))[0]

    def prefixes(self, text: str, choice: Choice, start: int = 0) -> Strip:
        """The filter's score of each prefix that ends with a unit, blank ones left out.

        Args:
            text: the text.
            choice: filter and unit; the mode says which prefixes are among its erasures.
            start: code point at which the prefixes begin: `Report.start`.

        Raises:
            InvalidText: the text is empty, too long, or no text.
            UnknownName: there is no such filter, or it does not count in this unit.
            FilterError: the filter broke its contract.
        """
        seat = self._seat(choice)
        return strip(text, seat.filter, seat.mode, seat.units, self._limits, start=start)

    def attack(self, text: str, choice: Choice, attack: Attack) -> Outcome:
        """Attack a text: of some draws the one that the filter alone scores lowest, and what the guard says of it.

        Raises:
            InvalidText: the text is empty, too long, or no text.
            BudgetExceeded: the text itself needs more checks than the page allows.
            UnknownName: there is no such filter, or it does not count in this unit.
            FilterError: the filter broke its contract.
        """
        seat, limits = self._seat(choice), self._limits
        if (length := len(text) + len(attack.own)) > limits.max_chars:
            raise TextTooLong(length, limits.max_chars)
        before, certificate = self._judge(text, seat)
        texts = {one.text: one for one in self._draws(text, seat.units, attack)}
        scores = score_all(seat.filter, [canonical(one) for one in texts])
        plain, chosen = min(zip(scores, texts, strict=True), key=lambda pair: pair[0])
        cost = Reach(text, certificate.threat, seat.units).cost(chosen) if certificate else None
        after, refusal = self._judge_or_refuse(chosen, seat)
        return Outcome(
            text=chosen,
            added=texts[chosen].added,
            cost=cost,
            inside=certificate is not None and cost is not None and cost <= certificate.threat.budget,
            before=before,
            plain=plain,
            after=after,
            refusal=refusal,
            meaning=outcome_meaning(before, certificate, cost, plain, after),
        )

    def _draws(self, text: str, units: Units, attack: Attack) -> list[Attacked]:
        """Draws of an attack, as many as the page allows to score."""
        first = attacked(text, units, attack, random.Random(attack.seed))  # noqa: S311
        more = min(_DRAWS, self._limits.max_extra // len(first.text)) - 1
        # Texts seed by their digest, so neighbouring seeds share nothing.
        seeds = (f"{attack.seed} {at}" for at in range(more))
        return [first, *(attacked(text, units, attack, random.Random(seed)) for seed in seeds)]  # noqa: S311

    def _judge_or_refuse(self, text: str, seat: _Seat) -> tuple[Report | None, str]:
        try:
            return self._judge(text, seat)[0], ""
        except (InvalidText, BudgetExceeded) as error:
            return None, in_words(error)

    def _judge(self, text: str, seat: _Seat) -> tuple[Report, Certificate | None]:
        start = time.perf_counter()
        verdict = seat.certifier.certify(text)
        milliseconds = 1000 * (time.perf_counter() - start)
        certificate, witness = verdict.certificate, verdict.witness
        erased = witness.chars if witness else ()
        is_part = isinstance(seat.mode, SpanMode) and erased and erased[0][0] == 0
        report = Report(
            label=str(verdict.label),
            score=verdict.score,
            plain=score_all(seat.filter, [canonical(text)])[0],
            threshold=verdict.threshold,
            calls=verdict.calls,
            checks=verdict.checks,
            milliseconds=milliseconds,
            meaning=meaning(verdict),
            certified=certificate is not None,
            assumes=certificate.assumes if certificate else (),
            filter=seat.filter.digest,
            spent=witness.spent if witness else None,
            erased=erased,
            start=erased[0][1] if is_part else 0,
        )
        return report, certificate

    def _offer(self, name: str) -> Offer:
        filter_ = self._filters[name]
        units = {unit: made for (owner, unit), made in self._units.items() if owner == name}
        pairs = ((mode, unit) for mode in _MODES for unit in units)
        cheap = ((m, u) for m, u in pairs if not cheapest(filter_, load_mode(m, 1), units[u]).limited)
        return Offer(name, filter_.threshold, tuple(units), tuple(cheap))

    def _seat(self, choice: Choice) -> _Seat:
        units = self._units.get((choice.filter, choice.unit))
        if units is None:
            known = ", ".join(f"{name} by {unit}" for name, unit in self._units)
            raise UnknownName(f"no such filter, or it does not count in this unit: there are {known}")
        longest = _MAX_PROMPT[choice.unit] if choice.mode == "wrap" else None
        mode = load_mode(choice.mode, choice.max_erase, max_prompt=longest)
        limits, filter_ = self._limits, self._filters[choice.filter]
        certifier = EraseAndCheck(
            filter_,
            mode,
            units,
            max_checks=limits.max_checks,
            max_chars=limits.max_chars,
            max_work=limits.max_work,
        )
        return _Seat(filter_, mode, units, certifier)


def _units(filter_: Filter) -> list[Units]:
    """What a filter can count in; tokens, if it has a tokenizer that says where they are."""
    found = [load_units("word"), load_units("char")]
    if (tokenizer := getattr(filter_, "tokenizer", None)) is not None:
        with suppress(UnsupportedThreat):
            found.append(load_units("token", tokenizer))
    return found
