"""What a certificate costs where every erasure is scored: our engine beside the published procedure.

In one process, on the same model and prompts, in turn and in a new order each time, without stopping early:

* published: erase-and-check as its authors' code does it, written by us: token ids with [SEP] among them, every erasure
  decoded, tokenised again and classified by a text-classification pipeline, one at a time.
* published, 32: the same with the pipeline's batch_size=32.
* forward: one plain forward pass of the prompt.
* float32: `EraseAndCheck` over the tokens, the exact filter.
* screened: the same with bounds in bfloat16 (`promptguard.score.screen`).
* floor: the arithmetic of the distinct erased texts, as the model's own forward pass does it without padding, at the
  rate of the fastest float32 matrix multiplication measured in the same run. Our engine leaves out a sixth of it.

[SEP] is the first token that the published suffix mode erases, so its budget is one larger here. What counts is the
ratio to the published procedure on the same prompt: median with quartiles, and the ratio of sums. "Agree" counts the
prompts with the verdict of the plain model on our erasures; the stray [SEP] in the published erasures makes them other
texts. "Apart" is the largest difference of the float32 score from that of the plain model.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import resource
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

import torch
from transformers import DistilBertConfig, DistilBertForSequenceClassification, pipeline

from benchmarks.one_pass import PASSAGE
from benchmarks.table import Table, read_lines
from promptguard import EraseAndCheck, load_mode
from promptguard.score.bundled import load_bundled
from promptguard.score.hf import HFFilter
from promptguard.score.linear import linear
from promptguard.score.screen import ScreenedFilter
from promptguard.units import Tokens

TITLE = "Every erasure, beside the published procedure"
MODES = (("suffix", 20), ("insertion", 10), ("infusion", 1), ("infusion", 2))
SIZES = (8, 10, 12, 14, 17, 20)  # words of the prompts that are cut from the passage
NAMES = ("published, 32", "float32", "screened", "floor")


def published_erasures(ids: Sequence[int], kind: str, budget: int) -> Iterator[list[int]]:
    """The id sequences that the published code scores, [SEP] among the ids; the prompt itself first."""
    n = len(ids)
    yield list(ids)
    if kind == "suffix":
        yield from (list(ids[: n - i]) for i in range(1, min(budget, n) + 1))
    if kind == "insertion":
        for start in range(n):
            yield from ([*ids[:start], *ids[end:]] for end in range(start + 1, min(start + budget, n) + 1))
    if kind == "infusion":
        for erased in range(1, budget + 1):
            for gone in combinations(range(n), erased):
                yield [token for i, token in enumerate(ids) if i not in gone]


def published(classify: Any, text: str, kind: str, budget: int, **options: int) -> bool:
    """The verdict of the published procedure."""
    ids = classify.tokenizer(text)["input_ids"][1:]
    texts = [classify.tokenizer.decode(kept) for kept in published_erasures(ids, kind, budget + (kind == "suffix"))]
    answers = classify(texts, **options)
    return any(answer["label"] == "harmful" for answer in answers)


@dataclass(frozen=True, slots=True)
class Subject:
    """A model in the forms that are compared."""

    name: str
    exact: HFFilter
    screened: ScreenedFilter
    classify: Any

    @property
    def model(self) -> Any:
        """The transformers model."""
        return self.classify.model


def subject(name: str) -> Subject:
    """MiniLM as it is bundled, or a random model of DistilBERT's shape with its tokenizer, to which all is safe."""
    bundled = load_bundled("minilm")
    if not isinstance(bundled, HFFilter):
        raise SystemExit("the bundled filter minilm is no classifier")
    exact = bundled
    if name == "distilbert":
        torch.manual_seed(0)
        config = DistilBertConfig(vocab_size=len(bundled.tokenizer), id2label={0: "safe", 1: "harmful"})
        config.label2id = {"safe": 0, "harmful": 1}
        model: Any = DistilBertForSequenceClassification(config)
        with torch.no_grad():  # so that prompts are as safe as they are to a trained filter
            model.classifier.bias.copy_(torch.tensor([8.0, 0.0]))
        exact = HFFilter(model.eval(), bundled.tokenizer, label="harmful", window=512)
    classify = pipeline("text-classification", model=exact._model, tokenizer=exact.tokenizer, device="cpu")
    return Subject(name, exact, ScreenedFilter.of(exact), classify)


