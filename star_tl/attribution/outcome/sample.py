"""Replies of the model, as it is or as it is steered already, and what a reward says of them."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from numbers import Real
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from star_tl.data.chat import Message, Prompt
from star_tl.errors import StarError, quoted
from star_tl.files import JsonObject
from star_tl.generation.samples_file import how_computed, number_below, reply_of, reply_row, samples_file
from star_tl.generation.sampling import in_batches
from star_tl.generation.settings import Sampling
from star_tl.generation.writing import Reply
from star_tl.locus import NamedHook
from star_tl.models.backend import Model, tokenizer_of
from star_tl.models.load import fingerprint
from star_tl.steering.condition import Condition

# From a prompt's messages and a reply's text to a number; with an attribute ``batched`` that is true, from lists of
# both to as many numbers.
Reward = Callable[[Any, Any], Any]
MOST = 10**9  # replies to a prompt


def check_sampling(options: Sampling) -> None:
    """Raises StarError where a reply's probability could not be differentiated."""
    if options.temperature == 0:
        raise StarError("At temperature 0 there is one reply to a prompt and no gradient: use a temperature above 0.")
    if options.repetition_penalty != 1:
        raise StarError("attribute_outcome knows no gradient of a repetition penalty: leave it at 1.")
    if options.stop:
        raise StarError("attribute_outcome takes no stop texts, which no token draws: leave stop out.")


def spread(n: int, prompts: int) -> Int[Tensor, " reply"]:
    """The prompt of each of ``n`` replies: in turn, so that the first of them are spread evenly too."""
    return torch.arange(n) % prompts


def write_replies(
    model: Model,
    ids: Sequence[tuple[int, ...]],
    prompt: Int[Tensor, " reply"],
    options: Sampling,
    seed: int,
    under: Condition,
    known: Sequence[Reply],
    out: Path | None,
    progress: bool,
) -> list[Reply]:
    """A reply for every entry of ``prompt``: the first ``known``, others read from ``out`` if an equal call wrote them.

    Raises:
        StarError: ``out`` holds the samples of another call or cannot be written to, or the model broke.
    """
    keys = [(k // len(ids), int(i)) for k, i in enumerate(prompt)]
    call: dict[str, object] = {"model": fingerprint(model), "prompts": [list(x) for x in ids], "seed": seed}
    call |= {"under": under.identity} if under.vector is not None else {}
    call |= how_computed(model, replace(options, log_probs=False))
    done: dict[tuple[int, int], Reply] = {}

    def hooks_of(rows: Sequence[int]) -> list[NamedHook]:
        return under.hooks(tokenizer_of(model), ())

    def take(row: JsonObject) -> None:
        done[number_below(row["reply"], MOST), number_below(row["prompt"], len(ids))] = reply_of(row)

    with samples_file(out, call) as file:
        file.resume(take)
        done |= dict(zip(keys, known, strict=False))
        todo = [key for key in keys if key not in done]
        # Seeds that nobody types, other ones for every seed: replies must be independent, also of a later evaluation.
        seeds = [((k + 1) << 64) + seed for k, _ in todo]
        for batch, replies in in_batches(model, [ids[i] for _, i in todo], seeds, hooks_of, options, progress):
            found = {todo[row]: reply for row, reply in zip(batch, replies, strict=True)}
            file.append([{"reply": k, "prompt": i, **reply_row(reply)} for (k, i), reply in found.items()])
            done |= found
    replies = [done[key] for key in keys]
    if any(reply.broken for reply in replies):
        how = "without any steering: load it in another dtype" if under.vector is None else "under the steering"
        raise StarError(f"The model's logits became NaN or infinite {how}.")
    return replies


def name_of(reward: Reward) -> str:
    """What a map calls the reward."""
    return getattr(reward, "__name__", repr(reward)[:60])


def rewards_of(
    reward: Reward, prompts: Sequence[tuple[Message, ...] | Prompt], texts: Sequence[str]
) -> Float[Tensor, " reply"]:
    """One finite number a reply, in float64.

    Raises:
        StarError: another number of rewards than replies, or one that is no finite number.
    """
    if getattr(reward, "batched", False):
        given = reward(list(prompts), list(texts))
        if not isinstance(given, Iterable):
            raise StarError(f"The reward gave {quoted(given)} for {len(texts)} replies: return one number for each.")
        values = list(given)
    else:
        values = [reward(prompt, text) for prompt, text in zip(prompts, texts, strict=True)]
    if len(values) != len(texts):
        raise StarError(f"The reward gave {len(values)} numbers for {len(texts)} replies: return one for each.")
    numbers = []
    for value, text in zip(values, texts, strict=True):
        try:
            number = value.item() if hasattr(value, "item") else value
        except (ValueError, RuntimeError):  # several numbers
            number = value
        if not isinstance(number, Real) or not math.isfinite(number):
            raise StarError(f"The reward of the reply {text[:40]!r} is {quoted(number)}: return a finite number.")
        numbers.append(float(number))
    return torch.tensor(numbers, dtype=torch.float64)
