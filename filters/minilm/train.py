"""The recipe of filters/minilm: `python filters/minilm/train.py --data PATH/train.jsonl --out filters/minilm`.

Fine-tunes the six layers and the pooler of all-MiniLM-L6-v2 on the CPU. Safe texts are erased at random (Kumar et al.,
"Certifying LLM Safety against Adversarial Prompting"), and three times during training the erased safe texts that the
model scores highest are mined and trained on. Weights are the moving average of the run, moved a tenth of the way
back to the base, which tempers its confidence (Wortsman et al., "Robust fine-tuning"). The threshold is calibrated on
the held-out tenth of the training data and folded into the classifier, so that it is exactly 0.5; the margin is then
scaled so that scores spread, which changes no verdict at 0.5.

The run writes checkpoints (safetensors) to --work and goes on from there after a kill.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from dataclasses import asdict
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parent.parent / "recipe"))
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # spinning threads stall a machine that is shared

import numpy as np
import torch
from data import HARD, Stream, digests, load_rows, split_rows
from encoder import Shape, base_folder, load_delta, save_filter
from erasures import deletions, prefixes, scattered
from evaluate import write_card, write_rows
from model import MAX_TOKENS, OVERLAP, build, collate, margins, max_margins
from noise import add_options, noise_of
from run import Batch, Plan, Run
from tokenizers import Tokenizer
from torch import Tensor, nn

SHAPE = Shape(
    name="minilm",
    kind="delta",
    architecture="BertForSequenceClassification",
    window=MAX_TOKENS + 2,
    overlap=OVERLAP,
    summary="Harmful requests, MiniLM-L6 (22 M parameters), trained on erased versions of safe prompts for erase-and-check",  # noqa: E501
)

REACH = 12.0  # largest logit margin of a score that is shipped


class Erasures:
    """The task: whole texts, one label each; the worst erasures of safe texts are mined."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        """Cross-entropy with label smoothing."""
        ids, mask = collate([row for row, _ in batch])
        target = torch.tensor([label for _, label in batch])
        with torch.autocast("cpu", torch.bfloat16, enabled=self.plan.bf16):
            logits = model(input_ids=ids, attention_mask=mask).logits
        return nn.functional.cross_entropy(logits.float(), target, label_smoothing=self.plan.smoothing)

    def mine(self, run: Run) -> list[str]:
        """The erased versions of safe training texts that score highest.

        All prefixes, blocks of up to 10 words and 1 to 3 scattered words; at most 3 of a text, so that none dominates.
        """
        rng = np.random.default_rng(self.plan.seed + run.step)
        groups = []
        for text in run.stream.safe_texts(120, round(run.step / self.plan.steps, 4)):
            if 2 < len(text.split()) <= 25:
                blocks = rng.permutation(deletions(text, 1, 10))[:6].tolist()
                singles = [scattered(text, count, rng) for count in (1, 2, 3)]
                groups.append(sorted({*prefixes(text, 20), *blocks, *singles}))
        found = [text for group in groups for text in group]
        scores = dict(zip(found, margins(run.model, run.tokenizer, found, bf16=self.plan.bf16).tolist(), strict=True))
        worst = {text for group in groups for text in sorted(group, key=scores.__getitem__)[-3:]}
        ranked = sorted(worst, key=lambda text: (-scores[text], text))
        return ranked[: max(1, len(found) // 10)]


def calibrate(model: nn.Module, tokenizer: Tokenizer, held: list[dict[str, str]], rate: float) -> dict[str, float]:
    """The margin that a share `rate` of held-out safe texts exceeds under suffix erase-and-check (20 words).

    Half of the weight lies on hard benign texts (`HARD`), so that the rate is one of demanding traffic.
    """
    safe = [row for row in held if row["label"] == "safe"]
    worst = max_margins(model, tokenizer, [row["text"] for row in safe], "suffix20")
    hard = np.array([row["source"] in HARD for row in safe])
    weights = np.where(hard, 0.5 / hard.sum(), 0.5 / (~hard).sum())
    cut = float(np.quantile(worst, 1 - rate, weights=weights, method="inverted_cdf"))
    harmful = margins(model, tokenizer, [row["text"] for row in held if row["label"] == "harmful"])
    plain = margins(model, tokenizer, [row["text"] for row in safe])
    return {
        "target_rate": rate,
        "safe_texts": len(safe),
        "hard_texts": int(hard.sum()),
        "margin": cut,
        "rate_hard": float(np.mean(worst[hard] > cut)),
        "rate_other": float(np.mean(worst[~hard] > cut)),
        "harmful_texts": len(harmful),
        "recall": float(np.mean(harmful > cut)),
        "slope": spread(np.concatenate([harmful, plain]) - cut),
    }


def spread(margin: np.ndarray) -> float:
    """The factor on margins that takes the largest, by absolute value, to `REACH`: scores spread and still resolve.

    The likeliest factor (Platt) is below 1 here: a few hard texts on the wrong side outweigh the rest. Scores are
    therefore no calibrated probabilities.
    """
    return round(float(REACH / np.abs(margin).max()), 3)


def ship(run: Run, model: nn.Module, out: Path, *, held: list[dict[str, str]], rate: float, train: Path) -> None:
    """Quantise, calibrate what the file holds, fold the threshold into the classifier, write the folder."""
    save_filter(out, model, run.folder, SHAPE, tokenizer=run.tokenizer)
    found = calibrate(load_delta(out, build(run.folder)), run.tokenizer, held, rate)
    record = {"plan": asdict(run.plan), "calibration": found, "data": digests(train)}
    own = {"tokenizer": run.tokenizer, "record": record}
    save_filter(out, model, run.folder, SHAPE, shift=found["margin"], slope=found["slope"], **own)
    print(json.dumps(found), flush=True)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="train.jsonl")
    parser.add_argument("--out", type=Path, required=True, help="folder of the filter")
    parser.add_argument("--bench", type=Path, help="bench.jsonl: evaluate at the end and write eval.jsonl and card.md")
    parser.add_argument("--work", type=Path, default=Path("runs/minilm"), help="checkpoints")
    parser.add_argument("--steps", type=int, default=Plan.steps)
    parser.add_argument("--seed", type=int, default=Plan.seed)
    parser.add_argument("--rate", type=float, default=0.02, help="false positives to calibrate for")
    parser.add_argument("--holdout", action="store_true", help="an experiment: keep whole sources out of training")
    add_options(parser)
    args = parser.parse_args()
    split = split_rows(load_rows(args.data), shift=args.holdout)
    plan = Plan(seed=args.seed, steps=args.steps, noise=noise_of(args))
    torch.manual_seed(plan.seed)  # the fresh classifier
    run = Run(plan, Erasures(plan), build(base_folder()), Stream(split.train, plan.seed, noise=plan.noise), args.work)
    print(f"{len(split.train)} rows to train on, {len(split.held)} held out", flush=True)
    ship(run, run.train(), args.out, held=split.held, rate=args.rate, train=args.data)
    if args.bench:
        write_rows(args.out, args.bench)
        write_card(args.out)


if __name__ == "__main__":
    main()
