"""Time, peak memory and truth of attribution patching, beside the ways people do it today.

    python scripts/bench_attribution.py [--json FILE] [--rounds 7] [--threads 2] [--no-grid]

Every arm scores one contrastive pair: the metric is the difference of the mean log-probabilities of two replies
of 8 tokens, in a clean and a corrupted run, so that all run the same four rows. Cases are the demo model, a random
Llama (8 layers, d_model 512, 8 query and 2 key-value heads) and SmolLM2-135M-Instruct at 48 (there 64) and 192 tokens
a row.

    star_tl               attribute(), every hook point it knows
    star_tl one_batch     the same through autograd, clean and corrupted rows in one batch
    star_tl two_passes    the same through autograd, the clean rows first and without a graph
    star_tl z, mlp_out    attribute() at the hook points only that transformer_lens scores
    transformer_lens      tools.analysis.attribution_patch on a TransformerBridge (heads and mlp_out)
    attribution_demo      the Attribution Patching demo's way: caches of both runs, set_use_attn_result
    minimal_loop          two passes by hand on the copy-free weights, all of star_tl's hook points
    star_tl, 8 pairs      eight pairs in one call, time per pair; so too for minimal_loop, all in one batch
    exact_star_tl         exact patching of resid_pre, layers x prompt positions
    exact_transformer_lens    patching.get_act_patch_resid_pre on the same weights as TransformerLens stores them

Arms take turns in a shuffled order; times are medians, ``peak_mb`` is what a call makes a process grow by,
``tensors_mb`` the most that its tensors take at once. ``pearson_exact`` correlates an arm's scores at heads and
mlp_out with exact patching, at the places with the largest scores and a random sample of the rest. The texts are
random words, which is harder on a first-order estimate than real pairs are: see measure_attribution.py for those.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from scipy import stats
from torch import Tensor
from torch.profiler import ProfilerActivity, profile
from tqdm.auto import tqdm
from transformer_lens import ActivationCache, HookedTransformer, patching
from transformers import LlamaConfig, LlamaForCausalLM, logging

import star_tl as star
from star_tl.attribution.align import prepare
from star_tl.attribution.exact import exact_effects
from star_tl.attribution.rows import pair_batch
from star_tl.data.pairs import ContrastivePair, Pairs, Trait
from star_tl.locus import Locus
from star_tl.models.hub import not_installed, smollm2
from star_tl.models.load import DEMO

REPLY = 8
# glibc returns freed tensors to the system at once, so that the growth is what a call holds. With a larger threshold
# those of the demo model's layers, some 30 kB each, lie where earlier calls left room, and don't show.
GIVE_BACK = {"MALLOC_MMAP_THRESHOLD_": "8192", "MALLOC_TRIM_THRESHOLD_": "8192", "MALLOC_MMAP_MAX_": "1000000"}
CASES = [(case, length) for case in ("demo", "llama-512") for length in (48, 192)]
CASES += [("smollm2", length) for length in (64, 192)]  # its template's own system turn leaves no room in 48
MANY = ", 8 pairs"
ARMS = (
    "star_tl",
    "star_tl one_batch",
    "star_tl two_passes",
    "star_tl z, mlp_out",
    "transformer_lens",
    "attribution_demo",
    "minimal_loop",
    "star_tl" + MANY,
    "minimal_loop" + MANY,
)
POINTS = ("resid_pre", "resid_mid", "resid_post", "attn_out", "mlp_out")
Scores = dict[str, Tensor]  # "z": [layer head position], "mlp_out": [layer position], prompt positions


def llama_512(folder: Path) -> Path:
    """A random Llama with the demo model's tokenizer, written once."""
    from transformers import AutoTokenizer

    if not (folder / "config.json").is_file():
        torch.manual_seed(0)
        config = LlamaConfig(
            vocab_size=4096,
            hidden_size=512,
            intermediate_size=1408,
            num_hidden_layers=8,
            num_attention_heads=8,
            num_key_value_heads=2,
            max_position_embeddings=1024,
            initializer_range=0.05,  # large enough for attention and MLPs to matter
        )
        LlamaForCausalLM(config).save_pretrained(folder)
        AutoTokenizer.from_pretrained(DEMO).save_pretrained(folder)
    return folder


