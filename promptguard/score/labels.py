"""From a classifier's labels to one harm score: which logits count, and how."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from promptguard.errors import InvalidArgument, LabelError
from promptguard.score import families
from promptguard.score.families import Activation, Family

LabelChoice = str | int | Sequence[str | int]


@dataclass(frozen=True, slots=True)
class Readout:
    """How a row of logits becomes one harm score in [0, 1].

    Softmax: the sum of the probabilities of the harmful labels. Sigmoid: the largest of them.

    Attributes:
        harmful: indices of the harmful labels, ascending.
        activation: softmax or sigmoid.
    """

    harmful: tuple[int, ...]
    activation: Activation

    def harm(self, logits: torch.Tensor) -> torch.Tensor:
        """Finite logits of shape (batch, labels) to float64 harm scores in [0, 1] of shape (batch,)."""
        exact = logits.cpu().double()
        if self.activation is Activation.SIGMOID:
            return torch.sigmoid(exact[:, self.harmful]).amax(dim=1)
        return torch.softmax(exact, dim=1)[:, self.harmful].sum(dim=1)


def readout(
    config: Any,
    *,
    label: LabelChoice | None = None,
    activation: Activation | str | None = None,
    family: str | None = None,
    repository: str = "",
) -> Readout:
    """Decide which labels of a classifier mean harm.

    Args:
        config: the configuration of a transformers sequence classifier (`id2label`, `num_labels`, `problem_type`).
        label: harmful label(s) by name or index; None asks the table of families.
        activation: "softmax" or "sigmoid"; None asks the family, then `problem_type`.
        family: a family that the caller vouches for.
        repository: where the model comes from, for families with generic labels.

    Raises:
        LabelError: a label is not the model's, or none was given and the model belongs to no known family.
        InvalidArgument: `activation` is neither.
    """
    labels = [str(config.id2label.get(i, f"LABEL_{i}")) for i in range(config.num_labels)]
    known = families.find(labels, family=family, repository=repository)
    if label is not None:
        harmful = indices(label, labels)
    elif known is not None:
        harmful = known.indices(labels) or ()
    else:
        raise LabelError(f"say which label is harmful with label=: the model has {_listed(labels)}")
    chosen = _activation(activation, known, config)
    if chosen is Activation.SOFTMAX and len(harmful) == len(labels):
        raise LabelError(f"with every label harmful the score is always 1: the model has {_listed(labels)}")
    return Readout(harmful, chosen)


def indices(label: LabelChoice, labels: Sequence[str]) -> tuple[int, ...]:
    """The indices of labels that are given by name or index, sorted.

    Raises:
        LabelError: one is not the model's, or there is none.
    """
    many = [label] if isinstance(label, str | int) else list(label)
    if not many:
        raise LabelError(f"label= is empty: the model has {_listed(labels)}")
    return tuple(sorted({_index(one, labels) for one in many}))


def _index(label: str | int, labels: Sequence[str]) -> int:
    if isinstance(label, str):
        exact = [i for i, name in enumerate(labels) if name == label]
        same = exact or [i for i, name in enumerate(labels) if name.casefold() == label.casefold()]
        if len(same) == 1:
            return same[0]
        # A command line can only say "1".
        label = int(label) if not same and label.isascii() and label.isdigit() else -1
    if isinstance(label, bool) or not isinstance(label, int) or not 0 <= label < len(labels):
        raise LabelError(f"no single label of the model is the one asked for: it has {_listed(labels)}")
    return label


def _activation(activation: Activation | str | None, known: Family | None, config: Any) -> Activation:
    if activation is not None:
        if activation not in tuple(Activation):
            raise InvalidArgument(f"unknown activation {activation!r}: softmax or sigmoid")
        return Activation(activation)
    if known is not None:
        return known.activation
    problem = getattr(config, "problem_type", None)
    if problem == "multi_label_classification":
        return Activation.SIGMOID
    if problem == "regression" or config.num_labels == 1:
        raise LabelError("the model has a single or unbounded output: say activation='sigmoid' if it is a logit")
    return Activation.SOFTMAX


def _listed(labels: Sequence[str]) -> str:
    return ", ".join(f"{i}: {name!r}" for i, name in enumerate(labels))
