"""Strengths are found at which very different ways to steer drift alike."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

import star_tl as star
from star_tl.errors import StarError
from star_tl.evaluation.equal_drift import SEED, _next, bring_to_drift
from star_tl.evaluation.samples import sample_conditions
from star_tl.locus import Locus
from star_tl.steering.condition import Condition


@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize("law", [lambda s: 0.02 * s**2, lambda s: 0.3 * (1 - np.exp(-0.1 * s)), lambda s: s**4])
def test_the_search_for_a_drift_finds_it_where_drift_grows_by_another_law(law, sign: int) -> None:
    found, strength = {}, sign * 1.0
    for _ in range(8):
        found[strength] = float(law(abs(strength)))
        strength = _next(found, 0.15)
    assert all(s * sign > 0 for s in found)
    assert min(abs(np.log(d / 0.15)) for d in found.values()) < 0.12


def test_a_located_vector_a_flood_and_a_negative_one_come_to_the_same_drift(demo, tmp_path) -> None:
    pairs, target = star.load_pairs("gratitude"), 0.1
    vector = star.extract_vector(demo, pairs, Locus("blocks.5.hook_resid_post"))
    ways = [Condition("one token", vector), Condition("all", vector, 0.1, "all"), Condition("down", vector, -1.0)]
    sampling, practice = star.Sampling(max_new_tokens=16), pairs.extraction.prompts[:12]
    found = bring_to_drift(demo, pairs.trait, ways, practice, target, sampling, tmp_path, progress=False)
    assert [c.name for c in found] == [c.name for c in ways]
    assert found[1].strength < found[0].strength
    assert found[2].strength < 0
    again = [replace(c, seed=SEED) for c in found]
    drift = sample_conditions(demo, pairs.trait, practice, again, sampling, progress=False).groupby("arm").drift.mean()
    assert np.abs(np.log(drift / target)).max() < 0.35
    before = {p.name: p.read_bytes() for p in tmp_path.iterdir()}
    assert bring_to_drift(demo, pairs.trait, ways, practice, target, sampling, tmp_path, progress=False) == found
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == before


def test_what_adds_nothing_or_has_no_target_is_refused(demo) -> None:
    pairs = star.load_pairs("gratitude")
    with pytest.raises(StarError, match="adds nothing"):
        bring_to_drift(demo, pairs.trait, [Condition()], ["Hello"], 0.1)
    with pytest.raises(StarError, match="above 0"):
        bring_to_drift(demo, pairs.trait, [], ["Hello"], 0.0)
