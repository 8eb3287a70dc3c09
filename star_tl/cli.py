"""The command line: ``star-tl run`` walks the whole road, the others one step each."""

from __future__ import annotations

import errno
import functools
import io
import math
import os
import sys
import warnings
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer
from typer.core import TyperCommand, TyperGroup
from typer.exceptions import TyperException

from star_tl.errors import StarError, quoted
from star_tl.generation.settings import Sampling
from star_tl.locus import Locus

if TYPE_CHECKING:
    from pandas import DataFrame
    from torch import Tensor

    from star_tl.data.chat import Prompt
    from star_tl.evaluation.ray_workers import RayWorkers
    from star_tl.evaluation.result import RunResult
    from star_tl.models.backend import Model
    from star_tl.steering.condition import Condition


class _OneLineErrors(TyperGroup):
    """Options that cannot be read are refused in one line too."""

    def main(self, *args: Any, standalone_mode: bool = True, **more: Any) -> Any:
        for stream in (sys.stdout, sys.stderr):  # a terminal that cannot write a letter shows a mark in its place
            if isinstance(stream, io.TextIOWrapper):
                stream.reconfigure(errors="replace")
        if not standalone_mode:
            return super().main(*args, standalone_mode=False, **more)
        try:
            code = super().main(*args, standalone_mode=False, **more)
        except TyperException as error:
            if message := error.format_message():  # empty where the help was asked for by no argument at all
                typer.echo(f"star-tl: {message}", err=True)
            sys.exit(2)
        except typer.Abort:
            sys.exit(130)
        sys.exit(code if isinstance(code, int) else 0)


class _ListsMethods(TyperCommand):
    """A command whose help lists the records behind ``--method``, which are imported only when it is asked for."""

    def format_help(self, ctx: Any, formatter: Any) -> None:
        records: Mapping[str, object]
        if self.name == "attribute":
            from star_tl.attribution import ESTIMATORS as records
        elif self.name == "export":
            from star_tl.vectors.export import FORMATS as records
        else:
            from star_tl.vectors import METHODS as records
        (option,) = (p for p in self.params if p.name in ("method", "format"))
        cast("Any", option).help = "; ".join(map(str, records.values())) + "."
        super().format_help(ctx, formatter)


app = typer.Typer(
    cls=_OneLineErrors,
    help="Find where a language model carries a social trait, and turn it up while it writes.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

ModelOption = Annotated[str, typer.Option("--model", help="'demo', 'smollm2', a folder, a GGUF file, or a Hub name.")]
DtypeOption = Annotated[str | None, typer.Option("--dtype", help="float32, bfloat16, float16; default by size.")]
DeviceOption = Annotated[
    str | None, typer.Option("--device", help="cpu, cuda, cuda:1, or cuda:0,cuda:1 to spread a Llama; default cuda.")
]
BackendOption = Annotated[
    str | None,
    typer.Option(
        "--backend",
        help="hooked (HookedTransformer; default before TransformerLens 4), or bridge, which knows more architectures.",
    ),
]
FirstLayersOption = Annotated[
    int | None, typer.Option("--first-n-layers", help="Leave out all later layers; default all are loaded.")
]
TraitOption = Annotated[str, typer.Option("--trait", help="Built-in trait, or a JSONL file of pairs.")]
PromptsOption = Annotated[
    Path | None, typer.Option("--prompts", help="Prompts: ESConv, CaSiNo, CraigslistBargain, JSONL or text.")
]
ModeOption = Annotated[
    str | None,
    typer.Option("--mode", help="How to read --prompts: single (first user message; default) or multi (with history)."),
]
LimitOption = Annotated[int | None, typer.Option("--limit", help="Most prompts to take from --prompts; default 64.")]
OverwriteOption = Annotated[bool, typer.Option("--overwrite", help="Replace what is there.")]
StrengthOption = Annotated[float, typer.Option("--strength", help="1 is the natural difference.")]
TokensOption = Annotated[int, typer.Option("--max-new-tokens", help="Most tokens of a reply.")]
TemperatureOption = Annotated[float, typer.Option("--temperature", help="0 is greedy.")]
TopPOption = Annotated[float, typer.Option("--top-p", help="Sample from the likeliest tokens of this share.")]
SeedsOption = Annotated[int, typer.Option("--seeds", help="Replies per prompt and condition.")]
PositionsOption = Annotated[
    str | None,
    typer.Option(
        "--positions",
        help="locus, prompt, last_prompt, generated, all, first N, every N, decay N, a span of the chat (system, "
        "user turn, header), or numbers: -2,-1.",
    ),
]


RayOption = Annotated[
    str | None, typer.Option("--ray", help="Share the work out on a Ray cluster: local, auto, or where its head is.")
]
WorkersOption = Annotated[
    int | None, typer.Option("--workers", help="With --ray, how many; default one to a GPU, or to a machine.")
]


def _warn(message: Warning | str, *where: object) -> None:
    """A warning is for the user, to whom the line of code that gave it says nothing."""
    typer.echo(f"star-tl: {message}", err=True)


def one_line_errors(command: Callable[..., None]) -> Callable[..., None]:
    """Bad input and a full disk end with one line on stderr and exit code 2; Ctrl-C with 130. Warnings are a line."""

    @functools.wraps(command)
    def wrapped(*args: object, **kwargs: object) -> None:
        try:
            with warnings.catch_warnings():
                warnings.showwarning = _warn
                command(*args, **kwargs)
        except StarError as error:
            typer.echo(f"star-tl: {error}", err=True)
            raise typer.Exit(2) from None
        except BrokenPipeError:  # who read along has gone; what was to be written to files is written
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            raise typer.Exit(0) from None
        except OSError as error:
            place = f"{error.filename}: " if error.filename else ""
            remedy = "make room" if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG) else "see to it"
            typer.echo(
                f"star-tl: {place}{error.strerror or error}: {remedy} and call again; what was finished is on disk.",
                err=True,
            )
            raise typer.Exit(2) from None
        except KeyboardInterrupt:
            typer.echo("star-tl: stopped; what was finished is on disk.", err=True)
            raise typer.Exit(130) from None

    return wrapped


