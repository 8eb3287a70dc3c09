"""Measuring scripts run to their end: the smallest call of each that needs neither another model nor a package."""

from __future__ import annotations

import importlib
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

SCRIPTS = Path(__file__).parents[2] / "scripts"
Run = Callable[..., Any]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Run:
    """Runs a script as the command line does; what it wrote to ``--json``."""

    def called(name: str, *arguments: str) -> Any:
        monkeypatch.syspath_prepend(str(SCRIPTS))
        file = tmp_path / f"{name}.json"
        monkeypatch.setattr(sys, "argv", [name, *arguments, "--json", str(file)])
        importlib.import_module(name).main()
        del sys.modules[name]
        return json.loads(file.read_text())

    return called


def test_the_parts_of_outcome_attribution_are_timed(run: Run) -> None:
    found = run("bench_outcome", "--n", "8", "--tokens", "4", "--prompts", "2", "--threads", "1")
    assert (found["replies"], found["threads"]) == (8, 1)
    assert set(found["seconds"]) == {"load", "sampling", "gradients", "map", "natural gradient"}
    assert 0 < found["tokens"] <= 8 * 5  # the end of a turn counts as one


def test_the_same_tree_twice_takes_turns_with_itself(run: Run) -> None:
    rows = run("bench_commits", ".", ".:draws=1", "--rounds", "2", "--threads", "1")
    assert [(row["work"], row["commit"]) for row in rows] == [
        (work, commit) for work in ("attribution", "sampling") for commit in (".", ".:draws=1")
    ]
    assert all(row["ratio"] == 1 for row in rows if row["commit"] == ".")
    assert all(row["ms"] > 0 for row in rows)
