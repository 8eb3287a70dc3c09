"""Steering vectors for other programs: one file and one record a format, and a recipe card with each."""

from __future__ import annotations

from pathlib import Path

from star_tl.errors import StarError, nearest
from star_tl.vectors.export.card import write_card
from star_tl.vectors.export.easysteer import EASYSTEER
from star_tl.vectors.export.gguf import GGUF, REPENG
from star_tl.vectors.export.huggingface import HUGGINGFACE
from star_tl.vectors.export.request import Format, Request, UnheldPositions
from star_tl.vectors.export.snippet import SNIPPET
from star_tl.vectors.export.steering_vectors import STEERING_VECTORS
from star_tl.vectors.export.vllm_lens import VLLM_LENS

__all__ = ["FORMATS", "Format", "Request", "UnheldPositions", "export"]

FORMATS = {f.key: f for f in (GGUF, REPENG, HUGGINGFACE, SNIPPET, STEERING_VECTORS, EASYSTEER, VLLM_LENS)}


def format_named(name: str) -> Format:
    """The format of this name. Raises StarError where there is none."""
    if name not in FORMATS:
        raise StarError(f"Unknown format {name!r}.{nearest(name, FORMATS)}")
    return FORMATS[name]


def export(request: Request, format: str, path: str | Path) -> tuple[Path, Path, Path]:
    """Write what is asked for at ``path``; returns it and its recipe card as JSON and as Markdown.

    Raises:
        UnheldPositions: a StarError, before anything is written: the format cannot hold the positions.
        StarError: an unknown format, one that cannot hold the vector's place, or ``path`` cannot be written to.
    """
    chosen, target = format_named(format), Path(path).expanduser()
    chosen.write(request, target)
    return target, *write_card(request, chosen, target)
