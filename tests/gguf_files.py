"""Write a HuggingFace Llama as a GGUF file, the way llama.cpp's own convert_hf_to_gguf.py does."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
from safetensors.torch import load_file

NAMES = {
    "model.embed_tokens": "token_embd",
    "lm_head": "output",
    "model.norm": "output_norm",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}


def permuted(weight: np.ndarray, heads: int) -> np.ndarray:
    """llama.cpp rotates neighbours, HuggingFace a head's first half with its second."""
    return weight.reshape(heads, 2, len(weight) // heads // 2, *weight.shape[1:]).swapaxes(1, 2).reshape(weight.shape)


def rope_factors(rope: dict[str, Any], d_head: int) -> np.ndarray:
    """The divisors of the rotary frequencies for ``llama3``, as the convert script computes them."""
    low = rope["original_max_position_embeddings"] / rope["low_freq_factor"]
    high = rope["original_max_position_embeddings"] / rope["high_freq_factor"]
    found = []
    for frequency in 1.0 / (rope["rope_theta"] ** (np.arange(0, d_head, 2) / d_head)):
        length = 2 * math.pi / frequency
        if length < high:
            found.append(1.0)
        elif length > low:
            found.append(rope["factor"])
        else:
            smooth = (rope["original_max_position_embeddings"] / length - rope["low_freq_factor"]) / (
                rope["high_freq_factor"] - rope["low_freq_factor"]
            )
            found.append(1 / ((1 - smooth) / rope["factor"] + smooth))
    return np.array(found, dtype=np.float32)


def write_gguf(folder: Path, path: Path, kind: str = "F32", shards: int = 1, **metadata: Any) -> Path:
    """The Llama of ``folder`` at ``path``, matrices in quantization ``kind``, with this metadata instead of its own."""
    config = json.loads((folder / "config.json").read_text())
    weights = {name: tensor.float().numpy() for name, tensor in load_file(folder / "model.safetensors").items()}
    heads, kv_heads = config["num_attention_heads"], config["num_key_value_heads"]
    d_head = config.get("head_dim") or config["hidden_size"] // heads
    rope = config["rope_parameters"]
    options = {"split_max_tensors": -(-len(weights) // shards)} if shards > 1 else {}
    writer = gguf.GGUFWriter(path, "llama", **options)
    settings = {
        "llama.block_count": config["num_hidden_layers"],
        "llama.context_length": config["max_position_embeddings"],
        "llama.embedding_length": config["hidden_size"],
        "llama.feed_forward_length": config["intermediate_size"],
        "llama.attention.head_count": heads,
        "llama.attention.head_count_kv": kv_heads,
        "llama.rope.dimension_count": d_head,
        "llama.vocab_size": config["vocab_size"],
    } | {key: value for key, value in metadata.items() if isinstance(value, int)}
    for key, value in settings.items():
        writer.add_uint32(key, value)
    reals = {
        "llama.rope.freq_base": rope["rope_theta"],
        "llama.attention.layer_norm_rms_epsilon": config["rms_norm_eps"],
    }
    for key, value in (reals | {k: v for k, v in metadata.items() if isinstance(v, float)}).items():
        writer.add_float32(key, value)
    for key, value in metadata.items():
        if isinstance(value, str):
            writer.add_string(key, value)
    if config.get("head_dim"):
        writer.add_key_length(d_head)
        writer.add_value_length(d_head)
    add_tokenizer(writer, folder)
    if rope["rope_type"] == "llama3":
        writer.add_tensor("rope_freqs.weight", rope_factors(rope, d_head))
    for name, weight in weights.items():
        module, side = name.rsplit(".", 1)
        layer = module.split(".")[2] if module.startswith("model.layers.") else None
        part = NAMES[module if layer is None else module.split(".", 3)[3]]
        if part in ("attn_q", "attn_k"):
            weight = permuted(weight, heads if part == "attn_q" else kv_heads)
        chosen = gguf.GGMLQuantizationType[kind if weight.ndim == 2 else "F32"]
        writer.add_tensor(
            f"{part}.{side}" if layer is None else f"blk.{layer}.{part}.{side}",
            np.ascontiguousarray(weight)
            if chosen == gguf.GGMLQuantizationType.F32
            else gguf.quantize(np.ascontiguousarray(weight), chosen),
            raw_dtype=chosen,
        )
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path if shards == 1 else path.with_name(f"{path.stem}-00001-of-{shards:05}.gguf")


def add_tokenizer(writer: gguf.GGUFWriter, folder: Path) -> None:
    held = json.loads((folder / "tokenizer.json").read_text())
    special = {token["content"] for token in held["added_tokens"]}
    tokens = sorted(held["model"]["vocab"], key=held["model"]["vocab"].get)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(tokens)
    writer.add_token_types([3 if token in special else 1 for token in tokens])
    writer.add_token_merges([" ".join(pair) for pair in held["model"]["merges"]])
    named = json.loads((folder / "tokenizer_config.json").read_text())
    writer.add_bos_token_id(tokens.index(named["bos_token"]))
    writer.add_eos_token_id(tokens.index(named["eos_token"]))
    writer.add_pad_token_id(tokens.index(named["pad_token"]))
    writer.add_add_bos_token(False)
    template = folder / "chat_template.jinja"
    writer.add_chat_template(template.read_text() if template.is_file() else named["chat_template"])


def dequantized(path: Path) -> dict[str, torch.Tensor]:
    """Tensors by llama.cpp's names, as the package's own reader has them."""
    return {
        tensor.name: torch.from_numpy(np.array(gguf.dequantize(tensor.data, tensor.tensor_type)))
        for tensor in gguf.GGUFReader(path).tensors
    }
