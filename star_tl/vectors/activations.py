"""What a model computes at a locus for contrastive pairs: in their prompts, or in their replies."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch
from jaxtyping import Float
from torch import Tensor

from star_tl.data.chat import Prompt, render, reply_ids
from star_tl.data.pairs import ContrastivePair, Pairs
from star_tl.locus import Locus
from star_tl.models.backend import Model, attached, residual_stream
from star_tl.models.batch import TokenBatch, make_batch
from star_tl.models.memory import TOO_LONG, fitting_batches

Result = TypeVar("Result")


@dataclass(frozen=True)
class PairActivations:
    """Activations of every pair in float64, and the mean norm of the corrupted ones."""

    clean: Float[Tensor, "pair position d"]
    corrupted: Float[Tensor, "pair position d"]
    corrupted_norm: float


def in_prompts(model: Model, pairs: Pairs, locus: Locus, batch_size: int) -> PairActivations:
    """At the locus's positions, counted from the prompt's end, of the clean and of the corrupted prompt."""

    def work(chunk: Sequence[ContrastivePair]) -> Float[Tensor, "run pair position d"]:
        runs = [pairs.clean_prompt(p) for p in chunk], [pairs.corrupted_prompt(p) for p in chunk]
        return torch.stack([_at_positions(model, prompts, locus) for prompts in runs])

    clean, corrupted = torch.cat(_batchwise(pairs, batch_size, work), 1)
    return PairActivations(clean, corrupted, float(corrupted.norm(dim=-1).mean()))


def in_replies(model: Model, pairs: Pairs, locus: Locus, batch_size: int) -> PairActivations:
    """The mean over each reply's own tokens after the context without an instruction, positive and negative."""

    def work(chunk: Sequence[ContrastivePair]) -> tuple[Float[Tensor, "run pair 1 d"], Float[Tensor, " pair"]]:
        prompts = [render(model.tokenizer, p.context).ids for p in chunk] * 2
        replies = [
            reply_ids(model.tokenizer, text) for text in (*(p.positive for p in chunk), *(p.negative for p in chunk))
        ]
        batch = make_batch(model, prompts, replies)
        found = _at(model, batch, locus, slice(batch.prompt_end, None))
        weights = batch.reply_mask.double().cpu()
        weights /= weights.sum(1, keepdim=True)
        means = (found * weights[..., None]).sum(1, keepdim=True).unflatten(0, (2, -1))
        return means, (found.norm(dim=-1) * weights).sum(1)[len(chunk) :]

    means, norms = zip(*_batchwise(pairs, batch_size, work), strict=True)
    clean, corrupted = torch.cat(means, 1)
    return PairActivations(clean, corrupted, float(torch.cat(norms).mean()))


def _batchwise(pairs: Pairs, batch_size: int, work: Callable[[Sequence[ContrastivePair]], Result]) -> list[Result]:
    batches = fitting_batches(pairs.pairs, lambda left: batch_size, work, lambda pair: TOO_LONG, "pairs")
    return [result for _, result in batches]


def _at_positions(model: Model, prompts: Sequence[Prompt], locus: Locus) -> Float[Tensor, "row position d"]:
    batch = make_batch(model, [render(model.tokenizer, p).ids for p in prompts])
    return _at(model, batch, locus, [batch.prompt_end + p for p in locus.positions])


@torch.no_grad()
def _at(model: Model, batch: TokenBatch, locus: Locus, columns: slice | list[int]) -> Float[Tensor, "row column d"]:
    found: dict[str, Tensor] = {}

    def keep(activation: Tensor, hook: object) -> None:
        value = activation if locus.head is None else activation[:, :, locus.head]
        found[locus.hook_point] = value[:, columns].double().cpu()

    with attached(model, [(locus.hook_point, keep)]):
        residual_stream(model, batch.tokens, batch.mask, layers=locus.layer + 1)
    return found[locus.hook_point]
