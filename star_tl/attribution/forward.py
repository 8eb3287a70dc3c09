"""Pairs through the model: every prompt once, and on its keys and values both of its replies.

The positive and the negative row of a pair have their prompt in common, which is most of their tokens.
Running it once nearly halves the work and the memory of a pass, and the gradient at a prompt token is
at once the one of the metric, positive minus negative.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from star_tl.attribution.rows import PairBatch, Part
from star_tl.locus import NamedHook
from star_tl.models import bridge
from star_tl.models.backend import Cache, Model, attached, empty_cache, entries_taken, residual_stream, taken
from star_tl.models.fast.attention import attend_masked
from star_tl.models.fast.forward import Listeners, LlamaForward, listeners_of, llama_forward, resolve
from star_tl.models.lens import (
    HookedTransformer,
    TransformerBridge,
    TransformerLensKeyValueCache,
    TransformerLensKeyValueCacheEntry,
)

HooksOf = Callable[[Part], Sequence[NamedHook]]
Through = Callable[[Tensor, Tensor, HooksOf], tuple[Tensor, Tensor]]
KeysValues = list[TransformerLensKeyValueCacheEntry]


def no_hooks(part: Part) -> Sequence[NamedHook]:
    return ()


def last_residual(
    model: Model, rows: PairBatch, prompts: slice, hooks: HooksOf = no_hooks, copies: int = 1
) -> Float[Tensor, "row reply d"]:
    """The first result of :func:`forward`, of whole rows where the fast forward does what the model's own does."""
    fast = llama_forward(model)
    if fast is not None:
        assert isinstance(model, HookedTransformer)
        listeners = listeners_of(model, resolve(model, hooks("whole")))
        if listeners is not None:
            return _whole_rows(model, fast, rows, prompts, listeners, copies)
    return forward(model, rows, prompts, hooks, copies)[0]


