"""A vector at every token: its drift beside the located one's, measured again on replies of our own."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from by_hand import unequal_pairs
from hf_reference import steering_vector

import star_tl as star
from star_tl.errors import StarError
from star_tl.evaluation.every_token import fit_every_token, measure_export, on_card
from star_tl.generation.settings import Sampling
from star_tl.steering.condition import Condition

SHORT = Sampling(max_new_tokens=12, temperature=0.0)


def drift(model: Any, condition: Condition) -> float:
    pairs = unequal_pairs()
    prompts = pairs.extraction.prompts
    replies = star.generate(model, prompts, condition=condition, sampling=SHORT)
    return float(star.score(model, pairs.trait, prompts, replies, condition).drift.mean())


@pytest.mark.parametrize("strength", [2.0, -2.0])
def test_it_drifts_as_much_as_the_located_vector_and_hardly_less(tiny: Any, strength: float) -> None:
    located = Condition("at its place", steering_vector(positions=(-2, -1), scale=1.0), strength)
    fitted = fit_every_token(tiny, unequal_pairs(), located, SHORT)
    limit = drift(tiny, located)
    everywhere = replace(located, strength=fitted.strength, positions="all")
    assert limit > 0.01
    assert drift(tiny, everywhere) <= limit < drift(tiny, replace(everywhere, strength=1.1 * fitted.strength))
    card = on_card(fitted.table)
    assert card["located: drift, nats per token"] == pytest.approx(limit)
    assert card["every token: drift, nats per token"] == pytest.approx(drift(tiny, everywhere))
    assert next(iter(card)) == "every token: drift, nats per token"
    alone = on_card(measure_export(tiny, unequal_pairs(), replace(located, name="located"), SHORT))
    assert alone == pytest.approx({name: value for name, value in card.items() if "every" not in name}, rel=1e-4)
    assert fitted.strength * strength > 0
    assert list(fitted.table.arm) == ["unsteered", "located", "every token"]


def test_nothing_is_fitted_where_nothing_is_added(tiny: Any) -> None:
    for located in (Condition(), Condition("steered", steering_vector(), 0.0)):
        with pytest.raises(StarError, match="strength is 0"):
            fit_every_token(tiny, unequal_pairs(), located, SHORT)
    nowhere = Condition("steered", steering_vector(), 1.0, (-5000,))  # no prompt is so long
    with pytest.raises(StarError, match="raise its strength"):
        fit_every_token(tiny, unequal_pairs(), nowhere, SHORT)
