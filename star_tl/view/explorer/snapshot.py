"""The widget's last state as one HTML file that needs no network, and its replies as CSV."""

from __future__ import annotations

import html
import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path

import pandas as pd

from star_tl.attribution import AttributionMap
from star_tl.errors import StarError
from star_tl.evaluation.strength import DRIFT_LIMIT
from star_tl.files import replacing
from star_tl.view.explorer.replies import Card, Run
from star_tl.view.page import figure, page, scroll
from star_tl.view.plots import plot_dose, plot_heads, plot_layers, plot_tokens


def free_page(trait: str) -> Path:
    """The page's file by the trait's name, with a number where that is taken."""
    names = (Path(f"{trait}_snapshot{f'-{k}' if k else ''}.html") for k in itertools.count())
    return next(path for path in names if not path.exists())


def write_snapshot(
    path: Path,
    title: str,
    attr: AttributionMap,
    prompt: Sequence[Mapping[str, str]],
    replies: Sequence[Card],
    curves: Mapping[str, pd.DataFrame],
    code: str,
) -> list[Path]:
    """Write the page and, beside it, the replies as CSV; earlier files are replaced whole or not at all.

    Args:
        path: the HTML file.
        title: of the page.
        attr: the map that is shown.
        prompt: the chat that was replied to.
        replies: the widget's cards.
        curves: dose–response by locus, as :func:`star_tl.evaluation.strength.dose_table` makes it.
        code: Python that writes the same replies.

    Raises:
        StarError: a file cannot be written.
    """
    rows = [
        {
            "card": card["title"],
            "locus": card["name"],
            "seed": run["seed"],
            "strength": card["strength"],
            "text": _text(run),
            "markers": run["markers"],
            "drift": run.get("drift"),
            "logprob": run.get("logprob"),
        }
        for card in replies
        for run in card["runs"]
    ]
    turns = "".join(
        f'<p class="text" dir="auto"><span class="soft">{role}:</span> {html.escape(text)}</p>'
        for role, text in ((html.escape(m["role"]), m["content"]) for m in prompt)
    )
    cards = f'<div class="replies">{"".join(map(_card, replies))}</div>'
    maps = [("layers", plot_layers(attr))]
    for name, plot in (("heads", plot_heads), ("tokens", plot_tokens)):
        try:
            maps.append((name, plot(attr)))
        except StarError:  # the map was made without these hook points
            continue
    doses = "".join(
        figure(f"dose-{i}", plot_dose(table, limit=DRIFT_LIMIT), f"{html.escape(name)}; strength × the residual norm.")
        for i, (name, table) in enumerate(curves.items())
    )
    text = page(
        title=title,
        lead='<p class="soft">A snapshot of star_tl\'s explorer.</p>',
        sections={
            "replies": (
                "Replies",
                f'<article><div class="prompt">{turns}</div><div class="replies">{cards}</div></article>',
            ),
            "where": ("Where the trait is carried", "".join(figure(name, fig, "") for name, fig in maps)),
            "dose": ("Dose–response", doses or "<p>None was measured.</p>"),
            "code": ("The same in Python", scroll("Python code", f"<pre><code>{html.escape(code)}</code></pre>")),
        },
        footer="Written by star_tl. This file needs no network.",
    )
    with replacing(path) as partial:
        partial.write_text(text, encoding="utf-8")
    table = path.with_suffix(".csv")
    with replacing(table) as partial:
        pd.DataFrame(rows).to_csv(partial, index=False)
    return [path, table]


def _text(run: Run) -> str:
    return "".join(part["text"] for part in run["segments"])


def _card(card: Card) -> str:
    runs = ""
    for run in card["runs"]:
        words = "".join(
            f"<mark>{html.escape(p['text'])}</mark>" if p["marked"] else html.escape(p["text"]) for p in run["segments"]
        )
        drift = f", drift {value:.2f}" if (value := run.get("drift")) is not None else ""
        runs += f'<p class="text" dir="auto">{words}</p><p class="soft">seed {run["seed"]}{drift}</p>'
    return f"<div><h4>{html.escape(card['title'])}</h4>{runs}</div>"
