"""What a card shows of its replies: text cut at tokens and markers, how far each token is from the unsteered model."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import TypedDict, cast

import torch
from torch import Tensor
from typing_extensions import Required

from star_tl.data.chat import Prompt, render
from star_tl.data.pairs import Trait
from star_tl.data.tokenizer import Tokenizer
from star_tl.generation.likelihood import kl_per_token, reply_logits, reply_logprobs
from star_tl.generation.writing import Reply
from star_tl.locus import NamedHook
from star_tl.models.backend import Model, tokenizer_of
from star_tl.models.batch import make_batch
from star_tl.view.explorer.ways import Way, place_words

Piece = tuple[str, float | None, str]  # text, drift in nats, what the unsteered model would have written
LIKELY = 3  # tokens that are named as what the unsteered model would have written


class Segment(TypedDict):
    """A part of a reply's text that lies within one token and is all marker or none."""

    text: str
    marked: bool
    drift: float | None
    why: str


class Run(TypedDict, total=False):
    """A reply on a card; ``drift`` and ``logprob``, nats a token, once they are measured."""

    seed: Required[int]
    segments: Required[list[Segment]]
    markers: Required[int]
    writing: Required[bool]
    drift: float
    logprob: float


class Card(TypedDict):
    """A way to steer, and its replies."""

    key: str
    name: str
    title: str
    strength: float | None
    runs: list[Run]


def run_of(
    trait: Trait,
    reply: Reply,
    seed: int,
    found: tuple[list[Piece], float, float] | None = None,
    writing: bool = False,
) -> Run:
    """A reply for its card; ``found`` is what :func:`measured` says of it."""
    pieces, drift, logprob = found if found is not None else ([(reply.text, None, "")], None, None)
    going = writing and not reply.stopped
    parts, markers = segments(trait, pieces), len(trait.find(reply.text))
    known = {"drift": drift, "logprob": logprob} if found is not None else {}
    return cast(Run, {"seed": seed, "segments": parts, "markers": markers, "writing": going, **known})


def cards(ways: Sequence[Way], runs: Sequence[Sequence[Run]], now: Sequence[Run] = ()) -> list[Card]:
    """A card a way, with the replies that are written and the one that is being written."""
    return [
        {
            "key": way.key,
            "name": way.name,
            "title": way.title or place_words(way.name),
            "strength": way.strength,
            "runs": [*before, *now[i : i + 1]],
        }
        for i, (way, before) in enumerate(zip(ways, runs, strict=True))
    ]


def text_of(card: Card) -> str:
    """The first reply of a card."""
    return "".join(part["text"] for part in card["runs"][0]["segments"]) if card["runs"] else ""


def segments(trait: Trait, pieces: Sequence[Piece]) -> list[Segment]:
    """The text cut where a token or a trait marker begins or ends, each part with its token's drift."""
    text = "".join(piece for piece, _, _ in pieces)
    marks = trait.find(text)
    cuts, of, at = {0, len(text), *(c for m in marks for c in m)}, {}, 0
    for piece, drift, why in pieces:
        of |= dict.fromkeys(range(at, at + len(piece)), (drift, why))
        at += len(piece)
        cuts.add(at)
    return [
        {"text": text[a:b], "marked": any(x <= a < y for x, y in marks), "drift": of[a][0], "why": of[a][1]}
        for a, b in itertools.pairwise(sorted(cuts))
    ]


def token_pieces(tokenizer: Tokenizer, reply: Reply, drift: Sequence[float], why: Sequence[str] = ()) -> list[Piece]:
    """The reply's text token by token with each token's drift; tokens that are part of a character stay together."""
    pieces: list[Piece] = []
    done, waiting = "", (0.0, "")
    for i, value in enumerate(drift[: len(reply.tokens)], start=1):
        waiting = max(waiting, (value, why[i - 1] if why else ""))
        text = tokenizer.decode(reply.tokens[:i], skip_special_tokens=True).lstrip()
        if len(text) > len(done) and reply.text.startswith(text):
            pieces.append((text[len(done) :], *waiting))
            done, waiting = text, (0.0, "")
    return [*pieces, (reply.text[len(done) :], None, "")] if len(done) < len(reply.text) else pieces


@torch.no_grad()
def measured(
    model: Model, prompt: Prompt, reply: Reply, hooks: Sequence[NamedHook]
) -> tuple[list[Piece], float, float]:
    """The reply's pieces, its mean drift, and its mean log-probability under the unsteered model, nats a token.

    ``hooks`` are those that it was written with, made for a prompt of this length.
    """
    batch = make_batch(model, [render(tokenizer_of(model), prompt).ids], [reply.tokens or (0,)])
    base = reply_logits(model, batch)
    kl = kl_per_token(reply_logits(model, batch, hooks), base)[0].cpu() if hooks else torch.zeros(base.shape[1])
    pieces = token_pieces(tokenizer_of(model), reply, kl.tolist(), _likely(tokenizer_of(model), base[0]))
    return pieces, float(kl.mean()), float(reply_logprobs(base, batch).mean())


def _likely(tokenizer: Tokenizer, logits: Tensor) -> list[str]:
    """Per token of the reply the likeliest ones of the unsteered model, with their probability."""
    p, ids = logits.softmax(-1).topk(LIKELY, dim=-1)
    return [
        ", ".join(f"{tokenizer.decode([i])!r} {q:.0%}" for i, q in zip(row, share, strict=True))
        for row, share in zip(ids.tolist(), p.tolist(), strict=True)
    ]
