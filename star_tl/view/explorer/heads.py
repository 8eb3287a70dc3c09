"""What an attention head looks at in a chat."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from star_tl.data.chat import Message, render
from star_tl.files import JsonObject
from star_tl.models.backend import Model, attached, residual_stream, tokenizer_of
from star_tl.models.batch import make_batch


@torch.no_grad()
def attention_of(model: Model, chat: Sequence[Message], layer: int, head: int) -> JsonObject:
    """The head's attention pattern on the chat as it is rendered: ``tokens``, and ``weights`` by query and key."""
    tokenizer = tokenizer_of(model)
    ids = render(tokenizer, chat).ids
    batch, found = make_batch(model, [ids]), []

    def keep(pattern: torch.Tensor, hook: object) -> None:
        found.append(pattern[0, head].float().cpu())

    with attached(model, [(f"blocks.{layer}.attn.hook_pattern", keep)]):
        residual_stream(model, batch.tokens, batch.mask, layers=layer + 1)
    weights = [[round(w, 3) for w in row] for row in found[0].tolist()]
    return {"layer": layer, "head": head, "tokens": [tokenizer.decode([i]) for i in ids], "weights": weights}
