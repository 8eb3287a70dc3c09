"""LLaMA 3.1-8B's true width, two of its layers: loaded, attributed and sampled in little more than its weights."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType

import psutil
import pytest

SCRIPTS = Path(__file__).parents[2] / "scripts"


@pytest.fixture(scope="module")
def script() -> ModuleType:
    sys.path.insert(0, str(SCRIPTS))
    try:
        spec = importlib.util.spec_from_file_location("bench_8b", SCRIPTS / "bench_8b.py")
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
    finally:
        sys.path.remove(str(SCRIPTS))
    return module


@pytest.mark.skipif(psutil.virtual_memory().available < 6e9, reason="needs 6 GB of memory")
def test_two_layers_of_the_true_width_fit_in_little_more_than_their_weights(script: ModuleType, tmp_path: Path) -> None:
    (row,) = script.bench(tmp_path, 2, "bfloat16", "cpu", 2, ("star_tl",))
    config = json.loads((tmp_path / "config.json").read_text())
    assert (config["hidden_size"], config["vocab_size"], config["max_position_embeddings"]) == (4096, 128256, 131072)
    assert row["weights_mb"] == pytest.approx(2974, abs=1)
    assert row["load_peak_mb"] - row["code_mb"] <= 1.15 * row["weights_mb"]
    assert row["peak_mb"] - row["code_mb"] <= 1.15 * row["weights_mb"]
    assert row["attribution_s"] > 0
    assert row["tokens_per_second"] > 0


def test_an_arm_for_which_memory_is_too_small_is_not_run(
    script: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    size = script.llama_size({**script.SHAPE, "num_hidden_layers": 2})
    (tmp_path / "config.json").write_text(json.dumps({**script.SHAPE, "num_hidden_layers": 2}))
    monkeypatch.setattr(script.subprocess, "run", lambda command, check: command)  # writes nothing
    monkeypatch.setattr(script, "free_memory", lambda device: 2 * size.parameters)
    (row,) = script.bench(tmp_path, 2, "bfloat16", "cpu", 1, ("transformer_lens",))
    assert "does not fit: needs 12.6 GB, 3.0 GB are free" in row["note"]
    assert "attribution_s" not in row
