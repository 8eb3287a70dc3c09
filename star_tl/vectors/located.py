r"""Mean difference at the locus: the vector that STAR injects.

.. math:: v_t = \frac{1}{N} \sum_{pairs} \left( a_{clean, t} - a_{corrupted, t} \right)

at the locus's hook point and at each of its positions t (counted from the prompt's end), where
clean and corrupted are the same context under the positive and the negative instruction. Mean
difference: Marks & Tegmark 2023 (arXiv 2310.06824), Rimsky et al. 2024 (CAA, arXiv 2312.06681);
the place: STAR, arXiv 2511.12832. The right one when the trait is decided at particular tokens.
"""

from __future__ import annotations

from star_tl.data.pairs import Pairs
from star_tl.locus import Locus
from star_tl.models.backend import Model
from star_tl.vectors.activations import at_locus, make_vector, mean_norm
from star_tl.vectors.vector import SteeringVector


def located(model: Model, pairs: Pairs, locus: Locus, batch_size: int) -> SteeringVector:
    """See the module's docstring. Raises StarError where a prompt is shorter than the positions need."""
    clean, corrupted = at_locus(model, pairs, locus, batch_size)
    return make_vector(model, pairs, locus, "located", (clean - corrupted).mean(0), mean_norm(corrupted))
