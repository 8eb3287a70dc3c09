"""Samples of many ways to steer, in few large batches: written as they come, and resumed where they stopped."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pandas as pd
from torch import Tensor
from tqdm.auto import tqdm

from star_tl.data.chat import Prompt, resolve_span
from star_tl.data.pairs import Trait
from star_tl.errors import StarError
from star_tl.evaluation.scores import REFERENCE, score
from star_tl.generation.sampling import Reply, Sampling, in_batches, render_prompts
from star_tl.locus import Locus, NamedHook
from star_tl.models.backend import Model
from star_tl.models.load import fingerprint
from star_tl.steering.hooks import row_hooks
from star_tl.vectors import SteeringVector

BYTES_PER_TOKEN = 24  # of a samples file, about: an id and its text


@dataclass(frozen=True)
class Way:
    """One way to steer, with its seed: a vector at a strength and schedule, or none."""

    vector: SteeringVector | None = None
    strength: float = 0.0
    positions: str | None = None
    seed: int = 0

    @property
    def key(self) -> tuple[str, str, str, float, int]:
        """What tells it from others: locus, method, schedule, strength, seed."""
        if self.vector is None:
            return ("", "", "", self.strength, self.seed)
        return (str(self.vector.locus), self.vector.method, self.positions or "locus", self.strength, self.seed)


def sample_ways(
    model: Model,
    trait: Trait,
    prompts: Sequence[Prompt],
    ways: Sequence[Way],
    options: Sampling,
    out: str | Path | None = None,
    progress: bool = True,
    source: str = "",
) -> pd.DataFrame:
    """Samples and scores of every way on every prompt, in few large batches; columns as in :class:`Comparison`.

    ``source`` tells what the vectors were extracted from: samples in ``out`` of another source are another sweep's.

    Raises:
        StarError: a prompt that leaves no room, or ``out`` holds the samples of another sweep, or cannot be written
            to; what was written before is kept, and an equal call goes on from there.
    """
    ids = render_prompts(model, prompts, options.max_new_tokens)
    rows = [(w, i) for w in range(len(ways)) for i in range(len(prompts))]
    call: dict[str, Any] = {"model": fingerprint(model), "trait": trait.name, "prompts": [list(x) for x in ids]}
    call |= {"source": source, "ways": [list(w.key) for w in ways]}
    call |= {k: v for k, v in asdict(options).items() if k != "batch_size"}
    done = _resume(Path(out), call) if out is not None else {}
    todo = [row for row in rows if row not in done]
    if out is not None:
        _check_room(Path(out), len(todo) * options.max_new_tokens)

    def steer(way: Way, prompt: Prompt) -> tuple[Tensor, Locus, str | Sequence[int] | None] | None:
        if way.vector is None:
            return None
        at = resolve_span(model.tokenizer, prompt, way.positions)
        return way.vector.scaled(way.strength), way.vector.locus, at

    def hooks_of(batch: list[int]) -> list[NamedHook]:
        return row_hooks([steer(ways[todo[k][0]], prompts[todo[k][1]]) for k in batch])

    seeds_of, prompts_of = [ways[w].seed for w, _ in todo], [ids[i] for _, i in todo]
    for batch, replies in in_batches(model, prompts_of, seeds_of, hooks_of, options, progress):
        found = {todo[k]: reply for k, reply in zip(batch, replies, strict=True)}
        if out is not None:
            _append(Path(out), found)
        done |= found

    frames = []
    for w, way in enumerate(tqdm(ways, desc="scoring", unit="way", disable=not progress, delay=2)):
        replies = [done[w, i] for i in range(len(prompts))]
        frame = score(model, trait, prompts, replies, way.vector, way.strength, way.positions)
        label = {
            "prompt_id": [f"p{i:03d}" for i in range(len(prompts))],
            "arm": "steered" if way.vector else REFERENCE,
            "locus": way.key[0],
            "layer": way.vector.locus.layer if way.vector else -1,
            "positions": way.key[2],
            "strength": way.strength,
            "seed": way.seed,
        }
        frames.append(pd.concat([pd.DataFrame(label), frame], axis=1))
    return pd.concat(frames, ignore_index=True)


def check_samples_file(path: Path) -> None:
    """Raises StarError where no samples can be written; leaves nothing behind."""
    try:
        if path.exists() and not path.is_file():
            raise StarError(f"{path} is not a file: name a file for the samples.")
        with tempfile.TemporaryFile(dir=next(folder for folder in path.parents if folder.exists())) as probe:
            probe.write(bytes(BYTES_PER_TOKEN))
    except OSError as error:
        raise _unwritable(path, error) from None


def _check_room(path: Path, tokens: int) -> None:
    needed, free = (n / 1e6 for n in (BYTES_PER_TOKEN * tokens, shutil.disk_usage(path.parent).free))
    if needed > free:
        raise StarError(f"{path} needs {needed:.0f} MB, but only {free:.0f} are free: make room or name another file.")


def _unwritable(path: Path, error: OSError) -> StarError:
    return StarError(f"{path} cannot be written to ({error.strerror}): make room there or name another file.")


def _resume(path: Path, call: dict[str, Any]) -> dict[tuple[int, int], Reply]:
    """The samples that an equal call left in the file; a new file gets the call as its first line."""
    check_samples_file(path)
    try:
        lines = path.read_text(encoding="utf-8", errors="replace").split("\n") if path.exists() else []
    except OSError:
        raise StarError(f"{path} cannot be read as samples of a sweep: name another file.") from None
    head, *samples = lines or [""]
    wanted = json.dumps(call)
    if head != wanted and not (wanted.startswith(head) and not samples):  # a first line cut off is a new file
        raise StarError(f"{path} holds the samples of another sweep: name another file.")
    whole = samples[:-1]  # what follows the last line end was cut off in the middle
    partial = path.with_name(f".{path.name}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        partial.write_text("".join(f"{line}\n" for line in [wanted, *whole]), encoding="utf-8")
        os.replace(partial, path)
    except OSError as error:
        partial.unlink(missing_ok=True)
        raise _unwritable(path, error) from None
    found = {}
    for line in whole:
        row = json.loads(line)
        found[row["way"], row["prompt"]] = Reply(row["text"], tuple(row["tokens"]), row["stopped"])
    return found


def _append(path: Path, found: dict[tuple[int, int], Reply]) -> None:
    rows = [
        {"way": way, "prompt": prompt, "text": r.text, "tokens": r.tokens, "stopped": r.stopped}
        for (way, prompt), r in found.items()
    ]
    text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    try:
        with path.open("a", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        raise StarError(
            f"{path} cannot be written to ({error.strerror}): make room there and call again; what it holds is kept."
        ) from None
