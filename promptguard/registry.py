"""Names to parts: one dict literal per folder, and entry points for third parties.

A table maps a name to "module:attribute"; the module is imported when the name is looked up, so listing costs nothing.
Third parties register under the entry point group `promptguard.<folder>`; a built-in name cannot be replaced.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from importlib import import_module
from importlib.metadata import entry_points
from typing import Any

from promptguard.errors import UnknownName


def names(table: Mapping[str, str], group: str) -> list[str]:
    """The names that `lookup` accepts: the table's, then those of installed entry points."""
    return [*table, *sorted(point.name for point in entry_points(group=group) if point.name not in table)]


def lookup(table: Mapping[str, str], group: str, name: str, what: str) -> Any:
    """The object behind a name.

    Args:
        table: built-in names to "module:attribute".
        group: entry point group of third parties.
        name: what is looked for.
        what: what it is called in an error, for instance "erase mode".

    Raises:
        UnknownName: nothing is registered under it; the message lists what is and suggests the nearest.
    """
    if name in table:
        module, _, attribute = table[name].partition(":")
        return getattr(import_module(module), attribute)
    for point in entry_points(group=group, name=name):
        return point.load()
    known = names(table, group)
    near = difflib.get_close_matches(name, known, n=1)
    hint = f"; did you mean {near[0]!r}?" if near else ""
    raise UnknownName(f"unknown {what} {name!r}: known are {', '.join(known)}{hint}")
