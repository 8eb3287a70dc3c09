"""The one exception that bad input raises."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

import numpy as np


class StarError(ValueError):
    """Input that cannot be used. The message is one line and names the remedy."""


def shown(value: object, most: int = 80) -> str:
    """A value as it can stand in an error message: on one line, and no longer than ``most`` characters."""
    try:
        text = value if isinstance(value, str) else repr(value)
    except Exception:  # a repr of somebody else's
        text = type(value).__name__
    text = " ".join(text.split()).encode("utf-8", "backslashreplace").decode()
    text = "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)
    return text if len(text) <= most else f"{text[: most - 1]}…"


def nearest(name: str, known: Iterable[str]) -> str:
    """``" Did you mean 'x'?"`` and the known names, to end an error message with."""
    known = sorted(known)
    close = difflib.get_close_matches(name, known, n=3, cutoff=0.4)
    guess = f" Did you mean {' or '.join(repr(c) for c in close)}?" if close else ""
    return f"{guess} Known: {', '.join(known)}."


def check_name(value: object, known: Iterable[str], what: str) -> None:
    """Raises StarError unless the value is one of these names."""
    if not isinstance(value, str) or value not in set(known):
        raise StarError(f"Unknown {what} {shown(repr(value))}.{nearest(str(value)[:99], known)}")


def check_whole(value: object, name: str, least: int | None = 1) -> None:
    """Raises StarError unless the value is a whole number, at least ``least`` where there is one, of 63 bits."""
    whole = int(value) if isinstance(value, int | np.integer) and not isinstance(value, bool) else None
    if whole is None or not -(2**63) <= whole < 2**63 or (least is not None and whole < least):
        bound = f", at least {least}" if least is not None else ""
        raise StarError(f"{name} is {shown(repr(value))}: use a whole number{bound}.")


def check_kind(value: object, kind: type | tuple[type, ...], remedy: str) -> None:
    """Raises StarError unless the value is of this kind; the remedy says where one comes from."""
    if not isinstance(value, kind):
        raise StarError(f"A {type(value).__name__} cannot be used here: give {remedy}.")
