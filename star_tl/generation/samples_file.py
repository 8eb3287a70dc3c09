"""A file of replies: a first line that tells the call, then a reply a line, written as they come.

A call that was stopped goes on where it was; what another call wrote is never touched. A reply's key is two numbers:
which reply to the prompt, and which prompt.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from star_tl.errors import StarError
from star_tl.files import output_path, replacing, unwritable
from star_tl.generation.sampling import Reply

Key = tuple[int, int]


def resume(path: Path, call: Mapping[str, Any]) -> dict[Key, Reply]:
    """The replies that an equal call left in the file; a new file gets the call as its first line.

    Raises:
        StarError: the file holds another call's replies, a line that is none, or cannot be written to.
    """
    path, wanted = output_path(path), json.dumps(call)
    try:
        text = path.read_text(encoding="utf-8", errors="replace") if path.exists() else ""
    except OSError:
        raise StarError(f"{path} cannot be read as samples: name another file.") from None
    head, *lines = text.split("\n")
    if head != wanted and not (wanted.startswith(head) and not lines):  # a first line cut off is a new file
        raise StarError(f"{path} holds the samples of another call: name another file.")
    whole = lines[:-1]  # what follows the last line end was cut off in the middle
    found = {}
    for number, line in enumerate(whole, start=2):
        try:
            row = json.loads(line)
            key = (int(row["reply"]), int(row["prompt"]))
            found[key] = Reply(row["text"], tuple(row["tokens"]), row["stopped"])
        except (ValueError, KeyError, TypeError):
            raise StarError(f"{path}, line {number} is no sample of this call: delete the line.") from None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise unwritable(path, error) from None
    with replacing(path) as partial:
        partial.write_text("".join(f"{line}\n" for line in [wanted, *whole]), encoding="utf-8")
    return found


def append(path: Path, found: Mapping[Key, Reply]) -> None:
    """Add replies to a file that :func:`resume` has begun. Raises StarError where that fails."""
    rows = [
        {"reply": k, "prompt": prompt, "text": r.text, "tokens": r.tokens, "stopped": r.stopped}
        for (k, prompt), r in found.items()
    ]
    text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    try:
        with output_path(path).open("a", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        raise StarError(
            f"{path} cannot be written to ({error.strerror}): make room there and call again; what it holds is kept."
        ) from None
