r"""Attribution patching (AtP): one forward and one backward pass per contrastive pair.

First-order estimate of activation patching (Nanda 2023, "Attribution Patching"; Syed et al.
2023, arXiv 2310.10348), in the denoising direction:

.. math:: s = (a_{clean} - a_{corrupted}) \cdot \partial M / \partial a \,|_{corrupted}

Clean and corrupted rows run in one batch. The difference is taken in the forward hook, the score
in the gradient's hook, and both are freed there, so that memory holds one micro-batch's graph.
Parameters need no gradient and get none: the graph is rooted at the embedding's output.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from tqdm.auto import tqdm
from transformer_lens import HookedTransformer

from star_tl.attribution.prepare import PreparedPair, labels, pair_batch, pair_metrics, prepare
from star_tl.attribution.result import COMPONENTS, AttributionMap
from star_tl.injection import NamedHook
from star_tl.pairs import Pairs

WINDOW = 24  # prompt positions, from the end, for which the steering form is kept


def attribute_atp(model: HookedTransformer, pairs: Pairs, batch_size: int = 8, progress: bool = True) -> AttributionMap:
    """Scores of every pair at every hook point; see :func:`star_tl.attribute`."""
    return score_pairs(model, pairs, batch_size, progress, method="atp")


def score_pairs(
    model: HookedTransformer,
    pairs: Pairs,
    batch_size: int,
    progress: bool,
    method: str,
    rules: Sequence[NamedHook] = (),
) -> AttributionMap:
    """Difference times gradient at every hook point, the gradient as ``rules`` (forward hooks) make it."""
    from star_tl.models.load import fingerprint

    prepared = prepare(model, pairs)
    end = max(max(len(p.corrupted), len(p.clean)) for p in prepared)
    positive = max(len(p.positive) for p in prepared)
    width = end + positive + max(len(p.negative) for p in prepared)
    window = max(1, min(WINDOW, min(p.shared_suffix for p in prepared)))
    n, layers, heads = len(prepared), model.cfg.n_layers, model.cfg.n_heads
    widths = [model.cfg.d_model] * len(COMPONENTS) + [heads * model.cfg.d_head]

    scores = torch.zeros(n, len(COMPONENTS), layers, width)
    head_scores = torch.zeros(n, layers, heads, width)
    mean_difference = [torch.zeros(layers, window, d, dtype=torch.float64) for d in widths]
    mean_gradient = [torch.zeros_like(m) for m in mean_difference]
    metric = torch.zeros(2, n)

    bar = tqdm(total=n, desc="attribution", unit="pair", disable=not progress, delay=1)
    for first in range(0, n, batch_size):
        chunk = prepared[first : first + batch_size]
        at = slice(first, first + len(chunk))

        def place(into: Tensor, layer: int, s: Tensor, chunk_end: int, at: slice = at) -> None:
            b = s.shape[0] // 2
            lead, replies = end - chunk_end, s.shape[-1] - chunk_end
            plus, minus = s[:b], s[b:]
            into[at, layer, ..., lead:end] = plus[..., :chunk_end] + minus[..., :chunk_end]
            room = min(replies, positive)
            into[at, layer, ..., end : end + room] = plus[..., chunk_end : chunk_end + room]
            room = min(replies, width - end - positive)
            into[at, layer, ..., end + positive : end + positive + room] = minus[..., chunk_end : chunk_end + room]

        def receive(kind: int, layer: int, difference: Tensor, gradient: Tensor, chunk_end: int) -> None:
            b = difference.shape[0] // 2
            product = (
                (difference.float() * gradient.float()) if gradient.dtype != torch.float64 else difference * gradient
            )
            if kind == len(COMPONENTS):
                place(head_scores, layer, product.sum(-1).movedim(-1, 1), chunk_end)
            else:
                place(scores[:, kind], layer, product.sum(-1), chunk_end)
            near = slice(chunk_end - window, chunk_end)
            mean_difference[kind][layer] += difference[:b, near].flatten(2).sum(0).double().cpu() / n
            both = gradient[:b, near] + gradient[b:, near]
            mean_gradient[kind][layer] += both.flatten(2).sum(0).double().cpu() / n

        metric[:, at] = backward(model, chunk, receive, rules)
        bar.update(len(chunk))
    bar.close()

    products = [v * g for v, g in zip(mean_difference, mean_gradient, strict=True)]
    named = [labels(model, p, end, positive, width) for p in prepared]
    return AttributionMap(
        trait=pairs.trait.name,
        method=method,
        model=str(model.cfg.model_name),
        fingerprint=fingerprint(model),
        scores=scores,
        head_scores=head_scores,
        steering=torch.stack([p.sum(-1) for p in products[:-1]]).float(),
        head_steering=products[-1].unflatten(-1, (heads, -1)).sum(-1).transpose(1, 2).float(),
        metric_corrupted=metric[0],
        metric_clean=metric[1],
        prompt_end=end,
        tokens=tuple(tuple(t) for t, _ in named),
        spans=tuple(tuple(s) for _, s in named),
        unaligned=torch.tensor([p.unaligned for p in prepared]),
        pair_ids=tuple(p.pair.id for p in prepared),
    )


def backward(
    model: HookedTransformer,
    chunk: Sequence[PreparedPair],
    receive: Callable[[int, int, Tensor, Tensor, int], None],
    rules: Sequence[NamedHook] = (),
) -> Tensor:
    """One forward and one backward pass of ``chunk``; the metrics ``[2 pair]``, corrupted first.

    ``receive(kind, layer, difference, gradient, prompt_end)`` is called for every hook point with
    tensors ``[2*pair position d]`` (positive rows, then negative; heads keep their axis). ``kind``
    indexes COMPONENTS, one past its end means ``attn.hook_z``.
    """
    rows = pair_batch(model, chunk)
    half, end = 2 * rows.size, rows.batch.prompt_end
    root: list[Tensor] = []

    def watch(kind: int, layer: int) -> Callable[..., Tensor]:
        def hook(activation: Tensor, hook: object) -> Tensor:
            if not root:  # the first locus: the graph begins here
                activation = activation.detach().requires_grad_()
                root.append(activation)
            difference = rows.difference(activation.detach())
            activation.register_hook(lambda g: receive(kind, layer, difference, g[:half], end))
            return activation

        return hook

    names = [f"hook_{c}" for c in COMPONENTS] + ["attn.hook_z"]
    hooks: list[NamedHook] = [
        (f"blocks.{layer}.{name}", watch(kind, layer))
        for layer in range(model.cfg.n_layers)
        for kind, name in enumerate(names)
    ]
    with torch.enable_grad(), model.hooks(fwd_hooks=[*rules, *hooks]):
        corrupted, clean = pair_metrics(model, rows)
        torch.autograd.grad(corrupted.sum(), root)
    return torch.stack([corrupted.detach(), clean.detach()]).cpu()
