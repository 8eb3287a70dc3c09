"""Figures of an evaluation, in the visual language of the others."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import plotly.graph_objects as go
from jaxtyping import Float
from plotly.subplots import make_subplots
from scipy.optimize import isotonic_regression

from star_tl.view.plots.look import (
    BLUE,
    GREEN,
    GREY,
    GRID,
    INK,
    ORANGE,
    PINK,
    SKY,
    VERMILION,
    coloraxis,
    colorbar,
    finish,
    note,
    styled,
    whiskers,
)

if TYPE_CHECKING:
    import pandas

COLOURS = {
    "unsteered": GREY,
    "chosen": BLUE,
    "located": BLUE,
    "wrong layer": PINK,
    "all layers": VERMILION,
    "random": ORANGE,
    "shuffled labels": ORANGE,
    "priming": GREEN,
    "few-shot": GREEN,
    "priming + located": GREEN,
}
ANOTHER = SKY
DOTTED = ("located", "few-shot")  # beside another of the same colour


@styled
def plot_conditions(table: pandas.DataFrame, measure: str) -> go.Figure:
    """Difference of every condition to the unsteered replies of the same prompts, with 95 % intervals.

    plot_conditions(evaluation.table, "markers")
    """
    rows = table[(table.measure == measure) & (table.condition != "unsteered")]
    value, low, high = (rows[c].to_numpy(dtype=float) for c in ("difference", "low", "high"))
    fig = go.Figure(
        go.Scatter(
            x=value,
            y=rows.condition,
            mode="markers",
            marker={"size": 11, "color": [COLOURS.get(c, ANOTHER) for c in rows.condition]},
            error_x=whiskers(value, low, high),
            customdata=rows[["low", "high", "p_holm", "drift"]].to_numpy(dtype=float),
            hovertemplate="%{y}: %{x:+.2f}<br>95 % interval %{customdata[0]:+.2f} to %{customdata[1]:+.2f}"
            "<br>p %{customdata[2]:.3f} (Holm), drift %{customdata[3]:.3f}<extra></extra>",
        )
    )
    fig.add_vline(x=0, line={"color": INK, "width": 1})
    fig.update_xaxes(title_text=f"{measure}: difference to unsteered", zeroline=False)
    fig.update_yaxes(autorange="reversed", showgrid=False, type="category")
    subtitle = f"paired by prompt, {int(rows.n.max())} prompts; whiskers: 95 % intervals"
    return finish(fig, f"What each condition does to {measure}", subtitle, 760, 34 * len(rows) + 150)


@styled
def plot_frontier(table: pandas.DataFrame, measure: str) -> go.Figure:
    """Effect over what it cost: difference to unsteered against drift, a point per condition.

    plot_frontier(evaluation.table, "markers", style="paper", width=3.3)
    """
    rows = table.loc[(table.measure == measure) & (table.condition != "unsteered")].sort_values("difference")
    value, low, high = (rows[c].to_numpy(dtype=float) for c in ("difference", "low", "high"))
    fig = go.Figure(
        go.Scatter(
            x=rows.drift,
            y=value,
            mode="markers",
            text=rows.condition,
            marker={"size": 11, "color": [COLOURS.get(c, ANOTHER) for c in rows.condition]},
            error_y=whiskers(value, low, high),
            hovertemplate="%{text}: %{y:+.2f} at %{x:.3f} nats per token<extra></extra>",
        )
    )
    fig.add_hline(y=0, line={"color": INK, "width": 1})
    # Most lie at one drift: names stand in a column of their own, each as high as its point as far as there is room.
    most, reach = float(rows.drift.max()) or 1.0, float(np.nanmax([*high, 0]) - np.nanmin([*low, 0])) or 1.0
    heights = _apart(value, reach / 17)
    for name, x, y, height in zip(rows.condition, rows.drift, value, heights, strict=True):
        place = {"axref": "x", "ayref": "y", "ax": 1.12 * most, "ay": height, "xanchor": "left"}
        line = {"showarrow": True, "arrowhead": 0, "arrowwidth": 1, "arrowcolor": GRID, "standoff": 7}
        note(fig, str(name), float(x), float(y), **place, **line)
    fig.update_xaxes(title_text="drift (nats per token)", range=[0, 1.7 * most])
    fig.update_yaxes(title_text=f"{measure}: difference to unsteered", zeroline=False)
    return finish(fig, "Effect against drift", "upper left: much effect for little drift", 760, 520)


def _apart(rising: Float[np.ndarray, " point"], gap: float) -> Float[np.ndarray, " point"]:
    """Heights no nearer to each other than ``gap``, in the same order, as near to the given ones as that allows."""
    steps = gap * np.arange(len(rising))
    return isotonic_regression(np.nan_to_num(rising) - steps).x + steps


@styled
def plot_matrix(matrix: pandas.DataFrame) -> go.Figure:
    """Every trait's vector on every trait: change of the share of replies with a marker.

    plot_matrix(evaluation.matrix)
    """
    table = matrix.pivot(index="vector", columns="measured", values="markers")
    values = table.to_numpy(dtype=float)
    fig = go.Figure(
        go.Heatmap(
            z=values,
            x=[c.replace("_", " ") for c in table.columns],
            y=[c.replace("_", " ") for c in table.index],
            coloraxis="coloraxis",
            hovertemplate="vector of %{y}, measured %{x}: %{z:+.2f}<extra></extra>",
            text=[[f"{v:+.2f}" for v in row] for row in values],  # rounded as the table is
            texttemplate="%{text}",
        )
    )
    fig.update_layout(
        coloraxis=coloraxis(np.nan_to_num(values), colorbar(title={"text": "change of share", "side": "top"}))
    )
    fig.update_xaxes(title_text="measured trait")
    fig.update_yaxes(title_text="vector", autorange="reversed")
    return finish(fig, "Side effects on other traits", "all vectors at one place and at equal drift", 760, 480)


@styled
def plot_turns(turns: pandas.DataFrame) -> go.Figure:
    """Coherent replies with a marker, and drift, turn by turn: a line per condition.

    plot_turns(evaluation.turns)
    """
    fig = make_subplots(rows=2, cols=1, shared_xaxes=True, vertical_spacing=0.08)
    for name, group in turns.groupby("condition", sort=False):
        colour = COLOURS.get(str(name), ANOTHER)
        line = {"color": colour, "dash": "dot" if name in DOTTED else "solid"}
        for row, column in enumerate(("markers", "drift"), start=1):
            fig.add_trace(
                go.Scatter(
                    x=group.turn,
                    y=group[column],
                    name=str(name),
                    legendgroup=str(name),
                    showlegend=row == 1,
                    mode="lines+markers",
                    line=line,
                ),
                row=row,
                col=1,
            )
    fig.update_xaxes(dtick=1)
    fig.update_xaxes(title_text="turn", row=2, col=1)
    fig.update_yaxes(title_text="replies with a marker", tickformat=".0%", range=[-0.04, 1.04], row=1, col=1)
    fig.update_yaxes(title_text="drift (nats per token)", rangemode="tozero", row=2, col=1)
    subtitle = "mean over talks; the other side is unsteered"
    legend = {"orientation": "v", "x": 1.02, "xanchor": "left", "y": 1, "yanchor": "top"}
    return finish(fig, "Turn by turn", subtitle, 900, 620, showlegend=True, legend=legend)
