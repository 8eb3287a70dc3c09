"""Resampling and tests: the one place for both."""

from __future__ import annotations

import numpy as np
import torch
from jaxtyping import Float, Int
from scipy import stats
from torch import Tensor


def drawn_again(n: int, resamples: int, seed: int) -> Int[Tensor, "resample n"]:
    """Which of ``n`` things each bootstrap resample holds."""
    return torch.randint(n, (resamples, n), generator=torch.Generator().manual_seed(seed))


def mean_interval(values: Float[Tensor, "n ..."], resamples: int = 400, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Ends of the 95 % percentile bootstrap interval of the mean over the first axis."""
    n, ones = len(values), torch.ones(resamples, len(values), dtype=values.dtype)
    weights = torch.zeros_like(ones).scatter_add_(1, drawn_again(n, resamples, seed), ones) / n
    means = (weights @ values.flatten(1)).sort(0).values
    low, high = (means[round(q * (resamples - 1))].view(values.shape[1:]) for q in (0.025, 0.975))
    return low, high


def compare_paired(change: np.ndarray, resamples: int, seed: int) -> dict[str, float]:
    """Mean change with its 95 % bootstrap interval (points), p-value of sign flips, and the share that fell.

    All NaN where fewer than two changes are given.
    """
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