@app.command()
@one_line_errors
def run(
    trait: TraitOption = "emotional_support",
    model: ModelOption = "demo",
    prompts: PromptsOption = None,
    mode: ModeOption = None,
    limit: LimitOption = None,
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
    seeds: SeedsOption = 2,
    method: Annotated[str, typer.Option("--method", help="Attribution: atp, ig or relp.")] = "atp",
    vector_method: Annotated[
        str | None, typer.Option("--vector-method", help="As on the quick road: located, principal, probe, reply_mean.")
    ] = None,
    positions: PositionsOption = None,
    max_new_tokens: TokensOption = Sampling.max_new_tokens,
    temperature: TemperatureOption = Sampling.temperature,
    top_p: TopPOption = Sampling.top_p,
    dtype: DtypeOption = None,
    device: DeviceOption = None,
    backend: BackendOption = None,
    first_n_layers: FirstLayersOption = None,
    overwrite: OverwriteOption = False,
) -> None:
    """Attribute, choose what steers by real replies, compare it with the baselines, and write report.html.

    A run that was stopped goes on where it was when the same command is given again.
    """
    from star_tl.steering.condition import Condition

    sampling = Sampling(max_new_tokens, temperature, top_p)
    given = Condition(strength=1.0 if strength is None else strength, positions=_positions(positions))
    _check_seeds(seeds)
    folder = out or Path("runs") / Path(trait).stem
    from star_tl.data.pairs import load_pairs

    pairs = load_pairs(trait)
    chosen = _prompts(prompts, mode, limit)
    from star_tl.pipeline import FOLDER
    from star_tl.pipeline import run as walk

    FOLDER.check(folder, overwrite)  # before minutes go into loading a model
    result = walk(
        _load(model, dtype, device, backend, first_n_layers),
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
    _show(result)
    typer.echo(f"\nWrote {folder}/: vector, attribution map, samples, scores, and report.html to open in a browser.")


@app.command(cls=_ListsMethods)
@one_line_errors
def attribute(
    out: Annotated[Path, typer.Option("--out", help="Where to write the attribution map (safetensors).")],
    trait: TraitOption = "emotional_support",
    model: ModelOption = "demo",
    method: Annotated[str, typer.Option("--method", help="The estimator.")] = "atp",
    batch_size: Annotated[int | None, typer.Option("--batch-size", help="Pairs in a micro-batch.")] = None,
    dtype: DtypeOption = None,
    device: DeviceOption = None,
    backend: BackendOption = None,
    first_n_layers: FirstLayersOption = None,
    overwrite: OverwriteOption = False,
) -> None:
    """Score every hook point and print each layer's scores and gain."""
    from star_tl.data.pairs import TRAITS, load_pairs

    pairs = load_pairs(trait)
    _check_file(out, overwrite)
    from star_tl.attribution import attribute as compute

    loaded = _load(model, dtype, device, backend, first_n_layers)
    others = [load_pairs(name) for name in TRAITS if name != pairs.trait.name]
    attr = compute(loaded, pairs, method, controls=others, batch_size=batch_size)
    attr.save(out)
    _print_frame(attr.to_frame(), f"{attr.trait}: scores in nats, summed over positions, mean over pairs")
    if attr.prices_layers:
        from star_tl.attribution.choose import GAIN_DRIFT
        from star_tl.attribution.verify import measure_layers

        said = (
            f"the strength that should drift {GAIN_DRIFT:g} nat per token at the best layers, and what it really does"
        )
        _print_frame(measure_layers(loaded, pairs, attr), said)
        typer.echo(f"top locus: {attr.top_locus()}")
    typer.echo(f"{attr!r}\nWrote {out}.")


@app.command(cls=_ListsMethods)
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
    trait: TraitOption = "emotional_support",
    model: ModelOption = "demo",
    dtype: DtypeOption = None,
    device: DeviceOption = None,
    backend: BackendOption = None,
    first_n_layers: FirstLayersOption = None,
    overwrite: OverwriteOption = False,
) -> None:
    """Extract the steering vector at a locus: from a map, named, or found by attribution now."""
    if attribution is not None and hook_point is not None:
        raise StarError("--attribution and --hook-point both name the locus: give one of them.")
    for option, given in (("--positions", positions), ("--head", head)):
        if given is not None and hook_point is None:
            raise StarError(f"{option} belongs to --hook-point: name that too, or leave it out.")
    from star_tl.data.pairs import load_pairs

    pairs = load_pairs(trait)
    _check_file(out, overwrite)
    from star_tl.attribution import AttributionMap
    from star_tl.attribution import attribute as compute
    from star_tl.steering.condition import Condition
    from star_tl.vectors import extract_vector

    if hook_point is not None:
        locus = Locus(hook_point, _numbers(positions or "-1"), head)
        Condition(vector=_Nothing(locus))  # refuses what generate would refuse
        loaded = _load(model, dtype, device, backend, first_n_layers)
    elif attribution is not None:
        attr = AttributionMap.load(attribution)
        locus = attr.top_locus()
        loaded = _load(model, dtype, device, backend, first_n_layers)
        attr.check(loaded)
        if attr.trait != pairs.trait.name:
            typer.echo(f"Caution: the map is of {attr.trait!r}, the pairs are of {pairs.trait.name!r}.", err=True)
    else:
        loaded = _load(model, dtype, device, backend, first_n_layers)
        locus = compute(loaded, pairs).top_locus()
    vector = extract_vector(loaded, pairs, locus, method=method)
    vector.save(out)
    typer.echo(f"{vector!r}\nWrote {out}.")


