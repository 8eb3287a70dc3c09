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
from star_tl.generation.decoding import residual_of
from star_tl.locus import Locus, NamedHook
from star_tl.models.backend import Model, tokenizer_of
from star_tl.models.batch import TokenBatch, make_batch
from star_tl.models.memory import TOO_LONG, fitting_batches

Result = TypeVar("Result")


@dataclass(frozen=True)
class PairActivations:
    """Activations of every pair in float64, and the mean norm of the corrupted ones."""

    clean: Float[Tensor, "pair position d"]
    corrupted: Float[Tensor, "pair position d"]
    corrupted_norm: float


def in_prompts(model: Model, pairs: Pairs, loci: Sequence[Locus], batch_size: int) -> list[PairActivations]:
    """At each locus's positions, counted from the prompt's end, of the clean and of the corrupted prompt."""

    def run(prompts: Sequence[Prompt]) -> list[Float[Tensor, "pair position d"]]:
        rendered = [render(tokenizer_of(model), p).ids for p in prompts]
        batch = make_batch(model, rendered)
        return _at(model, batch, loci, [[batch.prompt_end + p for p in locus.positions] for locus in loci])

    def work(chunk: Sequence[ContrastivePair]) -> list[Float[Tensor, "run pair position d"]]:
        clean, corrupted = (run([of(p) for p in chunk]) for of in (pairs.clean_prompt, pairs.corrupted_prompt))
        return [torch.stack(both) for both in zip(clean, corrupted, strict=True)]

    found = [torch.cat(parts, 1) for parts in zip(*_batchwise(pairs, batch_size, work), strict=True)]
    return [PairActivations(x[0], x[1], float(x[1].norm(dim=-1).mean())) for x in found]


def in_replies(model: Model, pairs: Pairs, loci: Sequence[Locus], batch_size: int) -> list[PairActivations]:
    """The mean over each reply's own tokens after the context without an instruction, positive and negative."""

    def work(chunk: Sequence[ContrastivePair]) -> list[tuple[Float[Tensor, "run pair 1 d"], Float[Tensor, " pair"]]]:
        prompts = [render(tokenizer_of(model), p.context).ids for p in chunk] * 2
        replies = [
            reply_ids(tokenizer_of(model), text)
            for text in (*(p.positive for p in chunk), *(p.negative for p in chunk))
        ]
        batch = make_batch(model, prompts, replies)
        weights = batch.reply_mask.double().cpu()
        weights /= weights.sum(1, keepdim=True)
        parts = []
        for found in _at(model, batch, loci, [slice(batch.prompt_end, None)] * len(loci)):
            means = (found * weights[..., None]).sum(1, keepdim=True).unflatten(0, (2, -1))
            parts.append((means, (found.norm(dim=-1) * weights).sum(1)[len(chunk) :]))
        return parts

    results = []
    for parts in zip(*_batchwise(pairs, batch_size, work), strict=True):
        clean, corrupted = torch.cat([means for means, _ in parts], 1)
        results.append(PairActivations(clean, corrupted, float(torch.cat([norms for _, norms in parts]).mean())))
    return results


def _batchwise(pairs: Pairs, batch_size: int, work: Callable[[Sequence[ContrastivePair]], Result]) -> list[Result]:
    batches = fitting_batches(pairs.pairs, lambda left: batch_size, work, lambda pair: TOO_LONG, "pairs")
    return [result for _, result in batches]


@torch.no_grad()
def read(
    model: Model, batch: TokenBatch, hook_points: Sequence[str], columns: Sequence[slice | list[int]]
) -> list[Float[Tensor, "row column ..."]]:
    """The activations at these columns of one forward pass, in float64; with a head axis at ``attn.hook_z``."""
    found: dict[int, Tensor] = {}

    def keep(number: int) -> NamedHook:
        def hook(activation: Tensor, hook: object) -> None:
            found[number] = activation[:, columns[number]].double().cpu()

        return hook_points[number], hook

    depth = 1 + max(int(name.split(".")[1]) for name in hook_points)
    hooks = [keep(number) for number in range(len(hook_points))]
    residual_of(model, hooks, batch.tokens, batch.mask, batch.prompt_end, depth)
    return [found[number] for number in range(len(hook_points))]


def _at(
    model: Model, batch: TokenBatch, loci: Sequence[Locus], columns: Sequence[slice | list[int]]
) -> list[Float[Tensor, "row column d"]]:
    found = read(model, batch, [locus.hook_point for locus in loci], columns)
    return [x if locus.head is None else x[:, :, locus.head] for x, locus in zip(found, loci, strict=True)]
