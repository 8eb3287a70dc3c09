"""The effects of made-up replies: planted differences are found, and what is paired is paired by prompt."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from star_tl.evaluation.effects import effects, pool_random


def replies(rates: dict[str, float], prompts: int = 60, seeds: int = 2) -> pd.DataFrame:
    rng, rows = np.random.default_rng(0), []
    ease = rng.random(prompts) * 0.4
    for arm, rate in rates.items():
        for prompt in range(prompts):
            for seed in range(seeds):
                hit = float(rng.random() < np.clip(rate + ease[prompt] - 0.2, 0, 1))
                rows.append((arm, f"p{prompt:03d}", seed, hit, 2.0 + rng.random(), 0.1, True, 1.0))
    columns = ["arm", "prompt_id", "seed", "markers", "perplexity", "drift", "coherent", "strength"]
    return pd.DataFrame(rows, columns=columns)


def test_a_planted_effect_is_found_and_none_where_none_is() -> None:
    table = effects(replies({"unsteered": 0.3, "located": 0.7, "random": 0.3}), ["markers", "perplexity"])
    rows = table[table.measure == "markers"].set_index("condition")
    assert rows.loc["located", "low"] < 0.4 < rows.loc["located", "high"]
    assert rows.loc["located", "p_holm"] < 0.01 < rows.loc["random", "p_holm"]
    assert rows.loc["random", "low"] < 0 < rows.loc["random", "high"]
    assert rows.loc["located", "detectable"] < 0.2
    assert rows.loc["unsteered", ["difference", "p", "d"]].isna().all()
    same = table[(table.measure == "perplexity") & (table.condition == "located")].iloc[0]
    assert same.p_same < 0.001, "perplexities from one distribution are the same within a fifth"
    assert same.margin == pytest.approx(0.2 * 2.5, abs=0.03)


def test_the_share_made_worse_and_the_difference_are_those_of_the_prompts() -> None:
    rows = [
        (arm, f"p{i:03d}", 0, value, 0.1, True, 1.0)
        for arm, values in {"unsteered": (0, 0, 1, 1), "located": (1, 1, 1, 0)}.items()
        for i, value in enumerate(values)
    ]
    columns = ["arm", "prompt_id", "seed", "markers", "drift", "coherent", "strength"]
    frame = pd.DataFrame(rows, columns=columns).sample(frac=1, random_state=1)
    found = effects(frame, ["markers"]).set_index("condition").loc["located"]
    assert (found.difference, found.worse, found.n) == (0.25, 0.25, 4)
    assert found.p_mcnemar == pytest.approx(1.0), "two up and one down"


def test_rounding_is_no_change() -> None:
    """The same grades as means of one and of three, and of other batches: nothing fell, whatever the last digit."""
    rows = [(f"p{i:03d}", "unsteered", 0.7 if i % 2 else 0.1) for i in range(20)]
    rows += [(p, "same", v * (1 + 1e-7 * k)) for k in range(3) for p, _, v in rows]
    rows += [(p, "raised", v + 0.2 * (1 + 1e-8 * int(p[1:]))) for p, arm, v in rows if arm == "unsteered"]
    columns = ["prompt_id", "arm", "llm"]
    found = effects(pd.DataFrame(rows, columns=columns).assign(drift=0.1, coherent=True, strength=1.0), ["llm"])
    same, raised = (found.set_index("condition").loc[name] for name in ("same", "raised"))
    assert (same.difference, same.worse, same.p) == (0, 0, 1)
    assert np.isnan(same.d)
    assert raised.difference == pytest.approx(0.2)
    assert np.isnan(raised.d), "all changed by as much: there is no spread to measure by"
    assert raised.low == pytest.approx(raised.high)


def test_a_row_says_on_how_many_prompts_it_rests_and_pairs_them() -> None:
    """Of unsteered replies three are known, of the other arm's four, two in common."""
    known = {"unsteered": {0: 0.0, 1: 1.0, 2: 1.0}, "located": {1: 0.0, 2: 1.0, 3: 1.0, 4: 1.0}}
    rows = [(arm, f"p{i:03d}", known[arm].get(i, np.nan)) for arm in known for i in range(5)]
    frame = pd.DataFrame(rows, columns=["arm", "prompt_id", "markers"]).assign(drift=0.1, coherent=True, strength=1.0)
    for table in (frame, frame.dropna()):
        found = effects(table, ["markers"]).set_index("condition").loc["located"]
        assert (found.n, found.difference, found.worse) == (2, -0.5, 0.5)
        assert found.p_mcnemar == pytest.approx(1.0), "one down, none up"


def test_random_vectors_are_one_condition_and_shuffles_another() -> None:
    pooled = pool_random(
        replies({"unsteered": 0.3, "random 0": 0.2, "random 11": 0.4, "shuffled labels 1": 0.1}, 10, 1)
    )
    assert set(pooled.arm) == {"unsteered", "random", "shuffled labels"}
    assert effects(pooled, ["markers"]).set_index("condition").n["random"] == 10
