"""Figures of attribution: where a trait is carried, and how far to believe it.

Every layer axis runs upward from layer 0; blue raises the trait, vermilion lowers it, on scales that are centred at
zero.
"""

from __future__ import annotations

import operator
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import plotly.graph_objects as go
import torch
from jaxtyping import Float
from plotly.subplots import make_subplots
from torch import Tensor

from star_tl.attribution.choose import GAIN_DRIFT, listed
from star_tl.attribution.map import AttributionMap
from star_tl.attribution.outcome import OutcomeMap
from star_tl.attribution.verify import TOP
from star_tl.data.chat import Span
from star_tl.errors import StarError, check_whole, quoted
from star_tl.locus import COMPONENTS, WRITES
from star_tl.stats import mean_interval
from star_tl.view.plots.look import (
    BLUE,
    CELL,
    GREY,
    INK,
    MONOSPACE,
    SCORE,
    SIGN,
    coloraxis,
    colorbar,
    finish,
    layer_axis,
    note,
    percent,
    plot_height,
    signed,
    styled,
    tick_step,
    visible,
    whiskers,
)

if TYPE_CHECKING:
    from star_tl.attribution.verify import Verification

GAIN, STREAM, OWN = "gain", "residual stream<br>(adds up)", "writes<br>(this layer's own)"


@styled
def plot_layers(attr: AttributionMap, layers: Sequence[int] | None = None, numbers: bool = True) -> go.Figure:
    """Layer × component: mean over pairs of the scores summed over positions, nats.

    First the gain, what drift buys at a layer (★ at the largest), then the residual stream, which adds up along depth,
    then what attention and MLP write, each part on a colour scale of its own. ``resid_pre`` of a layer is
    ``resid_post`` of the one below and is drawn only where that is missing; hook points without scores are left out.

        attr.plot(layers=range(10, 20), style="paper", width=6.5).write_image("layers.pdf")

    Args:
        attr: the attribution map.
        layers: those to show; default all.
        numbers: write the scores into the cells.

    Raises:
        StarError: no such layer.
    """
    rows = _chosen(attr, layers)
    parts = _parts(attr, rows)
    widths = [1 if heading == GAIN else 0.4 + len(names) for heading, names, _ in parts]
    fig = make_subplots(1, len(parts), shared_yaxes=True, column_widths=widths, horizontal_spacing=0.05)
    height = plot_height(len(rows))
    for col, (heading, names, scores) in enumerate(parts, start=1):
        axis = f"coloraxis{col}"
        cells = _heatmap(scores, names, "blocks.%{y}.hook_%{x}<br>layer %{y}", rows, coloraxis=axis)
        if heading == GAIN:
            cells.update(hovertemplate="layer %{y}, last prompt token<br>gain %{z:+.4f} nats<extra></extra>")
        z = scores.mean(0).numpy()
        if numbers and height / len(rows) >= 15:
            text = [[signed(v) for v in row] for row in z]
            best = attr.choose_layer(resamples=1).layer if heading == GAIN else -1
            if best in rows:
                text[rows.index(best)][0] += " ★"
            cells.update(text=text, texttemplate="%{text}", textfont_size=11)
        fig.add_trace(cells, row=1, col=col)
        left, right = fig.layout[f"xaxis{col}"].domain
        place = {"x": (left + right) / 2, "len": max(0.12, (right - left) * 0.98), "y": 0, "yanchor": "top", "ypad": 36}
        bar = colorbar(orientation="h", **place)
        bar["nticks"] = 5 if right - left > 0.3 else 2
        if heading == GAIN:
            bar["title"] = bar["title"] | {"text": "gain (nats)"}
        fig.update_layout({axis: coloraxis(z, bar)})
        note(fig, f"<b>{heading}</b>", (left + right) / 2, 1, xref="paper", yref="paper", yanchor="bottom")
    if attr.prices_layers and (choice := attr.choose_layer()).singled_out and choice.layer in rows:
        share = percent(float(choice.frequency[choice.layer]))
        note(
            fig, f"◂ chosen in {share}<br>   of resamples", 1, choice.layer, xref="paper", xanchor="left", align="left"
        )
    layer_axis(fig, rows, col=1)
    fig.update_yaxes(showgrid=False)
    fig.update_xaxes(showgrid=False)
    scales = ("one colour scale", "two colour scales", "three colour scales")[len(parts) - 1]
    title, subtitle = f"Where {_trait(attr)} is carried, by layer", f"{_mean(attr)}; {SIGN}; {scales}"
    fig = finish(fig, title, subtitle, 780, height + 222, t=110, b=100)
    return fig.update_layout(margin_r=120)


