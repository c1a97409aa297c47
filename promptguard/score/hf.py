"""Any transformers sequence classifier as a filter.

A text becomes overlapping windows of token ids, each window a row of logits, each row a probability of harm in float64;
the score is the largest. Nothing is truncated, no code of the model is run, and only safetensors are read.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from promptguard.capabilities import MaskGradient
from promptguard.errors import FilterError, InvalidArgument, discreetly
from promptguard.score import checkpoint
from promptguard.score.batches import pack, pad
from promptguard.score.classifier import Classifier, checked_band, checked_batch, checked_threshold, repository
from promptguard.score.encoders import encoder_of
from promptguard.score.families import Activation
from promptguard.score.introspect import GUARD_BANDS, default_window, position_limit
from promptguard.score.labels import LabelChoice, readout
from promptguard.score.token_gradient import classifier_tokens
from promptguard.score.unpadded import UnpaddedEncoder
from promptguard.score.windows import Window, WindowTokenizer

_PROBE = ("stop", "The quick brown fox jumps over the lazy dog, again and again.")


class HFFilter:
    """The probability that a classifier gives to its harmful labels, as a `DifferentiableFilter`.

    A text without a single token (the empty string, for a tokenizer without special tokens) scores 0.0.
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
            model: a transformers `...ForSequenceClassification` in float32 or bfloat16, on its device.
            tokenizer: its fast tokenizer; copied.
            label: harmful label(s) by name or index. Softmax adds their probabilities, sigmoid takes the largest.
                None asks the table in `promptguard.score.families`; nothing is guessed.
            activation: "softmax" or "sigmoid"; None asks the family, then the configuration's `problem_type`.
            family: the family of a model whose labels are only called LABEL_0, LABEL_1.
            threshold: scores at or above it are harmful.
            window: tokens that the model reads at once, special ones included; default the most it accepts.
            overlap: tokens that neighbouring windows share; default a quarter of the window.
            batch_tokens: tokens in one forward pass, padding included; default 2048 on a CPU, 16384 elsewhere.
            name: for people; default the model's repository or folder.
            guard_band: how far a score may move with its batch; default 1e-4 in float32 and 5e-2 in bfloat16.

        Raises:
            LabelError: the harmful label is unknown or ambiguous.
            InvalidArgument: threshold, window, overlap, batch_tokens, guard_band or tokenizer cannot be used.
            FilterError: the model is quantised, fails, or scores a text differently in different batches.
        """
        known = name or repository(model)
        chosen = readout(model.config, label=label, activation=activation, family=family, repository=known)
        self._classifier = Classifier(model, chosen, Path(known).name)
        window = default_window(model, tokenizer) if window is None else window
        if window > (position_limit(model) or window):
            raise InvalidArgument(f"window {window} is over the {position_limit(model)} positions of the model")
        self._tokenizer = WindowTokenizer(tokenizer, window, window // 4 if overlap is None else overlap)
        self.tokenizer = tokenizer
        self._model = self._classifier.model
        self.name = self._classifier.name
        self.threshold = checked_threshold(threshold)
        self.guard_band = checked_band(guard_band, model.dtype)
        batch_tokens = checked_batch(batch_tokens, model.device.type)
        # Decoders find the end of a text by its padding: without a padding id they take one text at a time.
        self._pad_id = model.config.get_text_config().pad_token_id
        self._batch_tokens = 1 if self._pad_id is None else batch_tokens
        # Padding on the right keeps the positions of the text; models that want it on the left get none at all.
        self._equal = getattr(tokenizer, "padding_side", "right") != "right"
        self._types = "token_type_ids" in tokenizer.model_input_names and "token_type_ids" in _arguments(model)
        self.tokens = classifier_tokens(self._classifier, tokenizer, window, self._batch)
        self._unpadded: UnpaddedEncoder | None = None
        self._probe()
        self._unpadded = self._without_padding()

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
    ) -> HFFilter:
        """Load a classifier from a local folder, or from the hub cache or the hub.

        Args:
            path_or_hub_id: a folder with `config.json`, tokenizer and safetensors, or `org/name`.
            label: as for the constructor.
            family: as for the constructor.
            threshold: scores at or above it are harmful; default 0.5.
            device: for instance "cpu" or "cuda".
            dtype: "float32" or "bfloat16".
            revision: commit, tag or branch on the hub.

        Raises:
            UnknownName: there is no such folder or repository.
            WeightsError: weights are missing, incomplete, pickled or need code, or the hub cannot be reached.
            LabelError: the harmful label is unknown or ambiguous.
            InvalidArgument: `device` or `dtype` cannot be used.
        """
        loaded = checkpoint.load(checkpoint.fetch(path_or_hub_id, revision), device=device, dtype=dtype)
        # A hub snapshot lies in a folder named after a commit; the family is known by the repository's own name.
        loaded.model.config._name_or_path = str(path_or_hub_id)
        chosen = 0.5 if threshold is None else threshold
        return cls(loaded.model, loaded.tokenizer, label=label, family=family, threshold=chosen)

    def in_precision(self, dtype: str) -> HFFilter:
        """A copy whose weights are rounded to "float32" or "bfloat16": another filter, with a digest of its own.

        Raises:
            InvalidArgument: there is no such precision here.
        """
        return HFFilter(
            copy.deepcopy(self._model).to(checkpoint.torch_dtype(dtype)),
            self.tokenizer,
            label=self._classifier.readout.harmful,
            activation=self._classifier.readout.activation,
            threshold=self.threshold,
            window=self.window,
            overlap=self.overlap,
            batch_tokens=self._batch_tokens,
            name=self.name,
        )

    @property
    def pads(self) -> bool:
        """Whether windows are filled up to the longest of a batch, as the model's own forward pass wants it."""
        return self._unpadded is None

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
        return self._classifier.digest(tokenizer=self._tokenizer.digest, window=self.window, overlap=self.overlap)

    def __call__(self, texts: Sequence[str]) -> list[float]:
        """One probability of harm per text, float64.

        Raises:
            FilterError: the tokenizer refuses a text, the model fails, is in training mode, or gives NaN.
        """
        if isinstance(texts, str):
            raise FilterError(f"filter {self.name} takes a list of texts, not one string")
        owners: list[int] = []
        windows: list[Window] = []
        for index, parts in enumerate(self._tokenizer(texts)):
            filled = [part for part in parts if part.ids]
            owners += [index] * len(filled)
            windows += filled
        scores = [0.0] * len(texts)
        for index, score in zip(owners, self._score(windows), strict=True):
            scores[index] = max(scores[index], score)
        return scores

    def mask_gradient(self, pieces: Sequence[str], mask: Sequence[float]) -> MaskGradient:
        """Score and gradient with the token embeddings of piece i multiplied by mask[i]; special tokens stay whole.

        Args:
            pieces: the text, cut; the joined text is tokenised, and a token belongs to the piece with its first
                character that is no white space.
            mask: one number in [0, 1] per piece.

        Raises:
            InvalidArgument: mask and pieces differ in length, a value is outside [0, 1], or the text is over a window.
            FilterError: the tokenizer refuses the text, or the model fails or takes no embeddings.
        """
        if len(mask) != len(pieces) or not all(0.0 <= value <= 1.0 for value in mask):
            raise InvalidArgument("mask must hold one number in [0, 1] per piece")
        self._classifier.refuse_training()
        found = self._tokenizer.attribute(pieces)
        if not found.window.ids:
            return MaskGradient(0.0, (0.0,) * len(pieces))
        with torch.inference_mode(False), torch.enable_grad():
            soft = torch.tensor([*mask, 1.0], dtype=torch.float32, device=self._model.device, requires_grad=True)
            weights = soft[[len(pieces) if owner is None else owner for owner in found.owners]]
            batch = self._batch([found.window])
            embedded = self._embeddings(batch.pop("input_ids"))
            batch["inputs_embeds"] = embedded * weights.to(embedded.dtype)[None, :, None]
            score = self._classifier.harm(self._logits(batch))[0]
            # Not backward(): the parameters' own gradients must stay untouched.
            (gradient,) = torch.autograd.grad(score, soft)
        if not bool(torch.isfinite(gradient).all()):
            raise FilterError(f"the model of filter {self.name} gave a gradient that is not finite")
        return MaskGradient(float(score.detach()), tuple(gradient[:-1].tolist()))

    @torch.inference_mode()
    def _score(self, windows: Sequence[Window]) -> list[float]:
        """Harm of each window, in order."""
        self._classifier.refuse_training()
        scores = [0.0] * len(windows)
        lengths = [len(window.ids) for window in windows]
        for batch in pack(lengths, self._batch_tokens, equal=self._equal, padded=self._unpadded is None):
            harm = self._harm([windows[index] for index in batch]).tolist()
            for index, score in zip(batch, harm, strict=True):
                scores[index] = score
        return scores

    def _harm(self, windows: Sequence[Window]) -> torch.Tensor:
        if self._unpadded is not None:
            return self._classifier.harm(self._classifier.call(self._unpadded, windows))
        return self._classifier.harm(self._logits(self._batch(windows)))

    def _batch(self, windows: Sequence[Window]) -> dict[str, torch.Tensor]:
        rows = pad(windows, self._pad_id or 0)
        if not self._types:
            del rows["token_type_ids"]
        return {key: torch.tensor(value, device=self._model.device) for key, value in rows.items()}

    def _logits(self, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        logits: torch.Tensor = self._classifier.call(self._model, **batch).logits
        return logits

    def _embeddings(self, ids: torch.Tensor) -> torch.Tensor:
        what = f"the embedding layer of filter {self.name}"
        return discreetly(what, lambda: torch.as_tensor(self._model.get_input_embeddings()(ids)))

    @torch.inference_mode()
    def _probe(self) -> None:
        """Check on two short texts that neighbours in a batch, and then padding, leave a score alone."""
        short, long = (parts[0] for parts in self._tokenizer(_PROBE))
        size = min(len(short.ids), len(long.ids))
        if size == 0:
            return
        short = Window(short.ids[:size], short.types[:size])
        alone = self._score([short])[0]
        if self._batch_tokens == 1:
            return
        allowed = max(self.guard_band, GUARD_BANDS[torch.float32])
        for other in (Window(long.ids[:size], long.types[:size]), long):
            together = float(self._classifier.harm(self._logits(self._batch([short, other])))[0])
            if abs(together - alone) <= allowed:
                continue
            if len(other.ids) == size:
                raise FilterError(f"the score of filter {self.name} depends on the other texts in a batch")
            # Fourier mixing and convolutions read the padding; such models get batches of one length.
            self._equal = True

    @torch.inference_mode()
    def _without_padding(self) -> UnpaddedEncoder | None:
        """The faster forward pass, where it is known to compute what the model does: the same scores, to rounding."""
        encoder = None if self._equal else encoder_of(self._model)
        windows = [parts[0] for parts in self._tokenizer(_PROBE)]
        if encoder is None or self._model.dtype not in GUARD_BANDS or not all(window.ids for window in windows):
            return None
        made = UnpaddedEncoder(encoder, segments=self._types)
        try:
            mine = self._classifier.call(made, windows)
        except FilterError:  # a device that lacks an operation: the model's own pass will do
            return None
        plain = self._logits(self._batch(windows))
        band = GUARD_BANDS[self._model.dtype]
        # Rounding is below the band, in float32 far below it; another function is above. A classifier that is sure of
        # both texts gives them the same scores whatever is computed, so its logits have to agree too.
        scores = (self._classifier.harm(mine) - self._classifier.harm(plain)).abs() <= band
        logits = (mine - plain).abs() <= 10 * band * plain.abs().clamp(min=1)
        return made if bool(scores.all() and logits.all()) else None


def _arguments(model: Any) -> frozenset[str]:
    return frozenset(inspect.signature(model.forward).parameters)
