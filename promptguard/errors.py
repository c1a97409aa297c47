"""Typed errors. A message says what to do and never contains the text that was checked."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

_T = TypeVar("_T")


class PromptGuardError(Exception):
    """Base of every error that promptguard raises on purpose."""


class InvalidText(PromptGuardError, ValueError):
    """The text cannot be checked (not a string, NUL bytes, lone surrogates)."""


class InvalidRequest(PromptGuardError, ValueError):
    """A request cannot be read in one way only, or not at all; the message quotes nothing of it."""


class EmptyText(InvalidText):
    """Nothing is left to check: the text is empty, or only white space and invisible code points."""


class TextTooLong(InvalidText):
    """The text is longer than the certifier accepts.

    Attributes:
        length: code points in the text.
        limit: code points accepted.
    """

    def __init__(self, length: int, limit: int, raise_to_accept: str = "max_chars") -> None:
        super().__init__(
            f"text of {length} code points is over the limit of {limit}; raise {raise_to_accept} to accept it"
        )
        self.length = length
        self.limit = limit


class InvalidArgument(PromptGuardError, ValueError):
    """An argument has a value that means nothing here: a negative budget, a threshold that is not a number."""


class UnknownName(PromptGuardError, LookupError):
    """A name that no registry knows; the message lists the known ones."""


class UnsupportedThreat(PromptGuardError, TypeError):
    """This certifier cannot certify that threat, or this filter lacks the capability it needs."""


class BudgetExceeded(PromptGuardError):
    """The work is over the budget of checks; raised before any inference.

    Attributes:
        limit: erasures allowed.
    """

    def __init__(self, limit: int) -> None:
        super().__init__(
            f"more than {limit} checks are needed: lower max_erase, raise max_checks, or ask for an anytime certificate"
        )
        self.limit = limit


class PictureRefused(PromptGuardError, ValueError):
    """The bytes are no picture, or one that two programs may show differently; send it as a plain PNG or JPEG."""


class PictureTooLarge(BudgetExceeded):
    """The picture has more pixels than are decoded; read off its header, before any decoding.

    Attributes:
        limit: pixels accepted.
    """

    def __init__(self, limit: int) -> None:
        PromptGuardError.__init__(self, f"the picture has more than {limit} pixels: make it smaller")
        self.limit = limit


class FilterError(PromptGuardError):
    """The filter broke its contract: it raised, returned the wrong number of scores, or a score that is not finite."""


def discreetly(what: str, work: Callable[[], _T]) -> _T:
    """The result of work on a text; an error that is not ours becomes a `FilterError` with `what` and its type name.

    What was raised may quote the text. The new error is raised after it was handled, so it has neither cause nor
    context: tools that walk the chain of an exception find nothing.
    """
    try:
        return work()
    except (PromptGuardError, KeyboardInterrupt, SystemExit, GeneratorExit):
        raise
    except BaseException as error:  # a panic in a tokenizer's native code is no Exception
        kind = type(error).__name__
    raise FilterError(f"{what} raised {kind}")


class LabelError(PromptGuardError, ValueError):
    """The harmful label of a classifier is unknown or ambiguous; the message lists its labels."""


class WeightsError(PromptGuardError):
    """Weights are missing, in a format that can run code, or do not match their digest."""


class MissingDependency(PromptGuardError, ImportError):
    """A package or base model is not installed; the message says what to install."""


class Blocked(PromptGuardError):
    """Raised by a guarded call whose owner chose exceptions over refusal text.

    Attributes:
        decision: the `promptguard.guard.Decision` behind the block.
    """

    def __init__(self, decision: object) -> None:
        super().__init__("blocked by promptguard")
        self.decision = decision
