"""The Llama family's forward over a static cache, token by token: recorded on a GPU, through numpy for a single row."""

from __future__ import annotations

import warnings
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from star_tl.locus import NamedHook
from star_tl.models.backend import Model, unembed
from star_tl.models.fast.attention import attend_masked, without_plans
from star_tl.models.fast.forward import Listeners, LlamaForward, listeners_of, llama_forward, resolve
from star_tl.models.fast.recording import Recording, records
from star_tl.models.fast.single_row import DTYPES, SingleRowStep
from star_tl.models.lens import HookedTransformer
from star_tl.models.position import Position, following, for_rows, steady
from star_tl.models.product import by_pieces, in_tf32
from star_tl.models.transformers_folder import CLOSE, differences

# From here on two batched products beat fused attention at one query a row; on a GPU always in float32, for which it
# has no kernel that takes a mask and grouped heads.
MANY_ROWS = 8


def llama_pass(
    model: Model,
    hooks: Sequence[NamedHook],
    mask: Bool[Tensor, "row column"],
    end: int,
    room: int,
    layers: int | None = None,
) -> LlamaPass | None:
    """A :class:`LlamaPass` of the first layers, default all; arguments as in :func:`star_tl.generation.decoding.begin`.

    None where the model is none that :func:`star_tl.models.fast.forward.llama_forward` knows, or a hook is at a point
    that this forward does not fire.
    """
    forward = llama_forward(model)
    if forward is None:
        return None
    assert isinstance(model, HookedTransformer)
    position = Position(end)
    own = following(hooks, position)
    if listeners_of(model, resolve(model, own)) is None:
        return None
    forward = forward if layers is None else forward.lowest(layers)
    return LlamaPass(model, forward, own, position, (~mask).sum(1), room)


class LlamaPass:
    """The Llama family's forward over a static cache; hooks fire only where there are some.

    ``hooks`` are those of this call (:func:`star_tl.models.position.following`), which read ``position``; ``last`` is
    the last residual stream ``[row d_model]`` that the logits were made from, None where a recorded step made them.
    """

    def __init__(
        self,
        model: HookedTransformer,
        forward: LlamaForward,
        hooks: Sequence[NamedHook],
        position: Position,
        pads: Int[Tensor, " row"],
        room: int,
    ) -> None:
        cfg = model.cfg
        self.model, self.hooks, self.position = model, list(hooks), position
        shape = (len(forward.layers), 2, len(pads), forward.kv_heads, room, cfg.d_head)
        cache = torch.empty(shape, dtype=cfg.dtype, device=pads.device)
        self.layers = CachedLayers(model, forward, self._listeners(), cache, pads)
        self.recorded: RecordedStep | None = None
        self.single_row: SingleRowStep | None = None
        self.last: Tensor | None = None

    @torch.no_grad()
    def __call__(self, tokens: Int[Tensor, "row column"]) -> Float[Tensor, "row vocab"]:
        layers = self.layers
        if tokens.shape[1] > 1:
            return self._ended(self.residual(tokens))
        self.position.advance(1)
        start, device = self.position.offset, layers.cache.device
        # The prompt's last token may stand alone, and hooks do something else there than at those that are generated.
        if start >= self.position.end and records(device) and layers.forward.recordable and steady(self.hooks):
            self.last = None
            return self._replayed(tokens, start)
        if tokens.numel() == 1 and device.type == "cpu" and layers.cache.dtype in DTYPES:
            if self.single_row is None:
                rotation = layers.cos, layers.sin
                self.single_row = SingleRowStep(self.model, layers.forward, layers.cache, rotation)
            logits = self.single_row(int(tokens), int(layers.pads), start, layers.listeners)
            self.last = self.single_row.last
            return logits
        return self._ended(layers.read(tokens, start))

    def _ended(self, residual: Float[Tensor, "row column d_model"]) -> Float[Tensor, "row vocab"]:
        self.last = residual[:, -1]
        return self.layers.logits(residual)

    @torch.no_grad()
    def residual(
        self, tokens: Int[Tensor, "row column"], entering: tuple[int, Tensor] | None = None
    ) -> Float[Tensor, "row column d_model"]:
        """The last residual stream at these tokens, which follow those of earlier calls.

        ``entering`` is a layer, and what enters it where that is known: those below are left out, now and later.
        """
        self.position.advance(tokens.shape[1])
        return self.layers.read(tokens, self.position.offset, entering)

    @property
    def first_hooked(self) -> int:
        """The lowest layer with a hook."""
        return min((layer for layer, _ in self.layers.listeners), default=len(self.layers.kept))

    @property
    def dear(self) -> bool:
        """See :class:`star_tl.generation.decoding.Pass`."""
        return self.recorded is not None and records(self.layers.cache.device)

    @torch.no_grad()
    def keep(self, rows: Int[Tensor, " kept"]) -> bool:
        """See :class:`star_tl.generation.decoding.Pass`."""
        kept = for_rows(self.hooks, rows)
        if kept is None:
            return False
        self._forget()
        self.hooks = kept
        self.layers = self.layers.of_rows(rows, self.position.read, self._listeners())
        return True

    @torch.no_grad()
    def go_on_from(self, shared: LlamaPass, rows: Int[Tensor, " row"]) -> None:
        """Take over what another pass has read; ``rows`` says which of its rows each row of this one continues."""
        read = shared.position.read
        self.position.advance(read)
        _copy_rows(self.layers.cache, shared.layers.cache, rows, read)

    def _replayed(self, tokens: Tensor, column: int) -> Tensor:
        if self.recorded is not None:
            return self.recorded(tokens, column)
        self.recorded = RecordedStep(self.layers, column)
        found = self.recorded(tokens, column)
        plain = self.layers.logits(self.layers.read(tokens, column))
        if not _same(found, plain, CLOSE[_digits(self.layers.cache.dtype)]):
            self._forget()
            self.layers.forward.recordable = False
            warnings.warn(
                "A decode step recorded as a CUDA graph was not the same as the plain one: going on without, slower.",
                stacklevel=2,
            )
        return plain

    def _forget(self) -> None:
        """Give up what was made for the rows that there were; a graph must be gone before another is recorded."""
        if self.recorded is not None:
            self.recorded.release()
        self.recorded = self.single_row = None

    def _listeners(self) -> Listeners:
        return listeners_of(self.model, resolve(self.model, self.hooks)) or {}


