"""The report of a run: one HTML file that says what was found and shows on what evidence."""

from __future__ import annotations

import html
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import regex

from star_tl.data.chat import Message, as_messages
from star_tl.data.markers import at_edges
from star_tl.evaluation.strength import DRIFT_LIMIT
from star_tl.files import replacing
from star_tl.view.page import figure, page, scroll
from star_tl.view.plots import (
    arm_name,
    percent,
    plot_arms,
    plot_choice,
    plot_comparison,
    plot_dose,
    plot_heads,
    plot_interventions,
    plot_layers,
    plot_loci,
    plot_tokens,
)
from star_tl.view.report_tables import FLUENCY, JUDGED, RESULTS, TRIED, number, table_of
from star_tl.view.report_words import finding, in_short, reading

if TYPE_CHECKING:
    import pandas

    from star_tl.evaluation.result import RunResult
    from star_tl.evaluation.sweep import Comparison

OPEN_PROMPTS = 4  # the others unfold
SHOWN_ARMS = ("unsteered", "steered", "primed")


def write_report(path: str | Path, result: RunResult) -> Path:
    """Write the report of a run as one HTML file; an earlier file is replaced whole or not at all.

    Args:
        path: the file to write.
        result: what :func:`star_tl.run` returned.
    """
    with replacing(path) as partial:
        partial.write_text(_page(result), encoding="utf-8")
    return Path(path)


def write_sweep(path: str | Path, found: Comparison, model: str, settings: Sequence[str]) -> Path:
    """Write the report of a sweep, in the form of a run's; an earlier file is replaced whole or not at all.

    Args:
        path: the file to write.
        found: from :func:`star_tl.compare`.
        model: its name.
        settings: how it was made, a line each.
    """
    trait, table = found.trait.replace("_", " "), found.summary()
    steered: Any = table[table.layer >= 0]
    plain = float(table.loc[table.layer < 0, "trait_rate"].iloc[0])
    within = steered[steered.drift <= DRIFT_LIMIT]
    lead = [
        f"Asked was where and how strongly {model} is best turned up in {trait}.",
        f"Without a vector {percent(plain)} of its replies show it and stay fluent.",
        f"No way to steer stays within a drift of {DRIFT_LIMIT:g} nats a token: lower strengths are to be tried."
        if within.empty
        else _best_of(within.sort_values(["trait_rate", "drift"], ascending=[False, True]).iloc[0], len(steered)),
    ]
    columns = tuple(c for c in RESULTS if c[0] in table and c[0] not in ("n", "difference"))
    rows = steered.assign(arm=[f"{r.locus}, {r.positions}, {r.strength:g}" for r in steered.itertuples()])
    lines = "".join(f"<li>{html.escape(str(line))}</li>" for line in settings)
    text = page(
        title=f"Sweep: {trait} in {model}",
        lead="".join(f'<p class="finding">{html.escape(words)}</p>' for words in lead),
        sections={
            "places": (
                "Places and strengths",
                figure("places-figure", plot_comparison(found), "Each cell: rate of replies, and drift below it.")
                + (figure("loci-figure", plot_loci(found), "The same as curves.") if _few_places(steered) else ""),
            ),
            "table": ("All ways to steer", scroll("All ways to steer", table_of(rows, columns, html.escape))),
            "settings": ("Settings", f"<ul>{lines}</ul>"),
            "reading": ("How to read this", reading(())),
        },
        footer="Written by star_tl. This file needs no network.",
    )
    with replacing(path) as partial:
        partial.write_text(text, encoding="utf-8")
    return Path(path)


def _few_places(steered: pandas.DataFrame) -> bool:
    return len(steered.groupby(["locus", "positions"])) <= 5 and steered.strength.nunique() > 1


def _best_of(best: pandas.Series, ways: int) -> str:
    return (
        f"Most show it at {best.locus}, {best.positions}, strength {best.strength:g}: {percent(best.trait_rate)}, at a "
        f"drift of {best.drift:.2f} nats a token; being the best of {ways} on the same prompts, it flatters itself."
    )


