"""Steering over several turns: replies from a clean reading of the chat, or from a cache that goes on.

A KV cache that goes on from turn to turn keeps every steered state, and a long steered chat degrades with it (arXiv
2605.10664). Reading the earlier turns again without the vector before each reply costs one prefill a turn and
keeps steering to the reply at hand. Both are offered, so that the difference can be measured.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor
from typing_extensions import Unpack

from star_tl.data.chat import as_prompts, render, reply_ids
from star_tl.errors import StarError, check_flag, check_kind
from star_tl.generation.likelihood import kl_per_token, reply_logits, reply_logprobs
from star_tl.generation.sampling import generate
from star_tl.generation.settings import Sampling, SamplingOptions, settled
from star_tl.locus import NamedHook
from star_tl.models.backend import MODELS, Model, tokenizer_of
from star_tl.models.batch import make_batch, pad_id
from star_tl.steering.condition import Condition
from star_tl.steering.hooks import injection_hooks
from star_tl.steering.positions import schedule


def converse(
    model: Model,
    turns: Sequence[str],
    condition: Condition = Condition(),  # noqa: B008 - frozen
    *,
    carry: bool = False,
    sampling: Sampling | None = None,
    **options: Unpack[SamplingOptions],
) -> pd.DataFrame:
    """A chat of user turns and the model's replies: a row per turn.

    Columns: ``turn`` (from 1), ``user``, ``reply``, ``n_tokens``, ``drift`` (mean over the reply's tokens of KL(the
    steered ‖ the unsteered model on the same chat), nats per token) and ``logprob`` (mean per token under the
    unsteered model, nats).

    Args:
        model: the model that replies.
        turns: what the user says, in order.
        condition: how to write; its positions are those of every turn, counted from the end of the chat so far. An
            instruction stands before the first turn, and drift is then from the chat without it.
        carry: leave what was added in earlier turns in place, as a cache that goes on does. Default: earlier
            turns are read without it.
        sampling: how to sample, a :class:`star_tl.Sampling`, or its fields by name.

    Raises:
        StarError: no turns, carry with several vectors, a schedule that covers earlier turns, or a chat that no longer
            fits the context.
    """
    settings = settled(sampling, options)
    check_kind(model, MODELS, "a model that load_model returns")
    check_kind(condition, Condition, "a Condition")
    check_flag(carry, "carry")
    if not isinstance(turns, (list, tuple)) or not turns:
        raise StarError("turns is no list of texts: give what the user says, turn by turn.")
    as_prompts(turns)  # raises where one is empty, before any is answered
    vector = condition.vector
    own = condition.positions in (None, "locus")
    when = None
    if carry and (condition.more or condition.remove):
        raise StarError("carry keeps what one vector added: leave out more and remove, or read earlier turns again.")
    if vector is not None:
        when = schedule(vector.locus.positions if own else condition.positions or "")
        if when.reach is None:
            raise StarError(
                f"positions is {condition.positions!r}, which covers earlier turns too: use 'generated' or "
                "'last_prompt'."
            )
    chat: list[dict[str, str]] = []
    steered: dict[int, Tensor] = {}  # columns of the chat where earlier turns added something, and what
    rows = []
    for number, text in enumerate(turns, 1):
        chat.append({"role": "user", "content": text})
        (asked,) = condition.prompted([chat])
        ids, end = render(tokenizer_of(model), chat).ids, len(render(tokenizer_of(model), asked))
        past = {column - end: added for column, added in steered.items()} if carry else {}
        hooks = [_earlier(condition, past, n) + condition.hooks(tokenizer_of(model), [chat], n) for n in (None, end)]
        (reply,) = generate(model, [asked], hooks[0], seed=condition.seed, sampling=settings, progress=False)
        written = reply.tokens or (pad_id(model),)
        with torch.no_grad():
            plain_batch = make_batch(model, [ids], [written])
            batch = make_batch(model, [render(tokenizer_of(model), asked).ids], [written])
            plain = reply_logits(model, plain_batch)
            drift = float(kl_per_token(reply_logits(model, batch, hooks[1]), plain).mean())
        logprob = float(reply_logprobs(plain, plain_batch).mean()) if reply.tokens else float("nan")
        rows.append((number, text, reply.text, len(reply.tokens), drift, logprob))
        if vector is not None and when is not None:
            whole = vector.scaled(1.0)
            given = whole if own else whole.mean(0, keepdim=True)
            length = end + len(reply_ids(tokenizer_of(model), reply.text))  # as the next turn reads it
            steered |= {column: factor * given[row] for column, row, factor in when.columns(end, 0, length)}
        chat.append({"role": "assistant", "content": reply.text})
    return pd.DataFrame(rows, columns=["turn", "user", "reply", "n_tokens", "drift", "logprob"])


def _earlier(
    condition: Condition, past: Mapping[int, Float[Tensor, " d"]], prompt_length: int | None
) -> list[NamedHook]:
    """The hooks that add again what earlier turns added."""
    if condition.vector is None or not past:
        return []
    place = replace(condition.vector.locus, positions=tuple(past))
    return injection_hooks(torch.stack(list(past.values())) * condition.strength, place, None, prompt_length)
