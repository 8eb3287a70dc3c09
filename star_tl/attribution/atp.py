r"""Attribution patching (AtP): one forward and one backward pass per contrastive pair.

First-order estimate of activation patching (Nanda 2023, "Attribution Patching"; Syed et al.
2023, arXiv 2310.10348), in the denoising direction:

.. math:: s = (a_{clean} - a_{corrupted}) \cdot \partial M / \partial a \,|_{corrupted}

The score is taken where difference and gradient meet, and both are freed there, so that memory holds the
weights and one micro-batch's graph. A second gradient of the same forward pass, of drift, says what adding a
vector costs: :func:`star_tl.locus.choose_layer` sets its effect against that.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor
from tqdm.auto import tqdm

from star_tl.attribution.align import PreparedPair, prepare
from star_tl.attribution.map import AttributionMap
from star_tl.attribution.passes import MODES, Objective, Receive, by_hand
from star_tl.attribution.rows import Axis, PairBatch, Part, empty_map, pair_batch
from star_tl.data.pairs import Pairs
from star_tl.errors import StarError
from star_tl.locus import COMPONENTS, POINTS, NamedHook
from star_tl.models.backend import Model
from star_tl.models.fast.forward import llama_forward
from star_tl.models.lens import HookedTransformer

# Below this many token positions in a micro-batch a pass is bound by its number of operators, not by
# arithmetic, and one batch takes fewer. Above it the two take like times in scripts/bench_attribution.py, and two
# passes about half the memory.
FEW_POSITIONS = 96
MICRO_BATCH = 4096  # token positions, all rows together: beyond it a pass per pair gets no cheaper

Backward = Callable[[Model, PairBatch, Sequence[str], Receive], Tensor]


def attribute_atp(
    model: Model,
    pairs: Pairs,
    points: Sequence[str] = POINTS,
    mode: str = "auto",
    batch_size: int | None = None,
    progress: bool = True,
    alignment: str = "spans",
) -> AttributionMap:
    """Scores of every pair at every hook point; see :func:`star_tl.attribute`."""
    return score_pairs(model, pairs, points, one_gradient(mode), batch_size, progress, alignment, "atp")


def one_gradient(mode: str, rules: Sequence[NamedHook] = ()) -> Backward:
    """The pass of ``mode`` over a micro-batch, with ``rules`` (forward hooks) shaping its gradient."""

    def automatic(model: Model, rows: PairBatch, points: Sequence[str], receive: Receive) -> Tensor:
        if not rules and isinstance(model, HookedTransformer) and llama_forward(model) is not None:
            return by_hand(model, rows, points, receive)
        few = rows.prompts.numel() + 2 * rows.replies.numel() < FEW_POSITIONS
        return MODES["one_batch" if few else "two_passes"](model, rows, points, receive, rules)

    return automatic if mode == "auto" else partial(MODES[mode], rules=rules)


def score_pairs(
    model: Model,
    pairs: Pairs,
    points: Sequence[str],
    backward: Backward,
    batch_size: int | None,
    progress: bool,
    alignment: str,
    method: str,
    copies: int = 1,
) -> AttributionMap:
    """Difference times gradient at every hook point, the gradient as ``backward`` makes it.

    ``copies`` is how many times ``backward`` holds a pair's rows, for the size of a micro-batch.
    """
    prepared = prepare(model, pairs, alignment)
    axis = Axis.over(prepared)
    attr = empty_map(model, pairs.trait.name, prepared, axis, points, method)
    n, device = len(prepared), model.cfg.device
    # For the steering form, sums over pairs by hook point, a row per layer: difference and gradient near the prompt's
    # end, and the gradient over STRETCHES.
    near: dict[str, Tensor] = {}
    along: dict[str, Tensor] = {}
    # Of each objective the gradients of every pair at resid_post, at the last token of its prompt.
    ends: dict[Objective, list[Tensor]] = {"metric": [], "drift": []}

    def score(first: int, chunk: Sequence[PreparedPair]) -> None:
        rows = pair_batch(model, chunk)
        at, stop = slice(first, first + len(chunk)), rows.prompts.shape[1]
        last = slice(stop - axis.window, stop)
        found: dict[tuple[str, Part], dict[int, tuple[Tensor, ...]]] = {}
        ending: dict[Objective, dict[int, Tensor]] = {"metric": {}, "drift": {}}
        shared: list[Tensor] = []  # the latest gradient with its sums: neighbouring hook points may have it in common

        def receive(
            objective: Objective, point: str, layer: int, part: Part, difference: Tensor, gradient: Tensor
        ) -> None:
            if point == "resid_post" and part != "replies":
                ending[objective][layer] = gradient[:, stop - 1].clone()
            if objective == "drift":
                return
            wide = torch.promote_types(gradient.dtype, torch.float32)
            if not shared or shared[0] is not gradient:
                over = rows.along(part, gradient.to(wide))
                shared[:] = gradient, over, gradient[:, last].sum(0, dtype=torch.float64)
            product = (difference.to(wide) * gradient.to(wide)).sum(-1)
            v = difference[:, last].sum(0, dtype=torch.float64)
            found.setdefault((point, part), {})[layer] = product, *shared[1:], v

        attr.metric_corrupted[at], attr.metric_clean[at] = backward(model, rows, points, receive).cpu()
        for (point, part), layers in found.items():
            product, over, g, v = (
                torch.stack([t.to(device) for t in tensors]).cpu()
                for tensors in zip(*(layers[i] for i in sorted(layers)), strict=True)
            )
            along[point] = along.get(point, 0) + over.double()
            if part != "replies":
                near[point] = near.get(point, 0) + torch.stack([v, g])
            if point == "z":
                axis.place(attr.head_scores[at], *rows.split(part, product.permute(1, 0, 3, 2)))
            else:
                axis.place(attr.scores[at, COMPONENTS.index(point)], *rows.split(part, product.transpose(0, 1)))
        for objective, layers in ending.items():
            if layers:
                ends[objective].append(torch.stack([layers[i].to(device) for i in sorted(layers)], 1).cpu())

    with tqdm(total=n, desc="attribution", unit="pair", disable=not progress, delay=1) as bar:
        first, size = 0, batch_size or max(1, MICRO_BATCH // (2 * copies * axis.width))
        while first < n:
            chunk = prepared[first : first + size]
            try:
                score(first, chunk)
            except (torch.OutOfMemoryError, RuntimeError) as error:
                if not _out_of_memory(error):
                    raise
                if len(chunk) == 1:
                    raise StarError(
                        f"Memory is too small for pair {chunk[0].pair.id!r} alone: "
                        "use mode='layer_by_layer', shorter pairs, or a model in bfloat16."
                    ) from None
                size = max(1, len(chunk) // 2)
                continue
            first += len(chunk)
            bar.update(len(chunk))

    for point, both in near.items():
        v, g = both / n
        # v · Σg at every position of the window and, with the last position's v, over STRETCHES.
        forms = (v * g).sum(-1), (v[:, -1:] * along[point] / n).sum(-1)
        if point == "z":
            attr.head_steering[:], attr.head_span_steering[:] = (form.transpose(1, 2) for form in forms)
        else:
            kind = COMPONENTS.index(point)
            attr.steering[kind], attr.span_steering[kind] = forms
    if ends["metric"]:
        v = near["resid_post"][0, :, -1] / n
        effects, pulls = ((torch.cat(ends[o]).double() * v).sum(-1) for o in ("metric", "drift"))
        tokens = torch.tensor([len(p.positive) + len(p.negative) for p in prepared])
        attr.effects[:], attr.costs[:] = effects, pulls.square() / (2 * tokens[:, None])
    return attr


def _out_of_memory(error: RuntimeError) -> bool:
    return isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in str(error)
