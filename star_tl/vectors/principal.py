r"""Principal direction of the differences at the locus, not centred.

.. math:: v_t = u_t \, (u_t \cdot \bar d_t), \qquad u_t = \arg\max_{|u| = 1} \sum_{pairs} (u \cdot d_t)^2

with d the differences clean − corrupted and :math:`\bar d` their mean, so that strength 1 moves as far along u
as the pairs do on average. Zou et al. 2023 (arXiv 2310.01405) take the principal direction of differences;
centring them first would remove the mean difference, which is the trait. The right one when pairs differ in
many ways of which one is common: it weighs pairs that differ much more than the mean does.
"""

from __future__ import annotations

import torch

from star_tl.data.pairs import Pairs
from star_tl.locus import Locus
from star_tl.models.backend import Model
from star_tl.vectors.activations import at_locus, make_vector, mean_norm
from star_tl.vectors.vector import SteeringVector


def principal(model: Model, pairs: Pairs, locus: Locus, batch_size: int) -> SteeringVector:
    """See the module's docstring. Raises StarError where a prompt is shorter than the positions need."""
    clean, corrupted = at_locus(model, pairs, locus, batch_size)
    differences = (clean - corrupted).transpose(0, 1)
    direction = torch.linalg.svd(differences, full_matrices=False).Vh[:, 0]
    along = (direction * differences.mean(1)).sum(-1, keepdim=True)
    return make_vector(model, pairs, locus, "principal", direction * along, mean_norm(corrupted))
