"""What the page holds of a selected locus: how far it may be turned up, and what every strength does."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd

from star_tl.evaluation.drift import DriftReach
from star_tl.evaluation.scores import mark_coherent
from star_tl.evaluation.strength import DRIFT_LIMIT, best_dose, dose_table
from star_tl.files import JsonObject
from star_tl.locus import Locus
from star_tl.vectors import SteeringVector

DOSES = (0.1, 0.2, 0.35, 0.5, 0.75, 1.0)  # shares of the slider's end
FURTHER = (1.5, 2.2)  # of it, where none of these passes the limit
PROBE = 0.025  # nats a token on given replies, where a new locus begins: replies of its own drift several times as far
ENDS = 3.0  # × that strength: where the slider ends at first


@dataclass
class Chosen:
    """A selected locus. Strengths are shares of the residual norm, negative ones turn the trait down."""

    locus: Locus
    colour: int
    positions: str = "locus"
    strength: float | None = None
    most: float | None = None
    vector: SteeringVector | None = None

    def take(self, vector: SteeringVector, reach: DriftReach) -> None:
        """What was found of the vector: the slider's first range, and a strength to begin with."""
        self.vector = vector
        begin = reach.strength * vector.fraction
        self.most = float(f"{ENDS * begin:.2g}")
        if self.strength is None:
            self.strength = float(f"{begin:.2g}")

    @property
    def natural(self) -> float:
        """The strength in natural differences, short enough to be read in code."""
        return natural(self.vector, self.strength) if self.vector and self.strength is not None else 0.0

    def shown(self, doses: pd.DataFrame | None) -> JsonObject:
        """For the page."""
        found: JsonObject = {
            **as_dict(self.locus),
            "colour": self.colour,
            "at": self.positions,
            "strength": self.strength,
            "most": self.most,
            "fraction": self.vector.fraction if self.vector else None,
            "best": None,
            "safe": None,
            "sure": False,
            "drift": [],
        }
        if doses is not None:
            best = best_dose(doses)
            rates = doses.set_index("strength")
            found |= {"best": best, "safe": safe_until(doses)}
            found["sure"] = bool(rates.low_rate[best] > rates.trait_rate[0.0])
            found["drift"] = doses[["strength", "drift"]].to_numpy().tolist()
        return found


def natural(vector: SteeringVector, share: float) -> float:
    """A share of the residual norm as a strength, in natural differences."""
    return round(share / vector.fraction, 3)


def safe_until(dose: pd.DataFrame, limit: float = DRIFT_LIMIT) -> float:
    """The strength at which drift first passes ``limit``, between two measured ones in proportion."""
    x, drift = dose.strength.to_numpy(), dose.drift.to_numpy()
    above = np.flatnonzero(drift > limit)
    if not len(above):
        return float(x[-1])
    k = int(above[0])
    return float(np.interp(limit, drift[k - 1 : k + 1], x[k - 1 : k + 1])) if k else 0.0


def curve(unsteered: pd.DataFrame, steered: pd.DataFrame) -> pd.DataFrame:
    """A row per strength, 0 among them."""
    return dose_table(mark_coherent(pd.concat([unsteered, steered], ignore_index=True)))


def as_dict(locus: Locus) -> JsonObject:
    return {
        "name": str(locus),
        "hook_point": locus.hook_point,
        "positions": list(locus.positions),
        "head": locus.head,
        "layer": locus.layer,
    }
