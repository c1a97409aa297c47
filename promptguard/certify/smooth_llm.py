"""SmoothLLM: a defence around a language model that asks it about several garbled copies. Empirical, no certificate.

Robey, Wong, Hassani, Pappas 2023, *SmoothLLM: Defending Large Language Models Against Jailbreaking Attacks*.
Adversarial suffixes break when a few of their characters change, requests mostly do not. So N copies of the prompt are
perturbed, the model answers each, and the majority of the answers decides whether the model was jailbroken.

The paper's probability that this works assumes that the attack fails whenever k characters change ("k-unstable").
Nothing is promised without that, so nothing is certified here: for a promise use deletion smoothing or erase-and-check.
"""

from __future__ import annotations

import random
import string
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from promptguard.errors import FilterError, InvalidArgument, UnknownName, discreetly
from promptguard.types import Label, Verdict
from promptguard.view import check_text

Perturbation = Callable[[str, float, random.Random], str]
_ALPHABET = string.ascii_letters + string.digits + string.punctuation + " "


def insert(text: str, rate: float, rng: random.Random) -> str:
    """A random character behind a share of the characters, rounded down."""
    chars = list(text)
    for at in _places(text, rate, rng):
        chars[at] += rng.choice(_ALPHABET)
    return "".join(chars)


def swap(text: str, rate: float, rng: random.Random) -> str:
    """A share of the characters, rounded down, becomes random ones."""
    chars = list(text)
    for at in _places(text, rate, rng):
        chars[at] = rng.choice(_ALPHABET)
    return "".join(chars)


def patch(text: str, rate: float, rng: random.Random) -> str:
    """Contiguous characters, a share of all, rounded down, become random ones."""
    width = int(rate * len(text))
    start = rng.randint(0, len(text) - width)
    return text[:start] + "".join(rng.choices(_ALPHABET, k=width)) + text[start + width :]


PERTURBATIONS: dict[str, Perturbation] = {"insert": insert, "swap": swap, "patch": patch}


def _places(text: str, rate: float, rng: random.Random) -> list[int]:
    return rng.sample(range(len(text)), int(rate * len(text)))


@dataclass(frozen=True, slots=True)
class Reply:
    """What a smoothed model answers.

    Attributes:
        text: the answer to one of the copies, one that the majority agrees with.
        verdict: "harmful" when more than half of the copies jailbroke the model; the score is their share.
    """

    text: str
    verdict: Verdict


class SmoothLLM:
    """Asks a language model about perturbed copies of a prompt, and takes the majority. It certifies nothing.

    Args:
        llm: prompts in, one answer each out.
        is_jailbroken: does an answer comply with a harmful request? For instance the absence of a refusal, or a filter
            over answers.
        copies: N, at least 1.
        rate: q, the share of characters that changes, in (0, 1].
        perturbation: "insert", "swap" or "patch".
        rng: source of randomness. The default is the system's, because an attacker who can predict the copies can aim
            at them; benchmarks pass a seeded one and record the seed.
        max_chars: longest text accepted, in code points.

    Raises:
        InvalidArgument: copies or rate outside its range.
        UnknownName: another perturbation.
    """

    method = "smooth-llm"

    def __init__(
        self,
        llm: Callable[[Sequence[str]], Sequence[str]],
        is_jailbroken: Callable[[str], bool],
        *,
        copies: int = 10,
        rate: float = 0.1,
        perturbation: str = "swap",
        rng: random.Random | None = None,
        max_chars: int = 100_000,
    ) -> None:
        if isinstance(copies, bool) or not isinstance(copies, int) or copies < 1:
            raise InvalidArgument(f"copies must be a whole number, at least 1, not {copies!r}")
        if not 0 < rate <= 1:
            raise InvalidArgument(f"the share of characters that changes must be in (0, 1], not {rate!r}")
        if perturbation not in PERTURBATIONS:
            raise UnknownName(f"unknown perturbation {perturbation!r}: known are {', '.join(PERTURBATIONS)}")
        self._llm = llm
        self._is_jailbroken = is_jailbroken
        self._copies = copies
        self._rate = rate
        self._perturb = PERTURBATIONS[perturbation]
        self._rng = rng or random.SystemRandom()
        self._max_chars = max_chars

    def certify(self, x: str) -> Verdict:
        """Whether x jailbreaks the model; the certificate is always None.

        Raises:
            InvalidText: x is not text, empty, or too long.
            FilterError: the model or the judge of answers raised, or the answers are not one text per copy.
        """
        return self.answer(x).verdict

    def answer(self, x: str) -> Reply:
        """An answer of the model that most answers agree with.

        Raises:
            InvalidText: x is not text, empty, or too long.
            FilterError: the model or the judge of answers raised, or the answers are not one text per copy.
        """
        text = check_text(x, self._max_chars)
        copies = [self._perturb(text, self._rate, self._rng) for _ in range(self._copies)]
        answers = discreetly("the language model", lambda: list(self._llm(copies)))
        if len(answers) != len(copies) or not all(isinstance(answer, str) for answer in answers):
            raise FilterError("the language model did not return one text per prompt")
        judged = discreetly("the judge of answers", lambda: [bool(self._is_jailbroken(answer)) for answer in answers])
        share = sum(judged) / len(judged)
        jailbroken = share > 0.5
        agreeing = [answer for answer, verdict in zip(answers, judged, strict=True) if verdict == jailbroken]
        label = Label.HARMFUL if jailbroken else Label.SAFE
        return Reply(self._rng.choice(agreeing), Verdict(label, share, 0.5, len(copies), len(copies)))
