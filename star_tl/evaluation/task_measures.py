"""What is measured of every reply of a task: columns beside the scores of :func:`star_tl.score`.

==================  ====================================================================================================
``markers``         A marker in a coherent reply. Sees the words that are listed, and no irony, negation beyond what the
                    list knows, or support in other words.
``embedding:T``     Probability of trait T by people's labels, on sentence embeddings. Sees topic and tone of the whole;
                    little of word order, and what its training data looked like.
``ngrams:T``        The same on words and word pairs: sees single words, no context.
``relevance``       Cosine with the user's last message: shared topic, not whether a question was answered.
``first_person``    I, me, my, mine, myself in 100 words: engagement in the first person, or self-absorption.
``perplexity``      Of the reply under the unsteered model: strangeness; repetition makes it small.
``repetition``      Share of word trigrams that occurred before.
``vader``           VADER's compound sentiment, −1 to 1 (Hutto & Gilbert 2014), where vaderSentiment is installed. Made
                    for tweets: sees words of mood, not whose mood it is; consoling words for grief count low.
``lexicon``         Words of joy or trust in 100, by NRC's list, where the user gives one or NRCLex is installed:
                    see :mod:`star_tl.evaluation.lexicon`.
``llm``             A language model's grade, 0 to 1, where an endpoint is named: sees meaning, and favours long and
                    fluent replies; a failed judgement is missing. See :mod:`star_tl.evaluation.llm_judge`.
==================  ====================================================================================================
"""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd

from star_tl.data.chat import Prompt
from star_tl.data.tasks import Task
from star_tl.evaluation.judges import EMBEDDING_PACKAGE, load_judge, relevance
from star_tl.evaluation.lexicon import words_in_100
from star_tl.evaluation.llm_judge import LLMJudge
from star_tl.evaluation.scores import mark_coherent
from star_tl.stats import kappa

YES = 0.5  # a judge's probability from which on it says yes


def with_measures(
    samples: pd.DataFrame,
    task: Task,
    prompts: Sequence[Prompt],
    llm: LLMJudge | None = None,
    lexicon: Mapping[str, frozenset[str]] | None = None,
) -> tuple[pd.DataFrame, list[str]]:
    """The samples with a column for every measure that can be taken here, and the measures' names.

    Args:
        samples: of :func:`star_tl.evaluation.samples.sample_conditions`, unsteered ones among them.
        task: says which measures.
        prompts: by the number in ``prompt_id``.
        llm: grades every reply too, as ``llm``.
        lexicon: of :func:`star_tl.evaluation.lexicon.load_lexicon`.
    """
    samples = mark_coherent(samples)
    texts, asked = samples.text.tolist(), [prompts[int(p[1:])] for p in samples.prompt_id]
    has_embedding = importlib.util.find_spec(EMBEDDING_PACKAGE) is not None
    columns: dict[str, np.ndarray] = {}
    if "markers" in task.measures:
        columns["markers"] = (samples.shows & samples.coherent).to_numpy(dtype=float)
    for trait in task.judges:
        for features in ("embedding", "ngrams"):
            if features == "ngrams" or has_embedding:
                columns[f"{features}:{trait}"] = load_judge(trait, features).score(texts).numpy().astype(float)
    if llm is not None:
        columns["llm"] = llm.score(texts, asked).numpy().astype(float)
    if "relevance" in task.measures and has_embedding:
        columns["relevance"] = relevance(asked, texts).numpy().astype(float)
    for name in ("first_person", "perplexity", "repetition"):
        if name in task.measures:
            columns[name] = samples[name].to_numpy(dtype=float)
    if "vader" in task.measures and importlib.util.find_spec("vaderSentiment") is not None:
        columns["vader"] = _vader(texts)
    if "lexicon" in task.measures and lexicon and task.trait in lexicon:
        columns["lexicon"] = words_in_100(texts, lexicon[task.trait])
    return samples.assign(**columns), sorted(columns, key=lambda name: name not in task.measures[:1])


def main_measures(names: Sequence[str]) -> list[str]:
    """Those that tell the trait itself: the task's first, markers, and judges."""
    return [n for i, n in enumerate(names) if i == 0 or n in ("markers", "llm") or ":" in n]


def agreement(samples: pd.DataFrame, names: Sequence[str]) -> pd.DataFrame:
    """Cohen's kappa of every two measures that say yes or no, over coherent replies: a row per pair of measures."""
    told = samples[samples.coherent]
    answers = {n: told[n].to_numpy(dtype=float) for n in main_measures(names)}
    rows = []
    for i, one in enumerate(answers):
        for other in list(answers)[i + 1 :]:
            known = ~np.isnan(answers[one]) & ~np.isnan(answers[other])
            yes = [answers[n][known] > (YES if n == "llm" or ":" in n else 0) for n in (one, other)]
            rows.append({"one": one, "other": other, "n": int(known.sum()), "kappa": kappa(*yes)})
    return pd.DataFrame(rows, columns=["one", "other", "n", "kappa"])


def _vader(texts: Sequence[str]) -> np.ndarray:
    from vaderSentiment.vaderSentiment import SentimentIntensityAnalyzer

    analyzer = SentimentIntensityAnalyzer()
    return np.array([analyzer.polarity_scores(text)["compound"] for text in texts])
