r"""Exact activation patching: the truth that attribution estimates.

The effect of a locus on a pair is :math:`M(corrupted, a \leftarrow a_{clean}) - M(corrupted)`, with the
activation replaced at the locus's positions in one more forward pass (Vig et al. 2020; Meng et al.
2022). Loci of one layer share a batch, and every pass starts at the patched layer from the
corrupted run's residual stream, because nothing below it changes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float
from scipy import stats
from torch import Tensor
from tqdm.auto import tqdm
from transformer_lens import HookedTransformer

from star_tl.attribution.prepare import PairBatch, PreparedPair, pair_batch, prepare, row_values
from star_tl.attribution.result import COMPONENTS, AttributionMap
from star_tl.batch import TokenBatch, unembed
from star_tl.errors import StarError
from star_tl.injection import NamedHook
from star_tl.locus import Locus
from star_tl.pairs import Pairs

if TYPE_CHECKING:
    import plotly.graph_objects as go


@dataclass(frozen=True)
class Verification:
    """Attribution's estimates beside exact patching at the same loci, mean over the same pairs.

    ``chosen`` marks the loci that were taken because their estimate is largest; the others are a
    random sample of the rest, so that a missed effect shows.
    """

    loci: tuple[Locus, ...]
    estimate: Float[Tensor, " locus"]
    exact: Float[Tensor, " locus"]
    chosen: tuple[bool, ...]
    n_pairs: int

    @property
    def pearson(self) -> float:
        """Pearson correlation of estimate and exact effect over all loci."""
        return float(stats.pearsonr(self.estimate.numpy(), self.exact.numpy()).statistic)

    @property
    def spearman(self) -> float:
        """Spearman correlation of estimate and exact effect over all loci."""
        return float(stats.spearmanr(self.estimate.numpy(), self.exact.numpy()).statistic)

    @property
    def largest_missed(self) -> tuple[Locus, float]:
        """The locus of the random sample with the largest exact effect in size, and that effect (nats)."""
        rest = [i for i, chosen in enumerate(self.chosen) if not chosen]
        if not rest:
            raise StarError("All loci were chosen by their estimate: verify with a sample of at least 1.")
        most = max(rest, key=lambda i: abs(float(self.exact[i])))
        return self.loci[most], float(self.exact[most])

    def plot(self) -> go.Figure:
        """Estimate against exact effect, a point per locus."""
        from star_tl.plots import plot_verification

        return plot_verification(self)

    def __repr__(self) -> str:
        return (
            f"Verification({len(self.loci)} loci, {self.n_pairs} pairs: Pearson {self.pearson:.3f}, "
            f"Spearman {self.spearman:.3f})"
        )


def verify(
    model: HookedTransformer,
    pairs: Pairs,
    attr: AttributionMap,
    top_k: int = 20,
    sample: int = 40,
    seed: int = 0,
    progress: bool = True,
) -> Verification:
    """Patch the ``top_k`` loci with the largest estimates and a random ``sample`` of the rest exactly.

    Loci are single prompt positions at every component and head, within ``attr.window``.

    Raises:
        StarError: the map belongs to other pairs or another model, or asks for no loci.
    """
    from star_tl.models.load import fingerprint

    pairs = pairs.extraction
    if tuple(p.id for p in pairs) != attr.pair_ids or fingerprint(model) != attr.fingerprint:
        raise StarError("This attribution map was computed for other pairs or another model: attribute again.")
    if top_k < 0 or sample < 0 or top_k + sample < 2:
        raise StarError(f"top_k {top_k} and sample {sample} give too few loci: use at least 2 together.")
    loci, estimates = _candidates(attr)
    order = estimates.abs().argsort(descending=True)
    rest = order[top_k:][torch.randperm(len(order) - top_k, generator=torch.Generator().manual_seed(seed))]
    taken = torch.cat([order[:top_k], rest[:sample]]).tolist()
    chosen_loci = [loci[i] for i in taken]
    exact = exact_effects(model, pairs, chosen_loci, progress=progress).mean(0)
    marks = tuple(k < top_k for k in range(len(taken)))
    return Verification(tuple(chosen_loci), estimates[taken], exact, marks, len(pairs))


def _candidates(attr: AttributionMap) -> tuple[list[Locus], Float[Tensor, " locus"]]:
    loci, values = [], []
    near = attr.prompt_scores().mean(0)
    heads = attr.head_scores[..., attr.prompt_end - attr.window : attr.prompt_end].mean(0)
    for layer in range(attr.n_layers):
        for column in range(attr.window):
            at = (column - attr.window,)
            for kind, component in enumerate(COMPONENTS):
                loci.append(Locus(f"blocks.{layer}.hook_{component}", at))
                values.append(near[kind, layer, column])
            for head in range(heads.shape[1]):
                loci.append(Locus(f"blocks.{layer}.attn.hook_z", at, head))
                values.append(heads[layer, head, column])
    return loci, torch.stack(values)


@torch.no_grad()
def exact_effects(
    model: HookedTransformer,
    pairs: Pairs,
    loci: Sequence[Locus],
    rows_per_batch: int = 64,
    progress: bool = True,
) -> Float[Tensor, "pair locus"]:
    """The exact effect of patching each locus with the clean run's activation, nats of the metric.

    Args:
        model: any HookedTransformer.
        pairs: contrastive pairs; all that are given are used.
        loci: where to patch, one at a time.
        rows_per_batch: sequences per forward pass, two a locus.
        progress: show a progress bar.
    """
    prepared = prepare(model, pairs)
    effects = torch.zeros(len(prepared), len(loci))
    by_layer: dict[int, list[int]] = {}
    for i, locus in enumerate(loci):
        by_layer.setdefault(locus.layer, []).append(i)
    for row, pair in enumerate(tqdm(prepared, desc="exact patching", unit="pair", disable=not progress, delay=1)):
        effects[row] = _effects_of_pair(model, pair, loci, by_layer, max(1, rows_per_batch // 2))
    return effects


def _effects_of_pair(
    model: HookedTransformer,
    pair: PreparedPair,
    loci: Sequence[Locus],
    by_layer: dict[int, list[int]],
    loci_per_batch: int,
) -> Float[Tensor, " locus"]:
    rows = pair_batch(model, [pair])
    differences: dict[str, Tensor] = {}
    entering: dict[int, Tensor] = {}

    def keep_difference(name: str) -> NamedHook:
        return name, lambda activation, hook: differences.__setitem__(name, rows.difference(activation))

    def keep_entering(layer: int) -> NamedHook:
        name = f"blocks.{layer}.hook_resid_pre"
        return name, lambda activation, hook: entering.__setitem__(layer, activation[:2])

    hooks = [keep_difference(name) for name in {locus.hook_point for locus in loci}]
    hooks += [keep_entering(layer) for layer in by_layer]
    with model.hooks(fwd_hooks=hooks):
        final = model(rows.batch.tokens, attention_mask=rows.batch.mask.int(), stop_at_layer=model.cfg.n_layers)
    baseline = _metric(model, rows, final[:2])
    effects = torch.zeros(len(loci))
    for layer, indices in by_layer.items():
        for first in range(0, len(indices), loci_per_batch):
            part = indices[first : first + loci_per_batch]
            patched = _patched_metrics(model, rows, entering[layer], differences, [loci[i] for i in part])
            effects[part] = (patched - baseline).float().cpu()
    return effects


def _patched_metrics(
    model: HookedTransformer,
    rows: PairBatch,
    entering: Tensor,
    differences: dict[str, Tensor],
    loci: Sequence[Locus],
) -> Float[Tensor, " locus"]:
    end = rows.batch.prompt_end

    def patch(name: str) -> NamedHook:
        def hook(activation: Tensor, hook: object) -> Tensor:
            out = activation.clone()
            for i, locus in enumerate(loci):
                if locus.hook_point == name:
                    columns = [end + p for p in locus.positions]
                    at = (slice(2 * i, 2 * i + 2), columns) + (() if locus.head is None else (locus.head,))
                    out[at] += differences[name][(slice(None), *at[1:])]
            return out

        return name, hook

    hooks = [patch(name) for name in {locus.hook_point for locus in loci}]
    mask = rows.batch.mask[:2].int().repeat(len(loci), 1)
    with model.hooks(fwd_hooks=hooks):
        final = model(
            entering.repeat(len(loci), 1, 1),
            start_at_layer=loci[0].layer,
            attention_mask=mask,
            stop_at_layer=model.cfg.n_layers,
        )
    return _metric(model, rows, final)


def _metric(
    model: HookedTransformer, rows: PairBatch, final: Float[Tensor, "row position d"]
) -> Float[Tensor, " pair"]:
    """The metric of rows that alternate between the pair's positive and negative reply."""
    copies = len(final) // 2
    batch = TokenBatch(
        rows.batch.tokens[:2].repeat(copies, 1),
        rows.batch.mask[:2].repeat(copies, 1),
        rows.batch.prompt_end,
        rows.batch.reply_lengths[:2].repeat(copies),
    )
    logits = unembed(model, final[:, batch.prompt_end - 1 : -1])
    values = row_values(logits, batch, rows.single_token.repeat(2 * copies)).view(-1, 2)
    return values[:, 0] - values[:, 1]
