"""What an evaluation found: one value that is printed, set in a paper, shown as a page, and kept."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pandas as pd

from star_tl.data.chat import Message
from star_tl.data.tasks import Task
from star_tl.evaluation.conditions import asked_about
from star_tl.evaluation.measures import main_measures

if TYPE_CHECKING:
    import plotly.graph_objects as go

LEVEL = 0.05
# Column of the effects, its heading, its format.
SHOWN = (
    ("condition", "condition", "{}"),
    ("mean", "mean", "{:.2f}"),
    ("interval", "difference [95 %]", "{}"),
    ("d", "d", "{:.2f}"),
    ("p_holm", "p (Holm)", "{:.3f}"),
    ("worse", "prompts worse", "{:.0%}"),
    ("detectable", "detectable", "{:.2f}"),
    ("strength", "strength", "{:.3g}"),
    ("drift", "drift", "{:.3f}"),
    ("coherent", "coherent", "{:.0%}"),
)
NOTES = {
    "difference": "To unsteered replies (or to the condition that the table names), paired by prompt, with its 95 % "
    "bootstrap interval over prompts.",
    "*": "In the overview: p is below 0.05 after Holm's correction over the conditions of that measure.",
    "d": "Mean difference over its standard deviation between prompts (Cohen's d_z).",
    "p (Holm)": "Of a permutation test of the prompts' signs, corrected over the conditions of the measure.",
    "prompts worse": "Share of prompts that the condition lowers.",
    "detectable": "The difference that so many prompts would show in four of five tries.",
    "drift": "KL divergence from the unsteered model, nats per token. Vectors are aimed at one drift on practice "
    "contexts; what they came to on these prompts stands in the table.",
    "coherent": "Share of replies that the unsteered model finds no less probable than the 2 % quantile of its own.",
    "markers": "Share of replies that are coherent and hold a marker of the trait. In the table of all traits: with a "
    "marker, coherent or not.",
    "separability, agreement": "Distance of the activations under the two instructions in units of their spread (d'), "
    "and the mean cosine of each pair's difference with the mean of the others'.",
    "facts, refused": "Share of two-way questions answered rightly (chance is half), and of requests that should be "
    "refused and are.",
    "–": "Nothing to be measured: no judge was trained for it, say.",
}
_TEX = str.maketrans({c: rf"\{c}" for c in "&%_#$"} | {"×": r"$\times$", "−": "--", "–": "--"})


@dataclass(frozen=True)
class Evaluation:
    """A task's conditions on one model.

    ``table`` holds :func:`star_tl.evaluation.effects.effects` beside unsteered replies, ``against`` the same of every
    condition beside the one that a claim is about, the chosen intervention or else the located vector; ``agreement``
    kappas of the measures; ``preflight`` a row per layer; ``dose`` the located vector's dose–response, as
    :func:`star_tl.evaluation.strength.dose_table` has it; ``matrix`` and ``damage`` the side effects, ``turns`` a row
    per condition and turn of the played talks, ``outcomes`` a row per condition of a negotiation (None where they were
    not asked for); ``samples`` a row per reply.
    """

    task: Task
    model: str
    measures: tuple[str, ...]
    samples: pd.DataFrame
    table: pd.DataFrame
    against: pd.DataFrame
    agreement: pd.DataFrame
    preflight: pd.DataFrame
    dose: pd.DataFrame
    matrix: pd.DataFrame | None
    damage: pd.DataFrame | None
    turns: pd.DataFrame | None
    outcomes: pd.DataFrame | None
    prompts: tuple[tuple[Message, ...], ...]
    settings: Mapping[str, str]

    def to_frame(self) -> pd.DataFrame:
        """A row per measure and condition, beside unsteered replies."""
        return self.table

    def to_markdown(self) -> str:
        """Every table, with the settings under which it was measured."""
        parts = [f"# {self.task.name} on {self.model}", "\n".join(f"- {k}: {v}" for k, v in self.settings.items())]
        parts += [f"## {_heading(name)}\n\n{_markdown(table)}" for name, table in self.tables().items()]
        parts.append("## How to read this\n\n" + "\n".join(f"- **{name}**: {words}" for name, words in NOTES.items()))
        return "\n\n".join(parts) + "\n"

    def to_latex(self) -> str:
        """The same tables as LaTeX, with booktabs' rules."""
        return "\n".join(_latex(_heading(name), table) for name, table in self.tables().items())

    def tables(self) -> dict[str, pd.DataFrame]:
        """By heading, as texts: an overview, effects by measure, then the others."""
        found = {"overview": overview(self.table, main_measures(self.measures))}
        found |= {measure: shown(self.table.loc[self.table.measure == measure]) for measure in self.measures}
        mine = asked_about(set(self.samples.arm))
        for measure in main_measures(self.measures):
            found[f"{measure}, beside {mine}"] = shown(self.against.loc[self.against.measure == measure])
        others = {
            "agreement of measures": self.agreement,
            "pairs before steering, by layer": self.preflight,
            "dose–response of the located vector": self.dose,
            "every trait's vector on every trait": self.matrix,
            "damage": self.damage,
            "turn by turn": self.turns,
            "outcomes": self.outcomes,
        }
        return found | {
            name: table.map(lambda x: str(x) if not isinstance(x, float) else f"{x:.2f}" if x == x else "–")
            for name, table in others.items()
            if table is not None and len(table)
        }

    def plot(self, measure: str | None = None, **options: Any) -> go.Figure:
        """Differences with their intervals, by condition; of the first measure, or of the one that is named."""
        from star_tl.view.plots import plot_conditions

        return plot_conditions(self.table, measure or self.measures[0], **options)

    def __repr__(self) -> str:
        rows = self.table[self.table.measure == self.measures[0]].set_index("condition")
        told = ", ".join(f"{name} {rows.loc[name, 'mean']:.2f}" for name in list(rows.index)[:3])
        return f"Evaluation({self.task.name} on {self.model}, {len(self.prompts)} prompts; {self.measures[0]}: {told})"


