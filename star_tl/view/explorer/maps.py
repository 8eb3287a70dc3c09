"""The three maps of the page, as the numbers that it draws."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypedDict

from torch import Tensor

from star_tl.attribution import AttributionMap
from star_tl.attribution.choose import GAIN_DRIFT
from star_tl.data.chat import Message, Span, as_messages
from star_tl.data.pairs import ContrastivePair, Pairs, Trait
from star_tl.errors import StarError
from star_tl.files import JsonObject
from star_tl.locus import COMPONENTS, WRITES, Locus
from star_tl.stats import mean_interval
from star_tl.view.explorer.doses import as_dict
from star_tl.view.explorer.replies import Card, text_of
from star_tl.view.plots import components_of, shared_spans

IDLE, FEWEST_TOKENS = 0.03, 6
STREAM, OWN = "residual stream (adds up)", "writes (this layer's own)"


class Column(TypedDict, total=False):
    """A column of a map: what it is called, and what a click on it selects."""

    label: str | None
    hook: str
    head: int
    position: int
    gain: bool


class Group(TypedDict):
    """Columns from ``start`` to before ``end`` that share a colour scale, which ends at ``limit``."""

    label: str
    start: int
    end: int
    limit: float


class Panel(TypedDict):
    """A map: means and the ends of their intervals, a row a layer."""

    z: list[list[float]]
    low: list[list[float | None]] | None
    high: list[list[float | None]] | None
    columns: list[Column]
    groups: list[Group]


def view(attr: AttributionMap, form: str, pair: int | None, component: str | None) -> JsonObject:
    """The three maps of the page: layer × component, layer × head, layer × token.

    Args:
        attr: the scores.
        form: ``"classical"``, or ``"steering"``, which is a mean over pairs by its nature.
        pair: index of a pair, or None for the mean over pairs.
        component: hook point of the token map; default, and in place of one that the map does not hold, the
            stream's last or the first that it holds.
    """
    order = components_of(attr)
    if component not in order:
        component = "resid_post" if "resid_post" in order else order[0]
    steering = form == "steering"
    pair = None if steering else pair
    end, window = attr.prompt_end, attr.window
    if steering:
        parts, heads = attr.steering.sum(-1)[None], attr.head_steering.sum(-1)[None]
        tokens = attr.steering[COMPONENTS.index(component)][None]
        first, last = end - window, end
    else:
        rows = slice(None) if pair is None else slice(pair, pair + 1)
        spans = () if pair is None else tuple(s for s in attr.spans[pair] if s.name != "negative reply")
        first, last = (spans[0].start, spans[-1].end) if spans else (end - window, end)
        parts, heads = attr.scores[rows].sum(-1), attr.head_scores[rows].sum(-1)
        tokens = attr.component(component)[rows][..., first:last]
    parts = parts[:, [COMPONENTS.index(c) for c in order]].transpose(1, 2)
    residual = len([c for c in order if c not in WRITES])
    groups = [(STREAM, 0, residual), (OWN, residual, len(order))]
    if pair is None and not steering:
        first += _idle(tokens.mean(0), [len({row[i] for row in attr.tokens}) > 1 for i in range(first, last)])
        tokens = tokens[..., first - last :]
    token_columns, shown_spans = _token_columns(attr, pair, first, last)
    return {
        "layers": attr.n_layers,
        "mean": pair is None,
        "known": order,
        "component": component,
        "components": _with_gain(
            attr,
            _panel(parts, [{"label": c, "hook": f"hook_{c}"} for c in order], [g for g in groups if g[2] > g[1]]),
        ),
        "heads": _panel(
            heads,
            [{"label": str(h), "hook": "attn.hook_z", "head": h} for h in range(heads.shape[-1])],
            [("attention head, before W_O", 0, heads.shape[-1])],
        )
        if bool(heads.isfinite().all())
        else None,
        "tokens": {
            **_panel(tokens, [{**c, "hook": f"hook_{component}"} for c in token_columns], [("", 0, last - first)]),
            "spans": [(s.name, s.start - first, s.end - first) for s in shown_spans],
        },
    }


def suggestion(attr: AttributionMap, positions: tuple[int, ...]) -> JsonObject:
    """The place that the map suggests, and how sure it is."""
    if attr.prices_layers:
        choice = attr.choose_layer()
        said, chosen, layer = choice.describe(), choice.singled_out, choice.layer
    else:
        said, chosen, layer = "this map prices no layers", False, attr.n_layers // 2
    place = as_dict(Locus(f"blocks.{layer}.hook_resid_post", positions))
    return place | {"said": said, "chosen": chosen, "priced": attr.prices_layers}


def own_pair(trait: Trait, chat: Sequence[Message], replies: Sequence[Card]) -> Pairs:
    """The chat with its steered and its unsteered reply: what makes the one rather than the other.

    Raises:
        StarError: there are no two that differ.
    """
    texts = [text_of(card) for card in replies[:2]]
    if len(texts) < 2 or len(set(texts)) < 2:
        raise StarError("A map of this prompt needs a steered reply that differs: select a place first.")
    return Pairs(trait, (ContrastivePair("this prompt", as_messages(chat), texts[1], texts[0]),))


def _with_gain(attr: AttributionMap, panel: Panel) -> Panel:
    """The panel with the gain before it: the column that a layer is chosen by."""
    if not attr.prices_layers:
        return panel
    choice = attr.choose_layer()
    gain, low, high = (t.tolist() for t in (choice.gain, choice.low, choice.high))
    limit = max(map(abs, gain)) or 1.0
    if panel["low"] is not None and panel["high"] is not None:
        known = choice.bootstrapped
        panel["low"] = [[x if known else None, *row] for x, row in zip(low, panel["low"], strict=True)]
        panel["high"] = [[x if known else None, *row] for x, row in zip(high, panel["high"], strict=True)]
    panel["z"] = [[x, *row] for x, row in zip(gain, panel["z"], strict=True)]
    panel["columns"] = [{"label": f"at {GAIN_DRIFT:g} nat", "hook": "hook_resid_post", "gain": True}, *panel["columns"]]
    for group in panel["groups"]:
        group["start"], group["end"] = group["start"] + 1, group["end"] + 1
    panel["groups"] = [{"label": "gain", "start": 0, "end": 1, "limit": limit}, *panel["groups"]]
    return panel


def _panel(scores: Tensor, columns: list[Column], groups: list[tuple[str, int, int]]) -> Panel:
    """Mean over the first axis with 95 % bootstrap intervals; ``groups`` of columns have a colour scale each."""
    z = scores.mean(0)
    low = high = None
    if len(scores) > 1:
        low, high = (end.tolist() for end in mean_interval(scores))
    return {
        "z": z.tolist(),
        "low": low,
        "high": high,
        "columns": columns,
        "groups": [
            {"label": label, "start": a, "end": b, "limit": float(z[:, a:b].abs().max()) or 1.0}
            for label, a, b in groups
        ],
    }


def _token_columns(attr: AttributionMap, pair: int | None, first: int, last: int) -> tuple[list[Column], list[Span]]:
    if pair is None:
        same = [{row[i] for row in attr.tokens} for i in range(first, last)]
        names, spans = [t.pop() if len(t) == 1 else None for t in same], shared_spans(attr, first)
    else:
        names, spans = list(attr.tokens[pair][first:last]), [s for s in attr.spans[pair] if s.end <= last]
    columns: list[Column] = [{"label": name, "position": i - attr.prompt_end} for i, name in enumerate(names, first)]
    return columns, spans


def _idle(scores: Tensor, differs: list[bool]) -> int:
    """How many tokens at the left differ between pairs and score next to nothing: they would leave the map blank."""
    most = scores.abs().amax(0)
    count = 0
    while count < len(differs) - FEWEST_TOKENS and differs[count] and float(most[count]) < IDLE * float(most.max()):
        count += 1
    return count
