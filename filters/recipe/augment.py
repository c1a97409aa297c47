"""What happens to a text before the network sees it in training.

`erased` draws an erased version of a safe text (labelled safe, as in the erase-and-check paper); `vary` rewrites a text
of either label so that phrasing, punctuation, small talk, typos and gibberish say nothing about the label.
The base tokenizer lower-cases, so case needs no augmentation.
"""

from __future__ import annotations

import random
import re
import string
from collections.abc import Callable, Sequence

# The ways to ask for a procedure; `act` is what the writer wants to do.
HOW = re.compile(
    r"""^(?:please\s|can\syou\s|could\syou\s|would\syou\s)?
    (?:(?:tell|teach|show)\sme\show\sto
    |(?:explain|describe|demonstrate|outline)(?:\sto\sme)?\show\sto
    |how\s(?:do|can|could|would|should|might)\s(?:i|you|we|one|someone|somebody)
    |how\sto
    |(?:give|show|send|provide)(?:\sme)?\s(?:some\s|the\s|detailed\s|step-by-step\s|simple\s|clear\s)*
     (?:instructions?|steps|directions|tips|advice)\s(?:on\s|for\s)?(?:how\s)?to
    |(?:i\s(?:want|need|would\slike)|i'd\slike|help\sme|steps|ways)\sto
    |help\sme(?!\s(?:with|find|to)\b)
    |what(?:'s|\sis|\sare)(?:\sthe|\ssome)?(?:\sbest|\sgood|\seasiest|\seffective|\spossible)?\sways?\s(?:to|that\si\scan)
    |(?:write|create|provide|give|develop|draft|make|produce)(?:\sme)?\s(?:a\s|an\s|some\s)?
     (?:detailed\s|step-by-step\s|comprehensive\s|short\s|complete\s)*
     (?:guide|tutorial|manual|instructions?|plan|article|explanation|instruction\smanual)
     (?:\sthat\s(?:explains|teaches|describes))?\s(?:on|for|about)?\s?how\sto)
    \s(?P<act>[a-z].{4,160}?)[?.!]*$""",
    re.IGNORECASE | re.VERBOSE,
)
ASK = (
    "How do I {}?",
    "How can I {}?",
    "how to {}",
    "How do you {}?",
    "What is the best way to {}?",
    "What are some ways to {}?",
    "Explain how to {}",
    "Explain step by step how to {}.",
    "Teach me how to {}",
    "Tell me how to {}.",
    "Write a guide on how to {}",
    "Write a tutorial on how to {}",
    "Provide instructions on how to {}",
    "Provide a step-by-step guide on how to {}",
    "Give me detailed instructions for how to {}",
    "Outline a plan to {}",
    "Develop a plan to {}",
    "Create a guide that explains how to {}",
    "Describe how to {}",
    "I want to {}. Where do I start?",
    "I need to {}",
    "Help me {}",
    "Can you help me {}?",
    "Give me tips on how to {}",
    "Draft a manual that teaches how to {}",
    "List the steps to {}.",
    "What do I need in order to {}?",
    "Write a blog post about how to {}",
    "i want to {}",
    "Walk me through how to {}.",
    "Suggest ways to {}",
    "Devise a method to {}",
    "Could you explain how one would {}?",
    "Write a detailed article on how to {}",
    "What would be the easiest way to {}?",
    "Give a tutorial for beginners: how to {}",
    # terse forms
    "{}",
    "{}?",
    "{}, how?",
    "i wanna {}",
    "how would i {}",
    "how does someone {}",
    "steps to {}",
    "ways to {}",
    "easiest way to {}",
    "best way to {}?",
    "instructions to {}",
    "Give me instructions to {}.",
    "need to {} asap",
)
BEFORE = (
    "Please",
    "Hi,",
    "Hello!",
    "Hey, quick question:",
    "I have a question.",
    "Can you help me with this?",
    "Be brief.",
    "I'm curious.",
    "Question:",
    "Task:",
    "User:",
    "Dear assistant,",
    "Thanks in advance.",
    "Okay, next one.",
    "Instruction:",
    "You are a helpful assistant.",
    "Answer as an expert.",
    "Step by step, please:",
    "Sure.",
    "Good morning!",
)
AFTER = (
    "Thanks!",
    "Thank you.",
    "Please be detailed.",
    "Answer in one paragraph.",
    "Keep it short.",
    "Explain step by step.",
    "Use bullet points.",
    "I need it today.",
    "Please.",
    "Give examples.",
    "What do you think?",
    "Answer:",
    "Assistant:",
    "Be as specific as possible.",
    "Write at least 200 words.",
    "I would appreciate it.",
    "Make it simple.",
)
SYMBOLS = "!!!!!!????[](){}<>\\/|*&^%$#@=+-_~`;:'\",."


