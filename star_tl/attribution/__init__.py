"""Attribution patching over named hook points."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from star_tl.attribution.align import ALIGNMENTS
from star_tl.attribution.atp import attribute_atp
from star_tl.attribution.exact import attribute_exact
from star_tl.attribution.integrated_gradients import attribute_ig
from star_tl.attribution.map import AttributionMap
from star_tl.attribution.passes import MODES
from star_tl.attribution.relp import attribute_relp
from star_tl.data.pairs import Pairs
from star_tl.errors import StarError, nearest
from star_tl.locus import COMPONENTS, POINTS
from star_tl.models.backend import Model

METHODS = {"atp": attribute_atp, "ig": attribute_ig, "relp": attribute_relp, "exact": attribute_exact}

__all__ = ["COMPONENTS", "METHODS", "POINTS", "AttributionMap", "attribute"]


@torch.inference_mode(False)  # a gradient is wanted wherever this is called
def attribute(
    model: Model,
    pairs: Pairs,
    method: str = "atp",
    hook_points: Sequence[str] | None = None,
    mode: str | None = None,
    steps: int | None = None,
    alignment: str = "spans",
    batch_size: int | None = None,
    progress: bool = True,
) -> AttributionMap:
    """Score every hook point by how far moving it toward the clean run raises the trait metric.

    Uses the extraction split of ``pairs``. Scores come per pair, layer (and head) and token position,
    in nats of the metric: mean log-probability per token of the positive reply minus that of the
    negative one.

    Args:
        model: from :func:`star_tl.load_model`, of either backend.
        pairs: contrastive pairs, see :func:`star_tl.load_pairs`.
        method: ``"atp"`` (gradient times difference), ``"ig"`` (integrated gradients), ``"relp"`` (relevance
            propagation's rules instead of the plain gradient), or ``"exact"`` (activation patching of every
            token: thousands of forward passes a pair, and no steering form).
        hook_points: some of POINTS; default all that the model has. ``"z"`` is every head's ``attn.hook_z``.
            Choosing a layer needs ``resid_post``.
        mode: for atp and relp, how to run a micro-batch: ``"one_batch"`` (clean and corrupted rows in
            one forward and one backward pass), ``"two_passes"`` (clean rows first, without a graph), or
            ``"layer_by_layer"`` (least memory). Default ``"auto"``: what is fastest, which for atp on Llamas is a
            pass of its own with the gradient written out, and otherwise one of the first two.
        steps: for ig, points on the path; default 5.
        alignment: which clean token stands against which corrupted one: ``"spans"`` (the same turn of the
            chat, counted from its end), ``"right"`` (counted from the prompt's end) or ``"strict"`` (prompts of
            equal length only). ``unaligned`` of the result is the share of tokens without a counterpart.
        batch_size: pairs in a micro-batch; for exact, patches in a pass. Default: what makes full use of a pass, halved
            as often as memory runs out.
        progress: show a progress bar.

    Raises:
        StarError: a model that was loaded under ``torch.inference_mode()``, unknown or conflicting options, ``relp`` on
            a model with parts that it has no rules for (a mixture of experts, say), a pair longer than the model's
            context, or too little memory for a single pair.
    """
    if any(t.is_inference() and t.is_floating_point() for t in (*model.parameters(), *model.buffers())):
        raise StarError(
            "The model was loaded, or lengthened its tables, under torch.inference_mode(), where nothing has a "
            "gradient: load it again outside."
        )
    if method not in METHODS:
        raise StarError(f"Unknown attribution method {method!r}.{nearest(method, METHODS)}")
    there = tuple(p for p in POINTS if p == "z" or f"blocks.0.hook_{p}" in model.hook_dict)
    points = there if hook_points is None else (hook_points,) if isinstance(hook_points, str) else tuple(hook_points)
    for point in points:
        if point not in POINTS:
            raise StarError(f"Unknown hook point {point!r}.{nearest(point, POINTS)}")
        if point not in there:
            raise StarError(f"This model has no {point}, its blocks are parallel: leave it out of hook_points.")
    if not points:
        raise StarError(f"There are no hook points: name some of {', '.join(POINTS)}.")
    if batch_size is not None and batch_size < 1:
        raise StarError(f"batch_size is {batch_size}: use at least 1.")
    if alignment not in ALIGNMENTS:
        raise StarError(f"Unknown alignment {alignment!r}.{nearest(alignment, ALIGNMENTS)}")
    options: dict[str, Any] = {"alignment": alignment}
    if steps is not None and method != "ig":
        raise StarError(f"steps is for method='ig', and {method!r} takes no path: leave it out.")
    if mode is not None and method not in ("atp", "relp"):
        raise StarError(f"mode is for atp and relp, and {method!r} has one of its own: leave it out.")
    if steps is not None and steps < 1:
        raise StarError(f"steps is {steps}: use at least 1.")
    if mode not in (None, "auto", *MODES):
        raise StarError(f"Unknown mode {mode!r}.{nearest(mode, ('auto', *MODES))}")
    options |= {name: value for name, value in (("steps", steps), ("mode", mode)) if value is not None}
    return METHODS[method](model, pairs.extraction, points, batch_size=batch_size, progress=progress, **options)
