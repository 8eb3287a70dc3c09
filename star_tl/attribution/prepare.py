"""Contrastive pairs as token rows: clean and corrupted prompts, aligned token by token."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from transformer_lens import HookedTransformer

from star_tl.batch import TokenBatch, make_batch, reply_logits, reply_logprobs
from star_tl.chat import Rendered, Span, render, reply_ids
from star_tl.errors import StarError
from star_tl.pairs import ContrastivePair, Pairs


@dataclass(frozen=True)
class PreparedPair:
    """One pair's token ids, and for every corrupted prompt token its clean counterpart or -1."""

    pair: ContrastivePair
    clean: Rendered
    corrupted: Rendered
    positive: tuple[int, ...]
    negative: tuple[int, ...]
    counterpart: tuple[int, ...]

    @property
    def unaligned(self) -> float:
        """Share of the two prompts' tokens that have no counterpart."""
        # The first token is left out of the differences, but where it is the same its difference is 0.
        matched = sum(c >= 0 for c in self.counterpart) + (self.clean.ids[0] == self.corrupted.ids[0])
        return 1 - 2 * matched / (len(self.clean) + len(self.corrupted))

    @property
    def shared_suffix(self) -> int:
        """Number of tokens at the end of the prompt that are the same in both runs."""
        n = 0
        for a, b in zip(reversed(self.clean.ids), reversed(self.corrupted.ids), strict=False):
            if a != b:
                break
            n += 1
        return n


def prepare(model: HookedTransformer, pairs: Pairs) -> list[PreparedPair]:
    """Tokenize every pair and align its clean and corrupted prompt span by span, from the right.

    Raises:
        StarError: a reply has no tokens, or a ``logit`` pair has replies of several tokens.
    """
    prepared = []
    for pair in pairs:
        clean = render(model.tokenizer, pairs.clean_prompt(pair))
        corrupted = render(model.tokenizer, pairs.corrupted_prompt(pair))
        positive, negative = reply_ids(model.tokenizer, pair.positive), reply_ids(model.tokenizer, pair.negative)
        if pair.metric == "logit" and (len(positive) != 1 or len(negative) != 1):
            raise StarError(
                f"pair {pair.id!r} has metric 'logit' and replies of {len(positive)} and {len(negative)} tokens: "
                "use one token each."
            )
        prepared.append(PreparedPair(pair, clean, corrupted, positive, negative, _align(clean, corrupted)))
    return prepared


def _align(clean: Rendered, corrupted: Rendered) -> tuple[int, ...]:
    counterpart = [-1] * len(corrupted)
    theirs = _by_turn(clean)
    for turn, span in _by_turn(corrupted).items():
        other = theirs.get(turn)
        if other is None:
            continue
        # The first token (BOS) sees nothing before it and is the same in both runs; pairing it
        # with some other token of a longer prompt would put its huge activation into a difference.
        skip_bos, other_skip = span.start == 0, other.start == 0
        for k in range(1, min(len(span) - skip_bos, len(other) - other_skip) + 1):
            counterpart[span.end - k] = other.end - k
    return tuple(counterpart)


def _by_turn(prompt: Rendered) -> dict[tuple[str, int], Span]:
    """Spans by role and turn, counted from the end: the last turns of two prompts correspond."""
    counts: Counter[str] = Counter()
    turns = {}
    for span in reversed(prompt.spans):
        role = span.name.split()[0]
        counts[role] += 1
        turns[role, counts[role]] = span
    return turns


@dataclass(frozen=True)
class PairBatch:
    """Rows ``[corrupted+positive, corrupted+negative, clean+positive, clean+negative]`` × pairs."""

    batch: TokenBatch
    size: int
    gather: Int[Tensor, "pair position"]
    aligned: Bool[Tensor, "pair position"]
    single_token: Bool[Tensor, " pair"]

    def difference(self, activation: Float[Tensor, "row position ..."]) -> Float[Tensor, "half position ..."]:
        """Clean − corrupted at aligned positions, for the positive and the negative rows."""
        half = 2 * self.size
        corrupted, clean = activation[:half], activation[half:]
        index = self.gather.repeat(2, 1)
        columns = torch.arange(index.shape[1], device=index.device)
        if not bool((index == columns).all()):
            clean = clean[torch.arange(half, device=index.device)[:, None], index]
        keep = self.aligned.repeat(2, 1).view(half, -1, *[1] * (activation.ndim - 2))
        return (clean - corrupted) * keep


def pair_batch(model: HookedTransformer, chunk: Sequence[PreparedPair]) -> PairBatch:
    """The four rows of each pair as one batch: one forward and one backward pass serve all."""
    prompts = [p.corrupted.ids for p in chunk] * 2 + [p.clean.ids for p in chunk] * 2
    replies = ([p.positive for p in chunk] + [p.negative for p in chunk]) * 2
    batch = make_batch(model, prompts, replies)
    width, end = batch.tokens.shape[1], batch.prompt_end
    gather = torch.arange(width).repeat(len(chunk), 1)
    aligned = torch.zeros(len(chunk), width, dtype=torch.bool)
    aligned[:, end:] = True
    for row, p in enumerate(chunk):
        start, clean_start = end - len(p.corrupted), end - len(p.clean)
        for i, j in enumerate(p.counterpart):
            if j >= 0:
                gather[row, start + i] = clean_start + j
                aligned[row, start + i] = True
    device = batch.tokens.device
    single = torch.tensor([p.pair.metric == "logit" for p in chunk], device=device)
    return PairBatch(batch, len(chunk), gather.to(device), aligned.to(device), single)


def pair_metrics(model: HookedTransformer, rows: PairBatch) -> tuple[Float[Tensor, " pair"], Float[Tensor, " pair"]]:
    """The trait metric of every pair in the corrupted and in the clean run.

    Mean log-probability per token of the positive reply minus that of the negative one, in nats;
    for ``logit`` pairs the difference of the two tokens' logits.
    """
    value = row_values(reply_logits(model, rows.batch), rows.batch, rows.single_token.repeat(4))
    corrupted_positive, corrupted_negative, clean_positive, clean_negative = value.view(4, rows.size)
    return corrupted_positive - corrupted_negative, clean_positive - clean_negative


def row_values(
    logits: Float[Tensor, "row reply vocab"], batch: TokenBatch, single_token: Bool[Tensor, " row"]
) -> Float[Tensor, " row"]:
    """Mean log-probability per token of each row's reply, or its one token's logit."""
    means = reply_logprobs(logits, batch).sum(-1) / batch.reply_lengths
    first = batch.tokens[:, batch.prompt_end]
    single = logits[:, 0].gather(-1, first[:, None])[:, 0]
    return torch.where(single_token, single, means)


def labels(
    model: HookedTransformer, p: PreparedPair, end: int, positive: int, width: int
) -> tuple[list[str], list[Span]]:
    """Tokens and spans of a pair on the axis ``[prompt | positive reply | negative reply]``."""

    tokenizer: Any = model.tokenizer

    def text(ids: Sequence[int]) -> list[str]:
        return [tokenizer.decode([i]) for i in ids]

    tokens = [""] * width
    start = end - len(p.corrupted)
    tokens[start:end] = text(p.corrupted.ids)
    tokens[end : end + len(p.positive)] = text(p.positive)
    tokens[end + positive : end + positive + len(p.negative)] = text(p.negative)
    spans = [Span(s.name, s.start + start, s.end + start) for s in p.corrupted.spans]
    spans.append(Span("positive reply", end, end + len(p.positive)))
    spans.append(Span("negative reply", end + positive, end + positive + len(p.negative)))
    return tokens, spans
