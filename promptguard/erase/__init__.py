"""Erase modes: the erasures E(x) that undo each kind of attack. One file and one line per mode."""

from __future__ import annotations

from promptguard.errors import InvalidArgument
from promptguard.registry import lookup
from promptguard.types import EraseMode

MODES = {
    "suffix": "promptguard.erase.suffix:Suffix",
    "insertion": "promptguard.erase.insertion:Insertion",
    "infusion": "promptguard.erase.infusion:Infusion",
    "wrap": "promptguard.erase.wrap:Wrap",
    "wrap-boundary": "promptguard.erase.wrap:wrap_after_boundaries",
}


def load_mode(name: str, budget: float, blocks: int = 1, max_prompt: int | None = None) -> EraseMode:
    """The mode of a name.

    Args:
        name: a key of `MODES`, or of the entry point group `promptguard.erase`.
        budget: units erased at most (in each block, for insertion); `math.inf` is unlimited.
        blocks: blocks erased at most; modes other than insertion take 1 only.
        max_prompt: units of the longest prompt that the wrap modes protect; None is their default, 40.

    Raises:
        UnknownName: no such mode.
        InvalidArgument: a budget that is not a whole number >= 0, or blocks that the mode does not have.
    """
    make = lookup(MODES, "promptguard.erase", name, "erase mode")
    if max_prompt is not None and not name.startswith("wrap"):
        raise InvalidArgument(f"mode {name!r} protects prompts of any length; only the wrap modes have max_prompt")
    mode: EraseMode = make(budget, blocks) if max_prompt is None else make(budget, blocks, max_prompt)
    return mode
