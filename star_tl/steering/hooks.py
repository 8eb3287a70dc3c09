"""From a vector to ``[(name, fn)]``: adding it at absolute token positions, with or without a cache.

A hook function sees only the chunk of tokens of the current forward pass; with a KV cache that is one
token per decode step, so that an index into the chunk means another token at every step. star_tl's own
passes tell the hooks where they stand. In TransformerLens the absolute position of a chunk is read off the
attention scores of the same pass, whose key axis is longer than its query axis by exactly the number of
cached tokens. Positions that a prompt does not have are left out; what a padded batch has there is padding,
which is masked.

One list of hooks may serve several calls of star_tl at once, in several threads too. In TransformerLens it
serves one text after another; two that are written token by token in turn need a list each, or ``prompt_length``,
with which nothing is counted.
"""

from __future__ import annotations

import threading
import weakref
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import torch
from jaxtyping import Float, Int
from torch import Tensor

from star_tl.errors import StarError
from star_tl.locus import Locus, NamedHook
from star_tl.models.position import Position
from star_tl.steering.positions import Schedule, schedule, whole_numbers

Positions = str | Sequence[int] | None
# A vector, where it acts, and True where it is removed instead of added.
Row = tuple[Float[Tensor, "position d"], Locus, Positions] | tuple[Float[Tensor, "position d"], Locus, Positions, bool]


def injection_hooks(
    vector: Float[Tensor, "position d"],
    locus: Locus,
    positions: Positions = None,
    prompt_length: int | None = None,
    remove: bool = False,
) -> list[NamedHook]:
    """Hooks that add ``vector`` at ``locus``, for ``run_with_hooks``, ``model.hooks`` and ``generate``.

    Args:
        vector: one row per position of the locus. For schedules other than the locus's own, its mean.
        locus: hook point and positions.
        positions: ``"locus"`` (default) or as in :func:`star_tl.steering.positions.schedule`.
        prompt_length: columns up to the prompt's end, where a forward pass holds prompt and reply
            at once, or only a part of the prompt. Default: all that the first pass of a call holds,
            with what was cached before it, which is right for cached generation.
        remove: take away what lies along the vector instead of adding it, h − (h · v) v: all of it for a vector of
            length 1.

    Raises:
        StarError: unknown schedule, positions that are not whole numbers, or ``resid_pre`` of layer 0,
            which no attention precedes.
    """
    at = acting_at(locus, positions)
    return _hooks(_rows(vector, locus, at)[None], None, locus, at, prompt_length, remove)


def row_hooks(rows: Sequence[Row | None], prompt_length: int | None = None) -> list[NamedHook]:
    """Hooks for a batch whose rows are steered each in its own way, or not at all.

    Args:
        rows: for every row of the batch a vector, its locus and positions, and ``True`` behind them where it is to be
            removed, as in :func:`injection_hooks`; None leaves the row alone.
        prompt_length: as in :func:`injection_hooks`.

    Raises:
        StarError: as :func:`injection_hooks`.
    """
    groups: dict[tuple[Locus, str | tuple[int, ...], bool], list[tuple[int, Tensor]]] = {}
    for i, row in enumerate(rows):
        if row is not None:
            vector, locus, positions, *removed = row
            at = acting_at(locus, positions)
            groups.setdefault((locus, at, any(removed)), []).append((i, _rows(vector, locus, at)))
    hooks: list[NamedHook] = []
    for (locus, at, remove), members in groups.items():
        index = torch.tensor([i for i, _ in members])
        hooks += _hooks(torch.stack([v for _, v in members]), index, locus, at, prompt_length, remove)
    return hooks


