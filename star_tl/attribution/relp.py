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

from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformer_lens.model_bridge.generalized_components import (
    BlockBridge,
    GatedMLPBridge,
    JointGateUpMLPBridge,
    MLPBridge,
    NormalizationBridge,
    ParallelBlockBridge,
    ScaledResidualBlockBridge,
)
from transformer_lens.model_bridge.generalized_components.base import GeneralizedComponent

from star_tl.attribution.atp import one_gradient, score_pairs
from star_tl.attribution.map import AttributionMap
from star_tl.attribution.request import Estimator, Request
from star_tl.errors import StarError
from star_tl.locus import NamedHook
from star_tl.models.backend import Model, attached
from star_tl.models.lens import TransformerBridge


def attribute_relp(request: Request, mode: str = "auto") -> AttributionMap:
    """Scores of every pair at every hook point; see :func:`star_tl.attribute`."""
    return score_pairs(request, one_gradient(mode, rules(request.model)), "relp")


def rules(model: Model) -> list[NamedHook]:
    """RelP's propagation rules as forward hooks.

    Raises:
        StarError: the model's MLP is neither plain nor gated (a mixture of experts, say), or a bridge's layers hold
            something else that has no rule.
    """
    hooks: list[NamedHook]
    if isinstance(model, TransformerBridge):
        blocks = model.blocks
        known = all(map(_known, blocks))
        gated = known and isinstance(blocks[0].mlp, GatedMLPBridge)
        norms = {f"blocks.{i}.{key}": part for i, block in enumerate(blocks) for key, part in _norms(block).items()}
        hooks = [hook for name, norm in {**norms, "ln_final": model.ln_final}.items() for hook in _scale(name, norm)]
    else:
        known, gated = not (getattr(model.cfg, "num_experts", None) or model.cfg.attn_only), bool(model.cfg.gated_mlp)
        hooks = [(name, _constant) for name in model.hook_dict if name.endswith("hook_scale")]
    if not known:
        raise StarError(
            "RelP has rules for plain attention and for plain and gated MLPs only: use method='atp' for this model."
        )
    for layer in range(model.cfg.n_layers):
        hooks.append((f"blocks.{layer}.attn.hook_pattern", _constant))
        hooks += _mlp_rules(f"blocks.{layer}.mlp", gated)
    return hooks


def _known(block: Any) -> bool:
    """Whether all that a bridge's block computes has a rule."""
    if type(block) not in (BlockBridge, ParallelBlockBridge, ScaledResidualBlockBridge):
        return False
    if set(block.submodules) != {"attn", "mlp", *_norms(block)}:
        return False
    attn, mlp = block.attn, block.mlp
    inside = [module for part in (attn, mlp) for module in part.original_component.children()]
    return (
        set(attn.submodules) <= {"q", "k", "v", "o", "qkv", "q_norm", "k_norm"}
        and not hasattr(attn, "hook_q_gate")
        and not getattr(getattr(attn.original_component, "config", None), "clip_qkv", None)
        and type(mlp) in (MLPBridge, GatedMLPBridge, JointGateUpMLPBridge)
        and set(mlp.submodules) == {"in", "out"} | ({"gate"} if isinstance(mlp, GatedMLPBridge) else set())
        and not any(map(_hidden_norm, inside))
    )


def _norms(block: GeneralizedComponent) -> dict[str, NormalizationBridge]:
    return {key: part for key, part in block.submodules.items() if isinstance(part, NormalizationBridge)}


def _hidden_norm(module: nn.Module) -> bool:
    """Whether it scales what it is given and has no hook points; one between activation and projection, as BitNet's."""
    weight = getattr(module, "weight", None)
    return weight is not None and weight.ndim == 1 and not isinstance(module, GeneralizedComponent)


def _scale(name: str, norm: NormalizationBridge) -> list[NamedHook]:
    """Gives back what a norm's scale takes from the gradient: a bridge whose scale is written to rounds otherwise."""
    kept: list[Tensor] = []
    bias = getattr(norm.original_component, "bias", None)

    def keep(scale: Tensor, hook: object) -> None:
        kept[:] = [scale]

    def through(out: Tensor, hook: object) -> Tensor:
        scale = kept.pop()
        scaled = out.detach() if bias is None else out.detach() - bias
        return out + (scaled * (scale / scale.detach() - 1)).to(out.dtype)

    return [(f"{name}.hook_scale", keep), (f"{name}.hook_out", through)]


def _constant(activation: Tensor, hook: object) -> Tensor:
    return activation.detach()


def _mlp_rules(mlp: str, gated: bool) -> list[NamedHook]:
    names = ["hook_pre", "hook_pre_linear"] if gated else ["hook_pre"]
    factors: dict[str, Tensor] = {}

    def keep(name: str) -> NamedHook:
        return f"{mlp}.{name}", lambda activation, hook: factors.__setitem__(name, activation)

    def through(post: Tensor, hook: object) -> Tensor:
        # The identity rule for one factor, for two the half rule on top: each has an equal part, and all else constant.
        parts = [x * torch.where(x == 0, 0, post / x).detach() for x in map(factors.pop, names)]
        out = sum(parts[1:], parts[0]) / len(parts)
        return post.detach() + (out - out.detach())  # the values stay bit for bit what the model computed

    return [*(keep(name) for name in names), (f"{mlp}.hook_post", through)]


def conservation(
    model: Model, tokens: Int[Tensor, "row position"], answer: Int[Tensor, " row"]
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

    with torch.enable_grad(), attached(model, [*rules(model), *map(watch, range(model.cfg.n_layers))]):
        logits = model(tokens)[:, -1].to(answer.device).gather(-1, answer[:, None])[:, 0]
        gradients = torch.autograd.grad(logits.sum(), roots)
    for layer, (activation, gradient) in enumerate(zip(roots, gradients, strict=True)):
        share = (activation * gradient).sum((1, 2)).to(logits.device) / logits
        relevance[layer] = share.mean().detach().cpu()
    return relevance


ESTIMATOR = Estimator(
    "relp", "RelP", "relevance propagation's rules instead of the plain gradient", ("mode",), attribute_relp
)
