"""What the server gives to many clients at once, beside one after another.

    python scripts/bench_serve.py [--json FILE] [--model demo] [--streams 64] [--each 1] [--rounds 3] [--tokens 60]

Starts ``star-tl serve`` in a process of its own with three vectors, and asks it for streamed replies: first one at a
time, then from so many clients at once, each of which sends its next request when its last was answered; the same
requests both times, no two alike in prompt, vector, strength, positions and seed.
Every text is compared with what ``star.generate`` writes for the same seed and vector. One that differs is replayed in
float64, token by token: at each the row's random number must fall, to within NEAR, into the part of the cumulated
probabilities that the token has, else the reply is wrong. Such a difference is rounding: float32 sums otherwise in a
batch of another size, and a border between two tokens lay between the two results.

    tokens_per_s   tokens of all replies over the time from the first request to the last token
    first_ms       from a request to its first event, median and 95th percentile
    rounded        replies that differ from the offline one by rounding, and how far from its border the number was
    wrong          replies that no rounding explains
    peak_mb        the most memory that the server's process held, with torch and the model
"""

from __future__ import annotations

import argparse
import asyncio
import json
import re
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import httpx
import torch

import star_tl as star
from star_tl.data.chat import stop_ids
from star_tl.generation.picking import bounded
from star_tl.generation.sampling import render_prompts
from star_tl.generation.writing import Reply, Writing
from star_tl.locus import Locus
from star_tl.steering.condition import Condition

TRAITS = ("emotional_support", "gratitude", "agreement")
POSITIONS = (None, "generated", "every 3", "all")
STRENGTHS = (1.0, -1.0, 2.0)
NEAR = 1e-5  # of a cumulated probability: float32's logits are further than this from float64's in no token seen


def vectors_of(model: Any, folder: Path) -> dict[str, star.SteeringVector]:
    layer = round(0.6 * model.cfg.n_layers)
    found = {}
    for trait in TRAITS:
        found[trait] = star.extract_vector(model, star.load_pairs(trait), Locus(f"blocks.{layer}.hook_resid_post"))
        found[trait].save(folder / f"{trait}.safetensors")
    return found


