"""What the measuring scripts compute themselves, on made-up samples."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from types import ModuleType

import pandas as pd
import pytest

import star_tl as star
from star_tl.locus import Locus

SCRIPTS = Path(__file__).parents[2] / "scripts"


@pytest.fixture
def measure_steering(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(SCRIPTS))
    yield importlib.import_module("measure_steering")
    del sys.modules["measure_steering"]


def samples(layer: int, positions: str, shows: int, drift: float = 0.1) -> pd.DataFrame:
    """Ten replies at a place, of which some show the trait; layer -1 is unsteered."""
    arm = "unsteered" if layer < 0 else "steered"
    label = {"arm": arm, "layer": layer, "positions": positions, "strength": 1.0, "drift": drift, "text": "x"}
    return pd.DataFrame([label | {"shows": i < shows, "coherent": True} for i in range(10)])


def test_a_place_ranks_among_those_within_the_drift_limit_and_twins_count_once(measure_steering: ModuleType) -> None:
    fresh = pd.concat(
        [
            samples(-1, "", 2, 0.0),
            samples(0, "last_prompt", 7),
            samples(0, "header", 9),
            samples(0, "all", 10, drift=0.3),
            samples(1, "last_prompt", 8),
            samples(1, "generated", 4),
        ]
    )
    table = measure_steering.ranked(fresh, Locus("blocks.1.hook_resid_post"))
    (chosen,) = table[table.chosen].to_dict(orient="records")
    assert (chosen["layer"], chosen["positions"], chosen["rank"]) == (1, "last_prompt", 2)
    assert (chosen["trait_rate"], chosen["unsteered"], chosen["n"]) == (0.8, 0.2, 10)
    assert table.counts.sum() == 5
    twins = table[~table.counts].set_index("positions")
    assert twins.trait_rate.to_dict() == {"header": 0.8, "all": 0.4}
    assert set(twins.layer) == {1}
    assert table.set_index(["layer", "positions"])["rank"][0, "all"] == 5


def test_a_reply_is_told_from_another_vectors_by_replaying_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """What rounding explains must not be whatever a server may write."""
    monkeypatch.syspath_prepend(str(SCRIPTS))
    bench = importlib.import_module("bench_serve")
    demo, exact = star.load_model("demo"), star.load_model("demo", dtype="float64")
    vectors = bench.vectors_of(demo, tmp_path)
    for body in bench.requests("demo", 3, 12, 5)[1:]:
        text = bench.offline(demo, vectors, body).text
        away = bench.replayed(exact, vectors, body, text)
        assert away is not None
        assert away < bench.NEAR / 2
        others = [{"vector": name, "strength": 2.0} for name in bench.TRAITS if name != body["steering"]["vector"]]
        for change in (*({"steering": other} for other in others), {"seed": body["seed"] + 1}):
            other = bench.offline(demo, vectors, body | change).text
            assert other != text
            assert bench.replayed(exact, vectors, body, other) is None
    del sys.modules["bench_serve"]
