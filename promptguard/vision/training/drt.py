"""Diversity-regularised training of ensembles (Yang et al. 2022): large margins, and gradients that do not align."""

from __future__ import annotations

from itertools import combinations

import torch
from torch import nn

from promptguard.errors import InvalidArgument
from promptguard.vision.models import Ensemble
from promptguard.vision.training.recipe import check_recipe, copies_loss, noise_for


class DiversityRegularised:
    """Each member's cross-entropy on noised images, a diversity and a margin term over all pairs (their section 3.2).

    With m_i the logit of the label minus the largest other one of member i: diversity is |grad m_i + grad m_j|_2, which
    is small where no direction lowers both margins; the margin term is -(m_i + m_j).

    Args:
        sigma: of the noise.
        diversity: weight of the first term.
        margin: weight of the second.

    Raises:
        InvalidArgument: a setting that means nothing.
    """

    def __init__(self, sigma: float, diversity: float = 0.2, margin: float = 0.2) -> None:
        check_recipe(sigma, 1, diversity, margin)
        self._sigma, self._diversity, self._margin = sigma, diversity, margin

    def loss(
        self, model: nn.Module, images: torch.Tensor, labels: torch.Tensor, generator: torch.Generator
    ) -> torch.Tensor:
        """See `Recipe`.

        Raises:
            InvalidArgument: the model is no `Ensemble`.
        """
        if not isinstance(model, Ensemble):
            raise InvalidArgument("diversity is a term of ensembles: train an Ensemble")
        noised = (images + noise_for(images, self._sigma, 1, generator)[0]).requires_grad_(True)
        logits = [member(noised) for member in model.members]
        fit = torch.stack([copies_loss(found[None], labels) for found in logits]).mean()
        diversity, margin = self.terms(noised, [margins(found, labels) for found in logits])
        return fit + self._diversity * diversity - self._margin * margin

    @staticmethod
    def terms(noised: torch.Tensor, found: list[torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
        """Mean over pairs of members that are both right: the norm of the sum of gradients, and the sum of margins.

        Args:
            noised: images that need a gradient.
            found: each member's margins, (count,).
        """
        slopes = [torch.autograd.grad(m.sum(), noised, create_graph=True)[0].flatten(1) for m in found]
        zero = noised.new_zeros(())
        diversity = margin = zero
        pairs = list(combinations(range(len(found)), 2))
        for i, j in pairs:
            right = ((found[i] > 0) & (found[j] > 0)).to(noised.dtype)
            apart = (slopes[i] + slopes[j]).square().sum(1).add(1e-12).sqrt()
            diversity = diversity + (right * apart).mean() / len(pairs)
            margin = margin + (right * (found[i] + found[j])).mean() / len(pairs)
        return diversity, margin


def margins(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """The logit of the label minus the largest other one, per image."""
    mine = logits.gather(1, labels[:, None]).squeeze(1)
    return mine - logits.scatter(1, labels[:, None], -torch.inf).amax(1)
