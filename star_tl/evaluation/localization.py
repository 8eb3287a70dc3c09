"""Localization put to the test: rankings of layers, made before anything is steered, against what steering there did.

A ranking is worth its name if the layers that it puts first are those where the vector does most at equal drift. Beside
attribution stand published ways to choose: where a probe tells the pairs apart, where their differences agree, where
the difference is largest, and the middle layer.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd
from scipy.stats import spearmanr

from star_tl import stats
from star_tl.attribution import attribute
from star_tl.data.chat import Prompt
from star_tl.data.pairs import Pairs
from star_tl.errors import StarError
from star_tl.evaluation.drift import PRACTICE, PRACTICE_POINTS, PRACTICE_SEED, at_drift
from star_tl.evaluation.judges import LABELS
from star_tl.evaluation.measures import judge, measured
from star_tl.evaluation.preflight import layers, preflight
from star_tl.evaluation.samples import sample_conditions
from star_tl.evaluation.scores import mark_coherent
from star_tl.generation.settings import Sampling
from star_tl.models.backend import Model
from star_tl.steering.condition import UNSTEERED, Condition
from star_tl.vectors import extract_vectors

RESAMPLES = 1000


@dataclass(frozen=True)
class Localization:
    """What each ranking said and what happened.

    ``layers``: a row per layer: every ranking's score, ``effect`` (change to unsteered, paired by prompt) with ``low``
    and ``high``, ``drift``. ``rankings``: a row per ranking: ``spearman`` of score and effect over layers with a 95 %
    bootstrap interval over prompts, ``layer`` taken, its ``effect``, and ``regret``, how much the best layer did more.
    """

    trait: str
    measure: str
    layers: pd.DataFrame
    rankings: pd.DataFrame


def localize(
    model: Model,
    pairs: Pairs,
    prompts: Sequence[Prompt],
    drift: float,
    estimators: Sequence[str] = ("atp", "ig", "relp"),
    seeds: Sequence[int] = (0,),
    sampling: Sampling = Sampling(),  # noqa: B008 - frozen
    out: str | Path | None = None,
    progress: bool = True,
) -> dict[str, Localization]:
    """The pairs' vector at every layer's last prompt token at one drift, beside every ranking; by measure.

    Measures are the markers in coherent replies, and the n-gram judge's score where one was trained. The regret of a
    ranking is against the best of all layers on the same replies, which favours that one: it is an upper bound.

    Args:
        model: the model.
        pairs: rankings and vectors come of their extraction split, probes are tried on the other.
        prompts: what is replied to.
        drift: nats per token.
        estimators: of :func:`star_tl.attribute`.
        seeds: a reply per prompt, layer and seed.
        sampling: how to sample.
        out: a folder for the samples, from which an equal call goes on.
        progress: show progress bars.

    Raises:
        StarError: no estimators or seeds, or as :func:`star_tl.evaluation.drift.at_drift`.
    """
    if not estimators or not seeds:
        raise StarError("There are no estimators or no seeds: give at least one of each.")
    folder = Path(out) if out is not None else None
    table = rankings_of(model, pairs, estimators, progress)
    vectors = extract_vectors(model, pairs, layers(model))
    ways = [Condition(str(v.locus.layer), v, seed=PRACTICE_SEED) for v in vectors]
    practice = pairs.extraction.prompts[:PRACTICE]
    ways = at_drift(model, pairs.trait, ways, drift, practice, sampling, PRACTICE_POINTS, folder, progress)
    each = [replace(way, seed=seed) for way in (Condition(), *ways) for seed in seeds]
    file = folder and folder / "layers.jsonl"
    samples = mark_coherent(sample_conditions(model, pairs.trait, prompts, each, sampling, file, progress))
    samples["markers"] = (samples.shows & samples.coherent).astype(float)
    measures = ["markers"]
    if pairs.trait.name in LABELS:
        samples = measured(samples, prompts, [replace(judge(pairs.trait.name, "ngrams"), name="ngrams")])
        measures.append("ngrams")
    return {m: compare_rankings(pairs.trait.name, m, table, samples) for m in measures}


def rankings_of(model: Model, pairs: Pairs, estimators: Sequence[str], progress: bool = True) -> pd.DataFrame:
    """A row per layer, a column per ranking: the higher the better."""
    found = preflight(model, pairs).table
    middle = (model.cfg.n_layers - 1) / 2
    columns = {
        f"gain by {name}": attribute(model, pairs, name, progress=progress).choose_layer().gain.tolist()
        for name in estimators
    }
    return pd.DataFrame(
        {
            "layer": found.layer,
            **columns,
            "probe's AUC": found.auc,
            "separability": found.separability,
            "agreement": found.agreement,
            "largest norm": found.norm,
            "middle layer": -(found.layer - middle).abs(),
        }
    )


def compare_rankings(trait: str, measure: str, scores: pd.DataFrame, samples: pd.DataFrame) -> Localization:
    """Rankings beside the effects of samples whose conditions are called by their layer's number."""
    by_prompt = samples.groupby(["prompt_id", "arm"])[measure].mean().unstack("arm")
    change = np.stack([(by_prompt[str(i)] - by_prompt[UNSTEERED]).to_numpy() for i in scores.layer], 1)
    change = change[~np.isnan(change).any(1)]
    ends = [stats.bootstrap_interval(change[:, i], RESAMPLES) for i in range(change.shape[1])]
    effect = change.mean(0)
    drift = samples.groupby("arm").drift.mean()
    table = scores.assign(
        effect=effect, low=[e[0] for e in ends], high=[e[1] for e in ends], drift=[drift[str(i)] for i in scores.layer]
    )
    drawn = stats.drawn_again(len(change), RESAMPLES, 0).numpy()
    resampled = change[drawn].mean(1)
    rows = []
    for name in scores.columns.drop("layer"):
        score = scores[name].to_numpy(dtype=float)
        first = int(score.argmax())
        rho = [_spearman(score, other) for other in resampled]
        low, high = np.nanquantile(rho, (0.025, 0.975)) if not np.isnan(rho).all() else (np.nan, np.nan)
        rows.append((name, _spearman(score, effect), low, high, first, effect[first], effect.max() - effect[first]))
    columns = ["ranking", "spearman", "low", "high", "layer", "effect", "regret"]
    return Localization(trait, measure, table, pd.DataFrame(rows, columns=columns))


def _spearman(one: np.ndarray, other: np.ndarray) -> float:
    return float(spearmanr(one, other).statistic) if np.ptp(one) > 0 and np.ptp(other) > 0 else float("nan")
