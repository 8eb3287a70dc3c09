"""Products of activations with weights, in the way that is fastest where they lie.

On a GPU that is PyTorch's. On a CPU in float32 it is oneDNN's, where there is AVX-512: it took half the time of MKL's,
which keeps to AVX2 on other makers' processors. In 16 bits a CPU without instructions for them takes up to 200 times
as long as in float32: there weights stay in 16 bits and are cast to float32 a piece at a time, as they are used.

Which way is taken is a rule and no measurement, so that rounding does not change from one start to the next.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from functools import cache

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

LEAST_ROWS = 2  # one row reads the weights once, whichever way
PIECE = 2**19  # numbers of a weight that are cast at once, so that they are still near when they are multiplied


@cache
def one_dnn() -> bool:
    """Whether float32 products on the CPU go to oneDNN."""
    return torch.backends.mkldnn.is_available() and torch.backends.cpu.get_cpu_capability() == "AVX512"


@cache
def by_pieces(dtype: torch.dtype) -> bool:
    """Whether the CPU has no products in this type, so that they are computed in float32."""
    if dtype not in (torch.bfloat16, torch.float16):
        return False
    name = "bf16" if dtype == torch.bfloat16 else "fp16"
    return not (
        torch.backends.mkldnn.is_available() and getattr(torch.ops.mkldnn, f"_is_mkldnn_{name}_supported", bool)()
    )


def in_tf32() -> bool:
    """Whether float32 products on a GPU keep ten bits of each factor, as far as anybody has asked for it."""
    try:
        return torch.get_float32_matmul_precision() != "highest"
    except RuntimeError:  # set by the newer names, of which this one refuses to speak
        return torch.backends.cuda.matmul.fp32_precision == "tf32"


@cache
def say_slow(dtype: torch.dtype) -> None:
    """Say once that the model's own forward is at work, which multiplies in a type that this CPU cannot."""
    if by_pieces(dtype):
        name = str(dtype).removeprefix("torch.")
        warnings.warn(
            f"This CPU has no {name} instructions: the model's own forward, which hooks of others, other architectures "
            "and TransformerLens's calls take, may be a hundred times slower than star_tl's: load it in float32.",
            stacklevel=3,
        )


def product(
    x: Float[Tensor, "*row input"], weight: Float[Tensor, "output input"], bias: Float[Tensor, " output"] | None = None
) -> Float[Tensor, "*row output"]:
    """``x @ weight.T + bias``; ``weight`` may be a transposed view. No gradient goes back through the faster ways."""
    if x.device.type == "cpu" and not torch.is_grad_enabled():
        many = x.numel() >= LEAST_ROWS * x.shape[-1]
        if x.dtype == weight.dtype == torch.float32 and many and one_dnn():
            return torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")
        if by_pieces(weight.dtype):
            return _by_pieces(x, weight, bias)
    return F.linear(x, weight, bias)


def _by_pieces(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    rows = x.reshape(-1, x.shape[-1]).float()
    out = rows.new_zeros(len(rows), len(weight))
    if weight.stride(1) == 1:
        for some, part in zip(_pieces(weight), out.split(_length(weight), 1), strict=True):
            part.copy_(rows @ some.T)
    else:  # a transposed view: pieces of what is summed over
        for some, part in zip(_pieces(weight.T), rows.split(_length(weight.T), 1), strict=True):
            out.addmm_(part, some)
    out = out if bias is None else out.add_(bias)
    return out.to(x.dtype).view(*x.shape[:-1], -1)


def _length(weight: Tensor) -> int:
    return max(1, PIECE // weight.shape[1])


def _pieces(weight: Tensor) -> Iterator[Tensor]:
    """In float32, some rows at a time."""
    return (some.float() for some in weight.split(_length(weight)))
