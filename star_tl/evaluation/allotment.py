"""What came of a talk about camp supplies: whether it ends in a deal, who takes what, and the points of both.

People of CaSiNo fill in a form for their deal; a model has only words. Who takes how many packages is read off the
words: a number before an item belongs to whom the last pronoun before it names, or "for me" behind it. A deal is an
acceptance, as in :mod:`star_tl.evaluation.negotiation`, after somebody named numbers. How well that reads people's talk
stands in scripts/RESULTS.md, by ``scripts/measure_negotiation.py``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import pandas as pd
import regex

from star_tl.data.scenarios import ITEMS, PACKAGES, Camp
from star_tl.evaluation.negotiation import accepts, takes_back

_NUMBERS = {
    "no": 0,
    "zero": 0,
    "0": 0,
    "one": 1,
    "an": 1,
    "a": 1,
    "1": 1,
    "two": 2,
    "2": 2,
    "three": 3,
    "3": 3,
    "all": 3,
}
_WORD = regex.compile(
    r"(?P<lack>(?<=\b(?:i|we) )have no\b)|(?P<takes>\b(?:take|need|want|like|get|have|keep)\b)|"
    r"(?P<to_i>\bfor (?:me|myself)\b)|(?P<to_you>\bfor (?:you|yourself|u)\b)|"
    r"(?P<i>\b(?:i|i'(?:ll|d|m|ve)|me|my|mine)\b)|(?P<you>\b(?:you|you'(?:ll|d|re|ve)|your|yours|u)\b)|"
    rf"(?P<number>\b(?:{'|'.join(_NUMBERS)})\b)|(?P<item>\b(?:food|water|fire ?wood|wood)s?\b)|"
    r"(?P<filler>\b(?:of|the|extra|more|packages?|packs?|units?|bags?|bottles?|bundles?|pieces?|jugs?|cases?)\b)|"
    r"(?P<end>[.!?;]|\b(?:and|but)\b)|(?P<other>[\w']+)",
    regex.IGNORECASE,
)


@dataclass(frozen=True)
class Allotment:
    """``points`` of the user's and the assistant's side; None without a deal, or where not every item was divided."""

    deal: bool
    user: dict[str, int] | None
    points: tuple[int, int] | None


def allotment(texts: Sequence[str], camp: Camp, sides: Sequence[str] | None = None) -> Allotment:
    """What a talk came to; ``texts`` are messages, the user's and the assistant's in turn where no sides are named.

    A deal keeps what was divided last; numbers that are named later undo it, until they are accepted too, and so does
    taking it back.
    """
    given: dict[str, int] = {}
    deal, taken = False, None
    for number, text in enumerate(texts):
        mine = (sides[number] if sides else ("user", "assistant")[number % 2]) == "user"
        plain = text.replace("’", "'")
        named = _divided(plain, mine)
        given |= named
        if accepts(plain) and given:
            deal, taken = True, dict(given)
        elif takes_back(plain) or any(taken is None or taken.get(item) != count for item, count in named.items()):
            deal, taken = False, None
    if taken is None or set(taken) != set(ITEMS):
        return Allotment(deal, None, None)
    rest = {item: PACKAGES - count for item, count in taken.items()}
    return Allotment(deal, taken, (camp.points("user", taken), camp.points("assistant", rest)))


def outcomes(talks: Sequence[Sequence[str]], camps: Sequence[Camp]) -> pd.DataFrame:
    """A row per talk: ``deal`` (0 or 1) and each side's points, NaN where none can be told."""
    found = [allotment(talk, camp) for talk, camp in zip(talks, camps, strict=True)]
    points = [o.points or (None, None) for o in found]
    columns = {"deal": [o.deal for o in found], "user": [p[0] for p in points], "assistant": [p[1] for p in points]}
    return pd.DataFrame(columns, dtype=float)


def _divided(text: str, mine: bool) -> dict[str, int]:
    """How many packages the user's side takes of each item that this message divides."""
    found: dict[str, int] = {}
    said: dict[str, int] = {}  # since a pronoun, by whoever turns out to be meant
    owner: bool | None = None  # whether the user's side was named last
    takes = False  # whether it takes what follows, and gives none of it to the other
    count: int | None = None
    for match in _WORD.finditer(text.lower()):
        kind = match.lastgroup
        if kind in ("i", "you"):
            owner, count, said, takes = mine == (kind == "i"), None, {}, False
        elif kind in ("to_i", "to_you"):
            mine_is = mine == (kind == "to_i")
            found |= {item: n if mine_is else PACKAGES - n for item, n in said.items()}
            count, said = None, {}
        elif kind == "number":
            count = _NUMBERS[match[0]]
        elif kind == "item":
            item = "firewood" if "wood" in match[0] else match[0].removesuffix("s")
            if count is not None:
                said[item] = count
            if count is not None and owner is not None:
                found[item] = count if owner else PACKAGES - count
            count = None
        elif kind != "filler":
            count, takes = None, takes or kind == "takes"
            if kind == "end" and takes:
                said = {}
    return found
