"""A sweep or an evaluation on two workers is that of one process, also where a worker dies or the call is stopped."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

pytest.importorskip("ray", reason="pip install 'star_tl[ray]'")

import star_tl as star
from star_tl.errors import StarError
from star_tl.evaluation import ray_workers
from star_tl.evaluation.ray_workers import RayWorkers
from star_tl.locus import Locus

PAIRS = star.load_pairs("politeness")
SWEEP: dict[str, Any] = {
    "prompts": PAIRS.heldout.prompts[:6],
    "loci": [Locus("blocks.0.hook_resid_post"), Locus("blocks.1.hook_mlp_out", (-2, -1))],
    "strengths": (1.0, -2.0),
    "positions": ("locus", "generated"),
    "seeds": (0, 1),
    "max_new_tokens": 12,
    "batch_size": 16,
    "progress": False,
}


class Killed(RayWorkers):
    """Workers of whom one is killed as soon as the second piece of work is done."""

    started = 0

    def _started(self) -> Any:
        self.started += 1
        return super()._started()

    def run(self, method: str, pieces: Sequence[tuple[Any, ...]]) -> Iterator[tuple[int, Any]]:
        for n, found in enumerate(super().run(method, pieces)):
            if n == 1:
                self._ray.kill(self._actors[0])
            yield found


@pytest.fixture(scope="module")
def alone(tiny: Any, tmp_path_factory: pytest.TempPathFactory) -> tuple[pd.DataFrame, str]:
    """The table and the file of one process."""
    out = tmp_path_factory.mktemp("alone") / "samples.jsonl"
    return star.compare(tiny, PAIRS, out=out, **SWEEP).frame, out.read_text()


def test_two_workers_one_of_them_killed_make_the_table_of_one_process(
    tiny: Any, alone: tuple[pd.DataFrame, str], tmp_path: Path
) -> None:
    out = tmp_path / "samples.jsonl"
    with Killed(tiny, count=2) as workers:
        found = star.compare(tiny, PAIRS, out=out, workers=workers, **SWEEP).frame
        assert workers.started == 3, "not one was replaced while replies were written and scored"
    pd.testing.assert_frame_equal(found, alone[0], check_exact=True)
    assert out.read_text() == alone[1]


class Stopped(RayWorkers):
    """A worker whose caller is stopped after some pieces of work."""

    left = 12

    def run(self, method: str, pieces: Sequence[tuple[Any, ...]]) -> Iterator[tuple[int, Any]]:
        for found in super().run(method, pieces):
            if not self.left:
                raise KeyboardInterrupt
            self.left -= 1
            yield found


def test_an_evaluation_that_was_stopped_goes_on_to_the_tables_of_one_process(tiny: Any, tmp_path: Path) -> None:
    options: dict[str, Any] = {"max_new_tokens": 4, "progress": False, "drift": 0.05, "turns": 1}
    prompts = PAIRS.heldout.prompts[:2]
    star.evaluate(tiny, "joy", prompts, tmp_path / "alone", **options)
    with Stopped(tiny, count=1) as workers:
        with pytest.raises(KeyboardInterrupt):
            star.evaluate(tiny, "joy", prompts, tmp_path / "shared", workers=workers, **options)
        assert not (tmp_path / "shared/effects.csv").exists()
        workers.left = -1
        star.evaluate(tiny, "joy", prompts, tmp_path / "shared", workers=workers, **options)
    files = sorted(p.relative_to(tmp_path / "alone") for p in (tmp_path / "alone").rglob("*.jsonl"))
    assert len(files) > 5
    for name in ("effects.csv", "against.csv", "samples.csv", "tables.md", *files):
        assert (tmp_path / "shared" / name).read_bytes() == (tmp_path / "alone" / name).read_bytes(), name


def test_what_a_worker_finds_is_said_as_it_is(tiny: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    class Deadly:
        def __reduce__(self) -> Any:
            return __import__("os")._exit, (1,)

    changed = star.load_model(tiny.cfg.model_name)
    changed.blocks[0].mlp.W_out.data *= 2
    monkeypatch.setattr(ray_workers, "_TRIES", 1)
    piece = PAIRS.trait, PAIRS.prompts[:2], [], star.Condition()
    with RayWorkers(changed, count=1) as workers:
        with pytest.raises(StarError, match="another model on a worker"):
            list(workers.run("score", [piece]))
        with pytest.raises(StarError, match="1 workers died"):
            list(workers.run("score", [(Deadly(), *piece[1:])]))


def test_what_cannot_be_started_is_one_line(tiny: Any) -> None:
    with pytest.raises(StarError, match="at least 1"):
        RayWorkers(tiny, count=0)
    with pytest.raises(StarError, match="no Ray cluster"):
        RayWorkers(tiny, "auto")
