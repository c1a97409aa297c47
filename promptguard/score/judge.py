"""A causal language model as a filter: the probability that its verdict on a prompt is "harmful".

Kumar et al. 2024 (*Certifying LLM Safety against Adversarial Prompting*) let Llama-2, Llama-3 and GPT-3.5 write a
verdict and read it. Here nothing is written: the score is the share of the harmful verdicts in the probability of all
verdicts, read at the token where the verdict begins. All texts of a call are read together, what they share once
(`promptguard.score.packed`): the erasures of a prompt cost little more than the prompt.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from promptguard.errors import FilterError, InvalidArgument, LabelError, WeightsError
from promptguard.score import checkpoint, judges
from promptguard.score.chat import ChatTokenizer
from promptguard.score.introspect import (
    GUARD_BANDS,
    default_guard_band,
    default_window,
    model_digest,
    position_limit,
    refuse_quantised,
)
from promptguard.score.judges import JudgeFamily
from promptguard.score.packed import SequenceReader

# A mask has the square of this many numbers: 64 MB in float32.
_MAX_NODES = 4096
# They part at their first letter, so that what they share is the template's.
_PROBE = ("stop", "The quick brown fox jumps over the lazy dog, again and again.")


class JudgeFilter:
    """A chat model's verdict as a `PrefixFilter`.

    The function scored: the text stands in the family's conversation as token ids (see `promptguard.score.chat`);
    F is the softmax over the verdicts' first tokens, summed over the harmful ones. A text over the window is read in
    overlapping windows, and a family may ask several questions: the largest score counts. It is a fixed function of
    the text, whatever else is in the call, up to the guard band.
    """

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        *,
        family: str | JudgeFamily | None = None,
        threshold: float = 0.5,
        window: int | None = None,
        overlap: int | None = None,
        max_nodes: int = _MAX_NODES,
        packed: bool = True,
        name: str | None = None,
        guard_band: float | None = None,
    ) -> None:
        """Make the filter; the model is put into evaluation mode and must keep its weights from then on.

        Args:
            model: a transformers `...ForCausalLM` in float32 or bfloat16, on its device.
            tokenizer: its fast tokenizer, with a chat template.
            family: how the model is asked: a name in `promptguard.score.judges.JUDGES` or one of your own. None looks
                by the name of its repository; nothing is guessed.
            threshold: scores at or above it are harmful.
            window: tokens that the model reads at once, template included; default the most it accepts.
            overlap: prompt tokens that neighbouring windows share; default a quarter of a window's.
            max_nodes: token positions in one forward.
            packed: read what texts share once, where the architecture is known to allow it and a probe agrees. Without,
                every text is read alone; scores differ by less than the guard band.
            name: for people; default the model's repository or folder.
            guard_band: how far a score may move with its call; default 1e-4 in float32 and 5e-2 in bfloat16.

        Raises:
            LabelError: the family is unknown, or its verdicts do not begin with tokens of their own.
            UnknownName: no family has that name.
            InvalidArgument: threshold, window, overlap, max_nodes, guard_band, tokenizer or template cannot be used.
            FilterError: the model is quantised or fails.
        """
        refuse_quantised(model)
        repository = name or str(getattr(model.config, "_name_or_path", "") or "")
        self.family = judges.find(family, repository)
        self.name = name or Path(repository).name or type(model).__name__
        if not 0.0 <= threshold <= 1.0:
            raise InvalidArgument(f"threshold is {threshold}; scores are probabilities, so it must be in [0, 1]")
        self.threshold = float(threshold)
        self.guard_band = default_guard_band(model.dtype) if guard_band is None else float(guard_band)
        if not 0 <= self.guard_band < math.inf or max_nodes < 1:
            raise InvalidArgument("guard_band must be finite and not negative, max_nodes at least 1")
        window = default_window(model, tokenizer) if window is None else window
        if window > (position_limit(model) or window):
            raise InvalidArgument(f"window {window} is over the {position_limit(model)} positions of the model")
        templates = judges.render(tokenizer, self.family)
        self._chats = [ChatTokenizer(tokenizer, template, window, overlap) for template in templates]
        safe = [label for label in self.family.labels if label not in self.family.harmful]
        found = {chat.label_tokens(sorted(self.family.harmful), safe) for chat in self._chats}
        if len(found) > 1:
            raise LabelError("the verdicts begin with other tokens in other questions of the family")
        self._labels = found.pop()
        self.tokenizer = tokenizer
        self._model = model.eval()
        tokens = [*self._labels.harmful, *self._labels.safe]
        self._reader = SequenceReader(self._model, tokens, max_nodes=max_nodes, packed=packed, name=self.name)
        self._probe()

    @classmethod
    def load(
        cls,
        path_or_hub_id: str | Path,
        *,
        family: str | JudgeFamily | None = None,
        threshold: float | None = None,
        device: str = "cpu",
        dtype: str = "float32",
        revision: str | None = None,
    ) -> JudgeFilter:
        """Load a judge from a local folder, or from the hub cache or the hub; safetensors only, no code.

        Args:
            path_or_hub_id: a folder with `config.json`, tokenizer and safetensors, or `org/name`.
            family: as for the constructor.
            threshold: scores at or above it are harmful; default 0.5.
            device: for instance "cpu" or "cuda".
            dtype: "float32" or "bfloat16".
            revision: commit, tag or branch on the hub.

        Raises:
            UnknownName: there is no such folder, repository or family.
            WeightsError: weights are missing, incomplete, pickled or need code, or the hub cannot be reached.
            LabelError: as for the constructor.
            InvalidArgument: `device` or `dtype` cannot be used, or as for the constructor.
        """
        model, tokenizer = _load(checkpoint.fetch(path_or_hub_id, revision), dtype)
        # A hub snapshot lies in a folder named after a commit; the family is known by the repository's own name.
        model.config._name_or_path = str(path_or_hub_id)
        chosen = 0.5 if threshold is None else threshold
        return cls(checkpoint.place(model, device), tokenizer, family=family, threshold=chosen)

    @property
    def packed(self) -> bool:
        """Whether texts are read together."""
        return self._reader.packed

    @property
    def window(self) -> int:
        """Tokens that the model reads at once, template included."""
        return self._chats[0].window

    @cached_property
    def digest(self) -> str:
        """sha256 of everything that decides a score: model, tokenizer, template, verdicts, precision, windows."""
        parts = {
            "model": model_digest(self._model),
            "chats": [chat.digest for chat in self._chats],
            "harmful": self._labels.harmful,
            "safe": self._labels.safe,
            "dtype": str(self._model.dtype),
        }
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()

    def __call__(self, texts: Sequence[str]) -> list[float]:
        """One probability of harm per text, float64.

        Raises:
            FilterError: the tokenizer refuses a text, the model fails, is in training mode, or gives NaN.
        """
        if isinstance(texts, str):
            raise FilterError(f"filter {self.name} takes a list of texts, not one string")
        if any(module.training for module in self._model.modules()):
            raise FilterError(f"the model of filter {self.name} is in training mode: make a new filter when it is done")
        owners: list[int] = []
        sequences: list[list[int]] = []
        for index, text in enumerate(texts):
            found = self._sequences(text)
            owners += [index] * len(found)
            sequences += found
        scores = [0.0] * len(texts)
        for index, score in zip(owners, self._harm(self._reader(sequences)), strict=True):
            scores[index] = max(scores[index], score)
        return scores

    def prefix_scores(self, texts: Sequence[str], ends: Sequence[Sequence[int]]) -> list[list[float]]:
        """F(text[:end]) for each of a text's ends: one trunk, and at each end a branch of the template's last tokens.

        Args:
            texts: canonical texts.
            ends: for each text, code point offsets, ascending; the prefixes they cut are canonical and not blank.

        Raises:
            FilterError: as for a call.
        """
        scores = iter(self([text[:end] for text, cuts in zip(texts, ends, strict=True) for end in cuts]))
        return [[next(scores) for _ in cuts] for cuts in ends]

    def _sequences(self, text: str) -> list[list[int]]:
        return [ids for chat in self._chats for ids in chat(text)]

    def _harm(self, logits: torch.Tensor) -> list[float]:
        """Logits of shape (sequences, verdict tokens) to probabilities, float64."""
        harm: list[float] = torch.softmax(logits, dim=1)[:, : len(self._labels.harmful)].sum(dim=1).tolist()
        return harm

    def _probe(self) -> None:
        """Keep the states of what every text begins with, and check that reading together changes nothing."""
        probes = [[chat(text)[0] for text in _PROBE] for chat in self._chats]
        sequences = [ids for pair in probes for ids in pair]
        alone = torch.stack([self._reader.alone(ids) for ids in sequences])
        if not self._reader.packed:
            return
        # A probability moves by at most 1/4 of a logit. Not scores: those of a sure judge would hide a difference.
        allowed = 4 * max(self.guard_band, GUARD_BANDS[torch.float32]) * max(1.0, float(alone.abs().max()))
        try:
            for first, second in probes:
                self._reader.remember(first[: _common(first, second)])
            together = self._reader(sequences)
        except FilterError:
            self._reader.forget()
            return
        if float((together - alone).abs().max()) > allowed:
            self._reader.forget()


def _load(folder: Path, dtype: str) -> tuple[Any, Any]:
    """Model and tokenizer of a folder that was checked to hold data only."""
    precision = checkpoint.torch_dtype(dtype)
    checkpoint.check(folder)
    closed: dict[str, Any] = {"trust_remote_code": False, "local_files_only": True}
    failed, absent = "", list[str]()
    with checkpoint.quiet():
        try:
            auto: Any = AutoModelForCausalLM
            model, info = auto.from_pretrained(
                folder, use_safetensors=True, dtype=precision, output_loading_info=True, **closed
            )
            tokenizer = AutoTokenizer.from_pretrained(folder, **closed)
            absent = sorted(map(str, [*info["missing_keys"], *info["mismatched_keys"]]))
        except Exception as error:
            failed = type(error).__name__
    if failed:
        raise WeightsError(f"{folder.name} does not load as a causal language model ({failed})")
    if absent:  # transformers fills missing tensors with noise
        raise WeightsError(f"{folder.name} lacks weights of a language model: {', '.join(absent[:4])}")
    return model, tokenizer


def _common(first: Sequence[int], second: Sequence[int]) -> int:
    """How many tokens two sequences begin with alike."""
    return next((at for at, (a, b) in enumerate(zip(first, second, strict=False)) if a != b), 0)
