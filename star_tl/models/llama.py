"""Read a checkpoint of the Llama family straight into a HookedTransformer.

The model is made without memory for its weights; every tensor of the checkpoint is then read to where it
stays. What HookedTransformer sees are views of these with its own shapes, in the layout in which its
``W.T.contiguous()`` and einops rearrangements cost nothing (see :mod:`star_tl.models.layout`): queries, keys
and values of a layer lie in one matrix, gate and up projection in another.
"""

from __future__ import annotations

import threading
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, cast

import torch
from torch import Tensor, nn

from star_tl.errors import StarError
from star_tl.models.checkpoint import Checkpoint
from star_tl.models.config import LlamaConfig
from star_tl.models.lens import (
    SUPPORTED_ACTIVATIONS,
    AbstractAttention,
    HookedTransformer,
    HookedTransformerConfig,
    get_device_for_block_index,
)
from star_tl.models.weights import Stored, read_into

_ONE_MODEL = threading.Lock()  # is made at a time


def hooked_config(hf: LlamaConfig, dtype: torch.dtype, device: str) -> HookedTransformerConfig:
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
    activation = hf.get("hidden_act") or "silu"
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
        n_ctx=hf.get("max_position_embeddings") or 2048,
        d_vocab=hf["vocab_size"],
        eps=hf.get("rms_norm_eps") or 1e-6,
        act_fn=activation,
        normalization_type="RMS",
        final_rms=True,
        gated_mlp=True,
        positional_embedding_type="rotary",
        rotary_adjacent_pairs=False,
        rotary_dim=d_head,
        rotary_base=rope.get("rope_theta") or hf.get("rope_theta") or 10000.0,
        original_architecture="LlamaForCausalLM",
        model_name=hf.get("_name_or_path") or "llama",
        init_weights=False,
        dtype=dtype,
        device=device,
        **scaled,
    )


def load_llama(
    checkpoint: Checkpoint, architecture: str, dtype: torch.dtype, device: str, first_n_layers: int | None = None
) -> HookedTransformer:
    """The HookedTransformer of a Llama, without its tokenizer; weights are held once also while they are read.

    Args:
        checkpoint: where settings and weights are read.
        architecture: the config's, a Llama's.
        dtype: of the parameters.
        device: of the parameters. Of several (``"cuda:0,cuda:1"``) each holds as many layers as the next, give or take
            one, the first also the embedding and the last the unembedding.
        first_n_layers: leave out all later layers.

    Raises:
        StarError: weights missing, damaged, truncated, or of other shapes than the config says.
    """
    hf = cast(LlamaConfig, checkpoint.config())
    devices = device.split(",")
    cfg = hooked_config(hf, dtype, devices[0])
    cfg.n_layers, cfg.n_devices = first_n_layers or cfg.n_layers, len(devices)
    stored = checkpoint.tensors()
    tied = hf.get("tie_word_embeddings", "lm_head.weight" not in stored)
    theirs, ours = _allocate(cfg, hf, tied)
    _check_stored(stored, theirs, checkpoint.title)
    _check_unheld_biases(stored, cfg, hf)
    read_into(stored, theirs, "Loading weights")
    if tied:  # one matrix, where one device holds both
        ours["unembed.W_U"] = ours["embed.W_E"].to(_device(cfg, "unembed")).T
    with warnings.catch_warnings(), torch.device("meta"), _angles_once():
        warnings.simplefilter("ignore", DeprecationWarning)
        model = HookedTransformer(cfg, move_to_device=False)
    model.load_state_dict({**_absent(model, cfg), **ours}, assign=True)
    if tied:
        model.unembed.register_load_state_dict_pre_hook(_part_from_embedding)
    if cfg.n_devices > 1:
        for block in model.blocks:
            block.register_forward_pre_hook(_mask_to_layer, with_kwargs=True)
    return model


