"""What is differentiated: the trait metric of pairs, and a random objective that prices drift."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from star_tl.attribution.rows import PairBatch
from star_tl.models.backend import Model, unembed


def run_metrics(residual: Float[Tensor, "row reply d"], model: Model, rows: PairBatch) -> Float[Tensor, "run pair"]:
    """:func:`metrics_of` the logits that this last residual stream gives."""
    return metrics_of(unembed(model, residual), rows)


def metrics_of(logits: Float[Tensor, "row reply vocab"], rows: PairBatch) -> Float[Tensor, "run pair"]:
    """The trait metric of every pair in each run.

    Mean log-probability per token of the positive reply minus that of the negative one, in nats;
    for ``logit`` pairs the difference of the two tokens' logits.
    """
    runs = len(logits) // (2 * rows.size)
    targets = rows.replies.repeat(runs, 1)[..., None]
    mask = rows.reply_mask.repeat(runs, 1)
    logprobs = logits.log_softmax(-1).gather(-1, targets)[..., 0].masked_fill(~mask, 0.0)
    single = logits[:, 0].gather(-1, targets[:, 0])[:, 0]
    means = logprobs.sum(-1) / mask.sum(-1)
    values = torch.where(rows.single_token.repeat(2 * runs), single, means).view(runs, 2, rows.size)
    return values[:, 0] - values[:, 1]


@torch.no_grad()
def drift_probe(logits: Float[Tensor, "row reply vocab"], rows: PairBatch) -> Float[Tensor, "row reply vocab"]:
    r"""Where to pull the logits so that the squared gradient is, on average, the drift's curvature.

    The gradient by the logits of :math:`\sum_{t,y} \sigma_t \rho_y \sqrt{p_{ty}} \log p_{ty}` over reply tokens t and
    vocabulary y, with random signs that belong to the pair. Where something moves all of these log-probabilities at
    rates :math:`\ell_{ty}`, the expected square of the sum's rate is :math:`\sum_{ty} p_{ty} \ell_{ty}^2`, the Fisher
    information: twice what KL(p ‖ moved p) grows by with the square of the way (Hutchinson 1989 for the estimator).
    """
    runs = len(logits) // (2 * rows.size)
    tokens, words = rows.signs(logits.shape[-1])
    p = logits.softmax(-1)
    pull = p.sqrt().mul_(words.repeat(2 * runs, 1)[:, None]).mul_(tokens.repeat(runs, 1)[..., None])
    return pull.sub_(p.mul_(pull.sum(-1, keepdim=True)))
