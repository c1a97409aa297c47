"""The logits that a causal language model gives to a few tokens after each of many sequences, in few forwards.

Sequences are laid out as tries (`promptguard.score.trie`): what they share is read once, and each end is read where the
model would stand had it read that sequence alone. A beginning that all sequences of a filter share, such as a system
prompt, is read once for the life of the filter: its key and value states are kept.

A 4-D mask replaces everything that a model would make of its own mask, so the architectures for which this is right are
listed: each is compared in the tests with the model run on one sequence at a time, past its attention window too. Any
other model reads one sequence at a time.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers import DynamicCache

from promptguard.errors import FilterError, discreetly
from promptguard.score.introspect import stretches
from promptguard.score.trie import Trie, pack_tries

# `config.model_type` of the decoders that take one mask for all their layers, and of those that take one per kind.
ONE_MASK = frozenset(
    {"llama", "mistral", "mixtral", "gemma", "granite", "phi3", "qwen3_moe", "gpt2", "gpt_neox"}
)  # fmt: skip
MASK_BY_LAYER = frozenset({"qwen2", "qwen3", "gemma2", "gemma3_text", "llama4_text"})
_LAYERS = frozenset({"full_attention", "sliding_attention", "chunked_attention"})
# These stretch the positions of every sequence by the longest in the forward: a score would depend on its neighbours.


@dataclass(frozen=True, slots=True)
class _Head:
    """A common beginning of sequences and its states: one (keys, values) per layer."""

    ids: tuple[int, ...]
    states: tuple[tuple[torch.Tensor, torch.Tensor], ...]


class SequenceReader:
    """Reads the logits of `tokens` after token sequences. The model must keep its weights."""

    def __init__(self, model: Any, tokens: Sequence[int], *, max_nodes: int, packed: bool, name: str) -> None:
        """Make the reader.

        Args:
            model: a transformers `...ForCausalLM` in evaluation mode.
            tokens: ids whose logits are wanted.
            max_nodes: token positions in one forward; a single longer sequence is read alone.
            packed: share what sequences have in common, where the architecture allows it.
            name: the filter's, for errors.
        """
        self._model = model
        self._tokens = list(tokens)
        self._max_nodes = max_nodes
        self._name = name
        self._ends_only = "logits_to_keep" in inspect.signature(model.forward).parameters
        self._heads: list[_Head] = []
        self.packed = packed and can_pack(model)

    def __call__(self, sequences: Sequence[Sequence[int]]) -> torch.Tensor:
        """Logits of shape (sequences, tokens), float64, on the CPU.

        Raises:
            FilterError: the model fails or gives logits that are not finite.
        """
        logits = torch.empty(len(sequences), len(self._tokens), dtype=torch.float64)
        if not self.packed:
            for index, sequence in enumerate(sequences):
                logits[index] = self.alone(sequence)
            return logits
        for head, members in self._grouped(sequences):
            skipped = len(head.ids) if head else 0
            rests = [sequences[index][skipped:] for index in members]
            for trie, held in pack_tries(rests, self._max_nodes):
                if len(trie) > self._max_nodes:  # one long sequence: its mask would be larger than the work it saves
                    logits[members[held[0]]] = self.alone(sequences[members[held[0]]])
                else:
                    logits[[members[at] for at in held]] = self._read(trie, head)
        return logits

    @torch.inference_mode()
    def alone(self, sequence: Sequence[int]) -> torch.Tensor:
        """Logits of shape (tokens,) after one sequence: the plain model, without any mask of ours."""
        keep = {"logits_to_keep": 1} if self._ends_only else {}
        return self._wanted(self._forward(sequence, use_cache=False, **keep).logits[0, -1:])[0]

    @torch.inference_mode()
    def remember(self, ids: Sequence[int]) -> None:
        """Keep the states of a beginning; sequences that go on from it are read from there."""
        if self.packed and ids:
            cache = self._forward(ids, past_key_values=DynamicCache(), use_cache=True).past_key_values
            self._heads.append(_Head(tuple(ids), tuple((layer.keys, layer.values) for layer in cache.layers)))

    def forget(self) -> None:
        """Read one sequence at a time from now on."""
        self.packed = False
        self._heads.clear()

    def _grouped(self, sequences: Sequence[Sequence[int]]) -> Iterable[tuple[_Head | None, list[int]]]:
        """Indices of the sequences by the kept beginning that they go on from."""
        groups: dict[int, list[int]] = {}
        for index, sequence in enumerate(sequences):
            fits = (at for at, head in enumerate(self._heads) if _goes_on(sequence, head.ids))
            groups.setdefault(next(fits, -1), []).append(index)
        return [(self._heads[at] if at >= 0 else None, members) for at, members in groups.items()]

    @torch.inference_mode()
    def _read(self, trie: Trie, head: _Head | None) -> torch.Tensor:
        """Logits of shape (leaves, tokens) of a trie that stands behind a head."""
        start = len(head.ids) if head else 0
        depths = torch.tensor(trie.depths) + start
        inputs: dict[str, Any] = {
            "attention_mask": self._masks(trie, depths, start),
            "position_ids": depths[None].to(self._model.device),
            "past_key_values": DynamicCache(head.states) if head else None,
            "use_cache": False,
        }
        leaves = torch.tensor(trie.leaves, device=self._model.device)
        if self._ends_only:
            return self._wanted(self._forward(trie.ids, logits_to_keep=leaves, **inputs).logits[0])
        return self._wanted(self._forward(trie.ids, **inputs).logits[0, leaves])

    def _masks(self, trie: Trie, depths: torch.Tensor, start: int) -> Any:
        """The additive mask of every kind of layer, or the one mask; shape (1, 1, nodes, start + nodes)."""
        config = self._model.config
        window, chunk = getattr(config, "sliding_window", None), getattr(config, "attention_chunk_size", None)
        if config.model_type in ONE_MASK:
            return self._additive(trie, depths, start, window=window)
        limits: dict[str, dict[str, int | None]] = {
            "full_attention": {},
            "sliding_attention": {"window": window},
            "chunked_attention": {"chunk": chunk},
        }
        return {kind: self._additive(trie, depths, start, **limits[kind]) for kind in set(config.layer_types)}

    def _additive(
        self, trie: Trie, depths: torch.Tensor, start: int, window: int | None = None, chunk: int | None = None
    ) -> torch.Tensor:
        seen = torch.cat([torch.ones(len(trie), start, dtype=torch.bool), trie.visible(window)], dim=1)
        positions = torch.cat([torch.arange(start), depths])
        if window is not None:
            seen &= depths[:, None] - positions[None, :] < window
        if chunk is not None:
            seen &= depths[:, None] // chunk == positions[None, :] // chunk
        mask = torch.zeros(seen.shape, dtype=self._model.dtype)
        mask.masked_fill_(~seen, torch.finfo(self._model.dtype).min)
        return mask[None, None].to(self._model.device)

    def _forward(self, ids: Sequence[int], **inputs: Any) -> Any:
        row = torch.tensor([list(ids)], device=self._model.device)
        # Autocast that the caller has on would change the scores, and is another thing in another thread.
        with torch.autocast(self._model.device.type, enabled=False):
            return discreetly(f"the model of filter {self._name}", lambda: self._model(input_ids=row, **inputs))

    def _wanted(self, logits: torch.Tensor) -> torch.Tensor:
        wanted = logits[:, self._tokens].cpu().double()
        if not bool(torch.isfinite(wanted).all()):
            raise FilterError(f"the model of filter {self._name} gave logits that are not finite: check its weights")
        return wanted


def can_pack(model: Any) -> bool:
    """Whether many sequences in one forward, under a mask of ours, are what the model makes of each."""
    config = model.config
    if config.model_type not in ONE_MASK | MASK_BY_LAYER:
        return False
    if config.model_type in MASK_BY_LAYER and not set(config.layer_types) <= _LAYERS:
        return False
    if getattr(config, "use_bidirectional_attention", False) or getattr(config, "is_causal", True) is False:
        return False
    # Other implementations of attention ignore a 4-D mask or take another kind.
    return config._attn_implementation in {"eager", "sdpa"} and not stretches(config)


def _goes_on(sequence: Sequence[int], head: Sequence[int]) -> bool:
    """Whether the sequence begins with the head and does not end with it."""
    return len(sequence) > len(head) and tuple(sequence[: len(head)]) == tuple(head)
