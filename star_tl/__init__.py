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
import os
from typing import TYPE_CHECKING, Any

from star_tl.version import __version__ as __version__

# What torch's libraries read when they are loaded. Turns that an OpenMP thread spins before it sleeps: GNU's 300,000
# keep a busy machine's core from the thread that is waited for, and a product takes many times as long.
if "OMP_WAIT_POLICY" not in os.environ:
    os.environ.setdefault("GOMP_SPINCOUNT", "5000")
# Products that oneDNN keeps prepared, each of one length: its 1,024 take hundreds of megabytes for lengths that do not
# come again, and one is prepared in a tenth of a millisecond.
os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "32")

if TYPE_CHECKING:
    from star_tl.attribution import AttributionMap as AttributionMap
    from star_tl.attribution import attribute as attribute
    from star_tl.attribution.exact import exact_effects as exact_effects
    from star_tl.attribution.outcome import OutcomeMap as OutcomeMap
    from star_tl.attribution.outcome import attribute_outcome as attribute_outcome
    from star_tl.attribution.verify import verify as verify
    from star_tl.data.pairs import ContrastivePair as ContrastivePair
    from star_tl.data.pairs import Pairs as Pairs
    from star_tl.data.pairs import Trait as Trait
    from star_tl.data.pairs import load_pairs as load_pairs
    from star_tl.data.prompts import load_prompts as load_prompts
    from star_tl.errors import StarError as StarError
    from star_tl.evaluation.conversation import converse as converse
    from star_tl.evaluation.intervention import InterventionChoice as InterventionChoice
    from star_tl.evaluation.intervention import choose_intervention as choose_intervention
    from star_tl.evaluation.judges import judges_of as judges_of
    from star_tl.evaluation.judges import relevance as relevance
    from star_tl.evaluation.llm_judge import LLMJudge as LLMJudge
    from star_tl.evaluation.scores import score as score
    from star_tl.evaluation.strength import choose_strength as choose_strength
    from star_tl.evaluation.sweep import Comparison as Comparison
    from star_tl.evaluation.sweep import compare as compare
    from star_tl.generation.sampling import generate as generate
    from star_tl.generation.sampling import sample as sample
    from star_tl.generation.sampling import stream as stream
    from star_tl.generation.settings import Sampling as Sampling
    from star_tl.locus import Locus as Locus
    from star_tl.models import load_model as load_model
    from star_tl.models.layout import copy_free_layout as copy_free_layout
    from star_tl.pipeline import run as run
    from star_tl.steering.condition import Condition as Condition
    from star_tl.trial import evaluate as evaluate
    from star_tl.vectors import SteeringVector as SteeringVector
    from star_tl.vectors import combine as combine
    from star_tl.vectors import extract_vector as extract_vector
    from star_tl.vectors import project_off as project_off
    from star_tl.vectors.imported import from_steering_vectors as from_steering_vectors
    from star_tl.vectors.outcome import extract_outcome_vector as extract_outcome_vector
    from star_tl.view.explorer.widget import explore as explore

_HOMES = {
    "AttributionMap": "attribution",
    "Comparison": "evaluation.sweep",
    "Condition": "steering.condition",
    "Sampling": "generation.settings",
    "ContrastivePair": "data.pairs",
    "InterventionChoice": "evaluation.intervention",
    "LLMJudge": "evaluation.llm_judge",
    "Locus": "locus",
    "OutcomeMap": "attribution.outcome",
    "Pairs": "data.pairs",
    "StarError": "errors",
    "SteeringVector": "vectors",
    "Trait": "data.pairs",
    "attribute": "attribution",
    "attribute_outcome": "attribution.outcome",
    "choose_intervention": "evaluation.intervention",
    "choose_strength": "evaluation.strength",
    "combine": "vectors",
    "compare": "evaluation.sweep",
    "converse": "evaluation.conversation",
    "copy_free_layout": "models.layout",
    "evaluate": "trial",
    "exact_effects": "attribution.exact",
    "explore": "view.explorer.widget",
    "extract_outcome_vector": "vectors.outcome",
    "extract_vector": "vectors",
    "from_steering_vectors": "vectors.imported",
    "generate": "generation.sampling",
    "judges_of": "evaluation.judges",
    "load_model": "models",
    "load_pairs": "data.pairs",
    "load_prompts": "data.prompts",
    "project_off": "vectors",
    "relevance": "evaluation.judges",
    "run": "pipeline",
    "sample": "generation.sampling",
    "score": "evaluation.scores",
    "stream": "generation.sampling",
    "verify": "attribution.verify",
}
__all__ = sorted(_HOMES)


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'star_tl' has no attribute {name!r}")
    return getattr(importlib.import_module(f"star_tl.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return [*globals(), *__all__]
