"""The formats, one line each in `FORMATS`: which columns show them, and what a row means.

Sources: the files that AdvBench (Zou et al. 2023), HarmBench (Mazeika et al. 2024), JailbreakBench (Chao et al. 2024),
StrongREJECT (Souly et al. 2024), XSTest (Röttger et al. 2024), garak 0.17 and openai-guardrails publish or write.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from promptguard.errors import InvalidArgument
from promptguard.evaluate.prompts.records import HARMFUL, SAFE, Behavior, Record, Row

_NAMES = {HARMFUL: HARMFUL, SAFE: SAFE}
_XSTEST = {"unsafe": HARMFUL, "safe": SAFE}
# In a file without a header the first row holds text, and an error must not quote it.
_COLUMN_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_.-]{0,30}")


def _own(row: Row) -> Record:
    return Record(row.text("text"), row.word("id"), row.word("source"), row.label("label", _NAMES))


def _advbench(row: Row) -> Record:
    return Record(row.text("goal"), None, "advbench", behavior=Behavior(row.text("goal")))


def _goal_and_suffix(row: Row) -> Record:
    goal = row.text("goal")
    source = "/".join(filter(None, (row.word("source"), row.word("attack")))) or None
    return Record(f"{goal} {row.text('suffix')}", row.word("id"), source, behavior=Behavior(goal))


def _suffix(row: Row) -> Record:
    return Record(row.text("suffix"), row.word("id"), row.word("origin"), row.label("label", _NAMES))


def _harmbench(row: Row) -> Record:
    goal = row.text("Behavior")
    behavior = Behavior(goal, row.text("BehaviorID"), row.word("SemanticCategory") or "")
    context = row.word("ContextString")
    text = f"{context}\n\n---\n\n{goal}" if context else goal
    return Record(text, behavior.name, "harmbench", behavior=behavior)


def _harmbench_case(row: Row) -> Record:
    name = row.text("BehaviorID")
    id_ = f"{name}/{row.number_in('number')}"
    return Record(row.text_or_null("test_case"), id_, "harmbench", behavior=Behavior("", name))


def _jailbreakbench(row: Row) -> Record:
    index = row.number_in("Index")
    behavior = Behavior(row.text("Goal"), row.text("Behavior"), row.text("Category"), index)
    return Record(behavior.goal, str(index), "jailbreakbench", behavior=behavior)


def _artifact(row: Row) -> Record:
    index = row.number_in("index")
    behavior = Behavior(row.text("goal"), row.text("behavior"), row.text("category"), index)
    source = "/".join(filter(None, ("jailbreakbench", row.word("method"))))
    return Record(row.text_or_null("prompt"), str(index), source, behavior=behavior)


def _strongreject(row: Row) -> Record:
    text = row.text("forbidden_prompt")
    return Record(text, None, "strongreject", behavior=Behavior(text, category=row.word("category") or ""))


def _xstest(row: Row) -> Record:
    kind = row.text("type")
    # Older files have no label: their unsafe types are called contrasts of the safe ones.
    label = row.label("label", _XSTEST) or (HARMFUL if kind.startswith("contrast_") else SAFE)
    return Record(row.text("prompt"), row.word("id"), "xstest", label, Behavior(row.text("prompt"), category=kind))


def _garak_attempt(row: Row) -> Record:
    return Record(_last_user_turn(row), row.text("uuid"), f"garak/{row.text('probe_classname')}")


def _garak_hit(row: Row) -> Record:
    return Record(_last_user_turn(row), row.text("attempt_id"), f"garak/{row.text('probe')}")


def _last_user_turn(row: Row) -> str | None:
    """The text that the target was asked last; None if that turn has none, as an image.

    Raises:
        InvalidArgument: the prompt is no conversation of garak's.
    """
    prompt = row.values.get("prompt")
    if prompt is None or isinstance(prompt, str):  # as versions before 0.11 write it
        return prompt
    try:
        text = [turn["content"]["text"] for turn in prompt["turns"] if turn["role"] == "user"][-1]
    except (TypeError, KeyError, IndexError):
        raise InvalidArgument(f"{row.where}: `prompt` must hold turns with a role and a content") from None
    if text is not None and not isinstance(text, str):
        raise InvalidArgument(f"{row.where}: the text of a turn must be a string")
    return text


def _guardrails(row: Row) -> Record:
    expected = row.values.get("expected_triggers")
    if not isinstance(expected, dict) or not all(isinstance(value, bool) for value in expected.values()):
        raise InvalidArgument(f"{row.where}: `expected_triggers` must be an object of true and false")
    return Record(row.text("data"), row.word("id"), None, HARMFUL if any(expected.values()) else SAFE)


def _all(rows: Sequence[Row]) -> Iterable[Row]:
    return rows


def _attempts(rows: Sequence[Row]) -> Iterable[Row]:
    """Each attempt once: garak writes it when it is answered, and again when it is judged."""
    return {row.text("uuid"): row for row in rows if row.values.get("entry_type") == "attempt"}.values()


def _hits(rows: Sequence[Row]) -> Iterable[Row]:
    """Each attempt once, however many of its outputs hit however many detectors."""
    return {row.text("attempt_id"): row for row in rows}.values()


def _caller(_: str, unlabelled: str | None) -> str | None:
    return unlabelled


def _always_harmful(_: str, __: str | None) -> str:
    return HARMFUL


def _by_file_name(name: str, unlabelled: str | None) -> str:
    """JailbreakBench's harmful and benign behaviours differ in the name of the file alone."""
    named = {"benign": SAFE, "harmful": HARMFUL}
    return next((label for word, label in named.items() if word in name.lower()), unlabelled or HARMFUL)


