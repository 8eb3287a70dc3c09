"""Several devices where there are none: tensors that claim one, hold their numbers on the processor, and do not mix.

They refuse what CUDA refuses (an operator over two devices) and compute the rest, gradients included, so that what a
model spread over them gives can be compared with what it gives whole. ``lazy`` is a device type that no build of
torch has a backend for and that autograd runs on the calling thread. What autograd itself checks of a gradient's device
it does not check of these.
"""

from __future__ import annotations

from collections import Counter
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only

CPU = torch.device("cpu")
aten = torch.ops.aten
CROSSING = (aten._to_copy.default, aten.copy_.default)
INDEXING = (aten.index.Tensor, aten.index_put.default, aten.index_put_.default, aten._index_put_impl_.default)


class _PlainToLookAt(type(Tensor)):
    """HookedTransformer asks whether ``type(residual) == Tensor``."""

    def __eq__(cls, other: object) -> bool:
        return other is cls or other is Tensor

    __hash__ = type.__hash__


class Claiming(Tensor, metaclass=_PlainToLookAt):
    """A tensor whose numbers are those of ``held``."""

    held: Tensor

    @staticmethod
    def __new__(cls, held: Tensor, device: torch.device) -> Claiming:
        made = Tensor._make_wrapper_subclass(
            cls,
            held.size(),
            strides=held.stride(),
            storage_offset=held.storage_offset(),
            dtype=held.dtype,
            device=device,
        )
        made.held = held
        return made

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        raise AssertionError(f"{func} outside of StandIns")

    def tolist(self) -> Any:
        return self.held.tolist()

    def __repr__(self, **_: Any) -> str:
        return f"Claiming({self.device}, {self.held})"


class StandIns(TorchDispatchMode):
    """While it is entered, tensors can be made on ``lazy:0``, ``lazy:1`` and so on. ``made`` counts their bytes."""

    def __init__(self) -> None:
        super().__init__()
        self.made: Counter[str] = Counter()

    def __enter__(self) -> StandIns:
        torch._C._set_only_lift_cpu_tensors(True)  # torch.tensor(..., device) through here, too
        return super().__enter__()

    def __exit__(self, *error: Any) -> None:
        torch._C._set_only_lift_cpu_tensors(False)
        super().__exit__(*error)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        tensors = [t for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor)]
        mixing = [args[0], *([args[2]] if len(args) > 2 else [])] if func in INDEXING else tensors
        if func in INDEXING:  # indices may lie on the processor
            mixing += [i for i in args[1] if i is not None and i.device != CPU]
        found = {t.device for t in mixing if t.ndim or t.device != CPU}
        if func not in CROSSING and len(found) > 1:
            raise RuntimeError(f"{func} over {sorted(map(str, found))}")
        device = torch.device(kwargs.get("device") or next(iter({*found} - {CPU}), CPU))
        if func is aten.copy_.default:
            device = args[0].device
        if kwargs.get("device") is not None and device.type != "meta":
            kwargs["device"] = CPU
        held_args, held_kwargs = tree_map_only(Claiming, lambda t: t.held, (args, kwargs))
        out = func(*held_args, **held_kwargs)
        if func._schema.is_mutable:
            return args[0] if isinstance(out, Tensor) else out
        if device.type != "lazy":
            return out
        if not tensors:
            self.made[str(device)] += out.nbytes
        return tree_map_only(Tensor, lambda t: Claiming(t, device), out)
