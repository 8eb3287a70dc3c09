"""The one exception that bad input raises."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


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
