"""Sampling with hooks: batched, cached, and the same text for a row whatever it shares a batch with.

Randomness belongs to the row: one uniform number per step, drawn from a generator seeded by the
seed and the prompt's tokens, picks the token by inverse transform. A row's text therefore depends
on its prompt, its hooks and the seed, not on the batch, its order or its size.
"""

from __future__ import annotations

import difflib
import hashlib
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from numbers import Integral, Real
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from tqdm.auto import tqdm
from transformer_lens import HookedTransformer
from transformer_lens.cache.key_value_cache import TransformerLensKeyValueCache

from star_tl.batch import make_batch, unembed
from star_tl.chat import Prompt, render, stop_ids
from star_tl.errors import StarError
from star_tl.injection import NamedHook


@dataclass(frozen=True)
class Reply:
    """What the model wrote. ``stopped`` says that it ended its turn by itself."""

    text: str
    tokens: tuple[int, ...]
    stopped: bool


def sample(
    model: HookedTransformer,
    prompts: Sequence[Prompt],
    hooks: Sequence[NamedHook] = (),
    max_new_tokens: int = 60,
    temperature: float = 1.0,
    top_p: float = 1.0,
    seed: int = 0,
    batch_size: int = 64,
    progress: bool = True,
) -> list[str]:
    """One reply to each prompt, as text; arguments as in :func:`generate`."""
    replies = generate(model, prompts, hooks, max_new_tokens, temperature, top_p, seed, batch_size, progress)
    return [reply.text for reply in replies]


@torch.no_grad()
def generate(
    model: HookedTransformer,
    prompts: Sequence[Prompt],
    hooks: Sequence[NamedHook] = (),
    max_new_tokens: int = 60,
    temperature: float = 1.0,
    top_p: float = 1.0,
    seed: int = 0,
    batch_size: int = 64,
    progress: bool = True,
) -> list[Reply]:
    """One reply to each prompt.

    Args:
        model: a HookedTransformer with a tokenizer.
        prompts: texts or chats.
        hooks: ``[(name, fn)]``, e.g. ``vector.hooks(strength=1.0)``; active during prompt and reply.
        max_new_tokens: most tokens of a reply; it ends earlier at the end of the turn.
        temperature: 0 is greedy.
        top_p: sample from the smallest set of tokens that holds this probability.
        seed: the same seed gives the same text for the same prompt and hooks.
        batch_size: prompts per batch; the texts do not depend on it.
        progress: show a progress bar.

    Raises:
        StarError: no prompts, an empty one, one that leaves no room for a reply, or an argument
            out of range.
    """
    check_arguments(prompts, max_new_tokens, temperature, top_p, seed, batch_size)
    _check_hooks(model, hooks)
    rendered = render_prompts(model, prompts, max_new_tokens)
    replies: list[Reply | None] = [None] * len(rendered)
    options = Sampling(max_new_tokens, temperature, top_p, batch_size)
    for rows, written in in_batches(model, rendered, [seed] * len(rendered), lambda _: hooks, options, progress):
        for i, reply in zip(rows, written, strict=True):
            replies[i] = reply
    return [r for r in replies if r is not None]


@dataclass(frozen=True)
class Sampling:
    """How to sample; see :func:`generate`."""

    max_new_tokens: int = 60
    temperature: float = 1.0
    top_p: float = 1.0
    batch_size: int = 64


@torch.no_grad()
def in_batches(
    model: HookedTransformer,
    prompts: Sequence[tuple[int, ...]],
    seeds: Sequence[int],
    hooks_of: Callable[[list[int]], Sequence[NamedHook]],
    options: Sampling,
    progress: bool,
) -> Iterator[tuple[list[int], list[Reply]]]:
    """Replies as batches of rows of like length are finished, with the indices of their rows.

    ``hooks_of`` makes the hooks of a batch from the indices of its rows.
    """
    order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
    with tqdm(total=len(prompts), desc="sampling", unit="reply", disable=not progress, delay=2) as bar:
        for first in range(0, len(order), options.batch_size):
            rows = order[first : first + options.batch_size]
            yield rows, _batch(model, [prompts[i] for i in rows], [seeds[i] for i in rows], hooks_of(rows), options)
            bar.update(len(rows))


def render_prompts(model: HookedTransformer, prompts: Sequence[Prompt], max_new_tokens: int) -> list[tuple[int, ...]]:
    """Token ids of every prompt. Raises StarError where one leaves no room for a reply."""
    rendered = [render(model.tokenizer, p).ids for p in prompts]
    room = model.cfg.n_ctx - max_new_tokens
    for i, ids in enumerate(rendered):
        if len(ids) > room:
            raise StarError(
                f"Prompt {i} has {len(ids)} tokens; with {max_new_tokens} new ones that exceeds the model's context of "
                f"{model.cfg.n_ctx}: shorten it or lower max_new_tokens."
            )
    return rendered