def _whole_rows(
    model: HookedTransformer, fast: LlamaForward, rows: PairBatch, prompts: slice, listeners: Listeners, copies: int
) -> Float[Tensor, "row reply d"]:
    tokens, positions, seen = (t.repeat(copies, *[1] * (t.ndim - 1)) for t in rows.whole(prompts))
    cos, sin = fast.rotation(rows.positions(tokens), tokens.device)

    def attend(layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return attend_masked(q, k, v, seen)

    residual = F.embedding(tokens, model.embed.W_E)
    residual = fast(residual, (cos[positions][:, None], sin[positions][:, None]), attend, listeners)
    return predicting(residual, rows)


def predicting(residual: Float[Tensor, "run*pair column d"], rows: PairBatch) -> Float[Tensor, "row reply d"]:
    """What :func:`forward` returns first, from the last columns of whole rows."""
    reply = rows.replies.shape[1] - 1
    last, *replies = residual[:, -1 - 2 * reply :].split([1, reply, reply], 1)
    both = torch.stack([torch.cat([last, r], 1) for r in replies])  # [positive | negative, run * pair, ...]
    return both.unflatten(1, (-1, rows.size)).transpose(0, 1).flatten(0, 2)


def from_predicting(
    gradient: Float[Tensor, "*draw row reply d"], rows: PairBatch
) -> Float[Tensor, "*draw run*pair column d"]:
    """From the gradient of what :func:`predicting` returns that of the columns which it reads."""
    both = gradient.unflatten(-3, (-1, 2, rows.size)).movedim(-4, 0)  # [positive | negative, ..., run, pair, reply, d]
    columns = torch.cat([both[..., :1, :].sum(0), *both[..., 1:, :]], -2)
    return columns.flatten(-4, -3)


def forward(
    model: Model, rows: PairBatch, prompts: slice, hooks: HooksOf = no_hooks, copies: int = 1
) -> tuple[Float[Tensor, "row reply d"], Cache]:
    """The last residual stream where it predicts reply tokens, and the prompts' keys and values.

    ``prompts`` selects corrupted or clean prompts or both. Rows of the result are
    ``[run, positive | negative, pair]``, as :meth:`PairBatch.metrics` takes them.
    """
    tokens, mask = rows.prompts[prompts].repeat(copies, 1), rows.prompt_mask[prompts].repeat(copies, 1)
    cache = empty_cache(model, len(tokens))
    with attached(model, hooks("prompts")):
        head = residual_stream(model, tokens, mask, cache)
    spread, runs = rows.spread(len(tokens)), len(tokens) // rows.size
    both = head[spread, -1:]
    if rows.replies.shape[1] > 1:  # nothing follows from a reply's last token
        twice = taken(cache, spread)
        with attached(model, hooks("replies")):
            replies, mask = (t[:, :-1].repeat(runs, 1) for t in (rows.replies, rows.reply_mask))
            tail = residual_stream(model, replies, mask, twice)
        both = torch.cat([both, tail], 1)
    return both, cache


def through_blocks(
    model: HookedTransformer,
    rows: PairBatch,
    blocks: range,
    prompt: Float[Tensor, "run*pair column d"],
    reply: Float[Tensor, "row reply d"],
    mask: Int[Tensor, "run*pair prompt"],
    before: KeysValues,
    hooks: HooksOf = no_hooks,
) -> tuple[Tensor, Tensor]:
    """The residual streams that leave ``blocks``, of the prompts' last columns and of the replies.

    ``before`` holds the keys and values of the columns in front of these, for every layer; it is added to.
    """
    only = {"start_at_layer": blocks.start, "stop_at_layer": blocks.stop}
    cache = TransformerLensKeyValueCache(before, mask)
    with model.hooks(fwd_hooks=list(hooks("prompts"))):
        prompt = model(prompt, attention_mask=mask, past_kv_cache=cache, **only)
    if reply.shape[1]:
        spread = rows.spread(len(prompt))
        runs = len(prompt) // rows.size
        twice = [before[i] for i in range(blocks.start)] + entries_taken(before[blocks.start : blocks.stop], spread)
        whole = torch.cat([mask[spread], rows.reply_mask[:, :-1].int().repeat(runs, 1)], 1)
        with model.hooks(fwd_hooks=list(hooks("replies"))):
            reply = model(
                reply, attention_mask=whole, past_kv_cache=TransformerLensKeyValueCache(twice, mask[spread]), **only
            )
    return prompt, reply


def empty_keys_values(model: HookedTransformer, rows: int) -> KeysValues:
    """Keys and values of nothing, for every layer."""
    return TransformerLensKeyValueCache.init_cache(model.cfg, model.cfg.device, rows).entries


@dataclass(frozen=True)
class BlockAlone:
    """A block of a run: the residual streams that entered it, and how any pass through it alone."""

    prompt: Float[Tensor, "pair column d"]
    reply: Float[Tensor, "row reply d"]
    through: Through


def block_by_block(
    model: Model, rows: PairBatch, prompts: slice
) -> tuple[Float[Tensor, "row reply d"], list[BlockAlone]]:
    """The first result of :func:`forward`, and all blocks; without a graph."""
    layers = range(model.cfg.n_layers)
    entering: list[Tensor] = []  # the prompts' of every layer, then the replies'
    with torch.no_grad():
        if isinstance(model, TransformerBridge):
            with bridge.block_calls(model) as calls:
                residual, _ = forward(model, rows, prompts)
            entering += [call.residual for call in calls]
            ways = [_repeated(model, rows, calls[layer :: len(layers)]) for layer in layers]
        else:
            names = [f"blocks.{layer}.hook_resid_pre" for layer in layers]
            store = [(name, lambda activation, hook: entering.append(activation)) for name in names]
            residual, _ = forward(model, rows, prompts, lambda part: store)
            ways = [_from_the_middle(model, rows, layer, rows.prompt_mask[prompts].int()) for layer in layers]
    replies = entering[len(layers) :] or [residual[:, 1:] for _ in layers]  # of width 0, where replies have one token
    return residual, list(map(BlockAlone, entering[: len(layers)], replies, ways))


def _from_the_middle(model: HookedTransformer, rows: PairBatch, layer: int, mask: Tensor) -> Through:
    def through(prompt: Tensor, reply: Tensor, hooks: HooksOf) -> tuple[Tensor, Tensor]:
        nothing = empty_keys_values(model, len(prompt))
        return through_blocks(model, rows, range(layer, layer + 1), prompt, reply, mask, nothing, hooks)

    return through


def _repeated(model: TransformerBridge, rows: PairBatch, calls: Sequence[bridge.BlockCall]) -> Through:
    def through(prompt: Tensor, reply: Tensor, hooks: HooksOf) -> tuple[Tensor, Tensor]:
        cache = bridge.empty_cache(model, len(prompt))
        with attached(model, hooks("prompts")):
            prompt = calls[0].again(prompt, cache)
        if reply.shape[1]:
            with attached(model, hooks("replies")):
                reply = calls[1].again(reply, cache.taken(rows.spread(len(prompt))))
        return prompt, reply

    return through
