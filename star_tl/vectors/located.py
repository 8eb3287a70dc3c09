r"""Mean difference at the locus: the vector that STAR injects.

.. math:: v_t = \frac{1}{N} \sum_{pairs} \left( a_{clean, t} - a_{corrupted, t} \right)

at the locus's hook point and at each of its positions t (counted from the prompt's end), where
clean and corrupted are the same context under the positive and the negative instruction. Mean
difference: Marks & Tegmark 2023 (arXiv 2310.06824), Rimsky et al. 2024 (CAA, arXiv 2312.06681);
the place: STAR, arXiv 2511.12832. The right one when the trait is decided at particular tokens.
"""

from __future__ import annotations

import torch
from torch import Tensor
from transformer_lens import HookedTransformer

from star_tl.batch import make_batch
from star_tl.chat import render, template_hash
from star_tl.errors import StarError
from star_tl.locus import Locus
from star_tl.pairs import Pairs
from star_tl.vectors.vector import SteeringVector


def located(model: HookedTransformer, pairs: Pairs, locus: Locus, batch_size: int) -> SteeringVector:
    """See the module's docstring. Raises StarError where a prompt is shorter than the positions need."""
    from star_tl.models.load import fingerprint

    total = torch.zeros(len(locus.positions), _width(model, locus), dtype=torch.float64)
    norm = 0.0
    chunks = [pairs.pairs[i : i + batch_size] for i in range(0, len(pairs), batch_size)]
    for chunk in chunks:
        clean = _activations(model, [pairs.clean_prompt(p) for p in chunk], locus)
        corrupted = _activations(model, [pairs.corrupted_prompt(p) for p in chunk], locus)
        total += (clean - corrupted).sum(0)
        norm += float(corrupted.norm(dim=-1).mean(1).sum())
    return SteeringVector(
        vector=(total / len(pairs)).float(),
        locus=locus,
        trait=pairs.trait.name,
        method="located",
        residual_norm=norm / len(pairs),
        n_pairs=len(pairs),
        model=str(model.cfg.model_name),
        fingerprint=fingerprint(model),
        template=template_hash(model.tokenizer),
    )


def _width(model: HookedTransformer, locus: Locus) -> int:
    return model.cfg.d_model if locus.head is None else model.cfg.d_head


@torch.no_grad()
def _activations(model: HookedTransformer, prompts: list, locus: Locus) -> Tensor:
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

    with model.hooks(fwd_hooks=[(locus.hook_point, keep)]):
        model(batch.tokens, attention_mask=batch.mask.int(), stop_at_layer=locus.layer + 1)
    return kept[0]
