"""Batches that fit: how much memory a model leaves, and half the batch where there was too little."""

from __future__ import annotations

import ctypes
import threading
import warnings
from collections.abc import Callable, Iterator, Sequence
from functools import cache
from typing import Any, TypeVar

import torch

from star_tl.errors import StarError
from star_tl.models.lens import get_device_for_block_index
from star_tl.models.size import free_memory

TOO_LONG = "Memory is too small for a single prompt: use shorter ones, or load the model in bfloat16."
# Held while a CUDA graph is recorded, of which a process has one at a time, and while memory that PyTorch keeps goes
# back to a GPU, which would break that one.
KEPT_MEMORY = threading.Lock()
Item = TypeVar("Item")
Result = TypeVar("Result")
# What others than torch.OutOfMemoryError say: the processor's allocator, and cuBLAS and cuDNN on their workspaces.
_SAID = ("can't allocate memory", "ALLOC_FAILED", "CUDA error: out of memory")


def free_beside(model: Any) -> int:
    """Bytes that can still be had where a model's layers lie; of several devices, each holds what its layers need."""
    devices = {get_device_for_block_index(layer, model.cfg) for layer in range(model.cfg.n_layers)}
    return min(free_memory(str(d)) for d in devices) * len(devices)


def out_of_memory(error: BaseException | None) -> bool:
    """Whether memory ran out; while a CUDA graph is recorded, that is what stands behind the error."""
    while error is not None:
        if isinstance(error, torch.OutOfMemoryError) or any(words in str(error) for words in _SAID):
            return True
        error = error.__context__
    return False


@cache
def _trim() -> Callable[[int], int] | None:
    try:
        return ctypes.CDLL(None).malloc_trim
    except (AttributeError, OSError, TypeError):  # another C library than glibc
        return None


def give_back() -> None:
    """Return memory that was freed to the system; glibc keeps it for later, of a large model much of what a stage took.

    Without it a run's peak is that of its batches together, although none has memory in common with another. It takes a
    thousandth of a batch's time.
    """
    if trim := _trim():
        trim(0)


def empty_kept() -> None:
    """Return memory that PyTorch keeps for later to the GPU."""
    if torch.cuda.is_available():
        with KEPT_MEMORY:
            torch.cuda.empty_cache()


def fitting_batches(
    items: Sequence[Item],
    take: Callable[[Sequence[Item]], int],
    work: Callable[[Sequence[Item]], Result],
    alone: Callable[[Item], str],
    noun: str,
) -> Iterator[tuple[Sequence[Item], Result]]:
    """What ``work`` makes of all items, batch by batch; where memory runs out, of half the batch, and so from there on.

    Args:
        items: in their order; a batch is a slice.
        take: how many of those that are left to take at most, at least one.
        work: leaves no trace where it fails.
        alone: what to say and to advise where memory is too small for a single item.
        noun: what items are called, in the plural.

    Raises:
        StarError: memory is too small for one item.
    """
    done, most = 0, len(items)
    while done < len(items):
        batch = items[done : done + min(most, take(items[done:]))]
        try:
            result = work(batch)
        except RuntimeError as error:
            if not out_of_memory(error):
                raise
            if len(batch) == 1:
                raise StarError(alone(batch[0])) from None
        else:
            yield batch, result
            done += len(batch)
            give_back()
            continue
        # Out here, where the error holds on to nobody's tensors any more.
        empty_kept()
        most = len(batch) // 2
        warnings.warn(f"Memory ran out at {len(batch)} {noun} in a batch: going on with {most}.", stacklevel=2)
