"""What an estimator is given, and the record by which it is known."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from star_tl.attribution.objective import Metric, pairs_own
from star_tl.data.pairs import Pairs
from star_tl.locus import POINTS
from star_tl.models.backend import Model

if TYPE_CHECKING:
    from star_tl.attribution.map import AttributionMap

DRAWS = 8


@dataclass(frozen=True)
class Request:
    """What to attribute; the arguments of :func:`star_tl.attribute` that all estimators have."""

    model: Model
    pairs: Pairs
    points: Sequence[str] = POINTS
    metric: Metric = pairs_own
    controls: Sequence[Pairs] = ()
    alignment: str = "spans"
    draws: int = DRAWS
    seed: int = 0
    batch_size: int | None = None
    progress: bool = True

    @property
    def metric_name(self) -> str:
        """Empty where every pair names its own."""
        return "" if self.metric is pairs_own else getattr(self.metric, "__name__", type(self.metric).__name__)


@dataclass(frozen=True)
class Estimator:
    """A way to attribute.

    ``key`` is what ``method=`` takes, ``label`` its name in full, ``summary`` a few words on it, and ``options`` the
    arguments of :func:`star_tl.attribute` that it alone or few have; ``attribute`` takes these by name.
    ``prices_layers`` says whether its maps hold the gradients that a layer is chosen by.
    """

    key: str
    label: str
    summary: str
    options: tuple[str, ...]
    attribute: Callable[..., AttributionMap]
    prices_layers: bool = True

    def __call__(self, request: Request, **options: Any) -> AttributionMap:
        return self.attribute(request, **options)

    def __str__(self) -> str:
        return f"{self.key} ({self.label}: {self.summary})"
