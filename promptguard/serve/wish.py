"""The `moderation` field of a request: what a client asks for in addition. It tightens the guard, never loosens it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from promptguard.errors import InvalidRequest


@dataclass(frozen=True, slots=True)
class Wish:
    """What a client asks for.

    Attributes:
        is_asked: it wants the answer's `moderation` field, so its output is judged as well.
        blocks_input: a flagged request is blocked, even where the owner only observes.
        blocks_output: so is a flagged answer.
    """

    is_asked: bool = False
    blocks_input: bool = False
    blocks_output: bool = False

    @classmethod
    def of(cls, field: Any) -> Wish:
        """The wish that a field says.

        Args:
            field: `{"model": ..., "policy": {"input": {"mode": "score" | "block"}, "output": ...}}`, or None.

        Raises:
            InvalidRequest: it says something else.
        """
        if field is None:
            return cls()
        policy = (field.get("policy") or {}) if isinstance(field, dict) else None
        if not isinstance(policy, dict):
            raise InvalidRequest("moderation must be an object with a policy")
        return cls(True, _blocks(policy.get("input")), _blocks(policy.get("output")))


def _blocks(side: Any) -> bool:
    mode = (side or {}).get("mode") if isinstance(side, dict | None) else side
    if mode not in (None, "score", "block"):
        raise InvalidRequest("a moderation mode must be score or block")
    return bool(mode == "block")
