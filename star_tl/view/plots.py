"""Figures of attribution and of steering, in one visual language.

Every layer axis runs upward from layer 0; blue raises the trait, vermilion lowers it, on scales that are
centred at zero; every arm of a comparison keeps its colour. Figures have transparent backgrounds
and neutral ink, so that they read on a light and on a dark page and as static SVG or PNG.
"""

from __future__ import annotations

import html
import math
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
from star_tl.errors import StarError
from star_tl.locus import COMPONENTS, WRITES
from star_tl.stats import mean_interval

if TYPE_CHECKING:
    import pandas

    from star_tl.attribution.verify import Verification
    from star_tl.evaluation.sweep import Comparison

# Okabe & Ito's colours, which colour-blind readers tell apart.
BLUE, SKY, GREEN, ORANGE, PINK, VERMILION, GREY = (
    "#0072B2", "#56B4E9", "#009E73", "#E69F00", "#CC79A7", "#D55E00", "#999999",
)  # fmt: skip
ARM_COLOURS = {
    "unsteered": GREY,
    "steered": BLUE,
    "random": ORANGE,
    "last_ranked_layer": PINK,
    "reply_mean_everywhere": SKY,
    "primed": GREEN,
}
OTHER_ARM = "#A6761D"
LOCUS_COLOURS = (BLUE, GREEN, PINK, SKY, OTHER_ARM)  # orange stands for drift, grey for unsteered
DASHES = ("solid", "dash", "dot", "dashdot", "longdash")
SYMBOLS = ("circle", "square", "diamond", "triangle-up", "cross")
INK = "#757575"  # legible on white and on near-black alike
GRID = "rgba(128,128,128,0.25)"
# Negative to positive; a light middle for light pages, a dark one for dark pages.
DIVERGING = [[0, "#7A3600"], [0.2, VERMILION], [0.5, "#F7F7F7"], [0.8, BLUE], [1, "#003B5C"]]
DIVERGING_DARK = [[0, "#FFC79E"], [0.2, VERMILION], [0.5, "#22262B"], [0.8, "#2F93D1"], [1, "#BFE3FA"]]
RATES, RATES_DARK = [[0, "#F7F7F7"], [1, BLUE]], [[0, "#22262B"], [1, "#2F93D1"]]

SIGN = "positive = toward clean raises the trait"
SCORE = "score (nats)"
MONOSPACE = "ui-monospace, Menlo, Consolas, monospace"
SANS = "system-ui, -apple-system, 'Segoe UI', Helvetica, Arial, sans-serif"
CELL, MIN_PLOT = 22, 340  # pixels: side of a heatmap cell; least height of the plotting area
_AXIS = {
    "gridcolor": GRID,
    "zerolinecolor": GRID,
    "ticks": "",
    "ticklabelstandoff": 4,
    "automargin": True,
    "title": {"standoff": 10, "font": {"size": 13}},
}
TEMPLATE = go.layout.Template(
    layout={
        "font": {"family": SANS, "size": 13, "color": INK},
        "paper_bgcolor": "rgba(0,0,0,0)",
        "plot_bgcolor": "rgba(0,0,0,0)",
        "xaxis": _AXIS,
        "yaxis": _AXIS,
        "title": {"x": 0, "xref": "container", "xanchor": "left", "y": 1, "yanchor": "top", "pad": {"t": 14, "l": 4}},
        "showlegend": False,
        "legend": {"orientation": "h", "x": 0, "y": 1.02, "xanchor": "left", "yanchor": "bottom"},
        "hoverlabel": {"font": {"family": MONOSPACE, "size": 12}},
    }
)


