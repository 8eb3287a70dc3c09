"""Small made-up results: what the figures and the report are tested on, without a model."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pandas as pd
import torch

from star_tl.attribution.map import AttributionMap
from star_tl.attribution.outcome import OutcomeMap
from star_tl.data.chat import Span
from star_tl.data.tasks import load_task
from star_tl.evaluation.effects import effects, pool_random
from star_tl.evaluation.evaluated import Evaluation
from star_tl.evaluation.measures import agreement
from star_tl.generation.settings import Sampling
from star_tl.locus import COMPONENTS, Locus
from star_tl.vectors import SteeringVector

SCRIPT = "I am <script>document.title='broken'</script> sorry </script> & glad"
PROMPT = ["<|begin_of_text|>", "<|start|>", "user", "I", " feel", " <b>low</b>", "$", "$", "<|eot_id|>"]
PROMPT += ["<|start|>", "assistant", "\n\n"]


def attribution(n_pairs: int = 12, layers: int = 8, heads: int = 6, peak: int = 5, seed: int = 0) -> AttributionMap:
    """A map whose layer ``peak`` writes and gains most, at the last prompt token; prompts differ in length."""
    generator = torch.Generator().manual_seed(seed)

    def noise(*shape: int) -> torch.Tensor:
        return 0.002 * torch.randn(*shape, generator=generator)

    end, reply, window = len(PROMPT) + 2, 4, 6
    scores = noise(n_pairs, len(COMPONENTS), layers, end + 2 * reply)
    writes = [COMPONENTS.index(c) for c in ("attn_out", "mlp_out")]
    scores[:, writes, peak, end - 1] += torch.tensor([0.05, 0.03])
    for k in range(3):
        scores[:, k, :, end - 1] += 0.02 * torch.arange(layers)
    head_scores = noise(n_pairs, layers, heads, end + 2 * reply)
    head_scores[:, peak, 2, end - 1] += 0.06
    tokens, spans = [], []
    for i in range(n_pairs):
        lead = ["", ""][: i % 3] + ["", ""][i % 3 :]
        row = [*lead, *PROMPT, "So", " sorry", ".", "", "No", ".", "", ""]
        row[6] = f" word{i}"
        row[end - 6] = f" {i}"
        tokens.append(tuple(row))
        spans.append(
            (
                Span("system", 2, 3),
                Span("user 1", 3, end - 3),
                Span("header", end - 3, end),
                Span("positive reply", end, end + 3),
                Span("negative reply", end + reply, end + reply + 2),
            )
        )
    effects = noise(n_pairs, layers) + 0.005 * torch.arange(layers)
    effects[:, peak] += 0.05
    directions, gradients, drift = priced(effects, 0.1 + noise(n_pairs, layers).abs())
    steering = scores.mean(0)[..., end - window : end].contiguous()
    return AttributionMap(
        trait="emotional_support",
        method="atp",
        metric="",
        model="tiny",
        fingerprint="0",
        scores=scores,
        head_scores=head_scores,
        steering=steering,
        head_steering=head_scores.mean(0)[..., end - window : end].contiguous(),
        span_steering=steering[..., -4:].contiguous(),
        head_span_steering=head_scores.mean(0)[..., end - 4 : end].contiguous(),
        differences=directions,
        gradients=gradients,
        drift_gradients=drift,
        position_effects=scores[:, COMPONENTS.index("resid_post"), :, end - window : end].contiguous(),
        controls=torch.zeros(0, layers, directions.shape[-1]),
        metric_corrupted=torch.full((n_pairs,), -0.2),
        metric_clean=torch.full((n_pairs,), 0.3),
        prompt_end=end,
        tokens=tuple(tokens),
        spans=tuple(spans),
        unaligned=torch.zeros(n_pairs),
        equal_tokens=torch.ones(n_pairs),
        pair_ids=tuple(f"es-{i:03d}" for i in range(n_pairs)),
    )


def priced(effects: torch.Tensor, costs: torch.Tensor, width: int = 64) -> tuple[torch.Tensor, ...]:
    """Directions ``[layer d]``, gradients and gradients of drift whose effects and costs are these, ``[pair layer]``.

    All layers have one direction, the gradients are along it, and drift costs the same in every direction.
    """
    n, layers = effects.shape
    directions, gradients = torch.zeros(layers, width), torch.zeros(n, layers, width)
    directions[:, 0], gradients[..., 0] = 1, effects
    drift = (width * costs).sqrt()[:, None, :, None] * torch.eye(width)[None, :, None]
    return directions, gradients, drift


def outcome(replies: int = 48, prompts: int = 12, layers: int = 5, heads: int = 4, peak: int = 3) -> OutcomeMap:
    """An outcome map whose layer ``peak`` raises the reward most."""
    generator = torch.Generator().manual_seed(0)
    rewards = torch.randn(replies, generator=generator).double()
    residual = torch.randn(layers, 4, replies, 8, dtype=torch.float64, generator=generator)
    residual[peak] += rewards[:, None]
    z = torch.randn(layers, 4, replies, heads, 2, dtype=torch.float64, generator=generator)
    return OutcomeMap(
        reward="kind <words>",
        model="tiny",
        fingerprint="0",
        template="0",
        sampling=Sampling(max_new_tokens=3),
        seed=0,
        budget=replies,
        prompts=(({"role": "user", "content": "Hi"},),) * prompts,
        prompt=torch.arange(replies) % prompts,
        replies=("Hello",) * replies,
        rewards=rewards,
        tokens=torch.full((replies,), 3),
        log_probs=torch.zeros(replies),
        gradients={"resid_post": residual, "z": z},
        norms={"resid_post": torch.ones(layers, 4), "z": torch.ones(layers, 4, heads)},
    )


def summary() -> pd.DataFrame:
    """A row per arm, as the pipeline's comparison makes it."""
    arms = ["unsteered", "steered", "random", "last_ranked_layer", "reply_mean_everywhere", "primed"]
    rate = [0.36, 0.89, 0.38, 0.37, 0.12, 0.93]
    nan = float("nan")
    return pd.DataFrame(
        {
            "arm": arms,
            "n": 192,
            "trait_rate": rate,
            "low_rate": [r - 0.06 for r in rate],
            "high_rate": [r + 0.05 for r in rate],
            "marker_rate": [0.37, 0.91, 0.4, 0.38, 0.84, 0.94],
            "coherent_rate": [0.98, 0.96, 0.95, 0.98, 0.14, 0.97],
            "drift": [0.0, 0.11, 0.03, 0.0, 3.4, 0.31],
            "drift_p95": [0.0, 0.3, 0.1, 0.01, 6.0, 0.7],
            "drift_total": [0.0, 3.3, 0.9, 0.0, 60.0, 9.3],
            "perplexity": [1.41, 1.44, 1.5, 1.41, 310.0, 1.4],
            "length": [21.0, 22.5, 21.2, 21.0, 40.0, 23.1],
            "first_person": [3.1, 5.0, 3.2, 3.1, 9.9, 5.2],
            "repetition": [0.01, 0.01, 0.01, 0.01, 0.4, 0.01],
            "difference": [nan, 53.1, 2.0, 1.0, -24.0, 57.0],
            "low": [nan, 44.2, -5.0, -4.0, -31.0, 49.0],
            "high": [nan, 61.7, 8.5, 6.0, -17.0, 64.0],
            "wrong_way": [nan, 0.03, 0.2, 0.21, 0.5, 0.02],
            "p_value": [nan, 0.0002, 0.61, 0.83, 0.0002, 0.0002],
        }
    )


