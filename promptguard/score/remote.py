"""A language model behind an OpenAI-compatible HTTP endpoint as a filter.

The model is asked for a verdict in one chat completion per text. Where the endpoint gives the probabilities of the
verdict's first token, the score is the share of the harmful verdicts in them; else the verdict is read from the answer,
and the score is 1.0 or 0.0. An answer that is no verdict is an error, never "safe".
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx2

from promptguard.errors import FilterError, InvalidArgument, discreetly
from promptguard.score import judges
from promptguard.score.judges import JudgeFamily

API_KEY = "PROMPTGUARD_API_KEY"

_LOCAL = frozenset({"localhost", "127.0.0.1", "::1"})
_ALTERNATIVES = 20  # the most that OpenAI's interface gives
_ANSWER_TOKENS = 16
_BUSY = frozenset({408, 429, 500, 502, 503, 504})
_LOG_ONE = 0.01  # endpoints round
# With less than this on verdicts the model is about to say something else, and a listed one may be a mere remainder.
_ENOUGH = 0.5
_REFUSED = 400
_FIRST_PAUSE = 0.5  # seconds; each further one is twice as long


class RemoteFilter:
    """Verdicts of a model that someone else runs.

    Certificates about it rest on trust: that the endpoint answers the same request the same way, up to `guard_band`,
    today and when the attacked text arrives, with the model that it had when the certificate was given. Nothing here
    can check that; `assumes` says it in words that belong into every certificate. `digest` names the endpoint, the
    model and the question, not weights. The text leaves the machine.

    Attributes:
        assumes: what a certificate about this filter takes on trust.
    """

    def __init__(
        self,
        url: str,
        model: str,
        *,
        family: str | JudgeFamily = "zero-shot",
        threshold: float = 0.5,
        api_key_env: str | None = None,
        timeout: float = 30.0,
        retries: int = 2,
        concurrency: int = 4,
        logprobs: bool = True,
        allow_http: bool = False,
        guard_band: float = 0.05,
        name: str | None = None,
    ) -> None:
        """Make the filter; nothing is sent yet.

        Args:
            url: where the interface begins, for instance "https://host/v1"; /chat/completions is put behind it.
            model: the model's name at the endpoint.
            family: how it is asked; for a guard model that the endpoint serves with its own chat template, its family.
            threshold: scores at or above it are harmful.
            api_key_env: the environment variable that holds the key; None sends none.
            timeout: seconds for one answer.
            retries: further tries when the endpoint is busy or cannot be reached.
            concurrency: requests under way at once.
            logprobs: ask for probabilities; an endpoint that ignores this is read by its words.
            allow_http: accept an endpoint that is neither https nor this machine: texts and key then travel in clear.
            guard_band: how far a score may move between two equal requests.
            name: for people; default the model's.

        Raises:
            InvalidArgument: the address, a number or the environment variable cannot be used, or the family needs
                variables of a template, which this interface cannot pass on.
            UnknownName: no family has that name.
        """
        self.family = judges.find(family, model)
        if any(self.family.options):
            raise InvalidArgument(f"family {self.family.name} sets variables of its chat template: load it as a judge")
        if not 0.0 <= threshold <= 1.0 or not 0 <= guard_band < math.inf:
            raise InvalidArgument("threshold must be in [0, 1], guard_band finite and not negative")
        if not 0 < timeout < math.inf or retries < 0 or concurrency < 1:
            raise InvalidArgument("timeout must be over 0, retries at least 0 and concurrency at least 1")
        self._url = _checked(url, allow_http)
        self._model = model
        self._retries = retries
        self._concurrency = concurrency
        self._client = httpx2.Client(timeout=timeout, headers=_authorised(api_key_env), follow_redirects=False)
        self.name = name or model
        self.threshold = float(threshold)
        self.guard_band = float(guard_band)
        self._settings = {"temperature": 0, "max_tokens": _ANSWER_TOKENS}
        if logprobs:
            self._settings |= {"logprobs": True, "top_logprobs": _ALTERNATIVES}
        labels = [self.family.answer, sorted(self.family.labels), sorted(self.family.harmful)]
        identity = json.dumps([self._url, model, self._messages(""), self._settings, labels])
        self.digest = hashlib.sha256(identity.encode()).hexdigest()
        self.assumes = (
            f"the endpoint {self._url} serves an unchanged model {model} whose scores for equal requests differ by at "
            f"most {self.guard_band!r}; this is trusted, not checked",
        )

    @classmethod
    def load(cls, spec: str, *, family: str | None = None, threshold: float | None = None) -> RemoteFilter:
        """The filter of `<url>#<model>`, with the key in the environment variable PROMPTGUARD_API_KEY if it is set.

        Args:
            spec: for instance "https://host/v1#org/model".
            family: as for the constructor; default "zero-shot".
            threshold: scores at or above it are harmful; default 0.5.

        Raises:
            InvalidArgument: `spec` has no model, or as for the constructor.
            UnknownName: no family has that name.
        """
        url, _, model = spec.partition("#")
        if not model:
            raise InvalidArgument("a remote filter is written remote:<url>#<model>")
        key = API_KEY if os.environ.get(API_KEY) else None
        chosen = 0.5 if threshold is None else threshold
        return cls(url, model, family=family or "zero-shot", threshold=chosen, api_key_env=key)

    def __call__(self, texts: Sequence[str]) -> list[float]:
        """One score per text, in [0, 1].

        Raises:
            FilterError: the endpoint cannot be reached, refuses, or answers something that is no verdict.
        """
        if isinstance(texts, str) or not all(isinstance(text, str) for text in texts):
            raise FilterError(f"filter {self.name} takes a list of strings")
        with ThreadPoolExecutor(min(self._concurrency, max(1, len(texts)))) as pool:
            return list(pool.map(self._score, texts))

    def close(self) -> None:
        """Close the connections."""
        self._client.close()

    def _score(self, text: str) -> float:
        answer = self._answer(text)
        score = discreetly(f"the answer to filter {self.name}", lambda: self._read(answer["choices"][0]))
        if score is None:
            raise FilterError(f"the model of filter {self.name} gave no verdict: check that it is asked the right way")
        return score

    def _messages(self, text: str) -> list[dict[str, Any]]:
        system = [] if self.family.system is None else [{"role": "system", "content": self.family.system}]
        content: Any = [{"type": "text", "text": text}] if self.family.listed else text
        return [*system, {"role": "user", "content": content}]

    def _answer(self, text: str) -> Any:
        """The JSON of the endpoint's answer."""
        body = {"model": self._model, "messages": self._messages(text), **self._settings}
        answer = self._post(body)
        for pause in range(self._retries):
            if isinstance(answer, httpx2.Response) and answer.status_code not in _BUSY:
                break
            time.sleep(_FIRST_PAUSE * 2**pause)
            answer = self._post(body)
        if not isinstance(answer, httpx2.Response):
            raise FilterError(f"the endpoint of filter {self.name} cannot be reached ({answer})")
        if answer.status_code != httpx2.codes.OK:
            hint = ": without logprobs there, set logprobs=False" if answer.status_code == _REFUSED else ""
            raise FilterError(f"the endpoint of filter {self.name} answered with status {answer.status_code}{hint}")
        return discreetly(f"the answer to filter {self.name}", answer.json)

    def _post(self, body: Mapping[str, Any]) -> httpx2.Response | str:
        """The endpoint's response, or the name of what kept it away."""

        def post() -> httpx2.Response | str:
            try:
                return self._client.post(self._url, json=body)
            except httpx2.TransportError as error:
                return type(error).__name__

        return discreetly(f"filter {self.name}", post)

    def _read(self, choice: Mapping[str, Any]) -> float | None:
        """The score in one choice of a completion, None if there is no verdict."""
        logprobs = choice.get("logprobs") or {}
        shares = self._shares(logprobs.get("content") or [])
        total = sum(shares.values())
        if total >= _ENOUGH:
            return shares[True] / total
        said = (choice["message"]["content"] or "").strip()
        side = self._begins(said.removeprefix(self.family.answer.strip()).strip(" \t\r\n\"'*").casefold())
        return None if side is None else float(side)

    def _shares(self, tokens: Sequence[Mapping[str, Any]]) -> dict[bool, float]:
        """Probability of harmful (True) and other verdicts at the token where the verdict begins."""
        shares, said = {True: 0.0, False: 0.0}, ""
        for token in tokens:
            if said.strip() == self.family.answer.strip() and token["token"].strip():
                for alternative in token["top_logprobs"]:
                    side = self._side(alternative["token"].strip().casefold())
                    if not alternative["logprob"] <= _LOG_ONE:  # NaN too
                        raise FilterError(f"the endpoint of filter {self.name} gave a probability over 1")
                    if side is not None:
                        shares[side] += math.exp(alternative["logprob"])
                break
            said += token["token"]
        return shares

    def _side(self, start: str) -> bool | None:
        """Whether the verdicts that begin with this are harmful; None if there are none, or some of both sides."""
        sides = {label in self.family.harmful for label in self.family.labels if label.casefold().startswith(start)}
        return sides.pop() if start and len(sides) == 1 else None

    def _begins(self, said: str) -> bool | None:
        """Whether the verdict that an answer begins with is harmful; None if it begins with none."""
        found = [
            label
            for label in self.family.labels
            if said.startswith(label.casefold()) and not said[len(label) : len(label) + 1].isalnum()
        ]
        return max(found, key=len) in self.family.harmful if found else None


def _checked(url: str, allow_http: bool) -> str:
    """The address of chat completions."""
    try:
        parsed = httpx2.URL(url)
    except httpx2.InvalidURL:
        raise InvalidArgument("url is no address: give one like https://host/v1") from None
    if parsed.scheme not in {"http", "https"} or not parsed.host or parsed.userinfo or parsed.query or parsed.fragment:
        raise InvalidArgument("url must be like https://host/v1, without user, query or fragment")
    if parsed.scheme == "http" and parsed.host not in _LOCAL and not allow_http:
        raise InvalidArgument("texts would travel in clear: use https, or allow_http=True if the network is yours")
    return str(parsed).rstrip("/") + "/chat/completions"


def _authorised(variable: str | None) -> dict[str, str]:
    if variable is None:
        return {}
    key = os.environ.get(variable, "").strip()
    if not key:
        raise InvalidArgument(f"the environment variable {variable} is not set: it must hold the endpoint's key")
    if not key.isascii() or not key.isprintable():
        raise InvalidArgument(f"the environment variable {variable} holds something that is no key")
    return {"Authorization": f"Bearer {key}"}
