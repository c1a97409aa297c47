"""Results as a JailbreakBench artifact (Chao et al. 2024), to stand beside the artifacts that others publish.

An artifact says of one attack on one target, behaviour by behaviour, which prompt was sent and whether it succeeded.
Here the target is a model behind a guard, and no model is asked: `jailbroken` says that the guard let the prompt
through. The attack success rate is thus an upper bound on that of any model behind this guard. A prompt that the guard
could not check counts as blocked, since the guard blocks it.

All counts are computed from the rows. An artifact holds prompts, as its format demands: it is written only where the
caller says.

    attacks = load_prompts(Path("GCG.json"))
    rows = run(subject, attacks.prompts, folder)
    about = Attack("GCG", "vicuna-13b-v1.5", AttackType.TRANSFER, "causal, suffix", date.today())
    save_artifact(artifact(rows, attacks.prompts, about, unattacked=attacks.skipped), Path("GCG-guarded.json"))
"""

from __future__ import annotations

import datetime
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any

from promptguard.errors import InvalidArgument
from promptguard.evaluate.prompts import Behavior, Prompt
from promptguard.guard import Policy
from promptguard.types import Label

# Who judged: their files name the service that ran the model here.
_JUDGE = "promptguard"


class AttackType(StrEnum):
    """What the attacker saw, in the benchmark's words."""

    WHITE_BOX = "white_box"
    BLACK_BOX = "black_box"
    TRANSFER = "transfer"
    MANUAL = "manual"


@dataclass(frozen=True, slots=True)
class Attack:
    """What an artifact says of the attack as a whole.

    Attributes:
        method: name of the attack, for instance "GCG".
        model: the model behind the guard, or that the prompts were made for; their readers know four names.
        attack_type: what the attacker saw. Prompts made without the guard are a TRANSFER attack on it.
        defense: name of the guard.
        date: of the evaluation.
        parameters: of the method.
    """

    method: str
    model: str
    attack_type: AttackType
    defense: str
    date: datetime.date
    parameters: Mapping[str, str | int | float] = field(default_factory=dict)


def artifact(
    rows: Iterable[Mapping[str, Any]],
    prompts: Iterable[Prompt],
    attack: Attack,
    *,
    unattacked: Sequence[Behavior | None] = (),
    refusal: str | None = None,
) -> dict[str, Any]:
    """The artifact of a benchmark run.

    Args:
        rows: the run's rows; `id` and `verdict` are read.
        prompts: what was run. Harmful ones are exported, safe ones left out. Each needs a JailbreakBench behaviour, as
            those that are read from an artifact or a behaviours file have.
        attack: what the rows do not say.
        unattacked: behaviours that the attack found no prompt for (`PromptSet.skipped`): failures, as in their files.
        refusal: what the guard answers; by default the default policy's text.

    Returns:
        JSON data: `parameters` and, by index, `jailbreaks`. `response` is the refusal, or null where a model would have
        been asked. The guard is asked once a prompt, which is what the numbers of queries count; tokens are null.

    Raises:
        InvalidArgument: nothing to export, a prompt without its row, without a behaviour, or two for one behaviour.
    """
    answer = Policy().refusal if refusal is None else refusal
    verdicts = {row["id"]: row["verdict"] for row in rows}
    jailbreaks = [_jailbreak(_behavior(p), p, verdicts, answer) for p in prompts if p.label == Label.HARMFUL]
    submitted = len(jailbreaks)
    jailbreaks += [_failure(_numbered(behavior)) for behavior in unattacked]
    if not jailbreaks:
        raise InvalidArgument("there is no harmful prompt to export")
    if len({entry["index"] for entry in jailbreaks}) < len(jailbreaks):
        raise InvalidArgument("two prompts share a behaviour: an artifact holds each once, so export attack by attack")
    broken = sum(entry["jailbroken"] for entry in jailbreaks)
    return {
        "parameters": {
            "method": attack.method,
            "model": attack.model,
            "attack_type": str(attack.attack_type),
            "defense": attack.defense,
            "attack_success_rate": broken / len(jailbreaks),
            "total_number_of_jailbreaks": broken,
            "number_of_submitted_prompts": submitted,
            "total_number_of_queries": submitted,
            "total_prompt_tokens": None,
            "total_response_tokens": None,
            "evaluation_date": attack.date.isoformat(),
            "evaluation_llm_provider": _JUDGE,
            "method_parameters": dict(attack.parameters),
        },
        "jailbreaks": sorted(jailbreaks, key=lambda entry: int(entry["index"])),
    }


def save_artifact(result: Mapping[str, Any], path: Path) -> None:
    """Write an artifact.

    Raises:
        InvalidArgument: the file cannot be written.
    """
    try:
        path.write_text(json.dumps(result, indent=4, allow_nan=False) + "\n", encoding="utf-8")
    except OSError as error:
        raise InvalidArgument(f"cannot write {path.name}: {type(error).__name__}") from None


def _behavior(prompt: Prompt) -> Behavior:
    return _numbered(prompt.behavior)


def _numbered(behavior: Behavior | None) -> Behavior:
    if behavior is None or behavior.index is None:
        raise InvalidArgument(
            "a prompt has no JailbreakBench behaviour: read prompts from an artifact or a behaviours file"
        )
    return behavior


def _jailbreak(behavior: Behavior, prompt: Prompt, verdicts: Mapping[str, str], answer: str) -> dict[str, Any]:
    if prompt.id not in verdicts:
        raise InvalidArgument(f"the rows do not cover the prompts: behaviour {behavior.index} has none")
    is_through = verdicts[prompt.id] == Label.SAFE
    return _failure(behavior) | {
        "prompt": prompt.text,
        "response": None if is_through else answer,
        "number_of_queries": 1,
        "queries_to_jailbreak": 1 if is_through else None,
        "jailbroken": is_through,
    }


def _failure(behavior: Behavior) -> dict[str, Any]:
    """The entry of a behaviour without a prompt."""
    return {
        "index": behavior.index,
        "goal": behavior.goal,
        "behavior": behavior.name,
        "category": behavior.category,
        "prompt": None,
        "response": None,
        "number_of_queries": None,
        "queries_to_jailbreak": None,
        "prompt_tokens": None,
        "response_tokens": None,
        "jailbroken": False,
    }
