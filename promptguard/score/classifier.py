"""A transformers classifier as certifiers need it: evaluation mode, no autocast, finite logits, one score a row."""

from __future__ import annotations

import hashlib
import json
import math
from pathlib import Path
from typing import Any

import torch

from promptguard.errors import FilterError, InvalidArgument, discreetly
from promptguard.score.introspect import default_guard_band, model_digest, refuse_quantised
from promptguard.score.labels import Readout


class Classifier:
    """A model, which of its logits mean harm, and how it may be run."""

    def __init__(self, model: Any, readout: Readout, name: str | None = None) -> None:
        """Put the model into evaluation mode; it must keep its weights from then on.

        Raises:
            FilterError: the model is quantised.
        """
        refuse_quantised(model)
        self.model = model.eval()
        self.readout = readout
        self.name = name or Path(repository(model)).name or type(model).__name__

    def digest(self, **parts: object) -> str:
        """sha256 of everything that decides a score: the model, its labels and precision, and `parts`."""
        whole = {
            "model": model_digest(self.model),
            "harmful": self.readout.harmful,
            "activation": self.readout.activation,
            "dtype": str(self.model.dtype),
            **parts,
        }
        return hashlib.sha256(json.dumps(whole, sort_keys=True).encode()).hexdigest()

    def call(self, module: Any, *inputs: Any, **named: Any) -> Any:
        """The model, a part of it, or what stands for it, on a batch; what it raises comes out without its message.

        Raises:
            FilterError: it raised.
        """
        # Autocast that the caller has on would change the scores, and is another thing in another thread.
        with torch.autocast(self.model.device.type, enabled=False):
            return discreetly(f"the model of filter {self.name}", lambda: module(*inputs, **named))

    def harm(self, logits: torch.Tensor) -> torch.Tensor:
        """Logits of shape (batch, labels) to float64 harm scores in [0, 1] of shape (batch,).

        Raises:
            FilterError: a logit is not finite.
        """
        if not bool(torch.isfinite(logits).all()):
            raise FilterError(f"the model of filter {self.name} gave logits that are not finite: check its weights")
        return self.readout.harm(logits)

    def refuse_training(self) -> None:
        """Dropout makes a score random, and a model in training may have other weights than its digest says.

        Raises:
            FilterError: the model, or a part of it, is in training mode.
        """
        if any(module.training for module in self.model.modules()):
            raise FilterError(f"the model of filter {self.name} is in training mode: make a new filter when it is done")


def repository(model: Any) -> str:
    """Where a model comes from, as transformers remembers it; "" when it does not."""
    return str(getattr(model.config, "_name_or_path", "") or "")


def checked_threshold(threshold: float) -> float:
    """A threshold on probabilities.

    Raises:
        InvalidArgument: it is not in [0, 1].
    """
    if not math.isfinite(threshold):
        raise InvalidArgument(f"threshold is {threshold}; it must be a finite number")
    if not 0.0 <= threshold <= 1.0:
        raise InvalidArgument(f"threshold is {threshold}; scores are probabilities, so it must be in [0, 1]")
    return float(threshold)


def checked_band(guard_band: float | None, dtype: torch.dtype) -> float:
    """A guard band; None gives the one measured for `dtype`.

    Raises:
        InvalidArgument: it is negative or not finite, or none is known for `dtype`.
    """
    if guard_band is None:
        return default_guard_band(dtype)
    if not math.isfinite(guard_band):
        raise InvalidArgument(f"guard_band is {guard_band}; it must be a finite number")
    if guard_band < 0:
        raise InvalidArgument("guard_band must be at least 0")
    return float(guard_band)


def checked_batch(batch_tokens: int | None, device: str) -> int:
    """Tokens in one forward pass. Small batches stay in a CPU's cache (478 texts: 1.2 s at 2048, 1.8 s at 16384).

    Raises:
        InvalidArgument: it is below 1.
    """
    if batch_tokens is None:
        return 2048 if device == "cpu" else 16384
    if batch_tokens < 1:
        raise InvalidArgument("batch_tokens must be at least 1")
    return batch_tokens
