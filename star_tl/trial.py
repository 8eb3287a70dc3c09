"""`evaluate`: a task's prompts under every condition at equal drift, with statistics, side effects and a report.

Everything that is sampled lies in the folder as it comes; the same call goes on where it was stopped, with the same
numbers at the end.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from types import NoneType

import pandas as pd
from typing_extensions import Unpack

from star_tl.attribution import AttributionMap, attribute
from star_tl.data.chat import Prompt, distinct_prompts
from star_tl.data.pairs import TRAITS, Pairs, load_pairs
from star_tl.data.scenarios import Camp, Scenario, load_scenarios
from star_tl.data.tasks import Task, load_task
from star_tl.errors import StarError, check_flag, check_kind, check_number, check_whole, listed
from star_tl.evaluation import allotment
from star_tl.evaluation.conditions import (
    BOTH,
    CAA,
    CHOSEN,
    LOCATED,
    PRIMED,
    asked_about,
    vector_conditions,
    worded_conditions,
)
from star_tl.evaluation.drift import PRACTICE, PRACTICE_POINTS, PRACTICE_SEED, at_drift
from star_tl.evaluation.effects import effects, pool_random
from star_tl.evaluation.evaluated import Evaluation
from star_tl.evaluation.judges import load_judge
from star_tl.evaluation.lexicon import load_lexicon
from star_tl.evaluation.llm_judge import LLMJudge
from star_tl.evaluation.measures import agreement, main_measures, with_measures
from star_tl.evaluation.negotiation import outcomes
from star_tl.evaluation.played import Talk, by_turn, play, talks_of, texts_of
from star_tl.evaluation.preflight import preflight
from star_tl.evaluation.ray_workers import RayWorkers
from star_tl.evaluation.samples import describe, sample_conditions
from star_tl.evaluation.scores import mark_coherent
from star_tl.evaluation.side_effects import damage, trait_matrix
from star_tl.evaluation.strength import dose_table
from star_tl.files import CallFolder, kept, replacing
from star_tl.generation.sampling import render_prompts
from star_tl.generation.settings import Sampling, SamplingOptions, settled
from star_tl.models.backend import MODELS, Model
from star_tl.steering.condition import UNSTEERED, Condition
from star_tl.vectors import extract_vector
from star_tl.version import __version__
from star_tl.view.evaluation_report import write_evaluation_report

TALKS = 16
DOSES = (0.5, 1.5, 2.0)  # times the located vector's strength, beside 0 and that strength itself
FILES = ("effects.csv", "against.csv", "samples.csv", "tables.md", "tables.tex", "report.html")
FOLDER = CallFolder("evaluation.json", "evaluation", ("attribution.safetensors", *FILES), parts="replies")
SHOWN = (UNSTEERED, CHOSEN, LOCATED, CAA, "all layers", PRIMED)


def evaluate(
    model: Model,
    task: Task | str,
    prompts: Sequence[Prompt] | None = None,
    out: str | Path | None = None,
    *,
    chosen: Condition | None = None,
    drift: float | None = None,
    seeds: Sequence[int] = (0,),
    turns: int = 0,
    scenarios: Sequence[Scenario] | Sequence[Camp] | None = None,
    replay: Sequence[Sequence[str]] | None = None,
    llm: LLMJudge | None = None,
    lexicon: str | Path | None = None,
    side_effects: bool = True,
    progress: bool = True,
    workers: RayWorkers | None = None,
    sampling: Sampling | None = None,
    **options: Unpack[SamplingOptions],
) -> Evaluation:
    """A task under every condition of :data:`star_tl.evaluation.conditions.CONDITIONS`, at equal drift.

    Conditions that add a vector are each brought to the drift of priming, or to ``drift``, on extraction contexts of
    the trait's pairs; priming, few-shot and both together have the drift that they have, which stands in the table.

    Args:
        model: from :func:`star_tl.load_model`.
        task: a built-in task's name, or one of :func:`star_tl.data.tasks.load_task`.
        prompts: what to reply to; default the held-out contexts of the trait's pairs. The same one twice counts once.
        out: a folder for attribution, samples, ``effects.csv``, ``tables.md``, ``tables.tex`` and ``report.html``; a
            call that was stopped goes on from it.
        chosen: an intervention of one's own, brought to the same drift.
        drift: nats per token; default that of priming.
        seeds: a reply per prompt, condition and seed; a random vector or a shuffle gets one of the
            seeds.
        turns: then play talks of so many turns against the same model unsteered, under a few of the conditions, TALKS
            of them at most; a task with outcomes bargains over ``scenarios``.
        scenarios: default the built-in items, as many as there are prompts.
        replay: what the other side says in each talk, turn by turn, in place of playing it; nothing is bargained then.
            :func:`star_tl.data.prompts.load_turns` reads it off dialogues.
        llm: a language model as one more judge.
        lexicon: NRC's list of words, for joy and trust; default that of an installed NRCLex.
        side_effects: measure other traits, facts, refusals and neutral text too.
        progress: show progress bars.
        workers: replicas of the model on other machines, which write and score in its place: the same tables.
        sampling: how to sample, a :class:`star_tl.Sampling`, or its fields by name.

    Raises:
        StarError: bad arguments, or ``out`` holds another evaluation.
    """
    check_kind(chosen, (Condition, NoneType), "an intervention of one's own as a Condition")
    check_kind(llm, (LLMJudge, NoneType), "an LLMJudge")
    check_kind(workers, (RayWorkers, NoneType), "RayWorkers")
    for name, flag in (("side_effects", side_effects), ("progress", progress)):
        check_flag(flag, name)
    settings, seeds = settled(sampling, options), listed(seeds, "seeds")
    task = task if isinstance(task, Task) else load_task(task)
    asked = check_asked(model, task, prompts, settings, drift, turns, scenarios, replay, lexicon)
    for trait in task.judges:
        load_judge(trait, "ngrams")  # raises where there is none
    if not (task.judges or llm or "markers" in task.measures):
        raise StarError(f"Task {task.name!r} measures nothing of its trait: give it markers or a judge.")
    pairs, words = load_pairs(task.trait), load_lexicon(lexicon)
    ids = render_prompts(model, asked, settings.max_new_tokens)
    items: Sequence[Scenario] | Sequence[Camp] = ()
    if task.outcomes and not replay:
        items = scenarios if scenarios is not None else load_scenarios(limit=len(asked))
    given = [Condition(seed=s) for s in seeds] + ([replace(chosen, name=CHOSEN)] if chosen is not None else [])
    call = describe(model, [ids], given, settings) | {
        "task": repr(task),
        "pairs": hashlib.sha256(repr(pairs.trait).encode() + repr(pairs.pairs).encode()).hexdigest()[:16],
        "drift": drift,
        "side_effects": side_effects,
        "turns": turns,
        "items": repr(list(items)),
        "replay": replay and hashlib.sha256(repr([list(said) for said in replay]).encode()).hexdigest()[:16],
        "llm": llm and [llm.url, llm.model],
        "star_tl": __version__,
    }

    def walk(folder: Path | None) -> Evaluation:
        file = folder and folder / "attribution.safetensors"
        attr = kept(file, AttributionMap.load, lambda: attribute(model, pairs, progress=progress))
        conditions, found = _at_equal_drift(model, pairs, attr, given, drift, settings, folder, progress, workers)
        samples = _samples(model, pairs, asked, conditions, seeds, settings, folder, progress, workers)
        samples, measures = with_measures(samples, task, asked, llm, words)
        dose = _dose(model, pairs, asked, conditions, samples, seeds, settings, folder, progress, workers)
        some = [c for c in conditions if c.name in SHOWN]
        matrix = harm = None
        if side_effects:
            located = next(c for c in conditions if c.name == LOCATED)
            matrix = _matrix(model, pairs, asked, located, found, samples, seeds, settings, folder, progress, workers)
            harm = damage(model, some, settings, folder and folder / FOLDER.parts / "refusals.jsonl", progress, workers)
        talked = ended = None
        if turns:
            talks = talks_of(task, asked, items, replay)[:TALKS]
            some_items = items[:TALKS]
            talked, ended = _talks(model, pairs, talks, some_items, some, turns, settings, folder, progress, workers)
        return Evaluation(
            task=task,
            model=str(model.cfg.model_name),
            measures=tuple(measures),
            samples=samples,
            table=effects(pool_random(samples), measures),
            against=effects(pool_random(samples), main_measures(measures), asked_about(set(samples.arm))),
            agreement=agreement(samples, measures),
            preflight=preflight(model, pairs).table,
            dose=dose,
            matrix=matrix,
            damage=harm,
            turns=talked,
            outcomes=ended,
            prompts=tuple(asked),
            settings={
                "drift": f"{found:.3f} nats per token, that of priming on the practice contexts"
                if drift is None
                else f"{found:g} nats per token on the practice contexts",
                **{c.name: _described(c) for c in conditions if c.name in (CHOSEN, LOCATED)},
                "layer": attr.choose_layer().describe(),
                "prompts": f"{len(asked)}, seeds {', '.join(map(str, seeds))}",
                "sampling": settings.describe(),
                "model": f"{model.cfg.model_name}, fingerprint {call['model']}",
                "star_tl": f"{__version__}, torch {version('torch')}, transformer_lens {version('transformer_lens')}",
            },
        )

    with FOLDER.opened(out, call) as folder:
        result = walk(folder)
        if folder is not None:
            _write(folder, result)
        return result


def check_asked(
    model: Model,
    task: Task,
    prompts: Sequence[Prompt] | None,
    sampling: Sampling,
    drift: float | None,
    turns: int,
    scenarios: Sequence[Scenario] | Sequence[Camp] | None,
    replay: Sequence[Sequence[str]] | None,
    lexicon: str | Path | None,
) -> list[tuple[dict[str, str], ...]]:
    """The prompts that are replied to.

    Raises:
        StarError: what :func:`evaluate` would raise for these arguments, before anything is computed.
    """
    check_kind(model, MODELS, "a model that load_model returns")
    check_kind(lexicon, (str, Path, NoneType), "the path of a lexicon")
    check_whole(turns, "turns", least=0)
    if replay is not None:
        check_kind(replay, (list, tuple), "replay as a list of talks")
        if any(not isinstance(said, (list, tuple)) or len(said) < turns for said in replay):
            raise StarError(f"A talk to replay has fewer than {turns} turns of the other side: leave it out.")
    if drift is not None:
        remedy = "give what steering may cost in nats a token, above 0"
        check_number(drift, "drift", lambda x: math.isfinite(x) and x > 0, remedy)
    if scenarios is not None:
        check_kind(scenarios, (list, tuple), "scenarios as load_scenarios returns them")
        for scenario in scenarios:
            check_kind(scenario, (Scenario, Camp), "scenarios as load_scenarios returns them")
    load_lexicon(lexicon)
    asked = distinct_prompts(prompts if prompts is not None else load_pairs(task.trait).heldout.prompts)
    render_prompts(model, asked, sampling.max_new_tokens)
    return asked


def _described(condition: Condition) -> str:
    at = "" if condition.positions is None else f", added at {condition.positions}"
    return f"{condition.vector}{at}, strength {condition.strength:.3g}"


def _at_equal_drift(
    model: Model,
    pairs: Pairs,
    attr: AttributionMap,
    given: Sequence[Condition],
    drift: float | None,
    sampling: Sampling,
    folder: Path | None,
    progress: bool,
    workers: RayWorkers | None,
) -> tuple[list[Condition], float]:
    """All conditions, and the drift that those with a vector were brought to."""
    practice, words = pairs.extraction.prompts[:PRACTICE], worded_conditions(pairs)
    file = folder and folder / FOLDER.parts / "priming.jsonl"
    if drift is None:
        primed = [replace(words[0], seed=PRACTICE_SEED)]
        frame = sample_conditions(model, pairs.trait, practice, primed, sampling, file, progress, workers)
        drift = float(frame.drift.mean())
    steered = [c for c in given if c.dose] + vector_conditions(model, pairs, attr)
    kept = folder and folder / FOLDER.parts
    steered = at_drift(
        model, pairs.trait, _seeded(steered), drift, practice, sampling, PRACTICE_POINTS, kept, progress, workers
    )
    located = next(c for c in steered if c.name == LOCATED)
    both = replace(located, name=BOTH, instruction=words[0].instruction)
    return [replace(c, seed=0) for c in (Condition(), *steered, *words, both)], drift


def _seeded(conditions: Sequence[Condition]) -> list[Condition]:
    return [replace(c, seed=PRACTICE_SEED) for c in conditions]


def _samples(
    model: Model,
    pairs: Pairs,
    prompts: Sequence[Prompt],
    conditions: Sequence[Condition],
    seeds: Sequence[int],
    sampling: Sampling,
    folder: Path | None,
    progress: bool,
    workers: RayWorkers | None,
) -> pd.DataFrame:
    each = []
    for number, condition in enumerate(conditions):
        several = seeds if not condition.name.startswith(("random", "shuffled")) else [seeds[number % len(seeds)]]
        each += [replace(condition, seed=seed) for seed in several]
    file = folder and folder / FOLDER.parts / "arms.jsonl"
    return sample_conditions(model, pairs.trait, prompts, each, sampling, file, progress, workers)


def _dose(
    model: Model,
    pairs: Pairs,
    prompts: Sequence[Prompt],
    conditions: Sequence[Condition],
    samples: pd.DataFrame,
    seeds: Sequence[int],
    sampling: Sampling,
    folder: Path | None,
    progress: bool,
    workers: RayWorkers | None = None,
) -> pd.DataFrame:
    """The located vector's dose–response on the same prompts, with the first seed."""
    located = next(c for c in conditions if c.name == LOCATED)
    ways = [replace(located, strength=x * located.strength, seed=seeds[0]) for x in DOSES]
    file = folder and folder / FOLDER.parts / "dose.jsonl"
    more = sample_conditions(model, pairs.trait, prompts, ways, sampling, file, progress, workers)
    known = samples.loc[samples.arm.isin([UNSTEERED, LOCATED]) & (samples.seed == seeds[0])]
    return dose_table(mark_coherent(pd.concat([known, more], ignore_index=True)))


