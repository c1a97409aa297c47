"""A sequence classifier exported to ONNX as a filter, run by ONNX Runtime on the processor.

An exported model is another filter than the one that it came from: other kernels, perhaps other weights. Its digest is
that of its own files, and its certificates are its own.

Exports with dynamic quantisation are refused: they take one scale from all that is in a batch, so neighbours move the
score of a text, and nothing can be certified about it. Windows of one length share a batch; nothing is ever padded.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoConfig, AutoTokenizer

from promptguard.errors import FilterError, MissingDependency, UnknownName, WeightsError, discreetly
from promptguard.score import checkpoint
from promptguard.score.batches import pack
from promptguard.score.classifier import checked_band, checked_batch, checked_threshold
from promptguard.score.introspect import default_window
from promptguard.score.labels import LabelChoice, Readout, readout
from promptguard.score.windows import Window, WindowTokenizer

_FILES = ("model.onnx", "onnx/model.onnx")
# Names of operators stand in the file as they are; those of dynamic quantisation begin with this.
_DYNAMIC = b"DynamicQuantize"
_PROBE = ("Turn the lamp off.", "Stop that, please!")


class OnnxFilter:
    """The probability that an exported classifier gives to its harmful labels.

    A text longer than the window becomes overlapping windows, and the largest of their scores counts. A text without a
    single token scores 0.0.
    """

    def __init__(
        self, session: Session, tokenizer: WindowTokenizer, chosen: Readout, *, name: str, threshold: float = 0.5
    ) -> None:
        """Make the filter; `load` does it from a folder.

        Args:
            session: an export with inputs named as transformers names them; its first output are logits of shape
                (batch, labels).
            tokenizer: cuts texts into windows.
            chosen: which labels mean harm.
            name: for people.
            threshold: scores at or above it are harmful.

        Raises:
            InvalidArgument: the threshold is no probability.
            FilterError: the model fails, wants other inputs, or its score of a text moves with the neighbours.
        """
        self._session = session
        self._tokenizer = tokenizer
        self._readout = chosen
        self._batch_tokens = checked_batch(None, "cpu")
        self.name = name
        self.threshold = checked_threshold(threshold)
        self.guard_band = checked_band(None, torch.float32)
        self._probe()

    @classmethod
    def load(
        cls,
        folder: str | Path,
        *,
        label: LabelChoice | None = None,
        family: str | None = None,
        threshold: float | None = None,
    ) -> OnnxFilter:
        """Load an export: `model.onnx` (or `onnx/model.onnx`), its data files, `config.json`, the tokenizer's files.

        Args:
            folder: where they are; `optimum` and `torch.onnx.export` with `save_pretrained` beside it write this.
            label: as for `HFFilter`.
            family: as for `HFFilter`.
            threshold: scores at or above it are harmful; default 0.5.

        Raises:
            MissingDependency: onnxruntime is not installed.
            UnknownName: there is no such folder.
            WeightsError: files are missing, or cannot be read.
            LabelError: the harmful label is unknown or ambiguous.
            FilterError: the export is quantised dynamically, or its scores depend on the batch.
        """
        where = Path(folder)
        if not where.is_dir():
            raise UnknownName(f"there is no folder {str(folder)!r}")
        model = next((where / name for name in _FILES if (where / name).is_file()), None)
        if model is None or not (where / "config.json").is_file():
            raise WeightsError(f"{where.name} is no exported classifier: it needs model.onnx and config.json")
        with checkpoint.quiet():
            try:
                config = AutoConfig.from_pretrained(where, trust_remote_code=False, local_files_only=True)
                tokenizer = AutoTokenizer.from_pretrained(where, trust_remote_code=False, local_files_only=True)
            except Exception as error:
                raise WeightsError(f"{where.name} does not load ({type(error).__name__})") from None
        window = default_window(_Shape(config), tokenizer)
        return cls(
            Session(model),
            WindowTokenizer(tokenizer, window, window // 4),
            readout(config, label=label, family=family, repository=str(folder)),
            name=where.name,
            threshold=0.5 if threshold is None else threshold,
        )

    @cached_property
    def digest(self) -> str:
        """sha256 of everything that decides a score: files, tokenizer, labels, activation, windows."""
        whole = {
            "files": self._session.digest,
            "tokenizer": self._tokenizer.digest,
            "window": self._tokenizer.window,
            "overlap": self._tokenizer.overlap,
            "harmful": self._readout.harmful,
            "activation": self._readout.activation,
        }
        return hashlib.sha256(json.dumps(whole, sort_keys=True).encode()).hexdigest()

    def __call__(self, texts: Sequence[str]) -> list[float]:
        """One probability of harm per text, float64.

        Raises:
            FilterError: the tokenizer refuses a text, the model fails, or gives NaN.
        """
        windows = self._tokenizer(texts)
        flat = [(index, window) for index, parts in enumerate(windows) for window in parts if window.ids]
        scores = [0.0] * len(texts)
        lengths = [len(window.ids) for _, window in flat]
        for batch in pack(lengths, self._batch_tokens, equal=True):
            for at, score in zip(batch, self._score([flat[at][1] for at in batch]), strict=True):
                scores[flat[at][0]] = max(scores[flat[at][0]], score)
        return scores

    def _score(self, windows: Sequence[Window]) -> list[float]:
        """Harm of windows of one length."""
        ids = np.array([window.ids for window in windows], dtype=np.int64)
        types = np.array([window.types for window in windows], dtype=np.int64)
        known = {"input_ids": ids, "attention_mask": np.ones_like(ids), "token_type_ids": types}
        if not set(self._session.inputs) <= known.keys():
            raise FilterError(f"the model of filter {self.name} wants inputs other than {', '.join(known)}")
        inputs = {name: known[name] for name in self._session.inputs}
        logits = discreetly(f"the model of filter {self.name}", lambda: self._session.run(inputs))
        if logits.ndim != 2 or len(logits) != len(windows) or not np.isfinite(logits).all():
            raise FilterError(f"the model of filter {self.name} did not give finite logits, a row for each text")
        harm: list[float] = self._readout.harm(torch.from_numpy(np.asarray(logits, dtype=np.float64))).tolist()
        return harm

    def _probe(self) -> None:
        """Check on two short texts that a neighbour in a batch leaves a score alone."""
        first, second = (parts[0] for parts in self._tokenizer(_PROBE))
        size = min(len(first.ids), len(second.ids))
        first, second = (Window(window.ids[:size], window.types[:size]) for window in (first, second))
        if size and abs(self._score([first])[0] - self._score([first, second])[0]) > self.guard_band:
            raise FilterError(f"the score of filter {self.name} depends on the other texts in a batch")


class _Shape:
    """What `default_window` asks of a model, of a configuration alone."""

    def __init__(self, config: Any) -> None:
        self.config = config

    def named_modules(self) -> Sequence[tuple[str, Any]]:
        return ()


class Session:
    """An exported model in memory: exactly the bytes of its files, so that references to other files fail."""

    def __init__(self, model: Path) -> None:
        """Read `model` and the files beside it that hold its larger tensors (`model.onnx.data`, `model.onnx_data`).

        Raises:
            MissingDependency: onnxruntime is not installed.
            FilterError: the model is quantised dynamically.
            WeightsError: ONNX Runtime cannot load it.
        """
        try:
            import onnxruntime  # noqa: PLC0415  (an extra)
        except ImportError:
            raise MissingDependency("ONNX needs onnxruntime: pip install 'certified-promptguard[onnx]'") from None
        content = model.read_bytes()
        if _DYNAMIC in content:
            raise FilterError(
                f"{model.parent.name} is quantised dynamically: its scales come from the batch, so a text has no score "
                "of its own and nothing can be certified. Export it in float32, or with static quantisation"
            )
        data = sorted(path for path in model.parent.glob(model.name + "?*") if path.is_file())
        # ONNX Runtime reads the tensors where they lie: they must live as long as the session.
        self._tensors = {path.name: path.read_bytes() for path in data}
        digest = hashlib.sha256(content)
        for name, held in self._tensors.items():
            digest.update(f"\0{name}\0{len(held)}\0".encode() + held)
        self.digest = digest.hexdigest()
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        options.log_severity_level = 4
        if data:
            parts = list(self._tensors.values())
            sizes = [len(part) for part in parts]
            options.add_external_initializers_from_files_in_memory(list(self._tensors), parts, sizes)
        try:
            self._session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
        except Exception as error:
            raise WeightsError(f"{model.name} of {model.parent.name} does not load ({type(error).__name__})") from None
        self.inputs = [each.name for each in self._session.get_inputs()]

    def run(self, inputs: dict[str, Any]) -> Any:
        """The first output."""
        return self._session.run(None, inputs)[0]
