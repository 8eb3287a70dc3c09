"""Ways to run a micro-batch of pairs so that every hook point meets its difference and its gradient.

Each takes the same arguments and calls ``receive(objective, point, layer, part, difference, gradient)`` for every
hook point and part of the tokens, after which difference and gradient are freed. The gradient is the trait metric's;
where ``resid_post`` is asked for, a gradient of drift comes first (:func:`star_tl.attribution.forward.drift_probe`),
from the same forward pass. Parameters get no gradient: the graph is rooted at the first hook point. They return the
trait metric of the corrupted and of the clean run, ``[2 pair]``.

``one_batch``       clean and corrupted rows in one forward and one backward pass
``two_passes``      the clean rows forward without a graph, then the corrupted rows: a backward pass of half
                    the rows, less work wherever a pass is bound by arithmetic
``by_hand``         clean and corrupted rows in one forward pass, the gradient of the corrupted ones by formulas: the
                    fewest operators, for models that :mod:`star_tl.models.fast.forward` knows, and without rules
``layer_by_layer``  the residual stream of every layer is kept, and each layer is run again with a graph of its
                    own: memory of one layer's graph, for prompts that fit in no other way
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from star_tl.attribution.forward import BlockAlone, block_by_block, last_residual, predicting
from star_tl.attribution.objective import drift_probe, metrics_of, run_metrics
from star_tl.attribution.rows import PairBatch, Part
from star_tl.locus import NamedHook, hook_name
from star_tl.models.backend import Model, attached, unembed
from star_tl.models.fast.backward import LeanGradient
from star_tl.models.fast.forward import LeanForward
from star_tl.models.lens import HookedTransformer

Objective = Literal["drift", "metric"]
Receive = Callable[[Objective, str, int, Part, Tensor, Tensor], None]
BOTH = slice(None)


def one_batch(
    model: Model,
    rows: PairBatch,
    points: Sequence[str],
    receive: Receive,
    rules: Sequence[NamedHook] = (),
) -> Float[Tensor, "run pair"]:
    """See the module's docstring."""
    roots: dict[Part, Tensor] = {}
    now: list[Objective] = []

    def watch(part: Part, point: str, layer: int) -> NamedHook:
        def hook(activation: Tensor, hook: object) -> Tensor:
            activation = _rooted(activation, part, roots)
            half = len(activation) // 2
            corrupted, clean = activation.detach().split(half)
            difference = rows.difference(part, corrupted, clean)
            activation.register_hook(lambda g: receive(now[0], point, layer, part, difference, g[:half]))
            return activation

        return hook_name(point, layer), hook

    with torch.enable_grad():
        residual = last_residual(model, rows, BOTH, lambda part: [*rules, *_everywhere(model, points, part, watch)])
        return _backward(_logits(residual, model, rules), rows, points, list(roots.values()), now)[0]


def two_passes(
    model: Model,
    rows: PairBatch,
    points: Sequence[str],
    receive: Receive,
    rules: Sequence[NamedHook] = (),
) -> Float[Tensor, "run pair"]:
    """See the module's docstring."""
    clean: dict[tuple[Part, str], Tensor] = {}
    roots: dict[Part, Tensor] = {}
    now: list[Objective] = []

    def keep(part: Part, point: str, layer: int) -> NamedHook:
        name = hook_name(point, layer)
        return name, lambda activation, hook: clean.__setitem__((part, name), activation)

    def watch(part: Part, point: str, layer: int) -> NamedHook:
        name = hook_name(point, layer)

        def hook(activation: Tensor, hook: object) -> Tensor:
            activation = _rooted(activation, part, roots)
            difference = rows.difference(part, activation.detach(), clean.pop((part, name)))
            activation.register_hook(lambda g: receive(now[0], point, layer, part, difference, g))
            return activation

        return name, hook

    corrupted_rows, clean_rows = slice(rows.size), slice(rows.size, None)
    with torch.no_grad():
        # The rules change no value, and with them both passes meet the same parts.
        residual = last_residual(
            model, rows, clean_rows, lambda part: [*rules, *_everywhere(model, points, part, keep)]
        )
        clean_metric = run_metrics(residual, model, rows)
    with torch.enable_grad():
        residual = last_residual(
            model, rows, corrupted_rows, lambda part: [*rules, *_everywhere(model, points, part, watch)]
        )
        metric, _ = _backward(_logits(residual, model, rules), rows, points, list(roots.values()), now)
    return torch.cat([metric, clean_metric])


