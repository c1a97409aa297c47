"""Which label of a published classifier means harm: one table.

Labels are matched by their names. Checkpoints whose labels are only called LABEL_0 and LABEL_1 are matched by the name
of their repository or by an explicit `family=`; a position is never guessed.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

from promptguard.errors import LabelError, UnknownName

_GENERIC = re.compile(r"label_\d+")


class Activation(StrEnum):
    """How logits become probabilities."""

    SOFTMAX = "softmax"
    SIGMOID = "sigmoid"


@dataclass(frozen=True, slots=True)
class Family:
    """A kind of classifier that many checkpoints share.

    Attributes:
        name: what `family=` accepts.
        labels: all its labels, in lower case; empty when its checkpoints have generic labels only.
        harmful: those of `labels` that mean harm.
        activation: softmax when the labels exclude each other, sigmoid when several may hold.
        source: where the meaning of the labels is written.
        repository: for checkpoints with generic labels, the last part of the repository's name as a pattern.
        size: for these, the number of labels.
        positions: for these, the indices of the harmful ones.
    """

    name: str
    labels: frozenset[str]
    harmful: frozenset[str]
    activation: Activation
    source: str
    repository: str | None = None
    size: int = 0
    positions: tuple[int, ...] = ()

    def indices(self, labels: Sequence[str]) -> tuple[int, ...] | None:
        """Indices of the harmful ones of a model's labels, or None if this family has other labels."""
        folded = [label.casefold() for label in labels]
        if self.labels and len(folded) == len(self.labels) and frozenset(folded) == self.labels:
            return tuple(i for i, label in enumerate(folded) if label in self.harmful)
        if len(folded) == self.size and is_generic(folded):
            return self.positions
        return None

    def matches(self, labels: Sequence[str], repository: str) -> bool:
        """Whether a model with these labels, from the repository (or folder) of this name, is one of the family."""
        if self.indices(labels) is None:
            return False
        if not is_generic(labels):
            return True
        tail = repository.replace("\\", "/").rstrip("/").rpartition("/")[2]
        return self.repository is not None and re.fullmatch(self.repository, tail, re.IGNORECASE) is not None


_TOXIC = frozenset({"toxic", "severe_toxic", "obscene", "threat", "insult", "identity_hate"})

FAMILIES: tuple[Family, ...] = (
    Family(
        name="promptguard",
        labels=frozenset({"safe", "harmful"}),
        harmful=frozenset({"harmful"}),
        activation=Activation.SOFTMAX,
        source="the bundled filters of this project",
    ),
    Family(
        name="kumar-distilbert",
        labels=frozenset(),
        harmful=frozenset(),
        activation=Activation.SOFTMAX,
        source="Kumar et al., Certifying LLM Safety against Adversarial Prompting: class 0 is harmful, class 1 safe",
        repository=r"kumar-distilbert.*",
        size=2,
        positions=(0,),
    ),
    Family(
        name="llama-prompt-guard-2",
        labels=frozenset({"benign", "malicious"}),
        harmful=frozenset({"malicious"}),
        activation=Activation.SOFTMAX,
        source="model card of meta-llama/Llama-Prompt-Guard-2-86M and -22M",
        repository=r"llama-prompt-guard-2-(22|86)m",
        size=2,
        positions=(1,),
    ),
    Family(
        name="prompt-guard-1",
        labels=frozenset({"benign", "injection", "jailbreak"}),
        harmful=frozenset({"injection", "jailbreak"}),
        activation=Activation.SOFTMAX,
        source="model card of meta-llama/Prompt-Guard-86M",
    ),
    Family(
        name="protectai-injection",
        labels=frozenset({"safe", "injection"}),
        harmful=frozenset({"injection"}),
        activation=Activation.SOFTMAX,
        source="model card of protectai/deberta-v3-base-prompt-injection-v2",
    ),
    Family(
        name="toxic-bert",
        labels=_TOXIC,
        harmful=_TOXIC,
        activation=Activation.SIGMOID,
        source="model card of unitary/toxic-bert: multi-label, any of the six is harm",
    ),
)


def is_generic(labels: Sequence[str]) -> bool:
    """Whether the labels say nothing: LABEL_0, LABEL_1, ..."""
    return all(_GENERIC.fullmatch(label.casefold()) for label in labels)


def find(labels: Sequence[str], *, family: str | None, repository: str) -> Family | None:
    """The family of a model, or None if the table has none.

    Args:
        labels: the model's labels in index order.
        family: a name that the caller vouches for, or None to look by labels and repository.
        repository: the model's repository or folder.

    Raises:
        UnknownName: no family is called `family`.
        LabelError: the model cannot be of the family that the caller named.
    """
    if family is None:
        return next((known for known in FAMILIES if known.matches(labels, repository)), None)
    for known in FAMILIES:
        if known.name == family:
            if known.indices(labels) is None:
                raise LabelError(f"the labels {list(labels)} are not those of family {family!r}: name the label=")
            return known
    raise UnknownName(f"unknown family {family!r}: known are {', '.join(known.name for known in FAMILIES)}")
