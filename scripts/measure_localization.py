"""Localization put to the test: rankings of layers before steering, against what steering at each layer did.

    python scripts/measure_localization.py [--model demo] [--traits emotional_support gratitude] [--drift 0.1] \
        [--out FOLDER]

Every layer's vector is brought to the same drift and answers the trait's held-out contexts. Printed are the Spearman
correlation of each ranking with the effects over layers (95 % bootstrap over prompts), the layer that it takes, what
the vector does there, and how much the best layer does more.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import pandas as pd
import torch

import star_tl as star
from star_tl.evaluation.localization import localize
from star_tl.generation.settings import Sampling


def main() -> None:
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument("--model", default="demo")
    ap.add_argument("--traits", nargs="+", default=["emotional_support", "gratitude", "self_disclosure"])
    ap.add_argument("--estimators", nargs="+", default=["atp", "ig", "relp"])
    ap.add_argument("--drift", type=float, default=0.1)
    ap.add_argument("--seeds", type=int, default=2)
    ap.add_argument("--limit", type=int, help="most prompts; default all held-out contexts")
    ap.add_argument("--tokens", type=int, default=40)
    ap.add_argument("--threads", type=int, default=2)
    ap.add_argument("--out", type=Path)
    args = ap.parse_args()
    torch.set_num_threads(args.threads)
    model = star.load_model(args.model)
    rows = []
    for trait in args.traits:
        pairs = star.load_pairs(trait)
        found = localize(
            model,
            pairs,
            pairs.heldout.prompts[: args.limit],
            args.drift,
            args.estimators,
            range(args.seeds),
            Sampling(max_new_tokens=args.tokens),
            args.out and args.out / trait,
            progress=False,
        )
        for measure, result in found.items():
            print(f"\n{trait}, {measure}, by layer")
            print(result.layers.round(3).to_string(index=False))
            rows.append(result.rankings.assign(trait=trait, measure=measure))
    print()
    print(pd.concat(rows).set_index(["trait", "measure", "ranking"]).round(2).to_string())


if __name__ == "__main__":
    main()
