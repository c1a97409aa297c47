"""The recipe of filters/causal: `python filters/causal/train.py --data PATH/train.jsonl --out filters/causal`.

all-MiniLM-L6-v2 as a decoder, so that one pass scores every prefix. Harmful prompts have their loss at the last token,
safe ones at *all* tokens, half as a mean and half as a soft maximum: the filter is trained on the maximum over all
suffix erasures. Safe texts begin at a random word, for wrap mode; the safe starts that score highest are mined. A run
may begin with the layers of `filters/minilm` and follow its margins where that filter is right (distillation).

What ships is the mean of the runs in `RUNS` (Wortsman et al. 2022, "Model soups"). The threshold is calibrated on the
held-out tenth of the training data, under unlimited suffix erasures, and folded into the classifier: it is exactly 0.5.
Runs write checkpoints (safetensors) to --work and go on from there after a kill.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import sys
from dataclasses import asdict, dataclass, replace
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parent.parent / "recipe"))
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # spinning threads stall a machine that is shared

import numpy as np
import torch
from augment import cut, gibberish, units, vary
from data import HARD, Split, Stream, digests, load_rows, split_rows
from encoder import SEP, Shape, base_folder, base_tensors, load_delta, load_tokenizer, save_filter, sha256
from evaluate import write_card, write_rows
from model import MAX_TOKENS, OVERLAP, UNKNOWN, build, collate, max_margins, token_margins
from noise import add_options, noise_of
from run import Batch, Plan, Run
from tokenizers import Tokenizer
from torch import Tensor, nn
from transformers import BertConfig, BertForSequenceClassification

SHAPE = Shape(
    name="causal",
    kind="causal",
    architecture="BertForTokenClassification",
    window=MAX_TOKENS + 1,
    overlap=OVERLAP,
    summary="Harmful requests, causal MiniLM-L6 (22 M parameters): one pass certifies suffixes of any length",
)
TEACHER = Path(__file__).resolve().parent.parent / "minilm"
REACH = 12.0  # largest logit margin of a score that is shipped


@dataclass(frozen=True)
class CausalPlan(Plan):
    """The settings of one run.

    Attributes:
        tau: temperature of the soft maximum over a safe text's tokens.
        worst: weight of the soft maximum against the mean.
        distil: weight of the teacher's margins.
        init: begin with the teacher's layers instead of the base's.
    """

    steps: int = 1800
    lr: float = 2e-4
    layer_decay: float = 0.9
    tau: float = 0.7
    worst: float = 0.5
    distil: float = 0.05
    init: bool = True


RUNS = (CausalPlan(seed=1), CausalPlan(seed=2))


class Starts(Stream):
    """Training texts; safe ones often begin at a random word. Every end of a text is trained anyway."""

    def draw(self, rng: random.Random) -> tuple[str, int]:
        """One training text and its class (1 = harmful)."""
        label = "harmful" if rng.random() < self.harmful else "safe"
        if label == "safe" and self.hard and rng.random() < 0.2:
            return rng.choice(self.hard), 0
        names, shares = self.plans[label]
        text = rng.choice(self.groups[label][rng.choices(names, shares)[0]])["text"]
        if label == "harmful":
            return vary(text, rng, self.salad), 1
        roll = rng.random()
        if roll < 0.02:
            return gibberish(rng, self.salad), 0
        if roll >= 0.55:
            return vary(text, rng, self.salad), 0
        text = vary(text, rng, self.salad) if rng.random() < 0.4 else text
        words = units(text)
        if not words:
            return text, 0
        kept = words[rng.randint(0, len(words) - 1) :] if roll < 0.45 else cut(words, rng)
        return "".join(kept).strip(), 0


class Prefixes:
    """The task: every prefix of a safe text is safe, a harmful text is harmful at its end."""

    def __init__(self, plan: CausalPlan) -> None:
        self.plan = plan
        self.teacher = teacher() if plan.distil or plan.init else None

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        """Mean over the texts, plus the distance to the teacher's margins."""
        plan = self.plan
        rows = [row or [UNKNOWN] for row, _ in batch]
        ids, mask = collate(rows)
        harmful = torch.tensor([label for _, label in batch]).bool()
        with torch.autocast("cpu", torch.bfloat16, enabled=plan.bf16):
            logits = model(input_ids=ids, attention_mask=mask).logits
        margins = (logits[..., 1] - logits[..., 0]).float()
        ends = margins[torch.arange(len(margins)), mask.sum(1) - 1]
        inner, kept = margins[~harmful][:, 1:], mask[~harmful][:, 1:].bool()
        mean = (self._entropy(inner, 0.0) * kept).sum(1) / kept.sum(1)
        soft = plan.tau * torch.logsumexp(inner.masked_fill(~kept, -1e4) / plan.tau, 1)
        soft = soft - plan.tau * torch.log(kept.sum(1).float()) * 0.5  # half way from the soft maximum to the mean
        safe = (1 - plan.worst) * mean + plan.worst * self._entropy(soft, 0.0)
        loss = (self._entropy(ends[harmful], 1.0).sum() + safe.sum()) / len(margins)
        if self.teacher is None or not plan.distil:
            return loss
        taught = self._taught(rows)
        right = (taught > 0) == harmful  # its doubts are worth learning, its errors are not
        apart = nn.functional.smooth_l1_loss(ends, taught, reduction="none", beta=2.0)
        return loss + plan.distil * (apart * right).mean()

    def _entropy(self, margins: Tensor, target: float) -> Tensor:
        smooth = self.plan.smoothing / 2
        wanted = torch.full_like(margins, target * (1 - smooth) + (1 - target) * smooth)
        return nn.functional.binary_cross_entropy_with_logits(margins, wanted, reduction="none")

    @torch.inference_mode()
    def _taught(self, rows: list[list[int]]) -> Tensor:
        ids, mask = collate([[*row, SEP] for row in rows])
        with torch.autocast("cpu", torch.bfloat16, enabled=self.plan.bf16):
            logits = self.teacher(input_ids=ids, attention_mask=mask).logits.float()
        return (logits[:, 1] - logits[:, 0]).clone().clamp(-8, 8)

    def mine(self, run: Run) -> list[str]:
        """Safe training texts from those of their starts that score highest; at most 2 of a text."""
        rng = np.random.default_rng(self.plan.seed + run.step)
        groups = []
        for text in run.stream.safe_texts(150, round(run.step / self.plan.steps, 4)):
            words = units(text)
            if 1 < len(words) <= 60:
                starts = {0, *rng.integers(0, len(words), 5).tolist()}
                groups.append(["".join(words[start:]).strip() for start in sorted(starts)])
        found = [text for group in groups for text in group]
        margins = token_margins(run.model, run.tokenizer, found, bf16=self.plan.bf16)
        highest = dict(zip(found, (row.max() for row in margins), strict=True))
        worst = {text for group in groups for text in sorted(group, key=highest.__getitem__)[-2:]}
        ranked = sorted(worst, key=lambda text: (-highest[text], text))
        return ranked[: max(1, len(found) // 10)]


def teacher() -> nn.Module:
    """The filter of filters/minilm, as shipped."""
    config = BertConfig.from_pretrained(base_folder(), num_labels=2)
    config._attn_implementation = "eager"
    model = BertForSequenceClassification(config)
    model.load_state_dict(base_tensors(base_folder()), strict=False)
    return load_delta(TEACHER, model)


def one_run(plan: CausalPlan, split: Split, work: Path) -> nn.Module:
    """Train one model of the mean, or load it from its checkpoint."""
    torch.manual_seed(plan.seed)  # the fresh classifier
    model, task = build(base_folder()), Prefixes(plan)
    if plan.init and task.teacher is not None:
        layers = {name: value for name, value in task.teacher.state_dict().items() if name.startswith("bert.")}
        model.load_state_dict({name: value for name, value in layers.items() if ".pooler." not in name}, strict=False)
    return Run(plan, task, model, Starts(split.train, plan.seed, noise=plan.noise), work).train()


def mean_of(models: list[nn.Module]) -> nn.Module:
    """A model whose weights are the mean."""
    states = [model.state_dict() for model in models]
    mean = {
        name: torch.stack([state[name] for state in states]).mean(0) if value.is_floating_point() else value
        for name, value in states[0].items()
    }
    models[0].load_state_dict(mean)
    return models[0].eval()


def calibrate(model: nn.Module, tokenizer: Tokenizer, held: list[dict[str, str]], rate: float) -> dict[str, float]:
    """The margin that a share `rate` of held-out safe texts exceeds under unlimited suffix erasures.

    Half of the weight lies on hard benign texts (`HARD`), so that the rate is one of demanding traffic.
    """
    safe = [row for row in held if row["label"] == "safe"]
    texts = [row["text"] for row in safe]
    worst = max_margins(model, tokenizer, texts, "suffix")
    hard = np.array([row["source"] in HARD for row in safe])
    weights = np.where(hard, 0.5 / hard.sum(), 0.5 / (~hard).sum())
    edge = float(np.quantile(worst, 1 - rate, weights=weights, method="inverted_cdf"))
    harmful = max_margins(model, tokenizer, [row["text"] for row in held if row["label"] == "harmful"], "plain")
    wrapped = max_margins(model, tokenizer, texts, "wrap")
    margins = np.concatenate([harmful, max_margins(model, tokenizer, texts, "plain")]) - edge
    return {
        "target_rate": rate,
        "safe_texts": len(safe),
        "hard_texts": int(hard.sum()),
        "margin": edge,
        "rate_hard": float(np.mean(worst[hard] > edge)),
        "rate_other": float(np.mean(worst[~hard] > edge)),
        "rate_hard_wrap": float(np.mean(wrapped[hard] > edge)),
        "rate_other_wrap": float(np.mean(wrapped[~hard] > edge)),
        "harmful_texts": len(harmful),
        "recall": float(np.mean(harmful > edge)),
        # Scores spread and still resolve: the largest margin, by absolute value, becomes REACH.
        "slope": round(float(REACH / np.abs(margins).max()), 3),
    }


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="train.jsonl")
    parser.add_argument("--out", type=Path, required=True, help="folder of the filter")
    parser.add_argument("--bench", type=Path, help="bench.jsonl: evaluate at the end and write eval.jsonl and card.md")
    parser.add_argument("--work", type=Path, default=Path("runs/causal"), help="checkpoints")
    parser.add_argument("--rate", type=float, default=0.02, help="false positives to calibrate for")
    add_options(parser)
    args = parser.parse_args()
    plans = [replace(plan, noise=noise_of(args)) for plan in RUNS]
    split = split_rows(load_rows(args.data), shift=False)
    print(f"{len(split.train)} rows to train on, {len(split.held)} held out", flush=True)
    model = mean_of([one_run(plan, split, args.work / f"run-{number}") for number, plan in enumerate(plans)])
    folder, tokenizer = base_folder(), load_tokenizer(base_folder())
    save_filter(args.out, model, folder, SHAPE, tokenizer=tokenizer)
    found = calibrate(load_delta(args.out, build(folder)), tokenizer, split.held, args.rate)
    used = {**digests(args.data), "minilm/weights.safetensors": sha256(TEACHER / "weights.safetensors")}
    record = {"plans": [asdict(plan) for plan in plans], "calibration": found, "data": used}
    own = {"tokenizer": tokenizer, "record": record}
    save_filter(args.out, model, folder, SHAPE, shift=found["margin"], slope=found["slope"], **own)
    print(json.dumps(found), flush=True)
    if args.bench:
        write_rows(args.out, args.bench)
        write_card(args.out)


if __name__ == "__main__":
    main()