def _page(result: RunResult) -> str:
    trait = result.trait.replace("_", " ")
    short = "".join(f'<p class="finding">{html.escape(words)}</p>\n' for words in in_short(result))
    return page(
        title=f"{trait[:1].upper()}{trait[1:]} in {result.model}",
        lead=f'<p class="soft">{html.escape(result.description)}</p>\n{short}'
        f'<p class="soft">In the terms of the method: {html.escape(finding(result))}</p>',
        sections={
            "arms": ("What steering did", _arms(result)),
            "replies": ("Replies side by side", _replies(result)),
            **({"intervention": ("What was tried", _intervention(result))} if result.intervention else {}),
            "where": ("Where the trait is carried", _where(result)),
            "dose": ("Dose–response", _dose(result)),
            "settings": ("Settings", _settings(result)),
            "reading": ("How to read this", reading(set(result.summary.arm))),
        },
        footer="Written by star_tl. This file needs no network.",
    )


def _arms(result: RunResult) -> str:
    legend = (
        "Rates are shares of replies. A difference is to the unsteered replies of the same prompts, in percentage "
        "points. Under a rate or a difference stands its 95 % interval. p is Holm-corrected over arms; it comes from "
        "2,000 random flips of signs, so that it is at least 0.0005 times the number of arms compared."
    )
    results, judged, fluency = (table_of(result.summary, columns) for columns in (RESULTS, JUDGED, FLUENCY))
    judged = scroll("What judges say", judged) if any(c[0] in result.summary for c in JUDGED) else ""
    told = (
        '<h3>What judges say</h3><p class="soft">Means over replies, 0 to 1, of judges trained on people\'s labels; '
        f"relevance is the cosine of reply and prompt.</p>{judged}"
        if judged
        else ""
    )
    cost = "How often replies are coherent and show the trait, and what it costs in drift."
    return (
        f'<p class="soft">{legend}</p>{scroll("What every arm did", results)}'
        f"{figure('arms-figure', plot_arms(result.summary), cost)}"
        f"{told}<h3>Words and fluency of the replies</h3>{scroll('Words and fluency of the replies', fluency)}"
    )


def _replies(result: RunResult) -> str:
    arms = [arm for arm in SHOWN_ARMS if (result.samples["arm"] == arm).any()]
    intro = (
        "Each prompt with its first reply in every arm; none was picked by hand. <mark>Marked words</mark> are the "
        "trait's markers."
    )
    articles = [_prompt(name, prompt, result.samples, arms) for name, prompt in result.prompts]
    shown, more = "".join(articles[:OPEN_PROMPTS]), "".join(articles[OPEN_PROMPTS:])
    if more:
        shown += f"<details><summary>All {len(articles)} prompts</summary>{more}</details>"
    return f'<p class="soft">{intro}</p>\n{shown}'


def _prompt(name: str, prompt: Sequence[Message], samples: pandas.DataFrame, arms: Sequence[str]) -> str:
    turns = "".join(
        f'<p class="text" dir="auto"><span class="soft">{m["role"]}:</span> {html.escape(m["content"])}</p>'
        for m in as_messages(prompt)
    )
    of_prompt = samples.query("prompt_id == @name")
    replies = "".join(_reply(arm, of_prompt.query("arm == @arm")) for arm in arms)
    return (
        f'<article><h3>{html.escape(name)}</h3><div class="prompt">{turns}</div><div class="replies">{replies}</div>'
        "</article>\n"
    )


