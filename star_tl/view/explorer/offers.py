"""What the page offers, and its settings to begin with."""

from __future__ import annotations

from dataclasses import replace

from star_tl.attribution import ESTIMATORS, AttributionMap
from star_tl.data.pairs import TRAITS, Pairs
from star_tl.errors import StarError, check_whole
from star_tl.evaluation.strength import DRIFT_LIMIT
from star_tl.files import JsonObject
from star_tl.generation.settings import Sampling
from star_tl.models.backend import Model
from star_tl.view.plots import DIVERGING, DIVERGING_DARK, GREY, LOCUS_COLOURS, ORANGE

FORMS = ("classical", "steering")
# What the page offers, where any schedule may be typed, with its words.
POSITIONS = {
    "locus": "where the vector was extracted",
    "last_prompt": "the prompt's last token",
    "prompt": "the whole prompt",
    "user turn": "what the user wrote",
    "header": "the assistant's header, before the reply",
    "generated": "last prompt token and reply",
    "first 8": "the reply's first 8 tokens",
    "every 4": "every 4th token of the reply",
    "decay 16": "the reply, halving every 16 tokens",
    "all": "prompt and reply",
    "-3, -2, -1": "numbers: −1 is the prompt's last token, 0 the reply's first",
}
MOST_SEEDS = 4
SAMPLING = Sampling()
CHOOSER = {key: e.label for key, e in ESTIMATORS.items() if key != "exact"}  # which takes minutes a pair


def offers(model: Model, pairs: Pairs, attr: AttributionMap, place: tuple[int, ...], n_prompts: int) -> JsonObject:
    """All that the page needs to know once: names, choices, colours, limits."""
    title = pairs.trait.name.replace("_", " ")
    return {
        "title": title,
        "heading": f"{title.capitalize()} in {model.cfg.model_name}",
        "model": str(model.cfg.model_name),
        "estimators": {m: CHOOSER.get(m, m) for m in (*CHOOSER, attr.method)},
        "forms": FORMS,
        "positions": POSITIONS,
        "pairs": [p.id for p in pairs.extraction],
        "colours": {"unsteered": GREY, "loci": LOCUS_COLOURS, "drift": ORANGE},
        "scales": {"light": [c for _, c in DIVERGING], "dark": [c for _, c in DIVERGING_DARK]},
        "limit": DRIFT_LIMIT,
        "prompts": n_prompts,
        "seeds": MOST_SEEDS,
        "place": list(place),
        "traits": [name for name in TRAITS if name != pairs.trait.name],
    }


def first_settings(pairs: Pairs, method: str, component: str) -> JsonObject:
    """What is shown and written before anything is changed."""
    return {
        "estimator": method,
        "form": "classical",
        "pair": -1,
        "component": component,
        "prompt": pairs.heldout.prompts[0][-1]["content"],
        "system": "",
        "seed": 0,
        "count": 1,
        "temperature": SAMPLING.temperature,
        "length": SAMPLING.max_new_tokens,
        "together": False,
        "note": "",
    }


def sampling_of(settings: JsonObject) -> Sampling:
    """How the page's settings sample.

    Raises:
        StarError: a number out of range.
    """
    count = settings["count"]
    if not isinstance(count, int) or not 1 <= count <= MOST_SEEDS:
        raise StarError(f"Replies a card is {count}: use 1 to {MOST_SEEDS}.")
    check_whole(settings["seed"], "The seed", least=None)
    return replace(SAMPLING, temperature=settings["temperature"], max_new_tokens=settings["length"])
