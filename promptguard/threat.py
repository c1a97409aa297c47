"""What an attacker may do to a checked input: `Threat`."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

L2 = "l2"
_HOW = {  # what an attack of a kind does to units, for `Threat.describe`
    "suffix": "appended",
    "infusion": "inserted anywhere, one by one",
    "wrap": "put before and after",
    "wrap-boundary": "put before (ending with a mark or a line break) and after",
    "deletion": "deleted",
    "substitution": "replaced, one for one",
    "edit": "inserted, deleted or replaced",
    "synonym": "replaced by their synonyms",
}


@dataclass(frozen=True, slots=True)
class Threat:
    """What an attacker may do to a prompt.

    Attributes:
        kind: what is done, for instance "suffix", "insertion", "infusion", "deletion", "substitution" or "edit"; "l2"
            moves a tensor.
        budget: units that may be added or changed; in each block for insertion. `math.inf` is unlimited. For "l2" the
            Euclidean norm of the change.
        unit: what the budget counts, for instance "char", "word" or "token:<digest>"; for "l2" what is moved, for
            instance "image".
        blocks: contiguous blocks that insertion may add; 1 elsewhere.
        max_prompt: units that the attacked prompt may have; None is any number.
    """

    kind: str
    budget: float
    unit: str
    blocks: int = 1
    max_prompt: int | None = None

    def describe(self) -> str:
        """The threat in words, for instance "up to 20 words appended"."""
        if self.kind == L2:
            return f"any change of the {self.unit} of Euclidean norm at most {self.budget!r}"
        amount = "any number of" if math.isinf(self.budget) else f"up to {self.budget}"
        kind = self.unit.partition(":")[0]
        unit = {"char": "character", "word": "whole word"}.get(kind, kind) + ("" if self.budget == 1 else "s")
        if self.kind == "insertion":
            blocks, each = ("one block", "") if self.blocks == 1 else (f"up to {self.blocks} blocks", " each")
            return f"{blocks} of {amount} {unit}{each} inserted anywhere"
        prompt = "" if self.max_prompt is None else f", around a prompt of at most {self.max_prompt}"
        return f"{amount} {unit} {_HOW.get(self.kind, f'({self.kind})')}{prompt}"

    def to_dict(self) -> dict[str, Any]:
        """JSON form; an unlimited budget is written "unlimited"."""
        number = self.budget if self.kind == L2 or math.isinf(self.budget) else int(self.budget)
        budget = "unlimited" if math.isinf(number) else number
        found = {"kind": self.kind, "budget": budget, "unit": self.unit, "blocks": self.blocks}
        return found if self.max_prompt is None else found | {"max_prompt": self.max_prompt}
