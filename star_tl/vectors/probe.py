r"""Direction of a linear discriminant between clean and corrupted activations at the locus.

.. math:: v_t = w_t \frac{w_t \cdot \bar d_t}{|w_t|^2}, \qquad w_t = \Sigma_t^{-1} \bar d_t

with :math:`\bar d` the mean difference and :math:`\Sigma` the covariance within the two classes, shrunk towards a
multiple of the identity by Ledoit & Wolf's estimate (J. Multivariate Analysis 88, 2004), for there are fewer pairs than
dimensions. Strength 1 moves as far along w as the pairs do on average. The right one for reading a trait off;
as a steering vector it discounts directions in which contexts vary, and is often weaker than the mean difference
(Marks & Tegmark 2023, arXiv 2310.06824).
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from star_tl.data.pairs import Pairs
from star_tl.errors import StarError
from star_tl.locus import Locus
from star_tl.models.backend import Model
from star_tl.vectors.activations import at_locus, make_vector, mean_norm
from star_tl.vectors.vector import SteeringVector


def probe(model: Model, pairs: Pairs, locus: Locus, batch_size: int) -> SteeringVector:
    """See the module's docstring.

    Raises:
        StarError: fewer than two pairs, or a prompt that is shorter than the positions need.
    """
    if len(pairs) < 2:
        raise StarError("A probe needs at least two pairs: add pairs, or use the method 'located'.")
    clean, corrupted = at_locus(model, pairs, locus, batch_size)
    rows = []
    for positive, negative in zip(clean.unbind(1), corrupted.unbind(1), strict=True):
        difference = positive.mean(0) - negative.mean(0)
        within = torch.cat([positive - positive.mean(0), negative - negative.mean(0)])
        weights = torch.linalg.solve(shrunk_covariance(within), difference)
        rows.append(weights * (weights @ difference) / (weights @ weights))
    return make_vector(model, pairs, locus, "probe", torch.stack(rows), mean_norm(corrupted))


def shrunk_covariance(centred: Float[Tensor, "sample d"]) -> Float[Tensor, "d d"]:
    """Ledoit & Wolf's covariance of centred samples: the best mixture with a multiple of the identity."""
    n, d = centred.shape
    covariance = centred.T @ centred / n
    scale = covariance.trace() / d
    target = scale * torch.eye(d, dtype=centred.dtype)
    distance = (covariance - target).square().sum()
    squared = centred.square().sum(1)
    spread = (squared.square().sum() / n - covariance.square().sum()) / n
    share = float((spread / distance).clamp(0, 1)) if distance > 0 else 1.0
    return (1 - share) * covariance + share * target
