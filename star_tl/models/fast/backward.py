"""The Llama family's layers forward, and backward as formulas, on HookedTransformer's own weights.

Autograd records every operator and keeps what each of them reads. Here a layer keeps what its gradient needs, the
gradient takes few operators, and hook points where it is the same, such as ``attn_out`` and ``resid_mid``, share it.
Attention alone is left to autograd, whose fused backward pass depends on the device.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor

from star_tl.errors import StarError
from star_tl.models.fast.attention import attend_masked
from star_tl.models.fast.forward import LlamaForward, rotate

TRUSTED_DEVICES = ("cpu",)  # elsewhere what attention's backward pass gives is checked
# What rounding may leave, as a share; a kernel at fault leaves NaN, or a share near 1.
BALANCED = {torch.float32: 1e-2, torch.float64: 1e-2, torch.bfloat16: 0.1, torch.float16: 0.1}

See = Callable[[str, int, Tensor], None]
Rotation = tuple[Float[Tensor, "row column 1 d_head"], Float[Tensor, "row column 1 d_head"]]


@dataclass
class _Kept:
    """What a layer's gradient needs; ``slopes`` are the derivatives of silu(gate) * up by gate and by up."""

    entering: Float[Tensor, "mine column d_model"]
    between: Float[Tensor, "mine late d_model"]
    query_key_value: list[Float[Tensor, "mine column heads d_head"]]
    z: Float[Tensor, "mine late head d_head"]
    slopes: Float[Tensor, "mine late 2 d_mlp"]


class LlamaGradient:
    """A forward pass over rows, and a backward pass through the first ``mine`` of them.

    ``before`` holds keys and values of columns in front of these, layer by layer; no gradient reaches them. Of the last
    layer only columns from ``first`` on are wanted: what a function ``see`` gets at its hook points, those behind
    ``resid_pre``, has no others, and the gradient of those is taken to be zero.
    """

    def __init__(
        self,
        llama: LlamaForward,
        rotation: Rotation,
        seen: Bool[Tensor, "row 1 column column"],
        mine: int,
        first: int = 0,
        before: Sequence[tuple[Tensor, Tensor]] | None = None,
    ) -> None:
        self.llama = llama
        self.rotation = rotation
        self.seen = seen
        self.mine = mine
        self.first = first
        self.before = before
        self.kept: list[_Kept] = []

    @torch.no_grad()
    def forward(self, residual: Float[Tensor, "row column d_model"], see: See) -> Float[Tensor, "row late d_model"]:
        """The residual stream that leaves the last layer; ``see`` gets the activations of every hook point."""
        last = len(self.llama.layers) - 1
        for i, layer in enumerate(self.llama.layers):
            see("resid_pre", i, residual)
            first = self.first if i == last else 0
            z, leaves, attended = self._attention(i, residual, first)
            see("z", i, z)
            written = F.linear(z.flatten(2), layer.out, layer.out_bias)
            see("attn_out", i, written)
            between = residual[:, first:] + written
            see("resid_mid", i, between)
            written, slopes = self._mlp(i, between)
            see("mlp_out", i, written)
            # Copies, for a view would keep the other rows alive.
            mine, amid = residual[: self.mine].clone(), between[: self.mine].clone()
            self.kept.append(_Kept(mine, amid, leaves, attended, slopes))
            residual = between + written
            see("resid_post", i, residual)
        return residual

    @torch.no_grad()
    def backward(self, gradient: Float[Tensor, "*copy mine late d_model"], see: See) -> None:
        """From the gradient of what :meth:`forward` returned; ``see`` gets that of every hook point.

        Several gradients at once are copies in front; they share the forward pass.
        """
        llama = self.llama
        cos, sin = (t[: self.mine] for t in self.rotation)
        imbalance: list[Tensor] = []
        for i, layer in reversed(list(enumerate(llama.layers))):
            kept = self.kept.pop()
            see("resid_post", i, gradient)
            see("mlp_out", i, gradient)
            inner = (kept.slopes * (gradient @ layer.down)[..., None, :]).flatten(-2) @ layer.gate_up
            gradient = gradient + _through_norm(inner, kept.between, layer.norm_mlp, llama.eps)
            see("resid_mid", i, gradient)
            see("attn_out", i, gradient)
            z = (gradient @ layer.out).unflatten(-1, (-1, llama.d_head))
            see("z", i, z)
            early = kept.entering.shape[1] - kept.z.shape[1]
            q, k, v = _through_attention(kept, z)
            if kept.z.device.type not in TRUSTED_DEVICES and self.before is None and z.shape == kept.z.shape:
                imbalance.append(_imbalance(kept.z, z, kept.query_key_value, (q, k, v)))
            q, gradient = F.pad(q, (0, 0, 0, 0, early, 0)), F.pad(gradient, (0, 0, early, 0))
            turning = rotate(torch.cat([q, k], -2), cos, -sin)  # turned back: the rotation's transpose
            inner = torch.cat([turning, v], -2).flatten(-2) @ layer.query_key_value
            gradient = gradient + _through_norm(inner, kept.entering, layer.norm_attention, llama.eps)
            see("resid_pre", i, gradient)
        if imbalance and not float(torch.stack(imbalance).amax()) < BALANCED[gradient.dtype]:
            raise StarError(
                "Attention's gradient is not one on this device (a fault of its kernel): use mode='layer_by_layer', "
                "device='cpu', or another version of PyTorch."
            )

    def _attention(self, i: int, residual: Tensor, first: int) -> tuple[Tensor, list[Tensor], Tensor]:
        """z of all rows; queries, keys and values of the first, and z as autograd makes it of these."""
        llama, layer = self.llama, self.llama.layers[i]
        x = F.rms_norm(residual, residual.shape[-1:], layer.norm_attention, llama.eps)
        heads = F.linear(x, layer.query_key_value, layer.bias).unflatten(-1, (-1, llama.d_head))
        turning, v = heads.split([llama.heads + llama.kv_heads, llama.kv_heads], 2)
        q, k = rotate(turning, *self.rotation).split([llama.heads, llama.kv_heads], 2)
        q, seen, mine = q[:, first:], self.seen[:, :, first:], slice(self.mine)
        leaves = [t[mine].clone().requires_grad_() for t in (q, k, v)]
        with torch.enable_grad():
            keys, values = leaves[1:]
            if self.before is not None:
                keys, values = (torch.cat(both, 1) for both in zip(self.before[i], leaves[1:], strict=True))
            attended = _attend(leaves[0], keys, values, seen[mine])
        if len(q) == self.mine:
            return attended.detach(), leaves, attended
        others = _attend(q[self.mine :], k[self.mine :], v[self.mine :], seen[self.mine :])
        return torch.cat([attended.detach(), others]), leaves, attended

    def _mlp(self, i: int, residual: Tensor) -> tuple[Tensor, Tensor]:
        """What is written for all rows, and the slopes of the first."""
        layer, mine = self.llama.layers[i], slice(self.mine)
        x = F.rms_norm(residual, residual.shape[-1:], layer.norm_mlp, self.llama.eps)
        gate, up = F.linear(x, layer.gate_up).chunk(2, -1)
        post = F.silu(gate)
        slopes = torch.stack([torch.ops.aten.silu_backward(up[mine], gate[mine]), post[mine]], 2)
        post *= up
        post = post if layer.up_bias is None else post + layer.up_bias
        return F.linear(post, layer.down, layer.down_bias), slopes


