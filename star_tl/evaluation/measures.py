"""What can be said of a reply: a number to be paid for (a reward), to test what was paid for, or to evaluate a task.

A claim never rests on what was paid: beside the reward stands a measure that it did not see (:func:`unseen_by`).

A reply without content shows nothing: every measure of what it says is 0 there. Left out as a missing value, it would
make steering that silences a model look as good as the replies that are left.

=====================  =================================================================================================
markers                A marker in the reply. Sees the words that are listed, and no irony, negation beyond what the
                       list knows, or support in other words.
embedding judge        Probability of the trait by people's labels, on sentence embeddings. Sees topic and tone of the
                       whole; little of word order, and what its training data looked like.
word judge             The same on words and word pairs: sees single words, no context.
LLM judge              A language model's grade, 0 to 1, where an endpoint is named: sees meaning, and favours long and
                       fluent replies; a failed judgement is missing. See :mod:`star_tl.evaluation.llm_judge`.
lexicon                Words of joy or trust in 100, by NRC's list, where the user gives one or NRCLex is installed: see
                       :mod:`star_tl.evaluation.lexicon`.
relevance              Cosine with the user's last message: shared topic, not whether a question was answered.
VADER                  Compound sentiment, −1 to 1 (Hutto & Gilbert 2014), where vaderSentiment is installed. Made for
                       tweets: sees words of mood, not whose mood it is; consoling words for grief count low.
=====================  =================================================================================================

:func:`with_measures` gives a task's their columns, beside those of :func:`star_tl.score`: ``first_person`` (I, me, my,
mine, myself in 100 words: engagement in the first person, or self-absorption), ``perplexity`` (of the reply under the
unsteered model: strangeness; repetition makes it small) and ``repetition``.
"""

from __future__ import annotations

import importlib.util
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from star_tl.data.chat import Prompt
from star_tl.data.pairs import Trait
from star_tl.data.tasks import Task
from star_tl.errors import StarError
from star_tl.evaluation import judges
from star_tl.evaluation.lexicon import words_in_100
from star_tl.evaluation.llm_judge import LLMJudge
from star_tl.evaluation.scores import mark_coherent
from star_tl.stats import kappa

OPENING = 3  # words
# Cosine from which on a reply is relevant enough: about what unsteered replies have. Paid without a bound, relevance is
# raised in the trait's place, for it has more room to grow than a judge's score.
ENOUGH = 0.3
YES = 0.5  # a judge's probability from which on it says yes


@dataclass(frozen=True, eq=False)
class Measure:
    """A number for every reply, from the prompts and the texts; where finite, a reward of
    :func:`star_tl.attribute_outcome`.

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
    return Measure(name, frozenset({name}), lambda prompts, texts: _content_only(texts, judge.score(texts)))


def llm_judge(judge: LLMJudge) -> Measure:
    """A language model's grades; NaN where a judgement failed, which says nothing of the reply."""
    return Measure("LLM judge", frozenset({"LLM judge"}), lambda p, t: _content_only(t, judge.score(t, p)))


def vader() -> Measure:
    """VADER's compound sentiment.

    Raises:
        ModuleNotFoundError: vaderSentiment is not installed.
    """
    from vaderSentiment.vaderSentiment import SentimentIntensityAnalyzer

    analyzer = SentimentIntensityAnalyzer()

    def compound(prompts: Sequence[Prompt], texts: Sequence[str]) -> Tensor:
        return torch.tensor([analyzer.polarity_scores(text)["compound"] for text in texts], dtype=torch.float64)

    return Measure("VADER", frozenset({"VADER"}), compound)


def lexicon_words(words: frozenset[str]) -> Measure:
    """How many in 100 words of a reply are among these."""

    def share(prompts: Sequence[Prompt], texts: Sequence[str]) -> Tensor:
        return torch.from_numpy(words_in_100(texts, words)).nan_to_num(0.0)

    return Measure("lexicon", frozenset({"lexicon"}), share)


