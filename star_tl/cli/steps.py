"""A step of the method each: attribute, extract, generate, and a sweep over places and strengths."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from star_tl.cli import options
from star_tl.cli.one_line import one_line_errors
from star_tl.cli.read import Nothing, check_file, check_seeds, load, numbers, read_positions, read_prompts, workers_of
from star_tl.cli.tables import print_frame
from star_tl.errors import StarError
from star_tl.generation.settings import Sampling
from star_tl.locus import Locus

if TYPE_CHECKING:
    from star_tl.data.chat import Prompt


@one_line_errors
def attribute(
    out: Annotated[Path, typer.Option("--out", help="Where to write the attribution map (safetensors).")],
    trait: options.Trait = "emotional_support",
    model: options.Model = "demo",
    method: Annotated[str, typer.Option("--method", help="The estimator.")] = "atp",
    batch_size: Annotated[int | None, typer.Option("--batch-size", help="Pairs in a micro-batch.")] = None,
    dtype: options.Dtype = None,
    device: options.Device = None,
    backend: options.Backend = None,
    first_n_layers: options.FirstLayers = None,
    overwrite: options.Overwrite = False,
) -> None:
    """Score every hook point and print each layer's scores and gain."""
    from star_tl.data.pairs import TRAITS, load_pairs

    pairs = load_pairs(trait)
    check_file(out, overwrite)
    from star_tl.attribution import attribute as compute

    loaded = load(model, dtype, device, backend, first_n_layers)
    others = [load_pairs(name) for name in TRAITS if name != pairs.trait.name]
    attr = compute(loaded, pairs, method, controls=others, batch_size=batch_size)
    attr.save(out)
    print_frame(attr.to_frame(), f"{attr.trait}: scores in nats, summed over positions, mean over pairs")
    if attr.prices_layers:
        from star_tl.attribution.choose import GAIN_DRIFT
        from star_tl.attribution.verify import measure_layers

        said = (
            f"the strength that should drift {GAIN_DRIFT:g} nat per token at the best layers, and what it really does"
        )
        print_frame(measure_layers(loaded, pairs, attr), said)
        typer.echo(f"top locus: {attr.top_locus()}")
    typer.echo(f"{attr!r}\nWrote {out}.")


@one_line_errors
def extract(
    out: Annotated[Path, typer.Option("--out", help="Where to write the vector (safetensors).")],
    attribution: Annotated[Path | None, typer.Option("--attribution", help="Take the locus from this map.")] = None,
    hook_point: Annotated[str | None, typer.Option("--hook-point", help="e.g. blocks.5.hook_resid_post.")] = None,
    positions: Annotated[
        str | None, typer.Option("--positions", help="Of --hook-point, e.g. -2,-1; default -1.")
    ] = None,
    head: Annotated[int | None, typer.Option("--head", help="Of --hook-point blocks.L.attn.hook_z.")] = None,
    method: Annotated[str, typer.Option("--method", help="The vector method.")] = "located",
    trait: options.Trait = "emotional_support",
    model: options.Model = "demo",
    dtype: options.Dtype = None,
    device: options.Device = None,
    backend: options.Backend = None,
    first_n_layers: options.FirstLayers = None,
    overwrite: options.Overwrite = False,
) -> None:
    """Extract the steering vector at a locus: from a map, named, or found by attribution now."""
    if attribution is not None and hook_point is not None:
        raise StarError("--attribution and --hook-point both name the locus: give one of them.")
    for option, given in (("--positions", positions), ("--head", head)):
        if given is not None and hook_point is None:
            raise StarError(f"{option} belongs to --hook-point: name that too, or leave it out.")
    from star_tl.data.pairs import load_pairs

    pairs = load_pairs(trait)
    check_file(out, overwrite)
    from star_tl.attribution import AttributionMap
    from star_tl.attribution import attribute as compute
    from star_tl.steering.condition import Condition
    from star_tl.vectors import extract_vector

    if hook_point is not None:
        locus = Locus(hook_point, numbers(positions or "-1"), head)
        Condition(vector=Nothing(locus))  # refuses what generate would refuse
        loaded = load(model, dtype, device, backend, first_n_layers)
    elif attribution is not None:
        attr = AttributionMap.load(attribution)
        locus = attr.top_locus()
        loaded = load(model, dtype, device, backend, first_n_layers)
        attr.check(loaded)
        if attr.trait != pairs.trait.name:
            typer.echo(f"Caution: the map is of {attr.trait!r}, the pairs are of {pairs.trait.name!r}.", err=True)
    else:
        loaded = load(model, dtype, device, backend, first_n_layers)
        locus = compute(loaded, pairs).top_locus()
    vector = extract_vector(loaded, pairs, locus, method=method)
    vector.save(out)
    typer.echo(f"{vector!r}\nWrote {out}.")


