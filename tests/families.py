"""Tiny random models of many architectures, written as HuggingFace folders."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

SHAPE: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "max_position_embeddings": 512,
}
GROUPED = {**SHAPE, "num_key_value_heads": 2}
SCALES = {"embedding_multiplier": 3.0, "attention_multiplier": 0.5, "residual_multiplier": 0.6, "logits_scaling": 2.0}
# Every family with a config class of transformers and what tells it from the plain shape.
FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "gpt2": ("GPT2Config", {"n_embd": 32, "n_layer": 3, "n_head": 4, "n_positions": 512}),
    "pythia": ("GPTNeoXConfig", {**SHAPE, "rotary_pct": 0.25}),
    "gemma-2": ("Gemma2Config", {**GROUPED, "head_dim": 16, "sliding_window": 8, "query_pre_attn_scalar": 12}),
    "qwen-2.5": ("Qwen2Config", GROUPED),
    "qwen-3": ("Qwen3Config", {**GROUPED, "head_dim": 16}),
    "mistral": ("MistralConfig", {**GROUPED, "sliding_window": 32}),
    "phi-3": ("Phi3Config", GROUPED),
}
LLAMA = {"llama": ("LlamaConfig", GROUPED)}
# Architectures that HookedTransformer, or TransformerBridge, cannot hold.
STRANGE: dict[str, tuple[str, dict[str, Any]]] = {
    "granite": ("GraniteConfig", {**GROUPED, **SCALES, "tie_word_embeddings": False}),
    "olmo": ("OlmoConfig", GROUPED),
    "olmo-2": ("Olmo2Config", GROUPED),
    "gemma-3": ("Gemma3TextConfig", {**GROUPED, "head_dim": 16, "sliding_window": 8}),
    "smollm-3": ("SmolLM3Config", GROUPED),
    "bitnet": ("BitNetConfig", GROUPED),
    "mixtral": ("MixtralConfig", {**GROUPED, "num_local_experts": 4}),
    "mamba": ("MambaConfig", {"hidden_size": 32, "num_hidden_layers": 2}),
    "opt": ("OPTConfig", {**SHAPE, "ffn_dim": 64, "word_embed_proj_dim": 32}),
    "persimmon": ("PersimmonConfig", SHAPE),
}


def write_random(family: str, folder: Path, tokenizer: PreTrainedTokenizerFast, **more: Any) -> Path:
    """A random model of a family in ``folder``; keywords go to its config."""
    kind, settings = (FAMILIES | LLAMA | STRANGE)[family]
    ids = {"vocab_size": len(tokenizer), "bos_token_id": 0, "eos_token_id": 3, "pad_token_id": 4}
    torch.manual_seed(0)
    config = getattr(transformers, kind)(**{**ids, "initializer_range": 0.15, **settings, **more})
    model = AutoModelForCausalLM.from_config(config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" in name or "ln_" in name or "bias" in name:
                parameter.add_(0.2 * torch.randn_like(parameter))
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@torch.no_grad()
def write_as_llama(granite: Path, folder: Path, tokenizer: PreTrainedTokenizerFast) -> Path:
    """The Llama that computes what a Granite does: its scales are a matter of weights."""
    model = AutoModelForCausalLM.from_pretrained(granite, dtype=torch.float32)
    weights, own = model.state_dict(), model.config
    scale = own.attention_multiplier * math.sqrt(own.hidden_size // own.num_attention_heads)
    factors = {
        "embed_tokens": own.embedding_multiplier,
        "q_proj": scale,
        "o_proj": own.residual_multiplier,
        "down_proj": own.residual_multiplier,
        "lm_head": 1 / own.logits_scaling,
    }
    for name in weights:
        for part, factor in factors.items():
            if part in name:
                weights[name] = weights[name] * factor
    ids = {"vocab_size": own.vocab_size, "bos_token_id": 0, "eos_token_id": 3, "pad_token_id": 4}
    llama = LlamaForCausalLM(LlamaConfig(**GROUPED, **ids, rms_norm_eps=own.rms_norm_eps))
    llama.load_state_dict(weights)
    llama.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder
