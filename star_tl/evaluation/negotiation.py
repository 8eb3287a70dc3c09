"""What came of a bargaining talk: whether it ends in a deal, at what price, and who gained.

People who bargain on CraigslistBargain press a button for their offer; a model has only words. A deal is read off the
talk: somebody accepts a price that the other side named, and nobody takes it back. How well that reads people's talk
stands in scripts/RESULTS.md, by ``scripts/measure_negotiation.py``.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import pandas as pd
import regex

from star_tl.data.scenarios import Scenario

_THOUSANDS = r"\d{1,3}(?:,\d{3})+"
_NUMBER = rf"{_THOUSANDS}(?:\.\d{{1,2}})?|\d+(?:\.\d{{1,2}})?"
_OTHER_UNITS = (
    "inch|in\\b|miles?|years?|yrs?|months?|days?|hours?|minutes?|mins?|mph|gb|sq|feet|ft|bed|speed|pm|am|lbs?|pounds|cm|"
    "mm|hp|people|percent"
)
# With a dollar sign before it, with a word for dollars after it, or bare and of nothing else.
_PRICE = regex.compile(
    rf"\$\s*(?P<a>{_NUMBER})\s*(?P<ka>k\b)?|"
    rf"(?<![\w.,$])(?P<b>{_NUMBER})\s*(?P<kb>k\b)?(?:\s*(?:dollars|bucks|usd|\$))|"
    rf"(?<![\w.,$/-])(?P<c>(?:{_THOUSANDS}|\d{{2,6}})(?:\.\d\d)?|\d(?:\.\d)?(?=k))(?P<kc>k)?"
    rf"(?![\w%'\"/]|[.,:]\d|\s*(?:{_OTHER_UNITS}))",
    regex.IGNORECASE,
)
# Before a price that is named only to be passed over.
_PASSED_OVER = regex.compile(r"\b(?:not|down from|instead of|rather than)\s*$", regex.IGNORECASE)
_END = r"(?=[\s.!,]*(?:$|[.!,]))"
_ACCEPTS = regex.compile(
    r"\b(?:it(?:'s| is) a deal|(?:you|we)(?:'ve| have)? got (?:yourself )?a deal|we have a deal|agreed|i accept|sold|"
    rf"deal(?:{_END}|(?= (?:at|for) \$?\d))|i(?:'ll| will) take (?:it|that|the deal)|"
    r"sounds (?:good|great|fair|perfect|like a (?:deal|plan))|"
    r"(?:that|this|it) (?:works|will work|would work|is fine|is fair)|works for me|"
    r"(?:i can|i could|we can) (?:do|accept|agree to) (?:that|this)|"
    r"that(?:'s| is| sounds)? (?:fine|fair|good|great|perfect|reasonable|okay|ok)|"
    rf"(?:ok|okay|sure|alright|all right|perfect|great|yes|yeah|fine){_END})",
    regex.IGNORECASE,
)
_REFUSES = regex.compile(
    r"\b(?:no deal|not (?:a deal|fair|enough|going to work)|can(?:'|no)t (?:do|accept|go|agree)|cannot|won't|no thanks|"
    r"too (?:low|high|much)|how about|what about|(?:would|could|can|will|do) you|lowest|but|"
    rf"i was (?:hoping|thinking))\b|\?|(?:^|[.,!;]\s*)no{_END}",
    regex.IGNORECASE,
)
# Before words that accept: they are said of something else, or denied.
_DENIED = regex.compile(r"\b(?:not|never|already|nor|\w+n't)(?:\s+[\w']+){0,3}\s+$", regex.IGNORECASE)
# With a price beside it, this offers what it seems to accept.
_ON_CONDITION = regex.compile(
    r"\bmake (?:it|that)\b|\b(?:if\b|and (?:it|we|you)\b|then (?:it|we|you)\b).*\bdeal\b", regex.IGNORECASE
)
# What closes a deal also at one's own price: the other side has asked for more than the price.
_CLOSES = regex.compile(r"\b(?:deal|agreed|accept|sold|i(?:'ll| will) take it)\b", regex.IGNORECASE)
_TAKES_BACK = regex.compile(
    r"\b(?:no deal|not (?:a deal|going to work)|(?:changed|change) my mind|(?:deal|sale|it) is off|deal's off|"
    r"(?:not|never|haven't|didn't) (?:\w+ )?agreed?|"
    r"(?:can(?:'|no)t|won't) (?:do|accept|agree to) (?:that|this|it|your)|"
    r"too (?:low|high|much)(?: for me)?(?=[.!,]|$))",
    regex.IGNORECASE,
)


@dataclass(frozen=True)
class Outcome:
    """``price`` is None without a deal; shares are of what lies between the buyer's target and the list price."""

    deal: bool
    price: float | None
    seller: float | None
    buyer: float | None


