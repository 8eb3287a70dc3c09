"""Whose turn it is: one thread at a time uses the model, and a cell that runs comes first."""

from __future__ import annotations

import functools
import threading
import weakref
from collections.abc import Callable
from typing import Protocol

from torch.overrides import TorchFunctionMode


class Stopped(Exception):
    """The work was told to end."""


class Widget(Protocol):
    """What works and can be told to end."""

    def stop(self) -> None: ...


class Stoppable(TorchFunctionMode):
    """Whatever this thread computes under it ends at its next tensor operation once ``stop`` is set."""

    def __init__(self, stop: threading.Event) -> None:
        super().__init__()
        self.stop = stop

    def __torch_function__(
        self,
        function: Callable[..., object],
        types: object,
        args: tuple[object, ...] = (),
        kwargs: dict[str, object] | None = None,
    ) -> object:
        if self.stop.is_set():
            raise Stopped
        return function(*args, **(kwargs or {}))


TURN = threading.RLock()  # one at a time uses the model: a widget's thread, or a cell
OPEN: weakref.WeakSet[Widget] = weakref.WeakSet()  # the widgets


@functools.cache
def give_way_to_cells() -> None:
    """From now on no widget works while a cell runs; the cell that runs now has begun already."""
    from IPython.core.getipython import get_ipython

    taken: list[bool] = []  # once for each cell that has its turn: a Ctrl-C may end the wait for it

    def begin(*_: object) -> None:
        for explorer in OPEN:
            explorer.stop()
        TURN.acquire()
        taken.append(True)

    def end(*_: object) -> None:
        if taken:
            taken.pop()
            TURN.release()

    shell = get_ipython()
    if shell is not None:
        shell.events.register("pre_run_cell", begin)
        shell.events.register("post_run_cell", end)
        TURN.acquire()
        taken.append(True)
