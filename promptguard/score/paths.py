"""Where filters come from, without importing anything heavy: the bundled folders and the shape of a hub id."""

from __future__ import annotations

import re
from pathlib import Path

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
_PACKAGE = Path(__file__).resolve().parent.parent


def filters_dir() -> Path:
    """The folder of the bundled filters: `promptguard/_filters` in an installed wheel, else `filters` in a checkout."""
    installed = _PACKAGE / "_filters"
    return installed if installed.is_dir() else _PACKAGE.parent / "filters"


def bundled_names() -> list[str]:
    """Names of the folders under `filters_dir()` that hold a filter, sorted."""
    folder = filters_dir()
    return sorted(path.parent.name for path in folder.glob("*/config.json")) if folder.is_dir() else []


def is_hub_id(spec: str) -> bool:
    """Whether `spec` looks like `org/name` (ASCII letters, digits, `.`, `_` and `-`) and not like a path."""
    return _HUB_ID.fullmatch(spec) is not None and spec.isascii() and ".." not in spec
