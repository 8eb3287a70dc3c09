"""Contrastive pairs as token ids: clean and corrupted prompts, aligned token by token."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher

from star_tl.data.chat import Rendered, Span, render, reply_ids
from star_tl.data.pairs import ContrastivePair, Pairs
from star_tl.errors import StarError
from star_tl.models.backend import Model, tokenizer_of


@dataclass(frozen=True)
class PreparedPair:
    """One pair's token ids, and for every corrupted prompt token its clean counterpart or -1.

    ``steered`` is the context as it is when a vector takes the instruction's place: without one.
    """

    pair: ContrastivePair
    clean: Rendered
    corrupted: Rendered
    steered: Rendered
    positive: tuple[int, ...]
    negative: tuple[int, ...]
    counterpart: tuple[int, ...]

    @property
    def unaligned(self) -> float:
        """Share of the two prompts' tokens that have no counterpart."""
        # The first token may be left out of the differences, but where it is the same its difference is 0.
        matched = sum(c >= 0 for c in self.counterpart[1:]) + (self.clean.ids[0] == self.corrupted.ids[0])
        return 1 - 2 * matched / (len(self.clean) + len(self.corrupted))

    @property
    def equal_tokens(self) -> float:
        """Share of the tokens with a counterpart whose counterpart is the same token; NaN where none has one."""
        found = [(i, c) for i, c in enumerate(self.counterpart) if c >= 0]
        equal = sum(self.corrupted.ids[i] == self.clean.ids[c] for i, c in found)
        return equal / len(found) if found else float("nan")

    @property
    def shared_suffix(self) -> int:
        """Number of tokens at the end of the prompt that are the same in both runs."""
        n = 0
        for a, b in zip(reversed(self.clean.ids), reversed(self.corrupted.ids), strict=False):
            if a != b:
                break
            n += 1
        return n


ALIGNMENTS = ("spans", "right", "strict")


def prepare(model: Model, pairs: Pairs, alignment: str = "spans") -> list[PreparedPair]:
    """Tokenize every pair and align its clean and corrupted prompt.

    Args:
        model: only its tokenizer and the length of its context are used.
        pairs: the pairs to prepare.
        alignment: ``"spans"`` aligns the same turns of the chat, in each the common beginning and the common tokens,
            and what was put in the place of equally many others; ``"right"`` the whole prompts from their ends,
            whatever the turns; ``"strict"`` token by token, lengths must be equal.

    Raises:
        StarError: a prompt with its reply is longer than the model's context, a ``logit`` pair has replies of several
            tokens, or lengths differ under strict alignment.
    """
    prepared = []
    for pair in pairs:
        clean = render(tokenizer_of(model), pairs.clean_prompt(pair))
        corrupted = render(tokenizer_of(model), pairs.corrupted_prompt(pair))
        positive, negative = (
            reply_ids(tokenizer_of(model), pair.positive),
            reply_ids(tokenizer_of(model), pair.negative),
        )
        if pair.metric == "logit" and (len(positive) != 1 or len(negative) != 1):
            raise StarError(
                f"pair {pair.id!r} has metric 'logit' and replies of {len(positive)} and {len(negative)} tokens: "
                "use one token each."
            )
        if alignment == "strict" and len(clean) != len(corrupted):
            raise StarError(
                f"pair {pair.id!r} has a clean prompt of {len(clean)} tokens and a corrupted one of {len(corrupted)}: "
                "make them equal or use alignment='spans'."
            )
        counterpart = _align(clean, corrupted) if alignment == "spans" else _align_right(len(clean), len(corrupted))
        steered = render(tokenizer_of(model), pair.context)
        longest = max(map(len, (clean, corrupted, steered))) + max(len(positive), len(negative))
        if longest > model.cfg.n_ctx:
            raise StarError(
                f"pair {pair.id!r} has a prompt and a reply of {longest} tokens together and the model's context is "
                f"{model.cfg.n_ctx}: shorten it."
            )
        prepared.append(PreparedPair(pair, clean, corrupted, steered, positive, negative, counterpart))
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
        start, other_start = span.start + (span.start == 0), other.start + (other.start == 0)
        ours, theirs_ids = corrupted.ids[start : span.end], clean.ids[other_start : other.end]
        for i, j in corresponding(ours, theirs_ids):
            counterpart[start + i] = other_start + j
    return tuple(counterpart)


def corresponding(ours: Sequence[int], theirs: Sequence[int]) -> list[tuple[int, int]]:
    """Positions of two texts that correspond: the common beginning and end, then the longest common stretches.

    Between two of these, tokens correspond where there are equally many on both sides: one word put in another's
    place. Where their numbers differ nothing says which belongs to which.
    """
    start = _common(ours, theirs)
    end = _common(ours[start:][::-1], theirs[start:][::-1])
    ours_inner, theirs_inner = ours[start : len(ours) - end], theirs[start : len(theirs) - end]
    found = [(i, i) for i in range(start)]
    blocks = SequenceMatcher(None, ours_inner, theirs_inner, autojunk=False).get_opcodes()
    for _, i, i_end, j, j_end in blocks:
        if i_end - i == j_end - j:
            found += zip(range(start + i, start + i_end), range(start + j, start + j_end), strict=True)
    return found + [(len(ours) - k, len(theirs) - k) for k in range(end, 0, -1)]


def _common(ours: Sequence[int], theirs: Sequence[int]) -> int:
    return next((k for k, (a, b) in enumerate(zip(ours, theirs, strict=False)) if a != b), min(len(ours), len(theirs)))


def _align_right(clean: int, corrupted: int) -> tuple[int, ...]:
    """The same distance from the end; the first token (BOS) only with itself."""
    shift = clean - corrupted
    return tuple(i + shift if i + shift > 0 and i > 0 else 0 if i == shift == 0 else -1 for i in range(corrupted))


def _by_turn(prompt: Rendered) -> dict[tuple[str, int], Span]:
    """Spans by role and turn, counted from the end: the last turns of two prompts correspond."""
    counts: Counter[str] = Counter()
    turns = {}
    for span in reversed(prompt.spans):
        role = span.name.split()[0]
        counts[role] += 1
        turns[role, counts[role]] = span
    return turns
