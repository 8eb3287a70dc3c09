"""Vectors made of vectors: a weighted sum, and one without what it has in common with another."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from star_tl.errors import StarError
from star_tl.vectors.vector import SteeringVector


def combine(vectors: Sequence[SteeringVector], weights: Sequence[float]) -> SteeringVector:
    """The weighted sum of vectors of one model at one locus: several traits turned up at once.

    Raises:
        StarError: no vectors, another number of weights, or vectors of different models or loci.
    """
    if not vectors or len(vectors) != len(weights):
        raise StarError(f"combine got {len(vectors)} vectors and {len(weights)} weights: give a weight for each.")
    for other in vectors[1:]:
        _check_alike(vectors[0], other)
    total = sum((v.vector * float(w) for v, w in zip(vectors, weights, strict=True)), start=0 * vectors[0].vector)
    name = " + ".join(f"{float(w):g} {v.trait}" for v, w in zip(vectors, weights, strict=True))
    return replace(vectors[0], vector=total, trait=name, method="combined")


def project_off(vector: SteeringVector, other: SteeringVector) -> SteeringVector:
    """``vector`` less its part along ``other``, position by position: one trait without moving along another.

    Raises:
        StarError: vectors of different models or loci, or ``other`` is zero.
    """
    _check_alike(vector, other)
    square = other.vector.square().sum(-1, keepdim=True)
    if not bool((square > 0).all()):
        raise StarError("The vector to project off is zero: extract it from pairs that differ.")
    share = (vector.vector * other.vector).sum(-1, keepdim=True) / square
    return replace(vector, vector=vector.vector - share * other.vector, method=f"{vector.method} off {other.trait}")


def _check_alike(one: SteeringVector, other: SteeringVector) -> None:
    if (one.fingerprint, one.locus) != (other.fingerprint, other.locus):
        raise StarError(
            f"The vectors are of {one.model!r} at {one.locus} and of {other.model!r} at {other.locus}: "
            "extract them from one model at one locus."
        )
