"""The report of a run: one HTML file that says what was found and shows on what evidence."""

from __future__ import annotations

import html
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import regex

from star_tl.attribution.choose import GAIN_DRIFT
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

if TYPE_CHECKING:
    import pandas

    from star_tl.evaluation.result import RunResult
    from star_tl.evaluation.sweep import Comparison

OPEN_PROMPTS = 4  # the others unfold
SHOWN_ARMS = ("unsteered", "steered", "primed")


def _number(digits: int, sign: str = "") -> Callable[[float], str]:
    return lambda v: f"{v:{sign}.{digits}f}".replace("-", "−") if math.isfinite(v) else "–"


def _p_value(value: float) -> str:
    return "&lt; 0.001" if value < 0.001 else _number(3)(value)


# Column of the summary, its heading, how to show its values; the first table is what matters most.
Columns = tuple[tuple[str, str, Callable[[float], str]], ...]
RESULTS: Columns = (
    ("n", "replies", _number(0)),
    ("trait_rate", "coherent, with the trait", percent),
    ("difference", "difference (points)", _number(0, "+")),
    ("p_value", "p", _p_value),
    ("wrong_way", "prompts that fell", percent),
    ("coherent_rate", "coherent", percent),
    ("drift", "drift (nats per token)", _number(2)),
)
JUDGED: Columns = (
    ("embedding judge", "embedding judge", _number(2)),
    ("word judge", "word judge", _number(2)),
    ("relevance", "relevance", _number(2)),
)
FLUENCY: Columns = (
    ("marker_rate", "with a marker", percent),
    ("drift_p95", "drift, 95th percentile", _number(2)),
    ("drift_total", "drift of the whole reply (nats)", _number(2)),
    ("perplexity", "perplexity", _number(2)),
    ("length", "words", _number(1)),
    ("first_person", "first person per 100 words", _number(1)),
    ("repetition", "repetition", percent),
)
INTERVALS = {"trait_rate": ("low_rate", "high_rate"), "difference": ("low", "high")}

READING = f"""
<dl>
<dt>Score</dt><dd>(clean activation − corrupted activation) · gradient of the trait metric, in nats. Clean is the run
that shows the trait, corrupted the one that does not. Positive: moving toward clean raises the trait. It is a
first-order estimate.</dd>
<dt>Gain</dt><dd>What {GAIN_DRIFT:g} nat of drift per token buys of the metric (nats) when the vector is added there,
to leading order: effect per root of drift. The layer of the largest gain is taken, and called chosen only where most
resamples of the pairs choose it and random directions under the same search over layers gain less (p).</dd>
<dt>Coherent</dt><dd>The unsteered model finds the reply at least as probable (log-probability, nats per token) as the
2 % quantile of its own replies. Broken text is full of marker words, so a marker counts only in a coherent reply.</dd>
<dt>Drift</dt><dd>How far the model that wrote the reply is from the unsteered model: the KL divergence of their
next-token distributions, averaged over the reply, in nats per token. It is the cost of steering; 0 is no change.</dd>
<dt>Strength</dt><dd>1 is the mean clean − corrupted difference itself.</dd>
<dt>Arms</dt><dd>Random: ten random directions of the same norm at the same place, a reply to each
prompt from each. Last ranked layer: the same vector at the layer with the lowest gain. Reply mean
everywhere: the mean difference over reply tokens, added at every position. Primed: no vector, but an instruction that
asks for the trait.</dd>
<dt>Prompts that fell</dt><dd>Share of prompts whose rate is lower than unsteered.</dd>
<dt>Perplexity, repetition</dt><dd>Perplexity of the reply under the unsteered model; share of its word trigrams that
had occurred in it before.</dd>
</dl>
"""


def write_report(path: str | Path, result: RunResult) -> Path:
    """Write the report of a run as one HTML file; an earlier file is replaced whole or not at all.

    Args:
        path: the file to write.
        result: what :func:`star_tl.run` returned.
    """
    with replacing(path) as partial:
        partial.write_text(_page(result), encoding="utf-8")
    return Path(path)


def finding(result: RunResult) -> str:
    """What was found, in a few plain words."""
    choice, locus = result.attribution.choose_layer(), result.vector.locus
    if choice.singled_out:
        agree = percent(float(choice.frequency[choice.layer]))
        text = f"At layer {choice.layer} drift buys most of the trait ({agree} of resamples agree)"
    else:
        words = choice.describe()
        text = f"{words[0].upper()}{words[1:]}; layer {choice.layer} was taken"
    rows = result.summary.set_index("arm")
    if not {"unsteered", "steered"} <= set(rows.index):
        return f"{text}."
    before, after = rows.loc["unsteered"], rows.loc["steered"]
    layer = "there" if locus.layer == choice.layer else f"at layer {locus.layer}"
    listed = ", ".join(map(str, locus.positions))
    token = "the last prompt token" if locus.positions == (-1,) else f"prompt positions {listed}"
    if result.intervention is not None:
        text = f"Real replies chose: {result.intervention.table.iloc[0].source}"
        layer = f"at layer {locus.layer}"
        token = "generated tokens" if result.intervention.condition.positions == "generated" else token
    known = math.isfinite(after.low) and math.isfinite(after.high)
    verb = "raises" if after.low > 0 else "lowers" if after.high < 0 else "moves"
    text += (
        f"; adding the vector {layer}, on {token}, {verb} coherent replies that show it "
        f"from {percent(before.trait_rate)} to {percent(after.trait_rate)}"
    )
    if known:
        difference, low, high = map(_number(0, "+"), (after.difference, after.low, after.high))
        text += f" ({difference} points, 95\N{NO-BREAK SPACE}% interval {low} to {high})"
    if verb == "moves":
        text += ", which may be chance" if known else ", on too few prompts to tell from chance"
    text += "."
    if "random" in rows.index:
        text += f" Random vectors of the same norm give {percent(rows.trait_rate['random'])}."
    if "primed" in rows.index:
        text += f" Asking for the trait in an instruction gives {percent(rows.trait_rate['primed'])}."
    return text


