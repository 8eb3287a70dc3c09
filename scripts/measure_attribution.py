"""What attribution's figures are worth, trait by trait: the choice of a layer, and estimates beside exact patching.

    python scripts/measure_attribution.py [--model demo] [--traits NAME ...] [--json FILE]
    python scripts/measure_attribution.py --model smollm2 --patched 2 --measured 4

``choice``, over all extraction pairs: what the pairs say of the layer, the p-value against random rotations of the
vectors, the best gain of other traits' vectors on the same pairs; how often random directions of three kinds pass the
test at 5 %; how far the metric moves, and in how many pairs the wrong way; the gain and the chosen layer with other
random signs; the share of prompt tokens that are aligned, and of those how many are equal; how well the positions
chosen from one half of the pairs are those of the other; what the strength that should drift 0.1 nat a token really
does at the three best layers; and AtP in bfloat16 against float32.

``agreement``, over ``--patched`` pairs: every estimator's mean scores beside exact patching of the same places, the
``--top`` with the largest AtP scores and a random ``--sample`` of the rest, in the window (the last prompt tokens) and
in the system turn; correlations, the rank agreement among the 15 largest estimates, and completeness by layer.

With ``--json`` each trait's figures are kept in FILE as they come, and taken from there when the script is called
again.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from scipy import stats
from torch import Tensor

import star_tl as star
from star_tl.attribution import AttributionMap
from star_tl.attribution.align import prepare
from star_tl.attribution.choose import LEVEL, choose_layer, choose_positions, gains, rotated_gains
from star_tl.attribution.verify import candidates, measure_layers
from star_tl.data.pairs import TRAITS, Pairs
from star_tl.files import replacing
from star_tl.models.backend import Model

ESTIMATORS = ("atp", "ig", "relp")
PARTS = ("choice", "agreement")
ROTATIONS = 199  # of each direction's own null; p-values are exact with any number
Figures = dict[str, Any]


def shared(layers: int, width: int, chance: torch.Generator) -> Tensor:
    """One direction for all layers."""
    return torch.randn(1, width, generator=chance).expand(layers, -1)


def independent(layers: int, width: int, chance: torch.Generator) -> Tensor:
    return torch.randn(layers, width, generator=chance)


def wandering(layers: int, width: int, chance: torch.Generator) -> Tensor:
    """A little more at each layer, as in a residual stream."""
    return independent(layers, width, chance).cumsum(0)


KINDS: dict[str, Callable[[int, int, torch.Generator], Tensor]] = {
    "shared": shared,
    "independent": independent,
    "wandering": wandering,
}


def passed(attr: AttributionMap, kind: str, directions: int) -> int:
    """How many of so many random directions pass the test of the layer at 5 %."""
    chance = torch.Generator().manual_seed(12345)
    mean, pulls = attr.gradients.mean(0), attr.drift_gradients.float().flatten(0, 1).transpose(0, 1)
    found, (layers, width) = 0, attr.differences.shape
    for i in range(directions):
        one = KINDS[kind](layers, width, chance)
        gain = gains((mean * one).sum(-1), torch.bmm(pulls, one[..., None]).square().mean((1, 2))).max()
        null = rotated_gains(attr.gradients, attr.drift_gradients, one, ROTATIONS, seed=i).amax(1)
        found += (1 + int((null >= gain).sum())) / (1 + ROTATIONS) <= LEVEL
    return found


def share(count: int, n: int) -> str:
    """In percent with its 95 % Clopper-Pearson interval."""
    low, high = stats.binomtest(count, n).proportion_ci()
    return f"{100 * count / n:.1f} [{100 * low:.1f}, {100 * high:.1f}]"


def other_signs(attr: AttributionMap, draws: int, runs: int = 200) -> Figures:
    """The best layer's gain and the chosen layer with other random signs, drawn again from those of the map."""
    n, had, layers, _ = attr.drift_gradients.shape
    costs = (attr.drift_gradients.double() * attr.differences.double()).sum(-1).square()
    effect = attr.effect(attr.differences).mean(0).double()
    chance = torch.Generator().manual_seed(0)
    drawn = torch.randint(had, (runs, n, draws), generator=chance)
    cost = torch.stack([costs.gather(1, one[..., None].expand(-1, -1, layers)).mean((0, 1)) for one in drawn])
    found = gains(effect, cost)
    best = found.argmax(1).bincount(minlength=layers)
    at = attr.choose_layer(resamples=1).layer
    return {
        "draws": draws,
        "layers_that_gain_most": int((best > 0).sum()),
        "most_often": round(float(best.max()) / runs, 3),
        "gain_spread": round(float(found[:, at].std() / found[:, at].mean().abs()), 4),
    }


