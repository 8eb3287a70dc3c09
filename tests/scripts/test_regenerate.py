"""The commands of RESULTS.md are found, and run with the folders that they name."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

import pytest

SCRIPTS = Path(__file__).parents[2] / "scripts"
TEXT = """# Results

    python scripts/a.py --data FOLDER
    python scripts/regenerate.py --data FOLDER --out FOLDER

Some words: python scripts/no.py

    star-tl evaluate --task joy --data DATA/esconv/valid.jsonl --out FOLDER
    python scripts/a.py --data FOLDER
"""


@pytest.fixture
def regenerate(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.syspath_prepend(str(SCRIPTS))
    yield importlib.import_module("regenerate")
    del sys.modules["regenerate"]


def test_commands_are_found_once_and_folders_put_in(regenerate) -> None:
    found = regenerate.commands(TEXT)
    assert found == [
        "python scripts/a.py --data FOLDER",
        "star-tl evaluate --task joy --data DATA/esconv/valid.jsonl --out FOLDER",
    ]
    data, out = Path("/data"), Path("/out")
    assert regenerate.arguments(found[0], data, out)[1:] == ["scripts/a.py", "--data", "/data"]
    words = regenerate.arguments(found[1], data, out)
    assert words[-4:] == ["--data", "/data/esconv/valid.jsonl", "--out", "/out/kept"]


def test_every_command_of_the_document_names_a_script_that_exists(regenerate) -> None:
    found = regenerate.commands((SCRIPTS / "RESULTS.md").read_text(encoding="utf-8"))
    assert len(found) > 15
    for command in found:
        words = command.split()
        assert words[0] == "star-tl" or (SCRIPTS.parent / words[1]).exists(), command


def test_a_script_is_run_once_and_its_output_kept(regenerate, tmp_path, monkeypatch) -> None:
    results = tmp_path / "RESULTS.md"
    results.write_text("    python scripts/measure_negotiation.py --help\n    python scripts/none.py\n")
    monkeypatch.setattr(regenerate, "RESULTS", results)
    monkeypatch.chdir(SCRIPTS.parent)
    monkeypatch.setattr(sys, "argv", ["x", "--data", str(tmp_path), "--out", str(tmp_path / "out")])
    with pytest.raises(SystemExit, match="1 commands failed"):
        regenerate.main()
    kept = {path.name: path.read_text() for path in (tmp_path / "out").glob("*.txt")}
    assert set(kept) == {"00.txt", "01.failed.txt"}
    assert "usage" in kept["00.txt"]
