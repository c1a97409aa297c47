"""Guard an LLM call and see what each attack achieves. Run by `make demo`.

A small untrained Llama, built on the spot, stands in for your model: what matters is whether the call reaches it.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text
from tokenizers import Tokenizer, models, pre_tokenizers
from tqdm import tqdm
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast, pipeline

from promptguard import EraseAndCheck, Guard, load_filter, load_mode, load_units
from promptguard.middleware.pipeline import guard_pipeline
from promptguard.types import Verdict

PROMPTS = Path(__file__).with_name("demo_prompts.jsonl")
BUDGETS = {"suffix": 20, "insertion": 15, "infusion": 2}


@dataclass(frozen=True)
class Case:
    """A prompt as it reaches the guard, the mode that undoes what was done to it, and how to show it."""

    mode: str
    text: str
    shown: str
    is_last: bool = False


def cases(row: dict[str, Any]) -> Iterator[Case]:
    """A prompt alone and, if it is harmful, under three attacks."""
    text = row["text"]
    yield Case("suffix", text, text)
    if row["kind"] == "harmful":
        words = text.split()
        middle = len(words) // 2
        first, second = row["infused"]
        head, tail = words[:middle], words[middle:]
        yield Case("suffix", f"{text} {row['suffix']}", f"  + suffix: {row['suffix']}")
        yield Case("insertion", " ".join([*head, row["block"], *tail]), f"  + in the middle: {row['block']}")
        infused = " ".join([head[0], first, *head[1:], second, *tail])
        yield Case("infusion", infused, f"  + here and there: {first} ... {second}", is_last=True)


def untrained_llama() -> Any:
    """A text-generation pipeline around a random Llama with a byte-level vocabulary."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({char: i for i, char in enumerate(["</s>", *alphabet])}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="</s>", pad_token="</s>")
    config = LlamaConfig(
        vocab_size=len(fast), hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2,
        eos_token_id=0, pad_token_id=0, bos_token_id=None,
    )  # fmt: skip
    return pipeline("text-generation", model=LlamaForCausalLM(config), tokenizer=fast)


def certificate(verdict: Verdict) -> str:
    """The certificate in a few words: what may still be added."""
    if verdict.certificate is None:
        return "-"
    budget = verdict.certificate.threat.budget
    words = f"{budget} word{'' if budget == 1 else 's'}"
    return {"suffix": f"+ {words} after", "insertion": f"+ block of {words}", "infusion": f"+ {words} anywhere"}[
        verdict.certificate.threat.kind
    ]


def main() -> None:
    """Check every case, call the model through the guard, print one table."""
    console = Console()
    if not console.is_terminal:
        console = Console(width=120)
    rows = [json.loads(line) for line in PROMPTS.read_text(encoding="utf-8").splitlines()]
    filter_ = load_filter("minilm")
    guards = {
        mode: Guard(EraseAndCheck(filter_, load_mode(mode, budget), load_units("word")))
        for mode, budget in BUDGETS.items()
    }
    llm = untrained_llama()
    table = Table(
        title="promptguard: filter minilm, words as units",
        caption="certificate: what may still be added without changing the verdict; LLM: was it called?",
        expand=True,
    )
    table.add_column("prompt", no_wrap=True, overflow="ellipsis", ratio=1)
    for name, width in {"verdict": 7, "certificate": 20, "checks": 6, "ms": 4, "LLM": 3}.items():
        table.add_column(name, no_wrap=True, min_width=width, justify="right" if name in {"checks", "ms"} else "left")
    for guard in guards.values():
        guard.check("warm up")
    todo = [case for row in rows for case in cases(row)]
    for case in tqdm(todo, delay=2, leave=False, disable=not sys.stderr.isatty()):
        decision = guards[case.mode].check(case.text)
        verdict = decision.parts[0].verdict
        reply = guard_pipeline(llm, guards[case.mode])(case.text, max_new_tokens=4)
        table.add_row(
            Text(case.shown),
            "[green]safe[/]" if decision.allowed else "[bold red]harmful[/]",
            certificate(verdict) if verdict else "-",
            str(decision.checks),
            f"{decision.milliseconds:.0f}",
            "no" if reply[0].get("blocked") else "yes",
            end_section=case.is_last,
        )
    console.print(table)


if __name__ == "__main__":
    main()
