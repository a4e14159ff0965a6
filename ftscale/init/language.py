"""Whether texts are English, by their letters and their commonest words."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import NamedTuple

from ftscale.init.draft import words

LOOKED_AT = 500
"""Texts."""
FOREIGN = 0.1
"""Share of letters of other scripts from which on a text is not English."""
ENGLISH = frozenset(
    words("the of and to is was that it for with you this are not have he as his they at be by had i my")
)
OTHERS = frozenset(
    words(
        "der die das und nicht ein eine ich den von zu auf sich dem mit le la les des est et une dans que pour pas "
        "vous je du el los las es por con para del una il che di non sono della gli um uma com em os het een van niet "
        "dat zijn och att det jag en ett og er ikke nie jest na ve bir da w z"
    )
)
"""Of German, French, Spanish, Italian, Portuguese, Dutch, Swedish, Danish, Norwegian, Polish and Turkish."""


class Language(NamedTuple):
    """What the texts are written in."""

    is_english: bool
    why: str


def language_of(texts: Sequence[str]) -> Language:
    """Tell English from all else; texts without any common word, such as names and numbers, count as English."""
    sample = " ".join(texts[:LOOKED_AT]).lower()
    letters = [character for character in sample if character.isalpha()]
    others = sum(ord(letter) > 0x24F for letter in letters)  # beyond Latin Extended-B
    if others > FOREIGN * max(1, len(letters)):
        return Language(False, f"{others / len(letters):.0%} of the letters are not Latin")
    found = re.findall(r"\w+", sample)
    english, foreign = (sum(word in known for word in found) for known in (ENGLISH, OTHERS))
    if foreign > english:
        return Language(False, f"{foreign / len(found):.0%} of the words are common ones of other languages")
    if not english:
        return Language(True, "no common word of another language stands in it")
    return Language(True, f"{english / len(found):.0%} of the words are common English ones")
