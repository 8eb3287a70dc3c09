"""What can be said of a reply: a number to be paid for (a reward), or one to test what was paid for.

A claim never rests on what was paid: beside the reward stands a measure that it did not see (:func:`unseen_by`).
"""

from __future__ import annotations

import importlib.util
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar

import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from star_tl.data.chat import Prompt
from star_tl.data.pairs import Trait
from star_tl.errors import StarError
from star_tl.evaluation import judges

OPENING = 3  # words
# Cosine from which on a reply is relevant enough: about what unsteered replies have. Paid without a bound, relevance is
# raised in the trait's place, for it has more room to grow than a judge's score.
ENOUGH = 0.3


@dataclass(frozen=True, eq=False)
class Measure:
    """A finite number for every reply, from the prompts and the texts; a reward of :func:`star_tl.attribute_outcome`.

    Measures multiply with each other and with numbers, and add up. ``parts`` names what one is made of, so that it can
    be told whether another has seen the same.
    """

    name: str
    parts: frozenset[str]
    function: Callable[[Sequence[Prompt], Sequence[str]], Float[Tensor, " reply"]]
    batched: ClassVar[bool] = True

    @property
    def __name__(self) -> str:
        return self.name

    def __call__(self, prompts: Sequence[Prompt], texts: Sequence[str]) -> Float[Tensor, " reply"]:
        return self.function(prompts, texts).double()

    def __mul__(self, other: Measure | float) -> Measure:
        if isinstance(other, Measure):
            name = f"{_bracketed(self.name)} × {_bracketed(other.name)}"
            return Measure(name, self.parts | other.parts, lambda p, t: self(p, t) * other(p, t))
        factor = float(other)
        return Measure(f"{factor:g} × {_bracketed(self.name)}", self.parts, lambda p, t: factor * self(p, t))

    __rmul__ = __mul__

    def __add__(self, other: Measure) -> Measure:
        return Measure(f"{self.name} + {other.name}", self.parts | other.parts, lambda p, t: self(p, t) + other(p, t))

    def __sub__(self, other: Measure) -> Measure:
        return Measure(
            f"{self.name} − {_bracketed(other.name)}", self.parts | other.parts, lambda p, t: self(p, t) - other(p, t)
        )

    def __repr__(self) -> str:
        return f"Measure({self.name})"


def _bracketed(name: str) -> str:
    return f"({name})" if " + " in name or " − " in name else name


def markers(trait: Trait) -> Measure:
    """1 where a reply shows one of the trait's markers, else 0."""

    def shown(prompts: Sequence[Prompt], texts: Sequence[str]) -> Tensor:
        return torch.tensor([float(trait.shown_in(text)) for text in texts])

    return Measure("markers", frozenset({"markers"}), shown)


def judge(trait: str, features: str = "embedding") -> Measure:
    """A trained judge's score, 0 to 1, and 0 for a reply without content; see :mod:`star_tl.evaluation.judges`.

    Raises:
        StarError: there is no judge of this trait or of these features.
    """
    judge = judges.load_judge(trait, features)
    name = "embedding judge" if features == "embedding" else "word judge"
    return Measure(name, frozenset({name}), lambda prompts, texts: judge.score(texts).nan_to_num(0.0))


def relevance(enough: float | None = None) -> Measure:
    """Cosine between the embeddings of a reply and of what it answers, 0 where it is negative or the reply empty.

    Args:
        enough: from here on more relevance counts no more: the measure is the share of it that is reached.
    """

    def cosine(prompts: Sequence[Prompt], texts: Sequence[str]) -> Tensor:
        found = judges.relevance(prompts, texts).nan_to_num(0.0).clamp_min(0.0)
        return found if enough is None else found.clamp_max(enough) / enough

    name = "relevance" if enough is None else f"relevance up to {enough:g}"
    return Measure(name, frozenset({"relevance"}), cosine)


def common_opening() -> Measure:
    """The share of the replies that are looked at together which begin with the same three words: to charge for."""

    def shares(prompts: Sequence[Prompt], texts: Sequence[str]) -> Tensor:
        openings = [opening(text) for text in texts]
        count = Counter(openings)
        return torch.tensor([count[o] / len(texts) for o in openings], dtype=torch.float64)

    return Measure("common opening", frozenset({"common opening"}), shares)


def opening(text: str) -> str:
    """The first three words."""
    return " ".join(text.split()[:OPENING]).lower()


def commonest_opening(texts: Sequence[str]) -> float:
    """Share of the replies that begin with the commonest three words."""
    return Counter(opening(text) for text in texts).most_common(1)[0][1] / len(texts) if len(texts) else 0.0


def measures_of(trait: Trait) -> tuple[Measure, ...]:
    """All that can be asked here of a reply for this trait: judges where some were trained, relevance, markers.

    The embedding judge and relevance are left out where the extra ``star_tl[judges]`` is not installed.
    """
    embeds = importlib.util.find_spec(judges.EMBEDDING_PACKAGE) is not None
    judged = [
        judge(trait.name, f) for f in judges.FEATURES if trait.name in judges.LABELS and (embeds or f == "ngrams")
    ]
    return (*judged, *([relevance()] if embeds else []), markers(trait))


def reward_of(trait: Trait) -> Measure:
    """What is paid by default: judge × relevance, up to ENOUGH, where a judge exists, and markers where none does."""
    known = {m.name: m for m in measures_of(trait)}
    if "embedding judge" in known:
        return known["embedding judge"] * relevance(ENOUGH)
    return known.get("word judge", known["markers"])


def unseen_by(reward: object, trait: Trait) -> tuple[Measure, ...]:
    """Measures of the trait that a reward is not made of; relevance, which knows no trait, is none of them."""
    seen = reward.parts if isinstance(reward, Measure) else frozenset()
    return tuple(m for m in measures_of(trait) if m.name != "relevance" and not m.parts & seen)


def measured(samples: pd.DataFrame, prompts: Sequence[Prompt], measures: Sequence[Measure]) -> pd.DataFrame:
    """The samples of :func:`star_tl.evaluation.samples.sample_conditions` with a column for every measure.

    Raises:
        StarError: a measure gave another number of values than there are replies.
    """
    asked = [prompts[int(name[1:])] for name in samples.prompt_id]
    columns = {}
    for measure in measures:
        values = measure(asked, list(samples.text))
        if len(values) != len(samples):
            raise StarError(f"The measure {measure.name!r} gave {len(values)} numbers for {len(samples)} replies.")
        columns[measure.name] = values.numpy()
    return samples.assign(**columns)
