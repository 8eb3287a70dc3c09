"""A batch that never stops: rows join and leave at every step, each with its own vector, seed and way to sample.

What a row writes is what :func:`star_tl.generate` writes for it alone: the same state of the row, the same choice of
its tokens, and in float32 the same text. Only a row whose logits are NaN or infinite ends as broken here also where
nothing is steered: it is no reason to stop the others.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Protocol

import torch
from jaxtyping import Float, Int
from torch import Tensor

from star_tl.data.chat import stop_ids
from star_tl.generation.decoding import Pass
from star_tl.generation.picking import choose, log_probs, whole
from star_tl.generation.sampling import cache_columns, read_prompts
from star_tl.generation.settings import Sampling
from star_tl.generation.writing import Writing
from star_tl.locus import NamedHook
from star_tl.models.backend import Model, tokenizer_of
from star_tl.models.fast.decode import LlamaPass
from star_tl.models.fast.forward import llama_forward
from star_tl.models.fast.rows import LlamaRows
from star_tl.models.position import steady
from star_tl.steering.condition import Row, batch_hooks
from star_tl.steering.hooks import step_hooks


class Asked:
    """A row that is asked for, and its reply while it is written.

    ``alternatives`` holds for each token the ``top`` likeliest ones with their log-probabilities (nats), under the
    model as it was steered, before temperature and bounds.
    """

    def __init__(
        self, model: Model, prompt: tuple[int, ...], rows: list[Row], seed: int, options: Sampling, top: int = 0
    ) -> None:
        """``prompt`` are token ids; ``rows`` is what is added, as :meth:`star_tl.Condition.rows` gives it."""
        self.writing = Writing(tokenizer_of(model), prompt, seed, options, frozenset(stop_ids(tokenizer_of(model))))
        self.rows, self.hooks, self.top = rows, batch_hooks([rows]), top
        self.alternatives: list[list[tuple[int, float]]] = []
        self.way = replace(options, max_new_tokens=1, stop=(), batch_size=None, log_probs=False)  # to choose a token

    @property
    def columns(self) -> int:
        """Tokens that it may come to, prompt and reply."""
        return len(self.writing.prompt) + self.writing.options.max_new_tokens


class RunningBatch:
    """Rows in the middle of being written; not for several threads at once."""

    def __init__(self, model: Model) -> None:
        self.model = model
        self.columns = cache_columns(model)  # that the cache may hold
        self.asked: list[Asked] = []
        self._rows: _Rows | None = None
        self._next: list[int] = []  # of every row the token that was chosen last
        self._steady: list[NamedHook] | None = None  # the hooks of a step, where the next step's are the same

    def clear(self) -> None:
        """Let all rows go."""
        self.asked, self._rows, self._next, self._steady = [], None, [], None

    def room_for(self, more: Sequence[Asked]) -> bool:
        """Whether the cache of all rows together may take memory for these too."""
        rows = [*self.asked, *more]
        return len(rows) * max(asked.columns for asked in rows) <= self.columns

    @torch.no_grad()
    def join(self, more: Sequence[Asked]) -> None:
        """Read prompts and write the first token of each reply."""
        if llama_forward(self.model) is None:
            self._join_alone(more)
            return
        prompts = [asked.writing.prompt for asked in more]
        passed, logits = read_prompts(self.model, prompts, batch_hooks([asked.rows for asked in more]), 1)
        assert isinstance(passed, LlamaPass)  # hooks at the places of loci are what it knows
        chosen = _take(more, logits)
        if self._rows is None:
            self._rows = LlamaRows(passed, self.columns)
        else:
            assert isinstance(self._rows, LlamaRows)
            self._rows.admit(passed)
        self._behind(more, chosen)

    @torch.no_grad()
    def step(self) -> None:
        """Write the next token of every row; those that have ended are gone."""
        if not self.asked:
            return
        assert self._rows is not None
        hooks = self._steady
        if hooks is None:
            rows = [asked.hooks for asked in self.asked]
            hooks = step_hooks(rows, [len(asked.writing.tokens) - 1 for asked in self.asked])
            self._steady = hooks if all(map(steady, rows)) else None
        logits = self._rows(torch.tensor(self._next, device=self.model.cfg.device), hooks)
        self._next = _take(self.asked, logits)
        self._drop_ended()

    def leave(self, asked: Asked) -> None:
        """Let a row go before its reply has ended; nothing where it is not here."""
        if asked in self.asked:
            self._remove(self.asked.index(asked))

    def _join_alone(self, more: Sequence[Asked]) -> None:
        rows = self._rows if isinstance(self._rows, _OwnPasses) else _OwnPasses()
        for asked in more:
            passed, logits = read_prompts(
                self.model, [asked.writing.prompt], asked.hooks, asked.writing.options.max_new_tokens
            )
            chosen = _take([asked], logits)
            rows.passes.append(passed)
            self._rows = rows
            self._behind([asked], chosen)

    def _behind(self, more: Sequence[Asked], chosen: list[int]) -> None:
        self.asked += more
        self._next += chosen
        self._steady = None
        self._drop_ended()

    def _drop_ended(self) -> None:
        for row in reversed(range(len(self.asked))):
            if self.asked[row].writing.ended is not None:
                self._remove(row)

    def _remove(self, row: int) -> None:
        assert self._rows is not None
        self._rows.remove(row)
        self.asked[row], self._next[row] = self.asked[-1], self._next[-1]
        self.asked.pop()
        self._next.pop()
        self._steady = None
        if not self.asked:
            self._rows = None  # and its cache


class _Rows(Protocol):
    """Passes over rows that stand at columns of their own."""

    def __call__(self, tokens: Int[Tensor, " row"], hooks: Sequence[NamedHook]) -> Float[Tensor, "row vocab"]:
        """Logits after the rows' next tokens."""
        ...

    def remove(self, row: int) -> None:
        """Let a row go; the last one takes its place."""
        ...


