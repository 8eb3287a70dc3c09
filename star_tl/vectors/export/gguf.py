"""GGUF control vectors, which llama.cpp and repeng read."""

from __future__ import annotations

import shlex
from pathlib import Path

from gguf import GGUFWriter

from star_tl.errors import StarError
from star_tl.files import replacing
from star_tl.vectors.export.request import Format, Request


def _write(request: Request, path: Path) -> None:
    layer, row = _layer(request), request.every_token("A control vector")
    with replacing(path) as partial:
        writer = GGUFWriter(partial, "controlvector")
        writer.add_name(request.vector.trait)
        writer.add_string("controlvector.model_hint", Path(request.vector.model).name)  # repeng asks for one
        writer.add_uint32("controlvector.layer_count", 1)
        writer.add_tensor(f"direction.{layer}", row.numpy())
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()


def _layer(request: Request) -> int:
    layer = request.layer("llama.cpp")
    if layer == 0:
        raise StarError("llama.cpp cannot add after layer 0: extract the vector at a later layer.")
    return layer


def _usage(request: Request, path: Path) -> str:
    name = shlex.quote(path.name)
    return (
        f"llama.cpp adds it at every token, for the whole server:\n\n"
        f"    llama-server -m MODEL.gguf --control-vector {name}\n\n"
        f"`--control-vector-scaled {name}:0.5` halves it. llama.cpp ignores control vectors on some models "
        "without a word: compare a reply with and without it."
    )


def _usage_of_repeng(request: Request, path: Path) -> str:
    return f"""repeng adds it at every token; without a list of this one layer it asks for a direction of every layer:

    from repeng import ControlModel, ControlVector

    model = ControlModel(model, [{_layer(request)}])
    model.set_control(ControlVector.import_gguf({path.name!r}))
    model.generate(**inputs)"""


GGUF = Format("gguf", "llama.cpp", "a control vector, at every token", _write, _usage)
REPENG = Format("repeng", "repeng", "the same file as gguf", _write, _usage_of_repeng)
