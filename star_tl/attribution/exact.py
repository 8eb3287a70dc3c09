r"""Exact activation patching: the truth that attribution estimates.

The effect of a locus on a pair is :math:`M(corrupted, a \leftarrow a_{clean}) - M(corrupted)`, with the
activation replaced at the locus's positions in one more forward pass (Vig et al. 2020; Meng et al.
2022). Nothing below the patched layer changes, and nothing before the patched token: loci of one layer
share a batch, which starts there from the corrupted run's residual stream and keys and values.
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
from transformer_lens.cache.key_value_cache_entry import TransformerLensKeyValueCacheEntry

from star_tl.attribution.forward import KeysValues, forward, run_metrics, through_blocks
from star_tl.attribution.prepare import PairBatch, Part, PreparedPair, pair_batch, prepare
from star_tl.attribution.result import COMPONENTS, AttributionMap
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
    loci, estimates = candidates(attr)
    order = estimates.abs().argsort(descending=True)
    rest = order[top_k:][torch.randperm(len(order) - top_k, generator=torch.Generator().manual_seed(seed))]
    taken = torch.cat([order[:top_k], rest[:sample]]).tolist()
    chosen_loci = [loci[i] for i in taken]
    exact = exact_effects(model, pairs, chosen_loci, progress=progress).mean(0)
    marks = tuple(k < top_k for k in range(len(taken)))
    return Verification(tuple(chosen_loci), estimates[taken], exact, marks, len(pairs))


def candidates(attr: AttributionMap) -> tuple[list[Locus], Float[Tensor, " locus"]]:
    """Every single prompt position in the window at every component and head, and its mean score."""
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
    rows_per_batch: int = 32,
    progress: bool = True,
) -> Float[Tensor, "pair locus"]:
    """The exact effect of patching each locus with the clean run's activation, nats of the metric.

    Args:
        model: any HookedTransformer.
        pairs: contrastive pairs; all that are given are used.
        loci: where to patch, one at a time.
        rows_per_batch: sequences per forward pass, two replies a locus.
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
    entering: dict[tuple[Part, int], Tensor] = {}
    differences: dict[str, Tensor] = {}

    def keep(part: Part) -> list[NamedHook]:
        def enter(layer: int) -> NamedHook:
            name = f"blocks.{layer}.hook_resid_pre"
            return name, lambda activation, hook: entering.__setitem__((part, layer), activation)

        def differ(name: str) -> NamedHook:
            return name, lambda activation, hook: differences.__setitem__(
                name, rows.difference(part, *activation.split(1))
            )

        places = {locus.hook_point for locus in loci} if part == "prompts" else set()
        return [*map(enter, by_layer), *map(differ, places)]

    residual, before = forward(model, rows, slice(None), keep)
    run = _CorruptedRun(rows, entering, before, differences, residual[:, :0])
    baseline = run_metrics(residual[:2], model, rows)[0]
    effects = torch.zeros(len(loci))
    for indices in by_layer.values():
        late_first = sorted(indices, key=lambda i: -min(loci[i].positions))
        for first in range(0, len(late_first), loci_per_batch):
            part = late_first[first : first + loci_per_batch]
            patched = _patched_metrics(model, run, [loci[i] for i in part])
            effects[part] = (patched - baseline).float().cpu()
    return effects


@dataclass(frozen=True)
class _CorruptedRun:
    """What the two runs of one pair left behind, corrupted row first, and the differences between them."""

    rows: PairBatch
    entering: dict[tuple[Part, int], Float[Tensor, "row position d"]]
    before: KeysValues
    differences: dict[str, Float[Tensor, "one position ..."]]
    no_reply: Float[Tensor, "row zero d"]


def _patched_metrics(model: HookedTransformer, run: _CorruptedRun, loci: Sequence[Locus]) -> Float[Tensor, " locus"]:
    """The metric with each of ``loci``, which are all of one layer, patched."""
    end, layer, copies = run.rows.prompts.shape[1], loci[0].layer, len(loci)
    start = end + min(min(locus.positions) for locus in loci)

    def patch(part: Part) -> list[NamedHook]:
        def at(name: str) -> NamedHook:
            def hook(activation: Tensor, hook: object) -> Tensor:
                out = activation.clone()
                for i, locus in enumerate(loci):
                    if locus.hook_point == name:
                        columns = torch.tensor([end + p for p in locus.positions])
                        head = () if locus.head is None else (locus.head,)
                        out[(i, columns - start, *head)] += run.differences[name][(0, columns, *head)]
                return out

            return name, hook

        return [at(name) for name in {locus.hook_point for locus in loci}] if part == "prompts" else []

    before = [
        TransformerLensKeyValueCacheEntry(
            e.past_keys[:1, :start].expand(copies, -1, -1, -1), e.past_values[:1, :start].expand(copies, -1, -1, -1)
        )
        for e in run.before
    ]
    prompt, reply = through_blocks(
        model,
        run.rows,
        range(layer, model.cfg.n_layers),
        run.entering["prompts", layer][:1, start:].repeat(copies, 1, 1),
        run.entering.get(("replies", layer), run.no_reply)[:2].repeat(copies, 1, 1),
        run.rows.prompt_mask[:1].int().repeat(copies, 1),
        before,
        patch,
    )
    spread = torch.arange(copies, device=prompt.device).repeat_interleave(2)
    return run_metrics(torch.cat([prompt[spread, -1:], reply], 1), model, run.rows)[:, 0]