def matmul_rate(width: int) -> float:
    """Floating-point operations per second of the faster float32 kernel, over the shapes of a block."""
    shapes = ((width, 3 * width), (width, 4 * width), (4 * width, width))
    best = float("inf")
    with torch.inference_mode():
        layers = [(linear(torch.randn(n, k), torch.randn(n)), torch.randn(2048, k)) for k, n in shapes]
        plain = [(torch.randn(n, k), torch.randn(2048, k)) for k, n in shapes]
        for _ in range(5):
            best = min(best, _seconds(lambda: [layer(x) for layer, x in layers])[0])
            best = min(best, _seconds(lambda: [torch.nn.functional.linear(x, w) for w, x in plain])[0])
    return sum(2 * 2048 * k * n for k, n in shapes) / best


def arithmetic(subject_: Subject, texts: Sequence[str]) -> float:
    """Floating-point operations of the plain forward passes of these texts, each token once."""
    config = subject_.model.config
    layers = getattr(config, "n_layers", None) or config.num_hidden_layers
    hidden = getattr(config, "dim", None) or config.hidden_size
    inner = getattr(config, "hidden_dim", None) or config.intermediate_size
    lengths = [len(ids) for ids in subject_.exact.tokenizer(list(texts))["input_ids"]]
    each = 2 * (4 * hidden * hidden + 2 * hidden * inner)
    return float(sum(layers * (each * t + 4 * t * t * hidden) for t in lengths))


def _seconds(call: Callable[[], Any]) -> tuple[float, Any]:
    start = time.perf_counter()
    result = call()
    return time.perf_counter() - start, result


def candidates(units: Tokens, text: str, kind: str, budget: int) -> list[str]:
    """The distinct texts that erase-and-check scores."""
    pieces = units(text)
    found: dict[str, None] = {}
    for erasure in load_mode(kind, budget).erasures(len(pieces)):
        gone = {i for start, stop in erasure.runs for i in range(start, stop)}
        found[" ".join("".join(p for i, p in enumerate(pieces) if i not in gone).split())] = None
    return [text for text in found if text]


def ways(subject_: Subject, kind: str, budget: int, text: str) -> dict[str, Callable[[], Any]]:
    """What is timed, for one prompt."""
    units, tokenizer = Tokens(subject_.exact.tokenizer), subject_.exact.tokenizer
    encoded = tokenizer(text, return_tensors="pt")
    ready = {key: encoded[key] for key in ("input_ids", "attention_mask")}
    certifiers = [
        EraseAndCheck(filter_, load_mode(kind, budget), units, early_stop=False)
        for filter_ in (subject_.exact, subject_.screened)
    ]

    @torch.inference_mode()
    def forward() -> Any:
        return subject_.model(**ready)

    return {
        "published": lambda: published(subject_.classify, text, kind, budget),
        "published, 32": lambda: published(subject_.classify, text, kind, budget, batch_size=32),
        "forward": forward,
        "float32": lambda: certifiers[0].certify(text),
        "screened": lambda: certifiers[1].certify(text),
    }


def measure(subject_: Subject, mode: tuple[str, int], text: str, repeats: int, rng: random.Random) -> dict[str, Any]:
    """One row: seconds of every way for one prompt, and what they answered."""
    calls = ways(subject_, *mode, text)
    times: dict[str, list[float]] = {name: [] for name in calls}
    answers: dict[str, Any] = {}
    for name in ("forward", "float32", "screened"):  # the first calls compile kernels
        calls[name]()
    for _ in range(repeats):
        for name in rng.sample(list(calls), len(calls)):
            seconds, answers[name] = _seconds(calls[name])
            times[name].append(seconds)
    units = Tokens(subject_.exact.tokenizer)
    erased = candidates(units, text, *mode)
    plain = max(_harm(scores) for scores in subject_.classify(erased, top_k=None))
    labels = [answers["published"], answers["published, 32"]]
    labels += [str(answers[name].label) == "harmful" for name in ("float32", "screened")]
    return {
        "model": subject_.name,
        "mode": f"{mode[0]} {mode[1]}",
        "tokens": len(units(text)),
        "candidates": len(erased),
        "flops": arithmetic(subject_, erased),
        "seconds": {name: statistics.median(found) for name, found in times.items()},
        "agree": [label == (plain >= subject_.exact.threshold) for label in labels],
        "apart": abs(answers["float32"].score - plain),
    }


def _harm(scores: list[dict[str, Any]]) -> float:
    return next(float(score["score"]) for score in scores if score["label"] == "harmful")


