"""Drift over ten turns of steered chat: earlier turns read without the vector, or their steered states kept.

    python scripts/measure_conversation.py [--model demo] [--trait emotional_support] [--chats 12] [--json FILE]

The user's turns are the contexts of the trait's extraction pairs, ten at random for each chat; the vector is the
located one at the strength that star_tl chooses. Drift is nats per token, log-probability that of the replies
under the unsteered model on the same chat; means over chats with 95 % bootstrap intervals.
"""

from __future__ import annotations

import argparse
import json
import random
from pathlib import Path

import pandas as pd
from scipy import stats
from tqdm.auto import tqdm

import star_tl as star


def main() -> None:
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument("--model", default="demo")
    ap.add_argument("--trait", default="emotional_support")
    ap.add_argument("--chats", type=int, default=12)
    ap.add_argument("--turns", type=int, default=10)
    ap.add_argument("--json", type=Path)
    args = ap.parse_args()
    model = star.load_model(args.model)
    pairs = star.load_pairs(args.trait)
    attr = star.attribute(model, pairs, progress=False)
    vector = star.extract_vector(model, pairs, attr.top_locus())
    prompts = pairs.extraction.prompts
    strength = star.choose_strength(model, vector, pairs.trait, prompts, progress=False).strength
    said = [m["content"] for p in prompts for m in p if m["role"] == "user"]
    tables = []
    for number in tqdm(range(args.chats), desc="chats"):
        turns = random.Random(number).sample(said, args.turns)
        for mode, options in {
            "unsteered": {},
            "read again": {"vector": vector},
            "carried on": {"vector": vector, "carry": True},
        }.items():
            more = {"strength": strength, "seed": number, "temperature": 0.8, "max_new_tokens": 40}
            chat = star.converse(model, turns, **options, **more)
            shows = [bool(pairs.trait.pattern.search(reply)) for reply in chat.reply]
            tables.append(chat.assign(mode=mode, chat=number, shows=shows))
    frame = pd.concat(tables, ignore_index=True)
    rows = []
    for (mode, turn), group in frame.groupby(["mode", "turn"], sort=False):
        row = {"mode": mode, "turn": int(turn), "drift": group.drift.mean()}
        if mode != "unsteered":
            found = stats.bootstrap((group.drift,), lambda x, axis: x.mean(axis), rng=0, method="percentile")
            row |= {"low": found.confidence_interval.low, "high": found.confidence_interval.high}
        rows.append(row | {"logprob": group.logprob.mean(), "shows": group.shows.mean()})
    table = pd.DataFrame(rows)
    print(f"{args.trait}, strength {strength:g} at {vector.locus}, {args.chats} chats")
    for value in ("drift", "logprob", "shows"):
        print(f"\n{value}")
        print(table.pivot(index="turn", columns="mode", values=value).round(3).to_string())
    if args.json:
        args.json.write_text(json.dumps({"rows": table.to_dict(orient="records")}, indent=1, default=float) + "\n")


if __name__ == "__main__":
    main()
