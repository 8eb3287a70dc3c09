"""``load_model``: by name, by folder, or the embedded demo model."""

from __future__ import annotations

import hashlib
import warnings
from pathlib import Path
from typing import Any

import psutil
import torch
from transformer_lens import HookedTransformer

from star_tl.errors import StarError, nearest
from star_tl.models.layout import relay
from star_tl.models.llama import load_llama, read_config

DEMO = Path(__file__).parent / "demo"
KNOWN = ("demo", "meta-llama/Llama-3.1-8B-Instruct")
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16, "float64": torch.float64}


def load_model(name: str | Path = "demo", dtype: str | None = None, device: str | None = None) -> HookedTransformer:
    """A HookedTransformer with frozen parameters, in evaluation mode, without processed weights.

    Args:
        name: ``"demo"`` (the embedded model), a folder in HuggingFace format, or a Hub name such
            as ``"meta-llama/Llama-3.1-8B-Instruct"``.
        dtype: ``float32``, ``bfloat16``, ``float16`` or ``float64``. Default: float32 for
            models under 1 B parameters, bfloat16 above.
        device: where to put it. Default: ``cuda`` where there is one, else ``cpu``.

    Raises:
        StarError: the model is unknown, gated, not downloaded, damaged, or larger than memory.
    """
    if dtype is not None and dtype not in DTYPES:
        raise StarError(f"Unknown dtype {dtype!r}.{nearest(dtype, DTYPES)}")
    name = str(name)
    device = _usable(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    folder = DEMO if name == "demo" else Path(name)
    if not folder.is_dir():
        folder = _download(name)
    config = read_config(folder)
    architecture = (config.get("architectures") or ["unknown"])[0]
    if config.get("quantization_config"):
        raise StarError(f"{name} is quantized: attribution needs full weights; name the unquantized checkpoint.")
    numbers = _parameter_count(config) if architecture == "LlamaForCausalLM" else None
    chosen = DTYPES[dtype] if dtype else torch.bfloat16 if (numbers or 0) > 1e9 else torch.float32
    if numbers:
        _check_memory(name, numbers * chosen.itemsize, device)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        if architecture == "LlamaForCausalLM":
            model = load_llama(folder, _tokenizer(folder), chosen, device)
        elif Path(name).is_dir():
            raise StarError(
                f"A local folder of architecture {architecture} cannot be read: folders must be LlamaForCausalLM."
            )
        else:
            try:
                model = relay(HookedTransformer.from_pretrained_no_processing(name, dtype=chosen, device=device))
            except ValueError:
                raise StarError(
                    f"{name} is of architecture {architecture}, which TransformerLens does not know by this name: "
                    "name a LlamaForCausalLM checkpoint."
                ) from None
    model.cfg.model_name = name
    return model.requires_grad_(False).eval()


def fingerprint(model: HookedTransformer) -> str:
    """Sixteen hexadecimal digits that identify a model's weights, the same in every dtype.

    Hashes the signs of a corner of the embedding and of every layer's output weights: signs survive
    every rounding, and a corner costs milliseconds on any size.
    """
    digest = hashlib.sha256()
    cfg = model.cfg
    digest.update(repr((cfg.n_layers, cfg.d_model, cfg.n_heads, cfg.d_vocab)).encode())
    corners = [model.embed.W_E[:256, :64]]
    for block in model.blocks:
        corners += [block.attn.W_O[0, :, :64], block.mlp.W_out[:64, :64]]  # type: ignore[union-attr,index]
    for corner in corners:
        digest.update(corner.detach().signbit().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()[:16]


def _usable(device: str) -> str:
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError):  # an unknown name, or a build of torch without it
        raise StarError(f"Device {device!r} cannot be used here: use 'cpu', or install torch for it.") from None
    return device


def _tokenizer(folder: Path) -> Any:
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    except Exception as error:
        reason = " ".join(str(error).split())[:200]
        raise StarError(f"No tokenizer could be read from {folder} ({reason}): save one beside the weights.") from None
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    if not tokenizer.chat_template:
        warnings.warn(
            "This tokenizer has no chat template: prompts are written as plain 'User: … Assistant:' text.", stacklevel=3
        )
    return tokenizer


def _download(name: str) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import (
        GatedRepoError,
        HFValidationError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
    )

    if "/" not in name and "\\" not in name and name not in ("gpt2",):
        raise StarError(f"Unknown model {name!r}: give a folder or a Hub name.{nearest(name, KNOWN)}")
    patterns = [
        "*.safetensors",
        "*.safetensors.index.json",
        "config.json",
        "tokenizer*",
        "special_tokens_map.json",
        "generation_config.json",
        "chat_template*",
    ]
    try:
        return Path(snapshot_download(name, allow_patterns=patterns))
    except GatedRepoError:
        raise StarError(
            f"{name} is gated: accept its licence on huggingface.co and set HF_TOKEN, or run `hf auth login`."
        ) from None
    except (RepositoryNotFoundError, HFValidationError):
        raise StarError(f"{name} is neither a folder nor a model on the Hub.{nearest(name, KNOWN)}") from None
    except (LocalEntryNotFoundError, OSError, ConnectionError):
        raise StarError(
            f"{name} is not downloaded and the Hub cannot be reached: connect once, or name a local folder or 'demo'."
        ) from None


def _parameter_count(config: dict[str, Any]) -> int:
    d, layers, mlp = config["hidden_size"], config["num_hidden_layers"], config["intermediate_size"]
    heads = config["num_attention_heads"]
    d_head = config.get("head_dim") or d // heads
    kv = config.get("num_key_value_heads") or heads
    embeddings = config["vocab_size"] * d * (1 if config.get("tie_word_embeddings") else 2)
    return embeddings + layers * (d * d_head * (2 * heads + 2 * kv) + 3 * d * mlp)


def _check_memory(name: str, needed: int, device: str) -> None:
    if device.startswith("cuda"):
        free = torch.cuda.mem_get_info(device)[0]
    else:
        free = psutil.virtual_memory().available
    if needed > free:
        raise StarError(
            f"{name} needs {needed / 1e9:.1f} GB for its weights and {device} has {free / 1e9:.1f} GB free: "
            "use dtype='bfloat16', a larger device, or a smaller model."
        )
