"""Architectures other than Llama, through TransformerLens's own configs and weight converters.

TransformerLens recognises models by their Hub name and guesses at some by words in it; here its converters get
what the folder itself says. It also leaves out what its blocks cannot do, such as some ways to scale rotary angles,
without a word: every model is therefore compared with HuggingFace's forward before it is handed out.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from star_tl.errors import StarError, nearest
from star_tl.models.bridge import knows
from star_tl.models.checkpoint import Checkpoint
from star_tl.models.layout import copy_free_layout
from star_tl.models.lens import (
    HookedTransformer,
    HookedTransformerConfig,
    fill_missing_keys,
    get_pretrained_model_config,
    get_pretrained_state_dict,
)
from star_tl.models.transformers_folder import CLOSE, difference, probe
from star_tl.models.weights import read_json

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel

# Those that the tests compare with HuggingFace; others that TransformerLens can convert are tried.
ARCHITECTURES = (
    "GPT2LMHeadModel",
    "GPTNeoXForCausalLM",
    "Gemma2ForCausalLM",
    "LlamaForCausalLM",
    "MistralForCausalLM",
    "Phi3ForCausalLM",
    "Qwen2ForCausalLM",
    "Qwen3ForCausalLM",
)

# A path that exists, which TransformerLens asks for, and that says nothing about the model.
_NO_NAME = str(Path(__file__).parent)


def load_other(
    checkpoint: Checkpoint, architecture: str, dtype: torch.dtype, device: str, first_n_layers: int | None = None
) -> HookedTransformer:
    """The HookedTransformer of a checkpoint, without its tokenizer. Loading holds the weights twice.

    Args:
        checkpoint: where settings and weights are read.
        architecture: the config's, such as ``"GPT2LMHeadModel"``.
        dtype: of the parameters.
        device: of the parameters.
        first_n_layers: leave out all later layers.

    Raises:
        StarError: TransformerLens does not know the architecture, computes something else than
            HuggingFace does, or the weights cannot be read.
    """
    hf = checkpoint.transformers(dtype, first_n_layers)
    try:
        cfg = _gemma2(hf.config) if architecture == "Gemma2ForCausalLM" else _by_transformer_lens(hf.config)
        cfg.dtype, cfg.device, cfg.tokenizer_name, cfg.init_weights = dtype, "cpu", None, False
        model = HookedTransformer(cfg, move_to_device=False)
        state = fill_missing_keys(model, get_pretrained_state_dict(_NO_NAME, cfg, hf_model=hf, dtype=dtype))
        model.load_state_dict({k: v.detach().to(dtype) for k, v in state.items()}, strict=False, assign=True)
    except Exception as error:
        reason = " ".join(str(error).split())[:120]
        remedy = f"name one that it can.{nearest(architecture, ARCHITECTURES)}"
        raise StarError(
            f"HookedTransformer cannot hold a model of architecture {architecture} ({reason}): "
            + ("load it with backend='bridge'." if knows(architecture) else remedy)
        ) from None
    _check_equal(model, hf.eval(), architecture)
    return copy_free_layout(model).to(device, print_details=False)


def weights(model: HookedTransformer) -> Iterator[tuple[str, Tensor]]:
    """Every weight by its name, those of grouped keys and values without TransformerLens's underscore."""
    return ((name.replace("._", "."), weight) for name, weight in model.named_parameters())


def _by_transformer_lens(hf: PretrainedConfig) -> HookedTransformerConfig:
    """TransformerLens's own reading of a config, from a folder whose name it cannot take for a model's."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "config.json"
        hf.save_pretrained(folder)
        # GPT-2's older name for its context length, which transformers no longer writes.
        settings = {"n_ctx": hf.max_position_embeddings} | read_json(path)
        path.write_text(json.dumps(settings))
        cfg = get_pretrained_model_config(folder, hf_cfg=hf.to_dict(), device="cpu")
    if cfg.positional_embedding_type == "rotary":  # capped for masks that TransformerLens no longer makes
        cfg.n_ctx = hf.max_position_embeddings
    return cfg


def _gemma2(hf: PretrainedConfig) -> HookedTransformerConfig:
    """TransformerLens writes the sizes of Gemma-2 out by name; these are the config's."""
    return HookedTransformerConfig(
        n_layers=hf.num_hidden_layers,
        d_model=hf.hidden_size,
        d_head=hf.head_dim,
        n_heads=hf.num_attention_heads,
        n_key_value_heads=hf.num_key_value_heads,
        d_mlp=hf.intermediate_size,
        n_ctx=hf.max_position_embeddings,
        d_vocab=hf.vocab_size,
        eps=hf.rms_norm_eps,
        act_fn=hf.hidden_activation,
        attn_scale=hf.query_pre_attn_scalar**0.5,
        window_size=hf.sliding_window,
        use_local_attn=True,
        attn_types=["local" if kind == "sliding_attention" else "global" for kind in hf.layer_types],
        attn_scores_soft_cap=hf.attn_logit_softcapping or -1.0,
        output_logits_soft_cap=hf.final_logit_softcapping or -1.0,
        rotary_base=hf.rope_parameters["rope_theta"],
        rotary_dim=hf.head_dim,
        positional_embedding_type="rotary",
        normalization_type="RMS",
        final_rms=True,
        gated_mlp=True,
        use_normalization_before_and_after=True,
        original_architecture="Gemma2ForCausalLM",
    )


@torch.no_grad()
def _check_equal(model: HookedTransformer, hf: PreTrainedModel, architecture: str) -> None:
    tokens, expected = probe(hf)
    share = difference(model(tokens), expected)
    if not share < CLOSE[model.cfg.dtype]:
        raise StarError(
            f"As a HookedTransformer this {architecture} does not compute what it does in HuggingFace (its log-"
            f"probabilities differ by {share:.1%} of their spread): use "
            + ("backend='bridge', or " if knows(architecture) else "")
            + "a checkpoint without special settings."
        )