def _parts(attr: AttributionMap, rows: Sequence[int]) -> list[tuple[str, list[str], Tensor]]:
    """What stands side by side: a heading, the names of the columns, their scores ``[pair layer column]``."""
    scores = attr.scores.sum(-1)
    known = components_of(attr)
    parts = []
    if attr.prices_layers:
        gain = attr.choose_layer(resamples=1).gain
        parts.append((GAIN, ["resid_post"], gain[None, list(rows), None]))
    for heading, names in ((STREAM, [c for c in known if c not in WRITES]), (OWN, [c for c in known if c in WRITES])):
        if names:
            columns = scores[:, [COMPONENTS.index(c) for c in names]].transpose(1, 2)
            parts.append((heading, names, columns[:, list(rows)]))
    if not parts:
        raise StarError("This map holds no scores at any layer's stream: attribute with more hook_points.")
    return parts


def components_of(attr: AttributionMap) -> list[str]:
    """The hook points that the map holds scores at, those that are the same as another's once."""
    known = [c for i, c in enumerate(COMPONENTS) if not bool(attr.scores[:, i].isnan().any())]
    return [c for c in known if c != "resid_pre" or "resid_post" not in known]


def _chosen(attr: AttributionMap, layers: Sequence[int] | None) -> list[int]:
    try:
        rows = sorted(set(range(attr.n_layers) if layers is None else map(operator.index, layers)))
    except TypeError:
        rows = []
    if not rows or rows[0] < 0 or rows[-1] >= attr.n_layers:
        raise StarError(
            f"layers is {quoted(layers)} and the map has {attr.n_layers}: give some of 0 to {attr.n_layers - 1}."
        )
    return rows


@styled
def plot_heads(attr: AttributionMap, layers: Sequence[int] | None = None) -> go.Figure:
    """Layer × head: mean over pairs of the scores at ``attn.hook_z`` summed over positions, nats.

        attr.plot_heads(style="dark")

    Args:
        attr: the attribution map.
        layers: those to show; default all.

    Raises:
        StarError: no such layer, or the map holds no scores of heads.
    """
    rows = _chosen(attr, layers)
    scores = attr.head_scores.sum(-1)[:, rows]
    if not bool(scores.isfinite().all()):
        raise StarError("This map holds no scores of heads: attribute with hook_points that include 'z'.")
    z = scores.mean(0).numpy()
    hover = "blocks.%{y}.attn.hook_z<br>layer %{y}, head %{x}"
    fig = go.Figure(_heatmap(scores, list(range(z.shape[1])), hover, rows))
    fig.update_layout(coloraxis=coloraxis(z))
    fig.update_xaxes(title_text="head", showgrid=False, dtick=tick_step(z.shape[1]))
    layer_axis(fig, rows)
    title, subtitle = f"Heads that carry {_trait(attr)}", f"attn.hook_z; {_mean(attr)}; {SIGN}"
    return finish(fig, title, subtitle, max(560, CELL * z.shape[1] + 190), plot_height(len(rows)) + 150)


