"""Resampling and tests: the one place for both.

What is compared prompt by prompt comes as the changes of the prompts' means over their seeds: prompts are what is drawn
from many, seeds lie within them, and a resample of prompts carries both (Field & Welsh 2007, J. R. Stat. Soc. B 69).
"""

from __future__ import annotations

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float, Int
from scipy import stats
from statsmodels.stats.contingency_tables import mcnemar
from statsmodels.stats.inter_rater import cohens_kappa
from statsmodels.stats.power import TTestPower
from statsmodels.stats.weightstats import DescrStatsW
from torch import Tensor

ROUNDING = 1e-6  # of what is compared: float32 has seven digits


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


def changes(after: pd.Series, before: pd.Series) -> np.ndarray:
    """What changed in each prompt that both know: less than a millionth of what is compared is rounding, and no change.

    The same reply judged in another batch differs by as much; counted by its sign it would be a change like any other.
    """
    found = (after - before).dropna()
    about = np.maximum(after.abs(), before.abs())[found.index]
    return found.where(found.abs() > ROUNDING * about, 0.0).to_numpy(dtype=float)


def compare_paired(change: np.ndarray, resamples: int, seed: int) -> dict[str, float]:
    """Mean change with its 95 % bootstrap interval (points), p-value of sign flips, and the share that fell.

    All NaN where fewer than two changes are given.
    """
    if len(change) < 2:
        return dict.fromkeys(("difference", "low", "high", "p_value", "wrong_way"), float("nan"))
    mean, p_value = float(change.mean()), 1.0
    low, high = bootstrap_interval(change, resamples, seed)
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


def bootstrap_interval(values: np.ndarray, resamples: int = 2000, seed: int = 0) -> tuple[float, float]:
    """Ends of the 95 % bootstrap interval of the mean of independent values, expanded for small samples.

    The percentile interval is as narrow as if the spread were known; its level is set to
    2 Φ(−√(n/(n−1)) · t) with t the quantile of n − 1 degrees of freedom (Hesterberg 2015, arXiv 1411.5279, 5.3).
    NaN where fewer than two values are given.
    """
    n = len(values)
    if n < 2:
        return float("nan"), float("nan")
    if _constant(values):
        return float(values[0]), float(values[0])
    tail = stats.norm.cdf(-np.sqrt(n / (n - 1)) * stats.t.ppf(0.975, n - 1))
    means = np.random.default_rng(seed).multinomial(n, np.full(n, 1 / n), size=resamples) @ values / n
    low, high = np.quantile(means, (tail, 1 - tail))
    return float(low), float(high)


def paired_d(change: np.ndarray) -> float:
    """Mean change in units of the changes' standard deviation (Cohen's d_z); NaN where they do not differ."""
    return float("nan") if _constant(change) else float(change.mean() / change.std(ddof=1))


def _constant(values: np.ndarray) -> bool:
    """Whether they differ by no more than rounding; one alone has nothing to differ from."""
    return len(values) < 2 or float(np.ptp(values)) <= ROUNDING * float(np.abs(values).max())


def mcnemar_p(before: np.ndarray, after: np.ndarray) -> float:
    """p-value of McNemar's exact test: as many prompts changed from no to yes as from yes to no."""
    up, down = int((after & ~before).sum()), int((before & ~after).sum())
    return float(mcnemar([[0, up], [down, 0]], exact=True).pvalue)


def holm(p_values: np.ndarray) -> np.ndarray:
    """Holm's correction over those that are no NaN, which stay NaN."""
    corrected, tested = np.full(len(p_values), np.nan), np.flatnonzero(~np.isnan(p_values))
    order = tested[np.argsort(p_values[tested], kind="stable")]
    # statsmodels' multipletests collects garbage at each call, a quarter of a second beside a loaded model.
    stepped = p_values[order] * np.arange(len(order), 0, -1)
    corrected[order] = np.minimum(np.maximum.accumulate(stepped), 1) if len(order) else stepped
    return corrected


def equivalence_p(change: np.ndarray, margin: float) -> float:
    """p-value of two one-sided t-tests (Schuirmann 1987) that the mean change lies within ± ``margin``.

    A small one is evidence of no difference that matters; a large one is none of a difference. NaN for fewer than two
    changes.
    """
    if len(change) < 2:
        return float("nan")
    if _constant(change):
        return float(abs(change[0]) >= margin)
    return float(DescrStatsW(change).ttost_mean(-margin, margin)[0])


def detectable_change(change: np.ndarray, power: float = 0.8, level: float = 0.05) -> float:
    """The least mean change that so many prompts with so much spread show with ``power``, in their own unit.

    By the noncentral t distribution of the paired test; NaN for fewer than three changes.
    """
    if len(change) < 3:
        return float("nan")
    d = TTestPower().solve_power(nobs=len(change), alpha=level, power=power)
    return float(np.asarray(d).item() * change.std(ddof=1))


def kappa(one: np.ndarray, other: np.ndarray) -> float:
    """Cohen's kappa of two judgements, yes or no, of the same things; NaN where both never differ from one answer."""
    table = np.array([[int(((one == a) & (other == b)).sum()) for b in (0, 1)] for a in (0, 1)])
    if table.sum() == 0 or max(table[0, 0], table[1, 1]) == table.sum():
        return float("nan")
    with np.errstate(invalid="ignore"):  # of its standard error, which is not asked for
        return float(np.asarray(cohens_kappa(table).kappa).item())