def halves(attr: AttributionMap, layer: int, splits: int = 50) -> dict[str, float]:
    """Mean overlap (Jaccard) of the positions that two halves of the pairs choose, kept by resampling and not."""
    chance = torch.Generator().manual_seed(0)
    effects, found = attr.position_effects[:, layer], {"kept": 0.0, "covering": 0.0}
    for _ in range(splits):
        half = [effects[i] for i in torch.randperm(len(effects), generator=chance).chunk(2)]
        means = [one.mean(0, keepdim=True) for one in half]  # a single row is not resampled, so nothing is dropped
        for name, of in (("kept", half), ("covering", means)):
            a, b = (set(choose_positions(one).positions) for one in of)
            found[name] += len(a & b) / len(a | b) / splits
    return {name: round(value, 3) for name, value in found.items()}


def flat(attr: AttributionMap) -> Tensor:
    return torch.cat([attr.scores.flatten(), attr.head_scores.flatten()])


def first(pairs: Pairs, count: int) -> Pairs:
    return replace(pairs, pairs=pairs.pairs[:count])


def choice_of(model: Model, half: Model, pairs: Pairs, directions: int, measured: int) -> Figures:
    others = [star.load_pairs(name) for name in TRAITS if name != pairs.trait.name]
    attr = star.attribute(model, pairs, hook_points=["resid_post"], controls=others, progress=False)
    choice = attr.choose_layer()
    layer = choice.layer
    name, most = max(choice.control_gains.items(), key=lambda item: item[1])
    other_vectors = [choose_layer(attr.gradients, attr.drift_gradients, v).p_value for v in attr.controls]
    moved = attr.metric_clean - attr.metric_corrupted
    right = prepare(model, pairs, "right")
    few = first(pairs, measured)
    of_few = star.attribute(model, few, progress=False)
    rounded = star.attribute(half, few, draws=1, progress=False)
    best = choice.gain.argsort(descending=True)[:3].tolist()
    return {
        "pairs": len(pairs),
        "says": choice.describe(),
        "singled_out": choice.singled_out,
        "layer": layer,
        "resamples": round(float(choice.frequency[layer]), 3),
        "p_value": round(choice.p_value, 4),
        "gain": round(float(choice.gain[layer]), 4),
        "error_pairs": round(float(choice.error_pairs[layer]), 4),
        "error_signs": round(float(choice.error_signs[layer]), 4),
        "null_95": round(choice.null, 4),
        "best_control": f"{name} {most:.4f}",
        "controls_that_pass": sum(p <= LEVEL for p in other_vectors),
        "directions": directions,
        "passed": {kind: passed(attr, kind, directions) for kind in KINDS},
        "metric_moves": round(float(moved.mean()), 4),
        "wrong_way": int((moved < 0).sum()),
        "signs": [other_signs(attr, draws) for draws in (1, 8)],
        "aligned": round(float(1 - attr.unaligned.mean()), 3),
        "equal": round(float(attr.equal_tokens.nanmean()), 3),
        "aligned_from_the_end": round(1 - sum(p.unaligned for p in right) / len(right), 3),
        "equal_from_the_end": round(sum(p.equal_tokens for p in right) / len(right), 3),
        "overlap": halves(attr, layer),
        "measured": measure_layers(model, few, of_few, layers=best).round(4).to_dict("records"),
        "bfloat16": round(float(stats.pearsonr(flat(of_few), flat(rounded)).statistic), 4),
    }


