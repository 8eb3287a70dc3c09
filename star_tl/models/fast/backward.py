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
from star_tl.models.fast.recording import recording_now
from star_tl.models.lens import HookedTransformer
from star_tl.models.product import product

TRUSTED_DEVICES = ("cpu",)  # elsewhere what attention's backward pass gives is checked
# What rounding may leave, as a share; a kernel at fault leaves NaN, or a share near 1.
BALANCED = {torch.float32: 1e-2, torch.float64: 1e-2, torch.bfloat16: 0.1, torch.float16: 0.1}

FUSED_NORM = ("cuda",)  # where RMSNorm is one kernel forward and one back
AT_ONCE = 2**26  # numbers of attention's scores that are held at once

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
        # One layer of each shape, and the first, which every gradient reaches: NaN does not end on its way there.
        self.checked = {0, len(llama.layers) - 2, len(llama.layers) - 1}
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
            written = product(z.flatten(2), layer.out, layer.out_bias)
            see("attn_out", i, written)
            between = residual[:, first:] + written
            see("resid_mid", i, between)
            written, slopes = self._mlp(i, between)
            see("mlp_out", i, written)
            self.kept.append(_Kept(self._own(residual), self._own(between), leaves, attended, slopes))
            residual = between + written
            see("resid_post", i, residual)
        return residual

    @torch.no_grad()
    def backward(self, gradient: Float[Tensor, "*copy mine late d_model"], see: See) -> None:
        """From the gradient of what :meth:`forward` returned; ``see`` gets that of every hook point.

        Several gradients at once are copies in front; they share the forward pass.
        """
        llama = self.llama
        cos, back = self.rotation[0][: self.mine], -self.rotation[1][: self.mine]
        hidden = ~self.seen[: self.mine, :, None]  # [mine 1 1 column column]
        imbalance: list[Tensor] = []
        for i, layer in reversed(list(enumerate(llama.layers))):
            kept = self.kept.pop()
            see("resid_post", i, gradient)
            see("mlp_out", i, gradient)
            inner = product((kept.slopes * product(gradient, layer.down.T)[..., None, :]).flatten(-2), layer.gate_up.T)
            gradient = gradient + _through_norm(inner, kept.between, layer.norm_mlp, llama.eps)
            see("resid_mid", i, gradient)
            see("attn_out", i, gradient)
            z = product(gradient, layer.out.T).unflatten(-1, (-1, llama.d_head))
            see("z", i, z)
            early = kept.entering.shape[1] - kept.z.shape[1]
            fused = z.ndim == kept.z.ndim
            q, k, v = _through_attention(kept, z) if fused else self._through_softmax(i, kept, z, hidden)
            if fused and i in self.checked and self.before is None and kept.z.device.type not in TRUSTED_DEVICES:
                imbalance.append(_imbalance(kept.z, z, kept.query_key_value, (q, k, v)))
            if early:
                q, gradient = F.pad(q, (0, 0, 0, 0, early, 0)), F.pad(gradient, (0, 0, early, 0))
            turning = rotate(torch.cat([q, k], -2), cos, back)  # turned back: the rotation's transpose
            inner = product(torch.cat([turning, v], -2).flatten(-2), layer.query_key_value.T)
            gradient = gradient + _through_norm(inner, kept.entering, layer.norm_attention, llama.eps)
            see("resid_pre", i, gradient)
        # While a graph is recorded nothing is known; the same pass has been looked at before.
        if imbalance and not recording_now() and not float(torch.stack(imbalance).amax()) < BALANCED[gradient.dtype]:
            raise StarError(
                "Attention's gradient is not one on this device (a fault of its kernel): use mode='layer_by_layer', "
                "device='cpu', or another version of PyTorch."
            )

    def _own(self, activation: Tensor) -> Tensor:
        """The first rows; a copy, for a view would keep the others alive."""
        return activation if len(activation) == self.mine else activation[: self.mine].clone()

    def _attention(self, i: int, residual: Tensor, first: int) -> tuple[Tensor, list[Tensor], Tensor]:
        """z of all rows; queries, keys and values of the first, and z as autograd makes it of these."""
        llama, layer = self.llama, self.llama.layers[i]
        x = F.rms_norm(residual, residual.shape[-1:], layer.norm_attention, llama.eps)
        heads = product(x, layer.query_key_value, layer.bias).unflatten(-1, (-1, llama.d_head))
        turning, v = heads.split([llama.heads + llama.kv_heads, llama.kv_heads], 2)
        q, k = rotate(turning, *self.rotation).split([llama.heads, llama.kv_heads], 2)
        q, seen, mine = q[:, first:], self.seen[:, :, first:], slice(self.mine)
        leaves = [self._own(t).detach().requires_grad_() for t in (q, k, v)]
        with torch.enable_grad():
            keys, values = leaves[1:]
            if self.before is not None:
                keys, values = (torch.cat(both, 1) for both in zip(self.before[i], leaves[1:], strict=True))
            attended = _attend(leaves[0], keys, values, seen[mine])
        if len(q) == self.mine:
            return attended.detach(), leaves, attended
        others = _attend(q[self.mine :], k[self.mine :], v[self.mine :], seen[self.mine :])
        return torch.cat([attended.detach(), others]), leaves, attended

    def _through_softmax(
        self,
        i: int,
        kept: _Kept,
        given: Float[Tensor, "copy mine late head d_head"],
        hidden: Bool[Tensor, "mine 1 1 column key"],
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Gradients of queries, keys and values of all copies, from softmax attention's formulas.

        A kernel would take them one after another.
        """
        wide = torch.promote_types(given.dtype, torch.float32)
        q, keys, values = (t.detach() for t in kept.query_key_value)
        if self.before is not None:
            keys, values = (torch.cat(both, 1) for both in zip(self.before[i], (keys, values), strict=True))
        group = (self.llama.kv_heads, -1)
        q, keys, values = q.unflatten(2, group).to(wide), keys.to(wide), values.to(wide)
        scale, own = q.shape[-1] ** -0.5, slice(keys.shape[1] - kept.query_key_value[1].shape[1], None)
        scores = torch.einsum("rqgmd,rkgd->rgmqk", q, keys).mul_(scale)
        p = scores.masked_fill_(hidden[..., -q.shape[1] :, :], -torch.inf).softmax(-1)
        z = kept.z.detach().unflatten(2, group).to(wide)
        found: list[tuple[Tensor, ...]] = []
        for some in given.split(max(1, AT_ONCE // p.numel())):
            g = some.unflatten(3, group).to(wide)
            towards = torch.einsum("crqgmd,rkgd->crgmqk", g, values)
            total = (g * z).sum(-1).permute(0, 1, 3, 4, 2)[..., None]
            ds = towards.sub_(total).mul_(p).mul_(scale)
            found.append(
                (
                    torch.einsum("crgmqk,rkgd->crqgmd", ds, keys).flatten(3, 4),
                    torch.einsum("crgmqk,rqgmd->crkgd", ds[..., own], q),
                    torch.einsum("rgmqk,crqgmd->crkgd", p[..., own], g),
                )
            )
        dq, dk, dv = (torch.cat(t).to(given.dtype) for t in zip(*found, strict=True))
        return dq, dk, dv

    def _mlp(self, i: int, residual: Tensor) -> tuple[Tensor, Tensor]:
        """What is written for all rows, and the slopes of the first."""
        layer, mine = self.llama.layers[i], slice(self.mine)
        x = F.rms_norm(residual, residual.shape[-1:], layer.norm_mlp, self.llama.eps)
        gate, up = product(x, layer.gate_up).chunk(2, -1)
        post = F.silu(gate)
        slopes = torch.stack([torch.ops.aten.silu_backward(up[mine], gate[mine]), post[mine]], 2)
        post *= up
        post = post if layer.up_bias is None else post + layer.up_bias
        return product(post, layer.down, layer.down_bias), slopes


def through_end(
    model: HookedTransformer, gradient: Float[Tensor, "*copy row column vocab"], residual: Float[Tensor, "row column d"]
) -> Float[Tensor, "*copy row column d"]:
    """The gradient of the last residual stream from that of the logits."""
    weight, norm = model.unembed.W_U, model.ln_final
    assert isinstance(norm.w, Tensor)
    return _through_norm(product(gradient.to(weight.dtype), weight), residual, norm.w, model.cfg.eps)


def _through_attention(kept: _Kept, z: Float[Tensor, "mine late head d_head"]) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of queries, keys and values from that of ``z``, by attention's kernel."""
    q, k, v = torch.autograd.grad(kept.z, kept.query_key_value, z)
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
    if gradient.device.type in FUSED_NORM:
        with torch.enable_grad():
            x = x.expand_as(gradient).detach().requires_grad_()
            return torch.autograd.grad(F.rms_norm(x, x.shape[-1:], weight, eps), x, gradient)[0]
    wide = torch.promote_types(x.dtype, torch.float32)
    x, direct = x.to(wide), (gradient * weight).to(wide)
    scale = (x.square().mean(-1, keepdim=True) + eps).rsqrt()
    radial = (direct * x).mean(-1, keepdim=True) * scale.square()
    return (torch.addcmul(direct, x, radial, value=-1) * scale).to(gradient.dtype)
