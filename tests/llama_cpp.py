"""llama.cpp itself, as the package xllamacpp brings it, for an independent reading of a GGUF file.

Only its C interface is used. Structs of settings are passed on as they come, as bytes, for their fields differ from
version to version; those of a batch have stayed the same.
"""

from __future__ import annotations

import ctypes
import importlib.util
from collections.abc import Sequence
from ctypes import POINTER, Structure, c_bool, c_char_p, c_float, c_int8, c_int32, c_size_t, c_uint64, c_void_p
from pathlib import Path
from typing import Any

import gguf
import torch
from numpy import stack
from numpy.ctypeslib import as_array
from torch import Tensor


class Settings(Structure):
    _fields_ = (("content", c_uint64 * 128),)  # more than any of them needs


class Batch(Structure):
    _fields_ = (
        ("n_tokens", c_int32),
        ("token", POINTER(c_int32)),
        ("embd", POINTER(c_float)),
        ("pos", POINTER(c_int32)),
        ("n_seq_id", POINTER(c_int32)),
        ("seq_id", POINTER(POINTER(c_int32))),
        ("logits", POINTER(c_int8)),
    )


FUNCTIONS: dict[str, tuple[Any, list[Any]]] = {
    "llama_backend_init": (None, []),
    "llama_log_set": (None, [c_void_p, c_void_p]),
    "llama_model_default_params": (Settings, []),
    "llama_context_default_params": (Settings, []),
    "llama_model_load_from_file": (c_void_p, [c_char_p, Settings]),
    "llama_init_from_model": (c_void_p, [c_void_p, Settings]),
    "llama_model_get_vocab": (c_void_p, [c_void_p]),
    "llama_model_n_layer": (c_int32, [c_void_p]),
    "llama_set_adapter_cvec": (c_int32, [c_void_p, POINTER(c_float), c_size_t, c_int32, c_int32, c_int32]),
    "llama_vocab_n_tokens": (c_int32, [c_void_p]),
    "llama_tokenize": (c_int32, [c_void_p, c_char_p, c_int32, POINTER(c_int32), c_int32, c_bool, c_bool]),
    "llama_batch_init": (Batch, [c_int32, c_int32, c_int32]),
    "llama_batch_free": (None, [Batch]),
    "llama_decode": (c_int32, [c_void_p, Batch]),
    "llama_get_logits_ith": (POINTER(c_float), [c_void_p, c_int32]),
    "llama_set_n_threads": (None, [c_void_p, c_int32, c_int32]),
    "llama_free": (None, [c_void_p]),
    "llama_model_free": (None, [c_void_p]),
}
QUIET = ctypes.CFUNCTYPE(None, ctypes.c_int, c_char_p, c_void_p)(lambda level, text, data: None)


def installed() -> bool:
    return importlib.util.find_spec("xllamacpp") is not None


def control_vector(path: Path) -> Tensor:
    """``[layer d]`` from layer 1 on, as common_control_vector_load makes it of a GGUF file."""
    directions = {t.name: torch.from_numpy(t.data.copy()) for t in gguf.GGUFReader(path).tensors}
    layers = {int(name.removeprefix("direction.")): row for name, row in directions.items() if "direction." in name}
    assert all(layer > 0 and row.ndim == 1 and row.dtype == torch.float32 for layer, row in layers.items())
    held = torch.zeros(max(layers), len(next(iter(layers.values()))))
    for layer, row in layers.items():
        held[layer - 1] = row
    return held


class LlamaCpp:
    """One model and one context of llama.cpp, under a control vector or none; use as a context manager."""

    def __init__(self, path: Path, control: Tensor | None = None, threads: int | None = None) -> None:
        self.control, self.threads = control, threads
        spec = importlib.util.find_spec("xllamacpp")
        assert spec is not None
        assert spec.submodule_search_locations is not None
        (library,) = Path(spec.submodule_search_locations[0]).glob("xllamacpp*.so")
        self.c: Any = ctypes.CDLL(str(library))
        for name, (result, arguments) in FUNCTIONS.items():
            function = getattr(self.c, name)
            function.restype, function.argtypes = result, arguments
        self.c.llama_log_set(ctypes.cast(QUIET, c_void_p), None)
        self.c.llama_backend_init()
        self.model = self.c.llama_model_load_from_file(str(path).encode(), self.c.llama_model_default_params())
        assert self.model, "llama.cpp cannot read the file"
        self.vocab = self.c.llama_model_get_vocab(self.model)

    def __enter__(self) -> LlamaCpp:
        return self

    def __exit__(self, *_: object) -> None:
        self.c.llama_model_free(self.model)

    def tokenize(self, text: str, special: bool = True) -> list[int]:
        data = text.encode()
        room = (c_int32 * (len(data) + 8))()
        n = self.c.llama_tokenize(self.vocab, data, len(data), room, len(room), False, special)
        assert n >= 0
        return list(room[:n])

    def context(self) -> int:
        context = self.c.llama_init_from_model(self.model, self.c.llama_context_default_params())
        if self.threads is not None:
            self.c.llama_set_n_threads(context, self.threads, self.threads)
        if self.control is not None:
            data = self.control.contiguous()
            pointer, layers = ctypes.cast(data.data_ptr(), POINTER(c_float)), self.c.llama_model_n_layer(self.model)
            done = self.c.llama_set_adapter_cvec(context, pointer, data.numel(), data.shape[1], 1, layers)
            assert done == 0, "llama.cpp does not take the control vector"
        return context

    def logits(self, tokens: Sequence[int]) -> Tensor:
        """Logits after every token, [position, vocab]."""
        context = self.context()
        found = self.read(context, tokens, 0)
        self.c.llama_free(context)
        return found

    def greedy(self, tokens: Sequence[int], n: int) -> list[int]:
        """The ``n`` most likely tokens after these, one after another."""
        context = self.context()
        found: list[int] = []
        for i in range(n):
            last = self.read(context, found[-1:] or tokens, len(tokens) + i - 1 if found else 0)
            found.append(int(last[-1].argmax()))
        self.c.llama_free(context)
        return found

    def read(self, context: int, tokens: Sequence[int], start: int) -> Tensor:
        """Go on with these tokens, the first of them at position ``start``; logits after each."""
        batch = self.c.llama_batch_init(len(tokens), 0, 1)
        batch.n_tokens = len(tokens)
        for i, token in enumerate(tokens):
            batch.token[i], batch.pos[i], batch.n_seq_id[i], batch.logits[i] = token, start + i, 1, 1
            batch.seq_id[i][0] = 0
        assert self.c.llama_decode(context, batch) == 0
        width = (self.c.llama_vocab_n_tokens(self.vocab),)
        rows = [as_array(self.c.llama_get_logits_ith(context, i), width).copy() for i in range(len(tokens))]
        self.c.llama_batch_free(batch)
        return torch.from_numpy(stack(rows))
