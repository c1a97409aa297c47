"""Any function behind a guard: wrapped, or decorated.

pip install certified-promptguard, then: python examples/plain_function.py "a question"
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator

from promptguard.guard.environment import guard_of

guard = guard_of(os.environ)  # the default guard, or what PGUARD_FILTER names


@guard.wrap
def stream(prompt: str) -> Iterator[str]:
    """Stands for your model; its first word is made after the verdict."""
    yield from f"You asked: {prompt}".split()


if __name__ == "__main__":
    sys.stdout.write(" ".join(stream(sys.argv[1])) + "\n")
