"""One way to write replies: the carrier that everything which samples, scores or compares takes."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from numbers import Integral
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from star_tl.data.chat import SPANS, Message, Prompt, resolve_span, with_instruction
from star_tl.data.tokenizer import Tokenizer
from star_tl.errors import StarError, check_flag, check_kind, check_number, check_text, quoted
from star_tl.locus import Locus, NamedHook
from star_tl.steering.hooks import Row, acting_at, injection_hooks, row_hooks
from star_tl.steering.positions import schedule, whole_numbers

_SAME = 1e-5  # of its length is left of a direction that others hold already
UNSTEERED = "unsteered"  # the name of the condition that all others are compared with


@runtime_checkable
class Steers(Protocol):
    """What a condition asks of a vector; a :class:`star_tl.SteeringVector` is one."""

    @property
    def locus(self) -> Locus: ...

    def scaled(self, strength: float) -> Float[Tensor, "position d"]:
        """What is added at this strength."""
        ...


@dataclass(frozen=True)
class Condition:
    """A vector at a strength and positions, an instruction, both, or neither; and a seed.

    Attributes:
        name: what tables and figures call it.
        vector: what is added to the model's activations.
        strength: of the vector; 1 is the natural difference.
        positions: a schedule (:func:`star_tl.steering.positions.schedule`), numbers, or a span of the chat
            (:func:`star_tl.data.chat.span_positions`); default the vector's own.
        instruction: a system instruction that the prompts are put under (priming).
        seed: of the replies.
        more: further vectors, each added at its own place with the same strength and positions: all layers, some heads.
        remove: take away what lies along the vectors instead of adding them, ``strength`` times: 1 leaves nothing of it
            (Arditi et al. 2024, arXiv 2406.11717).

    Raises:
        StarError: more vectors and no first one, a strength that is no finite number, one below 0 to be removed, a seed
            that is no whole number, or unknown positions.
    """

    name: str = UNSTEERED
    vector: Steers | None = None
    strength: float = 1.0
    positions: str | Sequence[int] | None = None
    instruction: str | None = None
    seed: int = 0
    more: tuple[Steers, ...] = ()
    remove: bool = False

    def __post_init__(self) -> None:
        check_text(self.name, "The name of a condition", least=1)
        if self.instruction is not None:
            check_text(self.instruction, "The instruction of a condition", least=1)
        check_number(self.strength, "strength", math.isfinite, "give a finite number, 1 is the natural difference")
        if not isinstance(self.seed, Integral) or isinstance(self.seed, bool):  # of any size: a row's seed is hashed
            raise StarError(f"seed is {quoted(self.seed)}: use a whole number.")
        object.__setattr__(self, "seed", int(self.seed))
        if self.positions is not None and not isinstance(self.positions, str):
            object.__setattr__(self, "positions", whole_numbers(self.positions))
        if self.positions not in (None, "locus", *SPANS):
            schedule(self.positions)
        if not isinstance(self.more, (list, tuple)):
            raise StarError(f"more is {quoted(self.more)}: give a list of vectors.")
        object.__setattr__(self, "more", tuple(self.more))
        for vector in (*self.more, *([self.vector] if self.vector is not None else [])):
            check_kind(vector, Steers, "a SteeringVector")
        if self.more and self.vector is None:
            raise StarError("more holds further vectors, and there is no first one: give it as vector.")
        check_flag(self.remove, "remove")
        if self.remove and (self.vector is None or self.strength < 0):
            raise StarError("remove takes away what lies along a vector: give one, and a strength of at least 0.")
        for vector in self.vectors:
            injection_hooks(vector.scaled(1.0), vector.locus)  # raises where nothing can be added

    @property
    def vectors(self) -> tuple[Steers, ...]:
        """All that are added."""
        return () if self.vector is None else (self.vector, *self.more)

    @property
    def dose(self) -> float:
        """The strength, and 0 where there is no vector."""
        return float(self.strength) if self.vector is not None else 0.0

    @property
    def identity(self) -> list[object]:
        """What tells it from other conditions, as JSON: the vectors as a hash of what is added."""
        added = where = None
        if self.vectors:
            given = [
                v.scaled(self.strength).detach().float().cpu().contiguous().numpy().tobytes() for v in self.vectors
            ]
            added = hashlib.sha256(b"".join(given)).hexdigest()[:16]
            where = "; ".join(str(v.locus) for v in self.vectors)
        named = [self.name, where, added, str(self.positions), self.instruction, self.seed]
        return [*named, "removed"] if self.remove else named

    def prompted(self, prompts: Sequence[Prompt]) -> list[tuple[Message, ...]]:
        """The prompts as they are put to the model: under the instruction, where there is one."""
        return [with_instruction(prompt, self.instruction) for prompt in prompts]

    def rows(self, tokenizer: Tokenizer, prompt: Prompt) -> list[Row]:
        """What is added in a row of a batch that holds this prompt, as :func:`star_tl.steering.hooks.row_hooks` takes.

        Raises:
            StarError: the prompt has no such span.
        """
        if self.vector is None:
            return []
        at = resolve_span(tokenizer, with_instruction(prompt, self.instruction), self.positions)
        return [
            (given, vector.locus, at, self.remove) for vector, given in zip(self.vectors, self._given(at), strict=True)
        ]

    def hooks(
        self, tokenizer: Tokenizer, prompts: Sequence[Prompt], prompt_length: int | None = None
    ) -> list[NamedHook]:
        """``[(name, fn)]`` for a batch of these prompts; see :func:`star_tl.steering.hooks.injection_hooks`."""
        if self.positions in SPANS:
            return batch_hooks([self.rows(tokenizer, prompt) for prompt in prompts], prompt_length)
        return [
            hook
            for vector, given in zip(self.vectors, self._given(self.positions), strict=True)
            for hook in injection_hooks(given, vector.locus, self.positions, prompt_length, remove=self.remove)
        ]

    def _given(self, positions: str | Sequence[int] | None) -> list[Float[Tensor, "position d"]]:
        """What is added at these positions; or to be removed, of length √strength, for it enters twice.

        Of several that are removed at one place each is made orthogonal to those before it: one after another they
        would bring back some of what the first took.
        """
        if not self.remove:
            return [vector.scaled(self.strength) for vector in self.vectors]
        found, before = [], dict[object, list[Tensor]]()
        for vector in self.vectors:
            locus, rows = vector.locus, vector.scaled(1.0)
            own = acting_at(locus, positions) == locus.positions
            rows = rows if own else rows.mean(0, keepdim=True)
            length = rows.norm(dim=-1, keepdim=True)
            at_this_place = before.setdefault((locus.hook_point, locus.head, locus.positions if own else None), [])
            for removed in at_this_place:
                rows = rows - (rows * removed).sum(-1, keepdim=True) * removed
            left = rows.norm(dim=-1, keepdim=True)
            rows = torch.where(left > _SAME * length, rows / left.clamp_min(1e-12), 0.0)
            at_this_place.append(rows)
            found.append(rows.expand(len(locus.positions), -1) * math.sqrt(self.strength))
        return found


def batch_hooks(rows: Sequence[Sequence[Row]], prompt_length: int | None = None) -> list[NamedHook]:
    """``[(name, fn)]`` for a batch of which each row has any number of vectors added."""
    most = max(map(len, rows), default=0)
    layers = ([row[k] if k < len(row) else None for row in rows] for k in range(most))
    return [hook for layer in layers for hook in row_hooks(layer, prompt_length)]
