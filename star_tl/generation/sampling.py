"""Sampling with hooks: batched, cached, and in float32 the same text for a row whatever it shares a batch with.

Randomness belongs to the row: one uniform number per step, drawn from a generator seeded by the
seed and the prompt's tokens, picks the token by inverse transform. In float32 and float64 a row's text
therefore depends on its prompt, its hooks and the seed, not on the batch, its order or its size, but for
rounding: where the number lies within 1e-6 of the border between two tokens, sums of another batch may fall on its
other side, at temperature 0.8 in about one reply of 60 tokens in a hundred. In
bfloat16 and float16 products round otherwise in a batch of another size, which is enough to change a token
now and then, greedy ones too: there only the same batches give the same texts.
"""

from __future__ import annotations

import difflib
import inspect
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from types import NoneType
from typing import ParamSpec, cast

import torch
from jaxtyping import Float
from torch import Tensor
from typing_extensions import Unpack

from star_tl.data.chat import SPANS, Prompt, as_prompts, render, stop_ids
from star_tl.errors import StarError, check_flag, check_kind
from star_tl.generation.decoding import Pass, begin
from star_tl.generation.picking import choose, log_probs, whole
from star_tl.generation.settings import Sampling, SamplingOptions, settled
from star_tl.generation.writing import Reply, Writing
from star_tl.locus import NamedHook
from star_tl.models.backend import MODELS, Model, tokenizer_of
from star_tl.models.batch import make_batch
from star_tl.models.fast.decode import LlamaPass
from star_tl.models.memory import fitting_batches, free_beside
from star_tl.models.position import acts_on, reach
from star_tl.progress import Bar
from star_tl.steering.condition import Condition
from star_tl.steering.hooks import acting_at

CACHE_SHARE = 0.25  # of the free memory: the most that the KV cache of a batch takes, with what tokens are chosen from
PICKING = 48  # bytes for each word of a row, while its token is chosen
ROWS, ROWS_ON_GPU = 64, 1024  # of a batch, where nothing is said: beyond it rows get no cheaper
# The share of rows that still write, at which the others are dropped; and where that is dear, with so many steps to go.
MANY_LEFT, FEW_LEFT, DEAR_STEPS = 0.75, 0.25, 16
Asked = ParamSpec("Asked")


def generate(
    model: Model,
    prompts: Sequence[Prompt],
    hooks: Sequence[NamedHook] = (),
    *,
    condition: Condition | None = None,
    seed: int | None = None,
    sampling: Sampling | None = None,
    progress: bool = True,
    **options: Unpack[SamplingOptions],
) -> list[Reply]:
    """One reply to each prompt.

    Args:
        model: from :func:`star_tl.load_model`, of either backend.
        prompts: texts or chats, in any of the forms that :func:`star_tl.data.chat.as_prompts` reads.
        hooks: ``[(name, fn)]``, e.g. ``vector.hooks(strength=1.0)``; active during prompt and reply.
        condition: in place of hooks, a :class:`star_tl.Condition`: vector, strength, positions, instruction and seed.
        seed: the same seed gives the same text for the same prompt and hooks; in bfloat16 and float16 in the same
            batch. Default: the condition's, or 0.
        sampling: how to sample, a :class:`star_tl.Sampling`, or its fields by name (``max_new_tokens=60``).
        progress: show a progress bar.

    Raises:
        StarError: no prompts, an empty one, one that leaves no room for a reply, an argument out of range, two
            arguments that say the same, or logits that are NaN or infinite where nothing was steered.
    """
    settings, prompts = settled(sampling, options), as_prompts(prompts)
    check_flag(progress, "progress")
    hooks, asked, seed = _meant(model, prompts, hooks, condition, seed)
    rendered = render_prompts(model, asked, settings.max_new_tokens)
    if condition is not None:
        warn_unreached([condition], rendered, settings)
    replies: list[Reply | None] = [None] * len(rendered)

    def hooks_of(rows: list[int]) -> Sequence[NamedHook]:
        return condition.hooks(tokenizer_of(model), [prompts[i] for i in rows]) if condition is not None else hooks

    for rows, written in in_batches(model, rendered, [seed] * len(rendered), hooks_of, settings, progress):
        for i, reply in zip(rows, written, strict=True):
            replies[i] = reply
    return [r for r in replies if r is not None]


