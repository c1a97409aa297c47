"""Attacks: the searches that try to prove a verdict wrong. One file and one line per method.

An `Attack` looks for a text that a threat reaches from a flagged one and that an `Objective` does not flag. Aimed at a
bare filter it measures how easily the filter is bypassed; aimed at a guard it is adaptive; aimed inside a certificate
(`promptguard.attack.falsify`) it must never succeed.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from promptguard.registry import lookup

if TYPE_CHECKING:
    from promptguard.attack.base import Attack

GROUP = "promptguard.attack"
ATTACKS = {
    "gcg": "promptguard.attack.gcg:GCG",
    "random-search": "promptguard.attack.random_search:RandomSearch",
    "greedy-infusion": "promptguard.attack.infusion:GreedyInfusion",
    "evolutionary-infusion": "promptguard.attack.infusion:EvolutionaryInfusion",
    "substitution": "promptguard.attack.substitution:WordSubstitution",
    "deletion": "promptguard.attack.deletion:GreedyDeletion",
    "replay": "promptguard.attack.replay:Replay",
}


def load_attack(name: str, **options: Any) -> Attack:
    """The attack of a name.

    Args:
        name: a key of `ATTACKS`, or of the entry point group `promptguard.attack`.
        options: the attack's own settings, for instance steps.

    Raises:
        UnknownName: no such attack.
        InvalidArgument: a setting that means nothing, for instance 0 steps.
    """
    attack: Attack = lookup(ATTACKS, GROUP, name, "attack")(**options)
    return attack
