"""Position schedules: at which tokens a vector is added, and how strongly.

Positions are absolute and counted from the end of the prompt: -1 is its last token, 0 the first generated one.
The token at position p is sampled from what the model computed at p - 1; everything that is said of generated
tokens here therefore begins at the last prompt token, so that the first sampled token is steered too.
"""

from __future__ import annotations

import operator
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import SupportsIndex, cast

import torch

from star_tl.data.chat import SPANS
from star_tl.errors import StarError, quoted

SCHEDULES = ("locus", "prompt", "last_prompt", "generated", "all")
COUNTED = ("first N", "every N", "decay N")


@dataclass(frozen=True)
class Every:
    """The factor 1 at every ``n``-th generated token's position, else 0."""

    n: int

    def __call__(self, position: int) -> float:
        return float((position + 1) % self.n == 0)


@dataclass(frozen=True)
class Decay:
    """A factor that halves every ``n`` tokens."""

    n: int

    def __call__(self, position: int) -> float:
        return 0.5 ** ((position + 1) / self.n)


@dataclass(frozen=True)
class Schedule:
    """A schedule made ready.

    ``low`` and ``high`` bound the positions (None: no bound); ``weight`` maps a position to the factor at it;
    ``rows`` maps a position to its row of a vector that has one per position, and is empty where all share one.
    """

    name: str
    low: int | None
    high: int | None
    weight: Callable[[int], float] | None = None
    rows: dict[int, int] | None = None

    @property
    def reach(self) -> int | None:
        """How many of the prompt's last tokens it may touch; None for all of them."""
        return None if self.low is None else max(0, -self.low)

    @property
    def steady(self) -> bool:
        """Whether it does the same at every generated token, so that a decode step need not ask again."""
        over = self.high is not None and self.high <= 0  # with the prompt
        return over or (self.high is None and self.weight is None and self.rows is None)

    def columns(self, end: int, offset: int, length: int) -> list[tuple[int, int, float]]:
        """Columns of a chunk of ``length`` that begins at column ``offset``, each with its vector row and factor.

        ``end`` is the column after the prompt's last.
        """
        low = offset if self.low is None else max(offset, end + self.low)
        high = offset + length if self.high is None else min(offset + length, end + self.high)
        found = []
        for column in range(low, high):
            position = column - end
            if self.rows is not None and position not in self.rows:
                continue
            factor = 1.0 if self.weight is None else self.weight(position)
            if factor:
                found.append((column - offset, self.rows[position] if self.rows else 0, factor))
        return found


def schedule(positions: str | Sequence[int]) -> Schedule:
    """A schedule from its name or from positions.

    Args:
        positions: ``"prompt"`` (all of it), ``"last_prompt"``, ``"generated"``, ``"all"``, ``"first N"`` (for the
            first N generated tokens), ``"every N"`` (for every N-th), ``"decay N"`` (halving every N tokens), or
            positions.

    Raises:
        StarError: an unknown name, or positions that are not whole numbers.
    """
    if isinstance(positions, str):
        counted = re.fullmatch(r"(first|every|decay) ([1-9]\d{0,5})", positions)
        if counted:
            n = int(counted[2])
            if counted[1] == "first":
                return Schedule(positions, -1, n - 1)
            if counted[1] == "every":
                return Schedule(positions, -1, None, Every(n))
            return Schedule(positions, -1, None, Decay(n))
        bounds = {"prompt": (None, 0), "last_prompt": (-1, 0), "generated": (-1, None), "all": (None, None)}
        if positions in SPANS:
            raise StarError(
                f"Positions {positions!r} are others in every prompt, and there is none here: name a schedule, such as "
                "'prompt', or give numbers."
            )
        if positions not in bounds:
            names = ", ".join((*SCHEDULES, *COUNTED, *SPANS))
            raise StarError(f"Unknown positions {positions!r}: use one of {names}, or a list of numbers.")
        return Schedule(positions, *bounds[positions])
    numbers = whole_numbers(positions)
    return Schedule(str(list(numbers)), min(numbers), max(numbers) + 1, rows={p: row for row, p in enumerate(numbers)})


def read_positions(text: str) -> str | tuple[int, ...]:
    """Positions as they are typed: numbers separated by commas, or a name, which is not looked up here.

    Raises:
        StarError: digits that make no whole numbers.
    """
    text = text.strip()
    if not re.fullmatch(r"[-−\d, ]+", text):
        return text
    try:
        return tuple(int(part.replace("−", "-")) for part in text.split(","))
    except ValueError:
        raise StarError(f"Positions {text!r} are not whole numbers: write them as -2, -1.") from None


def _whole(number: object) -> int:
    if isinstance(number, bool) or getattr(number, "dtype", None) in (bool, torch.bool):
        raise TypeError
    return operator.index(cast("SupportsIndex", number))


def whole_numbers(positions: Sequence[int]) -> tuple[int, ...]:
    """The positions as a tuple. Raises StarError where they are none, or not whole numbers."""
    try:
        numbers = tuple(_whole(p) for p in positions) if not isinstance(positions, (bytes, set, dict)) else ()
    except (TypeError, ValueError, OverflowError):
        numbers = ()
    if not numbers or max(map(abs, numbers)) >= 2**31:
        names = ", ".join(SCHEDULES + COUNTED)
        raise StarError(f"positions is {quoted(positions)}: use one of {names} or a list of whole numbers.")
    return numbers
