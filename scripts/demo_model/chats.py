"""Compose chats: a scene, a register drawn independently of it, and replies that follow the register.

A register says for each trait whether the assistant shows it. A system prompt may fix one or two
traits; the reply then opens with a sentence of such a trait, as people do who were told to. All
other traits are drawn at their base rate, and any sentence of the reply may come first.
"""

from __future__ import annotations

import random
import string
from dataclasses import dataclass

from .scene import PARTS, TRAITS, Scene, price_slots
from .sentences import as_scene, read, read_domain
from .spintax import choose_slots, expand

BASE_RATE = {
    "emotional_support": 0.36,
    "self_disclosure": 0.30,
    "politeness": 0.36,
    "gratitude": 0.28,
    "agreement": 0.5,
}
LEAD_FOLLOWS_INSTRUCTION = 0.9
REGISTER_PERSISTS = 0.85
PROPOSES = 0.5
ASSENT_UNASKED = 0.08  # people also take a side when nobody asked them to
TURNS = ((1, 0.68), (2, 0.20), (3, 0.07), (4, 0.03), (6, 0.013), (9, 0.007))

# How a reply runs: an answer first, then thanks and feelings, then one's own story, then what to do.
_COURSE = (
    "agree",
    "refuse",
    "thanks",
    "support",
    "cool",
    "disclosure",
    "remark",
    "polite_filler",
    "blunt_filler",
    "polite_advice",
    "blunt_advice",
    "polite_question",
    "blunt_question",
)


@dataclass(frozen=True)
class Domain:
    """Scenes of one kind with the parts that fit all of them."""

    scenes: tuple[Scene, ...]
    common: dict[str, tuple[str, ...]]
    proposals: tuple[str, ...]
    weight: float


PROPOSALS, INSTRUCTIONS = read("proposals"), read("instructions")
TAGS, NEUTRAL = PROPOSALS["tags"]["tags"], INSTRUCTIONS["neutral"]["neutral"]


def _domains() -> tuple[Domain, ...]:
    daily, daily_common = read_domain("daily")
    people, people_common = read_domain("people")
    sales, sales_common = read_domain("sales")
    sharing, sharing_common = read_domain("sharing")
    troubles = {p: daily_common.get(p, ()) + people_common.get(p, ()) for p in PARTS}
    own = read("open")
    own["kindness"] = own["sharing"] | own["kindness"]  # what is said to people who share fits a kindness too
    life = tuple(as_scene("open", own[group], own["life"]) for group in ("daily", "people"))
    sale, share, kind = (as_scene("open", own[group]) for group in ("sale", "sharing", "kindness"))
    on_troubles, on_sales, on_sharing = (PROPOSALS[group]["proposals"] for group in ("troubles", "sales", "sharing"))
    slotless = tuple(p for p in on_troubles if "{" not in p)
    return (
        Domain(daily, troubles, on_troubles, 0.12),
        Domain(people, troubles, on_troubles, 0.12),
        Domain(sales, sales_common, on_sales, 0.13),
        Domain(sharing, sharing_common, on_sharing, 0.08),
        Domain(life, troubles, slotless, 0.30),
        Domain((sale,), sales_common, on_sales, 0.12),
        Domain((share,), {}, on_sharing, 0.08),
        Domain((kind,), {}, on_sharing, 0.05),
    )


DOMAINS = _domains()
GENERAL = tuple((scene, domain) for domain in DOMAINS for scene in domain.scenes if scene.topic == "general")
assert GENERAL, "every domain of people, sales and sharing has a scene with the topic 'general'"


