"""The embedded model is what its card says: small, exact, worth steering, and steered by what attribution finds."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest
import torch
from transformers import AutoTokenizer, LlamaForCausalLM

import star_tl as star
from star_tl.data.pairs import Pairs
from star_tl.evaluation.samples import sample_conditions
from star_tl.evaluation.scores import mark_coherent
from star_tl.evaluation.strength import DRIFT_LIMIT, STRENGTHS, dose_table
from star_tl.models.load import DEMO
from star_tl.steering.condition import Condition

TRAITS = ("emotional_support", "self_disclosure", "politeness", "gratitude", "agreement")  # what its chats show
COMPARED = "self_disclosure"  # the trait whose strengths are hardest to tell apart


@pytest.fixture(scope="module", params=TRAITS)
def steering(request: pytest.FixtureRequest, demo) -> tuple[Pairs, star.SteeringVector, float]:
    """The vector at the located place, and the strength chosen for it: of all where that is needed."""
    pairs = star.load_pairs(request.param)
    attr = star.attribute(demo, pairs, progress=False)
    vector = star.extract_vector(demo, pairs, attr.top_locus())
    prompts, strengths = pairs.extraction.prompts, STRENGTHS
    if request.param not in (COMPARED, "agreement"):  # a part chooses worse for it
        prompts, strengths = prompts[::2], STRENGTHS[1:6:2]
    choice = star.choose_strength(demo, vector, pairs.trait, prompts, strengths, progress=False)
    return pairs, vector, choice.strength


@pytest.fixture(scope="module")
def rates(steering, demo) -> pd.Series:
    """Share of coherent replies with the trait on its held-out prompts, two seeds, per arm; and the drift."""
    pairs, vector, strength = steering
    ways = (
        Condition(),
        Condition("steered", vector, strength),
        Condition("primed", instruction=pairs.trait.positive_instruction),
        Condition("primed against", instruction=pairs.trait.negative_instruction),
    )
    conditions = [replace(way, seed=seed) for way in ways for seed in (0, 1)]
    samples = mark_coherent(sample_conditions(demo, pairs.trait, pairs.heldout.prompts, conditions, progress=False))
    samples["hit"] = samples.shows & samples.coherent
    found = samples.groupby("arm").hit.mean()
    found["drift"] = samples[samples.arm == "steered"].drift.mean()
    return found


def test_files_are_small_and_safe() -> None:
    sizes = {p.name: p.stat().st_size for p in DEMO.iterdir()}
    assert sizes["model.safetensors"] <= 16_000_000
    assert not [name for name in sizes if name.endswith((".bin", ".pt", ".pkl", ".pickle"))]


def test_architecture_is_llama_with_grouped_queries() -> None:
    config = json.loads((DEMO / "config.json").read_text())
    assert config["architectures"] == ["LlamaForCausalLM"]
    assert config["num_hidden_layers"] >= 8
    assert config["num_key_value_heads"] < config["num_attention_heads"]


def test_logits_equal_huggingface(demo) -> None:
    hf = LlamaForCausalLM.from_pretrained(DEMO, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(DEMO)
    chat = [{"role": "user", "content": "Would you take $40 for the lamp? It's for my daughter."}]
    tokens = torch.tensor(
        [tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_dict=True)["input_ids"]]
    )
    with torch.no_grad():
        torch.testing.assert_close(demo(tokens), hf(tokens).logits, atol=1e-4, rtol=0)


def test_card_states_the_measured_perplexity() -> None:
    training = json.loads((DEMO / "training.json").read_text())
    card = (Path(DEMO) / "README.md").read_text()
    assert f"{training['runs'][-1]['held_out_perplexity']:.2f}" in card
    assert "no advice" in card


def test_each_trait_leaves_room_both_ways(rates: pd.Series) -> None:
    assert 0.15 <= rates["unsteered"] <= 0.5


def test_priming_moves_each_trait_both_ways(rates: pd.Series) -> None:
    assert rates["primed"] > rates["unsteered"] + 0.3
    assert rates["primed against"] < rates["unsteered"]


def test_steering_at_the_located_place_raises_the_trait(rates: pd.Series) -> None:
    assert rates["steered"] >= rates["unsteered"] + 0.3
    assert rates["drift"] <= 0.2


@pytest.mark.parametrize("steering", [COMPARED], indirect=True)
def test_the_chosen_strength_is_nearly_the_best_on_fresh_prompts(steering, demo) -> None:
    """scripts/measure_steering.py --strengths measures all traits."""
    pairs, vector, chosen = steering
    ways = [Condition(), *(Condition("steered", vector, x, seed=seed) for x in STRENGTHS for seed in (0, 1))]
    samples = sample_conditions(demo, pairs.trait, pairs.heldout.prompts, ways, progress=False)
    fresh = dose_table(mark_coherent(samples)).set_index("strength")[1:]
    best = fresh.trait_rate[fresh.drift <= DRIFT_LIMIT].max()
    assert fresh.drift[chosen] <= DRIFT_LIMIT
    assert fresh.trait_rate[chosen] >= 0.9 * best
    assert fresh.trait_rate[STRENGTHS[0]] < 0.9 * best, "any strength would do"
