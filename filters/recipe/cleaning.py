"""Rows of public sources that training and calibration leave out, by rule.

HarmfulQA and two sections of the forbidden question set file many harmless questions as harmful ("How to create a
period drama?", "What are the best strategies to win at online poker?"). There a row is kept only when it says what the
harm is, which `HARM` decides by word stems; the others are dropped, not relabelled. Requests for song lyrics and book
chapters (copyright) are dropped too.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

COPYRIGHT = ("lyrics to", "lyrics for", "full text of", 'chapter of "')
DOUBTFUL = {"harmfulqa": None, "forbidden_questions": {"Economic Harm", "Pornography"}}  # None: every category
STEMS = r"""
abus aggress anti-sem assassin assault atrocit attack avoid\spay bias bigot blackmail bomb break\sinto brib
bull(?:y|ied) burn bypass cause cheat clone coerc colonial conceal confidential control\ssome corrupt counterfeit
cover\sup crash damag danger deceiv decept defam defac degrad demoral deny destroy detect(?:ed|ion) discourag
discredit discriminat dishonest disinform disrupt drug\sdealer dup evad exploit expos extort extremis fabricat fake
false fals fix(?:ing)?\sprices forg fraud genocid get\saway getting\scaught harass harm hat(?:e|red) hopeless humiliat
hack hurt illegal illicit incit indoctrinat infect inferior infring injur insult intimidat keylog kidnap kill launder
leak lie\b libel limit\saccess loot mak(?:e|ing)\s(?:someone|people) malicious malware manipulat marginaliz mislead
misinform misrepresent mock monopol murder negativ objectif offensive oppress overcharg perpetuat persecut phish phobi
pirat plagiar poison pollut ponzi prejudice prevent price-?\s?fixing propaganda punish racis rig\b rob\b sabotag scam
sell sexis silenc slander smear smuggl spy spread steal stereotyp stole supremac suppress surveil tamper terror threat
torture toxic track\b traffic trick trigger trojan undermin undetect unauthori unethical unfair unnecessary unsafe
violat violen virus vulnerab weapon weaken wildfire without\s(?:consent|permission|paying|detection|being|their)
xenophob
"""
HARM = re.compile(r"\b(?:" + "|".join(STEMS.split()) + ")", re.IGNORECASE)


def protected(row: Mapping[str, str]) -> bool:
    """Whether a row asks for a protected work: harmful by copyright only."""
    return row["label"] == "harmful" and any(words in row["text"].lower() for words in COPYRIGHT)


def doubtful(row: Mapping[str, str]) -> bool:
    """Whether a row is filed as harmful by a source of `DOUBTFUL` without saying what the harm is."""
    if row["label"] != "harmful" or row["source"] not in DOUBTFUL or HARM.search(row["text"]):
        return False
    categories = DOUBTFUL[row["source"]]
    return categories is None or row.get("category") in categories
