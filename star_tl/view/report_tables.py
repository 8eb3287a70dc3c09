"""The tables of a run's report: which columns, what they are called, how their numbers are written."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING

from star_tl.view.plots import arm_name, percent

if TYPE_CHECKING:
    import pandas


def number(digits: int, sign: str = "") -> Callable[[float], str]:
    return lambda v: f"{v:{sign}.{digits}f}".replace("-", "−") if math.isfinite(v) else "–"


def p_value(value: float) -> str:
    return "&lt; 0.001" if value < 0.001 else number(3)(value)


# Column of the summary, its heading, how to show its values; the first table is what matters most.
Columns = tuple[tuple[str, str, Callable[[float], str]], ...]
RESULTS: Columns = (
    ("n", "replies", number(0)),
    ("trait_rate", "coherent, with the trait", percent),
    ("difference", "difference (points)", number(0, "+")),
    ("p_value", "p", p_value),
    ("wrong_way", "prompts that fell", percent),
    ("coherent_rate", "coherent", percent),
    ("drift", "drift (nats per token)", number(2)),
)
JUDGED: Columns = (
    ("embedding judge", "embedding judge", number(2)),
    ("word judge", "word judge", number(2)),
    ("relevance", "relevance", number(2)),
)
FLUENCY: Columns = (
    ("marker_rate", "with a marker", percent),
    ("drift_p95", "drift, 95th percentile", number(2)),
    ("drift_total", "drift of the whole reply (nats)", number(2)),
    ("perplexity", "perplexity", number(2)),
    ("length", "words", number(1)),
    ("first_person", "first person per 100 words", number(1)),
    ("repetition", "repetition", percent),
)
INTERVALS = {"trait_rate": ("low_rate", "high_rate"), "difference": ("low", "high")}

TRIED: Columns = (
    ("layer", "layer", number(0)),
    ("strength", "strength", number(2)),
    ("drift", "drift (nats per token)", number(2)),
    ("predicted", "predicted gain", number(3)),
    ("rank", "rank predicted", number(0)),
    ("reward", "reward", number(3)),
    ("n", "replies", number(0)),
    ("coherent_rate", "coherent", percent),
    ("opening", "commonest opening", percent),
    ("embedding judge", "embedding judge (unseen)", number(2)),
    ("word judge", "word judge (unseen)", number(2)),
    ("markers", "markers (unseen)", percent),
)


def table_of(summary: pandas.DataFrame, columns: Columns, named: Callable[[str], str] = arm_name) -> str:
    """A row per arm, called what ``named`` makes of it."""
    columns = tuple(c for c in columns if c[0] in summary)
    head = "".join(f'<th scope="col">{heading}</th>' for _, heading, _ in columns)
    body = ""
    for row in summary.to_dict("records"):
        cells = ""
        for key, _, show in columns:
            low, high = (row.get(name, math.nan) for name in INTERVALS.get(key, ("", "")))
            known = math.isfinite(low) and math.isfinite(high)
            interval = f'<span class="range">{show(low)} to {show(high)}</span>' if known else ""
            cells += f"<td>{show(row[key])}{interval}</td>"
        body += f'<tr><th scope="row">{named(row["arm"])}</th>{cells}</tr>\n'
    return f'<table><thead><tr><th scope="col">arm</th>{head}</tr></thead>\n<tbody>{body}</tbody></table>'
