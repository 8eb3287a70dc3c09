"""Products of activations with weights, in the way that is fastest where they lie.

On a CPU in float32 oneDNN's product takes half the time of PyTorch's own where there is AVX-512 and the maker is not
Intel: MKL keeps to AVX2 there.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

LEAST_ROWS = 2  # one row reads the weights once, whichever way


def one_dnn() -> bool:
    """Whether float32 products on the CPU go to oneDNN. A rule and no measurement, so that rounding does not vary."""
    return torch.backends.mkldnn.is_available() and torch.backends.cpu.get_cpu_capability() == "AVX512"


_ONE_DNN = one_dnn()


def product(
    x: Float[Tensor, "*row input"], weight: Float[Tensor, "output input"], bias: Float[Tensor, " output"] | None = None
) -> Float[Tensor, "*row output"]:
    """``x @ weight.T + bias``; ``weight`` may be a transposed view."""
    if (
        _ONE_DNN
        and x.dtype == weight.dtype == torch.float32
        and x.device.type == "cpu"
        and x.numel() >= LEAST_ROWS * x.shape[-1]
        and not torch.is_grad_enabled()
    ):
        return torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")
    return F.linear(x, weight, bias)
