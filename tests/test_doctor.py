"""The check of the machine: right sizes, right verdicts, right about the cache, and quick."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from rich.console import Console
from typer.testing import CliRunner

from star_tl import doctor
from star_tl.cli import app
from star_tl.errors import StarError
from star_tl.models.size import SHAPES

NAME = "meta-llama/Llama-3.1-8B-Instruct"


@pytest.fixture
def cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """An empty cache of Hugging Face's, by model name; speed, which takes its time, is not measured."""

    def look(name: str, file: str) -> str | None:
        path = tmp_path / name / file
        return str(path) if path.is_file() else None

    monkeypatch.setattr(doctor, "_speed", lambda seconds: {"tokens sampled a second, 16 rows": 1234.5})
    monkeypatch.setattr("huggingface_hub.try_to_load_from_cache", look)
    return tmp_path


def test_the_known_models_are_weighed(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "free_memory", lambda device: 24e9)
    found = doctor.examine()
    fits = {fit.model: fit for fit in found.fits}
    assert list(fits) == ["demo", *SHAPES]
    assert fits[NAME].weights_gb == pytest.approx({"bfloat16": 16.06, "float32": 32.12}, abs=0.01)
    # Keys and values of 32 layers, 8 heads of 128: 131,072 bytes a token in bfloat16.
    assert fits[NAME].rows == {"bfloat16": int((24e9 - 16.06e9) // (131072 * 1024)), "float32": 0}
    assert fits["meta-llama/Llama-3.3-70B-Instruct"].rows == {"bfloat16": 0, "float32": 0}
    assert fits["demo"].cached == "yes"
    assert fits[NAME].cached == "no"
    assert {"python", "torch", "transformers", "transformer_lens", "star_tl"} <= set(found.versions)


def test_a_partly_downloaded_model_is_told_from_a_whole_one(cache: Path, tiny_folder: Path) -> None:
    folder = shutil.copytree(tiny_folder, cache / NAME)
    assert doctor.examine(NAME).fits[0].cached == "yes"
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    assert doctor.examine(NAME).fits[0].cached == "partly"
    weights.unlink()
    assert doctor.examine(NAME).fits[0].cached == "partly"


def test_a_folder_and_a_cached_name_are_weighed_by_their_config(cache: Path, tiny_folder: Path) -> None:
    shutil.copytree(tiny_folder, cache / "someone/tiny")
    for name in (str(tiny_folder), "someone/tiny"):
        (fit,) = doctor.examine(name).fits
        assert fit.weights_gb["float32"] == pytest.approx(4e-9 * 65952, rel=0.5)
        assert fit.rows["float32"] > 0


@pytest.mark.parametrize("name", ["someone/unseen", "Llama", "not a name at all"])
def test_an_unknown_model_is_refused_in_one_line(cache: Path, name: str) -> None:
    with pytest.raises(
        StarError, match=r"Nothing is known here of .*: give a folder, or download it once\..* Known: demo"
    ):
        doctor.examine(name)


def test_the_command_prints_its_tables(cache: Path) -> None:
    printed = CliRunner().invoke(app, ["doctor"]).output
    for words in ("This machine", "transformer_lens", "free memory", NAME, "16.06 GB", "demo", "yes", "1,234.5"):
        assert words in printed
    refused = CliRunner().invoke(app, ["doctor", "--model", "someone/unseen"])
    assert refused.exit_code == 2
    assert refused.output.startswith("star-tl: Nothing is known here")


def test_what_a_gpu_computes_in_is_said(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda i: "card")
    monkeypatch.setattr(doctor, "free_memory", lambda device: 24e9)
    for bf16, precision, words in (
        (True, "highest", ("bfloat16 above a billion", "float32 products exact", "set_float32_matmul_precision")),
        (False, "high", ("float16 above a billion", "this GPU has no bfloat16", "float32 products in TF32")),
    ):
        monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation, found=bf16: found)
        monkeypatch.setattr(torch, "get_float32_matmul_precision", lambda found=precision: found)
        found = doctor.examine("demo").arithmetic
        assert [w for w in words if w not in found] == []


def test_speed_is_measured_within_its_time() -> None:
    found = doctor.examine("demo", seconds=0.2)
    assert all(value > 0 for value in found.speed.values())


def test_a_name_is_no_markup(cache: Path) -> None:
    found = doctor.examine("demo")
    console = Console(width=150, record=True)
    console.print(*doctor.tables(replace(found, fits=(replace(found.fits[0], model="out/m[1]x[bold]y [/red]"),))))
    assert "out/m[1]x[bold]y [/red]" in console.export_text()
