"""Results as tables in a terminal."""

from __future__ import annotations

import math
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pandas import DataFrame

    from star_tl.evaluation.result import RunResult

_COLUMNS = {
    "trait_rate": ("trait %", 100, 0),
    "difference": ("Δ points", 1, 0),
    "coherent_rate": ("coherent %", 100, 0),
    "marker_rate": ("markers %", 100, 0),
    "drift": ("drift (nat/token)", 1, 3),
    "perplexity": ("perplexity", 1, 2),
    "first_person": ("I, me, my /100 words", 1, 1),
    "length": ("words", 1, 0),
    "repetition": ("repetition %", 100, 0),
}


def print_run(result: RunResult) -> None:
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    console = Console(width=None if sys.stdout.isatty() else 150)
    choice = result.attribution.choose_layer()
    trait, model, said = (escape(str(x)) for x in (result.trait, result.model, choice.describe()))
    found = f"drift buys most at layer [bold]{choice.layer}[/] ({said})" if choice.singled_out else said
    place = ""
    if result.intervention is None:  # else real replies have chosen another, which the next line names
        place = f"; locus {escape(result.settings.get('locus', str(result.vector.locus)))}"
    console.print(f"\n[bold]{trait}[/] on {model}: {found}{place}")
    if result.intervention is not None:
        console.print(f"Chosen by real replies: [bold]{escape(result.intervention.describe())}[/].")
    if result.attribution.caution:
        console.print(f"[bold]Caution:[/] {escape(result.attribution.caution)}.")
    table = Table(title=escape(result.settings["replies"]), title_justify="left")
    table.add_column("arm", no_wrap=True)
    for heading, _, _ in _COLUMNS.values():
        table.add_column(heading, justify="right")
    for row in result.summary.to_dict(orient="records"):
        cells = []
        for key, (_, factor, digits) in _COLUMNS.items():
            value = row[key] * factor
            text = "" if math.isnan(value) else f"{value:.{digits}f}"
            if key == "difference" and text:
                text = f"{value:+.0f} [{row['low']:+.0f}, {row['high']:+.0f}]"
            cells.append(text)
        table.add_row(str(row["arm"]), *cells)
    console.print(table)

    replies = Table(title="Side by side (first seed)", title_justify="left", show_lines=True)
    shown = ("unsteered", "steered", "primed")
    for heading in ("prompt", *shown):
        replies.add_column(heading, ratio=1, overflow="fold")
    first = result.samples[(result.samples.seed == result.samples.seed.iloc[0]) & result.samples.arm.isin(shown)]
    texts = first.pivot(index="prompt_id", columns="arm", values="text")
    from rich.text import Text

    for prompt_id, messages in result.prompts[:3]:
        replies.add_row(Text(messages[-1]["content"]), *(Text(texts.loc[prompt_id, arm]) for arm in shown))
    console.print(replies)


def print_frame(frame: DataFrame, title: str) -> None:
    """A table; one that is wider than the terminal goes on below itself, under its first column again."""
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    console = Console(width=None if sys.stdout.isatty() else 200)
    cells = {str(c): [f"{v:.3f}" if isinstance(v, float) else str(v) for v in frame[c]] for c in frame.columns}
    widths = {name: max(map(len, (name, *values))) + 3 for name, values in cells.items()}
    first, *others = cells
    strips, left = [[first]], console.width - 1 - widths[first]
    for name in others:
        if widths[name] > left and len(strips[-1]) > 1:
            strips.append([first])
            left = console.width - 1 - widths[first]
        strips[-1].append(name)
        left -= widths[name]
    for i, strip in enumerate(strips):
        table = Table(title=escape(title) if not i else None, title_justify="left")
        for name in strip:
            table.add_column(escape(name), justify="right", overflow="fold")
        for row in zip(*(cells[name] for name in strip), strict=True):
            table.add_row(*map(escape, row))
        console.print(table)
