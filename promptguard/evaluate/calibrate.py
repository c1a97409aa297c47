"""Calibration: the threshold at which a filter under erase-and-check keeps a promised false-positive rate.

The certified score of a text is the filter's maximum over the text's erasures; it is what a threshold meets in
operation, and it is often higher than the score of the text itself. From the certified scores of n safe texts,
`calibrate` takes the threshold just above one of the largest. Which one follows from n and the promise alone, so the
promise holds for any filter and any distribution of texts (theorem: `promptguard.stats.exceedances_allowed`):

    With probability at least `confidence` over the choice of the n texts, a safe text is flagged at a rate of at most
    `bound`, which is at most `max_fpr`.

Assumed: the n texts are independent draws from the safe traffic that the filter will meet. Texts picked by hand,
paraphrases of each other or last year's traffic are not. Repeated texts count as often as they occur.

A text that cannot be checked (empty, too long, over the limit of checks) is blocked at any threshold, so it counts as
the highest score there is: under the same limits, the bound is one on safe texts *blocked*, for either reason. The rate
is one per text; a guard that checks several texts of a request blocks requests more often.

No time budget is part of it. A certifier with `max_seconds` looks at some of the erasures, so it flags no more and the
bound on *flagged* texts holds; texts that it abstains from or refuses for want of time are blocked on top of it.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

from promptguard.certify.erase_and_check import MAX_CHECKS, EraseAndCheck
from promptguard.errors import BudgetExceeded, InvalidArgument, InvalidText
from promptguard.evaluate.calibration import Calibration, describe
from promptguard.evaluate.prompts import read_prompts
from promptguard.stats import exceedances_allowed, threshold_above, trials_needed, upper_bound
from promptguard.types import EraseMode, Filter, Units
from promptguard.view import VIEW


@dataclass(frozen=True, slots=True)
class SafeTexts:
    """The texts of a calibration file.

    Attributes:
        texts: those that are labelled safe or not labelled.
        harmful: how many were labelled harmful, and left out.
        digest: sha256 of the file.
    """

    texts: tuple[str, ...]
    harmful: int
    digest: str


def read_safe_texts(path: Path) -> SafeTexts:
    """Read texts for `calibrate`: any file that `promptguard.evaluate.prompts` reads; rows without a label are safe.

    Raises:
        InvalidArgument: as `promptguard.evaluate.prompts.read_prompts`.
    """
    prompts = list(read_prompts(path, unlabelled="safe"))
    safe = tuple(prompt.text for prompt in prompts if prompt.label == "safe")
    return SafeTexts(safe, len(prompts) - len(safe), hashlib.sha256(path.read_bytes()).hexdigest())


def calibrate(
    filter_: Filter,
    mode: EraseMode,
    units: Units,
    texts: Sequence[str],
    *,
    max_fpr: float,
    data: str,
    confidence: float = 0.95,
    max_checks: int | None = MAX_CHECKS,
    progress: Callable[[int, int], None] | None = None,
) -> Calibration:
    """A threshold that promises a false-positive rate of at most `max_fpr` under erase-and-check.

    What is promised, and assumed, is written at the module. The filter's own threshold plays no part. The same text
    may score higher by the guard band in another batch, so the threshold keeps that distance from the sample.

    Args:
        filter_: the filter.
        mode: the erasures.
        units: what is erased.
        texts: safe texts.
        max_fpr: in (0, 1).
        data: sha256 of the texts' file, for the record.
        confidence: in (0, 1).
        max_checks: erasures allowed per text, as in operation; None for no limit.
        progress: called with (texts scored, all texts) after each text.

    Raises:
        InvalidArgument: a rate outside its range, too few texts (the message says how many are needed), too many that
            cannot be checked, or no threshold that would flag anything.
        FilterError: the filter broke its contract.
    """
    n = len(texts)
    needed = trials_needed(max_fpr, confidence)
    allowed = exceedances_allowed(n, max_fpr, confidence) if n else None
    if allowed is None:
        raise InvalidArgument(
            f"{n} safe texts are too few to promise a false-positive rate of {max_fpr:g} with confidence "
            f"{confidence:g}: at least {needed} are needed"
        )
    # Stopping early would give less than the maximum for a text that is flagged.
    certifier = EraseAndCheck(filter_, mode, units, max_checks=max_checks, early_stop=False)
    scores = []
    for text in texts:
        scores.append(_certified_score(certifier, text))
        if progress:
            progress(len(scores), n)
    threshold = _threshold(scores, allowed, filter_.guard_band)
    exceeding = sum(score >= threshold for score in scores)
    return Calibration(
        threshold=threshold,
        bound=upper_bound(allowed, n, confidence),
        confidence=confidence,
        max_fpr=max_fpr,
        texts=n,
        allowed=allowed,
        exceeding=exceeding,
        refused=sum(score == math.inf for score in scores),
        observed=exceeding / n,
        filter=filter_.digest,
        filter_name=filter_.name,
        guard_band=filter_.guard_band,
        mode=describe(mode),
        unit=units.name,
        view=VIEW,
        data=data,
        package=version("certified-promptguard"),
    )


def _certified_score(certifier: EraseAndCheck, text: str) -> float:
    try:
        return certifier.certify(text).score
    except (InvalidText, BudgetExceeded):
        return math.inf


def _threshold(scores: Sequence[float], allowed: int, guard_band: float) -> float:
    finite = [score for score in scores if math.isfinite(score)]
    if (refused := len(scores) - len(finite)) > allowed:
        raise InvalidArgument(
            f"{refused} of {len(scores)} safe texts cannot be checked (empty, too long, or over max_checks), which "
            f"blocks them at any threshold, and at most {allowed} may be blocked: raise max_checks or the promised rate"
        )
    threshold = threshold_above(scores, allowed, guard_band)
    if threshold > 1 and all(0 <= score <= 1 for score in finite):
        raise InvalidArgument(
            f"more than {allowed} of {len(scores)} safe texts score close to 1: a threshold above them would flag "
            "nothing; promise a higher rate, erase less, or use another filter"
        )
    return threshold
