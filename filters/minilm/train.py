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
import math
import os
import time
from dataclasses import asdict, dataclass
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # spinning threads stall a machine that is shared

import numpy as np
import torch
from data import HARD, Split, Stream, digests, load_rows, split_rows
from erasures import deletions, max_margins, prefixes, scattered
from evaluate import write_card, write_rows
from model import (
    base_folder,
    base_tensors,
    build,
    collate,
    encode,
    load_filter,
    load_tokenizer,
    margins,
    save_filter,
    trainable,
)
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer
from torch import nn

SUMMARY = (
    "Harmful requests, MiniLM-L6 (22 M parameters), trained on erased versions of safe prompts for erase-and-check"
)

REACH = 12.0  # largest logit margin of a score that is shipped


@dataclass(frozen=True)
class Plan:
    """Every setting of a run; a checkpoint is only resumed under the same plan."""

    seed: int = 1
    steps: int = 1600
    batch: int = 48
    lr: float = 2e-4
    layer_decay: float = 0.85
    weight_decay: float = 0.02
    smoothing: float = 0.03
    average: float = 0.997
    pool: int = 32
    mine_at: tuple[float, ...] = (0.35, 0.55, 0.75)
    bf16: bool = True
    max_tokens: int = 64
    shrink: float = 0.9


def parameter_groups(model: nn.Module, plan: Plan) -> list[dict[str, object]]:
    """AdamW groups with layerwise decay of the learning rate: lower layers move less."""
    groups: list[dict[str, object]] = []
    for name, value in trainable(model).items():
        depth = int(name.split(".")[3]) if ".layer." in name else 6
        decay = 0.0 if value.ndim < 2 else plan.weight_decay
        groups.append({"params": [value], "lr": plan.lr * plan.layer_decay ** (6 - depth), "weight_decay": decay})
    for group in groups:
        group["top"] = group["lr"]
    return groups


def schedule(step: int, plan: Plan) -> float:
    """One cycle: 8 % linear warm-up, then a cosine to 2 %."""
    warm = 0.08 * plan.steps
    if step < warm:
        return (step + 1) / warm
    return 0.02 + 0.49 * (1 + math.cos(math.pi * (step - warm) / (plan.steps - warm)))


