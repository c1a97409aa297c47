"""Where a configuration comes from: a YAML file, then the environment on top.

`PGUARD_LIMITS__SECONDS=10` is `limits: {seconds: 10}`: the prefix, then the key path with `__` between its parts.
Values are YAML too. `PGUARD_FILTER`, `PGUARD_MODE`, `PGUARD_MAX_ERASE`, `PGUARD_UNIT` and `PGUARD_THRESHOLD`, which
the other integrations read, mean `certifier`'s keys of that name.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from promptguard.errors import InvalidArgument
from promptguard.serve.config import Config

PREFIX = "PGUARD_"
CONFIG_VARIABLE = "PGUARD_CONFIG"
_OF_CERTIFIER = frozenset({"filter", "mode", "max_erase", "unit", "threshold"})


def load_config(path: Path | None, environ: Mapping[str, str]) -> Config:
    """The configuration of a file, overridden by the environment.

    Args:
        path: a YAML file, or None for defaults.
        environ: variables; only those that begin with `PGUARD_` are read.

    Raises:
        InvalidArgument: the file cannot be read, or a key or value means nothing. The message names key paths, never
            values.
    """
    data = _read(path) if path else {}
    for name, text in sorted(environ.items()):
        if name.startswith(PREFIX) and name != CONFIG_VARIABLE:
            _put(data, _path(name), _value(name, text), name)
    try:
        return Config.model_validate(data)
    except ValidationError as error:
        faults = "; ".join(_fault(e["loc"], e["type"], e["msg"]) for e in error.errors(include_input=False)[:5])
    raise InvalidArgument(f"configuration: {faults}")


def configured(environ: Mapping[str, str]) -> Config:
    """The configuration of the file that `PGUARD_CONFIG` names, if it is set, and of the environment.

    Raises:
        InvalidArgument: as `load_config`.
    """
    path = environ.get(CONFIG_VARIABLE)
    return load_config(Path(path) if path else None, environ)


def _read(path: Path) -> dict[str, Any]:
    try:
        data = yaml.safe_load(path.read_bytes())
    except OSError as error:
        raise InvalidArgument(f"cannot read {path}: {type(error).__name__}") from None
    except (yaml.YAMLError, ValueError) as error:
        mark = getattr(error, "problem_mark", None)
        fault = f"{path} is not YAML" + (f": line {mark.line + 1}" if mark else "")
    else:
        if data is None:
            return {}
        if isinstance(data, dict):
            return data
        fault = f"{path} must hold sections and keys"
    raise InvalidArgument(fault)


def _path(name: str) -> list[str]:
    keys = name.removeprefix(PREFIX).lower().split("__")
    return ["certifier", *keys] if len(keys) == 1 and keys[0] in _OF_CERTIFIER else keys


def _value(name: str, text: str) -> Any:
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError:
        pass
    raise InvalidArgument(f"{name} is not YAML")


def _put(data: dict[str, Any], keys: list[str], value: Any, name: str) -> None:
    *sections, last = keys
    for section in sections:
        below = data.get(section)
        if below is None:
            below = data[section] = {}
        if not isinstance(below, dict):
            raise InvalidArgument(f"{name}: {section} is no section")
        data = below
    data[last] = value


def _fault(location: tuple[int | str, ...], kind: str, message: str) -> str:
    where = ".".join(map(str, location))
    if kind == "extra_forbidden":
        return f"unknown key {where}"
    return f"{where}: {message}" if where else message
