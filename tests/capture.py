"""A CUDA graph where there is no GPU: what a recording forbids is refused, and a replay does again what was recorded.

Nothing recorded may wait for the device or come from the host's memory: a number that Python looks at, a size that
depends on numbers, a tensor that is made from Python's numbers or without a device of its own. On a card each of these
ends the recording with an error. And a replay knows nothing of Python: it runs the operators that were recorded, on the
tensors that there were.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any, NoReturn

import pytest
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from star_tl.attribution import atp
from star_tl.models.fast import backward, decode, forward
from star_tl.models.fast.recording import Recording

aten = torch.ops.aten
WAITS = {
    aten._local_scalar_dense.default: "reads a number",
    aten.equal.default: "reads a number",
    aten.nonzero.default: "has a size that depends on numbers",
    aten.masked_select.default: "has a size that depends on numbers",
    aten.repeat_interleave.Tensor: "has a size that depends on numbers",
    aten._unique2.default: "has a size that depends on numbers",
    aten.lift_fresh.default: "is made from Python's numbers",
}
READ = ("tolist", "cpu", "numpy", "item", "__array__")
MADE = ("arange", "zeros", "ones", "full", "eye", "empty", "rand", "randn", "tril_indices", "tensor", "as_tensor")
INDEXING = (aten.index.Tensor, aten.index_put_.default, aten._index_put_impl_.default)


class Refused(RuntimeError):
    """What a recording on a card would have ended with."""


def refuse(what: object, reason: str) -> NoReturn:
    """Raises :class:`Refused`, with the line of the package that asked for it."""
    frame = sys._getframe(1)
    while frame.f_back is not None and "/star_tl/" not in frame.f_code.co_filename:
        frame = frame.f_back
    raise Refused(f"{what} {reason}, in {frame.f_code.co_filename}:{frame.f_lineno}")


class _Named(TorchFunctionMode):
    """What Python asks for by name, of which an operator on the processor says nothing."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs, name = kwargs or {}, getattr(func, "__name__", "")
        if name in READ:
            refuse(name, "reads a number")
        if name in MADE and func is getattr(torch, name, None) and kwargs.get("device") is None:
            refuse(name, "is made on the host")
        return func(*args, **kwargs)


class Captured(TorchDispatchMode):
    """Operators while it is entered; :meth:`replay` runs them again."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[Any, Any, Any, Any]] = []
        self.named = _Named()

    def __enter__(self) -> Captured:
        self.named.__enter__()
        return super().__enter__()

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        self.named.__exit__(*error)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        reason = WAITS.get(func)
        if func in INDEXING and any(i is not None and i.dtype == torch.bool for i in args[1]):
            reason = "has a size that depends on numbers"
        if reason:
            refuse(func, reason)
        out = func(*args, **kwargs)
        self.calls.append((func, args, kwargs, out))
        return out

    @torch.no_grad()
    def replay(self) -> None:
        for func, args, kwargs, out in self.calls:
            again = func(*args, **kwargs)
            if func._schema.is_mutable or any(a.alias_info is not None for a in func._schema.arguments):
                continue  # it has written where it did, or is a view of what has
            for old, new in zip(tree_leaves(out), tree_leaves(again), strict=True):
                if isinstance(old, Tensor):
                    old.copy_(new)


def graphs_on_the_processor(monkeypatch: pytest.MonkeyPatch) -> list[Captured]:
    """From now on work is recorded and replayed on the processor; the recordings, as they are made."""
    recorded: list[Captured] = []
    made: dict[Recording[Any], tuple[Captured, Any]] = {}
    now = [False]

    def call(self: Recording[Any], work: Callable[[], Any]) -> Any:
        if self not in made:
            work()
            graph = Captured()
            now[0] = True
            try:
                with graph:
                    made[self] = graph, work()
            finally:
                now[0] = False
            recorded.append(graph)
        graph, found = made[self]
        graph.replay()
        return found

    monkeypatch.setattr(Recording, "__call__", call)
    for module in (backward, forward):
        monkeypatch.setattr(module, "recording_now", lambda: now[0])
    for module in (atp, decode):
        monkeypatch.setattr(module, "records", lambda device: True)
    return recorded
