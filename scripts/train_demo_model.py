"""Train the embedded demo model from a corpus that our own grammar generates.

    python scripts/train_demo_model.py [--minutes 56] [--chats 130000] [--out star_tl/models/demo]

The corpus is a function of ``--seed``, the tokenizer of the corpus, and the weights of both and of
``--steps``, up to floating-point order. Two quiet CPU cores are enough; any CUDA device is used
where there is one. Needs what star_tl itself needs, and no network.
"""

from __future__ import annotations

import argparse
import json
import math
import multiprocessing
import os
import random
import shutil
import sys
import time
from pathlib import Path

import numpy as np
import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AttentionInterface, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

sys.path.insert(0, str(Path(__file__).resolve().parent))
from demo_model.chats import make_chat

SPECIAL = (
    "<|begin_of_text|>",
    "<|end_of_text|>",
    "<|start_header_id|>",
    "<|end_header_id|>",
    "<|eot_id|>",
    "<|finetune_right_pad_id|>",
)
BOS, END, START_HEADER, END_HEADER, EOT, PAD = range(6)
CHAT_TEMPLATE = (
    "{{ '<|begin_of_text|>' }}"
    "{% for message in messages %}"
    "{{ '<|start_header_id|>' + message['role'] + '<|end_header_id|>\n\n' + message['content'] | trim + '<|eot_id|>' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}"
)
# Llama 3's own split: contractions, words, up to three digits, punctuation, line ends, spaces.
SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
CONTEXT = 1024
OPENING, OPENING_WEIGHT = 4, 3.0  # a reply's first tokens settle its register: they weigh more
LENGTHS = (64, 96, 128, 160, 192, 256, 384, 512, 768, CONTEXT)


def chat_text(messages: list[dict[str, str]]) -> str:
    body = "".join(
        f"<|start_header_id|>{m['role']}<|end_header_id|>\n\n{m['content'].strip()}<|eot_id|>" for m in messages
    )
    return "<|begin_of_text|>" + body


def chats(job: tuple[int, int]) -> list[list[dict[str, str]]]:
    seed, count = job
    rng = random.Random(seed)
    return [make_chat(rng) for _ in range(count)]


def train_tokenizer(sample: list[list[dict[str, str]]], vocabulary: int) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(SPLIT), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=list(SPECIAL),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator((m["content"] for chat in sample for m in chat), trainer)
    return tokenizer


_TOKENIZER: Tokenizer | None = None


def encode(job: tuple[str, int, int]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Token ids, assistant mask, and chat lengths of one part of the corpus."""
    global _TOKENIZER
    path, seed, count = job
    if _TOKENIZER is None:
        _TOKENIZER = Tokenizer.from_file(path)
    ids: list[int] = []
    mine: list[int] = []
    lengths: list[int] = []
    newline = _TOKENIZER.encode("\n\n").ids
    for messages in chats((seed, count)):
        one, own = [BOS], [0]
        for m in messages:
            header = [START_HEADER, *_TOKENIZER.encode(m["role"]).ids, END_HEADER, *newline]
            body = [*_TOKENIZER.encode(m["content"].strip()).ids, EOT]
            one += header + body
            own += [0] * len(header) + [int(m["role"] == "assistant")] * len(body)
        one, own = one[:CONTEXT], own[:CONTEXT]
        ids += one
        mine += own
        lengths.append(len(one))
    return np.array(ids, np.uint16), np.array(mine, np.uint8), np.array(lengths, np.int32)


def batches(ids, mine, lengths, tokens_per_batch: int, rng: np.random.Generator):
    """Batches of chats of like length, padded to one of LENGTHS, in random order."""
    starts = np.concatenate([[0], np.cumsum(lengths)[:-1]])
    bucket = np.searchsorted(LENGTHS, lengths)
    plan = []
    for b, width in enumerate(LENGTHS):
        members = rng.permutation(np.flatnonzero(bucket == b))
        rows = max(1, tokens_per_batch // width)
        plan += [(width, members[i : i + rows]) for i in range(0, len(members) - rows + 1, rows)]
    for i in rng.permutation(len(plan)):
        width, members = plan[i]
        x = np.full((len(members), width), PAD, np.int64)
        m = np.zeros((len(members), width), bool)
        for row, member in enumerate(members):
            start, n = starts[member], lengths[member]
            x[row, :n] = ids[start : start + n]
            m[row, :n] = mine[start : start + n]
        yield torch.from_numpy(x), torch.from_numpy(m)


def opening_weights(mine: torch.Tensor) -> torch.Tensor:
    """Loss weights of the assistant's tokens, in the order in which :func:`losses` returns them."""
    before = torch.nn.functional.pad(mine, (OPENING, 0))[:, : mine.shape[1]]
    return torch.where(mine & ~before, OPENING_WEIGHT, 1.0)[:, 1:][mine[:, 1:]]


def losses(model: LlamaForCausalLM, x: torch.Tensor, mine: torch.Tensor, body=None) -> torch.Tensor:
    """Negative log-likelihood of the assistant's tokens, nats; only these are unembedded.

    ``body`` stands in for ``model.model`` where that has been compiled.
    """
    hidden = (model.model if body is None else body)(input_ids=x[:, :-1]).last_hidden_state
    logits = model.lm_head(hidden[mine[:, 1:]])
    return torch.nn.functional.cross_entropy(logits.float(), x[:, 1:][mine[:, 1:]], reduction="none")


def short_attention(module, query, key, value, attention_mask, scaling, **_):
    """Causal attention of short right-padded chats as two batched products, without repeating keys and values.

    On a CPU the backward pass of fused attention takes longer than these at a few hundred tokens.
    """
    rows, heads, length, width = query.shape
    groups = key.shape[1]
    with torch.autocast(query.device.type, enabled=False):
        q, k, v = ((query * scaling).bfloat16(), key.bfloat16(), value.bfloat16())
        scores = (q.reshape(rows, groups, -1, width) @ k.transpose(-1, -2)).view(rows, heads, length, length)
        later = torch.full((length, length), float("-inf"), device=query.device).triu(1)
        pattern = (scores.float() + later).softmax(-1).bfloat16()
        out = (pattern.view(rows, groups, -1, length) @ v).view(rows, heads, length, width)
    return out.transpose(1, 2), None


AttentionInterface.register("short", short_attention)


def save(model: LlamaForCausalLM, tokenizer: Tokenizer, out: Path) -> None:
    config = LlamaConfig(**model.config.to_dict())
    copy = LlamaForCausalLM(config)
    copy.load_state_dict(model.state_dict())
    copy.half().save_pretrained(out)
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=SPECIAL[BOS],
        eos_token=SPECIAL[EOT],
        pad_token=SPECIAL[PAD],
        model_max_length=CONTEXT,
        clean_up_tokenization_spaces=False,
    )
    fast.chat_template = CHAT_TEMPLATE
    fast.save_pretrained(out)


