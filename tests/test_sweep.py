"""A sweep's batches write what single calls write; a killed sweep ends as one that ran through."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import star_tl as star
from star_tl.errors import StarError
from star_tl.injection import injection_hooks, row_hooks
from star_tl.locus import Locus

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
        ({"temperature": -1.0}, "temperature is"),
    ],
)
def test_a_bad_grid_is_refused_before_anything_is_written(tiny, pairs, options, message, tmp_path: Path) -> None:
    with pytest.raises(StarError, match=message):
        grid(tiny, pairs, out=tmp_path / "samples.jsonl", **options)
    assert not list(tmp_path.iterdir())


def test_a_file_of_another_sweep_is_refused_and_kept(tiny, pairs, tmp_path: Path) -> None:
    out = tmp_path / "samples.jsonl"
    grid(tiny, pairs, out=out)
    before = out.read_bytes()
    with pytest.raises(StarError, match="holds the samples of another sweep"):
        grid(tiny, pairs, out=out, strengths=(3.0,))
    assert out.read_bytes() == before


SCRIPT = """
import sys, star_tl as star
from star_tl.locus import Locus
model = star.load_model(sys.argv[1])
pairs = star.load_pairs("politeness")
print("ready", flush=True)
loci = [Locus("blocks.1.hook_resid_post"), Locus("blocks.2.hook_resid_post")]
found = star.compare(
    model, pairs, ["I lost my job.", "My dog is ill."], loci=loci,
    strengths=(1.0, 2.0), seeds=range(4), max_new_tokens=24, batch_size=2, out=sys.argv[2], progress=False,
)
found.to_frame().to_json(sys.argv[3], orient="records")
"""


def test_a_sweep_killed_ten_times_ends_as_one_that_ran_through(tiny_folder: Path, tmp_path: Path) -> None:
    def start(name: str) -> subprocess.Popen[str]:
        arguments = [str(tiny_folder), str(tmp_path / f"{name}.jsonl"), str(tmp_path / f"{name}.json")]
        environment = os.environ | {"OMP_NUM_THREADS": "1"}
        command = [sys.executable, "-c", SCRIPT, *arguments]
        return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)

    assert start("whole").wait() == 0
    samples = tmp_path / "killed.jsonl"
    grown = []
    for attempt in range(10):
        process = start("killed")
        assert process.stdout is not None
        process.stdout.readline()
        begun = len(samples.read_bytes()) if samples.exists() else 0
        deadline = time.monotonic() + 60
        # Killed once it has written something new, at moments that differ from attempt to attempt.
        while time.monotonic() < deadline and process.poll() is None:
            if samples.exists() and len(samples.read_bytes()) > begun:
                break
            time.sleep(0.002)
        time.sleep(0.013 * attempt)
        process.send_signal(signal.SIGKILL)
        process.wait()
        grown.append(len(samples.read_bytes()))
        if attempt % 3 == 0:  # as if the kill had hit in the middle of a line
            samples.write_bytes(samples.read_bytes()[:-3])
    assert len(set(grown)) > 3, "the kills must hit a sweep at work"
    assert start("killed").wait() == 0
    whole, killed = (json.loads((tmp_path / f"{n}.json").read_text()) for n in ("whole", "killed"))
    assert killed == whole
