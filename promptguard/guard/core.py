"""The guard: from a certifier's verdicts and the owner's policy to one decision per request.

Whatever goes wrong on the way to a verdict ends in `_attempt`, the one place where this package turns a failure into an
outcome, and the policy blocks it by default.
"""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections.abc import Callable, Coroutine, Iterator, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, Literal, ParamSpec, TypeVar, overload

from promptguard.errors import BudgetExceeded, EmptyText, FilterError, PictureRefused
from promptguard.guard.decision import Decision, Part
from promptguard.guard.images import Images
from promptguard.guard.policy import Action, OnBlock, Policy, Reason
from promptguard.guard.reading import read
from promptguard.guard.wrapping import wrap
from promptguard.types import Certifier, Label, Verdict

_log = logging.getLogger("promptguard.guard")
_log.addHandler(logging.NullHandler())  # where and whether lines appear is the application's choice
_P = ParamSpec("_P")
_R = TypeVar("_R")
_T = TypeVar("_T")
_X = TypeVar("_X")
_REASONS = {Label.SAFE: Reason.ALLOWED, Label.HARMFUL: Reason.HARMFUL, Label.ABSTAIN: Reason.ABSTAIN}


class Guard:
    """Allows or blocks requests. It keeps no state, so threads may share one if they may share its certifier.

    A check takes as long as its certifier, whose budget of checks or of time (`max_seconds`, for each text) is what
    bounds it. Out of time, a certifier abstains or raises a `BudgetExceeded`; the policy blocks both by default.

    Args:
        certifier: what judges each text.
        policy: what follows from a verdict, or from none.
        images: what judges pictures; without it they are unscannable.
    """

    def __init__(self, certifier: Certifier, policy: Policy | None = None, images: Images | None = None) -> None:
        self.certifier = certifier
        self.policy = policy if policy is not None else Policy()
        self.images = images

    def check(self, x: object, *, context: Sequence[str] = ()) -> Decision:
        """Decide about a request. Never raises for what the request or the certifier holds.

        Every message of every untrusted role is checked: each text alone, each turn as a whole, and all turns joined
        by line breaks. Pictures are judged one by one, after the texts. Equal texts and pictures are checked once. The
        first block ends the check.

        Args:
            x: a text, or a list of messages (`{"role": ..., "content": ...}` with content a text, None, or a list of
                text parts, and of inline pictures if the guard has `images`). Anything else is unscannable.
            context: further texts that reach the model together with x, such as retrieved documents. They are
                checked alone and joined with x.
        """
        start = time.perf_counter()
        context = (context,) if isinstance(context, str) else context
        parts: list[Part] = []
        finding: Part | None = None
        action = Action.ALLOW
        for part in self._examine(x, context):
            parts.append(part)
            if part.reason is Reason.ALLOWED:
                continue
            finding = finding or part
            if self.policy.action(part.reason) is Action.BLOCK:
                action, finding = Action.BLOCK, part
                break
        is_block = action is Action.BLOCK
        decision = Decision(
            action=action,
            reason=finding.reason if finding else Reason.ALLOWED,
            parts=tuple(parts),
            certificate=finding.verdict.certificate if is_block and finding and finding.verdict else None,
            error=finding.error if finding else None,
            milliseconds=1000 * (time.perf_counter() - start),
        )
        _record(decision)
        return decision

    async def acheck(self, x: object, *, context: Sequence[str] = ()) -> Decision:
        """`check` in a worker thread.

        A cancelled caller gets `CancelledError` at once and never a decision; the thread ends its check in the
        background.
        """
        return await asyncio.to_thread(self.check, x, context=context)

    @overload
    def wrap(
        self,
        call: Callable[_P, Coroutine[Any, Any, _R]],
        *,
        on_block: Literal["raise"],
        argument: str | None = ...,
    ) -> Callable[_P, Coroutine[Any, Any, _R]]: ...
    @overload
    def wrap(
        self, call: Callable[_P, Coroutine[Any, Any, _R]], *, on_block: str = ..., argument: str | None = ...
    ) -> Callable[_P, Coroutine[Any, Any, _R | str]]: ...
    @overload
    def wrap(
        self, call: Callable[_P, _R], *, on_block: Literal["raise"], argument: str | None = ...
    ) -> Callable[_P, _R]: ...
    @overload
    def wrap(
        self, call: Callable[_P, _R], *, on_block: str = ..., argument: str | None = ...
    ) -> Callable[_P, _R | str]: ...
    def wrap(
        self, call: Callable[..., Any], *, on_block: str = OnBlock.REFUSE, argument: str | None = None
    ) -> Callable[..., Any]:
        """Guard a callable: one of its arguments is checked before it runs.

        Works for functions, coroutine functions, generator functions and asynchronous generator functions; those
        yield the refusal as their only item, or raise, when first advanced. Signature and name are kept.

        Args:
            call: what to guard; also usable as a decorator.
            on_block: "refuse" returns the policy's refusal text, "raise" raises `Blocked`.
            argument: the parameter to check. By default the one named `messages`, `prompt` or `text`, else the only
                one. No other argument is checked. What is checked must not be changed while the check runs.

        Raises:
            InvalidArgument: there is no such parameter, or it cannot be told which one is meant.
        """
        return wrap(self, call, OnBlock.of(on_block), argument)

    def _examine(self, x: object, context: Sequence[str]) -> Iterator[Part]:
        """The parts of a request, judged one by one as they are asked for; what costs nothing comes first."""
        reading = _attempt("input", partial(read, x, self.policy, context, with_pictures=self.images is not None))
        if isinstance(reading, Part):
            yield reading
            return
        for where in reading.unscannable:
            yield Part(where, Reason.UNSCANNABLE)
        if not reading.pieces and not reading.pictures and not reading.unscannable:
            yield Part("input", Reason.ERROR, error=EmptyText.__name__)
        texts, pictures = len(reading.pieces), len(reading.pictures)
        most_texts = texts if self.policy.max_texts is None else self.policy.max_texts
        most_pictures = self.images.max_pictures if self.images else 0
        if texts > most_texts or pictures > most_pictures:
            yield Part("input", Reason.OVER_BUDGET, error=BudgetExceeded.__name__)
            return
        for piece in reading.pieces:
            yield _attempt(piece.where, partial(_judge, self.certifier, piece.text, piece.where))
        if self.images is not None:
            for picture in reading.pictures:
                found = _attempt(picture.where, partial(_judge, self.images, picture.data, picture.where))
                yield replace(found, is_picture=True)


