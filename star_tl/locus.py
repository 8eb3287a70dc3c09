"""Where to inject: a hook point, token positions, optionally a head; and the one vocabulary of hook points."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from numbers import Integral
from typing import TYPE_CHECKING, TypeAlias

from star_tl.errors import StarError, quoted

if TYPE_CHECKING:
    from torch import Tensor

COMPONENTS = ("resid_pre", "resid_mid", "resid_post", "attn_out", "mlp_out")
WRITES = ("attn_out", "mlp_out")  # what a layer adds to the residual stream
POINTS = (*COMPONENTS, "z")

# As TransformerLens takes it: a hook point's name, or a filter of names, and a function (activation, hook) that returns
# another activation, or None to leave it as it is.
HookFunction: TypeAlias = "Callable[..., Tensor | None]"
NamedHook = tuple[str | Callable[[str], bool], HookFunction]


def hook_name(point: str, layer: int) -> str:
    """TransformerLens's name of a hook point: ``z`` is per head, the others are of the residual stream's width."""
    return f"blocks.{layer}.attn.hook_z" if point == "z" else f"blocks.{layer}.hook_{point}"


def _is_whole(value: object) -> bool:
    return isinstance(value, Integral) and not isinstance(value, bool)


HOOK_POINTS = tuple(hook_name(point, 0).removeprefix("blocks.0.") for point in POINTS)  # as they are called in a layer


@dataclass(frozen=True)
class Locus:
    """A hook point and prompt positions, counted from the end of the prompt: -1 is its last token."""

    hook_point: str
    positions: tuple[int, ...] = (-1,)
    head: int | None = None

    def __post_init__(self) -> None:
        found = (
            re.fullmatch(r"blocks\.([0-9]{1,5})\.(.+)", self.hook_point) if isinstance(self.hook_point, str) else None
        )
        if not found or found[2] not in HOOK_POINTS:
            points = ", ".join(p for p in HOOK_POINTS if p != "attn.hook_z")
            raise StarError(
                f"{quoted(self.hook_point)} is not a hook point to inject at: use blocks.L. with {points}, or "
                "with attn.hook_z and a head."
            )
        if not isinstance(self.positions, (tuple, list)) or not all(_is_whole(p) for p in self.positions):
            raise StarError(f"Positions {quoted(self.positions)} of a locus: give whole numbers, as in (-2, -1).")
        object.__setattr__(self, "positions", tuple(int(p) for p in self.positions))
        if not self.positions or any(p >= 0 for p in self.positions):
            raise StarError(
                f"Positions {quoted(self.positions)} of a locus: give negative ones, -1 is the last prompt token."
            )
        if len(set(self.positions)) != len(self.positions):
            raise StarError(f"Positions {quoted(self.positions)} of a locus repeat: name each once.")
        if self.head is not None and not (_is_whole(self.head) and 0 <= self.head < 10_000):
            raise StarError(f"Head {quoted(self.head)} of a locus: give its number, 0 is the first.")
        if (self.head is not None) != (found[2] == "attn.hook_z"):
            raise StarError(
                "A locus names a head exactly where its hook point is attn.hook_z: give its number (head=0; on the "
                "command line --head 0), or another hook point without one."
            )

    @property
    def layer(self) -> int:
        return int(self.hook_point.split(".")[1])

    def __str__(self) -> str:
        head = f" head {self.head}" if self.head is not None else ""
        return f"{self.hook_point}{head} @ {', '.join(str(p) for p in self.positions)}"