def _through_attention(kept: _Kept, z: Float[Tensor, "*copy mine late head d_head"]) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of queries, keys and values from that of ``z``."""
    copies = z.reshape(-1, *kept.z.shape)
    found = [torch.autograd.grad(kept.z, kept.query_key_value, g, retain_graph=True) for g in copies[:-1]]
    found.append(torch.autograd.grad(kept.z, kept.query_key_value, copies[-1]))
    q, k, v = (torch.stack(t).reshape(*z.shape[:-4], *t[0].shape) for t in zip(*found, strict=True))
    return q, k, v


def _attend(
    q: Float[Tensor, "row late head d_head"],
    k: Float[Tensor, "row column kv_head d_head"],
    v: Float[Tensor, "row column kv_head d_head"],
    seen: Bool[Tensor, "row 1 late column"],
) -> Float[Tensor, "row late head d_head"]:
    q, k, v = (t.transpose(1, 2) for t in (q, k, v))
    return attend_masked(q, k, v, seen).transpose(1, 2)


def _imbalance(z: Tensor, given: Tensor, leaves: Sequence[Tensor], found: Sequence[Tensor]) -> Tensor:
    """How far a kernel's gradient is from what every gradient of attention obeys, as shares; NaN where it is NaN.

    z is linear in the values, so that z · ∂z adds up to v · ∂v (Euler's theorem). Scores are linear in the queries and
    in the keys alike, so that q · ∂q and k · ∂k both add up to scores · ∂scores.
    """
    (q, k, v), (dq, dk, dv) = leaves, found

    def total(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
        product = a.detach().float() * b.float()
        return product.sum(), product.abs().sum()

    shares = []
    for (one, size), (other, other_size) in ((total(z, given), total(v, dv)), (total(q, dq), total(k, dk))):
        shares.append((one - other).abs() / (size + other_size).clamp(min=torch.finfo(torch.float32).tiny))
    return torch.stack(shares).amax()


def _through_norm(
    gradient: Float[Tensor, "row column d_model"],
    x: Float[Tensor, "row column d_model"],
    weight: Float[Tensor, " d_model"],
    eps: float,
) -> Float[Tensor, "row column d_model"]:
    """The gradient of RMSNorm's input ``x`` from that of its output."""
    wide = torch.promote_types(x.dtype, torch.float32)
    x, direct = x.to(wide), (gradient * weight).to(wide)
    scale = (x.square().mean(-1, keepdim=True) + eps).rsqrt()
    radial = (direct * x).mean(-1, keepdim=True) * scale.square()
    return (torch.addcmul(direct, x, radial, value=-1) * scale).to(gradient.dtype)
