"""The built-in tasks are whole, and a broken file says in one line what it lacks."""

from __future__ import annotations

import json
from dataclasses import asdict

import pytest

from star_tl.data.pairs import load_pairs
from star_tl.data.prompts import _SOURCES
from star_tl.data.tasks import FOLDER, TASKS, load_task
from star_tl.errors import StarError
from star_tl.evaluation.judges import LABELS


@pytest.mark.parametrize("name", TASKS)
def test_every_built_in_task_names_what_there_is(name: str) -> None:
    task = load_task(name)
    assert task.name == name
    assert load_pairs(task.trait).heldout.prompts
    assert set(task.judges) <= set(LABELS)
    assert set(task.data) <= {source for source, *_ in _SOURCES.values()}
    assert "markers" in task.measures


def test_a_task_of_ones_own_is_read_from_a_file(tmp_path) -> None:
    path = tmp_path / "mine.json"
    path.write_text((FOLDER / "joy.json").read_text())
    assert asdict(load_task(path)) == asdict(load_task("joy"))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"trait": "jo"}, "unknown trait"),
        ({"measures": ["marker"]}, "unknown measure"),
        ({"roles": {"user": "x"}}, "roles"),
        ({"judges": "joy"}, "another form"),
        ({"more": 1}, "exactly"),
    ],
)
def test_a_broken_task_is_refused(tmp_path, change, said) -> None:
    path = tmp_path / "mine.json"
    path.write_text(json.dumps(json.loads((FOLDER / "joy.json").read_text()) | change))
    with pytest.raises(StarError, match=said):
        load_task(path)


def test_an_unknown_task_is_refused_with_its_neighbour() -> None:
    with pytest.raises(StarError, match="joy"):
        load_task("yoy")