class Run:
    """One training run with its optimiser, moving average and checkpoint."""

    def __init__(self, plan: Plan, split: Split, work: Path) -> None:
        torch.manual_seed(plan.seed)
        self.plan, self.work, self.step = plan, work, 0
        self.folder = base_folder()
        self.tokenizer: Tokenizer = load_tokenizer(self.folder)
        self.model = build(self.folder)
        self.stream = Stream(split.train, plan.seed)
        self.optimizer = torch.optim.AdamW(parameter_groups(self.model, plan), betas=(0.9, 0.98), fused=True)
        self.average = {name: value.detach().clone() for name, value in trainable(self.model).items()}
        work.mkdir(parents=True, exist_ok=True)

    def batches(self, number: int) -> list[list[tuple[list[int], int]]]:
        """The batches of one pool: texts of similar length together, in random order."""
        rows = self.stream.pool(number, self.plan.pool * self.plan.batch)
        ids = [row[: self.plan.max_tokens] for row in encode(self.tokenizer, [text for text, _ in rows])]
        pairs = sorted(zip(ids, (label for _, label in rows), strict=True), key=lambda pair: len(pair[0]))
        chunks = [pairs[at : at + self.plan.batch] for at in range(0, len(pairs), self.plan.batch)]
        order = np.random.default_rng((self.plan.seed, number)).permutation(len(chunks))
        return [chunks[i] for i in order]

    def update(self, batch: list[tuple[list[int], int]]) -> float:
        """One optimiser step; returns the loss."""
        self.model.train()
        torch.manual_seed(self.plan.seed * 1_000_003 + self.step)
        for group in self.optimizer.param_groups:
            group["lr"] = group["top"] * schedule(self.step, self.plan)
        ids, mask = collate([row for row, _ in batch])
        target = torch.tensor([label for _, label in batch])
        with torch.autocast("cpu", torch.bfloat16, enabled=self.plan.bf16):
            logits = self.model(input_ids=ids, attention_mask=mask).logits
        loss = nn.functional.cross_entropy(logits.float(), target, label_smoothing=self.plan.smoothing)
        self.optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(trainable(self.model).values(), 1.0)
        self.optimizer.step()
        self.step += 1
        keep = min(self.plan.average, self.step / (self.step + 10))
        torch._foreach_lerp_(list(self.average.values()), list(trainable(self.model).values()), 1 - keep)
        return loss.item()

    def mine(self) -> None:
        """Find the erased versions of safe training texts that score highest, to be trained on from here.

        All prefixes, blocks of up to 10 words and 1 to 3 scattered words; at most 3 of a text, so that none dominates.
        """
        rng = np.random.default_rng(self.plan.seed + self.step)
        groups = []
        for text in self.stream.safe_texts(120, round(self.step / self.plan.steps, 4)):
            if 2 < len(text.split()) <= 25:
                blocks = rng.permutation(deletions(text, 1, 10))[:6].tolist()
                singles = [scattered(text, count, rng) for count in (1, 2, 3)]
                groups.append(sorted({*prefixes(text, 20), *blocks, *singles}))
        found = [text for group in groups for text in group]
        scores = dict(zip(found, margins(self.model, self.tokenizer, found, bf16=self.plan.bf16).tolist(), strict=True))
        worst = {text for group in groups for text in sorted(group, key=scores.__getitem__)[-3:]}
        ranked = sorted(worst, key=lambda text: (-scores[text], text))
        self.stream.hard = ranked[: max(1, len(found) // 10)]

    def save(self) -> None:
        """Write a checkpoint: tensors, then the state that makes it valid."""
        state = {f"model.{name}": value.detach() for name, value in trainable(self.model).items()}
        state |= {f"average.{name}": value for name, value in self.average.items()}
        for name, value in trainable(self.model).items():
            moments = self.optimizer.state[value]
            state |= {f"m.{name}": moments["exp_avg"], f"v.{name}": moments["exp_avg_sq"]}
        save_file({key: value.contiguous().clone() for key, value in state.items()}, self.work / "next.safetensors")
        (self.work / "next.safetensors").replace(self.work / "checkpoint.safetensors")
        meta = {"plan": asdict(self.plan), "step": self.step, "hard": self.stream.hard}
        (self.work / "checkpoint.json").write_text(json.dumps(meta))

    def resume(self) -> None:
        """Go on from a checkpoint of the same plan, if there is one."""
        path = self.work / "checkpoint.json"
        if not path.exists():
            return
        meta = json.loads(path.read_text())
        if meta["plan"] != json.loads(json.dumps(asdict(self.plan))):
            return
        state = load_file(self.work / "checkpoint.safetensors")
        self.step, self.stream.hard = meta["step"], meta["hard"]
        for name, value in trainable(self.model).items():
            value.data.copy_(state[f"model.{name}"])
            self.average[name].copy_(state[f"average.{name}"])
            self.optimizer.state[value] = {
                "step": torch.tensor(float(self.step)),
                "exp_avg": state[f"m.{name}"],
                "exp_avg_sq": state[f"v.{name}"],
            }

    def train(self) -> nn.Module:
        """Run to the end; the returned model carries the averaged weights, shrunk towards the base."""
        self.resume()
        mine_at = {int(part * self.plan.steps) // self.plan.pool * self.plan.pool for part in self.plan.mine_at}
        started, saved, losses = time.monotonic(), time.monotonic(), []
        while self.step < self.plan.steps:
            if self.step in mine_at:
                self.mine()
                print(f"step {self.step}: mined {len(self.stream.hard)} erased safe texts", flush=True)
            for batch in self.batches(self.step // self.plan.pool):
                losses.append(self.update(batch))
            done = self.step / self.plan.steps
            if self.step // self.plan.pool % 2 == 0:
                minutes = (time.monotonic() - started) / 60
                print(f"step {self.step} {done:.0%} loss {np.mean(losses[-128:]):.4f} {minutes:.1f} min", flush=True)
            if time.monotonic() - saved > 100 or self.step >= self.plan.steps:
                self.save()
                saved = time.monotonic()
        base = base_tensors(self.folder)
        for name, value in trainable(self.model).items():
            origin = base.get(name, self.average[name])
            value.data.copy_(origin + self.plan.shrink * (self.average[name] - origin))
        return self.model.eval()


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
    save_filter(out, model, run.folder, tokenizer=run.tokenizer, summary=SUMMARY)
    found = calibrate(load_filter(out, run.folder), run.tokenizer, held, rate)
    record = {"plan": asdict(run.plan), "calibration": found, "data": digests(train)}
    own = {"tokenizer": run.tokenizer, "summary": SUMMARY, "record": record}
    save_filter(out, model, run.folder, shift=found["margin"], slope=found["slope"], **own)
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
    args = parser.parse_args()
    split = split_rows(load_rows(args.data), shift=args.holdout)
    run = Run(Plan(seed=args.seed, steps=args.steps), split, args.work)
    print(f"{len(split.train)} rows to train on, {len(split.held)} held out", flush=True)
    ship(run, run.train(), args.out, held=split.held, rate=args.rate, train=args.data)
    if args.bench:
        write_rows(args.out, args.bench)
        write_card(args.out)


if __name__ == "__main__":
    main()
