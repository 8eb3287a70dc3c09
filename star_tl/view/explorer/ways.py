"""A card of the page: what is added to write its replies, as hooks, in words, in Python and as a file."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from star_tl.data.chat import SPANS
from star_tl.errors import StarError
from star_tl.locus import NamedHook
from star_tl.steering.condition import batch_hooks
from star_tl.vectors import SteeringVector


@dataclass(frozen=True)
class Way:
    """A card: what is added, in parts, each a vector, its strength and its positions."""

    key: str
    name: str
    title: str
    strength: float | None = None
    parts: tuple[tuple[SteeringVector, float, str | tuple[int, ...]], ...] = ()


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
