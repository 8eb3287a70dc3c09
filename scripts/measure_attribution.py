"""Print RESULTS.md's table of how far attribution can be trusted, trait by trait.

    python scripts/measure_attribution.py [--model demo] [--pairs 8] [--top 20] [--sample 60] [--json FILE]

Every estimator's mean scores over some pairs are correlated with exact activation patching of the same pairs,
at single prompt tokens: for each hook point the ``--top`` places with the largest AtP scores and a random
``--sample`` of the rest. Beside it the chosen layer, over all extraction pairs: how often resampled pairs choose it,
and the p-value against shuffled labels; and AtP in bfloat16 against float32.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import replace
from pathlib import Path

import pandas as pd
import torch
from scipy import stats
from torch import Tensor

import star_tl as star
from star_tl.attribution import AttributionMap
from star_tl.attribution.exact import exact_effects
from star_tl.attribution.verify import candidates
from star_tl.data.pairs import TRAITS

ESTIMATORS = ("atp", "ig", "relp")


def kind(hook_point: str) -> str:
    return hook_point.split(".", 2)[2].removeprefix("hook_").removeprefix("attn.hook_")


def places(attr: AttributionMap, top: int, sample: int) -> list[int]:
    """Indices into ``candidates(attr)``: the largest scores of every hook point and a sample of the others."""
    loci, scores = candidates(attr)
    chosen = []
    generator = torch.Generator().manual_seed(0)
    for name in sorted({kind(x.hook_point) for x in loci}):
        mine = torch.tensor([i for i, x in enumerate(loci) if kind(x.hook_point) == name])
        order = mine[scores[mine].abs().argsort(descending=True)]
        rest = order[top:][torch.randperm(len(order) - top, generator=generator)]
        chosen += [*order[:top].tolist(), *rest[:sample].tolist()]
    return chosen


def flat(attr: AttributionMap) -> Tensor:
    return torch.cat([attr.scores.flatten(), attr.head_scores.flatten()])


def main() -> None:
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument("--model", default="demo")
    ap.add_argument("--traits", nargs="+", default=list(TRAITS))
    ap.add_argument("--pairs", type=int, default=8)
    ap.add_argument("--top", type=int, default=20)
    ap.add_argument("--sample", type=int, default=60)
    ap.add_argument("--json", type=Path)
    args = ap.parse_args()
    model = star.load_model(args.model)
    half = star.load_model(args.model, dtype="bfloat16")
    agreement, choices = [], []
    for trait in args.traits:
        pairs = star.load_pairs(trait).extraction
        attr = star.attribute(model, pairs, progress=False)
        choice = attr.choose_layer()
        rounded = star.attribute(half, pairs, progress=False)
        choices.append(
            {
                "trait": trait,
                "layer": choice.layer,
                "resamples": round(float(choice.frequency[choice.layer]), 3),
                "p_value": round(choice.p_value, 4),
                "null_95": round(choice.null, 4),
                "gain": round(float(choice.gain[choice.layer]), 4),
                "bfloat16_pearson": round(float(stats.pearsonr(flat(attr), flat(rounded)).statistic), 4),
            }
        )
        print(choices[-1], flush=True)
        few = replace(pairs, pairs=pairs.pairs[: args.pairs])
        maps = {method: star.attribute(model, few, method=method, progress=False) for method in ESTIMATORS}
        loci, _ = candidates(maps["atp"])
        chosen = places(maps["atp"], args.top, args.sample)
        exact = exact_effects(model, few, [loci[i] for i in chosen]).mean(0)
        for method, found in maps.items():
            scores = candidates(found)[1][chosen]
            for name in sorted({kind(loci[i].hook_point) for i in chosen}):
                at = [k for k, i in enumerate(chosen) if kind(loci[i].hook_point) == name]
                row = {"trait": trait, "method": method, "hook_point": name, "places": len(at)}
                row["pearson"] = float(stats.pearsonr(scores[at], exact[at]).statistic)
                row["spearman"] = float(stats.spearmanr(scores[at], exact[at]).statistic)
                agreement.append(row)
        mine = pd.DataFrame(agreement).query("trait == @trait")
        print(mine.pivot(index="hook_point", columns="method", values=["pearson", "spearman"]).round(3), flush=True)
    frame = pd.DataFrame(agreement)
    print("\nmean and least over traits")
    print(frame.groupby(["hook_point", "method"])[["pearson", "spearman"]].agg(["mean", "min"]).round(3).to_string())
    print(pd.DataFrame(choices).to_string(index=False))
    if args.json:
        args.json.write_text(json.dumps({"agreement": agreement, "choices": choices}, indent=1) + "\n")


if __name__ == "__main__":
    main()