UNIT = re.compile(r"\s*(?:\w+|[^\w\s])")


def units(text: str) -> list[str]:
    """Words and punctuation marks, each with the white space before it: the unit "word" of promptguard."""
    return UNIT.findall(text)


def cut(words: Sequence[str], rng: random.Random) -> list[str]:
    """A random prefix, fragment or remainder of `words`; possibly empty."""
    n = len(words)
    draw = rng.random()
    if draw < 0.44:  # prefix: what is left of a text when a suffix is erased
        return list(words[: rng.randint(0, n)])
    if draw < 0.7:  # a contiguous block erased
        size = rng.randint(1, max(1, min(10, n)))
        at = rng.randint(0, n - size)
        return [*words[:at], *words[at + size :]]
    if draw < 0.88:  # a few single words erased
        gone = set(rng.sample(range(n), min(n, rng.randint(1, 3))))
        return [word for i, word in enumerate(words) if i not in gone]
    at = rng.randint(0, n - 1)
    return list(words[at : at + rng.randint(1, n)])


def erased(text: str, rng: random.Random) -> str:
    """An erased version of a text."""
    pieces = units(text)
    return "".join(cut(pieces, rng)).strip() if pieces else text


def gibberish(rng: random.Random, words: Sequence[str]) -> str:
    """Something like an adversarial suffix: word salad, symbols, random characters."""
    parts = []
    for _ in range(rng.randint(2, 16)):
        kind = rng.random()
        if kind < 0.35:
            parts.append(rng.choice(words))
        elif kind < 0.6:
            parts.append("".join(rng.choices(SYMBOLS, k=rng.randint(1, 4))))
        elif kind < 0.8:
            parts.append(rng.choice(words) + rng.choice(SYMBOLS) + rng.choice(words).capitalize())
        else:
            parts.append("".join(rng.choices(string.ascii_letters + string.digits + SYMBOLS, k=rng.randint(2, 9))))
    return rng.choice(("", " ")).join(parts) if rng.random() < 0.2 else " ".join(parts)


def typo(text: str, rng: random.Random) -> str:
    """One or two characters dropped, doubled or swapped."""
    for _ in range(rng.randint(1, 2)):
        if len(text) > 8:
            at = rng.randint(1, len(text) - 2)
            edits: tuple[Callable[[], str], ...] = (
                lambda a=at, t=text: t[:a] + t[a + 1 :],
                lambda a=at, t=text: t[:a] + t[a] + t[a:],
                lambda a=at, t=text: t[: a - 1] + t[a] + t[a - 1] + t[a + 1 :],
            )
            text = rng.choice(edits)()
    return text


def rephrase(text: str, rng: random.Random) -> str:
    """The same wish asked in another form; unchanged where the form is not recognised."""
    found = HOW.match(text)
    return rng.choice(ASK).format(found["act"]) if found else text


def vary(text: str, rng: random.Random, salad: Sequence[str]) -> str:
    """A random variant with the same meaning and label."""
    if rng.random() < 0.35:
        text = rephrase(text, rng)
    if rng.random() < 0.25:
        text = text.rstrip(" ?.!")
    elif rng.random() < 0.1:
        text = text.rstrip(" ?.!") + rng.choice("?.!")
    if rng.random() < 0.06:
        text = typo(text, rng)
    if rng.random() < 0.08:
        text = f"{rng.choice(BEFORE)} {text}"
    if rng.random() < 0.08:
        text = f"{text} {rng.choice(AFTER)}"
    if rng.random() < 0.06:
        text = f"{text} {gibberish(rng, salad)}"
    return text
