"""The texts that a threat reaches from a prompt: where text may be added, and what an attacked text costs.

An attack is covered by a unit when the prompt's pieces all still stand in the attacked text, in order, up to what the
canonical view ignores (`promptguard.units`); it costs the pieces that it adds. Both are read off the attacked string
here, independently of the erase modes, so an attack cannot leave its threat and a fault of a mode cannot hide.
"""

from __future__ import annotations

import functools
import math
import random
import unicodedata
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from promptguard.certify.pieces import Pieces
from promptguard.erase.budget import checked
from promptguard.errors import InvalidArgument, UnsupportedThreat
from promptguard.threat import Threat
from promptguard.types import Units
from promptguard.view import canonical, check_text, kinds

MAX_ADDED = 40
_MAX_CHARS = 100_000
_PROBES = ("a", ".")

# A piece as the view sees it: whether white space stands before it, and the rest.
Key = tuple[bool, str]
Keys = list[Key]


@dataclass(frozen=True, slots=True)
class _Match:
    """An attacked text beside the prompt.

    Attributes:
        text: keys of the attacked text.
        prompt: keys of the prompt.
        pieces: the attacked text, cut.
        blocks: blocks that may be inserted.
    """

    text: Keys
    prompt: Keys
    pieces: list[str]
    blocks: int

    @property
    def added(self) -> int:
        return len(self.text) - len(self.prompt)

    def stands_at(self, start: int) -> bool:
        return self.text[start : start + len(self.prompt)] == self.prompt


def _suffix(match: _Match) -> float:
    return match.added if match.stands_at(0) else math.inf


def _wrap(match: _Match) -> float:
    return match.added if any(map(match.stands_at, range(match.added + 1))) else math.inf


def _wrap_boundary(match: _Match) -> float:
    starts = (at for at in range(match.added + 1) if match.stands_at(at))
    return match.added if any(_ends_open("".join(match.pieces[:at]), match.pieces[at]) for at in starts) else math.inf


def _ends_open(before: str, piece: str) -> bool:
    """Whether text before a piece is blank, or ends with a mark or a line break, white space and the like aside."""
    before += piece[: _visible(piece)[0]] if _visible(piece) else piece
    seen = _visible(before)
    if not seen or len(f"{before[seen[-1] + 1 :]}.".splitlines()) > 1:
        return True
    end = canonical(before[seen[-1]])[-1]
    return not (end.isalnum() or unicodedata.category(end).startswith("M"))


def _visible(text: str) -> list[int]:
    return [at for at, kind in enumerate(kinds(text)) if kind in "wp"]


def _infusion(match: _Match) -> float:
    rest = iter(match.text)
    return match.added if all(key in rest for key in match.prompt) else math.inf


def _substitution(match: _Match) -> float:
    if match.added:
        return math.inf
    return sum(one != other for one, other in zip(match.text, match.prompt, strict=True))


def _deletion(match: _Match) -> float:
    rest = iter(match.prompt)
    return -match.added if all(key in rest for key in match.text) else math.inf


def _edit(match: _Match) -> float:
    """Levenshtein's distance."""
    row = list(range(len(match.prompt) + 1))
    for done, key in enumerate(match.text, 1):
        diagonal, row[0] = row[0], done
        for at, own in enumerate(match.prompt, 1):
            diagonal, row[at] = row[at], min(row[at] + 1, row[at - 1] + 1, diagonal + (key != own))
    return row[-1]


def _insertion(match: _Match) -> float:
    """The smallest possible size of the largest block."""
    text, prompt, n = match.text, match.prompt, len(match.prompt)

    @functools.cache
    def least(placed: int, at: int, blocks: int) -> float:
        """For the prompt from `at` on, with `placed` units inserted before."""
        missing = match.added - placed
        if missing == 0:
            return 0 if text[at + placed :] == prompt[at:] else math.inf
        best = math.inf
        for gap in range(at, n + 1 if blocks else at):
            # The last block holds all that is missing.
            for size in range(missing if blocks == 1 else 1, missing + 1):
                best = min(best, max(size, least(placed + size, gap, blocks - 1)))
            if gap == n or text[gap + placed] != prompt[gap]:
                break
        return best

    return least(0, 0, match.blocks) if match.added >= 0 else math.inf


def _anywhere(rng: random.Random, gaps: list[int], blocks: int, size: int) -> list[list[int]]:
    return [gaps] * size


def _in_blocks(rng: random.Random, gaps: list[int], blocks: int, size: int) -> list[list[int]]:
    """As many additions to each block; blocks may touch."""
    chosen = rng.choices(gaps, k=blocks)
    return [[chosen[at % blocks]] for at in range(size)]


@dataclass(frozen=True, slots=True)
class _Kind:
    """What a kind of threat means.

    Attributes:
        cost: the smallest budget that reaches a text, infinite when none does.
        slots: see `Reach.slots`; from the open gaps, the number of blocks, and the number of additions.
    """

    cost: Callable[[_Match], float]
    slots: Callable[[random.Random, list[int], int, int], list[list[int]]] = _anywhere


_KINDS = {
    "suffix": _Kind(_suffix),
    "insertion": _Kind(_insertion, _in_blocks),
    "infusion": _Kind(_infusion),
    "wrap": _Kind(_wrap),
    "wrap-boundary": _Kind(_wrap_boundary),
    "substitution": _Kind(_substitution),
    "deletion": _Kind(_deletion),
    "edit": _Kind(_edit),
}


