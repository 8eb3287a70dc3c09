"""Which way to steer does most at equal drift, what attribution had said of each, and what the choice is worth.

    python scripts/measure_outcome.py [--model smollm2] [--traits ...] [--n 768] [--out FOLDER] [--data FOLDER]

For every trait, on its extraction contexts: replies of the unsteered model are attributed to the reward (judge ×
relevance, bounded unless --unbounded is given; markers where there is no judge); then every source × layer × stretch
of tokens is brought to the drift that priming costs and writes real replies. Printed are the rank correlation of
predicted and realized reward over all these cells, and over those that outcome attribution did not make itself; beside
it what the pairs' own metric predicts, where it predicts. "chosen" is the best of the few that
`star.choose_intervention` would let write replies, "sweep" the best of all cells.

Then, on held-out prompts (and with --data on real ones): unsteered, primed, chosen, chosen under priming, sweep, the
located vector at attribution's own place and at its last-ranked layer, the mean reply difference at the middle layer
on generated tokens, ten random vectors at the chosen place, all at priming's drift; and the peers' plain recipe, the
mean reply difference at the middle layer on every token at strength 1. With --second also a second step: the chosen
vector at half the drift, as many replies under it, and the outcome's direction there added. By the reward, and by
measures that it did not see. Intervals are 95 % bootstrap over prompts.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import plotly.graph_objects as go
import torch
from plotly.subplots import make_subplots
from scipy import stats
from torch import Tensor

import star_tl as star
from star_tl.attribution.choose import GAIN_DRIFT, costs_of, effects_of, gains
from star_tl.attribution.outcome import OutcomeMap
from star_tl.attribution.outcome.estimate import RIDGES, best_ridge, natural_directions
from star_tl.data.chat import Prompt
from star_tl.evaluation.drift import at_drift
from star_tl.evaluation.intervention import GENERATED, LARGEST, Candidate, first_strength, propose, shortlist
from star_tl.evaluation.judges import LABELS
from star_tl.evaluation.measures import (
    Measure,
    commonest_opening,
    judge,
    measured,
    measures_of,
    relevance,
    reward_of,
    unseen_by,
)
from star_tl.evaluation.samples import sample_conditions
from star_tl.evaluation.scores import mark_coherent
from star_tl.generation.settings import Sampling
from star_tl.locus import hook_name
from star_tl.models.backend import Model
from star_tl.stats import changes, compare_paired
from star_tl.steering.condition import Condition
from star_tl.vectors import extract_vector, extract_vectors
from star_tl.view.plots import BLUE, GREEN, SKY, VERMILION

TRAITS = ("emotional_support", "politeness", "gratitude", "agreement", "self_disclosure", "joy", "trust")
FILES = {"esconv": "valid.jsonl", "craigslist_bargain": "dev.json", "casino": "casino_valid.json"}
REAL = {
    "emotional_support": ("esconv",),
    "self_disclosure": ("esconv",),
    "politeness": ("craigslist_bargain", "casino"),
}
REAL |= {"gratitude": ("casino", "craigslist_bargain"), "agreement": ("craigslist_bargain", "casino")}
RANDOM = 10


def replies(
    model: Model, pairs: star.Pairs, prompts: Sequence[Prompt], ways: Sequence[Condition], args: Options
) -> pd.DataFrame:
    """Scored replies, with every measure and ``paid``: the reward, 0 for a reply that is not coherent."""
    frame = mark_coherent(sample_conditions(model, pairs.trait, prompts, ways, args.sampling, progress=args.progress))
    reward = paid_by(pairs, args)
    measures = {m.name: m for m in (*measures_of(pairs.trait), reward)}
    frame = measured(frame, list(prompts), list(measures.values()))
    return frame.assign(paid=frame[reward.name] * frame.coherent)


def paid_by(pairs: star.Pairs, args: Options) -> Measure:
    """The default reward, or judge × relevance without its bound."""
    if not args.unbounded or pairs.trait.name not in LABELS:
        return reward_of(pairs.trait)
    return judge(pairs.trait.name) * relevance()


def classical_gain(attr: star.AttributionMap, candidate: Candidate) -> float:
    """What the pairs' own metric gains by the vector at the last prompt token, to first order; NaN elsewhere."""
    vector = candidate.vector
    if candidate.condition.positions == GENERATED or vector.locus.positions != (-1,):
        return float("nan")
    directions = torch.zeros_like(attr.differences)
    directions[vector.locus.layer] = vector.vector[0]
    effect = effects_of(attr.gradients, directions).mean(0)
    cost = costs_of(attr.drift_gradients, directions).mean((0, 1))
    return float(gains(effect, cost)[vector.locus.layer])


