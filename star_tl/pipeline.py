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
from tqdm.auto import tqdm

from star_tl.attribution import attribute
from star_tl.data.chat import Prompt, as_prompts, with_instruction
from star_tl.data.pairs import Pairs
from star_tl.errors import StarError
from star_tl.evaluation.result import RunResult
from star_tl.evaluation.scores import REFERENCE, mark_coherent, score, summarise
from star_tl.evaluation.strength import DRIFT_LIMIT, STRENGTHS, StrengthChoice, choose_strength
from star_tl.generation.sampling import Sampling, generate, render_prompts
from star_tl.models.backend import Model
from star_tl.vectors import SteeringVector, extract_vector
from star_tl.version import __version__
from star_tl.view.report import write_report

ARMS = (REFERENCE, "steered", "random", "last_ranked_layer", "reply_mean_everywhere", "primed")
EVERYWHERE = tuple(x / 4 for x in STRENGTHS)  # added at every token, a vector does more, and more harm
FILES = ("vector.safetensors", "attribution.safetensors", "samples.jsonl", "scores.csv", "report.html")


@dataclass(frozen=True)
class Arm:
    """One way to write replies: a vector with strength and positions, or an instruction, or neither."""

    name: str
    vector: SteeringVector | None = None
    strength: float = 0.0
    positions: str | None = None
    instruction: str | None = None


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
        probe.write_bytes(bytes(4096))  # an empty file can be made on a full disk
        probe.unlink()
        for path in held:
            path.unlink()
    except OSError as error:
        raise StarError(f"{folder} cannot be written to ({error.strerror}): name another output folder.") from None
    return folder


def run(
    model: Model,
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
        strength: 1 is the natural difference. Default: what :func:`star_tl.choose_strength` chooses on the
            contexts of the extraction pairs. The mean reply difference gets a strength of its own in the same way.
        seeds: one reply per prompt, arm and seed.
        max_new_tokens, temperature, top_p, batch_size: as in :func:`star_tl.generate`.
        overwrite: replace an earlier run in ``out``.
        progress: show progress bars.

    Raises:
        StarError: bad arguments, or an output folder that holds another run.
    """
    if not seeds:
        raise StarError("There are no seeds: give at least one.")
    chosen = as_prompts(prompts if prompts is not None else pairs.heldout.prompts)
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
    sampling = Sampling(**options)
    samples_file = folder / "samples.jsonl" if folder else None

    def write(todo: list[tuple[Arm, int]], questions: Sequence[Prompt], name: str) -> pd.DataFrame:
        frames = []
        for arm, seed in tqdm(todo, desc=name, unit="batch", disable=not progress, delay=1):
            frames.append(sample_arm(model, pairs, questions, arm, seed, options))
            if samples_file:
                _append(samples_file, frames[-1], name)
        return pd.concat(frames, ignore_index=True)

    def choose(of: SteeringVector, strengths: Sequence[float], positions: str | None) -> StrengthChoice:
        practice = pairs.extraction.prompts
        found = choose_strength(
            model, of, pairs.trait, practice, strengths, positions, seed=seeds[0], sampling=sampling, progress=progress
        )
        if samples_file:
            _append(samples_file, found.samples, "dose-response" if of is vector else "dose-response everywhere")
        return found

    doses, flooded = choose(vector, STRENGTHS, None), choose(everywhere, EVERYWHERE, "all")
    given = strength is not None
    strength = strength if strength is not None else doses.strength

    last = attr.choose_layer().last_ranked
    arms = [
        Arm(REFERENCE),
        Arm("steered", vector, strength),
        Arm("random", vector.random_like(), strength),
        Arm("last_ranked_layer", vector.at_layer(last), strength),
        Arm("reply_mean_everywhere", everywhere, flooded.strength, "all"),
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
        dose=doses.curve,
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
            "reply mean everywhere": f"strength {flooded.strength:g}, chosen in the same way",
            "star_tl": __version__,
        },
    )
    if folder:
        _finish(folder, result)
    return result


def sample_arm(
    model: Model,
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
