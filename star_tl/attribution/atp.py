r"""Attribution patching (AtP): one forward and one backward pass per contrastive pair.

First-order estimate of activation patching (Nanda 2023, "Attribution Patching"; Syed et al.
2023, arXiv 2310.10348), in the denoising direction:

.. math:: s = (a_{clean} - a_{corrupted}) \cdot \partial M / \partial a \,|_{corrupted}

The score is taken where difference and gradient meet, and both are freed there, so that memory holds the
weights and one micro-batch's graph.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields
from functools import partial

import torch
from jaxtyping import Float
from torch import Tensor

from star_tl.attribution.align import prepare
from star_tl.attribution.drift import Signs, drift_gradients
from star_tl.attribution.map import AttributionMap
from star_tl.attribution.means import mean_differences
from star_tl.attribution.objective import check_metrics, pairs_own
from star_tl.attribution.passes import MODES, Receive, manual_backward
from star_tl.attribution.repeated import FEW_TOKENS, WORTH, Repeated
from star_tl.attribution.request import Estimator, Request
from star_tl.attribution.rows import Axis, PairBatch, Part, empty_map, pair_batch
from star_tl.locus import COMPONENTS, NamedHook
from star_tl.models.backend import Model
from star_tl.models.fast.forward import llama_forward
from star_tl.models.fast.recording import records
from star_tl.models.lens import HookedTransformer
from star_tl.models.memory import fitting_batches, free_beside, give_back
from star_tl.progress import Bar

# Below this many token positions in a micro-batch a pass is bound by its number of operators, not by
# arithmetic, and one batch takes fewer. Above it the two take like times in scripts/bench_attribution.py, and two
# passes about half the memory.
FEW_POSITIONS = 96
MICRO_BATCH = 4096  # token positions, all rows together: beyond it a pass per pair gets no cheaper on a CPU
GRAPH_SHARE = 0.5  # of the free memory: the most that a micro-batch is meant to take
GRAPH_BYTES = 1e9  # the same on a CPU, where a wide model's passes are bound by arithmetic long before MICRO_BATCH

Backward = Callable[[Model, PairBatch, Sequence[str], Receive], Tensor]


def attribute_atp(request: Request, mode: str = "auto") -> AttributionMap:
    """Scores of every pair at every hook point; see :func:`star_tl.attribute`."""
    return score_pairs(request, one_gradient(mode), "atp", recordable=mode == "auto")


def one_gradient(mode: str, rules: Sequence[NamedHook] = ()) -> Backward:
    """The pass of ``mode`` over a micro-batch, with ``rules`` (forward hooks) shaping its gradient."""

    def automatic(model: Model, rows: PairBatch, points: Sequence[str], receive: Receive) -> Tensor:
        if not rules and isinstance(model, HookedTransformer) and llama_forward(model) is not None:
            return manual_backward(model, rows, points, receive)
        few = rows.prompts.numel() + 2 * rows.replies.numel() < FEW_POSITIONS
        return MODES["one_batch" if few else "two_passes"](model, rows, points, receive, rules)

    return automatic if mode == "auto" else partial(MODES[mode], rules=rules)


@dataclass
class _Sums:
    """Of a micro-batch at one part of the tokens: scores, and sums over pairs for the steering form."""

    score: Float[Tensor, "half position ..."]
    along: Float[Tensor, "stretch ..."]
    gradient: Float[Tensor, "window ..."]
    difference: Float[Tensor, "window ..."]


SUMS = fields(_Sums)


@dataclass
class _MicroBatch:
    """Takes differences and gradients where they meet, and keeps what the map is made of."""

    rows: PairBatch
    last: slice  # the columns of the window
    metrics: Float[Tensor, "run pair"] = field(init=False)
    drift: Float[Tensor, "pair draw layer d"] | None = None
    found: dict[tuple[str, Part], dict[int, _Sums]] = field(default_factory=dict)
    ending: dict[int, Float[Tensor, "pair window d"]] = field(default_factory=dict)
    latest: tuple[Tensor, Tensor, Tensor] | None = None  # a gradient with its sums: neighbours may have it in common

    def receive(self, point: str, layer: int, part: Part, difference: Tensor, gradient: Tensor) -> None:
        if point == "resid_post" and part != "replies":
            self.ending[layer] = gradient[:, self.last].clone()
        wide = torch.promote_types(gradient.dtype, torch.float32)
        if self.latest is None or self.latest[0] is not gradient:
            along = self.rows.along(part, gradient.to(wide))
            self.latest = gradient, along, gradient[:, self.last].sum(0, dtype=torch.float64)
        _, along, summed = self.latest
        score = (difference.to(wide) * gradient.to(wide)).sum(-1)
        v = difference[:, self.last].sum(0, dtype=torch.float64)
        self.found.setdefault((point, part), {})[layer] = _Sums(score, along, summed, v)

    def numbers(self) -> list[Tensor]:
        """Everything that was computed, kind by kind, of all layers together."""
        kinds = ([getattr(one, f.name) for one in layers.values()] for layers in self.found.values() for f in SUMS)
        return [self.metrics, *([] if self.drift is None else [self.drift]), *map(torch.stack, kinds)]


def score_pairs(
    request: Request, backward: Backward, method: str, copies: int = 1, recordable: bool = False
) -> AttributionMap:
    """Difference times gradient at every hook point, the gradient as ``backward`` makes it.

    ``copies`` is how many times ``backward`` holds a pair's rows, for the size of a micro-batch; ``recordable`` says
    that of a Llama it waits for no device.
    """
    model = request.model
    prepared = prepare(model, request.pairs, request.alignment)
    axis = Axis.over(prepared)
    attr = empty_map(model, prepared, axis, request, method)
    n, device = len(prepared), model.cfg.device
    # For the steering form, sums over pairs by hook point, a row per layer: difference and gradient near the prompt's
    # end, and the gradient over STRETCHES.
    near: dict[str, Tensor] = {}
    along: dict[str, Tensor] = {}
    ends: list[Float[Tensor, "pair layer window d"]] = []  # gradients at resid_post

    size = request.batch_size or max(1, positions_at_once(model) // (2 * copies * axis.width))

    def passes(rows: PairBatch, signs: Signs) -> _MicroBatch:
        stop = rows.prompts.shape[1]
        batch = _MicroBatch(rows, slice(stop - axis.window, stop))
        batch.metrics = backward(model, rows, request.points, batch.receive)
        batch.drift = drift_gradients(model, rows, signs) if attr.prices_layers else None
        return batch

    pays = recordable and n // size >= WORTH and 2 * size * axis.width <= FEW_TOKENS
    repeated = Repeated(passes, model) if pays and _recorded(request) else None

    def score(chunk: Sequence[int]) -> None:
        at = slice(chunk[0], chunk[-1] + 1)
        rows = pair_batch(model, prepared[at], request.metric, prepared if repeated else None)
        batch = (repeated or passes)(rows, partial(rows.signs, draws=request.draws, seed=request.seed))
        metrics = batch.metrics.cpu()
        check_metrics(metrics.T, [p.pair.id for p in prepared[at]])
        # From here on nothing asks for much memory: a micro-batch that was too large leaves no trace.
        attr.metric_corrupted[at], attr.metric_clean[at] = metrics
        if batch.drift is not None:
            attr.drift_gradients[at] = batch.drift.to(attr.drift_gradients.dtype).cpu()
        for (point, part), layers in batch.found.items():

            def stacked(name: str, layers: dict[int, _Sums] = layers) -> Tensor:
                return torch.stack([getattr(layers[i], name).to(device) for i in sorted(layers)])

            along[point] = along.get(point, 0) + stacked("along").double()
            if part != "replies":
                near[point] = near.get(point, 0) + torch.stack([stacked("difference"), stacked("gradient")])
            if point == "z":
                axis.place(attr.head_scores[at], *rows.split(part, stacked("score").cpu().permute(1, 0, 3, 2)))
            else:
                into = attr.scores[at, COMPONENTS.index(point)]
                axis.place(into, *rows.split(part, stacked("score").cpu().transpose(0, 1)))
        if batch.ending:
            ends.append(torch.stack([batch.ending[i].to(device) for i in sorted(batch.ending)], 1).cpu())

    def alone(at: int) -> str:
        return (
            f"Memory is too small for pair {prepared[at].pair.id!r} alone: "
            "use mode='layer_by_layer', shorter pairs, or a model in bfloat16."
        )

    try:
        with Bar(total=n, desc="attribution", unit="pair", disable=not request.progress, delay=1) as bar:
            for chunk, _ in fitting_batches(range(n), lambda left: size, score, alone, "pairs"):
                bar.update(len(chunk))
    finally:
        if repeated is not None:
            repeated.release()

    for point, both in near.items():
        # Until here they stayed where they were made: each copy would wait for the device.
        near[point], along[point] = both.cpu(), along[point].cpu()
        v, g = near[point] / n
        # v · Σg at every position of the window and, with the last position's v, over STRETCHES.
        forms = (v * g).sum(-1), (v[:, -1:] * along[point] / n).sum(-1)
        if point == "z":
            attr.head_steering[:], attr.head_span_steering[:] = (form.transpose(1, 2) for form in forms)
        else:
            kind = COMPONENTS.index(point)
            attr.steering[kind], attr.span_steering[kind] = forms
    if ends:
        v = near["resid_post"][0] / n
        gradients = torch.cat(ends)
        attr.differences[:], attr.gradients[:] = v[:, -1], gradients[:, :, -1]
        for i, own in enumerate(gradients):  # in float64 a pair at a time
            attr.position_effects[i] = (own.double() * v).sum(-1)
        for k, control in enumerate(request.controls):
            attr.controls[k] = mean_differences(model, control.extraction, request.batch_size)
    give_back()
    return attr


def _recorded(request: Request) -> bool:
    """Whether there are graphs where the model lies, and its passes and the metric ask for nothing on the way."""
    device = torch.device(str(request.model.cfg.device))
    own = request.metric is pairs_own
    return records(device) and own and llama_forward(request.model) is not None


def positions_at_once(model: Model) -> int:
    """Token positions of a micro-batch, all rows together: on a GPU what memory has room for, elsewhere no more than
    pays.
    """
    cfg = model.cfg
    heads = 2 * (cfg.n_heads + (cfg.n_key_value_heads or cfg.n_heads)) * cfg.d_head
    # A layer keeps its difference at every hook point and what its gradient is made of; the end, logits in float32.
    layer = cfg.dtype.itemsize * (8 * cfg.d_model + heads + 4 * (cfg.d_mlp or 0))
    each = cfg.n_layers * layer + 16 * cfg.d_vocab
    room = GRAPH_SHARE * free_beside(model)
    if torch.device(str(cfg.device)).type == "cuda":
        return int(room / each)
    return min(MICRO_BATCH, int(min(room, GRAPH_BYTES) / each))


ESTIMATOR = Estimator("atp", "attribution patching", "gradient times difference", ("mode",), attribute_atp)
