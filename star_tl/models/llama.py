"""Read a HuggingFace folder of the Llama family straight into a HookedTransformer.

The tensors of the checkpoint become views with HookedTransformer's shapes: no weight is copied or
transposed in memory. That is also the layout in which HookedTransformer's own
``W.T.contiguous()`` and einops rearrangements cost nothing (see :mod:`star_tl.models.layout`).
"""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor
from transformer_lens import HookedTransformer
from transformer_lens.config.hooked_transformer_config import HookedTransformerConfig
from transformer_lens.utilities.activation_functions import SUPPORTED_ACTIVATIONS

from star_tl.errors import StarError

_SIZES = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")


def _read_json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:  # not JSON, or not UTF-8
        raise StarError(f"{path} is not valid JSON ({error}): download or save the model again.") from None
    if not isinstance(value, dict):
        raise StarError(f"{path} holds no JSON object: download or save the model again.")
    return value


def read_config(folder: Path) -> dict[str, Any]:
    """``config.json`` of the folder. Raises StarError where there is none or it cannot be read."""
    path = folder / "config.json"
    if not path.is_file():
        raise StarError(f"{folder} holds no config.json: give a folder that save_pretrained wrote.")
    config = _read_json(path)
    absent = [key for key in _SIZES if key not in config]
    if "LlamaForCausalLM" in (config.get("architectures") or ()) and absent:
        raise StarError(f"{path} lacks {', '.join(absent)}: download or save the model again.")
    return config


def hooked_config(hf: dict[str, Any], dtype: torch.dtype, device: str) -> HookedTransformerConfig:
    """TransformerLens's config for a Llama ``config.json``, rope scaling ``llama3`` included."""
    heads = hf["num_attention_heads"]
    kv_heads = hf.get("num_key_value_heads") or heads
    d_head = hf.get("head_dim") or hf["hidden_size"] // heads
    rope = {**(hf.get("rope_scaling") or {}), **(hf.get("rope_parameters") or {})}
    kind = rope.get("rope_type", rope.get("type", "default"))
    scaled: dict[str, Any] = {}
    if kind == "llama3":
        scaled = {
            "use_NTK_by_parts_rope": True,
            "NTK_by_parts_factor": rope["factor"],
            "NTK_by_parts_low_freq_factor": rope["low_freq_factor"],
            "NTK_by_parts_high_freq_factor": rope["high_freq_factor"],
            "NTK_original_ctx_len": rope["original_max_position_embeddings"],
        }
    elif kind != "default":
        raise StarError(f"Rope scaling {kind!r} is not supported: use a checkpoint with 'llama3' or none.")
    activation = hf.get("hidden_act", "silu")
    if activation not in SUPPORTED_ACTIVATIONS:
        known = ", ".join(sorted(SUPPORTED_ACTIVATIONS))
        raise StarError(f"The activation {activation!r} is not supported: use a checkpoint with one of {known}.")
    return HookedTransformerConfig(
        n_layers=hf["num_hidden_layers"],
        d_model=hf["hidden_size"],
        d_head=d_head,
        n_heads=heads,
        n_key_value_heads=kv_heads if kv_heads != heads else None,
        d_mlp=hf["intermediate_size"],
        n_ctx=hf.get("max_position_embeddings", 2048),
        d_vocab=hf["vocab_size"],
        eps=hf.get("rms_norm_eps", 1e-6),
        act_fn=activation,
        normalization_type="RMS",
        final_rms=True,
        gated_mlp=True,
        positional_embedding_type="rotary",
        rotary_adjacent_pairs=False,
        rotary_dim=d_head,
        rotary_base=rope.get("rope_theta", hf.get("rope_theta", 10000.0)),
        original_architecture="LlamaForCausalLM",
        model_name=hf.get("_name_or_path") or "llama",
        init_weights=False,
        dtype=dtype,
        device=device,
        **scaled,
    )


def load_llama(folder: Path, tokenizer: Any, dtype: torch.dtype, device: str) -> HookedTransformer:
    """The HookedTransformer of a Llama folder, weights held once.

    Raises:
        StarError: weights missing, truncated, or of other shapes than the config says.
    """
    hf = read_config(folder)
    cfg = hooked_config(hf, dtype, device)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        model = HookedTransformer(cfg, move_to_device=False)
    tensors = _tensors(folder, dtype, device)
    try:
        state = _state_dict(tensors, hf, cfg)
        missing, unexpected = model.load_state_dict(state, strict=False, assign=True)
    except RuntimeError as error:
        raise StarError(
            f"The weights in {folder} do not fit its config.json: {str(error).splitlines()[-1].strip()}"
        ) from None
    absent = [k for k in missing if ".b_" not in k and "._b_" not in k and not k.endswith(_BUFFERS)]
    if absent or unexpected:
        raise StarError(
            f"{folder} lacks weights for {', '.join((absent or unexpected)[:3])}: download or save the model again."
        )
    model.to(device, print_details=False)
    model.tokenizer = tokenizer
    cfg.tokenizer_prepends_bos = len(tokenizer.encode("")) > 0
    return model.eval()


