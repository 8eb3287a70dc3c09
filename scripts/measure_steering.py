"""Print the steering tables of RESULTS.md again: every trait, on held-out and on real prompts.

    python scripts/measure_steering.py [--data FOLDER] [--quick] [--seeds 2] [--model demo] [--json FILE]

What steers is what ``run`` chooses by itself from replies to the extraction contexts; with ``--quick`` attribution's
choice alone. Held-out prompts are the built-in ones. With ``--data``, a folder that holds esconv/valid.jsonl,
craigslist_bargain/dev.json and casino/casino_valid.json in their official formats, the traits are
also measured on those. Prints one row per trait, prompts and arm.

With ``--places`` it sweeps places instead: a vector extracted at each layer's resid_post, last prompt token, and added
there, at the assistant header, at the user's last turn, at every generated token, or at every token (and, where
attribution chose other prompt tokens, extracted and added at these); each at the strength that drifts 0.1 nat on
extraction contexts, between those of a grid, or at the grid's largest. It shows where the place that attribution chose
ranks by realized effect on the held-out prompts, and with ``--data`` on the real ones, at matched drift. ``--figure``
draws the former.

With ``--strengths`` it asks whether the strength is chosen well: locus and strength are chosen as ``run`` chooses them,
on the extraction contexts; then every strength of the grid is sampled on fresh prompts, and the rate at the chosen one
is given as a share of the best that any reaches there within the drift limit. The best of several measured rates is a
little too high, so that even a perfect choice gets a share just below 1. With ``--down`` too the strengths are
negative, and the rate is that of coherent replies without the trait.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots
from transformer_lens import HookedTransformer

import star_tl as star
from star_tl.data.chat import Message
from star_tl.data.pairs import TRAITS
from star_tl.evaluation.samples import sample_conditions
from star_tl.evaluation.scores import mark_coherent, summarise
from star_tl.evaluation.strength import DRIFT_LIMIT, STRENGTHS
from star_tl.generation.settings import Sampling
from star_tl.locus import Locus
from star_tl.pipeline import run
from star_tl.steering.condition import Condition
from star_tl.view.plots import VERMILION

REAL = {
    "emotional_support": ("esconv/valid.jsonl",),
    "politeness": ("craigslist_bargain/dev.json", "casino/casino_valid.json"),
    "agreement": ("craigslist_bargain/dev.json",),
}
# What is added at every token does more per unit of strength, and more harm.
PLACES = {
    "last_prompt": (0.5, 1.0, 2.0, 4.0, 8.0),
    "header": (0.25, 0.5, 1.0, 2.0, 4.0),
    "user turn": (0.25, 0.5, 1.0, 2.0, 4.0),
    "generated": (0.125, 0.25, 0.5, 1.0, 2.0),
    "all": (0.125, 0.25, 0.5, 1.0, 2.0),
}
# Behind the last layer no token reads another: there these are the same as those, and count once.
TWINS = {"locus": "last_prompt", "header": "last_prompt", "all": "generated"}
MATCHED_DRIFT = DRIFT_LIMIT / 2  # nats a token, about what the chosen strengths take
COLUMNS = ["trait", "prompts", "arm", "n", "trait_rate", "difference", "low", "high", "coherent_rate", "drift"]


def prompts_for(trait: str, data: Path | None, limit: int) -> dict[str, list[tuple[Message, ...]]]:
    """Fresh prompts by source: the held-out contexts, and those of real dialogues."""
    found = {"held out": star.load_pairs(trait).heldout.prompts}
    for name in REAL.get(trait, ()) if data else ():
        found[name.split("/")[0]] = [item.messages for item in star.load_prompts(data / name, limit=limit)]
    return found


def sweep_places(
    model: HookedTransformer, trait: str, sources: dict[str, list[tuple[Message, ...]]], seeds: int
) -> pd.DataFrame:
    """A row per source, layer and schedule: its strength, all of like drift, and rate and drift on fresh prompts."""
    pairs = star.load_pairs(trait)
    attr = star.attribute(model, pairs, progress=False)
    chosen = attr.top_locus()
    options = Sampling(batch_size=128)

    def vectors(positions: tuple[int, ...]) -> list[star.SteeringVector]:
        points = (f"blocks.{i}.hook_resid_post" for i in range(model.cfg.n_layers))
        return [star.extract_vector(model, pairs, Locus(point, positions)) for point in points]

    last = model.cfg.n_layers - 1
    places: list[tuple[star.SteeringVector, str | None]] = [
        (v, at) for v in vectors((-1,)) for at in PLACES if v.locus.layer < last or at not in TWINS
    ]
    if chosen.positions != (-1,):  # attribution chose more than the last prompt token: extract and add there, too
        places += [(v, None) for v in vectors(chosen.positions) if v.locus.layer < last]
    practice = [Condition("steered", v, x, at) for v, at in places for x in PLACES[at or "last_prompt"]]
    tried = sample_conditions(model, pairs.trait, pairs.extraction.prompts[:24], practice, options, progress=False)
    ways = [Condition(seed=seed) for seed in range(seeds)]
    for v, at in places:
        mine = tried[(tried.layer == v.locus.layer) & (tried.positions == (at or "locus"))]
        drift = mine.groupby("strength").drift.mean().cummax()
        strength = float(np.interp(MATCHED_DRIFT, [0, *drift], [0, *drift.index]))
        ways += [Condition("steered", v, strength, at, seed=seed) for seed in range(seeds)]
    tables = []
    for source, prompts in sources.items():
        fresh = mark_coherent(sample_conditions(model, pairs.trait, prompts, ways, options, progress=False))
        tables.append(ranked(fresh, chosen).assign(trait=trait, prompts=source))
        mine = tables[-1][tables[-1].chosen].iloc[0]
        print(
            f"\n{trait}, {source}: unsteered {mine.unsteered:.0%}; the chosen place ({chosen}) reaches "
            f"{mine.trait_rate:.0%}, rank {mine['rank']} of {tables[-1].counts.sum()}; "
            f"gains {[round(float(x), 3) for x in attr.choose_layer().gain]}"
        )
        for value in ("trait_rate", "drift"):
            grid = tables[-1].pivot(index="layer", columns="positions", values=value)
            print(grid[schedules_of(tables[-1])].round(2).to_string(), flush=True)
    return pd.concat(tables, ignore_index=True)


def ranked(fresh: pd.DataFrame, chosen: Locus) -> pd.DataFrame:
    """A row per place with its rank among those that count; behind the last layer the same places count once."""
    fresh["trait_rate"] = fresh.shows & fresh.coherent
    steered = fresh[fresh.arm != "unsteered"].groupby(["layer", "positions", "strength"], sort=False)
    table = steered.agg(trait_rate=("trait_rate", "mean"), drift=("drift", "mean"), n=("text", "size")).reset_index()
    table["unsteered"] = fresh[fresh.arm == "unsteered"].trait_rate.mean()
    own = "last_prompt" if chosen.positions == (-1,) else "locus"
    table["chosen"] = (table.layer == chosen.layer) & (table.positions == own)
    within = table.trait_rate.where(table.drift <= DRIFT_LIMIT, 0.0)
    table["rank"] = within.rank(ascending=False, method="min").astype(int)
    last, table["counts"] = table.layer.max(), True
    twins = [
        table[(table.layer == last) & (table.positions == at)].assign(positions=name, chosen=False, counts=False)
        for name, at in TWINS.items()
        if name in set(table.positions)
    ]
    return pd.concat([table, *twins], ignore_index=True)


def schedules_of(table: pd.DataFrame) -> list[str]:
    """The columns of a trait's table: ``locus`` where attribution chose other positions than the last prompt token."""
    return [name for name in ("locus", *PLACES) if name in set(table.positions)]


