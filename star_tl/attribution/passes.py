"""Ways to run a micro-batch of pairs so that every hook point meets its difference and its gradient.

Each takes the same arguments and calls ``receive(point, layer, part, difference, gradient)`` for every hook point and
part of the tokens, after which difference and gradient are freed. Parameters get no gradient: the graph is rooted at
the first hook point. They return the metric of the corrupted and of the clean run, ``[2 pair]``.

``one_batch``        clean and corrupted rows in one forward and one backward pass
``two_passes``       the clean rows forward without a graph, then the corrupted rows: a backward pass of half
                     the rows, less work wherever a pass is bound by arithmetic
``manual_backward``  clean and corrupted rows in one forward pass, the gradient of the corrupted ones by formulas: the
                     fewest operators, for models that :mod:`star_tl.models.fast.forward` knows, and without rules
``layer_by_layer``   the residual stream of every layer is kept, and each layer is run again with a graph of its
                     own: memory of one layer's graph, for prompts that fit in no other way
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from star_tl.attribution.forward import BlockAlone, block_by_block, last_residual, predicting
from star_tl.attribution.rows import PairBatch, Part
from star_tl.locus import NamedHook, hook_name
from star_tl.models.backend import Model, attached, unembed
from star_tl.models.fast.backward import LlamaGradient
from star_tl.models.fast.forward import llama_forward
from star_tl.models.lens import HookedTransformer

Receive = Callable[[str, int, Part, Tensor, Tensor], None]
BOTH = slice(None)


@dataclass
class Roots:
    """Where the graph of a pass begins: at the first activation of each part of the tokens."""

    of: dict[Part, Tensor] = field(default_factory=dict)

    def begin(self, activation: Tensor, part: Part) -> Tensor:
        """The activation as a root, where its part has none yet; all others pass."""
        if part in self.of:
            return activation
        self.of[part] = activation.detach().requires_grad_()
        return self.of[part]

    def gradients(self, metrics: Float[Tensor, "run pair"]) -> tuple[Tensor, ...]:
        """The roots' gradients of the metrics' sum; on the way the hooks hear of all others."""
        return torch.autograd.grad(metrics.sum(), list(self.of.values()))


def one_batch(
    model: Model,
    rows: PairBatch,
    points: Sequence[str],
    receive: Receive,
    rules: Sequence[NamedHook] = (),
) -> Float[Tensor, "run pair"]:
    """See the module's docstring."""
    roots = Roots()

    def watch(part: Part, point: str, layer: int) -> NamedHook:
        def hook(activation: Tensor, hook: object) -> Tensor:
            activation = roots.begin(activation, part)
            half = len(activation) // 2
            corrupted, clean = activation.detach().split(half)
            difference = rows.difference(part, corrupted, clean)
            activation.register_hook(lambda g: receive(point, layer, part, difference, g[:half]))
            return activation

        return hook_name(point, layer), hook

    with torch.enable_grad():
        residual = last_residual(model, rows, BOTH, lambda part: [*rules, *_everywhere(model, points, part, watch)])
        metrics = rows.metrics(_logits(residual, model, rules))
        roots.gradients(metrics[0])
    return metrics.detach()


def two_passes(
    model: Model,
    rows: PairBatch,
    points: Sequence[str],
    receive: Receive,
    rules: Sequence[NamedHook] = (),
) -> Float[Tensor, "run pair"]:
    """See the module's docstring."""
    clean: dict[tuple[Part, str], Tensor] = {}
    roots = Roots()

    def keep(part: Part, point: str, layer: int) -> NamedHook:
        name = hook_name(point, layer)
        return name, lambda activation, hook: clean.__setitem__((part, name), activation)

    def watch(part: Part, point: str, layer: int) -> NamedHook:
        name = hook_name(point, layer)

        def hook(activation: Tensor, hook: object) -> Tensor:
            activation = roots.begin(activation, part)
            difference = rows.difference(part, activation.detach(), clean.pop((part, name)))
            activation.register_hook(lambda g: receive(point, layer, part, difference, g))
            return activation

        return name, hook

    corrupted_rows, clean_rows = slice(rows.size), slice(rows.size, None)
    with torch.no_grad():
        # The rules change no value, and with them both passes meet the same parts.
        residual = last_residual(
            model, rows, clean_rows, lambda part: [*rules, *_everywhere(model, points, part, keep)]
        )
        clean_metric = rows.metrics(unembed(model, residual))
    with torch.enable_grad():
        residual = last_residual(
            model, rows, corrupted_rows, lambda part: [*rules, *_everywhere(model, points, part, watch)]
        )
        metric = rows.metrics(_logits(residual, model, rules))
        roots.gradients(metric)
    return torch.cat([metric.detach(), clean_metric])


