"""From a vector to ``[(name, fn)]``: adding it at absolute token positions, with or without a cache.

A hook function sees only the chunk of tokens of the current forward pass; with a KV cache that is one
token per decode step, so that an index into the chunk means another token at every step. Here the
absolute position of a chunk is read off the attention scores of the same pass, whose key axis is
longer than its query axis by exactly the number of cached tokens. Positions that a prompt does not
have are left out; what a padded batch has there is padding, which is masked.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from star_tl.errors import StarError
from star_tl.locus import Locus

NamedHook = tuple[str | Callable[..., Any], Callable[..., Any]]
SCHEDULES = ("locus", "prompt", "last_prompt", "generated", "all")


def injection_hooks(
    vector: Float[Tensor, "position d"],
    locus: Locus,
    positions: str | Sequence[int] | None = None,
    prompt_length: int | None = None,
) -> list[NamedHook]:
    """Hooks that add ``vector`` at ``locus``, for ``run_with_hooks``, ``model.hooks`` and ``generate``.

    Args:
        vector: one row per position of the locus. For schedules other than the locus's own, its mean.
        locus: hook point and positions.
        positions: ``"locus"`` (default), ``"prompt"`` (all of it), ``"last_prompt"``, ``"generated"``
            (from the last prompt token on, so that the first sampled token is steered too),
            ``"all"``, or a sequence of positions: negative from the prompt's end (-1 its last
            token), others counted from the first generated token (0).
        prompt_length: columns up to the prompt's end, where a forward pass holds prompt and reply
            at once, or only a part of the prompt. Default: all that the first pass of a call holds,
            with what was cached before it, which is right for cached generation.

    Raises:
        StarError: unknown schedule, positions that are not whole numbers, or ``resid_pre`` of layer 0,
            which no attention precedes.
    """
    schedule = _schedule(locus, positions)
    return _hooks(_rows(vector, locus, schedule)[None], None, locus, schedule, prompt_length)


def row_hooks(
    rows: Sequence[tuple[Float[Tensor, "position d"], Locus, str | Sequence[int] | None] | None],
) -> list[NamedHook]:
    """Hooks for a batch whose rows are steered each in its own way, or not at all.

    Args:
        rows: for every row of the batch a vector, its locus and positions, as in
            :func:`injection_hooks`; None leaves the row alone.

    Raises:
        StarError: as :func:`injection_hooks`.
    """
    groups: dict[tuple[Locus, str | tuple[int, ...]], list[tuple[int, Tensor]]] = {}
    for i, row in enumerate(rows):
        if row is not None:
            vector, locus, positions = row
            schedule = _schedule(locus, positions)
            groups.setdefault((locus, schedule), []).append((i, _rows(vector, locus, schedule)))
    hooks: list[NamedHook] = []
    for (locus, schedule), members in groups.items():
        index = torch.tensor([i for i, _ in members])
        hooks += _hooks(torch.stack([v for _, v in members]), index, locus, schedule, None)
    return hooks


def _schedule(locus: Locus, positions: str | Sequence[int] | None) -> str | tuple[int, ...]:
    if positions is None or positions == "locus":
        return locus.positions
    if isinstance(positions, str):
        if positions not in SCHEDULES:
            raise StarError(f"Unknown positions {positions!r}: use one of {', '.join(SCHEDULES)} or a list of numbers.")
        return positions
    numbers = _numbers(positions)
    return locus.positions if set(numbers) == set(locus.positions) else numbers


def _rows(vector: Tensor, locus: Locus, schedule: str | tuple[int, ...]) -> Tensor:
    """A row per position of the locus's own; for other schedules the mean, once."""
    return vector if schedule == locus.positions else vector.mean(0, keepdim=True)


def _hooks(
    vectors: Float[Tensor, "row position d"],
    index: Int[Tensor, " row"] | None,
    locus: Locus,
    schedule: str | tuple[int, ...],
    prompt_length: int | None,
) -> list[NamedHook]:
    """Add ``vectors`` to the rows ``index`` of a batch; without an index the one vector to all rows."""
    watched = locus.layer
    if locus.hook_point.endswith("hook_resid_pre"):
        watched -= 1
        if watched < 0:
            raise StarError("blocks.0.hook_resid_pre cannot be injected at: use blocks.0.hook_resid_post.")
    seen = {"offset": 0, "end": 0, "keys": 0}

    def observe(scores: Tensor, hook: object) -> None:
        queries, keys = scores.shape[-2:]
        seen["offset"] = keys - queries
        if prompt_length is not None:
            seen["end"] = prompt_length
        elif not 0 < seen["end"] <= seen["offset"] <= seen["keys"]:  # not the next step of the last pass
            seen["end"] = keys
        seen["keys"] = keys

    def inject(activation: Tensor, hook: object) -> Tensor:
        chunk = _columns(schedule, seen["end"], seen["offset"], activation.shape[1])
        if not chunk:
            return activation
        several = vectors.shape[1] > 1
        added = vectors[:, [r if several else 0 for _, r in chunk]].to(activation.device)
        columns = torch.tensor([c for c, _ in chunk], device=activation.device)
        rows = torch.arange(len(activation)) if index is None else index
        at = (rows.to(activation.device)[:, None], columns, *(() if locus.head is None else (locus.head,)))
        # bf16 would round a small vector away against a large residual: add in float32.
        wide = torch.promote_types(activation.dtype, torch.float32)
        out = activation.clone()
        out[at] = (activation[at].to(wide) + added.to(wide)).to(out.dtype)
        return out

    return [(f"blocks.{watched}.attn.hook_attn_scores", observe), (locus.hook_point, inject)]


def _numbers(positions: Sequence[int]) -> tuple[int, ...]:
    try:
        numbers = tuple(operator.index(p) for p in positions)
    except TypeError:
        numbers = ()
    if not numbers:
        raise StarError(f"positions is {positions!r}: use one of {', '.join(SCHEDULES)} or a list of whole numbers.")
    return numbers


def _columns(schedule: str | tuple[int, ...], end: int, offset: int, length: int) -> list[tuple[int, int]]:
    """Columns of the chunk to add at, each with its row of the vector."""
    if isinstance(schedule, tuple):
        wanted = {end + p: row for row, p in enumerate(schedule)}
        return [(c - offset, row) for c, row in sorted(wanted.items()) if offset <= c < offset + length]
    low, high = {
        "prompt": (0, end),
        "last_prompt": (end - 1, end),
        "generated": (end - 1, offset + length),
        "all": (0, offset + length),
    }[schedule]
    return [(c - offset, 0) for c in range(max(low, offset), min(high, offset + length))]
