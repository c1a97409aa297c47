"""Greedy Coordinate Gradient, on classifiers and on language models.

Zou et al. 2023, *Universal and Transferable Adversarial Attacks on Aligned Language Models*, algorithm 1; aimed at
classifiers as by Kumar et al. 2024, *Certifying LLM Safety against Adversarial Prompting*, section 5.

A block of tokens is put into the prompt: behind it, or where else the threat allows. Each step takes the gradient of
the score by the block's one-hot tokens, and for each position the tokens that promise the largest fall; it judges a
batch of texts with one token exchanged and goes on from the best.

What is attacked is a *string*. A candidate is decoded, and dropped unless the tokenizer, given the decoded text, cuts
the block into the very same tokens, and the threat reaches the text. All results are of strings.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import ClassVar

from promptguard.attack.base import ADDING, AttackResult, Objective, check_sizes
from promptguard.attack.reach import Reach
from promptguard.attack.search import Search
from promptguard.capabilities import TokenAccess

_DRAWS = 8  # candidates drawn for one that is judged, at most

Ids = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class GCG:
    """Gradient-guided search for a block of tokens.

    Attributes:
        lengths: tokens of the block; tried one after the other until one succeeds. A budget that is too small for a
            length shortens it.
        steps: steps for each length.
        candidates: texts judged in each step.
        top_k: tokens considered at each position.
    """

    name: ClassVar[str] = "gcg"
    kinds: ClassVar[frozenset[str]] = ADDING

    lengths: tuple[int, ...] = (20,)
    steps: int = 30
    candidates: int = 64
    top_k: int = 128

    def __post_init__(self) -> None:
        check_sizes(
            lengths=min(self.lengths, default=0), steps=self.steps, candidates=self.candidates, top_k=self.top_k
        )

    def run(self, objective: Objective, reach: Reach, seed: int) -> AttackResult:
        """Attack one text.

        Raises:
            UnsupportedThreat: the threat does not add text, or the objective has no token gradients.
            InvalidText: the objective refuses the text itself.
            InvalidArgument: text and block are over the model's window.
        """
        search = Search(self, objective, reach, seed)
        search.white_box()
        for length in self.lengths:
            if search.over or not reach.budget:
                break
            block = _Block.at(search.rng.choice(reach.slots(search.rng, 1)[0]), reach, search.white_box())
            self._descend(search, block, length)
        return search.result()

    def _descend(self, search: Search, block: _Block, length: int) -> None:
        ids = block.first(min(length, search.reach.budget))
        if not ids:
            return
        search.judge([block.text(ids)])
        for _ in range(self.steps):
            if search.over:
                return
            proposals = list(islice(self._proposals(search, block, ids), self.candidates))
            margins = search.judge([block.text(proposal) for proposal in proposals])
            best = min(margins, default=math.inf)
            if math.isinf(best):
                return
            ids = proposals[margins.index(best)]

    def _proposals(self, search: Search, block: _Block, ids: Ids) -> Iterator[Ids]:
        """Blocks with one token exchanged that survive their own text, each once."""
        view, start, end = block.view(ids)
        slope = search.gradient(view, start, end).by_token
        usable = block.usable
        best = slope[:, usable].topk(min(self.top_k, len(usable)), largest=False).indices.tolist()
        seen = {ids}
        for _ in range(_DRAWS):
            fresh = []
            for _ in range(self.candidates):
                place = search.rng.randrange(len(ids))
                proposal = (*ids[:place], usable[search.rng.choice(best[place])], *ids[place + 1 :])
                if proposal not in seen:
                    seen.add(proposal)
                    fresh.append(proposal)
            yield from block.stable(fresh)


@dataclass(frozen=True, slots=True)
class _Block:
    """A place in a prompt where tokens are written.

    Attributes:
        before: the text before the block, with white space.
        after: the text behind it.
        reach: the prompt and the threat.
        tokens: the model's tokens.
        usable: ids that may be written, in a fixed order.
    """

    before: str
    after: str
    reach: Reach
    tokens: TokenAccess
    usable: list[int]

    @classmethod
    def at(cls, gap: int, reach: Reach, tokens: TokenAccess) -> _Block:
        before, after = reach.around(gap, apart=True)
        return cls(before, after, reach, tokens, list(tokens.usable))

    def text(self, ids: Sequence[int]) -> str:
        """The attacked text."""
        return f"{self.before}{self.tokens.text(ids)}{self.after}"

    def view(self, ids: Sequence[int]) -> tuple[str, int, int]:
        """The attacked text as the model reads it, and where the block stands in it."""
        start = len(self.tokens.view(f"{self.before}a")) - 1
        return self.tokens.view(self.text(ids)), start, start + len(self.tokens.text(ids))

    def stable(self, proposals: Sequence[Ids]) -> list[Ids]:
        """Those whose text is cut into the same tokens again and is within the threat."""
        views = [self.view(ids) for ids in proposals]
        found = self.tokens.ids([view for view, _, _ in views], [(start, end) for _, start, end in views])
        pairs = zip(proposals, found, strict=True)
        return [ids for ids, again in pairs if ids == again and self.reach.holds(self.text(ids))]

    def first(self, length: int) -> Ids:
        """Exclamation marks, as Zou et al. begin, as many as fit; else another token; nothing if none fits."""
        starts = [at for at in (self.tokens.words.get("!"), *self.tokens.words.values()) if at is not None][:64]
        for size in range(length, 0, -1):
            if found := self.stable([(start,) * size for start in starts]):
                return found[0]
        return ()
