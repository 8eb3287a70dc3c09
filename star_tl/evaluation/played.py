"""Talks of several turns in which the unsteered model plays the other side, or a dialogue's words are said again.

Both sides know who they are; only the assistant's is steered. Earlier turns are read without the vector, as
:func:`star_tl.converse` reads them by default.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd

from star_tl.data.chat import Message, Prompt, as_messages, render
from star_tl.data.pairs import Trait
from star_tl.data.scenarios import Camp, Scenario
from star_tl.data.tasks import Task
from star_tl.errors import StarError
from star_tl.evaluation.ray_workers import RayWorkers
from star_tl.evaluation.samples import sample_conditions
from star_tl.generation.settings import Sampling
from star_tl.models.backend import Model, tokenizer_of
from star_tl.stats import bootstrap_interval
from star_tl.steering.condition import Condition

BEGIN = "(The other person is here. Say the first thing.)"
SHORT = "Answer in one or two short sentences."


@dataclass(frozen=True)
class Talk:
    """Who talks with whom: what each side is told, and the other side's first messages, as far as they are given."""

    user: str
    assistant: str
    said: tuple[str, ...] = ()


def play(
    model: Model,
    trait: Trait,
    talks: Sequence[Talk],
    condition: Condition,
    turns: int = 10,
    sampling: Sampling = Sampling(),  # noqa: B008 - frozen
    folder: Path | None = None,
    progress: bool = True,
    workers: RayWorkers | None = None,
) -> pd.DataFrame:
    """A row per talk and turn of the assistant: ``turn`` (from 1), ``user``, and the scores of its reply.

    Columns beside those of :func:`star_tl.evaluation.samples.sample_conditions`; ``drift`` is that of the turn, from
    the unsteered model on the same talk. The same seed gives the other side the same words as long as it hears the
    same. Of a talk that no longer fits the model's context a side hears the last turns.

    Args:
        model: plays both sides.
        trait: whose markers are looked for in the assistant's replies.
        talks: the sides.
        condition: how the assistant writes.
        turns: of the assistant.
        sampling: how both write.
        folder: for the samples, from which an equal call goes on.
        progress: show progress bars.
        workers: who write and score in place of ``model``.

    Raises:
        StarError: no talks, turns below 1, or a single turn that does not fit the model's context.
    """
    if not talks or turns < 1:
        raise StarError("There are no talks, or fewer turns than 1: give at least one of each.")
    said: list[list[tuple[str, str]]] = [[] for _ in talks]  # (user, assistant) by turn
    frames = []
    for turn in range(turns):
        seed = condition.seed * 1000 + 2 * turn
        heard = [talk.said[turn] if turn < len(talk.said) else None for talk in talks]
        if None in heard:
            other = Condition(seed=seed)
            asked = [
                _recent(model, other, past, sampling, partial(_as_user, talk))
                for talk, past in zip(talks, said, strict=True)
            ]
            file = folder and folder / f"{turn:02d}-user.jsonl"
            spoken = sample_conditions(model, trait, asked, [other], sampling, file, progress, workers).text
            heard = [given or words for given, words in zip(heard, spoken, strict=True)]
        heard = [words.strip() or "..." for words in heard if words is not None]
        now = replace(condition, seed=seed + 1)
        chats = [
            _recent(model, now, past, sampling, partial(_as_assistant, talk, words))
            for talk, past, words in zip(talks, said, heard, strict=True)
        ]
        file = folder and folder / f"{turn:02d}-assistant.jsonl"
        frame = sample_conditions(model, trait, chats, [now], sampling, file, progress, workers)
        frames.append(frame.assign(turn=turn + 1, user=heard, seed=condition.seed))
        for past, words, reply in zip(said, heard, frame.text, strict=True):
            past.append((words, reply.strip() or "..."))
    return pd.concat(frames, ignore_index=True)


def talks_of(
    task: Task,
    prompts: Sequence[Prompt],
    scenarios: Sequence[Scenario] | Sequence[Camp] = (),
    replay: Sequence[Sequence[str]] | None = None,
) -> list[Talk]:
    """A talk for each dialogue whose other side is replayed; else for each item to bargain over; else for each prompt,
    opened by its last user message.
    """
    if scenarios and not replay:
        return [Talk(s.roles["user"], s.roles["assistant"]) for s in scenarios]
    told = {side: f"You are {who}. {SHORT}" for side, who in task.roles.items()}
    opened = [[next(m["content"] for m in reversed(as_messages(p)) if m["role"] == "user")] for p in prompts]
    return [Talk(told["user"], told["assistant"], tuple(said)) for said in replay or opened]


def _recent(
    model: Model,
    condition: Condition,
    past: Sequence[tuple[str, str]],
    sampling: Sampling,
    chat: Callable[[Sequence[tuple[str, str]]], list[Message]],
) -> list[Message]:
    """The chat of the turns so far, without the oldest where all of them leave no room for a reply."""
    for first in range(len(past)):
        (asked,) = condition.prompted([chat(past[first:])])
        if len(render(tokenizer_of(model), asked)) + sampling.max_new_tokens <= model.cfg.n_ctx:
            return chat(past[first:])
    return chat(())


def by_turn(samples: pd.DataFrame) -> pd.DataFrame:
    """A row per condition and turn, of samples with ``coherent``: ``markers`` (in coherent replies), ``coherent``,
    ``drift``; and ``slope``, drift's rise in nats per token and turn over the whole talk, with its 95 % interval over
    talks.
    """
    rows = []
    for arm, group in samples.assign(markers=samples.shows & samples.coherent).groupby("arm", sort=False):
        slope = low = high = float("nan")
        if group.turn.nunique() > 1:
            slopes = np.array([np.polyfit(talk.turn, talk.drift, 1)[0] for _, talk in group.groupby("prompt_id")])
            slope, (low, high) = float(slopes.mean()), bootstrap_interval(slopes)
        for turn, some in group.groupby("turn"):
            row = {"condition": arm, "turn": turn, "markers": some.markers.mean(), "coherent": some.coherent.mean()}
            rows.append(row | {"drift": some.drift.mean(), "slope": slope, "low": low, "high": high})
    return pd.DataFrame(rows)


def texts_of(frame: pd.DataFrame) -> list[list[str]]:
    """Each talk's messages in turn."""
    return [
        [text for row in group.sort_values("turn").itertuples() for text in (str(row.user), str(row.text))]
        for _, group in frame.groupby("prompt_id", sort=False)
    ]


def _as_user(talk: Talk, past: Sequence[tuple[str, str]]) -> list[Message]:
    """The talk as the other side sees it: its own words are the assistant's there."""
    chat: list[Message] = [{"role": "system", "content": talk.user}, {"role": "user", "content": BEGIN}]
    for mine, theirs in past:
        chat += [{"role": "assistant", "content": mine}, {"role": "user", "content": theirs}]
    return chat


def _as_assistant(talk: Talk, heard: str, past: Sequence[tuple[str, str]]) -> list[Message]:
    chat: list[Message] = [{"role": "system", "content": talk.assistant}]
    for theirs, mine in past:
        chat += [{"role": "user", "content": theirs}, {"role": "assistant", "content": mine}]
    return [*chat, {"role": "user", "content": heard}]
