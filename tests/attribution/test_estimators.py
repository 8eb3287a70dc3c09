"""Integrated gradients, the choice of hook points, memory modes and the label-shuffling null."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import by_hand
import numpy as np
import pytest
import torch
from by_hand import equal_length_pair, unequal_pairs
from torch import Tensor

import star_tl as star
from star_tl.attribution import ESTIMATORS, Replies, atp
from star_tl.attribution.align import ALIGNMENTS, prepare
from star_tl.attribution.map import AttributionMap
from star_tl.attribution.rows import pair_batch
from star_tl.errors import StarError
from star_tl.locus import COMPONENTS
from star_tl.models import memory
from star_tl.models.fast.backward import LlamaGradient
from star_tl.models.fast.forward import LlamaForward
from star_tl.models.lens import HookedTransformer


@pytest.fixture(scope="module")
def model(write_llama: Callable[..., Path]) -> HookedTransformer:
    """Three layers with grouped queries in float64."""
    return star.load_model(str(write_llama()), dtype="float64")


def attribute(model: HookedTransformer, pairs: star.Pairs, **more: Any) -> AttributionMap:
    return star.attribute(model, pairs, progress=False, **more)


# Integrated gradients.


@pytest.mark.parametrize("metric", ["logit", "logprob"])
def test_integrated_gradients_account_for_the_whole_change_of_the_metric(model: HookedTransformer, metric: str) -> None:
    pairs = equal_length_pair(metric)  # every token has a counterpart: the path ends in the clean run
    change = {
        steps: attribute(model, pairs, method="ig", steps=steps, alignment="strict").component("resid_pre")[0, 0].sum()
        for steps in (1, 48)
    }
    attr = attribute(model, pairs, method="ig", alignment="strict")
    wanted = attr.metric_clean - attr.metric_corrupted
    assert abs(float(wanted)) > 1e-2
    torch.testing.assert_close(change[48][None], wanted, rtol=1e-4, atol=1e-6)
    assert abs(float(change[1] - wanted)) > 10 * abs(float(change[48] - wanted)), "more steps must come nearer"


def test_integrated_gradients_equal_a_loop_over_the_path(model: HookedTransformer) -> None:
    pairs, steps = equal_length_pair("logprob"), 3
    (one,) = pairs
    attr = attribute(model, pairs, method="ig", steps=steps, alignment="strict")
    clean, corrupted = (torch.tensor([x]) for x in by_hand.prompts(model, pairs, one))
    replies = [by_hand.reply(model, text) for text in (one.positive, one.negative)]
    place = "blocks.1.hook_mlp_out"
    start = "blocks.0.hook_resid_pre"
    nodes, weights = np.polynomial.legendre.leggauss(steps)
    gradient: Any = 0.0
    difference: Any = None
    for reply, sign in zip(replies, (1, -1), strict=True):
        tail = torch.tensor([reply])
        rows = [torch.cat([t, tail], 1) for t in (clean, corrupted)]
        caches = [model.run_with_cache(r)[1] for r in rows]
        difference = (caches[0][place] - caches[1][place])[0, : clean.shape[1]]
        way = caches[0][start] - caches[1][start]
        for node, weight in zip(nodes, weights, strict=True):
            kept: list[Tensor] = []

            def depart(a: Tensor, hook: object, way: Tensor = way, node: float = node) -> Tensor:
                return (a + (node + 1) / 2 * way).requires_grad_()

            def keep(a: Tensor, hook: object, kept: list[Tensor] = kept) -> None:
                kept.append(a)

            logits = model.run_with_hooks(rows[1], fwd_hooks=[(start, depart), (place, keep)])
            logprobs = logits[0, clean.shape[1] - 1 : -1].log_softmax(-1).gather(-1, tail[0][:, None])
            (g,) = torch.autograd.grad(logprobs.mean(), kept)
            gradient = gradient + sign * weight / 2 * g[0, : clean.shape[1]]
    truth = (difference * gradient).sum(-1)
    assert float(truth.abs().max()) > 1e-3
    torch.testing.assert_close(attr.component("mlp_out")[0, 1, : attr.prompt_end].double(), truth, rtol=1e-4, atol=1e-7)


# Options.


def test_hook_points_that_were_not_asked_for_are_unknown_and_the_others_the_same(model: HookedTransformer) -> None:
    everything = attribute(model, unequal_pairs())
    some = attribute(model, unequal_pairs(), hook_points=["attn_out", "z"])
    torch.testing.assert_close(some.component("attn_out"), everything.component("attn_out"))
    torch.testing.assert_close(some.head_scores, everything.head_scores)
    assert bool(some.scores[:, COMPONENTS.index("resid_post")].isnan().all())
    with pytest.raises(StarError, match="no gradient at resid_post to choose by: attribute with hook_points"):
        some.choose_layer()
    assert "metric" in repr(some)
    assert list(some.to_frame().columns) == ["layer", "attn_out"]
    one = attribute(model, unequal_pairs(), hook_points=["resid_post"])
    torch.testing.assert_close(one.choose_layer().gain, everything.choose_layer().gain)
    assert list(one.to_frame().columns) == ["layer", "resid_post", "completeness", "gain", "resamples"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"method": "atp", "steps": 4}, "steps is for ig, and 'atp' takes none"),
        ({"method": "ig", "mode": "two_passes"}, "mode is for atp and relp"),
        ({"draws": 0}, "draws is 0: use a whole number, at least 1"),
        ({"metric": "logpro"}, "Did you mean 'logprob'"),
        ({"method": "ig", "steps": 0}, "steps is 0"),
        ({"mode": "two_pases"}, "Did you mean 'two_passes'"),
        ({"hook_points": ["mlp_ot"]}, "Did you mean 'mlp_out'"),
        ({"hook_points": []}, "no hook points"),
        ({"batch_size": 0}, "at least 1"),
        ({"alignment": "left"}, "Unknown alignment 'left'"),
        ({"alignment": "strict"}, "pair 'short' has a clean prompt of .* use alignment='spans'"),
    ],
)
def test_unknown_and_conflicting_options_name_the_remedy(
    model: HookedTransformer, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(StarError, match=message):
        attribute(model, unequal_pairs(), **options)


@pytest.mark.parametrize("mode", ["one_batch", "two_passes", "layer_by_layer"])
def test_relp_is_the_same_in_every_mode(model: HookedTransformer, mode: str) -> None:
    got, wanted = (attribute(model, unequal_pairs(), method="relp", **m) for m in ({"mode": mode}, {}))
    torch.testing.assert_close(got.scores, wanted.scores)
    torch.testing.assert_close(got.head_steering, wanted.head_steering)


@pytest.mark.parametrize("difference", [1, 5, 40])
@pytest.mark.parametrize("longer", ["clean", "corrupted"])
def test_right_alignment_counts_from_the_prompts_end(model: HookedTransformer, longer: str, difference: int) -> None:
    long, short = "Be good" + " so" * difference, "Be good"
    positive, negative = (long, short) if longer == "clean" else (short, long)
    pairs = by_hand.make_pairs(by_hand.pair("a", "I lost my keys.", "Yes", "No"), positive=positive, negative=negative)
    (p,) = prepare(model, pairs, alignment="right")
    clean, corrupted = p.clean.ids, p.corrupted.ids
    shift = len(clean) - len(corrupted)
    assert abs(shift) >= difference
    for i in range(max(1, 1 - shift), len(corrupted)):
        assert p.counterpart[i] == i + shift
    assert p.counterpart[0] == -1, "the first token has no counterpart but itself"
    matched = sum(j >= 0 for j in p.counterpart)
    assert p.unaligned == pytest.approx(1 - 2 * (matched + 1) / (len(clean) + len(corrupted)))


def test_all_alignments_agree_where_prompts_have_equal_length(model: HookedTransformer) -> None:
    # Of equal tokens, too, but for one word, which stands in the place of another.
    pairs = by_hand.make_pairs(
        by_hand.pair("a", "I lost.", "Yes", "No", clean="Is it so good", corrupted="Is it so bad")
    )
    prompts = by_hand.prompts(model, pairs, pairs[0])
    assert len(prompts[0]) == len(prompts[1])
    spans, right, strict = (attribute(model, pairs, alignment=a) for a in ALIGNMENTS)
    torch.testing.assert_close(right.scores, spans.scores)
    torch.testing.assert_close(strict.scores, spans.scores)
    assert float(spans.unaligned) == 0
    assert 0 < float(spans.equal_tokens) < 1


# The metric.


def largest_logit_gap(logits: Tensor, replies: Replies) -> Tensor:
    """Squares, so that it is neither of the named metrics: each reply's log-probability of its first token, squared."""
    first = logits[:, 0].log_softmax(-1).gather(-1, replies.tokens[:, :1])[:, 0]
    spread = (logits.std(-1) * replies.mask).sum(-1) / replies.mask.sum(-1)
    positive, negative = (first.square() + spread).chunk(2)
    return positive - 0.5 * negative


