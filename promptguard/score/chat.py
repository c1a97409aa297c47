"""A prompt inside a chat template as token ids, with the template's control tokens real and the prompt's not.

The ids of a conversation are those of three parts, put together:

1. the template up to its last control token before the prompt;
2. what the template says from there, the prompt, and what it says up to its next control token, as *one* string, so
   that words merge across the seams as the model is used to;
3. the template from that control token to where the verdict begins.

Part 2 is read by a tokenizer without any added token: `<|eot_id|>` in a prompt is eight or so ordinary tokens. For
prompts without names of control tokens the ids are those of `apply_chat_template`. U+FDD0, a code point that stands for
no character, is dropped from prompts: it marks the seam between 1 and 2.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from tokenizers import AddedToken, Encoding, Tokenizer

from promptguard.errors import FilterError, InvalidArgument, LabelError, discreetly
from promptguard.score.judges import Template

_SEAM = "\ufdd0"
_PROMPT = "prompt"


@dataclass(frozen=True, slots=True)
class LabelTokens:
    """First tokens of the verdicts.

    Attributes:
        harmful: ids that begin a harmful verdict.
        safe: ids that begin any other.
    """

    harmful: tuple[int, ...]
    safe: tuple[int, ...]


class ChatTokenizer:
    """Prompts of any length to the token ids of conversations: one, or overlapping windows over the prompt's tokens."""

    def __init__(self, tokenizer: Any, template: Template, window: int, overlap: int | None = None) -> None:
        """Read the template.

        Args:
            tokenizer: a transformers tokenizer backed by the tokenizers library; it is not changed.
            template: the conversation around the prompt.
            window: tokens in a conversation at most.
            overlap: prompt tokens that neighbouring windows share; default a quarter of what a window holds of them.

        Raises:
            InvalidArgument: the tokenizer is a slow one, cuts at random, or cannot read its control tokens as text; or
                the window has no room.
        """
        backend = getattr(tokenizer, "backend_tokenizer", None)
        if not isinstance(backend, Tokenizer):
            raise InvalidArgument(f"{type(tokenizer).__name__} is no fast tokenizer: save a tokenizer.json for it")
        if getattr(backend.model, "dropout", None):
            raise InvalidArgument("the tokenizer has BPE dropout, so a text has no fixed score: set it to null")
        self._full = Tokenizer.from_str(backend.to_str())
        self._full.no_truncation()
        self._full.no_padding()
        self._full.encode_special_tokens = False
        self._plain = _without_added_tokens(self._full)
        self._template = template
        self._split(template)
        self._refuse_control_tokens(getattr(tokenizer, "unk_token_id", None))
        room = window - len(self._one(""))
        self.window = window
        self.overlap = max(room, 0) // 4 if overlap is None else overlap
        if room < 1 or not 0 <= self.overlap < room:
            raise InvalidArgument(f"window {window} has room for {room} tokens of a prompt: overlap must be under that")
        self.digest = hashlib.sha256(
            json.dumps([self._full.to_str(), template.before, template.after, window, self.overlap]).encode()
        ).hexdigest()

    def __call__(self, text: str) -> list[list[int]]:
        """Ids of the conversations whose largest score is the prompt's; one, unless the prompt is over the window.

        Raises:
            FilterError: the tokenizer refuses the text, or the text leaves itself no room in the window.
        """
        text = discreetly("the tokenizer", lambda: text.replace(_SEAM, ""))
        encoding = self._encode(text)
        outer = len(self._opening) + len(self._closing)
        if outer + len(encoding.ids) - self._marks <= self.window:
            return [self._around(encoding.ids[self._marks :])]
        start = self._marks + len(self._lead)
        first = next(at for at, (_, end) in enumerate(encoding.offsets) if end > start)
        last = max(at for at, (begin, _) in enumerate(encoding.offsets) if begin < start + len(text))
        lead, content, trail = (
            encoding.ids[self._marks : first],
            encoding.ids[first : last + 1],
            encoding.ids[last + 1 :],
        )
        room = self.window - outer - len(lead) - len(trail)
        if room < 1:
            raise FilterError("a text merges with the template so that no window holds any of it: use a larger window")
        step = max(1, room - self.overlap)
        starts = range(0, max(1, len(content) - room + step), step)
        return [self._around([*lead, *content[at : at + room], *trail]) for at in starts]

    def label_tokens(self, harmful: Sequence[str], safe: Sequence[str]) -> LabelTokens:
        """The first tokens of the verdicts where the template ends, each written with and without a space before it.

        Raises:
            LabelError: a verdict has no first token of its own there.
        """
        found = [{label: self._first_tokens(label) for label in labels} for labels in (harmful, safe)]
        sides = [frozenset[int]().union(*side.values()) for side in found]
        shared = sides[0] & sides[1]
        for side in found:
            for label, tokens in side.items():
                if not tokens - shared:
                    raise LabelError(f"the verdict {label!r} does not begin with a token of its own in this tokenizer")
        return LabelTokens(tuple(sorted(sides[0] - shared)), tuple(sorted(sides[1] - shared)))

    def _split(self, template: Template) -> None:
        """Find the control tokens around the prompt and what stands between them and it."""
        controls = self._full.get_added_tokens_decoder()
        whole = self._full.encode(template.before + _PROMPT + template.after, add_special_tokens=False)
        begin, end = len(template.before), len(template.before) + len(_PROMPT)
        marks = [(at, *whole.offsets[at]) for at, token in enumerate(whole.ids) if token in controls]
        left = max(((at + 1, stop) for at, _, stop in marks if stop <= begin), default=(0, 0))
        right = min(((at, start) for at, start, _ in marks if start >= end), default=(len(whole.ids), None))
        self._opening, self._closing = whole.ids[: left[0]], whole.ids[right[0] :]
        self._lead = template.before[left[1] :]
        self._trail = template.after[: None if right[1] is None else right[1] - end]
        # Tokenizers that put a space before a first word do it only at the real beginning, or after a control token.
        self._marks = 1 if self._opening else 0

    def _encode(self, text: str) -> Encoding:
        string = _SEAM * self._marks + self._lead + text + self._trail
        encoding: Encoding = discreetly("the tokenizer", lambda: self._plain.encode(string, add_special_tokens=False))
        return encoding

    def _around(self, middle: Sequence[int]) -> list[int]:
        return [*self._opening, *middle, *self._closing]

    def _one(self, text: str) -> list[int]:
        return self._around(self._encode(text).ids[self._marks :])

    def _first_tokens(self, label: str) -> frozenset[int]:
        context = self._template.before + _PROMPT + self._template.after
        base = self._full.encode(context, add_special_tokens=False).ids
        found = set()
        for spelling in (label, f" {label}"):
            ids = self._full.encode(context + spelling, add_special_tokens=False).ids
            if len(ids) > len(base) and ids[: len(base)] == base:
                found.add(ids[len(base)])
        return frozenset(found)

    def _refuse_control_tokens(self, unknown: int | None) -> None:
        # Ordinary added tokens, such as Gemma's runs of line breaks, may come out of a text as any word does.
        controls = {at: token for at, token in self._full.get_added_tokens_decoder().items() if token.special}
        for token in controls.values():
            if set(self._encode(token.content).ids[self._marks :]) & (controls.keys() - {unknown}):
                raise InvalidArgument("the tokenizer cannot read the names of its control tokens as plain text")


def _without_added_tokens(full: Tokenizer) -> Tokenizer:
    """A copy that knows the mark of the seam and no other added token."""
    parts = json.loads(full.to_str())
    plain = Tokenizer.from_str(json.dumps({**parts, "added_tokens": [], "post_processor": None}))
    plain.add_special_tokens([AddedToken(_SEAM, normalized=False, special=True)])
    return plain