def _texts_of(write: Callable[Asked, list[Reply]]) -> Callable[Asked, list[str]]:
    def sample(*args: Asked.args, **kwargs: Asked.kwargs) -> list[str]:
        """One reply to each prompt, as text; arguments as in :func:`generate`."""
        return [reply.text for reply in write(*args, **kwargs)]

    vars(sample)["__signature__"] = inspect.signature(write).replace(return_annotation="list[str]")
    sample.__qualname__ = "sample"
    return sample


sample = _texts_of(generate)


def stream(
    model: Model,
    prompts: Sequence[Prompt],
    hooks: Sequence[NamedHook] = (),
    *,
    condition: Condition | None = None,
    seed: int | None = None,
    sampling: Sampling | None = None,
    **options: Unpack[SamplingOptions],
) -> Iterator[list[Reply]]:
    """The replies so far, after every token, of prompts that are written side by side in one batch.

    Close the iterator to stop early. The last item equals what :func:`generate` returns; arguments as there.

    Raises:
        StarError: as :func:`generate`.
    """
    prompts = as_prompts(prompts)
    settings = replace(settled(sampling, options), batch_size=len(prompts))
    hooks, asked, seed = _meant(model, prompts, hooks, condition, seed)
    rendered = render_prompts(model, asked, settings.max_new_tokens)
    if condition is not None:
        hooks = condition.hooks(tokenizer_of(model), prompts)
        warn_unreached([condition], rendered, settings)
    return _written(model, rendered, [seed] * len(rendered), hooks, settings)


def warn_unreached(conditions: Sequence[Condition], prompts: Sequence[tuple[int, ...]], options: Sampling) -> None:
    """Warn where a condition names positions that none of these prompts has, nor any reply to them."""
    longest = max(map(len, prompts), default=0)
    for condition in conditions:
        if condition.positions in SPANS:
            continue
        acting = [acting_at(vector.locus, condition.positions) for vector in condition.vectors]
        numbers = sorted({p for at in acting if not isinstance(at, str) for p in at})
        named = bool(numbers) and not any(isinstance(at, str) for at in acting)
        if named and not any(-longest <= p < options.max_new_tokens for p in numbers):
            warnings.warn(
                f"No prompt has the positions {', '.join(map(str, numbers))}, the longest has {longest} tokens, and a "
                f"reply at most {options.max_new_tokens}: nothing is added.",
                stacklevel=3,
            )
            return


def _meant(
    model: Model,
    prompts: Sequence[Prompt],
    hooks: Sequence[NamedHook],
    condition: Condition | None,
    seed: int | None,
) -> tuple[Sequence[NamedHook], Sequence[Prompt], int]:
    """Hooks, prompts and seed, checked."""
    check_kind(model, MODELS, "a model that load_model returns")
    check_kind(condition, (Condition, NoneType), "a Condition")
    hooks = _read_hooks(model, hooks)
    if condition is None:
        return hooks, prompts, Condition(seed=0 if seed is None else seed).seed  # which is checked there
    for name, given in (("hooks", len(hooks) > 0), ("seed", seed is not None)):
        if given:
            raise StarError(f"{name} and a condition are both given: the condition says it already.")
    return (), condition.prompted(prompts), condition.seed


@torch.no_grad()
def in_batches(
    model: Model,
    prompts: Sequence[tuple[int, ...]],
    seeds: Sequence[int],
    hooks_of: Callable[[list[int]], Sequence[NamedHook]],
    options: Sampling,
    progress: bool,
    keep: bool = False,
) -> Iterator[tuple[list[int], list[Reply]]]:
    """Replies as batches of rows of like length are finished, with the indices of their rows.

    ``hooks_of`` makes the hooks of a batch from the indices of its rows. Rows of the same prompt stand together,
    so that what they share is read once. With ``keep`` replies hold their ``residual``, where it is at hand.
    """
    order = batch_order(prompts)

    def write(rows: Sequence[int]) -> list[Reply]:
        rows = list(rows)
        own, drawn = [prompts[i] for i in rows], [seeds[i] for i in rows]
        texts = _written(model, own, drawn, hooks_of(rows), options, every=False, keep=keep)
        return list(texts)[-1]

    def alone(row: int) -> str:
        needed = len(prompts[row]) + options.max_new_tokens
        return (
            f"Memory is too small for a single row of {needed} tokens, prompt and reply: use a shorter prompt, "
            "a lower max_new_tokens, or a model in bfloat16."
        )

    with Bar(total=len(prompts), desc="sampling", unit="reply", disable=not progress, delay=2) as bar:
        batches = fitting_batches(order, lambda left: _room(model, prompts, left, options), write, alone, "rows")
        for rows, replies in batches:
            yield list(rows), replies
            bar.update(len(rows))


