"""Compare loci and strengths: a grid of ways to steer, sampled as a few large batches.

Rows of one batch carry different vectors, places and strengths, so that the number of passes depends on the
number of replies and not on how many ways to steer there are. Samples are written to disk as they come; a
sweep that was stopped goes on where it was.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd
from torch import Tensor
from tqdm.auto import tqdm

from star_tl.chat import SPANS, Prompt, as_messages, resolve_span
from star_tl.errors import StarError
from star_tl.injection import NamedHook, row_hooks
from star_tl.locus import Locus
from star_tl.models.load import fingerprint
from star_tl.pairs import Pairs, Trait
from star_tl.reading import Model
from star_tl.sampling import Reply, Sampling, check_arguments, in_batches, render_prompts
from star_tl.scores import REFERENCE, mark_coherent, score
from star_tl.vectors import SteeringVector, extract_vector

if TYPE_CHECKING:
    import plotly.graph_objects as go

BYTES_PER_TOKEN = 24  # of a samples file, about: an id and its text


@dataclass(frozen=True)
class Comparison:
    """Samples of a grid of ways to steer: a row per prompt, locus, schedule, strength and seed.

    Columns beside the scores of :func:`star_tl.score`: ``prompt_id``, ``arm`` (``unsteered`` or ``steered``),
    ``locus``, ``layer``, ``positions`` (the schedule), ``strength``, ``seed``, ``coherent``.
    """

    trait: str
    frame: pd.DataFrame

    def to_frame(self) -> pd.DataFrame:
        """The samples."""
        return self.frame

    def summary(self) -> pd.DataFrame:
        """A row per way to steer: rate of coherent replies with the trait, and the drift it cost."""
        frame = self.frame.assign(trait_rate=self.frame.shows & self.frame.coherent)
        grouped = frame.groupby(["arm", "locus", "layer", "positions", "strength"], sort=False)
        columns = {"trait_rate": "trait_rate", "coherent_rate": "coherent", "drift": "drift"}
        table = grouped.agg(**{k: (v, "mean") for k, v in columns.items()}, n=("text", "size")).reset_index()
        unsteered = table.loc[table.arm == REFERENCE, "trait_rate"].iloc[0]
        return table.assign(difference=table.trait_rate - unsteered)

    def best(self, limit: float) -> pd.Series:
        """The way to steer with the highest trait rate at a drift of at most ``limit`` nats per token.

        Raises:
            StarError: none keeps the limit.
        """
        steered = self.summary().query("arm != @REFERENCE and drift <= @limit")
        if steered.empty:
            raise StarError(f"No way to steer stays within {limit:g} nat drift: try lower strengths.")
        return steered.sort_values(["trait_rate", "drift"], ascending=[False, True]).iloc[0]

    def plot(self) -> go.Figure:
        """Heatmap of the trait rate over loci and strengths."""
        from star_tl.plots import plot_comparison

        return plot_comparison(self)

    def _repr_html_(self) -> str:
        from star_tl.cards import table_card

        table = self.summary().drop(columns=["arm", "layer"])
        shown = {"trait_rate": "{:.0%}", "coherent_rate": "{:.0%}", "difference": "{:+.0%}", "drift": "{:.3f}"}
        return table_card(repr(self), table, shown)

    def __repr__(self) -> str:
        ways = len(self.summary()) - 1
        return f"Comparison({self.trait}: {ways} ways to steer, {len(self.frame)} replies)"


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


def compare(
    model: Model,
    pairs: Pairs,
    prompts: Sequence[Prompt] | None = None,
    loci: Sequence[Locus] | None = None,
    strengths: Sequence[float] = (1.0, 2.0, 3.0),
    positions: Sequence[str] = ("locus",),
    seeds: Sequence[int] = (0,),
    method: str = "located",
    max_new_tokens: int = 60,
    temperature: float = 0.8,
    top_p: float = 1.0,
    batch_size: int = 64,
    out: str | Path | None = None,
    progress: bool = True,
) -> Comparison:
    """Sample every combination of locus, strength, schedule and seed on every prompt, beside unsteered replies.

    Args:
        model: from :func:`star_tl.load_model`.
        pairs: where the vectors are extracted from (its extraction split), one at each locus.
        prompts: what to reply to; default the held-out contexts of ``pairs``.
        loci: where to extract and inject; default ``resid_post`` of every layer at the last prompt token.
        strengths: 1 is the natural difference; negative ones turn the trait down.
        positions: schedules, see :func:`star_tl.schedules.schedule`, or spans of the chat, see
            :func:`star_tl.chat.span_positions`.
        seeds: one reply per combination and seed.
        method: how vectors are extracted, see :func:`star_tl.extract_vector`.
        max_new_tokens, temperature, top_p, batch_size: as in :func:`star_tl.generate`.
        out: a JSONL file of samples; one that an equal call began is completed.
        progress: show progress bars.

    Raises:
        StarError: bad arguments, or ``out`` cannot be written to or holds the samples of another sweep.
    """
    chosen = [as_messages(p) for p in (prompts if prompts is not None else pairs.heldout.prompts)]
    options = Sampling(max_new_tokens, temperature, top_p, batch_size=batch_size)
    check_arguments(chosen, 0)
    places = loci or [Locus(f"blocks.{i}.hook_resid_post", (-1,)) for i in range(model.cfg.n_layers)]
    for name, values in (("strengths", strengths), ("positions", positions), ("seeds", seeds)):
        if isinstance(values, str) or not len(values):
            raise StarError(f"{name} is {values!r}: give a list with at least one.")
    if out is not None:
        _check_file(Path(out))  # before vectors are extracted, which takes minutes on a large model
    vectors = [extract_vector(model, pairs, locus, method=method) for locus in places]
    for vector in vectors:
        for strength in strengths:
            for schedule in positions:
                vector.hooks(strength, None if schedule in SPANS else schedule)  # raises where they cannot be used
    ways = [Way(seed=seed) for seed in seeds]
    ways += [Way(v, float(x), p, s) for v in vectors for p in positions for x in strengths for s in seeds]
    samples = sample_ways(model, pairs.trait, chosen, ways, options, out, progress, source=_digest(pairs))
    return Comparison(pairs.trait.name, mark_coherent(samples))


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


def _digest(pairs: Pairs) -> str:
    """Tells what vectors of these pairs are extracted from."""
    instructions = pairs.trait.positive_instruction, pairs.trait.negative_instruction
    return hashlib.sha256(repr((instructions, pairs.extraction.pairs)).encode()).hexdigest()[:16]


def _check_file(path: Path) -> None:
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
    _check_file(path)
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
