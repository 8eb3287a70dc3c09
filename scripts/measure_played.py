"""Talks of ten turns against the same model unsteered: a task's trait turn by turn, and for negotiations the outcome.

    python scripts/measure_played.py --task negotiation_gratitude [--model demo] [--talks 8] [--turns 10] \
        [--drift 0.1] [--data FILE] [--out FOLDER]

Conditions: unsteered, the located vector, the mean over reply tokens at every token of the middle layer, priming.
Those with a vector are brought to the same drift on single turns. With --data the items of a negotiation are those of
CraigslistBargain, or the other task's openings are the first messages of ESConv. Printed are the share of coherent
replies with a marker, drift by turn with its slope (nats per token and turn, 95 % bootstrap over talks), and the
outcomes.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import torch

import star_tl as star
from star_tl.data.prompts import load_prompts
from star_tl.data.scenarios import load_scenarios
from star_tl.data.tasks import load_task
from star_tl.evaluation.conditions import CAA, LOCATED, vector_conditions, worded_conditions
from star_tl.evaluation.equal_drift import bring_to_drift
from star_tl.evaluation.negotiation import outcomes
from star_tl.evaluation.played import Talk, play, texts_of
from star_tl.evaluation.scores import mark_coherent
from star_tl.generation.settings import Sampling
from star_tl.stats import bootstrap_interval
from star_tl.steering.condition import Condition


def main() -> None:
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument("--task", default="negotiation_gratitude")
    ap.add_argument("--model", default="demo")
    ap.add_argument("--talks", type=int, default=8)
    ap.add_argument("--turns", type=int, default=10)
    ap.add_argument("--drift", type=float, default=0.1)
    ap.add_argument("--tokens", type=int, default=30)
    ap.add_argument("--threads", type=int, default=2)
    ap.add_argument("--data", type=Path)
    ap.add_argument("--out", type=Path)
    args = ap.parse_args()
    torch.set_num_threads(args.threads)
    model, task = star.load_model(args.model), load_task(args.task)
    pairs, sampling = star.load_pairs(task.trait), Sampling(max_new_tokens=args.tokens)
    scenarios = load_scenarios(args.data, args.talks) if task.outcomes else []
    if scenarios:
        talks = [Talk(s.roles["user"], s.roles["assistant"]) for s in scenarios]
    else:
        found = [i.messages for i in load_prompts(args.data)] if args.data else pairs.heldout.prompts
        openings = [messages[0]["content"] for messages in found[: args.talks]]
        told = {side: f"You are {who}. Answer in one or two short sentences." for side, who in task.roles.items()}
        talks = [Talk(told["user"], told["assistant"], opening) for opening in openings]
    attr = star.attribute(model, pairs, progress=False)
    steered = [c for c in vector_conditions(model, pairs, attr) if c.name in (LOCATED, CAA)]
    practice = pairs.extraction.prompts[:16]
    steered = bring_to_drift(model, pairs.trait, steered, practice, args.drift, sampling, progress=False)
    frames, results = [], []
    for way in (Condition(), *steered, worded_conditions(pairs)[0]):
        folder = args.out and args.out / way.name.replace(" ", "-")
        frame = play(model, pairs.trait, talks, replace(way, seed=1), args.turns, sampling, folder, progress=False)
        frames.append(frame)
        if scenarios:
            results.append(outcomes(texts_of(frame), scenarios).assign(condition=way.name))
    samples = mark_coherent(pd.concat(frames, ignore_index=True))
    samples["hit"] = (samples.shows & samples.coherent).astype(float)
    for column in ("drift", "hit", "coherent"):
        print(f"\n{column} by turn")
        print(samples.groupby(["arm", "turn"], sort=False)[column].mean().unstack("arm").round(3).to_string())
    print("\nslope of drift over turns")
    for arm, group in samples.groupby("arm", sort=False):
        slopes = np.array([np.polyfit(g.turn, g.drift, 1)[0] for _, g in group.groupby("prompt_id")])
        low, high = bootstrap_interval(slopes)
        print(f"{arm:28} {slopes.mean():+.4f} [{low:+.4f}, {high:+.4f}]")
    if results:
        print("\noutcomes")
        print(pd.concat(results).groupby("condition", sort=False).mean().round(2).to_string())


if __name__ == "__main__":
    main()