def second_step(
    model: Model, pairs: star.Pairs, first: Condition, target: float, practice: Sequence[Prompt], args: Options
) -> Condition:
    """The chosen vector at half the drift, and what outcome attribution adds to it from replies written there."""
    (half,) = at_drift(model, pairs.trait, [first], target / 2, practice, args.sampling, progress=args.progress)
    again = star.attribute_outcome(
        model, pairs.extraction.prompts, paid_by(pairs, args), args.n, args.sampling, 1, args.n, ["resid_post"],
        progress=args.progress, under=half,
    )  # fmt: skip
    vector = first.vector
    assert isinstance(vector, star.SteeringVector)
    added = star.extract_outcome_vector(again, vector.locus, "generated" if first.positions == GENERATED else None)
    both = star.combine([vector, added], [half.strength, (target / 2 / GAIN_DRIFT) ** 0.5])
    way = replace(first, name="second step", vector=both, strength=1.0)
    return at_drift(model, pairs.trait, [way], target, practice, args.sampling, progress=args.progress)[0]


def all_layers(vectors: Sequence[star.SteeringVector], positions: str | None, outcome: OutcomeMap) -> Condition:
    """Vectors of several layers at once, with the weights that buy most of the reward per drift in the map's sample."""
    along = torch.stack([outcome._along(vector, positions) for vector in vectors], 1)
    scale = along.square().mean(0).sqrt().clamp_min(1e-12)
    ridge = best_ridge(along / scale, outcome.rewards, outcome.prompt, outcome.mean_tokens)
    weights = natural_directions(along / scale, outcome.advantages, (ridge,))[0] / scale
    cost = float((along @ weights).square().mean()) / (2 * outcome.mean_tokens)
    first, *more = (float(w) * (GAIN_DRIFT / cost) ** 0.5 * v for w, v in zip(weights, vectors, strict=True))
    return Condition(f"{vectors[0].method}, all layers", first, positions=positions, more=tuple(more))


def fishback(attr: star.AttributionMap, vectors: Mapping[int, star.SteeringVector]) -> Condition:
    """(F + λI)⁻¹ g at the last prompt token of one of these layers, g and F from the pairs alone."""
    even = torch.arange(len(attr.gradients)) % 2 == 0

    def directions(mine: Tensor, layer: int, ridges: Sequence[float]) -> Tensor:
        pulls = attr.drift_gradients[mine, :, layer].double().flatten(0, 1)
        values, basis = torch.linalg.eigh(pulls.T @ pulls / len(pulls))
        inside = basis.T @ attr.gradients[mine, layer].double().mean(0)
        return torch.stack([basis @ (inside / (values.clamp_min(0) + r * float(values.sum()))) for r in ridges])

    def gain(direction: Tensor, mine: Tensor, layer: int) -> float:
        effect = attr.gradients[mine, layer].double().mean(0) @ direction
        cost = (attr.drift_gradients[mine, :, layer].double() @ direction).square().mean()
        return float(gains(effect[None], cost[None]))

    ridges = [r for r in RIDGES if r != float("inf")]
    found = {}
    for layer in vectors:
        for made, tested in ((even, ~even), (~even, even)):
            for ridge, direction in zip(ridges, directions(made, layer, ridges), strict=True):
                found[layer, ridge] = found.get((layer, ridge), 0.0) + gain(direction, tested, layer) / 2
    layer, ridge = max(found, key=lambda key: found[key])
    direction = directions(torch.ones_like(even), layer, [ridge])[0]
    rows = (direction / direction.norm() * vectors[layer].norm).float()[None]
    vector = replace(vectors[layer], vector=rows, method=f"FishBack, λ {ridge}, gain {found[layer, ridge]:.3f}")
    return Condition("FishBack", vector)


def spearman(table: pd.DataFrame, column: str) -> tuple[float, int]:
    known = table.loc[table[column].notna()]
    return (float(stats.spearmanr(known[column], known.reward).statistic), len(known)) if len(known) > 2 else (0.0, 0)


def in_chunks(ways: list[Condition], size: int = 40) -> list[list[Condition]]:
    return [ways[i : i + size] for i in range(0, len(ways), size)]