@app.command()
@one_line_errors
def generate(
    prompt: Annotated[list[str] | None, typer.Option("--prompt", help="A user message; may be repeated.")] = None,
    prompts: PromptsOption = None,
    mode: ModeOption = None,
    limit: LimitOption = None,
    vector: Annotated[Path | None, typer.Option("--vector", help="Steer with this vector.")] = None,
    strength: StrengthOption = 1.0,
    positions: PositionsOption = None,
    model: ModelOption = "demo",
    max_new_tokens: TokensOption = Sampling.max_new_tokens,
    temperature: TemperatureOption = Sampling.temperature,
    top_p: TopPOption = Sampling.top_p,
    seed: Annotated[int, typer.Option("--seed")] = 0,
    dtype: DtypeOption = None,
    device: DeviceOption = None,
    backend: BackendOption = None,
    first_n_layers: FirstLayersOption = None,
) -> None:
    """Write replies: with a vector each prompt, its unsteered and its steered reply; without one the replies alone."""
    from star_tl.steering.condition import Condition

    sampling = Sampling(max_new_tokens, temperature, top_p)
    way = Condition("steered", strength=strength, positions=_positions(positions), seed=seed)
    questions: list[Prompt] = [*(prompt or []), *(_prompts(prompts, mode, limit) or [])]
    if not questions:
        raise StarError("There are no prompts: give --prompt TEXT or --prompts FILE.")
    if vector is None and (positions is not None or strength != 1.0):
        raise StarError("--strength and --positions belong to --vector: name that too, or leave them out.")
    from star_tl.generation.sampling import sample
    from star_tl.vectors import SteeringVector

    loaded = _load(model, dtype, device, backend, first_n_layers)
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


