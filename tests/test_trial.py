"""An evaluation has every condition, refuses what it cannot do, and once killed ends as one that ran through."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from forked import forks
from typer.testing import CliRunner

import star_tl as star
from star_tl.cli import app
from star_tl.data.scenarios import POINTS, Camp
from star_tl.data.tasks import load_task
from star_tl.errors import StarError
from star_tl.evaluation import conditions
from star_tl.evaluation.ray_workers import RayWorkers, _Replica

OPTIONS = {"max_new_tokens": 5, "progress": False, "drift": 0.05}
WRITTEN = ("effects.csv", "against.csv", "samples.csv", "tables.md", "tables.tex", "report.html")


@pytest.fixture(scope="module")
def prompts():
    return star.load_pairs("politeness").heldout.prompts[:4]


@pytest.fixture(scope="module")
def folder(tiny, prompts, tmp_path_factory):
    out = tmp_path_factory.mktemp("trial") / "whole"
    star.evaluate(tiny, "negotiation_politeness", prompts, out, **OPTIONS)
    return out


def test_a_negotiation_is_played_and_its_outcomes_are_printed(tiny, prompts) -> None:
    options = OPTIONS | {"side_effects": False, "turns": 2}
    result = star.evaluate(tiny, "negotiation_gratitude", prompts[:2], **options)
    assert set(result.turns.turn) == {1, 2}
    assert set(result.outcomes.condition) == set(result.turns.condition) >= {"unsteered", "located", "priming"}
    assert result.outcomes.deal.between(0, 1).all()
    assert {"turn by turn", "outcomes"} <= set(result.tables())


def test_dialogues_are_said_again_and_camps_divided(tiny, prompts) -> None:
    options = OPTIONS | {"side_effects": False, "turns": 2}
    replay = [("Is the lamp there?", "Would you take $80?"), ("Hello", "Too dear.")]
    result = star.evaluate(tiny, "negotiation_gratitude", prompts[:2], replay=replay, **options)
    assert result.outcomes is None
    assert set(result.turns.turn) == {1, 2}
    wants = ("food", "water", "firewood")
    camp = Camp("x", dict(zip(wants, POINTS, strict=True)), dict(zip(wants, POINTS, strict=True)))
    result = star.evaluate(tiny, "negotiation_gratitude", prompts[:2], scenarios=[camp], **options)
    assert {"deal", "user", "assistant"} <= set(result.outcomes.columns)
    with pytest.raises(StarError, match="fewer than 3 turns"):
        star.evaluate(tiny, "negotiation_gratitude", prompts[:2], replay=replay, **(options | {"turns": 3}))


def test_every_condition_is_in_the_tables(folder, tiny, prompts) -> None:
    result = star.evaluate(tiny, "negotiation_politeness", prompts, folder, **OPTIONS)
    found = dict.fromkeys(result.table.condition)
    assert set(found) == set(conditions.CONDITIONS) - {"chosen"}
    assert {"markers", "ngrams:politeness", "relevance", "perplexity"} <= set(result.measures)
    counts = result.samples.groupby("arm").size()
    assert counts["unsteered"] == 4
    assert sum(n for arm, n in counts.items() if arm.startswith("random ")) == 4 * conditions.RANDOM
    assert set(result.matrix.vector) == set(result.matrix.measured)
    assert result.damage.condition.iloc[0] == "unsteered"
    assert len(result.dose) == 5
    assert result.dose.strength.iloc[0] == 0
    assert list(result.tables()["overview"].condition) == list(found)
    assert all((folder / name).stat().st_size for name in WRITTEN)


class Here(RayWorkers):
    """The work of replicas, done in this process, the last piece first; ``left`` pieces until the caller is stopped.

    ``replies`` is how many they wrote.
    """

    def __init__(self, model: Any, left: int) -> None:
        self.left, self.replies = left, 0
        self._replica = _Replica({}, "", torch.get_num_threads())
        self._replica._model = model

    def run(self, method: str, pieces: Sequence[tuple[object, ...]]) -> Iterator[tuple[int, Any]]:
        for i in reversed(range(len(pieces))):
            if not self.left:
                raise KeyboardInterrupt
            self.left -= 1
            found = getattr(self._replica, method)(*pieces[i])
            self.replies += len(found[0]) if method == "write" else 0
            yield i, found


def test_an_evaluation_on_workers_that_was_stopped_goes_on_to_the_same_tables(folder, tiny, prompts, tmp_path) -> None:
    given = tiny, "negotiation_politeness", prompts, tmp_path / "out"
    with pytest.raises(KeyboardInterrupt):
        star.evaluate(*given, workers=(stopped := Here(tiny, 12)), **OPTIONS)
    assert list((tmp_path / "out").rglob("*.jsonl"))
    assert not (tmp_path / "out" / "effects.csv").exists()
    star.evaluate(*given, workers=(workers := Here(tiny, 10_000)), **OPTIONS)
    found = sorted(p.relative_to(folder) for p in folder.rglob("*.jsonl"))
    kept = [json.loads(line) for name in found for line in (folder / name).read_text().splitlines()]
    assert 0 < stopped.replies < stopped.replies + workers.replies >= sum("tokens" in line for line in kept) > 500
    assert len(found) > 4
    for name in (*WRITTEN[:-1], *found):
        assert (tmp_path / "out" / name).read_bytes() == (folder / name).read_bytes(), name


def test_another_evaluation_in_the_folder_is_refused(folder, tiny, prompts) -> None:
    with pytest.raises(StarError, match="another evaluation"):
        star.evaluate(tiny, "negotiation_gratitude", prompts, folder, **OPTIONS)


def test_what_cannot_be_measured_is_refused_before_work(tiny, prompts, tmp_path: Path) -> None:
    task = load_task("joy")
    for wrong, words in (({"judges": ("trust",)}, "No judge"), ({"judges": (), "measures": ()}, "measures nothing")):
        with pytest.raises(StarError, match=words):
            star.evaluate(tiny, dataclasses.replace(task, **wrong), prompts, tmp_path / "out", **OPTIONS)
    with pytest.raises(StarError, match="drift is"):
        star.evaluate(tiny, "joy", prompts, tmp_path / "out", **(OPTIONS | {"drift": 0.0}))
    assert not (tmp_path / "out").exists()


def test_a_folder_of_a_run_is_not_taken_for_an_evaluation(tiny, prompts, tmp_path: Path) -> None:
    (tmp_path / "attribution.safetensors").write_bytes(b"another trait's")
    with pytest.raises(StarError, match="another run"):
        star.evaluate(tiny, "joy", prompts, tmp_path, **OPTIONS)
    assert [p.name for p in tmp_path.iterdir() if not p.name.endswith(".lock")] == ["attribution.safetensors"]


EVALUATE = """
def work(model, out):
    prompts = star.load_pairs("politeness").heldout.prompts[:4]
    star.evaluate(model, "negotiation_politeness", prompts, out, max_new_tokens=5, progress=False, drift=0.05)
