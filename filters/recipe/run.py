"""A training run: batches by length, AdamW with layerwise rates, one cycle, a moving average, a checkpoint to resume.

What is trained, and on which loss, is a `Task`. Weights are the moving average of the run, moved a little of the way
back to the base, which tempers their confidence (Wortsman et al., "Robust fine-tuning").
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from data import Stream
from encoder import base_folder, base_tensors, encode, load_tokenizer, trainable
from noise import Noise
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer
from torch import Tensor, nn

Batch = Sequence[tuple[list[int], int]]


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
    noise: Noise | None = None


class Task(Protocol):
    """What a run trains."""

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        """The loss of a batch of (token ids, 1 for harmful)."""
        ...

    def mine(self, run: Run) -> list[str]:
        """Safe texts that the model scores high, hardest first: they join the training texts from here on."""
        ...


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

    def __init__(self, plan: Plan, task: Task, model: nn.Module, stream: Stream, work: Path) -> None:
        self.plan, self.task, self.model, self.stream, self.work, self.step = plan, task, model, stream, work, 0
        self.folder = base_folder()
        self.tokenizer: Tokenizer = load_tokenizer(self.folder)
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

    def update(self, batch: Batch) -> float:
        """One optimiser step; returns the loss."""
        self.model.train()
        torch.manual_seed(self.plan.seed * 1_000_003 + self.step)
        for group in self.optimizer.param_groups:
            group["lr"] = group["top"] * schedule(self.step, self.plan)
        loss = self.task.loss(self.model, batch)
        self.optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(trainable(self.model).values(), 1.0)
        self.optimizer.step()
        self.step += 1
        keep = min(self.plan.average, self.step / (self.step + 10))
        with torch.no_grad():
            torch._foreach_lerp_(list(self.average.values()), list(trainable(self.model).values()), 1 - keep)
        return loss.item()

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
                self.stream.hard = self.task.mine(self)
                print(f"step {self.step}: mined {len(self.stream.hard)} safe texts", flush=True)
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
