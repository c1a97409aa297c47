"""Noise on images, and a model's logits under it. One class per kind; all draw fresh noise for every image.

* `Gaussian` adds N(0, sigma^2 I) in float32. The theorem is about real numbers. A base classifier that reads the last
  bits of its input can tell which image a rounded sum came from, and gets false certificates (Voracek and Hein 2022).
* `GridGaussian` closes that gap. Images are whole numbers k of `levels` steps, and so is the noise, round(N(0, s^2)).
  As round(k + e) = k + round(e), the smoothed classifier is that of z -> f(round(z)) under the real Gaussian, for which
  the theorem holds; no sum is ever rounded. The noise is drawn by comparing uniform 53-bit integers with integer
  thresholds. The distance between the law that results and the ideal one is bounded, and taken off as `slack`. A
  tensor of floats holds k / levels only rounded, so its steps may be shorter than the grid's: `shrink`.
* `LinearGaussian` is for models that begin with a linear layer: W (x + e) + b = (W x + b) + W e, and W e is Gaussian
  itself. With the QR factors of W^T it is R^T u, u ~ N(0, sigma^2 I) of dimension rank, so that W x + b is computed
  once and noise is drawn in the layer's dimension. (Noise responses that are computed once and used for several images
  would be cheaper still, but correlate their certificates, and whoever learns them can choose images for which they
  mislead; nothing is reused here.)
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Protocol, TypeAlias

import numpy as np
import numpy.typing as npt
import torch
from scipy.special import ndtr
from torch import nn

from promptguard.errors import InvalidArgument

Which: TypeAlias = npt.NDArray[np.int64]
Draw: TypeAlias = Callable[[Which, int, torch.Generator], torch.Tensor]
_BITS = 53
_TAIL = 9.0  # standard deviations; what is beyond is counted in the slack
_RANGE = 4  # images on the grid are within this far of 0
_EXACT = {torch.float32, torch.float64}  # in half precision a step may differ from the grid's by far
_SHRINK_ERROR = 2.0**-30  # more than the error of computing `shrink`
_CDF_ERROR = 8.0  # units of 2^-53 per threshold: the error of ndtr, and of rounding to an integer


class Noise(Protocol):
    """A kind of noise.

    Attributes:
        sigma: standard deviation, in the units of the image.
    """

    @property
    def sigma(self) -> float:
        """Standard deviation, in the units of the image."""
        ...

    @property
    def shrink(self) -> float:
        """At most 1: images at a distance r, as the tensors they are given as, are within r / shrink for the noise."""
        ...

    @property
    def assumes(self) -> str:
        """What it is, and which images it is for, in words."""
        ...

    def slack(self, pixels: int) -> float:
        """Total variation between what is drawn for an image of so many numbers and what the theorem speaks of."""
        ...

    def logits(self, model: nn.Module, images: torch.Tensor) -> Draw:
        """What the model says of noised images: a function of which of them, how many copies of each, and a generator.

        It gives logits (which * copies, classes), the copies of an image together, each with noise of its own.

        Raises:
            InvalidArgument: these are no images, or the model is none, that this noise is for.
        """
        ...


def _checked(sigma: float) -> float:
    if not 0 < sigma < math.inf:
        raise InvalidArgument(f"sigma must be a finite number above 0, not {sigma!r}")
    return float(sigma)


def placed(model: nn.Module, images: torch.Tensor) -> tuple[torch.Tensor, torch.dtype]:
    """The images in float32 where the model is, and the type that the model reads.

    Raises:
        InvalidArgument: they are no floating-point numbers, or not finite.
    """
    if not images.is_floating_point() or not images.numel() or not bool(torch.isfinite(images).all()):
        raise InvalidArgument("an image is a tensor of finite floating-point numbers, without a batch dimension")
    like = next(model.parameters(), images)
    return images.to(like.device, torch.float32), like.dtype


class Gaussian:
    """e ~ N(0, sigma^2 I), added to the image in float32.

    Args:
        sigma: in the units of the image.

    Raises:
        InvalidArgument: sigma means nothing.
    """

    assumes = "Gaussian noise in float32, as if drawn and added in real numbers"
    shrink = 1.0

    def __init__(self, sigma: float) -> None:
        self.sigma = _checked(sigma)

    def slack(self, pixels: int) -> float:
        """None that is counted: see `assumes`."""
        del pixels
        return 0.0

    def logits(self, model: nn.Module, images: torch.Tensor) -> Draw:
        """Logits of x + e."""
        placed_, dtype = placed(model, images)

        def draw(which: Which, copies: int, generator: torch.Generator) -> torch.Tensor:
            batch = torch.empty(len(which), copies, *images.shape[1:], device=placed_.device)
            batch.normal_(0.0, self.sigma, generator=generator).add_(placed_[which].unsqueeze(1))
            found: torch.Tensor = model(batch.flatten(0, 1).to(dtype))
            return found

        return draw


class GridGaussian:
    """Z = round(N(0, (sigma levels)^2)) steps of 1 / levels, on images that are whole numbers of steps.

    Args:
        sigma: in the units of the image.
        levels: steps from 0 to 1: 255 for images of 8 bits.

    Raises:
        InvalidArgument: sigma or levels means nothing.
    """

    def __init__(self, sigma: float, levels: int = 255) -> None:
        self.sigma = _checked(sigma)
        if isinstance(levels, bool) or not isinstance(levels, int) or not 1 <= levels <= 2**16:
            raise InvalidArgument(f"levels must be a whole number from 1 to 65536, not {levels!r}")
        self.levels = levels
        scale = self.sigma * levels
        self._most = math.ceil(_TAIL * scale) + 1
        steps = torch.arange(-self._most, self._most, dtype=torch.float64).numpy()
        # P[Z <= z] = Phi((z + 1/2) / scale), as integers: a uniform U is below the z-th with that chance.
        self._thresholds = torch.from_numpy((ndtr((steps + 0.5) / scale) * 2.0**_BITS).astype("int64"))
        self.shrink = _shrink(levels)
        self._each = len(steps) * _CDF_ERROR * 2.0**-_BITS + 2 * float(ndtr(-_TAIL))

    @property
    def assumes(self) -> str:
        """What it is."""
        return (
            f"integer noise on the grid of 1/{self.levels}, exact but for a distance that is taken off; "
            f"images off the grid, beyond {_RANGE} or in half precision are refused"
        )

    def slack(self, pixels: int) -> float:
        """At most the sum of the errors of all thresholds, and the tails, for each pixel."""
        return pixels * self._each

    def logits(self, model: nn.Module, images: torch.Tensor) -> Draw:
        """Logits of (k + Z) / levels for images k / levels of floats, or k itself as integers."""
        whole = self._whole(images)
        like = next(model.parameters(), torch.empty(0))
        whole, thresholds = whole.to(like.device), self._thresholds.to(like.device)

        def draw(which: Which, copies: int, generator: torch.Generator) -> torch.Tensor:
            steps = self._steps(thresholds, (len(which), copies, *whole.shape[1:]), generator)
            steps.add_(whole[which].unsqueeze(1))
            found: torch.Tensor = model((steps.flatten(0, 1) / self.levels).to(like.dtype))
            return found

        return draw

    def _steps(self, thresholds: torch.Tensor, shape: tuple[int, ...], generator: torch.Generator) -> torch.Tensor:
        uniform = torch.randint(2**_BITS, shape, generator=generator, device=thresholds.device)
        return torch.bucketize(uniform, thresholds, right=True) - self._most

    def _whole(self, x: torch.Tensor) -> torch.Tensor:
        whole = self._steps_of(x) if x.is_floating_point() or x.is_complex() else x.to(torch.int64)
        most = _RANGE * self.levels
        if not bool(((whole >= -most) & (whole <= most)).all()):
            raise InvalidArgument(f"exact noise needs an image of numbers from -{_RANGE} to {_RANGE}")
        return whole

    def _steps_of(self, x: torch.Tensor) -> torch.Tensor:
        if x.dtype not in _EXACT:
            raise InvalidArgument("exact noise needs an image in float32, float64 or integers")
        if not bool(torch.isfinite(x).all()):
            raise InvalidArgument("an image is a tensor of finite numbers, without a batch dimension")
        whole = torch.round(x.double() * self.levels)
        if not torch.equal((whole / self.levels).to(x.dtype), x):
            raise InvalidArgument(f"exact noise needs an image of whole numbers of 1/{self.levels}: round it first")
        return whole.to(torch.int64)


def _shrink(levels: int) -> float:
    """The least that a step between two images may be of 1 / levels, whichever types hold them, rounded down.

    If no k / levels is stored further than E steps from its place, two that are n >= 1 steps apart are stored at least
    n - 2 E >= (1 - 2 E) n steps apart. float32 is the coarsest type that is taken.
    """
    steps = torch.arange(_RANGE * levels + 1, dtype=torch.float64)
    most = float(((steps / levels).float().double() * levels - steps).abs().max())
    return 1 - 2 * most - _SHRINK_ERROR


class LinearGaussian:
    """N(0, sigma^2 I) on the image of a model that begins with a linear layer, drawn behind that layer.

    Args:
        sigma: in the units of the image.

    Raises:
        InvalidArgument: sigma means nothing.
    """

    assumes = "Gaussian noise, drawn as the first layer's response to it, as if in real numbers"
    shrink = 1.0

    def __init__(self, sigma: float) -> None:
        self.sigma = _checked(sigma)
        self._weight: torch.Tensor | None = None
        self._factor = torch.empty(0)

    def slack(self, pixels: int) -> float:
        """None that is counted: see `assumes`."""
        del pixels
        return 0.0

    def logits(self, model: nn.Module, images: torch.Tensor) -> Draw:
        """Logits of x + e, for `torch.nn.Sequential` models of an optional Flatten, a Linear layer and a rest."""
        first, rest = _split(model, images.ndim - 1)
        placed_, dtype = placed(model, images)
        with torch.inference_mode():
            base = first(placed_.flatten(1).to(dtype))
            factor = self._factor_of(first.weight)

        def draw(which: Which, copies: int, generator: torch.Generator) -> torch.Tensor:
            noise = torch.empty(len(which), copies, factor.shape[0], device=base.device, dtype=dtype)
            noise.normal_(0.0, self.sigma, generator=generator)
            found: torch.Tensor = rest((noise @ factor).add_(base[which].unsqueeze(1)).flatten(0, 1))
            return found

        return draw

    def _factor_of(self, weight: torch.Tensor) -> torch.Tensor:
        """R with W e ~ R^T u; compared with the weights themselves each time, which may have been written to."""
        if self._weight is None or self._weight.shape != weight.shape or not torch.equal(self._weight, weight):
            self._weight = weight.detach().clone()
            if weight.shape[0] < weight.shape[1]:
                self._factor = torch.linalg.qr(self._weight.double().T, mode="r").R.to(weight.dtype)
            else:  # the layer widens: its input is the smaller side
                self._factor = self._weight.T.contiguous()
        return self._factor


def _split(model: nn.Module, dimensions: int) -> tuple[nn.Linear, nn.Module]:
    """The first layer and the rest, if what runs is sure to be W x + b of the flat image, and then the rest."""
    layers = list(model) if type(model) is nn.Sequential and _is_plain(model) else []
    flat = dimensions == 1
    if layers and type(layers[0]) is nn.Flatten and _is_plain(layers[0]):
        flat = (layers[0].start_dim, layers[0].end_dim) == (1, -1)
        layers = layers[1:]
    if not flat or not layers or type(first := layers[0]) is not nn.Linear or not _is_plain(first):
        raise InvalidArgument(
            "this noise needs a torch.nn.Sequential that begins with Linear, for flat images, or Flatten and Linear; "
            "none of them a subclass, or with hooks or parametrisations"
        )
    return first, nn.Sequential(*layers[1:])


def _is_plain(module: nn.Module) -> bool:
    """Whether nothing but the forward of its class runs."""
    return not module._forward_hooks and not module._forward_pre_hooks and "forward" not in vars(module)