def by_hand(
    model: HookedTransformer, rows: PairBatch, points: Sequence[str], receive: Receive
) -> Float[Tensor, "run pair"]:
    """See the module's docstring."""
    half, (tokens, positions, seen) = rows.size, rows.whole(BOTH)
    lean = LeanForward(model)
    cos, sin = (t[positions][:, :, None] for t in lean.rotation(int(positions.max()) + 1, tokens.device))
    # No gradient reaches the last layer before the columns that predict replies, but they may have counterparts there.
    first = int(rows.gather[:, rows.prompts.shape[1] - 1 :].min())
    layers = LeanGradient(lean, (cos, sin), seen, half, first)
    differences: dict[tuple[str, int], Tensor] = {}

    def whole(late: Tensor) -> Tensor:
        early = tokens.shape[1] - late.shape[1]
        return F.pad(late, (*[0, 0] * (late.ndim - 2), early, 0)) if early else late

    def compare(point: str, layer: int, activation: Tensor) -> None:
        if point in points:
            differences[point, layer] = rows.difference("whole", *whole(activation).split(half))

    def score(point: str, layer: int, gradient: Tensor) -> None:
        if point in points:
            receive("metric", point, layer, "whole", differences.pop((point, layer)), whole(gradient))

    def price(layer: int, gradient: Tensor) -> None:
        receive("drift", "resid_post", layer, "whole", differences["resid_post", layer], whole(gradient))

    corrupted, clean = layers.forward(F.embedding(tokens, model.embed.W_E), compare).split(half)
    with torch.no_grad():
        clean_metric = run_metrics(predicting(clean, rows), model, rows)
    with torch.enable_grad():
        corrupted = corrupted.detach().requires_grad_()
        logits = unembed(model, predicting(corrupted, rows))
        metric, gradients = _backward(logits, rows, points, [corrupted], [])
    if "drift" in gradients:  # of which only what follows from the last prompt token is wanted
        drift = gradients["drift"][:, rows.prompts.shape[1] - 1 - tokens.shape[1] :]
        layers.backward(gradients["metric"], score, drift, price)
    else:
        layers.backward(gradients["metric"], score)
    return torch.cat([metric, clean_metric])


def layer_by_layer(
    model: Model,
    rows: PairBatch,
    points: Sequence[str],
    receive: Receive,
    rules: Sequence[NamedHook] = (),
) -> Float[Tensor, "run pair"]:
    """See the module's docstring."""
    with torch.no_grad():
        residual, clean = block_by_block(model, rows, slice(rows.size, None))
        clean_metric = run_metrics(residual, model, rows)
    residual, corrupted = block_by_block(model, rows, slice(rows.size))
    with torch.enable_grad():
        residual.requires_grad_()
        metric, found = _backward(_logits(residual, model, rules), rows, points, [residual], [])
    gradients: dict[Objective, dict[Part, Tensor]] = {}
    for objective, gradient in found.items():
        # The first column of the residual is the prompt's last token, before either reply.
        last = gradient[:, 0].view(2, rows.size, -1).sum(0)
        prompt_gradient = F.pad(last[:, None], (0, 0, rows.prompts.shape[1] - 1, 0))
        gradients[objective] = {"prompts": prompt_gradient, "replies": gradient[:, 1:]}
    for layer in reversed(range(model.cfg.n_layers)):
        gradients = _through_layer(rows, points, receive, rules, layer, corrupted.pop(), clean.pop(), gradients)
    return torch.cat([metric, clean_metric])


def _through_layer(
    rows: PairBatch,
    points: Sequence[str],
    receive: Receive,
    rules: Sequence[NamedHook],
    layer: int,
    corrupted: BlockAlone,
    clean: BlockAlone,
    gradients: dict[Objective, dict[Part, Tensor]],
) -> dict[Objective, dict[Part, Tensor]]:
    kept: dict[tuple[Part, str], Tensor] = {}
    now: list[Objective] = []

    def keep(part: Part) -> list[NamedHook]:
        return [
            (
                hook_name(point, layer),
                lambda activation, hook, point=point: kept.__setitem__((part, point), activation),
            )
            for point in points
        ]

    def watch(part: Part) -> list[NamedHook]:
        def at(point: str) -> NamedHook:
            def hook(activation: Tensor, hook: object) -> Tensor:
                difference = rows.difference(part, activation.detach(), kept.pop((part, point)))
                activation.register_hook(lambda g: receive(now[0], point, layer, part, difference, g))
                return activation

            return hook_name(point, layer), hook

        return [*rules, *map(at, points)]

    with torch.no_grad():
        clean.through(clean.prompt, clean.reply, keep)
    leaves = [t.detach().requires_grad_() for t in (corrupted.prompt, corrupted.reply)]
    with torch.enable_grad():
        # Views: a hook on a tensor that autograd.grad asks for fires too late to be of use.
        prompt, reply = (t.view_as(t) for t in leaves)
        out = corrupted.through(prompt, reply, watch)
        used = 2 if reply.shape[1] else 1
        entering: dict[Objective, dict[Part, Tensor]] = {}
        for objective, leaving in gradients.items():
            now[:] = [objective]
            given = [leaving[part].to(t.device) for part, t in zip(("prompts", "replies"), out, strict=True)]
            found = torch.autograd.grad(out[:used], leaves[:used], given[:used], retain_graph=objective == "drift")
            entering[objective] = {"prompts": found[0], "replies": found[1] if used == 2 else leaving["replies"]}
    return entering