def _batch(
    model: HookedTransformer,
    prompts: list[tuple[int, ...]],
    seeds: list[int],
    hooks: Sequence[NamedHook],
    options: Sampling,
) -> list[Reply]:
    batch, max_new_tokens = make_batch(model, prompts), options.max_new_tokens
    n, device = len(prompts), batch.tokens.device
    cache = TransformerLensKeyValueCache.init_cache(model.cfg, device, n)
    uniforms = torch.stack([_uniforms(seed, ids, max_new_tokens) for seed, ids in zip(seeds, prompts, strict=True)]).to(
        device
    )
    stops = torch.tensor(stop_ids(model.tokenizer), device=device)
    written = torch.zeros(n, max_new_tokens, dtype=torch.long, device=device)
    lengths = torch.full((n,), max_new_tokens, device=device)
    stopped = torch.zeros(n, dtype=torch.bool, device=device)
    tokens, mask = batch.tokens, batch.mask.int()
    with model.hooks(fwd_hooks=list(hooks)):
        for step in range(max_new_tokens):
            residual = model(tokens, attention_mask=mask, past_kv_cache=cache, stop_at_layer=model.cfg.n_layers)
            logits = unembed(model, residual[:, -1:])[:, 0]
            chosen = pick(logits, uniforms[:, step], options.temperature, options.top_p)
            ends = torch.isin(chosen, stops) & ~stopped
            lengths[ends] = step
            stopped |= ends
            written[:, step] = chosen
            if bool(stopped.all()):
                break
            tokens, mask = chosen[:, None], torch.ones(n, 1, dtype=torch.int, device=device)
    tokenizer: Any = model.tokenizer
    replies = []
    for row, length, ended in zip(written.tolist(), lengths.tolist(), stopped.tolist(), strict=True):
        ids = tuple(row[:length])
        replies.append(Reply(tokenizer.decode(ids, skip_special_tokens=True).strip(), ids, ended))
    return replies


def pick(
    logits: Float[Tensor, "row vocab"], uniform: Float[Tensor, " row"], temperature: float, top_p: float
) -> Int[Tensor, " row"]:
    """The token of every row by inverse transform of ``uniform``; greedy at temperature 0.

    Tokens are taken in the order of their probability, so that top-p is a bound on the sum.
    """
    if temperature == 0:
        return logits.argmax(-1)
    probabilities, order = (logits.double() / temperature).softmax(-1).sort(stable=True, dim=-1, descending=True)
    total = probabilities.cumsum(-1)
    inside = total - probabilities < top_p
    mass = torch.where(inside, total, 0.0).amax(-1)
    index = (total < (uniform.double() * mass)[:, None]).sum(-1)
    index = index.clamp(max=inside.sum(-1) - 1)
    return order.gather(-1, index[:, None])[:, 0]


def _uniforms(seed: int, ids: tuple[int, ...], count: int) -> Tensor:
    digest = hashlib.sha256(repr((int(seed), ids)).encode()).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest[:8], "little") >> 1)
    return torch.rand(count, generator=generator, dtype=torch.float64)


def _check_hooks(model: HookedTransformer, hooks: Sequence[NamedHook]) -> None:
    try:
        names = [name for name, _ in hooks]
    except (TypeError, ValueError):
        raise StarError("hooks is not a list of (name, function): pass vector.hooks(strength=...).") from None
    for name in names:
        if isinstance(name, str) and name not in model.hook_dict:
            close = difflib.get_close_matches(name, model.hook_dict, n=1, cutoff=0.0)[0]
            raise StarError(f"The model has no hook point {name!r}: model.hook_dict has {close!r}, say.")


def check_arguments(
    prompts: Sequence[Prompt], max_new_tokens: int, temperature: float, top_p: float, seed: int, batch_size: int
) -> None:
    """Raises StarError where an argument of :func:`generate` is out of range."""
    if isinstance(prompts, str):
        raise StarError("prompts is one text: give a list of prompts.")
    if len(prompts) == 0:  # also of a pandas column, whose truth value is undefined
        raise StarError("There are no prompts: give at least one.")
    for name, value in (("max_new_tokens", max_new_tokens), ("batch_size", batch_size)):
        if not isinstance(value, Integral) or value < 1:
            raise StarError(f"{name} is {value!r}: use a whole number, at least 1.")
    if not (isinstance(temperature, Real) and math.isfinite(temperature) and temperature >= 0):
        raise StarError(f"temperature is {temperature!r}: use 0 (greedy) or more.")
    if not (isinstance(top_p, Real) and 0 < top_p <= 1):
        raise StarError(f"top_p is {top_p!r}: use a share above 0, at most 1.")
    if not isinstance(seed, Integral):
        raise StarError(f"seed is {seed!r}: use a whole number.")
