"""Whether a map can be trusted: its estimates beside exact patching, and what drift really costs, both measured."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float
from scipy import stats
from torch import Tensor

from star_tl.attribution.align import ALIGNMENTS, prepare
from star_tl.attribution.choose import GAIN_DRIFT
from star_tl.attribution.drift import steered_logits
from star_tl.attribution.exact import Place, exact_effects
from star_tl.attribution.map import AttributionMap
from star_tl.attribution.objective import Metric, pairs_own
from star_tl.attribution.rows import Axis, pair_batch
from star_tl.data.pairs import Pairs
from star_tl.errors import StarError, check_flag, check_kind, check_name, check_whole, quoted
from star_tl.locus import COMPONENTS, NamedHook, hook_name
from star_tl.models.backend import Model

if TYPE_CHECKING:
    import pandas
    import plotly.graph_objects as go

TOP = 15  # places among which ranks are compared
REGIONS = ("window", "system")


@dataclass(frozen=True)
class Verification:
    """Attribution's estimates beside exact patching at the same places, mean over the same pairs.

    Places are single prompt tokens of two regions: the window, the last tokens that clean and corrupted runs share, and
    the system turn of the corrupted run, where the instruction stands. ``chosen`` marks those that were taken because
    their estimate is largest in their region; the others are a random sample of the rest, so that a missed effect
    shows. ``completeness`` is :meth:`star_tl.AttributionMap.completeness`, None where the map has no ``resid_post``.
    """

    loci: tuple[Place, ...]
    estimate: Float[Tensor, " locus"]
    exact: Float[Tensor, " locus"]
    chosen: tuple[bool, ...]
    n_pairs: int
    completeness: Float[Tensor, " layer"] | None

    @property
    def pearson(self) -> float:
        """Pearson correlation of estimate and exact effect over all places."""
        return float(stats.pearsonr(self.estimate.numpy(), self.exact.numpy()).statistic)

    @property
    def spearman(self) -> float:
        """Spearman correlation of estimate and exact effect over all places."""
        return float(stats.spearmanr(self.estimate.numpy(), self.exact.numpy()).statistic)

    def by_region(self) -> pandas.DataFrame:
        """A row per region and kind of hook point, and one for all kinds together (``all``).

        ``top`` is the Spearman correlation among the TOP places with the largest estimates there: whether the order of
        what is shown first is right. NaN below three places.
        """
        import pandas as pd

        rows = []
        for region in REGIONS:
            mine = [i for i, x in enumerate(self.loci) if x.region == region]
            for kind in ("all", *sorted({self.loci[i].kind for i in mine})):
                at = [i for i in mine if kind in ("all", self.loci[i].kind)]
                if not at:
                    continue
                first = sorted(at, key=lambda i: -abs(float(self.estimate[i])))[:TOP]
                rows.append(
                    {
                        "region": region,
                        "hook_point": kind,
                        "places": len(at),
                        "pearson": _correlation(stats.pearsonr, self.estimate[at], self.exact[at]),
                        "spearman": _correlation(stats.spearmanr, self.estimate[at], self.exact[at]),
                        "top": _correlation(stats.spearmanr, self.estimate[first], self.exact[first]),
                    }
                )
        return pd.DataFrame(rows)

    @property
    def largest_missed(self) -> tuple[Place, float]:
        """The place of the random sample with the largest exact effect in size, and that effect (nats)."""
        rest = [i for i, chosen in enumerate(self.chosen) if not chosen]
        if not rest:
            raise StarError("All loci were chosen by their estimate: verify with a sample of at least 1.")
        most = max(rest, key=lambda i: abs(float(self.exact[i])))
        return self.loci[most], float(self.exact[most])

    def plot(self, **options: Any) -> go.Figure:
        """Estimate against exact effect, a point per place."""
        from star_tl.view.plots import plot_verification

        return plot_verification(self, **options)

    def __repr__(self) -> str:
        table = self.by_region()
        said = [
            f"{row.region} Pearson {row.pearson:.3f}, Spearman {row.spearman:.3f}, "
            f"of the top {min(TOP, row.places)} {row.top:.3f}"
            for row in table[table.hook_point == "all"].itertuples()
        ]
        whole = self.completeness
        if whole is not None:
            said.append(f"completeness {float(whole.min()):.2f} to {float(whole.max()):.2f}")
        return f"Verification({len(self.loci)} places, {self.n_pairs} pairs: {'; '.join(said)})"


def verify(
    model: Model,
    pairs: Pairs,
    attr: AttributionMap,
    top_k: int = 20,
    sample: int = 40,
    seed: int = 0,
    progress: bool = True,
    alignment: str = "spans",
    metric: Metric = pairs_own,
) -> Verification:
    """Patch the ``top_k`` places of each region with the largest estimates and a random ``sample`` of the rest exactly.

    Places are single prompt tokens at every component and head, in the window and in the system turn; see
    :class:`Verification`. ``alignment`` and ``metric`` are those that the map was made with.

    Raises:
        StarError: the map belongs to other pairs, another model or metric, or asks for no places.
    """
    pairs = _pairs_of(model, pairs, attr)
    check_whole(top_k, "top_k", least=0)
    check_whole(sample, "sample", least=0)
    check_whole(seed, "seed", least=None)
    check_flag(progress, "progress")
    check_name(alignment, ALIGNMENTS, "alignment")
    if not callable(metric):
        raise StarError(f"metric is {quoted(metric)}: give the function that the map was made with.")
    if top_k + sample < 2:
        raise StarError(f"top_k {top_k} and sample {sample} give too few loci: use at least 2 together.")
    if attr.metric and metric is pairs_own:
        raise StarError(f"This map was made with the metric {attr.metric!r}: give verify the same function.")
    places, estimates = candidates(attr)
    chance = torch.Generator().manual_seed(int(seed))
    picked, marks = [], []
    for region in REGIONS:
        mine = torch.tensor([i for i, x in enumerate(places) if x.region == region], dtype=torch.long)
        order = mine[estimates[mine].abs().argsort(descending=True)]
        rest = order[top_k:][torch.randperm(max(0, len(order) - top_k), generator=chance)][:sample]
        picked += [*order[:top_k].tolist(), *rest.tolist()]
        marks += [k < len(order[:top_k]) for k in range(len(order[:top_k]) + len(rest))]
    at = [places[i] for i in picked]
    exact = exact_effects(model, pairs, at, progress=progress, alignment=alignment, metric=metric).mean(0)
    whole = None if bool(attr.scores[:, COMPONENTS.index("resid_post")].isnan().any()) else attr.completeness()
    return Verification(tuple(at), estimates[picked], exact, tuple(marks), len(pairs), whole)


def _pairs_of(model: Model, pairs: Pairs, attr: AttributionMap) -> Pairs:
    check_kind(pairs, Pairs, "pairs that load_pairs returns")
    check_kind(attr, AttributionMap, "a map that attribute returns")
    attr.check(model)
    pairs = pairs.extraction
    if pairs.trait.name == attr.trait and tuple(p.id for p in pairs) == attr.pair_ids:
        prepared = prepare(model, pairs, "spans")
        axis = Axis.over(prepared)  # files without ids of their own number their lines
        if all(tuple(axis.labels(model, p)[0]) == tokens for p, tokens in zip(prepared, attr.tokens, strict=True)):
            return pairs
    raise StarError("This attribution map was computed for other pairs: attribute again.")


def _correlation(of: Callable[..., Any], estimate: Tensor, exact: Tensor) -> float:
    return float(of(estimate.numpy(), exact.numpy()).statistic) if len(estimate) > 2 else float("nan")


def candidates(attr: AttributionMap) -> tuple[list[Place], Float[Tensor, " place"]]:
    """Every single prompt token of the window and of the system turn at every component and head with a score, and
    its mean over pairs.

    Tokens of the system turn are counted from its beginning, as far as the shortest one goes; where a pair's prompt
    begins with another turn there are none.
    """
    columns = [[attr.prompt_end + p] * len(attr.pair_ids) for p in range(-attr.window, 0)]
    positions = list(range(-attr.window, 0))
    firsts = [spans[0] for spans in attr.spans]
    if all(span.name == "system" for span in firsts):
        inside = range(min(map(len, firsts)))
        positions += inside
        columns += [[span.start + k for span in firsts] for k in inside]
    at = torch.tensor(columns).T  # [pair place]
    near = attr.scores.gather(-1, at[:, None, None].expand(-1, *attr.scores.shape[1:3], -1)).mean(0)
    heads = attr.head_scores.gather(-1, at[:, None, None].expand(-1, *attr.head_scores.shape[1:3], -1)).mean(0)
    places: list[Place] = []
    values: list[Tensor] = []
    for layer in range(attr.n_layers):
        for k, position in enumerate(positions):
            for kind, component in enumerate(COMPONENTS):
                places.append(Place(hook_name(component, layer), position))
                values.append(near[kind, layer, k])
            for head in range(heads.shape[1]):
                places.append(Place(hook_name("z", layer), position, head))
                values.append(heads[layer, head, k])
    scored = [i for i, value in enumerate(values) if not value.isnan()]  # a parallel block has no resid_mid
    return [places[i] for i in scored], torch.stack([values[i] for i in scored])


@torch.no_grad()
def measure_layers(
    model: Model,
    pairs: Pairs,
    attr: AttributionMap,
    layers: Sequence[int] | None = None,
    alignment: str = "spans",
    metric: Metric = pairs_own,
) -> pandas.DataFrame:
    """What the proposed strength really does at the few best layers: gain and drift are leading-order figures.

    A row per layer. ``strength`` times the pairs' mean difference, added to ``resid_post`` of the last prompt token,
    should drift GAIN_DRIFT nats a token; ``drift`` is the measured KL divergence of the steered from the unsteered
    next-token distributions over both replies (nats a token, mean over pairs), and ``moved`` by how much the metric
    rises, both where no instruction stands. ``gain`` is what was foretold.

    Args:
        model: that of the map.
        pairs: those of the map.
        attr: the map.
        layers: default the three with the largest gain.
        alignment: as the map was made with.
        metric: as the map was made with.

    Raises:
        StarError: the map belongs to other pairs or another model, has no such layer, or holds no gradients at
            ``resid_post``.
    """
    import pandas as pd

    pairs = _pairs_of(model, pairs, attr)
    for layer in () if layers is None else layers:
        check_whole(layer, "A layer", least=0)
        if layer >= attr.n_layers:
            raise StarError(f"The map has no layer {layer}: use 0 to {attr.n_layers - 1}.")
    gain = attr.choose_layer(resamples=1).gain
    cost = attr.cost(attr.differences).mean(0)
    chosen = gain.argsort(descending=True)[:3].tolist() if layers is None else [int(i) for i in layers]
    strengths = {layer: float((GAIN_DRIFT / cost[layer]).sqrt()) for layer in chosen}
    drift, moved = torch.zeros(len(chosen)), torch.zeros(len(chosen))
    prepared = prepare(model, pairs, alignment)
    for first in range(0, len(prepared), 8):
        rows = pair_batch(model, prepared[first : first + 8], metric)
        plain = steered_logits(model, rows, ())
        tokens = rows.reply_mask.sum(1).view(2, -1).sum(0)
        for k, layer in enumerate(chosen):
            vector = strengths[layer] * attr.differences[layer]
            logits = steered_logits(model, rows, [_adding(hook_name("resid_post", layer), vector)])
            p, q = logits.log_softmax(-1), plain.log_softmax(-1)
            kl = (p.exp() * (p - q)).sum(-1).masked_fill(~rows.reply_mask, 0).sum(-1).view(2, -1).sum(0)
            drift[k] += float((kl / tokens).sum())
            moved[k] += float((rows.metrics(logits) - rows.metrics(plain)).sum())
    return pd.DataFrame(
        {
            "layer": chosen,
            "strength": list(strengths.values()),
            "gain": gain[chosen].tolist(),
            "moved": (moved / len(pairs)).tolist(),
            "drift": (drift / len(pairs)).tolist(),
        }
    )


def _adding(name: str, vector: Float[Tensor, " d"]) -> NamedHook:
    def hook(activation: Tensor, hook: object) -> Tensor:
        return (activation.float() + vector.to(activation.device)).to(activation.dtype)

    return name, hook
