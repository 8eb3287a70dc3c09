"""Strengths that cost a given drift, so that ways to steer are compared at the same price.

Drift grows with the square of the strength to leading order, and saturates or runs away beyond; so it is measured at
a first guess, at what the square law makes of that, and the strength is read off between the points.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pandas as pd

from star_tl.data.chat import Prompt
from star_tl.data.pairs import Trait
from star_tl.errors import StarError
from star_tl.evaluation.ray_workers import RayWorkers
from star_tl.evaluation.samples import sample_conditions
from star_tl.generation.settings import Sampling
from star_tl.models.backend import Model
from star_tl.steering.condition import Condition

POINTS = 2  # strengths at which drift is measured
FARTHEST = 4.0  # times the last strength, or its inverse: the most that one step is trusted for
# Where many ways are compared for a report: extraction contexts, strengths, and a seed that is no result's.
PRACTICE, PRACTICE_POINTS, PRACTICE_SEED = 16, 4, 7919
NEAR = 0.05  # of the logarithm of drift
LEAST = 1e-5  # nats a token: below it a drift is rounding

Measured = tuple[float, float]  # a strength above 0 and the drift it cost


def at_drift(
    model: Model,
    trait: Trait,
    conditions: Sequence[Condition],
    target: float,
    prompts: Sequence[Prompt],
    sampling: Sampling = Sampling(),  # noqa: B008 - frozen
    points: int = POINTS,
    out: str | Path | None = None,
    progress: bool = True,
    workers: RayWorkers | None = None,
) -> list[Condition]:
    """Each condition at the strength that costs ``target`` nats a token on these prompts, as far as measured.

    A removal ends at strength 1, where nothing is left to remove, whatever it costs by then.

    All conditions are measured in the same batches, a reply to each prompt for each of ``points`` strengths. The first
    is the condition's own; its sign is kept.

    Args:
        model: from :func:`star_tl.load_model`.
        trait: whose markers the samples are scored for.
        conditions: with vectors, and strengths other than 0, which are where the search begins.
        target: mean drift of the replies, nats a token.
        prompts: not those on which effects are reported later.
        sampling: how replies are sampled.
        points: strengths to measure, at least one.
        out: a folder for the samples, from which an equal call that was stopped goes on.
        progress: show progress bars.
        workers: who write and score in place of ``model``.

    Raises:
        StarError: a target or points that are not above 0, or a condition without a vector or at strength 0.
    """
    if not target > 0 or points < 1:
        raise StarError("at_drift needs a target above 0 nats a token and at least one point.")
    for condition in conditions:
        if not condition.dose:
            raise StarError(f"{condition.name!r} has no vector or strength 0: nothing to bring to a drift.")
    found: list[list[Measured]] = [[] for _ in conditions]
    for point in range(points):
        guesses = [_guess(*given, target) for given in zip(conditions, found, strict=True)]
        tried = [abs(guess.strength) in dict(known) for guess, known in zip(guesses, found, strict=True)]
        open_ = [i for i, known in enumerate(found) if not tried[i] and not _settled(known, target)]
        if not open_:
            break
        asked = [guesses[i] for i in open_]
        file = Path(out) / f"drift-{point}.jsonl" if out is not None else None
        samples = sample_conditions(model, trait, prompts, asked, sampling, file, progress, workers)
        for i, now, part in zip(open_, asked, _by_condition(samples, len(prompts)), strict=True):
            drift = float(part.drift.mean())
            found[i].append((abs(now.strength), drift if math.isfinite(drift) else math.inf))
    return [_guess(*given, target) for given in zip(conditions, found, strict=True)]


def _guess(condition: Condition, known: Sequence[Measured], target: float) -> Condition:
    strength = _next(condition.strength, known, target)
    return replace(condition, strength=min(strength, 1.0) if condition.remove else strength)


def _by_condition(samples: pd.DataFrame, prompts: int) -> list[pd.DataFrame]:
    return [samples.iloc[first : first + prompts] for first in range(0, len(samples), prompts)]


def _settled(known: Sequence[Measured], target: float) -> bool:
    return any(abs(math.log(max(drift, LEAST) / target)) < NEAR for _, drift in known)


def _next(start: float, known: Sequence[Measured], target: float) -> float:
    """The strength that the points so far say costs the target: between two of them, else by the square law."""
    if not known:
        return start
    sign = math.copysign(1, start)
    below = max((k for k in known if k[1] <= target), default=None)
    above = min((k for k in known if k[1] > target), default=None)
    if below and above and below[0] < above[0]:
        if below[1] < LEAST or math.isinf(above[1]):
            return sign * (below[0] * above[0]) ** 0.5
        slope = math.log(above[0] / below[0]) / math.log(above[1] / below[1])
        return sign * below[0] * (target / below[1]) ** slope
    # The outermost point, for where drift saturates others may lie nearer to the target by chance.
    strength, drift = max(known) if above is None else min(known)
    return sign * strength * min(FARTHEST, max(1 / FARTHEST, (target / max(drift, LEAST)) ** 0.5))
