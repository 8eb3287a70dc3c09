"""Files that a user names: read where they are regular ones, written whole or not at all.

A pipe or a device would be read for ever, a folder or a name of thousands of characters ends in an error of the
operating system's. Here each of these is one line, and says what to do.
"""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from star_tl.errors import StarError, shown

MOST_TEXT = 1 << 30  # bytes of a text that is read into memory


def is_folder(path: Path) -> bool:
    """Whether there is a folder of this name; no name is too odd to ask."""
    try:
        return path.is_dir()
    except (OSError, ValueError):
        return False


def regular_file(path: str | Path, what: str = "file") -> Path:
    """The path of a file that can be read to its end.

    Raises:
        StarError: it does not exist, is a folder, a pipe or a device, or may not be looked at.
    """
    path = Path(path)
    name = shown(str(path), 200)
    try:
        mode = path.stat().st_mode
    except (FileNotFoundError, NotADirectoryError):
        raise StarError(f"No {what} at {name}: check the path.") from None
    except (OSError, ValueError) as error:
        raise StarError(f"{name} cannot be read ({_reason(error)}): check the path and its permissions.") from None
    if stat.S_ISDIR(mode):
        raise StarError(f"{name} is a folder: name one file in it.")
    if not stat.S_ISREG(mode):
        raise StarError(f"{name} is a pipe or a device: save what it holds to a file first.")
    return path


def read_text(path: str | Path, what: str = "file", remedy: str = "save it as UTF-8") -> str:
    """The UTF-8 text of a file, without a byte order mark; ``remedy`` is for one that is not UTF-8.

    Raises:
        StarError: as :func:`regular_file`, or it is no UTF-8 text, or larger than MOST_TEXT.
    """
    path = regular_file(path, what)
    try:
        if (size := path.stat().st_size) > MOST_TEXT:
            raise StarError(f"{path} has {size / 1e9:.1f} GB: give a part of it, {MOST_TEXT / 1e9:.0f} GB at most.")
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError:
        raise StarError(f"{path} is not UTF-8 text: {remedy}.") from None
    except OSError as error:
        raise StarError(f"{path} cannot be read ({_reason(error)}): check the path and its permissions.") from None


def parse_json(text: str, where: str, remedy: str, line: int | None = None) -> Any:
    """The value of a JSON text. ``line`` is that of the file ``where`` in which it begins, where it has several.

    Raises:
        StarError: it is no JSON, or nested too deep, or has a number of too many digits.
    """
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        place = where if line is None else f"{where}, line {line + error.lineno - 1}"
        raise StarError(f"{place}: not valid JSON ({error.msg} at column {error.colno}): {remedy}.") from None
    except (RecursionError, ValueError) as error:
        reason = "nested too deep" if isinstance(error, RecursionError) else "a number has too many digits"
        place = where if line is None else f"{where}, line {line}"
        raise StarError(f"{place}: not valid JSON ({reason}): {remedy}.") from None


def write_whole(path: str | Path, write: Callable[[Path], object]) -> None:
    """Let ``write`` fill a file beside ``path``, then put it in its place; missing folders are made.

    What was there stays until the new file is complete. A link is followed.

    Raises:
        StarError: the place is a folder, a pipe or a device, cannot be written to, or the disk is full.
    """
    target = Path(path)
    name, partial = shown(str(target), 200), None
    try:
        if target.exists() and not target.is_file():
            kind = "a folder" if target.is_dir() else "a pipe or a device"
            raise StarError(f"{name} is {kind}: name a file to write.")
        target = target.resolve()
        target.parent.mkdir(parents=True, exist_ok=True)
        partial = target.with_name(f".{target.name[:60]}.{os.getpid()}.part")
        write(partial)
        partial.replace(target)
    except StarError:
        raise
    except (OSError, ValueError) as error:
        raise StarError(f"{name} cannot be written ({_reason(error)}): make room there or name another file.") from None
    finally:
        if partial is not None:
            partial.unlink(missing_ok=True)


def save_tensors(path: str | Path, tensors: Mapping[str, Any], metadata: Mapping[str, str]) -> None:
    """Write a safetensors file. Raises StarError as :func:`write_whole`."""
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    def write(partial: Path) -> None:
        try:
            save_file({name: t.contiguous() for name, t in tensors.items()}, str(partial), metadata=dict(metadata))
        except SafetensorError as error:
            raise OSError(str(error)) from None

    write_whole(path, write)


def load_tensors(path: str | Path, what: str, form: str, names: Sequence[str]) -> tuple[dict[str, str], dict[str, Any]]:
    """Metadata and tensors of a safetensors file of ours, whose metadata says ``form`` under "format".

    Raises:
        StarError: as :func:`regular_file`, or it is damaged, or something else.
    """
    from safetensors import SafetensorError, safe_open

    path = regular_file(path, what)
    try:
        with safe_open(str(path), framework="pt") as file:
            meta = file.metadata() or {}
            if meta.get("format") != form:
                raise StarError(f"{path} is no {what} of this version of star_tl: make it again.")
            if absent := set(names) - set(file.keys()):
                raise StarError(f"{path} lacks {', '.join(sorted(absent))}: make it again.")
            return meta, {name: file.get_tensor(name) for name in names}
    except (SafetensorError, OSError) as error:
        raise StarError(f"{path} cannot be read as safetensors ({shown(str(error))}): make it again.") from None


@contextmanager
def reading(path: str | Path) -> Iterator[None]:
    """What is wrong with a file's content is said with its name."""
    try:
        yield
    except StarError as error:
        raise StarError(f"{path}: {error}") from None
    except KeyError as error:
        raise StarError(f"{path} is damaged (it lacks {error}): make it again.") from None
    except (TypeError, ValueError, AttributeError, RecursionError, OverflowError) as error:
        raise StarError(f"{path} is damaged ({shown(str(error))}): make it again.") from None


def _reason(error: Exception) -> str:
    return getattr(error, "strerror", None) or shown(str(error))
