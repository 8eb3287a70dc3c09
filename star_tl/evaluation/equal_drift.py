"""Many conditions brought to the same drift, in rounds that each sample all of them in the same batches."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from star_tl.data.chat import Prompt
from star_tl.data.pairs import Trait
from star_tl.errors import StarError
from star_tl.evaluation.samples import sample_conditions
from star_tl.generation.settings import Sampling
from star_tl.models.backend import Model
from star_tl.steering.condition import Condition

ROUNDS = 5
NEAR = 0.1  # of the target, as a logarithm: closer than the drift of a few dozen replies is known
LEAST = 1e-9  # nats per token: below it nothing was moved
FARTHEST = 4.0  # times the strength before, at most
INSIDE = 0.15  # of the way between two strengths, at least, from either
SEED = 7919  # of the replies that drift is measured on, other than those of any result


def bring_to_drift(
    model: Model,
    trait: Trait,
    conditions: Sequence[Condition],
    prompts: Sequence[Prompt],
    target: float,
    sampling: Sampling = Sampling(),  # noqa: B008 - frozen
    folder: Path | None = None,
    progress: bool = True,
) -> list[Condition]:
    """The conditions, each at the strength found whose replies drift nearest to ``target`` nats per token.

    Drift grows as the square of a small strength, then saturates or runs away: each round goes by the square law until
    strengths are known that drift too little and too much, and by a power law between these two from then on.

    Args:
        model: the model that is steered.
        trait: as :func:`star_tl.evaluation.samples.sample_conditions` asks for one; it decides nothing.
        conditions: each with a vector; their strengths are where the search begins.
        prompts: to measure on, not those of the result.
        target: mean over replies, nats per token.
        sampling: how to sample.
        folder: where the samples of each round are kept, from which a search that was stopped goes on.
        progress: show progress bars.

    Raises:
        StarError: a condition adds nothing, or ``target`` is not above 0.
    """
    if not (math.isfinite(target) and target > 0):
        raise StarError(f"target is {target!r}: give a drift in nats per token, above 0.")
    if idle := [c.name for c in conditions if not c.dose]:
        raise StarError(f"{idle[0]!r} adds nothing, and no strength of nothing drifts: leave it out.")
    strengths = [c.strength for c in conditions]
    measured: list[dict[float, float]] = [{} for _ in conditions]
    for number in range(ROUNDS):
        wanted = [i for i, found in enumerate(measured) if not found or _distance(min_by(found, target), target) > NEAR]
        if not wanted:
            break
        trial = [replace(conditions[i], name=str(i), strength=strengths[i], seed=SEED) for i in wanted]
        file = folder / f"drift-{number}.jsonl" if folder is not None else None
        frame = sample_conditions(model, trait, prompts, trial, sampling, file, progress)
        drift = frame.groupby("arm").drift.mean()
        for i in wanted:
            measured[i][strengths[i]] = float(drift[str(i)])
            strengths[i] = _next(measured[i], target)
    best = [min(found, key=lambda s, f=found: _distance(f[s], target)) for found in measured]
    return [replace(c, strength=strength) for c, strength in zip(conditions, best, strict=True)]


def min_by(found: dict[float, float], target: float) -> float:
    """The measured drift nearest to the target."""
    return min(found.values(), key=lambda drift: _distance(drift, target))


def _distance(drift: float, target: float) -> float:
    return abs(math.log(max(drift, LEAST) / target))


def _next(found: dict[float, float], target: float) -> float:
    """The next strength to try, of the sign of those tried."""
    sign = math.copysign(1, next(iter(found)))
    drifts = {abs(s): max(d, LEAST) for s, d in found.items()}
    below = max((s for s, d in drifts.items() if d < target), default=None)
    above = min((s for s, d in drifts.items() if d >= target and (below is None or s > below)), default=None)
    if below is not None and above is not None:
        share = math.log(target / drifts[below]) / math.log(drifts[above] / drifts[below])
        return sign * below * (above / below) ** min(1 - INSIDE, max(INSIDE, share))
    nearest = below if below is not None else above
    assert nearest is not None
    return sign * nearest * min(FARTHEST, max(1 / FARTHEST, (target / drifts[nearest]) ** 0.5))
