"""A Llama's checkpoint with the vector folded into a bias, which everything that reads Llamas applies."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import cast

import torch
from torch import Tensor

from star_tl.data.chat import stop_ids
from star_tl.data.tokenizer import Tokenizer
from star_tl.errors import StarError
from star_tl.files import output_folder, replacing_folder, save_tensors
from star_tl.models.checkpoint import LLAMA, Checkpoint, architecture
from star_tl.models.config import LlamaConfig
from star_tl.models.hub import cached
from star_tl.models.load import find_checkpoint
from star_tl.models.weights import Stored, read_json
from star_tl.vectors.export.request import Format, Request

SHARD_BYTES = 4 << 30
_ATTENTION = ("hook_attn_out", "hook_resid_mid")  # added to what attention writes, which is added there too


def _write(request: Request, path: Path) -> None:
    row, (module, layer) = request.every_token("A folded bias"), _place(request)
    checkpoint = find_checkpoint(request.model or request.vector.model)
    config = checkpoint.config()
    _check(config, layer, row)
    folder = output_folder(path)
    if folder.is_dir() and any(folder.iterdir()):
        raise StarError(f"{path} holds files already: name a new folder.")
    stored = checkpoint.tensors()
    flag = "attention_bias" if module == "self_attn.o_proj" else "mlp_bias"
    biases = {name: torch.zeros(size) for name, size in _biases(cast(LlamaConfig, config), flag) if name not in stored}
    target = f"model.layers.{layer}.{module}.bias"
    biases[target] = (_read(stored[target]).float() if target in stored else biases[target]) + row
    tokenizer = checkpoint.tokenizer()
    named = {f"{part}_token_id": getattr(tokenizer, f"{part}_token_id") for part in ("bos", "eos", "pad")}
    held = {key: value for key, value in config.items() if value is not None or key not in named}
    settings = {
        "generation_config.json": _generation(checkpoint, tokenizer),
        "config.json": {key: value for key, value in named.items() if value is not None} | held | {flag: True},
    }
    with replacing_folder(folder, last="config.json") as partial:
        _save(partial, stored, biases)
        tokenizer.save_pretrained(partial)
        for name, said in settings.items():
            (partial / name).write_text(json.dumps(said, indent=2) + "\n")


def _generation(checkpoint: Checkpoint, tokenizer: Tokenizer) -> dict[str, object]:
    """The generation config as it was, where there is one; where the text ends stands in it in any case."""
    source = getattr(checkpoint, "path", None) or cached(checkpoint.title)
    held = source / "generation_config.json" if source else None
    settings = read_json(held) if held and held.is_file() else {}
    ends = checkpoint.end_tokens()
    known = stop_ids(tokenizer) + tuple(ends if isinstance(ends, list) else [] if ends is None else [ends])
    return settings if settings.get("eos_token_id") is not None else settings | {"eos_token_id": sorted(set(known))}


def _place(request: Request) -> tuple[str, int]:
    """The module whose bias it becomes, and its layer."""
    if request.vector.locus.hook_point.endswith(_ATTENTION):
        return "self_attn.o_proj", request.vector.locus.layer
    return "mlp.down_proj", request.layer("A folded bias")


def _check(config: Mapping[str, object], layer: int, row: Tensor) -> None:
    if architecture(config) != LLAMA:
        raise StarError(
            f"Only a Llama has a place for a folded vector, not {architecture(config)}: export 'snippet' or 'gguf'."
        )
    if config.get("quantization_config"):
        raise StarError("A quantized checkpoint cannot be written anew: name the unquantized one.")
    llama = cast(LlamaConfig, config)
    if len(row) != llama["hidden_size"] or layer >= llama["num_hidden_layers"]:
        raise StarError(
            f"A vector of width {len(row)} at layer {layer} does not fit this model of width {llama['hidden_size']} "
            f"with {llama['num_hidden_layers']} layers: name the model that it was extracted from."
        )


def _biases(config: LlamaConfig, flag: str) -> Iterator[tuple[str, int]]:
    """Every bias that a Llama has under this flag of its config, with its size."""
    width, inner, heads = config["hidden_size"], config["intermediate_size"], config["num_attention_heads"]
    d_head = config.get("head_dim") or width // heads
    shared = d_head * (config.get("num_key_value_heads") or heads)
    if flag == "mlp_bias":
        sizes = {"mlp.gate_proj": inner, "mlp.up_proj": inner, "mlp.down_proj": width}
    else:
        sizes = dict(zip("qkvo", (d_head * heads, shared, shared, width), strict=True))
        sizes = {f"self_attn.{part}_proj": size for part, size in sizes.items()}
    for layer in range(config["num_hidden_layers"]):
        yield from ((f"model.layers.{layer}.{module}.bias", size) for module, size in sizes.items())


def _dtype(stored: Stored) -> torch.dtype:
    """As it is stored; float32 where it is quantized."""
    return getattr(stored, "dtype", torch.float32)


def _read(stored: Stored) -> Tensor:
    tensor = torch.empty(stored.shape, dtype=_dtype(stored))
    stored.read(tensor)
    return tensor


def _save(folder: Path, stored: Mapping[str, Stored], biases: Mapping[str, Tensor]) -> None:
    """Shards of the weights as they are stored, then the biases, and the index of all; one shard is held at a time."""
    shards: list[list[str]] = [[]]
    size = 0
    for name in (n for n in stored if n not in biases):
        nbytes = math.prod(stored[name].shape) * _dtype(stored[name]).itemsize
        if size and size + nbytes > SHARD_BYTES:
            shards, size = [*shards, []], 0
        shards[-1].append(name)
        size += nbytes
    index: dict[str, str] = {}
    for number, names in enumerate([*shards, list(biases)], start=1):
        file = f"model-{number:05}-of-{len(shards) + 1:05}.safetensors"
        held = dict(biases) if number > len(shards) else {name: _read(stored[name]) for name in names}
        save_tensors(folder / file, held, {"format": "pt"})
        index |= dict.fromkeys(names, file)
    said = json.dumps({"metadata": {}, "weight_map": index}, indent=1)
    (folder / "model.safetensors.index.json").write_text(said + "\n")


def _usage(request: Request, path: Path) -> str:
    module, layer = _place(request)
    return (
        f"The vector is the bias of `model.layers.{layer}.{module}`; the other new biases are zero. It is a Llama like "
        f'any other: `AutoModelForCausalLM.from_pretrained("{path.name}")`, `vllm serve {path.name}`.'
    )


HUGGINGFACE = Format(
    "huggingface",
    "transformers, vLLM",
    "a Llama's checkpoint with the vector as a bias, at every token",
    _write,
    _usage,
    folder=True,
)