@styled
def plot_tokens(
    attr: AttributionMap,
    pair: int | None = None,
    component: str | None = None,
    layers: Sequence[int] | None = None,
) -> go.Figure:
    """Layer × token, nats: one pair's prompt and positive reply, or the mean at the prompt's end.

    Positions count from the end of the prompt as in a Locus: -1 is its last token, 0 the first of the reply.

        attr.plot_tokens(pair=3, component="attn_out")

    Args:
        attr: the attribution map.
        pair: index of a pair; None for the mean over pairs at the last ``attr.window`` positions.
        component: one of COMPONENTS; default ``resid_post``, or what the map has.
        layers: those to show; default all.

    Raises:
        StarError: no such pair, component or layer.
    """
    rows = _chosen(attr, layers)
    if component is None:
        component = next(iter(sorted(components_of(attr), key=lambda c: c != "resid_post")), "resid_post")
    scores, end, n = attr.component(component), attr.prompt_end, len(attr.pair_ids)
    if pair is None:
        first, last = end - attr.window, end
        spans = shared_spans(attr, first)
        shared = [{row[i] for row in attr.tokens} for i in range(first, last)]
        names = [visible(t.pop()) if len(t) == 1 else "" for t in shared]
        ticks = [f"{name}  {i - end}" if name else str(i - end) for i, name in enumerate(names, first)]
        where, of = "at the end of the prompt", _mean(attr)
    else:
        check_whole(pair, "pair", least=None)
        if not -n <= pair < n:
            raise StarError(f"pair is {pair} and the map has {n} pairs: use 0 to {n - 1}.")
        scores, spans = scores[pair][None], [s for s in attr.spans[pair] if s.name != "negative reply"]
        first, last = spans[0].start, spans[-1].end
        names = [visible(t) for t in attr.tokens[pair][first:last]]
        ticks = [visible(t if len(t) <= 24 else t[:23] + "…") for t in attr.tokens[pair][first:last]]
        where, of = "token by token", f"pair {visible(attr.pair_ids[pair], whitespace=False)}"
    within = {i: s.name for s in spans for i in range(s.start, s.end)}
    described = [
        f"position {i - end}{f', {within[i]}' if i in within else ''}<br>token {name or '(differs between pairs)'}"
        for i, name in enumerate(names, first)
    ]
    offsets = [i - end for i in range(first, last)]
    hover = f"blocks.%{{y}}.hook_{component}<br>layer %{{y}}, %{{text}}"
    shown = scores[:, rows, first:last]
    fig = go.Figure(_heatmap(shown, offsets, hover, rows, text=[described] * len(rows)))
    fig.update_layout(coloraxis=coloraxis(shown.mean(0).numpy()))
    # Upright, for a slanted name ends under its column and is read under the next one.
    fig.update_xaxes(tickvals=offsets, ticktext=ticks, tickangle=-90, tickfont_family=MONOSPACE, showgrid=False)
    fig.update_xaxes(ticklabeloverflow="allow")  # else plotly.js measures every label, which takes it half a second
    if pair is None:
        fig.update_xaxes(title_text="token and position from the end of the prompt")
    layer_axis(fig, rows)
    levels = _mark_spans(fig, spans, end)
    title, subtitle = f"Where {_trait(attr)} is carried, {where}", f"hook_{component}; {of}; {SIGN}"
    width, height = max(620, CELL * len(offsets) + 190), plot_height(len(rows)) + 200 + 16 * levels
    return finish(fig, title, subtitle, width, height, t=78 + 16 * levels)


@styled
def plot_choice(attr: AttributionMap) -> go.Figure:
    """What drift buys of the metric at each layer, nats, with 95 % bootstrap intervals.

        attr.plot_choice(width=3.3, style="paper")

    A layer that the pairs single out stands out, and where there is none those that share the resamples.
    """
    choice = attr.choose_layer()
    layers, shown = list(range(attr.n_layers)), (choice.layer,) if choice.singled_out else choice.tied
    gain, low, high, frequency = (t.numpy() for t in (choice.gain, choice.low, choice.high, choice.frequency))
    fig = go.Figure(
        go.Bar(
            x=gain,
            y=layers,
            orientation="h",
            marker_color=[BLUE if layer in shown else GREY for layer in layers],
            error_x=whiskers(gain, low, high) if choice.bootstrapped else None,
            customdata=np.stack([low, high, 100 * frequency], axis=1),
            hovertemplate="blocks.%{y}.hook_resid_post, last prompt token<br>layer %{y}<br>gain %{x:+.4f} nats"
            + ("<br>95 % interval %{customdata[0]:+.4f} to %{customdata[1]:+.4f}" if choice.bootstrapped else "")
            + ("<br>first in %{customdata[2]:.1f} % of resamples" if choice.bootstrapped else "")
            + "<extra></extra>",
        )
    )
    for layer in layers:
        if frequency[layer] >= 0.005:
            share = percent(frequency[layer])
            first = choice.singled_out and layer == choice.layer
            words = f"<b>chosen</b> in {share} of resamples" if first else share
            note(fig, words, max(float(high[layer]), 0.0), layer, xanchor="left", xshift=6)
    ends = (low, high) if choice.bootstrapped else (gain, gain)
    least, most = min(float(ends[0].min()), 0.0), max(float(ends[1].max()), choice.null)
    reach = (most - least) or 1.0
    room = [least - 0.03 * reach, most + 0.5 * reach]  # at the right for the words
    fig.add_vline(
        x=choice.null,
        line={"color": GREY, "dash": "dot", "width": 1},
        annotation_text=f"95 % of random directions stay below (p {choice.p_value:.3f})",
        annotation_position="bottom left" if choice.null > sum(room) / 2 else "bottom right",
        annotation_font_size=11,
    )
    fig.update_xaxes(
        title_text=f"gain in the metric (nats) at {GAIN_DRIFT:g} nat drift per token, to leading order", range=room
    )
    layer_axis(fig, layers)
    about = "" if float(gain[choice.layer]) == float(gain.max()) else "about the "
    title = f"At layer {choice.layer} drift buys {about}most of {_trait(attr)}"
    if not choice.bootstrapped:
        title = f"Too few pairs to single out a layer for {_trait(attr)}"
    elif not choice.singled_out:
        tie = f": {listed(choice.tied)} tie" if len(choice.tied) > 1 else ""
        title = f"No one layer for {_trait(attr)}{tie}"
    subtitle = f"vector added to the last prompt token; {_mean(attr)}; {SIGN}"
    return finish(fig, title, subtitle, 680, plot_height(attr.n_layers) + 150)


