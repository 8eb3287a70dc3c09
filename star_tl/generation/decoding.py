"""Forward passes without a gradient: one that fires only the hook points that are hooked, and the model's own.

Models of the Llama family take :class:`star_tl.models.fast.decode.LlamaPass`. All other models, and hook points that it
does not fire, go through :class:`StockPass`, the model's own forward. Both go on over a KV cache; :func:`residual_of`
reads whole rows at once. Both tell hooks that act at positions where they stand, so that one list of hooks may be in
several passes at once.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Protocol

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from star_tl.locus import NamedHook, hook_name
from star_tl.models.backend import Model, attached, empty_cache, residual_stream, taken, unembed
from star_tl.models.batch import TokenBatch
from star_tl.models.fast.decode import LlamaPass, llama_pass
from star_tl.models.position import Position, following, for_rows, reach


class Pass(Protocol):
    """A batch in the middle of being written.

    ``last`` is the last residual stream that the last logits were made from, ``[row d_model]``, where it is at hand.
    ``dear`` says that :meth:`keep` takes as long as many steps, for what was recorded is recorded anew.
    """

    last: Tensor | None

    @property
    def dear(self) -> bool: ...

    def __call__(self, tokens: Int[Tensor, "row column"]) -> Float[Tensor, "row vocab"]:
        """Logits after the last of these tokens, which follow those of earlier calls; float32 at least."""
        ...

    def keep(self, rows: Int[Tensor, " kept"]) -> bool:
        """Go on with these rows only; False where that cannot be done, and all rows go on."""
        ...


def begin(model: Model, hooks: Sequence[NamedHook], mask: Bool[Tensor, "row column"], end: int, room: int) -> Pass:
    """A pass over a batch of left-padded prompts of which nothing has been read yet.

    Args:
        model: of either kind.
        hooks: ``[(name, fn)]``.
        mask: True where a token stands, False at padding, up to the prompt's end.
        end: columns of the prompts.
        room: most columns that will be read, prompts included.
    """
    return llama_pass(model, hooks, mask, end, room) or StockPass(model, hooks, mask, end)


@torch.no_grad()
def residual_of(
    model: Model,
    hooks: Sequence[NamedHook],
    tokens: Int[Tensor, "row column"],
    mask: Bool[Tensor, "row column"],
    end: int,
    layers: int | None = None,
) -> Float[Tensor, "row column d_model"]:
    """The residual stream after so many layers, default all, of rows that hold prompts, up to column ``end``, and their
    replies.
    """
    fast = llama_pass(model, hooks, mask[:, :end], end, tokens.shape[1], layers)
    if fast is not None:
        return fast.residual(tokens)
    with attached(model, following(hooks, Position(end))):
        return residual_stream(model, tokens, mask, layers=layers)


@torch.no_grad()
def residuals_of(
    model: Model, ways: Sequence[Sequence[NamedHook]], batch: TokenBatch
) -> Iterator[Float[Tensor, "row reply d_model"]]:
    """Of each way, given by its hooks, the last residual stream where it predicts reply tokens.

    What no hook touches is read once: the prompts' tokens before, for all ways and all rows of the same prompt, and
    the layers below, where the first way has no hooks.
    """
    end, tokens = batch.prompt_end, batch.tokens[:, :-1]  # from a row's last token nothing follows
    touched = [reach(hooks) for hooks in ways]
    own = max(1, *(t or 0 for t in touched))
    known = None not in touched and own < int(batch.mask[:, :end].sum(1).min())

    def begun(hooks: Sequence[NamedHook]) -> LlamaPass | None:
        return llama_pass(model, hooks, batch.mask[:, :end], end, tokens.shape[1]) if known else None

    runs = [begun(hooks) for hooks in ways]
    if None in runs:
        for hooks in ways:
            yield residual_of(model, hooks, tokens, batch.mask[:, :-1], end)[:, end - 1 :]
        return
    once, rows = torch.cat([batch.tokens[:, :end], batch.mask[:, :end].long()], 1).unique(dim=0, return_inverse=True)
    prompts, mask = once[:, :end], once[:, end:].bool()
    shared = llama_pass(model, (), mask, end, end - own)
    assert shared is not None
    shared.residual(prompts[:, : end - own])
    entering: dict[int, Tensor] = {}

    def keep(layer: int) -> NamedHook:
        return hook_name("resid_pre", layer), lambda activation, hook: entering.__setitem__(layer, activation)

    lowest = [run.first_hooked for run in runs if run is not None]
    for hooks, made, low in zip(ways, runs, lowest, strict=True):
        run = made if hooks else begun([keep(i) for i in set(lowest) if i < model.cfg.n_layers])
        assert run is not None
        run.go_on_from(shared, rows)
        known_from = (low, entering[low]) if low in entering else None
        yield run.residual(tokens[:, end - own :], known_from)[:, own - 1 :]


class StockPass:
    """The model's own forward under hooks of TransformerLens, over a cache of the model's kind."""

    dear = False

    def __init__(self, model: Model, hooks: Sequence[NamedHook], mask: Bool[Tensor, "row column"], end: int) -> None:
        self.model, self.mask, self.position = model, mask.int(), Position(end)
        self.hooks = following(hooks, self.position)
        self.cache = empty_cache(model, len(mask))
        self.last: Tensor | None = None

    @torch.no_grad()
    def __call__(self, tokens: Int[Tensor, "row column"]) -> Float[Tensor, "row vocab"]:
        mask, self.mask = self.mask, self.mask.new_ones(len(tokens), 1)
        self.position.advance(tokens.shape[1])
        with attached(self.model, self.hooks):
            last = residual_stream(self.model, tokens, mask, self.cache)
        self.last = last[:, -1]
        return unembed(self.model, last[:, -1:])[:, 0]

    def keep(self, rows: Int[Tensor, " kept"]) -> bool:
        """See :class:`Pass`."""
        kept = for_rows(self.hooks, rows)
        if kept is None:
            return False
        self.hooks, self.cache, self.mask = kept, taken(self.cache, rows), self.mask[rows]
        return True