def measure(model: Model, trait: str, args: Options) -> None:
    pairs = star.load_pairs(trait)
    reward, contexts = paid_by(pairs, args), pairs.extraction.prompts
    began = time.perf_counter()

    def note(what: str) -> None:
        print(f"[{trait}] {what} ({time.perf_counter() - began:.0f} s)", flush=True)

    primed = Condition("primed", instruction=pairs.trait.positive_instruction)
    practice = sample_conditions(model, pairs.trait, contexts, [replace(primed, seed=7)], args.sampling, progress=False)
    target = min(0.2, max(0.03, float(practice.drift.mean())))
    outcome = star.attribute_outcome(
        model, contexts, reward, args.n, args.sampling, 0, args.n, ["resid_post"], progress=args.progress
    )
    note(f"priming costs {practice.drift.mean():.3f}; {outcome!r}")
    attr = star.attribute(model, pairs, progress=args.progress)
    note(f"{attr.choose_layer().describe()}")
    layers = list(range(args.every - 1, outcome.n_layers, args.every))
    found = propose(model, pairs, attr, outcome, layers, natural=layers)
    finalists = shortlist(found, 8, outcome, attr.top_locus())
    cells = [c for c in found if c in finalists or c.vector.fraction * first_strength(c, outcome, target) <= LARGEST]
    note(f"{len(found)} candidates, {len(cells)} cells")
    started = [
        replace(c.condition, name=f"{i}", strength=first_strength(c, outcome, target)) for i, c in enumerate(cells)
    ]
    middle = extract_vector(model, pairs, star.Locus(f"blocks.{outcome.n_layers // 2}.hook_resid_post"), "reply_mean")
    wrong = extract_vector(model, pairs, attr.top_locus()).at_layer(attr.choose_layer().last_ranked)
    extra = [Condition("middle", middle, 0.5, GENERATED), Condition("wrong", wrong, 1.0)]
    every_layer = [star.Locus(hook_name("resid_post", layer)) for layer in range(outcome.n_layers)]
    for method, where in (("located", None), ("reply_mean", GENERATED)):
        extra.append(all_layers(extract_vectors(model, pairs, every_layer, method), where, outcome))
    singles = extract_vectors(model, pairs, [every_layer[layer] for layer in layers])
    extra.append(fishback(attr, {vector.locus.layer: vector for vector in singles}))
    note(f"FishBack: {extra[-1].vector!r}")
    practice_on = contexts[: args.practice]
    ready = at_drift(model, pairs.trait, [*started, *extra], target, practice_on, args.sampling, progress=args.progress)
    note("brought to priming's drift")
    frames = []
    for chunk in in_chunks(ready[: len(cells)]):
        ways = [Condition(seed=100 + s) for s in range(args.cell_seeds)]
        ways += [replace(c, seed=100 + s) for c in chunk for s in range(args.cell_seeds)]
        frames.append(replies(model, pairs, contexts, ways, args))
        note(f"{sum(len(f) for f in frames)} replies")
    swept = pd.concat(frames, ignore_index=True)
    by_arm = swept.groupby("arm")
    table = pd.DataFrame(
        {
            "source": c.source,
            "layer": c.vector.locus.layer,
            "where": c.where,
            "strength": ready[i].strength,
            "drift": by_arm.drift.mean()[f"{i}"],
            "predicted": c.gain.value if c.gain else float("nan"),
            "classical": classical_gain(attr, c),
            "reward": by_arm.paid.mean()[f"{i}"],
            "hits": swept[swept.arm == f"{i}"].eval("shows & coherent").mean(),
            "finalist": c in finalists,
        }
        for i, c in enumerate(cells)
    )
    unpaid = by_arm.paid.mean()["unsteered"]
    own = table.source.isin(["outcome", "natural outcome"])
    at_price = table.loc[table.drift < 1.5 * target]
    correlations = {
        "outcome, all cells": spearman(table, "predicted"),
        "outcome, cells it did not make": spearman(table.loc[~own], "predicted"),
        "pairs' metric, cells at the last prompt token": spearman(table, "classical"),
        "outcome, the same cells": spearman(table.loc[table.classical.notna()], "predicted"),
    }
    sweep = int(at_price.reward.idxmax())
    chosen = int(at_price[at_price.finalist].reward.idxmax())
    print(at_price.sort_values("reward", ascending=False).head(12).round(3).to_string(index=False))
    print(f"unsteered {unpaid:.3f}; rank correlations {correlations}", flush=True)

    located = cells.index(finalists[0])  # attribution's own place
    by_name = {way.name: way for way in ready}
    best = ready[chosen]
    arms = [
        Condition(),
        primed,
        replace(best, name="chosen"),
        replace(best, name="primed + chosen", instruction=primed.instruction),
        replace(ready[sweep], name="sweep"),
        replace(ready[located], name="located"),
        replace(by_name["wrong"], name="wrong layer"),
        replace(by_name["middle"], name="reply mean, middle"),
        *(by_name[way.name] for way in extra[2:]),
        Condition("peers' recipe", middle, 1.0, "all"),
    ]
    if args.second:
        arms.append(second_step(model, pairs, best, target, practice_on, args))
        note("second step")
    vector = cells[chosen].vector
    noise = [Condition("random", vector.random_like(k), best.strength, best.positions) for k in range(RANDOM)]
    noise = at_drift(model, pairs.trait, noise, target, practice_on, args.sampling, progress=args.progress)
    prompt_sets: dict[str, list[Prompt]] = {"held out": list(pairs.heldout.prompts)}
    for name in REAL.get(trait, ()) if args.data else ():
        items = star.load_prompts(args.data / name / FILES[name], limit=args.real)
        prompt_sets[name] = [item.messages for item in items]
    results, everywhere, unseen = {}, [], [m.name for m in unseen_by(reward, pairs.trait)]
    for name, prompts in prompt_sets.items():
        seeds = args.seeds if name == "held out" else 1
        ways = [replace(a, seed=500 + s) for a in arms for s in range(seeds)]
        ways += [replace(c, seed=500 + k % seeds) for k, c in enumerate(noise)]
        samples = replies(model, pairs, prompts, ways, args)
        results[name] = summary(samples, unseen)
        everywhere.append(samples.assign(prompt_id=name + " " + samples.prompt_id))
        samples.to_json(args.out / f"{trait}-{name.replace(' ', '_')}.jsonl", orient="records", lines=True)
        print(f"{trait}, {name}: {len(prompts)} prompts × {seeds}, reward {reward.name}, target {target:.3f}")
        print(results[name].round(3).to_string(index=False), flush=True)
    if len(everywhere) > 1:
        results["all of these"] = summary(pd.concat(everywhere, ignore_index=True), unseen)
        print(f"{trait}, all of these prompts together")
        print(results["all of these"].round(3).to_string(index=False), flush=True)
    note("done")
    report = {
        "trait": trait,
        "reward": reward.name,
        "target": target,
        "n": len(outcome.replies),
        "correlations": correlations,
        "chosen": table.loc[chosen].to_dict(),
        "sweep": table.loc[sweep].to_dict(),
        "unsteered": float(unpaid),
        "cells": table.to_dict(orient="records"),
        "results": {name: t.to_dict(orient="records") for name, t in results.items()},
        "seconds": time.perf_counter() - began,
    }
    (args.out / f"{trait}.json").write_text(json.dumps(report, default=float) + "\n")