def in_short(result: RunResult) -> list[str]:
    """What was asked, what came out, and how far to believe it: a sentence each, for readers who know no terms."""
    trait, rows = result.trait.replace("_", " "), result.summary.set_index("arm")
    asked = (
        f"Asked was whether {result.model} writes with more {trait} when one vector is added inside of it, without an "
        "instruction."
    )
    if not {"unsteered", "steered"} <= set(rows.index):
        return [asked]
    before, after = rows.loc["unsteered"], rows.loc["steered"]
    change, low, high = after.difference, after.low, after.high
    rates = f"{percent(before.trait_rate)} of its replies without the vector and {percent(after.trait_rate)} with it"
    if not (math.isfinite(low) and math.isfinite(high)):
        verdict = "too few prompts to tell that from chance"
    elif low > 0 or high < 0:
        verdict = f"{'more' if change > 0 else 'less'} than chance explains"
    else:
        verdict = "a difference that may be chance"
    came_out = f"{rates} show it and stay fluent: {verdict}."
    choice, better = result.attribution.choose_layer(), []
    if "random" in rows.index and rows.high_rate.get("random", 0) >= after.trait_rate:
        better.append("random vectors of that size do about as much")
    if "primed" in rows.index and rows.trait_rate["primed"] >= after.trait_rate:
        better.append("an instruction that asks for it does as much or more")
    place = (
        "The pairs single out the layer where it was added"
        if choice.singled_out
        else "The pairs do not single out a layer, so that the place is a guess"
    )
    own = next((v for v in result.settings.values() if TESTED in v), "")
    believe = "; ".join([place, *better]) + (f"; {TESTED}." if own else ".")
    return [asked, came_out, believe]


TESTED = "steering is tested on the contexts that the vector was made from"


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
            "table": ("All ways to steer", scroll("All ways to steer", _table(rows, columns))),
            "settings": ("Settings", f"<ul>{lines}</ul>"),
            "reading": ("How to read this", READING),
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
            "reading": ("How to read this", READING),
        },
        footer="Written by star_tl. This file needs no network.",
    )


def _arms(result: RunResult) -> str:
    legend = (
        "Rates are shares of replies. A difference is to the unsteered replies of the same prompts, in percentage "
        "points. Under a rate or a difference stands its 95 % interval. p is Holm-corrected over arms; it comes from "
        "2,000 random flips of signs, so that it is at least 0.0005 times the number of arms compared."
    )
    results, judged, fluency = (_table(result.summary, columns) for columns in (RESULTS, JUDGED, FLUENCY))
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


def _table(summary: pandas.DataFrame, columns: Columns) -> str:
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
        body += f'<tr><th scope="row">{arm_name(row["arm"])}</th>{cells}</tr>\n'
    return f'<table><thead><tr><th scope="col">arm</th>{head}</tr></thead>\n<tbody>{body}</tbody></table>'


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
    measures = f"log-probability {_number(2)(row.logprob)}, drift {_number(2)(row.drift)}"
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
            "Left, the residual stream before, between and after attention and MLP; right, what these two write.",
        ),
        "heads": (plot_heads(attr), "The same for every attention head, at its output before W_O."),
        "tokens": (
            plot_tokens(attr),
            "The prompt's last tokens, where a vector can go in. Where a label has no token, pairs differ.",
        ),
        "pair": (plot_tokens(attr, 0), "The first pair: its prompt and its positive reply."),
    }
    return "".join(figure(name, fig, caption) for name, (fig, caption) in figures.items())


TRIED: Columns = (
    ("layer", "layer", _number(0)),
    ("strength", "strength", _number(2)),
    ("drift", "drift (nats per token)", _number(2)),
    ("predicted", "predicted gain", _number(3)),
    ("rank", "rank predicted", _number(0)),
    ("reward", "reward", _number(3)),
    ("n", "replies", _number(0)),
    ("coherent_rate", "coherent", percent),
    ("opening", "commonest opening", percent),
    ("embedding judge", "embedding judge (unseen)", _number(2)),
    ("word judge", "word judge (unseen)", _number(2)),
    ("markers", "markers (unseen)", percent),
)


def _intervention(result: RunResult) -> str:
    choice = result.intervention
    assert choice is not None
    named = choice.table.assign(arm=choice.table["source"] + " @ " + choice.table["where"])
    table = scroll("What was tried", _table(named, TRIED))
    words = choice.describe()
    caption = "Attribution proposed, replies to the extraction contexts decided; all were brought to one drift."
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
    text = figure("dose-figure", plot_dose(result.dose, chosen, DRIFT_LIMIT), caption)
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