class _OwnPasses:
    """For models of other families than Llama's: a pass for each row, under its own hooks, one after another."""

    def __init__(self) -> None:
        self.passes: list[Pass] = []

    def __call__(self, tokens: Int[Tensor, " row"], hooks: Sequence[NamedHook]) -> Float[Tensor, "row vocab"]:
        return torch.cat([own(token[None, None]) for own, token in zip(self.passes, tokens, strict=True)])

    def remove(self, row: int) -> None:
        self.passes[row] = self.passes[-1]
        self.passes.pop()


def _take(rows: Sequence[Asked], logits: Float[Tensor, "row vocab"]) -> list[int]:
    """Choose and write every row's next token. Rows that are sampled alike are chosen for at once."""
    finite, usable = whole(logits)
    alike: dict[Sampling, list[int]] = {}
    for i, asked in enumerate(rows):
        alike.setdefault(asked.way, []).append(i)
    chosen = [0] * len(rows)
    for options, mine in alike.items():
        writings = [rows[i].writing for i in mine]
        uniform = torch.stack([w.uniforms[len(w.tokens)] for w in writings]).to(logits.device)
        seen = None
        if options.repetition_penalty != 1:
            seen = torch.stack([w.seen(logits.shape[-1]) for w in writings]).to(logits.device)
        theirs = usable if len(mine) == len(rows) else usable[mine]
        for i, token in zip(mine, choose(theirs, seen, uniform, options).tolist(), strict=True):
            chosen[i] = token
    likely = _likely(rows, usable, chosen)
    for asked, token, fine, log_prob in zip(rows, chosen, finite.tolist(), likely, strict=True):
        asked.writing.take(token if fine else None, log_prob)
    return chosen


def _likely(rows: Sequence[Asked], logits: Float[Tensor, "row vocab"], chosen: list[int]) -> list[float | None]:
    """The log-probability of every row's token, where it is asked for; the likeliest others are kept with the row."""
    found: list[float | None] = [None] * len(rows)
    wanted = [i for i, asked in enumerate(rows) if asked.writing.options.log_probs]
    if wanted:
        tokens = torch.tensor([chosen[i] for i in wanted], device=logits.device)
        for i, log_prob in zip(wanted, log_probs(logits[wanted], tokens).tolist(), strict=True):
            found[i] = log_prob
        for i in wanted:
            if rows[i].top:
                values, ids = logits[i].log_softmax(-1).topk(rows[i].top)
                rows[i].alternatives.append(list(zip(ids.tolist(), values.tolist(), strict=True)))
    return found
