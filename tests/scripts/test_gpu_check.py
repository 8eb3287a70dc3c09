"""The check of a GPU, walked at tiny sizes on the CPU: every table filled, a line for a fault, and gaps filled."""

from __future__ import annotations

import importlib
import importlib.util
import json
import subprocess
import sys
import time
import zipfile
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

import star_tl as star

SCRIPTS = Path(__file__).parents[2] / "scripts"


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(SCRIPTS))
    return importlib.import_module("gpu_check")


def here(script: ModuleType, capsys: pytest.CaptureFixture[str]) -> Any:
    """Runs a part in this process, for a new one takes seconds to import everything."""

    def look(name: str, device: str, case: int | None, folder: str, until: float) -> dict[str, str]:
        capsys.readouterr()
        script.part(
            name, device, None if case is None else script.TINY_CASES[case], Path(folder) if folder else SCRIPTS
        )
        lines = capsys.readouterr().out.splitlines()
        return dict(json.loads(line.removeprefix(script.FOUND)) for line in lines if line.startswith(script.FOUND))

    return look


@pytest.mark.hooked
def test_a_dry_run_fills_every_line_of_every_table(
    script: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(script, "CHECKS", {"cpu": script.CHECKS["cpu"]})
    *cases, checks = script.check("cpu", script.TINY_CASES, here(script, capsys))
    for words in ("attribution beside the CPU's", "2 of 2", "4 of 4", "0 of them empty"):
        assert words in checks
    for table, title in zip(cases, ("smollm2", "Llama-3.1-8B"), strict=True):
        assert title in table.splitlines()[0]
        exact, many = "float32" in table, "smollm2" in table
        rows = [line for line in table.splitlines() if line.startswith("|")][2:]
        assert [row.split("|")[1].strip() for row in rows] == [
            "loading",
            *("1 pair of 48 tokens", "2 pairs of 48 tokens", "pairs of 48 tokens, one at a time"),
            *(["decode step, 1 rows, TF32"] * exact),
            *("decode step, 1 rows", "recorded beside plain step, 1 rows"),
            *(["decode step, 3 rows, TF32"] * exact),
            *("decode step, 3 rows", "recorded beside plain step, 3 rows"),
            *(["sample_conditions", "attribute_outcome"] * many),
        ]
        alone = ("pairs of", "recorded", "sample", "attribute", *(f"decode step, {n} rows, TF32" for n in (1, 3)))
        assert all("–" not in row or row.split("|")[1].strip().startswith(alone) for row in rows)
        assert "FAULT" not in table


def test_a_fault_takes_one_line_and_the_others_are_still_measured(
    script: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    look = here(script, capsys)
    look("write", "cpu", 0, str(tmp_path), 0)

    def broken(*_: object, **__: object) -> None:
        raise RuntimeError("CUDA error: an illegal memory access\nwas encountered")

    monkeypatch.setattr(star, "attribute", broken)
    found = look("star_tl", "cpu", 0, str(tmp_path), 0)
    assert found["1 pair of 48 tokens"] == "FAULT: RuntimeError: CUDA error: an illegal memory access was encountered"
    assert "tokens/s" in found["decode step, 3 rows"]
    table = script.markdown("title", {"a": found, "b": {"loading": "1 s"}})
    assert table.count("FAULT") == 3


def test_a_part_that_dies_or_takes_too_long_is_a_fault_with_what_it_had_found(
    script: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    said = 'print(\'found: ["loading", "1 s"]\', flush=True); import sys, time; '
    begin = subprocess.Popen

    def ending(how: str) -> None:
        monkeypatch.setattr(
            script.subprocess, "Popen", lambda command, **more: begin([sys.executable, "-c", said + how], **more)
        )

    ending("sys.exit('illegal memory access')")
    found = script.child("star_tl", "cuda", 0, "", time.monotonic() + 60)
    assert found == {"loading": "1 s", "star_tl as a whole": "FAULT: illegal memory access"}
    ending("time.sleep(60)")
    found = script.child("star_tl", "cuda", 0, "", time.monotonic())
    assert found["star_tl as a whole"] == "FAULT: took too long"


def test_wheels_fill_gaps_and_take_no_installed_packages_place(
    script: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    with zipfile.ZipFile(tmp_path / "brought-1-py3-none-any.whl", "w") as wheel:
        wheel.writestr("brought_along/__init__.py", "here = True")
        wheel.writestr("einops/__init__.py", "here = True")
    script.unpack(tmp_path, tmp_path / "code")
    monkeypatch.setenv("GPU_CHECK_BROUGHT", str(tmp_path / "code"))
    monkeypatch.setattr(sys, "path", sys.path[:])
    script.bring()
    assert importlib.import_module("brought_along").here
    assert (tmp_path / "code" / "wandb.py").is_file()
    del sys.modules["brought_along"]
    monkeypatch.delitem(sys.modules, "einops", raising=False)
    found = importlib.util.find_spec("einops")
    assert found is not None
    assert str(tmp_path) not in str(found.origin)


def test_what_is_packed_is_pinned(script: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    asked: list[str] = []
    monkeypatch.setattr(script.subprocess, "run", lambda command, check: asked.extend(command))
    script.pack(tmp_path)
    assert "--no-deps" in asked
    pinned = [word for word in asked if "==" in word]
    assert len(pinned) == len(script.LACKING)
    assert set(pinned) <= set((SCRIPTS.parent / "constraints.txt").read_text(encoding="utf-8").split())
