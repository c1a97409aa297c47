"""Certifiers: scores and a threat in, a verdict out. One file and one line per method."""

from __future__ import annotations

CERTIFIERS = {
    "erase-and-check": "promptguard.certify.erase_and_check:EraseAndCheck",
    "any-of": "promptguard.certify.any_of:AnyOf",
    "rand-ec": "promptguard.certify.empirical:RandEC",
    "greedy-ec": "promptguard.certify.empirical:GreedyEC",
    "grad-ec": "promptguard.certify.empirical:GradEC",
}
