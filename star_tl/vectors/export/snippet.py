"""HuggingFace hooks in a few lines that need no star_tl, with the vector beside them."""

from __future__ import annotations

from pathlib import Path

from star_tl.errors import StarError
from star_tl.files import replacing, save_tensors
from star_tl.steering.positions import Decay, Every
from star_tl.vectors.export.request import Format, Request

_ROWS = ".rows.safetensors"
_CODE = '''"""{title}

Positions are counted from the prompt's end, -1 its last token. Prompts have at least two tokens, padding on the left:

    with steered(model, inputs["input_ids"].shape[1]):
        model.generate(**inputs)
"""

from contextlib import contextmanager
from pathlib import Path

import torch
from safetensors.torch import load_file

ROWS = load_file(Path(__file__).with_suffix(".rows.safetensors"))["rows"]


def added(p):
    return {added}


@contextmanager
def steered(model, prompt_length):
    count, seen = model.config.num_hidden_layers, 0
    layers = next(m for m in model.modules() if isinstance(m, torch.nn.ModuleList) and len(m) == count)

    def add(module, inputs, output):
        nonlocal seen
        hidden = (output[0] if isinstance(output, tuple) else output).clone()
        seen = seen if hidden.shape[1] < prompt_length else 0  # a whole prompt begins a text
        for column in range(hidden.shape[1]):
            hidden[:, column] += torch.as_tensor(added(seen + column - prompt_length)).to(hidden)
        seen += hidden.shape[1]
        return (hidden, *output[1:]) if isinstance(output, tuple) else hidden

    handle = layers[{layer}].register_forward_hook(add)
    try:
        yield
    finally:
        handle.remove()
'''


def _write(request: Request, path: Path) -> None:
    vector, layer, added = request.vector, request.layer("A hook on a layer"), _added(request)
    title = f"{vector.trait} in {Path(vector.model).name}: added after layer {layer} at {request.schedule.name}."
    title = title.replace("\\", "/").replace('"', "'")
    if path.suffix != ".py" or not path.stem.isidentifier():
        raise StarError(f"{path.name!r} cannot be imported: name a file such as steer.py.")
    # The vector's own file may well bear the name of this one.
    save_tensors(path.with_suffix(_ROWS), {"rows": request.rows}, {"trait": vector.trait})
    with replacing(path) as partial:
        partial.write_text(_CODE.replace("{title}", title).replace("{added}", added).replace("{layer}", str(layer)))


def _added(request: Request) -> str:
    """What is added at position p, as Python."""
    when = request.schedule
    if when.rows is not None:
        index = dict(when.rows)
        return f"ROWS[{index}[p]] if p in {index} else 0"
    bounds = [f"p >= {when.low}"] * (when.low is not None) + [f"p < {when.high}"] * (when.high is not None)
    row = "ROWS[0]"
    if isinstance(when.weight, Every):
        bounds.append(f"(p + 1) % {when.weight.n} == 0")
    if isinstance(when.weight, Decay):
        row += f" * 0.5 ** ((p + 1) / {when.weight.n})"
    return f"{row} if {' and '.join(bounds)} else 0" if bounds else row


def _usage(request: Request, path: Path) -> str:
    return f"""Keep `{path.stem}.rows.safetensors` beside it; it needs torch, transformers and safetensors:

    from {path.stem} import steered

    with steered(model, inputs["input_ids"].shape[1]):
        model.generate(**inputs)"""


SNIPPET = Format(
    "snippet", "transformers", "hooks in a few lines of Python, positions kept", _write, _usage, beside=_ROWS
)
