"""promptguard: a safety filter for LLM applications whose verdict comes with a proof.

Importing this package imports nothing heavy; the names below load their module when they are first used.
"""

from __future__ import annotations

from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from typing import Any

_LAZY = {
    "Threat": "threat",
    "Certificate": "types",
    "Verdict": "types",
    "Label": "types",
    "load_units": "units",
    "load_mode": "erase",
    "load_filter": "score",
    "as_filter": "score",
    "EraseAndCheck": "certify.erase_and_check",
    "AnyOf": "certify.any_of",
    "default_certifier": "guard.default",
    "Guard": "guard",
    "Policy": "guard",
    "Decision": "guard",
    "Blocked": "errors",
    "PromptGuardError": "errors",
}
__all__ = ["__version__", *_LAZY]  # noqa: PLE0604  (the names are strings)

try:
    __version__ = version("certified-promptguard")
except PackageNotFoundError:  # a source tree that was not installed
    __version__ = "0+unknown"


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return getattr(import_module(f"promptguard.{_LAZY[name]}"), name)
    raise AttributeError(f"module 'promptguard' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
