"""The recipe of filters/evidence: `python filters/evidence/train.py --data PATH/train.jsonl --out filters/evidence`.

Trains patterns over fixed word vectors, on the CPU, in minutes, and adds weights of single words that are fitted apart:
together they generalise better than either. A safe text is trained on the bound of the budget drawn
for its batch, a harmful one on its plain score, and every budget has its own cut between them: what is minimised is
the error of the certified procedure. Weights are the moving average of the run, rounded to integers. The threshold is
calibrated on the held-out tenth of the training data with the shipped integers, and set to 0.5.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import os
import random
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # spinning threads stall a machine that is shared
sys.path.extend(str(Path(__file__).resolve().parent.parent / folder) for folder in ("recipe", "minilm"))

import numpy as np
import safetensors.numpy
import torch
import torch.nn.functional as fn
from augment import gibberish, vary
from curve import PAPER, pieces, write_card, write_rows
from data import HARD, Row, Stream, digests, load_rows, split_rows
from lexical import WordPlan, fit
from network import EVIDENCE, UNLIMITED, Lexicon, Network, integers
from noise import Noise, add_options, noise_of

from promptguard.score.evidence import HEAD_UNIT, EvidenceFilter
from promptguard.score.wordpieces import read_words

SUMMARY = "Harmful requests by evidence of their words; certified against infused words in one pass"
RAW = float(EVIDENCE * HEAD_UNIT)  # a total evidence of 1 in the integer form


@dataclass(frozen=True)
class Plan:
    """Every setting of a run."""

    seed: int = 1
    steps: int = 3000
    batch: int = 96
    lr: float = 4e-3
    weight_decay: float = 0.02
    dropout: float = 0.1
    groups: tuple[tuple[int, int], ...] = ((1, 192),)
    size: int = 64
    hidden: int = 96
    harmful: float = 0.42
    paper_share: float = 16.0
    words: WordPlan = field(default_factory=lambda: WordPlan(paper_share=50.0))
    words_factor: float = 0.3  # of the word weights in the total
    varied: float = 0.5
    missing: float = 0.15  # words left out of a harmful text, so that it is not found by one word alone
    longest: int = 64
    noise: Noise | None = None
    average: float = 0.99
    budgets: tuple[int, ...] = (0, 1, 2, 3, 5, 10, UNLIMITED)
    shares: tuple[int, ...] = (1, 1, 1, 2, 1, 2, 2)


class Texts:
    """Training texts by share; none is erased, since the bounds hold for the erasures too."""

    def __init__(self, rows: list[Row], plan: Plan) -> None:
        self.stream, self.plan = Stream(rows, plan.seed, plan.harmful, plan.noise), plan
        self.rng = random.Random(plan.seed)
        names, shares = self.stream.plans["harmful"]
        shares[names.index(PAPER)] = plan.paper_share

    def draw(self) -> tuple[list[str], bool]:
        """Words of one text and whether it is harmful."""
        rng, stream = self.rng, self.stream
        label = "harmful" if rng.random() < self.plan.harmful else "safe"
        if label == "safe" and rng.random() < 0.02:
            return read_words(gibberish(rng, stream.salad)), False
        names, shares = stream.plans[label]
        text = rng.choice(stream.groups[label][rng.choices(names, shares)[0]])["text"]
        text = vary(text, rng, stream.salad) if rng.random() < self.plan.varied else text
        words = read_words(stream.noised(text, rng))
        if len(words) > self.plan.longest:
            at = rng.randrange(len(words) - self.plan.longest + 1)
            words = words[at : at + self.plan.longest]
        if label == "harmful" and len(words) > 3:
            words = [word for word in words if rng.random() >= self.plan.missing] or words
        return words, label == "harmful"

    def batches(self) -> Iterator[list[tuple[list[str], bool]]]:
        """Batches of texts of similar length, without end."""
        size = self.plan.batch
        while True:
            pool = [item for item in (self.draw() for _ in range(12 * size)) if item[0]]
            pool.sort(key=lambda item: len(item[0]) + 3 * self.rng.random())
            groups = [pool[at : at + size] for at in range(0, len(pool) - size // 2, size)]
            self.rng.shuffle(groups)
            yield from groups


def train(rows: list[Row], plan: Plan) -> tuple[Network, Lexicon]:
    """Run to the end; the network carries the averaged weights."""
    torch.manual_seed(plan.seed)
    texts, lexicon = Texts(rows, plan), Lexicon()
    network = Network(plan.groups, plan.size, plan.hidden, lexicon.table.shape[1], plan.dropout)
    cuts = torch.nn.Parameter(torch.full((len(plan.budgets),), 2.0))
    decayed = [*network.weight, network.project.weight]
    others = [value for value in network.parameters() if all(value is not other for other in decayed)]
    groups = [
        {"params": decayed, "weight_decay": plan.weight_decay},
        {"params": [*others, cuts], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=plan.lr, betas=(0.9, 0.98))
    average = {name: value.clone() for name, value in network.state_dict().items()}
    losses, started = [], time.monotonic()
    for step, batch in zip(range(plan.steps), texts.batches(), strict=False):
        rate = min(1.0, (step + 1) / 50) * (0.02 + 0.49 * (1 + math.cos(math.pi * step / plan.steps)))
        for group in optimizer.param_groups:
            group["lr"] = plan.lr * rate
        which = texts.rng.choices(range(len(plan.budgets)), plan.shares)[0]
        parts = []
        for label, budget, sign in ((True, 0, -1.0), (False, plan.budgets[which], 1.0)):
            mine = [words for words, harmful in batch if harmful == label]
            if mine:
                total = network(*lexicon.batch(mine), budget)
                parts.append(fn.softplus(sign * (total - cuts[which])).sum())
        loss = torch.stack(parts).sum() / len(batch)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_([*network.parameters(), cuts], 1.0)
        optimizer.step()
        keep = min(plan.average, (step + 1) / (step + 20))
        for name, value in network.state_dict().items():
            average[name].mul_(keep).add_(value, alpha=1 - keep)
        losses.append(float(loss.detach()))
        if step % 100 == 99:
            minutes = (time.monotonic() - started) / 60
            print(f"step {step + 1} loss {np.mean(losses[-100:]):.3f} {minutes:.1f} min", flush=True)
    network.load_state_dict(average)
    return network.eval(), lexicon


def calibrate(score: EvidenceFilter, held: list[Row], rate: float, budget: int) -> dict[str, float]:
    """The score that a share `rate` of held-out safe texts exceeds under infusion of `budget` words.

    Half of the weight lies on hard benign texts (`HARD`), so that the rate is one of demanding traffic.
    """
    safe = [row for row in held if row["label"] == "safe"]
    cut_up = [pieces(row["text"]) for row in safe]
    worst = np.array([score.infusion_scores(words, min(budget, len(words)))[-1] for words in cut_up])
    hard = np.array([row["source"] in HARD for row in safe])
    weights = np.where(hard, 0.5 / hard.sum(), 0.5 / (~hard).sum())
    cut = float(np.quantile(worst, 1 - rate, weights=weights, method="inverted_cdf"))
    harmful = [row for row in held if row["label"] == "harmful"]
    found = np.array(score([row["text"] for row in harmful]))
    return {
        "target_rate": rate,
        "budget": budget,
        "safe_texts": len(safe),
        "hard_texts": int(hard.sum()),
        "score": cut,
        "rate_hard": float(np.mean(worst[hard] > cut)),
        "rate_other": float(np.mean(worst[~hard] > cut)),
        "harmful_texts": len(harmful),
        "recall": float(np.mean(found > cut)),
    }


def ship(out: Path, arrays: dict[str, Any], unit: float, record: dict[str, Any], *, kind: str, summary: str) -> None:
    """Write weights.safetensors and config.json."""
    out.mkdir(parents=True, exist_ok=True)
    metadata = {"record": json.dumps(record, sort_keys=True)}
    content = safetensors.numpy.save({name: np.ascontiguousarray(array) for name, array in arrays.items()}, metadata)
    (out / "weights.safetensors").write_bytes(content)
    config = {
        "name": out.name,
        "kind": kind,
        "summary": summary,
        "threshold": 0.5,
        "unit": unit,
        "weights": {"file": "weights.safetensors", "sha256": hashlib.sha256(content).hexdigest()},
    }
    (out / "config.json").write_text(json.dumps(config, indent=2) + "\n")


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="train.jsonl")
    parser.add_argument("--out", type=Path, required=True, help="folder of the filter")
    parser.add_argument("--bench", type=Path, help="bench.jsonl: evaluate at the end and write eval.jsonl and card.md")
    parser.add_argument("--steps", type=int, default=Plan.steps)
    parser.add_argument("--seed", type=int, default=Plan.seed)
    parser.add_argument("--rate", type=float, default=0.02, help="false positives to calibrate for")
    parser.add_argument("--budget", type=int, default=10, help="infused words to calibrate for")
    add_options(parser)
    args = parser.parse_args()
    plan = Plan(seed=args.seed, steps=args.steps, noise=noise_of(args))
    split = split_rows(load_rows(args.data), shift=False)
    print(f"{len(split.train)} rows to train on, {len(split.held)} held out", flush=True)
    words = {word: plan.words_factor * value for word, value in fit(split.train, plan.words).items()}
    arrays = integers(*train(split.train, plan), words)
    found = calibrate(EvidenceFilter(arrays, unit=RAW), split.held, args.rate, args.budget)
    # Scores are t / (t + unit): the unit takes the calibrated total to 0.5, and a little more, for "exceeds".
    unit = RAW * found["score"] / (1 - found["score"]) * (1 + 1e-9)
    record = {"plan": asdict(plan), "calibration": found, "data": digests(args.data)}
    ship(args.out, arrays, unit, record, kind="evidence", summary=SUMMARY)
    print(json.dumps(found), flush=True)
    if args.bench:
        write_rows(args.out, args.bench)
        write_card(args.out)


if __name__ == "__main__":
    main()
