"""What an exported vector does, and one at every token that drifts no more, for programs that know no positions."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import pandas as pd

from star_tl.data.pairs import Pairs
from star_tl.errors import StarError
from star_tl.evaluation.samples import sample_conditions
from star_tl.evaluation.scores import mark_coherent, summarise
from star_tl.generation.settings import Sampling
from star_tl.models.backend import Model
from star_tl.steering.condition import UNSTEERED, Condition

_SHARES = tuple(2.0**k for k in range(-8, 3))  # of the located strength, where the search begins
_ROUNDS, _BETWEEN = 2, 6  # then so many finer grids, each of so many strengths between two neighbours
_REPORTED = ("arm", "n", "trait_rate", "low_rate", "high_rate", "coherent_rate", "drift", "difference", "low", "high")
_EFFECT = ("difference", "low", "high")
_ON_CARD = {
    "drift": "drift, nats per token",
    "trait_rate": "coherent replies with the trait",
    "low_rate": "lower end of 95 %",
    "high_rate": "upper end of 95 %",
    "difference": "effect, points beside unsteered",
    "low": "lower end of the effect's 95 %",
    "high": "upper end of the effect's 95 %",
}


@dataclass(frozen=True)
class EveryToken:
    """The ``strength`` at every token, and a ``table`` of unsteered, located and every-token replies.

    The table's columns are those of :func:`star_tl.evaluation.scores.summarise`: the rate of coherent replies that show
    the trait with its interval, its difference to the unsteered replies, and drift in nats per token.
    """

    strength: float
    table: pd.DataFrame


def on_card(table: pd.DataFrame) -> dict[str, float]:
    """Drift and effect of a table's conditions by name, the last condition first, as a recipe card takes them."""
    found: dict[str, float] = {}
    for row in reversed(table.to_dict(orient="records")):
        names = _ON_CARD if row["arm"] != UNSTEERED else {k: v for k, v in _ON_CARD.items() if k not in _EFFECT}
        found |= {f"{row['arm']}: {name}": float(row[column]) for column, name in names.items()}
    return {name: value for name, value in found.items() if math.isfinite(value)}


def measure_export(
    model: Model,
    pairs: Pairs,
    condition: Condition,
    sampling: Sampling = Sampling(),  # noqa: B008 - frozen
) -> pd.DataFrame:
    """Drift and effect of a condition on the extraction contexts, beside unsteered replies: a table as
    :class:`EveryToken` has it.
    """
    return _table(model, pairs, [Condition(seed=condition.seed), condition], sampling)


def _table(model: Model, pairs: Pairs, conditions: Sequence[Condition], sampling: Sampling) -> pd.DataFrame:
    samples = sample_conditions(model, pairs.trait, pairs.extraction.prompts, conditions, sampling)
    return summarise(mark_coherent(samples)).filter(_REPORTED)


def fit_every_token(
    model: Model,
    pairs: Pairs,
    located: Condition,
    sampling: Sampling = Sampling(),  # noqa: B008 - frozen
) -> EveryToken:
    """The largest strength found at which the vector, added at every token, drifts no more than it does ``located``.

    Both drifts are those of the replies that each writes to the extraction contexts with the same seed. They rise in
    steps where a token changes, so that they come near each other and are seldom equal.

    Args:
        model: the model that the vector steers.
        pairs: whose extraction contexts are replied to, and whose trait is looked for.
        located: the vector with its strength and positions.
        sampling: how replies are sampled.

    Raises:
        StarError: ``located`` has no vector or strength 0, or every strength that was tried drifts more.
    """
    if not located.dose:
        raise StarError("There is no vector, or strength is 0: give what is added at its place.")
    prompts, trait = pairs.extraction.prompts, pairs.trait
    located = replace(located, name="located")

    def everywhere(strength: float) -> Condition:
        return replace(located, name="every token", strength=strength, positions="all")

    def write(conditions: Sequence[Condition]) -> pd.DataFrame:
        return sample_conditions(model, trait, prompts, conditions, sampling)

    drift = float(write([located]).drift.mean())
    grid = [located.strength * share for share in _SHARES]
    strength, above = 0.0, None
    for _ in range(_ROUNDS + 1):
        found = write([everywhere(x) for x in grid]).groupby("strength").drift.mean()
        strength = next((x for x in reversed(grid) if found[x] <= drift), strength)
        above = next((x for x in grid if abs(x) > abs(strength)), above)
        if not strength or above is None:
            break
        grid = [strength * (above / strength) ** (k / (_BETWEEN + 1)) for k in range(1, _BETWEEN + 1)]
    if not strength:
        raise StarError("Every strength tried at every token drifts more than the located vector: raise its strength.")
    conditions = [Condition(seed=located.seed), located, everywhere(strength)]
    return EveryToken(strength, _table(model, pairs, conditions, sampling))
