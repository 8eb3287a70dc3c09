"""Prompts with their replies as one padded batch, anchored at the end of the prompt.

Prompts are padded on the left and replies on the right, so that all prompts of a batch end in the
same column. A position relative to the prompt's end (-1 is the last prompt token, 0 the first
reply token) is then the same column in every row.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from star_tl.errors import StarError
from star_tl.models.backend import Model


@dataclass(frozen=True)
class TokenBatch:
    """Padded tokens; ``prompt_end`` is the column of the first reply token."""

    tokens: Int[Tensor, "row position"]
    mask: Bool[Tensor, "row position"]
    prompt_end: int
    reply_lengths: Int[Tensor, " row"]

    @property
    def reply_mask(self) -> Bool[Tensor, "row reply"]:
        """True where a reply token stands, over the columns from ``prompt_end`` on."""
        return self.mask[:, self.prompt_end :]


def pad_id(model: Model) -> int:
    """The token to pad with; it is masked, so that any token would do."""
    return getattr(model.tokenizer, "pad_token_id", None) or 0


def make_batch(
    model: Model,
    prompts: Sequence[Sequence[int]],
    replies: Sequence[Sequence[int]] | None = None,
) -> TokenBatch:
    """Pad prompts (left) and replies (right) to one batch on the model's device.

    Raises:
        StarError: a prompt with its reply is longer than the model's context.
    """
    replies = replies if replies is not None else [()] * len(prompts)
    longest = max(len(p) + len(r) for p, r in zip(prompts, replies, strict=True))
    if longest > model.cfg.n_ctx:
        raise StarError(
            f"A prompt with its reply has {longest} tokens and the model's context is {model.cfg.n_ctx}: shorten it."
        )
    pad = pad_id(model)
    end = max(len(p) for p in prompts)
    width = end + max(len(r) for r in replies)
    tokens = torch.full((len(prompts), width), pad, dtype=torch.long)
    mask = torch.zeros((len(prompts), width), dtype=torch.bool)
    for row, (prompt, reply) in enumerate(zip(prompts, replies, strict=True)):
        both = torch.tensor([*prompt, *reply], dtype=torch.long)
        start = end - len(prompt)
        tokens[row, start : start + len(both)] = both
        mask[row, start : start + len(both)] = True
    device = model.cfg.device
    lengths = torch.tensor([len(r) for r in replies], device=device)
    return TokenBatch(tokens.to(device), mask.to(device), end, lengths)