def step_hooks(rows: Sequence[Sequence[NamedHook]], at: Sequence[int]) -> list[NamedHook]:
    """Hooks of one decode step of a batch whose rows stand at positions of their own.

    Args:
        rows: every row's hooks, as :func:`row_hooks` makes them for it alone; any number of vectors each.
        at: the position of every row's token, counted from the end of its prompt.
    """
    groups: dict[tuple[str, int | None, type[Injection], int], list[tuple[int, Tensor]]] = {}
    for i, (hooks, position) in enumerate(zip(rows, at, strict=True)):
        added: Counter[tuple[str, int | None, type]] = Counter()  # an index names a row once, so that no sum is lost
        for name, function in hooks:
            if isinstance(function, Injection) and isinstance(name, str):
                place = name, function.head, type(function)
                for _, row, factor in function.schedule.columns(0, position, 1):
                    groups.setdefault((*place, added[place]), []).append((i, function.vectors[0, row] * factor))
                    added[place] += 1
    here, always = Position(0, 0, 1), schedule("all")
    hooks = []
    for (name, head, kind, _), members in groups.items():
        index = torch.tensor([i for i, _ in members])
        vectors = torch.stack([v for _, v in members])[:, None]
        hooks.append((name, kind(here, vectors, index, head, always)))
    return hooks


class Clock:
    """Keeps count of positions for the :class:`Injection` beside it, where TransformerLens runs the hooks.

    It is hooked to attention scores ``[row head query key]``, whose shape tells the columns of the pass. Each thread
    and each hook point, so each model too, has a count of its own, and a copy begins anew. What star_tl's own passes
    read is never kept here: they hand their position to the injection (:meth:`Injection.follow`).

    Raises:
        StarError: when called in a pass that neither begins a text nor goes on with the last one, which is what two
            texts written in turn look like: its position cannot be known.
    """

    steady, reach = True, 0

    def __init__(self, prompt_length: int | None = None) -> None:
        self.prompt_length = prompt_length
        self._own = threading.local()

    def __reduce__(self) -> tuple[type[Clock], tuple[int | None]]:
        return Clock, (self.prompt_length,)

    @property
    def now(self) -> Position:
        """The position of this thread's current pass."""
        return getattr(self._own, "now", None) or Position(0)

    def __call__(self, scores: Float[Tensor, "row head query key"], hook: object) -> None:
        queries, keys = scores.shape[-2:]
        texts = self._own.__dict__.setdefault("texts", weakref.WeakKeyDictionary())
        # An alias of a hook point is made for one call; what it stands for lasts.
        place = getattr(hook, "_target", hook)
        self._own.now = texts[place] = self._after(texts.get(place), keys - queries, keys)

    def _after(self, last: Position | None, offset: int, keys: int) -> Position:
        if self.prompt_length is not None:
            return Position(self.prompt_length, offset, keys)
        # Without a text before, what is cached was read without hooks and counts as prompt.
        if offset == 0 or last is None:
            return Position(keys, offset, keys)
        # A frozen cache is gone on from more than once.
        if offset == last.read or (offset == last.offset and offset >= last.end):
            return Position(last.end, offset, keys)
        raise StarError(
            f"These hooks meet token {offset} of a text after token {last.read - 1} of another: make hooks for each "
            "text with vector.hooks(), or give prompt_length."
        )

    def follow(self, position: Position) -> None:
        """Nothing: a pass that tells its position needs no count."""

    def for_rows(self, rows: Int[Tensor, " kept"]) -> Clock:
        """Itself: it looks at no row."""
        return self


