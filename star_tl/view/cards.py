"""How results look in a notebook cell: small tables that follow the page's light or dark theme."""

from __future__ import annotations

import html
from collections.abc import Mapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pandas

CELL = "padding: 3px 12px; text-align: {}; border-bottom: 1px solid rgba(128, 128, 128, 0.3)"


def card(title: str, facts: Mapping[str, object]) -> str:
    """A title above names and their values; all of it is text, none markup."""
    rows = "".join(
        f'<tr><th style="{CELL.format("left")}">{html.escape(name)}</th>'
        f'<td style="{CELL.format("left")}">{html.escape(str(value))}</td></tr>'
        for name, value in facts.items()
    )
    return f"<div><b>{html.escape(title)}</b><table style='margin: 6px 0'>{rows}</table></div>"


def table_card(title: str, table: pandas.DataFrame, formats: Mapping[str, str]) -> str:
    """A title above a table; ``formats`` says by column how numbers are written."""
    head = "".join(
        f'<th style="{CELL.format("right")}">{html.escape(str(c).replace("_", " "))}</th>' for c in table.columns
    )
    body = "".join(
        "<tr>"
        + "".join(
            f'<td style="{CELL.format("right")}">{html.escape(formats.get(str(name), "{}").format(value))}</td>'
            for name, value in row.items()
        )
        + "</tr>"
        for row in table.to_dict(orient="records")
    )
    return f"<div>{html.escape(title)}<table style='margin: 6px 0'><tr>{head}</tr>{body}</table></div>"
