"""A check of the machine: what is installed, which models fit here and are downloaded, and how fast it is."""

from __future__ import annotations

import platform
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib import metadata
from typing import TYPE_CHECKING

import torch
from rich.markup import escape

from star_tl.errors import StarError, nearest, quoted
from star_tl.models.checkpoint import Checkpoint, Folder
from star_tl.models.hub import KNOWN, HubModel, cached, smollm2
from star_tl.models.load import find_checkpoint
from star_tl.models.product import by_pieces, in_tf32, one_dnn
from star_tl.models.size import SHAPES, Size, default_dtype, free_memory, llama_size

if TYPE_CHECKING:
    from rich.table import Table

PACKAGES = ("star_tl", "torch", "transformer_lens", "transformers", "huggingface_hub", "safetensors")
CONTEXT = 1024  # tokens a row, prompt and reply, for which batches are counted
DTYPES = {"bfloat16": 2, "float32": 4}


@dataclass(frozen=True)
class Fit:
    """A model on this machine: its weights in GB, and per dtype how many rows of CONTEXT tokens fit beside them.

    ``rows`` is 0 where the weights themselves do not fit. ``devices`` are the fewest that hold the weights: 1, or GPUs
    from the first on. ``cached`` is ``"yes"``, ``"partly"`` or ``"no"``.
    """

    model: str
    weights_gb: dict[str, float]
    rows: dict[str, int]
    devices: dict[str, int]
    cached: str


@dataclass(frozen=True)
class Examination:
    """What :func:`examine` found. ``speed`` is of the demo model: tokens and pairs per second."""

    versions: dict[str, str]
    device: str
    arithmetic: str
    free_gb: tuple[float, ...]
    fits: tuple[Fit, ...]
    speed: dict[str, float]


def examine(model: str | None = None, seconds: float = 5.0) -> Examination:
    """Look at this machine.

    Args:
        model: a folder or Hub name to ask about, instead of the well-known ones.
        seconds: how long to measure the speed.

    Raises:
        StarError: nothing is known of ``model`` here, neither its shape nor its config.
    """
    names = [model] if model is not None else ["demo", *SHAPES]
    sizes = [(name, _size(name)) for name in names]
    device = "cuda" if torch.cuda.is_available() else "cpu"
    devices = [f"cuda:{i}" for i in range(torch.cuda.device_count())] if device == "cuda" else [device]
    free = [free_memory(d) for d in devices]
    fits = tuple(_fit(name, size, free) for name, size in sizes)
    return Examination(
        _versions(), _describe(device), _arithmetic(device), tuple(f / 1e9 for f in free), fits, _speed(seconds)
    )


def tables(found: Examination) -> Iterator[Table]:
    """The examination for a terminal."""
    from rich.table import Table

    machine = Table(title="This machine", title_justify="left", show_header=False)
    for name, version in found.versions.items():
        machine.add_row(name, version)
    machine.add_row("device", found.device)
    machine.add_row("arithmetic", found.arithmetic)
    machine.add_row("free memory", " + ".join(f"{gb:.1f} GB" for gb in found.free_gb))
    yield machine
    models = Table(
        title="Models: GB of weights, and rows of 1,024 tokens that fit beside them",
        title_justify="left",
        caption="attribution and sampling need some GB more; first_n_layers loads a part of what does not fit",
        caption_justify="left",
    )
    models.add_column("model", no_wrap=True)
    for dtype in DTYPES:
        models.add_column(dtype, justify="right")
    models.add_column("downloaded")
    for fit in found.fits:
        cells = []
        for dtype in DTYPES:
            over = f" over {fit.devices[dtype]} GPUs" if fit.devices[dtype] > 1 else ""
            rows = f"{fit.rows[dtype]:,} rows{over}" if fit.rows[dtype] else "[red]does not fit[/]"
            cells.append(f"{fit.weights_gb[dtype]:.2f} GB, {rows}")
        models.add_row(escape(fit.model), *cells, fit.cached)
    yield models
    speed = Table(title="Speed of the demo model", title_justify="left", show_header=False)
    for name, value in found.speed.items():
        speed.add_row(name, f"{value:,.1f}")
    yield speed


def _versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:  # a checkout that is not installed
            found[package] = "not installed"
    return found


def _describe(device: str) -> str:
    if device == "cuda":
        names = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
        return f"cuda: {', '.join(names)}"
    return f"cpu, {torch.get_num_threads()} threads"


def _arithmetic(device: str) -> str:
    """In what the models that are loaded without a dtype compute."""
    large = str(default_dtype(10**10, device)).removeprefix("torch.")
    said = f"{large} above a billion parameters, else float32"
    if device != "cuda":
        wide = "oneDNN" if one_dnn() else "PyTorch"
        slow = "in float32 by pieces, for this CPU has no instructions for it"
        return f"{said}; float32 products by {wide}, bfloat16's {slow if by_pieces(torch.bfloat16) else 'as they are'}"
    without = ", for this GPU has no bfloat16" if large != "bfloat16" else ""
    if not in_tf32():
        return f"{said}{without}; float32 products exact: torch.set_float32_matmul_precision('high') makes them TF32"
    return f"{said}{without}; float32 products in TF32, to three digits"


def _size(name: str) -> Size:
    if name in SHAPES:
        return llama_size(SHAPES[name])
    checkpoint = _here(name)
    if checkpoint is None:
        known = nearest(name[:99], KNOWN)
        raise StarError(f"Nothing is known here of {quoted(name)}: give a folder, or download it once.{known}")
    return checkpoint.size()


def _here(name: str) -> Checkpoint | None:
    """The model without any download: embedded, a folder, a file, or in Hugging Face's cache; None where it is not."""
    if name == "smollm2":
        return smollm2()
    checkpoint = find_checkpoint(name)
    if not isinstance(checkpoint, HubModel):
        return checkpoint
    folder = cached(name)
    return Folder(folder) if folder else None


def _fit(name: str, size: Size, free: Sequence[int]) -> Fit:
    rows, devices = {}, {}
    for dtype, width in DTYPES.items():
        for n in range(1, min(len(free), size.most_devices) + 1):
            room = (
                int((memory - part.parameters * width) // (part.cache_per_token * width * CONTEXT))
                for memory, part in zip(free, size.spread(n), strict=False)
            )
            rows[dtype], devices[dtype] = max(0, min(room)), n
            if rows[dtype]:
                break
    weights = {dtype: size.parameters * width / 1e9 for dtype, width in DTYPES.items()}
    return Fit(name, weights, rows, devices, _cached(name))


def _cached(name: str) -> str:
    checkpoint = _here(name)
    if checkpoint is None:
        return "no"
    try:
        checkpoint.tensors()
    except StarError:
        return "partly"
    return "yes"


def _speed(seconds: float) -> dict[str, float]:
    import star_tl as star

    model = star.load_model("demo")
    pairs = star.load_pairs("emotional_support")
    few = type(pairs)(pairs.trait, pairs.extraction.pairs[:8])
    prompts = list(pairs.heldout.prompts)[:16]

    def sampled() -> int:
        return sum(len(r.tokens) for r in star.generate(model, prompts, max_new_tokens=32, progress=False))

    def attributed() -> int:
        return len(star.attribute(model, few, progress=False).pair_ids)

    found = {}
    for name, work in (("tokens sampled a second, 16 rows", sampled), ("pairs attributed a second", attributed)):
        work()  # the first call loads code
        began, done = time.perf_counter(), 0
        while time.perf_counter() - began < seconds / 2:
            done += work()
        found[name] = done / (time.perf_counter() - began)
    return found
