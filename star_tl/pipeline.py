"""The whole road: pairs → attribution → locus → vector → hooks → samples → scores → report."""

from __future__ import annotations

import hashlib
import json
import math
import warnings
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pandas as pd
from typing_extensions import Unpack

from star_tl.attribution import ESTIMATORS, AttributionMap, attribute
from star_tl.attribution.choose import GAIN_DRIFT
from star_tl.data.chat import Message, Prompt, distinct_prompts, resolve_span
from star_tl.data.pairs import TRAITS, Pairs, load_pairs
from star_tl.errors import StarError, check_flag, check_kind, check_name, check_number, check_whole, listed
from star_tl.evaluation.measures import measured, measures_of
from star_tl.evaluation.result import RunResult
from star_tl.evaluation.roads import by_attribution, by_choice
from star_tl.evaluation.samples import describe, sample_conditions
from star_tl.evaluation.scores import mark_coherent, summarise
from star_tl.files import CallFolder, JsonObject, kept, replacing
from star_tl.generation.sampling import render_prompts
from star_tl.generation.settings import Sampling, SamplingOptions, settled
from star_tl.models.backend import MODELS, Model, tokenizer_of
from star_tl.steering.condition import Condition
from star_tl.vectors import check_extraction
from star_tl.version import __version__
from star_tl.view.report import write_report

TESTED_ON_ITS_OWN = "no pair is held out, so that steering is tested on the contexts that the vector was made from"
REPLIES_ATTRIBUTED = 384
CONTROL_PAIRS = 12  # of each other trait, whose vectors are set against this one's
FILES = ("vector.safetensors", "attribution.safetensors", "samples.jsonl", "scores.csv", "report.html")
FOLDER = CallFolder("run.json", "run", FILES, parts="replies", replaceable=True)


def run(
    model: Model,
    pairs: Pairs,
    prompts: Sequence[Prompt] | None = None,
    out: str | Path | None = None,
    *,
    quick: bool = False,
    drift: float | None = None,
    replies: int = REPLIES_ATTRIBUTED,
    strength: float | None = None,
    seeds: Sequence[int] = (0,),
    estimator: str = "atp",
    method: str | None = None,
    positions: str | Sequence[int] | None = None,
    sampling: Sampling | None = None,
    overwrite: bool = False,
    progress: bool = True,
    **options: Unpack[SamplingOptions],
) -> RunResult:
    """Walk the whole road and compare steering with its baselines.

    What steers is chosen by :func:`star_tl.choose_intervention`: real replies to the extraction contexts decide what is
    added, where, at which tokens and how strongly. Arms, each brought to the same drift on some of those contexts:
    steered, as chosen; the located vector at attribution's locus; the located vector at the layer that attribution
    ranks last; the mean reply difference at the middle layer on generated tokens. Beside them: unsteered; ten random
    vectors of the chosen one's norm at its place; priming by the trait's positive instruction; and steering under
    priming.

    Replies that choose have 40 tokens at most, for what raises a trait does so early; those of the arms have
    ``max_new_tokens``. Other traits' vectors, which the layer's gain is set against, are made from 12 pairs each.

    The quick road keeps attribution's choice alone, and looks for the strength only. Its arms: unsteered; the located
    vector at its locus; ten random vectors; the vector at the layer ranked last; the mean reply difference added
    everywhere; and priming. It is taken where ``quick`` is true or where a strength, a vector method or positions are
    given, which are what the choice would find.

    A run that was stopped goes on where it was when the same call is made again.

    Args:
        model: from :func:`star_tl.load_model`.
        pairs: from :func:`star_tl.load_pairs`.
        prompts: what to reply to; default the held-out contexts of ``pairs``. The same one twice counts once.
        out: folder for the vector, the attribution map, samples, scores and ``report.html``.
        quick: take attribution's choice of the place.
        drift: what steering may cost, nats a token; default 0.1. The quick road has a limit of its own.
        replies: most unsteered replies that the choice attributes to the trait.
        strength: 1 is the natural difference. Default on the quick road: what :func:`star_tl.choose_strength` chooses
            on the contexts of the extraction pairs; the mean reply difference gets a strength of its own in the same
            way.
        seeds: one reply per prompt, arm and seed.
        estimator: ``method`` of :func:`star_tl.attribute`.
        method: of :func:`star_tl.extract_vector`; default ``"located"``.
        positions: where the vector is added, see :class:`star_tl.Condition`; default at its locus.
        sampling: how to sample, a :class:`star_tl.Sampling`, or its fields by name.
        overwrite: replace what another run left in ``out``.
        progress: show progress bars.

    Raises:
        StarError: bad arguments, or an output folder that holds another run.
    """
    check_kind(model, MODELS, "a model that load_model returns")
    check_kind(pairs, Pairs, "pairs that load_pairs returns")
    for name, flag in (("quick", quick), ("overwrite", overwrite), ("progress", progress)):
        check_flag(flag, name)
    check_whole(replies, "replies")
    settings, seeds = settled(sampling, options), listed(seeds, "seeds")
    chosen = distinct_prompts(prompts if prompts is not None else pairs.heldout.prompts)
    arms = [Condition(positions=positions, strength=1.0 if strength is None else strength, seed=s) for s in seeds]
    ids = render_prompts(model, chosen, settings.max_new_tokens)
    practice, primed = pairs.extraction.prompts, Condition(instruction=pairs.trait.positive_instruction)
    for prompts_of_an_arm in (practice, primed.prompted(chosen)):
        render_prompts(model, prompts_of_an_arm, settings.max_new_tokens)
    for chat in (*chosen, *practice):
        resolve_span(tokenizer_of(model), chat, arms[0].positions)
    able = [e.key for e in ESTIMATORS.values() if e.prices_layers]
    check_name(estimator, ESTIMATORS if isinstance(estimator, str) and estimator in ESTIMATORS else able, "estimator")
    if not ESTIMATORS[estimator].prices_layers:
        known = " or ".join(map(repr, able))
        raise StarError(f"The estimator {estimator!r} has no gradients to choose a layer by: use {known}.")
    quick = quick or any(given is not None for given in (strength, method, positions))
    method = method if method is not None else "located"
    check_extraction(model, pairs, (), method)
    remedy = "give what steering may cost in nats a token, above 0"
    if quick and drift is not None:
        raise StarError(
            "drift is what replies choose at: leave it out of the quick road, which keeps a limit of its own."
        )
    drift = GAIN_DRIFT if drift is None else drift
    check_number(drift, "drift", lambda x: math.isfinite(x) and x > 0, remedy)
    if not pairs.trait.markers:
        raise StarError(f"Trait {pairs.trait.name!r} has no markers, by which replies are counted: give it some.")
    if prompts is None and not any(pair.split == "heldout" for pair in pairs):
        warnings.warn(f"{pairs!r}: {TESTED_ON_ITS_OWN}; give prompts of your own.", stacklevel=2)
    call = describe(model, [ids], arms, settings) | {
        "pairs": hashlib.sha256(repr(pairs).encode() + repr(pairs.pairs).encode()).hexdigest()[:16],
        **({"strength": strength} if quick else {"drift": drift, "replies": replies}),
        "estimator": estimator,
        "method": method,
        "star_tl": __version__,
    }
    with FOLDER.opened(out, call, overwrite) as folder:
        return _walk(model, pairs, chosen, folder, call, arms, settings, progress)


