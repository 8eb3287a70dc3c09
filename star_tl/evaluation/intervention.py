"""Choose the intervention: what to add, where, at which tokens and how strongly, together.

Attribution proposes, sampling disposes. Candidates of every source, layer and stretch of tokens are ranked by what
outcome attribution says 0.1 nats of drift buy of the reward; the best few and the two classical ones are brought to
the same drift, write real replies to the extraction contexts, and are halved until one is left (successive halving,
Jamieson & Talwalkar 2016, arXiv 1502.07943).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import NoneType
from typing import TYPE_CHECKING, Any

import pandas as pd
from scipy import stats
from torch import Tensor

from star_tl.attribution import AttributionMap, attribute
from star_tl.attribution.choose import GAIN_DRIFT
from star_tl.attribution.outcome import Direction, Estimate, OutcomeMap, Reward, attribute_outcome
from star_tl.attribution.outcome.sample import name_of, rewards_of
from star_tl.data.chat import Prompt, distinct_prompts
from star_tl.data.pairs import Pairs
from star_tl.errors import StarError, check_flag, check_kind, check_number, check_whole, quoted
from star_tl.evaluation.drift import at_drift
from star_tl.evaluation.measures import Measure, commonest_opening, markers, measured, reward_of, unseen_by
from star_tl.evaluation.ray_workers import RayWorkers
from star_tl.evaluation.samples import sample_conditions
from star_tl.evaluation.scores import mark_coherent
from star_tl.files import kept, output_folder
from star_tl.generation.settings import Sampling
from star_tl.locus import Locus, hook_name
from star_tl.models.backend import MODELS, Model
from star_tl.models.load import fingerprint
from star_tl.stats import changes, compare_paired
from star_tl.steering.condition import UNSTEERED, Condition
from star_tl.vectors import SteeringVector, extract_vectors
from star_tl.vectors.outcome import vector_along

if TYPE_CHECKING:
    import plotly.graph_objects as go

FINALISTS = 8  # that write real replies
APART = 10  # finalists of one source are further apart than this part of the depth
TOO_DEAR = 1.5  # times the drift that was asked for: dearer candidates win only where all are
CALIBRATED_ON = 12  # contexts
LARGEST = 1.0  # times the residual norm: what is larger saturates in the next norm, and never costs what it should
GENERATED = "generated"


@dataclass(frozen=True, eq=False)
class Candidate:
    """A way to steer, and what outcome attribution says that 0.1 nats of drift a token buy of the reward with it.

    ``gain`` is None where the map does not reach: prompt tokens before its window, other hook points.
    """

    source: str
    condition: Condition
    gain: Estimate | None

    @property
    def vector(self) -> SteeringVector:
        return _vector_of(self.condition)

    @property
    def where(self) -> str:
        """The tokens, as a word."""
        return GENERATED if self.condition.positions == GENERATED else ", ".join(map(str, self.vector.locus.positions))


@dataclass(frozen=True, eq=False)
class InterventionChoice:
    """The intervention that did most at equal drift, and how it was found.

    ``condition`` steers as chosen. ``table`` has a row per finalist, best first: ``source``, ``layer``, ``where``,
    ``strength``, ``drift`` (nats a token), ``predicted`` (gain, in units of the reward) and its ``rank`` among all
    candidates, ``reward`` (mean over replies, 0 where incoherent), ``n``, ``rounds``, ``coherent_rate``, ``opening``
    (share of the commonest first three words), and the measures that the reward did not see.
    ``unsteered`` is the same row without steering. ``spearman`` is the rank correlation of predicted and realized
    reward over the finalists of the first round. ``decided_by`` is what put the table in order: the reward, or
    the trait's markers where no finalist raised the reward within the drift and markers differ. ``samples`` are all
    replies.
    """

    condition: Condition
    table: pd.DataFrame
    unsteered: pd.Series
    candidates: tuple[Candidate, ...]
    spearman: float
    reward: str
    decided_by: str
    target: float
    unseen: dict[str, dict[str, float]]
    samples: pd.DataFrame
    attribution: AttributionMap
    outcome: OutcomeMap

    @property
    def vector(self) -> SteeringVector:
        return _vector_of(self.condition)

    @property
    def confirmed(self) -> bool | None:
        """Whether a measure that the reward did not see rose too, its 95 % interval above 0; None without any."""
        return any(row["low"] > 0 for row in self.unseen.values()) if self.unseen else None

    @property
    def earned(self) -> bool:
        """Whether any reply was rewarded, without which replies have chosen nothing."""
        return bool((self.table.reward > 0).any()) or self.decided_by != self.reward

    def describe(self) -> str:
        """What was chosen, and what it brought, in a few plain words."""
        best = self.table.iloc[0]
        words = (
            f"{best.source}, layer {best.layer} @ {best['where']}, strength {best.strength:.3g}: "
            f"reward ({self.reward}) {self.unsteered.reward:.2f} → {best.reward:.2f} at {best.drift:.2f} nat a token "
            f"(ranked {best['rank']:.0f} of {len(self.candidates)})"
        )
        if not self.earned:
            words += "; no reply earned any reward: the place is what attribution foretells"
        if self.decided_by != self.reward:
            named = f"{self.decided_by} {self.unsteered[self.decided_by]:.2f} → {best[self.decided_by]:.2f}"
            words += f"; nothing within the drift raised the reward: chosen by {named}"
        for name, row in self.unseen.items():
            words += (
                f"; {name} (unseen) {row['difference'] / 100:+.2f} [{row['low'] / 100:+.2f}, {row['high'] / 100:+.2f}]"
            )
        return words + ("; gained only by the reward" if self.confirmed is False else "")

    def plot(self, **options: Any) -> go.Figure:
        """Predicted gain beside the reward that real replies got."""
        from star_tl.view.plots import plot_interventions

        return plot_interventions(self, **options)

    def __repr__(self) -> str:
        return f"InterventionChoice({self.describe()})"


def choose_intervention(
    model: Model,
    pairs: Pairs,
    reward: Reward | None = None,
    drift: float = GAIN_DRIFT,
    *,
    attribution: AttributionMap | None = None,
    outcome: OutcomeMap | None = None,
    n: int = 768,
    finalists: int = FINALISTS,
    sampling: Sampling = Sampling(max_new_tokens=40),  # noqa: B008 - frozen
    seed: int = 0,
    out: str | Path | None = None,
    progress: bool = True,
    workers: RayWorkers | None = None,
) -> InterventionChoice:
    """What raises the reward most at a drift, of all sources, layers and stretches of tokens.

    Everything is chosen on the extraction contexts; held-out prompts stay unseen. Where the best raises the reward no
    more than chance does (95 % interval over contexts), the reward has nothing to choose by, and the trait's markers
    decide: a judge of people's sentences may be blind to a model's.

    Args:
        model: from :func:`star_tl.load_model`.
        pairs: contrastive pairs, whose extraction contexts are replied to.
        reward: what is to be raised, see :func:`star_tl.attribute_outcome`; default
            :func:`star_tl.evaluation.measures.reward_of` the trait.
        drift: what the intervention may cost, nats a token; all finalists are brought to it.
        attribution: the pairs' map, where it is known already.
        outcome: the outcome map, where it is known already.
        n: replies that outcome attribution looks at.
        finalists: candidates that write real replies, at least 3.
        sampling: how replies are sampled.
        seed: of the replies.
        out: a folder for the samples, from which an equal call that was stopped goes on.
        progress: show progress bars.
        workers: who write and score the finalists' replies in place of ``model``.

    Raises:
        StarError: bad arguments, a reward that gives no finite number, or maps of another model.
    """
    check_kind(model, MODELS, "a model that load_model returns")
    check_kind(pairs, Pairs, "pairs that load_pairs returns")
    check_kind(attribution, (AttributionMap, NoneType), "a map that attribute returns")
    check_kind(outcome, (OutcomeMap, NoneType), "a map that attribute_outcome returns")
    check_kind(sampling, Sampling, "a Sampling")
    check_kind(workers, (RayWorkers, NoneType), "RayWorkers")
    check_flag(progress, "progress")
    seed = Condition(seed=seed).seed
    remedy = "give what the intervention may cost in nats a token, above 0"
    check_number(drift, "drift", lambda x: math.isfinite(x) and x > 0, remedy)
    check_whole(n, "n")
    check_whole(finalists, "finalists")
    if reward is not None and not callable(reward):
        raise StarError(f"reward is {quoted(reward)}: give a function of a prompt and a reply's text.")
    if out is not None:
        out = output_folder(out)
    if finalists < 3:
        raise StarError(f"finalists is {finalists}: use at least 3, two of them are the classical ways.")
    reward = reward if reward is not None else reward_of(pairs.trait)
    contexts, folder = distinct_prompts(pairs.extraction.prompts), Path(out) if out is not None else None
    if outcome is None:
        outcome = _outcome(model, contexts, reward, n, sampling, seed, folder, progress)
    if attribution is None:
        attribution = attribute(model, pairs, progress=progress)
    found = propose(model, pairs, attribution, outcome)
    chosen = shortlist(found, finalists, outcome, attribution.top_locus())
    started = [replace(c.condition, strength=first_strength(c, outcome, drift)) for c in chosen]
    practice = contexts[:CALIBRATED_ON]
    ready = at_drift(
        model, pairs.trait, started, drift, practice, sampling, out=folder, progress=progress, workers=workers
    )
    alive = {i: replace(c, name=f"{i}") for i, c in enumerate(ready)}
    parts: list[pd.DataFrame] = []
    rounds = dict.fromkeys(alive, 0)
    first: dict[int, float] = {}
    replies, done, wave = 1, 0, 0
    while True:
        seeds = [seed + 1 + done + k for k in range(replies)]
        ways = [Condition(), *alive.values()]
        conditions = [replace(c, seed=s) for c in ways for s in seeds]
        file = folder / f"round-{wave}.jsonl" if folder else None
        parts.append(sample_conditions(model, pairs.trait, contexts, conditions, sampling, file, progress, workers))
        samples = _paid(pd.concat(parts, ignore_index=True), pairs, reward)
        paid, cost = (_means(samples, column) for column in ("paid", "drift"))
        for i in alive:
            rounds[i] += 1
        first = first or {i: paid[f"{i}"] for i in alive}
        dear = {i: not cost[f"{i}"] <= TOO_DEAR * drift for i in rounds}  # what broke has a drift of NaN
        order = sorted(alive, key=lambda i: (dear[i], -paid[f"{i}"]))
        if len(alive) <= 2:
            break
        alive = {i: alive[i] for i in order[: -(-len(alive) // 2)]}
        done, wave = done + replies, wave + 1
        replies = done  # each wave doubles what the survivors have
    measures, decided = unseen_by(reward, pairs.trait), outcome.reward
    samples = measured(samples, contexts, measures)
    shows = markers(pairs.trait).name
    if any(m.name == shows for m in measures) and not _difference(samples, f"{order[0]}", "paid")["low"] > 0:
        hits = _means(samples.assign(hits=samples[shows] * samples.coherent), "hits")
        if len({hits[f"{i}"] for i in rounds if not dear[i]}) > 1:
            decided, order = shows, sorted(rounds, key=lambda i: (dear[i], -hits[f"{i}"], -paid[f"{i}"]))
    ranked = sorted((c for c in found if c.gain), key=lambda c: -c.gain.value if c.gain else 0.0)
    rank = {id(c): k + 1 for k, c in enumerate(ranked)}
    rows = [
        _row(samples, f"{i}", measures)
        | {
            "source": c.source,
            "layer": c.vector.locus.layer,
            "where": c.where,
            "strength": ready[i].strength,
            "predicted": c.gain.value if c.gain else float("nan"),
            "rank": rank.get(id(c), float("nan")),
            "rounds": rounds[i],
            "arm": f"{i}",
        }
        for i, c in enumerate(chosen)
    ]
    table = pd.DataFrame(rows).set_index("arm").loc[_best_first(order, rounds, paid)].reset_index()
    predicted = {i: c.gain.value for i, c in enumerate(chosen) if c.gain}
    foretold, came = list(predicted.values()), [first[i] for i in predicted]
    varied = len(set(foretold)) > 1 and len(set(came)) > 1
    agreement = stats.spearmanr(foretold, came).statistic if varied else math.nan
    winner = order[0]
    return InterventionChoice(
        condition=replace(ready[winner], name="chosen", seed=0),
        table=table,
        unsteered=pd.Series(_row(samples, UNSTEERED, measures)),
        candidates=tuple(found),
        spearman=float(agreement) if len(predicted) > 2 else math.nan,
        reward=outcome.reward,
        decided_by=decided,
        target=drift,
        unseen={m.name: _difference(samples, f"{winner}", m.name) for m in measures if m.name != decided},
        samples=samples,
        attribution=attribution,
        outcome=outcome,
    )


def _outcome(
    model: Model,
    contexts: Sequence[Prompt],
    reward: Reward,
    n: int,
    sampling: Sampling,
    seed: int,
    folder: Path | None,
    progress: bool,
) -> OutcomeMap:
    """At the hook point of all candidates. Kept, for another pass rounds otherwise, and other vectors are another call.

    Raises:
        StarError: the folder holds another call's map.
    """
    file = folder / "outcome.safetensors" if folder else None
    replies, points = folder / "outcome.jsonl" if folder else None, ["resid_post"]

    def make() -> OutcomeMap:
        return attribute_outcome(
            model, contexts, reward, n, sampling, seed, hook_points=points, out=replies, progress=progress
        )

    found = kept(file, OutcomeMap.load, make)
    asked = (fingerprint(model), sampling, seed, n, tuple(contexts), name_of(reward))
    if (found.fingerprint, found.sampling, found.seed, found.budget, found.prompts, found.reward) != asked:
        raise StarError(f"{file} is the map of another call: name another folder.")
    return found


def propose(
    model: Model,
    pairs: Pairs,
    attribution: AttributionMap,
    outcome: OutcomeMap,
    layers: Sequence[int] | None = None,
    natural: Sequence[int] = (),
) -> list[Candidate]:
    """Every source at every layer, at one prompt token and at generated tokens, with its predicted gain.

    Sources: ``located`` (mean difference at the last prompt token), ``reply mean``, ``outcome`` and ``natural outcome``
    (plain and natural gradient). Beside them the vector at attribution's own locus, whatever its positions.

    Args:
        model: the model.
        pairs: for the mean differences.
        attribution: for the classical locus.
        outcome: for the outcome's directions, and for all gains.
        layers: default all.
        natural: layers of the natural gradient; default those where the plain gradient gains most.
    """
    layers = list(range(outcome.n_layers)) if layers is None else list(layers)
    loci = [Locus(hook_name("resid_post", layer), (-1,)) for layer in layers]
    found: list[Candidate] = []

    def add(source: str, vector: SteeringVector, positions: str | None, gain: Estimate | None = None) -> None:
        if gain is None and _within(vector, positions, outcome):
            gain = outcome.gain(vector, positions)
        found.append(Candidate(source, Condition(source, vector, positions=positions), gain))

    for method, source in (("located", "located"), ("reply_mean", "reply mean")):
        for vector in extract_vectors(model, pairs, loci, method):
            add(source, vector, None)
            add(source, vector, GENERATED)
    own = attribution.top_locus()
    if own.positions != (-1,) or own.layer not in layers:
        add("located", extract_vectors(model, pairs, [own])[0], None)
    gains = outcome.gains()
    for positions in (None, GENERATED):
        plain = {layer: _direction(outcome, gains, layer, positions) for layer in layers}
        best = max((d for d in plain.values() if d), key=lambda d: d.gain.value, default=None)
        for layer, direction in plain.items():
            if direction is None:
                continue
            add("outcome", vector_along(direction), positions, direction.gain)
            if layer in natural or (not natural and direction is best):
                steeper = outcome.direction(direction.locus, positions, "natural")
                if natural or math.isfinite(steeper.ridge):  # an infinite one makes it the plain gradient again
                    add("natural outcome", vector_along(steeper), positions, steeper.gain)
    return found


def shortlist(candidates: Sequence[Candidate], count: int, outcome: OutcomeMap, own: Locus) -> list[Candidate]:
    """The best by predicted gain, no two of one source and stretch near each other; the classical two are always there.

    The classical ones: the located vector at attribution's locus ``own``, which :func:`propose` has among its
    candidates; and the reply mean at the middle layer on generated tokens, other tools' recipe.
    """

    def gain(c: Candidate) -> float:
        return c.gain.value if c.gain else -math.inf

    located = next(
        c for c in candidates if c.source == "located" and c.condition.positions is None and c.vector.locus == own
    )
    means = [c for c in candidates if c.source == "reply mean" and c.where == GENERATED]
    middle = min(means, key=lambda c: abs(c.vector.locus.layer - outcome.n_layers // 2))
    chosen = [located, middle]
    for c in sorted(candidates, key=gain, reverse=True):
        rivals = [r for r in chosen if (r.source, r.where == GENERATED) == (c.source, c.where == GENERATED)]
        near = any(abs(r.vector.locus.layer - c.vector.locus.layer) <= outcome.n_layers / APART for r in rivals)
        large = first_strength(c, outcome, GAIN_DRIFT) * c.vector.fraction > LARGEST
        if len(chosen) < count and c.gain is not None and c not in chosen and not near and not large:
            chosen.append(c)
    return chosen


def _direction(outcome: OutcomeMap, gains: Tensor, layer: int, positions: str | None) -> Direction | None:
    """The layer's plain direction at the place where it gains most and is no larger than LARGEST; None where none is.

    ``gains`` are ``[layer place]``, the last place being the generated tokens.
    """
    window = outcome.window
    places = [window] if positions == GENERATED else gains[layer, :-1].argsort(descending=True).tolist()
    for place in places:
        if not float(gains[layer, place]) > 0:
            continue
        locus = Locus(hook_name("resid_post", layer), (place - window if place < window else -1,))
        direction = outcome.direction(locus, positions)
        if float(direction.vector.norm()) <= LARGEST * direction.residual_norm:
            return direction
    return None


def _vector_of(condition: Condition) -> SteeringVector:
    """A candidate's vector, which is never only something that steers."""
    vector = condition.vector
    assert isinstance(vector, SteeringVector)
    return vector


