"""A LoRA adapter on its base, merged while the base is read: W + scale * B A (Hu et al. 2021, arXiv 2106.09685)."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, TypedDict, cast

import torch
from jaxtyping import Float
from torch import Tensor
from typing_extensions import Required

from star_tl.data.tokenizer import Tokenizer
from star_tl.errors import StarError
from star_tl.models.checkpoint import Checkpoint, EndTokens, Folder
from star_tl.models.size import Size
from star_tl.models.weights import HeldTensor, Stored, read_json, safetensors_in

if TYPE_CHECKING:
    from transformers import PreTrainedModel

CONFIG = "adapter_config.json"
_WEIGHTS = "adapter_model.safetensors"
_KEY = re.compile(r"base_model\.model\.(.+)\.(lora_A|lora_B)\.weight")


class AdapterConfig(TypedDict, total=False):
    """What is read of peft's ``adapter_config.json``."""

    base_model_name_or_path: Required[str]
    peft_type: str
    bias: str
    lora_alpha: float
    alpha_pattern: dict[str, float] | None
    use_rslora: bool
    fan_in_fan_out: bool


@dataclass(frozen=True)
class MergedTensor:
    """A stored weight to which ``scale * up @ down`` is added; ``turned`` where the base stores it input first."""

    base: Stored
    down: Stored
    up: Stored
    scale: float
    turned: bool

    @property
    def shape(self) -> tuple[int, ...]:
        return self.base.shape

    @property
    def nbytes(self) -> int:
        return self.base.nbytes

    def read(self, target: Tensor) -> None:
        self.base.read(target)
        down, up = _read(self.down), _read(self.up)
        if self.turned:
            down, up = up.T, down.T
        for rows, part in zip(target.split(1024), up.split(1024), strict=True):
            rows.copy_(rows.float() + self.scale * (part @ down).to(rows.device))


def _read(stored: Stored) -> Float[Tensor, "out inner"]:
    found = torch.empty(stored.shape)
    stored.read(found)
    return found


@dataclass(frozen=True)
class Adapter:
    """A folder that peft wrote, and the checkpoint that it changes."""

    path: Path
    base: Checkpoint

    @property
    def title(self) -> str:
        return str(self.path)

    def config(self) -> dict[str, object]:
        return self.base.config()

    def size(self) -> Size:
        return self.base.size()

    @cached_property
    def settings(self) -> AdapterConfig:
        """``adapter_config.json``. Raises StarError where the adapter is no plain LoRA."""
        settings = adapter_settings(self.path)
        strange = [
            key for key in ("use_dora", "modules_to_save", "layer_replication", "use_qalora") if settings.get(key)
        ]
        if settings.get("peft_type") != "LORA" or settings.get("bias", "none") != "none" or strange:
            raise StarError(
                f"{self.path} is no plain LoRA ({', '.join(strange) or settings.get('peft_type')}): merge it with "
                "peft's merge_and_unload() and save the result."
            )
        return settings

    @cached_property
    def pairs(self) -> dict[str, tuple[Stored, Stored, float]]:
        """A and B and their scale, by the name of the module that they change."""
        path = self.path / _WEIGHTS
        if not path.is_file():
            raise StarError(f"{self.path} lacks {_WEIGHTS}: save the adapter again, as safetensors.")
        parts: dict[str, dict[str, Stored]] = {}
        for name, tensor in safetensors_in(path).items():
            found = _KEY.fullmatch(name)
            if found is None or len(tensor.shape) != 2:
                raise StarError(
                    f"{path} holds {name}, which is no part of a LoRA on a linear layer: merge it with peft."
                )
            parts.setdefault(found[1], {})[found[2]] = tensor
        return {module: self._pair(module, pair) for module, pair in parts.items()}

    def _pair(self, module: str, pair: Mapping[str, Stored]) -> tuple[Stored, Stored, float]:
        if len(pair) != 2 or pair["lora_A"].shape[0] != pair["lora_B"].shape[1]:
            raise StarError(f"{self.path} holds no A and B that fit for {module}: save the adapter again.")
        rank = pair["lora_A"].shape[0]
        alpha = next(
            (value for key, value in (self.settings.get("alpha_pattern") or {}).items() if _matches(key, module)),
            self.settings.get("lora_alpha"),
        )
        if not isinstance(alpha, int | float):
            raise StarError(f"{self.path / CONFIG} has no lora_alpha: save the adapter again.")
        scale = alpha / (math.sqrt(rank) if self.settings.get("use_rslora") else rank)
        return pair["lora_A"], pair["lora_B"], scale

    def tensors(self) -> Mapping[str, Stored]:
        found = dict(self.base.tensors())
        for module, (down, up, scale) in self.pairs.items():
            name = f"{module}.weight"
            if name not in found:
                raise StarError(f"{self.path} changes {module}, which {self.base.title} lacks: name its own base.")
            found[name] = self._merged(name, found[name], down, up, scale)
        return found

    def _merged(self, name: str, base: Stored, down: Stored, up: Stored, scale: float) -> MergedTensor:
        turned = bool(self.settings.get("fan_in_fan_out"))
        shape = (up.shape[0], down.shape[1])
        if base.shape != (shape[::-1] if turned else shape):
            raise StarError(
                f"{self.path} does not fit its base: {name} is {list(base.shape)}, its change {list(shape)}; "
                "name the base that it was trained on."
            )
        return MergedTensor(base, down, up, scale, turned)

    @torch.no_grad()
    def transformers(self, dtype: torch.dtype, first_n_layers: int | None) -> PreTrainedModel:
        hf = self.base.transformers(dtype, first_n_layers)
        held = dict(hf.named_parameters())
        for module, (down, up, scale) in self.pairs.items():
            name = f"{module}.weight"
            if name in held:
                place = held[name].data
                self._merged(name, HeldTensor(place), down, up, scale).read(place)
            elif first_n_layers is None:
                raise StarError(f"{self.path} changes {module}, which {self.base.title} lacks: name its own base.")
        return hf

    def tokenizer(self) -> Tokenizer:
        own = (self.path / "tokenizer_config.json").is_file()
        return Folder(self.path).tokenizer() if own else self.base.tokenizer()

    def end_tokens(self) -> EndTokens:
        return self.base.end_tokens()


def adapter_settings(folder: Path) -> AdapterConfig:
    """``adapter_config.json`` of a folder. Raises StarError where it names no base."""
    settings = read_json(folder / CONFIG)
    if not isinstance(settings.get("base_model_name_or_path"), str):
        raise StarError(f"{folder / CONFIG} names no base model: add base_model_name_or_path.")
    return cast(AdapterConfig, settings)


def _matches(pattern: str, module: str) -> bool:
    return re.fullmatch(rf"(.*\.)?({pattern})", module) is not None
