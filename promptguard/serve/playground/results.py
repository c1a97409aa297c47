"""What the page is told. Texts are pointed into by code point ranges, half-open; none is quoted but an attacked one."""

from __future__ import annotations

from dataclasses import dataclass

from promptguard.types import Certificate, Label, Verdict

Ranges = tuple[tuple[int, int], ...]


@dataclass(frozen=True, slots=True)
class Quote:
    """What a check will cost, before it runs.

    Attributes:
        units: pieces of the text.
        checks: scores that are compared with the threshold; at most 10**15, see `more`.
        characters: code points that the filter reads; at most 10**15.
        more: whether a number was too large to be written.
        one_pass: whether the number of erasures makes no difference to the price.
        refusal: why this check will not run, in words; empty if it will.
    """

    units: int
    checks: int
    characters: int
    more: bool
    one_pass: bool
    refusal: str


@dataclass(frozen=True, slots=True)
class Report:
    """What the guard says of a text.

    Attributes:
        label: "harmful" or "safe".
        score: the largest score seen over the erasures.
        plain: the filter's score of the text itself, without erase-and-check.
        threshold: scores at or above it are harmful.
        calls: texts that the filter scored for the verdict.
        checks: erasures that these calls cover.
        milliseconds: wall time of the verdict.
        meaning: the certificate, or why there is none, in a sentence.
        certified: whether there is a certificate.
        assumes: the conditions under which it holds.
        filter: digest of the filter.
        spent: units of the witness; None without one.
        erased: the witness, as code point ranges of the text.
        start: the code point at which what it leaves begins, in modes that leave a contiguous part; else 0.
    """

    label: str
    score: float
    plain: float
    threshold: float
    calls: int
    checks: int
    milliseconds: float
    meaning: str
    certified: bool
    assumes: tuple[str, ...]
    filter: str
    spent: int | None
    erased: Ranges
    start: int


@dataclass(frozen=True, slots=True)
class Point:
    """The score of a prefix.

    Attributes:
        units: units of the prefix.
        end: the code point of the text behind it.
        score: the filter's score of it.
        checked: whether it is one of the mode's erasures.
    """

    units: int
    end: int
    score: float
    checked: bool


@dataclass(frozen=True, slots=True)
class Strip:
    """The scores of a text's prefixes, shortest first; of a long text some are left out.

    Attributes:
        points: the scores.
        threshold: scores at or above it are harmful.
    """

    points: tuple[Point, ...]
    threshold: float


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of an attack.

    Attributes:
        text: the attacked text.
        added: what was added to it, as code point ranges.
        cost: the budget that the certificate's kind of attack needs for it; None if no budget does.
        inside: whether the certificate of the text before the attack covers it.
        before: the verdict before the attack.
        plain: the filter's score of the attacked text.
        after: the verdict of the attacked text; None if it was refused.
        refusal: why it was refused, in words; empty if it was not. A guard blocks what it refuses.
        meaning: all this in words.
    """

    text: str
    added: Ranges
    cost: int | None
    inside: bool
    before: Report
    plain: float
    after: Report | None
    refusal: str
    meaning: str


@dataclass(frozen=True, slots=True)
class Offer:
    """A filter, and what it may be asked.

    Attributes:
        name: as in a `Choice`.
        threshold: scores at or above it are harmful.
        units: units that it can count in.
        one_pass: (mode, unit) pairs in which any number of units costs no more than a few.
    """

    name: str
    threshold: float
    units: tuple[str, ...]
    one_pass: tuple[tuple[str, str], ...]


@dataclass(frozen=True, slots=True)
class Menu:
    """What there is to choose from.

    Attributes:
        filters: the filters.
        max_chars: the longest text accepted, in code points.
        max_size: the most units that an attack adds.
    """

    filters: tuple[Offer, ...]
    max_chars: int
    max_size: int


def meaning(verdict: Verdict) -> str:
    """The certificate of a verdict, or why there is none, in a sentence."""
    if verdict.certificate:
        return verdict.certificate.sentence()
    threat = verdict.threat.describe() if verdict.threat else "an attack"
    if verdict.label is Label.SAFE:
        return f"No certificate: “safe” is never certified. No erasure that undoes {threat} was flagged."
    return "Flagged, but no certificate: nothing is proved about further changes to this text."


def outcome_meaning(
    before: Report, certificate: Certificate | None, cost: int | None, plain: float, after: Report | None
) -> str:
    """What an attack achieved, in words: whether the certificate covers it, then who was fooled."""
    if before.label != Label.HARMFUL:
        return "The text was not flagged before the attack, so there is nothing to hide, and nothing was certified."
    return f"{_where(certificate, cost)} {_who(before, plain, after)}"


def _where(certificate: Certificate | None, cost: int | None) -> str:
    if certificate is None:
        return "Nothing was certified before the attack."
    said = certificate.threat.describe()
    if cost is None:
        return f"Outside the certificate: it speaks of {said}, and this attack has another shape."
    if cost > certificate.threat.budget:
        return f"Beyond the certificate: it speaks of {said}, and this attack needs {cost}."
    return f"Inside the certificate: it speaks of {said}, and this attack needs {cost}."


def _who(before: Report, plain: float, after: Report | None) -> str:
    guard = "holds" if after is None or after.label == Label.HARMFUL else "is fooled"
    how = ", by refusing to check so much text" if after is None else ""
    if before.plain < before.threshold:
        return f"The filter alone did not flag the text in the first place; the guard {guard}{how}."
    if plain >= before.threshold:
        return f"The filter alone still flags the text; the guard {guard}{how}."
    both = "and so is the guard" if guard == "is fooled" else f"the guard {guard}"
    return f"The filter alone is fooled; {both}{how}."
