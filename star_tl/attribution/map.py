"""What attribution returns: the map of scores, to plot, to save, to choose a locus from."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_type_hints

import torch
from jaxtyping import Float, jaxtyped
from torch import Tensor

from star_tl.attribution.choose import (
    LayerChoice,
    PositionChoice,
    choose_layer,
    choose_positions,
    costs_of,
    effects_of,
)
from star_tl.data.chat import SPANS, Span
from star_tl.errors import StarError, check_kind, check_name, check_text, check_whole, quoted
from star_tl.files import load_tensors, reading, save_tensors
from star_tl.locus import COMPONENTS, WRITES, Locus, hook_name
from star_tl.models.backend import MODELS, Model
from star_tl.models.load import fingerprint

if TYPE_CHECKING:
    import pandas
    import plotly.graph_objects as go


# Where a vector may be added that the steering form is kept for, beside single tokens: the position schedules of these
# names, "generated" from the last prompt token on.
STRETCHES = (*SPANS, "generated")
LITTLE = 0.1  # nats a token: a metric that the instruction moves by less is mostly other things
WRONG_WAY = 0.25  # share of pairs whose metric the instruction lowers that is no longer noise
_TENSORS = (
    "scores",
    "head_scores",
    "steering",
    "head_steering",
    "span_steering",
    "head_span_steering",
    "differences",
    "gradients",
    "drift_gradients",
    "position_effects",
    "controls",
    "metric_corrupted",
    "metric_clean",
    "unaligned",
    "equal_tokens",
)
_FORMAT = "star_tl attribution 4"
_TEXTS = ("trait", "method", "metric", "model", "fingerprint", "prompt_end")


def _is_whole(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


@dataclass(frozen=True)
class AttributionMap:
    """Attribution scores of contrastive pairs over hook points, layers, heads and tokens.

    Sign convention: a positive score says that moving the corrupted run toward the clean one
    at that place raises the trait metric. Unit: nats of the metric. Hook points that were not
    asked for hold NaN.

    The position axis is ``[prompt | positive reply | negative reply]``; prompts end at column
    ``prompt_end`` in every pair, so that column ``prompt_end - 1`` is the last prompt token.
    ``steering`` is the steering form v · mean g: the first-order effect of adding the mean
    difference v at a position; its last axis ends with the last prompt token. ``span_steering`` is the same for adding
    the last prompt token's v at every token of a stretch of the corrupted run: its system message, its last user
    turn, the assistant header, or the reply, from the last prompt token on.

    What a layer is chosen by is kept so that any vector can be judged later, not only the pairs' own; all of it is at
    ``resid_post`` of the last prompt token, and of width 0 where the map was made without that hook point or without
    gradients. ``differences`` is the mean clean − corrupted activation, ``gradients`` those of each pair's metric in
    the corrupted run, ``drift_gradients`` those of its replies' drift with random signs, where no instruction stands
    (:mod:`star_tl.attribution.drift`), and ``controls`` the mean differences of other traits, ``control_names``.
    ``position_effects`` are the steering form at ``resid_post`` pair by pair.

    ``unaligned`` is the share of a pair's prompt tokens without a counterpart in the other run, ``equal_tokens`` the
    share of those with one whose counterpart is the same token. ``metric`` names what was differentiated, empty where
    each pair said it.
    """

    trait: str
    method: str
    metric: str
    model: str
    fingerprint: str
    scores: Float[Tensor, "pair component layer position"]
    head_scores: Float[Tensor, "pair layer head position"]
    steering: Float[Tensor, "component layer window"]
    head_steering: Float[Tensor, "layer head window"]
    span_steering: Float[Tensor, "component layer stretch"]
    head_span_steering: Float[Tensor, "layer head stretch"]
    differences: Float[Tensor, "layer d"]
    gradients: Float[Tensor, "pair layer d"]
    drift_gradients: Float[Tensor, "pair draw layer d"]
    position_effects: Float[Tensor, "pair layer priced"]
    controls: Float[Tensor, "control layer d"]
    metric_corrupted: Float[Tensor, " pair"]
    metric_clean: Float[Tensor, " pair"]
    prompt_end: int
    tokens: tuple[tuple[str, ...], ...]
    spans: tuple[tuple[Span, ...], ...]
    unaligned: Float[Tensor, " pair"]
    equal_tokens: Float[Tensor, " pair"]
    pair_ids: tuple[str, ...]
    control_names: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        kinds = get_type_hints(type(self))
        with jaxtyped("context"):  # a name in the shapes means one size throughout
            for name in _TENSORS:
                value = getattr(self, name)
                if not isinstance(value, kinds[name]):
                    found = quoted(value)
                    if isinstance(value, Tensor):
                        found = f"{str(value.dtype).removeprefix('torch.')} {list(value.shape)}"
                    raise StarError(f"{name} of an attribution map is {found}, which does not fit: attribute again.")
        if self.position_effects.shape[-1] != (self.window if self.prices_layers else 0):
            raise StarError("An attribution map's position_effects do not fit its gradients: attribute again.")
        lists = (self.tokens, self.spans, self.pair_ids, self.control_names)
        rows = [row for table in lists[:2] if isinstance(table, (list, tuple)) for row in table]
        if not all(isinstance(x, (list, tuple)) for x in (*lists, *rows)):
            raise StarError("An attribution map's tokens, spans or names are no lists: attribute again.")
        pairs, components, _, width = self.scores.shape
        alike = len(self.pair_ids) == len(self.tokens) == len(self.spans) == pairs > 0
        if not alike or components != len(COMPONENTS) or self.span_steering.shape[-1] != len(STRETCHES):
            raise StarError(
                "An attribution map's scores, tokens and pairs differ in number: it was put together wrongly."
            )
        if not _is_whole(self.prompt_end) or not 1 <= self.window <= self.prompt_end <= width:
            raise StarError(f"prompt_end of an attribution map is {quoted(self.prompt_end)}: attribute again.")
        if not bool((self.metric_clean + self.metric_corrupted + self.unaligned).isfinite().all()):
            raise StarError("An attribution map's metric is NaN or infinite: attribute again.")
        for name in ("trait", "method", "metric", "model", "fingerprint"):
            check_text(getattr(self, name), f"{name} of an attribution map")
        named = all(len(row) == width and all(isinstance(t, str) for t in row) for row in self.tokens)
        spans = [s for row in self.spans for s in row]
        placed = all(
            isinstance(s, Span) and isinstance(s.name, str) and s.name and _is_whole(s.start) and _is_whole(s.end)
            for s in spans
        )
        if not (named and placed and all(isinstance(i, str) for i in (*self.pair_ids, *self.control_names))):
            raise StarError("An attribution map's tokens, spans or names are no texts: attribute again.")
        if len(self.control_names) != len(self.controls):
            raise StarError("An attribution map's controls and their names differ in number: attribute again.")
        if not all(0 <= s.start < s.end <= width for s in spans):
            raise StarError("An attribution map's spans lie outside of its tokens: attribute again.")

    @property
    def n_layers(self) -> int:
        return self.scores.shape[2]

    @property
    def window(self) -> int:
        """Number of prompt positions, from the end, shared by clean and corrupted run of all pairs."""
        return self.steering.shape[-1]

    def component(self, name: str) -> Float[Tensor, "pair layer position"]:
        """Scores at one hook point of every layer, per pair and position."""
        check_name(name, COMPONENTS, "component")
        found = self.scores[:, COMPONENTS.index(name)]
        if bool(found.isnan().any()):
            raise StarError(f"This map holds no scores at {name}: attribute with hook_points that include it.")
        return found

    def layer_scores(self) -> Float[Tensor, "component layer"]:
        """Mean over pairs of the scores summed over all positions."""
        return self.scores.sum(-1).mean(0)

    def head_layer_scores(self) -> Float[Tensor, "layer head"]:
        """Mean over pairs of the head scores summed over all positions."""
        return self.head_scores.sum(-1).mean(0)

    def writes(self) -> Float[Tensor, "pair layer"]:
        """What every layer writes (attn_out + mlp_out) into the shared prompt positions.

        The residual stream's own scores add up along depth, so that their argmax is nearly always
        a late layer; what a layer writes is its own.
        """
        written = torch.stack([self.component(c) for c in WRITES]).sum(0)
        return written[..., self.prompt_end - self.window : self.prompt_end].sum(-1)

    def by_span(self, form: str = "classical") -> pandas.DataFrame:
        """A row per span of the chat and layer, a column per component.

        ``"classical"``: spans as in ``spans`` (system, each turn, reply), scores summed over the span's tokens, mean
        over the pairs that have it, of which there are ``n``. ``"steering"``: ``span_steering``, with spans that
        ``positions`` of :func:`star_tl.compare` takes by these names.

        Raises:
            StarError: an unknown form.
        """
        import pandas as pd

        check_name(form, ("classical", "steering"), "form")
        if form == "steering":
            index = pd.MultiIndex.from_product([STRETCHES, range(self.n_layers)], names=["span", "layer"])
            values = self.span_steering.permute(2, 1, 0).flatten(0, 1)
            return pd.DataFrame(values.numpy(), index=index, columns=list(COMPONENTS)).reset_index()
        rows = [
            {"span": span.name, "layer": layer, **dict(zip(COMPONENTS, values, strict=True))}
            for i, spans in enumerate(self.spans)
            for span in spans
            for layer, values in enumerate(self.scores[i, :, :, span.start : span.end].sum(-1).T.tolist())
        ]
        grouped = pd.DataFrame(rows).groupby(["span", "layer"], sort=False)
        return grouped.mean().assign(n=grouped.size()).reset_index()

    def completeness(self) -> Float[Tensor, " layer"]:
        """Share of M_clean − M_corrupted that ``resid_post`` explains at every layer; 1 is exact.

        Below 1 where the estimate is off or where tokens have no counterpart in the other run.
        """
        total = (self.metric_clean - self.metric_corrupted).mean()
        return self.component("resid_post").sum(-1).mean(0) / total

    @property
    def caution(self) -> str:
        """Why the map's figures say little: the instruction moves the metric by less than LITTLE, or lowers it in
        WRONG_WAY of the pairs or more. Empty where neither is so; of a metric of one's own only the second is asked.
        """
        moved = self.metric_clean - self.metric_corrupted
        mean, wrong = float(moved.mean()), int((moved < 0).sum())
        if (self.metric or mean >= LITTLE) and wrong < WRONG_WAY * len(moved):
            return ""
        return (
            f"the instruction moves the metric by {mean:+.3g} nats only, in {wrong} of {len(moved)} pairs the wrong way"
            if not self.metric and mean < LITTLE
            else f"in {wrong} of {len(moved)} pairs the instruction moves the metric the wrong way"
        ) + ": what is attributed may be something else than the trait"

    @property
    def prices_layers(self) -> bool:
        """Whether the map holds the gradients that a layer is chosen by."""
        return self.gradients.shape[-1] > 0

    def effect(self, vector: Float[Tensor, "*layer d"]) -> Float[Tensor, "pair layer"]:
        """What adding a vector at ``resid_post`` of the last prompt token does to each pair's metric, to first order.

        ``vector`` is one for all layers, ``[d]``, or a row for each, ``[layer d]``: of another trait, say, or random.

        Raises:
            StarError: the map holds no gradients at ``resid_post``, or the vector is of another width.
        """
        return effects_of(self.gradients, self._directions(vector)).float()

    def cost(self, vector: Float[Tensor, "*layer d"]) -> Float[Tensor, "pair layer"]:
        """The drift of each pair's replies that it costs, nats a token, to second order: times the strength squared.

        An estimate with random signs, right on average over draws. Arguments and errors as for :meth:`effect`.
        """
        return costs_of(self.drift_gradients, self._directions(vector)).mean(1).float()

    def _directions(self, vector: Tensor) -> Float[Tensor, "layer d"]:
        if not self.prices_layers:
            remedy = "method='atp'" if self.method == "exact" else "hook_points that include it"
            raise StarError(f"This map holds no gradient at resid_post to choose by: attribute with {remedy}.")
        check_kind(vector, Tensor, "a tensor [d] or [layer d]")
        usable = vector.is_floating_point() and vector.layout == torch.strided and not vector.is_meta
        if not usable or not bool(vector.isfinite().all()):
            raise StarError("A vector for this map is no dense tensor of finite floating-point numbers: give one.")
        width = self.gradients.shape[-1]
        if tuple(vector.shape) not in {(width,), (1, width), (self.n_layers, width)}:
            raise StarError(f"A vector of shape {tuple(vector.shape)} does not fit a width of {width}.")
        return vector.detach().cpu().expand(self.n_layers, -1)

    def choose_layer(
        self, resamples: int = 1000, seed: int = 0, vector: Float[Tensor, "*layer d"] | None = None
    ) -> LayerChoice:
        """The layer where drift buys most of the trait, and whether the pairs single it out.

        Args:
            resamples: of pairs for the bootstrap, and of random directions for the null.
            seed: of both.
            vector: what to add, as :meth:`effect` takes it; default the pairs' own mean difference at each layer.

        Raises:
            StarError: as :meth:`effect`.
        """
        directions = self._directions(self.differences if vector is None else vector)
        controls = dict(zip(self.control_names, self.controls, strict=True))
        return choose_layer(self.gradients, self.drift_gradients, directions, controls, resamples, seed)

    def choose_positions(self, layer: int, coverage: float = 0.9) -> PositionChoice:
        """The fewest prompt positions that hold ``coverage`` of what adding at ``resid_post`` of a layer does.

        Only prompt tokens that clean and corrupted runs share are looked at.

        Raises:
            StarError: as :meth:`effect` and :func:`star_tl.attribution.choose.choose_positions`.
        """
        self._directions(self.differences)
        check_whole(layer, "layer", least=0)
        if layer >= self.n_layers:
            raise StarError(f"layer is {layer}: the map has {self.n_layers} layers.")
        return choose_positions(self.position_effects[:, layer], coverage)

    def top_locus(self, coverage: float = 0.9, layer: int | None = None) -> Locus:
        """``resid_post`` of a layer, default the one that gains most, at :meth:`choose_positions`.

        Whether the pairs single out that layer is :attr:`LayerChoice.singled_out`; which share the resamples,
        :attr:`LayerChoice.tied`.

        Raises:
            StarError: as :meth:`choose_layer` and :meth:`choose_positions`.
        """
        layer = self.choose_layer().layer if layer is None else layer
        positions = self.choose_positions(layer, coverage).positions
        return Locus(hook_name("resid_post", layer), positions)

    def to_frame(self) -> pandas.DataFrame:
        """A row per layer: scores of every component, what it writes, its gain, and how often resamples choose it."""
        import pandas as pd

        frame = pd.DataFrame(self.layer_scores().T.numpy(), columns=list(COMPONENTS))
        frame.insert(0, "layer", range(self.n_layers))
        frame = frame.dropna(axis="columns")
        if set(WRITES) <= set(frame):
            frame["writes"] = self.writes().mean(0).numpy()
        if "resid_post" in frame:
            frame["completeness"] = self.completeness().numpy()
        if self.prices_layers:
            choice = self.choose_layer()
            frame["gain"], frame["resamples"] = choice.gain.numpy(), choice.frequency.numpy()
        return frame

    def plot(self, **options: Any) -> go.Figure:
        """Layer × component heatmap; options of all plots: ``layers``, ``style``, ``width`` (inches)."""
        from star_tl.view.plots import plot_layers

        return plot_layers(self, **options)

    def plot_heads(self, **options: Any) -> go.Figure:
        """Layer × head heatmap."""
        from star_tl.view.plots import plot_heads

        return plot_heads(self, **options)

    def plot_tokens(self, pair: int | None = None, component: str | None = None, **options: Any) -> go.Figure:
        """Layer × token heatmap of one pair, or of the mean over pairs at the prompt's end."""
        from star_tl.view.plots import plot_tokens

        return plot_tokens(self, pair=pair, component=component, **options)

    def plot_choice(self, **options: Any) -> go.Figure:
        """What drift buys at each layer, with bootstrap intervals, and how often it would be chosen."""
        from star_tl.view.plots import plot_choice

        return plot_choice(self, **options)

    def check(self, model: Model) -> None:
        """Raise StarError unless the map was computed with this model."""
        check_kind(model, MODELS, "a model that load_model returns")
        if fingerprint(model) != self.fingerprint:
            ours, theirs = quoted(self.model), quoted(str(model.cfg.model_name))
            other = f"with {ours}, not with {theirs}" if ours != theirs else f"with other weights than those of {ours}"
            raise StarError(f"This attribution map was computed {other}: attribute again.")

    def save(self, path: str | Path) -> None:
        """Write one safetensors file that :meth:`load` reads; missing folders are made.

        Raises:
            StarError: the file cannot be written.
        """
        meta = {name: str(getattr(self, name)) for name in _TEXTS}
        meta["format"] = _FORMAT
        meta["tokens"] = json.dumps(self.tokens)
        meta["spans"] = json.dumps([[(s.name, s.start, s.end) for s in row] for row in self.spans])
        meta["pair_ids"] = json.dumps(self.pair_ids)
        meta["control_names"] = json.dumps(self.control_names)
        save_tensors(path, {name: getattr(self, name) for name in _TENSORS}, meta)

    @classmethod
    def load(cls, path: str | Path) -> AttributionMap:
        """Read a file that :meth:`save` wrote. Raises StarError where it is something else, damaged or edited."""
        meta, tensors = load_tensors(path, "attribution map", _FORMAT, _TENSORS)
        with reading(path):
            return cls(
                **tensors,
                trait=meta["trait"],
                method=meta["method"],
                metric=meta["metric"],
                model=meta["model"],
                fingerprint=meta["fingerprint"],
                prompt_end=int(meta["prompt_end"]),
                tokens=tuple(tuple(t) for t in json.loads(meta["tokens"])),
                spans=tuple(tuple(Span(*s) for s in row) for row in json.loads(meta["spans"])),
                pair_ids=tuple(json.loads(meta["pair_ids"])),
                control_names=tuple(json.loads(meta["control_names"])),
            )

    def __repr__(self) -> str:
        gain = float((self.metric_clean - self.metric_corrupted).mean())
        said = [f"{self.trait}, {self.method}, {len(self.pair_ids)} pairs, {self.n_layers} layers"]
        if self.prices_layers:
            said.append(self.choose_layer().describe())
        said += [f"metric {gain:+.2f} nats", *filter(None, [self.caution])]
        return f"AttributionMap({'; '.join(said)})"

    def _repr_mimebundle_(self, include: object = None, exclude: object = None, **kwargs: Any) -> Mapping[str, object]:
        bundle = self.plot()._repr_mimebundle_(include, exclude, **kwargs)
        return bundle | {"text/plain": repr(self)}
