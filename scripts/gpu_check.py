"""All that a machine with a GPU can show, in one call of less than 5 minutes, as Markdown with a line for every fault.

    scripts/gpu_check [--wheels FOLDER]     on the machine with the GPU
    scripts/gpu_check --pack FOLDER         beforehand, where the package index can be reached
    scripts/gpu_check --dry-run             on a CPU, at tiny sizes

Runs the tests marked ``gpu`` and ``star-tl run`` on the demo model; compares attribution and texts with the CPU's; then
measures LLaMA 3.1-8B's shape in bfloat16 and SmolLM2's in float32, with random weights made on the card, beside
HuggingFace with hooks:

    loading     safetensors from the disk's cache onto the card, and the tokenizer
    pairs       star.attribute at all hook points, heads and positions, drift included, all pairs in one call, and
                again in batches of one pair, which from the second on are a CUDA graph; the best of three, the share
                of that time in which the card works, and what it is asked for: kernels, copies and waits.
                HuggingFace: gradient times difference at every layer's output only, pair after pair
    decoding    a step of so many rows with a vector added at the middle layer, text and choice of tokens left out;
                weights' bytes a second as a share of the rate at which the card copies; the same with float32 products
                in TF32; and how far the recorded step's log-probabilities lie from the plain one's, as a share of their
                spread
    many        sample_conditions, scores included, and star.attribute_outcome, whole calls with where they spend
                their time

What is found is also told on the standard error stream at once; a part that takes too long is ended, and keeps what it
had found.

A machine with PyTorch, transformers, einops, jaxtyping, pandas, scipy, statsmodels, typer, rich and pytest lacks some
of what star_tl imports: ``--pack`` downloads it as wheels without their dependencies, which ``--wheels`` puts behind
what is installed. Every part runs in a process of its own, for one illegal access spoils the card for its process.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
LACKING = (
    "transformer_lens",
    "plotly",
    "narwhals",
    "beartype",
    "better_abc",
    "datasets",
    "dill",
    "multiprocess",
    "fancy_einsum",
    "typeguard",
    "transformers_stream_generator",
    "gguf",
)
SECONDS = 285  # for everything
MOST = {"tests": 75, "run": 45, "cpu": 40, "write": 45, "star_tl": 60, "huggingface": 60, "many": 60}  # for one part
PROMPT, WARM, STEPS = 24, 6, 32  # tokens read before decoding, steps before they are timed, and steps that are
ALONE = "pairs of 48 tokens, one at a time"
FOUND = "found: "  # begins a line that a part reports by


@dataclass(frozen=True)
class Case:
    """A shape to measure: pairs as (how many, tokens a row), rows that decode together, ``alone`` pairs one at a time,
    and, where many replies are
    written, how many conditions, prompts of each, replies with gradients and tokens each has.
    """

    shape: str
    dtype: str
    pairs: tuple[tuple[int, int], ...]
    rows: tuple[int, ...]
    alone: int
    many: tuple[int, int, int, int] | None = None


CASES = (
    Case("smollm2", "float32", ((1, 48), (128, 48), (4, 192)), (1, 16, 256), 24, (12, 64, 512, 40)),
    Case("meta-llama/Llama-3.1-8B-Instruct", "bfloat16", ((1, 48), (32, 48), (4, 192)), (1, 16, 64), 24),
)
TINY = {
    "vocab_size": 4608,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}
TINY_CASES = tuple(Case(c.shape, c.dtype, ((1, 48), (2, 48)), (1, 3), 2, c.many and (2, 2, 8, 3)) for c in CASES)


# --- parts -----------------------------------------------------------------------------------


def report(what: str, value: str) -> None:
    print(FOUND + json.dumps([what, value]), flush=True)


def note(what: str, *lines: str) -> None:
    """Told, but no line of a table."""
    for line in lines:
        print(f"note: {what}: {line}", flush=True)


@contextmanager
def reporting(what: str) -> Iterator[None]:
    """An error becomes the line of what it kept from being measured."""
    try:
        yield
    except Exception as error:
        report(what, "FAULT: " + " ".join(f"{type(error).__name__}: {error}".split())[:200])


def gpu_tests(device: str) -> None:
    files = [str(f) for f in (HERE.parent / "tests").rglob("test_*.py") if "mark.gpu" in f.read_text(encoding="utf-8")]
    options = ["-q", "-m", "gpu", "-p", "no:cacheprovider", *(["--collect-only"] if device == "cpu" else [])]
    done = subprocess.run(
        [sys.executable, str(Path(__file__)), "--pytest", *options, *files], capture_output=True, text=True
    )
    lines = done.stdout.strip().splitlines() or done.stderr.strip().splitlines()
    report("tests marked gpu", ("" if done.returncode == 0 else "FAULT: ") + lines[-1].strip("= "))


def demo_run(device: str) -> None:
    from star_tl.cli import app

    with reporting("star-tl run on the demo model"), tempfile.TemporaryDirectory() as folder:
        began = time.perf_counter()
        tiny = ["--first-n-layers", "1", "--strength", "1", "--seeds", "1", "--max-new-tokens", "1"]
        app(
            ["run", "--device", device, "--out", f"{folder}/run", *(tiny if device == "cpu" else [])],
            standalone_mode=False,
        )
        report("star-tl run on the demo model", f"ends, {time.perf_counter() - began:.0f} s")


def same_as_cpu(device: str) -> None:
    import star_tl as star

    few, texts, steered, prompts = [], [], [], []
    for one in ("cpu", device):
        model = star.load_model("demo", device=one)
        pairs = star.load_pairs("emotional_support")
        some = type(pairs)(pairs.trait, pairs.extraction.pairs[:4])
        prompts = list(pairs.heldout.prompts)[: 24 if device != "cpu" else 2]
        few.append(star.attribute(model, some, progress=False).scores)
        texts.append(star.sample(model, prompts, max_new_tokens=24, progress=False))
        vector = star.extract_vector(model, some, star.Locus("blocks.5.hook_resid_post", (-1,)))
        twice = [p for p in prompts for _ in range(2)]  # what both share is read once
        steered.append(star.sample(model, twice, vector.hooks(4.0), max_new_tokens=24, progress=False))
    apart = float((few[0] - few[1]).abs().max() / few[0].abs().max())
    report(
        "attribution beside the CPU's, demo model",
        f"{'' if apart < 1e-4 else 'FAULT: '}{apart:.1e} of the largest score apart",
    )
    for name, (here, there) in (("texts", texts), ("steered texts", steered)):
        equal = sum(a == b for a, b in zip(here, there, strict=True))
        fault = "" if equal == len(here) else "FAULT: "
        report(f"{name} equal to the CPU's, demo model", f"{fault}{equal} of {len(here)}")
    model = star.load_model("demo", device=device, dtype="bfloat16")
    replies = star.generate(model, prompts[:1] * 64, max_new_tokens=24, progress=False)
    empty = sum(not r.tokens or r.broken for r in replies)
    report("64 rows of one prompt in bfloat16", f"{'FAULT: ' if empty else ''}{empty} of them empty or broken")


def write(case: Case, folder: Path, device: str) -> None:
    from bench_8b import write_checkpoint

    from star_tl.models.size import SHAPES

    shape = SHAPES[case.shape] if device != "cpu" else {**SHAPES[case.shape], **TINY}
    write_checkpoint(folder, shape["num_hidden_layers"], shape, device)


def star_tl(case: Case, folder: Path, device: str) -> None:
    import torch
    from bench_attribution import pairs_of_length

    import star_tl as star
    from star_tl.generation.decoding import begin
    from star_tl.models.batch import make_batch
    from star_tl.models.fast.decode import LlamaPass, RecordedStep
    from star_tl.models.transformers_folder import CLOSE, difference
    from star_tl.steering.hooks import injection_hooks

    model, seconds = timed(lambda: star.load_model(folder, dtype=case.dtype, device=device), device)
    report("loading", f"{seconds:.2f} s")
    for count, length in case.pairs:
        with reporting(named(count, length)):
            pairs = pairs_of_length(model, length, count)
            rate(count, length, lambda pairs=pairs: star.attribute(model, pairs, progress=False), device)
    with reporting(ALONE):
        pairs = pairs_of_length(model, 48, case.alone)
        rate(case.alone, 48, lambda: star.attribute(model, pairs, batch_size=1, progress=False), device, what=ALONE)
    locus = star.Locus(f"blocks.{model.cfg.n_layers // 2}.hook_resid_post")
    hooks = injection_hooks(torch.ones(1, model.cfg.d_model), locus, "generated")

    def begun(rows: int) -> LlamaPass:
        batch = begin(model, hooks, read.mask, PROMPT, PROMPT + WARM + STEPS + 8)
        assert isinstance(batch, LlamaPass)
        return batch

    for rows in case.rows:
        read = make_batch(model, prompts(rows))
        if case.dtype == "float32":
            with reporting(f"decode step, {rows} rows, TF32"), tf32():
                steps(f"decode step, {rows} rows, TF32", rows, begun(rows), read.tokens, weights(model), device)
        with reporting(f"decode step, {rows} rows"):
            batch = begun(rows)
            steps(f"decode step, {rows} rows", rows, batch, read.tokens, weights(model), device)
            busy(f"decode step, {rows} rows", lambda batch=batch, read=read: batch(read.tokens[:, -1:]), device)
        with reporting(f"recorded beside plain step, {rows} rows"):
            batch._forget()
            tokens, column = read.tokens[:, -1:], batch.position.read
            recorded = RecordedStep(batch.layers, column)(tokens, column)
            plain = batch.layers.logits(batch.layers.read(tokens, column))
            apart = difference(recorded, plain)
            fault = "" if apart < CLOSE[batch.layers.cache.dtype] else "FAULT: "  # NaN is none below
            report(f"recorded beside plain step, {rows} rows", f"{fault}{apart:.1e} apart")


def many(case: Case, folder: Path, device: str) -> None:
    import torch

    import star_tl as star
    from star_tl.data.chat import template_hash
    from star_tl.evaluation.samples import sample_conditions
    from star_tl.models.load import fingerprint

    if case.many is None:
        return
    conditions, asked, replies, length = case.many
    model = star.load_model(folder, dtype=case.dtype, device=device)
    pairs = star.load_pairs("emotional_support")
    prompts = list(pairs.extraction.prompts)
    prompts = [f"{prompts[i % len(prompts)]} {i}" for i in range(asked)]
    locus = star.Locus(f"blocks.{model.cfg.n_layers // 2}.hook_resid_post", (-1,))
    said = {"model": "shape", "fingerprint": fingerprint(model), "template": template_hash(model.tokenizer)}
    ones = torch.ones(1, model.cfg.d_model)
    vector = star.SteeringVector(ones, locus, trait="none", method="given", residual_norm=1.0, n_pairs=1, **said)
    ways = [
        star.Condition(f"{k}", vector.random_like(k) if k else None, 1.0, ("locus", "generated")[k % 2])
        for k in range(conditions)
    ]
    sampling = star.Sampling(max_new_tokens=length, batch_size=1024)
    with reporting("sample_conditions"):
        spent(
            "sample_conditions",
            conditions * asked,
            lambda: sample_conditions(model, pairs.trait, prompts, ways, sampling, progress=False),
            device,
        )
    with reporting("attribute_outcome"):
        spent(
            "attribute_outcome",
            replies,
            lambda: star.attribute_outcome(
                model, prompts, lambda chat, text: len(text), replies, sampling, least=replies, progress=False
            ),
            device,
        )


def huggingface(case: Case, folder: Path, device: str) -> None:
    import torch
    from bench_8b import read_by_prepare, residual_scores
    from bench_attribution import pairs_of_length
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from star_tl.attribution.align import prepare

    def load() -> tuple[Any, Any]:
        options: dict[str, Any] = {"dtype": getattr(torch, case.dtype)}
        tokenizer = AutoTokenizer.from_pretrained(folder)
        if importlib.util.find_spec("accelerate"):  # straight onto the card
            return AutoModelForCausalLM.from_pretrained(folder, device_map=device, **options), tokenizer
        return AutoModelForCausalLM.from_pretrained(folder, **options).to(device), tokenizer

    (model, tokenizer), seconds = timed(load, device)
    report("loading", f"{seconds:.2f} s")
    model.eval().requires_grad_(False)
    holder = read_by_prepare(model, tokenizer)
    for count, length in case.pairs:
        with reporting(named(count, length)):
            pair = prepare(holder, pairs_of_length(holder, length, 1))[0]  # one after another: each takes as long
            rate(count, length, lambda pair=pair: residual_scores(model, pair), device, 1)
    middle = model.model.layers[len(model.model.layers) // 2]
    for rows in case.rows:
        with reporting(f"decode step, {rows} rows"), torch.no_grad():
            cache: Any = None

            def step(tokens: Any) -> Any:
                nonlocal cache
                out = model(tokens, past_key_values=cache, use_cache=True, logits_to_keep=1)
                cache = out.past_key_values
                return out.logits[:, -1]

            handle = middle.register_forward_hook(lambda module, args, out: out + 1)
            try:
                tokens = torch.tensor(prompts(rows), device=device)
                steps(f"decode step, {rows} rows", rows, step, tokens, weights(model), device)
            finally:
                handle.remove()


def named(count: int, length: int) -> str:
    return f"{count} pair{'s' if count > 1 else ''} of {length} tokens"


def prompts(rows: int) -> list[tuple[int, ...]]:
    return [tuple(300 + (31 * row + 7 * i) % 3000 for i in range(PROMPT)) for row in range(rows)]


def weights(model: Any) -> int:
    """Bytes of all parameters."""
    held = {p.untyped_storage().data_ptr(): p.untyped_storage().nbytes() for p in model.parameters()}
    return sum(held.values())


def wait(device: str) -> None:
    import torch

    if device != "cpu":
        torch.cuda.synchronize()


def timed(work: Callable[[], Any], device: str) -> tuple[Any, float]:
    wait(device)
    began = time.perf_counter()
    result = work()
    wait(device)
    return result, time.perf_counter() - began


def rate(count: int, length: int, work: Callable[[], Any], device: str, of: int | None = None, what: str = "") -> None:
    """Pairs a second; ``of`` is how many of them ``work`` takes, default all."""
    tries = 3 if device != "cpu" else 1
    work()  # whatever is done once
    seconds = min(timed(work, device)[1] for _ in range(tries)) * count / (of or count)
    what = what or named(count, length)
    used = "" if of else busy(what, work, device, seconds)
    report(what, f"{seconds:.3f} s, {count / seconds:.1f} a second{used}")


def busy(what: str, work: Callable[[], Any], device: str, seconds: float | None = None) -> str:
    """How long the card works in one call, as a share of its time, and by what; the longest kernels are told apart."""
    import torch
    from torch.profiler import ProfilerActivity, profile

    if device == "cpu":
        return ""
    _, whole = timed(work, device) if seconds is None else (None, seconds)
    with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as seen:
        timed(work, device)
    found = list(seen.key_averages())
    on_card = [e for e in found if e.device_type == torch.autograd.DeviceType.CUDA]
    kernels = [e for e in on_card if not getattr(e, "is_user_annotation", False)]
    longest = sorted(kernels, key=lambda e: -e.self_device_time_total)[:12]
    note(what, *(f"{e.self_device_time_total / 1e3:.2f} ms in {e.count} of {e.key[:90]}" for e in longest))
    asked = {e.key: e.count for e in found}
    counts = {
        "kernels": sum(n for key, n in asked.items() if "LaunchKernel" in key),
        "copies": asked.get("cudaMemcpyAsync", 0),
        "waits": asked.get("cudaStreamSynchronize", 0),
        "graphs": asked.get("cudaGraphLaunch", 0),
    }
    share = sum(e.self_device_time_total for e in kernels) / 1e6 / whole
    used = f", card used {share:.0%}, " + ", ".join(f"{n:,} {name}" for name, n in counts.items() if n)
    note(what, used)
    return used


def spent(what: str, replies: int, work: Callable[[], Any], device: str) -> None:
    """Replies a second of a whole call, and the functions of star_tl that it spends its time in, each without those
    of the others that it calls.
    """
    import cProfile
    import pstats

    watched = cProfile.Profile()
    _, seconds = timed(work, device)
    timed(lambda: watched.runcall(work), device)
    report(what, f"{seconds:.2f} s, {replies / seconds:,.0f} replies a second")
    stats: dict[Any, Any] = pstats.Stats(watched).stats  # pyright: ignore[reportAttributeAccessIssue]
    for order, column in (("in itself", 2), ("with all it calls", 3)):
        for (file, _, name), row in sorted(stats.items(), key=lambda kv: -kv[1][column])[:16]:
            note(what, f"{row[column]:.2f} s {order}, {row[0]} calls of {Path(file).name}:{name}")


@contextmanager
def tf32() -> Iterator[None]:
    import torch

    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


def steps(what: str, rows: int, step: Callable[[Any], Any], tokens: Any, held: int, device: str) -> None:
    from bench_8b import copying

    def go_on(count: int) -> None:
        nonlocal tokens
        for _ in range(count):
            tokens = step(tokens).argmax(-1)[:, None]

    go_on(WARM)  # the prompt, what is made at the first step, and what a recording does at its first replays
    seconds = timed(lambda: go_on(STEPS), device)[1] / STEPS
    share = held / seconds / copying(device)
    report(what, f"{1e3 * seconds:.2f} ms, {rows / seconds:,.0f} tokens/s, {share:.0%} of copying")


# --- all of them -----------------------------------------------------------------------------

ARMS: dict[str, Callable[..., None]] = {"star_tl": star_tl, "huggingface": huggingface}
CHECKS = {"tests": gpu_tests, "run": demo_run, "cpu": same_as_cpu}


def part(name: str, device: str, case: Case | None = None, folder: Path = HERE) -> None:
    """One part, in this process."""
    if case is None:
        CHECKS[name](device)
    else:
        {**ARMS, "write": write, "many": many}[name](case, folder, device)


def child(name: str, device: str, case: int | None, folder: str, until: float) -> dict[str, str]:
    """One part in a process of its own: what it found, by what it looked at."""
    command = [sys.executable, str(Path(__file__)), "--part", name, "--device", device]
    command += ["--case", str(case), "--folder", folder] if case is not None else []
    found: dict[str, str] = {}
    began = time.monotonic()
    print(f"=== {name} of {'no case' if case is None else CASES[case].shape}", file=sys.stderr, flush=True)
    with tempfile.TemporaryFile("w+") as errors:
        running = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors, text=True)
        ended = threading.Timer(max(1, min(MOST[name], until - began)), running.kill)
        ended.start()
        assert running.stdout is not None
        for line in running.stdout:
            print(line, end="", file=sys.stderr, flush=True)
            if line.startswith(FOUND):
                what, value = json.loads(line.removeprefix(FOUND))
                found[what] = value
        code, cut = running.wait(), not ended.is_alive()
        ended.cancel()
        errors.seek(0)
        said = errors.read().strip().splitlines() or [f"ended with {code}"]
    print(f"=== {time.monotonic() - began:.0f} s", *(said[-12:] if code else ()), sep="\n", file=sys.stderr, flush=True)
    last = "took too long" if cut else said[-1]
    return found | ({f"{name} as a whole": f"FAULT: {last[:200]}"} if code else {})


def markdown(title: str, columns: dict[str, dict[str, str]]) -> str:
    """A table with a row for everything that any column has found."""
    rows = dict.fromkeys(what for found in columns.values() for what in found)
    lines = [f"### {title}", "", f"| | {' | '.join(columns)} |", "|---" * (len(columns) + 1) + "|"]
    lines += [f"| {what} | {' | '.join(found.get(what, '–') for found in columns.values())} |" for what in rows]
    return "\n".join([*lines, ""])


def check(device: str, cases: tuple[Case, ...], look: Callable[..., dict[str, str]]) -> Iterator[str]:
    """The report, a table at a time; ``look`` runs a part."""
    until = time.monotonic() + SECONDS
    for i, case in enumerate(cases):
        with tempfile.TemporaryDirectory() as folder:
            begun = look("write", device, i, folder, until)
            arms = {} if begun else {name: look(name, device, i, folder, until) for name in ARMS}
            if case.many and not begun:
                arms["star_tl"] |= look("many", device, i, folder, until)
        yield markdown(f"{case.shape}'s shape, random weights in {case.dtype}", arms or {"star_tl": begun})
    found: dict[str, str] = {}
    for name in CHECKS:
        found |= look(name, device, None, "", until)
    yield markdown("Checks", {"": found})


# --- what a bare machine lacks ---------------------------------------------------------------


def pack(folder: Path) -> None:
    """Download the wheels of LACKING, in the versions of constraints.txt, and without what they depend on."""
    lines = (HERE.parent / "constraints.txt").read_text(encoding="utf-8").split()
    pinned = {line.partition("==")[0].lower().replace("-", "_"): line for line in lines}
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", str(folder)]
    subprocess.run([*command, *(pinned[name] for name in LACKING)], check=True)


def unpack(folder: Path, into: Path) -> None:
    """Put the wheels' code, and an empty module for wandb, which nothing here calls, where ``bring`` finds them."""
    for wheel in sorted(folder.glob("*.whl")):
        with zipfile.ZipFile(wheel) as archive:
            archive.extractall(into)
    (into / "wandb.py").touch()


