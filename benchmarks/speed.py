"""What a certificate costs where every erasure is scored: our engine beside the published procedure.

In one process, on the same model and prompts, in turn and in a new order each time, without stopping early:

* published: erase-and-check as its authors' code does it, written by us: token ids with [SEP] among them, every erasure
  decoded, tokenised again and classified by a text-classification pipeline, one at a time.
* published, 32: the same with the pipeline's batch_size=32.
* forward: one plain forward pass of the prompt.
* float32: `EraseAndCheck` over the tokens, the exact filter.
* screened: the same with bounds in bfloat16 (`promptguard.score.screen`); "int8" with bounds in int8.
* floor: the arithmetic of the distinct erased texts, as the model's own forward pass does it without padding, at the
  rate of the fastest float32 matrix multiplication measured in the same run; "floor, cut" is what is left of it after
  the two exact cuts of our engine (`promptguard.score.unpadded`).

[SEP] is the first token that the published suffix mode erases, so its budget is one larger here. It has no two blocks;
there it gets our erasures. Where it has more than 400 candidates, 200 of them are drawn and timed and the time is
scaled by their number: the row says so. On harmful prompts our engine stops at the first erasure that it is sure of;
the published procedure does not stop.

What counts is the ratio to the published procedure on the same prompt: median with a bootstrap 95 % interval over the
prompts, and the ratio of sums. "Agree" counts the prompts with the verdict of the plain model on our erasures, or where
they were sampled, on the sample; the stray [SEP] in the published erasures makes them other texts. "Apart" is the
largest difference of the float32 score from that of the plain model.
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
from promptguard.errors import InvalidArgument
from promptguard.score.bundled import load_bundled
from promptguard.score.hf import HFFilter
from promptguard.score.linear import linear
from promptguard.score.screen import ScreenedFilter
from promptguard.types import EraseMode
from promptguard.units import Tokens

TITLE = "Every erasure, beside the published procedure"
MODES = {
    "suffix 20": ("suffix", 20, 1),
    "insertion 10": ("insertion", 10, 1),
    "insertion 20": ("insertion", 20, 1),
    "insertion 2 x 3": ("insertion", 3, 2),
    "infusion 1": ("infusion", 1, 1),
    "infusion 2": ("infusion", 2, 1),
    "infusion 3": ("infusion", 3, 1),
}
GROUPS = ("safe", "10", "25", "60", "200", "harmful")  # the paper's test prompts, and everyday text of so many tokens
SCREENS = {"screened": "bfloat16", "int8": "int8"}
WAYS = ("published, 32", "float32", *SCREENS)
SAMPLED_OVER, SAMPLE = 400, 200


def published_erasures(ids: Sequence[int], kind: str, budget: int, blocks: int = 1) -> Iterator[list[int]]:
    """The id sequences that the published code scores, [SEP] among the ids; the prompt itself first."""
    n = len(ids)
    if blocks > 1:
        for erasure in load_mode(kind, budget, blocks).erasures(n):
            gone = {i for start, stop in erasure.runs for i in range(start, stop)}
            yield [token for i, token in enumerate(ids) if i not in gone]
        return
    yield list(ids)
    if kind == "suffix":
        yield from (list(ids[: n - i]) for i in range(1, min(budget, n) + 1))
    if kind == "insertion":
        for start in range(n):
            yield from ([*ids[:start], *ids[end:]] for end in range(start + 1, min(start + budget, n) + 1))
    if kind == "infusion":
        for erased in range(1, budget + 1):
            for gone_ids in combinations(range(n), erased):
                yield [token for i, token in enumerate(ids) if i not in gone_ids]


@dataclass(frozen=True, slots=True)
class Published:
    """The published procedure for one prompt: all its candidates, or a sample of them.

    Attributes:
        classify: the pipeline.
        ids: token ids of what is scored.
        count: candidates that there are.
    """

    classify: Any
    ids: Sequence[Sequence[int]]
    count: int

    @classmethod
    def of(cls, classify: Any, text: str, mode: str, rng: random.Random) -> Published:
        """Cut a prompt; the lengthening by [SEP] is that of the published suffix mode."""
        kind, budget, blocks = MODES[mode]
        ids = classify.tokenizer(text)["input_ids"][1:]
        found = list(published_erasures(ids, kind, budget + (kind == "suffix"), blocks))
        return cls(classify, rng.sample(found, SAMPLE) if len(found) > SAMPLED_OVER else found, len(found))

    def verdict(self, **options: int) -> bool:
        """Decode, tokenise again, classify."""
        texts = [self.classify.tokenizer.decode(kept) for kept in self.ids]
        return any(answer["label"] == "harmful" for answer in self.classify(texts, **options))


@dataclass(frozen=True, slots=True)
class Subject:
    """A model in the forms that are compared."""

    name: str
    exact: HFFilter
    screened: dict[str, ScreenedFilter]
    classify: Any

    @property
    def model(self) -> Any:
        """The transformers model."""
        return self.classify.model


def subject(name: str, screened: Sequence[str] = tuple(SCREENS)) -> Subject:
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
    return Subject(name, exact, screens(exact, screened), classify)


def screens(exact: HFFilter, wanted: Sequence[str]) -> dict[str, ScreenedFilter]:
    """The filter screened in those of the wanted precisions that there are."""
    found = {}
    for way in wanted:
        try:
            found[way] = ScreenedFilter.of(exact, SCREENS[way])
        except InvalidArgument:
            continue
    return found


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


def arithmetic(subject_: Subject, texts: Sequence[str]) -> tuple[float, float]:
    """Floating-point operations of the plain forward passes of these texts, each token once; and after the two cuts."""
    config = subject_.model.config
    layers = getattr(config, "n_layers", None) or config.num_hidden_layers
    hidden = getattr(config, "dim", None) or config.hidden_size
    inner = getattr(config, "hidden_dim", None) or config.intermediate_size
    sequences = subject_.exact.tokenizer(list(texts))["input_ids"]
    tokens, squares = sum(map(len, sequences)), sum(len(ids) ** 2 for ids in sequences)
    each = 2 * (4 * hidden * hidden + 2 * hidden * inner)
    attention = 4 * squares * hidden
    places = len({(place, token) for ids in sequences for place, token in enumerate(ids)})
    first = 6 * hidden * hidden * (tokens - places)  # projections of a token at a place that was met before
    last = (each - 4 * hidden * hidden) * (tokens - len(sequences))  # all but keys and values, of all but one token
    last += attention - 4 * tokens * hidden
    plain = float(layers * (each * tokens + attention))
    return plain, plain - first - last


def _seconds(call: Callable[[], Any]) -> tuple[float, Any]:
    start = time.perf_counter()
    result = call()
    return time.perf_counter() - start, result


def candidates(units: Tokens, text: str, mode: EraseMode) -> list[str]:
    """The distinct texts that erase-and-check scores."""
    pieces = units(text)
    found: dict[str, None] = {}
    for erasure in mode.erasures(len(pieces)):
        gone = {i for start, stop in erasure.runs for i in range(start, stop)}
        found[" ".join("".join(p for i, p in enumerate(pieces) if i not in gone).split())] = None
    return [text for text in found if text]


def measure(subject_: Subject, mode: str, group: str, text: str, rng: random.Random) -> dict[str, Any]:
    """One row: seconds of every way for one prompt, and what they answered."""
    kind, budget, blocks = MODES[mode]
    units, erase = Tokens(subject_.exact.tokenizer), load_mode(kind, budget, blocks)
    theirs = Published.of(subject_.classify, text, mode, rng)
    encoded = subject_.exact.tokenizer(text, return_tensors="pt")
    ready = {key: encoded[key] for key in ("input_ids", "attention_mask")}
    mine = {"float32": subject_.exact, **subject_.screened}
    options: dict[str, Any] = {"early_stop": group == "harmful", "max_checks": None, "max_work": None}
    certifiers = {way: EraseAndCheck(filter_, erase, units, **options) for way, filter_ in mine.items()}

    @torch.inference_mode()
    def forward() -> Any:
        return subject_.model(**ready)

    calls: dict[str, Callable[[], Any]] = {
        "published": theirs.verdict,
        "published, 32": lambda: theirs.verdict(batch_size=32),
        "forward": forward,
        **{way: lambda certifier=certifier: certifier.certify(text) for way, certifier in certifiers.items()},  # type: ignore[misc]
    }
    for way in ("forward", *certifiers):  # the first calls compile kernels
        calls[way]()
    times, answers = {}, {}
    for way in rng.sample(list(calls), len(calls)):
        times[way], answers[way] = _seconds(calls[way])
    for way in ("published", "published, 32"):
        times[way] *= theirs.count / len(theirs.ids)
    erased = candidates(units, text, erase)
    flops, cut = arithmetic(subject_, erased)
    found = {"candidates": len(erased), "flops": flops, "flops_cut": cut, "seconds": times, "tokens": len(units(text))}
    found["published_candidates"] = theirs.count
    found["published_sampled"] = len(theirs.ids) if len(theirs.ids) < theirs.count else None
    return found | _agreement(subject_, erased, answers, rng, stops=options["early_stop"])


def _agreement(
    subject_: Subject, erased: list[str], answers: dict[str, Any], rng: random.Random, *, stops: bool
) -> dict[str, Any]:
    """Whose verdict is that of the plain model, and how far the exact score is from its score."""
    is_sample = len(erased) > SAMPLED_OVER
    looked_at = rng.sample(erased, SAMPLE) if is_sample else erased
    plain = max(_harm(scores) for scores in subject_.classify(looked_at, top_k=None))
    expected = plain >= subject_.exact.threshold
    ours = {way: str(answer.label) == "harmful" for way, answer in answers.items() if hasattr(answer, "label")}
    said = {way: answers[way] for way in ("published", "published, 32")} | ours
    # A sample may miss what is flagged; it cannot score above the maximum.
    agree = {way: label == expected or (is_sample and label and not expected) for way, label in said.items()}
    gap = answers["float32"].score - plain
    return {"agree": agree, "apart": None if stops else (max(0.0, -gap) if is_sample else abs(gap))}


def _harm(scores: list[dict[str, Any]]) -> float:
    return next(float(score["score"]) for score in scores if score["label"] == "harmful")


def prompts(data: Path | None, group: str, count: int) -> list[str]:
    """Test prompts of the paper, drawn with seed 0, or cuts of a passage of our own with so many tokens, about."""
    if group in {"safe", "harmful"} and data is not None:
        rows = read_lines(data)
        found = [row["text"] for row in rows if (row["source"], row["label"]) == ("kumar_erase_check", group)]
        return random.Random(0).sample(found, count)
    words = PASSAGE.split() * 2
    size = round(int(group if group.isdecimal() else 15) / 1.2)  # words; marks are tokens too
    return [" ".join(words[11 * i :][:size]) for i in range(count)]


def tables(results: Path) -> list[Table]:
    """Speed-up over the published procedure."""
    rows = read_lines(results / "speed" / "rows.jsonl")
    found = []
    for threads in sorted({row["threads"] for row in rows}, reverse=True):
        some = [row for row in rows if row["threads"] == threads]
        ways = [way for way in WAYS if any(way in row["seconds"] for row in some)]
        heads = [
            "model, mode",
            "prompts",
            *ways,
            "floor",
            "floor, cut",
            "candidates/s",
            "cut floor / float32",
            "forwards",
        ]
        for stops in (False, True):
            cells: dict[tuple[str, str, str], list[dict[str, Any]]] = {}
            for row in some:
                if (row["group"] == "harmful") == stops:
                    cells.setdefault((row["model"], row["mode"], row["group"]), []).append(row)
            title = "Harmful prompts, ours stopping early" if stops else "Times faster than the published procedure"
            lines = [_line(*key, cell, ways) for key, cell in cells.items()]
            note = (
                'Median [95 %], ratio of sums. Candidates per second, the share of the floor and "forwards" (plain '
                "forward passes that a certificate costs) are for float32. Agree: published one at a time and by 32, "
                "float32, screens. * 200 of the published candidates were timed, and their time scaled."
            )
            found.append(Table(f"{title}; {threads} threads", [*heads, "agree", "apart"], lines, note))
    return [*found, _memory(read_lines(results / "speed" / "memory.jsonl"))]


def _line(model: str, mode: str, group: str, rows: Sequence[dict[str, Any]], ways: Sequence[str]) -> list[str]:
    base = [row["seconds"]["published"] for row in rows]
    columns = [[row["seconds"].get(way) for row in rows] for way in ways]
    columns += [[row[flops] / row["matmul_rate"] for row in rows] for flops in ("flops", "flops_cut")]
    mine = sum(row["seconds"]["float32"] for row in rows)
    rate = sum(row["candidates"] for row in rows) / mine
    share = sum(row["flops_cut"] / row["matmul_rate"] for row in rows) / mine
    forwards = statistics.median(row["seconds"]["float32"] / row["seconds"]["forward"] for row in rows)
    agreed = "/".join(str(sum(row["agree"][way] for row in rows)) for way in rows[0]["agree"])
    apart = [row["apart"] for row in rows if row["apart"] is not None]
    star = "*" if any(row["published_sampled"] for row in rows) else ""
    about = f"{len(rows)} {group}" + (" tokens" if group.isdecimal() else "")
    numbers = [f"{rate:.0f}", f"{100 * share:.0f} %", f"{forwards:.1f}", f"{agreed} of {len(rows)}"]
    last = f"{max(apart):.0e}" if apart else ""
    return [f"{model}, {mode}{star}", about, *(_ratio(base, column) for column in columns), *numbers, last]


def _ratio(base: Sequence[float], mine: Sequence[float | None]) -> str:
    pairs = [(a, b) for a, b in zip(base, mine, strict=True) if b is not None]
    if not pairs:
        return ""
    ratios = [a / b for a, b in pairs]
    rng = random.Random(0)
    medians = sorted(statistics.median(rng.choices(ratios, k=len(ratios))) for _ in range(1000))
    sums = sum(a for a, _ in pairs) / sum(b for _, b in pairs)
    return f"{statistics.median(ratios):.1f} [{medians[25]:.1f}, {medians[974]:.1f}], {sums:.1f}"


def _memory(rows: Sequence[dict[str, Any]]) -> Table:
    lines = [[row["model"], row["way"], f"{row['peak_mb']:.0f} MB", f"{row['rest_mb']:.0f} MB"] for row in rows]
    note = "Largest resident memory of a process of its own that runs insertion 10 on 4 prompts, and before the first."
    return Table("Peak memory", ["model", "way", "peak", "with the model loaded"], lines, note)


def run_rows(args: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Rows in the order in which they are measured."""
    for name in args.models:
        subject_ = subject(name)
        width = getattr(subject_.model.config, "dim", None) or subject_.model.config.hidden_size
        for mode in args.modes:
            for group in args.groups:
                rng = random.Random(f"{args.seed} {name} {mode} {group}")
                for number, text in enumerate(prompts(args.data, group, args.prompts)):
                    about = {"model": name, "mode": mode, "group": group, "prompt": number, "threads": args.threads}
                    row = about | measure(subject_, mode, group, text, rng)
                    row |= {"matmul_rate": matmul_rate(width), "seed": args.seed, "torch": torch.__version__}
                    yield row | {"load": round(os.getloadavg()[0], 2)}


