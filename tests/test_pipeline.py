"""The main job goes on where it was stopped, keeps what is another's, and ends with the same files in any case."""

from __future__ import annotations

import random
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import synthetic
from forked import Forks, forks

import star_tl as star
from star_tl import pipeline
from star_tl.attribution.choose import listed
from star_tl.cli.tables import print_run
from star_tl.errors import StarError
from star_tl.evaluation import scores
from star_tl.evaluation.scores import mark_coherent
from star_tl.evaluation.strength import best_dose, dose_table
from star_tl.files import locked
from star_tl.pipeline import FILES, FOLDER

PROMPTS = ["I lost my job.", "My dog is ill and I cannot sleep at all."]


@pytest.fixture(scope="module")
def pairs() -> star.Pairs:
    built_in = star.load_pairs("agreement")
    return replace(built_in, pairs=built_in.pairs[:4])


def walk(model: Any, pairs: star.Pairs, out: Path | None, **more: Any) -> Any:
    options: dict[str, Any] = {"quick": True, "seeds": (0, 1), "max_new_tokens": 6, "batch_size": 16, "progress": False}
    return star.run(model, pairs, PROMPTS, out, **(options | more))


def contents(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


@pytest.fixture(scope="module")
def finished(tiny, pairs, tmp_path_factory) -> tuple[Any, Path]:
    """A run and its folder."""
    folder = tmp_path_factory.mktemp("finished") / "run"
    return walk(tiny, pairs, folder), folder


@pytest.fixture
def copied(finished: tuple[Any, Path], tmp_path: Path) -> Path:
    """A copy of that folder, to change."""
    return Path(shutil.copytree(finished[1], tmp_path / "run"))


def test_the_same_call_on_a_finished_folder_samples_nothing_and_changes_nothing(
    tiny, pairs, finished, copied, tmp_path, monkeypatch
):
    first = finished[0]
    before = contents(tmp_path / "run")
    assert {*FILES, FOLDER.call} <= set(before)
    sampled = []
    written = scores.in_batches
    monkeypatch.setattr(
        scores, "in_batches", lambda m, prompts, *a, **o: sampled.append(len(prompts)) or written(m, prompts, *a, **o)
    )
    again = walk(tiny, pairs, tmp_path / "run")
    assert sum(sampled) == 0
    assert contents(tmp_path / "run") == before
    assert again.summary.equals(first.summary)


def test_a_call_in_two_folders_leaves_the_same_bytes(tiny, pairs, finished, tmp_path):
    walk(tiny, pairs, tmp_path)
    assert contents(tmp_path) == contents(finished[1])


@pytest.mark.parametrize(
    "other", [{"seeds": (0,)}, {"strength": 1.0}, {"temperature": 0.5}, {"method": "principal"}, {"estimator": "ig"}]
)
def test_another_call_is_refused_and_overwrites_only_where_it_says_so(tiny, pairs, copied, tmp_path, other):
    before = contents(tmp_path / "run")
    (tmp_path / "run" / "notes.txt").write_text("mine")
    with pytest.raises(StarError, match=r"^[^\n]+holds another run[^\n]+overwrite[^\n]+$"):
        walk(tiny, pairs, tmp_path / "run", **other)
    assert contents(tmp_path / "run") == before | {"notes.txt": b"mine"}
    walk(tiny, pairs, tmp_path / "run", overwrite=True, **other)
    after = contents(tmp_path / "run")
    assert after["notes.txt"] == b"mine"
    assert after[FOLDER.call] != before[FOLDER.call]


@pytest.mark.parametrize(
    "bad",
    [
        {"top_p": 2.0},
        {"strength": float("nan")},
        {"positions": "nowhere"},
        {"positions": "system"},
        {"method": "locatd"},
        {"estimator": "apt"},
        {"estimator": "exact"},
        {"seeds": ()},
        {"seeds": (1, 1)},
        {"max_new_tokens": 10_000},
    ],
)
def test_a_bad_argument_deletes_nothing_even_where_overwriting_is_allowed(tiny, pairs, tmp_path, bad):
    (tmp_path / "report.html").write_text("earlier")
    (tmp_path / FOLDER.call).write_text("{}")
    before = contents(tmp_path)
    with pytest.raises(StarError):
        walk(tiny, pairs, tmp_path, overwrite=True, **bad)
    assert contents(tmp_path) == before


def test_two_runs_do_not_write_to_one_folder(tiny, pairs, tmp_path):
    with locked(tmp_path / FOLDER.call), pytest.raises(StarError, match="being written to by another process"):
        walk(tiny, pairs, tmp_path)
    walk(tiny, pairs, tmp_path)


@pytest.mark.parametrize("name", FILES)
def test_files_of_a_run_that_does_not_say_which_are_kept(tmp_path, name):
    (tmp_path / name).write_text("earlier")
    with pytest.raises(StarError, match="holds another run"):
        FOLDER.check(tmp_path)
    assert FOLDER.check(tmp_path, overwrite=True) == tmp_path


@pytest.mark.parametrize("inside", ["", "deeper/run", "x" * 300])
def test_a_folder_that_cannot_be_written_is_refused_in_one_line(tmp_path, inside):
    taken = tmp_path / "taken"
    taken.write_text("mine")
    place = tmp_path / inside if len(inside) > 255 else taken / inside
    with pytest.raises(StarError, match=r"^[^\n]+name another\.$"):
        FOLDER.check(place, overwrite=True)
    assert taken.read_text() == "mine"


def test_a_damaged_sample_is_named_and_kept(tiny, pairs, copied):
    path = copied / "replies" / "arms.jsonl"
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
            walk(tiny, pairs, copied)
        assert damage in path.read_text()


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ({"estimator": "exact"}, "no gradients to choose a layer by: use 'atp' or 'ig' or 'relp'"),
        ({"positions": "system"}, "no span .system."),
        ({"method": "probe"}, "needs at least 2 pairs"),
        ({"max_new_tokens": 440}, "exceeds the model's context"),
    ],
)
def test_what_would_fail_late_is_refused_before_any_work(tiny, pairs, monkeypatch, bad, message):
    monkeypatch.setattr(pipeline, "attribute", lambda *args, **more: pytest.fail("work began"))
    if "max_new_tokens" in bad:  # the prompts fit, and no longer under the instruction that primes
        pairs = replace(pairs, trait=replace(pairs.trait, positive_instruction="Be kind. " * 60))
    few = replace(pairs, pairs=pairs.pairs[:1]) if "method" in bad else pairs
    with pytest.raises(StarError, match=message):
        walk(tiny, few, None, **bad)


