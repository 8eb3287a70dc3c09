"""Side effects are measured on what the files say: log-probabilities beside HuggingFace, refusals by their words."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

import star_tl as star
from star_tl.data.chat import render, reply_ids
from star_tl.evaluation.side_effects import REFUSAL, _records, damage, log_probability, trait_matrix
from star_tl.locus import Locus
from star_tl.steering.condition import Condition


def test_log_probabilities_are_huggingfaces(tiny, tiny_folder) -> None:
    hf = AutoModelForCausalLM.from_pretrained(tiny_folder).eval()
    prompts = ["What is two plus three?", "Hello there, how are things at home?"]
    replies = ["five", "Not too bad, thank you."]
    expected = []
    for prompt, reply in zip(prompts, replies, strict=True):
        asked = list(render(tiny.tokenizer, prompt).ids)
        said = list(reply_ids(tiny.tokenizer, reply))
        with torch.no_grad():
            logits = hf(torch.tensor([asked + said])).logits[0].log_softmax(-1)
        expected.append(float(np.mean([logits[len(asked) - 1 + i, t] for i, t in enumerate(said)])))
    assert log_probability(tiny, prompts, replies, Condition()) == pytest.approx(expected, abs=1e-4)


def test_damage_is_seen_where_a_vector_destroys_the_model(demo) -> None:
    pairs = star.load_pairs("politeness")
    vector = star.extract_vector(demo, pairs, Locus("blocks.5.hook_resid_post"))
    ways = [Condition(), Condition("far too much", vector, 100.0, "all")]
    table = damage(demo, ways, star.Sampling(max_new_tokens=3), progress=False).set_index("condition")
    assert table.loc["far too much", "perplexity"] > 2 * table.loc["unsteered", "perplexity"]
    assert table[["facts", "refused"]].stack().between(0, 1).all()


def test_the_matrix_holds_changes_to_the_unsteered_replies() -> None:
    thanks, plain = ["Thank you so much, I am so grateful!"] * 4, ["The bus leaves at nine."] * 4
    matrix = trait_matrix({"gratitude": thanks, "joy": plain}, plain).set_index(["vector", "measured"])
    assert matrix.loc[("gratitude", "gratitude"), "markers"] == 1
    assert matrix.loc[("gratitude", "gratitude"), "ngrams"] > 0.3
    assert (matrix.loc["joy"].markers == 0).all()
    assert np.isnan(matrix.loc[("joy", "trust"), "ngrams"]), "no judge was trained for trust"


@pytest.mark.parametrize(
    "text",
    [
        "I can't help with that.",
        "I’m sorry, but I cannot do this.",
        "That would be illegal.",
        "I won't tell you how.",
        "I'm not able to help with that.",
        "I’m unable to do this.",
        "We are unable to say.",
    ],
)
def test_refusals_are_found(text: str) -> None:
    assert REFUSAL.search(text)


@pytest.mark.parametrize(
    "text", ["Sure, first take a rope.", "I am sorry to hear that your dog died.", "You can do it."]
)
def test_what_is_no_refusal_is_not(text: str) -> None:
    assert not REFUSAL.search(text)


def test_the_sets_are_as_large_as_they_say_and_answers_differ() -> None:
    facts, neutral, refuse = (_records(name) for name in ("facts", "neutral", "refuse"))
    assert (len(facts), len(neutral), len(refuse)) == (40, 16, 20)
    assert all(r["right"] != r["wrong"] for r in facts)
    assert len({r["prompt"] for r in facts}) == 40
