"""What a model computes at a locus for contrastive pairs, and the vector that is made of it."""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from star_tl.data.chat import render, template_hash
from star_tl.data.pairs import Pairs
from star_tl.errors import StarError
from star_tl.locus import Locus
from star_tl.models.backend import Model, attached, residual_stream
from star_tl.models.batch import make_batch
from star_tl.vectors.vector import SteeringVector

Activations = Float[Tensor, "pair position d"]


def at_locus(model: Model, pairs: Pairs, locus: Locus, batch_size: int) -> tuple[Activations, Activations]:
    """Clean and corrupted activations of every pair at the locus's positions, in float64.

    Raises:
        StarError: a prompt is shorter than the positions need.
    """
    clean, corrupted = [], []
    for first in range(0, len(pairs), batch_size):
        chunk = pairs.pairs[first : first + batch_size]
        clean.append(_activations(model, [pairs.clean_prompt(p) for p in chunk], locus))
        corrupted.append(_activations(model, [pairs.corrupted_prompt(p) for p in chunk], locus))
    return torch.cat(clean), torch.cat(corrupted)


def make_vector(
    model: Model,
    pairs: Pairs,
    locus: Locus,
    method: str,
    vector: Float[Tensor, "position d"],
    residual_norm: float,
) -> SteeringVector:
    """The vector with all that says where it comes from."""
    from star_tl.models.load import fingerprint

    return SteeringVector(
        vector=vector.float(),
        locus=locus,
        trait=pairs.trait.name,
        method=method,
        residual_norm=residual_norm,
        n_pairs=len(pairs),
        model=str(model.cfg.model_name),
        fingerprint=fingerprint(model),
        template=template_hash(model.tokenizer),
    )


def mean_norm(activations: Activations) -> float:
    """Mean norm over pairs and positions."""
    return float(activations.norm(dim=-1).mean())


@torch.no_grad()
def _activations(model: Model, prompts: list[Any], locus: Locus) -> Activations:
    rendered = [render(model.tokenizer, p).ids for p in prompts]
    if min(len(ids) for ids in rendered) < -min(locus.positions):
        raise StarError(
            f"A prompt is shorter than the locus's position {min(locus.positions)}: use positions nearer to its end."
        )
    batch = make_batch(model, rendered)
    columns = [batch.prompt_end + p for p in locus.positions]
    kept: list[Tensor] = []

    def keep(activation: Tensor, hook: object) -> None:
        value = activation if locus.head is None else activation[:, :, locus.head]
        kept.append(value[:, columns].double().cpu())

    with attached(model, [(locus.hook_point, keep)]):
        residual_stream(model, batch.tokens, batch.mask, layers=locus.layer + 1)
    return kept[0]
