"""The main job goes on where it was stopped, keeps what is another's, and ends with the same files in any case."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import star_tl as star
from star_tl.errors import StarError
from star_tl.evaluation import samples
from star_tl.files import locked
from star_tl.pipeline import CALL, FILES, check_folder

PROMPTS = ["I lost my job.", "My dog is ill and I cannot sleep at all."]


@pytest.fixture(scope="module")
def pairs() -> star.Pairs:
    built_in = star.load_pairs("agreement")
    return replace(built_in, pairs=built_in.pairs[:4])


def walk(model: Any, pairs: star.Pairs, out: Path | None, **more: Any) -> Any:
    options: dict[str, Any] = {"seeds": (0, 1), "max_new_tokens": 6, "batch_size": 16, "progress": False}
    return star.run(model, pairs, PROMPTS, out, **(options | more))


def contents(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def test_the_same_call_on_a_finished_folder_samples_nothing_and_changes_nothing(tiny, pairs, tmp_path, monkeypatch):
    first = walk(tiny, pairs, tmp_path / "run")
    before = contents(tmp_path / "run")
    assert {*FILES, CALL} <= set(before)
    sampled = []
    written = samples.in_batches
    monkeypatch.setattr(
        samples, "in_batches", lambda m, prompts, *a: sampled.append(len(prompts)) or written(m, prompts, *a)
    )
    again = walk(tiny, pairs, tmp_path / "run")
    assert sum(sampled) == 0
    assert contents(tmp_path / "run") == before
    assert again.summary.equals(first.summary)


def test_a_call_in_two_folders_leaves_the_same_bytes(tiny, pairs, tmp_path):
    for name in ("one", "two"):
        walk(tiny, pairs, tmp_path / name)
    assert contents(tmp_path / "one") == contents(tmp_path / "two")


@pytest.mark.parametrize(
    "other", [{"seeds": (0,)}, {"strength": 1.0}, {"temperature": 0.5}, {"method": "principal"}, {"estimator": "ig"}]
)
def test_another_call_is_refused_and_overwrites_only_where_it_says_so(tiny, pairs, tmp_path, other):
    walk(tiny, pairs, tmp_path / "run", seeds=(0, 1))
    before = contents(tmp_path / "run")
    (tmp_path / "run" / "notes.txt").write_text("mine")
    with pytest.raises(StarError, match=r"^[^\n]+holds another run[^\n]+overwrite[^\n]+$"):
        walk(tiny, pairs, tmp_path / "run", **other)
    assert contents(tmp_path / "run") == before | {"notes.txt": b"mine"}
    walk(tiny, pairs, tmp_path / "run", overwrite=True, **other)
    after = contents(tmp_path / "run")
    assert after["notes.txt"] == b"mine"
    assert after[CALL] != before[CALL]


@pytest.mark.parametrize(
    "bad",
    [
        {"top_p": 2.0},
        {"strength": float("nan")},
        {"positions": "nowhere"},
        {"positions": "system"},
        {"method": "locatd"},
        {"estimator": "apt"},
        {"seeds": ()},
        {"seeds": (1, 1)},
        {"max_new_tokens": 10_000},
    ],
)
def test_a_bad_argument_deletes_nothing_even_where_overwriting_is_allowed(tiny, pairs, tmp_path, bad):
    (tmp_path / "report.html").write_text("earlier")
    (tmp_path / CALL).write_text("{}")
    before = contents(tmp_path)
    with pytest.raises(StarError):
        walk(tiny, pairs, tmp_path, overwrite=True, **bad)
    assert contents(tmp_path) == before


def test_two_runs_do_not_write_to_one_folder(tiny, pairs, tmp_path):
    with locked(tmp_path / CALL), pytest.raises(StarError, match="being written to by another process"):
        walk(tiny, pairs, tmp_path)
    walk(tiny, pairs, tmp_path)


@pytest.mark.parametrize("name", FILES)
def test_files_of_a_run_that_does_not_say_which_are_kept(tmp_path, name):
    (tmp_path / name).write_text("earlier")
    with pytest.raises(StarError, match="holds another run"):
        check_folder(tmp_path)
    assert check_folder(tmp_path, overwrite=True) == tmp_path


@pytest.mark.parametrize("inside", ["", "deeper/run", "x" * 300])
def test_a_folder_that_cannot_be_written_is_refused_in_one_line(tmp_path, inside):
    taken = tmp_path / "taken"
    taken.write_text("mine")
    place = tmp_path / inside if len(inside) > 255 else taken / inside
    with pytest.raises(StarError, match=r"^[^\n]+name another\.$"):
        check_folder(place, overwrite=True)
    assert taken.read_text() == "mine"


def test_a_damaged_sample_is_named_and_kept(tiny, pairs, tmp_path):
    walk(tiny, pairs, tmp_path)
    path = tmp_path / "replies" / "arms.jsonl"
    lines = path.read_text().splitlines(keepends=True)
    for damage in (
        '{"condition": 0}\n',
        "\0\0\0\n",
        "[1]\n",
        '{"condition": 99, "prompt": 0, "text": ""}\n',
        "garbage\n",
    ):
        path.write_text("".join([*lines[:3], damage, *lines[3:]]))
        with pytest.raises(StarError, match=r"^[^\n]+arms\.jsonl, line 4 [^\n]+delete the line[^\n]+$"):
            walk(tiny, pairs, tmp_path)
        assert damage in path.read_text()


def test_pairs_without_held_out_ones_say_so(tiny, pairs, tmp_path):
    with pytest.warns(UserWarning, match="no pair is held out"):
        result = star.run(tiny, pairs, out=tmp_path, max_new_tokens=4, progress=False)
    assert "no pair is held out" in result.settings["pairs"]
    assert "no pair is held out" in (tmp_path / "report.html").read_text()


SERVER = """
import json, os, sys, torch, star_tl as star
from dataclasses import replace
torch.set_num_threads(1)  # a thread pool does not survive a fork
model = star.load_model(sys.argv[1])
pairs = star.load_pairs("agreement")
pairs = replace(pairs, pairs=pairs.pairs[:4])
for line in sys.stdin:
    out = json.loads(line)
    child = os.fork()
    if not child:
        star.run(model, pairs, ["I lost my job.", "My dog is ill."], out, seeds=(0, 1), max_new_tokens=12, batch_size=4,
                 progress=False)
        os._exit(0)
    print(child, flush=True)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""


