"""The widget's last state as plain HTML, which a saved notebook holds and shows where no kernel runs."""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from plotly.colors import sample_colorscale

from star_tl.files import JsonObject
from star_tl.view.explorer.replies import Card
from star_tl.view.plots import DIVERGING

if TYPE_CHECKING:
    from IPython.core.display_functions import DisplayHandle

TALL = 40  # layers from which cells are too low for numbers
CELL = "padding: 1px 8px; text-align: right; font-size: 12px;"
SOFT = "font-size: 12.5px; opacity: .75;"


class Stills:
    """The copies of the state that stand in notebooks, hidden while the widget is there."""

    def __init__(self) -> None:
        self.handles: list[DisplayHandle] = []

    def show(self, text: str) -> None:
        """Put one into the cell that runs, where there is a notebook."""
        from IPython.core.display import HTML
        from IPython.core.display_functions import display
        from IPython.core.getipython import get_ipython

        if hasattr(get_ipython(), "kernel"):
            handle = display(HTML(text), display_id=True)
            if handle is not None:
                self.handles.append(handle)

    def update(self, text: str) -> None:
        """Bring all of them up to date."""
        from IPython.core.display import HTML

        for handle in self.handles:
            handle.update(HTML(text))


def still(
    title: str, shown: JsonObject, loci: Sequence[Mapping[str, Any]], replies: Sequence[Card], prompt: str
) -> str:
    """What the page shows, without scripts and styles of its own, because notebooks that are not trusted drop both.

    Args:
        title: above it.
        shown: the widget's map.
        loci: those that are selected, as the page has them.
        replies: the widget's cards.
        prompt: what was replied to.
    """
    cards = "".join(map(_card, replies)) or f'<p style="{SOFT}">No reply was written yet.</p>'
    advised = "; ".join(f"{one['name']}: advised strength {one['best']:.2f}" for one in loci if one["best"] is not None)
    said = f'<p style="{SOFT}">{html.escape(advised)}</p>' if advised else ""
    return (
        f'<div class="star-explorer-still"><h3>{html.escape(title)}</h3>'
        f'<p style="{SOFT}">The last state of star_tl\'s explorer, as saved. Run the cell to go on.</p>'
        f"{_table(shown, loci)}<p><b>{html.escape(prompt)}</b></p>{cards}{said}</div>"
    )


def _table(shown: Any, loci: Sequence[Mapping[str, Any]]) -> str:
    """Layer × component in the map's colours, the selected places outlined."""
    panel, low = shown["components"], shown["layers"] > TALL
    selected = {(locus["hook_point"], locus["head"]) for locus in loci}
    limits = [g["limit"] for g in panel["groups"] for _ in range(g["start"], g["end"])]
    names = [f"gain {c['label']}" if c.get("gain") else str(c["label"]) for c in panel["columns"]]
    heads = "".join(f'<th style="{CELL}">{html.escape(name)}</th>' for name in names)
    rows = ""
    for layer in range(shown["layers"] - 1, -1, -1):
        cells = ""
        for column, score, limit in zip(panel["columns"], panel["z"][layer], limits, strict=True):
            share = 0.5 + 0.5 * max(-1.0, min(1.0, score / limit))
            ink = "#fff" if abs(share - 0.5) > 0.21 else "#1c2024"
            taken = (f"blocks.{layer}.{column['hook']}", None) in selected
            border = "outline: 3px solid #D55E00; outline-offset: -3px;" if taken else ""
            number = "" if low else f"{score:+.3f}".replace("-", "−")
            cells += (
                f'<td style="{CELL} color: {ink}; background: {sample_colorscale(DIVERGING, [share])[0]}; {border}">'
                f"{number}</td>"
            )
        height = ' style="height: 5px; line-height: 5px;"' if low else ""
        name = layer if not low or layer % 8 == 0 else ""
        rows += f'<tr{height}><th style="{CELL}">{name}</th>{cells}</tr>'
    return (
        f'<table><thead><tr><th style="{CELL}">layer</th>{heads}</tr></thead><tbody>{rows}</tbody></table>'
        f'<p style="{SOFT}">Scores in nats; positive raises the trait. Outlined: where steering is shown.</p>'
    )


def _card(card: Card) -> str:
    strength = "" if card["strength"] is None else f", strength {card['strength']:.2g} × residual norm"
    texts = ""
    for run in card["runs"]:
        words = "".join(
            f"<mark>{html.escape(s['text'])}</mark>" if s["marked"] else html.escape(s["text"]) for s in run["segments"]
        )
        drift = f", drift {run['drift']:.2f} nats a token" if card["key"] and "drift" in run else ""
        texts += (
            f'<p dir="auto" style="white-space: pre-wrap;">{words}</p><p style="{SOFT}">seed {run["seed"]}{drift}</p>'
        )
    return f"<p><b>{html.escape(card['title'])}</b>{html.escape(strength)}</p>{texts}"
