r"""Mean over reply tokens, positive − negative: how most steering libraries extract.

.. math:: v = \frac{1}{N} \sum_{pairs} \left( \bar a_{positive\ reply} - \bar a_{negative\ reply} \right)

with the mean over each reply's own tokens after the same context, padding excluded (CAA, Rimsky
et al. 2024, arXiv 2312.06681, over all reply tokens). Meant to be added at every position. Kept as
the comparison, and for traits that no single token decides.
"""

from __future__ import annotations

import torch
from torch import Tensor

from star_tl.data.chat import render, reply_ids
from star_tl.data.pairs import Pairs
from star_tl.locus import Locus
from star_tl.models.backend import Model, attached, residual_stream
from star_tl.models.batch import make_batch
from star_tl.vectors.activations import make_vector
from star_tl.vectors.vector import SteeringVector


@torch.no_grad()
def reply_mean(model: Model, pairs: Pairs, locus: Locus, batch_size: int) -> SteeringVector:
    """See the module's docstring."""
    width = model.cfg.d_model if locus.head is None else model.cfg.d_head
    total, norm = torch.zeros(width, dtype=torch.float64), 0.0
    for first in range(0, len(pairs), batch_size):
        chunk = pairs.pairs[first : first + batch_size]
        prompts = [render(model.tokenizer, p.context).ids for p in chunk] * 2
        replies = [reply_ids(model.tokenizer, p.positive) for p in chunk]
        replies += [reply_ids(model.tokenizer, p.negative) for p in chunk]
        batch = make_batch(model, prompts, replies)
        kept: list[Tensor] = []

        def keep(activation: Tensor, hook: object, end: int = batch.prompt_end, kept: list[Tensor] = kept) -> None:
            value = activation if locus.head is None else activation[:, :, locus.head]
            kept.append(value[:, end:].double().cpu())

        with attached(model, [(locus.hook_point, keep)]):
            residual_stream(model, batch.tokens, batch.mask, layers=locus.layer + 1)
        weights = batch.reply_mask.double().cpu()
        means = (kept[0] * weights[..., None]).sum(1) / weights.sum(1, keepdim=True)
        total += (means[: len(chunk)] - means[len(chunk) :]).sum(0)
        norms = (kept[0].norm(dim=-1) * weights).sum(1) / weights.sum(1)
        norm += float(norms[len(chunk) :].sum())
    where = Locus(locus.hook_point, (-1,), locus.head)
    return make_vector(model, pairs, where, "reply_mean", (total / len(pairs))[None], norm / len(pairs))
