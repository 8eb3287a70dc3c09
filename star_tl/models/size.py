"""How large a model is before any of it is read, and what fits into a memory."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import psutil
import torch

from star_tl.errors import StarError
from star_tl.models.config import LlamaConfig
from star_tl.models.lens import HAS_HOOKED_TRANSFORMER

# The shapes of the checkpoints that people ask for first, to plan with before a config is downloaded.
SHAPES: dict[str, LlamaConfig] = {
    "smollm2": {
        "vocab_size": 49152,
        "hidden_size": 576,
        "intermediate_size": 1536,
        "num_hidden_layers": 30,
        "num_attention_heads": 9,
        "num_key_value_heads": 3,
        "tie_word_embeddings": True,
    },
    "meta-llama/Llama-3.2-1B-Instruct": {
        "vocab_size": 128256,
        "num_key_value_heads": 8,
        "hidden_size": 2048,
        "intermediate_size": 8192,
        "num_hidden_layers": 16,
        "num_attention_heads": 32,
        "tie_word_embeddings": True,
    },
    "meta-llama/Llama-3.2-3B-Instruct": {
        "vocab_size": 128256,
        "num_key_value_heads": 8,
        "hidden_size": 3072,
        "intermediate_size": 8192,
        "num_hidden_layers": 28,
        "num_attention_heads": 24,
        "tie_word_embeddings": True,
    },
    "meta-llama/Llama-3.1-8B-Instruct": {
        "vocab_size": 128256,
        "num_key_value_heads": 8,
        "hidden_size": 4096,
        "intermediate_size": 14336,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
    },
    "meta-llama/Llama-3.3-70B-Instruct": {
        "vocab_size": 128256,
        "num_key_value_heads": 8,
        "hidden_size": 8192,
        "intermediate_size": 28672,
        "num_hidden_layers": 80,
        "num_attention_heads": 64,
    },
}


@dataclass(frozen=True)
class Size:
    """Numbers that a model holds: parameters outside of the layers and in each, and keys and values per token.

    ``outside_when_spread`` are those that of several devices the first and the last hold each, at most: the embedding
    and the unembedding, which are two there also where they are one matrix; 0 for a model that is not spread.
    """

    outside: int
    per_layer: int
    layers: int
    cache_per_layer: int
    outside_when_spread: int = 0

    def __post_init__(self) -> None:
        if min(self.per_layer, self.layers, self.cache_per_layer) < 1 or self.outside < 0:
            raise StarError(f"A model of this size cannot be: {self}; correct its config.json.")

    @property
    def parameters(self) -> int:
        return self.outside + self.layers * self.per_layer

    @property
    def cache_per_token(self) -> int:
        return self.layers * self.cache_per_layer

    @property
    def most_devices(self) -> int:
        """Over how many devices it can be spread."""
        return self.layers if self.outside_when_spread else 1

    def first(self, layers: int | None) -> Size:
        """The same model with its first layers only."""
        return self if layers is None else replace(self, layers=layers)

    def spread(self, devices: int) -> list[Size]:
        """What each of so many devices holds, by TransformerLens's rule: layer i lies on number i * devices // layers.

        No more than ``most_devices``.
        """
        if devices == 1:
            return [self]
        held = Counter(layer * devices // self.layers for layer in range(self.layers))
        return [
            replace(self, outside=self.outside_when_spread if i in (0, devices - 1) else 0, layers=held[i])
            for i in range(devices)
        ]

    def fits(self, width: int, device: str) -> bool:
        """Whether each of ``device``, one or several, has room for its part at so many bytes a parameter."""
        devices = device.split(",")
        if len(devices) > self.most_devices:
            return False
        parts = self.spread(len(devices))
        return all(p.parameters * width <= free_memory(d) for p, d in zip(parts, devices, strict=True))


def llama_size(config: LlamaConfig) -> Size:
    """The size that a Llama ``config.json`` describes."""
    d, heads = config["hidden_size"], config["num_attention_heads"]
    d_head = config.get("head_dim") or d // heads
    kv = config.get("num_key_value_heads") or heads
    return Size(
        outside=config["vocab_size"] * d * (1 if config.get("tie_word_embeddings") else 2) + d,
        per_layer=d * d_head * (2 * heads + 2 * kv) + 3 * d * config["intermediate_size"] + 2 * d,
        layers=config["num_hidden_layers"],
        cache_per_layer=2 * kv * d_head,
        outside_when_spread=config["vocab_size"] * d + d if HAS_HOOKED_TRANSFORMER else 0,
    )


def transformers_size(folder: Path, gguf_file: str | None = None) -> Size:
    """The size of any model that transformers can make from the folder's ``config.json``, or from a GGUF file in it.

    Raises:
        StarError: transformers does not know the architecture without code of the repository's own, or it has
            no attention layers.
    """
    from transformers import AutoConfig, AutoModelForCausalLM

    try:
        config = AutoConfig.from_pretrained(folder, gguf_file=gguf_file, trust_remote_code=False)
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(config)
    except Exception as error:
        reason = " ".join(str(error).split())[:120]
        raise StarError(f"transformers cannot make a model of {folder} ({reason}): use another checkpoint.") from None
    return size_of(model)


def size_of(model: Any) -> Size:
    """The size of a model object of transformers. Raises StarError where it has no attention layers."""
    config = model.config
    if absent := [key for key in ("num_hidden_layers", "num_attention_heads") if not hasattr(config, key)]:
        raise StarError(
            f"The config of {type(model).__name__} has no {absent[0]}: use a checkpoint of attention layers on text."
        )
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
        held = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + held  # PyTorch keeps what it has freed, for the next tensor
    return psutil.virtual_memory().available


def default_dtype(parameters: int, device: str) -> torch.dtype:
    """In 16 bits above a billion parameters, as float16 on GPUs that have no bfloat16; else float32."""
    if parameters <= 1e9:
        return torch.float32
    if device.startswith("cuda") and not torch.cuda.is_bf16_supported(including_emulation=False):
        return torch.float16
    return torch.bfloat16


def check_memory(name: str, size: Size, dtype: torch.dtype, device: str, copies: int = 1) -> None:
    """Raises StarError where the weights do not fit, and says what would.

    ``device`` is one, or several with commas between them; ``copies`` how many times loading holds the weights.
    """
    width, half = copies * dtype.itemsize, copies * 2
    if size.fits(width, device):
        return
    remedies = []
    if dtype.itemsize > 2 and size.fits(half, device):
        remedies.append(f"dtype='bfloat16' ({size.parameters * half / 1e9:.1f} GB)")
    if layers := next((n for n in range(size.layers, 0, -1) if size.first(n).fits(half, device)), 0):
        smaller = "" if dtype.itemsize == 2 else ", dtype='bfloat16'"
        remedies += [f"first_n_layers={layers}{smaller}"] if layers < size.layers else []
    gpus = [f"cuda:{i}" for i in range(torch.cuda.device_count())]
    others = [*gpus, *(",".join(gpus[:n]) for n in range(2, len(gpus) + 1)), "cpu"]
    remedies += [f"device={d!r}" for d in others if d != device and size.fits(width, d)][:1]
    free = " and ".join(f"{free_memory(d) / 1e9:.1f}" for d in device.split(","))
    raise StarError(
        f"{name} needs {size.parameters * width / 1e9:.1f} GB for its weights in {str(dtype).removeprefix('torch.')} "
        f"and {device} has {free} GB free: use {', '.join([*remedies, 'a larger device, or a smaller model'])}."
    )
