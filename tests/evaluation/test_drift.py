"""The strength at which drift passes a limit, against a grid of the model's own forward passes."""

from __future__ import annotations

import pytest
import torch
from by_hand import unequal_pairs

import star_tl as star
from star_tl.data.chat import render, reply_ids
from star_tl.errors import StarError
from star_tl.evaluation.drift import drift_reach


def drift_by_hand(model, vector, pairs, strength: float) -> float:
    """Mean over replies of KL(steered ‖ unsteered) a token, one unpadded row at a time."""
    drifts = []
    for pair in pairs.extraction.pairs[:2]:
        ids = render(model.tokenizer, pair.context).ids
        for text in (pair.positive, pair.negative):
            tokens = torch.tensor([[*ids, *reply_ids(model.tokenizer, text)]])
            hooks = vector.hooks(strength, prompt_length=len(ids))
            with torch.no_grad():
                plain, steered = (
                    m[0, len(ids) - 1 : -1].log_softmax(-1)
                    for m in (model(tokens), model.run_with_hooks(tokens, fwd_hooks=hooks))
                )
            drifts.append(float((steered.exp() * (steered - plain)).sum(-1).mean()))
    return sum(drifts) / len(drifts)


def test_drift_at_the_found_strength_is_the_limit(tiny):
    pairs = unequal_pairs()
    vector = star.extract_vector(tiny, pairs, star.Locus("blocks.1.hook_resid_post"))
    limit = 0.2 * drift_by_hand(tiny, vector, pairs, 2 / vector.fraction)  # well within what is searched
    found = drift_reach(tiny, vector, pairs, limit=limit, count=2)
    assert found.passed
    assert drift_by_hand(tiny, vector, pairs, found.strength) == pytest.approx(limit, rel=0.25)
    strength, drift = found.curve[-1]
    assert drift == pytest.approx(drift_by_hand(tiny, vector, pairs, strength), rel=1e-3)
    assert found.drift(strength) == pytest.approx(drift)
    assert found.drift(-strength) == found.drift(strength)


def test_a_place_that_never_passes_the_limit_says_so(tiny):
    pairs = unequal_pairs()
    vector = star.extract_vector(tiny, pairs, star.Locus("blocks.1.hook_resid_post"))
    found = drift_reach(tiny, vector, pairs, limit=1e6, count=2)
    assert not found.passed
    assert found.strength * vector.fraction == pytest.approx(4.0)
    with pytest.raises(StarError, match="limit"):
        drift_reach(tiny, vector, pairs, limit=0)
    with pytest.raises(StarError, match="zero"):
        drift_reach(tiny, vector * 0, pairs)
