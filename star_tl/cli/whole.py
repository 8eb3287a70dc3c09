"""The whole road: ``run`` for a trait, ``evaluate`` for a task and its reviewer."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from star_tl.cli import options
from star_tl.cli.one_line import one_line_errors
from star_tl.cli.read import check_seeds, load, read_positions, read_prompts, workers_of
from star_tl.cli.tables import print_frame, print_run
from star_tl.errors import StarError
from star_tl.generation.settings import Sampling


@one_line_errors
def run(
    trait: options.Trait = "emotional_support",
    model: options.Model = "demo",
    prompts: options.Prompts = None,
    mode: options.Mode = None,
    limit: options.Limit = None,
    out: Annotated[Path | None, typer.Option("--out", help="Run folder; default runs/TRAIT.")] = None,
    quick: Annotated[
        bool, typer.Option("--quick", help="Take attribution's choice of the place; do not let real replies choose.")
    ] = False,
    drift: Annotated[
        float | None,
        typer.Option(
            "--drift", help="What steering may cost in practice, nats a token; default 0.1. Not on the quick road."
        ),
    ] = None,
    strength: Annotated[
        float | None,
        typer.Option("--strength", help="As on the quick road; 1 is the natural difference. Default: chosen."),
    ] = None,
    seeds: options.Seeds = 2,
    method: Annotated[str, typer.Option("--method", help="Attribution: atp, ig or relp.")] = "atp",
    vector_method: Annotated[
        str | None, typer.Option("--vector-method", help="As on the quick road: located, principal, probe, reply_mean.")
    ] = None,
    positions: options.Positions = None,
    max_new_tokens: options.Tokens = Sampling.max_new_tokens,
    temperature: options.Temperature = Sampling.temperature,
    top_p: options.TopP = Sampling.top_p,
    dtype: options.Dtype = None,
    device: options.Device = None,
    backend: options.Backend = None,
    first_n_layers: options.FirstLayers = None,
    overwrite: options.Overwrite = False,
) -> None:
    """Attribute, choose what steers by real replies, compare it with the baselines, and write report.html.

    A run that was stopped goes on where it was when the same command is given again.
    """
    from star_tl.steering.condition import Condition

    sampling = Sampling(max_new_tokens, temperature, top_p)
    given = Condition(strength=1.0 if strength is None else strength, positions=read_positions(positions))
    check_seeds(seeds)
    folder = out or Path("runs") / Path(trait).stem
    from star_tl.data.pairs import load_pairs

    pairs = load_pairs(trait)
    chosen = read_prompts(prompts, mode, limit)
    from star_tl.pipeline import FOLDER
    from star_tl.pipeline import run as walk

    FOLDER.check(folder, overwrite)  # before minutes go into loading a model
    result = walk(
        load(model, dtype, device, backend, first_n_layers),
        pairs,
        chosen,
        out=folder,
        quick=quick,
        drift=drift,
        strength=strength,
        seeds=tuple(range(seeds)),
        estimator=method,
        method=vector_method,
        positions=given.positions,
        sampling=sampling,
        overwrite=overwrite,
    )
    print_run(result)
    typer.echo(f"\nWrote {folder}/: vector, attribution map, samples, scores, and report.html to open in a browser.")


@one_line_errors
def evaluate(
    task: Annotated[str, typer.Option("--task", help="Built-in task, or a JSON file of the same form.")],
    model: options.Model = "demo",
    out: Annotated[Path | None, typer.Option("--out", help="Folder; default runs/evaluate-TASK.")] = None,
    data: Annotated[
        Path | None, typer.Option("--data", help="Prompts in place of the built-in ones: dialogues, JSONL or text.")
    ] = None,
    mode: Annotated[
        str | None,
        typer.Option("--mode", help="How to read --data: single (default) or multi (the dialogue so far is replayed)."),
    ] = None,
    limit: Annotated[int | None, typer.Option("--limit", help="Most prompts; default 64 of --data, or all.")] = None,
    vector: Annotated[
        Path | None, typer.Option("--vector", help="A saved vector in place of the intervention that is chosen.")
    ] = None,
    positions: options.Positions = None,
    choose: Annotated[
        bool, typer.Option("--choose/--no-choose", help="Choose an intervention by real replies, as one condition.")
    ] = True,
    drift: Annotated[
        float | None, typer.Option("--drift", help="Nats per token for every vector; default that of priming.")
    ] = None,
    seeds: options.Seeds = 1,
    turns: Annotated[
        int, typer.Option("--turns", help="Play talks of so many turns too, the model against itself unsteered.")
    ] = 0,
    items: Annotated[
        Path | None,
        typer.Option(
            "--items", help="What a played negotiation is about: CraigslistBargain's train.json, or CaSiNo's."
        ),
    ] = None,
    replay: Annotated[
        bool, typer.Option("--replay", help="Say again what the other side says in --data's dialogues, for --turns.")
    ] = False,
    side_effects: Annotated[
        bool, typer.Option("--side-effects/--no-side-effects", help="Other traits, facts, refusals, neutral text.")
    ] = True,
    llm_url: Annotated[str | None, typer.Option("--llm-url", help="An LLM judge's endpoint, with --llm-model.")] = None,
    llm_model: Annotated[str | None, typer.Option("--llm-model", help="The judge's name there.")] = None,
    lexicon: Annotated[
        Path | None, typer.Option("--lexicon", help="NRC's list of words, for joy and trust; NRCLex's if installed.")
    ] = None,
    export_human: Annotated[
        Path | None, typer.Option("--export-human", help="Folder for a blinded A/B form of chosen and other replies.")
    ] = None,
    import_human: Annotated[
        list[Path] | None, typer.Option("--import-human", help="CSV that the form saved, once for each rater.")
    ] = None,
    ray: options.Ray = None,
    workers: options.Workers = None,
    max_new_tokens: options.Tokens = Sampling.max_new_tokens,
    temperature: options.Temperature = Sampling.temperature,
    top_p: options.TopP = Sampling.top_p,
    dtype: options.Dtype = None,
    device: options.Device = None,
    backend: options.Backend = None,
    first_n_layers: options.FirstLayers = None,
) -> None:
    """A task under every condition at equal drift: statistics, side effects, tables for a paper, a form for people.

    An evaluation that was stopped goes on where it was when the same command is given again.
    """
    from star_tl.data.tasks import load_task
    from star_tl.steering.condition import Condition

    way = Condition("chosen", positions=read_positions(positions))
    if positions is not None and vector is None:
        raise StarError("--positions belongs to --vector: name that too, or leave it out.")
    if (llm_url is None) != (llm_model is None):
        raise StarError("--llm-url and --llm-model go together: give both or none.")
    sampling = Sampling(max_new_tokens, temperature, top_p)
    check_seeds(seeds)
    chosen = load_task(task)
    from star_tl.data.pairs import load_pairs

    pairs = load_pairs(chosen.trait)
    if limit is not None and limit < 1:
        raise StarError(f"--limit is {limit}: use at least 1.")
    if data is None and mode is not None:
        raise StarError(f"--mode {mode} is about the prompts of a file: give --data FILE, or leave it out.")
    if items is not None and not (turns and chosen.outcomes):
        raise StarError("--items is what a played negotiation is about: give --turns and a negotiation's --task.")
    if replay and (data is None or not turns or items is not None):
        raise StarError("--replay says a file's dialogues again: give --data FILE and --turns, and no --items.")
    from star_tl.data.prompts import load_turns
    from star_tl.data.scenarios import load_scenarios

    questions = read_prompts(data, mode, limit) or [] if data is not None else pairs.heldout.prompts[:limit]
    from star_tl.evaluation.human import human_tables
    from star_tl.evaluation.llm_judge import LLMJudge
    from star_tl.files import output_folder, regular_file
    from star_tl.trial import FOLDER, check_asked
    from star_tl.trial import evaluate as walk
    from star_tl.vectors import SteeringVector

    folder = FOLDER.check(out or Path("runs") / f"evaluate-{chosen.name}")
    # All that can be wrong is looked at before minutes go into a choice.
    scenarios = load_scenarios(items, len(questions)) if items is not None else None
    talks = load_turns(data, turns, len(questions)) if replay and data is not None else None
    for ratings in import_human or ():
        regular_file(ratings, "file of ratings")
    if export_human is not None:
        output_folder(export_human)
    loaded = load(model, dtype, device, backend, first_n_layers)
    check_asked(loaded, chosen, questions, sampling, drift, turns, scenarios, talks, lexicon)
    own: Condition | None = None
    with workers_of(loaded, ray, workers) as replicas:
        if vector is not None:
            own = replace(way, vector=SteeringVector.load(vector, loaded))
        elif choose:
            from star_tl.evaluation.intervention import choose_intervention

            own = choose_intervention(loaded, pairs, out=folder / "choice", workers=replicas).condition
        result = walk(
            loaded,
            chosen,
            questions,
            folder,
            chosen=own,
            drift=drift,
            seeds=range(seeds),
            turns=turns,
            scenarios=scenarios,
            replay=talks,
            llm=LLMJudge(pairs.trait, llm_url, llm_model) if llm_url and llm_model else None,
            lexicon=lexicon,
            side_effects=side_effects,
            workers=replicas,
            sampling=sampling,
        )
    for name, table in result.tables().items():
        print_frame(table, name)
    typer.echo(f"Wrote {folder}/: report.html, tables.md, tables.tex, effects.csv, against.csv, samples.csv.")
    if export_human is not None:
        from star_tl.view.rating_form import write_form

        written = write_form(result, export_human)
        typer.echo(f"Wrote {', '.join(map(str, written))}: send form.html, keep key.csv.")
    if import_human:
        for name, table in human_tables(result, import_human).items():
            print_frame(table, name)