def smollm2_folder(folder: Path) -> Path:
    """SmolLM2-135M-Instruct as HuggingFace stores it, from what ``load_model("smollm2")`` loads; written once."""
    from transformers import AutoTokenizer

    if (folder / "config.json").is_file():
        return folder
    found = smollm2()
    if found is None:
        raise SystemExit(str(not_installed()))
    options: dict[str, Any] = {"gguf_file": found.path.name} if found.path.is_file() else {}
    home = found.path.parent if options else found.path
    model = LlamaForCausalLM.from_pretrained(home, dtype=torch.float32, **options)
    model.config.__dict__.pop("quantization_config", None)  # of the file that it was unpacked from
    plain = LlamaForCausalLM(model.config).float()  # a model from GGUF refuses to be saved
    plain.load_state_dict(model.state_dict())
    plain.save_pretrained(folder)
    AutoTokenizer.from_pretrained(home, **options).save_pretrained(folder)
    return folder


def folder_of(case: str, work: Path) -> Path:
    """The model of a case as a folder."""
    return {"demo": lambda folder: DEMO, "smollm2": smollm2_folder}.get(case, llama_512)(work / case)


def pairs_of_length(model: HookedTransformer, length: int, count: int) -> Pairs:
    """Pairs whose rows have exactly ``length`` tokens, clean and corrupted alike."""
    tokenizer = model.tokenizer
    assert tokenizer is not None
    words = [w for w in (str(tokenizer.decode([i])) for i in range(300, 4096)) if w.startswith(" ") and w[1:].isalpha()]
    words = [w for w in words if len(tokenizer.encode("x" + w * 3, add_special_tokens=False)) == 4]

    def text(start: int, n: int) -> str:
        return "x" + "".join(words[(start + 7 * i) % len(words)] for i in range(n - 1))

    def make(n: int) -> Pairs:
        made = []
        for k in range(count):
            clean, corrupted = (
                ({"role": "user", "content": text(31 * k, n - 12) + text(s + k, 12)[1:]},) for s in (50, 400)
            )
            replies = text(11 + 5 * k, REPLY), text(123 + 5 * k, REPLY)  # always other words
            made.append(ContrastivePair(f"p{k}", clean, *replies, clean=clean, corrupted=corrupted))
        return Pairs(Trait("bench", "yes", "no", ("x",)), tuple(made))

    for n in range(length - REPLY, 12, -1):
        rows = prepare(model, make(n))
        lengths = {len(p.clean) + len(p.positive) for p in rows} | {len(p.corrupted) + len(p.negative) for p in rows}
        if lengths == {length}:
            return make(n)
    raise SystemExit(f"no pair of {length} tokens could be made")


def stock(model: HookedTransformer) -> HookedTransformer:
    """The parameters in the layout that TransformerLens itself stores them in."""
    for parameter in model.parameters():
        parameter.data = parameter.data.contiguous()
    return model


def reply_metric(tokens: Tensor, end: int) -> Callable[[Tensor], Tensor]:
    """Mean log-probability of the reply of every row, summed over rows."""

    def metric(logits: Tensor) -> Tensor:
        targets = tokens[:, end:]
        return logits[:, end - 1 : -1].log_softmax(-1).gather(-1, targets[..., None]).mean((1, 2)).sum()

    return metric


def ours(model: HookedTransformer, pairs: Pairs, **options: Any) -> Callable[[], Scores]:
    def run() -> Scores:
        attr = star.attribute(model, pairs, progress=False, **options)
        return {
            "z": attr.head_scores[0, ..., : attr.prompt_end],
            "mlp_out": attr.component("mlp_out")[0, :, : attr.prompt_end],
        }

    return run