def _reply(arm: str, rows: pandas.DataFrame) -> str:
    if rows.empty:
        return f'<div><h4>{arm_name(arm)}</h4><p class="soft">not sampled</p></div>'
    row = rows.iloc[0]
    verdict = f"{'shows the trait' if row.shows else 'no marker'}, {'coherent' if row.coherent else 'not coherent'}"
    words = _highlight(str(row.text), str(row.markers)) or "(empty)"
    measures = f"log-probability {number(2)(row.logprob)}, drift {number(2)(row.drift)}"
    return (
        f'<div><h4>{arm_name(arm)}</h4><p class="text" dir="auto">{words}</p>'
        f'<p class="soft">{verdict}<br>{measures}</p></div>'
    )


def _where(result: RunResult) -> str:
    attr = result.attribution
    figures = {
        "choice": (
            plot_choice(attr),
            "A layer is judged by its gain, not by its score: the residual stream's own scores add up along depth.",
        ),
        "layers": (
            plot_layers(attr),
            "Left, what drift buys at a layer, with a star at the first of the best; then the residual stream, which "
            "adds up along depth; right, what attention and MLP write.",
        ),
        "heads": (plot_heads(attr), "The same for every attention head, at its output before W_O."),
        "tokens": (
            plot_tokens(attr),
            "The prompt's last tokens, where a vector can go in. Where a label has no token, pairs differ.",
        ),
        "pair": (plot_tokens(attr, 0), "The first pair: its prompt and its positive reply."),
    }
    return "".join(figure(name, fig, caption) for name, (fig, caption) in figures.items())


def _intervention(result: RunResult) -> str:
    choice = result.intervention
    assert choice is not None
    named = choice.table.assign(arm=choice.table["source"] + " @ " + choice.table["where"])
    table = scroll("What was tried", table_of(named, TRIED))
    words = choice.describe()
    caption = (
        f"Attribution proposed, replies to the extraction contexts decided. Each was aimed at a drift of "
        f"{choice.target:g}; what it came to stands in the table."
    )
    return (
        f"<p>{html.escape(words[0].upper() + words[1:])}.</p>"
        f"{figure('intervention-figure', plot_interventions(choice), caption)}{table}"
    )


def _dose(result: RunResult) -> str:
    if result.dose.empty:
        return "<p>No strengths were tried.</p>"
    caption = (
        "Too little strength does nothing, too much breaks the text: look for a high blue line while drift is low."
    )
    steered = result.samples.query("arm == 'steered'")
    chosen = None if steered.empty else float(steered.strength.iloc[0])
    caption += " The unsteered rate (strength 0) is that of the practice prompts, the extraction contexts on which the "
    caption += "strength was chosen; the table of arms has that of the prompts in this report."
    limit = DRIFT_LIMIT if result.intervention is None else result.intervention.target
    text = figure("dose-figure", plot_dose(result.dose, chosen, limit), caption)
    tried = result.dose.loc[result.dose.strength != 0, "strength"]
    if chosen is not None and len(tried) > 1 and abs(chosen) >= tried.abs().max():
        text = (
            f'<p class="warning">The chosen strength, {chosen:g}, is the largest that was tried: more may do more. '
            "Give a higher strength, or look at the curve in star.explore.</p>" + text
        )
    return text


def _settings(result: RunResult) -> str:
    rows = {
        "model": result.model,
        "attribution": f"{result.attribution.method}, {len(result.attribution.pair_ids)} pairs",
        "vector": str(result.vector),
        **result.settings,
    }
    cells = "".join(
        f'<tr><th scope="row">{html.escape(str(k))}</th><td>{html.escape(str(v))}</td></tr>' for k, v in rows.items()
    )
    return scroll("Settings", f'<table class="settings"><tbody>{cells}</tbody></table>')


def _highlight(text: str, markers: str) -> str:
    """Escaped text with every marker in a ``<mark>``."""
    words = sorted(filter(None, markers.split(", ")), key=len, reverse=True)
    if not words:
        return html.escape(text)
    pieces = regex.split(at_edges(f"({'|'.join(map(regex.escape, words))})"), text, flags=regex.IGNORECASE)
    return "".join(f"<mark>{html.escape(p)}</mark>" if i % 2 else html.escape(p) for i, p in enumerate(pieces))
