"""Drift over ten turns of steered chat: earlier turns read without the vector, or their steered states kept.

    python scripts/measure_conversation.py [--positions locus generated "decay 16"] [--chats 8] [--json FILE]

The user's turns are the contexts of the trait's extraction pairs, ten at random for each chat; the vector is the
located one. Its strength is chosen on the extraction contexts for each schedule by itself; where none within the drift
limit brings more of the trait than unsteered replies show, it is the largest within the limit. Drift is nats per token,
log-probability that of the replies under the unsteered model on the same chat; the trait rate counts coherent
replies with a marker. Means over chats with 95 % bootstrap intervals.
"""

from __future__ import annotations

import argparse
import json
import random
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from tqdm.auto import tqdm
from transformer_lens import HookedTransformer

import star_tl as star
from star_tl.data.pairs import Pairs
from star_tl.evaluation.roads import EVERYWHERE
from star_tl.evaluation.scores import mark_coherent
from star_tl.evaluation.strength import STRENGTHS, StrengthChoice
from star_tl.stats import mean_interval
from star_tl.steering.condition import UNSTEERED, Condition

MODES = {"read again": False, "carried on": True}
ONCE = ("locus", "last_prompt")


def strength_for(model: HookedTransformer, pairs: Pairs, vector: star.SteeringVector, positions: str) -> StrengthChoice:
    """The choice for this schedule; where none helps, with the largest strength within the limit."""
    grid = STRENGTHS if positions in ONCE else EVERYWHERE
    prompts = pairs.extraction.prompts
    found = star.choose_strength(model, vector, pairs.trait, prompts, grid, positions, progress=False)
    curve = found.curve.set_index("strength")
    if curve.trait_rate[found.strength] > curve.trait_rate[0]:
        return found
    return StrengthChoice(
        max(curve.index[curve.drift <= found.limit]) or min(grid), found.limit, found.curve, found.samples
    )


def mean_with_interval(values: pd.Series) -> tuple[float, float, float]:
    """Mean over chats and its 95 % bootstrap interval."""
    low, high = mean_interval(torch.tensor(values.to_numpy(dtype=float)), resamples=10_000)
    return float(values.mean()), float(low), float(high)


def over_chats(frame: pd.DataFrame) -> pd.DataFrame:
    """A row per schedule and mode: means over all turns, drift's slope over turns, and what carrying on adds to it."""
    rows = []
    for (positions, mode), group in frame.groupby(["positions", "mode"], sort=False):
        by_chat = group.groupby("chat")
        row = {"positions": positions, "mode": mode}
        measures = {
            "drift": by_chat.drift.mean(),
            "slope": by_chat.apply(lambda chat: np.polyfit(chat.turn, chat.drift, 1)[0], include_groups=False),
            "trait_rate": by_chat.trait_rate.mean(),
            "logprob": by_chat.logprob.mean(),
        }
        if mode == "carried on":
            other = frame[(frame.positions == positions) & (frame["mode"] == "read again")]
            measures["more_drift"] = measures["drift"] - other.groupby("chat").drift.mean()
        for name, values in measures.items():
            row[name], row[f"{name}_low"], row[f"{name}_high"] = mean_with_interval(values)
        rows.append(row)
    return pd.DataFrame(rows)


def main() -> None:
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument("--model", default="demo")
    ap.add_argument("--trait", default="emotional_support")
    ap.add_argument("--positions", nargs="+", default=["locus"], help="schedules, each with a strength of its own")
    ap.add_argument("--chats", type=int, default=12)
    ap.add_argument("--turns", type=int, default=10)
    ap.add_argument("--json", type=Path)
    args = ap.parse_args()
    model = star.load_model(args.model)
    pairs = star.load_pairs(args.trait)
    attr = star.attribute(model, pairs, progress=False)
    vector = star.extract_vector(model, pairs, attr.top_locus())
    said = [m["content"] for p in pairs.extraction.prompts for m in p if m["role"] == "user"]
    ways = {("none", UNSTEERED): (Condition(), False)}
    for positions in args.positions:
        found = strength_for(model, pairs, vector, positions)
        print(f"{args.trait}, {positions}: {found} at {vector.locus}", flush=True)
        for mode, carry in MODES.items():
            ways[positions, mode] = Condition("steered", vector, found.strength, positions), carry
    tables = []
    for number in tqdm(range(args.chats), desc="chats"):
        turns = random.Random(number).sample(said, args.turns)
        for (positions, mode), (way, carry) in ways.items():
            chat = star.converse(model, turns, replace(way, seed=number), carry=carry, max_new_tokens=40)
            shows = [pairs.trait.shown_in(reply) for reply in chat.reply]
            tables.append(chat.assign(positions=positions, mode=mode, arm=mode, chat=number, shows=shows))
    frame = mark_coherent(pd.concat(tables, ignore_index=True))
    frame["trait_rate"] = (frame.shows & frame.coherent).astype(float)
    rows = []
    for (positions, mode, turn), group in frame.groupby(["positions", "mode", "turn"], sort=False):
        drift, low, high = mean_with_interval(group.drift)
        row = {"positions": positions, "mode": mode, "turn": turn, "drift": drift, "low": low, "high": high}
        rows.append(row | {"logprob": group.logprob.mean(), "trait_rate": group.trait_rate.mean()})
    table, overall = pd.DataFrame(rows), over_chats(frame)
    table["interval"] = [f"{r.drift:.3f} [{r.low:.3f}, {r.high:.3f}]" for r in table.itertuples()]
    for value in ("interval", "logprob", "trait_rate"):
        print(f"\n{'drift' if value == 'interval' else value}")
        print(table.pivot(index="turn", columns=["positions", "mode"], values=value).round(2).to_string())
    print("\nover all turns; slope: nats per token and turn; more_drift: carried on minus read again, paired by chat")
    print(overall.round(3).T.to_string(header=False))
    if args.json:
        rows = {"rows": table.drop(columns="interval"), "overall": overall}
        text = json.dumps({k: v.to_dict(orient="records") for k, v in rows.items()}, indent=1, default=float)
        args.json.write_text(text + "\n")


if __name__ == "__main__":
    main()
