"""The Llama family's forward on HookedTransformer's own weights, firing only the hook points that are hooked.

HookedTransformer's forward visits some 25 hook points a layer, materialises attention scores and copies W_O. Where
the weights lie as :mod:`star_tl.models.layout` puts them, the same numbers come from fused matrices in a few
operators a layer. Who calls says how to attend: over a cache, or over rows of prompts and replies.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from copy import copy
from dataclasses import dataclass, field, replace
from typing import Any
from weakref import WeakKeyDictionary

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from star_tl.locus import HOOK_POINTS, HookFunction, NamedHook
from star_tl.models.fast.recording import recording_now
from star_tl.models.layout import fused
from star_tl.models.lens import HookedTransformer
from star_tl.models.product import product

# Classes of TransformerLens's modules that compute what this forward does.
_ENDS = {"embed": ("Embed",), "ln_final": ("RMSNorm",), "unembed": ("Unembed",)}
_BLOCK = {
    "ln1": ("RMSNorm",),
    "attn": ("Attention", "GroupedQueryAttention"),
    "ln2": ("RMSNorm",),
    "mlp": ("GatedMLP",),
}

PARTED = (
    "The model's weights do not lie as load_model puts them, as after model.to(...): its own forward takes star_tl's "
    "place, slower, until star_tl.copy_free_layout(model) is called."
)

Attend = Callable[[int, Tensor, Tensor, Tensor], Tensor]
Listeners = dict[tuple[int, str], list[tuple[object, HookFunction]]]
_MADE: WeakKeyDictionary[HookedTransformer, tuple[list[tuple[object, ...]], LlamaForward | None]] = WeakKeyDictionary()


@torch.inference_mode(False)  # what is made here is used with a gradient, too
def llama_forward(model: object) -> LlamaForward | None:
    """The written-out forward of a model; None where it would not compute what the model does.

    That is so for other architectures, for weights that do not lie as :func:`star_tl.copy_free_layout` puts them, such
    as those of a layer that was replaced, and while anybody else's hooks are on the model. It is made once for a model
    and its weights: an edit in place is seen, for the weights are read where they lie.
    """
    if not isinstance(model, HookedTransformer) or not _computes_llama(model):
        return None
    # Hooks first: they come and go.
    if any(point.fwd_hooks for point in model.hook_dict.values()):
        return None
    seen = _weights_seen(model)
    made = _MADE.get(model)
    if made is None or made[0] != seen:
        layers = _layers(model)
        made = seen, None if layers is None else LlamaForward(model, layers)
        _MADE[model] = made
    forward = made[1]
    if forward is not None and not recording_now():  # which would wait for the device; read before it began
        forward.read_biases()
    return forward


def _computes_llama(model: HookedTransformer) -> bool:
    cfg = model.cfg
    return (
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


def _weights_seen(model: HookedTransformer) -> list[tuple[object, ...]]:
    """What tells weights and modules that were replaced from those that were there before; no number is read."""
    found: list[tuple[object, ...]] = [(model.cfg.eps,)]
    for owner, kinds in ((model, _ENDS), *((block, _BLOCK) for block in model.blocks)):
        for part in (owner, *(getattr(owner, name, None) for name in kinds)):
            found.append((id(part),))
            if part is not None and part is not model:
                found[-1] += (len(part._forward_hooks), len(part._forward_pre_hooks), "forward" in vars(part))
                found += [(p.data_ptr(), p.stride(), p.dtype) for p in part._parameters.values() if p is not None]
    return found


def _layers(model: HookedTransformer) -> list[_Layer] | None:
    """Every layer's weights; None where one is no Llama's, or does not lie as this forward reads it, with a warning."""
    if not _plain(model, _ENDS):
        return None
    layers: list[_Layer] = []
    for block in model.blocks:
        if not _is(block, ("TransformerBlock",)) or not _plain(block, _BLOCK):
            return None
        if len({(p.dtype, p.device) for p in block.parameters()}) > 1:
            return None
        layer = _layer(block)
        if layer is None:
            warnings.warn(PARTED, stacklevel=4)  # past llama_forward's decorator
            return None
        layers.append(layer)
    return layers


def _plain(owner: nn.Module, kinds: dict[str, tuple[str, ...]]) -> bool:
    """Whether the parts are of these classes, and do what their class does."""
    return all(_is(getattr(owner, name, None), names) for name, names in kinds.items())


def _is(module: Any, names: tuple[str, ...]) -> bool:
    kind = type(module)
    named = kind.__name__ in names and kind.__module__.startswith("transformer_lens.")
    return named and not (module._forward_hooks or module._forward_pre_hooks or "forward" in vars(module))


def resolve(model: HookedTransformer, hooks: Sequence[NamedHook]) -> dict[str, list[HookFunction]]:
    """Functions by hook point; names that are filters become the names that pass."""
    found: dict[str, list[HookFunction]] = {}
    for name, function in hooks:
        names = [name] if isinstance(name, str) else [n for n in model.hook_dict if name(n)]
        for one in names:
            found.setdefault(one, []).append(function)
    return found


def listeners_of(model: HookedTransformer, hooks: dict[str, list[HookFunction]]) -> Listeners | None:
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
    """A layer's weights as HuggingFace lays them out: views, no copies. A bias that is zero is None.

    ``parts`` are its biases as the model holds them: of queries, keys, values, output, up and down projection.
    """

    norm_attention: Float[Tensor, " d_model"]
    query_key_value: Float[Tensor, "all_heads*d_head d_model"]
    out: Float[Tensor, "d_model heads*d_head"]
    norm_mlp: Float[Tensor, " d_model"]
    gate_up: Float[Tensor, "2*d_mlp d_model"]
    down: Float[Tensor, "d_model d_mlp"]
    bias: Float[Tensor, " all_heads*d_head"] | None = None
    out_bias: Float[Tensor, " d_model"] | None = None
    up_bias: Float[Tensor, " d_mlp"] | None = None
    down_bias: Float[Tensor, " d_model"] | None = None
    parts: tuple[Tensor, ...] = field(default=(), repr=False)


class LlamaForward:
    """The layers of a model for which :func:`llama_forward` gives one.

    ``recordable`` is False once a step that a CUDA graph recorded was not the same as the plain one.
    """

    def __init__(self, model: HookedTransformer, layers: list[_Layer]) -> None:
        cfg = model.cfg
        self.eps: float = cfg.eps
        self.heads: int = cfg.n_heads
        self.kv_heads: int = cfg.n_key_value_heads or cfg.n_heads
        self.d_head: int = cfg.d_head
        self.layers = layers
        self.rotary = model.blocks[0].attn
        self.recordable = True
        self._used: list[list[bool]] = []

    def lowest(self, layers: int) -> LlamaForward:
        """The same up to this layer."""
        part = copy(self)
        part.layers = self.layers[:layers]
        return part

    def read_biases(self) -> None:
        """Look which biases are zero, all at once: on a GPU each look by itself would wait for the device."""
        kinds = zip(*(layer.parts for layer in self.layers), strict=True)
        used = torch.stack([torch.stack(kind).flatten(1).any(1) for kind in kinds], 1).tolist()
        # Of queries, keys and values they are copied behind one another; the others are read in place.
        if used != self._used or any(any(own[:3]) for own in used):
            self.layers = [_with_biases(layer, own) for layer, own in zip(self.layers, used, strict=True)]
            self._used = used

    def rotation(self, length: int, device: torch.device) -> tuple[Tensor, Tensor]:
        """Cosines and sines of the first positions, ``[position d_head]``, in the form that a call takes."""
        if length > len(self.rotary.rotary_cos):
            with torch.inference_mode(False):  # else no gradient could ever go through the longer table
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
        first: int = 0,
    ) -> Float[Tensor, "row column d_model"]:
        """The residual stream that leaves the last layer.

        Args:
            residual: what enters the layer ``first``.
            rotation: cosines and sines of the rows' positions, broadcasting to ``[row head column d_head]``.
            attend: z ``[row head column d_head]`` from layer, q, k and v of this shape.
            listeners: by layer and hook point, (hook point, function) in the order in which they are called.
            first: the layers below are left out.
        """
        rows, length, _ = residual.shape

        def fire(layer: int, point: str, activation: Tensor) -> Tensor:
            for hook, function in listeners.get((layer, point), ()):
                changed = function(activation, hook=hook)
                activation = activation if changed is None else changed
            return activation

        for i, layer in enumerate(self.layers[first:], first):
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


def _layer(block: Any) -> _Layer | None:
    attention, mlp = block.attn, block.mlp
    grouped = "_" if hasattr(attention, "_W_K") else ""
    query_key_value = fused(attention, "W_Q", f"{grouped}W_K", f"{grouped}W_V")
    gate_up, out = fused(mlp, "W_gate", "W_in"), fused(attention, "W_O")
    if query_key_value is None or gate_up is None or out is None:
        return None
    biases = attention.b_Q, getattr(attention, f"{grouped}b_K"), getattr(attention, f"{grouped}b_V")
    return _Layer(
        block.ln1.w.data,
        query_key_value,
        attention.W_O.data.permute(2, 0, 1).flatten(1),
        block.ln2.w.data,
        gate_up,
        mlp.W_out.data.T,
        parts=tuple(b.data for b in (*biases, attention.b_O, mlp.b_in, mlp.b_out)),
    )


def _with_biases(layer: _Layer, used: Sequence[bool]) -> _Layer:
    parts = layer.parts
    out, up, down = (part if is_used else None for part, is_used in zip(parts[3:], used[3:], strict=True))
    bias = torch.cat([part.reshape(-1) for part in parts[:3]]) if any(used[:3]) else None
    return replace(layer, bias=bias, out_bias=out, up_bias=up, down_bias=down)


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    return torch.addcmul(x * cos, x.roll(x.shape[-1] // 2, -1), sin).to(x.dtype)
