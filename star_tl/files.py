"""Files that are written: whole or not at all, never over something that is no plain file, by one process at a time."""

from __future__ import annotations

import json
import os
import stat
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from filelock import FileLock, Timeout

from star_tl.errors import StarError

if TYPE_CHECKING:
    from torch import Tensor


def output_path(path: str | Path) -> Path:
    """Where a file of this name is written: links are followed, ``~`` is the home folder.

    Raises:
        StarError: something stands there that is no plain file, or the name cannot be one.
    """
    try:
        real = Path(os.path.realpath(Path(path).expanduser()))
        if real.exists() and not stat.S_ISREG(real.stat().st_mode):
            raise StarError(f"{path} is not a plain file: name another.")
    except (OSError, ValueError, RuntimeError) as error:
        raise unwritable(path, error) from None
    return real


def output_folder(path: str | Path) -> Path:
    """The same for a folder.

    Raises:
        StarError: something stands there that is no folder, or the name cannot be one.
    """
    try:
        real = Path(os.path.realpath(Path(path).expanduser()))
        if real.exists() and not real.is_dir():
            raise StarError(f"{path} is not a folder: name another.")
    except (OSError, ValueError, RuntimeError) as error:
        raise unwritable(path, error) from None
    return real


def check_writable(path: str | Path) -> None:
    """Leaves nothing behind.

    Raises:
        StarError: no file can be written there.
    """
    real = output_path(path)
    try:
        with tempfile.TemporaryFile(dir=next(folder for folder in real.parents if folder.exists())) as probe:
            probe.write(bytes(4096))  # an empty file can be made on a full disk
    except OSError as error:
        raise unwritable(path, error) from None


@contextmanager
def replacing(path: str | Path) -> Iterator[Path]:
    """A file beside ``path`` to write to, which takes its place at the end; on an error it leaves nothing behind.

    Raises:
        StarError: it cannot be written to.
    """
    real = output_path(path)
    partial = real.with_name(f".{real.name}.part")
    try:
        yield partial
        os.replace(partial, real)
    except OSError as error:
        raise unwritable(path, error) from None
    finally:
        try:
            partial.unlink(missing_ok=True)
        except OSError:  # the folder went away, or the name was never possible
            pass


def save_tensors(path: str | Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    """Write a safetensors file, the same bytes for the same content.

    Raises:
        StarError: it cannot be written to.
    """
    from safetensors.torch import save

    written = save({name: tensor.contiguous() for name, tensor in tensors.items()}, metadata=dict(metadata))
    # safetensors puts the metadata in an order of chance.
    length = int.from_bytes(written[:8], "little")
    header = json.loads(written[8 : 8 + length])
    header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
    text = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode()
    text = text.ljust(-(-len(text) // 8) * 8)
    with replacing(path) as partial, partial.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.write(memoryview(written)[8 + length :])


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """No other process that asks for this path gets it in the meantime; a killed one holds nothing.

    Raises:
        StarError: another process holds it, or its folder cannot be written to.
    """
    place = path.with_name(f".{path.name}.lock")
    lock = FileLock(place)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise StarError(f"{path} is being written to by another process: wait for it, or name another.") from None
    except OSError as error:
        raise unwritable(path, error) from None
    try:
        yield
    finally:
        place.unlink(missing_ok=True)
        lock.release()


def unwritable(path: str | Path, error: Exception) -> StarError:
    """The one line that says why nothing could be written."""
    reason = (getattr(error, "strerror", None) or str(error)).splitlines()[0]
    return StarError(f"{str(path)[:200]} cannot be written to ({reason}): make room there or name another.")
