"""A selected locus: whose vector is added there, how far it may be turned up, and what every strength does."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from star_tl.data.chat import Prompt
from star_tl.data.pairs import Trait
from star_tl.evaluation.drift import DriftReach
from star_tl.evaluation.scores import mark_coherent, score
from star_tl.evaluation.strength import DRIFT_LIMIT, best_dose, dose_table
from star_tl.files import JsonObject
from star_tl.generation.sampling import stream
from star_tl.generation.settings import Sampling
from star_tl.generation.writing import Reply
from star_tl.locus import Locus
from star_tl.models.backend import Model, tokenizer_of
from star_tl.steering.condition import Condition, batch_hooks
from star_tl.steering.positions import read_positions
from star_tl.vectors import SteeringVector

DOSES = (0.1, 0.2, 0.35, 0.5, 0.75, 1.0)  # shares of the slider's end
DOSE = Sampling(max_new_tokens=40)
PROBE = 0.025  # nats a token on given replies, where a new locus begins
ENDS = 3.0  # × that strength: where the slider ends until its dose–response is known
LOOKS, LOOK_PROMPTS = (1.0, 2.5, 6.0, 15.0, 36.0), 3  # × that strength, to find the end for the doses
PAST = 1.4  # × the drift limit, where they end
FURTHER = 1.6  # × the end, once more, where the doses did not pass the limit after all

Say = Callable[[str, float | None], None]  # words and the share that is done


@dataclass
class Chosen:
    """A selected locus. Strengths are shares of the residual norm, negative ones turn the trait down."""

    locus: Locus
    colour: int
    positions: str = "locus"
    strength: float | None = None
    most: float | None = None
    vector: SteeringVector | None = None
    source: str = ""  # another trait's name, or what else the vector is, where it is not that of the pairs

    @property
    def name(self) -> str:
        return f"{self.source}: {self.locus}" if self.source else str(self.locus)

    @property
    def file(self) -> Path:
        """What its vector is kept as."""
        place = self.locus.hook_point.replace("blocks.", "layer").replace(".", "_").replace("hook_", "")
        head = f"_head{self.locus.head}" if self.locus.head is not None else ""
        return Path(f"{self.vector.trait if self.vector else self.source}_{place}{head}.safetensors")

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
            "name": self.name,
            "source": self.source,
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


def measured_doses(model: Model, trait: Trait, prompts: Sequence[Prompt], chosen: Chosen, say: Say) -> pd.DataFrame:
    """Scored replies to the prompts at every dose, up to past the drift limit; the slider's end is set to the last.

    A few replies at strengths far apart find that end first, because replies of the model's own drift otherwise than
    given ones: from a tenth of them, where the vector is added at every token, to more.
    """
    begin = (chosen.most or ENDS) / ENDS
    few = scored(model, trait, prompts[:LOOK_PROMPTS], chosen, [x * begin for x in LOOKS], say)
    most = end_of(few.groupby("strength").drift.mean())
    found = scored(model, trait, prompts, chosen, [float(f"{share * most:.3g}") for share in DOSES], say)
    if found.groupby("strength").drift.mean().max() <= DRIFT_LIMIT:
        more = scored(model, trait, prompts, chosen, [float(f"{FURTHER * most:.3g}")], say)
        found = pd.concat([found, more], ignore_index=True)
    chosen.most = float(found.strength.max())
    return found


def end_of(drift: pd.Series) -> float:
    """The strength at which drift, by strength, passes the limit by a little; else the largest."""
    x, y = np.log(drift.index.to_numpy(dtype=float)), np.log(drift.fillna(np.inf).clip(lower=1e-6).to_numpy())
    target = np.log(PAST * DRIFT_LIMIT)
    above = np.flatnonzero(y >= target)
    if not len(above):
        return float(np.exp(x[-1]))
    k = int(above[0])
    if k == 0:  # to second order drift is the square of the strength
        return float(np.exp(x[0] + min(0.0, target - y[0]) / 2)) if np.isfinite(y[0]) else float(np.exp(x[0]))
    return float(np.exp(np.interp(target, np.minimum(y[k - 1 : k + 1], 50.0), x[k - 1 : k + 1])))


def scored(
    model: Model, trait: Trait, prompts: Sequence[Prompt], chosen: Chosen | None, shares: Sequence[float], say: Say
) -> pd.DataFrame:
    """Replies to the prompts at strengths in shares of the residual norm, scored; without ``chosen`` the unsteered."""
    vector, positions = (chosen.vector, read_positions(chosen.positions)) if chosen is not None else (None, "")
    ways = [
        Condition("steered", vector, natural(vector, share), positions) if vector is not None else Condition()
        for share in shares
    ]
    asked = [p for _ in ways for p in prompts]
    rows = [way.rows(tokenizer_of(model), p) for way in ways for p in prompts]
    what = f"layer {chosen.locus.layer}" if chosen is not None else "the unsteered model"
    replies: list[Reply] = []
    for step, replies in enumerate(stream(model, asked, batch_hooks(rows), sampling=DOSE), 1):  # noqa: B007
        say(f"Dose–response of {what} …", step / DOSE.max_new_tokens)
    frames, n = [], len(prompts)
    for i, (share, way) in enumerate(zip(shares, ways, strict=True)):
        say(f"Scoring {what} …", i / len(ways))
        frame = score(model, trait, prompts, replies[i * n : (i + 1) * n], way)
        frames.append(frame.assign(strength=share, arm=way.name, prompt_id=range(n)))
    return pd.concat(frames, ignore_index=True)
