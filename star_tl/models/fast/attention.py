"""Attention under a mask, by a kernel whose gradient can be relied on."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from star_tl.models.product import by_pieces

# Not cuDNN's, PyTorch's choice on newer cards: with a mask and grouped heads its backward pass gave NaN and reads of
# foreign memory (PyTorch issue 196678). Flash attention takes no mask.
TRUSTED = (SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH)
# Without cuDNN's, which makes a plan for every shape that it has not met: tenths of a second, and a cache grows by a
# column a token.
PLANLESS = (SDPBackend.FLASH_ATTENTION, *TRUSTED)


def without_plans() -> AbstractContextManager[object]:
    """Attention by one of PLANLESS."""
    return sdpa_kernel(list(PLANLESS))


@contextmanager
def trusted_kernels(device: torch.device) -> Iterator[None]:
    """Attention by one of TRUSTED on a GPU, in the forward pass within the context and in its backward pass."""
    if device.type != "cuda":
        yield
        return
    with sdpa_kernel(list(TRUSTED)):
        yield


def attend_masked(
    q: Float[Tensor, "row head query d_head"],
    k: Float[Tensor, "row kv_head key d_head"],
    v: Float[Tensor, "row kv_head key d_head"],
    seen: Bool[Tensor, "row 1 query key"],
) -> Float[Tensor, "row head query d_head"]:
    """Softmax attention of every query over the keys that it sees; a gradient may go back through it."""
    if q.device.type == "cpu" and by_pieces(q.dtype):
        return attend_masked(q.float(), k.float(), v.float(), seen).to(q.dtype)
    grouped = q.shape[1] != k.shape[1]
    if grouped and q.device.type == "cuda":  # the memory-efficient kernel takes a key to each head
        k, v = (t.repeat_interleave(q.shape[1] // t.shape[1], 1) for t in (k, v))
        grouped = False
    with trusted_kernels(q.device):
        return F.scaled_dot_product_attention(q, k, v, attn_mask=seen, enable_gqa=grouped)
