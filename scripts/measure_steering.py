"""Regenerate the README's steering table: every trait, on held-out and on real prompts.

    python scripts/measure_steering.py [--data FOLDER] [--seeds 2] [--model demo] [--json FILE]

Held-out prompts are the built-in ones. With ``--data``, a folder that holds esconv/valid.jsonl,
craigslist_bargain/dev.json and casino/casino_valid.json in their official formats, the traits are
also measured on those. Prints one row per trait, prompts and arm.

With ``--layers`` it sweeps the layers instead: a vector extracted at each layer's resid_post, last prompt
token, injected there, at each of a few strengths on the extraction contexts; the one chosen there is then
measured on the held-out prompts. It shows where the layer that attribution chose ranks by realized effect.
"""

from __future__ import annotations

import argparse
import json
import time
from dataclasses import replace
from pathlib import Path

import pandas as pd
from transformer_lens import HookedTransformer

import star_tl as star
from star_tl.pairs import TRAITS
from star_tl.pipeline import run
from star_tl.strength import best_dose

REAL = {
    "emotional_support": ("esconv/valid.jsonl",),
    "politeness": ("craigslist_bargain/dev.json", "casino/casino_valid.json"),
    "agreement": ("craigslist_bargain/dev.json",),
}
COLUMNS = ["trait", "prompts", "arm", "n", "trait_rate", "difference", "low", "high", "coherent_rate", "drift"]


def sweep_layers(model: HookedTransformer, trait: str, seeds: int) -> pd.DataFrame:
    """A row per layer: the strength chosen for it, and rate and drift on the held-out prompts."""
    pairs = star.load_pairs(trait)
    attr = star.attribute(model, pairs, progress=False)
    choice, chosen = attr.choose_layer(), attr.top_locus()
    loci = [replace(chosen, hook_point=f"blocks.{i}.hook_resid_post") for i in range(model.cfg.n_layers)]
    practice, fresh = (
        star.compare(model, pairs, prompts, loci, seeds=range(n), progress=False).summary()
        for prompts, n in ((pairs.extraction.prompts, 1), (None, seeds))
    )
    rows = []
    for layer in range(model.cfg.n_layers):
        strength = best_dose(practice[practice.layer == layer])
        found = fresh[(fresh.layer == layer) & (fresh.strength == strength)].iloc[0]
        row = {"trait": trait, "layer": layer, "chosen": layer == choice.layer, "writes": float(choice.writes[layer])}
        row |= {"strength": strength, "unsteered": fresh.trait_rate.iloc[0], "steered": found.trait_rate}
        rows.append(row | {"drift": found.drift, "n": found.n})
    table = pd.DataFrame(rows)
    table["rank"] = table.steered.rank(ascending=False, method="min").astype(int)
    print(f"\n{trait}, positions {chosen.positions}")
    print(table.drop(columns="trait").to_string(index=False, float_format=lambda x: f"{x:.3f}"), flush=True)
    return table


def main() -> None:
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument("--data", type=Path)
    ap.add_argument("--model", default="demo")
    ap.add_argument("--traits", nargs="+", default=list(TRAITS))
    ap.add_argument("--seeds", type=int, default=2)
    ap.add_argument("--limit", type=int, default=50, help="prompts from each real file")
    ap.add_argument("--layers", action="store_true", help="sweep the layers instead")
    ap.add_argument("--json", type=Path)
    args = ap.parse_args()

    model = star.load_model(args.model)
    if args.layers:
        table = pd.concat([sweep_layers(model, trait, args.seeds) for trait in args.traits], ignore_index=True)
        if args.json:
            args.json.write_text(json.dumps({"rows": table.to_dict(orient="records")}, indent=1, default=float) + "\n")
        return
    tables = []
    for trait in args.traits:
        pairs = star.load_pairs(trait)
        sources: list[tuple[str, list | None]] = [("held out", None)]
        for name in REAL.get(trait, ()) if args.data else ():
            items = star.load_prompts(args.data / name, limit=args.limit)
            sources.append((name.split("/")[0], [item.messages for item in items]))
        for source, prompts in sources:
            began = time.time()
            result = run(model, pairs, prompts, seeds=tuple(range(args.seeds)), progress=False)
            table = result.summary.assign(trait=trait, prompts=source)
            tables.append(table)
            choice = result.attribution.choose_layer()
            print(
                f"\n{trait}, {source}: {result.vector.locus}, layer chosen in {choice.frequency[choice.layer]:.0%} of "
                f"resamples, strength {result.settings['strength']} ({time.time() - began:.0f} s)"
            )
            print(table[COLUMNS[2:]].to_string(index=False, float_format=lambda x: f"{x:.3f}"), flush=True)
    if args.json:
        rows = pd.concat(tables, ignore_index=True).to_dict(orient="records")
        args.json.write_text(json.dumps({"rows": rows}, indent=1, default=float) + "\n")


if __name__ == "__main__":
    main()
