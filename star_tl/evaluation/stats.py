"""Statistics of what steering did, paired by prompt: the one place for resampling and tests."""

from __future__ import annotations

import numpy as np
from scipy import stats


def compare_paired(change: np.ndarray, resamples: int, seed: int) -> dict[str, float]:
    if len(change) < 2:
        return dict.fromkeys(("difference", "low", "high", "p_value", "wrong_way"), float("nan"))
    mean = float(change.mean())
    low = high = mean
    p_value = 1.0
    if np.ptp(change) > 0:
        interval = stats.bootstrap((change,), np.mean, n_resamples=resamples, method="percentile", rng=seed)
        low, high = interval.confidence_interval
    if change.any():
        test = stats.permutation_test((change,), np.mean, permutation_type="samples", n_resamples=resamples, rng=seed)
        p_value = float(test.pvalue)
    return {
        "difference": 100 * mean,
        "low": 100 * float(low),
        "high": 100 * float(high),
        "p_value": p_value,
        "wrong_way": float((change < 0).mean()),
    }