def summary(samples: pd.DataFrame, unseen: Sequence[str]) -> pd.DataFrame:
    """A row an arm; differences to priming, prompt by prompt, with their intervals."""
    shown = ["paid", "hits", *unseen, *(["relevance"] if "relevance" in samples else [])]
    samples = samples.assign(hits=(samples.shows & samples.coherent).astype(float))
    by_prompt = samples.groupby(["arm", "prompt_id"])[shown].mean()
    rows = []
    for arm, part in samples.groupby("arm", sort=False):
        row = {"arm": arm, "n": len(part), "drift": part.drift.mean(), "coherent": part.coherent.mean()}
        row |= {"logprob": part.logprob.mean(), "opening": commonest_opening(list(part.text))}
        for name in shown:
            row[name] = part[name].mean()
            if name != "relevance":
                found = compare_paired(changes(by_prompt.loc[arm][name], by_prompt.loc["primed"][name]), 2000, 0)
                row[f"{name} − primed"] = f"[{found['low'] / 100:+.2f}, {found['high'] / 100:+.2f}]"
        rows.append(row)
    return pd.DataFrame(rows)


def draw_cells(reports: Sequence[Mapping[str, Any]]) -> go.Figure:
    """Every cell of the sweep: what outcome attribution had said of it, and the reward that its replies got."""
    colours = {"located": SKY, "reply mean": VERMILION, "outcome": BLUE, "natural outcome": GREEN}
    names = [str(r["trait"]).replace("_", " ") for r in reports]
    figure = make_subplots(1, len(reports), subplot_titles=names, horizontal_spacing=0.05)
    for col, report in enumerate(reports, 1):
        cells = pd.DataFrame(report["cells"])
        for source, colour in colours.items():
            for symbol, mine in (("circle", cells["where"] == GENERATED), ("circle-open", cells["where"] != GENERATED)):
                part = cells[mine & (cells.source == source) & (cells.drift < 1.5 * report["target"])]
                name = f"{source}, {'generated' if symbol == 'circle' else 'prompt'} tokens"
                dots = go.Scatter(
                    x=part.predicted, y=part.reward, mode="markers", name=name, legendgroup=name,
                    marker={"color": colour, "symbol": symbol, "size": 8}, showlegend=col == 1,
                )  # fmt: skip
                figure.add_trace(dots, row=1, col=col)
        chosen = report["chosen"]
        ring = {"symbol": "star-open", "size": 20, "color": "black", "line": {"width": 2}}
        best = go.Scatter(
            x=[chosen["predicted"]], y=[chosen["reward"]], mode="markers", name="chosen", marker=ring,
            legendgroup="chosen", showlegend=col == 1,
        )  # fmt: skip
        figure.add_trace(best, row=1, col=col)
        figure.add_hline(y=report["unsteered"], line={"dash": "dot", "color": "grey"}, row=1, col=col)
    figure.update_xaxes(title_text="predicted gain at 0.1 nat")
    figure.update_yaxes(title_text="mean reward of real replies", col=1)
    title = "Every source, layer and stretch of tokens at the drift of priming; dotted: unsteered"
    return figure.update_layout(template="plotly_white", width=380 * len(reports) + 240, height=460, title=title)


