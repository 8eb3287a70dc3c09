"""Measures: how they combine, what they are made of, and that a reply without content earns nothing, wherever asked."""

from __future__ import annotations

import dataclasses

import numpy as np
import pandas as pd
import pytest
import torch

import star_tl as star
from star_tl.data.tasks import load_task
from star_tl.evaluation import measures
from star_tl.evaluation.judges import LABELS
from star_tl.evaluation.llm_judge import LLMJudge

PAIRS = star.load_pairs("gratitude")
TASK = dataclasses.replace(load_task("joy"), judges=("gratitude",), measures=("markers", "relevance", "perplexity"))


def sighs(prompts: object, text: str) -> float:
    return float(text.count("a"))


def test_measures_multiply_add_and_remember_what_they_are_made_of() -> None:
    kind, blunt = "Thank you so much!", "No."
    shown, judged = measures.markers(PAIRS.trait), measures.judge("gratitude", "ngrams")
    both = 0.5 * (shown * judged) + judged
    prompts = ["Here is your book."] * 2
    values = both(prompts, [kind, blunt])
    single = judged(prompts, [kind, blunt])
    torch.testing.assert_close(values, torch.stack([0.5 * single[0] + single[0], single[1]]))
    assert both.parts == {"markers", "word judge"}
    assert both.name == "0.5 × markers × word judge + word judge"
    assert (judged * (shown + judged)).name == "word judge × (markers + word judge)"
    assert single[0] > single[1]


def test_an_empty_reply_earns_nothing() -> None:
    for measure in measures.measures_of(PAIRS.trait):
        assert measure(["Here is your book."], [" "]).tolist() == [0.0], measure.name


def test_a_reward_is_tested_by_what_it_did_not_see() -> None:
    trait = PAIRS.trait
    assert measures.reward_of(trait).parts == {"embedding judge", "relevance"}
    assert measures.reward_of(trait).name == "embedding judge × relevance up to 0.3"
    assert [m.name for m in measures.unseen_by(measures.reward_of(trait), trait)] == ["word judge", "markers"]
    assert [m.name for m in measures.unseen_by(measures.markers(trait), trait)] == ["embedding judge", "word judge"]
    assert [m.name for m in measures.unseen_by(sighs, trait)] == ["embedding judge", "word judge", "markers"]
    trust = star.load_pairs("trust").trait
    assert "trust" not in LABELS
    assert measures.reward_of(trust).name == "markers"


def test_without_the_embedding_model_the_word_judge_pays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measures.judges, "EMBEDDING_PACKAGE", "not_installed_here")
    assert measures.reward_of(PAIRS.trait).name == "word judge"
    assert [m.name for m in measures.measures_of(PAIRS.trait)] == ["word judge", "markers"]


def test_openings_are_counted() -> None:
    texts = ["Thank you so much.", "thank you so kindly", "No, thank you.", "Yes."]
    assert measures.commonest_opening(texts) == 0.5
    assert measures.common_opening()([""] * 4, texts).tolist() == [0.5, 0.5, 0.25, 0.25]


def scored(texts: list[str], **columns: list[object]) -> pd.DataFrame:
    """Samples of unsteered replies to three prompts, as they come of scoring."""
    frame = pd.DataFrame({"prompt_id": [f"p{i:03d}" for i in range(3)], "arm": "unsteered", "text": texts})
    found = [PAIRS.trait.shown_in(text) for text in texts]
    logprob = [float("nan") if not text.strip() else -1.0 for text in texts]
    return frame.assign(shows=found, logprob=logprob, perplexity=np.exp(-np.array(logprob)), **columns)


def test_a_tasks_measures_are_those_that_rewards_are_made_of(monkeypatch: pytest.MonkeyPatch) -> None:
    """And an empty reply is 0 in both, not left out: silence would else look as good as the replies that are left."""
    texts, prompts = ["Thank you so much!", "", "No."], ["Here is your book."] * 3
    graded = torch.tensor([0.9, torch.nan, torch.nan])  # the last judgement failed
    monkeypatch.setattr(LLMJudge, "score", lambda self, texts, prompts: graded)
    llm = LLMJudge(PAIRS.trait, "http://localhost:1/v1", "judge")
    frame, names = measures.with_measures(scored(texts), TASK, prompts, llm)
    assert names == ["markers", "embedding:gratitude", "ngrams:gratitude", "llm", "relevance", "perplexity"]
    known = {m.name: m(prompts, texts).tolist() for m in measures.measures_of(PAIRS.trait)}
    assert frame["embedding:gratitude"].tolist() == known["embedding judge"]
    assert frame["ngrams:gratitude"].tolist() == known["word judge"]
    assert frame.relevance.tolist() == known["relevance"]
    assert frame.markers.tolist() == [1.0, 0.0, 0.0]
    said = ["markers", "embedding:gratitude", "ngrams:gratitude", "llm", "relevance"]
    assert frame.loc[1, said].tolist() == [0.0] * 5
    assert np.isnan(frame.llm[2]), "a failed judgement says nothing of the reply"
    assert np.isnan(frame.perplexity[1]), "there is no text to be strange"


def test_a_judge_says_yes_from_a_half_on_and_markers_from_the_first() -> None:
    samples = pd.DataFrame({"markers": [1.0] * 5 + [0.0] * 5, "llm": [0.5] * 5 + [0.4] * 5, "coherent": True})
    assert measures.agreement(samples, ["markers", "llm"]).kappa.tolist() == [1.0]


def test_a_measure_of_another_length_is_refused() -> None:
    short = measures.Measure("short", frozenset(), lambda prompts, texts: torch.zeros(1))
    with pytest.raises(star.StarError, match="'short' gave 1 numbers for 3 replies"):
        measures.measured(scored(["a", "b", "c"]), ["Hi."] * 3, [short])
