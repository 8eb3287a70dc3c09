"""Steering vectors: what they hold, and one file per way to extract them."""

from __future__ import annotations

from star_tl.data.pairs import Pairs
from star_tl.errors import StarError, nearest
from star_tl.locus import Locus
from star_tl.models.backend import Model
from star_tl.vectors.algebra import combine, project_off
from star_tl.vectors.located import located
from star_tl.vectors.principal import principal
from star_tl.vectors.probe import probe
from star_tl.vectors.reply_mean import reply_mean
from star_tl.vectors.vector import SteeringVector

METHODS = {"located": located, "reply_mean": reply_mean, "principal": principal, "probe": probe}

__all__ = ["METHODS", "SteeringVector", "combine", "extract_vector", "project_off"]


def extract_vector(
    model: Model, pairs: Pairs, locus: Locus, method: str = "located", batch_size: int = 16
) -> SteeringVector:
    """The steering vector of ``pairs`` (extraction split) at ``locus``.

    Args:
        model: the model that the vector will steer.
        pairs: contrastive pairs.
        locus: where, e.g. ``attr.top_locus()``.
        method: ``"located"`` (mean clean − corrupted activation at exactly the locus), ``"principal"`` (the
            differences' principal direction there), ``"probe"`` (a linear discriminant's direction there) or
            ``"reply_mean"`` (mean over reply tokens, positive − negative, as other libraries do).
        batch_size: pairs per forward pass.

    Raises:
        StarError: unknown method, batch_size below 1, or a locus that the model does not have.
    """
    if method not in METHODS:
        raise StarError(f"Unknown vector method {method!r}.{nearest(method, METHODS)}")
    if batch_size < 1:
        raise StarError(f"batch_size is {batch_size}: use at least 1.")
    if locus.hook_point not in model.hook_dict:
        raise StarError(f"The model has no hook point {locus.hook_point!r}: it has {model.cfg.n_layers} layers.")
    if locus.head is not None and not 0 <= locus.head < model.cfg.n_heads:
        raise StarError(f"The model has no head {locus.head}: it has {model.cfg.n_heads} per layer.")
    return METHODS[method](model, pairs.extraction, locus, batch_size)