def agreement_of(model: Model, pairs: Pairs, top: int, sample: int) -> Figures:
    maps = {method: star.attribute(model, pairs, method=method, progress=False) for method in ESTIMATORS}
    found = star.verify(model, pairs, maps["atp"], top_k=top, sample=sample, progress=False)
    index = {place: i for i, place in enumerate(candidates(maps["atp"])[0])}
    at = [index[place] for place in found.loci]
    rows: list[Figures] = []
    for method, estimated in maps.items():
        beside = replace(found, estimate=candidates(estimated)[1][at]).by_region().round(4)
        rows += [{"method": method, **row} for row in beside.to_dict("records")]
    completeness = {method: [round(x, 3) for x in attr.completeness().tolist()] for method, attr in maps.items()}
    return {"pairs": len(pairs), "rows": rows, "completeness": completeness}


def table(rows: Sequence[Figures]) -> None:
    print(pd.DataFrame(rows).to_string(index=False), flush=True)


def show(kept: dict[str, dict[str, Figures]]) -> None:
    """The tables of what there is so far."""
    if choices := kept["choice"]:
        names = [k for k in next(iter(choices.values())) if k not in ("signs", "measured", "passed", "overlap")]
        print("\nThe choice of a layer")
        table([{"trait": t, **{k: c[k] for k in names}, **c["overlap"]} for t, c in choices.items()])
        print("\nRandom directions that pass the test, in percent, with the 95 % interval")
        n = {t: int(c["directions"]) for t, c in choices.items()}
        rows = [{"trait": t, **{k: share(c["passed"][k], n[t]) for k in KINDS}} for t, c in choices.items()]
        of_kind = {k: sum(c["passed"][k] for c in choices.values()) for k in KINDS}
        rows.append({"trait": "all", **{k: share(count, sum(n.values())) for k, count in of_kind.items()}})
        table(rows)
        print("\nOther random signs")
        table([{"trait": t, **row} for t, c in choices.items() for row in c["signs"]])
        print("\nWhat the strength that should drift 0.1 nat does")
        table([{"trait": t, **row} for t, c in choices.items() for row in c["measured"]])
    if found := kept["agreement"]:
        frame = pd.DataFrame([{"trait": t, **row} for t, one in found.items() for row in one["rows"]])
        by = frame.groupby(["region", "hook_point", "method"])[["pearson", "spearman", "top"]]
        print("\nAgreement with exact patching, mean and least over traits")
        print(by.agg(["mean", "min", "max"]).round(2).to_string())
        rows = []
        for trait, one in found.items():
            whole = one["completeness"]
            rows += [{"trait": trait, "method": m, "least": min(c), "most": max(c)} for m, c in whole.items()]
        print("\nCompleteness over layers")
        table(rows)


def main() -> None:
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument("--model", default="demo")
    ap.add_argument("--traits", nargs="+", default=list(TRAITS))
    ap.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    ap.add_argument("--pairs", type=int, default=40, help="most extraction pairs for the choice")
    ap.add_argument("--measured", type=int, default=8, help="pairs for the measured drift and for bfloat16")
    ap.add_argument("--directions", type=int, default=1000, help="random directions of each kind")
    ap.add_argument("--patched", type=int, default=8, help="pairs for exact patching")
    ap.add_argument("--top", type=int, default=60)
    ap.add_argument("--sample", type=int, default=80)
    ap.add_argument("--json", type=Path)
    args = ap.parse_args()
    model = star.load_model(args.model)
    half = star.load_model(args.model, dtype="bfloat16")
    kept = {part: {} for part in PARTS}
    if args.json and args.json.exists():
        kept |= json.loads(args.json.read_text())
    for part in args.parts:
        for trait in args.traits:
            if trait in kept[part]:
                continue
            began, pairs = time.perf_counter(), star.load_pairs(trait).extraction
            if part == "choice":
                kept[part][trait] = choice_of(model, half, first(pairs, args.pairs), args.directions, args.measured)
            else:
                kept[part][trait] = agreement_of(model, first(pairs, args.patched), args.top, args.sample)
            print(f"{part} of {trait}: {time.perf_counter() - began:.0f} s", flush=True)
            if args.json:
                with replacing(args.json) as partial:
                    partial.write_text(json.dumps(kept, indent=1) + "\n")
    show(kept)


if __name__ == "__main__":
    main()
