"""What a run found, in sentences, and how its terms are to be read."""

from __future__ import annotations

import math
from collections.abc import Container
from typing import TYPE_CHECKING

from star_tl.attribution.choose import GAIN_DRIFT
from star_tl.evaluation.evaluated import LEVEL
from star_tl.view.plots import arm_name, percent
from star_tl.view.report_tables import number

if TYPE_CHECKING:
    import pandas

    from star_tl.evaluation.result import RunResult

FEWEST = 6  # prompts of which all may fall alike by chance less often than LEVEL
ARMS = {
    "unsteered": "the model as it is.",
    "steered": "the vector of this page, at its place.",
    "located": "the mean difference of the pairs at attribution's own place, at the same drift in practice.",
    "random": "ten random directions of the same norm at the same place, a reply to each prompt from each.",
    "last_ranked_layer": "the vector of attribution's own place, added at the layer with the lowest gain.",
    "reply_mean": "the mean difference over reply tokens, added at the middle layer to generated tokens.",
    "reply_mean_everywhere": "the mean difference over reply tokens, added at every position.",
    "primed": "no vector, but an instruction that asks for the trait.",
    "primed_steered": "that instruction and the vector together.",
}
TESTED = "steering is tested on the contexts that the vector was made from"
READING = f"""
<dl>
<dt>Score</dt><dd>(clean activation − corrupted activation) · gradient of the trait metric, in nats. Clean is the run
that shows the trait, corrupted the one that does not. Positive: moving toward clean raises the trait. It is a
first-order estimate.</dd>
<dt>Gain</dt><dd>What {GAIN_DRIFT:g} nat of drift per token buys of the metric (nats) when the vector is added there,
to leading order: effect per root of drift. The layer of the largest gain is taken, of those within 5 % of it the
earliest, and called chosen only where most
resamples of the pairs choose it and random directions under the same search over layers gain less (p).</dd>
<dt>Coherent</dt><dd>The unsteered model finds the reply at least as probable (log-probability, nats per token) as the
2 % quantile of its own replies. Broken text is full of marker words, so a marker counts only in a coherent reply.</dd>
<dt>Drift</dt><dd>How far the model that wrote the reply is from the unsteered model: the KL divergence of their
next-token distributions, averaged over the reply, in nats per token. It is the cost of steering; 0 is no change.</dd>
<dt>Strength</dt><dd>1 is the mean clean − corrupted difference itself.</dd>
ARMS
<dt>Prompts that fell</dt><dd>Share of prompts whose rate is lower than unsteered.</dd>
<dt>Perplexity, repetition</dt><dd>Perplexity of the reply under the unsteered model; share of its word trigrams that
had occurred in it before.</dd>
</dl>
"""


def surely_moved(arm: pandas.Series) -> bool:
    """Whether more changed than chance explains: by the interval, too narrow where prompts are few, and by the test."""
    return bool((arm.low > 0 or arm.high < 0) and arm.p_value < LEVEL)


def reading(arms: Container[str]) -> str:
    """How the terms of a report with these arms are to be read."""
    said = " ".join(f"{arm_name(name).capitalize()}: {words}" for name, words in ARMS.items() if name in arms)
    return READING.replace("ARMS", f"<dt>Arms</dt><dd>{said}</dd>" if said else "")


def finding(result: RunResult) -> str:
    """What was found, in a few plain words."""
    choice, locus = result.attribution.choose_layer(), result.vector.locus
    if choice.singled_out:
        agree = percent(float(choice.frequency[choice.layer]))
        text = f"At layer {choice.layer} drift buys most of the trait ({agree} of resamples agree)"
    else:
        words = choice.describe()
        text = f"{words[0].upper()}{words[1:]}"
    if result.intervention is None and locus.layer != choice.layer:
        text += f"; of the layers that tie, replies chose {locus.layer}"
    elif not choice.singled_out:
        text += f"; layer {choice.layer} was taken"
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
    verb = "moves" if not surely_moved(after) else "raises" if after.difference > 0 else "lowers"
    text += (
        f"; adding the vector {layer}, on {token}, {verb} coherent replies that show it "
        f"from {percent(before.trait_rate)} to {percent(after.trait_rate)}"
    )
    if known:
        difference, low, high = map(number(0, "+"), (after.difference, after.low, after.high))
        text += f" ({difference} points, 95\N{NO-BREAK SPACE}% interval {low} to {high})"
    if verb == "moves":
        told = known and len(result.prompts) >= FEWEST
        text += ", which may be chance" if told else ", on too few prompts to tell from chance"
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
    rates = f"{percent(before.trait_rate)} of its replies without the vector and {percent(after.trait_rate)} with it"
    if not math.isfinite(after.low) or len(result.prompts) < FEWEST:
        verdict = "too few prompts to tell that from chance"
    elif surely_moved(after):
        verdict = f"{'more' if after.difference > 0 else 'less'} than chance explains"
    else:
        verdict = "a difference that may be chance"
    came_out = f"{rates} show it and stay fluent: {verdict}."
    choice, better, layer = result.attribution.choose_layer(), [], result.vector.locus.layer
    if "random" in rows.index and rows.high_rate.get("random", 0) >= after.trait_rate:
        better.append("random vectors of that size do about as much")
    if "primed" in rows.index and rows.trait_rate["primed"] >= after.trait_rate:
        better.append("an instruction that asks for it does as much or more")
    own = any(TESTED in value for value in result.settings.values())
    if result.intervention is not None and not result.intervention.earned:
        place = "No reply earned any reward where the place was chosen, so that it is a guess"
    elif result.intervention is not None or layer != choice.layer:
        place = f"Where it was added was chosen by replies{'' if own else ' to other prompts'}"
    elif choice.singled_out:
        place = "The pairs single out the layer where it was added"
    else:
        place = "The pairs do not single out a layer, so that the place is a guess"
    believe = "; ".join([place, *better]) + (f"; {TESTED}." if own else ".")
    return [asked, came_out, believe]
