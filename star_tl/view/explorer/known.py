"""What has been found out so far of a model and pairs: vectors, how far places may be turned up, and their doses."""

from __future__ import annotations

from collections.abc import Callable

import pandas as pd

from star_tl.data.pairs import Pairs, load_pairs
from star_tl.evaluation.drift import drift_reach
from star_tl.models.backend import Model
from star_tl.steering.positions import read_positions
from star_tl.vectors import SteeringVector, extract_vector
from star_tl.vectors.survey import Survey, survey
from star_tl.view.explorer.doses import PROBE, Chosen, curve, measured_doses, scored

DOSE_PROMPTS = 12


class Known:
    """``say`` is told what goes on and the share that is done, where that is known."""

    def __init__(self, model: Model, pairs: Pairs, window: int, say: Callable[[str, float | None], None]) -> None:
        self.model, self.pairs, self.window, self.say = model, pairs, window, say
        practice = pairs.extraction.prompts
        self.practice = practice[:: max(1, len(practice) // DOSE_PROMPTS)][:DOSE_PROMPTS]
        self.surveys: dict[str, Survey] = {}  # by trait, that of the pairs without a name
        self.doses: dict[tuple[str, str] | None, pd.DataFrame] = {}  # by place and positions, None is unsteered

    def read_pairs(self, trait: str = "") -> None:
        """The vectors of a trait everywhere, of the pairs' by default, from one reading."""
        if trait in self.surveys:
            return
        words = f"Reading the pairs{f' of {trait}' if trait else ''}, once for all places …"
        self.say(words, 0.0)
        pairs = load_pairs(trait) if trait else self.pairs
        self.surveys[trait] = survey(self.model, pairs, self.window, progress=lambda share: self.say(words, share))

    def vector(self, chosen: Chosen) -> SteeringVector:
        if chosen.vector is not None:
            return chosen.vector
        known = self.surveys.get(chosen.source)
        if known is not None and known.holds(chosen.locus):
            return known.vector(chosen.locus)
        return extract_vector(self.model, load_pairs(chosen.source) if chosen.source else self.pairs, chosen.locus)

    def ready(self, chosen: Chosen) -> bool:
        """Find its vector and range; False where both were there."""
        if chosen.vector is not None and chosen.most is not None:
            return False
        if chosen.vector is None:
            self.read_pairs(chosen.source)
            chosen.vector = self.vector(chosen)
        self.say("Looking how far this place may be turned up …", None)
        at = read_positions(chosen.positions)
        chosen.take(chosen.vector, drift_reach(self.model, chosen.vector, self.pairs, at, PROBE, 2))
        return True

    def measure(self, chosen: Chosen | None) -> bool:
        """Score replies to the practice prompts at every dose, or unsteered ones; False where that was done."""
        key = (chosen.name, chosen.positions) if chosen is not None else None
        if key in self.doses:
            return False
        trait, asked = self.pairs.trait, self.practice
        self.doses[key] = (
            scored(self.model, trait, asked, None, [0.0], self.say)
            if chosen is None
            else measured_doses(self.model, trait, asked, chosen, self.say)
        )
        return True

    def curve(self, chosen: Chosen) -> pd.DataFrame | None:
        base, found = self.doses.get(None), self.doses.get((chosen.name, chosen.positions))
        return curve(base, found) if base is not None and found is not None else None
