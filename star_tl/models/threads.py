"""Threads that compute: OpenMP's under PyTorch, BLAS's own under numpy. Both spin on the same cores while they wait."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import cache, wraps
from pathlib import Path
from typing import Concatenate, ParamSpec, TypeVar

import torch
from threadpoolctl import ThreadpoolController
from torch import Tensor

NEAR = 2**25  # bytes that lie in a processor's caches, where one thread reads them as fast as two
_SOFT = 1  # of OpenMP 5.0's omp_pause_resource_t: what is let go is made again where it is needed
More = ParamSpec("More")
Result = TypeVar("Result")


def one_row_in_one_thread(
    work: Callable[Concatenate[Tensor, More], Result],
) -> Callable[Concatenate[Tensor, More], Result]:
    """A function of rows that on a CPU computes a single one in the calling thread alone.

    Numpy's BLAS, which such a row's step goes through, leaves its workers spinning for a while. An operator that OpenMP
    shares out meanwhile waits for a worker that finds no core, many times as long as it computes. The setting is each
    thread's own, but one that computes for the first time in these moments takes it over.
    """

    @wraps(work)
    def alone(rows: Tensor, *args: More.args, **options: More.kwargs) -> Result:
        threads = torch.get_num_threads()
        if len(rows) != 1 or rows.device.type != "cpu" or threads == 1:
            return work(rows, *args, **options)
        torch.set_num_threads(1)
        try:
            return work(rows, *args, **options)
        finally:
            torch.set_num_threads(threads)

    return alone


def products_of(size: int) -> AbstractContextManager[object]:
    """In which numpy multiplies with weights of so many bytes: of small ones, whose reading is not shared out, alone.

    Then no worker of BLAS spins where OpenMP's, which read the next prompt, have to run.
    """
    return _blas().limit(limits=1) if size <= NEAR else nullcontext()


@cache
def _blas() -> ThreadpoolController:
    return ThreadpoolController().select(user_api="blas")


@cache
def _pause() -> Callable[[int], int] | None:
    for library in sorted(Path(torch.__file__).parent.glob("lib/libgomp*.so*")):
        try:
            return ctypes.CDLL(str(library)).omp_pause_resource_all
        except (AttributeError, OSError):  # one before OpenMP 5.0
            continue
    return None


def hand_over() -> None:
    """Let the calling thread's OpenMP workers go, before another thread computes; nothing where that cannot be done.

    GNU's OpenMP keeps workers for every thread that has ever computed. As soon as all together, idle ones too, are more
    than the cores, they no longer spin while they wait for the next product but sleep, which a step of many small
    products has to pay for each time (``gomp_throttled_spin_count_var`` in its source).
    """
    if pause := _pause():
        pause(_SOFT)
