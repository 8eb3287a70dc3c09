"""Choosing an intervention: measures, strengths at equal drift, and the choice by real replies."""

from __future__ import annotations

import dataclasses
import math
import warnings
from pathlib import Path

import pandas as pd
import pytest

import star_tl as star
from star_tl.evaluation import measures
from star_tl.evaluation.drift import at_drift
from star_tl.evaluation.intervention import GENERATED, LARGEST, choose_intervention, first_strength, propose, shortlist
from star_tl.evaluation.samples import sample_conditions
from star_tl.generation.settings import Sampling
from star_tl.models.lens import HookedTransformer
from star_tl.steering.condition import Condition

WHOLE = star.load_pairs("gratitude")
PAIRS = dataclasses.replace(WHOLE, pairs=WHOLE.extraction.pairs[:20])
SAMPLING = Sampling(max_new_tokens=16)


def sighs(prompts: object, text: str) -> float:
    return float(text.count("a"))


@pytest.fixture(scope="module")
def maps(demo: HookedTransformer) -> tuple[star.AttributionMap, star.OutcomeMap]:
    attr = star.attribute(demo, PAIRS, progress=False)
    reward = measures.markers(PAIRS.trait)
    outcome = star.attribute_outcome(
        demo, PAIRS.extraction.prompts, reward, 160, SAMPLING, least=160, hook_points=["resid_post"], progress=False
    )
    return attr, outcome


# --- drift -------------------------------------------------------------------------------------


@pytest.mark.parametrize("start", [0.05, 8.0], ids=["from far below", "from far above"])
def test_strengths_cost_what_was_asked_for(
    demo: HookedTransformer, maps: tuple[star.AttributionMap, star.OutcomeMap], start: float
) -> None:
    vector = star.extract_vector(demo, PAIRS, maps[0].top_locus())
    ways = [Condition("place", vector, -start), Condition("generated", vector, start, GENERATED)]
    prompts = PAIRS.extraction.prompts[:20]
    ready = at_drift(demo, PAIRS.trait, ways, 0.06, prompts, SAMPLING, points=5, progress=False)
    assert [math.copysign(1, w.strength) for w in ready] == [-1, 1]
    fresh = [dataclasses.replace(w, seed=77) for w in ready]
    samples = sample_conditions(demo, PAIRS.trait, prompts, fresh, SAMPLING, progress=False)
    for _, part in samples.groupby("arm"):
        assert 0.03 < part.drift.mean() < 0.12


def test_at_drift_refuses_what_has_no_strength(demo: HookedTransformer) -> None:
    with pytest.raises(star.StarError, match="no vector"):
        at_drift(demo, PAIRS.trait, [Condition()], 0.1, ["Hi."], progress=False)
    with pytest.raises(star.StarError, match="above 0"):
        at_drift(demo, PAIRS.trait, [], 0.0, ["Hi."], progress=False)


# --- candidates and choice ---------------------------------------------------------------------


def test_candidates_gain_what_the_map_says_and_fit_into_the_residual_stream(
    demo: HookedTransformer, maps: tuple[star.AttributionMap, star.OutcomeMap]
) -> None:
    attr, outcome = maps
    found = propose(demo, PAIRS, attr, outcome)
    assert {c.source for c in found} == {"located", "reply mean", "outcome", "natural outcome"}
    for c in found:
        if c.gain and "outcome" not in c.source:  # the outcome's own directions are cross-fitted
            assert c.gain == outcome.gain(c.vector, c.condition.positions)
        if "outcome" in c.source:
            assert c.vector.fraction <= LARGEST
    chosen = shortlist(found, 6, outcome, attr.top_locus())
    assert len(chosen) == 6
    assert (chosen[0].source, chosen[0].vector.locus, chosen[0].condition.positions) == (
        "located",
        attr.top_locus(),
        None,
    )
    assert chosen[1].source == "reply mean"
    assert chosen[1].vector.locus.layer == 4
    assert chosen[1].where == GENERATED
    free = [c.gain.value for c in chosen[2:] if c.gain]
    assert free == sorted(free, reverse=True)


def test_the_first_strength_is_what_the_map_says_costs_the_drift(
    demo: HookedTransformer, maps: tuple[star.AttributionMap, star.OutcomeMap]
) -> None:
    attr, outcome = maps
    one = next(c for c in propose(demo, PAIRS, attr, outcome, layers=[5]) if c.gain)
    strength = first_strength(one, outcome, 0.1)
    scaled = dataclasses.replace(one.vector, vector=one.vector.scaled(strength))
    assert outcome.drift(scaled, one.condition.positions).value == pytest.approx(0.1, rel=1e-4)


def test_the_choice_does_more_than_nothing_and_resumes_to_the_same(
    demo: HookedTransformer, maps: tuple[star.AttributionMap, star.OutcomeMap], tmp_path: Path
) -> None:
    attr, outcome = maps

    def choose(out: Path) -> star.InterventionChoice:
        return choose_intervention(
            demo, PAIRS, measures.markers(PAIRS.trait), 0.08, attribution=attr, outcome=outcome,
            finalists=4, sampling=SAMPLING, out=out, progress=False,
        )  # fmt: skip

    choice = choose(tmp_path)
    best = choice.table.iloc[0]
    assert best.reward > choice.unsteered.reward + 0.2
    assert best.drift < 0.16
    assert list(choice.table["rounds"]) == sorted(choice.table["rounds"], reverse=True)
    # a reply and then another to each of twenty contexts
    assert set(choice.table.n[:2]) == {40}
    assert set(choice.table.n[2:]) == {20}
    assert choice.unseen["word judge"]["low"] > 0
    assert choice.confirmed
    drawn = choice.plot()
    assert sorted(x for trace in drawn.data for x in trace.y) == sorted(choice.table.reward)
    assert {trace.name for trace in drawn.data} == set(choice.table.source)
    kept = sorted(tmp_path.glob("*.jsonl"))
    assert len(kept) == 4
    kept[-1].unlink()
    pd.testing.assert_frame_equal(choose(tmp_path).table, choice.table)