@app.command()
@one_line_errors
def sweep(
    trait: TraitOption = "emotional_support",
    model: ModelOption = "demo",
    prompts: PromptsOption = None,
    mode: ModeOption = None,
    limit: LimitOption = None,
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
    seeds: SeedsOption = 1,
    max_new_tokens: TokensOption = Sampling.max_new_tokens,
    temperature: TemperatureOption = Sampling.temperature,
    top_p: TopPOption = Sampling.top_p,
    dtype: DtypeOption = None,
    device: DeviceOption = None,
    backend: BackendOption = None,
    first_n_layers: FirstLayersOption = None,
    ray: RayOption = None,
    workers: WorkersOption = None,
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
    _check_seeds(seeds)
    from star_tl.data.pairs import load_pairs

    pairs = load_pairs(trait)
    questions = _prompts(prompts, mode, limit)
    from star_tl.evaluation.sweep import compare
    from star_tl.files import output_folder, replacing

    folder = out or Path("runs") / f"sweep-{pairs.trait.name}"
    output_folder(folder)
    loaded = _load(model, dtype, device, backend, first_n_layers)
    chosen = _numbers(layers, "Layers", "4,5") if layers else range(loaded.cfg.n_layers)
    with _workers(loaded, ray, workers) as replicas:
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
    _print_frame(summary, f"{pairs.trait.name}: coherent replies with the trait")
    typer.echo(f"Wrote {folder}/samples.jsonl, samples.csv, summary.csv and report.html.")


@app.command()
@one_line_errors
def evaluate(
    task: Annotated[str, typer.Option("--task", help="Built-in task, or a JSON file of the same form.")],
    model: ModelOption = "demo",
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
    positions: PositionsOption = None,
    choose: Annotated[
        bool, typer.Option("--choose/--no-choose", help="Choose an intervention by real replies, as one condition.")
    ] = True,
    drift: Annotated[
        float | None, typer.Option("--drift", help="Nats per token for every vector; default that of priming.")
    ] = None,
    seeds: SeedsOption = 1,
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
    ray: RayOption = None,
    workers: WorkersOption = None,
    max_new_tokens: TokensOption = Sampling.max_new_tokens,
    temperature: TemperatureOption = Sampling.temperature,
    top_p: TopPOption = Sampling.top_p,
    dtype: DtypeOption = None,
    device: DeviceOption = None,
    backend: BackendOption = None,
    first_n_layers: FirstLayersOption = None,
) -> None:
    """A task under every condition at equal drift: statistics, side effects, tables for a paper, a form for people.

    An evaluation that was stopped goes on where it was when the same command is given again.
    """
    from star_tl.data.tasks import load_task
    from star_tl.steering.condition import Condition

    way = Condition("chosen", positions=_positions(positions))
    if positions is not None and vector is None:
        raise StarError("--positions belongs to --vector: name that too, or leave it out.")
    if (llm_url is None) != (llm_model is None):
        raise StarError("--llm-url and --llm-model go together: give both or none.")
    sampling = Sampling(max_new_tokens, temperature, top_p)
    _check_seeds(seeds)
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

    questions = _prompts(data, mode, limit) or [] if data is not None else pairs.heldout.prompts[:limit]
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
    loaded = _load(model, dtype, device, backend, first_n_layers)
    check_asked(loaded, chosen, questions, sampling, drift, turns, scenarios, talks, lexicon)
    own: Condition | None = None
    with _workers(loaded, ray, workers) as replicas:
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
        _print_frame(table, name)
    typer.echo(f"Wrote {folder}/: report.html, tables.md, tables.tex, effects.csv, against.csv, samples.csv.")
    if export_human is not None:
        from star_tl.view.rating_form import write_form

        written = write_form(result, export_human)
        typer.echo(f"Wrote {', '.join(map(str, written))}: send form.html, keep key.csv.")
    if import_human:
        for name, table in human_tables(result, import_human).items():
            _print_frame(table, name)


@app.command(cls=_ListsMethods)
@one_line_errors
def export(
    format: Annotated[str, typer.Argument(help="The format.")],
    vector: Annotated[Path, typer.Option("--vector", help="The vector to export.")],
    out: Annotated[Path, typer.Option("--out", help="The file; for huggingface a new folder.")],
    model: Annotated[
        str | None, typer.Option("--model", help="Its model; default the name that the vector has.")
    ] = None,
    strength: StrengthOption = 1.0,
    positions: PositionsOption = None,
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
    dtype: DtypeOption = None,
    device: DeviceOption = None,
    backend: BackendOption = None,
    overwrite: OverwriteOption = False,
) -> None:
    """Write a vector for llama.cpp, transformers, vLLM and others, with a recipe card.

    Where a format knows no positions, the vector is added at every token so strongly that it drifts no more than it
    does in its own place; what that loses is printed.
    """
    from star_tl.steering.condition import Condition

    at = _positions(positions)
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
        _check_file(out, overwrite)
        for file in chosen.beside_it(out):
            _check_file(file, overwrite)
    steering = SteeringVector.load(vector)
    name = model or steering.model
    request = Request(steering, strength, at, name)
    if not measure:
        if model is not None or chosen.folder:
            steering.check(_load(name, dtype, device, backend, None))
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
    loaded = _load(name, dtype, device, backend, None)
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
    _print_frame(table, title)
    typer.echo(f"Wrote {', '.join(map(str, written))}.")


@app.command()
@one_line_errors
def serve(
    vector: Annotated[
        list[Path] | None, typer.Option("--vector", help="A vector that requests may name by its file's name; repeat.")
    ] = None,
    model: ModelOption = "demo",
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
    dtype: DtypeOption = None,
    device: DeviceOption = None,
    backend: BackendOption = None,
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
    loaded = _load(model, dtype, device, backend, None)
    served = read_vectors(vector or [], loaded)
    if measure_drift:
        served = {name: with_drift(v, loaded) for name, v in served.items()}
    name = (Path(model).resolve() if Path(model).is_dir() else Path(model)).name
    answer(loaded, served, name, host, port, limits, api_key, lambda at: typer.echo(f"Listening on {at}"))


@app.command()
@one_line_errors
def doctor(
    model: Annotated[str | None, typer.Option("--model", help="Ask about this folder or Hub name only.")] = None,
) -> None:
    """Show what is installed, which models fit here and are downloaded, and how fast this machine is."""
    from rich.console import Console

    from star_tl.doctor import examine, tables

    Console(width=None if sys.stdout.isatty() else 120).print(*tables(examine(model)), sep="\n")


def _load(name: str, dtype: str | None, device: str | None, backend: str | None, first_n_layers: int | None) -> Model:
    from star_tl.models import load_model

    return load_model(name, dtype, device, first_n_layers, backend)


@dataclass(frozen=True)
class _Nothing:
    """A vector that adds nothing, to ask whether anything can be added at its locus."""

    locus: Locus

    def scaled(self, strength: float) -> Tensor:
        import torch

        return torch.zeros(len(self.locus.positions), 1)


def _workers(model: Model, ray: str | None, count: int | None) -> AbstractContextManager[RayWorkers | None]:
    """Replicas on a Ray cluster; None where none is named."""
    if ray is None:
        if count is not None:
            raise StarError("--workers is about a Ray cluster: give --ray ADDRESS, or leave it out.")
        return nullcontext()
    from star_tl.evaluation.ray_workers import RayWorkers

    return RayWorkers(model, ray, count)


def _check_seeds(seeds: int) -> None:
    if seeds < 1:
        raise StarError(f"--seeds is {seeds}: use at least 1.")


def _positions(text: str | None) -> str | tuple[int, ...] | None:
    from star_tl.steering.positions import read_positions

    return read_positions(text) if text else None


def _prompts(path: Path | None, mode: str | None, limit: int | None) -> list[Prompt] | None:
    """What the file holds to reply to; None where none is given."""
    if path is None:
        for name, value in (("--mode", mode), ("--limit", limit)):
            if value is not None:
                raise StarError(f"{name} {value} is about the prompts of a file: give --prompts FILE, or leave it out.")
        return None
    if limit is not None and limit < 1:
        raise StarError(f"--limit is {limit}: use at least 1.")
    from star_tl.data.prompts import load_prompts

    return [item.messages for item in load_prompts(path, mode=mode or "single", limit=limit or 64)]


def _check_file(path: Path, overwrite: bool) -> None:
    from star_tl.files import check_writable, output_path

    if output_path(path).exists() and not overwrite:
        raise StarError(f"{path} exists: name another file or pass --overwrite.")
    if not path.parent.is_dir():
        raise StarError(f"{path.parent} is not a folder: create it first.")
    check_writable(path)


def _numbers(text: str, what: str = "Positions", example: str = "-2,-1") -> tuple[int, ...]:
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError:
        raise StarError(f"{what} {text!r} are not numbers: write them as {example}.") from None


_COLUMNS = {
    "trait_rate": ("trait %", 100, 0),
    "difference": ("Δ points", 1, 0),
    "coherent_rate": ("coherent %", 100, 0),
    "marker_rate": ("markers %", 100, 0),
    "drift": ("drift (nat/token)", 1, 3),
    "perplexity": ("perplexity", 1, 2),
    "first_person": ("I, me, my /100 words", 1, 1),
    "length": ("words", 1, 0),
    "repetition": ("repetition %", 100, 0),
}


def _show(result: RunResult) -> None:
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    console = Console(width=None if sys.stdout.isatty() else 150)
    choice = result.attribution.choose_layer()
    trait, model, said = (escape(str(x)) for x in (result.trait, result.model, choice.describe()))
    found = f"drift buys most at layer [bold]{choice.layer}[/] ({said})" if choice.singled_out else said
    place = ""
    if result.intervention is None:  # else real replies have chosen another, which the next line names
        place = f"; locus {escape(result.settings.get('locus', str(result.vector.locus)))}"
    console.print(f"\n[bold]{trait}[/] on {model}: {found}{place}")
    if result.intervention is not None:
        console.print(f"Chosen by real replies: [bold]{escape(result.intervention.describe())}[/].")
    if result.attribution.caution:
        console.print(f"[bold]Caution:[/] {escape(result.attribution.caution)}.")
    table = Table(title=escape(result.settings["replies"]), title_justify="left")
    table.add_column("arm", no_wrap=True)
    for heading, _, _ in _COLUMNS.values():
        table.add_column(heading, justify="right")
    for row in result.summary.to_dict(orient="records"):
        cells = []
        for key, (_, factor, digits) in _COLUMNS.items():
            value = row[key] * factor
            text = "" if math.isnan(value) else f"{value:.{digits}f}"
            if key == "difference" and text:
                text = f"{value:+.0f} [{row['low']:+.0f}, {row['high']:+.0f}]"
            cells.append(text)
        table.add_row(str(row["arm"]), *cells)
    console.print(table)

    replies = Table(title="Side by side (first seed)", title_justify="left", show_lines=True)
    shown = ("unsteered", "steered", "primed")
    for heading in ("prompt", *shown):
        replies.add_column(heading, ratio=1, overflow="fold")
    first = result.samples[(result.samples.seed == result.samples.seed.iloc[0]) & result.samples.arm.isin(shown)]
    texts = first.pivot(index="prompt_id", columns="arm", values="text")
    from rich.text import Text

    for prompt_id, messages in result.prompts[:3]:
        replies.add_row(Text(messages[-1]["content"]), *(Text(texts.loc[prompt_id, arm]) for arm in shown))
    console.print(replies)


def _print_frame(frame: DataFrame, title: str) -> None:
    """A table; one that is wider than the terminal goes on below itself, under its first column again."""
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    console = Console(width=None if sys.stdout.isatty() else 200)
    cells = {str(c): [f"{v:.3f}" if isinstance(v, float) else str(v) for v in frame[c]] for c in frame.columns}
    widths = {name: max(map(len, (name, *values))) + 3 for name, values in cells.items()}
    first, *others = cells
    strips, left = [[first]], console.width - 1 - widths[first]
    for name in others:
        if widths[name] > left and len(strips[-1]) > 1:
            strips.append([first])
            left = console.width - 1 - widths[first]
        strips[-1].append(name)
        left -= widths[name]
    for i, strip in enumerate(strips):
        table = Table(title=escape(title) if not i else None, title_justify="left")
        for name in strip:
            table.add_column(escape(name), justify="right", overflow="fold")
        for row in zip(*(cells[name] for name in strip), strict=True):
            table.add_row(*map(escape, row))
        console.print(table)
