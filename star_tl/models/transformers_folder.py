"""A HuggingFace folder read by transformers, and how to tell that another reading of it computes the same."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from star_tl.errors import StarError

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_PROBED = 32  # tokens on which a model is compared with HuggingFace
# Mean difference of log-probabilities, as a share of their spread, that another order of summation can make.
CLOSE = {torch.float32: 1e-3, torch.float64: 1e-3, torch.bfloat16: 0.1, torch.float16: 0.03}


def read_transformers(
    folder: Path, dtype: torch.dtype, first_n_layers: int | None = None, gguf_file: str | None = None
) -> PreTrainedModel:
    """The folder's model as transformers makes it, or that of a GGUF file in it, with attention that can be looked
    into, on the CPU.

    Raises:
        StarError: the folder cannot be read, or the checkpoint lacks weights.
    """
    from transformers import AutoConfig, AutoModelForCausalLM

    try:
        config = AutoConfig.from_pretrained(folder, gguf_file=gguf_file, trust_remote_code=False)
        if first_n_layers is not None:
            config.num_hidden_layers = first_n_layers
            if kinds := getattr(config, "layer_types", None):
                config.layer_types = kinds[:first_n_layers]
        load: Any = AutoModelForCausalLM.from_pretrained  # its type leaves the information out
        hf, info = load(
            folder,
            config=config,
            gguf_file=gguf_file,
            dtype=dtype,
            use_safetensors=True,
            attn_implementation="eager",
            output_loading_info=True,
        )
    except Exception as error:
        reason = " ".join(str(error).split())[:200]
        raise StarError(
            f"{folder} cannot be read ({reason}): download or save the model again, as safetensors."
        ) from None
    hf.config.architectures = hf.config.architectures or [type(hf).__name__]  # a GGUF file names none
    if absent := sorted(info["missing_keys"]):  # transformers would go on with random numbers in their place
        raise StarError(f"The checkpoint lacks {', '.join(absent[:3])}: download or save the model again.")
    return hf


@torch.no_grad()
def probe(hf: PreTrainedModel) -> tuple[Int[Tensor, "one position"], Float[Tensor, "one position vocab"]]:
    """Tokens and the logits that transformers computes from them."""
    length = min(_PROBED, getattr(hf.config, "max_position_embeddings", _PROBED))
    tokens = torch.randint(hf.config.vocab_size, (1, length), generator=torch.Generator().manual_seed(0))
    return tokens.to(hf.device), hf(tokens.to(hf.device)).logits


def difference(found: Float[Tensor, "*batch vocab"], expected: Float[Tensor, "*batch vocab"]) -> float:
    """Mean difference of two sets of log-probabilities, as a share of the spread of those expected."""
    expected, found = (logits.float().log_softmax(-1) for logits in (expected, found))
    return float((found - expected).abs().mean() / expected.std())


def differences(found: Float[Tensor, "row vocab"], expected: Float[Tensor, "row vocab"]) -> Float[Tensor, " row"]:
    """:func:`difference` of every row by itself."""
    expected, found = (logits.float().log_softmax(-1) for logits in (expected, found))
    return (found - expected).abs().mean(-1) / expected.std(-1)
