"""Work that is the same at every turn, recorded once as a CUDA graph: launching it costs what one kernel's launch does.

What is recorded may not wait for the device, and neither may it take anything from the host's memory: Python looks at
no number of a tensor, and every tensor is made on the device. Where it does, the recording breaks; the work then runs
as it stands, and nothing is recorded in this process any more.
"""

from __future__ import annotations

import gc
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import cache
from typing import Any, Generic, TypeVar

import torch

from star_tl.models.memory import KEPT_MEMORY, out_of_memory

Made = TypeVar("Made")
RECORDED_ON = ("cuda",)  # kinds of device on which work is recorded
BROKE = "A CUDA graph could not be recorded ({}): going on without any, slower."
_broken: list[str] = []  # why nothing is recorded any more


def records(device: torch.device) -> bool:
    """Whether work on this device is recorded."""
    return device.type in RECORDED_ON and not _broken


def recording_now() -> bool:
    """Whether the current stream is being recorded, so that what would wait for the device must be left out."""
    return torch.cuda.is_available() and torch.cuda.is_current_stream_capturing()


class Recording(Generic[Made]):
    """Some work's graph and what it makes, both from the first call on; the next call overwrites what was made.

    It does not know the work, whose owner would then hold a circle of references: that would keep a graph alive until
    Python looks for circles, perhaps while another graph is recorded, which would break that one. Where nothing is
    recorded the work runs as it stands, which is how it is tested. :meth:`release` it before another is recorded.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.graph: torch.cuda.CUDAGraph | None = None
        self.made: Made | None = None

    def __call__(self, work: Callable[[], Made]) -> Made:
        """What ``work`` makes; it reads and writes the same addresses at every call.

        Raises:
            RuntimeError: memory ran out, or whatever ``work`` raises where it runs as it stands.
        """
        if self.graph is None and records(self.device):
            with torch.cuda.device(self.device):
                self._record(work)
        if self.graph is None:
            return work()
        assert self.made is not None
        with torch.cuda.device(self.device):
            self.graph.replay()
        return self.made

    def release(self) -> None:
        """Give the graph and its memory back."""
        if self.graph is not None:
            self.graph.reset()
        self.graph = self.made = None

    def _record(self, work: Callable[[], Made]) -> None:
        current, graph, pool = torch.cuda.current_stream(), torch.cuda.CUDAGraph(), torch.cuda.graph_pool_handle()
        with KEPT_MEMORY, _uncollected():
            device = torch.cuda.current_device()
            side, random = _side_stream(device), torch.cuda.default_generators[device]
            untouched = random.clone_state()
            # Kernels choose their algorithms and hooks place their tensors in a first run, which must not be recorded.
            side.wait_stream(current)
            with torch.cuda.stream(side):
                work()
            current.wait_stream(side)
            try:
                # What other threads do meanwhile, such as waiting for work of theirs, breaks nothing.
                with torch.cuda.graph(graph, pool=pool, stream=side, capture_error_mode="thread_local"):
                    self.made = work()
            except BaseException as error:
                self.made = None
                torch.cuda.set_stream(current)  # a recording that broke leaves its own,
                _end_allocation(device, pool)
                random.graphsafe_set_state(untouched)  # and random numbers that belong to a graph
                if not isinstance(error, RuntimeError) or out_of_memory(error):
                    raise
                _broken.append(str(error.__context__ or error).split("\n")[0])
                warnings.warn(BROKE.format(_broken[0]), stacklevel=2)
            else:
                self.graph = graph


@cache
def _side_stream(device: int) -> torch.cuda.Stream:
    """One for all recordings on a device: each new one would hold memory of its own for matrix products."""
    return torch.cuda.Stream(device)


def _end_allocation(device: int, pool: Any) -> None:
    """A recording that broke may leave the allocator with the graph's memory, and would die at the next."""
    with suppress(RuntimeError, AttributeError):  # it has ended
        torch._C._cuda_endAllocateToPool(device, pool)
        torch._C._cuda_releasePool(device, pool)


@contextmanager
def _uncollected() -> Iterator[None]:
    """Without Python's look for circles, which may free anybody's tensors and graphs: that breaks a recording."""
    collecting = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if collecting:
            gc.enable()