def bring() -> None:
    """Behind what is installed, so that it only fills gaps; for this process."""
    sys.path[:0] = [str(HERE.parent), str(HERE)]
    if brought := os.environ.get("GPU_CHECK_BROUGHT"):
        sys.path.append(brought)


def main() -> int:
    if sys.argv[1:2] == ["--pytest"]:
        bring()
        import pytest

        return int(pytest.main(sys.argv[2:]))
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument("--wheels", type=Path, help="the folder that --pack has filled")
    ap.add_argument(
        "--pack", type=Path, metavar="FOLDER", help="download what a bare machine lacks, and do nothing else"
    )
    ap.add_argument("--dry-run", action="store_true", help="on the CPU, at tiny sizes")
    for private in ("--part", "--device", "--folder"):
        ap.add_argument(private, help=argparse.SUPPRESS)
    ap.add_argument("--case", type=int, help=argparse.SUPPRESS)
    args = ap.parse_args()
    if args.pack:
        pack(args.pack)
        return 0
    bring()
    device = args.device or ("cpu" if args.dry_run else "cuda")
    cases = CASES if device != "cpu" else TINY_CASES
    if args.part:
        part(args.part, device, None if args.case is None else cases[args.case], Path(args.folder or HERE))
        return 0
    with tempfile.TemporaryDirectory() as brought:
        if args.wheels:
            unpack(args.wheels, Path(brought))
            os.environ["GPU_CHECK_BROUGHT"] = brought
        import torch

        if device != "cpu" and not torch.cuda.is_available():
            raise SystemExit("gpu_check: there is no GPU here; --dry-run does without.")
        card = torch.cuda.get_device_name() if device != "cpu" else "no GPU: a dry run, whose figures say nothing"
        print(f"## {card}, PyTorch {torch.__version__}\n", flush=True)
        whole = ""
        for table in check(device, cases, child):
            print(table, flush=True)
            whole += table
    faults = whole.count("FAULT")
    print(f"{faults} fault{'' if faults == 1 else 's'}.")
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
