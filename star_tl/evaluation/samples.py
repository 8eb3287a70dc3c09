"""Samples of many conditions, in few large batches: written as they come, and resumed where they stopped.

Rows of one batch carry different vectors, places and strengths, so that the number of passes depends on the number of
replies and not on how many conditions there are.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from star_tl.data.chat import Message, Prompt, as_prompts, render
from star_tl.data.pairs import Trait
from star_tl.errors import check_flag, check_kind
from star_tl.evaluation.ray_workers import RayWorkers
from star_tl.evaluation.scores import score, score_table, write_measured
from star_tl.files import JsonObject
from star_tl.generation.samples_file import SamplesFile, how_computed, number_below, reply_of, reply_row, samples_file
from star_tl.generation.sampling import batch_order, render_prompts, rows_at_once, warn_unreached
from star_tl.generation.settings import Sampling
from star_tl.generation.writing import Reply
from star_tl.models.backend import Model, tokenizer_of
from star_tl.models.load import fingerprint
from star_tl.models.memory import give_back
from star_tl.progress import Bar
from star_tl.steering.condition import Condition

Key = tuple[int, int]  # numbers of a condition and of a prompt


def sample_conditions(
    model: Model,
    trait: Trait,
    prompts: Sequence[Prompt],
    conditions: Sequence[Condition],
    sampling: Sampling = Sampling(),  # noqa: B008 - frozen
    out: str | Path | None = None,
    progress: bool = True,
    workers: RayWorkers | None = None,
) -> pd.DataFrame:
    """A reply to every prompt under every condition, with its scores: a row each, conditions in their order.

    Columns beside those of :func:`star_tl.score`: ``prompt_id``, ``arm`` (the condition's name), ``locus``, ``layer``
    (-1 where there is no vector), ``positions``, ``strength`` (0 where there is no vector), ``seed``.

    Args:
        model: from :func:`star_tl.load_model`.
        trait: whose markers are looked for.
        prompts: what to reply to, without any condition's instruction.
        conditions: the ways to write replies.
        sampling: how to sample.
        out: a JSONL file of the samples, which an equal call that was stopped goes on with; a batch of which a line is
            missing is written again.
        progress: show progress bars.
        workers: who write and score in place of ``model``, which then only says what is asked for.

    Raises:
        StarError: a prompt that leaves no room, or ``out`` holds the samples of another call, is damaged, or cannot be
            written to; what was written before is kept, and an equal call goes on from there.
    """
    check_kind(trait, Trait, "a trait, such as pairs.trait")
    check_kind(sampling, Sampling, "a Sampling")
    check_flag(progress, "progress")
    for condition in conditions:
        check_kind(condition, Condition, "conditions as a list of Condition")
    prompts = as_prompts(prompts)
    asked = [condition.prompted(prompts) for condition in conditions]
    ids = [render_prompts(model, chats, sampling.max_new_tokens) for chats in asked]
    warn_unreached(conditions, [prompt for own in ids for prompt in own], sampling)
    call = describe(model, ids, conditions, sampling)
    scored_for = hashlib.sha256(repr((trait.name, trait.markers)).encode()).hexdigest()[:16]
    with samples_file(out, call) as file:
        kept = Kept(file, len(conditions), len(prompts), scored_for)
        todo = [(c, i) for c in range(len(conditions)) for i in range(len(prompts)) if (c, i) not in kept.replies]
        file.check_room(len(todo) * sampling.max_new_tokens)

        _write(model, kept, prompts, ids, conditions, sampling, progress, workers)
        unscored = []
        for c in range(len(conditions)):
            if c not in kept.scores:
                mine = [(c, i) for i in range(len(prompts))]
                if all(key in kept.measured for key in mine):
                    replies = [kept.replies[key] for key in mine]
                    kept.add_scores(c, score_table(trait, replies, [kept.measured[key] for key in mine]))
                else:
                    unscored.append(c)
        pieces = [(trait, prompts, [kept.replies[c, i] for i in range(len(prompts))], conditions[c]) for c in unscored]
        scored = ((n, score(model, *piece)) for n, piece in enumerate(pieces))
        if workers is not None:
            scored = workers.run("score", pieces)
        for n, found in Bar(scored, desc="scoring", unit="condition", total=len(pieces), disable=not progress, delay=2):
            kept.add_scores(unscored[n], found)
        kept.finish()
    frames = [_labelled(conditions[c], kept.scores[c]) for c in range(len(conditions))]
    give_back()
    return pd.concat(frames, ignore_index=True)


def _write(
    model: Model,
    kept: Kept,
    prompts: Sequence[tuple[Message, ...]],
    ids: Sequence[Sequence[tuple[int, ...]]],
    conditions: Sequence[Condition],
    sampling: Sampling,
    progress: bool,
    workers: RayWorkers | None,
) -> None:
    """What ``kept`` has no replies of, with what can be measured while they are at hand.

    Batches are always the same: one of which a line is missing is written again as a whole, and rounds as before.
    """
    keys = [(c, i) for c in range(len(conditions)) for i in range(len(prompts))]
    plain = [render(tokenizer_of(model), chat).ids for chat in prompts]
    unsteered = [c.vector is None and c.instruction is None for c in conditions]
    order, most = batch_order([ids[c][i] for c, i in keys]), rows_at_once(model, sampling)
    batches = [[keys[k] for k in order[first : first + most]] for first in range(0, len(order), most)]
    batches = [batch for batch in batches if any(key not in kept.replies for key in batch)]

    def piece(batch: Sequence[Key]) -> tuple[Any, ...]:
        """What :func:`star_tl.evaluation.scores.write_measured` takes."""
        return (
            [ids[c][i] for c, i in batch],
            [conditions[c].seed for c, _ in batch],
            [conditions[c].rows(tokenizer_of(model), prompts[i]) for c, i in batch],
            [plain[i] for _, i in batch],
            [unsteered[c] for c, _ in batch],
            sampling,
        )

    if workers is None:
        written = ((n, write_measured(model, *piece(batch))) for n, batch in enumerate(batches))
    else:
        written = workers.run("write", [piece(batch) for batch in batches])
    total = sum(map(len, batches))
    with Bar(total=total, desc="sampling", unit="reply", disable=not progress, delay=2) as bar:
        for n, (replies, measured) in written:
            kept.add(dict(zip(batches[n], replies, strict=True)), measured)
            bar.update(len(replies))


def describe(
    model: Model,
    prompts: Sequence[Sequence[tuple[int, ...]]],
    conditions: Sequence[Condition],
    sampling: Sampling,
) -> dict[str, object]:
    """What tells a call from others whose samples would be different: as JSON."""
    tokens = hashlib.sha256(repr([[list(p) for p in rows] for rows in prompts]).encode()).hexdigest()[:16]
    return {
        "model": fingerprint(model),
        "prompts": tokens,
        "conditions": [condition.identity for condition in conditions],
        **how_computed(model, sampling),
    }


def _labelled(condition: Condition, scores: pd.DataFrame) -> pd.DataFrame:
    vector = condition.vector
    label = {
        "prompt_id": [f"p{i:03d}" for i in range(len(scores))],
        "arm": condition.name,
        "locus": "; ".join(str(v.locus) for v in condition.vectors),
        "layer": vector.locus.layer if vector is not None else -1,
        "positions": _named(condition.positions) if vector is not None else "",
        "strength": condition.dose,
        "seed": condition.seed,
    }
    return pd.concat([pd.DataFrame(label), scores], axis=1)


def _named(positions: str | Sequence[int] | None) -> str:
    if positions is None:
        return "locus"
    return positions if isinstance(positions, str) else ", ".join(map(str, positions))


class Kept:
    """The replies and scores of a call so far, and their lines on disk.

    A line of a reply is written with the reply, and in it what of its scores is ``measured`` then; a line of scores
    when all of a condition's replies are there; at the end the lines are put in order. Scores for another trait's
    markers (``scored_for``) are not taken over, for they are soon made anew.
    """

    def __init__(self, file: SamplesFile, conditions: int, prompts: int, scored_for: str) -> None:
        self.file, self.conditions, self.prompts, self.scored_for = file, conditions, prompts, scored_for
        self.replies: dict[Key, Reply] = {}
        self.measured: dict[Key, dict[str, float]] = {}
        self.scores: dict[int, pd.DataFrame] = {}
        file.resume(self._take)

    def add(self, found: Mapping[Key, Reply], measured: Sequence[dict[str, float]] | None = None) -> None:
        """Keep these replies."""
        self.replies.update(found)
        self.measured |= dict(zip(found, measured or (), strict=measured is not None))
        self.file.append([self._reply_row(key) for key in found])

    def add_scores(self, condition: int, scores: pd.DataFrame) -> None:
        """Keep the scores of a condition's replies."""
        self.scores[condition] = scores
        self.file.append([self._scores_row(condition)])

    def finish(self) -> None:
        """Put the file's lines in order."""
        rows = [self._reply_row(key) for key in sorted(self.replies)]
        self.file.rewrite(rows + [self._scores_row(condition) for condition in sorted(self.scores)])

    def _take(self, row: JsonObject) -> None:
        condition = number_below(row["condition"], self.conditions)
        if "scores" not in row:
            key = condition, number_below(row["prompt"], self.prompts)
            self.replies[key] = reply_of(row)
            if "measured" in row:
                self.measured[key] = {str(name): float(value) for name, value in row["measured"].items()}
            return
        frame = pd.DataFrame(row["scores"])
        if len(frame) != self.prompts:
            raise ValueError
        if row["for"] == self.scored_for:
            self.scores[condition] = frame

    def _reply_row(self, key: Key) -> dict[str, object]:
        measured = {"measured": self.measured[key]} if key in self.measured else {}
        return {"condition": key[0], "prompt": key[1], **reply_row(self.replies[key]), **measured}

    def _scores_row(self, condition: int) -> dict[str, object]:
        rows = self.scores[condition].to_dict(orient="records")
        return {"condition": condition, "for": self.scored_for, "scores": rows}
