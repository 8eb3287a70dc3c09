"""How to sample: the one place where each option has its default."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from numbers import Real
from typing import TypedDict

from star_tl.errors import StarError, check_kind, check_whole


class SamplingOptions(TypedDict, total=False):
    """The fields of :class:`Sampling`, where functions take them by name."""

    max_new_tokens: int
    temperature: float
    top_p: float
    min_p: float
    repetition_penalty: float
    stop: tuple[str, ...] | list[str]
    batch_size: int | None
    log_probs: bool


@dataclass(frozen=True)
class Sampling:
    """How to sample.

    Attributes:
        max_new_tokens: most tokens of a reply; it ends earlier at the end of the turn.
        temperature: 0 is greedy.
        top_p: sample from the smallest set of tokens that holds this probability.
        min_p: leave out tokens whose probability is below this share of the likeliest one's (arXiv 2407.01082).
        repetition_penalty: divide the positive logits of tokens that the prompt or the reply holds by this, and
            multiply the negative ones (arXiv 1909.05858).
        stop: texts that end a reply; they are cut off.
        batch_size: prompts per batch; in float32 the texts do not depend on it. Default: 64, and on a GPU up to 1,024.
            A batch that would take too much of the free memory is cut smaller.
        log_probs: keep the tokens' log-probabilities.

    Raises:
        StarError: a value out of range.
    """

    max_new_tokens: int = 60
    temperature: float = 0.8
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    stop: tuple[str, ...] = ()
    batch_size: int | None = None
    log_probs: bool = False

    def __post_init__(self) -> None:
        for name in ("max_new_tokens", "batch_size"):
            value = getattr(self, name)
            if name != "batch_size" or value is not None:
                check_whole(value, name)
        if not (isinstance(self.temperature, Real) and 0 <= self.temperature <= 1e6):
            raise StarError(f"temperature is {self.temperature!r}: use 0 (greedy) or more, at most 1e6.")
        if not (isinstance(self.top_p, Real) and 0 < self.top_p <= 1):
            raise StarError(f"top_p is {self.top_p!r}: use a share above 0, at most 1.")
        if not (isinstance(self.min_p, Real) and 0 <= self.min_p < 1):
            raise StarError(f"min_p is {self.min_p!r}: use a share of the likeliest token's probability, 0 to below 1.")
        penalty = self.repetition_penalty
        if not (isinstance(penalty, Real) and math.isfinite(penalty) and penalty > 0):
            raise StarError(f"repetition_penalty is {penalty!r}: use 1 (none) or more.")
        if not isinstance(self.stop, (list, tuple)) or not all(isinstance(s, str) and s for s in self.stop):
            raise StarError(f"stop is {self.stop!r}: give a list of texts.")
        object.__setattr__(self, "stop", tuple(self.stop))

    def describe(self) -> str:
        """In words, for reports."""
        return f"temperature {self.temperature:g}, top-p {self.top_p:g}, at most {self.max_new_tokens} tokens"


def settled(sampling: Sampling | None, options: SamplingOptions) -> Sampling:
    """The sampling that a caller means, given whole, by single options, or not at all.

    Raises:
        StarError: both are given, an unknown option, or a value out of range.
    """
    if unknown := sorted(set(options) - set(SamplingOptions.__annotations__)):
        raise StarError(f"Unknown option {unknown[0]!r}: use {', '.join(SamplingOptions.__annotations__)}.")
    if sampling is not None:
        check_kind(sampling, Sampling, "a Sampling")
    if sampling is not None and options:
        raise StarError(f"sampling and {sorted(options)[0]} are both given: write replace(sampling, ...) instead.")
    return sampling if sampling is not None else replace(Sampling(), **options)
