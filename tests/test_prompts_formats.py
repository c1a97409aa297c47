"""Prompt files: every format by its columns, labels in all rows or in none, and errors that quote nothing."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path
from typing import Any

import pytest
from doubles import CANARY
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from test_architecture import heavy_imports

import promptguard.evaluate.prompts as documented
from promptguard.errors import InvalidArgument
from promptguard.evaluate.prompts import Behavior, Prompt, load_prompts, read_prompts
from promptguard.evaluate.prompts.formats import FORMATS

SHARED = Path(__file__).parents[2] / "shared" / "data"


def write(path: Path, content: str | bytes | Any) -> Path:
    """A file with this text, or these values as JSON: a line each for .jsonl."""
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif isinstance(content, str):
        path.write_bytes(content.encode())
    elif path.suffix == ".jsonl":
        path.write_text("\n".join(map(json.dumps, content)), encoding="utf-8")
    else:
        path.write_text(json.dumps(content), encoding="utf-8")
    return path


def turns(*texts: str | None) -> dict[str, Any]:
    """A conversation as garak writes it, user and assistant in turn."""
    roles = ["user", "assistant"] * len(texts)
    return {
        "turns": [
            {"role": role, "content": {"text": text, "lang": "en"}} for role, text in zip(roles, texts, strict=False)
        ],
        "notes": None,
    }


def attempt(uuid: str, prompt: Any, status: int = 2, probe: str = "suffix.GCGCached") -> dict[str, Any]:
    return {"entry_type": "attempt", "uuid": uuid, "status": status, "probe_classname": probe, "prompt": prompt}


def jailbreak(index: int, prompt: str | None, **more: Any) -> dict[str, Any]:
    goal = {"index": index, "goal": f"goal {index}", "behavior": f"Name {index}", "category": "Fraud/Deception"}
    return goal | {"prompt": prompt, "response": None, "number_of_queries": 5, "jailbroken": prompt is not None} | more


CASES: list[tuple[str, str, Any, list[tuple[str, str, str, str]]]] = [
    (
        "own",
        "p.csv",
        "text,label,id,source\r\na,harmful,7,ours\r\nb,safe,,\r\n",
        [("7", "ours", "harmful", "a"), ("3", "p", "safe", "b")],
    ),
    (
        "own",
        "p.json",
        [{"text": "a", "label": "safe", "id": 1, "category": "x"}, {"text": "b", "label": "harmful"}],
        [("1", "p", "safe", "a"), ("2", "p", "harmful", "b")],
    ),
    (
        "goals with suffixes",
        "p.jsonl",
        [{"goal": "g", "suffix": " !! x", "attack": "GCG", "source": "jbb"}, {"goal": "h", "suffix": "y", "target": 0}],
        [("1", "jbb/GCG", "harmful", "g  !! x"), ("2", "p", "harmful", "h y")],
    ),
    (
        "garak report",
        "run.report.jsonl",
        [
            {"entry_type": "start_run setup", "x": None},
            attempt("u1", turns("first"), status=1),
            attempt("u1", turns("first")),
            attempt("u2", turns("hello", "hi", "second", "an assistant's start"), probe="dan.DAN"),
            attempt("u3", "an old one"),
            {"entry_type": "eval", "probe": "suffix.GCGCached", "detector": "shields.Up", "passed": 1},
        ],
        [
            ("u1", "garak/suffix.GCGCached", "harmful", "first"),
            ("u2", "garak/dan.DAN", "harmful", "second"),
            ("u3", "garak/suffix.GCGCached", "harmful", "an old one"),
        ],
    ),
    (
        "garak hit log",
        "run.hitlog.jsonl",
        [{"attempt_id": "u1", "probe": "dan.DAN", "prompt": turns("a"), "attempt_idx": i} for i in range(2)],
        [("u1", "garak/dan.DAN", "harmful", "a")],
    ),
    (
        "JailbreakBench artifact",
        "p.json",
        {"parameters": {"method": "GCG"}, "jailbreaks": [jailbreak(0, "goal 0 !!"), jailbreak(1, None)]},
        [("0", "jailbreakbench/GCG", "harmful", "goal 0 !!")],
    ),
    (
        "AdvBench",
        "p.csv",
        'goal,target\n"a, ""b""\nc","Sure, here"\nd,Sure\n',
        [("2", "advbench", "harmful", 'a, "b"\nc'), ("4", "advbench", "harmful", "d")],
    ),
    (
        "HarmBench behaviours",
        "p.csv",
        "Behavior,FunctionalCategory,SemanticCategory,Tags,ContextString,BehaviorID\n"
        "do a,standard,illegal,,,do_a\ndo b,contextual,illegal,context,the context,do_b\n",
        [
            ("do_a", "harmbench", "harmful", "do a"),
            ("do_b", "harmbench", "harmful", "the context\n\n---\n\ndo b"),
        ],
    ),
    (
        "HarmBench test cases",
        "p.json",
        {"do_a": ["a1", "a2"], "do_b": [], "do_c": ["c1"]},
        [
            ("do_a/1", "harmbench", "harmful", "a1"),
            ("do_a/2", "harmbench", "harmful", "a2"),
            ("do_c/1", "harmbench", "harmful", "c1"),
        ],
    ),
    (
        "JailbreakBench behaviours",
        "p.csv",
        "Index,Goal,Target,Behavior,Category,Source\n0,a,Sure,Name,Fraud,Original\n1,b,Sure,Other,Fraud,AdvBench\n",
        [("0", "jailbreakbench", "harmful", "a"), ("1", "jailbreakbench", "harmful", "b")],
    ),
    (
        "StrongREJECT",
        "p.csv",
        "category,source,forbidden_prompt\nHate,custom,a\n",
        [("2", "strongreject", "harmful", "a")],
    ),
    (
        "XSTest",
        "p.csv",
        "id,prompt,type,label,focus,note\n1,a,homonyms,safe,kill,\n2,b,contrast_homonyms,unsafe,kill,\n",
        [("1", "xstest", "safe", "a"), ("2", "xstest", "harmful", "b")],
    ),
    (
        "XSTest",
        "old.csv",
        "id,type,prompt,focus,note\nv2-1,homonyms,a,kill,\nv2-2,contrast_homonyms,b,kill,\n",
        [("v2-1", "xstest", "safe", "a"), ("v2-2", "xstest", "harmful", "b")],
    ),
    (
        "openai-guardrails",
        "p.jsonl",
        [
            {"id": "s1", "data": "a", "expected_triggers": {"Jailbreak": True, "PII": False}},
            {"id": "s2", "data": "b", "expected_triggers": {"Jailbreak": False}},
        ],
        [("s1", "p", "harmful", "a"), ("s2", "p", "safe", "b")],
    ),
]


@pytest.mark.parametrize(
    ("name", "file", "content", "expected"), CASES, ids=[f"{name} {file}" for name, file, *_ in CASES]
)
def test_a_format_is_known_by_its_columns(
    tmp_path: Path, name: str, file: str, content: Any, expected: list[tuple[str, str, str, str]]
) -> None:
    found = load_prompts(write(tmp_path / file, content))
    assert found.format == name
    assert [(p.id, p.source, p.label, p.text) for p in found.prompts] == expected


def test_every_format_is_tried_and_documented_in_order() -> None:
    names = [format_.name for format_ in FORMATS]
    assert set(names) == {name for name, *_ in CASES} | {"suffix list"}
    table = [line.split("|")[1].strip() for line in (documented.__doc__ or "").splitlines() if line.startswith("| ")]
    assert table[1:] == names


def test_a_suffix_list_has_the_label_that_the_caller_gives(tmp_path: Path) -> None:
    path = write(tmp_path / "p.jsonl", [{"suffix": "!! x", "origin": "GCG"}, {"suffix": "y"}])
    found = load_prompts(path, unlabelled="safe").prompts
    assert [(p.source, p.label, p.text) for p in found] == [("GCG", "safe", "!! x"), ("p", "safe", "y")]
    with pytest.raises(InvalidArgument, match="line 1: has no label"):
        read_prompts(path)


def test_what_a_prompt_asks_for_is_kept(tmp_path: Path) -> None:
    found = load_prompts(
        write(tmp_path / "p.json", {"parameters": {}, "jailbreaks": [jailbreak(4, "x"), jailbreak(9, None)]})
    )
    assert found.prompts[0].behavior == Behavior("goal 4", "Name 4", "Fraud/Deception", 4)
    assert found.skipped == (Behavior("goal 9", "Name 9", "Fraud/Deception", 9),)
    assert found.prompts[0].source == "jailbreakbench"
    attacks = list(read_prompts(write(tmp_path / "a.jsonl", [{"goal": "g", "suffix": "s"}])))
    assert attacks[0].behavior == Behavior("g")


def test_attempts_without_text_are_skipped_and_counted(tmp_path: Path) -> None:
    rows = [attempt("u1", turns("a")), attempt("u2", turns(None)), attempt("u3", None)]
    found = load_prompts(write(tmp_path / "p.jsonl", rows))
    assert ([p.id for p in found.prompts], len(found.skipped)) == (["u1"], 2)


def test_a_log_keeps_what_was_sent(tmp_path: Path) -> None:
    path = write(tmp_path / "p.jsonl", [attempt("u", turns("a\0b"))])
    assert [p.text for p in read_prompts(path)] == ["a\0b"]


def test_plain_text_is_one_prompt_a_line(tmp_path: Path) -> None:
    path = write(tmp_path / "p.txt", "\ufeffone text\r\n\r\n{another}\u2028still\r\n  indented")
    assert list(read_prompts(path, unlabelled="harmful")) == [
        Prompt("1", "p", "harmful", "one text"),
        Prompt("3", "p", "harmful", "{another}\u2028still"),
        Prompt("4", "p", "harmful", "  indented"),
    ]
    texts = write(tmp_path / "p.json", ["a", "b"])
    assert [p.text for p in read_prompts(texts, unlabelled="safe")] == ["a", "b"]


def test_byte_order_marks_are_no_part_of_a_column(tmp_path: Path) -> None:
    path = write(tmp_path / "p.csv", "\ufeffgoal,target\r\na,b\r\n")
    assert [p.text for p in read_prompts(path)] == ["a"]


cell = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=20)


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.tuples(cell, st.sampled_from(["harmful", "safe"])), min_size=1, max_size=5))
def test_the_same_rows_read_alike_in_every_container(tmp_path: Path, values: list[tuple[str, str]]) -> None:
    rows = [{"id": f"x{i}", "text": text, "label": label} for i, (text, label) in enumerate(values)]
    out = io.StringIO(newline="")
    table = csv.DictWriter(out, ["id", "text", "label"])
    table.writeheader()
    table.writerows(rows)
    contents = {"p.csv": out.getvalue(), "p.json": rows, "p.jsonl": rows}
    read = [list(read_prompts(write(tmp_path / name, content))) for name, content in contents.items()]
    assert read[0] == read[1] == read[2]
    assert [(p.text, p.label) for p in read[0]] == values


# Labels


def test_labels_are_in_all_rows_or_in_none(tmp_path: Path) -> None:
    rows = [{"text": "a", "label": "harmful"}, {"text": "b"}, {"text": "c", "label": None}]
    path = write(tmp_path / "p.jsonl", rows)
    for unlabelled in ("harmful", None):
        with pytest.raises(InvalidArgument, match=r"p\.jsonl, line 2: has no label, and line 1 has one"):
            read_prompts(path, unlabelled=unlabelled)
    late = write(tmp_path / "q.csv", "text,label\na,\nb,safe\n")
    with pytest.raises(InvalidArgument, match=r"q\.csv, line 2: has no label, and line 3 has one"):
        read_prompts(late, unlabelled="harmful")
    # A sample of safe texts may hold rows that somebody labelled; none becomes harmful by it.
    assert [p.label for p in read_prompts(path, unlabelled="safe")] == ["harmful", "safe", "safe"]


def test_without_labels_the_caller_decides(tmp_path: Path) -> None:
    path = write(tmp_path / "p.csv", "text,label\na,\nb,\n")
    for label in ("harmful", "safe"):
        assert [p.label for p in read_prompts(path, unlabelled=label)] == [label, label]
    with pytest.raises(InvalidArgument, match=r"p\.csv, line 2: has no label"):
        read_prompts(path)
    with pytest.raises(InvalidArgument, match="unlabelled must be"):
        read_prompts(path, unlabelled="benign")


def test_harmful_formats_stay_harmful_in_a_safe_file(tmp_path: Path) -> None:
    path = write(tmp_path / "p.csv", "goal,target\na,b\n")
    assert [p.label for p in read_prompts(path, unlabelled="safe")] == ["harmful"]


@pytest.mark.parametrize(
    ("file", "unlabelled", "label"),
    [
        ("harmful-behaviors.csv", None, "harmful"),
        ("harmful-behaviors.csv", "safe", "harmful"),
        ("JBB-Benign.csv", None, "safe"),
        ("benign-behaviors.csv", "harmful", "safe"),
        ("jbb.csv", None, "harmful"),
        ("jbb.csv", "safe", "safe"),
    ],
)
def test_behaviours_are_labelled_by_the_name_of_the_file(
    tmp_path: Path, file: str, unlabelled: str | None, label: str
) -> None:
    path = write(tmp_path / file, "Index,Goal,Target,Behavior,Category,Source\n0,a,Sure,Name,Fraud,Original\n")
    assert [p.label for p in read_prompts(path, unlabelled=unlabelled)] == [label]


# Errors

LINE = '{"text": "a", "label": "safe"}\n'
BAD: list[tuple[str, str | bytes, str]] = [
    ("p.jsonl", LINE + CANARY, "p.jsonl, line 2: not JSON"),
    ("p.jsonl", LINE + f'["{CANARY}"]', "line 2: is not a JSON object"),
    ("p.jsonl", LINE + f'{{"text": "{CANARY}", "text": "b"}}', "line 2: an object has a key twice"),
    ("p.jsonl", LINE + f'{{"text": "{CANARY}", "label": "safe", "x": NaN}}', "line 2: NaN and Infinity"),
    ("p.jsonl", LINE + f'{{"text": "{CANARY}", "label": "safe", "x": {"9" * 5000}}}', "line 2: not JSON that can"),
    ("p.jsonl", LINE + "[" * 100_000, "line 2: not JSON"),
    ("p.jsonl", LINE + f'{{"text": ["{CANARY}"], "label": "safe"}}', "line 2: needs an object with a string `text`"),
    ("p.jsonl", LINE + f'{{"goal": "{CANARY}", "label": "safe"}}', "line 2: needs an object with a string `text`"),
    ("p.jsonl", LINE + f'{{"text": "{CANARY}", "label": "{CANARY}"}}', "line 2: `label` must be harmful or safe"),
    ("p.jsonl", LINE + f'{{"text": "{CANARY}", "label": 1}}', "line 2: `label` must be harmful or safe"),
    ("p.jsonl", LINE + f'{{"text": "a", "label": "safe", "id": ["{CANARY}"]}}', "line 2: `id` must be a string or a"),
    ("p.jsonl", LINE + f'{{"text": "a", "label": "safe", "source": true, "x": "{CANARY}"}}', "line 2: `source` must"),
    ("p.jsonl", LINE + f'{{"text": "{CANARY}\\u0000", "label": "safe"}}', "line 2: the text holds a NUL"),
    ("p.jsonl", LINE + f'{{"text": "{CANARY}", "label": "safe", "id": 1}}', "line 2: has the id of line 1"),
    ("p.jsonl", LINE + CANARY + "\0", "line 2: holds a NUL"),
    ("p.txt", f"{CANARY}\n\0", "line 2: holds a NUL"),
    ("p.txt", CANARY.encode("utf-16"), "it is not UTF-8"),
    ("p.txt", CANARY.encode() + b"\xff", "it is not UTF-8"),
    ("p.txt", " \n\n", "holds no prompts"),
    ("p.jsonl", "", "holds no prompts"),
    ("p.json", "\n", "holds no prompts"),
    ("p.json", "[]", "holds no prompts"),
    ("p.csv", "", "holds no prompts"),
    ("p.csv", "text,label\n", "holds no prompts"),
    ("p.csv", f"text,label\na,safe\n{CANARY}\n", "line 3: 1 cells under 2 columns"),
    ("p.csv", f"text,label\na,safe\n{CANARY},safe,x\n", "line 3: 3 cells under 2 columns"),
    ("p.csv", f'text,label\n"a\nb",safe\n"{CANARY}\n', "line 4: is not CSV"),
    ("p.csv", f'text,label\na,safe\n"{CANARY}"x,safe\n', "line 3: is not CSV"),
    ("p.csv", f"text,text\n{CANARY},b\n", "line 1: two columns share a name"),
    ("p.csv", f"{CANARY}\nanother {CANARY}\n", "no known format has the columns found, no named column and 1 that are"),
    (
        "p.csv",
        f"question,Answer\n{CANARY},a\n",
        "no known format has the columns found, Answer, question. Known are own",
    ),
    ("p.json", f'{{"question": "{CANARY}", "n": 1}}', "columns found, n, question. Known"),
    ("p.json", f'{{"goal": ["{CANARY}"], "target": ["{CANARY}"]}}', "entry 1: needs an object with a string `goal`"),
    ("p.json", f'{{"text": "{CANARY}",\n "label": }}', "p.json, line 2: not JSON"),
    ("p.json", f'{{"text": "{CANARY}", "text": 1}}', "p.json: an object has a key twice"),
    ("p.json", f'"{CANARY}"', "is not a JSON list or object"),
    ("p.json", f'["{CANARY}", 3]', "entry 2: is not a JSON object"),
    ("p.json", f'{{"id": ["{CANARY}"], "do_a": ["x"]}}', "no known format has the columns found, do_a, id"),
    ("p.json", f'{{"do_a": ["x", ["{CANARY}"]]}}', "entry 2: needs an object with a string `test_case`"),
    ("p.json", '{"do_a": []}', r"holds no prompts \(HarmBench test cases, 1 rows without one\)"),
    ("p.jsonl", '{"entry_type": "init"}', r"holds no prompts \(garak report, 0 rows"),
    ("p.jsonl", json.dumps(attempt("u", {"turns": [{"role": CANARY}]})), "`prompt` must hold turns"),
    ("p.jsonl", json.dumps(attempt("u", {"turns": [{"role": "user", "content": {"text": 3}}]})), "text of a turn must"),
    ("p.jsonl", json.dumps({"data": CANARY, "expected_triggers": {"PII": "yes"}}), "must be an object of true and"),
    ("p.csv", f"Index,Goal,Behavior,Category\n{CANARY},a,b,c\n", "`Index` must be a whole number"),
    ("p.csv", f"id,prompt,type,label\n1,{CANARY},homonyms,{CANARY}\n", "`label` must be unsafe or safe"),
]


@pytest.mark.parametrize(("file", "content", "message"), BAD, ids=[f"{i} {row[0]}" for i, row in enumerate(BAD)])
def test_errors_name_the_line_and_quote_nothing(tmp_path: Path, file: str, content: str | bytes, message: str) -> None:
    with pytest.raises(InvalidArgument, match=message) as caught:
        read_prompts(write(tmp_path / file, content), unlabelled="harmful")
    assert "canary" not in str(caught.value)
    assert "\n" not in str(caught.value)
    assert caught.value.__cause__ is None
    assert caught.value.__suppress_context__ or caught.value.__context__ is None


def test_a_later_row_of_an_artifact_must_have_its_prompt(tmp_path: Path) -> None:
    bare = jailbreak(1, None)
    del bare["prompt"]
    path = write(tmp_path / "p.json", {"parameters": {}, "jailbreaks": [jailbreak(0, "x"), bare]})
    with pytest.raises(InvalidArgument, match="entry 2: needs an object with a string `prompt`"):
        read_prompts(path)


def test_reading_costs_nothing_heavy() -> None:
    assert heavy_imports("import promptguard.evaluate.prompts") == []


@pytest.mark.skipif(not SHARED.exists(), reason="the shared prompts are not here")
def test_the_shared_prompts_are_read_whole() -> None:
    assert len(list(read_prompts(SHARED / "bench.jsonl"))) == 3234
    attacks = load_prompts(SHARED / "attacks.jsonl")
    assert len(attacks.prompts) == 381
    assert {p.source.rpartition("/")[2] for p in attacks.prompts} == {"GCG", "DSN"}
    assert all(p.behavior and p.text.startswith(p.behavior.goal + " ") for p in attacks.prompts)
    assert len(list(read_prompts(SHARED / "suffixes.jsonl", unlabelled="safe"))) == 1200
