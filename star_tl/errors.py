"""The one exception that bad input raises."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class StarError(ValueError):
    """Input that cannot be used. The message is one line and names the remedy."""


def nearest(name: str, known: Iterable[str]) -> str:
    """``" Did you mean 'x'?"`` and the known names, to end an error message with."""
    known = sorted(known)
    close = difflib.get_close_matches(name, known, n=3, cutoff=0.4)
    guess = f" Did you mean {' or '.join(repr(c) for c in close)}?" if close else ""
    return f"{guess} Known: {', '.join(known)}."
