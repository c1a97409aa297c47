"""How much a language model reads for one verdict: erasures together against one by one.

Counts token positions given to a small, randomly initialised model of each architecture, for `max_erase` words erased
behind a system prompt of 100 tokens, and takes the median time of a verdict. Weights do not matter for the counts; the
times are those of a small model on this machine. The threshold is 1, so that every prompt is checked to the end, as
every safe one is.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from pathlib import Path
from typing import Any

import torch
import transformers
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from benchmarks.table import Table, read_lines
from promptguard import EraseAndCheck
from promptguard.erase import load_mode
from promptguard.score.judge import JudgeFilter
from promptguard.score.judges import JudgeFamily
from promptguard.units import Words

TITLE = "What a judge reads for one verdict"
SYSTEM_TOKENS = 100
PROMPTS = (
    "Explain in simple words how a suspension bridge carries the weight of the cars that cross it every day",
    "Write a short letter to my neighbour who kindly watered all of my plants while I was away on a long holiday "
    "by the sea, and thank her for the tomatoes that she left in front of my door",
    "What should I pay attention to when I buy a used bicycle from somebody whom I have never met before",
    "Give me a recipe for a vegetable soup that a family of four can eat for two days, with a list of what to buy, how "
    "much it is going to cost, and which parts of it can be prepared on the evening before",
    "Summarise the history of the printing press for a class of ten year old children who have never seen one at work",
)
# The format of Llama 3: five tokens close the conversation behind the prompt.
TEMPLATE = (
    "<|begin_of_text|>{% for message in messages %}<|start_header_id|>{{ message['role'] }}<|end_header_id|>\n\n"
    "{{ message['content'] }}<|eot_id|>{% endfor %}<|start_header_id|>assistant<|end_header_id|>\n\n"
)
CONTROLS = ["<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"]
SLIDING = {"sliding_window": 64}
ARCHITECTURES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("Llama", {}),
    "qwen3": ("Qwen3", {}),
    "mistral, sliding window of 64": ("Mistral", SLIDING),
    "gemma 2, sliding window of 64": ("Gemma2", SLIDING),
    "gemma 3, sliding window of 64": ("Gemma3", SLIDING),
}


def make_tokenizer() -> Any:
    """A byte-level tokenizer in which the words of the prompts are single tokens."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=4000, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator([*PROMPTS, "system user assistant", "\n\n"], trainer)
    fast: Any = PreTrainedTokenizerFast
    wrapped = fast(tokenizer_object=tokenizer)
    wrapped.add_special_tokens({"additional_special_tokens": CONTROLS})
    wrapped.chat_template = TEMPLATE
    return wrapped


def make_model(prefix: str, vocabulary: int, own: dict[str, Any]) -> Any:
    """Four layers of an architecture, random weights."""
    size = {"hidden_size": 256, "intermediate_size": 688, "num_hidden_layers": 4, "num_attention_heads": 4}
    more = {"num_key_value_heads": 2, "head_dim": 64, "max_position_embeddings": 2048, "pad_token_id": None}
    config = getattr(transformers, f"{prefix}TextConfig" if prefix == "Gemma3" else f"{prefix}Config")
    torch.manual_seed(0)
    model = getattr(transformers, f"{prefix}ForCausalLM")(config(vocab_size=vocabulary, **size, **more, **own))
    return model.eval()


def measure(name: str, max_erase: int, repeats: int) -> dict[str, Any]:
    """One row: counts and times of an architecture, summed or the median over the prompts."""
    tokenizer = make_tokenizer()
    model = make_model(ARCHITECTURES[name][0], len(tokenizer), ARCHITECTURES[name][1])
    family = JudgeFamily("benchmark", ("Yes", "No"), frozenset({"Yes"}), "this file", system=" the" * SYSTEM_TOKENS)
    positions: list[int] = []
    model.get_input_embeddings().register_forward_hook(lambda module, given, output: positions.append(given[0].numel()))
    row: dict[str, Any] = {
        "benchmark": "judge_positions",
        "architecture": name,
        "prompts": len(PROMPTS),
        "max_erase": max_erase,
        "system_tokens": len(tokenizer(family.system, add_special_tokens=False)["input_ids"]),
        "threads": torch.get_num_threads(),
    }
    scores = {}
    for way in ("together", "alone"):
        judge = JudgeFilter(model, tokenizer, family=family, threshold=1.0, packed=way == "together")
        certifier = EraseAndCheck(judge, load_mode("suffix", max_erase), Words(), early_stop=False)
        positions.clear()
        scores[way] = [certifier.certify(prompt).score for prompt in PROMPTS]
        row[f"positions_{way}"], row[f"forwards_{way}"] = sum(positions), len(positions)
        times = []
        for _ in range(repeats):
            for prompt in PROMPTS:
                start = time.perf_counter()
                certifier.certify(prompt)
                times.append(time.perf_counter() - start)
        row[f"median_ms_{way}"] = round(1000 * statistics.median(times), 2)
        if way == "together":
            row["packed"] = judge.packed
    row["positions_ratio"] = round(row["positions_alone"] / row["positions_together"], 2)
    # What the judge reads once in its life, counted again for every verdict: the worst case, a judge used once.
    once = row["system_tokens"] * len(PROMPTS)
    row["positions_ratio_first_verdict"] = round(row["positions_alone"] / (row["positions_together"] + once), 2)
    row["time_ratio"] = round(row["median_ms_alone"] / row["median_ms_together"], 2)
    row["largest_score_difference"] = max(abs(a - b) for a, b in zip(*scores.values(), strict=True))
    return row


def tables(results: Path) -> list[Table]:
    """Counts for each architecture."""
    lines = [
        [
            row["architecture"],
            f"{row['positions_alone']} ({row['forwards_alone']} forwards)",
            f"{row['positions_together']} ({row['forwards_together']} forwards)",
            f"{row['positions_ratio']}",
            f"{row['positions_ratio_first_verdict']}",
            f"{row['largest_score_difference']:.1e}",
        ]
        for row in read_lines(results / "judge-positions" / "rows.jsonl")
    ]
    heads = ["architecture", "token positions, one by one", "together", "times fewer"]
    heads += ["times fewer, the shared beginning read anew for each verdict", "largest difference of scores"]
    return [Table(f"{len(PROMPTS)} prompts, all suffix erasures up to 20 words", heads, lines)]


def main() -> None:
    """Measure every architecture; print rows, and append them to a file if one is given."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--max-erase", type=int, default=20)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, help="JSON lines are appended here")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    for name in ARCHITECTURES:
        row = measure(name, options.max_erase, options.repeats)
        print(
            f"{name}: {row['positions_alone']} token positions one by one, {row['positions_together']} together: "
            f"{row['positions_ratio']} times fewer ({row['positions_ratio_first_verdict']} with the system prompt read "
            f"anew); median verdict {row['median_ms_alone']} ms and {row['median_ms_together']} ms"
        )
        if options.out:
            with options.out.open("a", encoding="utf-8") as rows:
                rows.write(json.dumps(row, sort_keys=True) + "\n")


if __name__ == "__main__":
    main()
