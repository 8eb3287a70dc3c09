"""vllm-lens's ``SteeringVector`` as JSON."""

from __future__ import annotations

import base64
import json
from pathlib import Path

import torch

from star_tl.files import replacing
from star_tl.vectors.export.request import Format, Request


def _write(request: Request, path: Path) -> None:
    layer = request.layer("vllm-lens")
    if request.everywhere:
        added, positions = request.rows[:1], None  # [layer d]
    else:
        places = request.numbered("vllm-lens")
        added, positions = torch.stack(list(places.values()))[None], list(places)  # [layer position d]
    values = added.numpy().astype("<f4")
    held = {
        "activations": {
            "data": base64.b64encode(values.tobytes()).decode("ascii"),
            "dtype": "float32",
            "original_dtype": "torch.float32",
            "shape": list(values.shape),
        },
        "layer_indices": [layer],
        "scale": 1.0,
        "norm_match": False,
    }
    # vllm-lens counts positions from the text's beginning, ignores what it does not know, and takes a vector without
    # positions for one at the first tokens: the file must not pass for a SteeringVector before they are known.
    with replacing(path) as partial:
        partial.write_text(json.dumps({"vector": held, "positions_from_prompt_end": positions}, indent=1) + "\n")


def _usage(request: Request, path: Path) -> str:
    where = "" if request.everywhere else ' | {"position_indices": [n + p for p in held["positions_from_prompt_end"]]}'
    count = "" if request.everywhere else "    n = len(prompt_token_ids)  # it counts from the text's beginning\n"
    return (
        "vllm-lens, for one prompt:\n\n"
        f"    held = json.load(open({path.name!r}))\n{count}"
        f'    steering = SteeringVector.model_validate(held["vector"]{where})\n\n'
        "Checked with its own classes and the function that adds; its engine, which needs a GPU, was not run."
    )


VLLM_LENS = Format("vllm-lens", "vllm-lens", "its SteeringVector as JSON, positions kept", _write, _usage)
