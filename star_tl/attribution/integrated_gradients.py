r"""Integrated gradients (IG): the gradient averaged along the way from corrupted to clean.

.. math:: s = (a_{clean} - a_{corrupted}) \cdot \int_0^1 \partial M / \partial a \,|_{x(\alpha)} \, d\alpha

where x(α) is the corrupted run with the first layer's input moved a share α of the way to the clean run's,
at the tokens that correspond (Sundararajan et al. 2017, arXiv 1703.01365; for attribution patching Hanna
et al. 2024, arXiv 2403.17806). The integral is Gauss-Legendre quadrature, all steps in one batch. Where the
plain gradient is misled by a saturated nonlinearity this one is not; it costs ``steps`` times as much.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from torch import Tensor

from star_tl.attribution.atp import score_pairs
from star_tl.attribution.map import AttributionMap
from star_tl.attribution.passes import Receive, along_path
from star_tl.attribution.request import Estimator, Request
from star_tl.attribution.rows import PairBatch
from star_tl.models.backend import Model

STEPS = 5


def attribute_ig(request: Request, steps: int = STEPS) -> AttributionMap:
    """Scores of every pair at every hook point; see :func:`star_tl.attribute`."""
    nodes, weights = np.polynomial.legendre.leggauss(steps)
    fractions = [((x + 1) / 2, w / 2) for x, w in zip(nodes.tolist(), weights.tolist(), strict=True)]

    def backward(model: Model, rows: PairBatch, points: Sequence[str], receive: Receive) -> Tensor:
        return along_path(model, rows, points, receive, fractions)

    return score_pairs(request, backward, "ig", copies=steps)


ESTIMATOR = Estimator(
    "ig", "integrated gradients", "the gradient averaged from corrupted to clean", ("steps",), attribute_ig
)