@dataclass(frozen=True)
class Injection:
    """Adds ``vectors`` to the rows ``index`` of a batch; without an index the one vector to all rows.

    ``clock`` says where the current pass stands: the count of a :class:`Clock`, or the position of one call.
    """

    clock: Clock | Position
    vectors: Float[Tensor, "row position d"]
    index: Int[Tensor, " row"] | None
    head: int | None
    schedule: Schedule
    prompt_length: int | None = None
    ready: dict[tuple[object, ...], tuple[Tensor, ...]] = field(default_factory=dict, repr=False)

    @property
    def steady(self) -> bool:
        return self.schedule.steady

    @property
    def reach(self) -> int | None:
        return self.schedule.reach if self.prompt_length is None else None

    def __call__(self, activation: Float[Tensor, "row column ..."], hook: object) -> Tensor:
        now = self.clock.now if isinstance(self.clock, Clock) else self.clock
        end = now.end if self.prompt_length is None else self.prompt_length
        columns = self.schedule.columns(end, now.offset, activation.shape[1])
        if not columns:
            return activation
        if activation.shape[-1] != self.vectors.shape[-1]:
            raise StarError(
                f"The vector has width {self.vectors.shape[-1]} and the model {activation.shape[-1]} there: extract it "
                "from this model."
            )
        rows, at, added = self._place(columns, len(activation), activation.device)
        where = (rows, at, *(() if self.head is None else (self.head,)))
        # bf16 would round a small vector away against a large residual: add in float32.
        wide = torch.promote_types(activation.dtype, torch.float32)
        out = activation.clone()
        out[where] = self.changed(activation[where].to(wide), added.to(wide)).to(out.dtype)
        return out

    def changed(
        self, here: Float[Tensor, "row column d"], given: Float[Tensor, "#row column d"]
    ) -> Float[Tensor, "row column d"]:
        """What stands there afterwards."""
        return here + given

    def _place(self, columns: list[tuple[int, int, float]], n: int, device: torch.device) -> tuple[Tensor, ...]:
        """Row and column indices and what is added there; kept, for decode steps ask for the same again and again."""
        key = (*columns, n, device)
        found = self.ready.get(key)
        if found is None:
            factors = torch.tensor([f for *_, f in columns], dtype=self.vectors.dtype)[:, None]
            added = self.vectors[:, [r for _, r, _ in columns]] * factors.to(self.vectors.device)
            rows = torch.arange(n) if self.index is None else self.index
            at = torch.tensor([c for c, *_ in columns])
            found = (rows.to(device)[:, None], at.to(device), added.to(device))
            self.ready.clear()
            self.ready[key] = found
        return found

    def follow(self, position: Position) -> Injection:
        """The same in one call that tells where it stands."""
        return replace(self, clock=position, ready={})

    def for_rows(self, rows: Int[Tensor, " kept"]) -> Injection | None:
        """The same for a batch that keeps only these rows, in this order; None where none of its own is left."""
        if self.index is None:
            return self
        mine, place = (rows.cpu()[:, None] == self.index.cpu()).nonzero(as_tuple=True)
        if not len(mine):
            return None
        return replace(self, vectors=self.vectors[place.to(self.vectors.device)], index=mine, ready={})


@dataclass(frozen=True)
class Removal(Injection):
    """Takes away what lies along ``vectors``, h − (h · v) v: all of it where they have length 1 (Arditi et al. 2024,
    arXiv 2406.11717). A schedule's factor weakens it by its square."""

    def changed(
        self, here: Float[Tensor, "row column d"], given: Float[Tensor, "#row column d"]
    ) -> Float[Tensor, "row column d"]:
        return here - (here * given).sum(-1, keepdim=True) * given


def acting_at(locus: Locus, positions: Positions) -> str | tuple[int, ...]:
    """The schedule or the positions that are meant; the locus's own positions in whatever order are its own.

    Raises:
        StarError: an unknown schedule, or positions that are no whole numbers.
    """
    if positions is None or (isinstance(positions, str) and positions == "locus"):
        return locus.positions
    if isinstance(positions, str):
        schedule(positions)  # raises where it is unknown
        return positions
    numbers = whole_numbers(positions)
    return locus.positions if set(numbers) == set(locus.positions) else numbers


def _rows(vector: Tensor, locus: Locus, at: str | tuple[int, ...]) -> Tensor:
    """A row per position of the locus's own; for other schedules the mean, once."""
    return vector if at == locus.positions else vector.mean(0, keepdim=True)


def _hooks(
    vectors: Tensor,
    index: Tensor | None,
    locus: Locus,
    at: str | tuple[int, ...],
    prompt_length: int | None,
    remove: bool = False,
) -> list[NamedHook]:
    watched = locus.layer
    if locus.hook_point.endswith("hook_resid_pre"):
        watched -= 1
        if watched < 0:
            raise StarError("blocks.0.hook_resid_pre cannot be injected at: use blocks.0.hook_resid_post.")
    when = schedule(at)
    if when.rows is not None and vectors.shape[1] == 1:
        when = replace(when, rows=dict.fromkeys(when.rows, 0))
    clock = Clock(prompt_length)
    injection = (Removal if remove else Injection)(clock, vectors, index, locus.head, when, prompt_length)
    return [(f"blocks.{watched}.attn.hook_attn_scores", clock), (locus.hook_point, injection)]
