"""Store a HookedTransformer's weights so that its own forward stops copying them.

HookedTransformer computes ``F.linear(x, W.T.contiguous())`` for the MLP and the unembedding and
einops-rearranges W_Q, W_K, W_V and W_O, which copies every weight on every forward pass. With each
parameter laid out transposed in memory these become views. Shapes, values, names and outputs stay
the same, bit for bit; only strides change.

Queries, keys and values of a layer lie behind one another in one storage, gate and up projection in
another, so that :mod:`star_tl.models.fast.forward` reads the same weights as one matrix each.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TypeVar

import torch
from jaxtyping import Float
from torch import Tensor, nn

from star_tl.errors import check_kind

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
# Parameters that read the same input: neighbours in memory. The underscore is TransformerLens's for grouped heads.
_NEIGHBOURS = (("W_Q", "W_K", "W_V"), ("W_Q", "_W_K", "_W_V"), ("W_gate", "W_in"))


def copy_free_layout(model: Model) -> Model:
    """Lay the parameters of a HookedTransformer out copy-free, in place; returns the model.

    Works on any HookedTransformer: parameters without an entry above keep their layout. The
    parameters of one group of neighbours at a time are held twice while they are rewritten. Moving
    the model to another device or dtype afterwards keeps it copy-free but parts neighbours: call this again.
    """
    check_kind(model, nn.Module, "a HookedTransformer")
    with torch.no_grad():
        for group in _groups(model):
            if neighbours(group) is not None:
                continue
            rows = [parameter.permute(order) for parameter, order in group]
            storage = rows[0].new_empty(sum(r.numel() for r in rows))
            at = 0
            for (parameter, order), row in zip(group, rows, strict=True):
                place = storage[at : at + row.numel()].view(row.shape)
                place.copy_(row)
                parameter.data = place.permute([order.index(d) for d in range(parameter.ndim)])
                at += row.numel()
    return model


def is_copy_free(model: nn.Module) -> bool:
    """Whether every parameter that the forward pass rearranges is stored the way it needs."""
    return all(parameter.permute(order).is_contiguous() for group in _groups(model) for parameter, order in group)


def fused(module: nn.Module, *names: str) -> Float[Tensor, "out d_model"] | None:
    """Parameters of a module as one matrix, no copy; None where they are not neighbours in memory."""
    return neighbours([(getattr(module, name), _ORDER[name]) for name in names])


def neighbours(group: Sequence[tuple[nn.Parameter, tuple[int, ...]]]) -> Float[Tensor, "out inner"] | None:
    """The parameters, each in its order in memory, as one matrix; None where they do not lie behind one another."""
    rows = [parameter.data.permute(order) for parameter, order in group]
    end = rows[0].data_ptr()
    for row in rows:
        if not row.is_contiguous() or row.data_ptr() != end or row.dtype != rows[0].dtype:
            return None
        end += row.numel() * row.element_size()
    inner = rows[0].shape[-1]
    total = sum(row.numel() for row in rows)
    if rows[0].untyped_storage().data_ptr() + rows[0].untyped_storage().nbytes() < end:
        return None  # next to one another by chance, in storages of their own
    return rows[0].as_strided((total // inner, inner), (inner, 1), rows[0].storage_offset())


def _groups(model: nn.Module) -> Iterator[list[tuple[nn.Parameter, tuple[int, ...]]]]:
    for module in model.modules():
        ungated = not hasattr(module, "W_gate")
        own = {}
        for name, parameter in module.named_parameters(recurse=False):
            order = _ORDER.get(name)
            if name in ("W_in", "W_out") and ungated:  # GPT-2's MLP multiplies by these as they are
                continue
            if order is not None and len(order) == parameter.ndim:
                own[name] = (parameter, order)
        for names in _NEIGHBOURS:
            if all(name in own for name in names):
                yield [own.pop(name) for name in names]
        for entry in own.values():
            yield [entry]
