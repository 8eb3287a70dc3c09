"""What other work on the machine costs, by how long an OpenMP thread of PyTorch's spins before it sleeps.

    python scripts/bench_busy.py [--json FILE] [--model demo] [--prompts 64] [--rounds 2] [--turns 5] [--busy 0 1 2]

Seconds in which replies to so many prompts are written, while so many other processes count: the median and the worst
of all rounds, in as many processes as there are turns, for how the system deals threads out to cores stays the same for
long. The two arms, in turn, are GOMP_SPINCOUNT as star_tl sets it where nobody has said, and GNU's own default.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import statistics
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import count
from pathlib import Path

SPINS = {"star_tl": 5_000, "GNU": 300_000}
WORK = """
import sys, time
import star_tl as star
model, prompts, rounds = star.load_model(sys.argv[1]), star.load_pairs("emotional_support").prompts, int(sys.argv[3])
asked = (prompts * 2)[: int(sys.argv[2])]
for _ in range(rounds + 1):
    began = time.perf_counter()
    star.sample(model, asked, max_new_tokens=40, progress=False)
    print(time.perf_counter() - began)
"""


def counting() -> None:
    for _ in count():
        pass


@contextmanager
def busy(processes: int) -> Iterator[None]:
    others = [multiprocessing.Process(target=counting, daemon=True) for _ in range(processes)]
    for other in others:
        other.start()
    try:
        yield
    finally:
        for other in others:
            other.terminate()
            other.join()


def seconds(model: str, prompts: int, rounds: int, spins: int) -> list[float]:
    """Of every round but the first."""
    command = [sys.executable, "-c", WORK, model, str(prompts), str(rounds)]
    given = {key: value for key, value in os.environ.items() if key != "OMP_WAIT_POLICY"}
    given |= {"GOMP_SPINCOUNT": str(spins)}
    done = subprocess.run(command, env=given, stdout=subprocess.PIPE, text=True, check=True)
    return [float(line) for line in done.stdout.splitlines()][1:]


def main() -> None:
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument("--json", type=Path)
    ap.add_argument("--model", default="demo")
    ap.add_argument("--prompts", type=int, default=64)
    ap.add_argument("--rounds", type=int, default=2)
    ap.add_argument("--turns", type=int, default=5)
    ap.add_argument("--busy", type=int, nargs="+", default=[0, 1, 2])
    args = ap.parse_args()
    table = []
    for processes in args.busy:
        found: dict[str, list[float]] = {name: [] for name in SPINS}
        with busy(processes):
            for _ in range(args.turns):
                for name, spins in SPINS.items():
                    found[name] += seconds(args.model, args.prompts, args.rounds, spins)
        row: dict[str, object] = {"busy": processes, "cores": os.cpu_count()}
        row |= {name: {"median": statistics.median(s), "worst": max(s)} for name, s in found.items()}
        table.append(row)
        print(json.dumps(row), flush=True)
    if args.json:
        args.json.write_text(json.dumps(table, indent=2))


if __name__ == "__main__":
    main()
