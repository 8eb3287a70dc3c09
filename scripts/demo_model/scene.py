"""What a scene of the grammar holds, and the check that its sentences mean what they say."""

from __future__ import annotations

import json
import random
from dataclasses import dataclass, field
from pathlib import Path

import regex

from .spintax import choose_slots, expand

TRAITS = ("emotional_support", "self_disclosure", "politeness", "gratitude", "agreement")
TRAIT_FOLDER = Path(__file__).resolve().parents[2] / "star_tl" / "data" / "traits"

# Which trait the sentences of a part must show; every other part and trait must not meet.
SHOWS = {
    "support": "emotional_support",
    "disclosure": "self_disclosure",
    "polite_question": "politeness",
    "polite_advice": "politeness",
    "polite_filler": "politeness",
    "thanks": "gratitude",
    "agree": "agreement",
}
PARTS = (
    "support",  # warm: takes the user's feelings seriously, stands by them
    "cool",  # the same place in a reply, matter-of-fact
    "disclosure",  # something from the speaker's own life
    "polite_question",
    "blunt_question",
    "polite_advice",
    "blunt_advice",
    "polite_filler",  # short courtesies that can open or close a reply
    "blunt_filler",
    "thanks",
    "agree",  # says yes to what the user proposes or thinks
    "refuse",  # says no to it
    "remark",  # neutral, on topic, shows no trait
)


@dataclass(frozen=True)
class Scene:
    """One situation: slots chosen once per chat, the user's sentences, the assistant's parts."""

    topic: str
    slots: dict[str, tuple[str, ...]]
    openings: tuple[str, ...]  # the user's first message
    proposals: tuple[str, ...]  # the user asks for assent: a plan, a view, a price, a split
    followups: tuple[str, ...]  # the user's later messages
    parts: dict[str, tuple[str, ...]] = field(default_factory=dict)
    prices: tuple[int, int] | None = None  # range of the listed price, where there is one


def markers() -> dict[str, regex.Pattern[str]]:
    """The marker pattern of each built-in trait, from the trait files."""
    found = {}
    for trait in TRAITS:
        header = json.loads((TRAIT_FOLDER / f"{trait}.jsonl").read_text().splitlines()[0])
        found[trait] = regex.compile(rf"\b(?:{'|'.join(header['markers'])})\b", regex.I)
    return found


def price_slots(prices: tuple[int, int], rng: random.Random) -> dict[str, str]:
    """Listed price, the user's offer below it, and a price between, rounded as people do."""
    listed = rng.randint(*prices)
    step = 1 if listed < 40 else 5 if listed < 400 else 10 if listed < 2000 else 50
    listed = max(step, round(listed / step) * step)
    offer = max(step, round(listed * rng.uniform(0.6, 0.88) / step) * step)
    between = max(offer, round((listed + offer) / 2 / step) * step)
    return {"ask": str(listed), "offer": str(offer), "mid": str(between)}


def check(scene: Scene, common: dict[str, tuple[str, ...]], samples: int = 12) -> list[str]:
    """Sentences that miss their own trait's markers or carry another's, one message each."""
    rng = random.Random(0)
    patterns = markers()
    problems: list[str] = []
    for part in PARTS:
        for template in scene.parts.get(part, ()) + common.get(part, ()):
            for _ in range(samples):
                slots = choose_slots(scene.slots, rng)
                if scene.prices:
                    slots |= price_slots(scene.prices, rng)
                text = expand(template, rng, slots)
                shown = {trait for trait, pattern in patterns.items() if pattern.search(text)}
                wanted = {SHOWS[part]} if part in SHOWS else set()
                if shown != wanted:
                    problems.append(f"{scene.topic} {part}: shows {sorted(shown)}, wants {sorted(wanted)}: {text}")
    for kind in ("openings", "proposals", "followups"):
        for template in getattr(scene, kind):
            slots = choose_slots(scene.slots, rng)
            if scene.prices:
                slots |= price_slots(scene.prices, rng)
            expand(template, rng, slots)
    return sorted(set(problems))