def plot_layers(attr: AttributionMap) -> go.Figure:
    """Layer × component: mean over pairs of the scores summed over positions, nats.

    The residual stream adds up along depth and is drawn apart from what attention and MLP write,
    each part on a colour scale of its own.
    """
    scores = attr.scores.sum(-1)
    parts = {
        "residual stream (adds up)": [c for c in COMPONENTS if c not in WRITES],
        "writes (this layer's own)": list(WRITES),
    }
    fig = make_subplots(1, 2, shared_yaxes=True, column_widths=[3, 2], horizontal_spacing=0.06)
    for col, (heading, names) in enumerate(parts.items(), start=1):
        axis = f"coloraxis{col}"
        part = scores[:, [COMPONENTS.index(c) for c in names]].transpose(1, 2)
        cells = _heatmap(part, names, "blocks.%{y}.hook_%{x}<br>layer %{y}", coloraxis=axis)
        z = part.mean(0).numpy()
        cells.update(text=[[signed(v) for v in row] for row in z], texttemplate="%{text}", textfont_size=11)
        fig.add_trace(cells, row=1, col=col)
        left, right = fig.layout[f"xaxis{col}"].domain
        bar = _colorbar(orientation="h", x=(left + right) / 2, len=(right - left) * 0.98, y=0, yanchor="top", ypad=36)
        fig.update_layout({axis: _coloraxis(z, bar)})
        _note(fig, f"<b>{heading}</b>", (left + right) / 2, 1, xref="paper", yref="paper", yanchor="bottom")
    if attr.prices_layers and (choice := attr.choose_layer()).singled_out:
        share = percent(float(choice.frequency[choice.layer]))
        _note(
            fig, f"◂ chosen in {share}<br>   of resamples", 1, choice.layer, xref="paper", xanchor="left", align="left"
        )
    _layer_axis(fig, attr.n_layers, col=1)
    fig.update_yaxes(showgrid=False, col=2)
    fig.update_xaxes(showgrid=False)
    title, subtitle = f"Where {_trait(attr)} is carried, by layer", f"{_mean(attr)}; {SIGN}; two colour scales"
    fig = _finish(fig, title, subtitle, 780, _rows(attr.n_layers) + 205, b=100)
    return fig.update_layout(margin_r=120)


def plot_heads(attr: AttributionMap) -> go.Figure:
    """Layer × head: mean over pairs of the scores at ``attn.hook_z`` summed over positions, nats."""
    scores, z = attr.head_scores.sum(-1), attr.head_layer_scores().numpy()
    hover = "blocks.%{y}.attn.hook_z<br>layer %{y}, head %{x}"
    fig = go.Figure(_heatmap(scores, list(range(z.shape[1])), hover))
    fig.update_layout(coloraxis=_coloraxis(z))
    fig.update_xaxes(title_text="head", showgrid=False, dtick=_step(z.shape[1]))
    _layer_axis(fig, attr.n_layers)
    title, subtitle = f"Heads that carry {_trait(attr)}", f"attn.hook_z; {_mean(attr)}; {SIGN}"
    return _finish(fig, title, subtitle, max(560, CELL * z.shape[1] + 190), _rows(attr.n_layers) + 150)


def plot_tokens(attr: AttributionMap, pair: int | None = None, component: str = "resid_post") -> go.Figure:
    """Layer × token, nats: one pair's prompt and positive reply, or the mean at the prompt's end.

    Positions count from the end of the prompt as in a Locus: -1 is its last token, 0 the first of the reply.

    Args:
        attr: the attribution map.
        pair: index of a pair; None for the mean over pairs at the last ``attr.window`` positions.
        component: one of COMPONENTS.

    Raises:
        StarError: no such pair or component.
    """
    scores, end, n = attr.component(component), attr.prompt_end, len(attr.pair_ids)
    if pair is None:
        first, last = end - attr.window, end
        spans = shared_spans(attr, first)
        shared = [{row[i] for row in attr.tokens} for i in range(first, last)]
        names = [visible(t.pop()) if len(t) == 1 else "" for t in shared]
        ticks = [f"{name}  {i - end}" if name else str(i - end) for i, name in enumerate(names, first)]
        where, of = "at the end of the prompt", _mean(attr)
    else:
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
    shown = scores[..., first:last]
    fig = go.Figure(_heatmap(shown, offsets, hover, text=[described] * attr.n_layers))
    fig.update_layout(coloraxis=_coloraxis(shown.mean(0).numpy()))
    fig.update_xaxes(tickvals=offsets, ticktext=ticks, tickangle=-60, tickfont_family=MONOSPACE, showgrid=False)
    fig.update_xaxes(ticklabeloverflow="allow")  # else plotly.js measures every label, which takes it half a second
    if pair is None:
        fig.update_xaxes(title_text="token and position from the end of the prompt")
    _layer_axis(fig, attr.n_layers)
    levels = _mark_spans(fig, spans, end)
    title, subtitle = f"Where {_trait(attr)} is carried, {where}", f"hook_{component}; {of}; {SIGN}"
    width, height = max(620, CELL * len(offsets) + 190), _rows(attr.n_layers) + 200 + 16 * levels
    return _finish(fig, title, subtitle, width, height, t=78 + 16 * levels)


