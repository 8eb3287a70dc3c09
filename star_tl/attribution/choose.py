"""Choosing a locus from a map: the layer where drift buys most of the trait, its token positions, how sure both are."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from star_tl.errors import StarError, check_number, check_whole
from star_tl.stats import drawn_again

MOST_POSITIONS = 4
GAIN_DRIFT = 0.1  # nats a token: half of what a chosen strength may cost, and about what it does
TIE = 0.05  # gains that differ by a smaller share are the same
FEWEST_PAIRS = 8  # for a bootstrap: of fewer, resamples are too much alike to say how sure a choice is
LEVEL = 0.05  # of the test against random directions
SHARED = 0.9  # of resamples, that the layers of a tie have together
AT_ONCE = 64  # random directions in memory

# At resid_post of the last prompt token.
Gradients = Float[Tensor, "pair layer d"]
DriftGradients = Float[Tensor, "pair draw layer d"]
Directions = Float[Tensor, "layer d"]


@dataclass(frozen=True)
class LayerChoice:
    """The layer where drift buys most of the trait, and whether the pairs single it out.

    ``gain`` is :func:`gains` of the mean effect and cost, ``low`` and ``high`` its 95 % bootstrap interval over pairs,
    and ``frequency`` how often each layer would be chosen from resampled pairs; with fewer than FEWEST_PAIRS pairs
    these three are NaN. ``error_pairs`` and ``error_signs`` are the two parts of the gain's standard error: other
    pairs, and other random signs in the estimate of drift; their squares add up.

    ``null`` is the gain that the best layer reaches in 95 % of random rotations of the vectors, and ``p_value`` the
    share of rotations in which any layer reaches the largest gain. ``control_gains`` are what other traits' vectors
    gain of this trait at their best layer, by name.
    """

    layer: int
    gain: Float[Tensor, " layer"]
    error_pairs: Float[Tensor, " layer"]
    error_signs: Float[Tensor, " layer"]
    low: Float[Tensor, " layer"]
    high: Float[Tensor, " layer"]
    frequency: Float[Tensor, " layer"]
    null: float
    p_value: float
    control_gains: dict[str, float]

    @property
    def last_ranked(self) -> int:
        """The layer with the lowest gain."""
        return int(self.gain.argmin())

    @property
    def bootstrapped(self) -> bool:
        """Whether there were enough pairs to resample."""
        return bool(self.frequency.isfinite().all())

    @property
    def singled_out(self) -> bool:
        """Whether the pairs single out the layer: most resamples choose it, and random directions gain less."""
        return self.bootstrapped and float(self.frequency[self.layer]) > 0.5 and self.p_value <= LEVEL

    @property
    def tied(self) -> tuple[int, ...]:
        """The fewest layers that SHARED of the resamples choose; where there are none, those within TIE of the best."""
        if not self.bootstrapped:
            best = self.gain.max()
            return tuple((self.gain >= best - TIE * best.abs()).nonzero()[:, 0].tolist())
        order = self.frequency.argsort(descending=True, stable=True)
        count = int((self.frequency[order].cumsum(0) < SHARED - 1e-6).sum()) + 1
        return tuple(sorted(order[:count].tolist()))

    @property
    def specific(self) -> bool:
        """Whether no other trait's vector gains as much; true where none was looked at."""
        return all(gain < float(self.gain.max()) for gain in self.control_gains.values())

    def describe(self) -> str:
        """What the pairs say of the layer, in a few plain words."""
        beaten = f"p {self.p_value:.3f} against random directions"
        if self.singled_out:
            words = f"layer {self.layer} in {self.frequency[self.layer]:.0%} of resamples, {beaten}"
        elif not self.bootstrapped:
            words = f"too few pairs to single out a layer, {self.layer} gains most ({beaten})"
        elif len(self.tied) == 1:
            words = f"the pairs do not single out a layer: {self.layer} gains most, but no more than chance ({beaten})"
        else:
            share = float(self.frequency[list(self.tied)].sum())
            words = (
                f"the pairs do not single out a layer: {listed(self.tied)} share {share:.0%} of resamples ({beaten})"
            )
        if not self.specific:
            more = [name for name, gain in self.control_gains.items() if gain >= float(self.gain.max())]
            words += f"; not specific, as the vector of {' and '.join(more)} gains as much"
        return words


