"""What the options say: a model, prompts, positions, workers; each refused in one line before anything long begins."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from star_tl.errors import StarError
from star_tl.locus import Locus

if TYPE_CHECKING:
    from torch import Tensor

    from star_tl.data.chat import Prompt
    from star_tl.evaluation.ray_workers import RayWorkers
    from star_tl.models.backend import Model


def load(name: str, dtype: str | None, device: str | None, backend: str | None, first_n_layers: int | None) -> Model:
    from star_tl.models import load_model

    return load_model(name, dtype, device, first_n_layers, backend)


def workers_of(model: Model, ray: str | None, count: int | None) -> AbstractContextManager[RayWorkers | None]:
    """Replicas on a Ray cluster; None where none is named."""
    if ray is None:
        if count is not None:
            raise StarError("--workers is about a Ray cluster: give --ray ADDRESS, or leave it out.")
        return nullcontext()
    from star_tl.evaluation.ray_workers import RayWorkers

    return RayWorkers(model, ray, count)


def read_prompts(path: Path | None, mode: str | None, limit: int | None) -> list[Prompt] | None:
    """What the file holds to reply to; None where none is given."""
    if path is None:
        for name, value in (("--mode", mode), ("--limit", limit)):
            if value is not None:
                raise StarError(f"{name} {value} is about the prompts of a file: give --prompts FILE, or leave it out.")
        return None
    if limit is not None and limit < 1:
        raise StarError(f"--limit is {limit}: use at least 1.")
    from star_tl.data.prompts import load_prompts

    return [item.messages for item in load_prompts(path, mode=mode or "single", limit=limit or 64)]


def read_positions(text: str | None) -> str | tuple[int, ...] | None:
    from star_tl.steering.positions import read_positions

    return read_positions(text) if text else None


def numbers(text: str, what: str = "Positions", example: str = "-2,-1") -> tuple[int, ...]:
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError:
        raise StarError(f"{what} {text!r} are not numbers: write them as {example}.") from None


def check_seeds(seeds: int) -> None:
    if seeds < 1:
        raise StarError(f"--seeds is {seeds}: use at least 1.")


def check_file(path: Path, overwrite: bool) -> None:
    from star_tl.files import check_writable, output_path

    if output_path(path).exists() and not overwrite:
        raise StarError(f"{path} exists: name another file or pass --overwrite.")
    if not path.parent.is_dir():
        raise StarError(f"{path.parent} is not a folder: create it first.")
    check_writable(path)


@dataclass(frozen=True)
class Nothing:
    """A vector that adds nothing, to ask whether anything can be added at its locus."""

    locus: Locus

    def scaled(self, strength: float) -> Tensor:
        import torch

        return torch.zeros(len(self.locus.positions), 1)
