"""The Llama family's forward on HookedTransformer's own weights, firing only the hook points that are hooked.

HookedTransformer's forward visits some 25 hook points a layer, materialises attention scores and copies W_O. Where
the weights lie as :mod:`star_tl.models.layout` puts them, the same numbers come from fused matrices in a few
operators a layer. Who calls says how to attend: over a cache, or over rows of prompts and replies.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeGuard

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from star_tl.locus import HOOK_POINTS, NamedHook
from star_tl.models.layout import fused
from star_tl.models.lens import HookedTransformer

TURNED_ROWS = range(12, 257)

Attend = Callable[[int, Tensor, Tensor, Tensor], Tensor]
Listeners = dict[tuple[int, str], list[tuple[Any, Any]]]


def is_llama(model: object) -> TypeGuard[HookedTransformer]:
    """Whether this forward computes what the model does: its architecture, layout, and nobody else's hooks."""
    if not isinstance(model, HookedTransformer):
        return False
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


def resolve(model: HookedTransformer, hooks: Sequence[NamedHook]) -> dict[str, list[Any]]:
    """Functions by hook point; names that are filters become the names that pass."""
    found: dict[str, list[Any]] = {}
    for name, function in hooks:
        names = [name] if isinstance(name, str) else [n for n in model.hook_dict if name(n)]
        for one in names:
            found.setdefault(one, []).append(function)
    return found


def listeners_of(model: HookedTransformer, hooks: dict[str, list[Any]]) -> Listeners | None:
    """What a call of the forward takes, from functions by hook point; None where it does not fire one of these."""
    listeners: Listeners = {}
    for name, functions in hooks.items():
        parts = name.split(".", 2)
        if parts[0] != "blocks" or parts[2] not in HOOK_POINTS:
            return None
        listeners[int(parts[1]), parts[2]] = [(model.hook_dict[name], function) for function in functions]
    return listeners


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


class LeanForward:
    """The layers of a model for which :func:`is_llama` holds."""

    def __init__(self, model: HookedTransformer) -> None:
        cfg: Any = model.cfg
        self.eps: float = cfg.eps
        self.heads: int = cfg.n_heads
        self.kv_heads: int = cfg.n_key_value_heads or cfg.n_heads
        self.d_head: int = cfg.d_head
        self.layers = [_layer(block) for block in model.blocks]
        self.rotary: Any = model.blocks[0].attn

    def rotation(self, length: int, device: torch.device) -> tuple[Tensor, Tensor]:
        """Cosines and sines of the first positions, ``[position d_head]``, in the form that a call takes."""
        if length > len(self.rotary.rotary_cos):
            self.rotary._extend_rotary_embeddings(length)
        cos, sin = (t[:length].to(device) for t in (self.rotary.rotary_cos, self.rotary.rotary_sin))
        half = self.d_head // 2
        return cos, torch.cat((-sin[:, :half], sin[:, half:]), -1)  # x.roll(half) needs no other sign then

    def __call__(
        self,
        residual: Float[Tensor, "row column d_model"],
        rotation: tuple[Tensor, Tensor],
        attend: Attend,
        listeners: Listeners,
    ) -> Float[Tensor, "row column d_model"]:
        """The residual stream that leaves the last layer.

        Args:
            residual: what enters the first.
            rotation: cosines and sines of the rows' positions, broadcasting to ``[row head column d_head]``.
            attend: z ``[row head column d_head]`` from layer, q, k and v of this shape.
            listeners: by layer and hook point, (hook point, function) in the order in which they are called.
        """
        rows, length, _ = residual.shape

        def fire(layer: int, point: str, activation: Tensor) -> Tensor:
            for hook, function in listeners.get((layer, point), ()):
                changed = function(activation, hook=hook)
                activation = activation if changed is None else changed
            return activation

        for i, layer in enumerate(self.layers):
            residual = fire(i, "hook_resid_pre", residual)
            x = F.rms_norm(residual, residual.shape[-1:], layer.norm_attention, self.eps)
            heads = product(x, layer.query_key_value, layer.bias).view(rows, length, -1, self.d_head).transpose(1, 2)
            turning, v = heads.split([self.heads + self.kv_heads, self.kv_heads], 1)
            q, k = rotate(turning, *rotation).split([self.heads, self.kv_heads], 1)
            z = fire(i, "attn.hook_z", attend(i, q, k, v).transpose(1, 2))
            written = product(z.reshape(rows, length, -1), layer.out, layer.out_bias)
            residual = residual + fire(i, "hook_attn_out", written)
            residual = fire(i, "hook_resid_mid", residual)
            x = F.rms_norm(residual, residual.shape[-1:], layer.norm_mlp, self.eps)
            gate, up = product(x, layer.gate_up).chunk(2, -1)
            post = F.silu(gate) * up
            post = post if layer.up_bias is None else post + layer.up_bias
            residual = residual + fire(i, "hook_mlp_out", product(post, layer.down, layer.down_bias))
            residual = fire(i, "hook_resid_post", residual)
        return residual


def product(
    x: Float[Tensor, "*row input"], weight: Float[Tensor, "output input"], bias: Float[Tensor, " output"] | None = None
) -> Float[Tensor, "*row output"]:
    """``x @ weight.T + bias``, in the order of the operands that is faster.

    With a dozen to a few hundred rows on a CPU, weight times x is faster than x times weight (seen with MKL on an AMD
    EPYC); with fewer or more it is not, nor is a pass that goes back through it.
    """
    rows = x.numel() // x.shape[-1]
    plain = x.device.type != "cpu" or x.dtype != torch.float32 or torch.is_grad_enabled()
    if plain or rows not in TURNED_ROWS:
        return F.linear(x, weight, bias)
    turned = (weight @ x.reshape(rows, -1).T).T.view(*x.shape[:-1], -1)
    return turned if bias is None else turned + bias


def _layer(block: Any) -> _Layer:
    attention, mlp = block.attn, block.mlp
    grouped = "_" if hasattr(attention, "_W_K") else ""
    biases = [attention.b_Q, getattr(attention, f"{grouped}b_K"), getattr(attention, f"{grouped}b_V")]
    weights, gate_up = _query_key_value(attention), fused(mlp, "W_gate", "W_in")
    assert weights is not None
    assert gate_up is not None
    heads, d_head, d_model = attention.W_O.shape
    return _Layer(
        block.ln1.w.data,
        weights,
        torch.cat([b.data.reshape(-1) for b in biases]) if any(bool(b.any()) for b in biases) else None,
        attention.W_O.data.permute(2, 0, 1).view(d_model, heads * d_head),
        _unless_zero(attention.b_O),
        block.ln2.w.data,
        gate_up,
        _unless_zero(mlp.b_in),
        mlp.W_out.data.T,
        _unless_zero(mlp.b_out),
    )


def _query_key_value(attention: Any) -> Tensor | None:
    grouped = "_" if hasattr(attention, "_W_K") else ""
    return fused(attention, "W_Q", f"{grouped}W_K", f"{grouped}W_V")


def _unless_zero(bias: Tensor) -> Tensor | None:
    return bias.data if bool(bias.any()) else None


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    return torch.addcmul(x * cos, x.roll(x.shape[-1] // 2, -1), sin).to(x.dtype)
