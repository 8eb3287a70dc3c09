"""How strong: the dose–response of a vector, and the strength that brings most within a drift limit."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from statsmodels.stats.proportion import proportion_confint

from star_tl.data.chat import Prompt, as_prompts
from star_tl.data.pairs import Trait
from star_tl.errors import StarError, check_kind, check_number, listed
from star_tl.evaluation.samples import sample_conditions
from star_tl.evaluation.scores import mark_coherent
from star_tl.files import output_folder
from star_tl.generation.settings import Sampling
from star_tl.models.backend import Model
from star_tl.steering.condition import Condition
from star_tl.vectors import SteeringVector

if TYPE_CHECKING:
    import plotly.graph_objects as go

STRENGTHS = tuple(round(2 ** (k / 2), 2) for k in range(-2, 5))  # 0.5 to 4, times the natural difference
DRIFT_LIMIT = 0.2  # nats per token
ENOUGH = 0.97  # of the best rate: a higher strength costs drift and brings next to nothing
NEAR = 0.85  # of the best rate: strengths that reach it in one reply to each prompt are told apart by a second


@dataclass(frozen=True)
class StrengthChoice:
    """A strength, and the dose–response that it was read from.

    ``curve`` has a row per strength, 0 among them: rate of coherent replies that show the trait with its 95 % Wilson
    interval (``trait_rate``, ``low_rate``, ``high_rate``), ``coherent_rate``, ``drift`` (nats per token),
    ``drift_p95`` (over replies), ``perplexity`` under the unsteered model, ``repetition``, ``n`` (twice the prompts
    where a second reply was asked for); ``fraction`` is the strength in units of the residual norm. ``samples`` are the
    replies, as in :class:`star_tl.Comparison`.
    """

    strength: float
    limit: float
    curve: pd.DataFrame
    samples: pd.DataFrame

    @property
    def rate(self) -> float:
        """Share of coherent replies with the trait at the strength; without it where it is turned down."""
        return _rates_within(self.curve.loc[self.curve.strength == self.strength], self.limit)[self.strength]

    def plot(self, **options: Any) -> go.Figure:
        """Trait rate and drift over strength."""
        from star_tl.view.plots import plot_dose

        return plot_dose(self.curve, **options)

    def __repr__(self) -> str:
        row = self.curve[self.curve.strength == self.strength].iloc[0]
        return (
            f"StrengthChoice({self.strength:g} = {row.fraction:.0%} of the residual: {row.trait_rate:.0%} coherent "
            f"replies with the trait, {row.drift:.2f} of at most {self.limit:g} nat drift per token)"
        )


def choose_strength(
    model: Model,
    vector: SteeringVector,
    trait: Trait,
    prompts: Sequence[Prompt],
    strengths: Sequence[float] = STRENGTHS,
    positions: str | Sequence[int] | None = None,
    limit: float = DRIFT_LIMIT,
    seed: int = 0,
    sampling: Sampling = Sampling(),  # noqa: B008 - frozen
    out: str | Path | None = None,
    progress: bool = True,
) -> StrengthChoice:
    """The least strength that reaches nearly (ENOUGH) the best trait rate of any within ``limit`` of drift.

    Every strength writes a reply to each prompt; those within the limit that come NEAR the best write a second, because
    the rates of a few dozen replies are too rough to tell neighbours apart.

    Args:
        model: the model to steer.
        vector: what to steer with.
        trait: whose markers are counted, e.g. ``pairs.trait``.
        prompts: not those on which the effect is reported later, e.g. ``pairs.extraction.prompts``.
        strengths: 1 is the natural difference. All positive, or all negative to turn the trait down: then most
            coherent replies without the trait are the best.
        positions: schedule, numbers or span, see :func:`star_tl.compare`.
        limit: most drift, nats per token, mean over replies.
        seed: of the first replies; the second have the next.
        sampling: how replies are sampled.
        out: a folder for the samples, from which an equal call that was stopped goes on.
        progress: show progress bars.

    Raises:
        StarError: strengths that are none, zero or of both signs, or no prompts.
    """
    check_kind(vector, SteeringVector, "a SteeringVector")
    strengths = listed(strengths, "strengths")
    for strength in strengths:
        vector.scaled(strength)
    signs = {math.copysign(1, x) for x in strengths if x}
    if len(signs) != 1 or 0 in strengths:
        raise StarError(
            f"strengths is {tuple(strengths)!r}: give positive ones, or negative ones to turn the trait down."
        )
    check_number(limit, "limit", lambda x: x > 0, "give the most drift in nats per token, above 0")
    if out is not None:
        out = output_folder(out)
    chats = as_prompts(prompts)

    def at(strengths: Sequence[float], seed: int) -> list[Condition]:
        return [Condition("steered", vector, float(x), positions, seed=seed) for x in strengths]

    def write(conditions: list[Condition], name: str) -> pd.DataFrame:
        file = Path(out) / f"{name}.jsonl" if out is not None else None
        return sample_conditions(model, trait, chats, conditions, sampling, file, progress)

    first = write([Condition(seed=seed), *at(sorted(strengths, key=abs), seed)], "first")
    rates = _rates_within(dose_table(mark_coherent(first)), limit)
    near = [x for x, rate in rates.items() if rate >= NEAR * max(rates.values())]
    second = [write(at(near, seed + 1), "second")] if len(near) > 1 else []
    samples = mark_coherent(pd.concat([first, *second], ignore_index=True))
    curve = dose_table(samples)
    curve.insert(1, "fraction", curve.strength * vector.fraction)
    return StrengthChoice(best_dose(curve, limit), limit, curve, samples)


def dose_table(samples: pd.DataFrame) -> pd.DataFrame:
    """A row per strength of samples that are marked coherent; columns as in :class:`StrengthChoice`."""
    grouped = samples.assign(trait_rate=samples.shows & samples.coherent).groupby("strength")
    low, high = proportion_confint(grouped.trait_rate.sum(), grouped.size(), method="wilson")
    return pd.DataFrame(
        {
            "trait_rate": grouped.trait_rate.mean(),
            "low_rate": low,
            "high_rate": high,
            "coherent_rate": grouped.coherent.mean(),
            "drift": grouped.drift.mean(),
            "drift_p95": grouped.drift.quantile(0.95),
            "perplexity": np.exp(-grouped.logprob.mean()),
            "repetition": grouped.repetition.mean(),
            "n": grouped.size(),
        }
    ).reset_index()


def best_dose(dose: pd.DataFrame, limit: float = DRIFT_LIMIT) -> float:
    """See :func:`choose_strength`; the least of all strengths where none is within the limit."""
    rates = _rates_within(dose, limit)
    return next(x for x, rate in rates.items() if rate >= ENOUGH * max(rates.values()))


def _rates_within(dose: pd.DataFrame, limit: float) -> dict[float, float]:
    """What is to be raised, by strength from the least on: the trait, or with negative strengths its absence."""
    rows = sorted((r for r in dose.to_dict(orient="records") if r["strength"]), key=lambda r: abs(r["strength"]))
    within = [r for r in rows if r["drift"] <= limit] or rows[:1]
    down = rows[0]["strength"] < 0
    return {float(r["strength"]): r["coherent_rate"] - r["trait_rate"] if down else r["trait_rate"] for r in within}
