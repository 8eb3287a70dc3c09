"""The recipe card that goes with an exported vector, as JSON and as Markdown."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from star_tl.files import replacing
from star_tl.vectors.export.request import Format, Request, cards
from star_tl.version import __version__


def write_card(request: Request, format: Format, path: Path) -> tuple[Path, Path]:
    """Write the card beside the file, or into the folder, and say where."""
    base = path / "steering" if format.folder else path
    card = recipe(request, format, path)
    data, text = cards(base)
    with replacing(data) as partial:
        partial.write_text(json.dumps(card, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    with replacing(text) as partial:
        partial.write_text(_markdown(card, request.measured), encoding="utf-8")
    return data, text


def recipe(request: Request, format: Format, path: Path) -> dict[str, object]:
    """What was exported, for whoever uses it; a licence is left for the user to choose."""
    vector, norm = request.vector, float(request.rows.norm(dim=-1).mean())
    return {
        "trait": vector.trait,
        "model": vector.model,
        "fingerprint": vector.fingerprint,
        "chat_template": vector.template,
        "locus": str(vector.locus),
        "positions": request.schedule.name,
        "strength": request.strength,
        "norm": norm,
        "method": vector.method,
        "pairs": vector.n_pairs,
        "measured": dict(request.measured),
        "format": format.key,
        **({"weights_of": Path(request.model or vector.model).name} if format.folder else {}),
        "star_tl": __version__,
        "licence": None,
        "how_to_apply": format.usage(request, path),
    }


def _markdown(card: Mapping[str, object], measured: Mapping[str, object]) -> str:
    lines = [
        f"# Steering vector: {str(card['trait']).replace('_', ' ')}",
        "",
        "| | |",
        "|---|---|",
        *(
            f"| {key.replace('_', ' ')} | {value} |"
            for key, value in card.items()
            if key not in ("measured", "licence", "how_to_apply")
        ),
        *(f"| {name} | {_shown(value)} |" for name, value in measured.items()),
        *([] if measured else ["| drift and effect | not measured |"]),
        "| licence | yours to choose; the model's own goes with it |",
        "",
        "Strength 1 is the natural difference; the norm is of what is added, in the units of the residual stream. "
        "Positions are counted from the prompt's end, -1 its last token.",
        "",
        "## How to apply it",
        "",
        str(card["how_to_apply"]),
        "",
    ]
    return "\n".join(lines)


def _shown(value: object) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)