def plot_choice(attr: AttributionMap) -> go.Figure:
    """What drift buys of the metric at each layer, nats, with 95 % bootstrap intervals.

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
            error_x=_whiskers(gain, low, high) if choice.bootstrapped else None,
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
            _note(fig, words, max(float(high[layer]), 0.0), layer, xanchor="left", xshift=6)
    fig.add_vline(
        x=choice.null,
        line={"color": GREY, "dash": "dot", "width": 1},
        annotation_text=f"95 % of random directions stay below (p {choice.p_value:.3f})",
        annotation_position="bottom right",
        annotation_font_size=11,
    )
    ends = (low, high) if choice.bootstrapped else (gain, gain)
    least, most = min(float(ends[0].min()), 0.0), max(float(ends[1].max()), choice.null)
    reach = (most - least) or 1.0
    room = [least - 0.03 * reach, most + 0.5 * reach]  # at the right for the words
    fig.update_xaxes(
        title_text=f"gain in the metric (nats) at {GAIN_DRIFT:g} nat drift per token, to leading order", range=room
    )
    _layer_axis(fig, attr.n_layers)
    title = f"At layer {choice.layer} drift buys most of {_trait(attr)}"
    if not choice.bootstrapped:
        title = f"Too few pairs to single out a layer for {_trait(attr)}"
    elif not choice.singled_out:
        tie = f": {listed(choice.tied)} tie" if len(choice.tied) > 1 else ""
        title = f"No one layer for {_trait(attr)}{tie}"
    subtitle = f"vector added to the last prompt token; {_mean(attr)}; {SIGN}"
    return _finish(fig, title, subtitle, 680, _rows(attr.n_layers) + 150)


def plot_outcome(outcome: OutcomeMap) -> go.Figure:
    """Layer × position: what drift buys of the reward along the outcome's own direction there, cross-fitted."""
    names = [*map(str, range(-outcome.window, 0)), "generated"]
    hover = "blocks.%{y}.hook_resid_post<br>layer %{y}, position %{x}"
    fig = _gain_map(outcome, outcome.gains(), outcome.errors(), names, hover)
    fig.update_xaxes(title_text="position from the end of the prompt", type="category")
    title = f"Where {visible(outcome.reward.replace('_', ' '), whitespace=False)} can be raised"
    width = max(620, 2 * CELL * len(names) + 190)
    return _finish(fig, title, _outcome_subtitle(outcome, "resid_post"), width, _rows(outcome.n_layers) + 150)


def plot_outcome_heads(outcome: OutcomeMap, positions: str | int = "generated") -> go.Figure:
    """Layer × head: the same at ``attn.hook_z``, at generated tokens or at one prompt position.

    Raises:
        StarError: a position that the map does not hold.
    """
    names = [*range(-outcome.window, 0), "generated"]
    if positions not in names:
        raise StarError(f"positions is {positions!r}: use 'generated' or -{outcome.window} to -1.")
    gains, errors = (t[:, names.index(positions)] for t in (outcome.gains("z"), outcome.errors("z")))
    heads = list(range(gains.shape[1]))
    fig = _gain_map(outcome, gains, errors, heads, "blocks.%{y}.attn.hook_z<br>layer %{y}, head %{x}")
    fig.update_xaxes(title_text="head", dtick=_step(len(heads)))
    title = f"Heads that can raise {visible(outcome.reward.replace('_', ' '), whitespace=False)}"
    place = "generated tokens" if positions == "generated" else f"prompt token {positions}"
    subtitle = _outcome_subtitle(outcome, f"attn.hook_z, {place}")
    return _finish(fig, title, subtitle, max(620, CELL * len(heads) + 190), _rows(outcome.n_layers) + 150)