def _walk(
    model: Model,
    pairs: Pairs,
    prompts: Sequence[tuple[Message, ...]],
    folder: Path | None,
    call: JsonObject,
    given: Sequence[Condition],
    sampling: Sampling,
    progress: bool,
) -> RunResult:
    others = [_few(load_pairs(name)) for name in TRAITS if name != pairs.trait.name]
    attr = kept(
        folder and folder / "attribution.safetensors",
        AttributionMap.load,
        lambda: attribute(model, pairs, call["estimator"], controls=others, progress=progress),
    )
    written = folder and folder / FOLDER.parts
    if "drift" in call:
        road = by_choice(model, pairs, attr, given, sampling, call["drift"], call["replies"], written, progress)
    else:
        road = by_attribution(model, pairs, attr, given, sampling, call["strength"], call["method"], written, progress)
    file = folder and folder / FOLDER.parts / "arms.jsonl"
    samples = mark_coherent(sample_conditions(model, pairs.trait, prompts, road.conditions, sampling, file, progress))
    judges = [m for m in measures_of(pairs.trait) if m.name != "markers"]
    samples = measured(samples, prompts, judges)
    summary = summarise(samples)
    for measure in judges:
        summary[measure.name] = summary.arm.map(samples.groupby("arm")[measure.name].mean())
    result = RunResult(
        trait=pairs.trait.name,
        description=pairs.trait.description,
        model=str(model.cfg.model_name),
        attribution=attr,
        vector=road.vector,
        intervention=road.intervention,
        prompts=tuple((f"p{i:03d}", m) for i, m in enumerate(prompts)),
        samples=samples,
        summary=summary,
        dose=road.dose.curve,
        settings={
            **road.settings,
            "pairs": _split_of(pairs),
            **({"caution": attr.caution} if attr.caution else {}),
            "replies": f"{len(prompts)} prompts × {len(given)} seeds {tuple(c.seed for c in given)} per arm",
            "sampling": sampling.describe(),
            "layer ranked last": str(attr.choose_layer().last_ranked),
            "star_tl": __version__,
        },
    )
    if folder:
        road.vector.save(folder / "vector.safetensors")
        _finish(folder, result, road.samples | {"arms": samples})
    return result


def _few(pairs: Pairs) -> Pairs:
    """Of another trait, whose vector is a control and no result."""
    return replace(pairs, pairs=pairs.extraction.pairs[:CONTROL_PAIRS])


def _split_of(pairs: Pairs) -> str:
    held = sum(pair.split == "heldout" for pair in pairs)
    if not held or held == len(pairs):
        return f"{len(pairs)}; {TESTED_ON_ITS_OWN}"
    return f"{len(pairs.extraction)} for extraction, {held} held out"


def _finish(folder: Path, result: RunResult, parts: dict[str, pd.DataFrame]) -> None:
    rows = [{"part": part, **row} for part, frame in parts.items() for row in frame.to_dict(orient="records")]
    with replacing(folder / "samples.jsonl") as partial:
        text = "".join(json.dumps(row, ensure_ascii=False, default=float) + "\n" for row in rows)
        partial.write_text(text, encoding="utf-8")
    with replacing(folder / "scores.csv") as partial:
        result.summary.to_csv(partial, index=False)
    write_report(folder / "report.html", result)
