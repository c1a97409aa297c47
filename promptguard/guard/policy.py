"""The owner's choices. Everything that is not a clean "safe" blocks unless the owner says otherwise here."""

from __future__ import annotations

from dataclasses import dataclass, fields
from enum import StrEnum

from promptguard.errors import InvalidArgument


class Action(StrEnum):
    """What happens to a request."""

    ALLOW = "allow"
    BLOCK = "block"


class Reason(StrEnum):
    """Why."""

    ALLOWED = "allowed"
    HARMFUL = "harmful"
    ABSTAIN = "abstain"
    ERROR = "error"
    OVER_BUDGET = "over_budget"
    UNSCANNABLE = "unscannable"


class OnBlock(StrEnum):
    """What a guarded call does instead of the call."""

    REFUSE = "refuse"
    RAISE = "raise"

    @classmethod
    def of(cls, value: str) -> OnBlock:
        """The choice of that name.

        Raises:
            InvalidArgument: there is none.
        """
        try:
            return cls(value)
        except ValueError:
            raise InvalidArgument(f"on_block must be one of {', '.join(cls)}") from None


ROLES = frozenset({"system", "developer", "user", "assistant", "tool", "function"})


@dataclass(frozen=True, slots=True)
class Policy:
    """What a guard does, and says, about each outcome. Set by the owner of the application, in code.

    Attributes:
        on_harmful: the certifier flags a text. ALLOW only observes: decisions and log lines still say "harmful".
        on_error: a text cannot be checked, the certifier breaks, or there is nothing to check.
        on_abstain: the certifier does not know, or ran out of time. Certificates under a time budget mean "harmful, or
            abstains": with ALLOW they prove nothing.
        on_over_budget: the check would cost more than the certifier's budget of checks or time, or `max_texts`. Under
            a time budget an attacked text may be refused as `OutOfTime`: with ALLOW its certificates prove nothing.
        on_unscannable: the input holds something that is not text, such as an image, or has an unknown role. ALLOW
            lets it pass unseen, with whatever text is inside what cannot be read (a chat template, messages that are no
            list); the text around it is still checked.
        refusal: the answer of a guarded call that was blocked.
        trusted_roles: roles whose messages are not checked. Empty, because a role in a request is the client's word;
            `frozenset({"system"})` is right only where your own code, not the request, writes the system message.
        roles: roles that the model knows; any other is unscannable.
        max_texts: texts checked for one request at most (each is a certifier run); None for no limit.

    Raises:
        InvalidArgument: a value of the wrong type, an empty refusal, or `max_texts` below 1.
    """

    on_harmful: Action = Action.BLOCK
    on_error: Action = Action.BLOCK
    on_abstain: Action = Action.BLOCK
    on_over_budget: Action = Action.BLOCK
    on_unscannable: Action = Action.BLOCK
    refusal: str = "I can't assist with that request."
    trusted_roles: frozenset[str] = frozenset()
    roles: frozenset[str] = ROLES
    max_texts: int | None = 1000

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            # A misspelt action must not become "anything but BLOCK", nor a string of roles match by substring.
            if field.name.startswith("on_") and not isinstance(value, Action):
                raise InvalidArgument(f"{field.name} must be Action.ALLOW or Action.BLOCK")
            if field.name.endswith("roles") and not _is_set_of_str(value):
                raise InvalidArgument(f"{field.name} must be a frozenset of strings")
        if not isinstance(self.refusal, str) or not self.refusal.strip():
            raise InvalidArgument("refusal must be a text")
        if self.max_texts is not None and self.max_texts < 1:
            raise InvalidArgument("max_texts must be at least 1, or None for no limit")

    def action(self, reason: Reason) -> Action:
        """What happens for this reason."""
        match reason:
            case Reason.ALLOWED:
                return Action.ALLOW
            case Reason.HARMFUL:
                return self.on_harmful
            case Reason.ABSTAIN:
                return self.on_abstain
            case Reason.OVER_BUDGET:
                return self.on_over_budget
            case Reason.UNSCANNABLE:
                return self.on_unscannable
            case Reason.ERROR:
                return self.on_error


def _is_set_of_str(value: object) -> bool:
    return isinstance(value, frozenset) and all(isinstance(item, str) for item in value)
