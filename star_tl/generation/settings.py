"""How to sample: the one place where each option has its default."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TypedDict

from star_tl.errors import StarError, check_flag, check_kind, check_number, check_whole, quoted


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
        use = "use 0 (greedy), or 1e-6 to 1e6"  # logits over a smaller one are infinite
        check_number(self.temperature, "temperature", lambda x: x == 0 or 1e-6 <= x <= 1e6, use)
        check_number(self.top_p, "top_p", lambda x: 0 < x <= 1, "use a share above 0, at most 1")
        use = "use a share of the likeliest token's probability, 0 to below 1"
        check_number(self.min_p, "min_p", lambda x: 0 <= x < 1, use)
        use = "use 1 (none) or more, at most 1e6"
        check_number(self.repetition_penalty, "repetition_penalty", lambda x: 0 < x <= 1e6, use)
        if not isinstance(self.stop, (list, tuple)) or not all(isinstance(s, str) and s for s in self.stop):
            raise StarError(f"stop is {quoted(self.stop)}: give a list of texts.")
        check_flag(self.log_probs, "log_probs")
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