def _gain_map(outcome: OutcomeMap, gains: Tensor, errors: Tensor, x: Sequence[Any], hover: str) -> go.Figure:
    hover += "<br>gain %{z:+.3f} ± %{customdata:.3f}<extra></extra>"
    cells = {"z": gains.numpy(), "customdata": errors.numpy(), "x": x, "y": list(range(outcome.n_layers))}
    fig = go.Figure(go.Heatmap(**cells, hovertemplate=hover, coloraxis="coloraxis", xgap=1, ygap=1))
    bar = _colorbar(title={"text": "gain (reward)", "side": "top", "font": {"size": 13}})
    fig.update_layout(coloraxis=_coloraxis(gains.numpy(), bar))
    fig.update_xaxes(showgrid=False)
    _layer_axis(fig, outcome.n_layers)
    return fig


def _outcome_subtitle(outcome: OutcomeMap, where: str) -> str:
    return f"{where}; reward at {GAIN_DRIFT:g} nat drift per token, to first order; {len(outcome.replies)} replies"


def plot_dose(dose: pandas.DataFrame) -> go.Figure:
    """Dose–response: rates (left axis, %) and drift (right axis, nats per token) against strength.

    Args:
        dose: a row per strength with ``strength``, ``trait_rate``, ``coherent_rate``, ``drift``, and
            where known ``low_rate`` and ``high_rate``, the interval of the trait rate.
    """
    dose = dose.sort_values("strength")
    rate = 100 * dose["trait_rate"]
    interval = _whiskers(rate, 100 * dose["low_rate"], 100 * dose["high_rate"]) if "low_rate" in dose else None
    lines = [
        ("coherent replies with the trait", rate, BLUE, "solid", "circle", "%{y:.0f} %"),
        ("coherent replies", 100 * dose["coherent_rate"], GREY, "dot", "square", "%{y:.0f} %"),
        ("drift (right axis)", dose["drift"], ORANGE, "dash", "diamond", "%{y:.3f} nats per token"),
    ]
    fig = make_subplots(specs=[[{"secondary_y": True}]])
    for name, y, colour, dash, symbol, value in lines:
        fig.add_trace(
            go.Scatter(
                x=dose["strength"],
                y=y,
                name=name,
                mode="lines+markers",
                line={"color": colour, "dash": dash, "width": 2.5},
                marker={"symbol": symbol, "size": 8},
                error_y=interval if colour == BLUE else None,
                hovertemplate=f"strength %{{x}}<br>{name}: {value}<extra></extra>",
            ),
            secondary_y=colour == ORANGE,
        )
    fig.update_xaxes(title_text="strength (1 = the clean − corrupted difference)")
    fig.update_yaxes(title_text="share of replies", ticksuffix=" %", range=[0, 104], secondary_y=False)
    fig.update_yaxes(title_text="drift (nats per token)", rangemode="tozero", secondary_y=True)
    fig.update_yaxes(showgrid=False, tickmode="auto", nticks=6, secondary_y=True)
    title, subtitle = "How the trait answers to strength", "share of replies, and drift: what it costs"
    return _finish(fig, title, subtitle, 680, 440, t=110, showlegend=True)