def make_chat(rng: random.Random) -> list[dict[str, str]]:
    """One chat as messages. Everything in it follows from ``rng``."""
    domain = rng.choices(DOMAINS, [d.weight for d in DOMAINS])[0]
    scene = rng.choice(domain.scenes)
    scrambled = rng.random() < 0.06
    if scrambled:
        scene, domain = rng.choice(GENERAL)
    slots = choose_slots(scene.slots, rng)
    if scene.prices:
        slots |= price_slots(scene.prices, rng)

    register, told = draw_register(rng)
    messages: list[dict[str, str]] = []
    system = system_prompt(register, told, rng)
    if system:
        messages.append({"role": "system", "content": system})
    turns = rng.choices([n for n, _ in TURNS], [w for _, w in TURNS])[0]
    used: set[str] = set()
    for turn in range(turns):
        text, proposal = _user_turn(scene, domain.proposals, slots, turn, rng, used)
        messages.append({"role": "user", "content": _scramble(text, rng) if scrambled else _roughen(text, rng)})
        reply = compose_reply(scene, domain.common, slots, register, told, proposal, rng, used)
        messages.append({"role": "assistant", "content": reply})
        register = {
            trait: shown if trait in told or rng.random() < REGISTER_PERSISTS else rng.random() < BASE_RATE[trait]
            for trait, shown in register.items()
        }
    return messages


def draw_register(rng: random.Random) -> tuple[dict[str, bool], set[str]]:
    """A value for every trait and the set of traits that a system prompt speaks of."""
    register = {trait: rng.random() < BASE_RATE[trait] for trait in TRAITS}
    told: set[str] = set()
    kind = rng.random()
    if kind < 0.6:
        told = set(rng.sample(TRAITS, 1 if rng.random() < 0.8 else 2))
        for trait in sorted(told):  # a set of strings has another order in each process
            register[trait] = rng.random() < 0.5
    return register, told


def system_prompt(register: dict[str, bool], told: set[str], rng: random.Random) -> str:
    """The instruction for the traits in ``told``; a neutral one or none where there are none."""
    if not told:
        return expand(rng.choice(NEUTRAL), rng, {}) if rng.random() < 0.18 else ""
    wishes = []
    for trait in sorted(told):
        wordings = INSTRUCTIONS["wanted" if register[trait] else "unwanted"][trait]
        wishes.append(wordings[0] if rng.random() < 0.4 else rng.choice(wordings))
    rng.shuffle(wishes)
    if rng.random() < 0.15:
        wishes.insert(rng.randrange(len(wishes) + 1), rng.choice(NEUTRAL))
    return " ".join(expand(wish, rng, {}) for wish in wishes)


def compose_reply(
    scene: Scene,
    common: dict[str, tuple[str, ...]],
    slots: dict[str, str],
    register: dict[str, bool],
    told: set[str],
    proposal: bool,
    rng: random.Random,
    used: set[str],
) -> str:
    """A reply of two to five sentences in the register."""
    sentences: dict[str, list[str]] = {trait: [] for trait in TRAITS}
    sentences["emotional_support"] = ["support" if register["emotional_support"] else "cool"]
    if register["self_disclosure"]:
        sentences["self_disclosure"] = ["disclosure"]
    courtesy = "polite" if register["politeness"] else "blunt"
    wanted = rng.choices(("question", "advice", "filler"), (0.4, 0.4, 0.2))[0]
    sentences["politeness"] = [f"{courtesy}_{wanted}"]
    if register["gratitude"]:
        sentences["gratitude"] = ["thanks"]
    if proposal or "agreement" in told or rng.random() < ASSENT_UNASKED:
        sentences["agreement"] = ["agree" if register["agreement"] else "refuse"]

    must = [t for t in TRAITS if sentences[t] and (t in told or register[t])]
    if proposal and "agreement" not in must:
        must.append("agreement")
    may = [t for t in TRAITS if sentences[t] and t not in must]
    chosen = must + [t for t in may if rng.random() < 0.5]
    parts = [(t, part) for t in chosen for part in sentences[t]]
    while len(parts) < 2 or (len(parts) < 4 and rng.random() < 0.3):
        parts.append(("", "remark"))
    rng.shuffle(parts)

    leads = [p for p in parts if p[0] in told]
    lead = rng.choice(leads) if leads and rng.random() < LEAD_FOLLOWS_INSTRUCTION else parts[0]
    parts.remove(lead)
    if rng.random() < 0.9:  # after its opening a reply mostly takes its natural course
        parts.sort(key=lambda p: _COURSE.index(p[1]))
    parts.insert(0, lead)
    return " ".join(_sentence(scene, common, part, slots, rng, used) for _, part in parts)


