"""Read a safetensors checkpoint tensor by tensor into memory that is there already.

Every page that a memory map has touched stays resident until its file is closed, and a shard of a large
model has gigabytes; a converted copy is held beside its source. Reading the bytes of a tensor straight to
where they shall stay holds each weight once, whatever the size of the shards.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any, cast

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor
from tqdm.auto import tqdm

from star_tl.errors import StarError, shown
from star_tl.files import parse_json, read_text, regular_file

_STORED = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
_AGAIN = "download or save the model again"
_PIECE = 1 << 24  # elements that are read, and where need be converted, at a time
_QUIET_SECONDS = 2.0  # a model that loads faster shows no progress bar


@dataclass(frozen=True)
class StoredTensor:
    """Where a tensor lies on disk: ``start`` is the byte in ``path`` at which its data begins."""

    path: Path
    start: int
    dtype: torch.dtype
    shape: tuple[int, ...]


def read_json(path: Path) -> dict[str, Any]:
    """The object that a JSON file holds. Raises StarError where it holds none."""
    value = parse_json(read_text(path, remedy=_AGAIN), str(path), _AGAIN)
    if not isinstance(value, dict):
        raise StarError(f"{path} holds no JSON object: {_AGAIN}.")
    return value


def stored_tensors(folder: Path) -> dict[str, StoredTensor]:
    """The tensors of all shards of a folder, by name; only headers are read.

    Raises:
        StarError: a shard is missing, damaged or truncated, or holds numbers that are not floats.
    """
    index = folder / "model.safetensors.index.json"
    shards = _shards(index) if index.exists() else ["model.safetensors"]
    found: dict[str, StoredTensor] = {}
    for shard in shards:
        path = folder / shard
        if not path.exists():
            raise StarError(f"{folder} lacks {shard}: {_AGAIN}, as safetensors.")
        regular_file(path)
        try:
            with safe_open(path, framework="pt"):  # checks the header against itself and the file's length
                pass
        except SafetensorError as error:
            raise StarError(f"{path} is damaged ({shown(str(error))}): download it again.") from None
        except OSError as error:
            raise StarError(f"{path} cannot be read ({error.strerror or error}): check its permissions.") from None
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            header = json.loads(file.read(length))
        for name, entry in header.items():
            if name == "__metadata__":
                continue
            if entry["dtype"] not in _STORED:
                raise StarError(f"{path} holds {name} as {entry['dtype']}: name the checkpoint in bfloat16 or float32.")
            start = 8 + length + entry["data_offsets"][0]
            found[name] = StoredTensor(path, start, _STORED[entry["dtype"]], tuple(entry["shape"]))
    return found


def _shards(index: Path) -> list[str]:
    places = read_json(index).get("weight_map", {})
    if not isinstance(places, dict):
        raise StarError(f"{index} holds no weight_map of names and files: {_AGAIN}.")
    for shard in places.values():
        if not isinstance(shard, str) or Path(shard).name != shard:
            raise StarError(
                f"{index} places a tensor in {shown(repr(shard))}, which is no file of the folder: {_AGAIN}."
            )
    return sorted(set(places.values()))


def read_into(stored: Mapping[str, StoredTensor], targets: Mapping[str, Tensor], title: str) -> None:
    """Fill every target with the stored tensor of its name, in the target's dtype and on its device.

    Shows a progress bar of bytes under ``title`` where it takes more than moments.

    Args:
        stored: what :func:`stored_tensors` found; holds every name of ``targets``, in the target's shape.
        targets: contiguous tensors.

    Raises:
        StarError: a file ends before its tensor does.
    """
    order = sorted(targets, key=lambda name: (stored[name].path, stored[name].start))
    total = sum(targets[name].numel() * stored[name].dtype.itemsize for name in order)
    with tqdm(total=total, desc=title, unit="B", unit_scale=True, delay=_QUIET_SECONDS) as bar:
        for path, names in groupby(order, lambda name: stored[name].path):
            with path.open("rb") as file:
                for name in names:
                    file.seek(stored[name].start)
                    for piece in targets[name].view(-1).split(_PIECE):
                        direct = piece.dtype == stored[name].dtype and piece.device.type == "cpu"
                        read = piece if direct else torch.empty(piece.shape, dtype=stored[name].dtype)
                        if file.readinto(cast(Any, read.view(torch.uint8).numpy())) != read.nbytes:
                            raise StarError(f"{path} is damaged (it ends within {name}): download it again.")
                        if not direct:
                            piece.copy_(read)
                        bar.update(read.nbytes)