class Options(argparse.Namespace):
    model: str
    dtype: str | None
    traits: list[str]
    n: int
    every: int
    practice: int
    cell_seeds: int
    seeds: int
    real: int
    sampling: Sampling
    unbounded: bool
    second: bool
    progress: bool
    data: Path | None
    out: Path
    figure: Path | None


def main() -> None:
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument("--model", default="smollm2")
    ap.add_argument("--device")
    ap.add_argument("--dtype", help="bfloat16 is about twice as fast on a processor that has it")
    ap.add_argument("--traits", nargs="+", default=list(TRAITS))
    ap.add_argument("--n", type=int, default=768, help="unsteered replies that are attributed")
    ap.add_argument("--every", type=int, default=2, help="look at every so many-th layer")
    ap.add_argument("--practice", type=int, default=24, help="contexts on which strengths are found")
    ap.add_argument("--cell-seeds", type=int, default=2, help="replies of a cell to each extraction context")
    ap.add_argument("--seeds", type=int, default=4, help="replies to each held-out prompt")
    ap.add_argument("--real", type=int, default=100, help="most prompts of a data set")
    ap.add_argument("--unbounded", action="store_true", help="pay for all relevance")
    ap.add_argument("--second", action="store_true", help="take a second step from the chosen vector")
    ap.add_argument("--tokens", type=int, default=40)
    ap.add_argument("--temperature", type=float, default=1.0)
    ap.add_argument("--batch", type=int, default=64)
    ap.add_argument("--threads", type=int)
    ap.add_argument(
        "--data",
        type=Path,
        help="a folder of esconv/valid.jsonl, craigslist_bargain/dev.json and casino/casino_valid.json",
    )
    ap.add_argument("--out", type=Path, default=Path("runs/outcome"))
    ap.add_argument("--figure", type=Path, help="draw the cells of these traits: an HTML, PNG or SVG file")
    ap.add_argument("--progress", action=argparse.BooleanOptionalAction, default=True)
    args = ap.parse_args(namespace=Options())
    if args.threads:
        torch.set_num_threads(args.threads)
    args.sampling = Sampling(max_new_tokens=args.tokens, temperature=args.temperature, batch_size=args.batch)
    args.out.mkdir(parents=True, exist_ok=True)
    files = {trait: args.out / f"{trait}.json" for trait in args.traits}
    left = [trait for trait, file in files.items() if not file.exists()]  # what an earlier call finished is kept
    model = star.load_model(args.model, dtype=args.dtype, device=args.device) if left else None
    for trait in left:
        assert model is not None
        measure(model, trait, args)
    if args.figure:
        figure = draw_cells([json.loads(file.read_text()) for file in files.values()])
        save = figure.write_html if args.figure.suffix == ".html" else figure.write_image
        save(args.figure)


if __name__ == "__main__":
    main()