def main() -> None:
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument("--chats", type=int, default=130_000)
    ap.add_argument("--minutes", type=float, default=56.0, help="time for the optimiser")
    ap.add_argument("--steps", type=int, help="number of steps instead of --minutes: repeatable")
    ap.add_argument("--tokens-per-batch", type=int, default=4_096)
    ap.add_argument("--learning-rate", type=float, default=1e-2)
    ap.add_argument("--out", type=Path, default=Path(__file__).resolve().parents[1] / "star_tl/models/demo")
    ap.add_argument("--seed", type=int, default=0)
    ap.add_argument("--processes", type=int, default=multiprocessing.cpu_count())
    ap.add_argument("--width", type=int, default=192)
    ap.add_argument("--resume", action="store_true", help="go on from the model in --out; give another --seed")
    ap.add_argument("--adamw", action="store_true", help="AdamW for all parameters, to compare with")
    args = ap.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.manual_seed(args.seed)
    torch.set_float32_matmul_precision("high")
    began = time.time()

    with multiprocessing.get_context("fork").Pool(args.processes) as pool:
        parts = pool.map(chats, [(args.seed * 1_000_003 + 7_000_000 + i, 1250) for i in range(32)])
        tokenizer = train_tokenizer([c for part in parts for c in part], 4096)
    tokenizer_path = args.out / "tokenizer.json"
    if args.resume:
        tokenizer = Tokenizer.from_file(str(tokenizer_path))
    else:
        tokenizer.save(str(tokenizer_path))
    print(f"tokenizer of {tokenizer.get_vocab_size()} after {time.time() - began:.0f} s", flush=True)
    per = 2000
    jobs = [(str(tokenizer_path), args.seed * 1_000_003 + i, per) for i in range(max(2, args.chats // per))]
    with multiprocessing.get_context("fork").Pool(args.processes) as pool:
        encoded = pool.map(encode, jobs, chunksize=1)
    held_out, encoded = encoded[0], encoded[1:]
    ids, mine, lengths = (np.concatenate([e[k] for e in encoded]) for k in range(3))
    print(f"{len(lengths)} chats, {len(ids) / 1e6:.1f} M tokens after {time.time() - began:.0f} s", flush=True)

    config = LlamaConfig(
        vocab_size=4096,
        hidden_size=args.width,
        intermediate_size=args.width * 8 // 3 // 64 * 64,
        num_hidden_layers=8,
        num_attention_heads=args.width // 32,
        num_key_value_heads=2,
        max_position_embeddings=CONTEXT,
        rms_norm_eps=1e-5,
        rope_parameters={"rope_type": "default", "rope_theta": 10000.0},
        tie_word_embeddings=True,
        bos_token_id=BOS,
        eos_token_id=EOT,
        pad_token_id=PAD,
        attention_bias=False,
        mlp_bias=False,
    )
    model = LlamaForCausalLM.from_pretrained(args.out, dtype=torch.float32) if args.resume else LlamaForCausalLM(config)
    model.set_attn_implementation("short")
    model.to(device)
    print(f"{sum(p.numel() for p in model.parameters()) / 1e6:.2f} M parameters", flush=True)
    matrices = [p for n, p in model.named_parameters() if p.ndim == 2 and "embed" not in n]
    others = [p for n, p in model.named_parameters() if p.ndim != 2 or "embed" in n]
    settings = {"lr": args.learning_rate, "weight_decay": 0.05}
    optimisers: list[torch.optim.Optimizer] = [torch.optim.AdamW(others, betas=(0.9, 0.95), **settings)]
    if args.adamw:
        optimisers.append(torch.optim.AdamW(matrices, betas=(0.9, 0.95), **settings))
    else:
        optimisers.append(torch.optim.Muon(matrices, adjust_lr_fn="match_rms_adamw", **settings))

    rng = np.random.default_rng(args.seed)
    step, seen, smooth, started, log = 0, 0, 0.0, time.time(), []

    def progress() -> float:
        return step / args.steps if args.steps else (time.time() - started) / (60 * args.minutes)

    model.train()
    torch._dynamo.config.recompile_limit = 4 * len(LENGTHS)  # one graph a length
    body = torch.compile(model.model, dynamic=False) if shutil.which("g++") or device == "cuda" else model.model
    done = False
    while not done:
        for x, m in batches(ids, mine, lengths, args.tokens_per_batch, rng):
            at = progress()
            if at >= 1:
                done = True
                break
            warm = min(1.0, (step + 1) / 50)
            fall = min(1.0, (1.02 - at) / 0.6)  # constant, then linear to nearly zero
            for optimiser in optimisers:
                for group in optimiser.param_groups:
                    group["lr"] = args.learning_rate * warm * fall
            with torch.autocast(device, dtype=torch.bfloat16):
                nll, weight = losses(model, x.to(device), m.to(device), body), opening_weights(m).to(device)
                loss = (nll * weight).sum() / weight.sum()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            for optimiser in optimisers:
                optimiser.step()
                optimiser.zero_grad(set_to_none=True)
            step += 1
            seen += x.numel()
            smooth = nll.mean().item() if step == 1 else 0.98 * smooth + 0.02 * nll.mean().item()
            if step % 50 == 0:
                log.append({"step": step, "loss": round(smooth, 4), "seconds": round(time.time() - started)})
                rate = seen / (time.time() - started)
                print(f"step {step} loss {smooth:.3f} {rate:.0f} tokens/s {at:.0%}", flush=True)
            if step % 500 == 0:
                save(model, tokenizer, args.out)

    save(model, tokenizer, args.out)
    model.eval()
    model.set_attn_implementation("sdpa")
    model = model.half().float()  # what is shipped is what is measured
    total, count = 0.0, 0
    with torch.no_grad():
        for x, m in batches(*held_out, 8192, np.random.default_rng(1)):
            nll = losses(model, x.to(device), m.to(device))
            total += nll.sum().item()
            count += len(nll)
    perplexity = math.exp(total / count)
    print(f"held-out perplexity of assistant tokens {perplexity:.3f} over {count:.0f} tokens", flush=True)

    record = {
        "chats": len(lengths),
        "corpus_tokens": len(ids),
        "steps": step,
        "tokens_seen": int(seen),
        "seed": args.seed,
        "held_out_perplexity": round(perplexity, 4),
        "held_out_tokens": int(count),
        "seconds": round(time.time() - began),
        "device": torch.cuda.get_device_name() if device == "cuda" else "cpu",
        "loss": log[:: max(1, len(log) // 20)],
    }
    history = args.out / "training.json"
    earlier = json.loads(history.read_text())["runs"] if args.resume and history.is_file() else []
    history.write_text(json.dumps({"runs": [*earlier, record]}, indent=1) + "\n")


# glibc hands every freed activation back to the kernel and faults it in again at the next step; kept,
# a step takes a fifth less time. It reads these only when a process starts.
KEEP_MEMORY = {"MALLOC_MMAP_THRESHOLD_": str(2**32), "MALLOC_TRIM_THRESHOLD_": str(2**34)}

if __name__ == "__main__":
    if not KEEP_MEMORY.keys() <= os.environ.keys():
        os.execve(sys.executable, [sys.executable, *sys.argv], os.environ | KEEP_MEMORY)
    main()
