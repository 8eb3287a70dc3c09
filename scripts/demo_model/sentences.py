"""The grammar's sentences, read from ``sentences/*.jsonl``: one template a line, in the order in which they are drawn.

    {"group": "bicycle", "part": "support", "text": "That sounds [really |]hard."}
    {"group": "bicycle", "part": "{item}", "text": "racing bike"}
    {"group": "bicycle", "part": "prices", "text": "80 to 600"}

``daily``, ``people``, ``sales`` and ``sharing`` hold a scene a group: its parts, the values of its slots, the range of
its prices; the group ``common`` holds the parts that fit every scene of the file. ``open`` holds hundreds of situations
without sentences of their own: the detailed scenes teach what to say about a bicycle or a break-up, these what to say
where the speaker knows nothing in particular. ``proposals`` fit every scene of a domain, so that the model knows a
proposal by what it does and not by the words of one scene; its ``tags`` may follow one, or turn a statement into one.
``instructions`` are system prompts that ask for a register, and some that ask for none. In ``sales`` the user buys,
except in furniture, electronics and cameras. In ``sharing`` the slot ``{item}`` is what the user wants, ``{item.you}``
what is left for the assistant, and ``{why_{item}}`` looks up the reason that belongs to the item.
"""

from __future__ import annotations

import json
from pathlib import Path

from .scene import PARTS, Scene

FOLDER = Path(__file__).resolve().parent / "sentences"
Parts = dict[str, tuple[str, ...]]


def read(name: str) -> dict[str, Parts]:
    """The templates of a file by group and part, both in the order of the file."""
    groups: dict[str, dict[str, list[str]]] = {}
    with (FOLDER / f"{name}.jsonl").open(encoding="utf-8") as file:
        for line in map(json.loads, file):
            groups.setdefault(line["group"], {}).setdefault(line["part"], []).append(line["text"])
    return {group: {part: tuple(texts) for part, texts in parts.items()} for group, parts in groups.items()}


def as_scene(topic: str, parts: Parts, proposals: Parts | None = None) -> Scene:
    """A group as a scene, with the proposals of another group if it has none of its own."""
    prices = parts.get("prices")
    return Scene(
        topic,
        slots={part[1:-1]: texts for part, texts in parts.items() if part.startswith("{")},
        openings=parts["openings"],
        proposals=(proposals or parts)["proposals"],
        followups=parts.get("followups", parts["openings"]),
        parts={part: texts for part, texts in parts.items() if part in PARTS},
        prices=tuple(int(x) for x in prices[0].split(" to ")) if prices else None,
    )


def read_domain(name: str) -> tuple[tuple[Scene, ...], Parts]:
    """The detailed scenes of a domain, and the parts that fit all of them."""
    groups = read(name)
    common = groups.pop("common")
    return tuple(as_scene(topic, parts) for topic, parts in groups.items()), common
