"""Votes of a base classifier on noised images: counted as they are drawn, in batches of bounded size.

A vote counts for a class only if its logit leads all others by more than the guard band: logits move with the
composition of a batch in float32, and such a vote is cast in every batch. The others are counted as unsure, and stand
against whatever class is asked about.
"""

from __future__ import annotations

import hashlib
import itertools
import math
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from torch import nn

from promptguard.errors import FilterError, InvalidArgument, discreetly
from promptguard.stats.sequential import Counts
from promptguard.vision.noise import Draw, Noise, Which

_PROBES = 4


@dataclass(frozen=True, slots=True, eq=False)
class Tally:
    """Votes on one image.

    Attributes:
        counts: sure votes by class.
        trials: all votes.
    """

    counts: Counts
    trials: int

    @property
    def unsure(self) -> int:
        """Votes that another batch might give to another class."""
        return self.trials - int(self.counts.sum())


def check_eval(model: nn.Module) -> None:
    """Refuse a model of which any part is in training mode: its answer would depend on chance or on the batch.

    Raises:
        InvalidArgument: it is.
    """
    if any(module.training for module in model.modules()):
        raise InvalidArgument("the model, or a part of it, is in training mode: call model.eval()")


class Voter:
    """Draws votes of a model under noise.

    Args:
        model: batches of images to logits (count, classes); in eval mode.
        noise: what is added.
        harmful: classes that are merged into one; the others into another. Votes are then of 0 (safe) and 1 (harmful).
        batch_size: noised images per call of the model: what bounds memory.
        guard_band: how far logits may move with the composition of a batch.
    """

    def __init__(
        self, model: nn.Module, noise: Noise, *, harmful: Collection[int] | None, batch_size: int, guard_band: float
    ) -> None:
        self._model, self._noise = model, noise
        self._harmful = None if harmful is None else sorted(harmful)
        self._batch_size, self._band = batch_size, guard_band
        self._probed: set[tuple[int, ...]] = set()

    def of(self, images: torch.Tensor) -> Draw:
        """What the model says of noised versions of images (count, ...).

        Raises:
            InvalidArgument: they are no images for this noise, or the model is in training mode.
            FilterError: the model raised, or its answers depend on the batch, beyond the guard band.
        """
        check_eval(self._model)
        draw = self._noise.logits(self._model, images)
        if tuple(images.shape[1:]) not in self._probed:
            self._probe(images[0])
            self._probed.add(tuple(images.shape[1:]))
        return draw

    def count(self, draw: Draw, which: Which, trials: int, generator: torch.Generator) -> Counts:
        """Draw so many votes on each of some images.

        Returns:
            Sure votes by image and class, (which, classes).

        Raises:
            FilterError: the model raised, or answered with anything but finite logits, a row per image.
        """
        together = max(1, self._batch_size // trials)
        with torch.inference_mode():
            found = [
                sum(self._batches(draw, which[start : start + together], trials, generator))
                for start in range(0, len(which), together)
            ]
        return np.concatenate(found)

    def _batches(self, draw: Draw, which: Which, trials: int, generator: torch.Generator) -> Iterator[Counts]:
        for start in range(0, trials, self._batch_size):
            size = min(self._batch_size, trials - start)
            logits = discreetly("the model", partial(draw, which, size, generator))
            yield self._votes(self._grouped(logits, len(which) * size), len(which))

    def _grouped(self, logits: torch.Tensor, size: int) -> torch.Tensor:
        if logits.ndim != 2 or logits.shape[0] != size or logits.shape[1] < 2:
            raise FilterError(f"the model gave logits of shape {tuple(logits.shape)}, not ({size}, 2 classes or more)")
        if not math.isfinite(float(logits.sum())):
            raise FilterError("the model gave logits that are not finite")
        if self._harmful is None:
            return logits
        if self._harmful[-1] >= logits.shape[1]:
            raise InvalidArgument(f"class {self._harmful[-1]} is harmful, but the model has {logits.shape[1]} classes")
        inside = torch.zeros(logits.shape[1], dtype=torch.bool, device=logits.device)
        inside[self._harmful] = True
        # The largest logit of each group: its argmax is the group of the argmax.
        return torch.stack([logits[:, ~inside].amax(1), logits[:, inside].amax(1)], 1)

    def _votes(self, logits: torch.Tensor, images: int) -> Counts:
        leading = logits >= logits.amax(1, keepdim=True) - self._band
        found: Counts = leading.reshape(images, -1, logits.shape[1]).sum(1).cpu().numpy()
        if int(found.sum()) > len(logits):  # in some row more than one logit leads
            sure = leading & (leading.sum(1, keepdim=True) == 1)
            found = sure.reshape(images, -1, logits.shape[1]).sum(1).cpu().numpy()
        return found

    def _probe(self, x: torch.Tensor) -> None:
        """The same images alone and together must get the same logits, up to the guard band."""
        like = next(self._model.parameters(), torch.empty(0))
        image = x.detach().to("cpu", torch.float32)
        shades = torch.linspace(0.5, 1.0, _PROBES).reshape(-1, *[1] * x.ndim)
        batch = (shades * image / max(1.0, float(image.abs().max()))).to(like.device, like.dtype)
        with torch.inference_mode():
            together = discreetly("the model", lambda: self._model(batch))
            alone = discreetly("the model", lambda: torch.cat([self._model(one[None]) for one in batch]))
        if together.shape != alone.shape or not float((together - alone).abs().max()) <= self._band:
            raise FilterError(
                "the model's logits depend on the batch or on chance, by more than the guard band: use no batch "
                "statistics and no dropout, or raise guard_band if it is rounding"
            )


def structure(model: nn.Module) -> str:
    """What a model is besides its numbers: `repr(model)`, and the class and the `config`, if any, of each part."""
    parts = [
        f"{name}: {type(part)!r} {getattr(part, 'config', None)!r}"
        for name, part in model.named_modules(remove_duplicate=False)
    ]
    return "\n".join([repr(model), *parts])


def digest(model: nn.Module) -> str:
    """Identity of a model: SHA-256 of its `structure` and of the name, type, shape and bytes of all tensors it has.

    A constant that is neither a registered tensor nor in `extra_repr` or `config` is not seen.
    """
    found = hashlib.sha256(structure(model).encode())
    tensors: list[tuple[str, torch.Tensor]] = [
        *model.named_parameters(remove_duplicate=False),
        *model.named_buffers(remove_duplicate=False),
    ]
    for name, tensor in sorted(tensors, key=lambda item: item[0]):
        found.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        found.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return found.hexdigest()


def version(model: nn.Module) -> tuple[str, *tuple[int, ...]]:
    """The structure, and a number for each weight that changes when it is written to; cheap to compare."""
    tensors = itertools.chain(model.parameters(), model.buffers())
    numbers = (n for t in tensors for n in (t.data_ptr(), 0 if t.is_inference() else t._version))
    return structure(model), *numbers
