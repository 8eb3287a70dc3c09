"""Read a GGUF file of llama.cpp or Ollama: settings, tokenizer and chat template from its metadata, weights in pieces.

The header is walked here and not by the ``gguf`` package, whose reader makes an array of every word of the
vocabulary (two seconds) and, in a damaged file, goes on behind the end. The numbers themselves are the package's
business: it knows every quantization. The format: github.com/ggml-org/ggml/blob/master/docs/gguf.md.
"""

from __future__ import annotations

import math
import mmap
import re
import struct
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch
from torch import Tensor

from star_tl.data.tokenizer import Tokenizer
from star_tl.errors import StarError
from star_tl.models.config import LLAMA, LlamaConfig, checked
from star_tl.models.size import Size, llama_size, transformers_size
from star_tl.models.transformers_folder import read_transformers
from star_tl.models.weights import Stored

if TYPE_CHECKING:
    from transformers import PreTrainedModel

MAGIC = b"GGUF"
_SCALARS = {0: "<B", 1: "<b", 2: "<H", 3: "<h", 4: "<I", 5: "<i", 6: "<f", 7: "<?", 10: "<Q", 11: "<q", 12: "<d"}
_STRING, _ARRAY = 8, 9
_PIECE = 1 << 21  # numbers that are dequantized at a time, on the way in several copies
_MOST_DIMENSIONS = 4  # GGML_MAX_DIMS
_NAMES = {
    "token_embd": "model.embed_tokens",
    "output": "lm_head",
    "output_norm": "model.norm",
    "attn_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}


def is_gguf(path: Path) -> bool:
    """Whether a file begins as GGUF files do, whatever its name: Ollama's are named by their checksum."""
    if not path.is_file():
        return False
    with path.open("rb") as file:
        return file.read(len(MAGIC)) == MAGIC


@dataclass(frozen=True)
class QuantizedTensor:
    """A tensor of a GGUF file.

    ``kind`` is ggml's number of its quantization. Rows of a query or key projection of ``pairs`` heads lie in
    llama.cpp's order, in which the two numbers that rotary embeddings rotate are neighbours.
    """

    path: Path
    start: int
    kind: int
    shape: tuple[int, ...]
    pairs: int | None = None

    @property
    def row_bytes(self) -> int:
        elements, width = _block(self.kind)
        return self.shape[-1] // elements * width

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape[:-1]) * self.row_bytes

    def read(self, target: Tensor) -> None:
        """Fill ``target``, of this shape, piece by piece in its dtype and on its device."""
        columns = 1 if self.pairs and len(self.shape) == 1 else self.shape[-1]
        rows = target.view(-1, columns)
        row_bytes = self.nbytes // len(rows)
        head = len(rows) // self.pairs if self.pairs else 1
        step = max(1, _PIECE // (columns * head)) * head
        with self.path.open("rb") as file:
            file.seek(self.start)
            for place in rows.split(step):
                data = file.read(len(place) * row_bytes)
                if len(data) != len(place) * row_bytes:
                    raise StarError(f"{self.path} is damaged (it ends early): download it again.")
                values = torch.from_numpy(
                    _dequantized(np.frombuffer(data, np.uint8).reshape(len(place), -1), self.kind)
                )
                if self.pairs:
                    values = values.view(-1, head // 2, 2, columns).transpose(1, 2).reshape(len(place), columns)
                place.copy_(values)


def _block(kind: int) -> tuple[int, int]:
    """Numbers and bytes of a block of this quantization."""
    import gguf

    return gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType(kind)]


def _dequantized(rows: np.ndarray, kind: int) -> np.ndarray:
    import gguf

    if kind == gguf.GGMLQuantizationType.F64:
        return rows.view(np.float64).copy()
    with np.errstate(all="ignore"):  # what is no number is looked for once all is read
        values = gguf.dequantize(rows, gguf.GGMLQuantizationType(kind))
    return values if values.flags.writeable else values.copy()


@dataclass(frozen=True)
class Header:
    """What stands before the weights of one file: settings (of a list of words only its length), and tensors."""

    path: Path
    metadata: Mapping[str, Any]
    tensors: Mapping[str, QuantizedTensor]


def read_header(path: Path) -> Header:
    """Walk the header of a GGUF file. Raises StarError where anything in it cannot be."""
    try:
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            return _Walk(path, data).header()
    except struct.error:
        raise StarError(f"{path} is damaged (it ends within its header): download it again.") from None


class _Walk:
    def __init__(self, path: Path, data: mmap.mmap) -> None:
        self.path, self.data, self.at = path, data, 0

    def header(self) -> Header:
        if self.data[:4] != MAGIC:
            raise self.damaged("it does not begin as a GGUF file does")
        self.at = 4
        version = self.number("<I")
        if version not in (2, 3):
            raise StarError(
                f"{self.path} is a GGUF file of version {version if version < 1 << 16 else 'big-endian'}: "
                "convert it to version 3."
            )
        n_tensors, n_values = self.number("<Q"), self.number("<Q")
        metadata: dict[str, Any] = {}
        for _ in range(n_values):
            key = self.text()
            if key in metadata:
                raise self.damaged(f"it holds {key[:40]!r} twice")
            metadata[key] = self.value(self.number("<I"))
        entries: dict[str, tuple[tuple[int, ...], int, int]] = {}
        for _ in range(n_tensors):
            name = self.text()
            dimensions = self.number("<I")
            if name in entries or not 1 <= dimensions <= _MOST_DIMENSIONS:
                raise self.damaged(f"its tensor {name[:40]!r} comes twice or has {dimensions} dimensions")
            shape = tuple(self.number("<Q") for _ in range(dimensions))[::-1]
            entries[name] = shape, self.number("<I"), self.number("<Q")
        step = metadata.get("general.alignment", 32)
        if not isinstance(step, int) or step < 1:
            raise self.damaged(f"its alignment is {step!r}")
        begin = -(-self.at // step) * step
        return Header(self.path, metadata, {name: self.tensor(name, *e, begin) for name, e in entries.items()})

    def tensor(self, name: str, shape: tuple[int, ...], kind: int, offset: int, begin: int) -> QuantizedTensor:
        try:
            elements, _ = _block(kind)
        except (ValueError, KeyError):
            raise StarError(
                f"{self.path} holds {name[:40]} in quantization {kind}, which the package gguf does not know: "
                "upgrade it, or use another file."
            ) from None
        tensor = QuantizedTensor(self.path, begin + offset, kind, shape)
        if min(shape) < 1 or shape[-1] % elements or tensor.start + tensor.nbytes > len(self.data):
            raise self.damaged(f"{name[:40]} {list(shape)} does not lie within it")
        return tensor

    def number(self, kind: str) -> Any:
        (value,) = struct.unpack_from(kind, self.data, self.at)
        self.at += struct.calcsize(kind)
        return value

    def text(self) -> str:
        length = self.number("<Q")
        if length > len(self.data) - self.at:
            raise struct.error
        self.at += length
        return self.data[self.at - length : self.at].decode("utf-8", "replace")

    def value(self, kind: int) -> bool | float | str | list[float]:
        if kind in _SCALARS:
            return self.number(_SCALARS[kind])
        if kind == _STRING:
            return self.text()
        if kind != _ARRAY:
            raise self.damaged(f"it holds a value of kind {kind}")
        kind, count = self.number("<I"), self.number("<Q")
        if kind == _STRING:
            for _ in range(count):
                self.text()
            return count
        if kind not in _SCALARS:
            raise self.damaged(f"it holds a list of kind {kind}")
        values = np.dtype(_SCALARS[kind])
        if count * values.itemsize > len(self.data) - self.at:
            raise struct.error
        self.at += count * values.itemsize
        return np.frombuffer(self.data, values, count, self.at - count * values.itemsize).tolist()

    def damaged(self, why: str) -> StarError:
        return StarError(f"{self.path} is damaged ({why}): download it again.")


@dataclass(frozen=True)
class GgufFile:
    """A GGUF file, or the first of the files into which llama.cpp has split one, as a checkpoint."""

    path: Path

    @property
    def title(self) -> str:
        return str(self.path)

    @cached_property
    def headers(self) -> list[Header]:
        """One for each file of a model that is split, the first with the settings of all."""
        named = re.fullmatch(r"(.*)-(\d{5})-of-(\d{5})(\.gguf)", self.path.name)
        if named is None:
            headers = [read_header(self.path)]
        else:
            stem, _, count, end = named.groups()
            paths = [self.path.with_name(f"{stem}-{i:05}-of-{count}{end}") for i in range(1, int(count) + 1)]
            if absent := [path.name for path in paths if not path.is_file()]:
                raise StarError(f"{self.path.parent} lacks {absent[0]}: put all parts of the model into one folder.")
            headers = [read_header(path) for path in paths]
        expected = headers[0].metadata.get("split.count", 1)
        if max(expected, 1) != len(headers):
            raise StarError(
                f"{self.path} is one of {expected} parts: name them as llama.cpp does, …-00001-of-{expected:05}.gguf."
            )
        return headers

    @property
    def metadata(self) -> Mapping[str, Any]:
        return self.headers[0].metadata

    @cached_property
    def stored(self) -> dict[str, QuantizedTensor]:
        """All tensors by llama.cpp's names."""
        return {name: tensor for header in self.headers for name, tensor in header.tensors.items()}

    def config(self) -> dict[str, object]:
        """As ``config.json`` would have it. Raises StarError where settings lack or contradict the weights."""
        kind = self.metadata.get("general.architecture")
        if self.metadata.get("llama.expert_count"):
            raise StarError(f"{self.path} holds a mixture of experts: name its folder in HuggingFace format.")
        if kind != "llama":
            return self._transformers_config()
        stored = self.stored
        layers = self._count("block_count")
        heads = self._count("attention.head_count")
        kv_heads = self._count("attention.head_count_kv", heads)
        hidden = self._count("embedding_length")
        d_head = self._count("attention.key_length", hidden // heads)
        embedding = stored.get("token_embd.weight")
        if embedding is None or embedding.shape[1:] != (hidden,) or layers > len(stored) or heads % kv_heads:
            raise StarError(f"{self.path} is damaged (its settings contradict its weights): download it again.")
        rotary = self._count("rope.dimension_count", d_head)
        scaling = self.metadata.get("llama.rope.scaling.type", "none")
        if rotary != d_head or scaling != "none" or self._count("attention.value_length", d_head) != d_head:
            raise StarError(
                f"{self.path} has heads of {d_head} of which {rotary} are rotated, scaled by {scaling!r}: "
                "use a Llama without such settings."
            )
        base = self.metadata.get("llama.rope.freq_base", 10000.0)
        rope: dict[str, object] = {"rope_type": "default", "rope_theta": base}
        if factors := stored.get("rope_freqs.weight"):
            rope |= self._llama3(factors, base, d_head)
        config = {
            "architectures": [LLAMA],
            "model_type": "llama",
            "vocab_size": embedding.shape[0],
            "hidden_size": hidden,
            "intermediate_size": self._count("feed_forward_length"),
            "num_hidden_layers": layers,
            "num_attention_heads": heads,
            "num_key_value_heads": kv_heads,
            "head_dim": d_head,
            "max_position_embeddings": self._count("context_length", 2048),
            "rms_norm_eps": self.metadata.get("llama.attention.layer_norm_rms_epsilon", 1e-5),
            "rope_parameters": rope,
            "attention_bias": "blk.0.attn_q.bias" in stored,
            "mlp_bias": "blk.0.ffn_down.bias" in stored,
            "tie_word_embeddings": "output.weight" not in stored,
        }
        return checked(config, str(self.path))

    def _count(self, key: str, default: int | None = None) -> int:
        value = self.metadata.get(f"llama.{key}", default)
        if isinstance(value, list) and len(set(value)) == 1:  # one for each layer
            value = value[0]
        if not isinstance(value, int) or not 1 <= value < 1 << 31:
            raise StarError(f"{self.path} gives {str(value)[:40]} as llama.{key}: use another file.")
        return value

    def _llama3(self, factors: QuantizedTensor, base: float, d_head: int) -> dict[str, object]:
        """The settings of ``rope_type`` ``llama3`` that make these divisors of the rotary frequencies.

        Between its two ends 1 / divisor is a straight line in the frequency, which has two numbers: settings that these
        leave open, one of three or more, are Llama-3's own.
        """
        found = torch.empty(factors.shape, dtype=torch.float64)
        factors.read(found)
        frequency = base ** -(torch.arange(0, d_head, 2, dtype=torch.float64) / d_head)
        factor = float(found.max())
        refused = StarError(f"{self.path} scales rotary angles in a way that is not Llama-3's: use another file.")
        if not base > 0 or found.shape != frequency.shape or not math.isfinite(factor) or found.min() < 1 - 1e-6:
            raise refused
        if factor < 1 + 1e-6:
            return {}
        turns = frequency / (2 * math.pi)  # of a token
        smooth = (1 / found - 1 / factor) / (1 - 1 / factor)
        middle = (smooth > 1e-4) & (smooth < 1 - 1e-4)
        low, high = 1.0, 4.0
        if int(middle.sum()) >= 2:
            line = torch.stack([turns[middle], torch.ones_like(turns[middle])], 1)
            slope, offset = torch.linalg.lstsq(line, smooth[middle, None]).solution.flatten().tolist()
            if slope <= 0 or offset >= 0:
                raise refused
            high = low - low / offset
            original = slope * (high - low)
        elif middle.any():
            original = float((low + (high - low) * smooth[middle]) / turns[middle])
        else:
            whole = turns[found < 1 + 1e-6]
            original = high / float(whole.min()) if len(whole) else low / float(turns.max())
        # The file's divisors are rounded to float32; whole settings lie within that.
        high, original = (round(x) if abs(x - round(x)) < 1e-4 * x else x for x in (high, original))
        smooth = ((original * turns - low) / (high - low)).clamp(0, 1)
        expected = 1 / ((1 - smooth) / factor + smooth)
        if not torch.allclose(expected, found, rtol=1e-4):
            raise refused
        return {
            "rope_type": "llama3",
            "factor": factor,
            "low_freq_factor": low,
            "high_freq_factor": high,
            "original_max_position_embeddings": original,
        }

    def _transformers_config(self) -> dict[str, object]:
        from transformers import AutoConfig
        from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

        config = self._by_transformers(AutoConfig.from_pretrained).to_dict()
        known = MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.get(config["model_type"])
        return config | {"architectures": [known]} if known else config

    def _by_transformers(self, read: Callable[..., Any]) -> Any:
        """What a ``from_pretrained`` of transformers makes of the file."""
        try:
            return read(str(self.path.parent), gguf_file=self.headers[0].path.name)
        except Exception as error:
            reason = " ".join(str(error).split())[:160]
            raise StarError(
                f"transformers cannot read {self.path} ({reason}): name the model's folder in HuggingFace format."
            ) from None

    def size(self) -> Size:
        config = self.config()
        if config.get("architectures") == [LLAMA]:
            return llama_size(cast(LlamaConfig, config))
        return transformers_size(self.path.parent, self.path.name)

    def tensors(self) -> Mapping[str, Stored]:
        """A Llama's weights by HuggingFace's names."""
        heads = self._count("attention.head_count")
        pairs = {"attn_q": heads, "attn_k": self._count("attention.head_count_kv", heads)}
        found: dict[str, Stored] = {}
        for name, tensor in self.stored.items():
            *layer, part, side = name.split(".")
            if part in _NAMES:
                prefix = f"model.layers.{layer[1]}." if len(layer) == 2 else ""
                found[f"{prefix}{_NAMES[part]}.{side}"] = replace(tensor, pairs=pairs.get(part))
        return found

    def transformers(self, dtype: torch.dtype, first_n_layers: int | None) -> PreTrainedModel:
        if len(self.headers) > 1:
            raise StarError(
                f"{self.path} is split, which transformers cannot read for this architecture: "
                "join the parts with `llama-gguf-split --merge`."
            )
        return read_transformers(self.path.parent, dtype, first_n_layers, self.path.name)

    def tokenizer(self) -> Tokenizer:
        from transformers import PreTrainedTokenizerFast

        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return self._by_transformers(PreTrainedTokenizerFast.from_pretrained)

    def end_tokens(self) -> None:
        return None  # the tokenizer names its own