def measure_strengths(
    model: HookedTransformer, trait: str, sources: dict[str, list[tuple[Message, ...]]], seeds: int, down: bool
) -> list[dict]:
    """A row per source: what the strength that was chosen beforehand does there, beside the best of the grid."""
    pairs = star.load_pairs(trait)
    vector = star.extract_vector(model, pairs, star.attribute(model, pairs, progress=False).top_locus())
    grid = tuple(-x if down else x for x in STRENGTHS)
    choice = star.choose_strength(model, vector, pairs.trait, pairs.extraction.prompts, grid, progress=False)
    ways = [Condition(seed=seed) for seed in range(seeds)] + [
        Condition("steered", vector, x, seed=s) for x in grid for s in range(seeds)
    ]
    options = Sampling(batch_size=128)
    rows = []
    for source, prompts in sources.items():
        fresh = mark_coherent(sample_conditions(model, pairs.trait, prompts, ways, options, progress=False))
        fresh["rate"] = (fresh.coherent & (fresh.shows != down)).astype(float)
        found = {"trait": trait, "prompts": source, "n": len(prompts) * seeds, "chosen": choice.strength}
        rows.append(found | share_of_best(fresh, choice.strength))
    return rows


def share_of_best(fresh: pd.DataFrame, chosen: float, resamples: int = 2000) -> dict:
    """The chosen strength's rate over the best within the limit, with a 95 % bootstrap interval over prompts."""
    mean = fresh.pivot_table(index="prompt_id", columns="strength", values=["rate", "drift"])
    unsteered, mean = mean.rate[0].mean(), mean.drop(columns=0, level=1)
    rate, drift, at = mean.rate.to_numpy(), mean.drift.to_numpy(), list(mean.rate.columns)
    mine = at.index(chosen)

    def best(rates: np.ndarray, drifts: np.ndarray) -> np.ndarray:
        return np.where(drifts <= DRIFT_LIMIT, rates, 0).max(-1)

    rates, drifts = rate.mean(0), drift.mean(0)
    again = np.random.default_rng(0).integers(len(rate), size=(resamples, len(rate)))
    resampled = rate[again].mean(1)
    low, high = np.quantile(resampled[:, mine] / best(resampled, drift[again].mean(1)), (0.025, 0.975))
    return {
        "unsteered": unsteered,
        "rate": rates[mine],
        "drift": drifts[mine],
        "within": bool(drifts[mine] <= DRIFT_LIMIT),
        "best": at[int(np.where(drifts <= DRIFT_LIMIT, rates, -1).argmax())],
        "best_rate": best(rates, drifts),
        "share": rates[mine] / best(rates, drifts),
        "low": low,
        "high": high,
        "curve": {str(x): [round(r, 4), round(d, 4)] for x, r, d in zip(at, rates, drifts, strict=True)},
    }