def manual_backward(
    model: HookedTransformer, rows: PairBatch, points: Sequence[str], receive: Receive
) -> Float[Tensor, "run pair"]:
    """See the module's docstring."""
    half, (tokens, positions, seen) = rows.size, rows.whole(BOTH)
    llama = llama_forward(model)
    assert llama is not None
    cos, sin = (t[positions][:, :, None] for t in llama.rotation(rows.positions(tokens), tokens.device))
    # No gradient reaches the last layer before the columns that predict replies, but they may have counterparts there.
    layers = LlamaGradient(llama, (cos, sin), seen, half, rows.first)
    differences: dict[tuple[str, int], Tensor] = {}

    def whole(late: Tensor) -> Tensor:
        early = tokens.shape[1] - late.shape[1]
        return F.pad(late, (*[0, 0] * (late.ndim - 2), early, 0)) if early else late

    def compare(point: str, layer: int, activation: Tensor) -> None:
        if point in points:
            differences[point, layer] = rows.difference("whole", *whole(activation).split(half))

    def score(point: str, layer: int, gradient: Tensor) -> None:
        if point in points:
            receive(point, layer, "whole", differences.pop((point, layer)), whole(gradient))

    corrupted, clean = layers.forward(F.embedding(tokens, model.embed.W_E), compare).split(half)
    with torch.no_grad():
        clean_metric = rows.metrics(unembed(model, predicting(clean, rows)))
    with torch.enable_grad():
        corrupted = corrupted.detach().requires_grad_()
        metric = rows.metrics(unembed(model, predicting(corrupted, rows)))
        (gradient,) = torch.autograd.grad(metric.sum(), corrupted)
    layers.backward(gradient, score)
    return torch.cat([metric.detach(), clean_metric])


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
        clean_metric = rows.metrics(unembed(model, residual))
    residual, corrupted = block_by_block(model, rows, slice(rows.size))
    with torch.enable_grad():
        residual.requires_grad_()
        metric = rows.metrics(_logits(residual, model, rules))
        (gradient,) = torch.autograd.grad(metric.sum(), residual)
    # The first column of the residual is the prompt's last token, before either reply.
    last = gradient[:, 0].view(2, rows.size, -1).sum(0)
    leaving = F.pad(last[:, None], (0, 0, rows.prompts.shape[1] - 1, 0)), gradient[:, 1:]
    for layer in reversed(range(model.cfg.n_layers)):
        leaving = _through_layer(rows, points, receive, rules, layer, corrupted.pop(), clean.pop(), leaving)
    return torch.cat([metric.detach(), clean_metric])


def _through_layer(
    rows: PairBatch,
    points: Sequence[str],
    receive: Receive,
    rules: Sequence[NamedHook],
    layer: int,
    corrupted: BlockAlone,
    clean: BlockAlone,
    leaving: tuple[Tensor, Tensor],
) -> tuple[Tensor, Tensor]:
    """The gradients of what enters a layer, of prompts and of replies, from those of what leaves it."""
    kept: dict[tuple[Part, str], Tensor] = {}

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
                activation.register_hook(lambda g: receive(point, layer, part, difference, g))
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
        given = [g.to(t.device) for g, t in zip(leaving, out, strict=True)]
        entering = torch.autograd.grad(out[:used], leaves[:used], given[:used])
    return entering[0], entering[1] if used == 2 else leaving[1]


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
    roots = Roots()
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
            return roots.begin(activation + step.to(activation.dtype), part)

        return start, hook

    def watch(part: Part, point: str, layer: int) -> NamedHook:
        name = hook_name(point, layer)

        def hook(activation: Tensor, hook: object) -> Tensor:
            def average(g: Tensor) -> None:
                wide = g.view(steps, -1, *g.shape[1:]).to(torch.promote_types(g.dtype, torch.float32))
                mean = torch.einsum("s,sr...->r...", weights.to(wide), wide)
                receive(point, layer, part, differences.pop((part, name)), mean)

            activation.register_hook(average)
            return activation

        return name, hook

    with torch.no_grad():
        residual = last_residual(model, rows, BOTH, lambda part: _everywhere(model, wanted, part, keep))
        metrics = rows.metrics(unembed(model, residual))
    with torch.enable_grad():
        residual = last_residual(
            model,
            rows,
            slice(rows.size),
            lambda part: [depart(part), *_everywhere(model, points, part, watch)],
            copies=steps,
        )
        roots.gradients(rows.metrics(unembed(model, residual)))
    return metrics


def _logits(residual: Tensor, model: Model, rules: Sequence[NamedHook]) -> Tensor:
    if not rules:  # to hang no hooks costs milliseconds, too
        return unembed(model, residual)
    with attached(model, rules):
        return unembed(model, residual)


def _everywhere(
    model: Model, points: Sequence[str], part: Part, make: Callable[[Part, str, int], NamedHook]
) -> list[NamedHook]:
    return [make(part, point, layer) for layer in range(model.cfg.n_layers) for point in points]


MODES = {"one_batch": one_batch, "two_passes": two_passes, "layer_by_layer": layer_by_layer}
