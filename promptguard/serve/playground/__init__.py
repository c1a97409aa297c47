"""The playground: one page that shows what a guard says of a text, why, and what an attack on it achieves.

`Workbench` answers in plain Python, `routes` puts it on the web. Nothing that is typed is stored. The answers hold
scores and witnesses, which help whoever tunes an attack: serve the page to those who may see them.
"""

from __future__ import annotations

from promptguard.serve.playground.limits import Limits
from promptguard.serve.playground.pages import routes
from promptguard.serve.playground.workbench import Workbench

__all__ = ["Limits", "Workbench", "routes"]
