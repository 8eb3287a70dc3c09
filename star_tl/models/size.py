"""How large a model is before any of it is read, and what fits into a memory."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import torch

from star_tl.errors import StarError

_LLAMA3 = {"vocab_size": 128256, "num_key_value_heads": 8}
# The shapes of the checkpoints that people ask for first, to plan with before a config is downloaded.
SHAPES: dict[str, dict[str, Any]] = {
    "meta-llama/Llama-3.2-1B-Instruct": {
        **_LLAMA3,
        "hidden_size": 2048,
        "intermediate_size": 8192,
        "num_hidden_layers": 16,
        "num_attention_heads": 32,
        "tie_word_embeddings": True,
    },
    "meta-llama/Llama-3.2-3B-Instruct": {
        **_LLAMA3,
        "hidden_size": 3072,
        "intermediate_size": 8192,
        "num_hidden_layers": 28,
        "num_attention_heads": 24,
        "tie_word_embeddings": True,
    },
    "meta-llama/Llama-3.1-8B-Instruct": {
        **_LLAMA3,
        "hidden_size": 4096,
        "intermediate_size": 14336,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
    },
    "meta-llama/Llama-3.3-70B-Instruct": {
        **_LLAMA3,
        "hidden_size": 8192,
        "intermediate_size": 28672,
        "num_hidden_layers": 80,
        "num_attention_heads": 64,
    },
}


@dataclass(frozen=True)
class Size:
    """Numbers that a Llama holds: parameters outside of the layers and in each, and keys and values per token."""

    outside: int
    per_layer: int
    layers: int
    cache_per_layer: int

    def __post_init__(self) -> None:
        if min(self.outside, self.per_layer, self.layers, self.cache_per_layer) < 1:
            raise StarError(f"A model of this size cannot be: {self}; correct its config.json.")

    @property
    def parameters(self) -> int:
        return self.outside + self.layers * self.per_layer

    @property
    def cache_per_token(self) -> int:
        return self.layers * self.cache_per_layer

    def first(self, layers: int | None) -> Size:
        """The same model with its first layers only."""
        return self if layers is None else Size(self.outside, self.per_layer, layers, self.cache_per_layer)

    def layers_within(self, numbers: float) -> int:
        """How many of the layers fit where ``numbers`` parameters fit; 0 for none."""
        return max(0, min(self.layers, int((numbers - self.outside) // self.per_layer)))


def llama_size(config: Mapping[str, Any]) -> Size:
    """The size that a Llama ``config.json`` describes."""
    d, heads = config["hidden_size"], config["num_attention_heads"]
    d_head = config.get("head_dim") or d // heads
    kv = config.get("num_key_value_heads") or heads
    return Size(
        outside=config["vocab_size"] * d * (1 if config.get("tie_word_embeddings") else 2) + d,
        per_layer=d * d_head * (2 * heads + 2 * kv) + 3 * d * config["intermediate_size"] + 2 * d,
        layers=config["num_hidden_layers"],
        cache_per_layer=2 * kv * d_head,
    )


def transformers_size(folder: Path) -> Size:
    """The size of any model that transformers can make from the folder's ``config.json``.

    Raises:
        StarError: transformers does not know the architecture without code of the repository's own, or it has
            no attention layers.
    """
    from transformers import AutoConfig, AutoModelForCausalLM

    try:
        config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(config)
    except Exception as error:
        reason = " ".join(str(error).split())[:120]
        raise StarError(f"transformers cannot make a model of {folder} ({reason}): use another checkpoint.") from None
    if absent := [key for key in ("num_hidden_layers", "num_attention_heads") if not hasattr(config, key)]:
        raise StarError(f"{folder / 'config.json'} has no {absent[0]}: use a checkpoint of attention layers on text.")
    layers, heads = config.num_hidden_layers, config.num_attention_heads
    outside = sum(
        p.numel() for m in (model.get_input_embeddings(), model.get_output_embeddings()) for p in m.parameters()
    )
    if model.get_input_embeddings().weight is model.get_output_embeddings().weight:
        outside //= 2
    d_head = getattr(config, "head_dim", None) or config.hidden_size // heads
    kv_heads = getattr(config, "num_key_value_heads", None) or heads
    total = sum(p.numel() for p in model.parameters())
    return Size(outside, (total - outside) // layers, layers, 2 * kv_heads * d_head)


def free_memory(device: str) -> int:
    """Bytes that can still be had on a device."""
    if device.startswith("cuda"):
        return torch.cuda.mem_get_info(device)[0]
    return psutil.virtual_memory().available


def check_memory(name: str, size: Size, dtype: torch.dtype, device: str, copies: int = 1) -> None:
    """Raises StarError where the weights do not fit, and says what would.

    ``copies`` is how many times loading holds the weights.
    """
    free, needed = free_memory(device), copies * size.parameters * dtype.itemsize
    if needed <= free:
        return
    remedies = []
    half = copies * size.parameters * 2
    if dtype.itemsize > 2 and half <= free:
        remedies.append(f"dtype='bfloat16' ({half / 1e9:.1f} GB)")
    if layers := size.layers_within(free / copies / 2):
        smaller = "" if dtype.itemsize == 2 else ", dtype='bfloat16'"
        remedies += [f"first_n_layers={layers}{smaller}"] if layers < size.layers else []
    others = ["cpu", *(f"cuda:{i}" for i in range(torch.cuda.device_count()))]
    remedies += [f"device={d!r}" for d in others if d != device and needed <= free_memory(d)][:1]
    raise StarError(
        f"{name} needs {needed / 1e9:.1f} GB for its weights in {str(dtype).removeprefix('torch.')} and {device} has "
        f"{free / 1e9:.1f} GB free: use {', '.join([*remedies, 'a larger device, or a smaller model'])}."
    )
