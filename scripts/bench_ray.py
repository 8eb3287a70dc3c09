"""What a Ray worker costs beside the process itself, once it has started.

    python scripts/bench_ray.py [--json FILE] [--model demo] [--workers 1] [--prompts 32] [--tokens 40] [--rounds 3]

The same sweep of layers and strengths, in this process and by workers on this machine, in turns; the workers have
loaded their models before the clock starts. Every table must be the first one.

    replies_per_s   of the process alone, and of the workers
    overhead        how much longer the workers take, as a share of the time of the process alone: median of the rounds
    start_s         until Ray and its workers were there, models loaded
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from pathlib import Path
from typing import Any

import pandas as pd

import star_tl as star
from star_tl.evaluation.ray_workers import RayWorkers
from star_tl.locus import Locus


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--model", default="demo")
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--prompts", type=int, default=32)
    parser.add_argument("--tokens", type=int, default=40)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    model, pairs = star.load_model(options.model), star.load_pairs("emotional_support")
    n = model.cfg.n_layers
    sweep: dict[str, Any] = {
        "prompts": pairs.prompts[: options.prompts],
        "loci": [Locus(f"blocks.{layer}.hook_resid_post") for layer in (n // 3, n // 2, 2 * n // 3)],
        "max_new_tokens": options.tokens,
        "progress": False,
    }
    began = time.perf_counter()
    with RayWorkers(model, count=options.workers) as workers:
        star.compare(model, pairs, workers=workers, **(sweep | {"max_new_tokens": 1}))  # models are loaded at first use
        result: dict[str, Any] = {"model": options.model, "workers": options.workers}
        result["start_s"] = time.perf_counter() - began
        seconds: dict[str, list[float]] = {"alone": [], "workers": []}
        first: pd.DataFrame | None = None
        for _ in range(options.rounds):  # they take turns, so that a busy minute falls on both
            for name, who in (("alone", None), ("workers", workers)):
                began = time.perf_counter()
                table = star.compare(model, pairs, workers=who, **sweep).frame
                seconds[name].append(time.perf_counter() - began)
                first = table if first is None else first
                pd.testing.assert_frame_equal(table, first, check_exact=True)
    assert first is not None
    result["replies_per_s"] = {name: len(first) / statistics.median(times) for name, times in seconds.items()}
    result["overhead"] = statistics.median(b / a - 1 for a, b in zip(*seconds.values(), strict=True))
    print(json.dumps(result, indent=2))
    if options.json:
        options.json.write_text(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
