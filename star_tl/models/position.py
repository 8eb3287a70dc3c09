"""What a pass may ask of a hook function that acts at token positions, and the position that it tells it.

A function of the user's own promises none of this: it is called as it is, with the whole batch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Int
from torch import Tensor

from star_tl.locus import HookFunction, NamedHook


@dataclass
class Position:
    """Where one call stands, in columns of its padded batch; it belongs to that call alone.

    ``end`` is the column after the prompt's last, ``offset`` the first column of the current pass, ``read`` the column
    after its last.
    """

    end: int
    offset: int = 0
    read: int = 0

    def advance(self, columns: int) -> None:
        """A pass over the next so many columns begins."""
        self.offset, self.read = self.read, self.read + columns


@runtime_checkable
class PositionedHook(Protocol):
    """A hook function that acts at token positions.

    ``steady`` says that it does the same at every generated token; ``reach`` how many of a prompt's last tokens it may
    touch, None where that is not known.
    """

    @property
    def steady(self) -> bool: ...

    @property
    def reach(self) -> int | None: ...

    def follow(self, position: Position) -> HookFunction | None:
        """The same function, reading off ``position`` where it stands; None where it only keeps count for others."""
        ...

    def for_rows(self, rows: Int[Tensor, " kept"]) -> HookFunction | None:
        """The same for a batch of these rows, in this order; None where it acts on none of them."""
        ...


def following(hooks: Sequence[NamedHook], position: Position) -> list[NamedHook]:
    """The hooks of one call: functions that act at positions read them off ``position``, others stay as they are."""
    found: list[NamedHook] = []
    counted = follows = False
    for name, function in hooks:
        own = function.follow(position) if isinstance(function, PositionedHook) else function
        counted |= own is None
        follows |= own is not function and own is not None
        if own is not None:
            found.append((name, own))
    # Where there is a count and nobody follows, a function of the user's has wrapped the one that would.
    return list(hooks) if counted and not follows else found


def for_rows(hooks: Sequence[NamedHook], rows: Int[Tensor, " kept"]) -> list[NamedHook] | None:
    """The hooks of a batch that keeps only these rows; None where a function of the user's may count rows."""
    found: list[NamedHook] = []
    for name, function in hooks:
        if not isinstance(function, PositionedHook):
            return None
        own = function.for_rows(rows)
        if own is not None:
            found.append((name, own))
    return found


def steady(hooks: Sequence[NamedHook]) -> bool:
    """Whether all of them do the same at every generated token."""
    return all(isinstance(f, PositionedHook) and f.steady for _, f in hooks)


def reach(hooks: Sequence[NamedHook]) -> int | None:
    """How many of a prompt's last tokens the hooks may touch; None where that is not known."""
    furthest = 0
    for _, function in hooks:
        own = function.reach if isinstance(function, PositionedHook) else None
        if own is None:
            return None
        furthest = max(furthest, own)
    return furthest


def acts_on(hooks: Sequence[NamedHook], row: int) -> bool:
    """Whether any of the hooks may change this row of the batch."""
    own = for_rows(following(hooks, Position(0)), torch.tensor([row]))
    return own is None or bool(own)
