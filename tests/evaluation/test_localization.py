"""A ranking that knows the effects comes out first, one that knows nothing does not; a model is walked through."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

import star_tl as star
from star_tl.evaluation.localization import compare_rankings, localize


def samples(effects: list[float], prompts: int = 200) -> pd.DataFrame:
    rng, rows = np.random.default_rng(0), []
    for arm, rate in {"unsteered": 0.1, **{str(i): 0.1 + e for i, e in enumerate(effects)}}.items():
        rows += [(arm, f"p{i:03d}", float(rng.random() < rate), 0.1) for i in range(prompts)]
    return pd.DataFrame(rows, columns=["arm", "prompt_id", "markers", "drift"])


def test_a_ranking_that_knows_the_effects_is_told_from_one_that_does_not() -> None:
    effects = [0.0, 0.1, 0.7, 0.4, 0.2, 0.55]
    scores = pd.DataFrame({"layer": range(6), "knows": effects, "wrong": [-e for e in effects], "flat": [1.0] * 6})
    found = compare_rankings("joy", "markers", scores, samples(effects))
    rows = found.rankings.set_index("ranking")
    assert rows.loc["knows", "spearman"] > 0.9
    assert rows.loc["knows", "low"] > 0.7
    assert rows.loc["wrong", "spearman"] < -0.9
    assert np.isnan(rows.loc["flat", "spearman"])
    assert (rows.loc["knows", "layer"], rows.loc["wrong", "layer"]) == (2, 0)
    assert rows.loc["knows", "regret"] == 0
    assert rows.loc["wrong", "regret"] == pytest.approx(0.7, abs=0.1)
    inside = (found.layers.low <= effects) & (effects <= found.layers.high)
    assert inside.sum() >= 5


def test_every_layer_of_a_model_is_steered_and_ranked(tiny) -> None:
    pairs = star.load_pairs("politeness")
    sampling = star.Sampling(max_new_tokens=4)
    found = localize(tiny, pairs, pairs.heldout.prompts[:3], 0.05, ("atp",), (0,), sampling, progress=False)
    assert set(found) == {"markers", "ngrams"}
    table = found["ngrams"]
    assert table.layers.layer.tolist() == [0, 1, 2]
    assert {"gain by atp", "probe's AUC", "agreement", "largest norm", "middle layer"} <= set(table.rankings.ranking)
    assert table.rankings.set_index("ranking").layer["middle layer"] == 1
    done = table.layers.effect
    assert done.max() > done.min(), "or no ranking could be wrong"
    for row in table.rankings.itertuples():
        score = table.layers[row.ranking]
        assert row.layer in set(table.layers.layer[score == score.max()]), row.ranking
        assert row.regret == pytest.approx(max(done[i] - done[row.layer] for i in range(3))), row.ranking
