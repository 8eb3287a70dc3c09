"""Choosing a strength: read off curves written by hand, and off the samples of a model."""

from __future__ import annotations

from dataclasses import replace

import pandas as pd
import pytest
from by_hand import unequal_pairs

import star_tl as star
from star_tl.data.chat import span_positions
from star_tl.errors import StarError
from star_tl.evaluation import strength
from star_tl.evaluation.scores import mark_coherent
from star_tl.evaluation.strength import best_dose, dose_table
from star_tl.generation.settings import Sampling
from star_tl.locus import Locus
from star_tl.steering.condition import Condition

SHORT = Sampling(max_new_tokens=6, temperature=0.8)


def curve(*rows: tuple[float, float, float, float]) -> pd.DataFrame:
    return pd.DataFrame(rows, columns=["strength", "trait_rate", "coherent_rate", "drift"])


@pytest.mark.parametrize(
    ("rows", "expected"),
    [
        ([(0, 0.3, 1, 0), (1, 0.6, 1, 0.05), (2, 0.8, 1, 0.1), (4, 0.9, 0.9, 0.3)], 2),  # 4 drifts too far
        ([(0, 0.3, 1, 0), (1, 0.78, 1, 0.05), (2, 0.8, 1, 0.1)], 1),  # nearly as good, at half the drift
        ([(0, 0.3, 1, 0), (1, 0.77, 1, 0.05), (2, 0.8, 1, 0.1)], 2),  # not quite
        ([(0, 0.3, 1, 0), (1, 0.9, 1, 0.05), (2, 0.5, 0.5, 0.1)], 1),  # an inverted U
        ([(0, 0.3, 1, 0), (1, 0.9, 1, 0.5), (2, 0.9, 1, 0.9)], 1),  # none within the limit
        (
            [(0, 0.3, 1, 0), (-1, 0.2, 1, 0.05), (-2, 0.05, 1, 0.1), (-4, 0.0, 0.4, 0.15)],
            -2,
        ),  # down
    ],
)
def test_the_least_strength_that_is_nearly_the_best_within_the_limit(rows, expected: float) -> None:
    assert best_dose(curve(*rows), limit=0.2) == expected
    assert best_dose(curve(*rows[::-1]), limit=0.2) == expected


@pytest.mark.parametrize(
    ("rates", "drifts", "twice"),
    [
        ([0.3, 0.5, 0.8, 0.9, 1.0], [0, 0.05, 0.1, 0.15, 0.3], [1.0, 2.0]),  # 4 drifts too far
        ([0.3, 0.8, 0.85, 0.75, 0.9], [0, 0.05, 0.1, 0.15, 0.18], [0.5, 1.0, 4.0]),
        ([0.3, 0.4, 0.5, 0.9, 0.7], [0, 0.05, 0.1, 0.15, 0.18], []),  # a clear winner
    ],
)
def test_only_near_rivals_within_the_limit_write_twice(tiny, monkeypatch, rates, drifts, twice) -> None:
    grid, asked = (0.0, 0.5, 1.0, 2.0, 4.0), []

    def write(model, trait, prompts, ways, sampling, out, progress):
        asked.append([(way.dose, way.seed) for way in ways])
        cells = [(way, i) for way in ways for i in range(20)]
        return pd.DataFrame(
            {
                "strength": [way.dose for way, _ in cells],
                "arm": ["steered" if way.vector else "unsteered" for way, _ in cells],
                "shows": [i < 20 * rates[grid.index(way.dose)] for way, i in cells],
                "drift": [drifts[grid.index(way.dose)] for way, _ in cells],
                "logprob": -1.0,
                "repetition": 0.0,
            }
        )

    monkeypatch.setattr(strength, "sample_conditions", write)
    pairs = unequal_pairs()
    vector = star.extract_vector(tiny, pairs, Locus("blocks.1.hook_resid_post"))
    found = star.choose_strength(tiny, vector, pairs.trait, ["hello"], grid[1:], seed=7)
    assert asked == [[(x, 7) for x in grid], *([[(x, 8) for x in twice]] if twice else [])]
    assert found.curve.n.tolist() == [40 if x in twice else 20 for x in grid]