def dose() -> pd.DataFrame:
    """A row per strength, not in order."""
    return pd.DataFrame(
        {
            "strength": [1.0, 0.0, 0.5, 2.0, 4.0],
            "trait_rate": [0.89, 0.36, 0.62, 0.71, 0.05],
            "low_rate": [0.82, 0.3, 0.54, 0.63, 0.02],
            "high_rate": [0.94, 0.42, 0.7, 0.78, 0.1],
            "coherent_rate": [0.96, 0.98, 0.98, 0.77, 0.05],
            "drift": [0.11, 0.0, 0.03, 0.6, 4.2],
        }
    )


def samples(n_prompts: int = 9) -> pd.DataFrame:
    """Two seeds of every arm per prompt; the first steered reply holds a script element."""
    texts = {
        "unsteered": "The meeting is at nine. Bring the file.",
        "steered": "I am so sorry, that sounds hard. Thank you for telling me.",
        "primed": "Oh, I'm sorry to hear it. How are you?",
        "random": "It is raining in the north.",
    }
    rows = []
    for prompt in range(n_prompts):
        for arm, text in texts.items():
            for seed in range(2):
                shows = arm in ("steered", "primed")
                rows.append(
                    {
                        "prompt_id": f"p{prompt}",
                        "arm": arm,
                        "strength": float(arm in ("steered", "random")),
                        "seed": seed,
                        "text": SCRIPT if (prompt, arm, seed) == (0, "steered", 0) else text,
                        "n_tokens": 12,
                        "stopped": True,
                        "shows": shows,
                        "coherent": (prompt, arm) != (3, "primed"),
                        "markers": "sorry" if shows else "",
                        "first_person": 8.3,
                        "repetition": 0.0,
                        "logprob": -0.4,
                        "perplexity": 1.5,
                        "drift": 0.1 if shows else 0.0,
                    }
                )
    return pd.DataFrame(rows)


