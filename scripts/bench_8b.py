"""Loading, attribution and steered sampling at exactly LLaMA 3.1-8B's shape: time and peak memory.

    python scripts/bench_8b.py [--json FILE] [--layers 32] [--dtype bfloat16] [--device cpu] [--threads 2]

Writes a checkpoint with random weights (sharded safetensors in bfloat16, 16 GB at 32 layers, with the demo
model's tokenizer) into a temporary folder and deletes it afterwards. Every arm runs in a process of its own, which
attributes one contrastive pair of 48 tokens a row, derives a vector and samples 16 tokens under it:

    star_tl            load_model; attribute at all hook points, heads and positions; extract_vector; sample
    transformer_lens   HookedTransformer.from_pretrained, given the HuggingFace model; the same attribution on the
                       weights as TransformerLens stores them; its own generate with the vector's hooks
    huggingface_hook   AutoModelForCausalLM; gradient times difference at every layer's output only; generate with
                       a forward hook that adds that difference at the middle layer

``peak_mb`` is the largest resident memory of the whole process, code included (on CUDA: of the device), ``code_mb``
what was resident before loading, ``load_peak_mb`` the peak while loading. ``tokens_per_second`` is of one row's
decoding, the prompt's pass left out; ``bandwidth`` the share that decoding reaches of the rate at which one tensor
is copied. A case says "by pieces" where the CPU has no instructions for the type, see star_tl/models/product.py;
ONEDNN_MAX_CPU_ISA=AVX2 ATEN_CPU_CAPABILITY=avx2 imitates one. An arm for which memory is too small is
reported as such and not run.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from bench_attribution import pairs_of_length
from safetensors.torch import save_file
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, logging

import star_tl as star
from star_tl.attribution.align import PreparedPair, prepare
from star_tl.models.load import DEMO
from star_tl.models.product import by_pieces
from star_tl.models.size import SHAPES, free_memory, llama_size

ROW = 48  # tokens of a pair's row, reply included
NEW = 16  # tokens to sample
LAYERS_PER_SHARD = 4
# How many times each arm was seen to hold the weights, and so what it needs to be tried at all.
COPIES = {"star_tl": 1.0, "transformer_lens": 3.4, "huggingface_hook": 1.0}
MARGIN = 2.5e9  # bytes for code, activations, and whatever else runs
SHAPE = SHAPES["meta-llama/Llama-3.1-8B-Instruct"]
SPREAD = 0.02  # of the random weights: projections, scores and logits are then of order 1


def write_checkpoint(folder: Path, layers: int, shape: dict[str, Any] = SHAPE, device: str = "cpu") -> None:
    """A config of this shape with ``layers`` layers, the demo model's tokenizer, and random weights in bfloat16, which
    are drawn on ``device``.
    """
    config = LlamaConfig(
        architectures=["LlamaForCausalLM"],
        **{**shape, "num_hidden_layers": layers},
        max_position_embeddings=131072,
        rms_norm_eps=1e-5,
        rope_parameters={
            "rope_type": "llama3",
            "rope_theta": 500000.0,
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 8192,
        },
        dtype="bfloat16",
        bos_token_id=0,
        eos_token_id=4,
        pad_token_id=5,
    )
    config.save_pretrained(folder)
    AutoTokenizer.from_pretrained(DEMO).save_pretrained(folder)
    d, mlp, vocabulary = shape["hidden_size"], shape["intermediate_size"], shape["vocab_size"]
    keys = d // shape["num_attention_heads"] * shape["num_key_value_heads"]
    shapes = {
        "self_attn.q_proj": (d, d),
        "self_attn.k_proj": (keys, d),
        "self_attn.v_proj": (keys, d),
        "self_attn.o_proj": (d, d),
        "mlp.gate_proj": (mlp, d),
        "mlp.up_proj": (mlp, d),
        "mlp.down_proj": (d, mlp),
    }
    generator = torch.Generator(device).manual_seed(0)

    def weight(*size: int) -> Tensor:
        return torch.empty(size, dtype=torch.bfloat16, device=device).normal_(std=SPREAD, generator=generator).cpu()

    def one() -> Tensor:
        return torch.ones(d, dtype=torch.bfloat16)

    def layer(i: int) -> dict[str, Tensor]:
        own = {f"{name}.weight": weight(*size) for name, size in shapes.items()}
        own |= {"input_layernorm.weight": one(), "post_attention_layernorm.weight": one()}
        return {f"model.layers.{i}.{name}": tensor for name, tensor in own.items()}

    def several(first: int) -> Callable[[], dict[str, Tensor]]:
        return lambda: {k: v for i in range(first, min(first + LAYERS_PER_SHARD, layers)) for k, v in layer(i).items()}

    shards: list[Callable[[], dict[str, Tensor]]] = [
        lambda: {"model.embed_tokens.weight": weight(vocabulary, d)},
        *(several(first) for first in range(0, layers, LAYERS_PER_SHARD)),
        lambda: (
            {"model.norm.weight": one()}
            | ({} if config.tie_word_embeddings else {"lm_head.weight": weight(vocabulary, d)})
        ),
    ]
    places, total = {}, 0
    for i, make in enumerate(shards, start=1):
        name = f"model-{i:05}-of-{len(shards):05}.safetensors"
        tensors = make()
        save_file(tensors, folder / name, metadata={"format": "pt"})
        places |= dict.fromkeys(tensors, name)
        total += sum(tensor.nbytes for tensor in tensors.values())
    index = {"metadata": {"total_size": total}, "weight_map": places}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def measure(name: str, folder: Path, dtype: str, device: str) -> dict[str, Any]:
    """One arm in this process: its row without case and arm."""
    code = _peak("cpu")
    began = time.perf_counter()
    attribute, decode, weights = ARMS[name](folder, dtype, device)
    _wait(device)
    row: dict[str, Any] = {"weights_mb": weights / 1e6, "load_s": time.perf_counter() - began}
    row |= {"code_mb": code, "load_peak_mb": _peak(device)}
    began = time.perf_counter()
    attribute()
    _wait(device)
    row["attribution_s"] = time.perf_counter() - began
    decode(1)  # whatever is done once
    times = {}
    for count in (1, 1 + NEW):  # both pay for the prompt
        began = time.perf_counter()
        written = decode(count)
        _wait(device)
        times[count] = time.perf_counter() - began
        assert written == count, f"{written} tokens instead of {count}: the reply ended by itself"
    seconds = (times[1 + NEW] - times[1]) / NEW
    row |= {"tokens_per_second": 1 / seconds, "peak_mb": _peak(device)}
    row["bandwidth"] = weights / seconds / copying(device)
    return row


Arm = tuple[Callable[[], None], Callable[[int], int], int]  # attribute; decode so many tokens; bytes of the weights


def star_tl(folder: Path, dtype: str, device: str) -> Arm:
    model = star.load_model(folder, dtype=dtype, device=device)
    pairs = pairs_of_length(model, ROW, 1)
    prompt = list(pairs.clean_prompt(pairs.extraction.pairs[0]))
    hooks: list[Any] = []

    def attribute() -> None:
        attr = star.attribute(model, pairs, progress=False)
        assert attr.scores.isfinite().all()
        assert attr.head_scores.isfinite().all()
        hooks.extend(star.extract_vector(model, pairs, _middle(model.cfg.n_layers)).hooks(strength=1.0))

    def decode(count: int) -> int:
        (reply,) = star.generate(model, [prompt], hooks, max_new_tokens=count, progress=False)
        return len(reply.tokens)

    return attribute, decode, _bytes(model)


def transformer_lens(folder: Path, dtype: str, device: str) -> Arm:
    from transformer_lens import HookedTransformer

    kind = getattr(torch, dtype)
    hf = AutoModelForCausalLM.from_pretrained(folder, dtype=kind)
    model = HookedTransformer.from_pretrained_no_processing(
        "meta-llama/Llama-3.1-8B",
        hf_model=hf,
        tokenizer=AutoTokenizer.from_pretrained(folder),
        dtype=kind,
        device=device,
        first_n_layers=hf.config.num_hidden_layers,
    ).requires_grad_(False)
    del hf
    pairs = pairs_of_length(model, ROW, 1)
    ids = torch.tensor([prepare(model, pairs)[0].clean.ids], device=device)
    hooks: list[Any] = []

    def attribute() -> None:
        star.attribute(model, pairs, progress=False)
        hooks.extend(star.extract_vector(model, pairs, _middle(model.cfg.n_layers)).hooks(strength=1.0))

    def decode(count: int) -> int:
        with torch.no_grad(), model.hooks(fwd_hooks=hooks):
            out = model.generate(ids, max_new_tokens=count, stop_at_eos=False, verbose=False, return_type="tokens")
        return out.shape[1] - ids.shape[1]

    return attribute, decode, _bytes(model)


def residual_scores(model: Any, pair: PreparedPair) -> Tensor:
    """Gradient times difference at every layer's output of a transformers model; returns the middle layer's difference
    at the last prompt token.
    """
    layers, middle = model.model.layers, len(model.model.layers) // 2
    shift = torch.empty(0)

    def run(prompt: tuple[int, ...], reply: tuple[int, ...]) -> tuple[list[Tensor], Tensor]:
        seen: list[Tensor] = []

        def root(module: object, args: object, out: Tensor) -> Tensor:
            return out.detach().requires_grad_()

        def keep(module: object, args: object, out: Tensor) -> None:
            seen.append(out)

        handles = [model.model.embed_tokens.register_forward_hook(root)]
        handles += [layer.register_forward_hook(keep) for layer in layers]
        ids = torch.tensor([[*prompt, *reply]], device=model.device)
        try:
            logits = model(ids).logits[:, -len(reply) - 1 : -1]
        finally:
            for handle in handles:
                handle.remove()
        return seen, logits.log_softmax(-1).gather(-1, ids[:, -len(reply) :, None]).mean()

    for reply in (pair.positive, pair.negative):
        with torch.no_grad():
            clean, _ = run(pair.clean.ids, reply)
        corrupted, metric = run(pair.corrupted.ids, reply)
        gradients = torch.autograd.grad(metric, corrupted)
        for a, b, gradient in zip(clean, corrupted, gradients, strict=True):
            ((a - b.detach()) * gradient).sum(-1)
        shift = (clean[middle] - corrupted[middle].detach())[0, len(pair.clean) - 1]
    return shift


def read_by_prepare(model: Any, tokenizer: Any) -> Any:
    """What attribution's ``prepare`` reads of a model, of one of transformers'."""
    cfg = SimpleNamespace(n_ctx=model.config.max_position_embeddings)
    return SimpleNamespace(tokenizer=tokenizer, cfg=cfg)


def huggingface_hook(folder: Path, dtype: str, device: str) -> Arm:
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=getattr(torch, dtype)).to(device).eval()
    model.requires_grad_(False)
    for parameter in model.parameters():  # mapped files are read at first use: let that count as loading
        parameter.view(-1)[::1024].sum()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    holder = read_by_prepare(model, tokenizer)
    pair = prepare(holder, pairs_of_length(holder, ROW, 1))[0]
    layers, middle = model.model.layers, len(model.model.layers) // 2
    shifts: list[Tensor] = []

    def attribute() -> None:
        shifts.append(residual_scores(model, pair))

    def decode(count: int) -> int:
        handle = layers[middle].register_forward_hook(lambda module, args, out: out + shifts[-1])
        ids = torch.tensor([pair.clean.ids], device=device)
        try:
            out = model.generate(
                ids, attention_mask=torch.ones_like(ids), do_sample=True, max_new_tokens=count, min_new_tokens=count
            )
        finally:
            handle.remove()
        return out.shape[1] - ids.shape[1]

    return attribute, decode, _bytes(model)


ARMS = {"star_tl": star_tl, "transformer_lens": transformer_lens, "huggingface_hook": huggingface_hook}


def copying(device: str) -> float:
    """Bytes per second that a copy reads and writes."""
    source = torch.zeros(2**27, dtype=torch.uint8 if device == "cpu" else torch.int64, device=device)
    target, best = torch.empty_like(source), float("inf")
    for _ in range(5):
        _wait(device)
        began = time.perf_counter()
        target.copy_(source)
        _wait(device)
        best = min(best, time.perf_counter() - began)
    return 2 * source.nbytes / best


def _middle(layers: int) -> star.Locus:
    """Random weights leave attribution nothing to locate."""
    return star.Locus(f"blocks.{layers // 2}.hook_resid_post", (-1,))


def _bytes(model: torch.nn.Module) -> int:
    return sum({p.untyped_storage().data_ptr(): p.untyped_storage().nbytes() for p in model.parameters()}.values())


def _peak(device: str) -> float:
    """Megabytes."""
    if device.startswith("cuda"):
        return torch.cuda.max_memory_allocated(device) / 1e6
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e6


def _wait(device: str) -> None:
    if device.startswith("cuda"):
        torch.cuda.synchronize(device)


def bench(folder: Path, layers: int, dtype: str, device: str, threads: int, arms: tuple[str, ...]) -> list[dict]:
    """Write the checkpoint in ``folder``, run the arms, return their rows.

    The checkpoint is written by a process of its own too: on Linux the peak of a large parent is its children's.
    """
    own = [sys.executable, __file__, "--layers", str(layers), "--dtype", dtype, "--device", device]
    own += ["--threads", str(threads), "--folder", str(folder)]
    subprocess.run([*own, "--write"], check=True)
    size = llama_size(json.loads((folder / "config.json").read_text()))
    rows, way = [], " by pieces" if device == "cpu" and by_pieces(getattr(torch, dtype)) else ""
    for name in arms:
        row: dict[str, Any] = {
            "case": f"8B's shape, {layers} layers, {dtype}{way}, {device}, {threads} threads, {ROW} tokens",
            "arm": name,
            "weights_mb": round(size.parameters * getattr(torch, dtype).itemsize / 1e6, 1),
        }
        needed = COPIES[name] * row["weights_mb"] * 1e6 + MARGIN
        if needed > free_memory(device):
            row["note"] = f"does not fit: needs {needed / 1e9:.1f} GB, {free_memory(device) / 1e9:.1f} GB are free"
        else:
            out = subprocess.run([*own, "--arm", name], capture_output=True, text=True)
            if out.returncode:
                raise SystemExit(f"{name} failed:\n{out.stderr[-3000:]}")
            found = json.loads(out.stdout.splitlines()[-1])
            row |= {
                key: round(value, 3 if key.endswith(("_s", "second", "width")) else 1) for key, value in found.items()
            }
        rows.append(row)
        print(row, flush=True)
    return rows


def main() -> None:
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument("--json", type=Path)
    ap.add_argument("--layers", type=int, default=32)
    ap.add_argument("--dtype", default="bfloat16", choices=("bfloat16", "float16", "float32"))
    ap.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    ap.add_argument("--threads", type=int, default=os.cpu_count())
    ap.add_argument("--arms", default=",".join(ARMS), help="comma-separated, of those above")
    for private in ("--write", "--arm", "--folder"):
        ap.add_argument(private, help=argparse.SUPPRESS, **({"action": "store_true"} if private == "--write" else {}))
    args = ap.parse_args()
    torch.set_num_threads(args.threads)
    logging.set_verbosity_error()
    if args.write:
        write_checkpoint(Path(args.folder), args.layers)
    elif args.arm:
        print(json.dumps(measure(args.arm, Path(args.folder), args.dtype, args.device)))
    else:
        disk = 2 * (2 * 128256 * 4096 + args.layers * 2.2e8)
        with tempfile.TemporaryDirectory() as folder:
            if shutil.disk_usage(folder).free < disk + 1e9:
                raise SystemExit(f"{folder} has too little room for {disk / 1e9:.0f} GB: set TMPDIR to another disk.")
            rows = bench(Path(folder), args.layers, args.dtype, args.device, args.threads, tuple(args.arms.split(",")))
        if args.json:
            args.json.write_text(json.dumps({"rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