@styled
def plot_outcome(outcome: OutcomeMap) -> go.Figure:
    """Layer × position: what drift buys of the reward along the outcome's own direction there, cross-fitted.

    star.attribute_outcome(model, pairs.prompts, reward_of(pairs.trait)).plot()
    """
    names = [*map(str, range(-outcome.window, 0)), "generated"]
    hover = "blocks.%{y}.hook_resid_post<br>layer %{y}, position %{x}"
    fig = _gain_map(outcome, outcome.gains(), outcome.errors(), names, hover)
    fig.update_xaxes(title_text="position from the end of the prompt", type="category")
    title = f"Where {visible(outcome.reward.replace('_', ' '), whitespace=False)} can be raised"
    width = max(620, 2 * CELL * len(names) + 190)
    return finish(fig, title, _outcome_subtitle(outcome, "resid_post"), width, plot_height(outcome.n_layers) + 150)


@styled
def plot_outcome_heads(outcome: OutcomeMap, positions: str | int = "generated") -> go.Figure:
    """Layer × head: the same at ``attn.hook_z``, at generated tokens or at one prompt position.

        outcome.plot_heads(positions=-1)

    Raises:
        StarError: a position that the map does not hold.
    """
    names = [*range(-outcome.window, 0), "generated"]
    if positions not in names:
        raise StarError(f"positions is {positions!r}: use 'generated' or -{outcome.window} to -1.")
    gains, errors = (t[:, names.index(positions)] for t in (outcome.gains("z"), outcome.errors("z")))
    heads = list(range(gains.shape[1]))
    fig = _gain_map(outcome, gains, errors, heads, "blocks.%{y}.attn.hook_z<br>layer %{y}, head %{x}")
    fig.update_xaxes(title_text="head", dtick=tick_step(len(heads)))
    title = f"Heads that can raise {visible(outcome.reward.replace('_', ' '), whitespace=False)}"
    place = "generated tokens" if positions == "generated" else f"prompt token {positions}"
    subtitle = _outcome_subtitle(outcome, f"attn.hook_z, {place}")
    return finish(fig, title, subtitle, max(620, CELL * len(heads) + 190), plot_height(outcome.n_layers) + 150)


def _gain_map(outcome: OutcomeMap, gains: Tensor, errors: Tensor, x: Sequence[object], hover: str) -> go.Figure:
    hover += "<br>gain %{z:+.3f} ± %{customdata:.3f}<extra></extra>"
    cells = {"z": gains.numpy(), "customdata": errors.numpy(), "x": x, "y": list(range(outcome.n_layers))}
    fig = go.Figure(go.Heatmap(**cells, hovertemplate=hover, coloraxis="coloraxis", xgap=1, ygap=1))
    bar = colorbar(title={"text": "gain (reward)", "side": "top", "font": {"size": 13}})
    fig.update_layout(coloraxis=coloraxis(gains.numpy(), bar))
    fig.update_xaxes(showgrid=False)
    layer_axis(fig, range(outcome.n_layers))
    return fig