@contextmanager
def _angles_once() -> Iterator[None]:
    """In this thread all layers have one table of angles: to make it took longer than to read a small model's weights.

    It is made on the ``meta`` device, which makes no numbers, but in thirty operators a layer.
    """
    mine = threading.get_ident()
    known: dict[tuple[object, ...], tuple[Tensor, Tensor]] = {}

    def once(own: AbstractAttention, *args: Any, **named: Any) -> tuple[Tensor, Tensor]:
        if threading.get_ident() != mine:
            return computed(own, *args, **named)
        key = (own.attn_type, *args, *sorted(named.items()))
        if key not in known:
            known[key] = computed(own, *args, **named)
        return known[key]

    with _ONE_MODEL:
        computed = AbstractAttention.calculate_sin_cos_rotary
        AbstractAttention.calculate_sin_cos_rotary = once
        try:
            yield
        finally:
            AbstractAttention.calculate_sin_cos_rotary = computed


def _part_from_embedding(unembed: Any, *_: object) -> None:
    """TransformerLens writes processed weights where the old ones are: tied, the embedding would change with them."""
    unembed.W_U.data = unembed.W_U.data.T.clone().T


def _device(cfg: HookedTransformerConfig, name: str) -> torch.device:
    """Where HookedTransformer's forward wants what has this name; it moves nothing but the residual stream itself."""
    part, *rest = name.split(".")
    layer = int(rest[0]) if part == "blocks" else 0 if part == "embed" else cfg.n_layers - 1
    return get_device_for_block_index(layer, cfg)


def _mask_to_layer(
    block: nn.Module, args: tuple[Tensor], named: dict[str, Any]
) -> tuple[object, dict[str, Any]] | None:
    """HookedTransformer would take every layer's attention scores, which are large, to the first device's mask."""
    mask = named.get("attention_mask")
    return None if mask is None else (args, {**named, "attention_mask": mask.to(args[0].device)})