def requests(model: str, n: int, tokens: int, first_seed: int) -> list[dict[str, Any]]:
    prompts = star.load_pairs(TRAITS[0]).prompts
    found = []
    for i in range(n):
        body: dict[str, Any] = {"model": model, "messages": [dict(m) for m in prompts[i % len(prompts)]]}
        body |= {"seed": first_seed + i, "max_tokens": tokens, "temperature": 0.8, "stream": True}
        if i % 4:
            body["steering"] = {"vector": TRAITS[i % 3], "strength": STRENGTHS[i // 3 % 3]}
            if where := POSITIONS[i // 4 % 4]:
                body["steering"]["positions"] = where
        found.append(body)
    return found


def meant(vectors: dict[str, star.SteeringVector], body: dict[str, Any]) -> tuple[Condition, star.Sampling]:
    """What a request asks for."""
    way = body.get("steering")
    condition = Condition(seed=body["seed"])
    if way:
        vector = vectors[way["vector"]]
        condition = Condition("steered", vector, way["strength"], way.get("positions"), seed=body["seed"])
    return condition, star.Sampling(max_new_tokens=body["max_tokens"], temperature=body["temperature"])


def offline(model: Any, vectors: dict[str, star.SteeringVector], body: dict[str, Any]) -> Reply:
    condition, sampling = meant(vectors, body)
    return star.generate(model, [body["messages"]], condition=condition, sampling=sampling, progress=False)[0]


@torch.no_grad()
def replayed(model: Any, vectors: dict[str, star.SteeringVector], body: dict[str, Any], text: str) -> float | None:
    """How far, at most, a random number lies from the part of its token, by a model in float64; None if further than
    NEAR, for then this text is not the request's reply.
    """
    condition, sampling = meant(vectors, body)
    tokenizer, stops = model.tokenizer, frozenset(stop_ids(model.tokenizer))
    (ids,) = render_prompts(model, [body["messages"]], sampling.max_new_tokens)
    uniforms = Writing(tokenizer, ids, body["seed"], sampling, stops).uniforms
    hooks = condition.hooks(tokenizer, [body["messages"]], len(ids))
    written: list[int] = []
    furthest = 0.0
    for uniform in uniforms.tolist():
        logits = model.run_with_hooks(torch.tensor([[*ids, *written]]), fwd_hooks=hooks)[:, -1]
        reached = bounded(logits, sampling.temperature, sampling.top_p, sampling.min_p)[0].cumsum(0)
        reached = reached / reached[-1].clone()
        below = torch.cat([reached.new_zeros(1), reached[:-1]])
        away = torch.maximum(below - uniform, uniform - reached).clamp(min=0)
        near = sorted((away <= NEAR).nonzero()[:, 0].tolist(), key=lambda token: float(away[token]))
        if tokenizer.decode(written, skip_special_tokens=True).strip() == text and (end := stops & set(near)):
            return max(furthest, min(float(away[token]) for token in end))
        fitting = [t for t in near if t not in stops and begins(tokenizer.decode([*written, t]), text)]
        if not fitting:
            return None
        written.append(fitting[0])
        furthest = max(furthest, float(away[fitting[0]]))
    return furthest if tokenizer.decode(written, skip_special_tokens=True).strip() == text else None


def begins(part: str, text: str) -> bool:
    """Whether a reply that begins so may become this one, blanks at both ends left out."""
    part = part.rstrip("\N{REPLACEMENT CHARACTER}")
    return text.startswith(part.strip()) or part.strip() == ""


async def ask(client: httpx.AsyncClient, body: dict[str, Any]) -> tuple[bytes, float]:
    """What came, which is read when the clock stands, and seconds to the first of it."""
    began, first, events = time.perf_counter(), 0.0, b""
    async with client.stream("POST", "/v1/chat/completions", json=body) as answer:
        answer.raise_for_status()
        async for some in answer.aiter_raw():
            first = first or time.perf_counter() - began
            events += some
    return events, first


def text_of(events: bytes) -> str:
    said = [json.loads(line[6:]) for line in events.decode().splitlines() if line.startswith("data: {")]
    return "".join(event["choices"][0]["delta"].get("content", "") for event in said)


async def arm(address: str, bodies: list[dict[str, Any]], streams: int) -> tuple[list[str], list[float], float]:
    """So many clients share the requests out among them; each asks for its next when its last was answered."""
    found: list[tuple[bytes, float]] = [(b"", 0.0)] * len(bodies)

    async def ask_in_turn(client: httpx.AsyncClient, first: int) -> None:
        for i in range(first, len(bodies), streams):
            found[i] = await ask(client, bodies[i])

    async with httpx.AsyncClient(base_url=address, timeout=600, limits=httpx.Limits(max_connections=streams)) as client:
        began = time.perf_counter()
        await asyncio.gather(*(ask_in_turn(client, first) for first in range(streams)))
        seconds = time.perf_counter() - began
    return [text_of(events) for events, _ in found], [first for _, first in found], seconds


def peak_mb(pid: int) -> float:
    """The most that a process has held; Linux only."""
    status = Path(f"/proc/{pid}/status").read_text()
    found = re.search(r"VmHWM:\s+(\d+) kB", status)
    return int(found[1]) / 1e3 if found else float("nan")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--model", default="demo")
    parser.add_argument("--streams", type=int, default=64)
    parser.add_argument("--each", type=int, default=1, help="requests of a client, one after another")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--tokens", type=int, default=60)
    options = parser.parse_args()
    model = star.load_model(options.model)
    with tempfile.TemporaryDirectory() as folder:
        vectors = vectors_of(model, Path(folder))
        files = [part for trait in TRAITS for part in ("--vector", f"{folder}/{trait}.safetensors")]
        code = "from star_tl.cli import app; app()"
        command = [sys.executable, "-c", code, "serve", "--model", options.model, "--port", "0", *files]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
            assert server.stdout is not None
            line = server.stdout.readline()
            address = re.search(r"http://\S+", line)
            assert address, line
            try:
                result = measure(options, address[0], model, vectors)
                result["peak_mb"] = peak_mb(server.pid)
            finally:
                server.terminate()
    print(json.dumps(result, indent=2))
    if options.json:
        options.json.write_text(json.dumps(result, indent=2))


def measure(options: argparse.Namespace, address: str, model: Any, vectors: dict[str, Any]) -> dict[str, Any]:
    warm = requests(options.model, 8, 8, 10_000)
    asyncio.run(arm(address, warm, len(warm)))
    rates: dict[str, list[float]] = {"one at a time": [], "at once": []}
    firsts: dict[str, list[float]] = {name: [] for name in rates}
    wrong, rounded = 0, []
    exact = star.load_model(options.model, dtype="float64")
    for turn in range(options.rounds):
        bodies = requests(options.model, options.streams * options.each, options.tokens, 1000 * turn)
        texts = {}
        for name in rates:  # they take turns, so that a busy minute falls on both
            texts[name], first, seconds = asyncio.run(arm(address, bodies, options.streams if name == "at once" else 1))
            firsts[name] += first
            rates[name].append(seconds)
        alone = [offline(model, vectors, body) for body in bodies]
        for name in rates:
            for body, text, reply in zip(bodies, texts[name], alone, strict=True):
                if text == reply.text:
                    continue
                if (away := replayed(exact, vectors, body, text)) is not None:
                    rounded.append(away)
                else:
                    wrong += 1
                    print(f"Wrong, {name}: {json.dumps(body)}\n  {text!r}\n  {reply.text!r}", file=sys.stderr)
        tokens = sum(len(reply.tokens) for reply in alone)
        for name in rates:
            rates[name][-1] = tokens / rates[name][-1]
    found: dict[str, Any] = {"model": options.model, "streams": options.streams, "rounds": options.rounds}
    for name in rates:
        found[name] = {
            "tokens_per_s": statistics.median(rates[name]),
            "first_ms_median": 1e3 * statistics.median(firsts[name]),
            "first_ms_p95": 1e3 * statistics.quantiles(firsts[name], n=20)[-1],
        }
    found["times as many"] = statistics.median(
        b / a for a, b in zip(rates["one at a time"], rates["at once"], strict=True)
    )
    found["rounded"], found["wrong"] = rounded, wrong
    return found


if __name__ == "__main__":
    main()
