"""The package steering-vectors: a vector per layer, as safetensors, written and read."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

from jaxtyping import Float
from torch import Tensor

from star_tl.errors import StarError, quoted
from star_tl.files import regular_file, save_tensors
from star_tl.vectors.export.request import Format, Request

LAYER_TYPES = {"decoder_block": "resid_post", "self_attn": "attn_out", "mlp": "mlp_out"}  # theirs, and our points


def read_layers(source: object) -> tuple[dict[int, Float[Tensor, " d"]], str]:
    """Vectors by layer and the layer type of what steering-vectors made, or of a file that was written here.

    Args:
        source: a ``steering_vectors.SteeringVector``, or the path of a safetensors file whose tensors are named by
            their layers. Pickles are not read.

    Raises:
        StarError: it is neither, or of a layer type that no hook point stands for.
    """
    if isinstance(source, str | Path):
        tensors, kind = _read(source)
    else:
        tensors, kind = getattr(source, "layer_activations", None), getattr(source, "layer_type", None)
    if not isinstance(tensors, Mapping) or not tensors:
        raise StarError(
            f"{quoted(source)} holds no vector per layer: give a SteeringVector of steering-vectors, or its file."
        )
    if kind not in LAYER_TYPES:
        raise StarError(f"{quoted(kind)} is no layer type that can be imported: use one of {', '.join(LAYER_TYPES)}.")
    return {int(layer): tensor.detach().float().cpu().flatten() for layer, tensor in tensors.items()}, kind


def _read(path: str | Path) -> tuple[dict[int, Tensor], str]:
    from safetensors import SafetensorError, safe_open

    path = regular_file(path, "file of a steering vector")
    try:
        with safe_open(str(path), framework="pt") as file:
            kind = (file.metadata() or {}).get("layer_type", "decoder_block")
            return {int(k): file.get_tensor(k) for k in file.keys() if re.fullmatch(r"\d+", k)}, kind  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise StarError(f"{path} cannot be read as safetensors ({error}): pickles are not read.") from None


def _write(request: Request, path: Path) -> None:
    layer, row = request.layer("steering-vectors"), request.every_token("steering-vectors")
    save_tensors(path, {str(layer): row}, {"layer_type": "decoder_block", "trait": request.vector.trait})


def _usage(request: Request, path: Path) -> str:
    return f"""steering-vectors (needs transformers before 5) adds it at every token:

    from safetensors.torch import load_file
    from steering_vectors import SteeringVector

    layers = {{int(layer): row for layer, row in load_file("{path.name}").items()}}
    with SteeringVector(layers, "decoder_block").apply(model):
        model.generate(**inputs)"""


STEERING_VECTORS = Format(
    "steering-vectors", "steering-vectors", "a vector per layer as safetensors, at every token", _write, _usage
)
