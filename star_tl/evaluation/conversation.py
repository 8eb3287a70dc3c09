"""Steering over several turns: replies from a clean reading of the chat, or from a cache that goes on.

A KV cache that goes on from turn to turn keeps every steered state, and a long steered chat degrades with it (arXiv
2605.10664). Reading the earlier turns again without the vector before each reply costs one prefill a turn and
keeps steering to the reply at hand. Both are offered, so that the difference can be measured.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from star_tl.data.chat import render, reply_ids
from star_tl.errors import StarError
from star_tl.generation.likelihood import kl_per_token, reply_logits, reply_logprobs
from star_tl.generation.sampling import generate
from star_tl.locus import NamedHook
from star_tl.models.backend import Model
from star_tl.models.batch import make_batch
from star_tl.steering.positions import schedule
from star_tl.vectors import SteeringVector


def converse(
    model: Model,
    turns: Sequence[str],
    vector: SteeringVector | None = None,
    strength: float = 1.0,
    positions: str | None = None,
    carry: bool = False,
    seed: int = 0,
    **sampling: Any,
) -> pd.DataFrame:
    """A chat of user turns and the model's replies: a row per turn.

    Columns: ``turn`` (from 1), ``user``, ``reply``, ``n_tokens``, ``drift`` (mean over the reply's tokens of KL(the
    steered ‖ the unsteered model on the same chat), nats per token) and ``logprob`` (mean per token under the
    unsteered model, nats).

    Args:
        model: the model that replies.
        turns: what the user says, in order.
        vector: what to steer with, if anything.
        strength: of the vector.
        positions: schedule of every turn, counted from the end of the chat so far, see
            :func:`star_tl.steering.positions.schedule`; default the vector's own positions.
        carry: leave what was added in earlier turns in place, as a cache that goes on does. Default: earlier
            turns are read without it.
        seed: of the replies.
        sampling: as in :func:`star_tl.generate`.

    Raises:
        StarError: no turns, a schedule that covers earlier turns, or a chat that no longer fits the context.
    """
    if isinstance(turns, str) or not turns:
        raise StarError("turns is no list of texts: give what the user says, turn by turn.")
    own = positions in (None, "locus")
    when = schedule(vector.locus.positions if own else positions) if vector is not None else None
    if when is not None and when.reach is None:
        raise StarError(
            f"positions is {positions!r}, which covers earlier turns too: use 'generated' or 'last_prompt'."
        )
    chat: list[dict[str, str]] = []
    steered: dict[int, Tensor] = {}  # columns of the chat where earlier turns added something, and what
    rows = []
    for number, text in enumerate(turns, 1):
        chat.append({"role": "user", "content": text})
        ids = render(model.tokenizer, chat).ids
        end = len(ids)
        past = {column - end: added for column, added in steered.items()} if carry else {}
        found = generate(
            model, [chat], _hooks(vector, strength, positions, past), seed=seed, progress=False, **sampling
        )
        reply = found[0]
        written = reply.tokens or (0,)
        with torch.no_grad():
            batch = make_batch(model, [ids], [written])
            plain = reply_logits(model, batch)
            steering = _hooks(vector, strength, positions, past, prompt_length=end)
            drift = float(kl_per_token(reply_logits(model, batch, steering), plain).mean())
        logprob = float(reply_logprobs(plain, batch).mean()) if reply.tokens else float("nan")
        rows.append((number, text, reply.text, len(reply.tokens), drift, logprob))
        if vector is not None and when is not None:
            given = vector.vector if own else vector.vector.mean(0, keepdim=True)
            length = end + len(reply_ids(model.tokenizer, reply.text))  # as the next turn reads it
            steered |= {column: factor * given[row] for column, row, factor in when.columns(end, 0, length)}
        chat.append({"role": "assistant", "content": reply.text})
    return pd.DataFrame(rows, columns=["turn", "user", "reply", "n_tokens", "drift", "logprob"])


def _hooks(
    vector: SteeringVector | None,
    strength: float,
    positions: str | None,
    past: Mapping[int, Float[Tensor, " d"]],
    prompt_length: int | None = None,
) -> list[NamedHook]:
    if vector is None:
        return []
    earlier: list[NamedHook] = []
    if past:
        place = replace(vector.locus, positions=tuple(past))
        earlier = replace(vector, vector=torch.stack(list(past.values())), locus=place).hooks(
            strength, prompt_length=prompt_length
        )
    return earlier + vector.hooks(strength, positions, prompt_length)
