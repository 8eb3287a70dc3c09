"""Choosing a locus from a map: the layer where drift buys most of the trait, its token positions, how sure both are."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from star_tl.errors import StarError

MOST_POSITIONS = 4
GAIN_DRIFT = 0.1  # nats a token: half of what a chosen strength may cost, and about what it does
TIE = 0.05  # gains that differ by a smaller share are the same


@dataclass(frozen=True)
class LayerChoice:
    """The layer where drift buys most of the trait, and how often each would be chosen from resampled pairs.

    ``gain`` is :func:`gains` of the mean effect and cost, ``low`` and ``high`` its 95 % bootstrap interval over pairs.
    ``null`` is the gain that the best layer reaches in 95 % of shuffles of the pairs' labels, and ``p_value`` the share
    of shuffles in which any layer reaches the largest gain.
    """

    layer: int
    gain: Float[Tensor, " layer"]
    low: Float[Tensor, " layer"]
    high: Float[Tensor, " layer"]
    frequency: Float[Tensor, " layer"]
    null: float
    p_value: float

    @property
    def last_ranked(self) -> int:
        """The layer with the lowest gain."""
        return int(self.gain.argmin())


def gains(effects: Float[Tensor, "*sample layer"], costs: Float[Tensor, "*sample layer"]) -> Tensor:
    r"""What GAIN_DRIFT nats of drift a token buy of the metric (nats), to leading order, ``[*sample layer]``.

    An injection of strength s moves the metric by :math:`e s` and costs a drift of :math:`c s^2`; the strength that
    costs d therefore moves it by :math:`e \sqrt{d / c}`. Zero where it costs nothing, for then it does nothing.
    """
    return torch.where(costs > 0, effects * (GAIN_DRIFT / costs.clamp_min(torch.finfo(costs.dtype).tiny)).sqrt(), 0.0)


def choose_layer(
    effects: Float[Tensor, "pair layer"], costs: Float[Tensor, "pair layer"], resamples: int = 1000, seed: int = 0
) -> LayerChoice:
    """The layer with the largest gain; intervals are 95 % bootstrap over pairs.

    Of layers whose gains are the same but for TIE it is the first, from where the vector passes through more of the
    model: what is added late moves little but the reply's first word, and that saturates.

    The null shuffles which of a pair's two replies counts as the one with the trait; that turns the sign of the pair's
    metric, and with it of its effects, and leaves its drift (a sign-flip permutation test on the largest gain, so that
    it accounts for choosing among all layers).

    ``effects`` and ``costs`` are those of :class:`star_tl.AttributionMap`.
    """
    effects, costs = effects.double(), costs.double()
    n, layers = effects.shape
    chance = torch.Generator().manual_seed(seed)
    drawn = torch.randint(n, (resamples, n), generator=chance)
    resampled = gains(effects[drawn].mean(1), costs[drawn].mean(1))
    low, high = resampled.quantile(0.025, dim=0), resampled.quantile(0.975, dim=0)
    signs = 2.0 * torch.randint(2, (resamples, n), generator=chance).double() - 1
    shuffled = gains(signs @ effects / n, costs.mean(0)).amax(1)
    gain = gains(effects.mean(0), costs.mean(0))
    return LayerChoice(
        layer=int(_first_of_the_best(gain)),
        gain=gain.float(),
        low=low.float(),
        high=high.float(),
        frequency=torch.bincount(_first_of_the_best(resampled), minlength=layers) / resamples,
        null=float(shuffled.quantile(0.95)),
        p_value=(1 + int((shuffled >= gain.max()).sum())) / (1 + resamples),
    )


def _first_of_the_best(gain: Float[Tensor, "*sample layer"]) -> Int[Tensor, "*sample"]:
    most = gain.amax(-1, keepdim=True)
    return (gain >= most - TIE * most.abs()).int().argmax(-1)


def choose_positions(steering: Float[Tensor, " window"], coverage: float = 0.9) -> tuple[int, ...]:
    """The fewest prompt positions, counted from the prompt's end, that hold ``coverage`` of a layer's score.

    Positions are ranked by the steering form, the first-order effect of the injection itself; no more than
    MOST_POSITIONS are taken.

    Raises:
        StarError: a coverage that is no share, or no position raises the metric.
    """
    if not 0 < coverage <= 1:
        raise StarError(f"coverage is {coverage}: use a share above 0, at most 1.")
    scores = steering.clamp_min(0)
    if float(scores.sum()) <= 0:
        raise StarError("Attribution found no prompt position with a positive score: the pairs do not move the trait.")
    order = scores.argsort(descending=True)
    held = scores[order].cumsum(0)
    share = held / held[-1]
    count = min(MOST_POSITIONS, int((share < coverage).sum()) + 1)
    return tuple(sorted(int(p) - len(scores) for p in order[:count]))