def overview(effects: pd.DataFrame, measures: Sequence[str]) -> pd.DataFrame:
    """A row per condition: of each measure the mean, and the difference to unsteered with its interval; what it cost.

    A star stands where p is below 0.05 after Holm's correction over the conditions of that measure.
    """
    rows = {m: effects[effects.measure == m].set_index("condition") for m in measures}
    first = rows[measures[0]]
    columns = {"condition": list(first.index)}
    for measure, table in rows.items():
        stars = ["*" if p < LEVEL else "" for p in table.p_holm]
        columns[measure] = [
            f"{mean:.2f} {change}{star}".strip()
            for mean, change, star in zip(table["mean"], _changes(table), stars, strict=True)
        ]
    columns["drift"] = [f"{x:.3f}" for x in first.drift]
    columns["coherent"] = [f"{x:.0%}" for x in first.coherent]
    return pd.DataFrame(columns)


def _changes(effects: pd.DataFrame) -> list[str]:
    return [
        f"{r['difference']:+.2f} [{r['low']:+.2f}, {r['high']:+.2f}]" if r["difference"] == r["difference"] else ""
        for r in effects.to_dict(orient="records")
    ]


def shown(effects: pd.DataFrame) -> pd.DataFrame:
    """The columns that a reader needs first, as texts."""
    whole = effects.assign(interval=_changes(effects))
    columns = {
        heading: ["" if value != value else form.format(value) for value in whole[column]]
        for column, heading, form in SHOWN
    }
    return pd.DataFrame(columns)


def _heading(name: str) -> str:
    return name.replace("_", " ")


def _markdown(table: pd.DataFrame) -> str:
    rows = [list(map(str, table.columns)), ["---"] * len(table.columns), *table.to_numpy().tolist()]
    return "\n".join("| " + " | ".join(str(x).replace("|", r"\|") for x in row) + " |" for row in rows)


def _latex(name: str, table: pd.DataFrame) -> str:
    lines = [" & ".join(str(x).translate(_TEX) for x in row) + r" \\" for row in table.to_numpy().tolist()]
    head = " & ".join(str(c).translate(_TEX) for c in table.columns) + r" \\"
    form = "l" + "r" * (len(table.columns) - 1)
    return "\n".join(
        [r"\begin{table}", rf"\caption{{{name.translate(_TEX)}}}", rf"\begin{{tabular}}{{{form}}}", r"\toprule", head]
        + [r"\midrule", *lines, r"\bottomrule", r"\end{tabular}", r"\end{table}", ""]
    )
