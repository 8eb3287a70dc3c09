"""Figures of replies: what every arm, place and strength does, and what it costs."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from star_tl.attribution.choose import GAIN_DRIFT
from star_tl.view.plots.look import (
    ARM_COLOURS,
    BLUE,
    DASHES,
    GREY,
    INK,
    LOCUS_COLOURS,
    MIN_PLOT,
    ORANGE,
    OTHER_ARM,
    RATES,
    SYMBOLS,
    arm_name,
    finish,
    note,
    percent,
    styled,
    visible,
    whiskers,
)

if TYPE_CHECKING:
    import pandas

    from star_tl.evaluation.intervention import InterventionChoice
    from star_tl.evaluation.sweep import Comparison


@styled
def plot_dose(dose: pandas.DataFrame, chosen: float | None = None, limit: float | None = None) -> go.Figure:
    """Dose–response: rates (left axis, %) and drift (right axis, nats per token) against strength.

        plot_dose(choice.curve, chosen=choice.strength, limit=choice.limit)

    Args:
        dose: a row per strength with ``strength``, ``trait_rate``, ``coherent_rate``, ``drift``, and
            where known ``low_rate`` and ``high_rate``, the interval of the trait rate.
        chosen: a strength to mark.
        limit: of drift, nats per token, to mark.
    """
    dose = dose.sort_values("strength")
    rate = 100 * dose["trait_rate"]
    interval = whiskers(rate, 100 * dose["low_rate"], 100 * dose["high_rate"]) if "low_rate" in dose else None
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
    if chosen is not None:
        fig.add_vline(x=chosen, line={"color": INK, "dash": "dash", "width": 1.5})
        note(fig, f"chosen: {chosen:.3g}", chosen, 1, yref="paper", yanchor="bottom", font_size=12)
    if limit is not None:
        ends = [float(dose["strength"].min()), float(dose["strength"].max())]
        line = {"color": ORANGE, "dash": "dot", "width": 1.5}
        name = f"drift limit {limit:g} (right axis)"
        fig.add_trace(
            go.Scatter(x=ends, y=[limit, limit], name=name, mode="lines", line=line, hoverinfo="skip"), secondary_y=True
        )
    title, subtitle = "How the trait answers to strength", "share of replies, and drift: what it costs"
    return finish(fig, title, subtitle, 680, 460, t=128, showlegend=True)


@styled
def plot_arms(summary: pandas.DataFrame) -> go.Figure:
    """Share of replies that are coherent and show the trait (%, 95 % interval), and drift (nats per token), by arm.

    plot_arms(star.run(model, pairs).summary)
    """
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
        error_x=whiskers(rate, low, high),
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
        note(fig, f"<b>{percent(value / 100)}</b>", at, name, xanchor="left", xshift=6, row=1, col=1)
    fig.update_xaxes(title_text="coherent replies with the trait", ticksuffix=" %", col=1)
    fig.update_xaxes(range=[0, 114], tickvals=[0, 25, 50, 75, 100], col=1)
    most = max([d for d in drift if math.isfinite(d)], default=0.0)
    fig.update_xaxes(title_text="drift (nats per token)", nticks=4, range=[0, 1.5 * most or 1], col=2)
    fig.update_yaxes(autorange="reversed", showgrid=False)
    height = 34 * len(names) + 165
    return finish(fig, "What each arm does", "whiskers: 95 % intervals of the rate", 760, height, bargap=0.35)


@styled
def plot_comparison(comparison: Comparison) -> go.Figure:
    """Place × strength: percentage of coherent replies with the trait, and the drift (nats per token) below it.

    star.compare(model, pairs, prompts, loci, strengths=(1.0, 2.0)).plot()
    """
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
            text=[
                [f"{percent(r)}<br>{d:.2f}" for r, d in zip(*both, strict=True)]
                for both in zip(rate.to_numpy(), drift.to_numpy(), strict=True)
            ],
            texttemplate="%{text}",
            hovertemplate="%{y}<br>strength %{x}: replies and drift (nats per token)<br>%{text}<extra></extra>",
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
    return finish(fig, title, subtitle, max(560, 90 * rate.shape[1] + 330), max(MIN_PLOT, 42 * len(places)) + 150)


@styled
def plot_loci(comparison: Comparison) -> go.Figure:
    """Rate of coherent replies with the trait (%) and drift (nats per token) against strength, a line per place.

    plot_loci(star.compare(model, pairs, prompts, loci), style="paper", width=6.5)
    """
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
    return finish(fig, title, subtitle, 820, 420 + 20 * places, t=90 + 20 * places, showlegend=True)


@styled
def plot_effects(summary: pandas.DataFrame) -> go.Figure:
    """Difference of every arm to the unsteered replies of the same prompts, percentage points, 95 % intervals.

    plot_effects(star.run(model, pairs).summary)
    """
    rows = summary[summary["arm"] != "unsteered"]
    names = [arm_name(a) for a in rows["arm"]]
    value, low, high = (rows[c].to_numpy(dtype=float) for c in ("difference", "low", "high"))
    fig = go.Figure(
        go.Scatter(
            x=value,
            y=names,
            mode="markers",
            marker={"size": 12, "color": [ARM_COLOURS.get(a, OTHER_ARM) for a in rows["arm"]]},
            error_x=whiskers(value, low, high),
            customdata=np.stack([low, high, rows["p_value"].to_numpy(dtype=float)], axis=1),
            hovertemplate="%{y}: %{x:+.1f} points<br>95 % interval %{customdata[0]:+.1f} to %{customdata[1]:+.1f}"
            "<br>p %{customdata[2]:.3f} (Holm)<extra></extra>",
        )
    )
    fig.add_vline(x=0, line={"color": INK, "width": 1})
    for name, x, end in zip(names, value, high, strict=True):
        if math.isfinite(x):
            at = end if math.isfinite(end) else x
            note(fig, f"<b>{x:+.0f}</b>".replace("-", "−"), at, name, xanchor="left", xshift=8)
    fig.update_xaxes(title_text="difference to unsteered (percentage points)", range=[-105, 115], zeroline=False)
    fig.update_yaxes(autorange="reversed", showgrid=False, type="category")
    height = max(MIN_PLOT - 100, 38 * len(names)) + 150
    return finish(fig, "What each arm changes", "paired by prompt; whiskers: 95 % intervals", 680, height)


@styled
def plot_interventions(choice: InterventionChoice) -> go.Figure:
    """What attribution predicted of every finalist beside the reward that its replies got, at equal drift.

        plot_interventions(star.choose_intervention(model, pairs))

    Filled symbols went on to the last round; the line is the unsteered replies' reward.
    """
    table = choice.table
    last = table["rounds"].max()
    fig = go.Figure()
    for k, (source, part) in enumerate(table.groupby("source", sort=False)):
        shapes = [SYMBOLS[k % len(SYMBOLS)] + ("" if rounds == last else "-open") for rounds in part["rounds"]]
        told = part[["layer", "where", "strength", "drift", "n"]].astype(object).to_numpy()
        fig.add_trace(
            go.Scatter(
                x=part["predicted"],
                y=part["reward"],
                name=str(source),
                mode="markers",
                marker={"symbol": shapes, "size": 12, "color": LOCUS_COLOURS[k % len(LOCUS_COLOURS)]},
                customdata=told,
                hovertemplate=f"{source}, layer %{{customdata[0]}} @ %{{customdata[1]}}<br>"
                "strength %{customdata[2]:.3g}, drift %{customdata[3]:.2f} nat<br>"
                "predicted gain %{x:.3f}, reward %{y:.3f} (n = %{customdata[4]})"
                "<extra></extra>",
            )
        )
    unsteered = choice.unsteered.to_dict()["reward"]
    fig.add_hline(y=unsteered, line={"color": GREY, "dash": "dot", "width": 1.5})
    note(fig, "unsteered", 1, unsteered, xref="paper", xanchor="right", yanchor="bottom")
    fig.update_xaxes(title_text=f"predicted gain at {GAIN_DRIFT:g} nat a token")
    fig.update_yaxes(title_text=f"{choice.reward} of real replies")
    bought = f"What {choice.target:.2f} nat of drift a token bought"
    legend = {"orientation": "h", "y": -0.2, "yanchor": "top", "x": 0}
    return finish(
        fig, bought, "filled: went on to the last round", 680, MIN_PLOT + 150, b=100, showlegend=True, legend=legend
    )
