"""``config.json`` of a HuggingFace folder, its numbers checked before anything is made of them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypedDict, TypeGuard, cast

from typing_extensions import Required

from star_tl.errors import StarError, quoted
from star_tl.models.weights import read_json

LLAMA = "LlamaForCausalLM"
_SIZES = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
# The most that each may be: some ten times what the largest models have, so that nothing is tried that cannot be.
_MOST = {
    **dict.fromkeys(("num_hidden_layers", "n_layer", "num_layers"), 1_000),
    **dict.fromkeys(("num_attention_heads", "n_head", "num_key_value_heads"), 10_000),
    **dict.fromkeys(("hidden_size", "n_embd", "intermediate_size", "n_inner", "head_dim"), 10_000_000),
    **dict.fromkeys(("vocab_size", "max_position_embeddings", "n_positions", "n_ctx"), 1_000_000_000),
}
_SHARES = ("rms_norm_eps", "layer_norm_eps", "layer_norm_epsilon", "norm_epsilon")
_SWITCHES = ("tie_word_embeddings", "attention_bias", "mlp_bias")
_TEXTS = ("model_type", "hidden_act", "activation_function")
_OBJECTS = ("rope_scaling", "rope_parameters", "quantization_config", "text_config")
_LLAMA3_ROPE = ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings")
_AGAIN = "download or save the model again"


class LlamaConfig(TypedDict, total=False):
    """What is read of a Llama's settings, once :func:`checked`."""

    vocab_size: Required[int]
    hidden_size: Required[int]
    intermediate_size: Required[int]
    num_hidden_layers: Required[int]
    num_attention_heads: Required[int]
    num_key_value_heads: int | None
    head_dim: int | None
    max_position_embeddings: int | None
    rms_norm_eps: float | None
    rope_theta: float | None
    rope_scaling: dict[str, Any] | None
    rope_parameters: dict[str, Any] | None
    hidden_act: str | None
    attention_bias: bool
    mlp_bias: bool
    tie_word_embeddings: bool
    _name_or_path: str


def read_config(folder: Path) -> dict[str, object]:
    """``config.json`` of the folder.

    Raises:
        StarError: there is none, it cannot be read, or a size, a share or a switch in it cannot be one.
    """
    path = folder / "config.json"
    if not path.exists():
        raise StarError(f"{folder} holds no config.json: give a folder that save_pretrained wrote.")
    return checked(read_json(path), str(path))


def checked(config: dict[str, object], source: str) -> dict[str, object]:
    """Settings as ``config.json`` names them, which came from elsewhere.

    Raises:
        StarError: a size, a share or a switch in them cannot be one.
    """
    names = config.get("architectures")
    if names is not None and not (isinstance(names, list) and all(isinstance(n, str) for n in names)):
        raise _wrong(source, "architectures", names, "a list of names")
    _check(source, config)
    if architecture(config) == LLAMA:
        _check_llama(source, config)
    return config


def architecture(config: Mapping[str, object]) -> str:
    """The first architecture that a config names."""
    return cast("list[str]", config.get("architectures") or ["unknown"])[0]


def _check(source: str, config: Mapping[str, object]) -> None:
    for key, value in config.items():
        if value is None:
            continue
        if key in _MOST:  # some architectures list a size layer by layer
            for size in value if isinstance(value, list) else [value]:
                if not _is_count(size) or size > _MOST[key]:
                    raise _wrong(source, key, value, f"a whole number from 1 to {_MOST[key]:,}")
        elif key in _SHARES and not (_is_number(value) and 0 < value < 1):
            raise _wrong(source, key, value, "a number above 0 and below 1")
        elif key == "rope_theta" and not (_is_number(value) and value > 0):
            raise _wrong(source, key, value, "a number above 0")
        elif key in _SWITCHES and not isinstance(value, bool):
            raise _wrong(source, key, value, "true or false")
        elif key in _TEXTS and not isinstance(value, str):
            raise _wrong(source, key, value, "a text")
        elif key in _OBJECTS:
            if not isinstance(value, dict):
                raise _wrong(source, key, value, "an object")
            _check(source, value)


def _check_llama(source: str, config: Mapping[str, object]) -> None:
    if absent := [key for key in _SIZES if config.get(key) is None]:
        raise StarError(f"{source} lacks {', '.join(absent)}: {_AGAIN}.")
    if listed := [key for key in _MOST if isinstance(config.get(key), list)]:
        raise _wrong(source, listed[0], config[listed[0]], "one number")
    llama = cast("LlamaConfig", config)
    heads, width = llama["num_attention_heads"], llama["hidden_size"]
    groups, own = llama.get("num_key_value_heads") or heads, llama.get("head_dim")
    if heads % groups:
        raise _wrong(source, "num_key_value_heads", groups, f"a divisor of num_attention_heads, {heads}")
    if own is None and width % heads:
        raise _wrong(source, "num_attention_heads", heads, f"a divisor of hidden_size, {width}")
    if (own or width // heads) % 2:
        raise _wrong(source, "head_dim", own or width // heads, "even, because angles turn pairs of numbers")
    rope = {**(llama.get("rope_scaling") or {}), **(llama.get("rope_parameters") or {})}
    if rope.get("rope_type", rope.get("type")) == "llama3":
        for key in _LLAMA3_ROPE:
            if not (_is_number(rope.get(key)) and rope[key] > 0):
                raise _wrong(source, key, rope.get(key), "a number above 0")


def _is_number(value: object) -> TypeGuard[float]:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def _is_count(value: object) -> TypeGuard[int]:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1


def _wrong(source: str, key: str, value: object, should: str) -> StarError:
    return StarError(f"{source}: {key} is {quoted(value)} and should be {should}: {_AGAIN}.")
