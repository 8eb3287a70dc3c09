"""What is bargained over: items with a list price and what the buyer hopes to pay.

Built-in items of ours, or those of CraigslistBargain as published (``train.json`` and so on).
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from star_tl.errors import StarError
from star_tl.files import JsonObject, parse_json, read_text

BUILT_IN = Path(__file__).parent / "tasks" / "items.jsonl"


@dataclass(frozen=True)
class Scenario:
    """An item, its list ``price``, and the buyer's ``target``, in dollars."""

    id: str
    title: str
    price: float
    target: float

    def __post_init__(self) -> None:
        if not self.title.strip() or not 0 < self.target < self.price:
            raise StarError(f"Item {self.id!r} needs a title and a target between 0 and its price: correct it.")

    @property
    def roles(self) -> dict[str, str]:
        """What each side is told."""
        item = f"{self.title}, listed at ${self.price:g}"
        short = "Answer in one or two short sentences, and name prices with a dollar sign."
        return {
            "user": f"You are the buyer of this: {item}. You would like to pay about ${self.target:g}. {short}",
            "assistant": f"You are the seller of this: {item}. You would like to get your price. {short}",
        }

    def share(self, price: float) -> float:
        """The seller's share of what lies between target and list price; the buyer has the rest."""
        return (price - self.target) / (self.price - self.target)


def load_scenarios(path: str | Path | None = None, limit: int | None = None) -> list[Scenario]:
    """The items of a CraigslistBargain file that have a target below the price, or the built-in ones.

    Raises:
        StarError: a file of another form, or one without such an item.
    """
    source = Path(path) if path is not None else BUILT_IN
    text = read_text(source, "file of items")
    if path is None:
        records = [parse_json(line, str(source), "restore it") for line in text.splitlines() if line.strip()]
        return [Scenario(f"item-{i}", r["title"], r["price"], r["target"]) for i, r in enumerate(records)][:limit]
    value = parse_json(text, str(source), "download it again")
    found = []
    for number, record in enumerate(value if isinstance(value, list) else []):
        scenario = scenario_of(record, number)
        if scenario is not None and (limit is None or len(found) < limit):
            found.append(scenario)
    if not found:
        raise StarError(f"{source} has no items with a target below their price: give CraigslistBargain's train.json.")
    return found


def scenario_of(record: JsonObject, number: int) -> Scenario | None:
    """The scenario of a dialogue of CraigslistBargain; None where it has no usable prices."""
    try:
        sides = {kb["personal"]["Role"]: kb for kb in record["scenario"]["kbs"]}
        item, target = sides["seller"]["item"], sides["buyer"]["personal"]["Target"]
        return Scenario(str(record.get("uuid", number)), " ".join(item["Title"].split()), item["Price"], target)
    except (KeyError, TypeError, AttributeError, StarError):
        return None
