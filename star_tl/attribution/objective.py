"""What is differentiated: a metric of pairs of replies, and a random objective that prices drift."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from star_tl.errors import StarError


@dataclass(frozen=True)
class Replies:
    """Token ids of both replies of some pairs, the positive replies' rows first, padded on the right.

    ``mask`` is False at padding. ``single_token`` says which pairs name the metric ``"logit"``.
    """

    tokens: Int[Tensor, "2*pair reply"]
    mask: Bool[Tensor, "2*pair reply"]
    single_token: Bool[Tensor, " pair"]


Metric = Callable[[Float[Tensor, "2*pair reply vocab"], Replies], Float[Tensor, " pair"]]


def pairs_own(logits: Float[Tensor, "2*pair reply vocab"], replies: Replies) -> Float[Tensor, " pair"]:
    """The metric that each pair names.

    ``"logprob"``: mean log-probability per token of the positive reply minus that of the negative one, in nats;
    ``"logit"``: the difference of the two tokens' logits.
    """
    targets = replies.tokens[..., None]
    logprobs = logits.log_softmax(-1).gather(-1, targets)[..., 0].masked_fill(~replies.mask, 0.0)
    single = logits[:, 0].gather(-1, targets[:, 0])[:, 0]
    means = logprobs.sum(-1) / replies.mask.sum(-1)
    positive, negative = torch.where(replies.single_token.repeat(2), single, means).chunk(2)
    return positive - negative


def check_metrics(found: Float[Tensor, "pair run"], ids: Sequence[str]) -> None:
    """Raises StarError where the metric of a pair is NaN or infinite."""
    for name, values in zip(ids, found.tolist(), strict=True):
        if not all(map(math.isfinite, values)):
            raise StarError(
                f"The metric of pair {name!r} is {values[0]:g} and {values[-1]:g}: load the model in a wider dtype, or "
                "give a metric that is finite."
            )


@torch.no_grad()
def drift_probe(
    p: Float[Tensor, "row reply vocab"],
    tokens: Float[Tensor, "*draw row reply"],
    words: Float[Tensor, "*draw row vocab"],
) -> Float[Tensor, "*draw row reply vocab"]:
    r"""Where to pull the logits so that the squared gradient is, on average, the drift's curvature.

    The gradient by the logits of :math:`\sum_{t,y} \sigma_t \rho_y \sqrt{p_{ty}} \log p_{ty}` over reply tokens t and
    vocabulary y, with random signs :math:`\sigma` (``tokens``) and :math:`\rho` (``words``). Where something moves all
    of these log-probabilities at rates :math:`\ell_{ty}`, the expected square of the sum's rate is
    :math:`\sum_{ty} p_{ty} \ell_{ty}^2`, the Fisher information: twice what KL(p ‖ moved p) grows by with the square of
    the way (Hutchinson 1989 for the estimator).
    """
    pull = (p.sqrt() * words[..., None, :]).mul_(tokens[..., None])
    return pull.addcmul_(p, pull.sum(-1, keepdim=True), value=-1)
