"""Work that is the same at every turn, recorded once as a CUDA graph: launching it costs what one kernel's launch does.

What is recorded may not wait for the device, and neither may it take anything from the host's memory: Python looks at
no number of a tensor, and every tensor is made on the device.
"""

from __future__ import annotations

import gc
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Generic, TypeVar

import torch

Made = TypeVar("Made")
RECORDED_ON = ("cuda",)  # kinds of device on which work is recorded
_ONE = threading.Lock()  # PyTorch records one graph of a process at a time


def recording_now() -> bool:
    """Whether the current stream is being recorded, so that what would wait for the device must be left out."""
    return torch.cuda.is_available() and torch.cuda.is_current_stream_capturing()


class Recording(Generic[Made]):
    """Some work's graph and what it makes, both from the first call on; the next call overwrites what was made.

    It does not know the work, whose owner would then hold a circle of references: that would keep a graph alive until
    Python looks for circles, perhaps while another graph is recorded, which would break that one. On devices without
    graphs the work runs as it stands, which is how it is tested. :meth:`release` it before another is recorded.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.graph: torch.cuda.CUDAGraph | None = None
        self.made: Made | None = None

    def __call__(self, work: Callable[[], Made]) -> Made:
        """What ``work`` makes; it reads and writes the same addresses at every call."""
        if self.device.type not in RECORDED_ON:
            return work()
        with torch.cuda.device(self.device):
            if self.graph is None:
                self._record(work)
            assert self.graph is not None
            assert self.made is not None
            self.graph.replay()
        return self.made

    def release(self) -> None:
        """Give the graph and its memory back."""
        if self.graph is not None:
            self.graph.reset()
        self.graph = self.made = None

    def _record(self, work: Callable[[], Made]) -> None:
        current, side = torch.cuda.current_stream(), torch.cuda.Stream()
        # Kernels choose their algorithms and hooks place their tensors in a first run, which must not be recorded.
        side.wait_stream(current)
        with torch.cuda.stream(side):
            work()
        current.wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with _ONE, _uncollected():
            try:
                # What other threads do meanwhile, such as waiting for work of theirs, breaks nothing.
                with torch.cuda.graph(graph, stream=side, capture_error_mode="thread_local"):
                    self.made = work()
            finally:
                torch.cuda.set_stream(current)  # a recording that broke may leave its own
        self.graph = graph


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
