"""Forward passes over a KV cache: one that fires only the hook points that are hooked, and the model's own.

HookedTransformer's forward visits some 25 hook points a layer, materialises attention scores and copies W_O. For
models of the Llama family whose weights lie as :mod:`star_tl.models.layout` puts them, :class:`LlamaPass` reads the
same weights as fused matrices and computes the same numbers; it fires the hook points in ``POINTS`` where someone
listens. All other models and hook points go through :class:`StockPass`, the model's own forward.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor
from transformer_lens import HookedTransformer

from star_tl.injection import Clock, Injection, NamedHook
from star_tl.models.layout import fused
from star_tl.reading import Model, attached, empty_cache, read, unembed

POINTS = ("hook_resid_pre", "hook_resid_mid", "hook_resid_post", "hook_attn_out", "hook_mlp_out", "attn.hook_z")
MANY_ROWS = 8  # from here on two batched products beat fused attention at one query a row, up to twofold at 64 rows


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
    if isinstance(model, HookedTransformer) and is_llama(model):
        resolved = resolve(model, hooks)
        if all(_fires(name, functions) for name, functions in resolved.items()):
            return LlamaPass(model, resolved, (~mask).sum(1), end, room)
    return StockPass(model, hooks, mask)


def resolve(model: HookedTransformer, hooks: Sequence[NamedHook]) -> dict[str, list[Any]]:
    """Functions by hook point; names that are filters become the names that pass."""
    found: dict[str, list[Any]] = {}
    for name, function in hooks:
        names = [name] if isinstance(name, str) else [n for n in model.hook_dict if name(n)]
        for one in names:
            found.setdefault(one, []).append(function)
    return found


def is_llama(model: HookedTransformer) -> bool:
    """Whether :class:`LlamaPass` computes what the model does: its architecture, layout, and nobody else's hooks."""
    cfg: Any = model.cfg
    block: Any = model.blocks[0]
    plain = (
        cfg.positional_embedding_type == "rotary"
        and cfg.rotary_dim == cfg.d_head
        and not cfg.rotary_adjacent_pairs
        and cfg.normalization_type == "RMS"
        and cfg.gated_mlp
        and cfg.act_fn == "silu"
        and cfg.original_architecture == "LlamaForCausalLM"
        and not (cfg.attn_only or cfg.parallel_attn_mlp or cfg.use_local_attn or cfg.num_experts)
        and not (
            cfg.ungroup_grouped_query_attention or cfg.use_attn_in or cfg.use_split_qkv_input or cfg.use_hook_mlp_in
        )
        and cfg.output_logits_soft_cap <= 0
        and cfg.attn_scores_soft_cap <= 0
        and cfg.n_devices == 1
    )
    return (
        plain
        and _query_key_value(block.attn) is not None
        and fused(block.mlp, "W_gate", "W_in") is not None
        and not any(point.fwd_hooks for point in model.hook_dict.values())
    )


def _fires(name: str, functions: list[Any]) -> bool:
    return name.partition(".")[2].partition(".")[2] in POINTS or all(isinstance(f, Clock) for f in functions)


def _query_key_value(attention: Any) -> Tensor | None:
    grouped = "_" if hasattr(attention, "_W_K") else ""
    return fused(attention, "W_Q", f"{grouped}W_K", f"{grouped}W_V")


@dataclass(frozen=True)
class _Layer:
    """A layer's weights as HuggingFace lays them out: views, no copies."""

    norm_attention: Float[Tensor, " d_model"]
    query_key_value: Float[Tensor, "all_heads*d_head d_model"]
    bias: Float[Tensor, " all_heads*d_head"] | None
    out: Float[Tensor, "d_model heads*d_head"]
    out_bias: Float[Tensor, " d_model"] | None
    norm_mlp: Float[Tensor, " d_model"]
    gate_up: Float[Tensor, "2*d_mlp d_model"]
    up_bias: Float[Tensor, " d_mlp"] | None
    down: Float[Tensor, "d_model d_mlp"]
    down_bias: Float[Tensor, " d_model"] | None


def _layer(block: Any) -> _Layer:
    attention, mlp = block.attn, block.mlp
    grouped = "_" if hasattr(attention, "_W_K") else ""
    biases = [attention.b_Q, getattr(attention, f"{grouped}b_K"), getattr(attention, f"{grouped}b_V")]
    weights, gate_up = _query_key_value(attention), fused(mlp, "W_gate", "W_in")
    assert weights is not None
    assert gate_up is not None
    heads, d_head, d_model = attention.W_O.shape
    return _Layer(
        block.ln1.w,
        weights,
        torch.cat([b.reshape(-1) for b in biases]) if any(bool(b.any()) for b in biases) else None,
        attention.W_O.data.permute(2, 0, 1).view(d_model, heads * d_head),
        _unless_zero(attention.b_O),
        block.ln2.w,
        gate_up,
        _unless_zero(mlp.b_in),
        mlp.W_out.data.T,
        _unless_zero(mlp.b_out),
    )