def outcome(texts: Sequence[str], scenario: Scenario, sides: Sequence[str] | None = None) -> Outcome:
    """What a talk came to; ``texts`` are the two sides' messages, in turn where no sides are named.

    A message accepts where it says so, asks nothing, and refuses nothing, and either the price that stands is the other
    side's or this one names a price; with a condition beside it, that is an offer. At one's own price only a word like
    "deal" does. A price named anew later undoes a deal, and so does taking it back. Prices far from the item's are no
    prices.
    """
    price: float | None = None
    agreed: float | None = None
    offered_by: object = None
    for number, text in enumerate(texts):
        plain, side = text.replace("’", "'"), sides[number] if sides else number % 2
        named = [p for p in _offered(plain) if 0.3 * scenario.target <= p <= 1.5 * scenario.price]
        theirs = price is not None and (offered_by != side or agreed is not None)
        if accepts(plain) and (named or theirs or (price is not None and _CLOSES.search(plain))):
            if named and _ON_CONDITION.search(plain):
                price, agreed, offered_by = named[-1], None, side
            else:
                agreed = price = named[-1] if named else price
        elif named:
            if agreed is not None and named[-1] != agreed:
                agreed = None
            price, offered_by = named[-1], side
        elif takes_back(plain):
            agreed = None
    if agreed is None:
        return Outcome(False, None, None, None)
    share = scenario.share(agreed)
    return Outcome(True, agreed, share, 1 - share)


def accepts(text: str) -> bool:
    """Whether a message accepts: it says so, of nothing else, asks nothing and refuses nothing."""
    said = any(_DENIED.search(text[: match.start()]) is None for match in _ACCEPTS.finditer(text))
    return said and _REFUSES.search(text) is None


def takes_back(text: str) -> bool:
    """Whether a message takes a deal back."""
    return _TAKES_BACK.search(text) is not None


def prices(text: str) -> list[float]:
    """The amounts of money that a text names, in order."""
    return [amount for amount, _ in _amounts(text)]


def _offered(text: str) -> list[float]:
    """Those that are not named only to be passed over."""
    return [amount for amount, start in _amounts(text) if not _PASSED_OVER.search(text[:start])]


def _amounts(text: str) -> Iterator[tuple[float, int]]:
    """And where they begin."""
    for match in _PRICE.finditer(text):
        number = next(match[name] for name in "abc" if match[name])
        thousand = any(match[f"k{name}"] for name in "abc")
        yield float(number.replace(",", "")) * (1000 if thousand else 1), match.start()


def outcomes(talks: Sequence[Sequence[str]], scenarios: Sequence[Scenario]) -> pd.DataFrame:
    """A row per talk: ``deal`` (0 or 1), ``price`` and each side's share, NaN without a deal."""
    found = [outcome(talk, scenario) for talk, scenario in zip(talks, scenarios, strict=True)]
    return pd.DataFrame(
        {
            "deal": [float(o.deal) for o in found],
            "price": [o.price for o in found],
            "seller": [o.seller for o in found],
            "buyer": [o.buyer for o in found],
        },
        dtype=float,
    )