def prompts(data: Path | None, count: int) -> list[str]:
    """Safe test prompts of the paper, drawn with seed 0, or cuts of a passage of our own."""
    if data is not None:
        rows = read_lines(data)
        safe = [row["text"] for row in rows if (row["source"], row["label"]) == ("kumar_erase_check", "safe")]
        return random.Random(0).sample(safe, count)
    words = PASSAGE.split()
    return [" ".join(words[7 * i :][: SIZES[i % len(SIZES)]]) for i in range(count)]


def tables(results: Path) -> list[Table]:
    """Speed-up over the published procedure."""
    rows = read_lines(results / "speed" / "rows.jsonl")
    lines = []
    for model, mode in dict.fromkeys((row["model"], row["mode"]) for row in rows):
        some = [row for row in rows if (row["model"], row["mode"]) == (model, mode)]
        for row in some:
            row["seconds"]["floor"] = row["flops"] / row["matmul_rate"]
        base = [row["seconds"]["published"] for row in some]
        cells = [_ratio(base, [row["seconds"][name] for row in some]) for name in NAMES]
        mine = sum(row["seconds"]["float32"] for row in some)
        rate = sum(row["candidates"] for row in some) / mine
        share = sum(row["seconds"]["floor"] for row in some) / mine
        agreed = "/".join(str(sum(row["agree"][i] for row in some)) for i in range(4))
        forward = sum(row["seconds"]["float32"] / row["seconds"]["forward"] for row in some) / len(some)
        numbers = [f"{rate:.0f}", f"{100 * share:.0f} %", f"{forward:.1f}", f"{agreed} of {len(some)}"]
        lines.append([model, mode, *cells, *numbers, f"{max(row['apart'] for row in some):.0e}"])
    heads = ["model", "mode", *NAMES, "candidates/s", "floor / float32", "forwards", "agree", "apart"]
    memory = max((row["peak_mb"] for row in rows), default=0)
    threads = sorted({row["threads"] for row in rows})
    note = (
        f"Threads: {threads}. Peak memory of the whole run: {memory:.0f} MB. Candidates per second, the share of the "
        'floor and "forwards" (plain forward passes that a certificate costs) are for float32. "Agree": published one '
        "at a time and by 32, float32, screened."
    )
    return [Table("Times faster than the published procedure: median [quartiles], ratio of sums", heads, lines, note)]


def _ratio(base: Sequence[float], mine: Sequence[float]) -> str:
    found = [a / b for a, b in zip(base, mine, strict=True)]
    low, middle, high = statistics.quantiles(found, n=4) if len(found) > 1 else found * 3
    return f"{middle:.1f} [{low:.1f}, {high:.1f}], {sum(base) / sum(mine):.1f}"


def main() -> None:
    """Measure, and append rows to a file if one is given."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("data", type=Path, nargs="?", help="bench.jsonl: the paper's safe test prompts")
    parser.add_argument("--models", nargs="+", choices=["minilm", "distilbert"], default=["minilm", "distilbert"])
    parser.add_argument("--modes", nargs="+", default=[f"{kind} {budget}" for kind, budget in MODES])
    parser.add_argument("--prompts", type=int, default=20)
    parser.add_argument("--repeats", type=int, default=1)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--out", type=Path, help="JSON lines are appended here")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    rng = random.Random(0)
    for name in args.models:
        subject_ = subject(name)
        width = getattr(subject_.model.config, "dim", None) or subject_.model.config.hidden_size
        for mode in (mode for mode in MODES if f"{mode[0]} {mode[1]}" in args.modes):
            for number, text in enumerate(prompts(args.data, args.prompts)):
                row = measure(subject_, mode, text, args.repeats, rng)
                row |= {"prompt": number, "threads": args.threads, "matmul_rate": matmul_rate(width)}
                row |= {"load": round(os.getloadavg()[0], 2), "repeats": args.repeats, "torch": torch.__version__}
                row["peak_mb"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3
                shown = {key: round(row["seconds"]["published"] / value, 1) for key, value in row["seconds"].items()}
                print(name, *mode, row["candidates"], shown, row["agree"], f"{row['apart']:.0e}", flush=True)
                if args.out:
                    with args.out.open("a", encoding="utf-8") as rows:
                        rows.write(json.dumps(row, sort_keys=True) + "\n")


if __name__ == "__main__":
    main()