def result() -> SimpleNamespace:
    """What a run returns, as far as the report reads it."""
    attr = attribution()
    vector = SteeringVector(
        vector=torch.ones(1, 16),
        locus=Locus("blocks.5.hook_resid_post", (-1,)),
        trait=attr.trait,
        method="located",
        residual_norm=9.0,
        n_pairs=12,
        model="tiny",
        fingerprint="0",
        template="0",
    )
    words = "my <i>cat</i> & I had a bad day."
    prompts = [(f"p{i}", [{"role": "user", "content": f"Prompt {i}: {words}"}]) for i in range(9)]
    return SimpleNamespace(
        intervention=None,
        trait="emotional_support",
        description="Comfort, empathy and care in reply to someone's trouble.",
        model="tiny",
        attribution=attr,
        vector=vector,
        prompts=prompts,
        samples=samples(),
        summary=summary(),
        dose=dose(),
        settings={"seed": "0", "temperature": "0.7", "note": "<img src=x onerror=alert(1)>"},
    )


def evaluated(prompts: int = 40):
    """An evaluation whose replies were made up: the located vector's show the trait, the others' seldom."""
    rng = np.random.default_rng(0)
    rates = {"unsteered": 0.2, "located": 0.9, "middle layer, every token": 0.4, "priming": 0.3}
    rates |= {"random 0": 0.2, "random 1": 0.2}
    rows = []
    for arm, rate in rates.items():
        for i in range(prompts):
            hit = float(rng.random() < rate)
            text = f"Reply {i} by way {sorted(rates).index(arm)}{SCRIPT if i == 0 else ''}"
            drift = 0.0 if arm == "unsteered" else 0.1 + 0.01 * rng.random()
            rows.append((arm, f"p{i:03d}", 0, text, hit, 0.3 + 0.6 * hit + 0.05 * rng.random(), drift, True, 1.0))
    asked = [f"Question {i} {SCRIPT if i == 0 else ''}" for i in range(prompts)]
    columns = ["arm", "prompt_id", "seed", "text", "markers", "ngrams:politeness", "drift", "coherent", "strength"]
    samples = pd.DataFrame(rows, columns=columns)
    measures = ("markers", "ngrams:politeness")
    pooled = pool_random(samples)
    traits = ("joy", "trust")
    matrix = [{"vector": a, "measured": b, "markers": 0.1 * (a == b), "ngrams": 0.0} for a in traits for b in traits]
    return Evaluation(
        task=load_task("negotiation_politeness"),
        model="tiny_model",
        measures=measures,
        samples=samples,
        table=effects(pooled, measures),
        against=effects(pooled, measures, "located"),
        agreement=agreement(samples, measures),
        preflight=pd.DataFrame({"layer": [0, 1], "agreement": [0.5, 0.9], "auc": [0.6, 1.0]}),
        dose=dose(),
        matrix=pd.DataFrame(matrix),
        damage=pd.DataFrame({"condition": ["unsteered"], "perplexity": [9.5], "facts": [0.5], "refused": [0.1]}),
        turns=pd.DataFrame([_turn(arm, i) for arm in ("unsteered", "located") for i in (1, 2, 3)]),
        outcomes=None,
        prompts=tuple(({"role": "user", "content": text},) for text in asked),
        settings={"drift": "0.1", "model": "tiny_model & co"},
    )


def _turn(arm: str, turn: int) -> dict[str, object]:
    drift = 0.1 * turn * (arm == "located")
    row = {"condition": arm, "turn": turn, "markers": 0.5, "coherent": 0.9, "drift": drift}
    return row | {"slope": 0.1, "low": 0.0, "high": 0.2}