def test_an_instruction_that_moves_little_is_said_in_the_settings_and_on_the_command_line(tiny, pairs, capsys):
    with pytest.warns(UserWarning, match="moves the metric by"):
        result = walk(tiny, pairs, None, seeds=(0,))
    assert "pairs the wrong way" in result.settings["caution"]
    print_run(result)
    assert "Caution: the instruction moves the metric by" in capsys.readouterr().out
    assert synthetic.attribution().caution == ""


def test_pairs_without_held_out_ones_say_so(tiny, pairs, tmp_path):
    with pytest.warns(UserWarning, match="no pair is held out"):
        result = star.run(tiny, pairs, out=tmp_path, quick=True, max_new_tokens=4, progress=False)
    assert "no pair is held out" in result.settings["pairs"]
    assert "no pair is held out" in (tmp_path / "report.html").read_text()


def test_of_layers_that_tie_the_replies_decide(demo: Any, tmp_path: Path) -> None:
    pairs = star.load_pairs("agreement")
    few = replace(pairs, pairs=pairs.extraction.pairs[:16])
    result = star.run(demo, few, PROMPTS, tmp_path, quick=True, max_new_tokens=24, progress=False)
    tied = result.attribution.choose_layer().tied
    assert len(tied) > 1
    samples = pd.read_json(tmp_path / "samples.jsonl", lines=True)
    rates = {}
    for layer in tied:
        tried = mark_coherent(samples[samples.part == f"strength, layer {layer}"])
        curve = dose_table(tried).set_index("strength")
        rates[layer] = curve.trait_rate[best_dose(curve.reset_index())]
    assert result.vector.locus == result.attribution.top_locus(layer=max(rates, key=lambda layer: rates[layer]))
    assert f"the one of {listed(tied)} whose replies did most" in result.settings["locus"]
    assert result.vector.locus.layer != result.attribution.choose_layer().layer  # else the test shows nothing


