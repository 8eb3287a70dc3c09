"""Attribution patching over named hook points."""

from __future__ import annotations

from transformer_lens import HookedTransformer

from star_tl.attribution.atp import attribute_atp
from star_tl.attribution.relp import attribute_relp
from star_tl.attribution.result import COMPONENTS, AttributionMap
from star_tl.errors import StarError, nearest
from star_tl.pairs import Pairs

METHODS = {"atp": attribute_atp, "relp": attribute_relp}

__all__ = ["COMPONENTS", "METHODS", "AttributionMap", "attribute"]


def attribute(
    model: HookedTransformer,
    pairs: Pairs,
    method: str = "atp",
    batch_size: int = 8,
    progress: bool = True,
) -> AttributionMap:
    """Score every hook point by how far moving it toward the clean run raises the trait metric.

    Uses the extraction split of ``pairs``. Scores come for ``resid_pre``, ``resid_mid``,
    ``resid_post``, ``attn_out``, ``mlp_out`` and every head at ``attn.hook_z``, per pair, layer
    and token position, in nats of the metric (mean log-probability per token of the positive reply minus
    that of the negative one).

    Args:
        model: any HookedTransformer with a tokenizer.
        pairs: contrastive pairs, see :func:`star_tl.load_pairs`.
        method: ``"atp"`` (gradient times difference) or ``"relp"`` (the same with relevance propagation's
            rules instead of the plain gradient).
        batch_size: pairs per forward and backward pass.
        progress: show a progress bar.

    Raises:
        StarError: unknown method, batch_size below 1, or a pair longer than the model's context.
    """
    if method not in METHODS:
        raise StarError(f"Unknown attribution method {method!r}.{nearest(method, METHODS)}")
    if batch_size < 1:
        raise StarError(f"batch_size is {batch_size}: use at least 1.")
    return METHODS[method](model, pairs.extraction, batch_size=batch_size, progress=progress)