def _allocate(cfg: HookedTransformerConfig, hf: LlamaConfig, tied: bool) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Memory for all weights, seen twice: under HuggingFace's names and shapes, and under TransformerLens's."""
    theirs: dict[str, Tensor] = {}
    ours: dict[str, Tensor] = {}
    grouped = "_" if cfg.n_key_value_heads is not None else ""
    kv_heads = cfg.n_key_value_heads or cfg.n_heads
    assert cfg.d_mlp is not None
    heads = {"Q": cfg.n_heads, f"{grouped}K": kv_heads, f"{grouped}V": kv_heads}

    def new(place: str, *shape: int) -> Tensor:
        return torch.empty(shape, dtype=cfg.dtype, device=_device(cfg, place))

    def same(our_name: str, their_name: str, *shape: int) -> None:
        ours[our_name] = theirs[their_name] = new(our_name, *shape)

    same("embed.W_E", "model.embed_tokens.weight", cfg.d_vocab, cfg.d_model)
    if not tied:
        theirs["lm_head.weight"] = new("unembed", cfg.d_vocab, cfg.d_model)
        ours["unembed.W_U"] = theirs["lm_head.weight"].T
    same("ln_final.w", "model.norm.weight", cfg.d_model)
    for layer in range(cfg.n_layers):
        block, attn, mlp = f"blocks.{layer}.", f"model.layers.{layer}.self_attn.", f"model.layers.{layer}.mlp."
        same(block + "ln1.w", f"model.layers.{layer}.input_layernorm.weight", cfg.d_model)
        same(block + "ln2.w", f"model.layers.{layer}.post_attention_layernorm.weight", cfg.d_model)
        rows = [n * cfg.d_head for n in heads.values()]
        for (name, n), weight in zip(heads.items(), new(block, sum(rows), cfg.d_model).split(rows), strict=True):
            projection = f"{attn}{name[-1].lower()}_proj."
            theirs[projection + "weight"] = weight
            side = name.removesuffix(name[-1])  # the underscore of grouped keys and values
            ours[f"{block}attn.{side}W_{name[-1]}"] = weight.view(n, cfg.d_head, cfg.d_model).transpose(1, 2)
            if hf.get("attention_bias"):
                theirs[projection + "bias"] = new(block, n * cfg.d_head)
                ours[f"{block}attn.{side}b_{name[-1]}"] = theirs[projection + "bias"].view(n, cfg.d_head)
        out = theirs[attn + "o_proj.weight"] = new(block, cfg.d_model, cfg.n_heads * cfg.d_head)
        ours[block + "attn.W_O"] = out.view(cfg.d_model, cfg.n_heads, cfg.d_head).permute(1, 2, 0)
        if hf.get("attention_bias"):
            same(block + "attn.b_O", attn + "o_proj.bias", cfg.d_model)
        gate, up = new(block, 2 * cfg.d_mlp, cfg.d_model).split(cfg.d_mlp)
        theirs |= {mlp + "gate_proj.weight": gate, mlp + "up_proj.weight": up}
        ours |= {block + "mlp.W_gate": gate.T, block + "mlp.W_in": up.T}
        down = theirs[mlp + "down_proj.weight"] = new(block, cfg.d_model, cfg.d_mlp)
        ours[block + "mlp.W_out"] = down.T
        if hf.get("mlp_bias"):
            same(block + "mlp.b_out", mlp + "down_proj.bias", cfg.d_model)
    return theirs, ours


def _check_stored(stored: Mapping[str, Stored], wanted: Mapping[str, Tensor], title: str) -> None:
    for name, tensor in wanted.items():
        if name not in stored:
            raise StarError(f"The checkpoint lacks {name}: download or save the model again.")
        if stored[name].shape != tuple(tensor.shape):
            raise StarError(
                f"The weights in {title} do not fit its config.json: {name} is {list(stored[name].shape)} and "
                f"should be {list(tensor.shape)}; download or save the model again."
            )


def _check_unheld_biases(stored: Mapping[str, Stored], cfg: HookedTransformerConfig, hf: LlamaConfig) -> None:
    """The biases of gate and up projection have no place in a HookedTransformer: they must be zero."""
    if not hf.get("mlp_bias"):
        return
    names = [f"model.layers.{i}.mlp.{p}_proj.bias" for i in range(cfg.n_layers) for p in ("gate", "up")]
    biases = {name: torch.zeros(stored[name].shape) for name in names if name in stored}
    read_into(stored, biases, "Checking biases")
    if any(bias.any() for bias in biases.values()):
        raise StarError(
            "This checkpoint has biases on the MLP's gate or up projection: HookedTransformer cannot hold them."
        )


def _absent(model: HookedTransformer, cfg: HookedTransformerConfig) -> dict[str, Tensor]:
    """What no Llama checkpoint holds: zeros for the other biases, and the buffers, one table of angles a device."""
    state = {
        name: torch.zeros(parameter.shape, dtype=cfg.dtype, device=_device(cfg, name))
        for name, parameter in model.named_parameters()
        if ".b_" in name or "._b_" in name
    }
    attention = model.blocks[0].attn
    assert cfg.rotary_dim is not None
    rows = len(attention.rotary_sin)  # the first part of the context; TransformerLens lengthens it as need be
    sin, cos = attention.calculate_sin_cos_rotary(cfg.rotary_dim, rows, base=cfg.rotary_base, dtype=cfg.dtype)
    blocks = [f"blocks.{layer}" for layer in range(cfg.n_layers)]
    buffers = {
        device: {
            "rotary_sin": sin.to(device),
            "rotary_cos": cos.to(device),
            "mask": torch.empty((0, 0), dtype=torch.bool, device=device),
            "IGNORE": torch.tensor(-torch.inf, device=device),
        }
        for device in dict.fromkeys(_device(cfg, block) for block in blocks)
    }
    held = {f"{b}.attn.{name}": value for b in blocks for name, value in buffers[_device(cfg, b)].items()}
    return state | held
