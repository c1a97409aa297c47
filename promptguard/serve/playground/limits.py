"""What one request to the playground may cost, and how a refusal is said to someone who cannot change it."""

from __future__ import annotations

from dataclasses import dataclass

from promptguard.errors import BudgetExceeded, PromptGuardError, TextTooLong


@dataclass(frozen=True, slots=True)
class Limits:
    """What one request may cost, suited to a page that anyone may open.

    Attributes:
        max_chars: longest text, in code points.
        max_checks: erasures, where each one is scored.
        max_work: code points that the filter reads for a verdict.
        max_points: prefixes of a strip.
        max_extra: code points read for what is shown beside a verdict: prefixes where they are scored one by one, and
            the draws of an attack.
    """

    max_chars: int = 4_000
    max_checks: int = 1_000
    max_work: int = 200_000
    max_points: int = 200
    max_extra: int = 20_000


def in_words(error: PromptGuardError) -> str:
    """The message of an error, without advice to change what only the server's owner can."""
    if isinstance(error, TextTooLong):
        return (
            f"The text has {error.length:,} characters; with these settings this page takes {error.limit:,}. Shorten "
            "it, or lower the budget."
        )
    if isinstance(error, BudgetExceeded):
        return f"More than the {error.limit:,} checks that this page allows are needed. Lower the budget."
    message = str(error)
    return f"{message[:1].upper()}{message[1:]}."
