"""Strengths of equal drift, and the commonest opening, on made-up replies."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pandas as pd
import pytest

from star_tl.steering.condition import Condition

SCRIPTS = Path(__file__).parents[2] / "scripts"


@pytest.fixture
def measure_outcome(monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    monkeypatch.syspath_prepend(str(SCRIPTS))
    yield importlib.import_module("measure_outcome")
    del sys.modules["measure_outcome"]


@pytest.mark.parametrize("start", [0.5, 1.0, 6.0])
def test_a_strength_is_corrected_until_it_costs_the_drift_wanted(
    measure_outcome: ModuleType, monkeypatch: pytest.MonkeyPatch, start: float
) -> None:
    def sample_conditions(model: Any, trait: Any, prompts: Any, conditions: Any, sampling: Any, progress: bool) -> Any:
        assert len(prompts) == measure_outcome.CONTEXTS
        return pd.DataFrame({"drift": [0.02 * conditions[0].strength ** 2, 0.04 * conditions[0].strength ** 2]})

    monkeypatch.setattr(measure_outcome, "sample_conditions", sample_conditions)
    pairs = SimpleNamespace(trait=None, extraction=SimpleNamespace(prompts=["x"] * 40))
    found = measure_outcome.at_drift(None, pairs, Condition("a", positions="generated"), 0.12, None, start)
    assert found.strength == pytest.approx(2.0, rel=0.03)
    assert found.positions == "generated"


def test_the_commonest_opening_is_of_three_words(measure_outcome: ModuleType) -> None:
    texts = pd.Series(["I am so sorry.", "i am so glad", "I am not", "No"])
    assert measure_outcome.commonest_opening(texts) == 0.5