class Reach:
    """A prompt and what a threat may do to it.

    Gap g of a prompt of n units lies before unit g; gap n is its end.

    Args:
        text: the prompt.
        threat: kind, budget and blocks. Besides the erase modes' kinds, "substitution" (units exchanged one for one),
            "deletion" and "edit" (insertion, deletion and substitution of single units) are known.
        units: what the budget counts.
        cap: units that stand for an unlimited, or a larger, budget.

    Raises:
        UnsupportedThreat: the threat's kind is unknown.
        InvalidArgument: the budget, blocks or cap mean nothing, the units are not those of the threat, or the prompt
            has more units than the threat speaks of.
        InvalidText: the prompt is no text, or empty.
    """

    def __init__(self, text: str, threat: Threat, units: Units, *, cap: int = MAX_ADDED) -> None:
        if threat.kind not in _KINDS:
            raise UnsupportedThreat(f"no attack knows threat {threat.kind!r}: known are {', '.join(_KINDS)}")
        if units.name != threat.unit:
            raise InvalidArgument(f"the threat counts in {threat.unit!r}, not in {units.name!r}")
        if cap < 0 or threat.blocks < 1:
            raise InvalidArgument("cap must be at least 0, and blocks at least 1")
        self.text = check_text(text, _MAX_CHARS)
        self.threat = threat
        self.budget = int(min(checked(threat.budget), cap))
        self._units = units
        self._kind = _KINDS[threat.kind]
        self._known: dict[str, Key] = {}
        self._pieces = Pieces.of(text, units)
        if len(self._pieces) > (threat.max_prompt or math.inf):
            raise InvalidArgument("the prompt has more units than the threat protects")
        first, *rest = self._keys(self._pieces.cut())
        # White space before the first word is nothing to the view, and comes with what is put before it.
        self._prompts = [[(apart, first[1]), *rest] for apart in (False, True)]
        # Where white space is a unit of its own, text may be glued to the prompt, and need not be set off.
        self.glues = len(units("a b")) > 2
        self.joiner = "" if self.glues else " "

    @property
    def pieces(self) -> list[str]:
        """The prompt's units."""
        return self._pieces.cut()

    @property
    def room(self) -> int:
        """Units that may be added in all: the budget, once for each block."""
        return self.budget * self.threat.blocks

    def cut(self, text: str) -> list[str]:
        """Any text, cut into units."""
        return Pieces.of(text, self._units).cut()

    def cost(self, text: str) -> int | None:
        """The smallest budget of the threat's kind that reaches a text; None when no budget does.

        Where units are deleted or replaced it may be too large by one: white space before the first unit counts then.
        """
        pieces = self.cut(text)
        keys = self._keys(pieces)
        found = min(self._kind.cost(_Match(keys, p, pieces, self.threat.blocks)) for p in self._prompts)
        return None if math.isinf(found) else int(found)

    def holds(self, text: str) -> bool:
        """Whether the threat, within the capped budget, reaches a text."""
        cost = self.cost(text)
        return cost is not None and cost <= self.budget

    def added(self, text: str) -> int:
        """Units that a text has more than the prompt."""
        return len(self.cut(text)) - len(self._pieces)

    def slots(self, rng: random.Random, size: int) -> list[list[int]]:
        """For each of `size` units that one attempt adds, the gaps where it may go."""
        return self._kind.slots(rng, self._open, self.threat.blocks, size)

    def around(self, gap: int, *, apart: bool = False) -> tuple[str, str]:
        """What stands before and after a block at a gap, with the white space that the unit needs.

        Args:
            gap: where the block stands.
            apart: set it off by spaces even where the unit lets it be glued (they cost units there).
        """
        at = self._pieces.offsets[gap]
        before, after = self.text[:at], self.text[at:]
        space = " " if apart else self.joiner
        if not before:
            return "", self._behind(space) + after
        return before + space, (space if apart and self.glues and after else "") + after

    def with_added(self, additions: Iterable[tuple[int, str]]) -> str:
        """The prompt with words put into gaps; those of one gap in the order given.

        Args:
            additions: pairs of a gap and a word (a character, where the unit glues).
        """
        blocks: dict[int, list[str]] = {}
        for gap, word in additions:
            blocks.setdefault(gap, []).append(word)
        pieces, text = self._pieces.cut(), ""
        for gap in range(len(pieces) + 1):
            if gap in blocks:
                block = self.joiner.join(blocks[gap])
                text += self.joiner + block if gap else block + self._behind(self.joiner)
            text += "".join(pieces[gap : gap + 1])
        return text

    @functools.cached_property
    def _open(self) -> list[int]:
        gaps = range(len(self._pieces) + 1)
        found = [g for g in gaps if any(self.cost(self.with_added([(g, probe)])) is not None for probe in _PROBES)]
        return found or [len(self._pieces)]

    def _behind(self, space: str) -> str:
        """What follows a block before the prompt: a line break where it has to end with one, or with a mark."""
        return "\n" if space and self.threat.kind == "wrap-boundary" else space

    def _keys(self, pieces: Iterable[str]) -> Keys:
        return [self._known.get(piece) or self._key(piece) for piece in pieces]

    def _key(self, piece: str) -> Key:
        key = (kinds(piece).lstrip("i")[:1] == "s", canonical(piece))
        self._known[piece] = key
        return key