def plot_arms(summary: pandas.DataFrame) -> go.Figure:
    """Share of replies that are coherent and show the trait (%, 95 % interval), and drift (nats per token), by arm."""
    names = [arm_name(a) for a in summary["arm"]]
    colours = [ARM_COLOURS.get(a, OTHER_ARM) for a in summary["arm"]]
    rate, low, high = (100 * summary[c].to_numpy(dtype=float) for c in ("trait_rate", "low_rate", "high_rate"))
    drift = summary["drift"].to_numpy(dtype=float)
    fig = make_subplots(1, 2, shared_yaxes=True, column_widths=[0.72, 0.28], horizontal_spacing=0.04)
    bars = go.Bar(
        x=rate,
        y=names,
        orientation="h",
        marker_color=colours,
        error_x=_whiskers(rate, low, high),
        customdata=np.stack([low, high, summary["n"].to_numpy(dtype=float)], axis=1),
        hovertemplate="%{y}: %{x:.1f} %, interval %{customdata[0]:.1f} to %{customdata[1]:.1f} %"
        "<br>%{customdata[2]:d} replies<extra></extra>",
    )
    costs = go.Bar(
        x=drift,
        y=names,
        orientation="h",
        marker={"color": colours, "opacity": 0.55},
        text=[f"{d:.2f}" if math.isfinite(d) else "–" for d in drift],
        textposition="outside",
        cliponaxis=False,
        hovertemplate="%{y}: drift %{x:.3f} nats per token<extra></extra>",
    )
    fig.add_trace(bars, row=1, col=1)
    fig.add_trace(costs, row=1, col=2)
    for name, value, end in zip(names, rate, high, strict=True):
        at = max(v for v in (value, end, 0) if math.isfinite(v))
        _note(fig, f"<b>{percent(value / 100)}</b>", at, name, xanchor="left", xshift=6, row=1, col=1)
    fig.update_xaxes(title_text="coherent replies with the trait", ticksuffix=" %", col=1)
    fig.update_xaxes(range=[0, 114], tickvals=[0, 25, 50, 75, 100], col=1)
    most = max([d for d in drift if math.isfinite(d)], default=0.0)
    fig.update_xaxes(title_text="drift (nats per token)", nticks=4, range=[0, 1.5 * most or 1], col=2)
    fig.update_yaxes(autorange="reversed", showgrid=False)
    height = 34 * len(names) + 165
    return _finish(fig, "What each arm does", "whiskers: 95 % intervals of the rate", 760, height, bargap=0.35)


def plot_comparison(comparison: Comparison) -> go.Figure:
    """Place × strength: percentage of coherent replies with the trait, and the drift (nats per token) below it."""
    table = comparison.summary()
    unsteered = float(table.loc[table.strength == 0, "trait_rate"].iloc[0])
    steered = table[table.layer >= 0].copy()
    shared = steered.positions.nunique() == 1
    steered["place"] = steered.locus if shared else steered.locus + ", " + steered.positions
    places = list(dict.fromkeys(steered.place))
    rate, drift = (
        steered.pivot(index="place", columns="strength", values=name).loc[places] for name in ("trait_rate", "drift")
    )
    fig = go.Figure(
        go.Heatmap(
            z=100 * rate.to_numpy(),
            x=[f"{x:g}" for x in rate.columns],
            y=[visible(p, whitespace=False) for p in places],
            text=[[f"{d:.2f}" for d in row] for row in drift.to_numpy()],
            texttemplate="%{z:.0f} %<br>%{text}",
            hovertemplate="%{y}<br>strength %{x}: %{z:.0f} % of replies<br>drift %{text} nats per token<extra></extra>",
            colorscale=RATES,
            zmin=0,
            zmax=100,
            colorbar={"title": {"text": "%"}, "thickness": 12, "outlinewidth": 0, "nticks": 5},
            xgap=2,
            ygap=2,
        )
    )
    fig.update_xaxes(title_text="strength (1 = the natural difference)", type="category", showgrid=False)
    fig.update_yaxes(type="category", showgrid=False)
    title = f"Where {visible(comparison.trait.replace('_', ' '), whitespace=False)} can be turned up"
    n = int(steered.n.min())
    subtitle = f"coherent replies with the trait, drift below; unsteered {percent(unsteered)}; {n} replies a cell"
    return _finish(fig, title, subtitle, max(560, 90 * rate.shape[1] + 330), max(MIN_PLOT, 42 * len(places)) + 150)