def along_path(
    model: Model,
    rows: PairBatch,
    points: Sequence[str],
    receive: Receive,
    fractions: Sequence[tuple[float, float]],
) -> Float[Tensor, "run pair"]:
    """Gradients averaged along the straight path of the first layer's input from corrupted to clean.

    ``fractions`` are points of the path with their weights; all are rows of one batch. Differences
    come from a pass without a graph.
    """
    steps = len(fractions)
    differences: dict[tuple[Part, str], Tensor] = {}
    roots: dict[Part, Tensor] = {}
    now: list[Objective] = []
    shares, weights = torch.tensor(fractions, device=model.cfg.device).unbind(1)
    start = hook_name("resid_pre", 0)
    wanted = tuple(dict.fromkeys(("resid_pre", *points)))

    def keep(part: Part, point: str, layer: int) -> NamedHook:
        name = hook_name(point, layer)

        def hook(activation: Tensor, hook: object) -> None:
            differences[part, name] = rows.difference(part, *activation.split(len(activation) // 2))

        return name, hook

    def depart(part: Part) -> NamedHook:
        def hook(activation: Tensor, hook: object) -> Tensor:
            way = differences[part, start]
            step = way.repeat(steps, 1, 1) * shares.repeat_interleave(len(way))[:, None, None]
            return _rooted(activation + step.to(activation.dtype), part, roots)

        return start, hook

    def watch(part: Part, point: str, layer: int) -> NamedHook:
        name = hook_name(point, layer)

        def hook(activation: Tensor, hook: object) -> Tensor:
            def average(g: Tensor) -> None:
                wide = g.view(steps, -1, *g.shape[1:]).to(torch.promote_types(g.dtype, torch.float32))
                mean = torch.einsum("s,sr...->r...", weights.to(wide), wide)
                receive(now[0], point, layer, part, differences[part, name], mean)
                if now[0] == "metric":
                    del differences[part, name]

            activation.register_hook(average)
            return activation

        return name, hook

    with torch.no_grad():
        residual = last_residual(model, rows, BOTH, lambda part: _everywhere(model, wanted, part, keep))
        metrics = run_metrics(residual, model, rows)
    with torch.enable_grad():
        residual = last_residual(
            model,
            rows,
            slice(rows.size),
            lambda part: [depart(part), *_everywhere(model, points, part, watch)],
            copies=steps,
        )
        _backward(unembed(model, residual), rows, points, list(roots.values()), now, steps)
    return metrics


def _objectives(points: Sequence[str]) -> tuple[Objective, ...]:
    """Whose gradients a pass gives, in this order."""
    return ("drift", "metric") if "resid_post" in points else ("metric",)


def _logits(residual: Tensor, model: Model, rules: Sequence[NamedHook]) -> Tensor:
    if not rules:  # to hang no hooks costs milliseconds, too
        return unembed(model, residual)
    with attached(model, rules):
        return unembed(model, residual)


def _backward(
    logits: Float[Tensor, "row reply vocab"],
    rows: PairBatch,
    points: Sequence[str],
    roots: list[Tensor],
    now: list[Objective],
    corrupted_runs: int = 1,
) -> tuple[Float[Tensor, "run pair"], dict[Objective, Tensor]]:
    """The metrics, and from each objective on the corrupted runs, the first, the gradient of the first root.

    ``now`` tells the hooks on the way whose gradient passes.
    """
    metrics, found = metrics_of(logits, rows), {}
    for objective in _objectives(points):
        now[:] = [objective]
        if objective == "drift":
            corrupted = logits[: 2 * rows.size * corrupted_runs]
            pull = drift_probe(corrupted.detach(), rows)
            found[objective] = torch.autograd.grad(corrupted, roots, pull, retain_graph=True)[0]
        else:
            found[objective] = torch.autograd.grad(metrics[:corrupted_runs].sum(), roots)[0]
    return metrics.detach(), found


def _rooted(activation: Tensor, part: Part, roots: dict[Part, Tensor]) -> Tensor:
    """The first activation of each part becomes a root of the graph; all others pass."""
    if part in roots:
        return activation
    roots[part] = activation.detach().requires_grad_()
    return roots[part]


def _everywhere(
    model: Model, points: Sequence[str], part: Part, make: Callable[[Part, str, int], NamedHook]
) -> list[NamedHook]:
    return [make(part, point, layer) for layer in range(model.cfg.n_layers) for point in points]


MODES = {"one_batch": one_batch, "two_passes": two_passes, "layer_by_layer": layer_by_layer}
