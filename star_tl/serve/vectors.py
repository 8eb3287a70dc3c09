"""The vectors that a server knows, by name, and how strongly each must be added for a drift."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from star_tl.data.pairs import load_pairs
from star_tl.errors import StarError, nearest
from star_tl.evaluation.samples import sample_conditions
from star_tl.generation.settings import Sampling
from star_tl.models.backend import Model
from star_tl.steering.condition import Condition
from star_tl.vectors import SteeringVector

_STRENGTHS = (0.25, 0.5, 1.0, 2.0, 3.0, 4.0, 6.0, 8.0, 12.0, 16.0)
_CONTEXTS = 16
_ELSEWHERE = "emotional_support"  # whose contexts are talked about for a trait that is not built in


@dataclass(frozen=True)
class Served:
    """A vector under its name; ``doses`` are (strength, drift) pairs, by strength, where drift was measured."""

    name: str
    vector: SteeringVector
    doses: tuple[tuple[float, float], ...] = ()

    def strength_at(self, drift: float) -> float:
        """The strength at which the vector drifts so much at its own place, in nats per token.

        The root of drift, which is about proportional to the strength, is interpolated between the strengths measured.

        Raises:
            StarError: drift was not measured, or is beyond what was.
        """
        if not self.doses:
            raise StarError("Drift was not measured here: give strength, or start the server with --measure-drift.")
        most = max(d for _, d in self.doses)
        if not 0 <= drift <= most:
            raise StarError(f"drift is {drift:g}: {self.name} was measured from 0 to {most:.3g} nats per token.")
        low = (0.0, 0.0)
        for high in self.doses:
            if high[1] >= drift:
                share = math.sqrt(drift) - math.sqrt(low[1])
                span = math.sqrt(high[1]) - math.sqrt(low[1])
                return low[0] + (high[0] - low[0]) * (share / span if span > 0 else 1.0)
            low = high
        raise AssertionError


def read_vectors(paths: Sequence[Path], model: Model) -> dict[str, Served]:
    """Saved vectors by the names of their files, without the ending.

    Raises:
        StarError: one cannot be read, belongs to another model, or has another's name.
    """
    found: dict[str, Served] = {}
    for path in paths:
        if path.stem in found:
            raise StarError(f"Two vectors are called {path.stem!r}: rename one of the files.")
        found[path.stem] = Served(path.stem, SteeringVector.load(path, model))
    return found


def named(vectors: dict[str, Served], name: str) -> Served:
    """The vector of this name. Raises StarError where there is none."""
    if name not in vectors:
        raise StarError(f"Unknown vector {name!r}.{nearest(name, vectors)}")
    return vectors[name]


def with_drift(served: Served, model: Model) -> Served:
    """The same with its drift measured on a few extraction contexts of its trait, at its own positions."""
    try:
        pairs = load_pairs(served.vector.trait)
    except StarError:
        pairs = load_pairs(_ELSEWHERE)
    ways = [Condition(f"{s:g}", served.vector, s) for s in _STRENGTHS]
    samples = sample_conditions(
        model, pairs.trait, pairs.extraction.prompts[:_CONTEXTS], ways, Sampling(), progress=False
    )
    drifts = samples.groupby("strength").drift.mean()
    return replace(served, doses=tuple((s, max(0.0, float(drifts[s]))) for s in _STRENGTHS))
