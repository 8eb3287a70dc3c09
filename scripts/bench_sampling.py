"""Tokens per second of steered sampling, beside the ways people do it today.

    python scripts/bench_sampling.py [--json FILE] [--rounds 5] [--threads 2] [--no-steering-vectors]

Every arm writes 64 greedy tokens after 24-token prompts, with one vector added at every generated token of the
middle layer; nothing ends early. Cases are the demo model, a random Llama (8 layers, d_model 512, 8 query and 2
key-value heads) and SmolLM2-135M-Instruct at batches of 1, 16 and 64.

    star_tl            star.generate with vector.hooks()
    transformer_lens   HookedTransformer.generate under model.hooks(), weights as TransformerLens stores them
    huggingface_hook   LlamaForCausalLM.generate with a forward hook
    steering_vectors   the steering-vectors library on the same HuggingFace model; it needs transformers < 5 and runs
                       in a virtual environment that the script makes (--no-steering-vectors leaves it out)

The sweep writes 8 layers x 8 strengths x 8 prompts, 32 greedy tokens each, the vector at the last prompt token: in
few large batches with star_tl, and in loops with HuggingFace, once one reply at a time and once with the 8 prompts of a
configuration in one batch. Texts are compared row by row.

Arms take turns; figures are medians over rounds (the sweep runs once). ``peak_mb`` is what a call makes a
process grow by, measured in a process of its own whose allocator gives memory back at once; a second copy of the
weights would show in it.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import venv
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import torch
from tqdm.auto import tqdm
from transformer_lens import HookedTransformer
from transformers import LlamaForCausalLM, logging

import star_tl as star
from star_tl.generation.sampling import in_batches
from star_tl.generation.settings import Sampling
from star_tl.locus import Locus
from star_tl.models.batch import make_batch
from star_tl.steering.hooks import injection_hooks, row_hooks

sys.path.insert(0, str(Path(__file__).parent))
from bench_attribution import GIVE_BACK, folder_of
from bench_attribution import stock as as_transformer_lens_stores_it

CASES = [(model, rows) for model in ("demo", "llama-512", "smollm2") for rows in (1, 16, 64)]
SWEEP = ("demo", "llama-512")
PROMPT, REPLY, SWEEP_REPLY = 24, 64, 32
SEARCHED = (0.5, 1.0, 1.5, 2.0, 2.5, 3.0, 3.5, 4.0)
Arm = Callable[[], Any]


def prompts(rows: int) -> list[tuple[int, ...]]:
    tokens = torch.randint(300, 4000, (rows, PROMPT), generator=torch.Generator().manual_seed(0))
    return [tuple(row) for row in tokens.tolist()]


def vector(model: Any, width: int) -> torch.Tensor:
    return torch.randn(width, generator=torch.Generator().manual_seed(1))


def without_end(model: HookedTransformer) -> None:
    """Every arm writes all its tokens."""
    from star_tl.generation import sampling

    sampling.stop_ids = lambda tokenizer: ()  # type: ignore[assignment]


def ours(folder: Path, rows: int) -> Arm:
    model = star.load_model(folder)
    without_end(model)
    ids, added = prompts(rows), vector(model, model.cfg.d_model)
    locus = Locus(f"blocks.{model.cfg.n_layers // 2}.hook_resid_post")
    options = Sampling(max_new_tokens=REPLY, temperature=0, batch_size=rows)

    def run() -> list[tuple[int, ...]]:
        hooks = injection_hooks(added[None], locus, "generated")
        order, replies = next(in_batches(model, ids, [0] * rows, lambda _: hooks, options, progress=False))
        return [replies[order.index(i)].tokens for i in range(rows)]

    return run


def stock(folder: Path, rows: int) -> Arm:
    model = as_transformer_lens_stores_it(star.load_model(folder))
    ids = make_batch(model, prompts(rows)).tokens
    added = vector(model, model.cfg.d_model)
    locus = Locus(f"blocks.{model.cfg.n_layers // 2}.hook_resid_post")

    def run() -> list[tuple[int, ...]]:
        with torch.no_grad(), model.hooks(fwd_hooks=injection_hooks(added[None], locus, "generated")):
            out = model.generate(
                ids, max_new_tokens=REPLY, do_sample=False, stop_at_eos=False, verbose=False, return_type="tokens"
            )
        assert isinstance(out, torch.Tensor)
        return [tuple(row) for row in out[:, PROMPT:].tolist()]

    return run


def huggingface(folder: Path, rows: int) -> Arm:
    hf = LlamaForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    ids = torch.tensor(prompts(rows))
    added = vector(hf, hf.config.hidden_size)

    def add(module: Any, args: Any, output: Any) -> Any:
        hidden = output[0] if isinstance(output, tuple) else output
        hidden = torch.cat([hidden[:, :-1], hidden[:, -1:] + added], 1)
        return (hidden, *output[1:]) if isinstance(output, tuple) else hidden

    def run() -> list[tuple[int, ...]]:
        handle = hf.model.layers[hf.config.num_hidden_layers // 2].register_forward_hook(add)
        try:
            out = hf.generate(
                ids,
                attention_mask=torch.ones_like(ids),
                max_new_tokens=REPLY,
                min_new_tokens=REPLY,
                do_sample=False,
                pad_token_id=0,
                eos_token_id=None,
            )
        finally:
            handle.remove()
        return [tuple(row) for row in out[:, PROMPT:].tolist()]

    return run


def our_sweep(folder: Path, rows: int) -> Arm:
    model = star.load_model(folder)
    without_end(model)
    base = prompts(rows)
    added = vector(model, model.cfg.d_model)
    grid = [(layer, x, p) for layer in range(model.cfg.n_layers) for x in SEARCHED for p in range(rows)]
    options = Sampling(max_new_tokens=SWEEP_REPLY, temperature=0)

    def run() -> list[tuple[int, ...]]:
        def hooks_of(batch: list[int]) -> Any:
            ways = [grid[k] for k in batch]
            return row_hooks([(x * added[None], Locus(f"blocks.{i}.hook_resid_post"), None) for i, x, _ in ways])

        found: dict[int, tuple[int, ...]] = {}
        ids = [base[p] for *_, p in grid]
        for batch, replies in in_batches(model, ids, [0] * len(ids), hooks_of, options, progress=False):
            found |= {k: reply.tokens for k, reply in zip(batch, replies, strict=True)}
        return [found[k] for k in range(len(grid))]

    return run


def huggingface_sweep(folder: Path, rows: int, at_once: int = 1) -> Arm:
    hf = LlamaForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    ids, added = torch.tensor(prompts(rows)), vector(hf, hf.config.hidden_size)

    def run() -> list[tuple[int, ...]]:
        texts: list[tuple[int, ...]] = []
        for layer in hf.model.layers:
            for strength in SEARCHED:

                def add(module: Any, args: Any, output: Any, strength: float = strength) -> Any:
                    hidden = output[0] if isinstance(output, tuple) else output
                    if hidden.shape[1] > 1:  # the prompt's pass
                        hidden = torch.cat([hidden[:, :-1], hidden[:, -1:] + strength * added], 1)
                    return (hidden, *output[1:]) if isinstance(output, tuple) else hidden

                handle = layer.register_forward_hook(add)
                for part in ids.split(at_once):
                    out = hf.generate(
                        part,
                        attention_mask=torch.ones_like(part),
                        max_new_tokens=SWEEP_REPLY,
                        min_new_tokens=SWEEP_REPLY,
                        do_sample=False,
                        pad_token_id=0,
                        eos_token_id=None,
                    )
                    texts += [tuple(row) for row in out[:, PROMPT:].tolist()]
                handle.remove()
        return texts

    return run


ARMS = {"star_tl": ours, "transformer_lens": stock, "huggingface_hook": huggingface}
SWEEP_ARMS = {
    "star_tl": our_sweep,
    "huggingface_hook": huggingface_sweep,
    "huggingface_hook, 8 prompts a call": lambda folder, rows: huggingface_sweep(folder, rows, rows),
}

# Runs in a virtual environment of its own, which has no star_tl: one line of figures per case on its output.
STEERING_VECTORS = """
import json, statistics, sys, time, torch
from steering_vectors import SteeringVector
from transformers import LlamaForCausalLM
folder, rows, rounds, threads, reply = sys.argv[1], *map(int, sys.argv[2:6])
torch.set_num_threads(threads)
hf = LlamaForCausalLM.from_pretrained(folder, torch_dtype=torch.float32).eval()
ids = torch.randint(300, 4000, (rows, 24), generator=torch.Generator().manual_seed(0))
added = torch.randn(hf.config.hidden_size, generator=torch.Generator().manual_seed(1))
vector = SteeringVector(layer_activations={hf.config.num_hidden_layers // 2: added}, layer_type="decoder_block")
times = []
for _ in range(rounds + 1):
    began = time.perf_counter()
    with vector.apply(hf, min_token_index=23):
        hf.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=reply, min_new_tokens=reply,
                    do_sample=False, pad_token_id=0, eos_token_id=None)
    times.append(time.perf_counter() - began)
print(json.dumps(statistics.median(times[1:])))
"""


def steering_vectors(work: Path, folder: Path, rows: int, rounds: int, threads: int) -> float:
    """Seconds per call of the steering-vectors library."""
    home = work / "venv"
    python = home / "bin" / "python"
    if not python.exists():
        print("Installing steering-vectors into an environment of its own ...", file=sys.stderr)
        venv.create(home, with_pip=True)
        pins = ["steering-vectors==0.12.2", "transformers<5", f"torch=={torch.__version__.split('+')[0]}"]
        subprocess.run([python, "-m", "pip", "install", "--quiet", *pins], check=True)
    arguments = [str(folder), *map(str, (rows, rounds, threads, REPLY))]
    done = subprocess.run([python, "-c", STEERING_VECTORS, *arguments], capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"steering-vectors failed: {done.stderr[-400:]}")
    return json.loads(done.stdout.splitlines()[-1])


def growth(make: Callable[[Path, int], Arm], folder: Path, rows: int) -> float:
    """MB that a call makes this process grow by."""
    run = make(folder, rows)
    process = psutil.Process()
    for _ in range(2):  # the first call loads code and fills lookup tables
        before, most, done = process.memory_info().rss, 0, threading.Event()

        def watch(done: threading.Event = done) -> None:
            nonlocal most
            while not done.wait(0.002):
                most = max(most, process.memory_info().rss)

        watcher = threading.Thread(target=watch)
        watcher.start()
        run()
        done.set()
        watcher.join()
    return max(0, most - before) / 1e6


def peak(kind: str, arm: str, model: str, rows: int, work: Path) -> float:
    arguments = ["--peak", kind, arm, model, str(rows), str(work)]
    command = [sys.executable, str(Path(__file__).resolve()), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | GIVE_BACK, check=True)
    return round(float(done.stdout.splitlines()[-1]), 1)


def turns(arms: dict[str, Arm], rounds: int, name: str) -> tuple[dict[str, float], dict[str, Any]]:
    """Median seconds of every arm, and what its last call returned."""
    times: dict[str, list[float]] = {arm: [] for arm in arms}
    texts: dict[str, Any] = {}
    if rounds > 1:
        for run in arms.values():
            run()
    for _ in tqdm(range(rounds), desc=name, unit="round"):
        for arm, run in arms.items():
            began = time.perf_counter()
            texts[arm] = run()
            times[arm].append(time.perf_counter() - began)
    return {arm: statistics.median(t) for arm, t in times.items()}, texts


def main() -> None:
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument("--rounds", type=int, default=5)
    ap.add_argument("--threads", type=int, default=2)
    ap.add_argument("--no-steering-vectors", action="store_true")
    ap.add_argument(
        "--cases", nargs="+", default=["demo", "llama-512", "smollm2"], help="parts of the names of cases to run"
    )
    ap.add_argument("--json", type=Path)
    ap.add_argument("--peak", nargs=5, help=argparse.SUPPRESS)
    args = ap.parse_args()
    torch.set_num_threads(args.threads)
    logging.set_verbosity_error()
    if args.peak:
        kind, arm, model, rows, work = args.peak
        make = (ARMS if kind == "text" else SWEEP_ARMS)[arm]
        print(growth(make, folder_of(model, Path(work)), int(rows)))
        return

    found: list[dict[str, Any]] = []

    def report(case: str, arm: str, seconds: float, tokens: int, peak_mb: float | None) -> None:
        found.append({"case": case, "arm": arm, "tokens_per_second": round(tokens / seconds, 1), "peak_mb": peak_mb})
        print(found[-1], flush=True)

    with tempfile.TemporaryDirectory() as temporary:
        work = Path(temporary)
        for model, rows in CASES:
            folder, case = folder_of(model, work), f"{model}, batch {rows}"
            if not any(part in case for part in args.cases):
                continue
            seconds, texts = turns({a: make(folder, rows) for a, make in ARMS.items()}, args.rounds, case)
            for arm in ARMS:
                report(case, arm, seconds[arm], rows * REPLY, peak("text", arm, model, rows, work))
            if not args.no_steering_vectors:
                taken = steering_vectors(work, folder, rows, args.rounds, args.threads)
                report(case, "steering_vectors", taken, rows * REPLY, None)
            for arm in ("transformer_lens", "huggingface_hook"):
                same = sum(a == b for a, b in zip(texts["star_tl"], texts[arm], strict=True))
                print(f"{case}: {same} of {rows} texts equal {arm}'s")
        for model in SWEEP:
            folder, case = folder_of(model, work), f"{model}, sweep of 8 x 8 x 8"
            if not any(part in case for part in args.cases):
                continue
            arms = {a: make(folder, 8) for a, make in SWEEP_ARMS.items()}
            seconds, texts = turns(arms, 1, case)
            for arm in SWEEP_ARMS:
                one_by_one = arm == "huggingface_hook"  # its peak is that of batch 1, and takes minutes to see
                peak_mb = None if one_by_one else peak("sweep", arm, model, 8, work)
                report(case, arm, seconds[arm], 512 * SWEEP_REPLY, peak_mb)
            for arm in list(SWEEP_ARMS)[1:]:
                same = sum(a == b for a, b in zip(texts["star_tl"], texts[arm], strict=True))
                print(
                    f"{case}: {same} of 512 texts equal {arm}'s; {seconds[arm] / seconds['star_tl']:.1f} times as fast"
                )
    if args.json:
        args.json.write_text(json.dumps({"rows": found}, indent=1) + "\n")


if __name__ == "__main__":
    main()
