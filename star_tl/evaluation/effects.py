"""What every condition did beside unsteered replies, and what one did beside the others, prompt by prompt."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd

from star_tl import stats
from star_tl.steering.condition import UNSTEERED

RESAMPLES = 2000
SAME = {"markers": 0.1, "llm": 0.1, "relevance": 0.05, "repetition": 0.05, "vader": 0.1}  # margins of equivalence
SAME_OF_A_JUDGE = 0.05
RELATIVE = 0.2  # of the reference's mean: the margin of measures that have a unit


def effects(
    samples: pd.DataFrame, measures: Sequence[str], reference: str = UNSTEERED, resamples: int = RESAMPLES
) -> pd.DataFrame:
    """A row per measure and condition, beside the reference.

    Columns: ``measure``, ``condition``, ``n`` (prompts that both know, on which all but the mean rests), ``mean``,
    ``difference`` (paired by prompt, over the means of a prompt's seeds) with the 95 % bootstrap interval over prompts
    ``low`` and ``high``, ``d`` (paired), ``p`` (sign flips), ``p_holm`` (over the conditions of a measure),
    ``p_mcnemar`` (markers, one seed), ``worse`` (share of prompts that fell), ``detectable`` (the least difference that
    so many prompts show in four of five tries), ``p_same`` (equivalence within ``margin``), ``drift`` (nats per token),
    ``coherent``, ``strength``.

    What is called worse follows the sign: for perplexity and repetition a fall is no harm.
    """
    rows: list[dict[str, object]] = []
    names = [n for n in dict.fromkeys(samples.arm) if n != reference]
    for measure in measures:
        by_prompt = samples.pivot_table(index="prompt_id", columns="arm", values=measure, dropna=False)
        base = by_prompt[reference]
        family = []
        for name in (reference, *names):
            arm = samples[samples.arm == name]
            change = stats.changes(by_prompt[name], base) if name != reference else np.zeros(0)
            margin = _margin(measure, float(base.mean()))
            found = stats.compare_paired(change, resamples, 0)
            row: dict[str, object] = {
                "measure": measure,
                "condition": name,
                "n": int((by_prompt[name].notna() & base.notna()).sum()),
                "mean": float(by_prompt[name].mean()),
                "difference": found["difference"] / 100,
                "low": found["low"] / 100,
                "high": found["high"] / 100,
                "d": stats.paired_d(change),
                "p": found["p_value"],
                "p_mcnemar": _mcnemar(samples, measure, reference, name),
                "worse": found["wrong_way"],
                "detectable": stats.detectable_change(change),
                "margin": margin,
                "p_same": stats.equivalence_p(change, margin),
                "drift": arm.drift.mean(),
                "coherent": arm.coherent.mean(),
                "strength": arm.strength.mean(),
            }
            family.append(row)
        corrected = stats.holm(np.array([row["p"] for row in family], dtype=float))
        rows += [row | {"p_holm": p} for row, p in zip(family, corrected, strict=True)]
    return pd.DataFrame(rows)


def pool_random(samples: pd.DataFrame) -> pd.DataFrame:
    """Random vectors as one condition, and shuffles."""
    pooled = samples.arm.str.replace(r"^(random|shuffled labels) \d+$", r"\1", regex=True)
    return samples.assign(arm=pooled)


def _margin(measure: str, mean: float) -> float:
    if ":" in measure:
        return SAME_OF_A_JUDGE
    return SAME.get(measure, RELATIVE * abs(mean) or 1e-9)


def _mcnemar(samples: pd.DataFrame, measure: str, reference: str, name: str) -> float:
    if measure != "markers" or name == reference:
        return float("nan")
    two = [samples[samples.arm == arm].set_index("prompt_id")[measure] for arm in (reference, name)]
    if not all(series.index.is_unique for series in two):
        return float("nan")
    before, after = pd.concat(two, axis=1, join="inner").dropna().to_numpy().T > 0
    return stats.mcnemar_p(before, after)
