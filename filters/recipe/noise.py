"""Noise on training texts, for filters that smoothing will ask about noised texts.

Randomized smoothing lets a filter read texts with most units deleted or masked (RS-Del, Huang et al. 2023; RanMASK,
Zeng et al. 2021), which no training text looks like. Here a share of the training texts is noised in the same way and
keeps its label.
"""

from __future__ import annotations

import argparse
import random
from dataclasses import dataclass

from augment import units

MASK = " [MASK]"  # what `promptguard.certify.mask_smoothing` writes unless told otherwise


@dataclass(frozen=True)
class Noise:
    """Units of a training text are deleted or masked, each on its own, at a rate that is drawn for the text.

    Attributes:
        kind: "delete" or "mask".
        most: the largest rate, in (0, 1); a text's own is uniform up to it, so that one filter serves many.
        share: of the texts that are noised, in (0, 1].
    """

    kind: str
    most: float
    share: float = 0.5

    def __post_init__(self) -> None:
        if self.kind not in FILLINGS or not 0 < self.most < 1 or not 0 < self.share <= 1:
            raise SystemExit(f"noise needs a kind of {', '.join(FILLINGS)}, a rate in (0, 1) and a share in (0, 1]")

    def __call__(self, text: str, rng: random.Random) -> str:
        """The text, perhaps noised. One unit at least stays: a blank text is no training text."""
        pieces = units(text)
        if not pieces or rng.random() >= self.share:
            return text
        rate, spared = self.most * rng.random(), rng.randrange(len(pieces))
        filling = FILLINGS[self.kind]
        kept = (piece if i == spared or rng.random() >= rate else filling for i, piece in enumerate(pieces))
        return "".join(kept).strip()


FILLINGS = {"delete": "", "mask": MASK}  # what stands where a unit was


def add_options(parser: argparse.ArgumentParser) -> None:
    """`--noise`, `--noise-rate` and `--noise-share` of a recipe."""
    parser.add_argument("--noise", choices=tuple(FILLINGS), help="for smoothing: noise a part of the training texts")
    parser.add_argument("--noise-rate", type=float, default=0.8, help="the largest share of units deleted or masked")
    parser.add_argument("--noise-share", type=float, default=0.5, help="of the training texts that are noised")


def noise_of(args: argparse.Namespace) -> Noise | None:
    """What these options ask for; None is no noise."""
    return Noise(args.noise, args.noise_rate, args.noise_share) if args.noise else None
