"""The whole road: pairs → attribution → locus → vector → hooks → samples → scores → report."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
from statsmodels.stats.proportion import proportion_confint
from tqdm.auto import tqdm
from transformer_lens import HookedTransformer

from star_tl import __version__
from star_tl.attribution import AttributionMap, attribute
from star_tl.chat import Message, Prompt, as_messages, with_instruction
from star_tl.errors import StarError
from star_tl.pairs import Pairs
from star_tl.report import write_report
from star_tl.sampling import generate, render_prompts
from star_tl.scores import REFERENCE, mark_coherent, score, summarise
from star_tl.vectors import SteeringVector, extract_vector

ARMS = (REFERENCE, "steered", "random", "last_ranked_layer", "reply_mean_everywhere", "primed")
DOSES = (0.5, 1.0, 2.0, 3.0, 4.0)
DOSES_EVERYWHERE = (0.25, 0.5, 1.0, 2.0)  # added at every token, a vector does more, and more harm
DRIFT_LIMIT = 0.2  # nats per token
ENOUGH = 0.95  # of the best rate: a higher strength costs drift and brings next to nothing
FILES = ("vector.safetensors", "attribution.safetensors", "samples.jsonl", "scores.csv", "report.html")


@dataclass(frozen=True)
class Arm:
    """One way to write replies: a vector with strength and positions, or an instruction, or neither."""

    name: str
    vector: SteeringVector | None = None
    strength: float = 0.0
    positions: str | None = None
    instruction: str | None = None


@dataclass(frozen=True)
class RunResult:
    """All that one run found and wrote."""

    trait: str
    description: str
    model: str
    attribution: AttributionMap
    vector: SteeringVector
    prompts: tuple[tuple[str, tuple[Message, ...]], ...]
    samples: pd.DataFrame
    summary: pd.DataFrame
    dose: pd.DataFrame
    settings: dict[str, str]

    def __repr__(self) -> str:
        rate = self.summary.set_index("arm").trait_rate
        return (
            f"RunResult({self.trait} on {self.model}: {self.vector.locus}, coherent replies with the trait "
            f"{rate[REFERENCE]:.0%} → {rate['steered']:.0%})"
        )


def check_folder(out: str | Path, overwrite: bool = False) -> list[Path]:
    """The files of an earlier run in the folder; nothing is written.

    Raises:
        StarError: it holds another run and ``overwrite`` is False, or is a file, or cannot be read.
    """
    folder = Path(out)
    try:
        if folder.exists() and not folder.is_dir():
            raise StarError(f"{folder} is a file: name another output folder.")
        held = [folder / name for name in FILES if (folder / name).exists()]
    except OSError as error:
        raise StarError(f"{folder} cannot be written to ({error.strerror}): name another output folder.") from None
    if held and not overwrite:
        raise StarError(f"{folder} holds another run ({held[0].name}): name another folder or pass --overwrite.")
    return held


def prepare_folder(out: str | Path, overwrite: bool = False) -> Path:
    """The run folder, made where there is none, empty of an earlier run.

    Raises:
        StarError: as :func:`check_folder`, or it cannot be written to.
    """
    folder, held = Path(out), check_folder(out, overwrite)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe = folder / ".writable"
        probe.write_text("")
        probe.unlink()
        for path in held:
            path.unlink()
    except OSError as error:
        raise StarError(f"{folder} cannot be written to ({error.strerror}): name another output folder.") from None
    return folder


def run(
    model: HookedTransformer,
    pairs: Pairs,
    prompts: Sequence[Prompt] | None = None,
    out: str | Path | None = None,
    strength: float | None = None,
    seeds: Sequence[int] = (0,),
    max_new_tokens: int = 60,
    temperature: float = 0.8,
    top_p: float = 1.0,
    batch_size: int = 64,
    overwrite: bool = False,
    progress: bool = True,
) -> RunResult:
    """Walk the whole road and compare steering with its baselines.

    Arms: unsteered; the located vector at its locus; a random vector of the same norm there; the same
    vector at the layer that attribution ranks last; the mean reply difference added everywhere at the chosen
    layer; and priming by the trait's positive instruction.

    Args:
        model: from :func:`star_tl.load_model`.
        pairs: from :func:`star_tl.load_pairs`.
        prompts: what to reply to; default the held-out contexts of ``pairs``.
        out: folder for the vector, the attribution map, samples, scores and ``report.html``.
        strength: 1 is the natural difference. Default: the least of DOSES that reaches nearly the highest
            trait rate at a drift of at most DRIFT_LIMIT, on the contexts of the extraction pairs. The
            mean reply difference gets a strength of its own in the same way.
        seeds: one reply per prompt, arm and seed.
        max_new_tokens, temperature, top_p, batch_size: as in :func:`star_tl.generate`.
        overwrite: replace an earlier run in ``out``.
        progress: show progress bars.

    Raises:
        StarError: bad arguments, or an output folder that holds another run.
    """
    if not seeds:
        raise StarError("There are no seeds: give at least one.")
    chosen = [as_messages(p) for p in (prompts if prompts is not None else pairs.heldout.prompts)]
    if not chosen:
        raise StarError("There are no prompts: give at least one.")
    render_prompts(model, chosen, max_new_tokens)
    folder = prepare_folder(out, overwrite) if out is not None else None

    attr = attribute(model, pairs, progress=progress)
    locus = attr.top_locus()
    vector = extract_vector(model, pairs, locus)
    everywhere = extract_vector(model, pairs, locus, method="reply_mean")
    if folder:
        attr.save(folder / "attribution.safetensors")
        vector.save(folder / "vector.safetensors")

    options = {"max_new_tokens": max_new_tokens, "temperature": temperature, "top_p": top_p, "batch_size": batch_size}
    samples_file = folder / "samples.jsonl" if folder else None

    def write(todo: list[tuple[Arm, int]], questions: Sequence[Prompt], name: str) -> pd.DataFrame:
        frames = []
        for arm, seed in tqdm(todo, desc=name, unit="batch", disable=not progress, delay=1):
            frames.append(sample_arm(model, pairs, questions, arm, seed, options))
            if samples_file:
                _append(samples_file, frames[-1], name)
        return pd.concat(frames, ignore_index=True)

    doses = [Arm(REFERENCE), *(Arm("steered", vector, dose) for dose in DOSES)]
    practice = pairs.extraction.prompts
    dosed = write([(a, seeds[0]) for a in doses], practice, "dose-response")
    dose = dose_table(mark_coherent(dosed))
    given = strength is not None
    strength = strength if strength is not None else best_dose(dose)
    flooded = [(Arm("everywhere", everywhere, d, "all"), seeds[0]) for d in DOSES_EVERYWHERE]
    flood = write(flooded, practice, "dose-response everywhere")
    dosed = pd.concat([dosed.loc[dosed.arm == REFERENCE], flood], ignore_index=True)
    strength_everywhere = best_dose(dose_table(mark_coherent(dosed)))

    last = attr.choose_layer().last_ranked
    arms = [
        Arm(REFERENCE),
        Arm("steered", vector, strength),
        Arm("random", vector.random_like(), strength),
        Arm("last_ranked_layer", vector.at_layer(last), strength),
        Arm("reply_mean_everywhere", everywhere, strength_everywhere, "all"),
        Arm("primed", instruction=pairs.trait.positive_instruction),
    ]
    samples = mark_coherent(write([(a, s) for a in arms for s in seeds], chosen, "arms"))
    summary = summarise(samples)

    result = RunResult(
        trait=pairs.trait.name,
        description=pairs.trait.description,
        model=str(model.cfg.model_name),
        attribution=attr,
        vector=vector,
        prompts=tuple((f"p{i:03d}", m) for i, m in enumerate(chosen)),
        samples=samples,
        summary=summary,
        dose=dose,
        settings={
            "locus": str(locus),
            "strength": f"{strength:g} × the natural difference, {strength * vector.fraction:.0%} of the residual, "
            + (
                "as given" if given else f"chosen on the extraction contexts within {DRIFT_LIMIT:g} nat drift per token"
            ),
            "pairs": f"{len(pairs.extraction)} for extraction, {len(pairs.heldout)} held out",
            "replies": f"{len(chosen)} prompts × {len(seeds)} seeds {tuple(seeds)} per arm",
            "sampling": f"temperature {temperature:g}, top-p {top_p:g}, at most {max_new_tokens} tokens",
            "layer ranked last": str(last),
            "reply mean everywhere": f"strength {strength_everywhere:g}, chosen in the same way",
            "star_tl": __version__,
        },
    )
    if folder:
        _finish(folder, result)
    return result


def sample_arm(
    model: HookedTransformer,
    pairs: Pairs,
    prompts: Sequence[Prompt],
    arm: Arm,
    seed: int,
    options: dict[str, Any],
) -> pd.DataFrame:
    """Sample and score one arm with one seed: a row per prompt."""
    hooks = arm.vector.hooks(arm.strength, arm.positions) if arm.vector is not None else []
    asked = [with_instruction(p, arm.instruction) for p in prompts]
    replies = generate(model, asked, hooks, seed=seed, progress=False, **options)
    frame = score(
        model,
        pairs.trait,
        prompts,
        replies,
        vector=arm.vector,
        strength=arm.strength,
        positions=arm.positions,
        steered_prompts=asked if arm.instruction else None,
    )
    frame.insert(0, "prompt_id", [f"p{i:03d}" for i in range(len(prompts))])
    frame.insert(1, "arm", arm.name)
    frame.insert(2, "strength", arm.strength)
    frame.insert(3, "seed", seed)
    return frame


def dose_table(samples: pd.DataFrame) -> pd.DataFrame:
    """A row per strength: rate of coherent replies with the trait (95 % Wilson interval), coherence and drift."""
    hit = samples.assign(trait_rate=samples.shows & samples.coherent)
    grouped = hit.groupby("strength")
    low, high = proportion_confint(grouped.trait_rate.sum(), grouped.size(), method="wilson")
    return pd.DataFrame(
        {
            "trait_rate": grouped.trait_rate.mean(),
            "low_rate": low,
            "high_rate": high,
            "coherent_rate": grouped.coherent.mean(),
            "drift": grouped.drift.mean(),
            "n": grouped.size(),
        }
    ).reset_index()


def best_dose(dose: pd.DataFrame, limit: float = DRIFT_LIMIT) -> float:
    """The least strength whose trait rate is nearly (ENOUGH) the highest that any within ``limit`` of drift reaches.

    The least of all strengths where none is within the limit.
    """
    rows = [row for row in dose.sort_values("strength").to_dict(orient="records") if row["strength"] > 0]
    within = [row for row in rows if row["drift"] <= limit] or rows[:1]
    best = max(row["trait_rate"] for row in within)
    return float(next(row for row in within if row["trait_rate"] >= ENOUGH * best)["strength"])


def _append(path: Path, frame: pd.DataFrame, part: str) -> None:
    with path.open("a", encoding="utf-8") as file:
        for record in frame.to_dict(orient="records"):
            file.write(json.dumps({"part": part, **record}, ensure_ascii=False, default=float) + "\n")
        file.flush()
        os.fsync(file.fileno())


def _finish(folder: Path, result: RunResult) -> None:
    def replace(name: str, write: Callable[[Path], object]) -> None:
        partial = folder / f".{name}.part"
        write(partial)
        shutil.move(partial, folder / name)

    replace("scores.csv", lambda p: result.summary.to_csv(p, index=False))
    replace("report.html", lambda p: write_report(p, result))