def transformer_lens(model: HookedTransformer, folder: Path, tokens: Tensor, end: int) -> Callable[[], Scores]:
    from transformer_lens.model_bridge import TransformerBridge
    from transformer_lens.tools.analysis.attribution_patching import attribution_patch

    hf = LlamaForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager").eval()
    bridge = TransformerBridge.boot_transformers(str(folder), hf_model=hf, tokenizer=model.tokenizer, device="cpu")
    cfg = model.cfg

    def run() -> Scores:
        out = {"z": torch.zeros(cfg.n_layers, cfg.n_heads, end), "mlp_out": torch.zeros(cfg.n_layers, end)}
        for row, sign in ((0, 1), (1, -1)):
            corrupted, clean = tokens[row : row + 1], tokens[row + 2 : row + 3]
            found = attribution_patch(bridge, clean, corrupted, reply_metric(corrupted, end))
            for node, score in found.node_scores.items():
                if node.position is not None and node.position < end and node.kind != "embed":
                    at = (
                        (node.layer, node.head, node.position)
                        if node.kind == "attn_head_out"
                        else (node.layer, node.position)
                    )
                    out["z" if node.kind == "attn_head_out" else "mlp_out"][at] += sign * score
        return out

    return run


def attribution_demo(model: HookedTransformer, tokens: Tensor, end: int) -> Callable[[], Scores]:
    cfg = model.cfg
    model = stock(model).requires_grad_(True)
    model.set_use_attn_result(True)

    def caches(row: int) -> tuple[ActivationCache, ActivationCache]:
        forward: dict[str, Tensor] = {}
        backward: dict[str, Tensor] = {}
        mine = tokens[row : row + 1]

        def keep(into: dict[str, Tensor]) -> Callable:
            return lambda value, hook: into.__setitem__(hook.name, value.detach())

        def wanted(name: str) -> bool:
            return "_input" not in name

        with model.hooks(fwd_hooks=[(wanted, keep(forward))], bwd_hooks=[(wanted, keep(backward))]):
            reply_metric(mine, end)(model(mine)).backward()
        model.zero_grad()
        return ActivationCache(forward, model), ActivationCache(backward, model)

    def run() -> Scores:
        out = {"z": torch.zeros(cfg.n_layers, cfg.n_heads, end), "mlp_out": torch.zeros(cfg.n_layers, end)}
        for row, sign in ((0, 1), (1, -1)):
            corrupted, gradient = caches(row)
            clean, _ = caches(row + 2)
            for layer in range(cfg.n_layers):
                for name in ("result", "z", *POINTS):
                    product = (clean[name, layer] - corrupted[name, layer]) * gradient[name, layer]
                    if name in out:
                        score = product.sum(-1)[0, :end]
                        out[name][layer] += sign * (score.T if name == "z" else score)
        return out

    return run


