"""What score-only attacks write: the model's own words where its tokens are known, else common words and marks."""

from __future__ import annotations

import string
from collections.abc import Sequence

from promptguard.attack.reach import Reach
from promptguard.capabilities import TokenAccess

_COMMON = """
a about again all also always and any apple are art as at baby beautiful because bird birthday blue book bread but
by cake calm can cat children chocolate church city class coffee color cook country dance day do dog draw eat
education english every example explain family farm favorite film first fish flower food for forest france free
friend from fruit fun game garden gift give good grandmother green happy have health healthy help history holiday
home hope hospital hotel house how i idea in instead is it just kind kitchen know language learn legal letter
library life light like list little love make math me meal medicine moon more morning mother mountain movie museum
music my name nature never new nice no not number of ocean of old on one or our paint park peace people piano
picture plant please poem poetry prevent protect question quiet rain read recipe red restaurant river safe safely
say school science sea sentence sing sister small smile snow song soup star story student summer sun sure sweet
teacher tell thank that the then there they this time to today translate travel tree two vacation vegetable very
walk water weather wedding what when where white who wish with without wonderful word work write year yes you your
! ? . , : ; - ( ) [ ] { } " ' * & % $ # @ + = / \\ | ~ ^ _ < >
"""
WORDS = tuple(dict.fromkeys(_COMMON.split()))


def vocabulary(given: Sequence[str], tokens: TokenAccess | None, reach: Reach) -> Sequence[str]:
    """The words that an attack may add.

    Args:
        given: the attack's own words; used if there are any.
        tokens: the attacked model's tokens, if it shows them.
        reach: where letters may be glued to the prompt, single characters are added: those of the given words.
    """
    if reach.glues:
        return sorted(set(" ".join(given))) or string.ascii_letters + string.digits + string.punctuation + " "
    return given or (list(tokens.words) if tokens else WORDS)
