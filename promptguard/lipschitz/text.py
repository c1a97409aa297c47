"""A convolutional filter on characters whose score certifies edits in one pass: see `promptguard.lipschitz.windows`.

What it reads: each visible code point of a text, by the canonical view of that code point alone, in lower case; all
white space as blanks, without merging them; what the view maps to several letters, and what is not in the alphabet, as
one unknown symbol. Invisible code points are left out. So one edited code point is at most one edited symbol.
"""

from __future__ import annotations

import copy
import hashlib
import math
from collections.abc import Sequence
from functools import lru_cache
from itertools import pairwise

import torch
from torch import nn

from promptguard.errors import InvalidArgument, TextTooLong
from promptguard.lipschitz.analysis import Place
from promptguard.lipschitz.bound import up
from promptguard.lipschitz.dense import dense_norm
from promptguard.lipschitz.linear import length, matrix
from promptguard.lipschitz.windows import edit_constant, lower_bounds
from promptguard.view import canonical, kinds

ALPHABET = " abcdefghijklmnopqrstuvwxyz0123456789.,:;!?'\"-()/"
_BLANK, _UNKNOWN = 0, 1  # symbols before those of the alphabet
_UNIT = 2.0**-53
_GRID = 2.0**-32  # evidence is rounded to multiples of it, so that all sums of it are exact


class Windows(nn.Module):
    """Evidence of every window: embedding, convolutions with ReLU between them, squashed to [-floor, cap].

    Args:
        widths: of the convolutions; the window is sum(widths) - len(widths) + 1 symbols.
        channels: of the embedding and between convolutions.
        floor: evidence for safety that one window gives, at most; an attacker can add it.
        cap: evidence for harm that one window gives, at most; an attacker can destroy it.
        alphabet: characters with symbols of their own.
        generator: of the initial weights.
    """

    def __init__(
        self,
        widths: Sequence[int],
        channels: int,
        *,
        floor: float,
        cap: float,
        generator: torch.Generator,
        alphabet: str = ALPHABET,
    ) -> None:
        super().__init__()
        if not widths or min(widths) < 1 or channels < 1 or not 0 <= floor < math.inf or not 0 < cap < math.inf:
            raise InvalidArgument("windows need widths and channels >= 1, a finite floor >= 0 and a finite cap > 0")
        self.alphabet, self.floor, self.cap = alphabet, floor, cap
        self.width = sum(widths) - len(widths) + 1
        self.embedding = nn.Embedding(len(alphabet) + 2, channels)
        sizes = [*[channels] * len(widths), 1]
        self.convolutions = nn.ModuleList(
            nn.Conv1d(into, out, width) for (into, out), width in zip(pairwise(sizes), widths, strict=True)
        )
        self.bias = nn.Parameter(torch.zeros(()))
        for parameter in [self.embedding.weight, *(p for c in self.convolutions for p in c.parameters())]:
            scale = parameter[0].numel() ** -0.5
            parameter.data.copy_(torch.randn(parameter.shape, generator=generator) * scale)

    def forward(self, symbols: torch.Tensor) -> torch.Tensor:
        """Evidence of shape (batch, n - width + 1) of padded symbols, int64 of shape (batch, n)."""
        hidden = self.embedding(symbols).transpose(1, 2)
        for at, convolution in enumerate(self.convolutions):
            hidden = convolution(hidden.relu() if at else hidden)
        evidence: torch.Tensor = torch.sigmoid(hidden[:, 0]) * (self.floor + self.cap) - self.floor
        return evidence

    def weights(self) -> list[tuple[torch.Tensor, torch.Tensor]]:
        """Kernel, of shape (out, in, width), and bias of each convolution."""
        state = self.convolutions.state_dict()
        return [(state[f"{at}.weight"], state[f"{at}.bias"]) for at in range(len(self.convolutions))]

    def symbols(self, text: str) -> list[int]:
        """What the filter reads of a text, without the blanks around it."""
        return [found for code in text if (found := _symbol(code, self.alphabet)) is not None]

    def padded(self, symbols: Sequence[int]) -> list[int]:
        """With blanks before and after."""
        blanks = [_BLANK] * (self.width - 1)
        return [*blanks, *symbols, *blanks]


@lru_cache(maxsize=4096)
def _symbol(code: str, alphabet: str) -> int | None:
    """The symbol of a code point; None for an invisible one."""
    kind = kinds(code)
    if kind == "i":
        return None
    image = " " if kind == "s" else canonical(code).lower()
    return alphabet.find(image) + 2 if len(image) == 1 and image in alphabet else _UNKNOWN


