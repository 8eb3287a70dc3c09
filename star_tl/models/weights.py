"""Read a checkpoint tensor by tensor into memory that is there already.

Every page that a memory map has touched stays resident until its file is closed, and a shard of a large
model has gigabytes; a converted copy is held beside its source. Reading the bytes of a tensor straight to
where they shall stay holds each weight once, whatever the size of the shards.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, cast

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from star_tl.errors import StarError, quoted, shown
from star_tl.files import parse_json, read_text, regular_file
from star_tl.progress import Bar

_STORED = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
_AGAIN = "download or save the model again"
# Elements that a thread reads, and where need be converted, at a time: larger buffers go back to the system late.
_PIECE = {"cpu": 1 << 18, "cuda": 1 << 20}
# Threads that read, by kind of device; on others, of which some serve a single thread only, the caller's alone.
_READERS = {"cpu": min(4, os.cpu_count() or 1), "cuda": 8}
_QUIET_SECONDS = 2.0  # a model that loads faster shows no progress bar


class Stored(Protocol):
    """A tensor that can be read into its place, wherever it lies and however it is written there."""

    @property
    def shape(self) -> tuple[int, ...]: ...

    @property
    def nbytes(self) -> int:
        """What reading it reads."""
        ...

    def read(self, target: Tensor) -> None:
        """Fill a contiguous tensor of this shape, of any floating dtype and device, piece by piece."""
        ...


@dataclass(frozen=True)
class StoredTensor:
    """Where a tensor lies in a safetensors file: ``start`` is the byte in ``path`` at which its data begins."""

    path: Path
    start: int
    dtype: torch.dtype
    shape: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize

    def read(self, target: Tensor) -> None:
        with self.path.open("rb") as file:
            file.seek(self.start)
            pieces = target.view(-1).split(_PIECE.get(target.device.type, _PIECE["cpu"]))
            direct = target.dtype == self.dtype and target.device.type == "cpu"
            # From pinned memory a copy is several times as fast; PyTorch keeps and reuses what has been pinned.
            way = None if direct else torch.empty(len(pieces[0]), dtype=self.dtype, pin_memory=target.is_cuda)
            for piece in pieces:
                read = piece if way is None else way[: len(piece)]
                if file.readinto(cast(Any, read.view(torch.uint8).numpy())) != read.nbytes:
                    raise StarError(f"{self.path} is damaged (it ends early): download it again.")
                if way is not None:
                    piece.copy_(read.to(piece.device))  # converted where it arrives


@dataclass(frozen=True)
class HeldTensor:
    """A tensor in memory as one that can be read into its place; into itself nothing need be read."""

    tensor: Tensor

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.tensor.shape)

    @property
    def nbytes(self) -> int:
        return self.tensor.nbytes

    def read(self, target: Tensor) -> None:
        if target.data_ptr() != self.tensor.data_ptr():
            target.copy_(self.tensor)


def read_json(path: Path) -> dict[str, object]:
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
        found |= safetensors_in(path)
    return found


def _shards(index: Path) -> list[str]:
    places = read_json(index).get("weight_map", {})
    if not isinstance(places, dict):
        raise StarError(f"{index} holds no weight_map of names and files: {_AGAIN}.")
    for shard in places.values():
        if not isinstance(shard, str) or Path(shard).name != shard:
            raise StarError(f"{index} places a tensor in {quoted(shard)}, which is no file of the folder: {_AGAIN}.")
    return sorted(set(places.values()))


def safetensors_in(path: Path) -> dict[str, StoredTensor]:
    """The tensors of one safetensors file, by name, in their order in it.

    Raises:
        StarError: the file is no regular one, damaged, or holds numbers that are not floats.
    """
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
    header.pop("__metadata__", None)
    found: dict[str, StoredTensor] = {}
    for name, entry in sorted(header.items(), key=lambda item: item[1]["data_offsets"]):
        if entry["dtype"] not in _STORED:
            raise StarError(f"{path} holds {name} as {entry['dtype']}: name the checkpoint in bfloat16 or float32.")
        start = 8 + length + entry["data_offsets"][0]
        found[name] = StoredTensor(path, start, _STORED[entry["dtype"]], tuple(entry["shape"]))
    return found


def read_into(stored: Mapping[str, Stored], targets: Mapping[str, Tensor], title: str) -> None:
    """Fill every target with the stored tensor of its name, in the target's dtype and on its device.

    Several are read at a time. Shows a progress bar of bytes under ``title`` where it takes more than moments.

    Args:
        stored: holds every name of ``targets``, in the target's shape; read in this order.
        targets: contiguous tensors.

    Raises:
        StarError: a file ends before its tensor does.
    """
    wanted = {name: tensor for name, tensor in stored.items() if name in targets}
    total = sum(tensor.nbytes for tensor in wanted.values())
    readers = min((_READERS.get(t.device.type, 1) for t in targets.values()), default=1)
    inference = torch.is_inference_mode_enabled()  # known to this thread alone

    def read(name: str) -> int:
        with torch.inference_mode(inference):
            wanted[name].read(targets[name])
        return wanted[name].nbytes

    with Bar(total=total, desc=title, unit="B", unit_scale=True, delay=_QUIET_SECONDS) as bar:
        if readers == 1:
            for name in wanted:
                bar.update(read(name))
            return
        with ThreadPoolExecutor(readers) as pool:
            try:
                for done in as_completed([pool.submit(read, name) for name in wanted]):
                    bar.update(done.result())
            except BaseException:  # an error, or Ctrl-C: only tensors that are being read are read to their end
                pool.shutdown(wait=False, cancel_futures=True)
                raise