def _within(vector: SteeringVector, positions: str | None, outcome: OutcomeMap) -> bool:
    """Whether the map holds gradients there."""
    locus = vector.locus
    point = next((p for p in outcome.gradients if hook_name(p, locus.layer) == locus.hook_point), None)
    return point is not None and (positions == GENERATED or min(locus.positions) >= -outcome.window)


def first_strength(candidate: Candidate, outcome: OutcomeMap, drift: float) -> float:
    """What the map says costs the drift; where it says nothing, a natural difference."""
    if candidate.gain is None:
        return 1.0
    cost = outcome.drift(candidate.vector, candidate.condition.positions).value
    return (drift / cost) ** 0.5 if cost > 0 else 1.0


def _paid(samples: pd.DataFrame, pairs: Pairs, reward: Reward) -> pd.DataFrame:
    """With ``paid``: the reward of a coherent reply, 0 of another, for broken text is full of what judges like."""
    samples = mark_coherent(samples)
    contexts = pairs.extraction.prompts
    asked = [contexts[int(name[1:])] for name in samples.prompt_id]
    values = rewards_of(reward, asked, list(samples.text)).numpy()
    return samples.assign(paid=values * samples.coherent)


def _means(samples: pd.DataFrame, column: str) -> dict[str, float]:
    """Of every arm."""
    return {str(arm): samples.loc[samples.arm == arm, column].to_numpy().mean().item() for arm in samples.arm.unique()}


def _row(samples: pd.DataFrame, arm: str, measures: Sequence[Measure]) -> dict[str, float]:
    part = samples.loc[samples.arm == arm]
    named = {"reward": "paid", "drift": "drift", "coherent_rate": "coherent"} | {m.name: m.name for m in measures}
    row: dict[str, float] = {name: part[column].to_numpy(dtype=float).mean().item() for name, column in named.items()}
    return row | {"n": len(part), "opening": commonest_opening(list(part.text))}


def _difference(samples: pd.DataFrame, arm: str, column: str) -> dict[str, float]:
    """Of a measure to the unsteered replies, prompt by prompt, in hundredths."""
    means = samples.pivot_table(values=column, index="prompt_id", columns="arm")
    return compare_paired(changes(means[arm], means[UNSTEERED]), 2000, 0)


def _best_first(last: Sequence[int], rounds: dict[int, int], paid: dict[str, float]) -> list[str]:
    """The last round's order, and after it those that left before, the longest-lived first, then by their reward."""
    left = sorted((i for i in rounds if i not in last), key=lambda i: (-rounds[i], -paid[f"{i}"]))
    return [f"{i}" for i in (*last, *left)]
