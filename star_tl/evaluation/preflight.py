"""Before anything is steered: do the pairs agree on a direction, and does it tell held-out pairs apart?"""

from __future__ import annotations

from dataclasses import dataclass

import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from star_tl.data.pairs import Pairs
from star_tl.locus import Locus, hook_name
from star_tl.models.backend import Model
from star_tl.vectors.activations import in_prompts

BATCH = 16  # pairs per forward pass


@dataclass(frozen=True)
class Preflight:
    """A row per layer, at ``resid_post`` of the last prompt token.

    ``agreement``: mean cosine of each pair's difference with the mean of the others' (Braun et al. 2025,
    arXiv 2505.22637, find that it predicts how reliably a vector steers). ``separability``: distance of the two means
    along their difference in units of the spread within them (d'). ``auc``: area under the ROC curve of the extraction
    pairs' direction on the held-out pairs. ``norm``: of the mean difference, as a share of the corrupted runs' norm.
    """

    trait: str
    table: pd.DataFrame

    def __repr__(self) -> str:
        best = self.table.loc[self.table.agreement.idxmax()]
        return (
            f"Preflight({self.trait}: differences agree most at layer {int(best.layer)}, cosine {best.agreement:.2f}, "
            f"d' {best.separability:.1f}, held-out AUC {best.auc:.2f})"
        )


def preflight(model: Model, pairs: Pairs) -> Preflight:
    """Read the pairs once, and say at every layer how well they agree and separate."""
    made, held = (at_last_token(model, split, layers(model)) for split in (pairs.extraction, pairs.heldout))
    change = made[0] - made[1]
    table = pd.DataFrame(
        {
            "layer": range(model.cfg.n_layers),
            "agreement": cosine_agreement(change).tolist(),
            "separability": separability(made).tolist(),
            "auc": held_out_auc(made, held).tolist(),
            "norm": (change.mean(0).norm(dim=-1) / made[1].norm(dim=-1).mean(0)).tolist(),
        }
    )
    return Preflight(pairs.trait.name, table)


def layers(model: Model) -> list[Locus]:
    """``resid_post`` of every layer at the last prompt token."""
    return [Locus(hook_name("resid_post", layer)) for layer in range(model.cfg.n_layers)]


def at_last_token(model: Model, pairs: Pairs, loci: list[Locus]) -> Float[Tensor, "run pair locus d"]:
    """Activations of the clean and of the corrupted runs of all these pairs, in float64."""
    found = in_prompts(model, pairs, loci, BATCH)
    return torch.stack([torch.stack([f.clean[:, 0], f.corrupted[:, 0]]) for f in found], 2)


def cosine_agreement(change: Float[Tensor, "pair *place d"]) -> Float[Tensor, "*place"]:
    """Mean over pairs of the cosine between a pair's difference and the mean of the others'; NaN for one pair."""
    others = (change.sum(0) - change) / (len(change) - 1) if len(change) > 1 else torch.full_like(change, torch.nan)
    return torch.cosine_similarity(change, others, dim=-1).mean(0)


def separability(runs: Float[Tensor, "run pair *place d"]) -> Float[Tensor, "*place"]:
    """d': the distance of clean and corrupted along the mean difference, in units of the spread within them."""
    direction = (runs[0] - runs[1]).mean(0)
    along = (runs * direction).sum(-1)
    return (along[0].mean(0) - along[1].mean(0)) / (0.5 * along.var(1).sum(0)).sqrt()


def held_out_auc(
    made: Float[Tensor, "run pair *place d"], held: Float[Tensor, "run other *place d"]
) -> Float[Tensor, "*place"]:
    """Share of (clean, corrupted) of the held-out runs that the mean difference of the others puts in order."""
    along = (held * (made[0] - made[1]).mean(0)).sum(-1)
    clean, corrupted = along[0][:, None], along[1][None]
    return ((clean > corrupted).double() + 0.5 * (clean == corrupted).double()).mean((0, 1))
