"""What is bargained over: items with a list price and what the buyer hopes to pay, or camp supplies.

Built-in items of ours, those of CraigslistBargain as published (``train.json`` and so on), or CaSiNo's two campers with
their priorities (``casino_*.json``).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import overload

from star_tl.errors import StarError
from star_tl.files import JsonObject, parse_json, read_text

BUILT_IN = Path(__file__).parent / "tasks" / "items.jsonl"
ITEMS, PACKAGES = ("food", "water", "firewood"), 3  # of each, for two campers
POINTS = {"High": 5, "Medium": 4, "Low": 3}  # a package, by its camper's priority (Chawla et al. 2021, 2103.15721)


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


@dataclass(frozen=True)
class Camp:
    """Two campers who divide three packages each of food, water and firewood; how much each wants which.

    ``user`` and ``assistant`` map an item to High, Medium or Low.
    """

    id: str
    user: Mapping[str, str]
    assistant: Mapping[str, str]

    def __post_init__(self) -> None:
        for wants in (self.user, self.assistant):
            if set(wants) != set(ITEMS) or set(wants.values()) != set(POINTS):
                raise StarError(
                    f"Camp {self.id!r}: each camper wants one of {', '.join(ITEMS)} most, one next: say so."
                )

    @property
    def roles(self) -> dict[str, str]:
        """What each side is told."""
        short = "Answer in one or two short sentences, and say how many packages of what you take."
        told = {}
        for side, wants in (("user", self.user), ("assistant", self.assistant)):
            most, next_, least = sorted(wants, key=lambda item: -POINTS[wants[item]])
            told[side] = (
                f"You are camping, and you and your neighbour divide {PACKAGES} packages of food, {PACKAGES} of water "
                f"and {PACKAGES} of firewood. You need {most} most, then {next_}, {least} least. {short}"
            )
        return told

    def points(self, side: str, got: Mapping[str, int]) -> int:
        """What a side's packages are worth to it."""
        wants = self.user if side == "user" else self.assistant
        return sum(POINTS[wants[item]] * count for item, count in got.items())


@overload
def load_scenarios(path: None = None, limit: int | None = None) -> list[Scenario]: ...


@overload
def load_scenarios(path: str | Path, limit: int | None = None) -> list[Scenario] | list[Camp]: ...


def load_scenarios(path: str | Path | None = None, limit: int | None = None) -> list[Scenario] | list[Camp]:
    """The items of a CraigslistBargain file that have a target below the price, CaSiNo's campers, or the built-in ones.

    Raises:
        StarError: a file of another form, or one without such an item.
    """
    source = Path(path) if path is not None else BUILT_IN
    text = read_text(source, "file of items")
    if path is None:
        records = [parse_json(line, str(source), "restore it") for line in text.splitlines() if line.strip()]
        return [Scenario(f"item-{i}", r["title"], r["price"], r["target"]) for i, r in enumerate(records)][:limit]
    value = parse_json(text, str(source), "download it again")
    camps = [camp_of(record) for record in value] if isinstance(value, list) else []
    if any(camps):
        return [camp for camp in camps if camp is not None][:limit]
    found = []
    for number, record in enumerate(value if isinstance(value, list) else []):
        scenario = scenario_of(record, number)
        if scenario is not None and (limit is None or len(found) < limit):
            found.append(scenario)
    if not found:
        raise StarError(
            f"{source} has no items with a target below their price: give CraigslistBargain's train.json, or CaSiNo's."
        )
    return found


def camp_of(record: JsonObject) -> Camp | None:
    """The campers of a dialogue of CaSiNo, in their order; None where it is none."""
    try:
        people = [
            {item.lower(): rank for rank, item in person["value2issue"].items()}
            for person in record["participant_info"].values()
        ]
        return Camp(f"casino-{record['dialogue_id']}", *people)
    except (KeyError, TypeError, AttributeError, StarError):
        return None


def scenario_of(record: JsonObject, number: int) -> Scenario | None:
    """The scenario of a dialogue of CraigslistBargain; None where it has no usable prices."""
    try:
        sides = {kb["personal"]["Role"]: kb for kb in record["scenario"]["kbs"]}
        item, target = sides["seller"]["item"], sides["buyer"]["personal"]["Target"]
        return Scenario(str(record.get("uuid", number)), " ".join(item["Title"].split()), item["Price"], target)
    except (KeyError, TypeError, AttributeError, StarError):
        return None
