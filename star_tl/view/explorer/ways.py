"""A card of the page: what is added to write its replies, as hooks, in words, in Python and as a file."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from star_tl.data.chat import SPANS, Message
from star_tl.data.pairs import TRAITS
from star_tl.errors import StarError
from star_tl.generation.settings import Sampling
from star_tl.locus import NamedHook
from star_tl.steering.condition import batch_hooks
from star_tl.vectors import SteeringVector
from star_tl.view.explorer.doses import Chosen, natural

LADDER = (-1.0, -0.5, 0.5, 1.0, 1.5)  # × the strength of the locus
UNSTEERED_WAY, TOGETHER = "", "together"  # keys of cards that are no single locus


@dataclass(frozen=True)
class Way:
    """A card: what is added, in parts, each a vector, its strength and its positions."""

    key: str
    name: str
    title: str
    strength: float | None = None
    parts: tuple[tuple[SteeringVector, float, str | tuple[int, ...]], ...] = ()


At = str | tuple[int, ...]


def ways_of(places: Sequence[tuple[Chosen, At]], together: bool) -> list[Way]:
    """A card for the unsteered model, one for each place with where it is added, and one for all of them at once."""
    parts = [(chosen, (_vector(chosen), chosen.natural, at)) for chosen, at in places]
    ways = [Way(UNSTEERED_WAY, "", "Unsteered")]
    ways += [Way(c.name, c.name, "", c.strength, (part,)) for c, part in parts]
    if together and len(parts) > 1:
        ways.append(Way(TOGETHER, "", "All together", None, tuple(part for _, part in parts)))
    return ways


def ladder_of(chosen: Chosen, at: At) -> list[Way]:
    """The unsteered model beside one place at several strengths, down as well as up."""
    ways = [Way(UNSTEERED_WAY, "", "Unsteered")]
    for factor in LADDER:
        share = factor * (chosen.strength or 0.0)
        title = f"Strength {share:+.2f}".replace("-", "−")
        part = (_vector(chosen), natural(_vector(chosen), share), at)
        ways.append(Way(f"{chosen.name} × {factor:g}", chosen.name, title, None, (part,)))
    return ways


def _vector(chosen: Chosen) -> SteeringVector:
    if chosen.vector is None:
        raise StarError("The vector is being extracted: wait until replies appear.")
    return chosen.vector


def hooks_of(ways: Sequence[Way], prompt_length: int | None = None) -> list[NamedHook]:
    """For a batch with a row a card."""
    rows = [[(vector.scaled(x), vector.locus, at) for vector, x, at in way.parts] for way in ways]
    return batch_hooks(rows, prompt_length)


def place_words(name: str) -> str:
    """A locus for the head of a card."""
    return name.replace("blocks.", "Layer ", 1).replace(".attn.hook_z", "").replace(".hook_", " · ").split(" @ ")[0]


def positions_in_code(positions: str | tuple[int, ...], typed: str) -> tuple[str, str]:
    """Positions as Python, and a comment where numbers stand for a span of the chat."""
    if isinstance(positions, str):
        return json.dumps(positions), ""
    first, last = positions[0], positions[-1] + 1
    run = positions == tuple(range(first, last)) and len(positions) > 4
    return f"range({first}, {last})" if run else str(list(positions)), f"  # {typed}" if typed.strip() in SPANS else ""


def free_path(path: Path, vector: SteeringVector) -> Path:
    """The path, or one with a number where the file holds another vector."""
    candidate, number = path, 1
    while candidate.exists():
        try:
            held = SteeringVector.load(candidate)
        except StarError:
            held = None
        if held and held.fingerprint == vector.fingerprint and torch.equal(held.vector, vector.vector):
            break
        number += 1
        candidate = path.with_stem(f"{path.stem}-{number}")
    return candidate


def vector_in_code(chosen: Chosen) -> str:
    """Python that makes the vector."""
    if chosen.source and chosen.source not in TRAITS:
        return "vector = choice.vector"
    pairs = f"star.load_pairs({chosen.source!r})" if chosen.source else "pairs"
    return f"vector = star.extract_vector(model, {pairs}, star.{chosen.locus!r})"


def reply_in_code(
    places: Sequence[tuple[Chosen, At]], chat: Sequence[Message], settings: Mapping[str, object]
) -> list[str]:
    """Python that writes the reply under ``vector``, or under all of several, which are ``vectors`` then."""
    usual = Sampling()
    prompt = chat[0]["content"] if len(chat) == 1 else list(chat)
    known = (
        ("temperature", settings["temperature"], usual.temperature),
        ("max_new_tokens", settings["length"], usual.max_new_tokens),
    )
    other = [f"{name}={value!r}" for name, value, default in known if value != default]
    added = []
    for k, (chosen, at) in enumerate(places):
        name = "vector" if len(places) == 1 else f"vectors[{k}]"
        where, comment = positions_in_code(at, chosen.positions)
        added.append((f"{name}.hooks(strength={chosen.natural}, positions={where})", comment))
    hooks = [f"hooks = {call}{comment}" for call, comment in added[:1]]
    hooks += [f"hooks += {call}{comment}" for call, comment in added[1:]]
    return [
        *hooks,
        f"star.sample(model, [{prompt!r}], hooks, {', '.join(['seed=' + str(settings['seed']), *other])})",
    ]


def all_in_code(
    model: str,
    trait: str,
    places: Sequence[tuple[Chosen, At]],
    together: bool,
    chat: Sequence[Message],
    settings: Mapping[str, object],
) -> str:
    """Python that writes every card that steers, from nothing."""
    pairs = f"star.load_pairs({trait!r})" if trait in TRAITS else f'star.load_pairs("PAIRS.jsonl")  # your {trait}'
    code = ["import star_tl as star", f"model = star.load_model({model!r})", f"pairs = {pairs}"]
    if any(c.source and c.source not in TRAITS for c, _ in places):
        code += ["choice = star.choose_intervention(model, pairs)"]
    for place in places:
        code += [vector_in_code(place[0]), *reply_in_code([place], chat, settings)]
    if together:
        made = ", ".join(vector_in_code(c).partition(" = ")[2] for c, _ in places)
        code += [f"vectors = [{made}]", *reply_in_code(places, chat, settings)]
    return "\n".join(code)
