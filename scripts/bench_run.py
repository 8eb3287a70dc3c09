"""The whole road on SmolLM2: seconds and memory of each part, beside the same work written plainly with HuggingFace.

    python scripts/bench_run.py [--json FILE] [--threads 2] [--rounds 3] [--replies 192] [--no-run]

Both sides load the same weights in float32 and do, in turns, what a run does:

    loading        the file or folder that ``star-tl run --model smollm2`` loads
    attribution    the 40 extraction pairs of emotional support. HuggingFace: a pair after another, for each reply a
                   clean pass, then a corrupted one with its gradient; outputs of all layers
    sampling       ``--replies`` replies of 40 tokens to held-out prompts, a vector at every generated token of the
                   middle layer, 64 a batch. HuggingFace: generate under a forward hook
    scoring        log-probability of these replies and their KL to the unsteered model. HuggingFace: a steered and an
                   unsteered pass over prompt and reply, 32 a batch

Then ``star.run`` with 24 prompts and 2 seeds as the command line calls it, with its clock and its replies. Parts are
medians over rounds, in which the sides take turns, each in a process of its own; ``peak_gb`` is the most that a
process held.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from transformers import AutoTokenizer, LlamaForCausalLM, logging

import star_tl as star
from star_tl.data.chat import as_messages
from star_tl.evaluation.samples import sample_conditions
from star_tl.generation.sampling import generate
from star_tl.generation.settings import Sampling

sys.path.insert(0, str(Path(__file__).parent))
from bench_attribution import smollm2_folder

TRAIT, TOKENS, BATCH, SCORED = "emotional_support", 40, 64, 32
PARTS = ("loading", "attribution", "sampling", "scoring")


def added(width: int) -> torch.Tensor:
    return torch.randn(width, generator=torch.Generator().manual_seed(1))


def asked(replies: int) -> list[Any]:
    prompts = star.load_pairs(TRAIT).heldout.prompts
    return [prompts[k % len(prompts)] for k in range(replies)]


def ours(folder: Path, replies: int) -> dict[str, float]:
    found: dict[str, float] = {}
    clock = Clock(found)
    model = clock("loading", lambda: star.load_model("smollm2"))
    pairs, prompts = star.load_pairs(TRAIT), asked(replies)
    clock("attribution", lambda: star.attribute(model, pairs, progress=False))
    few = replace(pairs, pairs=pairs.extraction.pairs[:2])
    locus = star.Locus(f"blocks.{model.cfg.n_layers // 2}.hook_resid_post", (-1,))
    vector = replace(star.extract_vector(model, few, locus), vector=added(model.cfg.d_model)[None])
    condition = star.Condition("steered", vector, 1.0, "generated")
    sampling = Sampling(max_new_tokens=TOKENS, temperature=1.0)
    clock("sampling", lambda: generate(model, prompts, condition=condition, sampling=sampling, progress=False))
    clock(
        "both", lambda: sample_conditions(model, pairs.trait, prompts, [condition], sampling, progress=False)
    )  # which scores a batch while it is at hand
    found["scoring"] = found.pop("both") - found["sampling"]
    return found


class Clock:
    """Keeps the seconds of every part."""

    def __init__(self, found: dict[str, float]) -> None:
        self.found = found

    def __call__(self, part: str, work: Callable[[], Any]) -> Any:
        began = time.perf_counter()
        result = work()
        self.found[part] = time.perf_counter() - began
        return result


def huggingface(folder: Path, replies: int) -> dict[str, float]:
    found: dict[str, float] = {}
    clock = Clock(found)

    def load() -> tuple[Any, Any]:
        return LlamaForCausalLM.from_pretrained(folder, dtype=torch.float32).eval(), AutoTokenizer.from_pretrained(
            folder
        )

    hf, tokenizer = clock("loading", load)
    tokenizer.pad_token, tokenizer.padding_side = tokenizer.pad_token or tokenizer.eos_token, "left"
    layers = hf.model.layers
    pairs = star.load_pairs(TRAIT)

    def text(prompt: Any) -> list[int]:
        return tokenizer.apply_chat_template(list(as_messages(prompt)), add_generation_prompt=True, return_dict=False)

    def outputs(ids: list[int], kept: list[torch.Tensor]) -> Any:
        def keep(module: Any, args: Any, output: Any) -> None:
            hidden = output[0] if isinstance(output, tuple) else output
            if hidden.requires_grad:
                hidden.retain_grad()
            kept.append(hidden)

        handles = [layer.register_forward_hook(keep) for layer in layers]
        try:
            return hf(torch.tensor([ids]), use_cache=False).logits
        finally:
            for handle in handles:
                handle.remove()

    def attribute() -> None:
        for parameter in hf.parameters():
            parameter.requires_grad_(False)
        hf.get_input_embeddings().register_forward_hook(lambda module, args, output: output.requires_grad_())
        for pair in pairs.extraction:
            clean, corrupted = text(pairs.clean_prompt(pair)), text(pairs.corrupted_prompt(pair))
            scores = 0.0
            for reply, sign in ((pair.positive, 1.0), (pair.negative, -1.0)):
                own = tokenizer(reply, add_special_tokens=False).input_ids
                before: list[torch.Tensor] = []
                after: list[torch.Tensor] = []
                with torch.no_grad():
                    outputs([*clean, *own], before)
                logits = outputs([*corrupted, *own], after)[0, len(corrupted) - 1 : -1]
                (sign * logits.log_softmax(-1).gather(-1, torch.tensor(own)[:, None]).mean()).backward()
                n = min(len(clean), len(corrupted)) + len(own)  # aligned from the end
                both = zip(before, after, strict=True)
                scores += sum(float(((a[0, -n:] - b[0, -n:]) * b.grad[0, -n:]).sum()) for a, b in both)

    clock("attribution", attribute)
    vector = added(hf.config.hidden_size)
    ids = [text(prompt) for prompt in asked(replies)]

    def add_from(start: int | None) -> Any:
        """At every generated token: of a chunk its last one, or of whole rows those from ``start`` on."""

        def add(module: Any, args: Any, output: Any) -> Any:
            hidden = (output[0] if isinstance(output, tuple) else output).clone()
            hidden[:, -1 if start is None else start :] += vector
            return (hidden, *output[1:]) if isinstance(output, tuple) else hidden

        return layers[len(layers) // 2].register_forward_hook(add)

    written: list[tuple[list[list[int]], torch.Tensor]] = []

    def sample() -> None:
        for first in range(0, len(ids), BATCH):
            some = ids[first : first + BATCH]
            padded = tokenizer.pad({"input_ids": some}, return_tensors="pt")
            handle = add_from(None)
            options = {"do_sample": True, "temperature": 1.0, "top_k": 0, "pad_token_id": tokenizer.pad_token_id}
            out = hf.generate(**padded, max_new_tokens=TOKENS, **options)
            handle.remove()
            written.append((some, out[:, padded["input_ids"].shape[1] :]))

    def score() -> None:
        for some, replies_ in written:
            for first in range(0, len(some), SCORED):
                padded = tokenizer.pad({"input_ids": some[first : first + SCORED]}, return_tensors="pt")
                own = replies_[first : first + SCORED]
                tokens = torch.cat([padded["input_ids"], own], 1)
                mask = torch.cat([padded["attention_mask"], torch.ones_like(own)], 1)
                end = padded["input_ids"].shape[1]

                def logs(tokens: torch.Tensor = tokens, mask: torch.Tensor = mask, end: int = end) -> torch.Tensor:
                    return F.log_softmax(hf(tokens, attention_mask=mask).logits[:, end - 1 : -1], -1)

                base = logs()
                handle = add_from(end - 1)
                steered = logs()
                handle.remove()
                base.gather(-1, own[..., None])
                (steered.exp() * (steered - base)).sum(-1)

    with torch.no_grad():
        clock("sampling", sample)
        clock("scoring", score)
    return found


def whole_road(folder: Path, replies: int) -> dict[str, float]:
    found: dict[str, float] = {}
    clock = Clock(found)
    model = clock("loading", lambda: star.load_model("smollm2"))
    result = clock(
        "run", lambda: star.run(model, star.load_pairs(TRAIT), out=folder / "run", seeds=(0, 1), progress=False)
    )
    lines = (folder / "run" / "samples.jsonl").read_text(encoding="utf-8").splitlines()
    return found | {"replies": len(lines) + len(result.intervention.outcome.replies)}


SIDES = {"star_tl": ours, "huggingface and hooks": huggingface, "star.run": whole_road}


def in_its_own_process(side: str, folder: Path, args: argparse.Namespace) -> dict[str, float]:
    command = [sys.executable, str(Path(__file__).resolve()), "--side", side, str(folder)]
    command += ["--threads", str(args.threads), "--replies", str(args.replies)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{side} failed: {done.stderr[-800:]}")
    return json.loads(done.stdout.splitlines()[-1])


def main() -> None:
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument("--threads", type=int, default=2)
    ap.add_argument("--rounds", type=int, default=3)
    ap.add_argument("--replies", type=int, default=192)
    ap.add_argument("--no-run", action="store_true", help="leave the whole road out")
    ap.add_argument("--json", type=Path)
    ap.add_argument("--side", nargs=2, help=argparse.SUPPRESS)
    args = ap.parse_args()
    torch.set_num_threads(args.threads)
    logging.set_verbosity_error()
    if args.side:
        found = SIDES[args.side[0]](Path(args.side[1]), args.replies)
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
        print(json.dumps(found | {"peak_gb": peak}))
        return
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as temporary:
        folder = smollm2_folder(Path(temporary) / "smollm2")
        rounds: dict[str, list[dict[str, float]]] = {side: [] for side in list(SIDES)[:2]}
        for _ in range(args.rounds):
            for side, found in rounds.items():
                found.append(in_its_own_process(side, folder, args))
        for side, found in rounds.items():
            medians = {part: statistics.median(one[part] for one in found) for part in (*PARTS, "peak_gb")}
            rows.append({"side": side} | {part: round(value, 2) for part, value in medians.items()})
            print(rows[-1], flush=True)
        if not args.no_run:
            rows.append({"side": "star.run"} | in_its_own_process("star.run", Path(temporary), args))
            print(rows[-1])
    if args.json:
        args.json.write_text(json.dumps({"rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
