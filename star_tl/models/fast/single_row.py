"""A decode step of a single row on a CPU, through numpy.

One row multiplies every weight once, so that reading the weights is what it costs. numpy's BLAS reads a matrix
faster than PyTorch's, and its operators start sooner; the arrays are views of the model's own memory.
"""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor

from star_tl.models.fast.forward import Listeners, LlamaForward
from star_tl.models.lens import HookedTransformer
from star_tl.models.threads import products_of

Array = NDArray[np.floating]
DTYPES = (torch.float32, torch.float64)  # numpy has no bfloat16, and half precision only in software


class SingleRowStep:
    """What :class:`~star_tl.models.fast.forward.LlamaForward` computes, for one token of one row."""

    def __init__(
        self,
        model: HookedTransformer,
        forward: LlamaForward,
        cache: Float[Tensor, "layer 2 1 kv_head room d_head"],
        rotation: tuple[Float[Tensor, "room d_head"], Float[Tensor, "room d_head"]],
    ) -> None:
        self.forward = forward
        self.layers = [
            SimpleNamespace(**{name: _array(weight) for name, weight in vars(layer).items() if name != "parts"})
            for layer in forward.layers
        ]
        self.last: Tensor | None = None  # the last residual stream of the last token, [1 d_model]
        self.cache = cache[:, :, 0].numpy()
        self.cos, self.sin = (angle.view(len(angle), 2, -1).numpy() for angle in rotation)
        unembed = model.unembed
        self.embedding, self.norm = _array(model.embed.W_E.data), _array(model.ln_final.w.data)  # type: ignore[operator]
        self.unembedding, self.bias = _array(unembed.W_U.data.T), _array(unembed.b_U.data)
        matrices = [m for layer in self.layers for m in vars(layer).values() if m is not None]
        self.weight_bytes = self.unembedding.nbytes + sum(matrix.nbytes for matrix in matrices)

    def __call__(self, token: int, pads: int, column: int, listeners: Listeners) -> Float[Tensor, "1 vocab"]:
        """Logits after ``token``, which goes to this column of the cache, whose first ``pads`` columns hold nothing."""
        forward = self.forward
        kv_heads, d_head = forward.kv_heads, forward.d_head
        turning = forward.heads + kv_heads
        cos, sin = self.cos[column - pads], self.sin[column - pads]

        def fire(layer: int, point: str, activation: Array) -> Array:
            found = listeners.get((layer, point))
            if not found:
                return activation
            shape = (1, 1, -1, d_head) if point == "attn.hook_z" else (1, 1, -1)
            tensor = torch.from_numpy(activation).view(shape)
            for hook, function in found:
                changed = function(tensor, hook=hook)
                tensor = tensor if changed is None else changed
            return tensor.reshape(-1).numpy()

        def norm(x: Array, weight: Array) -> Array:
            return x * (weight * (1 / math.sqrt(float(x @ x) / len(x) + forward.eps)))

        with products_of(self.weight_bytes), np.errstate(all="ignore"):  # a broken row is found by its logits
            residual = self.embedding[token].copy()
            for i, layer in enumerate(self.layers):
                residual = fire(i, "hook_resid_pre", residual)
                heads = _sum(layer.query_key_value @ norm(residual, layer.norm_attention), layer.bias)
                heads = heads.reshape(-1, 2, d_head // 2)
                turned = heads[:turning] * cos + heads[:turning, ::-1] * sin
                keys, values = self.cache[i]
                keys[:, column] = turned[forward.heads :].reshape(kv_heads, d_head)
                values[:, column] = heads[turning:].reshape(kv_heads, d_head)
                queries = turned[: forward.heads].reshape(kv_heads, -1, d_head) * d_head**-0.5
                pattern = queries @ keys[:, pads : column + 1].transpose(0, 2, 1)
                pattern = np.exp(pattern - pattern.max(-1, keepdims=True))
                z = pattern @ values[:, pads : column + 1] / pattern.sum(-1, keepdims=True)
                z = fire(i, "attn.hook_z", z.reshape(-1))
                residual = residual + fire(i, "hook_attn_out", _sum(layer.out @ z, layer.out_bias))
                residual = fire(i, "hook_resid_mid", residual)
                gate, up = (layer.gate_up @ norm(residual, layer.norm_mlp)).reshape(2, -1)
                post = _sum(gate / (1 + np.exp(-gate)) * up, layer.up_bias)
                residual = residual + fire(i, "hook_mlp_out", _sum(layer.down @ post, layer.down_bias))
                residual = fire(i, "hook_resid_post", residual)
            logits = self.unembedding @ norm(residual, self.norm) + self.bias
        self.last = torch.from_numpy(residual)[None]
        return torch.from_numpy(logits)[None]


def _array(weight: Tensor | None) -> Any:
    return None if weight is None else weight.numpy()


def _sum(x: Array, bias: Array | None) -> Array:
    return x if bias is None else x + bias