"""


def test_a_killed_evaluation_goes_on_to_the_same_numbers(tiny_folder: Path, tmp_path: Path) -> None:
    """Beside one that ran through in a process of its own too: after other work sums may round otherwise."""
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    with forks(tiny_folder, EVALUATE) as evaluations:
        evaluations.run(str(whole))
        evaluations.kill(str(killed), killed / "replies" / ".drift-1.jsonl.part", 2, 0.05)  # begun, and hardly more
        assert not (killed / "effects.csv").exists()
        evaluations.run(str(killed))
    for name in ("effects.csv", "against.csv", "samples.csv"):
        assert (killed / name).read_bytes() == (whole / name).read_bytes(), name


def test_the_command_evaluates_exports_a_form_and_reads_it_back_filled_in(tiny_folder: Path, tmp_path: Path) -> None:
    given = ["--task", "joy", "--model", str(tiny_folder), "--limit", "2", "--max-new-tokens", "4", "--drift", "0.05"]
    given += ["--no-choose", "--no-side-effects", "--out", str(tmp_path / "out")]
    result = CliRunner().invoke(app, ["evaluate", *given, "--export-human", str(tmp_path / "form")])
    assert result.exit_code == 0, result.output
    assert {p.name for p in (tmp_path / "form").iterdir()} == {"form.html", "form.csv", "key.csv"}
    assert "located" in result.output
    form = pd.read_csv(tmp_path / "form" / "form.csv", dtype=str)
    paths = []
    for rater in ("one", "two"):
        paths.append(str(tmp_path / f"{rater}.csv"))
        form.assign(rater=rater, trait="A", better="same").to_csv(paths[-1], index=False)
    read = [x for path in paths for x in ("--import-human", path)]
    result = CliRunner().invoke(app, ["evaluate", *given, *read])
    assert result.exit_code == 0, result.output
    assert "Krippendorff" in result.output


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (["--task", "yoy"], "Unknown task"),
        (["--task", "joy", "--limit", "0"], "at least 1"),
        (["--task", "joy", "--mode", "multi"], "--data"),
        (["--task", "joy", "--positions", "all"], "--vector"),
        (["--task", "joy", "--llm-url", "http://x"], "--llm-model"),
        (["--task", "joy", "--turns", "2", "--items", "x.json"], "negotiation"),
        (["--task", "joy", "--turns", "2", "--replay"], "--data"),
    ],
)
def test_what_cannot_be_evaluated_is_refused_before_a_model_is_loaded(given, said, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr("star_tl.models.load_model", None)
    result = CliRunner().invoke(app, ["evaluate", *given, "--out", str(tmp_path / "out")])
    assert result.exit_code == 2
    assert said in result.output


def test_a_folder_of_another_kind_is_refused_before_a_model_is_loaded(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr("star_tl.models.load_model", None)
    (tmp_path / "effects.csv").write_text("another's")
    result = CliRunner().invoke(app, ["evaluate", "--task", "joy", "--out", str(tmp_path)])
    assert result.exit_code == 2
    assert "holds another run" in result.output
    assert [p.name for p in tmp_path.iterdir()] == ["effects.csv"]


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (["--drift", "0"], "drift is 0"),
        (["--max-new-tokens", "100000"], "context"),
        (["--turns", "-1"], "turns is -1"),
        (["--turns", "2", "--items", "nope.json"], "nope.json"),
        (["--lexicon", "nope.txt"], "nope.txt"),
        (["--import-human", "nope.csv"], "No file of ratings at nope.csv"),
        (["--export-human", "held.txt"], "held.txt"),
    ],
)
def test_what_cannot_be_evaluated_is_refused_before_anything_is_chosen(
    given: list[str], said: str, tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "held.txt").write_text("held")
    monkeypatch.setattr("star_tl.evaluation.intervention.choose_intervention", None)
    whole = ["evaluate", "--task", "negotiation_politeness", "--model", str(tiny_folder), "--limit", "2", *given]
    result = CliRunner().invoke(app, [*whole, "--out", "out"])
    assert result.exit_code == 2, result.output
    assert said in result.output
    assert [p.name for p in tmp_path.iterdir()] == ["held.txt"]


def test_an_evaluation_says_what_was_added_and_how_strongly(folder, tiny, prompts, tmp_path: Path) -> None:
    vector = star.extract_vector(tiny, star.load_pairs("gratitude"), star.Locus("blocks.0.hook_resid_post"))
    own = star.Condition("x", vector, positions="generated")
    options = OPTIONS | {"side_effects": False}
    result = star.evaluate(tiny, "negotiation_politeness", prompts[:2], tmp_path, chosen=own, **options)
    strength = result.table.query("condition == 'chosen'").strength.iloc[0]
    assert result.settings["chosen"] == f"{vector}, added at generated, strength {strength:.3g}"
    for name in ("tables.md", "report.html"):
        assert "added at generated, strength" in (tmp_path / name).read_text(encoding="utf-8")
    assert "strength" in result.tables()["markers"].columns


def test_other_traits_are_compared_with_replies_of_the_same_seed(tiny, prompts, monkeypatch) -> None:
    kept: list[tuple[dict[str, Sequence[str]], Sequence[str]]] = []
    monkeypatch.setattr("star_tl.trial.trait_matrix", lambda *given: kept.append(given) or pd.DataFrame())
    result = star.evaluate(tiny, "negotiation_politeness", prompts[:2], seeds=(5, 6), **OPTIONS)
    ((texts, unsteered),) = kept
    first = result.samples[result.samples.seed == 5]
    assert unsteered == first[first.arm == "unsteered"].text.tolist()
    assert texts["politeness"] == first[first.arm == "located"].text.tolist()
    assert {len(own) for own in texts.values()} == {2}
