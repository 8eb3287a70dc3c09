"""The command line as people use it: the whole road, and one clear line for every kind of bad input."""

from __future__ import annotations

import errno
import json
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
from safetensors import safe_open
from typer.testing import CliRunner

import star_tl as star
from star_tl.cli import app
from star_tl.pipeline import ARMS, FILES

runner = CliRunner()


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A run on a few prompts of our own: its folder and what it printed."""
    folder = tmp_path_factory.mktemp("run")
    prompts = folder / "prompts.txt"
    prompts.write_text("I lost my job today and I am scared.\nMy exam went badly.\nI cannot sleep at night.\n")
    out = folder / "out"
    result = runner.invoke(app, ["run", "--prompts", str(prompts), "--out", str(out), "--seeds", "1"])
    assert result.exit_code == 0, result.output
    return out, result.output


def test_run_leaves_all_its_files(finished: tuple[Path, str]) -> None:
    out, _ = finished
    assert sorted(p.name for p in out.iterdir()) == sorted([*FILES, "run.json", "replies"])


def test_run_prints_layer_table_and_replies(finished: tuple[Path, str]) -> None:
    _, printed = finished
    assert "layer" in printed
    for arm in ARMS:
        assert arm in printed
    assert "Side by side" in printed
    assert "I lost my job today" in printed


def test_samples_hold_every_arm_prompt_and_score(finished: tuple[Path, str]) -> None:
    out, _ = finished
    rows = pd.DataFrame(json.loads(line) for line in (out / "samples.jsonl").read_text().splitlines())
    arms = rows[rows.part == "arms"]
    assert set(arms.arm) == set(ARMS)
    assert len(arms) == 3 * len(ARMS)
    assert arms[arms.arm == "unsteered"].drift.eq(0).all()
    assert arms[arms.arm == "steered"].drift.gt(0).all()
    scores = pd.read_csv(out / "scores.csv").set_index("arm")
    assert list(scores.index) == list(ARMS)
    assert scores.n.eq(3).all()


def test_vector_describes_itself(finished: tuple[Path, str], demo) -> None:
    out, _ = finished
    with safe_open(str(out / "vector.safetensors"), framework="pt") as file:
        meta = file.metadata()
    wanted = {
        "hook_point",
        "positions",
        "norm",
        "residual_norm",
        "trait",
        "method",
        "fingerprint",
        "template",
        "star_tl",
    }
    assert wanted <= set(meta)
    assert star.SteeringVector.load(out / "vector.safetensors", demo).trait == "emotional_support"


def test_report_is_one_file_with_the_replies(finished: tuple[Path, str]) -> None:
    out, _ = finished
    page = (out / "report.html").read_text()
    assert "I lost my job today" in page
    assert len(page) < 8e6


def test_second_run_needs_overwrite_and_changes_nothing(finished: tuple[Path, str]) -> None:
    out, _ = finished
    before = {p.name: p.stat().st_mtime_ns for p in out.iterdir()}
    result = runner.invoke(app, ["run", "--out", str(out)])
    assert result.exit_code == 2
    assert "--overwrite" in result.output
    assert {p.name: p.stat().st_mtime_ns for p in out.iterdir()} == before


def test_generate_steers_with_the_saved_vector(finished: tuple[Path, str]) -> None:
    out, _ = finished
    plain = ["generate", "--prompt", "I lost my job today.", "--max-new-tokens", "20", "--temperature", "0"]
    steer = ["--vector", str(out / "vector.safetensors"), "--strength", "2"]
    results = [runner.invoke(app, plain), runner.invoke(app, plain + steer), runner.invoke(app, plain + steer)]
    assert [r.exit_code for r in results] == [0, 0, 0]
    assert results[0].output != results[1].output
    assert results[1].output == results[2].output


BAD = {
    "unknown trait": (["run", "--trait", "emotinal_support"], "emotional_support"),
    "unknown model": (["run", "--model", "demmo"], "demo"),
    "missing pairs": (["run", "--trait", "nowhere/pairs.jsonl"], "No pairs file"),
    "missing prompts": (["run", "--prompts", "nowhere.jsonl"], "nowhere.jsonl"),
    "strength is a word": (["run", "--strength", "much"], "number"),
    "no such option": (["run", "--strenght", "2"], "--strength"),
    "strength is infinite": (["run", "--strength", "inf"], "finite"),
    "no seeds": (["run", "--seeds", "0"], "at least 1"),
    "no prompt": (["generate"], "--prompt"),
    "empty prompt": (["generate", "--prompt", " "], "empty"),
    "unknown dtype": (["run", "--dtype", "float8"], "float32"),
    "unknown hook point": (
        ["extract", "--out", "v.safetensors", "--hook-point", "blocks.1.nowhere"],
        "hook_resid_post",
    ),
    "missing vector": (["generate", "--prompt", "Hi", "--vector", "nowhere.safetensors"], "nowhere.safetensors"),
    "long prompt": (["generate", "--prompt", "word " * 3000], "context"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_one_line_and_exit_code_2(case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    arguments, said = BAD[case]
    result = runner.invoke(app, arguments)
    assert result.exit_code == 2, result.output
    assert said in result.output
    assert "Traceback" not in result.output
    assert [line[:8] for line in result.output.splitlines()] == ["star-tl:"]
    assert not list(tmp_path.iterdir()), "something was written"


def test_broken_pairs_file_names_file_line_and_remedy(tmp_path: Path) -> None:
    header = (Path(star.__file__).parent / "data" / "traits" / "politeness.jsonl").read_text().splitlines()[0]
    path = tmp_path / "mine.jsonl"
    path.write_text(header + '\n{"context": "Hello", "positive": "Please sit.", "negative": "Please sit."}\n')
    result = runner.invoke(app, ["run", "--trait", str(path), "--out", str(tmp_path / "out")])
    assert result.exit_code == 2
    assert f"{path}, line 2" in result.output
    assert "equal replies" in result.output
    assert not (tmp_path / "out").exists()


def test_vector_of_another_model_is_refused(finished: tuple[Path, str], tiny_folder: Path) -> None:
    out, _ = finished
    arguments = ["generate", "--prompt", "Hi", "--model", str(tiny_folder), "--vector", str(out / "vector.safetensors")]
    result = runner.invoke(app, arguments)
    assert result.exit_code == 2
    assert "extracted from" in result.output


def test_a_disk_that_is_full_at_the_end_is_one_line_too(tiny_folder: Path, tmp_path: Path, monkeypatch) -> None:
    def full(*args: object, **more: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    arguments = ["sweep", "--model", str(tiny_folder), "--layers", "1", "--strengths", "1", "--max-new-tokens", "2"]
    monkeypatch.setattr(pd.DataFrame, "to_csv", full)
    result = runner.invoke(app, [*arguments, "--out", str(tmp_path)])
    assert result.exit_code == 2
    assert "cannot be written to (No space left on device): make room" in result.output
    monkeypatch.undo()
    result = runner.invoke(app, [*arguments, "--out", str(tmp_path)])
    assert result.exit_code == 0, result.output
    assert {p.name for p in tmp_path.iterdir()} == {"samples.jsonl", "samples.csv", "summary.csv", "sweep.html"}


def test_import_is_instant() -> None:
    code = "import time; t = time.perf_counter(); import star_tl.cli; import sys; print('torch' in sys.modules)"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "False", "importing star_tl.cli must not import torch"
