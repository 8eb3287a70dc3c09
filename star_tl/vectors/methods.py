r"""Ways to make a vector of activations, each a pure function, with the records by which they are known.

A function takes clean and corrupted activations ``[pair position d]`` in float64 and gives the vector's rows
``[position d]``. What it is given is said by its record's ``reads``:

* ``"prompt"``: at the locus's positions, counted from the prompt's end, where clean and corrupted are the same context
  under the positive and the negative instruction;
* ``"reply"``: after the context without an instruction, the mean over a reply's own tokens, padding excluded, where
  clean is the positive and corrupted the negative reply; one position.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

Activations = Float[Tensor, "pair position d"]
Rows = Float[Tensor, "position d"]


@dataclass(frozen=True)
class VectorMethod:
    """A way to make a vector.

    ``key`` is what ``method=`` takes, ``label`` its name in full, ``summary`` a few words on it, ``reads`` the tokens
    that it is made of, ``rows`` the function, and ``fewest_pairs`` how many it needs.
    """

    key: str
    label: str
    summary: str
    reads: Literal["prompt", "reply"]
    rows: Callable[[Activations, Activations], Rows]
    fewest_pairs: int = 1

    def __str__(self) -> str:
        return f"{self.key} ({self.label}: {self.summary})"


def mean_difference(clean: Activations, corrupted: Activations) -> Rows:
    r"""The vector that STAR injects: at each position t

    .. math:: v_t = \frac{1}{N} \sum_{pairs} \left( a_{clean, t} - a_{corrupted, t} \right)

    Mean difference: Marks & Tegmark 2023 (arXiv 2310.06824), Rimsky et al. 2024 (CAA, arXiv 2312.06681); the place:
    STAR, arXiv 2511.12832. At prompt tokens the right one when the trait is decided at particular tokens. Over reply
    tokens (CAA, over all of them) it is how most steering libraries extract, meant to be added at every position: the
    comparison, and for traits that no single token decides.
    """
    return (clean - corrupted).mean(0)


def principal_direction(clean: Activations, corrupted: Activations) -> Rows:
    r"""Principal direction of the differences, not centred.

    .. math:: v_t = u_t \, (u_t \cdot \bar d_t), \qquad u_t = \arg\max_{|u| = 1} \sum_{pairs} (u \cdot d_t)^2

    with d the differences clean − corrupted and :math:`\bar d` their mean, so that strength 1 moves as far along u
    as the pairs do on average. Zou et al. 2023 (arXiv 2310.01405) take the principal direction of differences;
    centring them first would remove the mean difference, which is the trait. The right one when pairs differ in
    many ways of which one is common: it weighs pairs that differ much more than the mean does.
    """
    differences = (clean - corrupted).transpose(0, 1)
    direction = torch.linalg.svd(differences, full_matrices=False).Vh[:, 0]
    return direction * (direction * differences.mean(1)).sum(-1, keepdim=True)


def discriminant(clean: Activations, corrupted: Activations) -> Rows:
    r"""Direction of a linear discriminant between clean and corrupted activations.

    .. math:: v_t = w_t \frac{w_t \cdot \bar d_t}{|w_t|^2}, \qquad w_t = \Sigma_t^{-1} \bar d_t

    with :math:`\bar d` the mean difference and :math:`\Sigma` the covariance within the two classes, shrunk towards a
    multiple of the identity by Ledoit & Wolf's estimate (J. Multivariate Analysis 88, 2004), for there are fewer pairs
    than dimensions. Strength 1 moves as far along w as the pairs do on average. The right one for reading a trait off;
    as a steering vector it discounts directions in which contexts vary, and is often weaker than the mean difference
    (Marks & Tegmark 2023, arXiv 2310.06824).
    """
    rows = []
    for positive, negative in zip(clean.unbind(1), corrupted.unbind(1), strict=True):
        difference = positive.mean(0) - negative.mean(0)
        within = torch.cat([positive - positive.mean(0), negative - negative.mean(0)])
        weights = torch.linalg.solve(shrunk_covariance(within), difference)
        rows.append(weights * (weights @ difference) / (weights @ weights))
    return torch.stack(rows)


def shrunk_covariance(centred: Float[Tensor, "sample d"]) -> Float[Tensor, "d d"]:
    """Ledoit & Wolf's covariance of centred samples: the best mixture with a multiple of the identity."""
    n, d = centred.shape
    covariance = centred.T @ centred / n
    scale = covariance.trace() / d
    if not scale > 0:  # all samples are the same: no direction varies more than another
        return torch.eye(d, dtype=centred.dtype)
    target = scale * torch.eye(d, dtype=centred.dtype)
    distance = (covariance - target).square().sum()
    squared = centred.square().sum(1)
    spread = (squared.square().sum() / n - covariance.square().sum()) / n
    share = float((spread / distance).clamp(0, 1)) if distance > 0 else 1.0
    return (1 - share) * covariance + share * target


METHODS = {
    method.key: method
    for method in (
        VectorMethod("located", "mean difference", "clean − corrupted at exactly the locus", "prompt", mean_difference),
        VectorMethod(
            "principal", "principal direction", "of the differences at the locus", "prompt", principal_direction
        ),
        VectorMethod("probe", "linear discriminant", "of clean and corrupted at the locus", "prompt", discriminant, 2),
        VectorMethod(
            "reply_mean",
            "mean over reply tokens",
            "positive − negative, as other libraries do",
            "reply",
            mean_difference,
        ),
    )
}