def listed(layers: tuple[int, ...]) -> str:
    """Layers as words: "layers 4, 5 and 7"."""
    if len(layers) == 1:
        return f"layer {layers[0]}"
    return f"layers {', '.join(map(str, layers[:-1]))} and {layers[-1]}"


def gains(effects: Float[Tensor, "*sample layer"], costs: Float[Tensor, "*sample layer"]) -> Tensor:
    r"""What GAIN_DRIFT nats of drift a token buy of the metric (nats), to leading order, ``[*sample layer]``.

    An injection of strength s moves the metric by :math:`e s` and costs a drift of :math:`c s^2`; the strength that
    costs d therefore moves it by :math:`e \sqrt{d / c}`. Zero where it costs nothing, for then it does nothing.
    """
    return torch.where(costs > 0, effects * (GAIN_DRIFT / costs.clamp_min(torch.finfo(costs.dtype).tiny)).sqrt(), 0.0)


def effects_of(gradients: Gradients, directions: Directions) -> Float[Tensor, "pair layer"]:
    """The first-order effect on every pair's metric of adding each layer's direction there, nats."""
    return torch.einsum("nld,ld->nl", gradients.double(), directions.double())


def costs_of(gradients: DriftGradients, directions: Directions) -> Float[Tensor, "pair draw layer"]:
    """The drift that it costs, to second order, nats a token; right on average over draws."""
    return torch.einsum("nkld,ld->nkl", gradients.double(), directions.double()).square()


def rotated_gains(
    gradients: Gradients, drift: DriftGradients, directions: Directions, count: int, seed: int
) -> Float[Tensor, "rotation layer"]:
    """The gains of ``directions`` turned at random, all layers by the same rotation.

    Random directions with the same angles between layers: what a vector that knows nothing of the trait gains under the
    same search. Where all layers have one direction so do these, and where theirs are independent these are, so that
    the search has as many chances in both. Drawn as Gaussian vectors with these correlations.
    """
    unit = torch.nn.functional.normalize(directions.double(), dim=-1)
    values, vectors = torch.linalg.eigh(unit @ unit.T)
    root = (vectors * values.clamp_min(0).sqrt()).float()
    chance = torch.Generator().manual_seed(int(seed))
    mean, pulls = gradients.mean(0).float(), drift.flatten(0, 1).float().transpose(0, 1)
    found = []
    for first in range(0, count, AT_ONCE):
        noise = torch.randn(min(AT_ONCE, count - first), *directions.shape, generator=chance, dtype=torch.float32)
        turned = torch.einsum("lm,bmd->lbd", root, noise)
        effects = torch.einsum("lbd,ld->bl", turned, mean)
        costs = torch.bmm(pulls, turned.transpose(1, 2)).square().mean(1).T
        found.append(gains(effects.double(), costs.double()))
    return torch.cat(found)


def choose_layer(
    gradients: Gradients,
    drift: DriftGradients,
    directions: Directions,
    controls: dict[str, Directions] | None = None,
    resamples: int = 1000,
    seed: int = 0,
) -> LayerChoice:
    """The layer with the largest gain; intervals are 95 % bootstrap over pairs.

    Of layers whose gains are the same but for TIE it is the first, from where the vector passes through more of the
    model: what is added late moves little but the reply's first word, and that saturates.

    The null is :func:`rotated_gains`, under the same search over layers: permuted labels would not do, for any
    direction that moves all pairs alike passes such a test, random ones too.

    The arguments are fields of :class:`star_tl.AttributionMap`.
    """
    check_whole(resamples, "resamples")
    check_whole(seed, "seed", least=None)
    effects, costs = effects_of(gradients, directions), costs_of(drift, directions)
    n, _, layers = costs.shape
    by_pair = costs.mean(1)
    gain = gains(effects.mean(0), by_pair.mean(0))
    low = high = frequency = torch.full((layers,), torch.nan)
    if n >= FEWEST_PAIRS:
        drawn = drawn_again(n, resamples, seed)
        resampled = gains(effects[drawn].mean(1), by_pair[drawn].mean(1))
        low, high = resampled.quantile(0.025, dim=0), resampled.quantile(0.975, dim=0)
        frequency = torch.bincount(_first_of_the_best(resampled), minlength=layers) / resamples
    pairs_error, signs_error = _errors(effects, costs, gain)
    null = rotated_gains(gradients, drift, directions, resamples, seed).amax(1)
    return LayerChoice(
        layer=int(_first_of_the_best(gain)),
        gain=gain.float(),
        error_pairs=pairs_error.float(),
        error_signs=signs_error.float(),
        low=low.float(),
        high=high.float(),
        frequency=frequency.float(),
        null=float(null.quantile(0.95)),
        p_value=(1 + int((null >= gain.max()).sum())) / (1 + resamples),
        control_gains={
            name: float(gains(effects_of(gradients, v).mean(0), costs_of(drift, v).mean((0, 1))).max())
            for name, v in (controls or {}).items()
        },
    )