def _judge(certifier: Certifier[_X], x: _X, where: str) -> Part:
    """What a certifier says of a text or a picture.

    Raises:
        FilterError: it is no verdict, or calls it safe on the strength of a score that is not a number.
        PromptGuardError: the certifier's own.
    """
    verdict: object = certifier.certify(x)
    if not isinstance(verdict, Verdict) or not isinstance(verdict.label, Label):
        raise FilterError("the certifier returned something that is not a verdict")
    if verdict.label is Label.SAFE and not math.isfinite(verdict.score):
        raise FilterError("the certifier called its input safe without a finite score")
    return Part(where, _REASONS[verdict.label], verdict)


def _attempt(where: str, work: Callable[[], _T]) -> _T | Part:
    """The result, or the part that says why there is none. Messages of errors may quote text: only types are kept."""
    try:
        return work()
    except PictureRefused as error:
        return Part(where, Reason.UNSCANNABLE, error=type(error).__name__)
    except BudgetExceeded as error:
        return Part(where, Reason.OVER_BUDGET, error=type(error).__name__)
    except (KeyboardInterrupt, SystemExit, GeneratorExit):
        raise
    except BaseException as error:  # a panic in a tokenizer's native code is no Exception
        return Part(where, Reason.ERROR, error=type(error).__name__)


def _record(decision: Decision) -> None:
    """One line per decision: counts and names, never text."""
    _log.log(
        logging.INFO if decision.reason is Reason.ALLOWED else logging.WARNING,
        "%s: reason=%s parts=%d calls=%d checks=%d ms=%.1f error=%s",
        decision.action,
        decision.reason,
        len(decision.parts),
        decision.calls,
        decision.checks,
        decision.milliseconds,
        decision.error,
    )
