"""Training of `Windows` for certified edits: the bound that will be certified is what is trained."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch.nn import functional

from promptguard.errors import InvalidArgument
from promptguard.lipschitz.text import Windows


@dataclass(frozen=True, slots=True)
class TextRecipe:
    """How to train.

    Attributes:
        edits: that harmful texts are to stand.
        margin: that safe texts are kept below zero.
        epochs: passes over the texts.
        batch: texts a step.
        rate: the largest learning rate of Adam's one cycle.
        safe_weight: how much more a safe text counts than a harmful one.
    """

    edits: int = 3
    margin: float = 1.0
    epochs: int = 10
    batch: int = 32
    rate: float = 0.01
    safe_weight: float = 1.0


def fit_windows(
    windows: Windows, texts: Sequence[str], harmful: Sequence[bool], recipe: TextRecipe, generator: torch.Generator
) -> Windows:
    """Train in place, with batches of texts of about the same length.

    Args:
        windows: to train.
        texts: none of them blank.
        harmful: a label for each.
        recipe: how.
        generator: of the order of the batches.

    Returns:
        The same windows, in eval mode.

    Raises:
        InvalidArgument: no texts, or not one label for each.
    """
    if not texts or len(texts) != len(harmful):
        raise InvalidArgument("training needs texts, and one label for each")
    rows = [windows.symbols(text) for text in texts]
    order = sorted(range(len(rows)), key=lambda at: len(rows[at]))
    batches = [order[start : start + recipe.batch] for start in range(0, len(order), recipe.batch)]
    windows.train()
    adam = torch.optim.Adam(windows.parameters(), lr=recipe.rate)
    total = recipe.epochs * len(batches) + 1
    cycle = torch.optim.lr_scheduler.OneCycleLR(adam, recipe.rate, total_steps=total)
    for _ in range(recipe.epochs):
        for at in torch.randperm(len(batches), generator=generator).tolist():
            labels = torch.tensor([harmful[index] for index in batches[at]])
            loss = _loss(windows, [rows[index] for index in batches[at]], labels, recipe)
            adam.zero_grad()
            torch.autograd.backward(loss)
            adam.step()
            cycle.step()
    return windows.eval()


def _loss(windows: Windows, rows: list[list[int]], harmful: torch.Tensor, recipe: TextRecipe) -> torch.Tensor:
    """Logistic loss on the bound after edits for harmful texts, on the score plus a margin for safe ones."""
    padded = [torch.tensor(windows.padded(row)) for row in rows]
    evidence = windows(torch.nn.utils.rnn.pad_sequence(padded, batch_first=True))
    lengths = torch.tensor([len(row) for row in rows])
    inside = torch.arange(evidence.shape[1]) < (lengths + windows.width - 1)[:, None]
    evidence = evidence * inside
    scores = windows.bias + evidence.sum(1)
    # The worst runs on a fixed grid, a little less than the worst of all: good enough to train with.
    runs = functional.avg_pool1d(evidence.relu(), windows.width, ceil_mode=True, count_include_pad=False)
    worst = (runs * windows.width).topk(min(recipe.edits, runs.shape[1]), 1).values.sum(1)
    bounds = scores - worst - recipe.edits * windows.width * windows.floor
    losses = torch.where(
        harmful, functional.softplus(-bounds), recipe.safe_weight * functional.softplus(scores + recipe.margin)
    )
    return losses.mean()
