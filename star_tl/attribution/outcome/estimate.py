r"""Effect, drift and gain from a sample of replies, and directions that the sample itself proposes.

With :math:`s_i = G_i \cdot v` for every reply i of reward :math:`R_i`, and b the mean reward of the prompt's other
replies,

.. math:: effect = E[(R - b) s], \qquad drift = \tfrac12 E[s^2]

the derivative of the expected reward by the strength of v (score function, Williams 1992), and the KL divergence of
whole replies at strength 1, to second order (Fisher information). The gain is what GAIN_DRIFT nats of drift a token
buy of the reward: :math:`effect \sqrt{GAIN\_DRIFT \cdot tokens / drift}`.

The direction of largest gain is the natural gradient :math:`(F + \lambda I)^{-1} E[(R - b) G]` with
:math:`F = E[G G^\top]` (Amari 1998); without reward, for pairs, it is FishBack's (arXiv 2605.17231). Vectors
trained by reinforcement take many such steps (arXiv 2509.06608).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from star_tl.attribution.choose import GAIN_DRIFT

# λ as a share of the trace of F; infinity is the plain gradient.
RIDGES = (math.inf, 1.0, 0.3, 0.1, 0.03, 0.01, 0.003, 0.001)
MANY_PROMPTS = 8  # from here on the two halves of a sample hold different prompts


@dataclass(frozen=True)
class Estimate:
    """A number estimated from replies, with its standard error."""

    value: float
    error: float

    def __repr__(self) -> str:
        return f"{self.value:.4g} ± {self.error:.2g}"


def advantages(rewards: Float[Tensor, " reply"], prompt: Int[Tensor, " reply"]) -> Float[Tensor, " reply"]:
    """Reward less the mean reward of the prompt's other replies; 0 where there are none."""
    count = torch.zeros(int(prompt.max()) + 1, dtype=rewards.dtype).index_add_(0, prompt, torch.ones_like(rewards))
    mean = torch.zeros_like(count).index_add_(0, prompt, rewards) / count.clamp_min(1)
    own = count[prompt]
    return torch.where(own > 1, own / (own - 1).clamp_min(1) * (rewards - mean[prompt]), 0.0)


def standard_error(influence: Float[Tensor, "*cell reply"], prompt: Int[Tensor, " reply"]) -> Float[Tensor, "*cell"]:
    """Of a mean over replies, from what each adds to it: replies to one prompt count together (cluster-robust).

    With a single prompt replies count one by one, and the error is that for this prompt.
    """
    n = influence.shape[-1]
    centred = influence - influence.mean(-1, keepdim=True)
    clusters = int(prompt.unique().numel())
    if clusters == 1:
        return (centred.square().sum(-1) / (n * max(1, n - 1))).sqrt()
    sums = centred.new_zeros(*centred.shape[:-1], int(prompt.max()) + 1).index_add_(-1, prompt, centred)
    return (sums.square().sum(-1) * clusters / (clusters - 1)).sqrt() / n


def effect_of(along: Tensor, advantage: Tensor, prompt: Tensor) -> Estimate:
    """From the gradients along a vector, ``[reply]``."""
    return _mean(advantage * along, prompt)


def drift_of(along: Tensor, tokens: Tensor, prompt: Tensor, per_token: bool) -> Estimate:
    """Nats a reply, or a token: then over the mean number of tokens."""
    scale = float(tokens.double().mean()) if per_token else 1.0
    return _mean(along.square() / 2 / scale, prompt)


def gain_of(along: Tensor, advantage: Tensor, tokens: Tensor, prompt: Tensor) -> Estimate:
    gain, influence = gain_with_influence(along[None], advantage, float(tokens.double().mean()))
    return Estimate(float(gain[0]), float(standard_error(influence, prompt)[0]))


def _mean(values: Tensor, prompt: Tensor) -> Estimate:
    return Estimate(float(values.mean()), float(standard_error(values, prompt)))


def gain_with_influence(
    along: Float[Tensor, "cell reply"], advantage: Float[Tensor, " reply"], tokens: float
) -> tuple[Float[Tensor, " cell"], Float[Tensor, "cell reply"]]:
    """Gains, and what every reply adds to them (the delta method's linear part); 0 where nothing drifts."""
    effects, costs = along * advantage, along.square() / (2 * tokens)
    effect, cost = effects.mean(-1, keepdim=True), costs.mean(-1, keepdim=True)
    there = cost > 0
    scale = torch.where(there, (GAIN_DRIFT / cost.clamp_min(torch.finfo(cost.dtype).tiny)).sqrt(), 0.0)
    share = torch.where(there, (costs - cost) / torch.where(there, cost, 1.0), 0.0)
    return (scale * effect)[:, 0], scale * (effects - effect - effect * share / 2)


def halves(prompt: Int[Tensor, " reply"]) -> tuple[Bool[Tensor, " reply"], Bool[Tensor, " reply"]]:
    """The two halves of a sample: of different prompts where there are MANY_PROMPTS, else of each prompt's replies."""
    distinct, rank = prompt.unique(return_inverse=True)
    if len(distinct) < MANY_PROMPTS:
        rank = torch.stack([(prompt[:i] == prompt[i]).sum() for i in range(len(prompt))])
    return rank % 2 == 0, rank % 2 == 1


