"""What attribution's figures are worth, trait by trait: the choice of a layer, and estimates beside exact patching.

    python scripts/measure_attribution.py [--model demo] [--pairs 8] [--top 60] [--sample 80] [--json FILE]

For each trait, over all extraction pairs: what the pairs say of the layer, the p-value against random rotations of the
vectors, the best gain of other traits' vectors on the same pairs, the two parts of the gain's standard error; how often
one random direction shared by all layers would pass the test (wanted: 5 %); what the strength that should drift 0.1 nat
a token really does at the three best layers; and AtP in bfloat16 against float32.

Then, over ``--pairs`` of them, every estimator's mean scores beside exact patching of the same places: the ``--top``
with the largest AtP scores and a random ``--sample`` of the rest, in the window (the last prompt tokens) and in the
system turn; correlations, the rank agreement among the 15 largest estimates, and completeness by layer.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from scipy import stats
from torch import Tensor

import star_tl as star
from star_tl.attribution import AttributionMap
from star_tl.attribution.choose import costs_of, effects_of, gains, rotated_gains
from star_tl.attribution.verify import candidates, measure_layers
from star_tl.data.pairs import TRAITS

ESTIMATORS = ("atp", "ig", "relp")


def false_positives(attr: AttributionMap, directions: int = 400, rotations: int = 999) -> float:
    """Share of random directions, the same at all layers, whose p-value is at most 0.05."""
    layers, width = attr.differences.shape
    chance = torch.Generator().manual_seed(12345)
    null = rotated_gains(
        attr.gradients, attr.drift_gradients, torch.ones(1, width).expand(layers, -1), rotations, seed=0
    ).amax(1)
    passed = 0
    for _ in range(directions):
        one = torch.randn(1, width, generator=chance).expand(layers, -1)
        effect, cost = effects_of(attr.gradients, one).mean(0), costs_of(attr.drift_gradients, one).mean((0, 1))
        passed += (1 + int((null >= gains(effect, cost).max()).sum())) / (1 + rotations) <= 0.05
    return passed / directions


def flat(attr: AttributionMap) -> Tensor:
    return torch.cat([attr.scores.flatten(), attr.head_scores.flatten()])


def main() -> None:
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument("--model", default="demo")
    ap.add_argument("--traits", nargs="+", default=list(TRAITS))
    ap.add_argument("--pairs", type=int, default=8)
    ap.add_argument("--top", type=int, default=60)
    ap.add_argument("--sample", type=int, default=80)
    ap.add_argument("--json", type=Path)
    args = ap.parse_args()
    model = star.load_model(args.model)
    half = star.load_model(args.model, dtype="bfloat16")
    agreement, choices, measured = [], [], []
    for trait in args.traits:
        pairs = star.load_pairs(trait).extraction
        others = [star.load_pairs(name) for name in TRAITS if name != trait]
        attr = star.attribute(model, pairs, controls=others, progress=False)
        choice = attr.choose_layer()
        layer = choice.layer
        rounded = star.attribute(half, pairs, progress=False)
        name, most = max(choice.control_gains.items(), key=lambda item: item[1])
        choices.append(
            {
                "trait": trait,
                "says": choice.describe(),
                "singled_out": choice.singled_out,
                "layer": layer,
                "resamples": round(float(choice.frequency[layer]), 3),
                "p_value": round(choice.p_value, 4),
                "false_positives": false_positives(attr),
                "gain": round(float(choice.gain[layer]), 4),
                "error_pairs": round(float(choice.error_pairs[layer]), 4),
                "error_signs": round(float(choice.error_signs[layer]), 4),
                "null_95": round(choice.null, 4),
                "control": f"{name} {most:.4f}",
                "unaligned": round(float(attr.unaligned.mean()), 3),
                "equal_tokens": round(float(attr.equal_tokens.nanmean()), 3),
                "bfloat16_pearson": round(float(stats.pearsonr(flat(attr), flat(rounded)).statistic), 4),
            }
        )
        print(choices[-1], flush=True)
        measured.append(measure_layers(model, pairs, attr).assign(trait=trait))
        print(measured[-1].round(4).to_string(index=False), flush=True)
        few = replace(pairs, pairs=pairs.pairs[: args.pairs])
        maps = {method: star.attribute(model, few, method=method, progress=False) for method in ESTIMATORS}
        found = star.verify(model, few, maps["atp"], top_k=args.top, sample=args.sample, progress=False)
        index = {place: i for i, place in enumerate(candidates(maps["atp"])[0])}
        at = [index[place] for place in found.loci]
        for method, estimated in maps.items():
            beside = replace(found, estimate=candidates(estimated)[1][at])
            agreement.append(beside.by_region().assign(trait=trait, method=method))
            print(method, "completeness", [round(x, 2) for x in estimated.completeness().tolist()])
        mine: Any = pd.concat(agreement).query("trait == @trait")
        table = mine.pivot(index=["region", "hook_point"], columns="method", values=["pearson", "spearman", "top"])
        print(table.round(2).to_string(), flush=True)
    frame, layers = pd.concat(agreement), pd.concat(measured)
    print("\nmean and least over traits")
    by = frame.groupby(["region", "hook_point", "method"])[["pearson", "spearman", "top"]]
    print(by.agg(["mean", "min"]).round(2).to_string())
    print(pd.DataFrame(choices).to_string(index=False))
    print(layers.round(4).to_string(index=False))
    if args.json:
        report = {"agreement": frame.to_dict("records"), "choices": choices, "measured": layers.to_dict("records")}
        args.json.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
