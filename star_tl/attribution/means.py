"""The mean clean − corrupted residual stream of any pairs, at the last prompt token of every layer."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from star_tl.data.chat import Prompt, render
from star_tl.data.pairs import Pairs
from star_tl.generation.decoding import residual_of
from star_tl.locus import NamedHook, hook_name
from star_tl.models.backend import Model, tokenizer_of
from star_tl.models.batch import make_batch
from star_tl.models.memory import TOO_LONG, fitting_batches

PROMPTS = 16


@torch.no_grad()
def mean_differences(model: Model, pairs: Pairs, batch_size: int | None = None) -> Float[Tensor, "layer d"]:
    """At ``resid_post``: what a vector extracted from these pairs at the last prompt token is, at each layer."""
    sides = [pairs.clean_prompt(p) for p in pairs], [pairs.corrupted_prompt(p) for p in pairs]
    clean, corrupted = (_sums(model, prompts, batch_size or PROMPTS) for prompts in sides)
    return ((clean - corrupted) / len(pairs)).float()


def _sums(model: Model, prompts: Sequence[Prompt], batch_size: int) -> Float[Tensor, "layer d"]:
    def work(some: Sequence[Prompt]) -> Float[Tensor, "layer d"]:
        sums: dict[int, Tensor] = {}

        def add(layer: int) -> NamedHook:
            def hook(activation: Tensor, hook: object) -> None:
                sums[layer] = activation[:, -1].sum(0, dtype=torch.float64).cpu()

            return hook_name("resid_post", layer), hook

        batch = make_batch(model, [render(tokenizer_of(model), p).ids for p in some])
        residual_of(model, list(map(add, range(model.cfg.n_layers))), batch.tokens, batch.mask, batch.prompt_end)
        return torch.stack([sums[layer] for layer in range(model.cfg.n_layers)])

    total = torch.zeros(model.cfg.n_layers, model.cfg.d_model, dtype=torch.float64)
    for _, sums in fitting_batches(prompts, lambda left: batch_size, work, lambda prompt: TOO_LONG, "prompts"):
        total += sums
    return total
