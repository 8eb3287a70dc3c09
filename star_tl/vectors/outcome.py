"""The vector that raises an outcome most: a direction that outcome attribution proposes, ready to be injected.

``method="plain"`` is the score-function gradient E[(R − b) G] of the expected reward at the place, ``"natural"`` the
direction that raises it most per drift, (F + λI)⁻¹ E[(R − b) G] with F = E[G Gᵀ], which reads best where the sample is
large against the width. FishBack (arXiv 2605.17231) has this metric without the outcome; vectors trained by
reinforcement (arXiv 2509.06608) take hundreds of such steps where this takes one. No pairs are needed.
"""

from __future__ import annotations

from typing import Protocol, runtime_checkable

from jaxtyping import Float
from torch import Tensor

from star_tl.errors import check_kind
from star_tl.locus import Locus
from star_tl.vectors.vector import SteeringVector


class Direction(Protocol):
    """What an outcome map's ``direction`` returns; see :class:`star_tl.attribution.outcome.Direction`."""

    @property
    def vector(self) -> Float[Tensor, "position d"]: ...
    @property
    def locus(self) -> Locus: ...
    @property
    def positions(self) -> str | None: ...
    @property
    def method(self) -> str: ...
    @property
    def residual_norm(self) -> float: ...
    @property
    def n_prompts(self) -> int: ...
    @property
    def reward(self) -> str: ...
    @property
    def model(self) -> str: ...
    @property
    def fingerprint(self) -> str: ...
    @property
    def template(self) -> str: ...


@runtime_checkable
class Outcome(Protocol):
    """What :func:`star_tl.attribute_outcome` returns."""

    def top_locus(self, positions: str | None = None) -> Locus: ...

    def direction(self, locus: Locus, positions: str | None = None, method: str = "plain") -> Direction: ...


def extract_outcome_vector(
    outcome: Outcome, locus: Locus | None = None, positions: str | None = None, method: str = "plain"
) -> SteeringVector:
    """The outcome's own direction at a locus, of a strength at which 1 costs 0.1 nats of drift a token, as estimated.

    Args:
        outcome: from :func:`star_tl.attribute_outcome`.
        locus: one prompt token, or several with a row each; default ``outcome.top_locus(positions)``.
        positions: ``"generated"`` for a vector that is added from the last prompt token on: inject it with
            ``vector.hooks(strength, "generated")``. Default: at the locus.
        method: ``"plain"`` or ``"natural"``.

    Raises:
        StarError: as the map's ``direction``.
    """
    check_kind(outcome, Outcome, "a map that attribute_outcome returns")
    place = locus if locus is not None else outcome.top_locus(positions)
    return vector_along(outcome.direction(place, positions, method))


def vector_along(found: Direction) -> SteeringVector:
    """A direction that is at hand, as :func:`extract_outcome_vector` returns it."""
    return SteeringVector(
        vector=found.vector.float(),
        locus=found.locus,
        trait=found.reward,
        method=f"outcome, {found.method}" + (f", {found.positions} tokens" if found.positions else ""),
        residual_norm=found.residual_norm,
        n_pairs=found.n_prompts,
        model=found.model,
        fingerprint=found.fingerprint,
        template=found.template,
    )
