"""The command line as people use it: the whole road, and one clear line for every kind of bad input."""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from full_disk import no_file_above
from safetensors import safe_open
from typer.testing import CliRunner

import star_tl as star
from star_tl.cli import app
from star_tl.cli.tables import print_frame
from star_tl.pipeline import FILES

ARMS = ("unsteered", "steered", "random", "last_ranked_layer", "reply_mean_everywhere", "primed")
runner = CliRunner()


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A run on a few pairs and on prompts of our own: its folder and what it printed."""
    folder = tmp_path_factory.mktemp("run")
    whole, trait = star.load_pairs("emotional_support"), str(folder / "few.jsonl")
    replace(whole, pairs=(*whole.extraction.pairs[:14], *whole.heldout.pairs[:2])).save(trait)
    prompts = folder / "prompts.txt"
    prompts.write_text("I lost my job today and I am scared.\nMy exam went badly.\nI cannot sleep at night.\n")
    out = folder / "out"
    given = ["--trait", trait, "--prompts", str(prompts), "--out", str(out), "--seeds", "1"]
    result = runner.invoke(app, ["run", "--quick", *given])
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
    assert arms.arm.value_counts().to_dict() == {arm: 3 * (10 if arm == "random" else 1) for arm in ARMS}
    assert arms[arms.arm == "random"].text.nunique() > 1
    assert arms.coherent.isin([True, False]).all()
    assert arms[arms.arm == "unsteered"].drift.eq(0).all()
    assert arms[arms.arm == "steered"].drift.gt(0).all()
    scores = pd.read_csv(out / "scores.csv").set_index("arm")
    assert list(scores.index) == list(ARMS)
    assert scores.n.tolist() == [3 * (10 if arm == "random" else 1) for arm in ARMS]


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
    assert "prompt:    I lost my job today." in results[1].output
    assert f"unsteered: {results[0].output.strip()}" in results[1].output
    assert "steered:   " in results[1].output


def test_a_table_that_is_too_wide_goes_on_below_with_its_first_column(capsys: pytest.CaptureFixture[str]) -> None:
    wide = {"arm": ["steered"]} | {f"measure_{i}": [i / 7] for i in range(30)}
    print_frame(pd.DataFrame(wide), "All")
    printed = capsys.readouterr().out
    assert max(map(len, printed.splitlines())) <= 200
    assert all(name in printed for name in wide), "no heading is cut"
    assert printed.count("steered") > 1


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
    "a limit below one": (["run", "--prompts", "p.txt", "--limit", "-5"], "--limit"),
    "a mode of no file": (["run", "--mode", "both"], "--prompts"),
    "a limit of no file": (["sweep", "--limit", "3"], "--prompts"),
    "a head of no hook point": (["extract", "--out", "v.safetensors", "--head", "0"], "--hook-point"),
    "a hook point of heads without one": (
        ["extract", "--out", "v.safetensors", "--hook-point", "blocks.1.attn.hook_z"],
        "--head 0",
    ),
    "positions of no hook point": (["extract", "--out", "v.safetensors", "--positions", "junk"], "--hook-point"),
    "unknown positions": (["generate", "--prompt", "Hi", "--positions", "junk"], "Unknown positions"),
    "a place where generate adds nothing": (
        ["extract", "--out", "v.safetensors", "--hook-point", "blocks.0.hook_resid_pre"],
        "cannot be injected at",
    ),
    "a strength twice": (["sweep", "--strengths", "1,1"], "strengths names one twice"),
    "a layer twice": (["sweep", "--layers", "3,3"], "loci names one twice"),
    "unknown estimator": (["run", "--method", "apt"], "atp"),
    "unknown vector method": (["run", "--vector-method", "locatd"], "located"),
    "a drift on the quick road": (["run", "--quick", "--drift", "0.5"], "quick road"),
    "layers are words": (["sweep", "--layers", "a,b"], "Layers 'a,b' are not numbers: write them as 4,5"),
    "positions without a vector": (["generate", "--prompt", "Hi", "--positions", "generated"], "--vector"),
    "a strength without a vector": (["generate", "--prompt", "Hi", "--strength", "3"], "--vector"),
    "positions with a blank between": (["sweep", "--positions", "all, generatd"], "Unknown positions 'generatd'"),
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


def test_a_sweep_into_a_file_is_refused_before_a_model_is_loaded(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr("star_tl.models.load_model", None)
    (tmp_path / "held.txt").write_text("held")
    result = runner.invoke(app, ["sweep", "--out", str(tmp_path / "held.txt")])
    assert result.exit_code == 2
    assert result.output.endswith("held.txt is not a folder: name another.\n")


def test_an_estimator_that_cannot_choose_is_not_what_was_meant(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    result = runner.invoke(app, ["run", "--method", "attp"])
    assert "'atp'" in result.output
    assert "'exact'" not in result.output
    assert "no gradients to choose a layer by" in runner.invoke(app, ["run", "--method", "exact"]).output


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


def test_a_map_of_another_model_is_refused_and_one_of_another_trait_warned_of(
    finished: tuple[Path, str], tiny_folder: Path, tmp_path: Path
) -> None:
    made = tmp_path / "v.safetensors"
    arguments = ["extract", "--attribution", str(finished[0] / "attribution.safetensors"), "--out", str(made)]
    result = runner.invoke(app, [*arguments, "--model", str(tiny_folder)])
    assert result.exit_code == 2
    assert "map was computed with 'demo', not with" in result.output
    assert not made.exists()
    result = runner.invoke(app, [*arguments, "--trait", "gratitude"])
    assert result.exit_code == 0, result.output
    assert "the map is of 'emotional_support', the pairs are of 'gratitude'" in result.output
    assert made.exists()


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
    assert {p.name for p in tmp_path.iterdir()} == {"samples.jsonl", "samples.csv", "summary.csv", "report.html"}


SHORT = ["--max-new-tokens", "4"]


@pytest.mark.parametrize(
    "arguments",
    [
        ["attribute", "--out", "a.safetensors"],
        ["extract", "--hook-point", "blocks.1.hook_resid_post", "--out", "v.safetensors"],
        ["export", "gguf", "--vector", "other.safetensors", "--positions", "all", "--out", "v.gguf"],
        ["sweep", "--layers", "1", "--strengths", "1", *SHORT, "--out", "s"],
        ["run", "--quick", "--seeds", "1", *SHORT, "--out", "r"],
    ],
    ids=lambda arguments: arguments[0],
)
@pytest.mark.parametrize("size", [100, 3_000, 20_000])
def test_after_a_full_disk_the_same_command_goes_through_as_the_message_says(
    tiny_folder: Path, tmp_path: Path, monkeypatch, arguments: list[str], size: int
) -> None:
    monkeypatch.chdir(tmp_path)
    whole = star.load_pairs("emotional_support")
    replace(whole, pairs=(*whole.extraction.pairs[:3], *whole.heldout.pairs[:2])).save("few.jsonl")
    given = [*arguments, "--model", str(tiny_folder)]
    if arguments[0] == "export":
        made = ["extract", "--hook-point", "blocks.1.hook_resid_post", "--out", "other.safetensors"]
        assert runner.invoke(app, [*made, "--model", str(tiny_folder)]).exit_code == 0
    else:
        given += ["--trait", "few.jsonl"]
    with no_file_above(size):
        result = runner.invoke(app, given)
    if result.exit_code == 0:
        assert max(p.stat().st_size for p in tmp_path.rglob("*") if p.name != "few.jsonl") <= size
        return
    assert result.exit_code == 2, result.output
    assert "make room" in result.output.strip().splitlines()[-1]
    again = runner.invoke(app, given)
    assert again.exit_code == 0, again.output


def test_a_head_is_named_where_the_message_says(tiny_folder: Path, tmp_path: Path) -> None:
    made = tmp_path / "v.safetensors"
    given = ["--model", str(tiny_folder), "--hook-point", "blocks.1.attn.hook_z", "--out", str(made)]
    result = runner.invoke(app, ["extract", *given])
    assert result.exit_code == 2
    offered = re.search(r"on the command line (--head 0)", " ".join(result.output.split()))
    assert offered
    result = runner.invoke(app, ["extract", *given, *offered[1].split()])
    assert result.exit_code == 0, result.output
    assert star.SteeringVector.load(made).locus.head == 0


def test_import_is_instant() -> None:
    code = "import time; t = time.perf_counter(); import star_tl.cli; import sys; print('torch' in sys.modules)"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "False", "importing star_tl.cli must not import torch"


def command(*arguments: str, **options: Any) -> subprocess.CompletedProcess[str]:
    code = "from star_tl.cli import app; app()"
    return subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, **options)


def test_a_name_in_brackets_is_text_and_no_markup(tiny_folder: Path, tmp_path: Path) -> None:
    model = str(shutil.copytree(tiny_folder, tmp_path / "a[" / "b]c"))
    vector, prompts = str(tmp_path / "vector.safetensors"), tmp_path / "prompts.txt"
    prompts.write_text("Hello\n")
    made = ["extract", "--model", model, "--hook-point", "blocks.1.hook_resid_post", "--out", vector]
    assert runner.invoke(app, made).exit_code == 0
    given = ["--vector", vector, "--prompts", str(prompts), "--max-new-tokens", "2"]
    result = runner.invoke(app, ["sweep", "--model", model, *given[2:], "--layers", "1", "--out", str(tmp_path / "s")])
    assert result.exit_code == 0, result.output
    result = runner.invoke(app, ["extract", *made[1:-1], str(tmp_path / "again.safetensors")])
    assert result.exit_code == 0, result.output
    assert "a[/b]c" in "".join(result.output.split())  # which wraps


def test_a_terminal_without_the_letters_gets_marks_in_their_place(tiny_folder: Path, tmp_path: Path) -> None:
    arguments = ["generate", "--model", str(tiny_folder), "--prompt", "Hello", "--max-new-tokens", "8"]
    found = command(*arguments, env={**os.environ, "PYTHONIOENCODING": "ascii"})
    assert found.returncode == 0, found.stderr


def test_who_reads_along_may_leave(tiny_folder: Path) -> None:
    code = "from star_tl.cli import app; app()"
    many = [x for i in range(300) for x in ("--prompt", f"Hello {i}")]
    arguments = ["generate", "--model", str(tiny_folder), "--max-new-tokens", "40", *many]
    with subprocess.Popen(
        [sys.executable, "-c", code, *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        process.stdout.close()
        _, errors = process.communicate(timeout=120)
    assert "Traceback" not in errors
    assert "Exception ignored" not in errors


def test_no_pipe_or_device_is_replaced_by_a_file(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    for out in (pipe, Path("/dev/null")):
        result = runner.invoke(app, ["attribute", "--overwrite", "--out", str(out)])
        assert result.exit_code == 2
        assert "not a plain file" in result.output
    assert pipe.is_fifo()
    assert Path("/dev/null").is_char_device()


def test_a_link_is_followed_and_stays(tiny_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "far").mkdir()
    link = tmp_path / "map.safetensors"
    link.symlink_to(tmp_path / "far" / "real.safetensors")
    arguments = ["attribute", "--model", str(tiny_folder), "--trait", "agreement", "--out", str(link)]
    result = runner.invoke(app, arguments)
    assert result.exit_code == 0, result.output
    assert link.is_symlink()
    assert star.AttributionMap.load(tmp_path / "far" / "real.safetensors").trait == "agreement"


def test_a_vector_is_exported_or_refused_in_one_line(tiny: Any, tiny_folder: Path, tmp_path: Path) -> None:
    pairs, vector, out = star.load_pairs("agreement"), tmp_path / "v.safetensors", tmp_path / "v.gguf"
    star.extract_vector(tiny, pairs, star.Locus("blocks.1.hook_resid_post")).save(vector)
    export = ["export", "gguf", "--vector", str(vector), "--out", str(out)]
    quick = [*export, "--no-measure"]
    for arguments, said in (
        (quick, "cannot hold the positions"),
        ([*quick, "--every-token"], "leave --no-measure out"),
        ([*quick, "--trait", "agreement"], "leave --no-measure out"),
        ([*export, "--trait", "nonsense"], "nonsense"),
        (["export", "ggug", *export[2:]], "Did you mean 'gguf'"),
        ([*export, "--positions", "all", "--model", "demo"], "not from 'demo'"),
    ):
        refused = runner.invoke(app, arguments)
        assert refused.exit_code == 2
        assert said in refused.output
        assert len(refused.output.splitlines()) == 1
        assert list(tmp_path.iterdir()) == [vector]
    written = runner.invoke(app, [*quick, "--positions", "all"])
    assert written.exit_code == 0, written.output
    assert all(str(tmp_path / name) in written.output for name in ("v.gguf", "v.gguf.card.json", "v.gguf.card.md"))
    assert json.loads((tmp_path / "v.gguf.card.json").read_text())["measured"] == {}
    assert "exists" in runner.invoke(app, [*quick, "--positions", "all"]).output
    folder = ["export", "huggingface", "--vector", str(vector), "--out", str(tmp_path / "folded"), "--positions", "all"]
    folder += ["--no-measure"]
    assert runner.invoke(app, folder).exit_code == 0
    for more in ([], ["--overwrite"]):
        assert "new folder" in runner.invoke(app, [*folder, *more]).output


def test_a_vector_of_ones_own_trait_is_exported_with_its_pairs_or_unmeasured(tiny: Any, tmp_path: Path) -> None:
    pairs = star.load_pairs("agreement")
    mine = replace(pairs, trait=replace(pairs.trait, name="hope"))
    star.extract_vector(tiny, mine, star.Locus("blocks.1.hook_resid_post")).save(tmp_path / "v.safetensors")
    export = ["export", "snippet", "--vector", str(tmp_path / "v.safetensors"), "--out", str(tmp_path / "v.py")]
    refused = runner.invoke(app, export)
    assert (refused.exit_code, len(refused.output.splitlines())) == (2, 1)
    assert "--trait FILE" in refused.output
    assert "--no-measure" in refused.output
    assert runner.invoke(app, [*export, "--no-measure"]).exit_code == 0


def test_a_warning_is_a_line_without_the_code_that_gave_it(tiny_folder: Path, tmp_path: Path) -> None:
    lines = [
        json.dumps(
            {"trait": "hope", "positive_instruction": "Hope.", "negative_instruction": "Do not.", "markers": ["hope"]}
        )
    ]
    lines += [
        json.dumps({"context": f"Plan {i}?", "positive": f"I hope for {i}.", "negative": "No."}) for i in range(3)
    ]
    (tmp_path / "hope.jsonl").write_text("\n".join(lines))
    run = ["run", "--quick", "--trait", str(tmp_path / "hope.jsonl"), "--model", str(tiny_folder)]
    done = runner.invoke(app, [*run, "--seeds", "1", "--max-new-tokens", "4", "--out", str(tmp_path / "out")])
    assert done.exit_code == 0, done.output
    assert "UserWarning" not in done.output
    assert ".py" not in done.output
    assert any(line.startswith("star-tl: ") and "0 held out" in line for line in done.output.splitlines())


EFFECT = ("effect, points beside unsteered", "lower end of the effect's 95 %", "upper end of the effect's 95 %")


def test_what_a_format_cannot_hold_is_fitted_to_every_token_and_the_loss_is_printed(demo: Any, tmp_path: Path) -> None:
    lines = (Path(star.__file__).parent / "data" / "traits" / "agreement.jsonl").read_text().splitlines()
    (tmp_path / "few.jsonl").write_text("\n".join(lines[:5]) + "\n")
    # A model that is sure of its words: of random weights a text may change with its batch, by rounding.
    vector = star.extract_vector(demo, star.load_pairs("agreement"), star.Locus("blocks.1.hook_resid_post"))
    vector.save(tmp_path / "v.safetensors")
    out = tmp_path / "v.gguf"
    given = ["--vector", str(tmp_path / "v.safetensors"), "--out", str(out), "--strength", "6"]
    given += ["--trait", str(tmp_path / "few.jsonl")]
    result = runner.invoke(app, ["export", "gguf", *given])
    assert result.exit_code == 0, result.output
    assert "cannot hold the positions" in result.output
    card = json.loads((tmp_path / "v.gguf.card.json").read_text())
    drift = {arm: card["measured"][f"{arm}: drift, nats per token"] for arm in ("located", "every token", "unsteered")}
    assert 0 == drift["unsteered"] < drift["every token"] <= drift["located"]
    for arm, value in drift.items():
        assert f"{value:.3f}" in next(line for line in result.output.splitlines() if arm in line and "│" in line)
    assert card["positions"] == "all"
    assert 0 < card["strength"] < 6
    effects = [f"{arm}: {end}" for arm in ("every token", "located") for end in EFFECT]
    assert set(effects) <= set(card["measured"])
    given[3] = str(tmp_path / "steer.py")  # which can hold them
    assert runner.invoke(app, ["export", "snippet", *given]).exit_code == 0
    whole = json.loads((tmp_path / "steer.py.card.json").read_text())
    assert (whole["positions"], whole["strength"]) == ("[-1]", 6)
    located = {k: v for k, v in card["measured"].items() if not k.startswith("every")}
    assert whole["measured"] == pytest.approx(located, rel=1e-4)  # scored in another batch


@pytest.mark.parametrize("out", [".", "/", ""])
def test_an_export_needs_a_files_name(tiny: Any, tmp_path: Path, out: str) -> None:
    star.extract_vector(tiny, star.load_pairs("agreement"), star.Locus("blocks.1.hook_resid_post")).save(
        tmp_path / "v.safetensors"
    )
    done = runner.invoke(app, ["export", "gguf", "--vector", str(tmp_path / "v.safetensors"), "--out", out])
    assert (done.exit_code, len(done.output.splitlines())) == (2, 1)
    assert "is not a plain file" in done.output


def test_a_folder_is_served_by_its_name(tiny_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names: list[str] = []
    monkeypatch.setattr("star_tl.serve.run.serve", lambda model, vectors, name, *more: names.append(name))
    monkeypatch.chdir(tiny_folder)
    for given in (".", str(tiny_folder), "demo"):
        done = runner.invoke(app, ["serve", "--model", given])
        assert done.exit_code == 0, done.output
    assert names == [tiny_folder.name, tiny_folder.name, "demo"]


@pytest.mark.parametrize("beside", ["st.rows.safetensors", "st.py.card.json", "st.py.card.md"])
def test_what_an_export_writes_beside_its_file_is_not_replaced_unasked(tiny: Any, tmp_path: Path, beside: str) -> None:
    vector = star.extract_vector(tiny, star.load_pairs("agreement"), star.Locus("blocks.1.hook_resid_post"))
    vector.save(tmp_path / "v.safetensors")
    (tmp_path / beside).write_text("mine")
    export = ["export", "snippet", "--vector", str(tmp_path / "v.safetensors"), "--out", str(tmp_path / "st.py")]
    refused = runner.invoke(app, [*export, "--no-measure"])
    assert refused.exit_code == 2
    assert f"{beside} exists" in refused.output
    assert (tmp_path / beside).read_text() == "mine"
    assert runner.invoke(app, [*export, "--no-measure", "--overwrite"]).exit_code == 0
    assert (tmp_path / beside).read_bytes() != b"mine"