def test_the_curve_is_what_single_calls_give(tiny) -> None:
    seed = 6
    pairs = unequal_pairs()
    trait = replace(pairs.trait, markers=(r"\w*e\w*",))
    vector = star.extract_vector(tiny, pairs, Locus("blocks.1.hook_resid_post"))
    prompts = [p.context for p in pairs]
    grid = (3.0, 1.0, 0.25, 0.5)
    found = star.choose_strength(
        tiny, vector, trait, prompts, grid, "generated", limit=9.0, seed=seed, sampling=SHORT, progress=False
    )

    def write(dose: float, seed: int) -> pd.DataFrame:
        hooks = vector.hooks(dose, "generated") if dose else []
        replies = star.generate(tiny, prompts, hooks, max_new_tokens=6, temperature=0.8, seed=seed, progress=False)
        frame = star.score(tiny, trait, prompts, replies, Condition("steered", vector, dose, "generated"))
        return frame.assign(strength=dose, arm="steered" if dose else "unsteered")

    frames = [write(dose, seed) for dose in (0.0, *sorted(grid))]
    once = dose_table(mark_coherent(pd.concat(frames, ignore_index=True))).set_index("strength").trait_rate[1:]
    near = list(once.index[once >= 0.85 * once.max()])
    frames += [write(dose, seed + 1) for dose in near if len(near) > 1]
    expected = dose_table(mark_coherent(pd.concat(frames, ignore_index=True)))
    assert list(found.curve.strength) == [0, *sorted(grid)]
    assert found.curve.fraction.tolist() == pytest.approx([x * vector.fraction for x in (0, *sorted(grid))])
    pd.testing.assert_frame_equal(found.curve.drop(columns="fraction"), expected, atol=1e-5)
    assert found.strength == best_dose(expected, limit=9.0)
    assert f"{found.strength:g} = " in repr(found)
    assert len(found.plot().data) >= 2


def test_negative_strengths_turn_the_trait_down(tiny) -> None:
    pairs = unequal_pairs()
    trait = replace(pairs.trait, markers=(r"\w*e\w*",))
    vector = star.extract_vector(tiny, pairs, Locus("blocks.1.hook_resid_post"))
    prompts = [p.context for p in pairs]
    found = star.choose_strength(tiny, vector, trait, prompts, (-1.0, -3.0), limit=9.0, sampling=SHORT, progress=False)
    absent = (found.curve.coherent_rate - found.curve.trait_rate)[found.curve.strength < 0]
    assert set(found.curve.strength) == {-3, -1, 0}
    assert absent[found.curve.strength == found.strength].item() >= 0.97 * absent.max()


def test_what_cannot_be_chosen_from_is_refused(tiny) -> None:
    pairs = unequal_pairs()
    vector = star.extract_vector(tiny, pairs, Locus("blocks.1.hook_resid_post"))
    for strengths in ((), (1.0, -1.0), (0.0, 1.0), (1.0, float("nan"))):
        with pytest.raises(StarError, match="strength"):
            star.choose_strength(tiny, vector, pairs.trait, ["hello"], strengths)
    with pytest.raises(StarError, match="no prompts"):
        star.choose_strength(tiny, vector, pairs.trait, [])
    with pytest.raises(StarError, match="limit"):
        star.choose_strength(tiny, vector, pairs.trait, ["hello"], limit=-1)


@pytest.mark.parametrize("name", ["user turn", "header"])
def test_spans_of_the_chat_are_places_to_inject_at(tiny, name: str) -> None:
    pairs = unequal_pairs()
    place = Locus("blocks.1.hook_resid_post")
    prompts = [p.context for p in pairs]
    found = star.compare(
        tiny, pairs, prompts, [place], (2.0,), (name,), max_new_tokens=5, temperature=0.0, progress=False
    ).to_frame()
    vector = star.extract_vector(tiny, pairs, place)
    steered = found[found.arm == "steered"].reset_index()
    for i, prompt in enumerate(prompts):
        at = span_positions(tiny.tokenizer, prompt, name)
        assert at[-1] < 0
        assert (at[-1] == -1) == (name == "header")
        hooks = vector.hooks(2.0, at)
        (reply,) = star.generate(tiny, [prompt], hooks, max_new_tokens=5, temperature=0, progress=False)
        assert steered.text[i] == reply.text
        alone = star.score(tiny, pairs.trait, [prompt], [reply], Condition("steered", vector, 2.0, at))
        assert steered.drift[i] == pytest.approx(alone.drift[0], abs=1e-5)
        assert steered.drift[i] > 0
    with pytest.raises(StarError, match="Unknown span"):
        span_positions(tiny.tokenizer, prompts[0], "middle")
