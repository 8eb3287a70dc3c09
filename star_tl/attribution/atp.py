r"""Attribution patching (AtP): one forward and one backward pass per contrastive pair.

First-order estimate of activation patching (Nanda 2023, "Attribution Patching"; Syed et al.
2023, arXiv 2310.10348), in the denoising direction:

.. math:: s = (a_{clean} - a_{corrupted}) \cdot \partial M / \partial a \,|_{corrupted}

The score is taken where difference and gradient meet, and both are freed there, so that memory holds the
weights and one micro-batch's graph.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor
from tqdm.auto import tqdm
from transformer_lens import HookedTransformer

from star_tl.attribution.passes import MODES, Receive
from star_tl.attribution.prepare import STRETCHES, PairBatch, Part, PreparedPair, labels, pair_batch, prepare
from star_tl.attribution.result import COMPONENTS, POINTS, AttributionMap
from star_tl.errors import StarError
from star_tl.injection import NamedHook
from star_tl.pairs import Pairs

WINDOW = 24  # prompt positions, from the end, for which the steering form is kept
# Below this many token positions in a micro-batch a pass is bound by its number of operators, not by
# arithmetic, and one batch is faster than two passes: the crossover in scripts/bench_attribution.py.
FEW_POSITIONS = 96
MICRO_BATCH = 4096  # token positions, all rows together: beyond it a pass per pair gets no cheaper

Backward = Callable[[HookedTransformer, PairBatch, Sequence[str], Receive], Tensor]


def attribute_atp(
    model: HookedTransformer,
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

    def automatic(model: HookedTransformer, rows: PairBatch, points: Sequence[str], receive: Receive) -> Tensor:
        few = rows.prompts.numel() + 2 * rows.replies.numel() < FEW_POSITIONS
        return MODES["one_batch" if few else "two_passes"](model, rows, points, receive, rules)

    return automatic if mode == "auto" else partial(MODES[mode], rules=rules)


def score_pairs(
    model: HookedTransformer,
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
    from star_tl.models.load import fingerprint

    prepared = prepare(model, pairs, alignment)
    end = max(max(len(p.corrupted), len(p.clean)) for p in prepared)
    positive = max(len(p.positive) for p in prepared)
    width = end + positive + max(len(p.negative) for p in prepared)
    window = max(1, min(WINDOW, min(p.shared_suffix for p in prepared)))
    n, layers, heads = len(prepared), model.cfg.n_layers, model.cfg.n_heads

    absent = float("nan")  # what was not asked for is unknown, not zero
    scores = torch.full((n, len(COMPONENTS), layers, width), absent)
    head_scores = torch.full((n, layers, heads, width), absent)
    for point in points:
        (head_scores if point == "z" else scores[:, COMPONENTS.index(point)]).zero_()
    metric = torch.zeros(2, n)
    # Sums over pairs of difference and gradient near the prompt's end, whose product is the steering form.
    near: dict[tuple[str, int], Tensor] = {}
    along: dict[tuple[str, int], Tensor] = {}  # sums of the gradient over STRETCHES

    def score(first: int, chunk: Sequence[PreparedPair]) -> None:
        rows = pair_batch(model, chunk)
        at, stop = slice(first, first + len(chunk)), rows.prompts.shape[1]
        found: dict[tuple[str, int], Tensor] = {}
        summed: dict[tuple[str, int], Tensor] = {}

        def place(into: Tensor, part: Part, s: Tensor) -> None:
            prompt, *replies = rows.split(part, s)
            if prompt is not None:
                into[..., end - stop : end] = prompt
            for reply, begin, last in zip(replies, (end, end + positive), (end + positive, width), strict=True):
                if reply is not None:
                    taken = reply[..., : last - begin]
                    into[..., begin : begin + taken.shape[-1]] = taken

        def receive(point: str, layer: int, part: Part, difference: Tensor, gradient: Tensor) -> None:
            wide = torch.promote_types(gradient.dtype, torch.float32)
            product = (difference.to(wide) * gradient.to(wide)).sum(-1)
            if point == "z":
                place(head_scores[at, layer], part, product.movedim(-1, 1))
            else:
                place(scores[at, COMPONENTS.index(point), layer], part, product)
            reach = rows.along(part, gradient.to(wide)).double().cpu()
            summed[point, layer] = summed.get((point, layer), 0) + reach
            if part != "replies":
                both = torch.stack([difference[:, stop - window : stop], gradient[:, stop - window : stop]])
                found[point, layer] = both.sum(1, dtype=torch.float64).cpu()

        metric[:, at] = backward(model, rows, points, receive).cpu()
        for key, value in found.items():
            near[key] = near.get(key, 0) + value
        for key, value in summed.items():
            along[key] = along.get(key, 0) + value

    with tqdm(total=n, desc="attribution", unit="pair", disable=not progress, delay=1) as bar:
        first, size = 0, batch_size or max(1, MICRO_BATCH // (2 * copies * width))
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

    def steering(point: str, layer: int) -> tuple[Tensor, Tensor]:
        """v · Σg at every position of the window and, with the last position's v, over STRETCHES."""
        if point not in points:
            shape = [heads] if point == "z" else []
            return torch.full((window, *shape), absent), torch.full((len(STRETCHES), *shape), absent)
        v, g = near[point, layer] / n
        return (v * g).sum(-1).float(), (v[-1] * along[point, layer] / n).sum(-1).float()

    forms = {p: [torch.stack(t) for t in zip(*(steering(p, i) for i in range(layers)), strict=True)] for p in POINTS}
    named = [labels(model, p, end, positive, width) for p in prepared]
    return AttributionMap(
        trait=pairs.trait.name,
        method=method,
        model=str(model.cfg.model_name),
        fingerprint=fingerprint(model),
        scores=scores,
        head_scores=head_scores,
        steering=torch.stack([forms[c][0] for c in COMPONENTS]),
        head_steering=forms["z"][0].transpose(1, 2),
        span_steering=torch.stack([forms[c][1] for c in COMPONENTS]),
        head_span_steering=forms["z"][1].transpose(1, 2),
        metric_corrupted=metric[0],
        metric_clean=metric[1],
        prompt_end=end,
        tokens=tuple(tuple(t) for t, _ in named),
        spans=tuple(tuple(s) for _, s in named),
        unaligned=torch.tensor([p.unaligned for p in prepared]),
        pair_ids=tuple(p.pair.id for p in prepared),
    )


def _out_of_memory(error: RuntimeError) -> bool:
    return isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in str(error)
