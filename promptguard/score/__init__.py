"""Stage 3, candidates to scores: filters of every kind behind one `Filter` protocol.

Any function `Sequence[str] -> Sequence[float]` is a filter (`as_filter`); `load_filter` makes one from a word on a
command line. Importing this package costs nothing: torch and transformers load with the first filter that needs them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, cast

from promptguard.errors import InvalidArgument, UnknownName
from promptguard.registry import lookup, names
from promptguard.score import paths
from promptguard.types import Filter

GROUP = "promptguard.score"
KINDS = {
    "callable": "promptguard.score.callables:CallableFilter",
    "keyword": "promptguard.score.keyword:KeywordFilter",
    "hf": "promptguard.score.hf:HFFilter",
    "onnx": "promptguard.score.onnx:OnnxFilter",
    "screened": "promptguard.score.screen:ScreenedFilter",
    "causal": "promptguard.score.causal:CausalFilter",
    "bundled": "promptguard.score.bundled:load_bundled",
    "evidence": "promptguard.score.evidence:EvidenceFilter",
    "bag": "promptguard.score.bag:BagFilter",
    "judge": "promptguard.score.judge:JudgeFilter",
    "remote": "promptguard.score.remote:RemoteFilter",
}

_TYPE_ERROR = "a filter is an object with name, digest, threshold and guard_band, or a function of a list of texts"


def as_filter(
    obj: Filter | Callable[[Sequence[str]], Sequence[float]], *, threshold: float = 0.5, name: str | None = None
) -> Filter:
    """A filter from whatever scores texts.

    Args:
        obj: a `Filter`, returned unchanged (its own threshold counts), or a function of n texts that returns n scores.
        threshold: scores at or above it are harmful; for functions.
        name: for people; for functions, default the function's qualified name.

    Raises:
        InvalidArgument: `obj` is neither, or `threshold` is not finite.
    """
    if isinstance(obj, Filter):
        return obj
    if not callable(obj):
        raise InvalidArgument(f"cannot make a filter of a {type(obj).__name__}: {_TYPE_ERROR}")
    return cast(Filter, _kind("callable")(obj, threshold=threshold, name=name))


def load_filter(
    spec: str,
    *,
    threshold: float | None = None,
    label: str | int | Sequence[str | int] | None = None,
    family: str | None = None,
    device: str = "cpu",
    dtype: str = "float32",
    screen: str | None = None,
) -> Filter:
    """A filter by name.

    Args:
        spec: the name of a bundled filter, `keyword:word,word`, a path to a folder with a sequence classifier, or the
            id of one on the hub (`org/name`). A bundled name wins over a folder of that name: write `./name`.
            `causal:<folder or hub id>` is a causal classifier, of which one pass scores every prefix. `onnx:<folder>`
            is a classifier exported to ONNX, another filter than the one it came from.
            `judge:<folder or hub id>` is a chat model asked for a verdict; `remote:<url>#<model>` is one behind an
            OpenAI-compatible endpoint, its key, if it wants one, in the environment variable PROMPTGUARD_API_KEY. Third
            parties' kinds (entry point group `promptguard.score`) are called with (spec, threshold=threshold) for
            `kind` and `kind:...`.
        threshold: scores at or above it are harmful; default the filter's own, else 0.5.
        label: the harmful label(s) of a classifier, by name or index; default what its family says.
        family: a name in `promptguard.score.families.FAMILIES`, for classifiers whose labels say nothing; for judges,
            a name in `promptguard.score.judges.JUDGES`.
        device: where a classifier runs, for instance "cpu" or "cuda".
        dtype: precision of a classifier, "float32" or "bfloat16".
        screen: "bfloat16" bounds scores in that precision first, and computes them in `dtype` where the bound leaves
            room (`promptguard.score.screen`); for BERT, DistilBERT and RoBERTa classifiers on the CPU.

    Raises:
        InvalidArgument: an option does not fit the filter.
        UnknownName: nothing has this name; the message lists what has one.
        LabelError: the harmful label is unknown.
        WeightsError: weights are missing, pickled, or not what their digest says.
        MissingDependency: the base model of a bundled filter is not installed.
    """
    filter_ = _load(spec, _Options(threshold, label, family, device, dtype))
    return filter_ if screen is None else cast(Filter, _kind("screened").of(filter_, screen))


@dataclass(frozen=True, slots=True)
class _Options:
    """What `load_filter` was told beside the name."""

    threshold: float | None
    label: str | int | Sequence[str | int] | None
    family: str | None
    device: str
    dtype: str

    @property
    def labelled(self) -> bool:
        return self.label is not None or self.family is not None


def _load(spec: str, told: _Options) -> Filter:
    name, _, rest = spec.partition(":")
    if name in _PREFIXED and name != spec:
        return _PREFIXED[name](rest, told)
    if name not in KINDS and name in names(KINDS, GROUP):  # a third party's kind reads the rest of spec itself
        return cast(Filter, _kind(name)(spec, threshold=told.threshold))
    if spec in bundled_names():
        if told.labelled:
            raise InvalidArgument("a bundled filter knows its harmful label: drop label and family")
        return cast(Filter, _kind("bundled")(spec, threshold=told.threshold, device=told.device, dtype=told.dtype))
    return _classifier("hf", spec, told)


def _keyword(rest: str, told: _Options) -> Filter:
    if told.labelled:
        raise InvalidArgument("a keyword filter has no labels: drop label and family")
    words = [word for word in rest.split(",") if word.strip()]
    return cast(Filter, _kind("keyword")(words, threshold=0.5 if told.threshold is None else told.threshold))


def _judge(rest: str, told: _Options) -> Filter:
    _refuse_label(told)
    options = {"threshold": told.threshold, "device": told.device, "dtype": told.dtype}
    return cast(Filter, _kind("judge").load(rest, family=told.family, **options))


def _remote(rest: str, told: _Options) -> Filter:
    _refuse_label(told)
    return cast(Filter, _kind("remote").load(rest, family=told.family, threshold=told.threshold))


def _refuse_label(told: _Options) -> None:
    if told.label is not None:
        raise InvalidArgument("a judge's verdicts are those of its family: drop label")


def _onnx(rest: str, told: _Options) -> Filter:
    if (told.device, told.dtype) != ("cpu", "float32"):
        raise InvalidArgument("an ONNX filter runs on the cpu in the precision of its file: drop device and dtype")
    return cast(Filter, _kind("onnx").load(rest, label=told.label, family=told.family, threshold=told.threshold))


def _classifier(kind: str, where: str, told: _Options) -> Filter:
    if Path(where).is_dir() or paths.is_hub_id(where):
        options: dict[str, Any] = {"label": told.label, "family": told.family, "device": told.device}
        return cast(Filter, _kind(kind).load(where, threshold=told.threshold, dtype=told.dtype, **options))
    raise UnknownName(
        f"unknown filter {where!r}: bundled are {', '.join(bundled_names()) or 'none'}; other forms are "
        "keyword:word,word, a path to a model folder, a hub id such as org/name, causal:<folder or hub id>, "
        "onnx:<folder>, judge:<folder or hub id> and remote:<url>#<model>"
    )


_PREFIXED: dict[str, Callable[[str, _Options], Filter]] = {
    "keyword": _keyword,
    "judge": _judge,
    "remote": _remote,
    "onnx": _onnx,
    "causal": partial(_classifier, "causal"),
}


def bundled_names() -> list[str]:
    """The filters that ship with promptguard, sorted."""
    return paths.bundled_names()


def _kind(name: str) -> Any:
    return lookup(KINDS, GROUP, name, "kind of filter")
