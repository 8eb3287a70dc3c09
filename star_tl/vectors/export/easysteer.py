"""EasySteer's ``SteeringSpec`` as JSON, the vectors in it."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Mapping
from pathlib import Path

from jaxtyping import Float
from torch import Tensor

from star_tl.files import replacing
from star_tl.vectors.export.request import Format, Request, UnheldPositions


def _write(request: Request, path: Path) -> None:
    layer = request.layer("EasySteer")
    vectors = [
        {"data": _direction(layer, row), "algorithm": "direct", "scale": 1.0, "layers": [layer], "apply": apply}
        for row, apply in _clauses(request)
    ]
    with replacing(path) as partial:
        partial.write_text(json.dumps({"vectors": vectors, "conflict": "sequential"}, indent=1) + "\n")


def _clauses(request: Request) -> list[tuple[Float[Tensor, " d"], Mapping[str, object]]]:
    """Rows, each with what selects its tokens."""
    when, rows = request.schedule, request.rows
    if when.weight is not None:
        raise UnheldPositions(f"EasySteer cannot hold the positions {when.name}: give 'locus', 'generated' or numbers.")
    if when.low is not None and when.high is not None:
        places = request.numbered("EasySteer")
        if len(rows) == 1:
            return [(rows[0], _at(list(places)))]
        return [(row, _at([position])) for position, row in places.items()]
    if when.low is None:
        return [(rows[0], {"prompt": "all"} | ({"generation": "all"} if when.high is None else {}))]
    return [(rows[0], _at(list(range(when.low, 0))) | {"generation": "all"})]


def _at(positions: list[int]) -> dict[str, list[int]]:
    chosen = {
        "prompt_positions": [p for p in positions if p < 0],
        "generation_positions": [p for p in positions if p >= 0],
    }
    return {key: found for key, found in chosen.items() if found}


def _direction(layer: int, row: Float[Tensor, " d"]) -> dict[str, object]:
    """A ``DirectionVector`` of version 1 on the wire: its digest is over kind, name, shape and bytes."""
    name, data = f"layer.{layer}", row.numpy().astype("<f4").tobytes()
    digest = hashlib.sha256(b"direction:1" + name.encode() + str(tuple(row.shape)).encode() + data).hexdigest()
    tensor = {"shape": list(row.shape), "data": base64.b64encode(data).decode("ascii")}
    return {"version": 1, "kind": "direction", "tensors": {name: tensor}, "extra": {}, "sha256": digest}


def _usage(request: Request, path: Path) -> str:
    several = " --steer-multi-vector" if len(_clauses(request)) > 1 else ""
    return (
        "As the default of EasySteer's vLLM, or as the field `steering` of a request:\n\n"
        f"    vllm serve MODEL --steering-config {path.name}{several}\n\n"
        "Checked with the project's own classes (payloads of version 1); its engine, a fork of vLLM that needs a GPU, "
        "was not run. The package easysteer on the index is another project's."
    )


EASYSTEER = Format("easysteer", "EasySteer on vLLM", "a SteeringSpec as JSON, positions kept", _write, _usage)
