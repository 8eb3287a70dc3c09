"""Agreement, separability and AUC of made-up activations are what their definitions say."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import stats

import star_tl as star
from star_tl.evaluation.conditions import few_shot, shuffled_labels, top_heads, vector_conditions
from star_tl.evaluation.preflight import cosine_agreement, held_out_auc, preflight, separability


def made(effect: float, seed: int, pairs: int = 40) -> torch.Tensor:
    """Runs of two places: at the first the pairs differ along one axis, at the second by noise alone."""
    runs = torch.randn(2, pairs, 2, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    runs[0, :, 0, 3] += effect
    return runs


def test_a_planted_direction_is_agreed_on_separates_and_tells_held_out_pairs_apart() -> None:
    one, other = made(4.0, 0), made(4.0, 1)
    change = one[0] - one[1]
    expected = [
        np.mean([1 - _cosine_distance(c, np.delete(change[:, k].numpy(), i, 0).mean(0)) for i, c in enumerate(rows)])
        for k, rows in enumerate(change.transpose(0, 1).numpy())
    ]
    assert cosine_agreement(change).tolist() == pytest.approx(expected)
    assert cosine_agreement(change)[0] > 0.5 > 0.3 > cosine_agreement(change)[1]
    assert separability(one)[0] == pytest.approx(4.0, abs=1.0)
    along = (other * (one[0] - one[1]).mean(0)).sum(-1)
    u = [stats.mannwhitneyu(along[0, :, k], along[1, :, k]).statistic / 40**2 for k in (0, 1)]
    assert held_out_auc(one, other).tolist() == pytest.approx(u)
    assert held_out_auc(one, other)[0] > 0.98
    assert held_out_auc(one, other)[1] == pytest.approx(0.5, abs=0.2)


def _cosine_distance(a: np.ndarray, b: np.ndarray) -> float:
    return 1 - float(a @ b / np.linalg.norm(a) / np.linalg.norm(b))


def test_the_preflight_of_a_model_has_a_row_per_layer(tiny) -> None:
    found = preflight(tiny, star.load_pairs("politeness"))
    assert found.table.layer.tolist() == [0, 1, 2]
    assert found.table.notna().all().all()
    assert "cosine" in repr(found)


def test_shuffled_labels_swap_half_of_the_pairs_and_nothing_else() -> None:
    pairs = star.load_pairs("politeness").extraction
    shuffled = shuffled_labels(pairs)
    swapped = [a.positive == b.negative for a, b in zip(pairs, shuffled, strict=True)]
    assert sum(swapped) == len(pairs) // 2
    for a, b, other in zip(pairs, shuffled, swapped, strict=True):
        sides = (pairs.clean_prompt(a), pairs.corrupted_prompt(a))
        assert (shuffled.clean_prompt(b), shuffled.corrupted_prompt(b)) == (sides[::-1] if other else sides)


def test_conditions_differ_in_what_they_are_controls_for(tiny) -> None:
    pairs = star.load_pairs("politeness")
    attr = star.attribute(tiny, pairs, progress=False)
    ways = {c.name: c for c in vector_conditions(tiny, pairs, attr)}
    located = ways["located"].vector
    assert torch.equal(ways["negative strength"].vector.vector, -located.vector)
    assert ways["wrong layer"].vector.locus.layer != located.locus.layer
    assert torch.equal(ways["wrong layer"].vector.vector, located.vector)
    assert [v.locus.layer for v in ways["all layers"].vectors] == [0, 1, 2]
    assert ways["random 3"].vector.norm == pytest.approx(located.norm)
    assert len({tuple(ways[f"random {k}"].vector.vector.flatten().tolist()) for k in range(10)}) == 10
    shuffles = [ways[f"shuffled labels {k}"].vector for k in range(4)]
    assert all(v.norm < located.norm for v in shuffles)
    assert torch.equal(shuffles[0].vector, -shuffles[1].vector), "what is left of the trait has both signs"
    assert not torch.equal(shuffles[1].vector, shuffles[3].vector)
    assert len(top_heads(tiny, pairs, 0.25)) == 3
    shot = few_shot(pairs)
    assert pairs.extraction[0].positive in shot
    assert not any(pair.positive in shot for pair in pairs.heldout)