def _errors(
    effects: Float[Tensor, "pair layer"], costs: Float[Tensor, "pair draw layer"], gain: Float[Tensor, " layer"]
) -> tuple[Tensor, Tensor]:
    """Standard errors of the gain from pairs and from signs, by the delta method; NaN where there is one of them.

    The gain's change with a cost c is −gain / 2c. What signs alone do is seen between the draws of a pair; what is
    seen between pairs holds that too.
    """
    n, draws, _ = costs.shape
    by_pair = costs.mean(1)
    cost = by_pair.mean(0).clamp_min(torch.finfo(costs.dtype).tiny)
    rate = (GAIN_DRIFT / cost).sqrt()
    spread = costs.var(1) if draws > 1 else torch.full_like(by_pair, torch.nan)
    signs = gain.abs() / (2 * cost) * (spread.sum(0) / draws).sqrt() / n
    moved = rate * (effects - effects.mean(0)) - gain / (2 * cost) * (by_pair - by_pair.mean(0))
    both = moved.square().sum(0) / (n * (n - 1)) if n > 1 else torch.full_like(gain, torch.nan)
    return (both - signs.nan_to_num().square()).clamp_min(0).sqrt(), signs


def _first_of_the_best(gain: Float[Tensor, "*sample layer"]) -> Int[Tensor, "*sample"]:
    most = gain.amax(-1, keepdim=True)
    return (gain >= most - TIE * most.abs()).int().argmax(-1)


@dataclass(frozen=True)
class PositionChoice:
    """Prompt positions, counted from the prompt's end, and how often each of the window is among the chosen ones.

    ``frequency`` ends with the last prompt token's; NaN with fewer than FEWEST_PAIRS pairs.
    """

    positions: tuple[int, ...]
    frequency: Float[Tensor, " window"]


def choose_positions(
    effects: Float[Tensor, "pair window"], coverage: float = 0.9, resamples: int = 1000, seed: int = 0
) -> PositionChoice:
    """The fewest prompt positions that hold ``coverage`` of a layer's effect, of which most resampled pairs say so too.

    ``effects`` are the first-order effects of the injection itself at each position, see
    :attr:`star_tl.AttributionMap.position_effects`. Positions are ranked by their mean; no more than MOST_POSITIONS are
    taken. Of these only those stay that are among the chosen ones in more than half of the resamples, and the one that
    is most often.

    Raises:
        StarError: a coverage that is no share, or no position raises the metric.
    """
    check_number(coverage, "coverage", lambda x: 0 < x <= 1, "use a share above 0, at most 1")
    n, window = effects.shape
    taken = _covering(effects.double().mean(0)[None], coverage)[0]
    if not bool(taken.any()):
        raise StarError("Attribution found no prompt position with a positive score: the pairs do not move the trait.")
    frequency = torch.full((window,), torch.nan)
    if n >= FEWEST_PAIRS:
        resampled = effects.double()[drawn_again(n, resamples, seed)].mean(1)
        frequency = _covering(resampled, coverage).float().mean(0)
        steady = taken & (frequency > 0.5)
        steady[torch.where(taken, frequency, -1.0).argmax()] = True
        taken = steady
    return PositionChoice(tuple(int(i) - window for i in taken.nonzero()[:, 0]), frequency)


def _covering(scores: Float[Tensor, "sample window"], coverage: float) -> Bool[Tensor, "sample window"]:
    """Which positions hold ``coverage`` of the positive scores, at most MOST_POSITIONS."""
    held, order = scores.clamp_min(0).sort(-1, descending=True)
    before = held.cumsum(-1) - held
    count = torch.arange(scores.shape[-1])
    total = held.sum(-1, keepdim=True)
    wanted = (held > 0) & (before < coverage * total * (1 - 1e-12)) & (count < MOST_POSITIONS)
    return torch.zeros_like(wanted).scatter(-1, order, wanted)