def memory_row(name: str, way: str, data: Path | None, threads: int) -> dict[str, Any]:
    """Resident memory of this process, which has done nothing yet, in one way over some prompts."""
    subject_ = subject(name, [way] if way in SCREENS else [])
    if way in SCREENS and way not in subject_.screened:
        raise SystemExit(f"there is no screening in {SCREENS[way]}")
    kind, budget, blocks = MODES["insertion 10"]
    filter_ = subject_.screened.get(way, subject_.exact)
    certifier = EraseAndCheck(
        filter_, load_mode(kind, budget, blocks), Tokens(subject_.exact.tokenizer), early_stop=False
    )
    rest = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for text in prompts(data, "safe", 4):
        if way == "published, 32":
            Published.of(subject_.classify, text, "insertion 10", random.Random(0)).verdict(batch_size=32)
        else:
            certifier.certify(text)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return {"model": name, "way": way, "peak_mb": peak / 1e3, "rest_mb": rest / 1e3, "threads": threads}


def main() -> None:
    """Measure, and append rows to a file if one is given."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("data", type=Path, nargs="?", help="bench.jsonl: the paper's test prompts")
    parser.add_argument("--models", nargs="+", choices=["minilm", "distilbert"], default=["minilm", "distilbert"])
    parser.add_argument("--modes", nargs="+", choices=list(MODES), default=["suffix 20", "insertion 10"])
    parser.add_argument("--groups", nargs="+", choices=GROUPS, default=["safe"])
    parser.add_argument("--prompts", type=int, default=20)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--memory", choices=WAYS, help="peak memory of one way instead, with the first of the models")
    parser.add_argument("--out", type=Path, help="JSON lines are appended here")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    peaks = [memory_row(args.models[0], args.memory, args.data, args.threads)] if args.memory else None
    for row in peaks or run_rows(args):
        print({key: round(value, 3) if isinstance(value, float) else value for key, value in row.items()}, flush=True)
        if args.out:
            with args.out.open("a", encoding="utf-8") as rows:
                rows.write(json.dumps(row, sort_keys=True) + "\n")


if __name__ == "__main__":
    main()