@pytest.mark.parametrize("options", [{}, {"mode": "two_passes"}, {"mode": "layer_by_layer"}])
def test_a_metric_of_ones_own_is_differentiated(model: HookedTransformer, options: dict[str, Any]) -> None:
    pairs, step, layer = unequal_pairs(), 1e-4, 1
    attr = attribute(model, pairs, metric=largest_logit_gap, batch_size=3, **options)
    assert attr.metric == "largest_logit_gap"
    for i, one in enumerate(pairs):
        _, prompt = by_hand.prompts(model, pairs, one)
        answers = [by_hand.reply(model, text) for text in (one.positive, one.negative)]
        width = max(map(len, answers))
        replies = Replies(
            torch.tensor([a + [0] * (width - len(a)) for a in answers]),
            torch.tensor([[k < len(a) for k in range(width)] for a in answers]),
            torch.tensor([False]),
        )

        def value(
            by: float, prompt: Any = prompt, answers: Any = answers, width: int = width, r: Any = replies
        ) -> float:
            def add(activation: Tensor, hook: object) -> Tensor:
                activation[0, len(prompt) - 1] += by * attr.differences[layer]
                return activation

            rows = torch.zeros(2, width, model.cfg.d_vocab, dtype=torch.float64)
            for row, answer in zip(rows, answers, strict=True):
                logits = model.run_with_hooks(
                    torch.tensor([prompt + answer]), fwd_hooks=[(f"blocks.{layer}.hook_resid_post", add)]
                )
                row[: len(answer)] = logits[0, len(prompt) - 1 : -1]
            return float(largest_logit_gap(rows, r))

        assert float(attr.metric_corrupted[i]) == pytest.approx(value(0.0), rel=1e-5)
        slope = (value(step) - value(-step)) / (2 * step)
        assert float(attr.effect(attr.differences)[i, layer]) == pytest.approx(slope, rel=1e-3, abs=1e-6)
        assert abs(slope) > 1e-4


