"""Compare loci and strengths: a grid of ways to steer, sampled as a few large batches.

Rows of one batch carry different vectors, places and strengths, so that the number of passes depends on the
number of replies and not on how many ways to steer there are. Samples are written to disk as they come; a
sweep that was stopped goes on where it was.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import NoneType
from typing import TYPE_CHECKING, Any

import pandas as pd
from typing_extensions import Unpack

from star_tl.data.chat import Prompt, distinct_prompts, resolve_span
from star_tl.data.pairs import Pairs
from star_tl.errors import StarError, check_flag, check_kind, check_number, listed
from star_tl.evaluation.ray_workers import RayWorkers
from star_tl.evaluation.samples import sample_conditions
from star_tl.evaluation.scores import mark_coherent
from star_tl.files import check_writable
from star_tl.generation.sampling import render_prompts
from star_tl.generation.settings import Sampling, SamplingOptions, settled
from star_tl.locus import Locus, hook_name
from star_tl.models.backend import MODELS, Model, tokenizer_of
from star_tl.steering.condition import UNSTEERED, Condition
from star_tl.vectors import check_extraction, extract_vectors

if TYPE_CHECKING:
    import plotly.graph_objects as go


@dataclass(frozen=True)
class Comparison:
    """Samples of a grid of ways to steer: a row per prompt, locus, schedule, strength and seed.

    Columns beside the scores of :func:`star_tl.score`: ``prompt_id``, ``arm`` (``unsteered`` or ``steered``),
    ``locus``, ``layer``, ``positions`` (the schedule), ``strength``, ``seed``, ``coherent``.
    """

    trait: str
    frame: pd.DataFrame

    def to_frame(self) -> pd.DataFrame:
        """The samples."""
        return self.frame

    def summary(self) -> pd.DataFrame:
        """A row per way to steer: rate of coherent replies with the trait, and the drift it cost."""
        frame = self.frame.assign(trait_rate=self.frame.shows & self.frame.coherent)
        grouped = frame.groupby(["arm", "locus", "layer", "positions", "strength"], sort=False)
        columns = {"trait_rate": "trait_rate", "coherent_rate": "coherent", "drift": "drift"}
        table = grouped.agg(**{k: (v, "mean") for k, v in columns.items()}, n=("text", "size")).reset_index()
        unsteered = table.loc[table.arm == UNSTEERED, "trait_rate"].iloc[0]
        return table.assign(difference=table.trait_rate - unsteered)

    def best(self, limit: float) -> pd.Series:
        """The way to steer with the highest trait rate at a drift of at most ``limit`` nats per token.

        Raises:
            StarError: none keeps the limit.
        """
        check_number(limit, "limit", lambda x: x == x, "give the most drift in nats per token")
        steered = self.summary().query("arm != @UNSTEERED and drift <= @limit")
        if steered.empty:
            raise StarError(f"No way to steer stays within {limit:g} nat drift: try lower strengths.")
        return steered.sort_values(["trait_rate", "drift"], ascending=[False, True]).iloc[0]

    def plot(self, **options: Any) -> go.Figure:
        """Heatmap of the trait rate over loci and strengths."""
        from star_tl.view.plots import plot_comparison

        return plot_comparison(self, **options)

    def _repr_html_(self) -> str:
        from star_tl.view.cards import table_card

        table = self.summary().drop(columns=["arm", "layer"])
        shown = {"trait_rate": "{:.0%}", "coherent_rate": "{:.0%}", "difference": "{:+.0%}", "drift": "{:.3f}"}
        return table_card(repr(self), table, shown)

    def __repr__(self) -> str:
        ways = len(self.summary()) - 1
        return f"Comparison({self.trait}: {ways} ways to steer, {len(self.frame)} replies)"


def compare(
    model: Model,
    pairs: Pairs,
    prompts: Sequence[Prompt] | None = None,
    loci: Sequence[Locus] | None = None,
    strengths: Sequence[float] = (1.0, 2.0, 3.0),
    positions: Sequence[str] = ("locus",),
    seeds: Sequence[int] = (0,),
    method: str = "located",
    *,
    sampling: Sampling | None = None,
    out: str | Path | None = None,
    progress: bool = True,
    workers: RayWorkers | None = None,
    **options: Unpack[SamplingOptions],
) -> Comparison:
    """Sample every combination of locus, strength, schedule and seed on every prompt, beside unsteered replies.

    Args:
        model: from :func:`star_tl.load_model`.
        pairs: where the vectors are extracted from (its extraction split), one at each locus.
        prompts: what to reply to; default the held-out contexts of ``pairs``. The same one twice counts once.
        loci: where to extract and inject; default ``resid_post`` of every layer at the last prompt token.
        strengths: 1 is the natural difference; negative ones turn the trait down.
        positions: schedules, see :func:`star_tl.steering.positions.schedule`, or spans of the chat, see
            :func:`star_tl.data.chat.span_positions`.
        seeds: one reply per combination and seed.
        method: how vectors are extracted, see :func:`star_tl.extract_vector`.
        sampling: how to sample, a :class:`star_tl.Sampling`, or its fields by name.
        out: a JSONL file of samples; one that an equal call began is completed.
        progress: show progress bars.
        workers: replicas of the model on other machines, which write and score in its place: the same table.

    Raises:
        StarError: bad arguments, or ``out`` cannot be written to or holds the samples of another sweep.
    """
    check_kind(model, MODELS, "a model that load_model returns")
    check_kind(pairs, Pairs, "pairs that load_pairs returns")
    check_kind(workers, (RayWorkers, NoneType), "RayWorkers")
    check_flag(progress, "progress")
    settings = settled(sampling, options)
    chosen = distinct_prompts(prompts if prompts is not None else pairs.heldout.prompts)
    everywhere = [Locus(hook_name("resid_post", i)) for i in range(model.cfg.n_layers)]
    places = listed(loci if loci is not None else everywhere, "loci")
    strengths, positions, seeds = listed(strengths, "strengths"), listed(positions, "positions"), listed(seeds, "seeds")
    if out is not None:
        check_writable(out)
    # All is checked before vectors are extracted, which takes minutes on a large model.
    ways = [
        Condition("steered", strength=strength, positions=schedule, seed=seed)
        for schedule in positions
        for strength in strengths
        for seed in seeds
    ]
    render_prompts(model, chosen, settings.max_new_tokens)
    for chat in chosen:
        for schedule in positions:
            resolve_span(tokenizer_of(model), chat, schedule)
    check_extraction(model, pairs, places, method)
    vectors = extract_vectors(model, pairs, places, method)
    conditions = [Condition(seed=seed) for seed in seeds]
    conditions += [replace(way, vector=vector) for vector in vectors for way in ways]
    samples = sample_conditions(model, pairs.trait, chosen, conditions, settings, out, progress, workers)
    return Comparison(pairs.trait.name, mark_coherent(samples))