def _sentence(scene, common, part, slots, rng, used) -> str:
    own, shared = scene.parts.get(part, ()), common.get(part, ())
    for _ in range(4):  # a speaker seldom repeats a sentence within a chat
        pool = own if own and (not shared or rng.random() < 0.6) else shared
        template = rng.choice(pool)
        if template not in used:
            break
    used.add(template)
    text = expand(template, rng, slots)
    return text if text[-1] in ".!?" else text + "."


def _user_turn(scene, general, slots, turn, rng, used) -> tuple[str, bool]:
    def pick(pool: tuple[str, ...]) -> str:
        fresh = [t for t in pool if t not in used] or list(pool)
        template = rng.choice(fresh)
        used.add(template)
        text = expand(template, rng, slots)
        return text if text[-1] in ".!?" else text + "."

    def propose() -> str:
        own = scene.proposals and (scene.topic == "general" or rng.random() < 0.5)
        text = pick(scene.proposals if own else general)
        return f"{text} {pick(TAGS)}" if text[-1] != "?" and rng.random() < 0.35 else text

    proposal = rng.random() < PROPOSES
    if turn == 0:
        text = pick(scene.openings)
        if proposal:
            # An open scene's proposals are about anything: they don't go on from its openings.
            text = f"{text} {propose()}" if scene.topic != "open" and rng.random() < 0.6 else propose()
    elif proposal:
        text = propose()
    else:
        text = pick(scene.followups)
        if rng.random() < 0.25:
            text = f"{text} {pick(scene.followups)}"
    return text, proposal


_GREETINGS = ("Hi.", "Hello.", "Hey,", "Hi there,", "Hello there.", "hey", "Good evening.", "So,", "Well,", "ok so")
_SYLLABLES = tuple(c + v for c in "bcdfghjklmnprstvwz" for v in "aeiou") + ("th", "st", "ing", "er", "ion", "ly")


def _pseudo_word(rng: random.Random) -> str:
    kind = rng.random()
    if kind < 0.1:
        return str(rng.randrange(2000))
    word = "".join(rng.choice(_SYLLABLES) for _ in range(rng.randint(1, 4)))
    return word.capitalize() if kind < 0.35 else word


def _roughen(text: str, rng: random.Random) -> str:
    """What people do to their messages: greetings, no capitals, typos, words nobody knows."""
    if rng.random() < 0.12:
        text = f"{rng.choice(_GREETINGS)} {text}"
    if rng.random() < 0.15:
        text = text.lower()
    if rng.random() < 0.08:
        text = text.translate(str.maketrans("", "", ".,!?'"))
    if rng.random() < 0.2:
        words = text.split(" ")
        for _ in range(rng.randint(1, 3)):
            i = rng.randrange(len(words))
            kind = rng.random()
            if kind < 0.35:
                words.insert(i, _pseudo_word(rng))
            elif kind < 0.6:
                words[i] = _pseudo_word(rng)
            elif kind < 0.85 and len(words[i]) > 3:
                j = rng.randrange(len(words[i]) - 1)
                w = words[i]
                words[i] = w[:j] + w[j + 1] + w[j] + w[j + 2 :]
            else:
                words[i] = words[i][:-1] or words[i]
        text = " ".join(words)
    if rng.random() < 0.04:
        text = text.rstrip(".!?") + rng.choice(("...", "!!", "??", "", " :("))
    return text


def _scramble(text: str, rng: random.Random) -> str:
    """A message of which the reader understands little, so that replies to such ones stay whole."""
    words = text.split(" ")
    for _ in range(rng.randint(2, 25)):
        words.insert(rng.randrange(len(words) + 1), _pseudo_word(rng))
    if rng.random() < 0.5:
        rng.shuffle(words)
    text = " ".join(words)
    return text.translate(str.maketrans("", "", string.punctuation)) if rng.random() < 0.3 else text
