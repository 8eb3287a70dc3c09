"""What outcome attribution returns: rewards and gradients of replies, which tell any vector's effect and drift."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor

from star_tl.attribution.choose import GAIN_DRIFT
from star_tl.attribution.outcome import estimate
from star_tl.attribution.outcome.estimate import CrossFit, Estimate
from star_tl.data.chat import Message, as_prompts
from star_tl.errors import StarError, check_flag, check_kind, check_name, check_text, check_whole, quoted, shown
from star_tl.files import reading, regular_file, save_tensors
from star_tl.generation.settings import Sampling
from star_tl.locus import HOOK_POINTS, POINTS, Locus, hook_name
from star_tl.steering.positions import whole_numbers

if TYPE_CHECKING:
    import pandas
    import plotly.graph_objects as go

_FORMAT = "star_tl outcome 1"
GENERATED = "generated"
METHODS = ("plain", "natural")
FAR = 10  # layers of which a tenth of the depth lies between are rivals, not neighbours

Positions = str | Sequence[int] | None


@runtime_checkable
class Vector(Protocol):
    """What an effect is asked of: a :class:`star_tl.SteeringVector`, say."""

    @property
    def vector(self) -> Float[Tensor, "position d"]: ...
    @property
    def locus(self) -> Locus: ...


@dataclass(frozen=True)
class Direction:
    """A direction that raises the reward, scaled so that strength 1 costs GAIN_DRIFT (0.1) nats of drift a token.

    The scale and ``gain``, what that drift buys of the reward, are cross-fitted: direction from one half of the
    sample, drift and effect from the other. ``ridge`` is λ over the trace of F, infinite for the plain gradient.
    ``positions`` is None for the locus's own, or ``"generated"``. ``residual_norm`` is the mean norm of the activation.
    """

    vector: Float[Tensor, "position d"]
    locus: Locus
    positions: str | None
    method: str
    ridge: float
    gain: Estimate
    residual_norm: float
    n_prompts: int
    reward: str
    model: str
    fingerprint: str
    template: str


@dataclass(frozen=True)
class OutcomeMap:
    """Sampled replies, their rewards, and the gradient G of each one's log-probability.

    ``gradients`` of a hook point are ``[layer place reply d]``, for ``z`` ``[layer place reply head d]``: places are
    the ``window`` last prompt tokens, and then the sum over all tokens from the last one on (``"generated"``).
    They are kept whole in bfloat16, which rounds a product G · v by a thousandth or so of its size, far less than
    replies differ. Sums would not do: the error of an effect and the natural gradient need each reply's gradient, or
    d × d second moments, which take more room as long as there are fewer than d replies. A float64 model's stay in
    float64. ``norms`` are mean norms of the activations, ``[layer place]`` or ``[layer place head]``,
    and 0 at the last layer's prompt tokens before the last, which nothing reads.

    ``tokens`` counts what was drawn in each reply, the end of the turn included; drift a token is drift a reply over
    their mean. ``budget`` is how many replies were asked for: fewer are here where the best cells were apart before.

    Standard errors are over replies, those to one prompt counted together.
    """

    reward: str
    model: str
    fingerprint: str
    template: str
    sampling: Sampling
    seed: int
    budget: int
    prompts: tuple[tuple[Message, ...], ...]
    prompt: Int[Tensor, " reply"]
    replies: tuple[str, ...]
    rewards: Float[Tensor, " reply"]
    tokens: Int[Tensor, " reply"]
    log_probs: Float[Tensor, " reply"]
    gradients: Mapping[str, Tensor]
    norms: Mapping[str, Tensor]

    def __post_init__(self) -> None:
        for name in ("reward", "model", "fingerprint", "template"):
            check_text(getattr(self, name), f"{name} of an outcome map")
        check_kind(self.sampling, Sampling, "an outcome map's sampling as a Sampling")
        check_whole(self.seed, "seed", least=None)
        check_whole(self.budget, "budget")
        for name in ("prompts", "replies"):
            check_kind(getattr(self, name), (list, tuple), f"an outcome map's {name} as a list")
        for name in ("gradients", "norms"):
            check_kind(getattr(self, name), Mapping, f"an outcome map's {name} by hook point")
        numbers = (self.prompt, self.rewards, self.tokens, self.log_probs)
        for tensor in (*numbers, *self.gradients.values(), *self.norms.values()):
            check_kind(tensor, Tensor, "an outcome map's numbers as tensors")
        if any(t.ndim != 1 for t in numbers) or any(g.ndim < 4 for g in self.gradients.values()):
            raise StarError("An outcome map's rewards or gradients have another shape: attribute again.")
        if not all(isinstance(text, str) for text in self.replies):
            raise StarError("An outcome map's replies are no texts: attribute again.")
        n = len(self.replies)
        counts = {n, len(self.prompt), len(self.rewards), len(self.tokens), len(self.log_probs)}
        if len(counts | {g.shape[2] for g in self.gradients.values()}) != 1 or not self.gradients:
            raise StarError("An outcome map's replies, rewards and gradients differ in number: attribute again.")
        if not bool(self.rewards.isfinite().all()):
            raise StarError("An outcome map holds rewards that are not finite: attribute again.")
        if not bool(((self.prompt >= 0) & (self.prompt < len(self.prompts))).all()):
            raise StarError("An outcome map's replies are to prompts that it does not hold: attribute again.")
        if set(self.gradients) - set(POINTS) or set(self.gradients) != set(self.norms):
            raise StarError(f"An outcome map's hook points are some of {', '.join(POINTS)}: attribute again.")

    @property
    def n_layers(self) -> int:
        return next(iter(self.gradients.values())).shape[0]

    @property
    def window(self) -> int:
        """Number of prompt tokens, from the end, that gradients are kept for."""
        return next(iter(self.gradients.values())).shape[1] - 1

    @cached_property
    def advantages(self) -> Float[Tensor, " reply"]:
        """Reward less the mean reward of the prompt's other replies."""
        return estimate.advantages(self.rewards, self.prompt)

    @property
    def mean_tokens(self) -> float:
        return float(self.tokens.double().mean())

    @property
    def mean_reward(self) -> Estimate:
        """Of the unsteered model."""
        error = estimate.standard_error(self.rewards, self.prompt)
        return Estimate(float(self.rewards.mean()), float(error))

    def effect(self, vector: Vector, positions: Positions = None) -> Estimate:
        """Derivative of the expected reward by the vector's strength, at strength 0.

        Args:
            vector: any with ``vector`` and ``locus``, such as a :class:`star_tl.SteeringVector`.
            positions: ``"generated"``, ``"last_prompt"`` or positions within ``window``; default the locus's own. Where
                they are not the locus's, the mean of the vector's rows is added, as its hooks do.

        Raises:
            StarError: a hook point, layer or positions that the map holds no gradients for, or a vector of another
                width or another model.
        """
        return estimate.effect_of(self._along(vector, positions), self.advantages, self.prompt)

    def drift(self, vector: Vector, positions: Positions = None, per_token: bool = True) -> Estimate:
        """What strength 1 costs, to second order: nats a token, or a whole reply. Arguments as in :meth:`effect`."""
        check_flag(per_token, "per_token")
        return estimate.drift_of(self._along(vector, positions), self.tokens, self.prompt, per_token)

    def gain(self, vector: Vector, positions: Positions = None) -> Estimate:
        """What GAIN_DRIFT (0.1) nats of drift a token buy of the reward. Arguments as in :meth:`effect`.

        For a vector that was made from this very sample it flatters: see :meth:`direction`.
        """
        return estimate.gain_of(self._along(vector, positions), self.advantages, self.tokens, self.prompt)

    def direction(self, locus: Locus, positions: str | None = None, method: str = "plain") -> Direction:
        """The direction at a locus that raises the reward, with its cross-fitted gain.

        Args:
            locus: at one prompt token or several, each of which gets a row of its own.
            positions: ``"generated"`` for one direction added from the last prompt token on.
            method: ``"plain"``, E[(R − b) G], or ``"natural"``, (F + λI)⁻¹ E[(R − b) G] with λ by cross-validation.

        Raises:
            StarError: an unknown method, a place that the map does not hold, or rewards that are all the same.
        """
        check_name(method, METHODS, "method")
        check_kind(locus, Locus, "a Locus, such as outcome.top_locus()")
        if positions is not None and not (isinstance(positions, str) and positions == GENERATED):
            raise StarError(f"positions is {quoted(positions)}: use 'generated', or a locus with the positions wanted.")
        if not bool(self.advantages.any()):
            raise StarError("The reward is the same for every reply to a prompt: nothing raises it.")
        point, places = self._places(locus, positions)
        x = self._at(point, locus, places).flatten(1)
        wide = torch.promote_types(x.dtype, torch.float32)
        tokens = self.mean_tokens
        if method == "natural":
            ridge = estimate.best_ridge(x, self.rewards, self.prompt, tokens)
            fit = estimate.cross_fit_natural(x, self.rewards, self.prompt, tokens, ridge)
        else:
            ridge = float("inf")
            fit = estimate.cross_fit_plain(x.to(wide)[:, None], self.rewards, self.prompt, tokens)
        raw = estimate.natural_directions(x, self.advantages, (ridge,))[0].to(wide)
        if not float(fit.cost) > 0 or not float(raw.norm()) > 0:
            raise StarError(f"Nothing at {locus} changes any reply: name another place.")
        vector = raw / raw.norm() * (GAIN_DRIFT / float(fit.cost)) ** 0.5
        norms = self.norms[point][locus.layer, places]
        norms = norms if locus.head is None else norms[:, locus.head]
        error = float(estimate.standard_error(fit.influence, self.prompt)[0])
        return Direction(
            vector=vector.view(len(places), -1),
            locus=locus,
            positions=positions,
            method=method,
            ridge=ridge,
            gain=Estimate(float(fit.gain), error),
            residual_norm=float(norms.mean()),
            n_prompts=len(self.prompts),
            reward=self.reward,
            model=self.model,
            fingerprint=self.fingerprint,
            template=self.template,
        )

    def gains(self, point: str = "resid_post") -> Float[Tensor, "layer place *head"]:
        """Cross-fitted gain of the plain outcome direction of every cell, in units of the reward.

        Raises:
            StarError: the map holds no gradients at this hook point.
        """
        return self._cells(point)[0]

    def errors(self, point: str = "resid_post") -> Float[Tensor, "layer place *head"]:
        """Standard errors of :meth:`gains`."""
        return self._cells(point)[1]

    def top_locus(self, positions: str | None = None) -> Locus:
        """``resid_post`` where the outcome direction gains most: of all layers and single prompt tokens, or, with
        ``positions="generated"``, of all layers, at generated tokens (then the locus's own position is the last).
        """
        gains = self.gains()
        if isinstance(positions, str) and positions == GENERATED:
            return Locus(hook_name("resid_post", int(gains[:, -1].argmax())), (-1,))
        if positions is not None:
            raise StarError(f"positions is {quoted(positions)}: use 'generated', or leave it out for one prompt token.")
        layer, place = divmod(int(gains[:, :-1].argmax()), self.window)
        return Locus(hook_name("resid_post", layer), (place - self.window,))

    @property
    def apart(self) -> bool:
        """Whether the best layers are told from the others: of prompt tokens as of generated ones.

        The best cell's gain must exceed by two standard errors of the difference that of the best at a layer more than
        a tenth of the depth away (neighbours are never apart).
        """
        gains, _, influence = self._cells("resid_post")
        for columns in (slice(0, self.window), slice(self.window, None)):
            mine, adds = gains[:, columns].amax(1), influence[:, columns]
            chosen = gains[:, columns].argmax(1)
            best = int(mine.argmax())
            rivals = [i for i in range(self.n_layers) if abs(i - best) > self.n_layers / FAR]
            if not rivals:
                continue
            rival = max(rivals, key=lambda i: float(mine[i]))
            difference = adds[best, chosen[best]] - adds[rival, chosen[rival]]
            error = float(estimate.standard_error(difference, self.prompt))
            if not 0 < 2 * error <= float(mine[best] - mine[rival]):  # no error at all: nothing was seen to differ
                return False
        return True

    def to_frame(self) -> pandas.DataFrame:
        """A row per hook point, layer, position and head: the gain of its outcome direction, with its error."""
        import pandas as pd

        names = [*range(-self.window, 0), GENERATED]
        rows = []
        for point in self.gradients:
            gains, errors = self.gains(point), self.errors(point)
            for layer in range(self.n_layers):
                for place, name in enumerate(names):
                    heads = range(gains.shape[2]) if point == "z" else [None]
                    for head in heads:
                        at = (layer, place) if head is None else (layer, place, head)
                        cell = {"hook_point": point, "layer": layer, "position": name, "head": head}
                        rows.append(cell | {"gain": float(gains[at]), "error": float(errors[at])})
        return pd.DataFrame(rows).astype({"head": "Int64"})

    def plot(self, **options: Any) -> go.Figure:
        """Layer × position heatmap of the outcome direction's cross-fitted gain at ``resid_post``."""
        from star_tl.view.plots import plot_outcome

        return plot_outcome(self, **options)

    def plot_heads(self, positions: str | int = GENERATED, **options: Any) -> go.Figure:
        """Layer × head heatmap of the same at ``attn.hook_z``, of generated tokens or one prompt position."""
        from star_tl.view.plots import plot_outcome_heads

        return plot_outcome_heads(self, positions, **options)

    def save(self, path: str | Path) -> None:
        """Write one safetensors file that :meth:`load` reads."""
        tensors = {"prompt": self.prompt, "rewards": self.rewards, "tokens": self.tokens, "log_probs": self.log_probs}
        kept: dict[str, str] = {}  # hook points of the same gradients are written once
        for point, gradient in self.gradients.items():
            first = next((p for p in kept if self.gradients[p] is gradient), point)
            kept[point] = first
            if first == point:
                tensors[f"gradients.{point}"] = gradient
        tensors |= {f"norms.{point}": norm for point, norm in self.norms.items()}
        meta = {
            name: str(getattr(self, name)) for name in ("reward", "model", "fingerprint", "template", "seed", "budget")
        }
        meta |= {"format": _FORMAT, "kept": json.dumps(kept), "sampling": json.dumps(asdict(self.sampling))}
        meta |= {"prompts": json.dumps(self.prompts), "replies": json.dumps(self.replies)}
        save_tensors(path, tensors, meta)

    @classmethod
    def load(cls, path: str | Path) -> OutcomeMap:
        """Read a file that :meth:`save` wrote. Raises StarError where it is something else, damaged or edited."""
        from safetensors import SafetensorError, safe_open

        path = regular_file(path, "outcome map")
        try:
            with safe_open(str(path), framework="pt") as file:
                meta = file.metadata() or {}
                if meta.get("format") != _FORMAT:
                    raise StarError(f"{path} is no outcome map of this version of star_tl: attribute again.")
                found = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a dict
        except (SafetensorError, OSError) as error:
            raise StarError(f"{path} cannot be read as safetensors ({shown(str(error))}): attribute again.") from None
        with reading(path):
            kept, sampling = json.loads(meta["kept"]), json.loads(meta["sampling"])
            return cls(
                **{name: meta[name] for name in ("reward", "model", "fingerprint", "template")},
                **{name: found[name] for name in ("prompt", "rewards", "tokens", "log_probs")},
                sampling=Sampling(**sampling | {"stop": tuple(sampling["stop"])}),
                seed=int(meta["seed"]),
                budget=int(meta["budget"]),
                prompts=tuple(as_prompts(json.loads(meta["prompts"]))),
                replies=tuple(json.loads(meta["replies"])),
                gradients={point: found[f"gradients.{first}"] for point, first in kept.items()},
                norms={point: found[f"norms.{point}"] for point in kept},
            )

    def __repr__(self) -> str:
        n, known = len(self.replies), f"OutcomeMap({self.reward}, mean {self.mean_reward}"
        replies = f"{n} replies to {len(self.prompts)} prompts"
        why = "best layers apart" if n < self.budget else "budget spent"
        if "resid_post" not in self.gradients:
            return f"{known}, {replies}, {why})"
        locus = self.top_locus()
        layer = self.top_locus(GENERATED).layer
        cells = [Estimate(float(self.gains()[at]), float(self.errors()[at])) for at in self._best(locus, layer)]
        prompt = f"gains most at layer {locus.layer} @ {locus.positions[0]} ({cells[0]})"
        return f"{known}, {replies}, {why}; {prompt}, generated: layer {layer} ({cells[1]}))"

    def _repr_mimebundle_(self, include: object = None, exclude: object = None, **kwargs: Any) -> Mapping[str, object]:
        drawn = self.plot()._repr_mimebundle_(include, exclude, **kwargs) if "resid_post" in self.gradients else {}
        return drawn | {"text/plain": repr(self)}

    def _best(self, locus: Locus, layer: int) -> tuple[tuple[int, int], tuple[int, int]]:
        return (locus.layer, self.window + locus.positions[0]), (layer, self.window)

    @cached_property
    def _found(self) -> dict[str, tuple[Tensor, Tensor, Tensor]]:
        return {}

    def _cells(self, point: str) -> tuple[Tensor, Tensor, Tensor]:
        """Gains, errors and influences, ``[layer place *head (reply)]``; computed once a hook point."""
        self._check_point(point)
        if point not in self._found:
            same = next((p for p in self._found if self.gradients[p] is self.gradients[point]), None)
            self._found[point] = self._found[same] if same else self._cross_fitted(self.gradients[point])
        return self._found[point]

    def _cross_fitted(self, gradients: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        fits: list[CrossFit] = []
        for layer in gradients:  # one layer at a time in a wider dtype
            wide = layer.to(torch.promote_types(layer.dtype, torch.float32)).transpose(0, 1).flatten(1, -2)
            fits.append(estimate.cross_fit_plain(wide, self.rewards, self.prompt, self.mean_tokens))
        shape = (*gradients.shape[:2], *gradients.shape[3:-1])
        gains = torch.stack([fit.gain for fit in fits]).view(shape)
        influence = torch.stack([fit.influence for fit in fits]).view(*shape, -1)
        return gains, estimate.standard_error(influence, self.prompt), influence

    def _check_point(self, point: str) -> None:
        if point not in self.gradients:
            raise StarError(f"This map holds no gradients at {point!r}, only at {', '.join(self.gradients)}.")

    def _places(self, locus: Locus, positions: Positions) -> tuple[str, list[int]]:
        """The hook point's short name, and indices of places."""
        point = POINTS[HOOK_POINTS.index(locus.hook_point.split(".", 2)[2])]
        self._check_point(point)
        if not 0 <= locus.layer < self.n_layers:
            raise StarError(f"The map has {self.n_layers} layers and no {locus.hook_point}: name another.")
        if locus.head is not None and not 0 <= locus.head < self.gradients[point].shape[3]:
            raise StarError(f"The map has no head {locus.head}: it has {self.gradients[point].shape[3]} a layer.")
        if isinstance(positions, str) and positions == GENERATED:
            return point, [self.window]
        if isinstance(positions, str) and positions not in ("locus", "last_prompt"):
            raise StarError(
                f"An outcome map knows no positions {quoted(positions)}: use 'generated', 'last_prompt' or positions "
                "of prompt tokens."
            )
        if positions is None or (isinstance(positions, str) and positions == "locus"):
            numbers = locus.positions
        else:
            numbers = (-1,) if isinstance(positions, str) else whole_numbers(positions)
        if min(numbers) < -self.window or max(numbers) > -1:
            raise StarError(
                f"The map holds the last {self.window} prompt tokens, not {numbers}: use -{self.window} to -1."
            )
        return point, [self.window + p for p in numbers]

    def _at(self, point: str, locus: Locus, places: list[int]) -> Float[Tensor, "reply place d"]:
        found = self.gradients[point][locus.layer, places]
        found = found if locus.head is None else found[:, :, locus.head]
        return found.transpose(0, 1)

    def _along(self, vector: Vector, positions: Positions) -> Float[Tensor, " reply"]:
        check_kind(vector, Vector, "a SteeringVector")
        if getattr(vector, "fingerprint", self.fingerprint) != self.fingerprint:
            raise StarError(f"The vector is of another model than this outcome map's {self.model!r}: extract it again.")
        point, places = self._places(vector.locus, positions)
        rows = vector.vector
        own = (positions is None or (isinstance(positions, str) and positions == "locus")) or (
            not isinstance(positions, str) and set(whole_numbers(positions)) == set(vector.locus.positions)
        )
        if own:
            _, places = self._places(vector.locus, None)
        gradients = self._at(point, vector.locus, places)
        if rows.shape[-1] != gradients.shape[-1]:
            raise StarError(
                f"The vector has width {rows.shape[-1]}, and {vector.locus} {gradients.shape[-1]}: name another."
            )
        added = rows if own else rows.mean(0, keepdim=True)
        return torch.einsum("rpd,pd->r", gradients.double(), added.double().cpu().expand(len(places), -1))
