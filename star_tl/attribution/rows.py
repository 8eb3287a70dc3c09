"""Aligned pairs as padded rows of a batch, and as the columns of a map."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from star_tl.attribution.align import PreparedPair
from star_tl.attribution.map import STRETCHES, AttributionMap
from star_tl.attribution.objective import Metric, Replies, pairs_own
from star_tl.attribution.request import Request
from star_tl.data.chat import SPANS, Span, span_named
from star_tl.errors import StarError
from star_tl.locus import COMPONENTS
from star_tl.models.backend import Model, tokenizer_of
from star_tl.models.batch import pad_id

# The tokens of an activation: the prompts' ``[pair prompt ...]``, the replies' ``[2*pair reply ...]``, positive rows
# first, or, where both replies stand behind their prompt in one row, ``[pair prompt+positive+negative ...]``.
Part = Literal["prompts", "replies", "whole"]

WINDOW = 24  # prompt positions, from the end, for which it is kept one by one


@dataclass(frozen=True)
class PairBatch:
    """Rows of some pairs: prompts ``[corrupted, clean] × pairs``, padded on the left, and replies
    ``[positive, negative] × pairs``, padded on the right, each of which follows both of its prompts. ``steered`` are
    the prompts that a vector goes into, without an instruction.

    ``gather`` is the clean column that corresponds to each corrupted one, where ``aligned``, over the columns of
    a whole row: the prompt, the positive and the negative reply, each reply without its last token, from which
    nothing follows. ``within`` says which columns belong to which of STRETCHES. Columns that predict a reply's tokens
    have no counterpart before ``first``.
    """

    prompts: Int[Tensor, "2*pair prompt"]
    prompt_mask: Bool[Tensor, "2*pair prompt"]
    replies: Int[Tensor, "2*pair reply"]
    reply_mask: Bool[Tensor, "2*pair reply"]
    gather: Int[Tensor, "pair column"]
    aligned: Bool[Tensor, "pair column"]
    within: Float[Tensor, "pair stretch column"]
    steered: Int[Tensor, "pair steered"]
    steered_mask: Bool[Tensor, "pair steered"]
    single_token: Bool[Tensor, " pair"]
    first: int
    seeds: tuple[int, ...]
    metric: Metric

    @property
    def size(self) -> int:
        """Number of pairs."""
        return len(self.gather)

    def metrics(self, logits: Float[Tensor, "row reply vocab"]) -> Float[Tensor, "run pair"]:
        """The metric of every pair in each run; rows are ``[run, positive | negative, pair]``.

        Raises:
            StarError: what the metric gives is no real number a pair, or has no gradient where one is wanted.
        """
        replies = Replies(self.replies, self.reply_mask, self.single_token)
        found = [self.metric(run, replies) for run in logits.split(2 * self.size)]
        for values in found:
            if not isinstance(values, Tensor) or values.shape != (self.size,) or not values.is_floating_point():
                made = f"shape {list(values.shape)}" if isinstance(values, Tensor) else f"a {type(values).__name__}"
                raise StarError(f"The metric gives {made} for {self.size} pairs: return a tensor of one number a pair.")
            if logits.requires_grad and not values.requires_grad:
                raise StarError("The metric has no gradient: compute it from the logits, and detach nothing.")
        return torch.stack(found)

    def spread(self, prompt_rows: int) -> Int[Tensor, " row"]:
        """For rows ``[run, positive | negative, pair]`` the prompt row ``[run, pair]`` of each."""
        rows = torch.arange(prompt_rows, device=self.gather.device)
        return rows.view(-1, 1, self.size).expand(-1, 2, -1).reshape(-1)

    def difference(
        self, part: Part, corrupted: Float[Tensor, "half position ..."], clean: Float[Tensor, "half position ..."]
    ) -> Float[Tensor, "half position ..."]:
        """Clean − corrupted, zero where a prompt token has no counterpart."""
        if part == "replies":
            return clean - corrupted
        found, aligned = (t.to(corrupted.device) for t in self._counterparts[part])
        difference = clean.flatten(0, 1).index_select(0, found).sub_(corrupted.flatten(0, 1))
        aligned = aligned.to(difference.dtype).view(-1, *[1] * (difference.ndim - 1))
        return difference.mul_(aligned).view_as(corrupted)

    @cached_property
    def _counterparts(self) -> dict[Part, tuple[Int[Tensor, " pair*column"], Float[Tensor, " pair*column"]]]:
        """With the rows of a part behind one another, the clean token of each corrupted one, and 0 where it has none,
        else 1.
        """

        def over(columns: int) -> tuple[Tensor, Tensor]:
            before = columns * torch.arange(self.size, device=self.gather.device)[:, None]
            return (self.gather[:, :columns] + before).flatten(), self.aligned[:, :columns].flatten().float()

        return {"prompts": over(self.prompts.shape[1]), "whole": over(self.gather.shape[1])}

    def split(
        self, part: Part, values: Float[Tensor, "half ... position"]
    ) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        """What of ``values`` belongs to the prompts, the positive and the negative replies."""
        if part == "prompts":
            return values, None, None
        if part == "replies":
            return None, values[: self.size], values[self.size :]
        prompt, reply = self.prompts.shape[1], self.replies.shape[1] - 1
        own, positive, negative = values.split([prompt, reply, reply], -1)
        return own, positive, negative

    def signs(
        self, vocabulary: int, draws: int, seed: int
    ) -> tuple[Float[Tensor, "draw 2*pair reply"], Float[Tensor, "draw pair vocab"]]:
        """Random signs for the tokens of both replies, 0 at padding, and for the vocabulary; of one seed a pair's are
        always the same.
        """
        (rows, longest), lengths, device = self.reply_mask.shape, self.reply_mask.sum(1).tolist(), self.replies.device
        words = np.empty((draws, self.size, _bytes(vocabulary)), np.uint8)  # eight signs a byte
        tokens = np.zeros((draws, rows, _bytes(longest)), np.uint8)
        for i, own in enumerate(self.seeds):
            chance = np.random.default_rng((own + int(seed)) % 2**63)
            words[:, i] = chance.integers(256, size=words[:, i].shape, dtype=np.uint8)
            for row in (i, i + self.size):
                drawn = chance.integers(256, size=(draws, _bytes(lengths[row])), dtype=np.uint8)
                tokens[:, row, : drawn.shape[1]] = drawn
        signs = _unpacked(torch.from_numpy(tokens).to(device), longest).mul_(self.reply_mask)
        # Both replies' first tokens follow the same prompt: pulled twice they would cancel or double at random.
        signs[:, : self.size, 0] *= 2**0.5
        signs[:, self.size :, 0] = 0
        return signs, _unpacked(torch.from_numpy(words).to(device), vocabulary)

    def along(self, part: Part, gradient: Float[Tensor, "half position ..."]) -> Float[Tensor, "stretch ..."]:
        """The gradient summed over pairs and over the tokens of each of STRETCHES that this part holds."""
        prompt = self.prompts.shape[1]
        columns = {"prompts": slice(prompt), "replies": slice(prompt, prompt + gradient.shape[1]), "whole": slice(None)}
        within = self.within[..., columns[part]].to(gradient)
        if part == "replies":
            within = within.repeat(2, 1, 1)
        return (within.transpose(0, 1).flatten(1) @ gradient.flatten(2).flatten(0, 1)).unflatten(1, gradient.shape[2:])

    def whole(self, prompts: slice) -> tuple[Tensor, Tensor, Tensor]:
        """Tokens and positions of whole rows, ``[row column]``, and what sees what, ``[row 1 column column]``.

        A prompt is followed by both of its replies, which do not see one another.
        """
        return self._followed(self.prompts[prompts], self.prompt_mask[prompts])

    def positions(self, tokens: Int[Tensor, "row column"]) -> int:
        """How many positions whole rows have: both replies begin at the same one."""
        return tokens.shape[1] - self.replies.shape[1] + 1

    def whole_steered(self) -> tuple[Tensor, Tensor, Tensor]:
        """As :meth:`whole`, of the prompts that a vector goes into."""
        return self._followed(self.steered, self.steered_mask)

    def _followed(self, tokens: Tensor, mask: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        runs, end, reply = len(tokens) // self.size, tokens.shape[1], self.replies.shape[1] - 1
        positive, negative = (t[:, :reply].repeat(runs, 1) for t in self.replies.split(self.size))
        lengths = mask.sum(1, keepdim=True)
        columns = torch.arange(end + 2 * reply, device=tokens.device)
        positions = (columns - end + lengths - reply * (columns >= end + reply)).clamp(min=0)
        turn = (columns >= end).int() + (columns >= end + reply).int()  # 0 the prompt, 1 and 2 its replies
        together = (turn == turn[:, None]) | (turn == 0)
        seen = F.pad(mask, (0, 2 * reply), value=True)[:, None, None] & together.tril()
        # Padding sees itself: a row of none would be NaN.
        return torch.cat([tokens, positive, negative], 1), positions, seen | (columns == columns[:, None])


def pair_batch(
    model: Model, chunk: Sequence[PreparedPair], metric: Metric = pairs_own, among: Sequence[PreparedPair] | None = None
) -> PairBatch:
    """The rows of some pairs on the model's device, with room for every pair ``among`` which they are, default none."""
    pad, all_of_them = pad_id(model), among or chunk
    width = max(len(run) for p in all_of_them for run in (p.corrupted, p.clean))
    prompts, prompt_mask = _padded([p.corrupted.ids for p in chunk] + [p.clean.ids for p in chunk], pad, width)
    width = max(len(p.steered) for p in all_of_them)
    steered, steered_mask = _padded([p.steered.ids for p in chunk], pad, width)
    width = max(len(reply) for p in all_of_them for reply in (p.positive, p.negative))
    replies, reply_mask = _padded([p.positive for p in chunk] + [p.negative for p in chunk], pad, width, left=False)
    end = prompts.shape[1]
    gather = torch.arange(end + 2 * (replies.shape[1] - 1)).repeat(len(chunk), 1)
    aligned = gather >= end
    within = torch.zeros(len(chunk), len(STRETCHES), gather.shape[1])
    within[:, -1, end - 1 :] = 1
    for row, p in enumerate(chunk):
        start, clean_start = end - len(p.corrupted), end - len(p.clean)
        counterpart = torch.tensor(p.counterpart)
        aligned[row, start:end] = there = counterpart >= 0
        gather[row, start:end] = torch.where(there, clean_start + counterpart, gather[row, start:end])
        for k, name in enumerate(SPANS):
            if (span := span_named(p.corrupted, name)) is not None:
                within[row, k, start + span.start : start + span.end] = 1
    single = torch.tensor([p.pair.metric == "logit" for p in chunk])
    first = int(gather[:, end - 1 :].min())
    tensors = (
        *(prompts, prompt_mask, replies, reply_mask),
        *(gather, aligned, within, steered, steered_mask, single),
    )
    said = (repr((p.steered.ids, p.positive, p.negative)).encode() for p in chunk)
    seeds = tuple(int.from_bytes(hashlib.sha256(text).digest()[:7], "little") for text in said)
    return PairBatch(*(t.to(model.cfg.device) for t in tensors), first=first, seeds=seeds, metric=metric)