def batch_order(prompts: Sequence[tuple[int, ...]]) -> list[int]:
    """The order in which rows are cut into batches: of like length, equal prompts side by side."""
    return sorted(range(len(prompts)), key=lambda i: (len(prompts[i]), prompts[i]))


def _room(model: Model, prompts: Sequence[tuple[int, ...]], left: Sequence[int], options: Sampling) -> int:
    """As many of the next rows as batch size and memory allow, at least one."""
    cfg = model.cfg
    most = rows_at_once(model, options)
    longest = len(prompts[left[min(most, len(left)) - 1]]) + options.max_new_tokens
    a_row = cache_bytes(model) * longest + PICKING * cfg.d_vocab
    return max(1, min(most, int(CACHE_SHARE * free_beside(model) / a_row)))


def rows_at_once(model: Model, options: Sampling) -> int:
    """Rows of a batch, where memory allows."""
    return options.batch_size or (ROWS_ON_GPU if "cuda" in str(model.cfg.device) else ROWS)


def cache_columns(model: Model) -> int:
    """For how many tokens, of all rows together, the KV cache of a batch may take memory."""
    return int(CACHE_SHARE * free_beside(model) / cache_bytes(model))


def cache_bytes(model: Model) -> int:
    """What the KV cache of a token takes, of all layers."""
    cfg = model.cfg
    return 2 * cfg.n_layers * (cfg.n_key_value_heads or cfg.n_heads) * cfg.d_head * cfg.dtype.itemsize


def render_prompts(model: Model, prompts: Sequence[Prompt], max_new_tokens: int) -> list[tuple[int, ...]]:
    """Token ids of every prompt. Raises StarError where one leaves no room for a reply."""
    rendered = [render(tokenizer_of(model), p).ids for p in prompts]
    room = model.cfg.n_ctx - max_new_tokens
    for i, ids in enumerate(rendered):
        if len(ids) > room:
            raise StarError(
                f"Prompt {i} has {len(ids)} tokens; with {max_new_tokens} new ones that exceeds the model's context of "
                f"{model.cfg.n_ctx}: shorten it or lower max_new_tokens."
            )
    return rendered


@torch.inference_mode(False)  # the text may be gone on with outside of where it was begun
@torch.no_grad()
def _written(
    model: Model,
    prompts: list[tuple[int, ...]],
    seeds: list[int],
    hooks: Sequence[NamedHook],
    options: Sampling,
    every: bool = True,
    keep: bool = False,
) -> Iterator[list[Reply]]:
    """One batch: the replies so far after every step, or with ``every`` False only the finished ones."""
    stops = frozenset(stop_ids(tokenizer_of(model)))
    rows = [Writing(tokenizer_of(model), p, seed, options, stops) for p, seed in zip(prompts, seeds, strict=True)]
    batch, logits = read_prompts(model, prompts, hooks, options.max_new_tokens)
    device = logits.device
    drawn = torch.stack([row.uniforms for row in rows]).to(device)
    alive = list(range(len(rows)))  # the row of the batch that each row of the pass is
    seen = None
    if options.repetition_penalty != 1:
        seen = torch.stack([row.seen(logits.shape[-1]) for row in rows]).to(device)
    lasts: list[tuple[list[int], Tensor]] = []  # of every step the rows and what their logits were made from
    step = 0
    for step in range(options.max_new_tokens):
        if keep and batch.last is not None:
            lasts.append((alive, batch.last))
        finite, usable = whole(logits)
        own = seen[alive] if seen is not None else None
        chosen = choose(usable, own, drawn[:, step], options)
        likely = log_probs(usable, chosen).tolist() if options.log_probs else [None] * len(alive)
        tokens, fines = torch.stack([chosen, finite.long()]).tolist()  # together: each would wait for the device
        for i, token, fine, log_prob in zip(alive, tokens, fines, likely, strict=True):
            if not fine and rows[i].ended is None and not acts_on(hooks, i):
                raise StarError(broken_message(model))
            rows[i].take(token if fine else None, log_prob)
        if seen is not None:
            seen[alive, chosen] = True
        if every:
            yield [row.reply for row in rows]
        going = [place for place, i in enumerate(alive) if rows[i].ended is None]
        if not going:
            break
        # Dropping rows copies the cache: worth it when a good part of the batch is finished, and where it is dear when
        # hardly any is left and there is some way to go.
        if batch.dear:
            pays = len(going) <= FEW_LEFT * len(alive) and options.max_new_tokens - step > DEAR_STEPS
        else:
            pays = len(going) <= MANY_LEFT * len(alive)
        if pays:
            kept = torch.tensor(going, device=device)
            if batch.keep(kept):
                alive, chosen, drawn = [alive[place] for place in going], chosen[kept], drawn[kept]
        logits = batch(chosen[:, None])
    if not every:
        replies = [row.reply for row in rows]
        yield replies if len(lasts) <= step else _with_residuals(replies, lasts)


