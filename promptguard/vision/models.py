"""Base classifiers as smoothing needs them: batches of images in [0, 1] to logits, all preprocessing inside.

Noise is added to the image before any preprocessing, so sigma and the radius are in the units of the image, in training
as in certification. (With the preprocessing outside, the same sigma means another noise on either side.)
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from promptguard.errors import InvalidArgument


class Normalised(nn.Module):
    """A model behind the normalisation of its inputs, channel by channel: f((x - mean) / std).

    Args:
        model: takes batches of shape (count, channels, ...).
        mean: one number per channel.
        std: one number above 0 per channel.

    Raises:
        InvalidArgument: the numbers do not fit.
    """

    mean: torch.Tensor
    std: torch.Tensor

    def __init__(self, model: nn.Module, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        if len(mean) != len(std) or not mean or not all(s > 0 for s in std):
            raise InvalidArgument("a normalisation needs as many means as standard deviations, these above 0")
        self.model = model
        self.register_buffer("mean", torch.tensor(mean, dtype=torch.float32))
        self.register_buffer("std", torch.tensor(std, dtype=torch.float32))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Logits."""
        shape = (-1, *[1] * (x.ndim - 2))
        found: torch.Tensor = self.model((x - self.mean.reshape(shape)) / self.std.reshape(shape))
        return found


class PretrainedClassifier(nn.Module):
    """An `AutoModelForImageClassification` of transformers as a base classifier of images in [0, 1].

    The image is resized (bilinear) and normalised inside, so a certificate speaks of the image at its own resolution.

    Args:
        model: takes `pixel_values`, answers with `.logits`.
        processor: its image processor, with `image_mean` and `image_std`.
        size: height and width that the model reads; None leaves images as they are.

    Raises:
        InvalidArgument: the processor's numbers do not fit.
    """

    def __init__(self, model: nn.Module, processor: Any, size: tuple[int, int] | None = None) -> None:
        super().__init__()
        self._classifier = Normalised(_Logits(model), processor.image_mean, processor.image_std)
        self._size = size

    def extra_repr(self) -> str:
        """The size that is read: part of what the model is."""
        return f"size={self._size!r}"

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Logits of images (count, channels, height, width)."""
        if self._size is not None and tuple(x.shape[-2:]) != self._size:
            x = functional.interpolate(x, self._size, mode="bilinear", align_corners=False, antialias=True)
        found: torch.Tensor = self._classifier(x)
        return found


class _Logits(nn.Module):
    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        found: torch.Tensor = self.model(pixel_values=x).logits
        return found


class Ensemble(nn.Module):
    """The average of the members' logits (Horvath et al. 2022, *Boosting Randomized Smoothing*, section 4).

    Averaging lowers the variance of the vote under noise, so the same certificate comes from fewer votes, or a larger
    one from as many. It is one base classifier: nothing changes in the proof.

    Args:
        members: classifiers of the same classes.

    Raises:
        InvalidArgument: no member.
    """

    def __init__(self, members: Sequence[nn.Module]) -> None:
        super().__init__()
        if not members:
            raise InvalidArgument("an ensemble needs at least one member")
        self.members = nn.ModuleList(members)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Logits."""
        return torch.stack([member(x) for member in self.members]).mean(0)


class Consensus(nn.Module):
    """An ensemble whose later members are asked only where the first k disagree (Horvath et al. 2022, section 5).

    A deterministic function of each image, so one base classifier. The class of an image on which k members agree is
    theirs; its logits are the average of these k.

    Args:
        members: classifiers of the same classes.
        k: members asked first, from 1 to all of them.

    Raises:
        InvalidArgument: k means nothing.
    """

    def __init__(self, members: Sequence[nn.Module], k: int) -> None:
        super().__init__()
        if not 1 <= k <= len(members):
            raise InvalidArgument("k must be from 1 to the number of members")
        self.members = nn.ModuleList(members)
        self._k = k

    def extra_repr(self) -> str:
        """How many are asked first: part of what the model is."""
        return f"k={self._k!r}"

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Logits."""
        found = [member(x) for member in list(self.members)[: self._k]]
        votes = torch.stack([logits.argmax(1) for logits in found])
        logits = torch.stack(found).mean(0)
        apart = (votes != votes[0]).any(0)
        if len(self.members) > self._k and bool(apart.any()):
            late = torch.stack([member(x[apart]) for member in list(self.members)[self._k :]]).sum(0)
            whole = (torch.stack([one[apart] for one in found]).sum(0) + late) / len(self.members)
            logits = logits.index_put((apart.nonzero(as_tuple=True)[0],), whole)
        return logits
