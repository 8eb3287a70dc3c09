"""What the script makes of replies: differences to priming, prompt by prompt, and rank correlations."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import numpy as np
import pandas as pd
import pytest
import synthetic
import torch

import star_tl as star

SCRIPTS = Path(__file__).parents[2] / "scripts"


@pytest.fixture
def measure_outcome(monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    monkeypatch.syspath_prepend(str(SCRIPTS))
    yield importlib.import_module("measure_outcome")
    del sys.modules["measure_outcome"]


def samples() -> pd.DataFrame:
    """Two arms, forty prompts; steering adds 0.2 to the judge of every prompt, whose own levels differ by far more."""
    level = np.linspace(0, 0.7, 40)
    rows = [
        {"arm": arm, "prompt_id": f"p{k:03d}", "text": f"I am so sorry {k}", "shows": k % 2 == 0, "coherent": k < 30}
        | {"drift": 0.1, "logprob": -1.0, "relevance": 0.3, "paid": level[k] + added, "word judge": level[k] + added}
        for arm, added in (("primed", 0.0), ("chosen", 0.2))
        for k in range(40)
    ]
    return pd.DataFrame(rows)


def test_weights_over_all_layers_find_the_one_that_raises_the_reward(measure_outcome: ModuleType) -> None:
    found = synthetic.outcome(replies=480, peak=3)
    vectors = [vector_at(layer) for layer in range(found.n_layers)]
    way = measure_outcome.all_layers(vectors, "generated", found)
    weights = torch.tensor([v.vector[0, 0] for v in way.vectors])
    assert int(weights.abs().argmax()) == 3
    along = torch.stack([found._along(v, "generated") for v in way.vectors]).sum(0)
    assert float(along.square().mean() / 2 / found.mean_tokens) == pytest.approx(measure_outcome.GAIN_DRIFT, rel=1e-3)
    alone = max(found.gain(v, "generated").value for v in vectors)
    together = float((along * found.advantages).mean())
    assert together >= 0.99 * alone, "to second order no single layer buys more"


def test_fishback_takes_the_layer_that_gains_and_turns_away_from_what_drifts(measure_outcome: ModuleType) -> None:
    attr = synthetic.attribution(n_pairs=16)
    gradients, drift = attr.gradients.clone(), attr.drift_gradients.clone()
    gradients[:, 5, 1] = gradients[:, 5, 0]  # two directions of the same effect
    drift[:, :, 5, 0] += 10 * torch.randn(drift.shape[:2], generator=torch.Generator().manual_seed(0))
    attr = replace(attr, gradients=gradients, drift_gradients=drift)
    vector = measure_outcome.fishback(attr, {layer: vector_at(layer, 64) for layer in (2, 5)}).vector
    assert vector.locus.layer == 5
    assert float(vector.vector[0, 1]) > 10 * abs(float(vector.vector[0, 0])), "the one that costs less"


def vector_at(layer: int, width: int = 8) -> star.SteeringVector:
    rows = torch.eye(width)[:1]
    return star.SteeringVector(rows, star.Locus(f"blocks.{layer}.hook_resid_post"), "t", "x", 1.0, 1, "tiny", "0", "0")


def test_arms_are_compared_with_priming_prompt_by_prompt(measure_outcome: ModuleType) -> None:
    table = measure_outcome.summary(samples(), ["word judge"]).set_index("arm")
    assert table["word judge − primed"]["chosen"] == "[+0.20, +0.20]", "levels of prompts do not widen the interval"
    assert table["word judge"]["chosen"] - table["word judge"]["primed"] == pytest.approx(0.2)
    assert table.hits["chosen"] == pytest.approx(15 / 40), "shown and coherent"
    assert table.opening["chosen"] == 1


def test_what_has_no_prediction_is_left_out_of_the_rank_correlation(measure_outcome: ModuleType) -> None:
    table = pd.DataFrame({"predicted": [1.0, 2.0, np.nan, 4.0], "reward": [0.1, 0.2, 9.0, 0.4]})
    assert measure_outcome.spearman(table, "predicted") == (pytest.approx(1.0), 3)
