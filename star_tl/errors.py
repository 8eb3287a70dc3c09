"""The one exception that bad input raises."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable
from numbers import Real
from typing import Any, cast

import numpy as np


class StarError(ValueError):
    """Input that cannot be used. The message is one line and names the remedy, whatever the input says."""

    def __init__(self, message: str = "") -> None:
        text = _one_line(message)
        super().__init__(text if len(text) <= 1200 else f"{text[:600]} … {text[-600:]}")


def _one_line(text: str) -> str:
    text = " ".join(text.split()).encode("utf-8", "backslashreplace").decode()
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


def shown(text: str, most: int = 80) -> str:
    """A text as it can stand in an error message: on one line, and no longer than ``most`` characters."""
    text = _one_line(text)
    return text if len(text) <= most else f"{text[: most - 1]}…"


def quoted(value: object, most: int = 80) -> str:
    """Any value as it can stand in an error message, as :func:`repr` writes it."""
    try:
        text = repr(value)
    except Exception:  # somebody else's repr
        text = type(value).__name__
    return shown(text, most)


def nearest(name: str, known: Iterable[str]) -> str:
    """``" Did you mean 'x'?"`` and the known names, to end an error message with."""
    known = sorted(known)
    close = difflib.get_close_matches(name, known, n=3, cutoff=0.4)
    guess = f" Did you mean {' or '.join(repr(c) for c in close)}?" if close else ""
    return f"{guess} Known: {', '.join(known)}."


def check_name(value: object, known: Iterable[str], what: str) -> None:
    """Raises StarError unless the value is one of these names."""
    if not isinstance(value, str) or value not in set(known):
        guess = nearest(value[:99] if isinstance(value, str) else "", known)
        raise StarError(f"Unknown {what} {quoted(value)}.{guess}")


def check_whole(value: object, name: str, least: int | None = 1) -> None:
    """Raises StarError unless the value is a whole number, at least ``least`` where there is one, of 63 bits."""
    whole = int(value) if isinstance(value, int | np.integer) and not isinstance(value, bool) else None
    if whole is None or not -(2**63) <= whole < 2**63 or (least is not None and whole < least):
        bound = f", at least {least}" if least is not None else ""
        raise StarError(f"{name} is {quoted(value)}: use a whole number{bound}.")


def check_number(value: object, name: str, holds: Callable[[float], bool], remedy: str) -> None:
    """Raises StarError unless the value is a real number for which ``holds`` is true."""
    try:
        number = float(value) if isinstance(value, Real) and not isinstance(value, bool) else None
    except OverflowError:
        number = None
    if number is None or not holds(number):
        raise StarError(f"{name} is {quoted(value)}: {remedy}.")


def check_flag(value: object, name: str) -> None:
    """Raises StarError unless the value is True or False."""
    if not isinstance(value, bool | np.bool_):
        raise StarError(f"{name} is {quoted(value)}: use True or False.")


def check_text(value: object, name: str, least: int = 0) -> None:
    """Raises StarError unless the value is a text of ``least`` characters that has tokens: none is half a character."""
    if not isinstance(value, str) or len(value.strip()) < least:
        raise StarError(f"{name} is {quoted(value)}: give a text.")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise StarError(
            f"{name} holds half a character ({value[error.start]!a}, a lone surrogate): read its source as UTF-8 again."
        ) from None


def listed(value: object, name: str) -> list[Any]:
    """The elements of a list, a tuple, an array or a range. Raises StarError where it is none of them, or names nothing
    or one thing twice.
    """
    try:
        found = [] if isinstance(value, (str, bytes, dict, set)) else list(cast("Iterable[Any]", value))
        once = len(set(found)) == len(found)
    except TypeError:
        found, once = [], True
    if not found:
        raise StarError(f"{name} is {quoted(value)}: give a list with at least one.")
    if not once:
        raise StarError(f"{name} names one twice: each would count as two samples.")
    return found


def check_kind(value: object, kind: type | tuple[type, ...], remedy: str) -> None:
    """Raises StarError unless the value is of this kind; the remedy says where one comes from."""
    if not isinstance(value, kind):
        raise StarError(f"A {type(value).__name__} cannot be used here: give {remedy}.")
