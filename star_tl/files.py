"""Files that a user names.

They are read where they are regular ones (a pipe or a device would be read for ever), and written whole or not at all,
never over something that is no plain file, by one process at a time. What the operating system says to a folder, a full
disk or a name of thousands of characters is one line here, and says what to do.
"""

from __future__ import annotations

import json
import os
import stat
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from filelock import FileLock, Timeout

from star_tl.errors import StarError, check_kind, shown

if TYPE_CHECKING:
    from torch import Tensor

PATH = (str, os.PathLike)
# As json.loads types it: whoever reads a value of a file looks what it is, or catches what it is not.
JsonObject = dict[str, Any]
MOST_TEXT = 1 << 30  # bytes of a text that is read into memory


def regular_file(path: str | Path, what: str = "file") -> Path:
    """The path of a file that can be read to its end.

    Raises:
        StarError: it does not exist, is a folder, a pipe or a device, or may not be looked at.
    """
    check_kind(path, PATH, f"the path of a {what}")
    path = in_home(path)
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


def in_home(path: str | Path) -> Path:
    """The path with the home folder in place of ``~``, where that is known."""
    try:
        return Path(path).expanduser()
    except RuntimeError:
        return Path(path)


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
        raise StarError(
            f"{place}: not valid JSON ({error.msg.removesuffix(' at')} at column {error.colno}): {remedy}."
        ) from None
    except (RecursionError, ValueError) as error:
        reason = "nested too deep" if isinstance(error, RecursionError) else "a number has too many digits"
        place = where if line is None else f"{where}, line {line}"
        raise StarError(f"{place}: not valid JSON ({reason}): {remedy}.") from None


def output_path(path: str | Path) -> Path:
    """Where a file of this name is written: links are followed, ``~`` is the home folder.

    Raises:
        StarError: something stands there that is no plain file, or the name cannot be one.
    """
    return _output(path, stat.S_ISREG, "plain file")


def output_folder(path: str | Path) -> Path:
    """The same for a folder."""
    return _output(path, stat.S_ISDIR, "folder")


def _output(path: str | Path, wanted: Callable[[int], bool], what: str) -> Path:
    check_kind(path, PATH, "the path of a file")
    try:
        real = Path(os.path.realpath(Path(path).expanduser()))
        other = real.exists() and not wanted(real.stat().st_mode)
    except (OSError, ValueError, RuntimeError) as error:
        raise unwritable(path, error) from None
    if other:
        raise StarError(f"{shown(str(path), 200)} is not a {what}: name another.")
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


class Saved(Protocol):
    """What can be written to a file that its class reads."""

    def save(self, path: Path) -> None: ...


SavedT = TypeVar("SavedT", bound=Saved)


def kept(path: Path | None, load: Callable[[Path], SavedT], make: Callable[[], SavedT]) -> SavedT:
    """What the file holds, or what is made and saved there now; only made where there is no path."""
    if path is not None and path.exists():
        return load(path)
    made = make()
    if path is not None:
        made.save(path)
    return made


@contextmanager
def replacing(path: str | Path) -> Iterator[Path]:
    """A file beside ``path`` to write to, which takes its place at the end; on an error it leaves nothing behind.

    Missing folders are made.

    Raises:
        StarError: it cannot be written to.
    """
    real = output_path(path)
    partial = real.with_name(f".{real.name}.part")
    try:
        partial.parent.mkdir(parents=True, exist_ok=True)
        yield partial
        os.replace(partial, real)
    except OSError as error:
        raise unwritable(path, error) from None
    finally:
        try:
            partial.unlink(missing_ok=True)
        except OSError:  # the folder went away, or the name was never possible
            pass


@contextmanager
def replacing_folder(path: str | Path, last: str) -> Iterator[Path]:
    """The same for a folder that is not there yet, or is empty; ``last`` is the file without which it is no whole one.

    What is written stands in a folder of its own until then, of this call alone.
    """
    real = output_folder(path)
    try:
        beside = real if real.exists() else real.parent
        beside.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{real.name}.", suffix=".part", dir=beside) as made:
            partial = Path(made) / "whole"
            partial.mkdir()
            yield partial
            if beside is not real:
                os.replace(partial, real)
                return
            for file in sorted(partial.iterdir(), key=lambda file: file.name == last):
                os.replace(file, real / file.name)
    except OSError as error:
        raise unwritable(path, error) from None


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


def load_tensors(
    path: str | Path, what: str, form: str, names: Sequence[str]
) -> tuple[dict[str, str], dict[str, Tensor]]:
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


@dataclass(frozen=True)
class CallFolder:
    """A folder that holds what one call wrote, and which call that was, so that an equal one goes on from there.

    ``call`` is the file that says which, ``what`` the word for such a call, ``names`` its results, and ``parts`` the
    folder in it of what is written as it comes. ``replaceable``: the command line has an option to overwrite it.
    """

    call: str
    what: str
    names: tuple[str, ...]
    parts: str
    replaceable: bool = False

    def held(self, folder: Path) -> list[Path]:
        """What an earlier call left there, its own file first."""
        named = [folder / name for name in (self.call, *self.names) if (folder / name).exists()]
        return named + sorted(p for p in (folder / self.parts).rglob("*") if p.suffix in (".jsonl", ".safetensors"))

    def check(self, out: str | Path, overwrite: bool = False) -> Path:
        """The folder; nothing is written.

        Raises:
            StarError: it is a file, or cannot be read or written to, or holds files that do not say which call they are
                of, and ``overwrite`` is False.
        """
        folder = output_folder(out)
        try:
            held = self.held(folder)
        except OSError as error:
            raise unwritable(folder, error) from None
        if held and not overwrite and not (folder / self.call).exists():
            raise self._of_another(folder, "run")
        check_writable(folder / self.call)
        return folder

    @contextmanager
    def opened(self, out: str | Path | None, call: JsonObject, overwrite: bool = False) -> Iterator[Path | None]:
        """The folder, held by this process, with this call's files or none; None where ``out`` is.

        Raises:
            StarError: as :meth:`check`, or it holds another call's files and ``overwrite`` is False.
        """
        if out is None:
            yield None
            return
        folder = self.check(out, overwrite)
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise unwritable(folder, error) from None
        said = folder / self.call
        with locked(said):
            text, held = json.dumps(call, indent=1, ensure_ascii=False) + "\n", self.held(folder)
            mine = said.exists() and said.read_text(encoding="utf-8", errors="replace") == text
            if held and (overwrite or not mine):
                if not overwrite:
                    raise self._of_another(folder, self.what)
                try:
                    for path in reversed(held):  # the call last: until then the folder is another call's
                        path.unlink()
                except OSError as error:
                    raise unwritable(folder, error) from None
            with replacing(said) as partial:
                partial.write_text(text, encoding="utf-8")
            yield folder

    def _of_another(self, folder: Path, what: str) -> StarError:
        remedy = ", or overwrite it (--overwrite)" if self.replaceable else ""
        return StarError(f"{folder} holds another {what}: name another folder{remedy}.")


def unwritable(path: str | Path, error: Exception) -> StarError:
    """The one line that says why nothing could be written."""
    return StarError(
        f"{shown(str(path), 200)} cannot be written to ({_reason(error)}): make room there or name another."
    )


def _reason(error: Exception) -> str:
    return shown(str(getattr(error, "strerror", None) or error))