_BUFFERS = ("mask", "IGNORE", "rotary_sin", "rotary_cos")


def _tensors(folder: Path, dtype: torch.dtype, device: str) -> dict[str, Tensor]:
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        shards = sorted(set(_read_json(index).get("weight_map", {}).values()))
    else:
        shards = ["model.safetensors"]
    found: dict[str, Tensor] = {}
    for shard in shards:
        if not (folder / shard).is_file():
            raise StarError(f"{folder} lacks {shard}: download or save the model again, as safetensors.")
        try:
            with safe_open(folder / shard, framework="pt", device=device) as file:
                for name in file.keys():  # noqa: SIM118 - not a dict
                    found[name] = file.get_tensor(name).to(dtype)
        except SafetensorError as error:
            raise StarError(f"{folder / shard} is damaged ({error}): download it again.") from None
    return found


def _state_dict(hf: dict[str, Tensor], config: dict[str, Any], cfg: HookedTransformerConfig) -> dict[str, Tensor]:
    grouped = "_" if cfg.n_key_value_heads is not None else ""
    kv_heads = cfg.n_key_value_heads or cfg.n_heads

    def take(name: str) -> Tensor:
        if name not in hf:
            raise StarError(f"The checkpoint lacks {name}: download or save the model again.")
        return hf[name]

    def heads_in(name: str, n: int) -> Tensor:  # [(head d_head) d_model] -> [head d_model d_head]
        return take(name).view(n, cfg.d_head, cfg.d_model).transpose(1, 2)

    state = {"embed.W_E": take("model.embed_tokens.weight"), "ln_final.w": take("model.norm.weight")}
    tied = config.get("tie_word_embeddings", "lm_head.weight" not in hf)
    state["unembed.W_U"] = (state["embed.W_E"] if tied else take("lm_head.weight")).T
    for layer in range(cfg.n_layers):
        theirs, ours = f"model.layers.{layer}.", f"blocks.{layer}."
        state[ours + "ln1.w"] = take(theirs + "input_layernorm.weight")
        state[ours + "ln2.w"] = take(theirs + "post_attention_layernorm.weight")
        state[ours + "attn.W_Q"] = heads_in(theirs + "self_attn.q_proj.weight", cfg.n_heads)
        state[ours + f"attn.{grouped}W_K"] = heads_in(theirs + "self_attn.k_proj.weight", kv_heads)
        state[ours + f"attn.{grouped}W_V"] = heads_in(theirs + "self_attn.v_proj.weight", kv_heads)
        out = take(theirs + "self_attn.o_proj.weight")  # [d_model (head d_head)]
        state[ours + "attn.W_O"] = out.view(cfg.d_model, cfg.n_heads, cfg.d_head).permute(1, 2, 0)
        state[ours + "mlp.W_gate"] = take(theirs + "mlp.gate_proj.weight").T
        state[ours + "mlp.W_in"] = take(theirs + "mlp.up_proj.weight").T
        state[ours + "mlp.W_out"] = take(theirs + "mlp.down_proj.weight").T
        if config.get("attention_bias"):
            for ours_name, name, n in (
                ("b_Q", "q", cfg.n_heads),
                (f"{grouped}b_K", "k", kv_heads),
                (f"{grouped}b_V", "v", kv_heads),
            ):
                state[ours + f"attn.{ours_name}"] = take(theirs + f"self_attn.{name}_proj.bias").view(n, cfg.d_head)
            state[ours + "attn.b_O"] = take(theirs + "self_attn.o_proj.bias")
        if config.get("mlp_bias"):
            state[ours + "mlp.b_out"] = take(theirs + "mlp.down_proj.bias")
            if any(take(theirs + f"mlp.{n}_proj.bias").any() for n in ("gate", "up")):
                raise StarError(
                    "This checkpoint has biases on the MLP's gate or up projection: HookedTransformer cannot hold them."
                )
    return state
