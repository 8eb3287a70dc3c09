"""The whole road: pairs → attribution → locus → vector → hooks → samples → scores → report."""

from __future__ import annotations

import hashlib
import json
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import pandas as pd
from typing_extensions import Unpack

from star_tl.attribution import ESTIMATORS, AttributionMap, attribute
from star_tl.data.chat import Message, Prompt, as_prompts, resolve_span
from star_tl.data.pairs import TRAITS, Pairs, load_pairs
from star_tl.errors import StarError, check_name
from star_tl.evaluation.result import RunResult
from star_tl.evaluation.samples import describe, sample_conditions
from star_tl.evaluation.scores import mark_coherent, summarise
from star_tl.evaluation.strength import DRIFT_LIMIT, STRENGTHS, StrengthChoice, choose_strength
from star_tl.files import check_writable, locked, output_folder, replacing, unwritable
from star_tl.generation.sampling import render_prompts
from star_tl.generation.settings import Sampling, SamplingOptions, settled
from star_tl.models.backend import Model
from star_tl.steering.condition import UNSTEERED, Condition
from star_tl.vectors import SteeringVector, check_extraction, extract_vector
from star_tl.version import __version__
from star_tl.view.report import write_report

Saved = TypeVar("Saved", AttributionMap, SteeringVector)
TESTED_ON_ITS_OWN = "no pair is held out, so that steering is tested on the contexts that the vector was made from"
ARMS = (UNSTEERED, "steered", "random", "last_ranked_layer", "reply_mean_everywhere", "primed")
RANDOM = 10  # random vectors, a reply to each prompt: one alone may happen to lie well
EVERYWHERE = tuple(x / 4 for x in STRENGTHS)  # added at every token, a vector does more, and more harm
CALL = "run.json"
FILES = ("vector.safetensors", "attribution.safetensors", "samples.jsonl", "scores.csv", "report.html")
REPLIES = "replies"  # the folder of the samples as they come, from which a run that was stopped goes on


def held_by(folder: Path) -> list[Path]:
    """What an earlier run left in the folder."""
    named = [folder / name for name in (CALL, *FILES) if (folder / name).exists()]
    return named + sorted((folder / REPLIES).glob("*/*.jsonl")) + sorted((folder / REPLIES).glob("*.jsonl"))


def check_folder(out: str | Path, overwrite: bool = False) -> Path:
    """The run folder; nothing is written.

    Raises:
        StarError: it is a file, or cannot be read or written to, or holds files of a run that does not say which it was
            and ``overwrite`` is False.
    """
    folder = output_folder(out)
    try:
        held = held_by(folder)
    except OSError as error:
        raise unwritable(folder, error) from None
    if held and not overwrite and not (folder / CALL).exists():
        raise StarError(f"{folder} holds another run: name another folder, or overwrite it (--overwrite).")
    check_writable(folder / CALL)
    return folder


