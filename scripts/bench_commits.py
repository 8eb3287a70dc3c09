"""What a change costs: attribution and steered sampling at several commits, in turns, on the demo model.

    python scripts/bench_commits.py COMMIT [COMMIT ...] [--rounds 12] [--threads 2] [--json FILE]

A commit is anything that git knows, with ``:draws=1`` after it where ``attribute`` shall draw so many random signs
(commits before the draws were an argument drew once); ``.`` is the working tree. Each is checked out beside the
repository, in a temporary folder, and keeps a process of its own, so that a round asks them in turn, each time in
another order. Milliseconds are medians; ``ratio`` is the median over rounds of a commit's time over the first one's
in the same round, with its quartiles.

    attribution   eight pairs of emotional support, one in a call, all hook points; a pair
    sampling      32 greedy tokens, a vector at every generated token, one row and then sixteen; both together
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from contextlib import ExitStack
from pathlib import Path

HERE = Path(__file__).resolve().parents[1]
PAIRS = 8
WORKER = """
import json, sys, time, warnings
from dataclasses import replace
warnings.filterwarnings("ignore")
import torch, star_tl as star
torch.set_num_threads(int(sys.argv[1]))
model, pairs = star.load_model("demo"), star.load_pairs("emotional_support")
few = [replace(pairs, pairs=(pair,)) for pair in pairs.pairs[:int(sys.argv[3])]]
hooks = star.extract_vector(model, pairs, star.Locus("blocks.5.hook_resid_post")).hooks(1.0, "generated")
def attribution():
    for pair in few:
        star.attribute(model, pair, progress=False, **json.loads(sys.argv[2]))
def sampling():
    for rows in (1, 16):
        star.sample(model, pairs.prompts[:rows], hooks=hooks, max_new_tokens=32, temperature=0.0, progress=False)
works = {"attribution": attribution, "sampling": sampling}
for work in works.values():
    work()
print("ready", flush=True)
for line in sys.stdin:
    began = time.perf_counter()
    works[line.strip()]()
    print(time.perf_counter() - began, flush=True)
"""


def worker(stack: ExitStack, commit: str, options: argparse.Namespace) -> subprocess.Popen[str]:
    """A process that runs a commit's code when it is asked to."""
    name, _, draws = commit.partition(":draws=")
    tree = HERE
    if name != ".":
        folder = stack.enter_context(tempfile.TemporaryDirectory())
        files = subprocess.run(["git", "archive", name], cwd=HERE, stdout=subprocess.PIPE, check=False)
        if files.returncode:
            raise SystemExit(f"{name} is no commit of this repository: see above.")
        subprocess.run(["tar", "x", "-C", folder], input=files.stdout, check=True)
        tree = Path(folder)
    more = json.dumps({"draws": int(draws)} if draws else {})
    process = subprocess.Popen(
        [sys.executable, "-c", WORKER, str(options.threads), more, str(PAIRS)],
        cwd=tree,
        env=os.environ | {"PYTHONPATH": str(tree)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    stack.callback(process.terminate)
    assert process.stdout is not None
    if process.stdout.readline().strip() != "ready":
        raise SystemExit(f"{commit} did not start: see above.")
    return process


def seconds(process: subprocess.Popen[str], work: str) -> float:
    """How long a piece of work took there."""
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write(work + "\n")
    process.stdin.flush()
    return float(process.stdout.readline())


def compare(commits: list[str], options: argparse.Namespace) -> list[dict[str, object]]:
    """A row for every piece of work and commit."""
    rows: list[dict[str, object]] = []
    with ExitStack() as stack:
        processes = [worker(stack, commit, options) for commit in commits]
        for work, units in (("attribution", PAIRS), ("sampling", 1)):
            times: list[list[float]] = [[] for _ in commits]
            for turn in range(options.rounds):
                for k in range(len(commits)):
                    i = (turn + k) % len(commits)
                    times[i].append(seconds(processes[i], work))
            for commit, mine in zip(commits, times, strict=True):
                ratios = [a / b for a, b in zip(mine, times[0], strict=True)]
                low, ratio, high = statistics.quantiles(ratios, n=4)
                ms = 1e3 * statistics.median(mine) / units
                rows.append({"work": work, "commit": commit, "ms": ms, "ratio": ratio, "low": low, "high": high})
    return rows


def main() -> None:
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument("commits", nargs="+")
    ap.add_argument("--rounds", type=int, default=12)
    ap.add_argument("--threads", type=int, default=2)
    ap.add_argument("--json", type=Path)
    options = ap.parse_args()
    if options.rounds < 2:
        ap.error("--rounds: use at least 2")
    rows = compare(options.commits, options)
    for row in rows:
        print("{work:12} {commit:20} {ms:8.2f} ms   {ratio:.3f} [{low:.3f}, {high:.3f}]".format(**row))
    if options.json:
        options.json.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