def _outcome_subtitle(outcome: OutcomeMap, where: str) -> str:
    return f"{where}; reward at {GAIN_DRIFT:g} nat drift per token, to first order; {len(outcome.replies)} replies"


@styled
def plot_verification(verification: Verification) -> go.Figure:
    """Attribution's estimate against exact patching, nats, a point per locus; on the line they agree.

    star.verify(model, pairs, attr).plot(style="dark")
    """
    estimate, exact = verification.estimate.numpy(), verification.exact.numpy()
    chosen = np.array(verification.chosen)
    low, high = float(min(estimate.min(), exact.min())), float(max(estimate.max(), exact.max()))
    fig = go.Figure(
        go.Scatter(x=[low, high], y=[low, high], mode="lines", line={"color": INK, "dash": "dot"}, hoverinfo="skip")
    )
    for mask, name, colour in ((~chosen, "random sample of the rest", GREY), (chosen, "largest estimates", BLUE)):
        fig.add_trace(
            go.Scatter(
                x=estimate[mask],
                y=exact[mask],
                mode="markers",
                name=name,
                showlegend=True,
                marker={"color": colour, "size": 8, "opacity": 0.8},
                text=[str(locus) for locus, taken in zip(verification.loci, mask, strict=True) if taken],
                hovertemplate="%{text}<br>estimate %{x:+.4f} nats<br>exact %{y:+.4f} nats<extra></extra>",
            )
        )
    fig.data[0].showlegend = False
    fig.update_xaxes(title_text=f"attribution, {SCORE}")
    fig.update_yaxes(title_text="exact patching, effect (nats)")
    table = verification.by_region()
    agreement = [
        f"{row.region} Pearson {row.pearson:.2f}, Spearman {row.spearman:.2f}, of the top {TOP} {row.top:.2f}"
        for row in table[table.hook_point == "all"].itertuples()
    ]
    subtitle = f"{'; '.join(agreement)}; {len(verification.loci)} places, mean over {verification.n_pairs} pairs"
    return finish(fig, "Estimate against exact patching", subtitle, 620, 520)


def _trait(attr: AttributionMap) -> str:
    return visible(attr.trait.replace("_", " "), whitespace=False)


def _mean(attr: AttributionMap) -> str:
    return f"mean over {len(attr.pair_ids)} pairs"


def _heatmap(
    scores: Float[Tensor, "pair row column"], x: Sequence[object], hover: str, y: Sequence[int], **options: Any
) -> go.Heatmap:
    """The mean over pairs; where there are several, its interval is in the hover."""
    options = {"coloraxis": "coloraxis", "xgap": 1, "ygap": 1, **options}
    hover += "<br>score %{z:+.4f} nats"
    if len(scores) > 1:
        options["customdata"] = torch.stack(mean_interval(scores), dim=-1).numpy()
        hover += "<br>95 % interval %{customdata[0]:+.4f} to %{customdata[1]:+.4f}"
    z = scores.mean(0).numpy()
    return go.Heatmap(z=z, x=x, y=list(y), hovertemplate=f"{hover}<extra></extra>", **options)


def shared_spans(attr: AttributionMap, first: int) -> list[Span]:
    """Spans of the window that lie at the same place in every pair."""
    clipped = [{Span(s.name, max(s.start, first), s.end) for s in row if s.end > first} for row in attr.spans]
    same = set.intersection(*clipped)
    return sorted((s for s in same if s.end <= attr.prompt_end), key=lambda s: s.start)


def _mark_spans(fig: go.Figure, spans: Sequence[Span], end: int) -> int:
    """Name the chat's spans above the columns; the number of lines that their names need."""
    free: list[float] = []  # per line, the first column that no name covers yet
    for span in spans:
        left, right = span.start - end - 0.5, span.end - end - 0.5
        line = next((k for k, taken in enumerate(free) if taken <= left), len(free))
        free[line : line + 1] = [left + (len(span.name) + 1) * 7 / CELL]
        at = {"xref": "x", "yref": "paper", "ysizemode": "pixel", "yanchor": 1}
        fig.add_shape(type="rect", x0=left + 0.08, x1=right - 0.08, y0=4, y1=8, fillcolor=INK, line_width=0, **at)
        place = {"yref": "paper", "yshift": 8 + 16 * line, "xanchor": "left", "yanchor": "bottom"}
        note(fig, span.name, left, 1, font_size=12, **place)
    return len(free)
