"""The next token of every row, from its logits and a random number of its own."""

from __future__ import annotations

import hashlib

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from star_tl.generation.settings import Sampling
from star_tl.models.threads import one_row_in_one_thread

PIECE = 256  # words whose probabilities are summed up first


@one_row_in_one_thread
def whole(logits: Float[Tensor, "row vocab"]) -> tuple[Bool[Tensor, " row"], Float[Tensor, "row vocab"]]:
    """Which rows' logits are finite, and the logits with 0 in place of those of the others."""
    finite = logits.sum(-1).isfinite()  # one NaN or infinity makes the sum one
    # On a GPU it is not asked for, which would wait.
    return finite, logits if not logits.is_cuda and bool(finite.all()) else logits.where(finite[:, None], 0.0)


@one_row_in_one_thread
def choose(
    logits: Float[Tensor, "row vocab"],
    seen: Bool[Tensor, "row vocab"] | None,
    uniform: Float[Tensor, " row"],
    options: Sampling,
) -> Int[Tensor, " row"]:
    """The next token of every row; ``seen`` is where the repetition penalty acts, None where there is none."""
    penalised = logits if seen is None else _penalised(logits, seen, options.repetition_penalty)
    return pick(penalised, uniform, options.temperature, options.top_p, options.min_p)


@one_row_in_one_thread
def log_probs(logits: Float[Tensor, "row vocab"], tokens: Int[Tensor, " row"]) -> Float[Tensor, " row"]:
    """The tokens' log-probabilities, nats."""
    return logits.log_softmax(-1).gather(-1, tokens[:, None])[:, 0]


def _penalised(logits: Float[Tensor, "row vocab"], seen: Tensor, penalty: float) -> Float[Tensor, "row vocab"]:
    return torch.where(seen, torch.where(logits > 0, logits / penalty, logits * penalty), logits)


def pick(
    logits: Float[Tensor, "row vocab"],
    uniform: Float[Tensor, " row"],
    temperature: float,
    top_p: float,
    min_p: float = 0.0,
) -> Int[Tensor, " row"]:
    """The token of every row by inverse transform of ``uniform``; greedy at temperature 0.

    Tokens are taken in the vocabulary's order, in which two nearly equal ones never change places.
    """
    if temperature == 0:
        return logits.argmax(-1)
    if top_p < 1 or min_p > 0:
        return _drawn(bounded(logits, temperature, top_p, min_p), uniform)
    # First among pieces of the vocabulary, then in the piece: a running sum of all of it costs as much as a layer.
    wide = torch.promote_types(logits.dtype, torch.float32)
    scaled = logits.to(wide) / temperature
    p = scaled.sub_(scaled.amax(-1, keepdim=True)).exp_()
    pieces = F.pad(p, (0, -p.shape[-1] % PIECE)).unflatten(-1, (-1, PIECE))
    sums = pieces.sum(-1, dtype=torch.float64)
    piece = _drawn(sums, uniform)
    before = torch.where(piece > 0, sums.cumsum(-1).gather(-1, (piece - 1).clamp_min(0)[:, None])[:, 0], 0.0)
    within = (uniform.double() * sums.sum(-1) - before) / sums.gather(-1, piece[:, None])[:, 0]
    own = pieces[torch.arange(len(p), device=p.device), piece].double()
    return piece * PIECE + _drawn(own, within.clamp(0, 1))


def _drawn(p: Float[Tensor, "row item"], uniform: Float[Tensor, " row"]) -> Int[Tensor, " row"]:
    """Where the running sum of each row passes this share of the whole."""
    reached = p.cumsum(-1)
    total = reached[:, -1:].contiguous()
    index = torch.searchsorted(reached, uniform.double()[:, None] * total, right=True)
    last = torch.searchsorted(reached, total)  # rounding must not run past what may be picked
    return torch.minimum(index, last)[:, 0]


def bounded(
    logits: Float[Tensor, "row vocab"], temperature: float, top_p: float, min_p: float
) -> Float[Tensor, "row vocab"]:
    """What :func:`pick` draws from, in float64: probabilities at this temperature, 0 outside the bounds.

    They are not scaled to sum to 1 again.
    """
    p = (logits.double() / temperature).softmax(-1)
    if top_p < 1:
        ranked, order = p.sort(stable=True, dim=-1, descending=True)
        outside = ranked.cumsum(-1) - ranked >= top_p
        p = p.masked_fill(torch.zeros_like(outside).scatter(-1, order, outside), 0.0)
    if min_p > 0:
        p = p.masked_fill(p < min_p * p.amax(-1, keepdim=True), 0.0)
    return p


def uniforms(seed: int, ids: tuple[int, ...], count: int) -> Float[Tensor, " count"]:
    """A row's random numbers, one a step, which its seed and its prompt's tokens make."""
    digest = hashlib.sha256(repr((int(seed), ids)).encode()).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest[:8], "little") >> 1)
    return torch.rand(count, generator=generator, dtype=torch.float64)