def run(
    model: Model,
    pairs: Pairs,
    prompts: Sequence[Prompt] | None = None,
    out: str | Path | None = None,
    *,
    strength: float | None = None,
    seeds: Sequence[int] = (0,),
    estimator: str = "atp",
    method: str = "located",
    positions: str | Sequence[int] | None = None,
    sampling: Sampling | None = None,
    overwrite: bool = False,
    progress: bool = True,
    **options: Unpack[SamplingOptions],
) -> RunResult:
    """Walk the whole road and compare steering with its baselines.

    Arms: unsteered; the located vector at its locus; ten random vectors of the same norm there; the same
    vector at the layer that attribution ranks last; the mean reply difference added everywhere at the chosen
    layer; and priming by the trait's positive instruction.

    A run that was stopped goes on where it was when the same call is made again.

    Args:
        model: from :func:`star_tl.load_model`.
        pairs: from :func:`star_tl.load_pairs`.
        prompts: what to reply to; default the held-out contexts of ``pairs``.
        out: folder for the vector, the attribution map, samples, scores and ``report.html``.
        strength: 1 is the natural difference. Default: what :func:`star_tl.choose_strength` chooses on the
            contexts of the extraction pairs. The mean reply difference gets a strength of its own in the same way.
        seeds: one reply per prompt, arm and seed.
        estimator: ``method`` of :func:`star_tl.attribute`.
        method: of :func:`star_tl.extract_vector`.
        positions: where the vector is added, see :class:`star_tl.Condition`; default at its locus.
        sampling: how to sample, a :class:`star_tl.Sampling`, or its fields by name.
        overwrite: replace what another run left in ``out``.
        progress: show progress bars.

    Raises:
        StarError: bad arguments, or an output folder that holds another run.
    """
    settings = settled(sampling, options)
    if isinstance(seeds, str) or not len(seeds):
        raise StarError("There are no seeds: give at least one.")
    if len(set(seeds)) < len(seeds):
        raise StarError(f"seeds is {tuple(seeds)}: each once, for a second time is no second sample.")
    chosen = as_prompts(prompts if prompts is not None else pairs.heldout.prompts)
    arms = [Condition(positions=positions, strength=1.0 if strength is None else strength, seed=s) for s in seeds]
    ids = render_prompts(model, chosen, settings.max_new_tokens)
    practice, primed = pairs.extraction.prompts, Condition(instruction=pairs.trait.positive_instruction)
    for prompts_of_an_arm in (practice, primed.prompted(chosen)):
        render_prompts(model, prompts_of_an_arm, settings.max_new_tokens)
    for chat in (*chosen, *practice):
        resolve_span(model.tokenizer, chat, positions)
    check_name(estimator, ESTIMATORS, "estimator")
    if not ESTIMATORS[estimator].prices_layers:
        able = " or ".join(repr(e.key) for e in ESTIMATORS.values() if e.prices_layers)
        raise StarError(f"The estimator {estimator!r} has no gradients to choose a layer by: use {able}.")
    check_extraction(model, pairs, (), method)
    if prompts is None and not any(pair.split == "heldout" for pair in pairs):
        warnings.warn(f"{pairs!r}: {TESTED_ON_ITS_OWN}; give prompts of your own.", stacklevel=2)
    call = describe(model, [ids], arms, settings) | {
        "pairs": hashlib.sha256(repr(pairs).encode() + repr(pairs.pairs).encode()).hexdigest()[:16],
        "strength": strength,
        "estimator": estimator,
        "method": method,
        "star_tl": __version__,
    }
    with _folder(out, call, overwrite) as folder:
        return _walk(model, pairs, chosen, folder, call, arms, settings, progress)


