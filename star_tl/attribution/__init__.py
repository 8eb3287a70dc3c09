"""Attribution patching over named hook points."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import replace

import torch

from star_tl.attribution import atp, exact, integrated_gradients, relp
from star_tl.attribution.align import ALIGNMENTS
from star_tl.attribution.map import AttributionMap
from star_tl.attribution.objective import Metric, Replies, pairs_own
from star_tl.attribution.passes import MODES
from star_tl.attribution.request import DRAWS, Estimator, Request
from star_tl.data.pairs import METRICS, Pairs
from star_tl.errors import StarError, check_flag, check_kind, check_name, check_whole, quoted
from star_tl.locus import COMPONENTS, POINTS
from star_tl.models.backend import MODELS, Model, check_differentiable

NoneType = type(None)
ESTIMATORS = {module.ESTIMATOR.key: module.ESTIMATOR for module in (atp, integrated_gradients, relp, exact)}

__all__ = [
    "COMPONENTS",
    "ESTIMATORS",
    "POINTS",
    "AttributionMap",
    "Estimator",
    "Metric",
    "Replies",
    "attribute",
]


@torch.inference_mode(False)  # a gradient is wanted wherever this is called
def attribute(
    model: Model,
    pairs: Pairs,
    method: str = "atp",
    hook_points: Sequence[str] | None = None,
    mode: str | None = None,
    steps: int | None = None,
    metric: str | Metric | None = None,
    controls: Sequence[Pairs] = (),
    alignment: str = "spans",
    draws: int = DRAWS,
    seed: int = 0,
    batch_size: int | None = None,
    progress: bool = True,
) -> AttributionMap:
    """Score every hook point by how far moving it toward the clean run raises the trait metric.

    Uses the extraction split of ``pairs``. Scores come per pair, layer (and head) and token position,
    in the unit of the metric: by default nats, the mean log-probability per token of the positive reply minus that of
    the negative one.

    Args:
        model: from :func:`star_tl.load_model`, of either backend.
        pairs: contrastive pairs, see :func:`star_tl.load_pairs`.
        method: a key of ESTIMATORS: {estimators}. The default is right where a locus is looked for: at the last prompt
            tokens AtP agrees with exact patching at every hook point as well as the others do (Pearson .97 and more on
            the demo model), and its gradient is that of the injection itself. In the system turn, where the
            instruction stands, no estimator can be relied on for the residual stream: there none was the best
            throughout. :func:`star_tl.verify` says it for your pairs, and ``exact_effects`` of
            :mod:`star_tl.attribution.exact` patches the places that you rely on.
        hook_points: some of POINTS; default all that the model has. ``"z"`` is every head's ``attn.hook_z``.
            Choosing a layer needs ``resid_post``.
        mode: for atp and relp, how to run a micro-batch: ``"one_batch"`` (clean and corrupted rows in
            one forward and one backward pass), ``"two_passes"`` (clean rows first, without a graph), or
            ``"layer_by_layer"`` (least memory). Default ``"auto"``: what is fastest, which for atp on Llamas is a
            pass of its own with the gradient written out, and otherwise one of the first two.
        steps: for ig, points on the path; default 5.
        metric: ``"logprob"`` or ``"logit"`` for all pairs (see :func:`star_tl.attribution.objective.pairs_own`), or a
            function of the logits that predict both replies' tokens, ``[2*pair reply vocab]`` in float32 at least, the
            positive replies' rows first, and of the :class:`Replies`, that gives a number for each pair, ``[pair]``.
            It is differentiated, so it must be made of torch's operators, and a pair's value may depend on its own
            two rows alone. Default: what each pair names.
        controls: pairs of other traits, whose vectors are set against this one's where a layer is chosen.
        alignment: which clean token stands against which corrupted one: ``"spans"`` (in the same turn of the
            chat the common beginning and common tokens), ``"right"`` (counted from the prompt's end) or ``"strict"``
            (token by token, prompts of equal length only). ``unaligned`` of the result is the share of tokens without a
            counterpart, ``equal_tokens`` the share of those with one whose counterpart is the same token.
        draws: of random signs a pair, from which drift is estimated. The estimate's part of the gain's standard error
            falls with their root.
        seed: of these signs.
        batch_size: pairs in a micro-batch; for exact, patches in a pass. Default: what makes full use of a pass, halved
            as often as memory runs out.
        progress: show a progress bar.

    Warns where the instruction moves the metric little, or in many pairs the wrong way
    (:attr:`star_tl.AttributionMap.caution`).

    Raises:
        StarError: a model that was loaded under ``torch.inference_mode()``, unknown or conflicting options, ``relp`` on
            a model with parts that it has no rules for (a mixture of experts, say), a pair longer than the model's
            context, or too little memory for a single pair.
    """
    check_kind(model, MODELS, "a model that load_model returns")
    check_kind(pairs, Pairs, "pairs that load_pairs returns")
    check_differentiable(model)
    check_name(method, ESTIMATORS, "attribution method")
    there = tuple(p for p in POINTS if p == "z" or f"blocks.0.hook_{p}" in model.hook_dict)
    check_kind(hook_points, (str, Sequence, NoneType), "hook_points as a list of names")
    points = there if hook_points is None else (hook_points,) if isinstance(hook_points, str) else tuple(hook_points)
    for point in points:
        check_name(point, POINTS, "hook point")
        if point not in there:
            raise StarError(f"This model has no {point}, its blocks are parallel: leave it out of hook_points.")
    if not points:
        raise StarError(f"There are no hook points: name some of {', '.join(POINTS)}.")
    for name, value in (("batch_size", batch_size), ("steps", steps)):
        if value is not None:
            check_whole(value, name)
    check_whole(draws, "draws")
    check_whole(seed, "seed", least=None)
    check_name(alignment, ALIGNMENTS, "alignment")
    if mode is not None:
        check_name(mode, ("auto", *MODES), "mode")
    check_kind(controls, (Pairs, Sequence), "controls as a list of pairs that load_pairs returns")
    check_flag(progress, "progress")
    others = [controls] if isinstance(controls, Pairs) else list(controls)
    for other in others:
        check_kind(other, Pairs, "controls as a list of pairs that load_pairs returns")
    if len({other.trait.name for other in others}) < len(others):
        raise StarError("Two controls are of the same trait: give each trait once, or another name.")
    options = {name: value for name, value in (("steps", steps), ("mode", mode)) if value is not None}
    for name in options:
        if name not in ESTIMATORS[method].options:
            takers = " and ".join(e.key for e in ESTIMATORS.values() if name in e.options)
            raise StarError(f"{name} is for {takers}, and {method!r} takes none: leave it out.")
    if metric is not None and not isinstance(metric, str) and not callable(metric):
        raise StarError(f"metric is {quoted(metric)}: give 'logprob', 'logit' or a function.")
    if isinstance(metric, str):
        check_name(metric, METRICS, "metric")
        pairs = replace(pairs, pairs=tuple(replace(p, metric=metric) for p in pairs))
    request = Request(
        model=model,
        pairs=pairs.extraction,
        points=points,
        metric=metric if callable(metric) else pairs_own,
        controls=tuple(others),
        alignment=alignment,
        draws=draws,
        seed=seed,
        batch_size=batch_size,
        progress=progress,
    )
    attr = ESTIMATORS[method](request, **options)
    if attr.caution:
        warnings.warn(f"{attr.trait} on {attr.model}: {attr.caution}.", stacklevel=3)  # past the decorator
    return attr


attribute.__doc__ = (attribute.__doc__ or "").replace("{estimators}", "; ".join(str(e) for e in ESTIMATORS.values()))
