"""The tree is the flow: registries match files, importing costs nothing, and what must stay out stays out."""

from __future__ import annotations

import ast
import inspect
import subprocess
import sys
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path

import pytest

import promptguard
from promptguard.errors import UnknownName
from promptguard.registry import lookup, names

PACKAGE = Path(promptguard.__file__).parent
SOURCES = sorted(PACKAGE.rglob("*.py"))
HEAVY = ("torch", "transformers", "numpy")


def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def module_name(path: Path) -> str:
    parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
    return ".".join(part for part in parts if part != "__init__")


def registries() -> dict[str, dict[str, str]]:
    """Folder -> the one dict literal of "module:attribute" lines in its `__init__`."""
    found = {}
    for init in PACKAGE.glob("*/__init__.py"):
        for value in vars(import_module(module_name(init))).values():
            if isinstance(value, dict) and value and all(":" in str(line) for line in value.values()):
                found[init.parent.name] = value
    return found


def parts(folder: str) -> Iterator[str]:
    """The parts that a folder's files define, as registry lines: what looks like a mode, a certifier, a filter."""
    marks = {
        "erase": {"erasures"},
        "certify": {"certify"},
        "score": {"threshold", "__call__"},
        "attack": {"run", "kinds"},
    }[folder]
    for path in sorted((PACKAGE / folder).glob("[!_]*.py")):
        module = import_module(module_name(path))
        for name, value in vars(module).items():
            is_protocol = getattr(value, "_is_protocol", False)
            if inspect.isclass(value) and value.__module__ == module.__name__ and name[0] != "_" and not is_protocol:
                init = getattr(value.__init__, "__code__", None)
                own = set(dir(value)) | set(init.co_names if init else ())
                if marks <= own:
                    yield f"{module.__name__}:{name}"


def test_there_are_registries() -> None:
    assert {"erase", "certify", "score", "attack"} <= set(registries())


@pytest.mark.parametrize("folder", sorted(registries()))
def test_every_line_of_a_registry_is_a_part_in_its_folder(folder: str) -> None:
    for line in registries()[folder].values():
        module, _, attribute = line.partition(":")
        assert module.startswith(f"promptguard.{folder}.")
        assert callable(getattr(import_module(module), attribute))


@pytest.mark.parametrize("folder", ["erase", "certify", "score", "attack"])
def test_every_part_in_a_folder_has_its_line(folder: str) -> None:
    found = set(parts(folder))
    assert found
    assert found <= set(registries()[folder].values())


@pytest.mark.parametrize("folder", sorted(registries()))
def test_every_name_is_looked_up_and_unknown_ones_are_refused(folder: str) -> None:
    table, group = registries()[folder], f"promptguard.{folder}"
    assert [n for n in names(table, group) if n in table] == list(table)
    assert all(callable(lookup(table, group, name, "part")) for name in table)
    with pytest.raises(UnknownName, match="known are") as caught:
        lookup(table, group, "no-such-part", "part")
    assert all(name in str(caught.value) for name in table)


# Imports


def heavy_imports(statement: str) -> list[str]:
    """What a fresh interpreter holds of the heavy packages after a statement."""
    probe = f"import sys; {statement}; print(*[m for m in {HEAVY!r} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", probe], capture_output=True, text=True, check=True, timeout=120)
    return done.stdout.split()


@pytest.mark.parametrize(
    "module", ["", ".types", ".errors", ".registry", ".view", ".units", ".erase", ".score", ".certify.erase_and_check"]
)
def test_importing_costs_nothing(module: str) -> None:
    assert heavy_imports(f"import promptguard{module}") == []


def test_the_probe_sees_a_heavy_import() -> None:
    assert "numpy" in heavy_imports("import numpy")


def test_public_names_exist() -> None:
    for name in promptguard.__all__:
        if (PACKAGE / "guard.py").exists() or name not in {"Guard", "Policy", "Decision"}:
            assert getattr(promptguard, name) is not None
    with pytest.raises(AttributeError, match="no_such_name"):
        _ = promptguard.no_such_name


# What stays out of the source


def calls(module: ast.Module) -> Iterator[tuple[str, ast.Call]]:
    for node in ast.walk(module):
        if isinstance(node, ast.Call):
            yield ast.unparse(node.func), node


def offences(module: ast.Module) -> set[str]:
    """Everything in a module that the house rules forbid."""
    found = set()
    for node in ast.walk(module):
        if isinstance(node, ast.Assert):
            found.add("assert")
        if isinstance(node, ast.Import | ast.ImportFrom):
            imported = [alias.name for alias in node.names] + [getattr(node, "module", None) or ""]
            if any(name.split(".")[0] in {"pickle", "dill", "cloudpickle", "joblib"} for name in imported):
                found.add("pickle")
    for name, call in calls(module):
        if name in {"print", "torch.load", "pickle.load", "pickle.loads", "eval", "exec"}:
            found.add(name)
        if any(
            word.arg == "trust_remote_code" and not (isinstance(word.value, ast.Constant) and word.value.value is False)
            for word in call.keywords
        ):
            found.add("trust_remote_code")
    return found


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_nothing_forbidden_is_in_the_source(path: Path) -> None:
    assert offences(tree(path)) == set()


@pytest.mark.parametrize(
    ("source", "offence"),
    [
        ("assert x", "assert"),
        ("print(1)", "print"),
        ("import pickle", "pickle"),
        ("from pickle import loads", "pickle"),
        ("torch.load('x')", "torch.load"),
        ("f(trust_remote_code=True)", "trust_remote_code"),
        ("f(trust_remote_code=flag)", "trust_remote_code"),
        ("eval('1')", "eval"),
    ],
)
def test_the_search_for_forbidden_things_finds_them(source: str, offence: str) -> None:
    assert offences(ast.parse(source)) == {offence}


def test_harmless_source_has_no_offences() -> None:
    assert offences(ast.parse("x.print(1); f(trust_remote_code=False); model.eval(); import json")) == set()


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_every_module_has_a_docstring_and_stops_at_300_lines(path: Path) -> None:
    assert path.name == "__main__.py" or ast.get_docstring(tree(path))
    assert len(path.read_text(encoding="utf-8").splitlines()) <= 300
