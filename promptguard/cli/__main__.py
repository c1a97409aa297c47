"""`python -m promptguard.cli`, which is what `accelerate launch -m` runs."""

from __future__ import annotations

from promptguard.cli import app

app()
