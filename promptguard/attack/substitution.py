"""Word substitution: the words that matter most, exchanged for near ones (after TextFooler, Jin et al. 2020).

**No insertion certificate covers it.** Erase-and-check undoes text that was *added*; here the prompt's own words are
replaced. Against erase-and-check the attack shows what lies outside the promise, and never counts against a
certificate; only certificates of the threats "substitution" and "edit" speak of it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import ClassVar

from promptguard.attack.base import AttackResult, Objective, check_sizes
from promptguard.attack.reach import Reach
from promptguard.attack.search import Search
from promptguard.capabilities import TokenAccess


class EmbeddingNeighbours(Mapping[str, Sequence[str]]):
    """For any word, the words whose input embeddings point most nearly the same way (cosine), nearest first.

    A word of several tokens has the mean of their embeddings. The neighbours are words of one token.

    Args:
        tokens: the model's tokens.
        size: neighbours of each word.
    """

    def __init__(self, tokens: TokenAccess, size: int) -> None:
        check_sizes(size=size)
        self._tokens = tokens
        self._size = size
        self._words = [word for word in tokens.words if word.isalpha()]
        self._vectors = tokens.vectors()
        rows = self._vectors[[tokens.words[word] for word in self._words]]
        self._directions = rows / rows.norm(dim=1, keepdim=True).clamp_min(1e-12)

    def __getitem__(self, word: str) -> list[str]:
        view = self._tokens.view(word)
        (ids,) = self._tokens.ids([view], [(0, len(view))])
        if not ids:
            raise KeyError
        near = self._directions @ self._vectors[list(ids)].mean(dim=0)
        # One more than asked for: the word itself may be among them.
        best = near.topk(min(self._size + 1, len(self._words))).indices.tolist()
        return [self._words[at] for at in best if self._words[at] != view.lower()][: self._size]

    def __iter__(self) -> Iterator[str]:
        return iter(self._words)

    def __len__(self) -> int:
        return len(self._words)


@dataclass(frozen=True, slots=True)
class WordSubstitution:
    """Greedy search: words in the order of how far the score falls without them, each by its best neighbour.

    Attributes:
        size: neighbours tried for each word.
        neighbours: a table of words to their substitutes; default the nearest by the model's own input embeddings.
    """

    name: ClassVar[str] = "substitution"
    kinds: ClassVar[frozenset[str]] = frozenset({"substitution", "edit"})

    size: int = 30
    neighbours: Mapping[str, Sequence[str]] | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        check_sizes(size=self.size)

    def run(self, objective: Objective, reach: Reach, seed: int) -> AttackResult:
        """Attack one text; nothing here is random.

        Raises:
            UnsupportedThreat: the threat does not let words be replaced, or there is neither a table nor a model that
                shows its tokens.
            InvalidText: the objective refuses the text itself.
        """
        search = Search(self, objective, reach, seed)
        if search.over:
            return search.result()
        table = self.neighbours if self.neighbours is not None else EmbeddingNeighbours(search.white_box(), self.size)
        pieces = reach.pieces
        words = [at for at, piece in enumerate(pieces) if any(letter.isalpha() for letter in piece)]
        without = search.probe(["".join(pieces[:at] + pieces[at + 1 :]) for at in words])
        (lowest,) = search.probe([reach.text])
        exchanged = 0
        for _, at in sorted(zip(without, words, strict=True)):
            if search.over or exchanged >= reach.budget:
                break
            texts = [[*pieces[:at], near, *pieces[at + 1 :]] for near in self._near(table, pieces[at])]
            margins = search.judge(["".join(text) for text in texts])
            if margins and min(margins) < lowest:
                lowest, pieces = min(margins), texts[margins.index(min(margins))]
                exchanged += 1
        return search.result()

    def _near(self, table: Mapping[str, Sequence[str]], piece: str) -> list[str]:
        """A piece's substitutes, with the white space that it has."""
        word = piece.strip()
        lead, trail = piece[: len(piece) - len(piece.lstrip())], piece[len(piece.rstrip()) :]
        return [f"{lead}{near}{trail}" for near in table.get(word, table.get(word.lower(), ()))[: self.size]]
