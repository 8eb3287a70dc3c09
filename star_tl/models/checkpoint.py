"""Where a model comes from: what every source of weights must be able to say, and the HuggingFace folder's answers."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, cast

import torch

from star_tl.data.tokenizer import Tokenizer
from star_tl.errors import StarError, shown
from star_tl.files import reading
from star_tl.models.config import LLAMA, LlamaConfig, architecture, checked, read_config
from star_tl.models.size import Size, llama_size, size_of, transformers_size
from star_tl.models.transformers_folder import read_transformers
from star_tl.models.weights import HeldTensor, Stored, read_json, stored_tensors

if TYPE_CHECKING:
    from transformers import PreTrainedModel


EndTokens = int | list[int] | None


class Checkpoint(Protocol):
    """A source of weights. Nothing large is read before ``tensors`` or ``transformers`` is asked for."""

    @property
    def title(self) -> str:
        """What to call it in an error message."""
        ...

    def config(self) -> dict[str, object]:
        """The settings, as HuggingFace's ``config.json`` names them."""
        ...

    def size(self) -> Size:
        """How large the model is."""
        ...

    def tensors(self) -> Mapping[str, Stored]:
        """Weights by HuggingFace's names, in the order in which they are best read."""
        ...

    def transformers(self, dtype: torch.dtype, first_n_layers: int | None) -> PreTrainedModel:
        """The model as transformers makes it, on the CPU, with attention that can be looked into."""
        ...

    def tokenizer(self) -> Tokenizer:
        """The tokenizer, with its chat template."""
        ...

    def end_tokens(self) -> EndTokens:
        """``eos_token_id`` of the generation config, or of the config where there is none: what ends a reply beside
        what the tokenizer says."""
        ...


@dataclass(frozen=True)
class Folder:
    """A folder in HuggingFace format: ``config.json``, safetensors and the tokenizer's files."""

    path: Path

    @property
    def title(self) -> str:
        return str(self.path)

    def config(self) -> dict[str, object]:
        return read_config(self.path)

    def size(self) -> Size:
        config = self.config()
        return llama_size(cast(LlamaConfig, config)) if architecture(config) == LLAMA else transformers_size(self.path)

    def tensors(self) -> Mapping[str, Stored]:
        return stored_tensors(self.path)

    def transformers(self, dtype: torch.dtype, first_n_layers: int | None) -> PreTrainedModel:
        return read_transformers(self.path, dtype, first_n_layers)

    def tokenizer(self) -> Tokenizer:
        from transformers import AutoConfig, AutoTokenizer

        try:
            return AutoTokenizer.from_pretrained(self.path, trust_remote_code=False)
        except Exception as error:
            try:  # which the tokenizer's class is looked up in
                if (self.path / "config.json").exists():
                    AutoConfig.from_pretrained(self.path, trust_remote_code=False)
            except Exception as fault:
                raise StarError(
                    f"{self.path / 'config.json'} cannot be used ({shown(str(fault), 200)}): download the model again."
                ) from None
            raise StarError(
                f"No tokenizer could be read from {self.path} ({shown(str(error), 200)}): save one beside the weights."
            ) from None

    def end_tokens(self) -> EndTokens:
        path = self.path / "generation_config.json"
        if not path.exists():  # then transformers makes one of the config
            return cast(EndTokens, read_config(self.path).get("eos_token_id"))
        with reading(path):
            return cast(EndTokens, read_json(path).get("eos_token_id"))


@dataclass(frozen=True)
class InMemory:
    """A model object of transformers, which stays as it is: its weights are copied."""

    model: PreTrainedModel

    @property
    def title(self) -> str:
        return type(self.model).__name__

    def config(self) -> dict[str, object]:
        settings: dict[str, object] = self.model.config.to_dict()
        return checked(settings | {"architectures": [self.title]}, self.title)

    def size(self) -> Size:
        return size_of(self.model)

    def tensors(self) -> Mapping[str, Stored]:
        held = self.model.state_dict()
        if any(not tensor.is_floating_point() for tensor in held.values()):
            raise StarError(f"This {self.title} is quantized: attribution needs full weights.")
        return {name: HeldTensor(tensor) for name, tensor in held.items()}

    def transformers(self, dtype: torch.dtype, first_n_layers: int | None) -> PreTrainedModel:
        if first_n_layers is not None:
            raise StarError("first_n_layers works on names and folders, and on Llamas in memory: leave it out.")
        copied: Any = copy.deepcopy(self.model)  # transformers' type of `to` has lost its self
        copied = copied.to(device="cpu", dtype=dtype)
        copied.set_attn_implementation("eager")
        copied.config.architectures = [self.title]  # which a config that was not read from a folder lacks
        return copied

    def tokenizer(self) -> Tokenizer:
        from transformers import AutoTokenizer

        place = self.model.config.name_or_path
        try:
            return AutoTokenizer.from_pretrained(place, local_files_only=True, trust_remote_code=False)
        except Exception:
            raise StarError(
                f"This {self.title} names no tokenizer that is here ({place!r}): give load_model its tokenizer."
            ) from None

    def end_tokens(self) -> EndTokens:
        return end_tokens_of(self.model)


def end_tokens_of(model: PreTrainedModel) -> EndTokens:
    """``eos_token_id`` of a model object's generation config, or of its config where it has none."""
    return getattr(getattr(model, "generation_config", None) or model.config, "eos_token_id", None)
