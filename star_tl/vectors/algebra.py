"""Vectors made of vectors: a weighted sum, and one without what it has in common with another."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from functools import reduce
from operator import add

from star_tl.errors import StarError, check_kind, check_number
from star_tl.vectors.vector import SteeringVector, check_alike


def combine(vectors: Sequence[SteeringVector], weights: Sequence[float]) -> SteeringVector:
    """The weighted sum of vectors of one model at one locus: several traits turned up at once.

    Raises:
        StarError: no vectors, another number of weights, or vectors of different models or loci.
    """
    for name, given in (("vectors", vectors), ("weights", weights)):
        check_kind(given, (list, tuple), f"{name} as a list")
    for vector in vectors:
        check_kind(vector, SteeringVector, "vectors as a list of SteeringVector")
    for weight in weights:
        check_number(weight, "A weight", math.isfinite, "give a finite number")
    if not vectors or len(vectors) != len(weights):
        raise StarError(f"combine got {len(vectors)} vectors and {len(weights)} weights: give a weight for each.")
    total = reduce(add, (float(w) * v for v, w in zip(vectors, weights, strict=True)))
    return replace(total, method="combined")


def project_off(vector: SteeringVector, other: SteeringVector) -> SteeringVector:
    """``vector`` less its part along ``other``, position by position: one trait without moving along another.

    Raises:
        StarError: vectors of different models or loci, or ``other`` is zero.
    """
    check_alike(vector, other)
    square = other.vector.square().sum(-1, keepdim=True)
    if not bool((square > 0).all()):
        raise StarError("The vector to project off is zero: extract it from pairs that differ.")
    share = (vector.vector * other.vector).sum(-1, keepdim=True) / square
    return replace(vector, vector=vector.vector - share * other.vector, method=f"{vector.method} off {other.trait}")
