"""Strengths that cost a given drift, so that ways to steer are compared at the same price.

Drift grows with the square of the strength to leading order, and saturates or runs away beyond; so it is measured at
a first guess, at what the square law makes of that, and the strength is read off between the points.

:func:`at_drift` measures the replies that the steered model writes itself, which is what counts. :func:`drift_reach`
measures replies that are given: a few forward passes tell how far a vector may be turned up, and nothing is sampled.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from star_tl.data.chat import Prompt, render, reply_ids
from star_tl.data.pairs import Pairs, Trait
from star_tl.errors import StarError
from star_tl.evaluation.ray_workers import RayWorkers
from star_tl.evaluation.samples import sample_conditions
from star_tl.evaluation.strength import DRIFT_LIMIT
from star_tl.generation.likelihood import kl_per_token, reply_logits
from star_tl.generation.settings import Sampling
from star_tl.models.backend import Model, tokenizer_of
from star_tl.models.batch import make_batch
from star_tl.steering.condition import Condition
from star_tl.vectors import SteeringVector

POINTS = 2  # strengths at which drift is measured
FARTHEST = 4.0  # times the last strength, or its inverse: the most that one step is trusted for
# Where many ways are compared for a report: extraction contexts, strengths, and a seed that is no result's.
PRACTICE, PRACTICE_POINTS, PRACTICE_SEED = 16, 4, 7919
NEAR = 0.05  # of the logarithm of drift
LEAST = 1e-5  # nats a token: below it a drift is rounding
# Of the search on given replies: where it begins and gives up, times the residual norm.
FIRST, MOST = 0.1, 4.0
TRIES = 6
CLOSE = 1.5  # a drift within this factor of the limit is scaled to it

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


@dataclass(frozen=True)
class DriftReach:
    """Where drift passes ``limit`` (nats a token): ``strength``, in natural differences.

    ``curve`` holds the strengths that were tried, from the least on, with their drift. ``passed`` is False where drift
    stays below the limit up to MOST times the residual norm; ``strength`` is that then.
    """

    strength: float
    limit: float
    passed: bool
    curve: tuple[tuple[float, float], ...]

    def drift(self, strength: float) -> float:
        """The drift at a strength, nats a token: between measured ones in proportion, below them as its square."""
        x, y = np.array(self.curve).T
        size = abs(strength)
        return float(y[0] * (size / x[0]) ** 2) if size < x[0] else float(np.interp(size, x, y))


@torch.no_grad()
def drift_reach(
    model: Model,
    vector: SteeringVector,
    pairs: Pairs,
    positions: str | Sequence[int] | None = None,
    limit: float = DRIFT_LIMIT,
    count: int = 3,
) -> DriftReach:
    """Search the strength at which adding ``vector`` moves the replies of the first pairs by ``limit`` of drift.

    To second order drift is the square of the strength, so each try is the last one scaled by the root of what is
    wanted over what was found.

    Args:
        model: the model to steer.
        vector: what to add.
        pairs: whose contexts, without an instruction, and replies are read.
        positions: as in :class:`star_tl.Condition`.
        limit: nats a token.
        count: pairs that are read, both replies of each.

    Raises:
        StarError: a limit that is not above 0, unknown positions, or a vector that is zero.
    """
    if not limit > 0:
        raise StarError(f"limit is {limit!r}: give the most drift in nats per token, above 0.")
    if not vector.norm:
        raise StarError("The vector is zero: extract it from pairs that differ.")
    few = pairs.extraction.pairs[:count]
    chats = [p.context for p in few] * 2
    replies = [
        reply_ids(tokenizer_of(model), text) for text in (*(p.positive for p in few), *(p.negative for p in few))
    ]
    batch = make_batch(model, [render(tokenizer_of(model), chat).ids for chat in chats], replies)
    base, mask = reply_logits(model, batch), batch.reply_mask
    end, found = MOST / vector.fraction, {}
    strength = min(FIRST / vector.fraction, end)
    for _ in range(TRIES):
        hooks = Condition("steered", vector, strength, positions).hooks(tokenizer_of(model), chats, batch.prompt_end)
        kl = kl_per_token(reply_logits(model, batch, hooks), base).masked_fill(~mask, 0.0)
        drift = float((kl.sum(-1) / batch.reply_lengths).mean())
        found[strength] = drift if math.isfinite(drift) else math.inf
        if limit / CLOSE <= drift <= limit * CLOSE or (drift < limit and strength >= end):
            break
        factor = math.sqrt(limit / drift) if 0 < drift < math.inf else (8.0 if drift == 0 else 0.125)
        strength = min(end, strength * min(8.0, max(0.125, factor)))
    curve = tuple(sorted((x, y) for x, y in found.items() if math.isfinite(y)))
    if not curve:
        raise StarError("The model's logits are NaN at every strength: use weights that hold only finite numbers.")
    nearest_x, nearest_y = min(curve, key=lambda point: abs(math.log(max(point[1], 1e-12) / limit)))
    passed = nearest_y >= limit or nearest_x < end
    reached = nearest_x * math.sqrt(limit / nearest_y) if passed and nearest_y > 0 else end
    return DriftReach(min(reached, end), limit, passed, curve)