RUN = """
def work(model, out):
    star.run(model, pairs, ["I lost my job.", "My dog is ill."], out, quick=True, seeds=(0, 1), max_new_tokens=12,
             batch_size=4, progress=False)

from dataclasses import replace
pairs = star.load_pairs("agreement")
pairs = replace(pairs, pairs=pairs.pairs[:4])
"""


@pytest.fixture
def runs(tiny_folder: Path) -> Iterator[Forks]:
    with forks(tiny_folder, RUN) as found:
        yield found


def test_a_run_killed_ten_times_ends_with_the_same_files(runs: Forks, tmp_path: Path) -> None:
    runs.run(str(tmp_path / "whole"))
    folder, chance = tmp_path / "killed", random.Random(0)
    for opened in (chance.randint(5, 45) for _ in range(4)):  # one that finds all done opens some fifty files
        runs.kill(str(folder), folder, opened, chance.uniform(0.0001, 0.05))
    for opened in (9, 6):  # of thirty times
        runs.kill(str(folder), folder / FOLDER.parts / "arms.jsonl", opened, chance.uniform(0.0001, 0.05))
    for name in ("vector.safetensors", "samples.jsonl", "scores.csv", "report.html"):  # written, and not yet in place
        runs.kill(str(folder), folder / f".{name}.part", 2, 0)
    runs.run(str(folder))
    assert contents(folder) == contents(tmp_path / "whole")


def choose(demo: Any, folder: Path) -> Any:
    """A default run on a part of the pairs."""
    built_in = star.load_pairs("gratitude")
    part = replace(built_in, pairs=(*built_in.extraction.pairs[:16], *built_in.heldout.pairs[:6]))
    return star.run(demo, part, None, folder / "run", replies=128, drift=0.06, max_new_tokens=16, progress=False)


@pytest.fixture(scope="module")
def chosen(demo: Any, tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Path]:
    folder = tmp_path_factory.mktemp("chosen")
    return choose(demo, folder), folder


def test_by_default_real_replies_choose_what_steers(chosen: tuple[Any, Path]) -> None:
    result, folder = chosen
    steering = ("steered", "located", "random", "last_ranked_layer", "reply_mean")
    assert tuple(result.summary.arm) == ("unsteered", *steering, "primed", "primed_steered")
    assert {*FILES, FOLDER.call} <= set(contents(folder / "run"))
    arms = result.summary.set_index("arm")
    best = result.intervention.condition
    assert arms.trait_rate["steered"] > arms.trait_rate["unsteered"]
    assert (result.samples[result.samples.arm == "steered"].strength == best.strength).all()
    assert star.SteeringVector.load(folder / "run" / "vector.safetensors").locus == best.vector.locus
    for judge in ("embedding judge", "word judge", "relevance"):
        assert arms[judge].between(0, 1).all()
    page = (folder / "run" / "report.html").read_text(encoding="utf-8")
    assert "What was tried" in page
    assert "word judge (unseen)" in page


def test_a_default_run_goes_on_where_it_was(chosen: tuple[Any, Path], demo: Any) -> None:
    """Though the outcome's gradients would round otherwise in other batches."""
    result, folder = chosen
    before = contents(folder / "run")
    for gone in ("arms.jsonl", "choice/round-1.jsonl"):
        (folder / "run" / "replies" / gone).unlink()
    (folder / "run" / "report.html").unlink()
    again = choose(demo, folder)
    assert again.summary.equals(result.summary)
    assert contents(folder / "run") == before


def test_overwriting_leaves_nothing_of_the_choice_behind(chosen: tuple[Any, Path]) -> None:
    held = set(FOLDER.held(chosen[1] / "run"))
    assert held == {p for p in (chosen[1] / "run").rglob("*") if p.is_file()}
    assert chosen[1] / "run" / "replies" / "choice" / "outcome.safetensors" in held
