"""Time and peak memory of outcome attribution: sampling, gradients at every hook point, and the map.

    python scripts/bench_outcome.py [--model demo] [--n 768] [--tokens 40] [--prompts 40] [--threads 2] [--json FILE]

The reward is a trait's markers; the prompts are its extraction contexts. ``peak_gb`` is the process's largest resident
memory, the model and all libraries included. ``cpu_seconds`` over the threads is about what quiet cores would take.
"""

from __future__ import annotations

import argparse
import json
import resource
import tempfile
import time
from pathlib import Path

import torch

import star_tl as star
from star_tl.attribution.outcome.sample import spread, write_replies
from star_tl.data.chat import as_messages
from star_tl.generation.sampling import render_prompts
from star_tl.generation.settings import Sampling


def now() -> tuple[float, float]:
    """Seconds on the wall, and of all threads together."""
    return time.perf_counter(), time.process_time()


def main() -> None:
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument("--model", default="demo")
    ap.add_argument("--trait", default="emotional_support")
    ap.add_argument("--n", type=int, default=768)
    ap.add_argument("--tokens", type=int, default=40)
    ap.add_argument("--prompts", type=int, default=40)
    ap.add_argument("--threads", type=int, default=2)
    ap.add_argument("--seed", type=int, default=0)
    ap.add_argument("--save", type=Path, help="keep the map, and the replies beside it")
    ap.add_argument("--json", type=Path)
    args = ap.parse_args()
    torch.set_num_threads(args.threads)
    times = {"start": now()}
    model = star.load_model(args.model)
    times["load"] = now()
    pairs = star.load_pairs(args.trait).extraction
    prompts = [as_messages(p) for p in pairs.prompts[: args.prompts]]
    options = Sampling(max_new_tokens=args.tokens)

    def markers(prompt: object, text: str) -> float:
        return float(pairs.trait.shown_in(text))

    with tempfile.TemporaryDirectory() as folder:
        out = args.save.with_suffix(".jsonl") if args.save else Path(folder) / "replies.jsonl"
        ids = render_prompts(model, prompts, args.tokens)
        write_replies(model, ids, spread(args.n, len(prompts)), options, args.seed, star.Condition(), (), out, True)
        times["sampling"] = now()
        outcome = star.attribute_outcome(model, prompts, markers, args.n, options, args.seed, least=args.n, out=out)
        times["gradients"] = now()
    for point in outcome.gradients:
        outcome.gains(point)
    times["map"] = now()
    locus = outcome.top_locus("generated")
    natural = outcome.direction(locus, "generated", "natural")
    times["natural gradient"] = now()
    if args.save:
        outcome.save(args.save)
    steps = list(times.items())
    seconds, cpu_seconds = (
        {name: round(at[k] - steps[i][1][k], 2) for i, (name, at) in enumerate(steps[1:])} for k in (0, 1)
    )
    found = {
        "model": args.model,
        "replies": args.n,
        "tokens": int(outcome.tokens.sum()),
        "threads": args.threads,
        "seconds": seconds,
        "cpu_seconds": cpu_seconds,
        "sampling and gradients": round(seconds["sampling"] + seconds["gradients"], 1),
        "peak_gb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6, 2),
        "gradients_gb": round(sum(g.nbytes for g in {id(g): g for g in outcome.gradients.values()}.values()) / 1e9, 2),
        "natural": f"{locus} generated: {natural.gain}",
    }
    print(outcome)
    print(json.dumps(found, indent=1))
    if args.json:
        args.json.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
