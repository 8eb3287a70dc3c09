"""What the script makes of replies: differences to priming, prompt by prompt, and rank correlations."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import numpy as np
import pandas as pd
import pytest

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


def test_arms_are_compared_with_priming_prompt_by_prompt(measure_outcome: ModuleType) -> None:
    table = measure_outcome.summary(samples(), ["word judge"]).set_index("arm")
    assert table["word judge − primed"]["chosen"] == "[+0.20, +0.20]", "levels of prompts do not widen the interval"
    assert table["word judge"]["chosen"] - table["word judge"]["primed"] == pytest.approx(0.2)
    assert table.hits["chosen"] == pytest.approx(15 / 40), "shown and coherent"
    assert table.opening["chosen"] == 1


def test_what_has_no_prediction_is_left_out_of_the_rank_correlation(measure_outcome: ModuleType) -> None:
    table = pd.DataFrame({"predicted": [1.0, 2.0, np.nan, 4.0], "reward": [0.1, 0.2, 9.0, 0.4]})
    assert measure_outcome.spearman(table, "predicted") == (pytest.approx(1.0), 3)
