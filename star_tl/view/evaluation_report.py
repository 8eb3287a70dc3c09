"""The page of an evaluation: its figures, its tables, and under which settings they were measured."""

from __future__ import annotations

import html
from collections.abc import Mapping
from pathlib import Path

import pandas as pd

from star_tl.evaluation.conditions import CONDITIONS
from star_tl.evaluation.evaluated import NOTES, Evaluation
from star_tl.files import replacing
from star_tl.view.page import figure, page, scroll
from star_tl.view.plots import plot_conditions, plot_dose, plot_frontier, plot_matrix, plot_turns


def write_evaluation_report(path: str | Path, result: Evaluation) -> Path:
    """Write one HTML file; an earlier file is replaced whole or not at all."""
    with replacing(path) as partial:
        partial.write_text(_page(result), encoding="utf-8")
    return Path(path)


def _page(result: Evaluation) -> str:
    sections: dict[str, tuple[str, str]] = {}
    figures = [
        figure(f"effects-{i}", plot_conditions(result.table, measure), "95 % bootstrap intervals over prompts")
        for i, measure in enumerate(result.measures)
        if measure in set(result.against.measure)
    ]
    frontier = figure(
        "frontier", plot_frontier(result.table, result.measures[0]), "upper left is best: much effect, little drift"
    )
    sections["effects"] = ("Effects", "\n".join([*figures, frontier]))
    caption = "the located vector, from none to twice its strength in the tables"
    sections["dose"] = ("Dose–response", figure("dose-figure", plot_dose(result.dose), caption))
    if result.matrix is not None:
        sections["matrix"] = (
            "Side effects on other traits",
            figure("matrix-figure", plot_matrix(result.matrix), "share of replies with a marker, steered − unsteered"),
        )
    if result.turns is not None:
        caption = "single turns were brought to one drift; what grows here is what several turns add"
        sections["turns"] = ("Turn by turn", figure("turns-figure", plot_turns(result.turns), caption))
    tables = "\n".join(f"<h3>{html.escape(name)}</h3>{_table(name, t)}" for name, t in result.tables().items())
    sections["tables"] = ("Tables", tables)
    there = {name: words for name, words in CONDITIONS.items() if name in set(result.table.condition)}
    sections["conditions"] = ("Conditions", _listed(there))
    sections["reading"] = ("How to read this", _listed(NOTES))
    rows = "".join(f"<tr><th>{html.escape(k)}</th><td>{html.escape(v)}</td></tr>" for k, v in result.settings.items())
    sections["settings"] = ("Settings", f'<table class="settings">{rows}</table>')
    title = f"{result.task.name.replace('_', ' ')} on {result.model}"
    lead = f'<p class="finding">{html.escape(result.task.description)}</p>'
    return page(title, lead, sections, "Written by star_tl.")


def _listed(words: Mapping[str, str]) -> str:
    notes = "".join(f"<dt>{html.escape(k)}</dt><dd>{html.escape(v)}</dd>" for k, v in words.items())
    return f"<dl>{notes}</dl>"


def _table(name: str, table: pd.DataFrame) -> str:
    head = "".join(f"<th>{html.escape(str(c))}</th>" for c in table.columns)
    rows = "".join(
        "<tr>" + "".join(f"<td>{html.escape(str(x))}</td>" for x in row) + "</tr>" for row in table.to_numpy().tolist()
    )
    return scroll(html.escape(name), f"<table><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table>")
