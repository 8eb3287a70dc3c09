"""``load_model``: by name, by folder, or the embedded demo model."""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from transformer_lens import HookedTransformer
from transformer_lens.model_bridge import TransformerBridge

from star_tl.data.chat import check_template, set_chat_format
from star_tl.errors import StarError, nearest, shown
from star_tl.files import is_folder, reading
from star_tl.models.bridge import corners, load_bridge
from star_tl.models.config import read_config
from star_tl.models.hooked import load_other
from star_tl.models.hub import download
from star_tl.models.llama import load_llama
from star_tl.models.size import SHAPES, Size, check_memory, llama_size, transformers_size
from star_tl.models.weights import read_json

DEMO = Path(__file__).parent / "demo"
KNOWN = ("demo", *SHAPES)
# What loading reads. Some repositories hold their weights a second time, as consolidated.safetensors.
FILES = (
    "model*.safetensors",
    "model.safetensors.index.json",
    "config.json",
    "tokenizer*",
    "vocab*",
    "merges.txt",
    "added_tokens.json",
    "special_tokens_map.json",
    "generation_config.json",
    "chat_template*",
)
BACKENDS = ("hooked", "bridge")
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16, "float64": torch.float64}


def load_model(
    name: str | Path = "demo",
    dtype: str | None = None,
    device: str | None = None,
    first_n_layers: int | None = None,
    backend: str = "hooked",
    template_args: Mapping[str, Any] | None = None,
) -> HookedTransformer | TransformerBridge:
    """A model with TransformerLens's hook points, parameters frozen, in evaluation mode, without processed weights.

    Args:
        name: ``"demo"`` (the embedded model), a folder in HuggingFace format, or a Hub name such
            as ``"meta-llama/Llama-3.1-8B-Instruct"``. Llamas are read straight into their place; GPT-2, Pythia,
            Gemma-2, Qwen-2.5 and 3, Mistral and Phi-3 by TransformerLens's converters, which hold the weights twice.
        dtype: ``float32``, ``bfloat16``, ``float16`` or ``float64``. Default: float32 for
            models under 1 B parameters, bfloat16 above.
        device: where to put it. Default: ``cuda`` where there is one, else ``cpu``. GPUs in order, as in
            ``"cuda:0,cuda:1"``, share the layers of a Llama that is too large for one.
        first_n_layers: leave out all later layers, to look into a model that does not fit whole.
        backend: ``"hooked"`` for a HookedTransformer, or ``"bridge"`` for a TransformerBridge, which knows more
            architectures (OLMo, Granite, Gemma-3, SmolLM3, Mixtral, ...), computes what HuggingFace computes, and holds
            the weights once. Every function of star_tl takes either; RelP has rules for most of its architectures.
            Llamas are fastest as HookedTransformers. In a bridge's own ``hooks`` and ``generate`` what is added at
            ``hook_resid_mid`` reaches the MLP only, and a sliding window shorter than the prompt misleads positions:
            sample with star_tl.
        template_args: passed to the chat template by name wherever it is used, such as ``{"enable_thinking": False}``;
            ``{"chat_template": "rag"}`` chooses among several templates.

    Raises:
        StarError: the model is unknown, gated, not downloaded, damaged, quantized, or larger than memory, the
            device cannot be used, or the backend does not know the architecture.
    """
    if dtype is not None and dtype not in DTYPES:
        raise StarError(f"Unknown dtype {dtype!r}.{nearest(dtype, DTYPES)}")
    if backend not in BACKENDS:
        raise StarError(f"Unknown backend {backend!r}.{nearest(backend, BACKENDS)}")
    name = str(name)
    device = _usable(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    local = DEMO if name == "demo" else Path(name)
    # The config first: what does not fit shall not be downloaded.
    folder = local if is_folder(local) else download(name, ("config.json",), KNOWN)
    config = read_config(folder)
    architecture = (config.get("architectures") or ["unknown"])[0]
    if config.get("quantization_config"):
        raise StarError(f"{name} is quantized: attribution needs full weights; name the unquantized checkpoint.")
    llama = architecture == "LlamaForCausalLM"
    size = llama_size(config) if llama else transformers_size(folder)
    if first_n_layers is not None and not 1 <= first_n_layers <= size.layers:
        raise StarError(f"first_n_layers is {first_n_layers}: use 1 to {size.layers}.")
    size = size.first(first_n_layers)
    if backend == "bridge":  # which never moves the residual stream
        size = replace(size, ends=0)
    _check_spread(device, size)
    chosen = DTYPES[dtype] if dtype else torch.bfloat16 if size.parameters > 1e9 else torch.float32
    check_memory(name, size, chosen, device, copies=1 if llama or backend == "bridge" else 2)
    folder = folder if local.is_dir() else download(name, FILES, KNOWN)
    tokenizer = _tokenizer(folder)
    set_chat_format(tokenizer, _end_tokens(folder), template_args)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        if backend == "bridge":
            model = load_bridge(folder, architecture, chosen, device, first_n_layers)
        elif llama:
            model = load_llama(folder, chosen, device, first_n_layers)
        else:
            model = load_other(folder, architecture, chosen, device, first_n_layers)
    model.tokenizer = tokenizer
    model.cfg.tokenizer_prepends_bos = len(tokenizer.encode("")) > 0
    model.cfg.model_name = name
    return model.requires_grad_(False).eval()


def fingerprint(model: HookedTransformer | TransformerBridge) -> str:
    """Sixteen hexadecimal digits that identify a model's weights, the same in every dtype and backend.

    Hashes the signs of a corner of the embedding and of every layer's output weights: signs survive
    every rounding, and a corner costs milliseconds on any size.
    """
    digest = hashlib.sha256()
    cfg = model.cfg
    digest.update(repr((cfg.n_layers, cfg.d_model, cfg.n_heads, cfg.d_vocab)).encode())
    if isinstance(model, TransformerBridge):
        looked_at = corners(model)
    else:
        looked_at = [model.embed.W_E[:256, :64]]
        for block in model.blocks:
            looked_at += [block.attn.W_O[0, :, :64], block.mlp.W_out[:64, :64]]  # type: ignore[union-attr,index]
    for corner in looked_at:
        digest.update(corner.detach().signbit().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()[:16]


def _usable(device: str) -> str:
    names = device.replace(" ", "").split(",")
    for name in names:
        try:
            torch.empty(0, device=name)
        except (RuntimeError, AssertionError):  # an unknown name, or a build of torch without it
            raise StarError(f"Device {name!r} cannot be used here: use 'cpu', or install torch for it.") from None
    first = torch.device(names[0]).index or 0
    # HookedTransformer's forward finds a layer's device by counting up from the first.
    if len(names) > 1 and names != [f"cuda:{first + i}" for i in range(len(names))]:
        raise StarError(
            f"A model cannot be spread over {device!r}: name GPUs that follow one another, as in 'cuda:0,cuda:1' "
            "(CUDA_VISIBLE_DEVICES chooses and orders them)."
        )
    return ",".join(names)


def _check_spread(device: str, size: Size) -> None:
    devices = device.count(",") + 1
    if devices > 1 and not size.ends:
        raise StarError("Only Llamas with backend='hooked' can be spread over several devices: name one device.")
    if devices > size.layers:
        raise StarError(f"{device} are more devices than the model's {size.layers} layers: name {size.layers} at most.")


def _end_tokens(folder: Path) -> Any:
    """What the folder's generation config ends a reply with, beside what its tokenizer says."""
    path = folder / "generation_config.json"
    if not path.exists():
        return None
    with reading(path):
        return read_json(path).get("eos_token_id")


def _tokenizer(folder: Path) -> Any:
    from transformers import AutoConfig, AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    except Exception as error:
        try:  # which the tokenizer's class is looked up in
            AutoConfig.from_pretrained(folder, trust_remote_code=False)
        except Exception as fault:
            reason = shown(str(fault), 200)
            raise StarError(f"{folder / 'config.json'} cannot be used ({reason}): download the model again.") from None
        reason = shown(str(error), 200)
        raise StarError(f"No tokenizer could be read from {folder} ({reason}): save one beside the weights.") from None
    check_template(tokenizer)
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    if not tokenizer.chat_template:
        warnings.warn(
            "This tokenizer has no chat template: prompts are written as plain 'User: … Assistant:' text.", stacklevel=3
        )
    return tokenizer
