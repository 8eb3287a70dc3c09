"""A file of what a call samples: a first line that tells the call, then a line for each thing that was found.

A call that was stopped goes on where it was; what another call wrote is never touched.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path

from star_tl.errors import StarError
from star_tl.files import JsonObject, locked, output_path, replacing, unwritable
from star_tl.generation.settings import Sampling
from star_tl.generation.writing import Reply
from star_tl.models.backend import Model

BYTES_PER_TOKEN = 24  # about: an id and its text
Row = Mapping[str, object]


def how_computed(model: Model, sampling: Sampling) -> dict[str, object]:
    """What of a model and the settings decides which text a seed gives, beside the weights: as JSON."""
    cfg = model.cfg
    settings = {k: v for k, v in asdict(sampling).items() if k != "batch_size"}
    if cfg.dtype.itemsize < 4:  # rounding lets a text depend on what shares its batch
        settings["batch_size"] = sampling.batch_size
    return {
        "computed": [str(cfg.dtype), type(model).__name__, str(cfg.device).split(":")[0]],
        "sampling": settings | {"stop": list(sampling.stop)},
    }


class SamplesFile:
    """The lines of a call so far; without a path nothing is kept on disk."""

    def __init__(self, path: Path | None, call: Mapping[str, object]) -> None:
        self.path, self.head = path, json.dumps(call, ensure_ascii=False)

    def resume(self, accept: Callable[[JsonObject], None]) -> None:
        """Give every line that an equal call left to ``accept``, which raises ValueError where it is none of its own.

        Raises:
            StarError: the file holds another call's lines, one that is damaged, or cannot be read or written to.
        """
        if self.path is None:
            return
        try:
            text = self.path.read_text(encoding="utf-8", errors="replace") if self.path.exists() else ""
        except OSError:
            raise StarError(f"{self.path} cannot be read as samples: name another file.") from None
        head, *lines = text.split("\n")
        if head != self.head and not (self.head.startswith(head) and not lines):  # a first line cut off: a new file
            raise StarError(f"{self.path} holds the samples of another call: name another file.")
        whole = lines[:-1]  # what follows the last line end was cut off in the middle
        for number, line in enumerate(whole, start=2):
            try:
                if line.strip():
                    accept(json.loads(line))
            except (ValueError, KeyError, TypeError, RecursionError):
                raise StarError(
                    f"{self.path}, line {number} is no sample of this call: delete the line, and what it held is "
                    "written anew, or name another file."
                ) from None
        self._write([line for line in whole if line.strip()])

    def append(self, rows: Sequence[Row]) -> None:
        """Add lines. Raises StarError where they cannot be written; what the file holds is kept."""
        if self.path is None:
            return
        try:
            with self.path.open("a", encoding="utf-8") as file:
                file.write("".join(f"{_line(row)}\n" for row in rows))
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise StarError(
                f"{self.path} cannot be written to ({error.strerror}): make room there and call again; what it holds "
                "is kept."
            ) from None

    def rewrite(self, rows: Sequence[Row]) -> None:
        """Replace all lines, so that the file does not tell where it was stopped."""
        if self.path is not None:
            self._write([_line(row) for row in rows])

    def check_room(self, tokens: int) -> None:
        """Raises StarError where the disk has no room for so many more tokens."""
        if self.path is None:
            return
        needed, free = BYTES_PER_TOKEN * tokens, shutil.disk_usage(self.path.parent).free
        if needed > free:
            raise StarError(
                f"{self.path} needs {needed / 1e6:.1f} MB, but only {free / 1e6:.1f} MB are free: make room or name "
                "another file."
            )

    def _write(self, lines: Sequence[str]) -> None:
        assert self.path is not None
        with replacing(self.path) as partial:
            partial.write_text("".join(f"{line}\n" for line in [self.head, *lines]), encoding="utf-8")


@contextmanager
def samples_file(out: str | Path | None, call: Mapping[str, object]) -> Iterator[SamplesFile]:
    """The file of a call, held by this process alone.

    Raises:
        StarError: it cannot be written to, or another process holds it.
    """
    if out is None:
        yield SamplesFile(None, call)
        return
    path = output_path(out)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise unwritable(path, error) from None
    with locked(path):
        yield SamplesFile(path, call)


def reply_row(reply: Reply) -> dict[str, object]:
    """A reply as it stands in a line."""
    return {"text": reply.text, "tokens": reply.tokens, "stopped": reply.stopped, "broken": reply.broken}


def reply_of(row: JsonObject) -> Reply:
    """The reply that :func:`reply_row` wrote. Raises ValueError or KeyError where it is none."""
    text, tokens, stopped, broken = (row[key] for key in ("text", "tokens", "stopped", "broken"))
    right = isinstance(text, str) and isinstance(stopped, bool) and isinstance(broken, bool)
    if not right or not isinstance(tokens, list) or any(type(t) is not int or t < 0 for t in tokens):
        raise ValueError
    return Reply(text, tuple(tokens), stopped, broken)


def number_below(value: object, below: int) -> int:
    """The value, where it counts one of so many things. Raises ValueError where it does not."""
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < below:
        raise ValueError
    return value


def _line(row: Row) -> str:
    return json.dumps(row, ensure_ascii=False)