def _matrix(
    model: Model,
    pairs: Pairs,
    prompts: Sequence[Prompt],
    located: Condition,
    drift: float,
    samples: pd.DataFrame,
    seeds: Sequence[int],
    sampling: Sampling,
    folder: Path | None,
    progress: bool,
    workers: RayWorkers | None,
) -> pd.DataFrame:
    """Every trait's vector at this task's place, brought to the same drift; with the first seed."""
    assert located.vector is not None
    others = [name for name in TRAITS if name != pairs.trait.name]
    loaded = {name: load_pairs(name) for name in others}
    ways = [
        replace(located, name=name, vector=extract_vector(model, p, located.vector.locus)) for name, p in loaded.items()
    ]
    kept = folder and folder / FOLDER.parts / "traits"
    practice = pairs.extraction.prompts[:PRACTICE]
    ways = at_drift(
        model, pairs.trait, _seeded(ways), drift, practice, sampling, PRACTICE_POINTS, kept, progress, workers
    )
    ways, file = [replace(way, seed=seeds[0]) for way in ways], kept and kept / "arms.jsonl"
    frame = sample_conditions(model, pairs.trait, prompts, ways, sampling, file, progress, workers)
    texts = {name: frame[frame.arm == name].text.tolist() for name in others}
    same = samples[samples.seed == seeds[0]]
    texts[pairs.trait.name] = same[same.arm == LOCATED].text.tolist()
    return trait_matrix({name: texts[name] for name in sorted(texts)}, same[same.arm == UNSTEERED].text.tolist())


