r"""Exact activation patching: the truth that attribution estimates.

The effect of a locus on a pair is :math:`M(corrupted, a \leftarrow a_{clean}) - M(corrupted)`, with the
activation replaced at the locus's positions in one more forward pass (Vig et al. 2020; Meng et al.
2022). Nothing below the patched layer changes, and nothing before the patched token: loci of one layer
share a batch, which starts there from the corrupted run's residual stream and keys and values.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor

from star_tl.attribution.align import ALIGNMENTS, PreparedPair, prepare
from star_tl.attribution.forward import forward, through_blocks
from star_tl.attribution.map import AttributionMap
from star_tl.attribution.objective import Metric, check_metrics, pairs_own
from star_tl.attribution.request import Estimator, Request
from star_tl.attribution.rows import Axis, PairBatch, Part, empty_map, pair_batch
from star_tl.data.pairs import Pairs
from star_tl.errors import StarError, check_flag, check_kind, check_name, check_whole, quoted
from star_tl.locus import COMPONENTS, Locus, NamedHook, hook_name
from star_tl.models.backend import MODELS, Cache, Model, check_hook_point, unembed
from star_tl.models.lens import TransformerBridge, TransformerLensKeyValueCache, TransformerLensKeyValueCacheEntry
from star_tl.models.memory import TOO_LONG, fitting_batches
from star_tl.progress import Bar

ROWS = {"cpu": 16, "elsewhere": 64}  # sequences per forward pass, two replies a patch: on a CPU more are no faster


@dataclass(frozen=True)
class Place:
    """One token of a prompt at a hook point: ``position`` counts from the prompt's end (-1 is its last token), or,
    where it is not negative, from the beginning of the first turn, which is the system's where there is one.
    """

    hook_point: str
    position: int
    head: int | None = None

    @property
    def region(self) -> str:
        """``"window"`` or ``"system"``."""
        return "window" if self.position < 0 else "system"

    @property
    def kind(self) -> str:
        """The hook point's name in every layer: one of POINTS."""
        return self.hook_point.split(".", 2)[2].removeprefix("attn.").removeprefix("hook_")

    def __str__(self) -> str:
        head = f" head {self.head}" if self.head is not None else ""
        return f"{self.hook_point}{head} @ {self.position if self.position < 0 else f'system turn, {self.position}'}"