def minimal_loop(model: HookedTransformer, tokens: Tensor, end: int) -> Callable[[], Scores]:
    cfg, half = model.cfg, len(tokens) // 2  # rows: corrupted and clean, each positive then negative
    names = [
        f"blocks.{layer}.{p}" for layer in range(cfg.n_layers) for p in (*(f"hook_{c}" for c in POINTS), "attn.hook_z")
    ]

    def run() -> Scores:
        clean: dict[str, Tensor] = {}
        seen: dict[str, Tensor] = {}

        def start(value: Tensor, hook: object) -> Tensor:
            return value.detach().requires_grad_()

        def keep(into: dict[str, Tensor], name: str) -> tuple[str, Callable]:
            return name, lambda value, hook: into.__setitem__(name, value)

        def forward(part: slice) -> Tensor:
            return model(tokens[part], stop_at_layer=cfg.n_layers)

        with torch.no_grad(), model.hooks(fwd_hooks=[keep(clean, n) for n in names]):
            forward(slice(half, None))
        with model.hooks(fwd_hooks=[("hook_embed", start), *(keep(seen, n) for n in names)]):
            residual = forward(slice(half))[:, end - 1 : -1]
            logits = model.unembed(model.ln_final(residual)).log_softmax(-1)
            values = logits.gather(-1, tokens[:half, end:, None]).mean((1, 2))
            metric = values[: half // 2].sum() - values[half // 2 :].sum()
        gradients = torch.autograd.grad(metric, [seen[n] for n in names])
        scores = {n: ((clean[n] - seen[n]) * g).sum(-1) for n, g in zip(names, gradients, strict=True)}
        first = slice(0, None, half // 2)  # the first pair's rows
        mlp = torch.stack([scores[f"blocks.{i}.hook_mlp_out"][first].sum(0)[:end] for i in range(cfg.n_layers)])
        z = torch.stack([scores[f"blocks.{i}.attn.hook_z"][first].sum(0)[:end].T for i in range(cfg.n_layers)])
        return {"z": z.detach(), "mlp_out": mlp.detach()}

    return run


def exact_star_tl(model: HookedTransformer, pairs: Pairs, end: int) -> Callable[[], Tensor]:
    loci = [
        Locus(f"blocks.{layer}.hook_resid_pre", (p,)) for layer in range(model.cfg.n_layers) for p in range(-end, 0)
    ]
    return lambda: exact_effects(model, pairs, loci, progress=False)[0].view(model.cfg.n_layers, end)


@torch.no_grad()
def exact_transformer_lens(model: HookedTransformer, tokens: Tensor, end: int) -> Callable[[], Tensor]:
    model, corrupted = stock(model), tokens[:2]

    @torch.no_grad()
    def run() -> Tensor:
        targets = corrupted[:, end:]

        def metric(logits: Tensor) -> Tensor:
            values = logits[:, end - 1 : -1].log_softmax(-1).gather(-1, targets[..., None]).mean((1, 2))
            return values[0] - values[1]

        _, clean = model.run_with_cache(tokens[2:], names_filter=lambda n: n.endswith("resid_pre"))
        patched = patching.get_act_patch_resid_pre(model, corrupted, clean, metric)
        return (patched - metric(model(corrupted)))[:, :end]

    return run


def arm(name: str, case: str, length: int, work: Path) -> Callable[[], Scores] | Callable[[], Tensor]:
    folder = folder_of(case, work)
    model = star.load_model(folder)
    pairs = pairs_of_length(model, length, 8 if name.endswith(MANY) else 1)
    rows = pair_batch(model, prepare(model, pairs))
    end, n = rows.prompts.shape[1], rows.size
    prompts = torch.cat([rows.prompts[:n], rows.prompts[:n], rows.prompts[n:], rows.prompts[n:]])
    tokens = torch.cat([prompts, rows.replies.repeat(2, 1)], 1)
    if name == "exact_star_tl":
        return exact_star_tl(model, pairs, end)
    if name == "exact_transformer_lens":
        return exact_transformer_lens(model, tokens, end)
    if name == "transformer_lens":
        return transformer_lens(model, folder, tokens, end)
    if name == "attribution_demo":
        return attribution_demo(model, tokens, end)
    if name.startswith("minimal_loop"):
        return minimal_loop(model, tokens, end)
    if name.endswith("mlp_out"):
        return ours(model, pairs, hook_points=("z", "mlp_out"))
    return ours(model, pairs, mode=name.split()[1] if name.endswith(("one_batch", "two_passes")) else "auto")


def truth(case: str, length: int, scores: Scores, work: Path, top: int = 40, sample: int = 120) -> list[tuple]:
    """Places (layer, head or None, position) with their exact effects."""
    model = star.load_model(folder_of(case, work))
    pairs = pairs_of_length(model, length, 1)
    end = scores["mlp_out"].shape[-1]
    places = [(i, h, p) for i, h, p in torch.cartesian_prod(*map(torch.arange, scores["z"].shape)).tolist()]
    places += [(i, None, p) for i, p in torch.cartesian_prod(*map(torch.arange, scores["mlp_out"].shape)).tolist()]
    size = torch.cat([scores["z"].flatten(), scores["mlp_out"].flatten()]).abs()
    order = size.argsort(descending=True).tolist()
    rest = [
        order[i] for i in (top + torch.randperm(len(order) - top, generator=torch.Generator().manual_seed(0))).tolist()
    ]
    chosen = [places[i] for i in order[:top] + rest[:sample]]
    loci = [Locus(f"blocks.{i}.{'hook_mlp_out' if h is None else 'attn.hook_z'}", (p - end,), h) for i, h, p in chosen]
    return list(zip(chosen, exact_effects(model, pairs, loci, progress=False)[0].tolist(), strict=True))


def pearson(scores: Scores, exact: list[tuple]) -> float:
    found = [float(scores["mlp_out"][i, p] if h is None else scores["z"][i, h, p]) for (i, h, p), _ in exact]
    return float(stats.pearsonr(found, [e for _, e in exact]).statistic)


def peak(name: str, case: str, length: int, work: Path) -> tuple[float, float]:
    """Megabytes by which the second call grows a fresh process (the first loads code), and that its tensors take."""
    command = [sys.executable, __file__, "--peak", name, case, str(length), str(work)]
    out = subprocess.run(command, capture_output=True, text=True, check=True, env=os.environ | GIVE_BACK)
    growth, tensors = map(float, out.stdout.split()[-2:])
    return growth, tensors


def _status(key: str) -> float:
    line = next(x for x in Path("/proc/self/status").read_text().splitlines() if x.startswith(key))
    return int(line.split()[1]) / 1000


def measure_peak(name: str, case: str, length: int, work: Path) -> None:
    run = arm(name, case, length, work)
    run()
    Path("/proc/self/clear_refs").write_text("5")  # forget the loading's peak
    before = _status("VmRSS")
    run()
    growth = _status("VmHWM") - before
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as seen:
        run()
    events: Any = seen.profiler
    changes = sorted((e.start_ns(), e.nbytes()) for e in events.kineto_results.events() if e.name() == "[memory]")
    print(growth, max(itertools.accumulate(n for _, n in changes)) / 1e6)


def main() -> None:
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument("--json", type=Path)
    ap.add_argument("--rounds", type=int, default=7)
    ap.add_argument("--threads", type=int, default=os.cpu_count())
    ap.add_argument("--cases", nargs="+", default=[""], help='parts of the names of cases to run, such as "48 tokens"')
    ap.add_argument("--no-grid", action="store_true", help="leave out exact patching, which takes most of the time")
    ap.add_argument("--peak", nargs=4, metavar=("ARM", "CASE", "LENGTH", "FOLDER"), help="used by the script itself")
    args = ap.parse_args()
    torch.set_num_threads(args.threads)
    logging.set_verbosity_error()
    if args.peak:
        name, case, length, work = args.peak
        measure_peak(name, case, int(length), Path(work))
        return
    table = []
    chance = random.Random(0)
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        for case, length in CASES:
            if not any(part in f"{case}, {length} tokens" for part in args.cases):
                continue
            grid = length == 48 and case != "smollm2" and not args.no_grid
            names = ARMS + (("exact_star_tl", "exact_transformer_lens") if grid else ())
            runs = {name: arm(name, case, length, work) for name in names}
            results = {name: run() for name, run in runs.items()}
            times: dict[str, list[float]] = {name: [] for name in names}
            for turn in tqdm(range(args.rounds), desc=f"{case}, {length} tokens", unit="round"):
                # In another order every round, and where it costs little once unmeasured: who comes after an arm that
                # filled the caches or gave memory back to the system pays for it.
                for name in chance.sample(names, len(names)):
                    if name.startswith("exact") and turn >= 3:
                        continue
                    if times[name] and times[name][-1] < 1000:
                        runs[name]()
                    began = time.perf_counter()
                    runs[name]()
                    times[name].append(1000 * (time.perf_counter() - began))
            exact = truth(case, length, results["star_tl"], work)
            for name in names:
                row = {
                    "case": f"{case}, {length} tokens",
                    "arm": name,
                    "ms": round(statistics.median(times[name]) / (8 if name.endswith(MANY) else 1), 2),
                }
                row["peak_mb"], row["tensors_mb"] = (round(x, 1) for x in peak(name, case, length, work))
                row["pearson_exact"] = None if name.startswith("exact") else round(pearson(results[name], exact), 4)
                table.append(row)
                print(row, flush=True)
            if grid:
                grids = [results[name] for name in ("exact_star_tl", "exact_transformer_lens")]
                print(f"largest difference of the exact grids {float((grids[0] - grids[1]).abs().max()):.1e} nats")
    if args.json:
        args.json.write_text(json.dumps({"rows": table}, indent=1) + "\n")


if __name__ == "__main__":
    main()