@pytest.fixture
def server(tiny_folder: Path) -> Iterator[Any]:
    """Forks a process per run, so that ten can be killed without loading a model ten times."""
    command = [sys.executable, "-c", SERVER, str(tiny_folder)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
    ) as process:
        yield process
        process.stdin.close()  # type: ignore[union-attr]


def test_a_run_killed_ten_times_ends_with_the_same_files(server, tmp_path: Path) -> None:
    def start(name: str) -> int:
        server.stdin.write(json.dumps(str(tmp_path / name)) + "\n")
        server.stdin.flush()
        return int(server.stdout.readline())

    def exit_code() -> int:
        return int(server.stdout.readline())

    start("whole")
    began = time.monotonic()
    assert exit_code() == 0
    took = time.monotonic() - began
    chance = random.Random(0)
    kills, folder = 0, tmp_path / "killed"
    for attempt in range(10):
        child = start("killed")
        time.sleep(chance.uniform(0, 0.25 if attempt else 0.9) * took)
        try:
            os.kill(child, signal.SIGKILL)
        except ProcessLookupError:
            pass
        kills += exit_code() == -signal.SIGKILL
    assert kills >= 5, "the kills must hit a run at work"
    start("killed")
    assert exit_code() == 0
    assert contents(folder) == contents(tmp_path / "whole")