class WindowFilter:
    """A filter on texts that knows how far edits can lower its score.

    F(x) = bias + the sum of the evidence of x's windows, in float64. Scores at or above the threshold are harmful.

    Args:
        windows: trained; copied.
        name: for people.
        threshold: scores at or above it are harmful.
        max_chars: longest text that is read, in code points; the guard band grows with it.

    Raises:
        InvalidArgument: a threshold that is not finite, or weights that are not.
    """

    def __init__(
        self, windows: Windows, *, name: str = "windows", threshold: float = 0.0, max_chars: int = 20_000
    ) -> None:
        if not math.isfinite(threshold) or max_chars < 1:
            raise InvalidArgument("the threshold must be finite, max_chars at least 1")
        self._windows = copy.deepcopy(windows).double().eval().requires_grad_(False)
        self.name, self.threshold, self._max_chars = name, threshold, max_chars
        self.constant = _constant(self._windows)
        self.guard_band = _rounding(self._windows) * (max_chars + self._windows.width)
        self.digest = self._digest()

    def __call__(self, texts: Sequence[str]) -> list[float]:
        """One score per text."""
        return [self._score(self._evidence(text)) for text in texts]

    def edit_scores(self, text: str, budget: int) -> list[float]:
        """Lower bounds of F over texts that at most 0, 1, ..., budget edited characters make of this one.

        They are those of exact arithmetic, off by less than the guard band.
        """
        windows, evidence = self._windows, self._evidence(text)
        return lower_bounds(
            self._score(evidence),
            evidence,
            width=windows.width,
            floor=windows.floor,
            constant=self.constant,
            budget=budget,
        )

    def _evidence(self, text: str) -> list[float]:
        if len(text) > self._max_chars:
            raise TextTooLong(len(text), self._max_chars)
        windows = self._windows
        padded = windows.padded(windows.symbols(text))
        if not padded:  # windows of one symbol, and nothing to see
            return []
        with torch.inference_mode():
            evidence = windows(torch.tensor([padded], dtype=torch.int64))[0]
        found: list[float] = ((evidence / _GRID).round() * _GRID).tolist()
        return found

    def _score(self, evidence: Sequence[float]) -> float:
        return math.fsum([float(self._windows.bias), *evidence])

    def _digest(self) -> str:
        windows = self._windows
        rules = f"{windows.alphabet}|{windows.floor.hex()}|{windows.cap.hex()}|{windows.width}"
        found = hashlib.sha256(rules.encode())
        for name, tensor in windows.state_dict().items():
            found.update(f"|{name}|{tuple(tensor.shape)}|".encode())
            found.update(tensor.contiguous().numpy().tobytes())
        return found.hexdigest()


def _constant(windows: Windows) -> float:
    """What one edit changes F by, at most, from the weights that run."""
    slots, reach = [1.0], windows.floor + windows.cap
    for weight, _ in windows.weights():
        norms = [dense_norm(weight[:, :, at]).value for at in range(weight.shape[2])]
        slots = [
            up(sum(slots[at - n] * norms[n] for n in range(len(norms)) if 0 <= at - n < len(slots)))
            for at in range(len(slots) + len(norms) - 1)
        ]
    table = windows.embedding.weight.double()
    apart = max(length(a - b) for a in table for b in table)
    return up(edit_constant([up(slot * apart * reach / 4) for slot in slots], reach, max(windows.floor, windows.cap)))


def _rounding(windows: Windows) -> float:
    """How far rounding moves the evidence of a window, at most, and its share in a sum; doubled."""
    table = windows.embedding.weight
    size = max(length(row) for row in table) * math.sqrt(windows.width)
    places, error = windows.width, 0.0
    for weight, bias in windows.weights():
        places -= weight.shape[2] - 1
        flat = weight.reshape(weight.shape[0], -1)
        found = matrix(flat, bias, Place((places, flat.shape[1]), (places, flat.shape[0]), _UNIT))
        # A symbol is in as many rows of that matrix as the kernel is wide.
        spread = math.sqrt(weight.shape[2])
        error = up(found.lipschitz.value * spread * error + found.relative * spread * (size + error) + found.absolute)
        size = up(found.lipschitz.value * spread * size + found.offset)
    reach = windows.floor + windows.cap
    return up(_GRID + 2 * (reach * error / 4 + 64 * _UNIT * reach + 64 * _UNIT * max(1.0, abs(float(windows.bias)))))