def draw_places(table: pd.DataFrame) -> go.Figure:
    """Layer × schedule per trait, held out: percentage of coherent replies with it; too much drift is left white."""
    table = table[table.prompts == "held out"]
    traits = list(dict.fromkeys(table.trait))
    rates = table.groupby("trait").unsteered.first()
    titles = [f"{t.replace('_', ' ')}<br>{rates[t]:.0%} unsteered" for t in traits]
    figure = make_subplots(1, len(traits), shared_yaxes=True, subplot_titles=titles, horizontal_spacing=0.02)
    for col, trait in enumerate(traits, 1):
        mine = table[table.trait == trait]
        grid = mine.assign(shown=(100 * mine.trait_rate).where(mine.drift <= DRIFT_LIMIT))
        schedules = schedules_of(mine)
        z = grid.pivot(index="layer", columns="positions", values="shown")[schedules]
        names = [name.replace("_", " ") for name in schedules]
        heat = go.Heatmap(z=z.to_numpy(), x=names, y=list(z.index), coloraxis="coloraxis", texttemplate="%{z:.0f}")
        figure.add_trace(heat.update(xgap=1, ygap=1), row=1, col=col)
        place = mine[mine.chosen].iloc[0]
        x, y = schedules.index(place.positions), int(place.layer)
        figure.add_shape(
            type="rect",
            x0=x - 0.5,
            x1=x + 0.5,
            y0=y - 0.5,
            y1=y + 0.5,
            line={"color": VERMILION, "width": 3},
            row=1,
            col=col,
        )
    figure.update_yaxes(title_text="layer", dtick=1, col=1)
    figure.update_xaxes(tickangle=-40)
    axis = {"colorscale": "Blues", "cmin": 0, "cmax": 100, "colorbar": {"title": "% coherent<br>with trait"}}
    title = f"Where adding the vector works, at {MATCHED_DRIFT:g} nat drift; framed: chosen by attribution"
    return figure.update_layout(
        template="plotly_white", width=1400, height=480, margin_t=130, coloraxis=axis, title=title
    )