@dataclass(frozen=True, slots=True)
class Format:
    """A format of the field.

    Attributes:
        name: for people.
        columns: that its first row has.
        read: what a row means.
        implied: from the file's name and the caller's label, the label of rows that have none; None refuses them.
        select: the rows that hold prompts.
        is_log: the prompts are what a tool sent, NUL and all; in other files NUL is a damaged text.
    """

    name: str
    columns: frozenset[str]
    read: Callable[[Row], Record]
    implied: Callable[[str, str | None], str | None] = _always_harmful
    select: Callable[[Sequence[Row]], Iterable[Row]] = _all
    is_log: bool = False


# In this order, as some columns are those of another format and more.
FORMATS = (
    Format("own", frozenset({"text"}), _own, _caller),
    Format("goals with suffixes", frozenset({"goal", "suffix"}), _goal_and_suffix),
    Format("suffix list", frozenset({"suffix"}), _suffix, _caller),
    Format("garak report", frozenset({"entry_type"}), _garak_attempt, select=_attempts, is_log=True),
    Format("garak hit log", frozenset({"attempt_id", "prompt", "probe"}), _garak_hit, select=_hits, is_log=True),
    Format("JailbreakBench artifact", frozenset({"index", "goal", "behavior", "prompt", "jailbroken"}), _artifact),
    Format("AdvBench", frozenset({"goal", "target"}), _advbench),
    Format("HarmBench behaviours", frozenset({"Behavior", "BehaviorID", "ContextString"}), _harmbench),
    Format("HarmBench test cases", frozenset({"BehaviorID", "number", "test_case"}), _harmbench_case),
    Format(
        "JailbreakBench behaviours",
        frozenset({"Index", "Goal", "Behavior", "Category"}),
        _jailbreakbench,
        _by_file_name,
    ),
    Format("StrongREJECT", frozenset({"forbidden_prompt"}), _strongreject),
    Format("XSTest", frozenset({"id", "prompt", "type"}), _xstest),
    Format("openai-guardrails", frozenset({"data", "expected_triggers"}), _guardrails, _caller),
)


def format_of(first: Row) -> Format:
    """The format of a file by its first row.

    Raises:
        InvalidArgument: none has these columns; the message lists them and the known formats.
    """
    for format_ in FORMATS:
        if format_.columns <= first.values.keys():
            return format_
    found = [name for name in first.values if _COLUMN_NAME.fullmatch(name)]
    others = len(first.values) - len(found)
    columns = ", ".join(sorted(found)) or "no named column"
    more = f" and {others} that are no names" if others else ""
    known = "; ".join(f"{f.name} ({', '.join(sorted(f.columns))})" for f in FORMATS)
    raise InvalidArgument(f"{first.where}: no known format has the columns found, {columns}{more}. Known are {known}")
