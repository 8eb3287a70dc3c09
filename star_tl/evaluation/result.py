"""What the main job found: one value that is printed, shown as a report, and kept."""

from __future__ import annotations

from dataclasses import dataclass

import pandas as pd

from star_tl.attribution import AttributionMap
from star_tl.data.chat import Message
from star_tl.evaluation.intervention import InterventionChoice
from star_tl.steering.condition import UNSTEERED
from star_tl.vectors import SteeringVector


@dataclass(frozen=True)
class RunResult:
    """All that one run found and wrote; ``intervention`` is None where attribution alone chose the place."""

    trait: str
    description: str
    model: str
    attribution: AttributionMap
    vector: SteeringVector
    intervention: InterventionChoice | None
    prompts: tuple[tuple[str, tuple[Message, ...]], ...]
    samples: pd.DataFrame
    summary: pd.DataFrame
    dose: pd.DataFrame
    settings: dict[str, str]

    def __repr__(self) -> str:
        rate = self.summary.set_index("arm").trait_rate
        return (
            f"RunResult({self.trait} on {self.model}: {self.vector.locus}, coherent replies with the trait "
            f"{rate[UNSTEERED]:.0%} → {rate['steered']:.0%})"
        )
