"""Forward passes without a gradient: one that fires only the hook points that are hooked, and the model's own.

Models of the Llama family take :class:`LlamaPass`, on :mod:`star_tl.models.fast.forward`. All other models, and hook
points that it does not fire, go through :class:`StockPass`, the model's own forward. Both go on over a KV cache;
:func:`residual_of` reads whole rows at once.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from star_tl.locus import NamedHook
from star_tl.models.backend import Model, attached, empty_cache, read, taken, unembed
from star_tl.models.fast.forward import LeanForward, is_llama, listeners_of, resolve
from star_tl.models.fast.single_row import DTYPES, OneRow
from star_tl.models.lens import HookedTransformer
from star_tl.steering.hooks import Clock, Injection

MANY_ROWS = 8  # from here on two batched products beat fused attention at one query a row


class Pass(Protocol):
    """A batch in the middle of being written."""

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
    return _lean(model, hooks, mask, end, room) or StockPass(model, hooks, mask)


@torch.no_grad()
def residual_of(
    model: Model,
    hooks: Sequence[NamedHook],
    tokens: Int[Tensor, "row column"],
    mask: Bool[Tensor, "row column"],
    end: int,
) -> Float[Tensor, "row column d_model"]:
    """The last residual stream of rows that hold prompts, up to column ``end``, and their replies."""
    lean = _lean(model, hooks, mask[:, :end], end, tokens.shape[1])
    if lean is not None:
        return lean.residual(tokens)
    with attached(model, hooks):
        return read(model, tokens, mask)


def _lean(
    model: Model, hooks: Sequence[NamedHook], mask: Bool[Tensor, "row column"], end: int, room: int
) -> LlamaPass | None:
    if not is_llama(model):
        return None
    resolved = resolve(model, hooks)
    if listeners_of(model, _without_clocks(resolved)) is None:
        return None
    return LlamaPass(model, resolved, (~mask).sum(1), end, room)


def _without_clocks(hooks: dict[str, list[Any]]) -> dict[str, list[Any]]:
    """What acts on an activation: a clock only counts tokens, and the pass itself ticks it."""
    acting = {name: [f for f in functions if not isinstance(f, Clock)] for name, functions in hooks.items()}
    return {name: functions for name, functions in acting.items() if functions}


class LlamaPass:
    """The Llama family's forward over a static cache; hooks fire only where there are some."""

    def __init__(
        self, model: HookedTransformer, hooks: dict[str, list[Any]], pads: Int[Tensor, " row"], end: int, room: int
    ) -> None:
        cfg: Any = model.cfg
        self.model, self.pads, self.read = model, pads, 0
        self._listen(hooks)
        self.forward = LeanForward(model)
        shape = (cfg.n_layers, 2, len(pads), self.forward.kv_heads, room, cfg.d_head)
        self.cache = torch.empty(shape, dtype=cfg.dtype, device=pads.device)
        self.kept = [(layer[0], layer[1]) for layer in self.cache]
        self.padded = bool(pads.any())
        self.cos, self.sin = self.forward.rotation(room, pads.device)
        self.captured: CapturedStep | None = None
        self.one_row: OneRow | None = None
        self.clocks = [f for functions in hooks.values() for f in functions if isinstance(f, Clock)]
        for clock in self.clocks:
            clock.begin(end)

    @torch.no_grad()
    def __call__(self, tokens: Int[Tensor, "row column"]) -> Float[Tensor, "row vocab"]:
        if tokens.shape[1] > 1:
            return self.after(self.residual(tokens))
        start, stop = self._advance(1)
        if self.cache.is_cuda and self.steady:
            if self.captured is None:
                self.captured = CapturedStep(self)
            return self.captured(tokens, start)
        if tokens.numel() == 1 and self.cache.device.type == "cpu" and self.cache.dtype in DTYPES:
            if self.one_row is None:
                self.one_row = OneRow(self.model, self.forward, self.cache, (self.cos, self.sin))
            return self.one_row(int(tokens), int(self.pads), start, self.listeners)
        return self.after(self._read(tokens, start, stop))

    def residual(self, tokens: Int[Tensor, "row column"]) -> Float[Tensor, "row column d_model"]:
        """The last residual stream at these tokens, which follow those of earlier calls."""
        return self._read(tokens, *self._advance(tokens.shape[1]))

    def after(self, residual: Float[Tensor, "row column d_model"]) -> Float[Tensor, "row vocab"]:
        """Logits after the last column."""
        return unembed(self.model, residual[:, -1:])[:, 0]

    def _advance(self, length: int) -> tuple[int, int]:
        start, stop = self.read, self.read + length
        self.read = stop
        for clock in self.clocks:
            clock.tick(length, stop)
        return start, stop

    def _read(self, tokens: Tensor, start: int, stop: int) -> Tensor:
        rotation, mask = self._rotation(start, stop), self._mask(start, stop)
        return self.layers_over(tokens, rotation, mask, torch.arange(start, stop, device=tokens.device), stop)

    @property
    def steady(self) -> bool:
        """Whether every decode step does the same, hooks included."""
        return all(
            isinstance(f, Clock) or (isinstance(f, Injection) and f.schedule.steady)
            for functions in self.hooks.values()
            for f in functions
        )

    def layers_over(
        self, tokens: Tensor, rotation: tuple[Tensor, Tensor], mask: Tensor | None, columns: Tensor, stop: int
    ) -> Float[Tensor, "row column d_model"]:
        """The last residual stream at ``tokens``, which go to these columns of the cache and see up to ``stop``."""
        causal = tokens.shape[1] > 1 and mask is None

        def attend(layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            keys, values = (kept.narrow(2, 0, stop) for kept in self.kept[layer])
            keys.index_copy_(2, columns, k)
            values.index_copy_(2, columns, v)
            return _attend(q, keys, values, mask, causal)

        return self.forward(F.embedding(tokens, self.model.embed.W_E), rotation, attend, self.listeners)

    @torch.no_grad()
    def keep(self, rows: Int[Tensor, " kept"]) -> bool:
        if any(not isinstance(f, Clock | Injection) for functions in self.hooks.values() for f in functions):
            return False  # a hook of the user's may count rows
        self._take(rows)
        kept = {
            name: [f if isinstance(f, Clock) else f.for_rows(rows) for f in functions]
            for name, functions in self.hooks.items()
        }
        self._listen({name: [f for f in functions if f is not None] for name, functions in kept.items()})
        return True

    def go_on_from(self, shared: LlamaPass, rows: Int[Tensor, " row"]) -> None:
        """Take over what another pass has read; ``rows`` says which of its rows each row of this one continues."""
        self.read = shared.read
        self.cache[..., : self.read, :] = shared.cache[..., : self.read, :].index_select(2, rows)

    def _take(self, rows: Tensor) -> None:
        read = self.cache[..., : self.read, :].index_select(2, rows)
        shape = list(self.cache.shape)
        shape[2] = len(rows)
        self.cache = self.cache.new_empty(shape)
        self.cache[..., : self.read, :] = read
        self.kept = [(layer[0], layer[1]) for layer in self.cache]
        self.pads = self.pads[rows]
        self.padded = bool(self.pads.any())
        self.captured = self.one_row = None

    def _listen(self, hooks: dict[str, list[Any]]) -> None:
        self.hooks = hooks
        self.listeners = listeners_of(self.model, _without_clocks(hooks)) or {}

    def _rotation(self, start: int, stop: int) -> tuple[Tensor, Tensor]:
        if not self.padded:
            return self.cos[start:stop], self.sin[start:stop]
        columns = torch.arange(start, stop, device=self.pads.device)
        at = (columns - self.pads[:, None]).clamp(min=0)
        return self.cos[at][:, None], self.sin[at][:, None]

    def _mask(self, start: int, stop: int) -> Tensor | None:
        """True where a query sees a key; None where plain causal attention does."""
        if not self.padded and (start == 0 or stop - start == 1):
            return None
        keys = torch.arange(stop, device=self.pads.device)
        seen = keys >= self.pads[:, None, None]
        if stop - start > 1:
            seen = seen & (keys <= keys[start:, None])
            seen |= keys == keys[start:, None]  # padding sees itself: a row of none would be NaN
        return seen[:, None]


class CapturedStep:
    """A decode step whose shapes and addresses never change: on a GPU recorded once as a CUDA graph and replayed.

    It attends over the whole cache under a mask instead of over its filled part. Without a GPU it runs as it stands,
    which is how it is tested. The step must be ``steady``.
    """

    def __init__(self, step: LlamaPass) -> None:
        rows, device = step.cache.shape[2], step.cache.device
        self.step = step
        self.tokens = torch.zeros(rows, 1, dtype=torch.long, device=device)
        self.column = torch.zeros(1, dtype=torch.long, device=device)
        self.every = torch.arange(step.cache.shape[4], device=device)
        self.graph: torch.cuda.CUDAGraph | None = None
        self.logits: Tensor | None = None

    @torch.no_grad()
    def __call__(self, tokens: Int[Tensor, "row 1"], column: int) -> Float[Tensor, "row vocab"]:
        self.tokens.copy_(tokens)
        self.column.fill_(column)
        if not self.tokens.is_cuda:
            return self._run()
        if self.graph is None:
            self._record()
        assert self.graph is not None
        assert self.logits is not None
        self.graph.replay()
        return self.logits.clone()

    def _record(self) -> None:
        # Kernels choose their algorithms and hooks place their tensors in a first run, which must not be recorded.
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            self._run()
        torch.cuda.current_stream().wait_stream(side)
        self.graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self.graph):
            self.logits = self._run()

    def _run(self) -> Tensor:
        step = self.step
        at = (self.column - step.pads[:, None]).clamp(min=0)
        seen = (self.every >= step.pads[:, None]) & (self.every <= self.column)
        rotation = step.cos[at][:, None], step.sin[at][:, None]
        residual = step.layers_over(self.tokens, rotation, seen[:, None, None], self.column, len(self.every))
        return step.after(residual)