def main() -> None:
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument("--data", type=Path)
    ap.add_argument("--model", default="demo")
    ap.add_argument("--traits", nargs="+", default=list(TRAITS))
    ap.add_argument("--seeds", type=int, default=2)
    ap.add_argument("--limit", type=int, default=50, help="prompts from each real file")
    ap.add_argument("--quick", action="store_true", help="take attribution's choice, as run --quick does")
    ap.add_argument("--places", action="store_true", help="sweep layers and schedules instead")
    ap.add_argument("--strengths", action="store_true", help="ask how good the chosen strength is on fresh prompts")
    ap.add_argument("--down", action="store_true", help="with --strengths: turn the traits down")
    ap.add_argument("--figure", type=Path, help="with --places: an HTML, PNG or SVG file")
    ap.add_argument("--json", type=Path)
    args = ap.parse_args()

    model = star.load_model(args.model)
    if args.places:
        tables = [
            sweep_places(model, trait, prompts_for(trait, args.data, args.limit), args.seeds) for trait in args.traits
        ]
        table = pd.concat(tables, ignore_index=True)
        if args.json:
            args.json.write_text(json.dumps({"rows": table.to_dict(orient="records")}, indent=1, default=float) + "\n")
        if args.figure:
            figure = draw_places(table)
            save = figure.write_html if args.figure.suffix == ".html" else figure.write_image
            save(args.figure)
        return
    if args.strengths:
        rows = []
        for trait in args.traits:
            sources = prompts_for(trait, args.data, args.limit)
            rows += measure_strengths(model, trait, sources, args.seeds, args.down)
            print(f"{trait} done", file=sys.stderr)
        print(pd.DataFrame(rows).drop(columns="curve").round(3).to_string(index=False))
        if args.json:
            args.json.write_text(json.dumps({"rows": rows}, indent=1, default=float) + "\n")
        return
    tables = []
    for trait in args.traits:
        pairs, sources = star.load_pairs(trait), prompts_for(trait, args.data, args.limit)
        began = time.time()
        prompts = [prompt for own in sources.values() for prompt in own]
        result = run(model, pairs, prompts, quick=args.quick, seeds=tuple(range(args.seeds)), progress=False)
        choice = result.attribution.choose_layer()
        print(
            f"\n{trait}: {result.vector.method}, {result.vector.locus} ({choice.describe()}), "
            f"strength {result.settings['strength']} ({time.time() - began:.0f} s)"
        )
        source_of = np.repeat(list(sources), [len(own) for own in sources.values()])
        samples = result.samples.assign(source=[source_of[int(name[1:])] for name in result.samples.prompt_id])
        for source in sources:
            table = summarise(samples[samples.source == source].drop(columns="source"))
            tables.append(table.assign(trait=trait, prompts=source))
            print(f"{trait}, {source}")
            print(table[COLUMNS[2:]].to_string(index=False, float_format=lambda x: f"{x:.3f}"), flush=True)
    if args.json:
        rows = pd.concat(tables, ignore_index=True).to_dict(orient="records")
        args.json.write_text(json.dumps({"rows": rows}, indent=1, default=float) + "\n")


if __name__ == "__main__":
    main()
