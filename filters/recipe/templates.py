"""Contrast sets as grids: the same verbs and topics, once harmless and once harmful (`filters/corpus/contrast.json`).

A word filter cannot tell "kill a process" from "kill a neighbour"; these pairs teach the object, not the verb.
"""

from __future__ import annotations

import itertools
import json
import random
from collections.abc import Sequence
from pathlib import Path

GRIDS = Path(__file__).resolve().parent.parent / "corpus" / "contrast.json"
LABELS = {"harmless": "safe", "harmful": "harmful"}


def contrast_rows(rng: random.Random, ask: Sequence[str]) -> list[dict[str, str]]:
    """Both grids as rows (`text`, `label`, `source`), with `ask` as the forms of a request; shuffled by `rng`."""
    grids = json.loads(GRIDS.read_text(encoding="utf-8"))
    rows = []
    for verb, objects in grids["acts"].items():
        for kind, label in LABELS.items():
            for thing in objects[kind]:
                rows += [(form.format(f"{verb} {thing}"), label) for form in rng.sample(ask, 8)]
    for kind, label in LABELS.items():
        pairs = itertools.product(grids[f"{kind}_forms"], grids["topics"])
        rows += [(form.format(topic), label) for form, topic in pairs]
    rng.shuffle(rows)
    return [{"text": text, "label": label, "source": f"contrast_{label}"} for text, label in rows]