def test_one_metric_for_all_pairs_replaces_what_they_name(model: HookedTransformer) -> None:
    # Of one token the two are the same, for both logits have one normaliser.
    named, own = (attribute(model, equal_length_pair("logit"), metric=m) for m in ("logprob", None))
    torch.testing.assert_close(named.scores, own.scores)
    assert named.metric_clean.abs().min() > 1e-3
    with pytest.raises(StarError, match="use one token each"):
        attribute(model, unequal_pairs(), metric="logit")


def test_exact_patching_and_verification_take_the_same_metric(model: HookedTransformer) -> None:
    pairs = equal_length_pair("logprob")
    attr = attribute(model, pairs, metric=largest_logit_gap, alignment="strict")
    options: dict[str, Any] = {"metric": largest_logit_gap, "alignment": "strict", "progress": False}
    found = star.verify(model, pairs, attr, top_k=6, sample=12, **options)
    assert found.pearson > 0.7
    with pytest.raises(StarError, match="give verify the same function"):
        star.verify(model, pairs, attr, progress=False)


def test_every_estimator_is_known_by_its_record() -> None:
    for key, estimator in ESTIMATORS.items():
        assert key == estimator.key
        assert str(estimator) in (star.attribute.__doc__ or "")


# Memory.


def saved_bytes(model: HookedTransformer, mode: str) -> int:
    """The most that autograd holds at once, in bytes of distinct storages."""
    held: dict[int, tuple[int, int]] = {}
    most = 0

    class Saved:
        def __init__(self, tensor: Tensor) -> None:
            nonlocal most
            self.tensor, self.key = tensor, tensor.untyped_storage().data_ptr()
            count, _ = held.get(self.key, (0, 0))
            held[self.key] = (count + 1, tensor.untyped_storage().nbytes())
            most = max(most, sum(size for count, size in held.values() if count))

        def __del__(self) -> None:
            count, size = held[self.key]
            held[self.key] = (count - 1, size)

    with torch.autograd.graph.saved_tensors_hooks(Saved, lambda saved: saved.tensor):
        attribute(model, unequal_pairs(), mode=mode)
    return most


@pytest.mark.parametrize("backend", [pytest.param("hooked", marks=pytest.mark.hooked), "bridge"])
def test_layer_by_layer_holds_one_layers_graph(write_llama: Callable[..., Path], backend: str) -> None:
    deep = star.load_model(str(write_llama(num_hidden_layers=8)), device="cpu", backend=backend)
    weights = sum(p.numel() * p.element_size() for p in deep.parameters())
    lean, half, whole = (saved_bytes(deep, m) for m in ("layer_by_layer", "two_passes", "one_batch"))
    assert half < 0.75 * whole
    assert lean < 0.5 * half + weights


def too_large(limit: int) -> Callable[[Tensor, object], None]:
    def hook(activation: Tensor, hook: object) -> None:
        if len(activation) > limit:
            raise torch.OutOfMemoryError("planted")

    return hook


