"""A reply, and a reply while it is written."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from star_tl.data.tokenizer import Tokenizer
from star_tl.generation.picking import uniforms
from star_tl.generation.settings import Sampling


@dataclass(frozen=True)
class Reply:
    """What the model wrote.

    ``stopped`` says that it ended its turn by itself or at a stop string, ``broken`` that its logits became NaN or
    infinite, where the reply ends. ``log_probs`` are the tokens' log-probabilities (nats) under the model as it was
    steered, before temperature and bounds; empty unless they were asked for. ``residual`` is the last residual stream
    where it predicts these tokens, or of an empty reply its end, as far as scoring keeps it; it is part of no file.
    """

    text: str
    tokens: tuple[int, ...]
    stopped: bool
    broken: bool = False
    log_probs: tuple[float, ...] = ()
    residual: Float[Tensor, "token d_model"] | None = field(default=None, repr=False, compare=False)


class Writing:
    """A reply while it is written: all that a row is beside its pass, and so whatever it shares a batch with.

    ``ended`` says why it ended: ``turn``, ``text`` (at a stop string), ``length`` or ``broken``; None while it goes on.
    """

    def __init__(
        self, tokenizer: Tokenizer, prompt: tuple[int, ...], seed: int, options: Sampling, stops: frozenset[int]
    ) -> None:
        self.tokenizer, self.prompt, self.options, self.stops = tokenizer, prompt, options, stops
        self.uniforms = uniforms(seed, prompt, options.max_new_tokens)
        self.tokens: list[int] = []
        self.log_probs: list[float] = []
        self.ended: str | None = None
        self._cut = ""

    def take(self, token: int | None, log_prob: float | None = None) -> None:
        """The next token, or None where its logits are broken; nothing where the reply has ended."""
        if self.ended is not None:
            return
        if token is None:
            self.ended = "broken"
            return
        if token in self.stops:
            self.ended = "turn"
            return
        self.tokens.append(token)
        if log_prob is not None:
            self.log_probs.append(log_prob)
        text = self.text if self.options.stop else ""
        at = min((text.find(s) for s in self.options.stop if s in text), default=-1)
        if at >= 0:
            self._cut, self.ended = text[:at], "text"
        elif len(self.tokens) == self.options.max_new_tokens:
            self.ended = "length"

    def seen(self, vocabulary: int) -> Bool[Tensor, " vocab"]:
        """Where the repetition penalty acts: tokens of the prompt and of the reply so far."""
        found = torch.zeros(vocabulary, dtype=torch.bool)
        found[[*self.prompt, *self.tokens]] = True
        return found

    @property
    def text(self) -> str:
        """What stands there so far, up to a stop string."""
        if self.ended == "text":
            return self._cut
        return self.tokenizer.decode(self.tokens, skip_special_tokens=True)

    @property
    def reply(self) -> Reply:
        """The reply so far."""
        stopped, broken = self.ended in ("turn", "text"), self.ended == "broken"
        return Reply(self.text.strip(), tuple(self.tokens), stopped, broken, tuple(self.log_probs))
