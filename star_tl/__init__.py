"""Find where a language model carries a social trait, and turn it up while it writes.

    import star_tl as star
    model = star.load_model("demo")
    pairs = star.load_pairs("emotional_support")
    attr = star.attribute(model, pairs)
    vector = star.extract_vector(model, pairs, attr.top_locus())
    texts = star.sample(model, prompts, hooks=vector.hooks(strength=1.0))

Names are imported when they are first used, so that ``import star_tl`` costs nothing.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from star_tl.attribution import AttributionMap as AttributionMap
    from star_tl.attribution import attribute as attribute
    from star_tl.attribution.exact import exact_effects as exact_effects
    from star_tl.attribution.exact import verify as verify
    from star_tl.conversation import converse as converse
    from star_tl.dialogues import load_prompts as load_prompts
    from star_tl.errors import StarError as StarError
    from star_tl.explorer import explore as explore
    from star_tl.locus import Locus as Locus
    from star_tl.models import load_model as load_model
    from star_tl.models.layout import relay as relay
    from star_tl.pairs import ContrastivePair as ContrastivePair
    from star_tl.pairs import Pairs as Pairs
    from star_tl.pairs import Trait as Trait
    from star_tl.pairs import load_pairs as load_pairs
    from star_tl.pipeline import run as run
    from star_tl.sampling import generate as generate
    from star_tl.sampling import sample as sample
    from star_tl.sampling import stream as stream
    from star_tl.scores import score as score
    from star_tl.strength import choose_strength as choose_strength
    from star_tl.sweep import Comparison as Comparison
    from star_tl.sweep import compare as compare
    from star_tl.vectors import SteeringVector as SteeringVector
    from star_tl.vectors import combine as combine
    from star_tl.vectors import extract_vector as extract_vector
    from star_tl.vectors import project_off as project_off

_HOMES = {
    "AttributionMap": "attribution",
    "Comparison": "sweep",
    "ContrastivePair": "pairs",
    "Locus": "locus",
    "Pairs": "pairs",
    "StarError": "errors",
    "SteeringVector": "vectors",
    "Trait": "pairs",
    "attribute": "attribution",
    "choose_strength": "strength",
    "combine": "vectors",
    "compare": "sweep",
    "converse": "conversation",
    "exact_effects": "attribution.exact",
    "explore": "explorer",
    "extract_vector": "vectors",
    "generate": "sampling",
    "load_model": "models",
    "load_pairs": "pairs",
    "load_prompts": "dialogues",
    "project_off": "vectors",
    "relay": "models.layout",
    "run": "pipeline",
    "sample": "sampling",
    "score": "scores",
    "stream": "sampling",
    "verify": "attribution.exact",
}
__all__ = sorted(_HOMES)


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'star_tl' has no attribute {name!r}")
    return getattr(importlib.import_module(f"star_tl.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return [*globals(), *__all__]