@torch.no_grad()
def exact_effects(
    model: Model,
    pairs: Pairs,
    loci: Sequence[Locus | Place],
    rows_per_batch: int | None = None,
    progress: bool = True,
    alignment: str = "spans",
    metric: Metric = pairs_own,
) -> Float[Tensor, "pair locus"]:
    """The exact effect of patching each locus with the clean run's activation, in the metric's unit (nats).

    Args:
        model: of either backend.
        pairs: contrastive pairs; all that are given are used.
        loci: where to patch, one at a time. Tokens without a counterpart in the clean run are left as they are.
        rows_per_batch: sequences per forward pass, two replies a locus; default by the device, see ROWS.
        progress: show a progress bar.
        alignment: as in :func:`star_tl.attribute`.
        metric: as in :func:`star_tl.attribute`, a function.

    Raises:
        StarError: an argument of another kind, a place that the model or a prompt does not have, a metric that is no
            finite number a pair, or prompts and replies that do not fit the context.
    """
    check_kind(model, MODELS, "a model that load_model returns")
    check_kind(pairs, Pairs, "pairs that load_pairs returns")
    check_kind(loci, Sequence, "loci as a list")
    for locus in loci:
        check_kind(locus, (Locus, Place), "loci as a list of Locus")
    if rows_per_batch is not None:
        check_whole(rows_per_batch, "rows_per_batch")
    check_flag(progress, "progress")
    check_name(alignment, ALIGNMENTS, "alignment")
    if not callable(metric):
        raise StarError(f"metric is {quoted(metric)}: give a function, as attribute takes it.")
    prepared = prepare(model, pairs, alignment)
    for locus in loci:
        _check_place(model, prepared, locus)
    effects = torch.zeros(len(prepared), len(loci))
    for row, pair in enumerate(Bar(prepared, desc="exact patching", unit="pair", disable=not progress, delay=1)):
        patches = [_patch_at(pair, x) for x in loci]
        at_once = max(1, (rows_per_batch or _rows(model)) // 2)
        effects[row] = _effects_of_pair(model, pair, patches, at_once, metric)[0]
    return effects


def _check_place(model: Model, prepared: Sequence[PreparedPair], place: Locus | Place) -> None:
    """Raises StarError where a model or a prompt has no such place."""
    check_hook_point(model, place.hook_point, place.head)
    positions = place.positions if isinstance(place, Locus) else (place.position,)
    shortest = min(len(pair.corrupted) for pair in prepared)
    for position in positions:
        if not -shortest <= position < shortest:
            raise StarError(
                f"The shortest prompt has {shortest} tokens, none at {position}: name a place that all have."
            )


def _patch_at(pair: PreparedPair, locus: Locus | Place) -> _Patch:
    end = max(len(pair.clean), len(pair.corrupted))
    if isinstance(locus, Locus):
        columns, layer = tuple(end + p for p in locus.positions), locus.layer
    else:
        begin = end if locus.position < 0 else end - len(pair.corrupted)
        columns, layer = (begin + locus.position,), Locus(locus.hook_point, (-1,), locus.head).layer
    return _Patch(locus.hook_point, 0, columns, locus.head, layer)


@torch.no_grad()
def attribute_exact(request: Request) -> AttributionMap:
    """Exact effects of every token at every hook point; see :func:`star_tl.attribute`.

    One forward pass from the patched layer on for each: thousands a pair, where AtP takes one. Tokens without a
    counterpart have no effect. There is no steering form (NaN): it is a derivative.
    """
    model = request.model
    prepared = prepare(model, request.pairs, request.alignment)
    axis = Axis.over(prepared)
    empty = empty_map(model, prepared, axis, request, "exact")
    none = {name: getattr(empty, name)[..., :0] for name in ("differences", "gradients", "drift_gradients", "controls")}
    attr = replace(empty, **none, position_effects=empty.position_effects[..., :0])
    for form in (attr.steering, attr.head_steering, attr.span_steering, attr.head_span_steering):
        form.fill_(torch.nan)
    for i, pair in enumerate(Bar(prepared, desc="exact patching", unit="pair", disable=not request.progress, delay=1)):
        patches = list(_every_token(model, pair, request.points))
        at_once = request.batch_size or _rows(model) // 2
        effects, metrics = _effects_of_pair(model, pair, patches, at_once, request.metric)
        attr.metric_corrupted[i], attr.metric_clean[i] = metrics
        begin = axis.end - max(len(pair.clean), len(pair.corrupted)), axis.end, axis.end + axis.positive
        for patch, effect in zip(patches, effects.tolist(), strict=True):
            column = begin[patch.turn] + patch.columns[0]
            if patch.head is None:
                kind = COMPONENTS.index(patch.hook_point.partition("hook_")[2])
                attr.scores[i, kind, patch.layer, column] = effect
            else:
                attr.head_scores[i, patch.layer, patch.head, column] = effect
    return attr


def _rows(model: Model) -> int:
    return ROWS["cpu" if torch.device(str(model.cfg.device)).type == "cpu" else "elsewhere"]


@dataclass(frozen=True)
class _Patch:
    """A place of one pair: columns of its prompt (``turn`` 0), of its positive (1) or of its negative reply (2)."""

    hook_point: str
    turn: int
    columns: tuple[int, ...]
    head: int | None
    layer: int

    @property
    def part(self) -> Part:
        return "replies" if self.turn else "prompts"

    @property
    def row(self) -> int:
        """Of the corrupted run, in its part."""
        return max(0, self.turn - 1)


def _every_token(model: Model, pair: PreparedPair, points: Sequence[str]) -> Iterator[_Patch]:
    first = max(len(pair.clean), len(pair.corrupted)) - len(pair.corrupted)
    tokens = [(0, first + i) for i, there in enumerate(pair.counterpart) if there >= 0]
    for turn, reply in ((1, pair.positive), (2, pair.negative)):
        tokens += [(turn, column) for column in range(len(reply) - 1)]  # nothing follows from the last
    for layer in range(model.cfg.n_layers):
        for point in points:
            for head in range(model.cfg.n_heads) if point == "z" else (None,):
                for turn, column in tokens:
                    yield _Patch(hook_name(point, layer), turn, (column,), head, layer)


def _effects_of_pair(
    model: Model, pair: PreparedPair, patches: Sequence[_Patch], patches_per_batch: int, metric: Metric
) -> tuple[Float[Tensor, " patch"], Float[Tensor, " run"]]:
    """The effect of each patch, and the metric of the corrupted and of the clean run."""
    rows = pair_batch(model, [pair], metric)
    entering: dict[tuple[Part, int], Tensor] = {}
    differences: dict[tuple[Part, str], Tensor] = {}
    by_layer: dict[int, list[int]] = {}
    for i, one in enumerate(patches):
        by_layer.setdefault(one.layer, []).append(i)

    def keep(part: Part) -> list[NamedHook]:
        def enter(layer: int) -> NamedHook:
            name = f"blocks.{layer}.hook_resid_pre"
            return name, lambda activation, hook: entering.__setitem__((part, layer), activation)

        def differ(name: str) -> NamedHook:
            def hook(activation: Tensor, hook: object) -> None:
                differences[part, name] = rows.difference(part, *activation.split(len(activation) // 2))

            return name, hook

        return [*map(enter, by_layer), *map(differ, {p.hook_point for p in patches if p.part == part})]

    residual, before = forward(model, rows, slice(None), keep)
    run = _CorruptedRun(rows, entering, before, differences, residual[:, :0])
    metrics = rows.metrics(unembed(model, residual))[:, 0]
    check_metrics(metrics[None], [pair.pair.id])
    effects = torch.zeros(len(patches))
    end = rows.prompts.shape[1]
    for indices in by_layer.values():
        late_first = sorted(indices, key=lambda i: -_first_column(patches[i], end))

        def work(some: Sequence[int]) -> Float[Tensor, " patch"]:
            return (_patched_metrics(model, run, [patches[i] for i in some]) - metrics[0]).float().cpu()

        batches = fitting_batches(late_first, lambda left: patches_per_batch, work, lambda patch: TOO_LONG, "patches")
        for some, found in batches:
            effects[list(some)] = found
    return effects, metrics.float().cpu()


@dataclass(frozen=True)
class _CorruptedRun:
    """What the two runs of one pair left behind, corrupted row first, and the differences between them."""

    rows: PairBatch
    entering: dict[tuple[Part, int], Float[Tensor, "row position d"]]
    before: Cache
    differences: dict[tuple[Part, str], Float[Tensor, "row position ..."]]
    no_reply: Float[Tensor, "row zero d"]


def _first_column(patch: _Patch, end: int) -> int:
    """The first column of the prompt that has to be run again; its last one predicts the reply."""
    return end - 1 if patch.turn else min(patch.columns)


def _patched_metrics(model: Model, run: _CorruptedRun, patches: Sequence[_Patch]) -> Float[Tensor, " patch"]:
    """The metric with each of ``patches``, which are all of one layer, in place."""
    end, layer, copies = run.rows.prompts.shape[1], patches[0].layer, len(patches)
    # A bridge can start nowhere but at the beginning.
    start = 0 if isinstance(model, TransformerBridge) else min(_first_column(p, end) for p in patches)

    def patch(part: Part) -> list[NamedHook]:
        mine = [(i, p) for i, p in enumerate(patches) if p.part == part]

        def at(name: str) -> NamedHook:
            def hook(activation: Tensor, hook: object) -> Tensor:
                out = activation.clone()
                for i, p in mine:
                    if p.hook_point == name:
                        columns, head = torch.tensor(p.columns), () if p.head is None else (p.head,)
                        here = (i, columns - start) if part == "prompts" else (2 * i + p.row, columns)
                        out[(*here, *head)] += run.differences[part, name][(p.row, columns, *head)]
                return out

            return name, hook

        return [at(name) for name in {p.hook_point for _, p in mine}]

    if isinstance(model, TransformerBridge):
        return run.rows.metrics(unembed(model, forward(model, run.rows, slice(1), patch, copies)[0]))[:, 0]
    assert isinstance(run.before, TransformerLensKeyValueCache)
    before = [
        TransformerLensKeyValueCacheEntry(
            e.past_keys[:1, :start].expand(copies, -1, -1, -1), e.past_values[:1, :start].expand(copies, -1, -1, -1)
        )
        for e in run.before.entries
    ]
    prompt, reply = through_blocks(
        model,
        run.rows,
        range(layer, model.cfg.n_layers),
        run.entering["prompts", layer][:1, start:].repeat(copies, 1, 1),
        run.entering.get(("replies", layer), run.no_reply)[:2].repeat(copies, 1, 1),
        run.rows.prompt_mask[:1].int().repeat(copies, 1),
        before,
        patch,
    )
    spread = torch.arange(copies, device=prompt.device).repeat_interleave(2)
    residual = torch.cat([prompt[spread, -1:], reply.to(prompt.device)], 1)
    return run.rows.metrics(unembed(model, residual))[:, 0]


ESTIMATOR = Estimator(
    "exact",
    "exact patching",
    "activation patching of every token, thousands of passes a pair, no steering form",
    (),
    attribute_exact,
    prices_layers=False,
)