def test_a_map_of_another_reward_is_not_taken_over(
    demo: HookedTransformer, maps: tuple[star.AttributionMap, star.OutcomeMap], tmp_path: Path
) -> None:
    attr, outcome = maps
    outcome.save(tmp_path / "outcome.safetensors")
    with pytest.raises(star.StarError, match="another call"):
        choose_intervention(
            demo, PAIRS, sighs, attribution=attr, n=160, sampling=SAMPLING, out=tmp_path, progress=False
        )


def test_a_gain_that_only_the_reward_saw_is_called_that(
    maps: tuple[star.AttributionMap, star.OutcomeMap], demo: HookedTransformer
) -> None:
    attr, outcome = maps
    outcome = dataclasses.replace(outcome, reward="sighs")
    choice = choose_intervention(
        demo, PAIRS, sighs, 0.02, attribution=attr, outcome=outcome, finalists=3, sampling=SAMPLING, progress=False
    )
    nothing = {name: row | {"low": -1.0} for name, row in choice.unseen.items()}
    assert "gained only by the reward" in dataclasses.replace(choice, unseen=nothing).describe()
    assert dataclasses.replace(choice, unseen={}).confirmed is None


@pytest.mark.parametrize("layer", [2, 6])
def test_attributions_own_place_is_a_finalist_also_at_the_last_token_alone(
    demo: HookedTransformer, maps: tuple[star.AttributionMap, star.OutcomeMap], layer: int
) -> None:
    attr, outcome = maps
    own = star.Locus(f"blocks.{layer}.hook_resid_post", (-1,))
    chosen = shortlist(propose(demo, PAIRS, attr, outcome), 6, outcome, own)
    assert chosen[0].vector.locus == own


def test_where_nothing_raises_the_reward_the_markers_decide(
    demo: HookedTransformer, maps: tuple[star.AttributionMap, star.OutcomeMap]
) -> None:
    attr, outcome = maps

    outcome = dataclasses.replace(outcome, reward="deaf")
    choice = choose_intervention(
        demo, PAIRS, lambda prompts, text: len(text) % 7 / 7, 0.08, attribution=attr, outcome=outcome, finalists=4,
        sampling=SAMPLING, progress=False,
    )  # fmt: skip
    assert choice.decided_by == "markers"
    within = choice.table[choice.table.drift <= 0.12]
    assert within.markers.iloc[0] == within.markers.max() > choice.unsteered.markers + 0.3
    assert "markers" not in choice.unseen
    assert (
        f"nothing within the drift raised the reward: chosen by markers {choice.unsteered.markers:.2f} →"
        in choice.describe()
    )


def test_markers_that_all_tie_leave_the_choice_to_the_reward(
    demo: HookedTransformer, maps: tuple[star.AttributionMap, star.OutcomeMap]
) -> None:
    """No finalist is above nothing by the reward, and none shows a marker: then the least bad is the best."""
    attr, outcome = maps
    outcome, unmarked = dataclasses.replace(outcome, reward="deaf"), PAIRS
    trait = dataclasses.replace(PAIRS.trait, markers=("nobodysaysthis",))
    unmarked = dataclasses.replace(PAIRS, trait=trait)
    choice = choose_intervention(
        demo, unmarked, lambda prompts, text: len(text) % 7 / 7, 0.08, attribution=attr, outcome=outcome, finalists=6,
        sampling=SAMPLING, progress=False,
    )  # fmt: skip
    assert (choice.decided_by, choice.table.markers.max()) == ("deaf", 0)
    for _, left in choice.table[choice.table.drift <= 0.12].groupby("rounds"):
        assert left.reward.is_monotonic_decreasing, "best first, also of those that left together"


def test_a_trait_without_a_judge_is_chosen_for_by_its_markers_alone(
    demo: HookedTransformer, maps: tuple[star.AttributionMap, star.OutcomeMap]
) -> None:
    """Markers are its reward then, and no other measure: where they do not rise there is nothing else to decide."""
    attr, outcome = maps
    own = dataclasses.replace(PAIRS, trait=dataclasses.replace(PAIRS.trait, name="hope", markers=("nobodysaysthis",)))
    outcome = dataclasses.replace(outcome, reward="markers")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        choice = choose_intervention(
            demo, own, None, 0.08, attribution=attr, outcome=outcome, finalists=3, sampling=SAMPLING, progress=False
        )
    assert (choice.decided_by, choice.unseen) == ("markers", {})
    assert "reward (markers) 0.00 → 0.00" in choice.describe()
    assert not choice.earned
    assert "no reply earned any reward" in choice.describe()
    assert math.isnan(choice.spearman), "there is no rank among rewards that are all 0"


def test_the_choice_refuses_too_few_finalists(demo: HookedTransformer) -> None:
    with pytest.raises(star.StarError, match="at least 3"):
        choose_intervention(demo, PAIRS, finalists=2)
