"""Planted effects are recovered: intervals cover, nulls are seldom refused, equivalence is claimed at its level."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats as scipy_stats
from statsmodels.stats.multitest import multipletests
from statsmodels.stats.proportion import proportion_confint

from star_tl import stats

SETS = 1000
FAMILIES = 400  # of six comparisons each
LEVEL_OF_CHANCE = 3.29  # standard errors of a share over the sets: one good build in a thousand would fail


def changes(rng: np.random.Generator, prompts: int, seeds: int, effect: float) -> np.ndarray:
    """Changes of prompts' rates: each prompt has a rate and an effect of its own, each reply is drawn."""
    base = rng.beta(2, 3, prompts) * 0.7
    steered = np.clip(base + effect + rng.normal(0, 0.1, prompts), 0, 1)
    return rng.binomial(seeds, steered) / seeds - rng.binomial(seeds, base) / seeds


def true_effect(effect: float) -> float:
    rng = np.random.default_rng(99)
    base = rng.beta(2, 3, 2_000_000) * 0.7
    return float((np.clip(base + effect + rng.normal(0, 0.1, len(base)), 0, 1) - base).mean())


@pytest.mark.parametrize(("prompts", "seeds", "effect"), [(24, 2, 0.2), (64, 1, 0.05), (100, 4, 0.2)])
def test_the_interval_of_a_planted_effect_covers_it(prompts: int, seeds: int, effect: float) -> None:
    rng, truth = np.random.default_rng(1), true_effect(effect)
    covered, estimates = [], []
    for number in range(SETS):
        change = changes(rng, prompts, seeds, effect)
        found = stats.compare_paired(change, 1, 0) if number < 1 else None
        assert found is None or found["difference"] == pytest.approx(100 * change.mean())
        low, high = stats.bootstrap_interval(change, 1000, number)
        covered.append(low <= truth <= high)
        estimates.append(change.mean())
    assert 0.93 <= np.mean(covered) <= 0.97
    assert np.mean(estimates) == pytest.approx(truth, abs=0.01)


def test_of_a_family_of_arms_that_do_nothing_few_sets_call_any_different() -> None:
    rng, wrong = np.random.default_rng(2), 0
    for number in range(FAMILIES):
        base = rng.beta(2, 3, 24) * 0.7
        unsteered = rng.binomial(2, base) / 2
        p_values = []
        for arm in range(6):  # all compared with the same unsteered replies
            change = rng.binomial(2, base) / 2 - unsteered
            p_values.append(stats.compare_paired(change, 400, number * 10 + arm)["p_value"])
        wrong += bool((stats.holm(np.array(p_values)) < 0.05).any())
    assert wrong / FAMILIES <= 0.05


def test_a_planted_effect_is_seen_as_often_as_the_detectable_change_says() -> None:
    rng, n, seen = np.random.default_rng(3), 40, 0
    sizes = [stats.detectable_change(rng.normal(0, 0.3, n)) for _ in range(200)]
    effect = float(np.mean(sizes))
    for _ in range(SETS):
        seen += scipy_stats.ttest_1samp(rng.normal(effect, 0.3, n), 0).pvalue < 0.05
    assert seen / SETS == pytest.approx(0.8, abs=0.045)


def test_equivalence_is_claimed_at_its_level_at_the_margin_and_often_inside_it() -> None:
    rng, margin, n = np.random.default_rng(4), 0.1, 60
    at_margin = np.mean([stats.equivalence_p(rng.normal(margin, 0.2, n), margin) < 0.05 for _ in range(SETS)])
    inside = np.mean([stats.equivalence_p(rng.normal(0, 0.2, n), margin) < 0.05 for _ in range(SETS)])
    assert at_margin == pytest.approx(0.05, abs=LEVEL_OF_CHANCE * (0.05 * 0.95 / SETS) ** 0.5)
    assert inside > 0.9


def test_holms_correction_is_that_of_statsmodels() -> None:
    p_values = np.random.default_rng(7).random(20) ** 3
    assert stats.holm(p_values) == pytest.approx(multipletests(p_values, method="holm")[1])
    assert len(stats.holm(np.zeros(0))) == 0


def test_mcnemar_is_the_binomial_test_of_those_that_changed() -> None:
    before = np.array([True] * 4 + [False] * 14 + [True, False] * 5)
    after = np.array([False] * 4 + [True] * 14 + [True, False] * 5)
    assert stats.mcnemar_p(before, after) == pytest.approx(scipy_stats.binomtest(4, 18).pvalue)
    assert stats.mcnemar_p(before, before) == 1.0


def test_kappa_is_agreement_beyond_that_of_independent_answers_and_nothing_where_none_differs() -> None:
    rng = np.random.default_rng(5)
    one = rng.random(80) < 0.4
    other = np.where(rng.random(80) < 0.7, one, ~one)
    agreed = (one == other).mean()
    by_chance = one.mean() * other.mean() + (1 - one.mean()) * (1 - other.mean())
    assert stats.kappa(one, other) == pytest.approx((agreed - by_chance) / (1 - by_chance))
    assert np.isnan(stats.kappa(np.ones(5, dtype=bool), np.ones(5, dtype=bool)))
    assert stats.kappa(one, ~one) < 0


def test_what_cannot_be_told_is_missing() -> None:
    one = np.array([0.5])
    for found in (*stats.bootstrap_interval(one), stats.paired_d(one), stats.equivalence_p(one, 0.1)):
        assert np.isnan(found)
    assert np.isnan(stats.detectable_change(one))
    assert list(stats.holm(np.array([0.01, np.nan, 0.04]))) == pytest.approx([0.02, np.nan, 0.04], nan_ok=True)
    assert stats.equivalence_p(np.zeros(5), 0.1) == 0
    assert stats.bootstrap_interval(np.ones(5)) == (1, 1)


def test_the_effect_in_standard_deviations_is_that_of_the_paired_test() -> None:
    change = np.random.default_rng(6).normal(0.2, 0.5, 30)
    t = scipy_stats.ttest_1samp(change, 0).statistic
    assert stats.paired_d(change) == pytest.approx(t / 30**0.5)


def test_an_interval_of_a_rate_lies_near_wilsons() -> None:
    values = np.array([1.0] * 30 + [0.0] * 70)
    low, high = stats.bootstrap_interval(values, 20_000)
    assert (low, high) == pytest.approx(proportion_confint(30, 100, method="wilson"), abs=0.02)