@dataclass(frozen=True)
class CrossFit:
    """Gain of a cell's own direction, made from one half of the sample and measured on the other, both ways.

    ``cost`` is the drift in nats a token, measured in the same way, of the direction at norm 1.
    """

    gain: Float[Tensor, " cell"]
    influence: Float[Tensor, "cell reply"]
    cost: Float[Tensor, " cell"]


def cross_fit_plain(
    gradients: Float[Tensor, "reply cell d"], rewards: Tensor, prompt: Tensor, tokens: float
) -> CrossFit:
    """Of the plain gradient E[(R − b) G] of every cell."""
    n, cells, _ = gradients.shape
    gain, cost = torch.zeros(2, cells, dtype=torch.float64).unbind()
    influence = torch.zeros(cells, n, dtype=torch.float64)
    parts = halves(prompt)
    for made, tested in (parts, parts[::-1]):
        weights = advantages(rewards[made], prompt[made]).to(gradients.dtype)
        direction = torch.einsum("r,rcd->cd", weights, gradients[made]) / int(made.sum())
        direction /= direction.norm(dim=-1, keepdim=True).clamp_min(torch.finfo(direction.dtype).tiny)
        along = torch.einsum("cd,rcd->cr", direction, gradients[tested]).double()
        _add(gain, influence, cost, along, rewards, prompt, tested, tokens)
    return CrossFit(gain, influence, cost)


def cross_fit_natural(
    gradients: Float[Tensor, "reply d"], rewards: Tensor, prompt: Tensor, tokens: float, ridge: float
) -> CrossFit:
    """Of one cell's natural gradient: the gain with λ chosen within the half that it is made from, for an honest choice
    must not have seen the other; the cost with ``ridge``, the one that is used, for it depends on that.
    """
    n = len(gradients)
    gain, cost = torch.zeros(2, 1, dtype=torch.float64).unbind()
    influence = torch.zeros(1, n, dtype=torch.float64)
    parts = halves(prompt)
    for made, tested in (parts, parts[::-1]):
        own = best_ridge(gradients[made], rewards[made], prompt[made], tokens)
        advantage = advantages(rewards[made], prompt[made])
        directions = natural_directions(gradients[made], advantage, (own, ridge))
        directions /= directions.norm(dim=-1, keepdim=True).clamp_min(torch.finfo(directions.dtype).tiny)
        along = directions @ gradients[tested].to(directions.dtype).T
        _add(gain, influence, torch.zeros_like(cost), along[:1], rewards, prompt, tested, tokens)
        cost += along[1:].square().mean(-1) / (2 * tokens) / 2
    return CrossFit(gain, influence, cost)


def _add(
    gain: Tensor,
    influence: Tensor,
    cost: Tensor,
    along: Tensor,
    rewards: Tensor,
    prompt: Tensor,
    tested: Tensor,
    tokens: float,
) -> None:
    found, linear = gain_with_influence(along, advantages(rewards[tested], prompt[tested]), tokens)
    gain += found / 2
    influence[:, tested] += linear / 2 * len(rewards) / int(tested.sum())
    cost += along.square().mean(-1) / (2 * tokens) / 2


def natural_directions(
    gradients: Float[Tensor, "reply d"], advantage: Float[Tensor, " reply"], ridges: Sequence[float]
) -> Float[Tensor, "ridge d"]:
    """(F + λI)⁻¹ E[(R − b) G] for every ridge, in float64, from the smaller of F and the replies' products."""
    x = gradients.double()
    n = len(x)
    plain = advantage.double() @ x / n
    few = n < x.shape[1]
    # F = XᵀX / n and the products XXᵀ / n have the same eigenvalues, and (F + λI)⁻¹ Xᵀ = Xᵀ (XXᵀ / n + λI)⁻¹.
    values, vectors = torch.linalg.eigh((x @ x.T if few else x.T @ x) / n)
    values = values.clamp_min(0)
    inside = vectors.T @ (advantage.double() / n if few else plain)
    trace = float(values.sum())
    shrunk = [ridge for ridge in ridges if not math.isinf(ridge) and trace > 0]
    solved = [vectors @ (inside / (values + ridge * trace)) for ridge in shrunk]
    found = dict(zip(shrunk, [weights @ x if few else weights for weights in solved], strict=True))
    return torch.stack([found.get(ridge, plain) for ridge in ridges])


def best_ridge(gradients: Float[Tensor, "reply d"], rewards: Tensor, prompt: Tensor, tokens: float) -> float:
    """The ridge of RIDGES with the largest cross-fitted gain."""
    gains = torch.zeros(len(RIDGES), dtype=torch.float64)
    parts = halves(prompt)
    for made, tested in (parts, parts[::-1]):
        directions = natural_directions(gradients[made], advantages(rewards[made], prompt[made]), RIDGES)
        along = directions @ gradients[tested].to(directions.dtype).T
        gains += gain_with_influence(along, advantages(rewards[tested], prompt[tested]), tokens)[0]
    return RIDGES[int(gains.argmax())]
