"""A vector in use: other programs' formats, a server, and what this machine can hold."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from star_tl.cli import options
from star_tl.cli.one_line import one_line_errors
from star_tl.cli.read import check_file, load, read_positions
from star_tl.cli.tables import print_frame
from star_tl.errors import StarError, quoted


@one_line_errors
def export(
    format: Annotated[str, typer.Argument(help="The format.")],
    vector: Annotated[Path, typer.Option("--vector", help="The vector to export.")],
    out: Annotated[Path, typer.Option("--out", help="The file; for huggingface a new folder.")],
    model: Annotated[
        str | None, typer.Option("--model", help="Its model; default the name that the vector has.")
    ] = None,
    strength: options.Strength = 1.0,
    positions: options.Positions = None,
    every_token: Annotated[
        bool,
        typer.Option(
            "--every-token", help="Add at every token, at no more drift, also where the format can hold the positions."
        ),
    ] = False,
    measure: Annotated[
        bool, typer.Option("--measure/--no-measure", help="Drift and effect for the recipe card.")
    ] = True,
    trait: Annotated[
        str | None, typer.Option("--trait", help="Pairs to measure on; default those of the vector's trait.")
    ] = None,
    dtype: options.Dtype = None,
    device: options.Device = None,
    backend: options.Backend = None,
    overwrite: options.Overwrite = False,
) -> None:
    """Write a vector for llama.cpp, transformers, vLLM and others, with a recipe card.

    Where a format knows no positions, the vector is added at every token so strongly that it drifts no more than it
    does in its own place; what that loses is printed.
    """
    from star_tl.steering.condition import Condition

    at = read_positions(positions)
    Condition(strength=strength, positions=at)
    if not measure and (trait is not None or every_token):
        name = "--trait names" if trait is not None else "--every-token needs"
        raise StarError(f"{name} what is measured: leave --no-measure out.")
    from star_tl.vectors import SteeringVector
    from star_tl.vectors.export import Request, UnheldPositions, format_named
    from star_tl.vectors.export import export as write
    from star_tl.vectors.export.card import write_card

    chosen = format_named(format)
    if chosen.folder and overwrite:
        raise StarError("--overwrite replaces a file: name a new folder.")
    if not chosen.folder:
        check_file(out, overwrite)
        for file in chosen.beside_it(out):
            check_file(file, overwrite)
    steering = SteeringVector.load(vector)
    name = model or steering.model
    request = Request(steering, strength, at, name)
    if not measure:
        if model is not None or chosen.folder:
            steering.check(load(name, dtype, device, backend, None))
        typer.echo(f"Wrote {', '.join(map(str, write(request, format, out)))}.")
        return
    from star_tl.data.pairs import TRAITS, load_pairs
    from star_tl.evaluation.every_token import fit_every_token, measure_export, on_card

    if trait is None and steering.trait not in TRAITS:
        raise StarError(
            f"The vector's trait {quoted(steering.trait)} is none of the built-in ones: give its pairs, --trait FILE, "
            "to measure what it does, or --no-measure."
        )
    pairs = load_pairs(trait or steering.trait)
    loaded = load(name, dtype, device, backend, None)
    steering.check(loaded)
    located, written = Condition("located", steering, strength, at), None
    if not every_token:
        try:
            written = write(request, format, out)
        except UnheldPositions as error:
            typer.echo(str(error).split(":")[0] + ".")
    if written is None:
        fitted = fit_every_token(loaded, pairs, located)
        title = f"added at every token at strength {fitted.strength:.3g}, beside the located vector"
        table, request = fitted.table, replace(request, strength=fitted.strength, positions="all")
        written = write(replace(request, measured=on_card(table)), format, out)
    else:
        title, table = "what it does, on extraction contexts", measure_export(loaded, pairs, located)
        write_card(replace(request, measured=on_card(table)), chosen, out)
    print_frame(table, title)
    typer.echo(f"Wrote {', '.join(map(str, written))}.")


@one_line_errors
def serve(
    vector: Annotated[
        list[Path] | None, typer.Option("--vector", help="A vector that requests may name by its file's name; repeat.")
    ] = None,
    model: options.Model = "demo",
    host: Annotated[
        str, typer.Option("--host", help="Where to listen; elsewhere than here a key is needed.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option("--port", min=0, max=65535, help="0 takes a free one.")] = 8000,
    api_key: Annotated[
        str | None,
        typer.Option("--api-key", envvar="STAR_TL_API_KEY", help="What clients must send; better in STAR_TL_API_KEY."),
    ] = None,
    measure_drift: Annotated[
        bool, typer.Option("--measure-drift", help="Measure each vector first, so that requests may ask for a drift.")
    ] = False,
    max_tokens: Annotated[int, typer.Option("--max-tokens", help="Most tokens of a reply.")] = 1024,
    max_rows: Annotated[int, typer.Option("--max-rows", help="Replies written at once.")] = 64,
    max_queue: Annotated[int, typer.Option("--max-queue", help="Requests that may wait.")] = 256,
    dtype: options.Dtype = None,
    device: options.Device = None,
    backend: options.Backend = None,
) -> None:
    """Answer OpenAI's chat completions, each steered as it asks, and show a chat page."""
    try:
        from star_tl.serve.engine import Limits
        from star_tl.serve.run import check_reach
        from star_tl.serve.run import serve as answer
        from star_tl.serve.vectors import read_vectors, with_drift
    except ModuleNotFoundError as error:
        raise StarError(f"{error.name} is not installed: pip install 'star_tl[serve]'.") from None

    check_reach(host, api_key)
    limits = Limits(rows=max_rows, waiting=max_queue, tokens=max_tokens)
    loaded = load(model, dtype, device, backend, None)
    served = read_vectors(vector or [], loaded)
    if measure_drift:
        served = {name: with_drift(v, loaded) for name, v in served.items()}
    name = (Path(model).resolve() if Path(model).is_dir() else Path(model)).name
    answer(loaded, served, name, host, port, limits, api_key, lambda at: typer.echo(f"Listening on {at}"))


@one_line_errors
def doctor(
    model: Annotated[str | None, typer.Option("--model", help="Ask about this folder or Hub name only.")] = None,
) -> None:
    """Show what is installed, which models fit here and are downloaded, and how fast this machine is."""
    from rich.console import Console

    from star_tl.doctor import examine, tables

    Console(width=None if sys.stdout.isatty() else 120).print(*tables(examine(model)), sep="\n")