def _walk(
    model: Model,
    pairs: Pairs,
    prompts: Sequence[tuple[Message, ...]],
    folder: Path | None,
    call: dict[str, Any],
    given: Sequence[Condition],
    sampling: Sampling,
    progress: bool,
) -> RunResult:
    seeds, positions, strength = [c.seed for c in given], given[0].positions, call["strength"]
    others = [load_pairs(name) for name in TRAITS if name != pairs.trait.name]
    attr = _kept(
        folder and folder / "attribution.safetensors",
        AttributionMap.load,
        lambda: attribute(model, pairs, call["estimator"], controls=others, progress=progress),
    )
    locus = attr.top_locus()
    vector = _kept(
        folder and folder / "vector.safetensors",
        lambda path: SteeringVector.load(path, model),
        lambda: extract_vector(model, pairs, locus, method=call["method"]),
    )
    everywhere = extract_vector(model, pairs, locus, method="reply_mean")

    def choose(of: SteeringVector, strengths: Sequence[float], at: Any, name: str) -> StrengthChoice:
        practice, out = pairs.extraction.prompts, folder and folder / REPLIES / name
        return choose_strength(
            model,
            of,
            pairs.trait,
            practice,
            strengths,
            at,
            seed=seeds[0],
            sampling=sampling,
            out=out,
            progress=progress,
        )

    doses = choose(vector, STRENGTHS, positions, "strength")
    flooded = choose(everywhere, EVERYWHERE, "all", "strength-everywhere")
    dose = doses.strength if strength is None else float(strength)
    last = attr.choose_layer().last_ranked

    def each(*ways: Condition) -> list[Condition]:
        return [replace(way, seed=seed) for way in ways for seed in seeds]

    conditions = [
        *each(Condition(), Condition("steered", vector, dose, positions)),
        *(
            Condition("random", vector.random_like(k), dose, positions, seed=seeds[k % len(seeds)])
            for k in range(RANDOM)
        ),
        *each(
            Condition("last_ranked_layer", vector.at_layer(last), dose, positions),
            Condition("reply_mean_everywhere", everywhere, flooded.strength, "all"),
            Condition("primed", instruction=pairs.trait.positive_instruction),
        ),
    ]
    file = folder and folder / REPLIES / "arms.jsonl"
    samples = mark_coherent(sample_conditions(model, pairs.trait, prompts, conditions, sampling, file, progress))
    result = RunResult(
        trait=pairs.trait.name,
        description=pairs.trait.description,
        model=str(model.cfg.model_name),
        attribution=attr,
        vector=vector,
        prompts=tuple((f"p{i:03d}", m) for i, m in enumerate(prompts)),
        samples=samples,
        summary=summarise(samples),
        dose=doses.curve,
        settings={
            "locus": str(locus),
            "strength": f"{dose:g} × the natural difference, {dose * vector.fraction:.0%} of the residual, "
            + (
                f"chosen on the extraction contexts within {DRIFT_LIMIT:g} nat drift per token"
                if strength is None
                else "as given"
            ),
            "pairs": _split_of(pairs),
            **({"caution": attr.caution} if attr.caution else {}),
            "replies": f"{len(prompts)} prompts × {len(seeds)} seeds {tuple(seeds)} per arm",
            "sampling": f"temperature {sampling.temperature:g}, top-p {sampling.top_p:g}, at most "
            f"{sampling.max_new_tokens} tokens",
            "layer ranked last": str(last),
            "reply mean everywhere": f"strength {flooded.strength:g}, chosen in the same way",
            "star_tl": __version__,
        },
    )
    if folder:
        parts = {"strength": doses.samples, "strength everywhere": flooded.samples, "arms": samples}
        _finish(folder, result, parts)
    return result


def _split_of(pairs: Pairs) -> str:
    held = sum(pair.split == "heldout" for pair in pairs)
    if not held or held == len(pairs):
        return f"{len(pairs)}; {TESTED_ON_ITS_OWN}"
    return f"{len(pairs.extraction)} for extraction, {held} held out"


def _kept(path: Path | None, load: Callable[[Path], Saved], make: Callable[[], Saved]) -> Saved:
    """What the file holds, or what is made and saved there now."""
    if path is not None and path.exists():
        return load(path)
    made = make()
    if path is not None:
        made.save(path)
    return made


@contextmanager
def _folder(out: str | Path | None, call: dict[str, Any], overwrite: bool) -> Iterator[Path | None]:
    """The run folder, held by this process, with this call's files or none."""
    if out is None:
        yield None
        return
    folder = check_folder(out, overwrite)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise unwritable(folder, error) from None
    with locked(folder / CALL):
        text, held = json.dumps(call, indent=1, ensure_ascii=False) + "\n", held_by(folder)
        mine = (folder / CALL).exists() and (folder / CALL).read_text(encoding="utf-8", errors="replace") == text
        if held and (overwrite or not mine):
            if not overwrite:
                raise StarError(f"{folder} holds another run: name another folder, or overwrite it (--overwrite).")
            try:
                for path in reversed(held):  # the call last: until then the folder is another run's
                    path.unlink()
            except OSError as error:
                raise unwritable(folder, error) from None
        with replacing(folder / CALL) as partial:
            partial.write_text(text, encoding="utf-8")
        yield folder


def _finish(folder: Path, result: RunResult, parts: dict[str, pd.DataFrame]) -> None:
    rows = [{"part": part, **row} for part, frame in parts.items() for row in frame.to_dict(orient="records")]
    with replacing(folder / "samples.jsonl") as partial:
        text = "".join(json.dumps(row, ensure_ascii=False, default=float) + "\n" for row in rows)
        partial.write_text(text, encoding="utf-8")
    with replacing(folder / "scores.csv") as partial:
        result.summary.to_csv(partial, index=False)
    write_report(folder / "report.html", result)
