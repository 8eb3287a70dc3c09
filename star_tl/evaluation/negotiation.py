"""What came of a bargaining talk: whether it ends in a deal, at what price, and who gained.

People who bargain on CraigslistBargain press a button for their offer; a model has only words. A deal is read off the
talk: somebody accepts after a price was named, and nobody takes it back. How well that reads people's talk stands in
scripts/RESULTS.md, by ``scripts/measure_negotiation.py``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import pandas as pd
import regex

from star_tl.data.scenarios import Scenario

_NUMBER = r"\d{1,3}(?:,\d{3})+(?:\.\d{1,2})?|\d+(?:\.\d{1,2})?"
_OTHER_UNITS = (
    "inch|in\\b|miles?|years?|yrs?|months?|days?|hours?|minutes?|mins?|mph|gb|sq|feet|ft|bed|speed|pm|am|lbs?|pounds|cm|"
    "mm|hp|people|percent"
)
# With a dollar sign before it, with a word for dollars after it, or bare and of nothing else.
_PRICE = regex.compile(
    rf"\$\s*(?P<a>{_NUMBER})\s*(?P<ka>k\b)?|"
    rf"(?<![\w.,$])(?P<b>{_NUMBER})\s*(?P<kb>k\b)?(?:\s*(?:dollars|bucks|usd|\$))|"
    rf"(?<![\w.,$/-])(?P<c>\d{{2,6}}(?:,\d{{3}})?)(?P<kc>k)?(?![\w%'\"/]|[.,:]\d|\s*(?:{_OTHER_UNITS}))",
    regex.IGNORECASE,
)
_END = r"(?=[\s.!,]*(?:$|[.!,]))"
_ACCEPTS = regex.compile(
    r"\b(?:it(?:'s| is) a deal|(?:you|we)(?:'ve| have)? got (?:yourself )?a deal|we have a deal|agreed|i accept|sold|"
    rf"deal{_END}|i(?:'ll| will) take (?:it|that|the deal)|sounds (?:good|great|fair|perfect|like a (?:deal|plan))|"
    r"(?:that|this|it) (?:works|will work|would work|is fine|is fair)|works for me|"
    r"(?:i can|i could|we can) (?:do|accept|agree to) (?:that|this)|"
    r"that(?:'s| is| sounds)? (?:fine|fair|good|great|perfect|reasonable|okay|ok)|"
    rf"(?:ok|okay|sure|alright|all right|perfect|great|yes|yeah|fine){_END})",
    regex.IGNORECASE,
)
_REFUSES = regex.compile(
    r"\b(?:no deal|not (?:a deal|fair|enough|going to work)|can(?:'|no)t (?:do|accept|go|agree)|cannot|won't|no thanks|"
    r"too (?:low|high|much)|how about|what about|(?:would|could|can|will|do) you|lowest|but|"
    r"i was (?:hoping|thinking))\b|\?",
    regex.IGNORECASE,
)


@dataclass(frozen=True)
class Outcome:
    """``price`` is None without a deal; shares are of what lies between the buyer's target and the list price."""

    deal: bool
    price: float | None
    seller: float | None
    buyer: float | None


def outcome(texts: Sequence[str], scenario: Scenario) -> Outcome:
    """What a talk came to; ``texts`` are the two sides' messages in turn.

    A message accepts where it says so, asks nothing, and refuses nothing, and either the other side's last message or
    this one names a price; a price named anew later undoes it. Prices far from the item's are no prices.
    """
    price: float | None = None
    agreed: float | None = None
    for text in texts:
        plain = text.replace("’", "'")
        named = [p for p in prices(plain) if 0.3 * scenario.target <= p <= 1.5 * scenario.price]
        if accepts(plain) and (price is not None or named):
            agreed = price = named[-1] if named else price
        elif named:
            if agreed is not None and named[-1] != agreed:
                agreed = None
            price = named[-1]
    if agreed is None:
        return Outcome(False, None, None, None)
    share = scenario.share(agreed)
    return Outcome(True, agreed, share, 1 - share)


def accepts(text: str) -> bool:
    """Whether a message accepts: it says so, asks nothing and refuses nothing."""
    return _ACCEPTS.search(text) is not None and _REFUSES.search(text) is None


def prices(text: str) -> list[float]:
    """The amounts of money that a text names, in order."""
    found = []
    for match in _PRICE.finditer(text):
        number = next(match[name] for name in "abc" if match[name])
        thousand = any(match[f"k{name}"] for name in "abc")
        found.append(float(number.replace(",", "")) * (1000 if thousand else 1))
    return found


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
