"""Where to inject: a hook point, token positions, optionally a head; and how sure the choice is."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float
from torch import Tensor

from star_tl.errors import StarError

if TYPE_CHECKING:
    from star_tl.attribution.result import AttributionMap

HOOK_POINTS = ("hook_resid_pre", "hook_resid_mid", "hook_resid_post", "hook_attn_out", "hook_mlp_out", "attn.hook_z")
MOST_POSITIONS = 4


@dataclass(frozen=True)
class Locus:
    """A hook point and prompt positions, counted from the end of the prompt: -1 is its last token."""

    hook_point: str
    positions: tuple[int, ...] = (-1,)
    head: int | None = None

    def __post_init__(self) -> None:
        found = re.fullmatch(r"blocks\.(\d+)\.(.+)", self.hook_point)
        if not found or found[2] not in HOOK_POINTS:
            raise StarError(
                f"{self.hook_point!r} is not a hook point to inject at: use blocks.L. with {', '.join(HOOK_POINTS)}."
            )
        if not self.positions or any(p >= 0 for p in self.positions):
            raise StarError(f"Positions {self.positions} of a locus: give negative ones, -1 is the last prompt token.")
        if len(set(self.positions)) != len(self.positions):
            raise StarError(f"Positions {self.positions} of a locus repeat: name each once.")
        if (self.head is not None) != (found[2] == "attn.hook_z"):
            raise StarError("A locus names a head exactly where its hook point is attn.hook_z.")

    @property
    def layer(self) -> int:
        return int(self.hook_point.split(".")[1])

    def __str__(self) -> str:
        head = f" head {self.head}" if self.head is not None else ""
        return f"{self.hook_point}{head} @ {', '.join(str(p) for p in self.positions)}"


@dataclass(frozen=True)
class LayerChoice:
    """The layer that writes most, and how often each layer would be chosen from resampled pairs.

    ``null`` is the score that the best layer reaches in 95 % of shuffles of the pairs' labels, and
    ``p_value`` the share of shuffles in which any layer reaches the chosen layer's score.
    """

    layer: int
    writes: Float[Tensor, " layer"]
    low: Float[Tensor, " layer"]
    high: Float[Tensor, " layer"]
    frequency: Float[Tensor, " layer"]
    null: float
    p_value: float

    @property
    def last_ranked(self) -> int:
        """The layer whose writes score lowest."""
        return int(self.writes.argmin())


def choose_layer(attr: AttributionMap, resamples: int = 1000, seed: int = 0) -> LayerChoice:
    """The layer with the largest mean write score; intervals are 95 % bootstrap over pairs.

    The null shuffles which of a pair's two replies counts as the one with the trait; that turns
    the sign of the pair's metric, and with it of its scores (a sign-flip permutation test on the largest
    layer, so that it accounts for choosing among all of them).
    """
    writes = attr.writes().double()
    n, layers = writes.shape
    chance = torch.Generator().manual_seed(seed)
    index = torch.randint(n, (resamples, n), generator=chance)
    means = writes[index].mean(1)
    frequency = torch.bincount(means.argmax(1), minlength=layers) / resamples
    low, high = means.quantile(0.025, dim=0), means.quantile(0.975, dim=0)
    mean = writes.mean(0)
    signs = 2.0 * torch.randint(2, (resamples, n), generator=chance).double() - 1
    shuffled = (signs @ writes / n).max(1).values
    p_value = (1 + int((shuffled >= mean.max()).sum())) / (1 + resamples)
    return LayerChoice(
        layer=int(mean.argmax()),
        writes=mean.float(),
        low=low.float(),
        high=high.float(),
        frequency=frequency,
        null=float(shuffled.quantile(0.95)),
        p_value=p_value,
    )


def top_locus(attr: AttributionMap, coverage: float = 0.8) -> Locus:
    """``resid_post`` of the chosen layer, at the fewest positions that hold ``coverage`` of its score.

    Positions are ranked by the steering form, the first-order effect of the injection itself,
    among the prompt tokens that clean and corrupted runs share.
    """
    from star_tl.attribution.result import COMPONENTS

    if not 0 < coverage <= 1:
        raise StarError(f"coverage is {coverage}: use a share above 0, at most 1.")
    layer = attr.choose_layer().layer
    scores = attr.steering[COMPONENTS.index("resid_post"), layer].clamp_min(0)
    if bool(scores.isnan().any()):
        remedy = "method='atp'" if attr.method == "exact" else "hook_points that include it"
        raise StarError(f"This map holds no steering form at resid_post: attribute with {remedy}.")
    if float(scores.sum()) <= 0:
        raise StarError("Attribution found no prompt position with a positive score: the pairs do not move the trait.")
    order = scores.argsort(descending=True)
    held = scores[order].cumsum(0)
    share = held / held[-1]
    count = min(MOST_POSITIONS, int((share < coverage).sum()) + 1)
    positions = sorted(int(p) - attr.window for p in order[:count])
    return Locus(f"blocks.{layer}.hook_resid_post", tuple(positions))
