"""The two roads to what steers in a run, with what it is compared with on each."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import pandas as pd

from star_tl.attribution import AttributionMap
from star_tl.attribution.choose import listed
from star_tl.data.pairs import Pairs
from star_tl.evaluation.conditions import RANDOM
from star_tl.evaluation.drift import PRACTICE_POINTS, at_drift
from star_tl.evaluation.intervention import CALIBRATED_ON, GENERATED, InterventionChoice, choose_intervention
from star_tl.evaluation.strength import DRIFT_LIMIT, STRENGTHS, StrengthChoice, choose_strength
from star_tl.generation.settings import Sampling
from star_tl.locus import Locus, hook_name
from star_tl.models.backend import Model
from star_tl.steering.condition import Condition
from star_tl.vectors import SteeringVector, extract_vector

EVERYWHERE = tuple(x / 4 for x in STRENGTHS)  # added at every token, a vector does more, and more harm
CHOSEN_BY_TOKENS = 40  # of a reply, at most, while what steers is chosen
DRIFTS = (0.02, 0.05, 0.1, 0.2, 0.4)  # nats a token: the strengths of the dose–response, as the square law says
DOSED_ON = 12  # contexts: the curve is drawn, and decides nothing
MOST_TRIED = 3  # layers of a tie, whose replies decide between them


@dataclass(frozen=True)
class Road:
    """What steers, and beside what: the conditions that are to be compared, and how they were come to."""

    vector: SteeringVector
    conditions: list[Condition]
    dose: StrengthChoice
    intervention: InterventionChoice | None
    settings: dict[str, str]
    samples: dict[str, pd.DataFrame]


def by_attribution(
    model: Model,
    pairs: Pairs,
    attr: AttributionMap,
    given: Sequence[Condition],
    sampling: Sampling,
    strength: float | None,
    method: str,
    out: Path | None,
    progress: bool,
) -> Road:
    """Attribution's own place, at a strength that practice finds; of layers that tie the one whose replies do most."""
    positions, choice = given[0].positions, attr.choose_layer()
    tied = [layer for layer in choice.tied if choice.gain[layer] > 0 and layer != choice.layer]
    tied.sort(key=lambda layer: -float(choice.frequency[layer].nan_to_num()))
    tried = [choice.layer, *tied][: MOST_TRIED if strength is None else 1]
    loci = [attr.top_locus(layer=layer) for layer in tried]

    def choose(
        of: SteeringVector, strengths: Sequence[float], at: str | Sequence[int] | None, name: str
    ) -> StrengthChoice:
        return choose_strength(
            model,
            of,
            pairs.trait,
            pairs.extraction.prompts,
            strengths,
            at,
            seed=given[0].seed,
            sampling=sampling,
            out=out and out / name,
            progress=progress,
        )

    found: dict[Locus, tuple[SteeringVector, StrengthChoice]] = {}
    for locus in loci:
        vector = extract_vector(model, pairs, locus, method=method)
        found[locus] = vector, choose(vector, STRENGTHS, positions, f"strength-{locus.layer}")
    locus = max(found, key=lambda one: found[one][1].rate)
    vector, doses = found[locus]
    everywhere = extract_vector(model, pairs, locus, method="reply_mean")
    flooded = choose(everywhere, EVERYWHERE, "all", "strength-everywhere")
    dose = doses.strength if strength is None else float(strength)
    how = f"chosen on the extraction contexts within {DRIFT_LIMIT:g} nat drift per token"
    among = listed(tuple(sorted(tried)))
    return Road(
        vector=vector,
        conditions=[
            *_each(given, Condition(), Condition("steered", vector, dose, positions)),
            *_random(given, vector, dose, positions),
            *_each(
                given,
                Condition("last_ranked_layer", vector.at_layer(choice.last_ranked), dose, positions),
                Condition("reply_mean_everywhere", everywhere, flooded.strength, "all"),
                Condition("primed", instruction=pairs.trait.positive_instruction),
            ),
        ],
        dose=doses,
        intervention=None,
        settings={
            "locus": str(locus) + (f", the one of {among} whose replies did most" if len(loci) > 1 else ""),
            "strength": f"{dose:g} × the natural difference, {dose * vector.fraction:.0%} of the residual, "
            + (how if strength is None else "as given"),
            "reply mean everywhere": f"strength {flooded.strength:g}, chosen in the same way",
        },
        samples={
            **{f"strength, layer {one.layer}": tries.samples for one, (_, tries) in found.items()},
            "strength everywhere": flooded.samples,
        },
    )


def by_choice(
    model: Model,
    pairs: Pairs,
    attr: AttributionMap,
    given: Sequence[Condition],
    sampling: Sampling,
    drift: float,
    replies: int,
    out: Path | None,
    progress: bool,
) -> Road:
    """The intervention that real replies chose, and the classical ones at the same drift."""
    contexts = pairs.extraction.prompts
    sampling = replace(sampling, max_new_tokens=min(sampling.max_new_tokens, CHOSEN_BY_TOKENS))
    choice = choose_intervention(
        model,
        pairs,
        drift=drift,
        attribution=attr,
        n=replies,
        sampling=sampling,
        out=out and out / "choice",
        progress=progress,
    )
    best, vector = choice.condition, choice.vector
    middle = Locus(hook_name("resid_post", attr.n_layers // 2), (-1,))
    located = extract_vector(model, pairs, attr.top_locus())
    classical = [
        Condition("located", located),
        Condition("last_ranked_layer", located.at_layer(attr.choose_layer().last_ranked)),
        Condition("reply_mean", extract_vector(model, pairs, middle, method="reply_mean"), 0.5, GENERATED),
    ]
    practice = contexts[:CALIBRATED_ON]
    folder = out and out / "classical"
    classical = at_drift(model, pairs.trait, classical, drift, practice, sampling, PRACTICE_POINTS, folder, progress)
    strengths = [round(best.strength * (cost / drift) ** 0.5, 4) for cost in DRIFTS]
    doses = choose_strength(
        model,
        vector,
        pairs.trait,
        contexts[:DOSED_ON],
        strengths,
        best.positions if isinstance(best.positions, str) else None,
        limit=DRIFT_LIMIT,
        sampling=sampling,
        out=out and out / "dose",
        progress=progress,
    )
    instruction = pairs.trait.positive_instruction
    return Road(
        vector=vector,
        conditions=[
            *_each(given, Condition(), replace(best, name="steered"), classical[0]),
            *_random(given, vector, best.strength, best.positions),
            *_each(
                given,
                *classical[1:],
                Condition("primed", instruction=instruction),
                replace(best, name="primed_steered", instruction=instruction),
            ),
        ],
        dose=doses,
        intervention=choice,
        settings={
            "intervention": choice.describe(),
            "strength": f"{best.strength:.3g} × its vector, {abs(best.strength) * vector.fraction:.0%} of the "
            f"residual, which cost about {drift:g} nat drift per token in practice",
        },
        samples={"choice": choice.samples, "strength": doses.samples},
    )


def _each(given: Sequence[Condition], *ways: Condition) -> list[Condition]:
    return [replace(way, seed=one.seed) for way in ways for one in given]


def _random(
    given: Sequence[Condition], vector: SteeringVector, strength: float, positions: str | Sequence[int] | None
) -> list[Condition]:
    seeds = [given[k % len(given)].seed for k in range(RANDOM)]
    return [Condition("random", vector.random_like(k), strength, positions, seed=seeds[k]) for k in range(RANDOM)]
