"""Choosing a strength: read off curves written by hand, and off the samples of a model."""

from __future__ import annotations

import pandas as pd
import pytest
from by_hand import unequal_pairs

import star_tl as star
from star_tl.chat import span_positions
from star_tl.errors import StarError
from star_tl.locus import Locus
from star_tl.sampling import Sampling
from star_tl.scores import mark_coherent
from star_tl.strength import best_dose, dose_table

SHORT = Sampling(max_new_tokens=6, temperature=0.8)


def curve(*rows: tuple[float, float, float, float]) -> pd.DataFrame:
    return pd.DataFrame(rows, columns=["strength", "trait_rate", "coherent_rate", "drift"])


@pytest.mark.parametrize(
    ("rows", "expected"),
    [
        ([(0, 0.3, 1, 0), (1, 0.6, 1, 0.05), (2, 0.8, 1, 0.1), (4, 0.9, 0.9, 0.3)], 2),  # 4 drifts too far
        ([(0, 0.3, 1, 0), (1, 0.78, 1, 0.05), (2, 0.8, 1, 0.1)], 1),  # nearly as good, at half the drift
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


def test_the_curve_is_what_single_calls_give(tiny) -> None:
    pairs = unequal_pairs()
    vector = star.extract_vector(tiny, pairs, Locus("blocks.1.hook_resid_post"))
    prompts = [p.context for p in pairs]
    found = star.choose_strength(
        tiny, vector, pairs.trait, prompts, (3.0, 1.0), "generated", limit=9.0, seed=2, sampling=SHORT, progress=False
    )
    assert list(found.curve.strength) == [0, 1, 3]
    assert found.curve.fraction.tolist() == pytest.approx([0, vector.fraction, 3 * vector.fraction])
    frames = []
    for strength in (0.0, 1.0, 3.0):
        hooks = vector.hooks(strength, "generated") if strength else []
        replies = star.generate(tiny, prompts, hooks, max_new_tokens=6, temperature=0.8, seed=2, progress=False)
        frame = star.score(tiny, pairs.trait, prompts, replies, vector, strength, "generated")
        frames.append(frame.assign(strength=strength, arm="steered" if strength else "unsteered"))
    expected = dose_table(mark_coherent(pd.concat(frames, ignore_index=True)))
    pd.testing.assert_frame_equal(found.curve.drop(columns="fraction"), expected, atol=1e-5)
    assert found.strength in (1, 3)
    assert f"{found.strength:g} = " in repr(found)
    assert len(found.plot().data) >= 2


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
        alone = star.score(tiny, pairs.trait, [prompt], [reply], vector, 2.0, at)
        assert steered.drift[i] == pytest.approx(alone.drift[0], abs=1e-5)
        assert steered.drift[i] > 0
    with pytest.raises(StarError, match="Unknown span"):
        span_positions(tiny.tokenizer, prompts[0], "middle")
