r"""Relevance patching (RelP): attribution patching with propagation rules instead of plain gradients.

Jafari et al. 2025 (arXiv 2508.21258), with the rules of layer-wise relevance propagation for
transformers (Achtibat et al. 2024, arXiv 2402.05602), each as a forward hook that leaves values as they are and changes
what the backward pass sees:

* normalisation: the scale is a constant (LN rule);
* attention: the pattern is a constant, relevance flows through the values;
* activation function: :math:`\phi(x) = x \cdot [\phi(x) / x]` with the bracket constant (identity rule);
* gate: a product passes half of its relevance to each factor (half rule).

With them the network is linear and homogeneous in the residual stream, so that a logit's relevance is
conserved from layer to layer where there are no biases: :func:`conservation` tests it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformer_lens import HookedTransformer
from transformer_lens.model_bridge import TransformerBridge

from star_tl.attribution.atp import one_gradient, score_pairs
from star_tl.attribution.result import POINTS, AttributionMap
from star_tl.errors import StarError
from star_tl.injection import NamedHook
from star_tl.pairs import Pairs
from star_tl.reading import Model


def attribute_relp(
    model: Model,
    pairs: Pairs,
    points: Sequence[str] = POINTS,
    mode: str = "auto",
    batch_size: int | None = None,
    progress: bool = True,
    alignment: str = "spans",
) -> AttributionMap:
    """Scores of every pair at every hook point; see :func:`star_tl.attribute`."""
    if isinstance(model, TransformerBridge):
        raise StarError(
            "RelP's rules are hooks on a HookedTransformer: use method='atp', or load the model with backend='hooked'."
        )
    return score_pairs(model, pairs, points, one_gradient(mode, rules(model)), batch_size, progress, alignment, "relp")


def rules(model: HookedTransformer) -> list[NamedHook]:
    """RelP's propagation rules as forward hooks on a stock HookedTransformer.

    Raises:
        StarError: the model's MLP is neither plain nor gated (a mixture of experts, say).
    """
    if getattr(model.cfg, "num_experts", None) or model.cfg.attn_only:
        raise StarError("RelP has rules for plain and gated MLPs only: use method='atp' for this model.")
    hooks: list[NamedHook] = [(name, _constant) for name in model.hook_dict if name.endswith("hook_scale")]
    for layer, block in enumerate(model.blocks):
        hooks.append((f"blocks.{layer}.attn.hook_pattern", _constant))
        hooks += _mlp_rules(f"blocks.{layer}.mlp", block.mlp.act_fn, bool(model.cfg.gated_mlp))  # type: ignore[union-attr]
    return hooks


def _constant(activation: Tensor, hook: object) -> Tensor:
    return activation.detach()


def _mlp_rules(mlp: str, act_fn: Callable[[Tensor], Tensor], gated: bool) -> list[NamedHook]:
    inputs: dict[str, Tensor] = {}

    def keep(name: str) -> NamedHook:
        return f"{mlp}.{name}", lambda activation, hook: inputs.__setitem__(name, activation)

    def through(post: Tensor, hook: object) -> Tensor:
        pre = inputs.pop("hook_pre")
        value = act_fn(pre.detach())
        ratio = torch.where(pre == 0, torch.zeros_like(value), value / pre.detach())
        out = pre * ratio
        if gated:
            linear = inputs.pop("hook_pre_linear")
            out = (out * linear.detach() + value * linear) / 2
        return out + (post - out).detach()  # the values stay bit for bit what the model computed

    names = ["hook_pre", "hook_pre_linear"] if gated else ["hook_pre"]
    return [*(keep(name) for name in names), (f"{mlp}.hook_post", through)]


def conservation(
    model: HookedTransformer, tokens: Int[Tensor, "row position"], answer: Int[Tensor, " row"]
) -> Float[Tensor, " layer"]:
    """Relevance of the residual stream entering each layer, as a share of the answer's logit.

    The sum over positions of activation times RelP gradient of the last position's logit of
    ``answer``, over that logit; 1 at every layer in a model without biases. Mean over rows.
    """
    relevance = torch.zeros(model.cfg.n_layers)
    roots: list[Tensor] = []

    def watch(layer: int) -> NamedHook:
        def hook(activation: Tensor, hook: object) -> Tensor:
            if not roots:
                activation = activation.detach().requires_grad_()
            roots.append(activation)
            return activation

        return f"blocks.{layer}.hook_resid_pre", hook

    with torch.enable_grad(), model.hooks(fwd_hooks=[*rules(model), *map(watch, range(model.cfg.n_layers))]):
        logits = model(tokens)[:, -1].to(answer.device).gather(-1, answer[:, None])[:, 0]
        gradients = torch.autograd.grad(logits.sum(), roots)
    for layer, (activation, gradient) in enumerate(zip(roots, gradients, strict=True)):
        share = (activation * gradient).sum((1, 2)).to(logits.device) / logits
        relevance[layer] = share.mean().detach().cpu()
    return relevance
