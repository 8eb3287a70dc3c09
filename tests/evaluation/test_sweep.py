"""A sweep's batches write what single calls write; a killed sweep ends as one that ran through."""

from __future__ import annotations

import itertools
import json
import random
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from forked import Forks, forks
from full_disk import no_file_above

import star_tl as star
from star_tl.errors import StarError
from star_tl.evaluation import samples, scores, sweep
from star_tl.generation import samples_file
from star_tl.locus import Locus
from star_tl.steering.condition import Condition
from star_tl.steering.hooks import injection_hooks, row_hooks

PROMPTS = ["I lost my job.", "My dog is ill and I cannot sleep at all.", "Would you take $40 for the lamp?"]
LOCI = [
    Locus("blocks.1.hook_resid_post", (-1,)),
    Locus("blocks.2.hook_attn_out", (-2, -1)),
    Locus("blocks.0.attn.hook_z", (-1,), 2),
]


@pytest.fixture(scope="module")
def pairs() -> star.Pairs:
    built_in = star.load_pairs("politeness")
    return replace(built_in, pairs=built_in.pairs[:4])


def grid(model: Any, pairs: star.Pairs, **more: Any) -> star.Comparison:
    options: dict[str, Any] = {
        "loci": LOCI,
        "strengths": (1.0, -2.0),
        "positions": ("locus", "generated"),
        "seeds": (0, 5),
        "max_new_tokens": 8,
        "batch_size": 7,
        "progress": False,
    }
    return star.compare(model, pairs, PROMPTS, **(options | more))


@pytest.mark.parametrize("temperature", [0.0, 0.8])
def test_every_row_of_a_sweep_is_what_a_call_of_its_own_writes(tiny, pairs, temperature: float) -> None:
    frame = grid(tiny, pairs, temperature=temperature).to_frame()
    assert len(frame) == len(PROMPTS) * 2 * (1 + len(LOCI) * 2 * 2)
    for (locus, positions, strength, seed), rows in frame.groupby(["locus", "positions", "strength", "seed"]):
        hooks = []
        if locus:
            (place,) = (x for x in LOCI if str(x) == locus)
            hooks = star.extract_vector(tiny, pairs, place).hooks(strength, positions)
        options = {"seed": seed, "temperature": temperature, "max_new_tokens": 8, "progress": False}
        alone = [star.sample(tiny, [p], hooks, **options)[0] for p in PROMPTS]
        assert list(rows.text) == alone, (locus, positions, strength, seed)
    assert frame[frame.arm == "steered"].text.nunique() > frame[frame.arm == "unsteered"].text.nunique()


def test_a_prompt_that_stands_there_twice_is_no_evidence_a_second_time(tiny, pairs) -> None:
    options = {"loci": [star.Locus("blocks.1.hook_resid_post")], "strengths": [1.0], "max_new_tokens": 3}
    twice = star.compare(tiny, pairs, ["Hi", "Oh", "Hi"], progress=False, **options)
    once = star.compare(tiny, pairs, ["Hi", "Oh"], progress=False, **options)
    pd.testing.assert_frame_equal(twice.to_frame(), once.to_frame())


def test_rows_of_one_batch_are_steered_each_in_its_own_way(tiny) -> None:
    tokens = torch.arange(20).view(4, 5) + 10
    noise = torch.Generator().manual_seed(0)
    width = (32, 32, 8)
    ways = [(torch.randn(len(x.positions), w, generator=noise), x, None) for x, w in zip(LOCI, width, strict=True)]
    ways.insert(1, None)  # type: ignore[arg-type]
    together = tiny.run_with_hooks(tokens, fwd_hooks=row_hooks(ways))
    plain = tiny(tokens)
    for i, way in enumerate(ways):
        alone = tiny.run_with_hooks(tokens[i : i + 1], fwd_hooks=injection_hooks(*way) if way else [])
        torch.testing.assert_close(together[i : i + 1], alone, rtol=1e-5, atol=1e-5)
        if way:
            assert (together[i] - plain[i]).abs().max() > 1e-3


