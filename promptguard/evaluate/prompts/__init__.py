"""Prompts from files of every format of the field, told apart by their columns.

| format | columns that show it | text | label | id | source |
|---|---|---|---|---|---|
| own | text | text | label | id, else the line | source, else the file |
| goals with suffixes | goal, suffix | goal, a space, suffix | harmful | the line | source, attack |
| suffix list | suffix | suffix | none | the line | origin |
| garak report | entry_type | last user turn of an attempt | harmful | uuid | garak, probe |
| garak hit log | attempt_id, prompt, probe | last user turn | harmful | attempt_id | garak, probe |
| JailbreakBench artifact | parameters, jailbreaks | prompt | harmful | index | jailbreakbench, method |
| AdvBench | goal, target | goal | harmful | the line | advbench |
| HarmBench behaviours | Behavior, BehaviorID, ContextString | context, Behavior | harmful | BehaviorID | harmbench |
| HarmBench test cases | an object of lists | each case | harmful | BehaviorID, number | harmbench |
| JailbreakBench behaviours | Index, Goal, Behavior, Category | Goal | by the file's name | Index | jailbreakbench |
| StrongREJECT | forbidden_prompt | forbidden_prompt | harmful | the line | strongreject |
| XSTest | id, prompt, type | prompt | label, else type | id | xstest |
| openai-guardrails | data, expected_triggers | data | harmful if one is expected | id | the file |

The first format of this list whose columns are all there counts; other columns are not looked at. Files are `.csv`,
`.json`, `.txt` (one prompt a line, which is the own format without labels), and anything else is JSON lines.

A file has labels in all its rows or in none. Where it has none, the caller's `unlabelled` applies. A safe sample is the
one exception: with `unlabelled="safe"`, rows without a label may stand among others.
"""

from __future__ import annotations

from promptguard.evaluate.prompts.reading import load_prompts, read_prompts
from promptguard.evaluate.prompts.records import Behavior, Prompt, PromptSet

__all__ = ["Behavior", "Prompt", "PromptSet", "load_prompts", "read_prompts"]