def _unless_zero(bias: Tensor) -> Tensor | None:
    return bias.data if bool(bias.any()) else None


class LlamaPass:
    """The Llama family's forward over a static cache; hooks fire only where there are some."""

    def __init__(
        self, model: HookedTransformer, hooks: dict[str, list[Any]], pads: Int[Tensor, " row"], end: int, room: int
    ) -> None:
        cfg: Any = model.cfg
        self.model, self.pads, self.read = model, pads, 0
        self._listen(hooks)
        self.heads, self.kv_heads, self.d_head = cfg.n_heads, cfg.n_key_value_heads or cfg.n_heads, cfg.d_head
        self.layers = [_layer(block) for block in model.blocks]
        shape = (cfg.n_layers, 2, len(pads), self.kv_heads, room, self.d_head)
        self.cache = torch.empty(shape, dtype=cfg.dtype, device=pads.device)
        self.kept = [(layer[0], layer[1]) for layer in self.cache]
        self.padded = bool(pads.any())
        rotary: Any = model.blocks[0].attn
        if room > len(rotary.rotary_cos):
            rotary._extend_rotary_embeddings(room)
        self.cos, self.sin = (t[:room].to(pads.device) for t in (rotary.rotary_cos, rotary.rotary_sin))
        half = self.d_head // 2
        self.sin = torch.cat((-self.sin[:, :half], self.sin[:, half:]), -1)  # x.roll(half) needs no other sign then
        self.captured: CapturedStep | None = None
        self.clocks = [f for functions in hooks.values() for f in functions if isinstance(f, Clock)]
        for clock in self.clocks:
            clock.begin(end)

    @torch.no_grad()
    def __call__(self, tokens: Int[Tensor, "row column"]) -> Float[Tensor, "row vocab"]:
        length = tokens.shape[1]
        start, stop = self.read, self.read + length
        self.read = stop
        for clock in self.clocks:
            clock.tick(length, stop)
        if length == 1 and self.cache.is_cuda and self.steady:
            if self.captured is None:
                self.captured = CapturedStep(self)
            return self.captured(tokens, start)
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
    ) -> Float[Tensor, "row vocab"]:
        """Logits after the last of ``tokens``, which go to these columns of the cache and see those before ``stop``."""
        model, eps = self.model, self.model.cfg.eps
        rows, length = tokens.shape
        residual = F.embedding(tokens, model.embed.W_E)
        for i, layer in enumerate(self.layers):
            residual = self._fire(i, "hook_resid_pre", residual)
            x = F.rms_norm(residual, residual.shape[-1:], layer.norm_attention, eps)
            heads = F.linear(x, layer.query_key_value, layer.bias).view(rows, length, -1, self.d_head).transpose(1, 2)
            turned = _rotate(heads[:, : self.heads + self.kv_heads], *rotation)
            q, k, v = turned[:, : self.heads], turned[:, self.heads :], heads[:, self.heads + self.kv_heads :]
            keys, values = (kept.narrow(2, 0, stop) for kept in self.kept[i])
            keys.index_copy_(2, columns, k)
            values.index_copy_(2, columns, v)
            z = _attend(q, keys, values, mask, causal=length > 1 and mask is None)
            z = self._fire(i, "attn.hook_z", z.transpose(1, 2))
            written = F.linear(z.reshape(rows, length, -1), layer.out, layer.out_bias)
            residual = residual + self._fire(i, "hook_attn_out", written)
            residual = self._fire(i, "hook_resid_mid", residual)
            x = F.rms_norm(residual, residual.shape[-1:], layer.norm_mlp, eps)
            gate, up = F.linear(x, layer.gate_up).chunk(2, -1)
            post = F.silu(gate) * up
            post = post if layer.up_bias is None else post + layer.up_bias
            residual = residual + self._fire(i, "hook_mlp_out", F.linear(post, layer.down, layer.down_bias))
            residual = self._fire(i, "hook_resid_post", residual)
        return unembed(model, residual[:, -1:])[:, 0]

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
        self.captured = None

    def _fire(self, layer: int, point: str, activation: Tensor) -> Tensor:
        for hook, function in self.listeners.get((layer, point), ()):
            changed = function(activation, hook=hook)
            activation = activation if changed is None else changed
        return activation

    def _listen(self, hooks: dict[str, list[Any]]) -> None:
        self.hooks = hooks
        self.listeners: dict[tuple[int, str], list[tuple[Any, Any]]] = {}
        for name, functions in hooks.items():
            if point := name.partition(".")[2].partition(".")[2]:
                heard = [(self.model.hook_dict[name], f) for f in functions if not isinstance(f, Clock)]
                self.listeners[int(name.split(".")[1]), point] = heard

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
        return step.layers_over(self.tokens, rotation, seen[:, None, None], self.column, len(self.every))


def _rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    return torch.addcmul(x * cos, x.roll(x.shape[-1] // 2, -1), sin).to(x.dtype)


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
        return False