def test_the_summary_and_the_best_way_follow_from_the_samples(tiny, pairs) -> None:
    found = grid(tiny, pairs)
    table = found.summary()
    assert len(table) == 1 + len(LOCI) * 2 * 2
    frame = found.to_frame()
    for row in table.itertuples():
        mine = frame[(frame.locus == row.locus) & (frame.positions == row.positions) & (frame.strength == row.strength)]
        assert row.n == len(mine)
        assert row.trait_rate == pytest.approx((mine.shows & mine.coherent).mean())
        assert row.drift == pytest.approx(mine.drift.mean())
    best = found.best(limit=1e9)
    assert best.trait_rate == table[table.arm == "steered"].trait_rate.max()
    with pytest.raises(StarError, match="No way to steer stays within"):
        found.best(limit=-1.0)
    figure = found.plot()
    assert figure.data[0].z.shape == (len(LOCI) * 2, 2)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"strengths": []}, "strengths is"),
        ({"strengths": ["much"]}, "strength is 'much'"),
        ({"positions": "locus"}, "positions is 'locus': give a list"),
        ({"positions": ["nowhere"]}, "Unknown positions 'nowhere'"),
        ({"loci": [Locus("blocks.7.hook_resid_post")]}, "no hook point"),
        ({"loci": [LOCI[0], Locus("blocks.1.hook_resid_post", (-400,))]}, "shorter than the locus's position -400"),
        ({"positions": ["locus", "system"]}, "no span .system."),
        ({"strengths": [1.0, float("nan")]}, "strength is nan"),
        ({"seeds": [0, 0.5]}, "seed is 0.5"),
        ({"method": "locatd"}, "Did you mean 'located'"),
        ({"max_new_tokens": 10_000}, "exceeds the model's context"),
        ({"temperature": -1.0}, "temperature is"),
    ],
)
def test_a_bad_grid_is_refused_before_vectors_are_extracted_or_anything_is_written(
    tiny, pairs, options, message, tmp_path: Path, monkeypatch
) -> None:
    monkeypatch.setattr(sweep, "extract_vectors", lambda *args, **more: pytest.fail("work began"))
    with pytest.raises(StarError, match=message):
        grid(tiny, pairs, out=tmp_path / "samples.jsonl", **options)
    assert not list(tmp_path.iterdir())


def test_a_file_of_another_sweep_is_refused_and_kept(tiny, pairs, tmp_path: Path) -> None:
    out = tmp_path / "samples.jsonl"
    grid(tiny, pairs, out=out)
    before = out.read_bytes()
    with pytest.raises(StarError, match="holds the samples of another call"):
        grid(tiny, pairs, out=out, strengths=(3.0,))
    assert out.read_bytes() == before


def test_a_file_of_other_pairs_is_refused(tiny, pairs, tmp_path: Path) -> None:
    out = tmp_path / "samples.jsonl"
    grid(tiny, pairs, out=out)
    marked = replace(pairs, trait=replace(pairs.trait, markers=("the",)))
    assert grid(tiny, marked, out=out).to_frame().shows.any(), "markers only score what was written"
    with pytest.raises(StarError, match="holds the samples of another call"):
        grid(tiny, replace(pairs, pairs=pairs.pairs[1:]), out=out)


def test_a_call_that_would_write_other_texts_is_another_one(tiny_folder: Path) -> None:
    """In bfloat16 texts depend on what shares their batch; elsewhere a batch size changes nothing."""

    def call(batch_size: int | None = None, **loading: Any) -> dict[str, object]:
        model = star.load_model(str(tiny_folder), **loading)
        return samples.describe(model, [[(1, 5)]], [Condition()], star.Sampling(batch_size=batch_size))

    assert call() == call(batch_size=3)
    assert call(dtype="bfloat16") == call(dtype="bfloat16")
    assert call(dtype="bfloat16") != call(dtype="bfloat16", batch_size=3)
    others = [call(dtype="bfloat16"), call(backend="bridge"), call(first_n_layers=2)]
    assert all(other != call() for other in others)


def replies_in(path: Path) -> list[dict[str, Any]]:
    """What the file holds, every line of it whole."""
    text = path.read_text()
    assert text.endswith("\n")
    return [row for row in map(json.loads, text.splitlines()[1:]) if "text" in row]