def _talks(
    model: Model,
    pairs: Pairs,
    talks: Sequence[Talk],
    items: Sequence[Scenario] | Sequence[Camp],
    conditions: Sequence[Condition],
    turns: int,
    sampling: Sampling,
    folder: Path | None,
    progress: bool,
    workers: RayWorkers | None,
) -> tuple[pd.DataFrame, pd.DataFrame | None]:
    """Turn by turn; and what was bargained, where something was."""
    frames, ended = [], []
    for way in conditions:
        kept = folder and folder / FOLDER.parts / "talks" / way.name.replace(" ", "-")
        frame = play(model, pairs.trait, talks, way, turns, sampling, kept, progress, workers)
        frames.append(frame)
        camps = [item for item in items if isinstance(item, Camp)]
        priced = [item for item in items if isinstance(item, Scenario)]
        if items:
            came = allotment.outcomes(texts_of(frame), camps) if camps else outcomes(texts_of(frame), priced)
            ended.append(came.assign(condition=way.name))
    samples = mark_coherent(pd.concat(frames, ignore_index=True))
    means = pd.concat(ended).groupby("condition", sort=False).mean().reset_index() if ended else None
    return by_turn(samples), means


def _write(folder: Path, result: Evaluation) -> None:
    for name, frame in (
        ("effects.csv", result.table),
        ("against.csv", result.against),
        ("samples.csv", result.samples),
    ):
        with replacing(folder / name) as partial:
            frame.to_csv(partial, index=False)
    for name, text in (("tables.md", result.to_markdown()), ("tables.tex", result.to_latex())):
        with replacing(folder / name) as partial:
            partial.write_text(text, encoding="utf-8")
    write_evaluation_report(folder / "report.html", result)
