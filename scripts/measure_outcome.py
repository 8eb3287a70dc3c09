"""Real replies at equal drift: the outcome's directions beside the located vector and priming.

    python scripts/measure_outcome.py [--model demo] [--traits emotional_support] [--n 768] [--seeds 4] [--json FILE]

Replies to a trait's extraction contexts are attributed to their markers; held-out prompts are then answered unsteered,
primed, and under every vector at the strength that costs the drift of priming, which is found on some extraction
contexts: the map's estimate first, then corrected by what was measured.
The last column counts replies of the commonest first three words: what is gained by saying one thing.
"""

from __future__ import annotations

import argparse
import json
import math
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pandas as pd
import torch

import star_tl as star
from star_tl.evaluation.samples import sample_conditions
from star_tl.evaluation.scores import mark_coherent, summarise
from star_tl.generation.settings import Sampling
from star_tl.steering.condition import Condition

CONTEXTS, CORRECTIONS, NEAR = 24, 5, 0.05
SHOWN = ("arm", "trait_rate", "low_rate", "high_rate", "difference", "low", "high", "p_value", "coherent_rate", "drift")


def at_drift(
    model: star.models.Model, pairs: star.Pairs, arm: Condition, target: float, sampling: Sampling, start: float
) -> Condition:
    """The arm at the strength that costs ``target`` nats a token on some extraction contexts."""
    contexts, strength = pairs.extraction.prompts[:CONTEXTS], start
    below, above = 0.0, float("inf")  # strengths that cost less and more than is wanted
    measured: list[tuple[float, float]] = []
    for _ in range(CORRECTIONS):
        now = replace(arm, strength=strength, seed=90)
        frame = sample_conditions(model, pairs.trait, contexts, [now], sampling, progress=False)
        drift = float(frame.drift.mean())
        measured.append((strength, drift))
        print(f"  {arm.name}: strength {strength:.3g} costs {drift:.3f}", flush=True)
        if abs(math.log(max(drift, 1e-6) / target)) < NEAR:
            break
        below, above = (max(below, strength), above) if drift < target else (below, min(above, strength))
        step = strength * min(3.0, max(1 / 3, (target / max(drift, 1e-6)) ** 0.5))
        # Drift saturates or runs away, so that the square law misleads far from where it was measured.
        strength = step if below < step < above else (below * above) ** 0.5
    return replace(arm, strength=min(measured, key=lambda m: abs(math.log(max(m[1], 1e-6) / target)))[0])


def commonest_opening(texts: pd.Series) -> float:
    openings = Counter(" ".join(text.split()[:3]).lower() for text in texts)
    return openings.most_common(1)[0][1] / len(texts)


def measure(model: star.models.Model, trait: str, args: argparse.Namespace) -> pd.DataFrame:
    pairs = star.load_pairs(trait)
    sampling = Sampling(max_new_tokens=args.tokens, temperature=args.temperature)

    def markers(prompt: object, text: str) -> float:
        return float(pairs.trait.shown_in(text))

    saved = args.maps / f"{args.model.replace('/', '-')}-{trait}.safetensors" if args.maps else None
    if saved is not None and saved.exists():
        outcome = star.OutcomeMap.load(saved)
    else:
        outcome = star.attribute_outcome(
            model, pairs.extraction.prompts, markers, args.n, sampling, args.seed, least=args.n
        )
        if saved is not None:
            outcome.save(saved)
    print(outcome, flush=True)
    attr = star.attribute(model, pairs)
    located = star.extract_vector(model, pairs, attr.top_locus())
    heldout = pairs.heldout.prompts[: args.prompts]

    def answer(arm: Condition) -> pd.DataFrame:
        seeded = [replace(arm, seed=seed) for seed in range(args.seeds)]
        return sample_conditions(model, pairs.trait, heldout, seeded, sampling, progress=False)

    frames = [answer(Condition()), answer(Condition("primed", instruction=pairs.trait.positive_instruction))]
    target = float(pd.concat(frames).query("arm == 'primed'").drift.mean())
    steered = [Condition("located", located)]
    for method in ("plain", "natural"):
        steered.append(Condition(f"outcome, one token, {method}", star.extract_outcome_vector(outcome, method=method)))
        generated = star.extract_outcome_vector(outcome, positions="generated", method=method)
        steered.append(Condition(f"outcome, generated, {method}", generated, positions="generated"))
    predicted = {}
    for arm in steered:
        assert arm.vector is not None
        print(f" {arm.name}: {arm.vector}", flush=True)
        cost = outcome.drift(arm.vector, arm.positions).value
        gain = outcome.gain(arm.vector, arm.positions)
        predicted[arm.name] = {"layer": arm.vector.locus.layer, "predicted_gain": gain.value}
        ready = at_drift(model, pairs, arm, target, sampling, (target / cost) ** 0.5)
        predicted[arm.name]["strength"] = ready.strength
        frames.append(answer(ready))
        so_far = mark_coherent(pd.concat(frames, ignore_index=True))
        print(summarise(so_far)[list(SHOWN)].round(3).to_string(index=False), flush=True)
    samples = mark_coherent(pd.concat(frames, ignore_index=True))
    table = summarise(samples)
    opening = samples.groupby("arm").text.apply(commonest_opening)
    table = table.assign(trait=trait, opening=table.arm.map(opening), target=target)
    return table.merge(pd.DataFrame(predicted).T, left_on="arm", right_index=True, how="left")


def main() -> None:
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument("--model", default="demo")
    ap.add_argument("--traits", nargs="+", default=["emotional_support"])
    ap.add_argument("--n", type=int, default=768)
    ap.add_argument("--tokens", type=int, default=40)
    ap.add_argument("--temperature", type=float, default=1.0)
    ap.add_argument("--prompts", type=int, default=24)
    ap.add_argument("--seeds", type=int, default=4)
    ap.add_argument("--seed", type=int, default=0)
    ap.add_argument("--threads", type=int, default=2)
    ap.add_argument("--maps", type=Path, help="a folder of maps: read where they are there, else written")
    ap.add_argument("--json", type=Path)
    args = ap.parse_args()
    torch.set_num_threads(args.threads)
    model = star.load_model(args.model)
    table = pd.concat([measure(model, trait, args) for trait in args.traits], ignore_index=True)
    columns = ["trait", *SHOWN, "opening", "layer", "strength", "predicted_gain"]
    print(table[columns].round(3).to_string(index=False))
    if args.json:
        args.json.write_text(json.dumps(table.to_dict(orient="records"), indent=1, default=float) + "\n")


if __name__ == "__main__":
    main()