def count_sampled(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many replies each batch writes anew."""
    sampled: list[int] = []
    written = scores.in_batches

    def counted(model, prompts, *args, **options):
        sampled.append(len(prompts))
        return written(model, prompts, *args, **options)

    monkeypatch.setattr(scores, "in_batches", counted)
    return sampled


def test_a_sweep_goes_on_with_what_is_missing_and_no_more(tiny, pairs, tmp_path: Path, monkeypatch) -> None:
    out = tmp_path / "samples.jsonl"
    alone: dict[str, Any] = {"batch_size": 1}  # else all that shares a batch with what is missing is written again
    whole = grid(tiny, pairs, out=out, **alone).to_frame()
    sampled = count_sampled(monkeypatch)
    lines = [line for line in out.read_text().splitlines(keepends=True) if '"scores"' not in line]
    assert len(lines) == 1 + len(whole)
    for text, missing in (
        ("".join(lines), 0),
        ("".join(lines[:-5]), 5),
        ("".join(lines[:-5]) + lines[-5][:20], 5),  # killed in the middle of a line
        ("".join(lines[:-5]) + lines[-5][:-1], 5),  # or just before its end
        ("".join(lines[:1]), len(whole)),
        (lines[0][:30], len(whole)),
        ("", len(whole)),
    ):
        out.write_text(text)
        pd.testing.assert_frame_equal(grid(tiny, pairs, out=out, **alone).to_frame(), whole)
        assert sum(sampled) == missing
        sampled.clear()
        assert len(replies_in(out)) == len(whole)


def test_a_batch_that_lacks_a_row_is_written_again_to_the_last_bit(tiny, pairs, tmp_path: Path, monkeypatch) -> None:
    out = tmp_path / "samples.jsonl"
    grid(tiny, pairs, out=out, batch_size=3)
    whole = out.read_bytes()
    lines = [line for line in out.read_text().splitlines(keepends=True) if '"scores"' not in line]
    sampled = count_sampled(monkeypatch)
    out.write_text("".join(lines[:2] + lines[3:]))
    grid(tiny, pairs, out=out, batch_size=3)
    assert sampled == [3]
    assert out.read_bytes() == whole


def test_a_disk_that_fills_up_costs_no_line_that_was_written(tiny, pairs, tmp_path: Path, monkeypatch) -> None:
    alone: dict[str, Any] = {"batch_size": 1}
    whole = grid(tiny, pairs, out=tmp_path / "whole.jsonl", **alone).to_frame()
    size = (tmp_path / "whole.jsonl").read_bytes().index(b'"scores"')  # what comes after is soon made anew
    out = tmp_path / "samples.jsonl"
    with no_file_above(size * 2 // 3), pytest.raises(StarError, match=r"cannot be written to \([^\n]+what it holds is"):
        grid(tiny, pairs, out=out, **alone)
    kept = out.read_text().count("\n") - 1
    assert len(whole) / 3 < kept < len(whole)
    before = out.read_bytes()
    sampled = count_sampled(monkeypatch)
    with no_file_above(size // 2), pytest.raises(StarError, match=r"cannot be written to \([^\n]+make room"):
        grid(tiny, pairs, out=out, **alone)
    assert not sampled
    assert out.read_bytes() == before
    pd.testing.assert_frame_equal(grid(tiny, pairs, out=out, **alone).to_frame(), whole)
    assert sum(sampled) == len(whole) - kept


def test_a_full_disk_is_found_before_anything_is_sampled(tiny, pairs, tmp_path: Path, monkeypatch) -> None:
    sampled = count_sampled(monkeypatch)
    out = tmp_path / "samples.jsonl"
    with no_file_above(100), pytest.raises(StarError, match=r"cannot be written to \([^\n]+make room"):
        grid(tiny, pairs, out=out)
    assert not list(tmp_path.iterdir())
    monkeypatch.setattr(samples_file.shutil, "disk_usage", lambda path: type("Usage", (), {"free": 2000}))
    with pytest.raises(StarError, match=r"needs 0.[0-9] MB, but only 0.0 MB are free: make room"):
        grid(tiny, pairs, out=out, max_new_tokens=400)
    assert not sampled


@pytest.mark.parametrize("name", ["a file/samples.jsonl", ".", "/dev/full", "/proc/samples.jsonl"])
def test_a_place_that_takes_no_file_is_refused_before_vectors_are_extracted(
    tiny, pairs, tmp_path: Path, monkeypatch, name: str
) -> None:
    (tmp_path / "a file").write_text("kept")
    monkeypatch.setattr(sweep, "extract_vectors", lambda *args, **more: pytest.fail("work began"))
    with pytest.raises(StarError, match=r"^[^\n]+(cannot be written to|is not a plain file)[^\n]+$"):
        grid(tiny, pairs, out=tmp_path / name)
    assert [(p.name, p.read_text()) for p in tmp_path.iterdir()] == [("a file", "kept")]


@contextmanager
def interrupted(monkeypatch: pytest.MonkeyPatch, step: int, later: float) -> Iterator[None]:
    """What Ctrl-C does, so many seconds after a sweep's step is begun, or when the next one is.

    Step 0 extracts vectors and goes on with what is there, every other one is a batch.
    """
    begun = itertools.count()

    def counted(work: Callable[..., Any]) -> Callable[..., Any]:
        def wrapped(*args: Any, **options: Any) -> Any:
            number = next(begun)
            if number == step:
                signal.setitimer(signal.ITIMER_REAL, later)
            elif number > step:
                signal.setitimer(signal.ITIMER_REAL, 0)
                raise KeyboardInterrupt
            return work(*args, **options)

        return wrapped

    before = signal.signal(signal.SIGALRM, signal.default_int_handler)
    try:
        with monkeypatch.context() as patch:
            patch.setattr(sweep, "extract_vectors", counted(sweep.extract_vectors))
            patch.setattr(scores, "in_batches", counted(scores.in_batches))
            yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def test_ctrl_c_leaves_a_readable_table_and_nothing_is_sampled_twice(tiny, pairs, tmp_path: Path, monkeypatch) -> None:
    options: dict[str, Any] = {"batch_size": 2, "seeds": range(8), "loci": LOCI[:1]}
    grid(tiny, pairs, out=tmp_path / "whole.jsonl", **options)
    whole = replies_in(tmp_path / "whole.jsonl")
    by_row = {(r["condition"], r["prompt"]): r for r in whole}
    out, held, chance = tmp_path / "samples.jsonl", 0, random.Random(0)
    for step in (0, 3, 0, 2, 5, 0, 4, 2, 5, 3):
        with interrupted(monkeypatch, step, chance.uniform(0.0001, 0.05)), pytest.raises(KeyboardInterrupt):
            grid(tiny, pairs, out=out, **options)
        found = replies_in(out) if out.exists() else []
        assert all(by_row[r["condition"], r["prompt"]] == r for r in found)
        assert len(found) >= held + 2 * max(0, step - 1), "what was written is lost"
        held = len(found)
    sampled = count_sampled(monkeypatch)
    grid(tiny, pairs, out=out, **options)
    assert sum(sampled) == len(whole) - held > 0
    assert {(r["condition"], r["prompt"]): r for r in replies_in(out)} == by_row


SWEEP = """
from star_tl.locus import Locus
pairs = star.load_pairs("politeness")
loci = [Locus("blocks.1.hook_resid_post"), Locus("blocks.2.hook_resid_post")]

def work(model, files):
    samples, table = files
    found = star.compare(
        model, pairs, ["I lost my job.", "My dog is ill."], loci=loci, strengths=(1.0, 2.0), seeds=range(10),
        max_new_tokens=24, batch_size=2, out=samples, progress=False,
    )
    found.to_frame().to_json(table, orient="records")
"""


@pytest.fixture
def sweeps(tiny_folder: Path) -> Iterator[Forks]:
    with forks(tiny_folder, SWEEP) as found:
        yield found


def test_a_sweep_killed_ten_times_ends_as_one_that_ran_through(sweeps: Forks, tmp_path: Path) -> None:
    def files(name: str) -> list[str]:
        return [str(tmp_path / name / "samples.jsonl"), str(tmp_path / f"{name}.json")]

    sweeps.run(files("whole"))
    samples = Path(files("killed")[0])
    lines, chance = b"", random.Random(0)
    for attempt in range(10):
        # The first files are opened to begin again; of the hundred that a sweep opens all ten leave some for the end.
        sweeps.kill(files("killed"), samples.parent, chance.randint(6, 10), chance.uniform(0.0001, 0.01))
        held = samples.read_bytes()
        assert held.startswith(lines), "what was written is lost"
        if attempt % 3 == 0:  # as if the kill had hit in the middle of a line
            held = held[:-3]
            samples.write_bytes(held)
        lines = held[: held.rfind(b"\n") + 1]
    assert len(lines.splitlines()) > 20
    assert not (tmp_path / "killed.json").exists()
    sweeps.run(files("killed"))
    whole, killed = (json.loads((tmp_path / f"{n}.json").read_text()) for n in ("whole", "killed"))
    assert killed == whole
