"""Erase modes: the erasures E(x) that undo each kind of attack. One file and one line per mode."""

from __future__ import annotations

from promptguard.registry import lookup
from promptguard.types import EraseMode

MODES = {
    "suffix": "promptguard.erase.suffix:Suffix",
    "insertion": "promptguard.erase.insertion:Insertion",
    "infusion": "promptguard.erase.infusion:Infusion",
}


def load_mode(name: str, budget: float, blocks: int = 1) -> EraseMode:
    """The mode of a name.

    Args:
        name: a key of `MODES`, or of the entry point group `promptguard.erase`.
        budget: units erased at most (in each block, for insertion); `math.inf` is unlimited.
        blocks: blocks erased at most; modes other than insertion take 1 only.

    Raises:
        UnknownName: no such mode.
        InvalidArgument: a budget that is not a whole number >= 0, or blocks that the mode does not have.
    """
    mode: EraseMode = lookup(MODES, "promptguard.erase", name, "erase mode")(budget, blocks)
    return mode
