"""Samples of many conditions, in few large batches: written as they come, and resumed where they stopped.

Rows of one batch carry different vectors, places and strengths, so that the number of passes depends on the number of
replies and not on how many conditions there are.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pandas as pd
from tqdm.auto import tqdm

from star_tl.data.chat import Prompt, as_prompts
from star_tl.data.pairs import Trait
from star_tl.errors import StarError
from star_tl.evaluation.scores import score
from star_tl.files import locked, output_path, replacing, unwritable
from star_tl.generation.sampling import Reply, in_batches, render_prompts
from star_tl.generation.settings import Sampling
from star_tl.locus import NamedHook
from star_tl.models.backend import Model
from star_tl.models.load import fingerprint
from star_tl.steering.condition import Condition
from star_tl.steering.hooks import row_hooks

BYTES_PER_TOKEN = 24  # of a samples file, about: an id and its text
Key = tuple[int, int]  # numbers of a condition and of a prompt


def sample_conditions(
    model: Model,
    trait: Trait,
    prompts: Sequence[Prompt],
    conditions: Sequence[Condition],
    sampling: Sampling = Sampling(),  # noqa: B008 - frozen
    out: str | Path | None = None,
    progress: bool = True,
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
        out: a JSONL file of the samples, which an equal call that was stopped goes on with.
        progress: show progress bars.

    Raises:
        StarError: a prompt that leaves no room, or ``out`` holds the samples of another call, is damaged, or cannot be
            written to; what was written before is kept, and an equal call goes on from there.
    """
    prompts = as_prompts(prompts)
    asked = [condition.prompted(prompts) for condition in conditions]
    ids = [render_prompts(model, chats, sampling.max_new_tokens) for chats in asked]
    call = describe(model, ids, conditions, sampling)
    scored_for = hashlib.sha256(repr((trait.name, trait.markers)).encode()).hexdigest()[:16]
    with _kept(out, call, scored_for, len(prompts)) as kept:
        todo = [(c, i) for c in range(len(conditions)) for i in range(len(prompts)) if (c, i) not in kept.replies]
        kept.check_room(len(todo) * sampling.max_new_tokens)

        def hooks_of(batch: list[int]) -> list[NamedHook]:
            rows = [todo[k] for k in batch]
            return row_hooks([conditions[c].row(model.tokenizer, prompts[i]) for c, i in rows])

        seeds = [conditions[c].seed for c, _ in todo]
        for batch, replies in in_batches(model, [ids[c][i] for c, i in todo], seeds, hooks_of, sampling, progress):
            kept.add({todo[k]: reply for k, reply in zip(batch, replies, strict=True)})
        for c in tqdm(range(len(conditions)), desc="scoring", unit="condition", disable=not progress, delay=2):
            if c not in kept.scores:
                written = [kept.replies[c, i] for i in range(len(prompts))]
                kept.add_scores(c, score(model, trait, prompts, written, conditions[c]))
        kept.finish()
    frames = [_labelled(conditions[c], kept.scores[c]) for c in range(len(conditions))]
    return pd.concat(frames, ignore_index=True)


def describe(
    model: Model,
    prompts: Sequence[Sequence[tuple[int, ...]]],
    conditions: Sequence[Condition],
    sampling: Sampling,
) -> dict[str, Any]:
    """What tells a call from others whose samples would be different: as JSON."""
    cfg: Any = model.cfg
    settings = {k: v for k, v in asdict(sampling).items() if k != "batch_size"}
    if cfg.dtype.itemsize < 4:  # rounding lets a text depend on what shares its batch
        settings["batch_size"] = sampling.batch_size
    tokens = hashlib.sha256(repr([[list(p) for p in rows] for rows in prompts]).encode()).hexdigest()[:16]
    return {
        "model": fingerprint(model),
        "computed": [str(cfg.dtype), type(model).__name__, str(cfg.device).split(":")[0]],
        "prompts": tokens,
        "conditions": [_identity(condition) for condition in conditions],
        "sampling": settings | {"stop": list(sampling.stop)},
    }


def _identity(condition: Condition) -> list[Any]:
    added = None
    if condition.vector is not None:
        values = condition.vector.scaled(condition.strength).float().cpu().contiguous().numpy().tobytes()
        added = hashlib.sha256(values).hexdigest()[:16]
    where = str(condition.vector.locus) if condition.vector is not None else None
    return [condition.name, where, added, str(condition.positions), condition.instruction, condition.seed]


