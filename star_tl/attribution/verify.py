"""Whether a map can be trusted: its estimates beside exact patching at the same loci."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float
from scipy import stats
from torch import Tensor

from star_tl.attribution.exact import exact_effects
from star_tl.attribution.map import AttributionMap
from star_tl.data.pairs import Pairs
from star_tl.errors import StarError
from star_tl.locus import COMPONENTS, Locus
from star_tl.models.backend import Model

if TYPE_CHECKING:
    import plotly.graph_objects as go


@dataclass(frozen=True)
class Verification:
    """Attribution's estimates beside exact patching at the same loci, mean over the same pairs.

    ``chosen`` marks the loci that were taken because their estimate is largest; the others are a
    random sample of the rest, so that a missed effect shows.
    """

    loci: tuple[Locus, ...]
    estimate: Float[Tensor, " locus"]
    exact: Float[Tensor, " locus"]
    chosen: tuple[bool, ...]
    n_pairs: int

    @property
    def pearson(self) -> float:
        """Pearson correlation of estimate and exact effect over all loci."""
        return float(stats.pearsonr(self.estimate.numpy(), self.exact.numpy()).statistic)

    @property
    def spearman(self) -> float:
        """Spearman correlation of estimate and exact effect over all loci."""
        return float(stats.spearmanr(self.estimate.numpy(), self.exact.numpy()).statistic)

    @property
    def largest_missed(self) -> tuple[Locus, float]:
        """The locus of the random sample with the largest exact effect in size, and that effect (nats)."""
        rest = [i for i, chosen in enumerate(self.chosen) if not chosen]
        if not rest:
            raise StarError("All loci were chosen by their estimate: verify with a sample of at least 1.")
        most = max(rest, key=lambda i: abs(float(self.exact[i])))
        return self.loci[most], float(self.exact[most])

    def plot(self) -> go.Figure:
        """Estimate against exact effect, a point per locus."""
        from star_tl.view.plots import plot_verification

        return plot_verification(self)

    def __repr__(self) -> str:
        return (
            f"Verification({len(self.loci)} loci, {self.n_pairs} pairs: Pearson {self.pearson:.3f}, "
            f"Spearman {self.spearman:.3f})"
        )


def verify(
    model: Model,
    pairs: Pairs,
    attr: AttributionMap,
    top_k: int = 20,
    sample: int = 40,
    seed: int = 0,
    progress: bool = True,
) -> Verification:
    """Patch the ``top_k`` loci with the largest estimates and a random ``sample`` of the rest exactly.

    Loci are single prompt positions at every component and head, within ``attr.window``.

    Raises:
        StarError: the map belongs to other pairs or another model, or asks for no loci.
    """
    from star_tl.models.load import fingerprint

    pairs = pairs.extraction
    if tuple(p.id for p in pairs) != attr.pair_ids or fingerprint(model) != attr.fingerprint:
        raise StarError("This attribution map was computed for other pairs or another model: attribute again.")
    if top_k < 0 or sample < 0 or top_k + sample < 2:
        raise StarError(f"top_k {top_k} and sample {sample} give too few loci: use at least 2 together.")
    loci, estimates = candidates(attr)
    order = estimates.abs().argsort(descending=True)
    rest = order[top_k:][torch.randperm(len(order) - top_k, generator=torch.Generator().manual_seed(seed))]
    taken = torch.cat([order[:top_k], rest[:sample]]).tolist()
    chosen_loci = [loci[i] for i in taken]
    exact = exact_effects(model, pairs, chosen_loci, progress=progress).mean(0)
    marks = tuple(k < top_k for k in range(len(taken)))
    return Verification(tuple(chosen_loci), estimates[taken], exact, marks, len(pairs))


def candidates(attr: AttributionMap) -> tuple[list[Locus], Float[Tensor, " locus"]]:
    """Every single prompt position in the window at every component and head with a score, and its mean."""
    loci: list[Locus] = []
    values: list[Tensor] = []
    near = attr.prompt_scores().mean(0)
    heads = attr.head_scores[..., attr.prompt_end - attr.window : attr.prompt_end].mean(0)
    for layer in range(attr.n_layers):
        for column in range(attr.window):
            at = (column - attr.window,)
            for kind, component in enumerate(COMPONENTS):
                loci.append(Locus(f"blocks.{layer}.hook_{component}", at))
                values.append(near[kind, layer, column])
            for head in range(heads.shape[1]):
                loci.append(Locus(f"blocks.{layer}.attn.hook_z", at, head))
                values.append(heads[layer, head, column])
    scored = [i for i, value in enumerate(values) if not value.isnan()]  # a parallel block has no resid_mid
    return [loci[i] for i in scored], torch.stack([values[i] for i in scored])
