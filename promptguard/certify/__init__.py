"""Certifiers: scores and a threat in, a verdict out. One file and one line per method."""

from __future__ import annotations

CERTIFIERS = {
    "erase-and-check": "promptguard.certify.erase_and_check:EraseAndCheck",
    "any-of": "promptguard.certify.any_of:AnyOf",
    "rand-ec": "promptguard.certify.empirical:RandEC",
    "greedy-ec": "promptguard.certify.empirical:GreedyEC",
    "grad-ec": "promptguard.certify.empirical:GradEC",
    "truncation-votes": "promptguard.certify.truncation_votes:TruncationVotes",
    "deletion-smoothing": "promptguard.certify.deletion_smoothing:DeletionSmoothing",
    "adaptive-deletion-smoothing": "promptguard.certify.adaptive_deletion:AdaptiveDeletion",
    "mask-smoothing": "promptguard.certify.mask_smoothing:MaskSmoothing",
    "synonym-smoothing": "promptguard.certify.synonym_smoothing:SynonymSmoothing",
    "uniform-smoothing": "promptguard.certify.uniform_smoothing:UniformSmoothing",
    "smooth-llm": "promptguard.certify.smooth_llm:SmoothLLM",
    "gaussian-smoothing": "promptguard.certify.smooth_image:GaussianSmoothing",
    "lipschitz": "promptguard.certify.lipschitz:LipschitzCertifier",
    "levenshtein": "promptguard.certify.levenshtein:LevenshteinCertifier",
}