def test_a_micro_batch_that_does_not_fit_is_halved_and_counts_once(model: HookedTransformer) -> None:
    wanted = attribute(model, unequal_pairs(), batch_size=1)
    sizes: list[int] = []
    with (
        model.hooks(
            fwd_hooks=[
                ("blocks.0.hook_resid_pre", lambda a, hook: sizes.append(len(a))),
                ("blocks.2.hook_mlp_out", too_large(4)),
            ]
        ),
        pytest.warns(UserWarning, match=r"Memory ran out at \d+ pairs in a batch: going on with \d") as caught,
    ):
        got = attribute(model, unequal_pairs(), mode="one_batch")
    assert len({str(w.message) for w in caught}) == len(caught)
    assert max(sizes) > 4
    for name in ("scores", "head_scores", "steering", "gradients", "drift_gradients", "metric_clean"):
        torch.testing.assert_close(getattr(got, name), getattr(wanted, name))


def test_controls_and_patches_that_do_not_fit_are_halved(model: HookedTransformer) -> None:
    pairs = unequal_pairs()
    few = type(pairs)(pairs.trait, pairs.pairs[:1])
    hooks = [("blocks.2.hook_resid_post", too_large(4))]
    for options in ({"method": "exact"}, {"controls": [pairs]}):
        wanted = attribute(model, few, **options)
        with model.hooks(fwd_hooks=hooks), pytest.warns(UserWarning, match="Memory ran out"):
            got = attribute(model, few, **options)
        torch.testing.assert_close(got.scores, wanted.scores)
        torch.testing.assert_close(got.controls, wanted.controls)


@pytest.mark.hooked
def test_a_micro_batch_is_as_large_as_memory_allows(model: HookedTransformer, monkeypatch: pytest.MonkeyPatch) -> None:
    def at_once(device: str, free: float) -> int:
        monkeypatch.setattr(memory, "free_memory", lambda _: free)
        with monkeypatch.context() as on:
            on.setattr(model.cfg, "device", device)
            return atp.positions_at_once(model)

    assert at_once("cpu", 1e12) == atp.MICRO_BATCH
    assert at_once("cuda", 80e9) > atp.MICRO_BATCH
    assert at_once("cuda", 80e9) == pytest.approx(2 * at_once("cuda", 40e9), rel=1e-3)
    assert at_once("cpu", 10e6) < atp.MICRO_BATCH
    with monkeypatch.context() as wide:  # of a large vocabulary the logits count, and what is made of them
        wide.setattr(model.cfg, "d_vocab", 49_152)
        assert 16 * model.cfg.d_vocab * at_once("cpu", 1e12) < atp.GRAPH_BYTES
    # What a graph of clean and corrupted rows was seen to hold.
    rows = pair_batch(model, prepare(model, unequal_pairs()))
    tokens = rows.prompts.numel() + 2 * rows.replies.numel()
    weights = sum(p.nbytes for p in model.parameters())
    assert atp.GRAPH_SHARE * 1e9 / at_once("cuda", 1e9) > (saved_bytes(model, "one_batch") - weights) / tokens


def test_memory_too_small_for_one_pair_is_said(model: HookedTransformer) -> None:
    message = "Memory is too small for pair 'short' alone: use mode='layer_by_layer'"
    hooks = [("blocks.2.hook_mlp_out", too_large(0))]
    with model.hooks(fwd_hooks=hooks), pytest.raises(StarError, match=message):
        attribute(model, unequal_pairs())


# What the map says of itself.


def test_spans_add_up_to_the_whole(model: HookedTransformer) -> None:
    attr = attribute(model, unequal_pairs())
    frame = attr.by_span()
    assert set(frame.columns) == {"span", "layer", *COMPONENTS, "n"}
    total = (frame.mlp_out * frame.n).groupby(frame.layer).sum() / len(attr.pair_ids)
    np.testing.assert_allclose(total, attr.component("mlp_out").sum(-1).mean(0), rtol=1e-5, atol=1e-7)


# The two forward passes: lean, of whole rows, and the model's own, of prompts and then replies.


@pytest.mark.hooked
@pytest.mark.parametrize("options", [{}, {"mode": "one_batch"}, {"mode": "two_passes"}, {"method": "ig"}])
def test_models_and_hooks_that_the_fast_forward_does_not_know_score_the_same(
    model: HookedTransformer, options: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    fast = attribute(model, unequal_pairs(), **options, batch_size=3)

    def refuse(*_: object) -> None:
        raise AssertionError("the fast forward ran")

    monkeypatch.setattr(LlamaForward, "__call__", refuse)
    monkeypatch.setattr(LlamaGradient, "forward", refuse)
    with pytest.raises(AssertionError, match="fast"):
        attribute(model, unequal_pairs(), **options)
    with model.hooks(fwd_hooks=[("blocks.1.mlp.hook_pre", lambda activation, hook: activation)]):
        own = attribute(model, unequal_pairs(), **options, batch_size=3)
    for name in (
        "scores",
        "head_scores",
        "steering",
        "head_steering",
        "gradients",
        "differences",
        "position_effects",
        "metric_clean",
        "metric_corrupted",
    ):
        torch.testing.assert_close(getattr(fast, name), getattr(own, name), rtol=1e-5, atol=1e-9)