def _labelled(condition: Condition, scores: pd.DataFrame) -> pd.DataFrame:
    vector = condition.vector
    label = {
        "prompt_id": [f"p{i:03d}" for i in range(len(scores))],
        "arm": condition.name,
        "locus": str(vector.locus) if vector is not None else "",
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
    """The replies and scores of a call so far, in memory and, where it has a path, line by line on disk.

    The file's first line says which call it belongs to. A line of a reply follows when it is written, a line of scores
    when all of a condition's replies are there; at the end the lines are put in order. Scores for another trait's
    markers (``scored_for``) are not taken over, for they are soon made anew.
    """

    def __init__(self, path: Path | None, call: Mapping[str, Any], scored_for: str, prompts: int) -> None:
        self.path, self.head = path, json.dumps(call, ensure_ascii=False)
        self.conditions, self.prompts, self.scored_for = len(call["conditions"]), prompts, scored_for
        self.replies: dict[Key, Reply] = {}
        self.scores: dict[int, pd.DataFrame] = {}
        if path is not None:
            self._resume(path)

    def add(self, found: Mapping[Key, Reply]) -> None:
        """Keep these replies."""
        self.replies.update(found)
        self._append([_reply_line(key, reply) for key, reply in found.items()])

    def add_scores(self, condition: int, scores: pd.DataFrame) -> None:
        """Keep the scores of a condition's replies."""
        self.scores[condition] = scores
        self._append([self._scores_line(condition)])

    def finish(self) -> None:
        """Put the file's lines in order, so that it does not tell where it was stopped."""
        if self.path is not None:
            lines = [_reply_line(key, self.replies[key]) for key in sorted(self.replies)]
            lines += [self._scores_line(c) for c in sorted(self.scores)]
            self._rewrite(lines)

    def check_room(self, tokens: int) -> None:
        """Raises StarError where the disk has no room for so many more tokens."""
        if self.path is None:
            return
        needed, free = BYTES_PER_TOKEN * tokens, shutil.disk_usage(self.path.parent).free
        if needed > free:
            raise StarError(
                f"{self.path} needs {needed / 1e6:.1f} MB, but only {free / 1e6:.1f} MB are free: make room or name "
                "another file."
            )

    def _resume(self, path: Path) -> None:
        try:
            text = path.read_text(encoding="utf-8", errors="replace") if path.exists() else ""
        except OSError:
            raise StarError(f"{path} cannot be read as samples of a sweep: name another file.") from None
        head, *lines = text.split("\n")
        if head != self.head and not (self.head.startswith(head) and not lines):  # a first line cut off: a new file
            raise StarError(f"{path} holds the samples of another sweep: name another file.")
        whole = lines[:-1]  # what follows the last line end was cut off in the middle
        for number, line in enumerate(whole, start=2):
            if line.strip():
                self._read(line, number)
        self._rewrite([line for line in whole if line.strip()])

    def _read(self, line: str, number: int) -> None:
        try:
            row = json.loads(line)
            condition = _number(row["condition"], self.conditions)
            if "scores" in row:
                frame = pd.DataFrame(row["scores"])
                if len(frame) != self.prompts:
                    raise ValueError
                if row["for"] == self.scored_for:
                    self.scores[condition] = frame
            else:
                self.replies[condition, _number(row["prompt"], self.prompts)] = _reply(row)
        except (ValueError, KeyError, TypeError, RecursionError):
            raise StarError(
                f"{self.path}, line {number} is no sample of this sweep: delete the line, and what it held is written "
                "anew, or name another file."
            ) from None

    def _scores_line(self, condition: int) -> str:
        rows = self.scores[condition].to_dict(orient="records")
        line = {"condition": condition, "for": self.scored_for, "scores": rows}
        return json.dumps(line, ensure_ascii=False)

    def _append(self, lines: Sequence[str]) -> None:
        if self.path is None:
            return
        try:
            with self.path.open("a", encoding="utf-8") as file:
                file.write("".join(f"{line}\n" for line in lines))
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise StarError(
                f"{self.path} cannot be written to ({error.strerror}): make room there and call again; what it holds "
                "is kept."
            ) from None

    def _rewrite(self, lines: Sequence[str]) -> None:
        assert self.path is not None
        with replacing(self.path) as partial:
            partial.write_text("".join(f"{line}\n" for line in [self.head, *lines]), encoding="utf-8")


@contextmanager
def _kept(out: str | Path | None, call: Mapping[str, Any], scored_for: str, prompts: int) -> Iterator[Kept]:
    if out is None:
        yield Kept(None, call, scored_for, prompts)
        return
    path = output_path(out)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise unwritable(path, error) from None
    with locked(path):
        yield Kept(path, call, scored_for, prompts)


def _number(value: object, below: int) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < below:
        raise ValueError
    return value


def _reply(row: Mapping[str, Any]) -> Reply:
    text, tokens, stopped, broken = (row[key] for key in ("text", "tokens", "stopped", "broken"))
    right = isinstance(text, str) and isinstance(stopped, bool) and isinstance(broken, bool)
    if not right or not isinstance(tokens, list) or any(type(t) is not int or t < 0 for t in tokens):
        raise ValueError
    return Reply(text, tuple(tokens), stopped, broken)


def _reply_line(key: Key, reply: Reply) -> str:
    row = {"condition": key[0], "prompt": key[1], "text": reply.text, "tokens": reply.tokens}
    return json.dumps(row | {"stopped": reply.stopped, "broken": reply.broken}, ensure_ascii=False)