class CachedLayers:
    """The layers over the keys and values of some rows: what every step of a pass is made of, and a recording of one.

    It does not know the pass that it belongs to: a circle of references would keep a CUDA graph alive until Python
    looks for circles, perhaps while another graph is recorded, which that would break.
    """

    def __init__(
        self,
        model: HookedTransformer,
        forward: LlamaForward,
        listeners: Listeners,
        cache: Float[Tensor, "layer 2 row kv_head room d_head"],
        pads: Int[Tensor, " row"],
    ) -> None:
        self.model, self.forward, self.listeners = model, forward, listeners
        self.cache, self.pads = cache, pads
        self.kept = [(layer[0], layer[1]) for layer in cache]
        self.padded = bool(pads.any())
        self.cos, self.sin = forward.rotation(cache.shape[4], pads.device)

    def of_rows(self, rows: Int[Tensor, " kept"], read: int, listeners: Listeners) -> CachedLayers:
        """The same for these rows, of whose cache the first ``read`` columns are filled; they take the others' room."""
        _copy_rows(self.cache, self.cache, rows, read)
        return CachedLayers(self.model, self.forward, listeners, self.cache[:, :, : len(rows)], self.pads[rows])

    def read(
        self, tokens: Int[Tensor, "row column"], start: int, entering: tuple[int, Tensor] | None = None
    ) -> Float[Tensor, "row column d_model"]:
        """The last residual stream at ``tokens``, which go to the columns from ``start`` on; ``entering`` as in
        :meth:`LlamaPass.residual`.
        """
        stop = start + tokens.shape[1]
        columns = torch.arange(start, stop, device=tokens.device)
        return self.over(tokens, self._rotation(start, stop), self._mask(start, stop), columns, stop, entering)

    def over(
        self,
        tokens: Int[Tensor, "row column"],
        rotation: tuple[Tensor, Tensor],
        mask: Tensor | None,
        columns: Int[Tensor, " column"],
        stop: int,
        entering: tuple[int, Tensor] | None = None,
        again: bool = False,
    ) -> Float[Tensor, "row column d_model"]:
        """The last residual stream at ``tokens``, which go to these columns of the cache and see up to ``stop``;
        ``again`` as in :func:`attend`.
        """
        causal = tokens.shape[1] > 1 and mask is None

        def attend_kept(layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            keys, values = (kept.narrow(2, 0, stop) for kept in self.kept[layer])
            keys.index_copy_(2, columns, k)
            values.index_copy_(2, columns, v)
            return attend(q, keys, values, mask, causal, again)

        first, residual = entering or (0, F.embedding(tokens, self.model.embed.W_E))
        return self.forward(residual, rotation, attend_kept, self.listeners, first)

    def logits(self, residual: Float[Tensor, "row column d_model"]) -> Float[Tensor, "row vocab"]:
        """Logits after the last column."""
        return unembed(self.model, residual[:, -1:])[:, 0]

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


class RecordedStep:
    """A decode step whose shapes and addresses never change, as a :class:`Recording` wants it.

    It attends over the whole cache under a mask instead of over its filled part, the columns before ``read``. Hooks
    must be ``steady``. :meth:`release` it before another is recorded.
    """

    def __init__(self, layers: CachedLayers, read: int) -> None:
        rows, device = layers.cache.shape[2], layers.cache.device
        self.layers = layers
        layers.cache[..., read:, :] = 0.0  # what lies there may be NaN, and masked it would still be 0 · NaN
        self.tokens = torch.zeros(rows, 1, dtype=torch.long, device=device)
        self.column = torch.zeros(1, dtype=torch.long, device=device)
        self.every = torch.arange(layers.cache.shape[4], device=device)
        self.recording: Recording[Tensor] = Recording(device)

    @torch.no_grad()
    def __call__(self, tokens: Int[Tensor, "row 1"], column: int) -> Float[Tensor, "row vocab"]:
        """Logits after ``tokens``, which go to this column."""
        self.tokens.copy_(tokens)
        self.column.fill_(column)
        return self.recording(self._run).clone()

    def release(self) -> None:
        """Give the graph and its memory back."""
        self.recording.release()

    def _run(self) -> Tensor:
        layers = self.layers
        at = (self.column - layers.pads[:, None]).clamp(min=0)
        seen = ((self.every >= layers.pads[:, None]) & (self.every <= self.column))[:, None, None]
        if layers.cache.dtype == torch.float32:  # once for all layers what each would make of it
            seen = torch.zeros_like(seen, dtype=torch.float32).masked_fill_(~seen, -torch.inf)
        rotation = layers.cos[at][:, None], layers.sin[at][:, None]
        residual = layers.over(self.tokens, rotation, seen, self.column, len(self.every), again=True)
        return layers.logits(residual)


def _copy_rows(
    into: Float[Tensor, "layer 2 room_of_rows kv_head room d_head"],
    cache: Float[Tensor, "layer 2 kept kv_head room d_head"],
    rows: Int[Tensor, " row"],
    read: int,
) -> None:
    """The first ``read`` columns of these rows, a layer at a time, so that no second cache is ever held."""
    for layer, kept in zip(into, cache, strict=True):
        layer[:, : len(rows), :, :read] = kept[..., :read, :].index_select(1, rows)


def _digits(dtype: torch.dtype) -> torch.dtype:
    """The type whose digits products have: TF32 has float16's."""
    return torch.float16 if dtype == torch.float32 and in_tf32() else dtype


def _same(found: Float[Tensor, "row vocab"], plain: Float[Tensor, "row vocab"], close: float) -> bool:
    """Whether two ways to sum give the same in every row; rows that steering broke must be broken in both."""
    whole = plain.isfinite().all(-1)
    if not torch.equal(found.isfinite().all(-1), whole):
        return False
    return not whole.any() or float(differences(found[whole], plain[whole]).amax()) < close


def attend(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, causal: bool, again: bool = False
) -> Float[Tensor, "row head query d_head"]:
    """Softmax attention over a cache; no gradient goes back through it. ``again`` says that this shape is asked for
    again and again, for which alone cuDNN's plans pay.
    """
    rows, heads, length, width = q.shape
    if q.device.type == "cpu" and by_pieces(q.dtype):
        return attend(q.float(), k.float(), v.float(), mask, causal).to(q.dtype)
    if length == 1 and q.dtype == torch.float32 and (rows >= MANY_ROWS or q.device.type != "cpu"):
        grouped = (q * width**-0.5).reshape(rows, k.shape[1], -1, width)
        scores = grouped @ k.transpose(-1, -2)
        if mask is not None:
            scores = scores.masked_fill(~mask, -torch.inf) if mask.dtype == torch.bool else scores.add_(mask)
        return (scores.softmax(-1) @ v).view(rows, heads, length, width)
    if q.device.type == "cuda" and not again:
        if mask is not None:
            return attend_masked(q, k, v, mask)
        with without_plans():
            return F.scaled_dot_product_attention(q, k, v, is_causal=causal, enable_gqa=heads != k.shape[1])
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=causal, enable_gqa=heads != k.shape[1])