def _content_only(texts: Sequence[str], values: Float[Tensor, " reply"]) -> Float[Tensor, " reply"]:
    """0 for replies without content."""
    return values.masked_fill(torch.tensor([not text.strip() for text in texts], dtype=torch.bool), 0.0)


def relevance(enough: float | None = None) -> Measure:
    """Cosine between the embeddings of a reply and of what it answers, 0 where it is negative or the reply empty.

    Args:
        enough: from here on more relevance counts no more: the measure is the share of it that is reached.
    """

    def cosine(prompts: Sequence[Prompt], texts: Sequence[str]) -> Tensor:
        found = judges.relevance(prompts, texts).nan_to_num(0.0).clamp_min(0.0)  # NaN where nothing was asked, too
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


def with_measures(
    samples: pd.DataFrame,
    task: Task,
    prompts: Sequence[Prompt],
    llm: LLMJudge | None = None,
    lexicon: Mapping[str, frozenset[str]] | None = None,
) -> tuple[pd.DataFrame, list[str]]:
    """The samples with a column for every measure of a task that can be taken here, and the columns' names.

    Those of judges are called ``embedding:TRAIT`` and ``ngrams:TRAIT``; ``markers`` are those of coherent replies.

    Args:
        samples: of :func:`star_tl.evaluation.samples.sample_conditions`, unsteered ones among them.
        task: says which measures.
        prompts: by the number in ``prompt_id``.
        llm: grades every reply too, as ``llm``.
        lexicon: of :func:`star_tl.evaluation.lexicon.load_lexicon`.
    """
    samples = mark_coherent(samples)
    has_embedding = importlib.util.find_spec(judges.EMBEDDING_PACKAGE) is not None
    told = {"markers": (samples.shows & samples.coherent).astype(float)} if "markers" in task.measures else {}
    asked = [
        replace(judge(trait, features), name=f"{features}:{trait}")
        for trait in task.judges
        for features in judges.FEATURES
        if features == "ngrams" or has_embedding
    ]
    asked += [replace(llm_judge(llm), name="llm")] if llm is not None else []
    asked += [relevance()] if "relevance" in task.measures and has_embedding else []
    scored = [name for name in ("first_person", "perplexity", "repetition") if name in task.measures]
    mood = "vader" in task.measures and importlib.util.find_spec("vaderSentiment") is not None
    last = [replace(vader(), name="vader")] if mood else []
    if "lexicon" in task.measures and lexicon and task.trait in lexicon:
        last.append(lexicon_words(lexicon[task.trait]))
    names = [*told, *(m.name for m in asked), *scored, *(m.name for m in last)]
    first = sorted(names, key=lambda name: name not in task.measures[:1])
    return measured(samples.assign(**told), prompts, [*asked, *last]), first


def main_measures(names: Sequence[str]) -> list[str]:
    """Those columns that tell the trait itself: the task's first, markers, and judges."""
    return [n for i, n in enumerate(names) if i == 0 or n in ("markers", "llm") or ":" in n]


def _says_yes(measure: str, scores: np.ndarray) -> np.ndarray:
    return scores >= YES if measure == "llm" or ":" in measure else scores > 0


def agreement(samples: pd.DataFrame, names: Sequence[str]) -> pd.DataFrame:
    """Cohen's kappa of every two measures that say yes or no, over coherent replies: a row per pair of measures."""
    told = samples[samples.coherent]
    answers = {n: told[n].to_numpy(dtype=float) for n in main_measures(names)}
    rows = []
    for i, one in enumerate(answers):
        for other in list(answers)[i + 1 :]:
            known = ~np.isnan(answers[one]) & ~np.isnan(answers[other])
            yes = [_says_yes(n, answers[n][known]) for n in (one, other)]
            rows.append({"one": one, "other": other, "n": int(known.sum()), "kappa": kappa(*yes)})
    return pd.DataFrame(rows, columns=["one", "other", "n", "kappa"])
