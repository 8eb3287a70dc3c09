"""Store a HookedTransformer's weights so that its own forward stops copying them.

HookedTransformer computes ``F.linear(x, W.T.contiguous())`` for the MLP and the unembedding and
einops-rearranges W_Q, W_K, W_V and W_O, which copies every weight on every forward pass. With each
parameter laid out transposed in memory these become views. Shapes, values, names and outputs stay
the same, bit for bit; only strides change.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TypeVar

import torch
from torch import nn

Model = TypeVar("Model", bound=nn.Module)

# For each parameter: the order of its dimensions in memory, outermost first.
_ORDER = {
    "W_gate": (1, 0),
    "W_in": (1, 0),
    "W_out": (1, 0),
    "W_U": (1, 0),
    "W_Q": (0, 2, 1),
    "W_K": (0, 2, 1),
    "W_V": (0, 2, 1),
    "_W_K": (0, 2, 1),
    "_W_V": (0, 2, 1),
    "W_O": (2, 0, 1),
}


def relay(model: Model) -> Model:
    """Lay the parameters of a HookedTransformer out copy-free, in place; returns the model.

    Works on any HookedTransformer: parameters without an entry above keep their layout. One
    parameter at a time is held twice while it is rewritten.
    """
    with torch.no_grad():
        for parameter, order in _laid_out(model):
            inverse = [order.index(d) for d in range(parameter.ndim)]
            parameter.data = parameter.data.permute(order).contiguous().permute(inverse)
    return model


def is_copy_free(model: nn.Module) -> bool:
    """Whether every parameter that the forward pass rearranges is stored the way it needs."""
    return all(parameter.permute(order).is_contiguous() for parameter, order in _laid_out(model))


def _laid_out(model: nn.Module) -> Iterator[tuple[nn.Parameter, tuple[int, ...]]]:
    for module in model.modules():
        ungated = not hasattr(module, "W_gate")
        for name, parameter in module.named_parameters(recurse=False):
            order = _ORDER.get(name)
            if name in ("W_in", "W_out") and ungated:  # GPT-2's MLP multiplies by these as they are
                continue
            if order is not None and len(order) == parameter.ndim:
                yield parameter, order