def plot_loci(comparison: Comparison) -> go.Figure:
    """Rate of coherent replies with the trait (%) and drift (nats per token) against strength, a line per place."""
    table = comparison.summary()
    unsteered, steered = table.loc[table.layer < 0], table.loc[table.layer >= 0]
    shared = steered.positions.nunique() == 1
    fig = make_subplots(1, 2, horizontal_spacing=0.13)
    for k, ((locus, positions), rows) in enumerate(steered.groupby(["locus", "positions"], sort=False)):
        name = visible(locus if shared else f"{locus}, {positions}", whitespace=False)
        rows = rows.sort_values("strength")
        style = {
            "line": {"color": LOCUS_COLOURS[k % len(LOCUS_COLOURS)], "dash": DASHES[k % len(DASHES)], "width": 2.5},
            "marker": {"size": 8, "symbol": SYMBOLS[k % len(SYMBOLS)]},
        }
        for col, y, value in ((1, 100 * rows.trait_rate, "%{y:.0f} %"), (2, rows.drift, "%{y:.3f} nats per token")):
            hover = f"{name}<br>strength %{{x}}: {value}<extra></extra>"
            line = go.Scatter(x=rows.strength, y=y, name=name, showlegend=col == 1, mode="lines+markers", **style)
            fig.add_trace(line.update(hovertemplate=hover, legendgroup=name), row=1, col=col)
    rate, ends = 100 * float(unsteered.trait_rate.iloc[0]), [steered.strength.min(), steered.strength.max()]
    none = go.Scatter(x=ends, y=[rate, rate], name="unsteered", mode="lines", line={"color": GREY, "dash": "dot"})
    fig.add_trace(none.update(hovertemplate="unsteered: %{y:.0f} %<extra></extra>"), row=1, col=1)
    fig.update_xaxes(title_text="strength (1 = the natural difference)")
    fig.update_yaxes(title_text="coherent replies with the trait", ticksuffix=" %", range=[0, 104], col=1)
    fig.update_yaxes(title_text="drift (nats per token)", rangemode="tozero", col=2)
    title = f"What each place does to {visible(comparison.trait.replace('_', ' '), whitespace=False)}"
    subtitle = f"rate on the left, its cost on the right; {int(steered.n.min())} replies a point"
    places = len(list(fig.data)) // 2
    return _finish(fig, title, subtitle, 820, 420 + 20 * places, t=90 + 20 * places, showlegend=True)


def plot_effects(summary: pandas.DataFrame) -> go.Figure:
    """Difference of every arm to the unsteered replies of the same prompts, percentage points, 95 % intervals."""
    rows = summary[summary["arm"] != "unsteered"]
    names = [arm_name(a) for a in rows["arm"]]
    value, low, high = (rows[c].to_numpy(dtype=float) for c in ("difference", "low", "high"))
    fig = go.Figure(
        go.Scatter(
            x=value,
            y=names,
            mode="markers",
            marker={"size": 12, "color": [ARM_COLOURS.get(a, OTHER_ARM) for a in rows["arm"]]},
            error_x=_whiskers(value, low, high),
            customdata=np.stack([low, high, rows["p_value"].to_numpy(dtype=float)], axis=1),
            hovertemplate="%{y}: %{x:+.1f} points<br>95 % interval %{customdata[0]:+.1f} to %{customdata[1]:+.1f}"
            "<br>p %{customdata[2]:.3f} (Holm)<extra></extra>",
        )
    )
    fig.add_vline(x=0, line={"color": INK, "width": 1})
    for name, x, end in zip(names, value, high, strict=True):
        if math.isfinite(x):
            at = end if math.isfinite(end) else x
            _note(fig, f"<b>{x:+.0f}</b>".replace("-", "−"), at, name, xanchor="left", xshift=8)
    fig.update_xaxes(title_text="difference to unsteered (percentage points)", range=[-105, 115], zeroline=False)
    fig.update_yaxes(autorange="reversed", showgrid=False, type="category")
    height = max(MIN_PLOT - 100, 38 * len(names)) + 150
    return _finish(fig, "What each arm changes", "paired by prompt; whiskers: 95 % intervals", 680, height)


def plot_verification(verification: Verification) -> go.Figure:
    """Attribution's estimate against exact patching, nats, a point per locus; on the line they agree."""
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
    return _finish(fig, "Estimate against exact patching", subtitle, 620, 520)


def on_dark(fig: go.Figure) -> go.Figure:
    """The figure for a dark page or slide: the same, with dark middles of its colour scales and light ink."""
    fig = go.Figure(fig)
    for axis in (a for a in fig.layout if a.startswith("coloraxis")):
        fig.layout[axis].colorscale = DIVERGING_DARK
    fig.update_traces(colorscale=RATES_DARK, selector=lambda t: t.type == "heatmap" and t.coloraxis is None)
    return fig.update_layout(paper_bgcolor="#14171A", font_color="#C9CED3")


