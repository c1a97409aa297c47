"""Causal classifiers as filters: one forward pass scores every prefix of a text.

In a causal model the state after token i depends on the tokens up to i only, so the score that the model would give to
a prefix stands at the prefix's last token already. The maximum over all suffix erasures, of any number of units, costs
one pass. Prefixes that end inside a word have tokens of their own; they are short branches beside the text, packed into
the same pass with a 4-D attention mask (`promptguard.score.trie`).

Works for decoders with a classification head (`LlamaForSequenceClassification`, Qwen, Mistral, GPT-2) and for encoders
turned causal by `is_decoder=True` with a head on every token (`BertForTokenClassification`).
"""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from promptguard.errors import FilterError, InvalidArgument
from promptguard.score import checkpoint
from promptguard.score.batches import pack
from promptguard.score.classifier import Classifier, checked_band, checked_batch, checked_threshold, repository
from promptguard.score.families import Activation
from promptguard.score.introspect import GUARD_BANDS, default_window, position_limit
from promptguard.score.labels import LabelChoice, readout
from promptguard.score.prefix_tokens import Ids, PrefixTokenizer
from promptguard.score.token_gradient import classifier_tokens
from promptguard.score.trie import Trie, pack_tries

_MAX_NODES = 512


class CausalFilter:
    """The probability of harm at the last token of a text, as a `PrefixFilter`.

    The score of a text longer than the window is the largest over its windows. A text without a single token (the empty
    string, for a tokenizer without special tokens) scores 0.0.
    """

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        *,
        label: LabelChoice | None = None,
        activation: Activation | str | None = None,
        family: str | None = None,
        threshold: float = 0.5,
        window: int | None = None,
        overlap: int | None = None,
        batch_tokens: int | None = None,
        name: str | None = None,
        guard_band: float | None = None,
    ) -> None:
        """Make the filter; the model is put into evaluation mode and must keep its weights from then on.

        Args:
            model: a causal transformers classifier in float32 or bfloat16, on its device.
            tokenizer: its fast tokenizer; copied.
            label: as for `HFFilter`.
            activation: as for `HFFilter`.
            family: as for `HFFilter`.
            threshold: scores at or above it are harmful.
            window: tokens that the model reads at once, special ones included; default the most it accepts, and no
                more than its attention reaches back.
            overlap: tokens that neighbouring windows share; default a quarter of the window.
            batch_tokens: tokens in one forward pass, padding included; default 2048 on a CPU, 16384 elsewhere.
            name: for people; default the model's repository or folder.
            guard_band: how far a score may move with its batch; default 1e-4 in float32 and 5e-2 in bfloat16.

        Raises:
            LabelError: the harmful label is unknown or ambiguous.
            InvalidArgument: threshold, window, overlap, batch_tokens, guard_band or tokenizer cannot be used.
            FilterError: the model is quantised, fails, is not causal, or has no head that reads one token.
        """
        known = name or repository(model)
        chosen = readout(model.config, label=label, activation=activation, family=family, repository=known)
        self._classifier = Classifier(model, chosen, known.rsplit("/", 1)[-1] or None)
        self._model = self._classifier.model
        window = _default_window(model, tokenizer) if window is None else window
        if window > (position_limit(model) or window):
            raise InvalidArgument(f"window {window} is over the {position_limit(model)} positions of the model")
        if window > (_reach(model) or window):
            raise InvalidArgument(f"window {window} is over the {_reach(model)} tokens that attention reaches back")
        self._tokenizer = PrefixTokenizer(tokenizer, window, window // 4 if overlap is None else overlap)
        self.tokenizer = tokenizer
        self.tokens = classifier_tokens(self._classifier, tokenizer, window)
        self.name = self._classifier.name
        self.threshold = checked_threshold(threshold)
        self.guard_band = checked_band(guard_band, model.dtype)
        self._batch_tokens = checked_batch(batch_tokens, model.device.type)
        self._backbone = getattr(model, model.base_model_prefix)
        self._head = getattr(model, "score", None) or getattr(model, "classifier", None)
        if self._head is None:
            raise FilterError(f"{type(model).__name__} has no classification head that is known: use HFFilter")
        accepted = inspect.signature(self._backbone.forward).parameters
        self._settings = {"use_cache": False} if "use_cache" in accepted else {}
        self._branches = {"attention_mask", "position_ids"} <= set(accepted)
        self._probe()

    @classmethod
    def load(
        cls,
        path_or_hub_id: str | Path,
        *,
        label: LabelChoice | None = None,
        family: str | None = None,
        threshold: float | None = None,
        device: str = "cpu",
        dtype: str = "float32",
        revision: str | None = None,
    ) -> CausalFilter:
        """Load a causal classifier from a local folder, or from the hub cache or the hub; as `HFFilter.load`.

        Raises:
            UnknownName: there is no such folder or repository.
            WeightsError: weights are missing, incomplete, pickled or need code, or the hub cannot be reached.
            LabelError: the harmful label is unknown or ambiguous.
            InvalidArgument: `device` or `dtype` cannot be used.
            FilterError: the model is not causal.
        """
        loaded = checkpoint.load(checkpoint.fetch(path_or_hub_id, revision), device=device, dtype=dtype)
        chosen = 0.5 if threshold is None else threshold
        name = str(path_or_hub_id)
        return cls(loaded.model, loaded.tokenizer, label=label, family=family, threshold=chosen, name=name)

    @property
    def window(self) -> int:
        """Tokens that the model reads at once, special ones included."""
        return self._tokenizer.window

    @property
    def overlap(self) -> int:
        """Tokens that neighbouring windows share."""
        return self._tokenizer.overlap

    @cached_property
    def digest(self) -> str:
        """sha256 of everything that decides a score: model, tokenizer, labels, activation, precision, windows."""
        return self._classifier.digest(
            reads="last token", tokenizer=self._tokenizer.digest, window=self.window, overlap=self.overlap
        )

    def __call__(self, texts: Sequence[str]) -> list[float]:
        """One probability of harm per text, float64; texts that begin alike share the work.

        Raises:
            FilterError: the tokenizer refuses a text, the model fails, is in training mode, or gives NaN.
        """
        if isinstance(texts, str):
            raise FilterError(f"filter {self.name} takes a list of texts, not one string")
        return self._largest(self._tokenizer.texts(texts))

    def prefix_scores(self, texts: Sequence[str], ends: Sequence[Sequence[int]]) -> list[list[float]]:
        """The score of text[:end] for each text and each of its ends, in one pass over each text.

        Args:
            texts: canonical texts: single spaces between words, none around them.
            ends: for each text, code point offsets.

        Raises:
            FilterError: as for a call.
        """
        parts = [self._tokenizer.prefixes(text, cuts) for text, cuts in zip(texts, ends, strict=True)]
        scores = iter(self._largest([windows for part in parts for windows in part]))
        return [[next(scores) for _ in part] for part in parts]

    def _largest(self, groups: Sequence[list[Ids]]) -> list[float]:
        """For each group of windows the largest score; each distinct window is scored once."""
        distinct = list(dict.fromkeys(window for group in groups for window in group))
        known = dict(zip(distinct, self._score(distinct), strict=True))
        return [max(known[window] for window in group) for group in groups]

    @torch.inference_mode()
    def _score(self, sequences: Sequence[Ids]) -> list[float]:
        """Harm at the end of each sequence, in order; 0.0 for an empty one."""
        self._classifier.refuse_training()
        scores = [0.0] * len(sequences)
        filled = [index for index, sequence in enumerate(sequences) if sequence]
        packed = [(trie, [filled[at] for at in held]) for trie, held in self._tries([sequences[i] for i in filled])]
        chains = [pair for pair in packed if pair[0].is_chain()]
        for batch in pack([len(trie) for trie, _ in chains], self._batch_tokens):
            rows = [chains[at] for at in batch]
            _put(scores, rows, self._harm(self._run_chains([trie for trie, _ in rows])))
        for trie, held in packed:
            if not trie.is_chain():
                _put(scores, [(trie, held)], self._harm(self._run_tree(trie)))
        return scores

    def _tries(self, sequences: Sequence[Ids]) -> Iterator[tuple[Trie, list[int]]]:
        if self._branches:
            return pack_tries(sequences, _MAX_NODES, related=True)
        return ((trie, [at]) for at, sequence in enumerate(sequences) for trie, _ in pack_tries([sequence], _MAX_NODES))

    def _run_chains(self, chains: Sequence[Trie]) -> torch.Tensor:
        """States at the leaves of plain sequences. What pads on the right comes after every token and is never seen."""
        longest = max(map(len, chains))
        ids = torch.tensor([chain.ids + chain.ids[:1] * (longest - len(chain)) for chain in chains])
        found = self._states(input_ids=ids.to(self._model.device))
        return torch.cat([found[row, chain.leaves] for row, chain in enumerate(chains)])

    def _run_tree(self, trie: Trie) -> torch.Tensor:
        """States at the leaves of a trie, each node seeing its ancestors."""
        device, dtype = self._model.device, self._model.dtype
        hidden = torch.zeros(1, 1, len(trie), len(trie), dtype=dtype)
        hidden.masked_fill_(~trie.visible(), torch.finfo(dtype).min)
        depths = torch.tensor([trie.depths], device=device)
        ids = torch.tensor([trie.ids], device=device)
        return self._states(input_ids=ids, position_ids=depths, attention_mask=hidden.to(device))[0, trie.leaves]

    def _states(self, **batch: torch.Tensor) -> torch.Tensor:
        states: torch.Tensor = self._classifier.call(self._backbone, **batch, **self._settings).last_hidden_state
        return states

    def _logits(self, states: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self._classifier.call(self._head, states)
        return logits

    def _harm(self, states: torch.Tensor) -> list[float]:
        harm: list[float] = self._classifier.harm(self._logits(states)).tolist()
        return harm

    @torch.inference_mode()
    def _probe(self) -> None:
        """Check that the model is causal, that its head reads states one by one, and whether branches may be packed.

        Logits are compared, not scores: a model that is sure of its answer would hide a difference.
        """
        first, other = self._probes()
        chains = [self._logits(self._run_chains([pack_one(ids, ends=len(ids))])) for ids in (first, other)]
        # The slope of a probability by a logit is at most 1/4.
        band = 4 * max(self.guard_band, GUARD_BANDS[torch.float32]) * max(1.0, float(chains[0].abs().max()))
        if _apart(chains[0][:-1], chains[1][:-1]) > band:
            raise FilterError(f"the model of filter {self.name} is not causal, tokens see later ones: use HFFilter")
        alone = torch.cat([self._whole(ids) for ids in (first, other)])
        if _apart(alone, torch.stack([chain[-1] for chain in chains])) > band:
            raise FilterError(f"the head of filter {self.name} reads more than the last token: use HFFilter")
        if not self._branches:
            return
        middle = len(first) // 2
        forks = [first, other, (*first[:middle], *other[:1], *first[middle + 1 :])]
        try:
            ((trie, held),) = pack_tries(forks, 3 * len(first))
            packed = self._logits(self._run_tree(trie))
        except FilterError:  # It takes no mask of ours.
            self._branches = False
            return
        singly = torch.cat([self._whole(forks[index]) for index in held])
        self._branches = _apart(packed, singly) <= band

    def _probes(self) -> tuple[Ids, Ids]:
        """Two sequences as long as a window allows, at most 128 tokens, that differ in the last token only."""
        size = min(self.window, 128)
        draw = torch.Generator().manual_seed(0)
        embedded = self._model.get_input_embeddings().num_embeddings
        ids = torch.randint(embedded, (size,), generator=draw).tolist()
        return tuple(ids), (*ids[:-1], (ids[-1] + embedded // 2) % embedded)

    @torch.inference_mode()
    def _whole(self, ids: Ids) -> torch.Tensor:
        """Logits of shape (1, labels) by the model's own forward."""
        found = self._classifier.call(self._model, input_ids=torch.tensor([ids], device=self._model.device)).logits
        logits: torch.Tensor = found[:, -1] if found.ndim == 3 else found
        return logits


def _apart(one: torch.Tensor, other: torch.Tensor) -> float:
    """The largest difference; infinite where one is not a number."""
    gap = (one.double() - other.double()).abs()
    return float(gap.max()) if bool(torch.isfinite(gap).all()) else float("inf")


def pack_one(sequence: Ids, ends: int) -> Trie:
    """A trie of the first `ends` prefixes of a sequence: a chain with a leaf at every node."""
    trie = Trie()
    for end in range(1, ends + 1):
        trie.add(sequence[:end])
    return trie


def _put(scores: list[float], rows: Iterable[tuple[Trie, list[int]]], harm: Sequence[float]) -> None:
    for index, score in zip((index for _, held in rows for index in held), harm, strict=True):
        scores[index] = score


def _reach(model: Any) -> int | None:
    """Tokens that sliding-window attention reaches back; None when it reaches all."""
    config = model.config.get_text_config()
    sizes = (getattr(config, name, None) for name in ("sliding_window", "attention_chunk_size"))
    return min((size for size in sizes if isinstance(size, int) and size > 0), default=None)


def _default_window(model: Any, tokenizer: Any) -> int:
    """What model and tokenizer accept; a text's state must see the whole window, so attention must reach that far."""
    return min(default_window(model, tokenizer), _reach(model) or default_window(model, tokenizer))