def _attend(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, causal: bool
) -> Float[Tensor, "row head query d_head"]:
    rows, heads, length, width = q.shape
    if length == 1 and rows >= MANY_ROWS and q.device.type == "cpu" and q.dtype == torch.float32:
        grouped = (q * width**-0.5).reshape(rows, k.shape[1], -1, width)
        scores = grouped @ k.transpose(-1, -2)
        scores = scores if mask is None else scores.masked_fill(~mask, -torch.inf)
        return (scores.softmax(-1) @ v).view(rows, heads, length, width)
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=causal, enable_gqa=heads != k.shape[1])


class StockPass:
    """The model's own forward under hooks of TransformerLens, over a cache of the model's kind."""

    def __init__(self, model: Model, hooks: Sequence[NamedHook], mask: Bool[Tensor, "row column"]) -> None:
        self.model, self.hooks, self.mask = model, list(hooks), mask.int()
        self.cache = empty_cache(model, len(mask))

    @torch.no_grad()
    def __call__(self, tokens: Int[Tensor, "row column"]) -> Float[Tensor, "row vocab"]:
        mask, self.mask = self.mask, self.mask.new_ones(len(tokens), 1)
        with attached(self.model, self.hooks):
            last = read(self.model, tokens, mask, self.cache)
        return unembed(self.model, last[:, -1:])[:, 0]

    def keep(self, rows: Int[Tensor, " kept"]) -> bool:
        if any(not isinstance(f, Clock | Injection) for _, f in self.hooks):
            return False  # a hook of the user's may count rows
        kept = [(name, f if isinstance(f, Clock) else f.for_rows(rows)) for name, f in self.hooks]
        self.hooks = [(name, f) for name, f in kept if f is not None]
        self.cache, self.mask = taken(self.cache, rows), self.mask[rows]
        return True
