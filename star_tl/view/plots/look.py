"""The one visual language of all figures: colours, type, axes, and how numbers and names are written.

Figures have transparent backgrounds and neutral ink, so that they read on a light and on a dark page and as static
SVG or PNG; :func:`on_dark` and :func:`on_paper` are for slides and for print.
"""

from __future__ import annotations

import functools
import html
import math
import textwrap
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import plotly.graph_objects as go
from numpy.typing import ArrayLike

from star_tl.errors import check_name, check_number

# Okabe & Ito's colours, which colour-blind readers tell apart.
BLUE, SKY, GREEN, ORANGE, PINK, VERMILION, GREY = (
    "#0072B2", "#56B4E9", "#009E73", "#E69F00", "#CC79A7", "#D55E00", "#999999",
)  # fmt: skip
ARM_COLOURS = {
    "unsteered": GREY,
    "steered": BLUE,
    "located": SKY,
    "random": ORANGE,
    "last_ranked_layer": PINK,
    "reply_mean": VERMILION,
    "reply_mean_everywhere": VERMILION,
    "primed": GREEN,
    "primed_steered": "#004D40",
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
CELL, MIN_PLOT, MOST_PLOT = 22, 340, 900  # pixels: side of a heatmap cell; bounds of the plotting area's height
STYLES = ("screen", "paper", "dark")
INCH, LINE = 96, 17  # pixels; a line of a subtitle
_TOOLS = ["zoom", "pan", "select", "lasso", "zoomIn", "zoomOut", "autoScale", "resetScale"]
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


def styled(plot: Callable[..., go.Figure]) -> Callable[..., go.Figure]:
    """Give a plotting function the keywords ``style`` and ``width``, see :func:`restyle`."""

    @functools.wraps(plot)
    def with_style(*args: Any, style: str = "screen", width: float | None = None, **options: Any) -> go.Figure:
        return restyle(plot(*args, **options), style, width)

    return with_style


def restyle(fig: go.Figure, style: str = "screen", width: float | None = None) -> go.Figure:
    """The figure for a screen of either theme, for ``"paper"`` (black on white) or for ``"dark"`` slides.

    Args:
        fig: any figure of this package.
        style: one of STYLES.
        width: of the whole figure, inches; default the figure's own pixels, 96 to the inch.

    Raises:
        StarError: an unknown style, or a width that is no number of inches.
    """
    check_name(style, STYLES, "style")
    if width is not None:
        check_number(width, "width", lambda x: 1 <= x <= 40, "give inches, 1 to 40")
    fig = on_paper(fig) if style == "paper" else on_dark(fig) if style == "dark" else fig
    return fig if width is None else _as_wide(fig, width)


def on_dark(fig: go.Figure) -> go.Figure:
    """The figure for a dark page or slide: the same, with dark middles of its colour scales and light ink."""
    fig = go.Figure(fig)
    for axis in (a for a in fig.layout if a.startswith("coloraxis")):
        fig.layout[axis].colorscale = DIVERGING_DARK
    fig.update_traces(colorscale=RATES_DARK, selector=lambda t: t.type == "heatmap" and t.coloraxis is None)
    return fig.update_layout(paper_bgcolor="#14171A", font_color="#C9CED3")


def on_paper(fig: go.Figure) -> go.Figure:
    """The figure for print: the same in black ink on white, with ticks and axis lines."""
    fig = go.Figure(fig)
    for axis in (fig.update_xaxes, fig.update_yaxes):
        axis(ticks="outside", ticklen=4, tickcolor="#000000", linecolor="#000000", showline=True)
    fig.update_shapes(line_color="#000000", selector={"type": "line"})
    return fig.update_layout(
        paper_bgcolor="#FFFFFF",
        plot_bgcolor="#FFFFFF",
        font={"color": "#000000", "family": "Helvetica, Arial, sans-serif"},
    )


def _as_wide(fig: go.Figure, inches: float) -> go.Figure:
    """As wide as a column of print: cells shrink, letters no further than to 7 points, numbers in narrow cells go."""
    fig, pixels = go.Figure(fig), inches * INCH
    share = pixels / (fig.layout.width or pixels)
    size = min(13.0, max(7 * INCH / 72, 13 * share))
    before = (fig.layout.title.subtitle.text or "").split("<br>")
    grown, small = LINE * (len(before) - 1), min(1.0, size / 13)  # by lines that are broken anew here
    margin = {side: (fig.layout.margin[side] or 0) * small for side in ("t", "b", "l", "r")}
    letters = int(pixels / (0.52 * size))
    lines = textwrap.wrap(" ".join(before), letters)
    title = textwrap.wrap(fig.layout.title.text.removeprefix("<b>").removesuffix("</b>"), int(letters * 0.8))
    margin["t"] += 1.3 * size * (max(0, len(lines) - 1) + max(0, len(title) - 1)) - grown * small
    fig.layout.title.text, fig.layout.title.subtitle.text = f"<b>{'<br>'.join(title)}</b>", "<br>".join(lines)
    height = ((fig.layout.height or pixels) - grown) * max(share, 0.6)
    fig.update_layout(width=pixels, height=height, margin=margin)
    fig.update_layout(font_size=size, title_font_size=size * 1.15, title_subtitle_font_size=size * 0.95)
    fig.update_layout(legend_font_size=size)
    fig.update_annotations(font_size=size * 0.9)
    for axis in (fig.update_xaxes, fig.update_yaxes):
        axis(title_font_size=size, tickfont_size=size * 0.95)
    for name in (a for a in fig.layout if a.startswith("coloraxis")):
        bar = fig.layout[name].colorbar
        bar.title.font.size = bar.tickfont.size = size * 0.95
        if bar.orientation == "h":
            bar.update(nticks=3 if share > 0.5 else 2, tickangle=0, thickness=8, ypad=36 if share > 0.6 else 62)
    if share < 0.6:  # names of columns have no room beside each other
        fig.update_xaxes(tickangle=-90)
        fig.update_layout(margin_b=margin["b"] + 34)
    fig.update_traces(texttemplate="", selector=lambda t: t.type == "heatmap" and share < 0.7 and t.coloraxis)
    return fig


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


def tick_step(n: int) -> int:
    return 1 if n <= 16 else 2 if n <= 40 else 4 if n <= 80 else 8


def plot_height(n_layers: int) -> int:
    """Pixels of the plotting area; rows of very deep models are thinner."""
    return min(max(MIN_PLOT, CELL * n_layers), max(MOST_PLOT, 7 * n_layers))


def colorbar(**place: object) -> dict[str, Any]:
    title = {"text": SCORE, "side": "top", "font": {"size": 13}}
    return {"title": title, "thickness": 12, "outlinewidth": 0, "nticks": 5, **place}


def coloraxis(z: np.ndarray, bar: dict[str, object] | None = None) -> dict[str, object]:
    """Blue above zero, vermilion below, white at zero; both sides reach equally far."""
    limit = float(np.nanmax(np.abs(z), initial=0.0)) or 1.0
    return {"colorscale": DIVERGING, "cmin": -limit, "cmax": limit, "colorbar": bar or colorbar()}


def whiskers(value: ArrayLike, low: ArrayLike, high: ArrayLike) -> dict[str, object]:
    value, low, high = (np.asarray(v, dtype=float) for v in (value, low, high))
    ends = {"array": high - value, "arrayminus": value - low, "symmetric": False}
    return {**ends, "thickness": 1.5, "width": 4, "color": INK}


def note(fig: go.Figure, text: str, x: object, y: object, **place: object) -> None:
    fig.add_annotation(text=text, x=x, y=y, **{"showarrow": False, "xanchor": "center", **place})


def layer_axis(fig: go.Figure, layers: Sequence[int], col: int | None = None) -> None:
    """Layers upward; those that were left out leave a gap."""
    low, high, step = layers[0], layers[-1], tick_step(len(layers))
    fig.update_yaxes(title_text="layer", dtick=step, tick0=0, range=[low - 0.5, high + 0.5], col=col)
    fig.update_yaxes(showgrid=False, zeroline=False, col=col)


def finish(
    fig: go.Figure, title: str, subtitle: str, width: int, height: int, t: int = 92, b: int = 60, **layout: Any
) -> go.Figure:
    lines = textwrap.wrap(subtitle, width // 6)  # pixels of a letter
    more = LINE * max(0, len(lines) - 1)
    return fig.update_layout(
        template=TEMPLATE,
        title={"text": f"<b>{title}</b>", "font_size": 16, "subtitle": {"text": "<br>".join(lines), "font_size": 12.5}},
        width=width,
        height=height + more,
        margin={"t": t + more, "b": b, "l": 60, "r": 20},
        modebar={"remove": _TOOLS, "bgcolor": "rgba(0,0,0,0)"},  # a whole toolbar would lie over the title
        **layout,
    )
