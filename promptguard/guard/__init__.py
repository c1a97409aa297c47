"""Verdict to decision: what an application does with what a certifier says.

The promise: a request is allowed only if every part of it was read and a certifier said "safe" of it, unless the
owner's `Policy` says otherwise. Errors, abstentions, parts that cannot be read and work over the budget are blocks; so
are pictures, unless the guard has `images`. Nothing in a request changes the policy, and no text reaches a log line, a
`Decision` or an error.
"""

from __future__ import annotations

from promptguard.guard.core import Guard
from promptguard.guard.decision import Decision, Part
from promptguard.guard.policy import Action, OnBlock, Policy, Reason

__all__ = ["Action", "Decision", "Guard", "OnBlock", "Part", "Policy", "Reason"]
