"""Erasures are a stream: what a search keeps does not grow with their number."""

from __future__ import annotations

import subprocess
import sys

import pytest

# In a process of its own, without torch, where the peak is that of the search. The filter is a function of the length.
SCRIPT = """
import sys
from pathlib import Path
from promptguard import EraseAndCheck, as_filter, load_mode, load_units
from promptguard.certify.enumeration import Screen

class Bounded:
    name = digest = "bounded"
    threshold, guard_band, exact_band, floor = 0.5, 0.0, 0.0, 0.001
    def upper_bounds(self, texts): return [0.2 + len(text) / 1e6 for text in texts]
    def least_bound(self, bound): return bound
    def exact_scores(self, texts): return [0.1 + len(text) / 1e6 for text in texts]
    def __call__(self, texts): return self.exact_scores(texts)

def peak(filter_, units):
    text = " ".join(chr(97 + i % 26) + chr(97 + i // 26) for i in range(units))
    certifier = EraseAndCheck(
        filter_, load_mode("infusion", 3), load_units("word"), max_checks=None, max_work=None, early_stop=False
    )
    assert isinstance(certifier._way, Screen) == isinstance(filter_, Bounded)
    verdict = certifier.certify(text)
    assert verdict.score == filter_([text])[0]
    # Not ru_maxrss, which knows the peak of the process that started this one.
    (line,) = (line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    return verdict.checks, line.split()[1]

filter_ = {"plain": as_filter(lambda texts: [len(text) / 1e6 for text in texts]), "screened": Bounded()}[sys.argv[1]]
for units in sys.argv[2:]:
    print(*peak(filter_, int(units)))
"""


def peaks(way: str, *units: int) -> list[tuple[int, int]]:
    """Checks, and the peak memory in KiB after them, for texts of so many units."""
    command = [sys.executable, "-c", SCRIPT, way, *map(str, units)]
    lines = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
    return [(int(checks), int(peak)) for checks, peak in (line.split() for line in lines)]


@pytest.mark.skipif(sys.platform != "linux", reason="the peak is read from /proc")
@pytest.mark.parametrize("way", ["plain", "screened"])
def test_memory_does_not_grow_with_the_erasures(way: str) -> None:
    (few, before), (many, after) = peaks(way, 86, 100)  # the first ones fill what is remembered of duplicates
    assert (few, many) == (106_082, 166_751)
    # Longer texts take some: 100,000 of them are remembered.
    assert after - before < 16_384, f"{many - few} more erasures took {after - before} KiB"