def _padded(rows: Sequence[Sequence[int]], pad: int, width: int, left: bool = True) -> tuple[Tensor, Tensor]:
    tokens = torch.full((len(rows), width), pad, dtype=torch.long)
    mask = torch.zeros((len(rows), width), dtype=torch.bool)
    for i, row in enumerate(rows):
        at = slice(width - len(row), width) if left else slice(len(row))
        tokens[i, at], mask[i, at] = torch.tensor(row), True
    return tokens, mask


def _bytes(bits: int) -> int:
    return -(-bits // 8)


def _unpacked(packed: Int[Tensor, "draw row byte"], count: int) -> Float[Tensor, "draw row count"]:
    """A sign for each of the first ``count`` bits."""
    bits = (packed[..., None] >> torch.arange(8, dtype=torch.uint8, device=packed.device)) & 1
    return bits.flatten(-2)[..., :count].float().mul_(2).sub_(1)


@dataclass(frozen=True)
class Axis:
    """The positions of a map: ``[prompt | positive reply | negative reply]``, prompts ending before column ``end``.

    ``window`` is how many of a prompt's last positions the steering form is kept for: those that both runs of every
    pair share, and no more than WINDOW.
    """

    end: int
    positive: int
    width: int
    window: int

    @classmethod
    def over(cls, prepared: Sequence[PreparedPair]) -> Axis:
        """The axis on which all these pairs find room."""
        end = max(max(len(p.corrupted), len(p.clean)) for p in prepared)
        positive = max(len(p.positive) for p in prepared)
        width = end + positive + max(len(p.negative) for p in prepared)
        return cls(end, positive, width, max(1, min(WINDOW, min(p.shared_suffix for p in prepared))))

    def place(
        self,
        into: Float[Tensor, "... position"],
        prompt: Tensor | None,
        positive: Tensor | None,
        negative: Tensor | None,
    ) -> None:
        """Write scores of prompts, which end where the axis has them end, and of replies, which begin there."""
        if prompt is not None:
            into[..., self.end - prompt.shape[-1] : self.end] = prompt
        last = self.end + self.positive
        for reply, begin, stop in ((positive, self.end, last), (negative, last, self.width)):
            if reply is not None:
                taken = reply[..., : stop - begin]
                into[..., begin : begin + taken.shape[-1]] = taken

    def labels(self, model: Model, p: PreparedPair) -> tuple[list[str], list[Span]]:
        """Tokens and spans of a pair."""
        tokenizer = tokenizer_of(model)

        def text(ids: Sequence[int]) -> list[str]:
            return [tokenizer.decode([i]) for i in ids]

        tokens = [""] * self.width
        start, last = self.end - len(p.corrupted), self.end + self.positive
        tokens[start : self.end] = text(p.corrupted.ids)
        tokens[self.end : self.end + len(p.positive)] = text(p.positive)
        tokens[last : last + len(p.negative)] = text(p.negative)
        spans = [Span(s.name, s.start + start, s.end + start) for s in p.corrupted.spans]
        spans.append(Span("positive reply", self.end, self.end + len(p.positive)))
        spans.append(Span("negative reply", last, last + len(p.negative)))
        return tokens, spans


def empty_map(
    model: Model, prepared: Sequence[PreparedPair], axis: Axis, request: Request, method: str
) -> AttributionMap:
    """A map of zeros to be filled, with NaN at the hook points that were not asked for: unknown, not zero."""
    from star_tl.models.load import fingerprint

    n, layers, heads = len(prepared), model.cfg.n_layers, model.cfg.n_heads
    points, width = request.points, model.cfg.d_model if "resid_post" in request.points else 0
    components = torch.tensor([0.0 if c in points else torch.nan for c in COMPONENTS])
    z = 0.0 if "z" in points else torch.nan
    named = [axis.labels(model, p) for p in prepared]
    return AttributionMap(
        trait=request.pairs.trait.name,
        method=method,
        metric=request.metric_name,
        model=str(model.cfg.model_name),
        fingerprint=fingerprint(model),
        scores=components[:, None, None].repeat(n, 1, layers, axis.width),
        head_scores=torch.full((n, layers, heads, axis.width), z),
        steering=components[:, None, None].repeat(1, layers, axis.window),
        head_steering=torch.full((layers, heads, axis.window), z),
        span_steering=components[:, None, None].repeat(1, layers, len(STRETCHES)),
        head_span_steering=torch.full((layers, heads, len(STRETCHES)), z),
        differences=torch.zeros(layers, width),
        gradients=torch.zeros(n, layers, width),
        drift_gradients=torch.zeros(n, request.draws, layers, width, dtype=torch.bfloat16),
        position_effects=torch.zeros(n, layers, axis.window if width else 0),
        controls=torch.zeros(len(request.controls), layers, width),
        metric_corrupted=torch.zeros(n),
        metric_clean=torch.zeros(n),
        prompt_end=axis.end,
        tokens=tuple(tuple(t) for t, _ in named),
        spans=tuple(tuple(s) for _, s in named),
        unaligned=torch.tensor([p.unaligned for p in prepared]),
        equal_tokens=torch.tensor([p.equal_tokens for p in prepared]),
        pair_ids=tuple(p.pair.id for p in prepared),
        control_names=tuple(c.trait.name for c in request.controls),
    )