@one_line_errors
def generate(
    prompt: Annotated[list[str] | None, typer.Option("--prompt", help="A user message; may be repeated.")] = None,
    prompts: options.Prompts = None,
    mode: options.Mode = None,
    limit: options.Limit = None,
    vector: Annotated[Path | None, typer.Option("--vector", help="Steer with this vector.")] = None,
    strength: options.Strength = 1.0,
    positions: options.Positions = None,
    model: options.Model = "demo",
    max_new_tokens: options.Tokens = Sampling.max_new_tokens,
    temperature: options.Temperature = Sampling.temperature,
    top_p: options.TopP = Sampling.top_p,
    seed: Annotated[int, typer.Option("--seed")] = 0,
    dtype: options.Dtype = None,
    device: options.Device = None,
    backend: options.Backend = None,
    first_n_layers: options.FirstLayers = None,
) -> None:
    """Write replies: with a vector each prompt, its unsteered and its steered reply; without one the replies alone."""
    from star_tl.steering.condition import Condition

    sampling = Sampling(max_new_tokens, temperature, top_p)
    way = Condition("steered", strength=strength, positions=read_positions(positions), seed=seed)
    questions: list[Prompt] = [*(prompt or []), *(read_prompts(prompts, mode, limit) or [])]
    if not questions:
        raise StarError("There are no prompts: give --prompt TEXT or --prompts FILE.")
    if vector is None and (positions is not None or strength != 1.0):
        raise StarError("--strength and --positions belong to --vector: name that too, or leave them out.")
    from star_tl.generation.sampling import sample
    from star_tl.vectors import SteeringVector

    loaded = load(model, dtype, device, backend, first_n_layers)
    if vector is not None:
        way = replace(way, vector=SteeringVector.load(vector, loaded))
    texts = sample(loaded, questions, condition=way, sampling=sampling)
    if vector is None:
        for text in texts:
            typer.echo(text)
        return
    from star_tl.data.chat import as_prompts

    plain = sample(loaded, questions, seed=seed, sampling=sampling)
    for chat, without, steered in zip(as_prompts(questions), plain, texts, strict=True):
        asked = chat[-1]["content"]
        typer.echo(f"prompt:    {asked}\nunsteered: {without}\nsteered:   {steered}\n")


@one_line_errors
def sweep(
    trait: options.Trait = "emotional_support",
    model: options.Model = "demo",
    prompts: options.Prompts = None,
    mode: options.Mode = None,
    limit: options.Limit = None,
    out: Annotated[Path | None, typer.Option("--out", help="Folder; default runs/sweep-TRAIT.")] = None,
    layers: Annotated[str, typer.Option("--layers", help="e.g. 3,5,6; default all.")] = "",
    strengths: Annotated[
        str, typer.Option("--strengths", help="Comma-separated; 1 is the natural difference.")
    ] = "1,2,3",
    positions: Annotated[
        str,
        typer.Option(
            "--positions", help="Schedules, comma-separated: locus, generated, all, first 8, user turn, header."
        ),
    ] = "locus",
    seeds: options.Seeds = 1,
    max_new_tokens: options.Tokens = Sampling.max_new_tokens,
    temperature: options.Temperature = Sampling.temperature,
    top_p: options.TopP = Sampling.top_p,
    dtype: options.Dtype = None,
    device: options.Device = None,
    backend: options.Backend = None,
    first_n_layers: options.FirstLayers = None,
    ray: options.Ray = None,
    workers: options.Workers = None,
) -> None:
    """Sample a grid of layers, strengths and schedules in large batches; goes on where it was stopped."""
    try:
        grid = [float(x) for x in strengths.split(",")]
    except ValueError:
        raise StarError(f"--strengths {strengths!r}: give numbers, e.g. 1,2,3.") from None
    from star_tl.steering.condition import Condition

    for strength in grid:
        Condition(strength=strength)
    sampling = Sampling(max_new_tokens, temperature, top_p)
    check_seeds(seeds)
    from star_tl.data.pairs import load_pairs

    pairs = load_pairs(trait)
    questions = read_prompts(prompts, mode, limit)
    from star_tl.evaluation.sweep import compare
    from star_tl.files import output_folder, replacing

    folder = out or Path("runs") / f"sweep-{pairs.trait.name}"
    output_folder(folder)
    loaded = load(model, dtype, device, backend, first_n_layers)
    chosen = numbers(layers, "Layers", "4,5") if layers else range(loaded.cfg.n_layers)
    with workers_of(loaded, ray, workers) as replicas:
        found = compare(
            loaded,
            pairs,
            questions,
            loci=[Locus(f"blocks.{i}.hook_resid_post") for i in chosen],
            strengths=grid,
            positions=[each.strip() for each in positions.split(",")],
            seeds=range(seeds),
            sampling=sampling,
            out=folder / "samples.jsonl",
            workers=replicas,
        )
    summary = found.summary()
    with replacing(folder / "samples.csv") as partial:
        found.to_frame().to_csv(partial, index=False)
    with replacing(folder / "summary.csv") as partial:
        summary.to_csv(partial, index=False)
    from star_tl.view.report import write_sweep

    model_name = str(loaded.cfg.model_name)
    write_sweep(folder / "report.html", found, model_name, [f"{len(found.frame)} replies", sampling.describe()])
    print_frame(summary, f"{pairs.trait.name}: coherent replies with the trait")
    typer.echo(f"Wrote {folder}/samples.jsonl, samples.csv, summary.csv and report.html.")