def signed(score: float, digits: int = 3) -> str:
    """A score with its sign, or none where it rounds to zero."""
    text = f"{score:+.{digits}f}".replace("-", "−")
    return text if text.strip("+−0.") else text[1:]


def visible(token: str, whitespace: bool = True) -> str:
    """Text for a plotly label: HTML is shown, not interpreted, and so is whitespace."""
    if whitespace:
        token = token.replace(" ", "␣").replace("\r", "␍").replace("\n", "↵").replace("\t", "⇥") or "∅"
    # Where a page has MathJax, two dollar signs would make plotly read a label as a formula.
    return html.escape(token, quote=False).replace("$", "&#36;")


def arm_name(arm: str) -> str:
    """An arm's name for readers."""
    return visible(str(arm).replace("_", " "), whitespace=False)


def percent(share: float) -> str:
    """A share as a percentage, or a dash where it is unknown."""
    return f"{100 * share:.0f}\N{NO-BREAK SPACE}%" if math.isfinite(share) else "–"


def _trait(attr: AttributionMap) -> str:
    return visible(attr.trait.replace("_", " "), whitespace=False)


def _mean(attr: AttributionMap) -> str:
    return f"mean over {len(attr.pair_ids)} pairs"


def _step(n: int) -> int:
    return 1 if n <= 16 else 2 if n <= 40 else 4


def _rows(n_layers: int) -> int:
    return max(MIN_PLOT, CELL * n_layers)


def _heatmap(scores: Float[Tensor, "pair row column"], x: Sequence[Any], hover: str, **options: Any) -> go.Heatmap:
    """The mean over pairs; where there are several, its interval is in the hover."""
    options = {"coloraxis": "coloraxis", "xgap": 1, "ygap": 1, **options}
    hover += "<br>score %{z:+.4f} nats"
    if len(scores) > 1:
        options["customdata"] = torch.stack(mean_interval(scores), dim=-1).numpy()
        hover += "<br>95 % interval %{customdata[0]:+.4f} to %{customdata[1]:+.4f}"
    z = scores.mean(0).numpy()
    return go.Heatmap(z=z, x=x, y=list(range(len(z))), hovertemplate=f"{hover}<extra></extra>", **options)


def _colorbar(**place: Any) -> dict[str, Any]:
    title = {"text": SCORE, "side": "top", "font": {"size": 13}}
    return {"title": title, "thickness": 12, "outlinewidth": 0, "nticks": 5, **place}


def _coloraxis(z: np.ndarray, bar: dict[str, Any] | None = None) -> dict[str, Any]:
    """Blue above zero, vermilion below, white at zero; both sides reach equally far."""
    limit = float(np.abs(z).max()) or 1.0
    return {"colorscale": DIVERGING, "cmin": -limit, "cmax": limit, "colorbar": bar or _colorbar()}


def _whiskers(value: Any, low: Any, high: Any) -> dict[str, Any]:
    value, low, high = (np.asarray(v, dtype=float) for v in (value, low, high))
    ends = {"array": high - value, "arrayminus": value - low, "symmetric": False}
    return {**ends, "thickness": 1.5, "width": 4, "color": INK}


def _note(fig: go.Figure, text: str, x: Any, y: Any, **place: Any) -> None:
    fig.add_annotation(text=text, x=x, y=y, **{"showarrow": False, "xanchor": "center", **place})


def _layer_axis(fig: go.Figure, n: int, col: int | None = None) -> None:
    fig.update_yaxes(title_text="layer", dtick=_step(n), range=[-0.5, n - 0.5], showgrid=False, zeroline=False, col=col)


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
        _note(fig, span.name, left, 1, font_size=12, **place)
    return len(free)


def _finish(
    fig: go.Figure, title: str, subtitle: str, width: int, height: int, t: int = 92, b: int = 60, **layout: Any
) -> go.Figure:
    return fig.update_layout(
        template=TEMPLATE,
        title={"text": f"<b>{title}</b>", "font_size": 16, "subtitle": {"text": subtitle, "font_size": 12.5}},
        width=width,
        height=height,
        margin={"t": t, "b": b, "l": 60, "r": 20},
        **layout,
    )