def _with_residuals(replies: Sequence[Reply], lasts: Sequence[tuple[list[int], Tensor]]) -> list[Reply]:
    first = lasts[0][1]
    steps = first.new_zeros(len(replies), len(lasts), first.shape[-1])
    for step, (rows, last) in enumerate(lasts):
        steps[rows, step] = last
    return [
        replace(reply, residual=row[: max(1, len(reply.tokens))].clone())
        for reply, row in zip(replies, steps, strict=True)
    ]


def broken_message(model: Model) -> str:
    """What is said where logits are broken though nothing was steered."""
    dtype = model.cfg.dtype
    wider = "" if dtype == torch.float64 else f"dtype={'float64' if dtype == torch.float32 else 'float32'!r}, or "
    return (
        "The model's logits are NaN or infinite where nothing was steered: load it with "
        f"{wider}weights that hold only finite numbers."
    )


def read_prompts(
    model: Model, prompts: list[tuple[int, ...]], hooks: Sequence[NamedHook], room: int
) -> tuple[Pass, Float[Tensor, "row vocab"]]:
    """A pass that has read the prompts and has room for so many tokens more, and the logits after the prompts.

    What rows of the same prompt share, up to the first token that a hook of theirs may touch, is read once.
    """
    end = max(len(ids) for ids in prompts)
    unique = sorted(set(prompts), key=prompts.index)
    touched = reach(hooks)
    own = max(1, touched) if touched is not None else end
    padded = make_batch(model, prompts)
    batch = begin(model, hooks, padded.mask, end, end + room)
    alone = len(unique) == len(prompts) or own >= min(len(ids) for ids in prompts)
    if alone or not isinstance(batch, LlamaPass):
        return batch, batch(padded.tokens)
    once = make_batch(model, unique)
    shared = begin(model, (), once.mask, end, end - own)
    assert isinstance(shared, LlamaPass)
    shared.residual(once.tokens[:, : end - own])
    batch.go_on_from(shared, torch.tensor([unique.index(ids) for ids in prompts], device=once.tokens.device))
    return batch, batch(padded.tokens[:, end - own :])


def _read_hooks(model: Model, hooks: Iterable[NamedHook]) -> list[NamedHook]:
    """A list of them, checked: an iterator could be read only once."""
    try:
        found = [(name, function) for name, function in hooks]
    except (TypeError, ValueError):
        found = [("", None)]
    if not all(callable(function) and (isinstance(name, str) or callable(name)) for name, function in found):
        raise StarError("hooks is not a list of (name, function): pass vector.hooks(strength=...).")
    for name, _ in found:
        if isinstance(name, str) and name not in model.hook_dict:
            close = difflib.get_close_matches(name, model.hook_dict, n=1, cutoff=0.0)[0]
            raise StarError(f"The model has no hook point {name!r}: model.hook_dict has {close!r}, say.")
    return cast(list[NamedHook], found)
