"""How far a vector may be turned up at its place: the strength at which drift passes a limit.

Measured on replies that are given, so that a few forward passes tell it and nothing is sampled. The drift of replies
that the steered model writes itself is what counts in the end (:mod:`star_tl.evaluation.strength`); this says where to
look for it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from star_tl.data.chat import render, reply_ids
from star_tl.data.pairs import Pairs
from star_tl.errors import StarError
from star_tl.evaluation.strength import DRIFT_LIMIT
from star_tl.generation.likelihood import kl_per_token, reply_logits
from star_tl.models.backend import Model, tokenizer_of
from star_tl.models.batch import make_batch
from star_tl.steering.condition import Condition
from star_tl.vectors import SteeringVector

FIRST, MOST = 0.1, 4.0  # × the residual norm: where the search begins, and where it gives up
TRIES = 6
NEAR = 1.5  # a drift within this factor of the limit is scaled to it


@dataclass(frozen=True)
class DriftReach:
    """Where drift passes ``limit`` (nats a token): ``strength``, in natural differences.

    ``curve`` holds the strengths that were tried, from the least on, with their drift. ``passed`` is False where drift
    stays below the limit up to MOST times the residual norm; ``strength`` is that then.
    """

    strength: float
    limit: float
    passed: bool
    curve: tuple[tuple[float, float], ...]

    def drift(self, strength: float) -> float:
        """The drift at a strength, nats a token: between measured ones in proportion, below them as its square."""
        x, y = np.array(self.curve).T
        size = abs(strength)
        return float(y[0] * (size / x[0]) ** 2) if size < x[0] else float(np.interp(size, x, y))


@torch.no_grad()
def drift_reach(
    model: Model,
    vector: SteeringVector,
    pairs: Pairs,
    positions: str | Sequence[int] | None = None,
    limit: float = DRIFT_LIMIT,
    count: int = 3,
) -> DriftReach:
    """Search the strength at which adding ``vector`` moves the replies of the first pairs by ``limit`` of drift.

    To second order drift is the square of the strength, so each try is the last one scaled by the root of what is
    wanted over what was found.

    Args:
        model: the model to steer.
        vector: what to add.
        pairs: whose contexts, without an instruction, and replies are read.
        positions: as in :class:`star_tl.Condition`.
        limit: nats a token.
        count: pairs that are read, both replies of each.

    Raises:
        StarError: a limit that is not above 0, unknown positions, or a vector that is zero.
    """
    if not limit > 0:
        raise StarError(f"limit is {limit!r}: give the most drift in nats per token, above 0.")
    if not vector.norm:
        raise StarError("The vector is zero: extract it from pairs that differ.")
    few = pairs.extraction.pairs[:count]
    chats = [p.context for p in few] * 2
    replies = [
        reply_ids(tokenizer_of(model), text) for text in (*(p.positive for p in few), *(p.negative for p in few))
    ]
    batch = make_batch(model, [render(tokenizer_of(model), chat).ids for chat in chats], replies)
    base, mask = reply_logits(model, batch), batch.reply_mask
    end, found = MOST / vector.fraction, {}
    strength = min(FIRST / vector.fraction, end)
    for _ in range(TRIES):
        hooks = Condition("steered", vector, strength, positions).hooks(tokenizer_of(model), chats, batch.prompt_end)
        kl = kl_per_token(reply_logits(model, batch, hooks), base).masked_fill(~mask, 0.0)
        drift = float((kl.sum(-1) / batch.reply_lengths).mean())
        found[strength] = drift if math.isfinite(drift) else math.inf
        if limit / NEAR <= drift <= limit * NEAR or (drift < limit and strength >= end):
            break
        factor = math.sqrt(limit / drift) if 0 < drift < math.inf else (8.0 if drift == 0 else 0.125)
        strength = min(end, strength * min(8.0, max(0.125, factor)))
    curve = tuple(sorted((x, y) for x, y in found.items() if math.isfinite(y)))
    if not curve:
        raise StarError("The model's logits are NaN at every strength: use weights that hold only finite numbers.")
    nearest_x, nearest_y = min(curve, key=lambda point: abs(math.log(max(point[1], 1e-12) / limit)))
    passed = nearest_y >= limit or nearest_x < end
    reached = nearest_x * math.sqrt(limit / nearest_y) if passed and nearest_y > 0 else end
    return DriftReach(min(reached, end), limit, passed, curve)
