"""How likely replies are, and how far two models' next-token distributions lie apart."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from star_tl.generation.decoding import residual_of
from star_tl.locus import NamedHook
from star_tl.models.backend import Model, unembed
from star_tl.models.batch import TokenBatch

AT_ONCE = 256  # tokens whose logits over the vocabulary are held at once


@torch.no_grad()
def reply_scores(
    model: Model,
    batch: TokenBatch,
    plain: Float[Tensor, "row reply d_model"],
    steered: Float[Tensor, "row reply d_model"] | None,
) -> tuple[Float[Tensor, "row reply"], Float[Tensor, "row reply"]]:
    """Of every reply token its log-probability where nothing was steered, and KL(steered ‖ plain), nats; 0 at padding.

    From last residual streams, of some tokens at a time, so that nowhere are all logits held. The KL is 0 without
    ``steered``.
    """
    targets, wanted = batch.tokens[:, batch.prompt_end :], batch.reply_mask.nonzero()
    likely = torch.zeros(targets.shape, device=plain.device, dtype=torch.promote_types(plain.dtype, torch.float32))
    apart = torch.zeros_like(likely)
    for piece in wanted.split(AT_ONCE):
        where = tuple(piece.T)
        base = unembed(model, plain[where][None])[0].log_softmax(-1)
        likely[where] = base.gather(-1, targets[where][:, None])[:, 0]
        if steered is not None:
            other = unembed(model, steered[where][None])[0].log_softmax(-1)
            apart[where] = (other.exp() * other.sub_(base)).sum(-1).clamp_min(0)
    return likely, apart


def reply_logits(model: Model, batch: TokenBatch, hooks: Sequence[NamedHook] = ()) -> Float[Tensor, "row reply vocab"]:
    """Logits that predict the reply tokens under ``hooks``, in float32; only these positions are unembedded."""
    residual = residual_of(model, hooks, batch.tokens, batch.mask, batch.prompt_end)
    return unembed(model, residual[:, batch.prompt_end - 1 : -1])


def reply_logprobs(logits: Float[Tensor, "row reply vocab"], batch: TokenBatch) -> Float[Tensor, "row reply"]:
    """Log-probability of every reply token, nats; 0 at padding."""
    targets = batch.tokens[:, batch.prompt_end :]
    picked = logits.log_softmax(-1).gather(-1, targets[..., None])[..., 0]
    return picked.masked_fill(~batch.reply_mask, 0.0)


def kl_per_token(
    p: Float[Tensor, "row reply vocab"], q: Float[Tensor, "row reply vocab"]
) -> Float[Tensor, "row reply"]:
    """KL(p ‖ q) of the next-token distributions that two sets of logits give, nats."""
    log_p, log_q = p.log_softmax(-1), q.log_softmax(-1)
    return (log_p.exp() * (log_p - log_q)).sum(-1).clamp_min(0)
