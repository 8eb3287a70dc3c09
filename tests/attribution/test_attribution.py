"""Attribution against truths of its own: planted heads, exact patching, finite differences, slow autograd."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import by_hand
import pytest
import synthetic
import torch
from by_hand import KINDS, chat, equal_length_pair, hooks_left, make_pairs, pair, unequal_pairs
from conftest import LLAMA3_ROPE
from torch import Tensor

import star_tl as star
from star_tl.attribution.align import PreparedPair, corresponding, prepare
from star_tl.attribution.map import STRETCHES, AttributionMap
from star_tl.data.chat import span_positions
from star_tl.errors import StarError
from star_tl.locus import COMPONENTS, Locus
from star_tl.models.lens import HookedTransformer
from star_tl.steering.hooks import injection_hooks
from star_tl.vectors import extract_vector

CONFIGS: dict[str, dict[str, Any]] = {
    "grouped": {},
    "llama3 rope": {"rope_parameters": LLAMA3_ROPE, "num_key_value_heads": 4},
    "wide heads": {"head_dim": 16},  # 4 heads of 16 in a residual stream of 32
    "biased": {"attention_bias": True},
}


@pytest.fixture(scope="module")
def exact(write_llama: Callable[..., Path]) -> Callable[[str], HookedTransformer]:
    """Models in float64, by the name of their configuration."""
    made: dict[str, HookedTransformer] = {}

    def model(name: str) -> HookedTransformer:
        if name not in made:
            made[name] = star.load_model(str(write_llama(**CONFIGS[name])), dtype="float64")
        return made[name]

    return model


@pytest.fixture(scope="module")
def grouped(exact: Callable[[str], HookedTransformer]) -> HookedTransformer:
    """Three layers, four query heads, two key-value heads, in float64."""
    return exact("grouped")


def attribute(model: HookedTransformer, pairs: star.Pairs, **more: Any) -> AttributionMap:
    return star.attribute(model, pairs, progress=False, **more)


# The slow reference: everything that the map holds, one unpadded row at a time.


@pytest.mark.parametrize(
    ("config", "batch_size", "mode"),
    [
        ("grouped", 1, "one_batch"),
        ("grouped", 3, "one_batch"),
        ("grouped", None, "auto"),
        ("grouped", 3, "auto"),
        ("llama3 rope", 1, "auto"),
        ("wide heads", 3, "auto"),
        ("biased", 3, "auto"),
        ("grouped", 3, "two_passes"),
        ("grouped", 8, "layer_by_layer"),
        ("llama3 rope", 3, "two_passes"),
        ("llama3 rope", 3, "layer_by_layer"),
        ("wide heads", 3, "one_batch"),
    ],
)
def test_every_score_equals_a_row_by_row_reference_at_any_batch_size(
    exact: Callable[[str], HookedTransformer], config: str, batch_size: int | None, mode: str
) -> None:
    model = exact(config)
    attr = attribute(model, unequal_pairs(), mode=mode, batch_size=batch_size)
    truth = by_hand.attribution(model, unequal_pairs(), attr.window)
    assert min(float(t.abs().max()) for t in truth.values()) > 1e-2, "the truth must not be trivial"
    by_hand.assert_same(attr, truth)


def test_a_pair_scores_the_same_alone_and_beside_any_other_pair(grouped: HookedTransformer) -> None:
    pairs = unequal_pairs()
    together = attribute(grouped, pairs, batch_size=8)
    for i, one in enumerate(pairs):
        alone = attribute(grouped, make_pairs(one))
        names = [span.name for span in alone.spans[0]]
        assert names == [span.name for span in together.spans[i]]
        for mine, theirs in zip(alone.spans[0], together.spans[i], strict=True):
            wanted, got = slice(mine.start, mine.end), slice(theirs.start, theirs.end)
            assert alone.tokens[0][wanted] == together.tokens[i][got]
            torch.testing.assert_close(together.scores[i, ..., got], alone.scores[0, ..., wanted], rtol=1e-5, atol=1e-7)
            torch.testing.assert_close(
                together.head_scores[i, ..., got], alone.head_scores[0, ..., wanted], rtol=1e-5, atol=1e-7
            )


def test_spans_and_tokens_spell_the_corrupted_prompt_and_the_replies(grouped: HookedTransformer) -> None:
    pairs = unequal_pairs()
    attr = attribute(grouped, pairs)
    for i, one in enumerate(pairs):
        _, corrupted = by_hand.prompts(grouped, pairs, one)
        spelled = {s.name: "".join(attr.tokens[i][s.start : s.end]) for s in attr.spans[i]}
        assert spelled.pop("positive reply") == one.positive
        assert spelled.pop("negative reply") == one.negative
        assert "".join(spelled.values()) == grouped.tokenizer.decode(corrupted)
        assert attr.tokens[i][attr.prompt_end - 1] == grouped.tokenizer.decode(corrupted[-1:])


def test_only_the_extraction_split_is_scored(grouped: HookedTransformer) -> None:
    kept, held = pair("kept", "My cat died.", "Oh no.", "OK."), pair("held", "Hi", "A b", "C d", split="heldout")
    attr = attribute(grouped, make_pairs(held, kept))
    assert attr.pair_ids == ("kept",)
    torch.testing.assert_close(attr.scores, attribute(grouped, make_pairs(kept)).scores)


# A planted head.


@pytest.mark.parametrize("config", CONFIGS)
def test_a_planted_head_is_the_only_one_that_scores(write_llama: Callable[..., Path], config: str) -> None:
    model = star.load_model(str(write_llama(seed=1, **CONFIGS[config])))
    layer, head = 1, 2
    for i, block in enumerate(model.blocks):
        block.mlp.W_out.zero_()  # type: ignore[operator,union-attr]
        others = [h for h in range(model.cfg.n_heads) if (i, h) != (layer, head)]
        block.attn.W_O[others] = 0.0  # type: ignore[index,union-attr]
    attr = attribute(model, unequal_pairs())
    planted = attr.head_scores[:, layer, head].clone()
    attr.head_scores[:, layer, head] = 0.0
    assert planted.abs().sum(-1).min() > 1e-3
    assert not attr.head_scores.any()
    assert not attr.component("mlp_out").any()
    attn_out = attr.component("attn_out").clone()
    # All that the layer's attention writes comes from this head: W_O only maps it.
    torch.testing.assert_close(attn_out[:, layer], planted, rtol=1e-3, atol=1e-6)
    attn_out[:, layer] = 0.0
    assert not attn_out.any()


# A model that is linear in its activations: attribution patching is exact there.


def freeze(model: HookedTransformer, reference: Callable[[int], int]) -> list[tuple[str, Callable[..., Tensor]]]:
    """Hooks that give all rows the norm scales, attention patterns and gates of the first ``reference(rows)``."""

    def hold(activation: Tensor, hook: object) -> Tensor:
        n = max(1, reference(len(activation)))
        return activation[:n].detach().repeat(len(activation) // n, *[1] * (activation.ndim - 1))

    points = ("ln1.hook_scale", "ln2.hook_scale", "attn.hook_pattern", "mlp.hook_pre")
    names = [f"blocks.{layer}.{point}" for layer in range(model.cfg.n_layers) for point in points]
    return [(name, hold) for name in [*names, "ln_final.hook_scale"]]


def test_in_a_linear_model_scores_equal_exact_patching_and_are_complete(grouped: HookedTransformer) -> None:
    pairs = equal_length_pair()
    clean, corrupted = by_hand.prompts(grouped, pairs, pairs[0])
    assert len(clean) == len(corrupted) == sum(a == b for a, b in zip(sorted(clean), sorted(corrupted), strict=True))
    positive, negative = by_hand.reply(grouped, "N")[0], by_hand.reply(grouped, "Y")[0]
    length, end_scores = len(corrupted), []

    with grouped.hooks(fwd_hooks=freeze(grouped, lambda rows: rows // 2)):  # all corrupted rows come first
        attr = attribute(grouped, pairs, alignment="strict")

    clean_acts: dict[str, Tensor] = {}
    names = [f"blocks.{layer}.{kind}" for layer in range(3) for kind in KINDS]
    read = [(n, lambda a, hook: clean_acts.__setitem__(hook.name, a[1])) for n in names]
    with torch.no_grad(), grouped.hooks(fwd_hooks=freeze(grouped, lambda rows: 1)):
        logits = grouped.run_with_hooks(torch.tensor([corrupted, clean]), fwd_hooks=read)[:, -1]
        metric = logits[:, positive] - logits[:, negative]

        def patched(name: str, head: int | None) -> Tensor:
            """The metric's rise with the clean activation at one position; a row per position."""

            def patch(a: Tensor, hook: object) -> Tensor:
                at = torch.arange(length)
                row, source = (a, clean_acts[name]) if head is None else (a[:, :, head], clean_acts[name][:, head])
                row[at + 1, at] = source[at]
                return a

            rows = torch.tensor([corrupted] * (length + 1))
            last = grouped.run_with_hooks(rows, fwd_hooks=[(name, patch)])[:, -1]
            return (last[:, positive] - last[:, negative])[1:] - metric[0]

        for layer in range(3):
            for kind, name in enumerate(KINDS):
                for head in range(4) if name == "attn.hook_z" else [None]:
                    full = attr.scores[0, kind, layer] if head is None else attr.head_scores[0, layer, head]
                    truth = patched(f"blocks.{layer}.{name}", head)
                    assert truth.abs().max() > 1e-3
                    torch.testing.assert_close(full[:length].double(), truth, rtol=0, atol=1e-6)
                    assert not full[length:].any()  # the metric is read before the replies
                    if name == "hook_resid_post":
                        end_scores.append(truth.sum())

    difference = metric[1] - metric[0]
    assert difference.abs() > 0.1
    torch.testing.assert_close(attr.metric_clean[0] - attr.metric_corrupted[0], difference.float())
    torch.testing.assert_close(torch.stack(end_scores), difference.expand(3))
    torch.testing.assert_close(attr.completeness(), torch.ones(3), rtol=0, atol=1e-5)
    assert attr.unaligned.tolist() == [0.0]


def test_completeness_is_the_share_of_the_metric_difference_that_resid_post_explains() -> None:
    attr = synthetic.attribution(n_pairs=2, layers=2, peak=0)
    scores = torch.zeros_like(attr.scores)
    scores[0, 2, 0, 3], scores[1, 2, 0, 5], scores[0, 2, 1, 1] = 0.2, 0.3, 1.5
    scores[:, 0] = 9.0  # other hook points do not count
    got = dataclasses.replace(
        attr, scores=scores, metric_corrupted=torch.tensor([0.0, -1.0]), metric_clean=torch.tensor([0.5, -0.5])
    ).completeness()
    torch.testing.assert_close(got, torch.tensor([0.5, 1.5]))


# Finite differences.


def metric_parts(
    model: HookedTransformer, pairs: star.Pairs, i: int, hooks: Callable[[int], list[Any]]
) -> tuple[Tensor, Tensor]:
    """The positive and the negative reply's part of a pair's metric on the corrupted prompt, under hooks."""
    _, prompt = by_hand.prompts(model, pairs, pairs[i])
    values = []
    for text in (pairs[i].positive, pairs[i].negative):
        answer = by_hand.reply(model, text)
        with torch.no_grad():
            logits = model.run_with_hooks(torch.tensor([prompt + answer]), fwd_hooks=hooks(len(prompt)))[0]
        values.append(by_hand.half_metric(logits, len(prompt), answer, pairs[i].metric))
    return values[0], -values[1]


@pytest.mark.parametrize("config", CONFIGS)
def test_scores_are_derivatives_along_clean_minus_corrupted(
    exact: Callable[[str], HookedTransformer], config: str
) -> None:
    model, pairs, step = exact(config), unequal_pairs(), 1e-4
    attr = attribute(model, pairs)
    chosen, largest = torch.Generator().manual_seed(0), 0.0
    for number, (layer, name) in enumerate((i, k) for i in range(model.cfg.n_layers) for k in KINDS):
        i = number % len(pairs)
        clean, corrupted = by_hand.prompts(model, pairs, pairs[i])
        answer = by_hand.reply(model, pairs[i].positive)
        point = f"blocks.{layer}.{name}"
        acts = [model.run_with_cache(torch.tensor([p + answer]))[1][point][0] for p in (clean, corrupted)]
        aligned = by_hand.counterparts(clean, corrupted)
        a, b = aligned[int(torch.randint(len(aligned), (1,), generator=chosen))]
        places = [
            (a, b, attr.prompt_end - len(corrupted) + a),
            (len(corrupted) - 1, len(clean) - 1, attr.prompt_end - 1),
        ]
        if len(answer) > 1:  # the last reply token predicts nothing, and a single one is the last
            places.append((len(corrupted), len(clean), attr.prompt_end))
        for ours, theirs, column in places:
            for head in range(model.cfg.n_heads) if name == "attn.hook_z" else [None]:
                direction = acts[0][theirs] - acts[1][ours]
                if head is not None:
                    direction = direction * (torch.arange(model.cfg.n_heads) == head)[:, None]

                def moved(
                    by: float, ours: int = ours, direction: Tensor = direction, point: str = point, i: int = i
                ) -> Tensor:
                    def add(activation: Tensor, hook: object) -> Tensor:
                        activation[0, ours] += by * direction
                        return activation

                    return torch.stack(metric_parts(model, pairs, i, lambda end: [(point, add)]))

                slopes = (moved(step) - moved(-step)) / (2 * step)
                # A place in the reply is another place in the other row.
                truth = float(slopes.sum() if ours < len(corrupted) else slopes[0])
                map_ = attr.scores[i, KINDS.index(name), layer] if head is None else attr.head_scores[i, layer, head]
                assert float(map_[column]) == pytest.approx(truth, rel=1e-4, abs=1e-7), (point, head, ours)
                largest = max(largest, abs(truth))
    assert largest > 1e-2


@pytest.mark.parametrize("config", ["grouped", "wide heads"])
def test_the_steering_form_is_the_slope_at_strength_0_of_the_real_injection(
    exact: Callable[[str], HookedTransformer], config: str
) -> None:
    model, pairs, step, layer = exact(config), unequal_pairs(), 1e-3, 1
    attr = attribute(model, pairs)
    for name in KINDS:
        for head in (0, 3) if name == "attn.hook_z" else (None,):
            for position in (-1, -3):
                locus = Locus(f"blocks.{layer}.{name}", (position,), head)
                vector = extract_vector(model, pairs, locus).vector.double()

                def metric(strength: float, locus: Locus = locus, vector: Tensor = vector) -> float:
                    def inject(end: int) -> list[Any]:
                        return injection_hooks(strength * vector, locus, prompt_length=end)

                    values = [sum(metric_parts(model, pairs, i, inject)) for i in range(len(pairs))]
                    return float(sum(values)) / len(values)

                slope = (metric(step) - metric(-step)) / (2 * step)
                form = attr.steering[KINDS.index(name), layer] if head is None else attr.head_steering[layer, head]
                # Central differences err by the step's square.
                assert float(form[position]) == pytest.approx(slope, rel=1e-4, abs=1e-6), locus
                assert abs(slope) > 1e-5


def added_along(
    model: HookedTransformer, pairs: star.Pairs, i: int, stretch: str, place: tuple[str, int | None], vector: Tensor
) -> Callable[[int], list[Any]]:
    """Hooks that add ``vector`` at layer 1 at every token of a stretch of a pair's corrupted run."""
    name, head = place
    prompt = pairs.corrupted_prompt(pairs[i])
    if stretch == "generated":
        return lambda end: injection_hooks(vector, Locus(f"blocks.1.{name}", (-1,), head), stretch, end)
    if stretch == "system" and prompt[0]["role"] != "system":
        return lambda end: []
    locus = Locus(f"blocks.1.{name}", span_positions(model.tokenizer, prompt, stretch), head)
    return lambda end: injection_hooks(vector.expand(len(locus.positions), -1), locus, prompt_length=end)


@pytest.mark.parametrize("mode", ["auto", "one_batch", "two_passes", "layer_by_layer", "own forward"])
def test_the_steering_form_of_a_span_is_the_slope_of_adding_the_vector_all_along_it(
    grouped: HookedTransformer, mode: str
) -> None:
    model, pairs, step = grouped, unequal_pairs(), 1e-3
    own = [("blocks.1.mlp.hook_pre", lambda activation, hook: activation)] if mode == "own forward" else []
    with model.hooks(fwd_hooks=own):
        attr = attribute(model, pairs, mode="auto" if own else mode, batch_size=2)
    table = attr.by_span("steering").set_index(["span", "layer"])
    for name, head in (("hook_resid_post", None), ("hook_attn_out", None), ("attn.hook_z", 3)):
        vector = extract_vector(model, pairs, Locus(f"blocks.1.{name}", (-1,), head)).vector.double()
        for k, stretch in enumerate(STRETCHES):

            def metric(strength: float, place: Any = (name, head), vector: Any = vector, at: str = stretch) -> float:
                values = [
                    sum(metric_parts(model, pairs, i, added_along(model, pairs, i, at, place, strength * vector)))
                    for i in range(len(pairs))
                ]
                return float(sum(values)) / len(values)

            slope = (metric(step) - metric(-step)) / (2 * step)
            form = attr.head_span_steering[1, head, k] if head else attr.span_steering[KINDS.index(name), 1, k]
            assert float(form) == pytest.approx(slope, rel=1e-4, abs=1e-6), (name, stretch)
            assert abs(slope) > 1e-5
            if head is None:
                assert table.loc[(stretch, 1), name.removeprefix("hook_")] == pytest.approx(float(form))


def logits_with(
    model: HookedTransformer, prompt: list[int], answer: list[int], layer: int, vector: torch.Tensor
) -> torch.Tensor:
    """Of one row, with a vector added to resid_post at the last prompt token."""

    def add(activation: torch.Tensor, hook: object) -> torch.Tensor:
        activation[:, len(prompt) - 1] += vector
        return activation

    with torch.no_grad():
        return model.run_with_hooks(
            torch.tensor([prompt + answer]), fwd_hooks=[(f"blocks.{layer}.hook_resid_post", add)]
        )[0]


def slope_and_curvature(
    model: HookedTransformer, pairs: star.Pairs, one: star.ContrastivePair, layer: int, vector: torch.Tensor
) -> tuple[float, float]:
    """How a pair's metric grows with the strength, and its replies' mean KL per token with the strength squared."""
    step, (_, prompt) = 1e-3, by_hand.prompts(model, pairs, one)
    steered = by_hand.ids(model, one.context)  # drift is what it costs where no instruction stands
    slope, drift, tokens = 0.0, 0.0, 0
    for sign, text in ((1, one.positive), (-1, one.negative)):
        answer = by_hand.reply(model, text)
        up, down = (logits_with(model, prompt, answer, layer, x * vector) for x in (step, -step))
        values = [float(by_hand.half_metric(logits, len(prompt), answer, one.metric)) for logits in (up, down)]
        slope += sign * (values[0] - values[1]) / (2 * step)
        moved, plain = (logits_with(model, steered, answer, layer, x * vector) for x in (step, 0.0))
        at = slice(len(steered) - 1, len(steered) - 1 + len(answer))
        p, q = moved[at].log_softmax(-1), plain[at].log_softmax(-1)
        drift += float((p.exp() * (p - q)).sum()) / step**2
        tokens += len(answer)
    return slope, drift / tokens


@pytest.mark.parametrize("mode", ["auto", "own forward"])
def test_effect_and_cost_are_slope_and_curvature_of_adding_a_vector_to_the_last_prompt_token(
    exact: Callable[[str], HookedTransformer], mode: str
) -> None:
    model, pairs, draws = exact("grouped"), unequal_pairs(), 256
    own = [("blocks.1.mlp.hook_pre", lambda activation, hook: activation)] if mode == "own forward" else []
    with model.hooks(fwd_hooks=own):
        attr = attribute(model, pairs, hook_points=["resid_post"], draws=draws)
    other = torch.randn(32, generator=torch.Generator().manual_seed(0), dtype=torch.float64) / 10
    for layer in range(model.cfg.n_layers):
        mine = extract_vector(model, pairs, Locus(f"blocks.{layer}.hook_resid_post")).vector[0].double()
        torch.testing.assert_close(attr.differences[layer].double(), mine, rtol=1e-5, atol=1e-6)
        for vector in (mine, other):
            truth = torch.tensor([slope_and_curvature(model, pairs, one, layer, vector) for one in pairs])
            torch.testing.assert_close(attr.effect(vector)[:, layer], truth[:, 0], rtol=1e-4, atol=1e-6)
            drawn = (attr.drift_gradients[:, :, layer].double() @ vector).square()
            torch.testing.assert_close(attr.cost(vector)[:, layer], drawn.mean(1).float())
            error = drawn.std(1) / draws**0.5
            # The gradients are kept in bfloat16, which moves a square by less than a hundredth.
            assert float(((drawn.mean(1) - truth[:, 1]).abs() / (error + 0.01 * truth[:, 1])).max()) < 4
            assert float(drawn.mean()) == pytest.approx(float(truth[:, 1].mean()), rel=0.15)


def test_other_seeds_draw_other_signs_and_leave_the_scores(grouped: HookedTransformer) -> None:
    one, again, other = (attribute(grouped, unequal_pairs(), seed=s) for s in (3, 3, 4))
    assert torch.equal(one.drift_gradients, again.drift_gradients)
    assert not torch.allclose(one.drift_gradients, other.drift_gradients)
    assert torch.equal(one.scores, other.scores)
    assert attribute(grouped, unequal_pairs(), draws=3).drift_gradients.shape[1] == 3


# Alignment of clean and corrupted tokens.


def prepared(tokenizer: Any, pairs: star.Pairs) -> PreparedPair:
    return prepare(SimpleNamespace(tokenizer=tokenizer, cfg=SimpleNamespace(n_ctx=4096)), pairs)[0]


@pytest.mark.parametrize("longer", ["clean", "corrupted"])
def test_after_system_parts_of_any_length_every_token_pairs_with_itself(tokenizer: Any, longer: str) -> None:
    context = chat("I lost my keys.", "Where?", "In the park, I think.")
    seen = set()
    for extra in range(1, 41):
        long, short = "Be good" + " so" * extra, "Be good"
        positive, negative = (long, short) if longer == "clean" else (short, long)
        p = prepared(tokenizer, make_pairs(pair("a", context, "Yes", "No"), positive=positive, negative=negative))
        clean, corrupted = p.clean.ids, p.corrupted.ids
        surplus = abs(len(clean) - len(corrupted))
        seen.add(surplus)
        first = corrupted.index(by_hand.EOT)  # the end of the system part
        for i in range(first, len(corrupted)):
            assert p.counterpart[i] == i + len(clean) - len(corrupted)
            assert clean[p.counterpart[i]] == corrupted[i]
        assert 0 not in p.counterpart[1:]
        assert p.counterpart[0] in (0, -1)
        assert len({j for j in p.counterpart if j >= 0}) == sum(j >= 0 for j in p.counterpart)
        assert p.unaligned == pytest.approx(surplus / (len(clean) + len(corrupted)))
        assert p.shared_suffix >= len(corrupted) - first
    assert seen == set(range(1, 41))


def test_user_turns_of_unequal_length_pair_what_they_begin_and_end_with(tokenizer: Any) -> None:
    p = prepared(tokenizer, make_pairs(pair("a", "x", "Yes", "No", clean="x x x x x", corrupted="x x x")))
    surplus = len(p.clean) - len(p.corrupted)
    assert surplus >= 2
    # Without a system part the turn holds the beginning of text, which is never another token's counterpart.
    end = p.corrupted.ids.index(by_hand.EOT)
    assert p.counterpart == (-1, *range(1, end), *(i + surplus for i in range(end, len(p.corrupted))))
    assert p.equal_tokens == 1
    assert p.unaligned == pytest.approx(surplus / (len(p.clean) + len(p.corrupted)))


def test_turns_before_an_unequal_one_still_pair_with_themselves(tokenizer: Any) -> None:
    clean, corrupted = chat("Hi!", "Hello.", "x x x x x"), chat("Hi!", "Hello.", "x x x")
    p = prepared(tokenizer, make_pairs(pair("a", "x", "Yes", "No", clean=clean, corrupted=corrupted)))
    surplus = len(p.clean) - len(p.corrupted)
    turn = next(s for s in p.corrupted.spans if s.name == "user 2")
    assert surplus >= 2
    end = turn.end - 1  # the end of turn
    assert p.counterpart == (-1, *range(1, end), *(i + surplus for i in range(end, len(p.corrupted))))


def test_common_words_of_two_instructions_correspond_and_words_without_a_like_do_not(tokenizer: Any) -> None:
    positive, negative = "Be a warm friend, and say it.", "Be a very, very cold clerk, and say it now."
    p = prepared(tokenizer, make_pairs(pair("a", "x", "Yes", "No"), positive=positive, negative=negative))
    clean, corrupted = p.clean.ids, p.corrupted.ids
    matched = [(i, j) for i, j in enumerate(p.counterpart) if j >= 0]
    assert all(j < j_next for (_, j), (_, j_next) in itertools.pairwise(matched))
    begin = next(i for i, (a, b) in enumerate(zip(clean, corrupted, strict=False)) if a != b)
    assert p.counterpart[1:begin] == tuple(range(1, begin))
    words = [tokenizer.decode([i]) for i in corrupted]
    assert p.equal_tokens > 0.9  # counted from the end of the turn, half of the instruction would differ
    for i, word in enumerate(words):
        if word.strip() in ("and", "say"):
            assert clean[p.counterpart[i]] == corrupted[i], word
    assert p.unaligned > 0
    right = dataclasses.replace(
        p,
        counterpart=prepare(
            SimpleNamespace(tokenizer=tokenizer, cfg=SimpleNamespace(n_ctx=4096)),
            make_pairs(pair("a", "x", "Yes", "No"), positive=positive, negative=negative),
            "right",
        )[0].counterpart,
    )
    assert right.equal_tokens < p.equal_tokens


@pytest.mark.parametrize("seed", range(30))
def test_corresponding_positions_are_in_order_and_equal_but_for_replacements(seed: int) -> None:
    chance = torch.Generator().manual_seed(seed)
    lengths = torch.randint(1, 14, (2,), generator=chance).tolist()
    ours, theirs = (torch.randint(4, (n,), generator=chance).tolist() for n in lengths)
    found = corresponding(ours, theirs)
    assert all(i < k and j < m for (i, j), (k, m) in itertools.pairwise(found))
    ends = [(-1, -1), *((i, j) for i, j in found if ours[i] == theirs[j]), (len(ours), len(theirs))]
    for (i, j), (k, m) in itertools.pairwise(ends):
        between = [x for x in found if i < x[0] < k]
        # A gap between equal tokens is paired as a whole, where it is equally long, or not at all.
        assert between == (list(zip(range(i + 1, k), range(j + 1, m), strict=True)) if k - i == m - j else [])
    assert corresponding(ours, ours) == [(i, i) for i in range(len(ours))]


def test_a_system_part_on_one_side_only_stays_unaligned(tokenizer: Any) -> None:
    system = {"role": "system", "content": "Be kind."}
    one = pair("a", "x", "Yes", "No", clean=[system, *chat("I am here")], corrupted=chat("I am here"))
    p = prepared(tokenizer, make_pairs(one))
    surplus = len(p.clean) - len(p.corrupted)
    assert p.counterpart == (-1, *(i + surplus for i in range(1, len(p.corrupted))))
    assert p.unaligned == pytest.approx(surplus / (len(p.clean) + len(p.corrupted)))


def test_chats_of_unequal_numbers_of_turns_pair_their_last_turns(tokenizer: Any) -> None:
    last = "And now my dog is ill."
    one = pair("a", "x", "Yes", "No", clean=chat("Hi!", "Hello.", last), corrupted=chat(last))
    p = prepared(tokenizer, make_pairs(one))
    surplus = len(p.clean) - len(p.corrupted)
    # The last user turn and the header are the same tokens at the end of both.
    assert p.counterpart == (-1, *(i + surplus for i in range(1, len(p.corrupted))))


def test_the_window_is_what_all_prompts_share_at_their_ends(grouped: HookedTransformer) -> None:
    pairs = unequal_pairs()
    attr = attribute(grouped, pairs)
    shared = []
    for p in pairs:
        clean, corrupted = by_hand.prompts(grouped, pairs, p)
        shared.append(next(k for k in range(1, 99) if clean[-k] != corrupted[-k]) - 1)
    assert min(shared) < 24 < max(shared)
    assert attr.window == min(shared) == attr.steering.shape[-1] == attr.head_steering.shape[-1]


# What is refused.


def test_logit_pairs_need_replies_of_one_token(grouped: HookedTransformer) -> None:
    with pytest.raises(StarError, match=r"'two'.*one token"):
        attribute(grouped, make_pairs(pair("two", "x", "Yes, I do", "N", metric="logit")))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"method": "atb"}, "Did you mean 'atp'"),
        ({"method": ["atp"]}, "Unknown attribution method"),
        ({"batch_size": 0}, "batch_size"),
        ({"batch_size": -2}, "batch_size"),
        ({"batch_size": 1.5}, "batch_size is 1.5: use a whole number"),
        ({"draws": None}, "draws is None"),
        ({"draws": True}, "draws is True"),
        ({"seed": "x"}, "seed is 'x'"),
        ({"hook_points": 3}, "give hook_points as a list"),
        ({"hook_points": ["z", None]}, "Unknown hook point None"),
        ({"metric": 1}, "metric is 1: give"),
        ({"mode": 0}, "Unknown mode"),
        ({"controls": ["politeness"]}, "give controls as a list of pairs"),
        ({"pairs": "politeness"}, "give pairs that load_pairs returns"),
        ({"model": "demo"}, "give a model that load_model returns"),
    ],
)
def test_unknown_methods_and_batch_sizes_are_refused(grouped: HookedTransformer, arguments: Any, message: str) -> None:
    with pytest.raises(StarError, match=message):
        attribute(**({"model": grouped, "pairs": unequal_pairs()} | arguments))


def test_a_pair_longer_than_the_context_is_refused(grouped: HookedTransformer) -> None:
    with pytest.raises(StarError, match="context is 512"):
        attribute(grouped, make_pairs(pair("a", "word " * 600, "Yes", "No")))


def test_an_unknown_component_is_refused() -> None:
    with pytest.raises(StarError, match="resid_mid"):
        synthetic.attribution().component("resid")


# The model afterwards.


def test_the_model_is_left_as_it_was(tiny: HookedTransformer) -> None:
    before = {name: p.clone() for name, p in tiny.named_parameters()}
    with torch.no_grad():  # as people call it in a notebook
        attribute(tiny, unequal_pairs())
        assert not torch.is_grad_enabled()
    assert not hooks_left(tiny)
    for name, p in tiny.named_parameters():
        assert not p.requires_grad
        assert p.grad is None
        assert torch.equal(p, before[name])


def test_trainable_parameters_get_no_gradients(tiny_folder: Path, tiny: HookedTransformer) -> None:
    model = star.load_model(str(tiny_folder)).requires_grad_(True)
    attr = attribute(model, unequal_pairs())
    assert all(p.requires_grad and p.grad is None for p in model.parameters())
    torch.testing.assert_close(attr.scores, attribute(tiny, unequal_pairs()).scores)


@pytest.mark.parametrize("where", ["forward", "backward"])
def test_no_hook_is_left_after_an_exception(tiny: HookedTransformer, where: str) -> None:
    wanted = attribute(tiny, unequal_pairs()).scores

    def fail(*_: Any, **__: Any) -> None:
        raise RuntimeError("planted")

    def fail_in_backward(activation: Tensor, hook: object) -> None:
        if activation.requires_grad:
            activation.register_hook(fail)

    hook = fail if where == "forward" else fail_in_backward
    with tiny.hooks(fwd_hooks=[("blocks.1.mlp.hook_post", hook)]):
        with pytest.raises(RuntimeError, match="planted"):
            attribute(tiny, unequal_pairs())
        assert hooks_left(tiny) == ["blocks.1.mlp.hook_post"]  # the caller's own
    assert not hooks_left(tiny)
    assert all(p.grad is None for p in tiny.parameters())
    assert torch.equal(attribute(tiny, unequal_pairs()).scores, wanted)


def test_hooks_of_the_caller_stay(tiny: HookedTransformer) -> None:
    with tiny.hooks(fwd_hooks=[("blocks.1.hook_resid_post", lambda a, hook: a)]):
        attribute(tiny, unequal_pairs())
        assert hooks_left(tiny) == ["blocks.1.hook_resid_post"]


def test_bfloat16_agrees_with_float32(tiny_folder: Path, tiny: HookedTransformer) -> None:
    half = attribute(star.load_model(str(tiny_folder), dtype="bfloat16"), unequal_pairs())
    full = attribute(tiny, unequal_pairs())
    for name in ("scores", "head_scores", "steering", "head_steering"):
        both = torch.stack([getattr(half, name).flatten(), getattr(full, name).flatten()])
        assert getattr(half, name).dtype == torch.float32
        assert torch.corrcoef(both)[0, 1] > 0.98, name
    torch.testing.assert_close(half.metric_clean, full.metric_clean, rtol=0.02, atol=0.02)
    assert half.fingerprint == full.fingerprint


# Choosing the layer and the locus.


def with_effects(*rows: list[float], costs: float | list[float] = 0.1) -> AttributionMap:
    """A map whose layers have exactly these effects, a row per pair; at the default costs a gain is an effect."""
    attr = synthetic.attribution(n_pairs=len(rows), layers=len(rows[0]), peak=0)
    effects = torch.tensor(rows)
    directions, gradients, drift = synthetic.priced(effects, torch.tensor(costs).expand_as(effects))
    return dataclasses.replace(attr, differences=directions, gradients=gradients, drift_gradients=drift)


def with_writes(*rows: list[float]) -> AttributionMap:
    """A map whose layers write exactly this, a row per pair, at the last prompt token."""
    attr = synthetic.attribution(n_pairs=len(rows), layers=len(rows[0]), peak=0)
    scores = torch.zeros_like(attr.scores)
    scores[:, COMPONENTS.index("resid_post")] = torch.arange(float(len(rows[0])))[:, None]  # grows with depth
    at = attr.prompt_end - 1
    scores[:, COMPONENTS.index("attn_out"), :, at] = 0.75 * torch.tensor(rows)
    scores[:, COMPONENTS.index("mlp_out"), :, at] = 0.25 * torch.tensor(rows)
    return dataclasses.replace(attr, scores=scores)


def test_the_layer_where_drift_buys_most_is_chosen_not_that_of_the_largest_effect() -> None:
    attr = with_effects(*[[0.1, 0.4, 0.8, -0.3], [0.3, 0.6, 1.0, 0.1]] * 4, costs=[0.1, 0.025, 1.6, 0.1])
    choice = attr.choose_layer()
    torch.testing.assert_close(choice.gain, torch.tensor([0.2, 1.0, 0.225, -0.1]))
    assert choice.layer == 1
    assert choice.last_ranked == 3
    assert choice.frequency.tolist() == [0.0, 1.0, 0.0, 0.0]
    assert synthetic.attribution(peak=5).choose_layer().layer == 5


def test_of_layers_that_gain_the_same_the_first_is_chosen() -> None:
    assert with_effects([0.5, 0.93, 1.0, 0.99]).choose_layer().layer == 2
    assert with_effects([0.5, 0.96, 1.0, 0.99]).choose_layer().layer == 1
    assert with_effects([-1.0, -0.97, -2.0]).choose_layer().layer == 0


def test_a_layer_that_costs_nothing_gains_nothing() -> None:
    choice = with_effects([0.0, 0.2], costs=[0.0, 0.1]).choose_layer()
    torch.testing.assert_close(choice.gain, torch.tensor([0.0, 0.2]))
    assert choice.layer == 1


def test_what_layers_write_is_not_what_adds_up() -> None:
    attr = with_writes([0.1, 0.9, -0.3, 0.2], [0.2, 0.7, -0.1, 0.2])
    torch.testing.assert_close(attr.writes().mean(0), torch.tensor([0.15, 0.8, -0.2, 0.2]))


def test_writes_outside_the_shared_positions_do_not_count() -> None:
    attr = with_writes([0.1, 0.9], [0.2, 0.8])
    attr.scores[:, :, 0, attr.prompt_end - attr.window - 1] = 50.0
    attr.scores[:, :, 0, attr.prompt_end] = 50.0
    torch.testing.assert_close(attr.writes().mean(0), torch.tensor([0.15, 0.85]))
    attr.scores[:, :, 0, attr.prompt_end - attr.window] = 50.0
    assert attr.writes()[:, 0].tolist() == pytest.approx([100.1, 100.2])


def test_the_bootstrap_frequency_is_that_of_drawing_pairs_with_replacement() -> None:
    # Of eight pairs four say layer 0; it wins where five or more of the eight drawn are of these, and no tie is near.
    choice = with_effects(*[[1.0, 0.0]] * 4, *[[0.0, 1.1]] * 4).choose_layer(resamples=4000)
    wanted = sum(math.comb(8, k) for k in range(5, 9)) / 2**8
    assert choice.frequency[0] == pytest.approx(wanted, abs=0.03)  # standard error 0.008
    assert float(choice.frequency.sum()) == pytest.approx(1.0)
    torch.testing.assert_close(choice.low, torch.tensor([1.0, 1.1]) / 8, rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(choice.high, torch.tensor([7.0, 7 * 1.1]) / 8, rtol=1e-3, atol=1e-3)
    assert choice.layer == 1


def with_steering(*scores: float, layer: int = 5) -> AttributionMap:
    attr = synthetic.attribution(peak=5)
    effects = torch.full_like(attr.position_effects, 7.0)
    effects[:, layer] = torch.tensor(scores)
    return dataclasses.replace(attr, position_effects=effects)


@pytest.mark.parametrize(
    ("coverage", "positions"), [(0.5, (-1,)), (0.8, (-3, -1)), (0.95, (-5, -3, -1)), (1.0, (-5, -3, -1))]
)
def test_the_locus_has_the_fewest_positions_that_cover_the_positive_score(
    coverage: float, positions: tuple[int, ...]
) -> None:
    locus = with_steering(0.0, 0.1, -0.9, 0.2, 0.0, 0.7).top_locus(coverage)
    assert locus == Locus("blocks.5.hook_resid_post", positions)


def test_full_coverage_takes_no_position_without_a_positive_score() -> None:
    for seed in range(50):  # whatever the rounding of the sum
        scores = torch.rand(6, generator=torch.Generator().manual_seed(seed))
        scores[seed % 6] = -1.0
        scores[(seed + 1) % 6 :: 2] = 0.0
        positive = {i - 6 for i in range(6) if scores[i] > 0}
        assert set(with_steering(*scores.tolist()).top_locus(1.0).positions) == positive


def test_a_locus_has_at_most_four_positions() -> None:
    assert len(with_steering(*[1.0] * 6).top_locus(1.0).positions) == 4


def test_a_map_without_positive_scores_has_no_locus() -> None:
    with pytest.raises(StarError, match="do not move the trait"):
        with_steering(0.0, -0.1, -2.0, 0.0, -1.0, -0.1).top_locus()


@pytest.mark.parametrize("coverage", [0.0, -0.1, 1.01, float("nan")])
def test_coverage_is_a_share(coverage: float) -> None:
    with pytest.raises(StarError, match="coverage"):
        synthetic.attribution().top_locus(coverage)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("blocks.1.attn.hook_q", (-1,)), "not a hook point"),
        (("hook_embed", (-1,)), "not a hook point"),
        (("blocks.1.hook_resid_post", ()), "negative"),
        (("blocks.1.hook_resid_post", (0,)), "negative"),
        (("blocks.1.hook_resid_post", (-1, -1)), "repeat"),
        (("blocks.1.hook_resid_post", (-1,), 2), "head"),
        (("blocks.1.attn.hook_z", (-1,)), "head"),
    ],
)
def test_a_locus_that_means_nothing_is_refused(arguments: tuple[Any, ...], message: str) -> None:
    with pytest.raises(StarError, match=message):
        Locus(*arguments)


# Saving and tables.


def test_a_map_comes_back_from_its_file_unchanged(tiny: HookedTransformer, tmp_path: Path) -> None:
    attr = attribute(tiny, unequal_pairs())
    attr.save(tmp_path / "map.safetensors")
    back = AttributionMap.load(tmp_path / "map.safetensors")
    for field in dataclasses.fields(AttributionMap):
        saved, read = getattr(attr, field.name), getattr(back, field.name)
        if isinstance(saved, Tensor):
            assert read.dtype == saved.dtype
            assert torch.equal(read, saved), field.name
        else:
            assert read == saved
            assert type(read) is type(saved)
    assert repr(back) == repr(attr)


def test_loading_something_else_says_so(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    text, other = tmp_path / "text.safetensors", tmp_path / "other.safetensors"
    text.write_text("not a map")
    save_file({"vector": torch.ones(2)}, str(other), metadata={"format": "star_tl vector 1"})
    with pytest.raises(StarError, match="cannot be read"):
        AttributionMap.load(text)
    with pytest.raises(StarError, match="No attribution map at"):
        AttributionMap.load(tmp_path / "absent.safetensors")
    with pytest.raises(StarError, match="no attribution map of this version"):
        AttributionMap.load(other)


DAMAGED_MAPS = {
    "no prompt_end": ({"prompt_end": None}, {}),
    "prompt_end of words": ({"prompt_end": "near"}, {}),
    "prompt_end beyond": ({"prompt_end": "99999"}, {}),
    "prompt_end of none": ({"prompt_end": "0"}, {}),
    "tokens nested deep": ({"tokens": "[" * 100_000}, {}),
    "tokens of numbers": ({"tokens": "[[1]]"}, {}),
    "spans of texts": ({"spans": '[[["user", "a", "b"]]]'}, {}),
    "spans outside": ({"spans": '[[["user", 0, 99999]]]'}, {}),
    "spans of another form": ({"spans": "[[1]]"}, {}),
    "ids of none": ({"pair_ids": "null"}, {}),
    "fewer ids": ({"pair_ids": '["a"]'}, {}),
    "names without controls": ({"control_names": '["joy"]'}, {}),
    "no trait": ({"trait": None}, {}),
    "bool": ({}, {"scores": lambda t: t > 0}),
    "int": ({}, {"drift_gradients": lambda t: t.long()}),
    "complex": ({}, {"steering": lambda t: t.to(torch.complex64)}),
    "narrow": ({}, {"scores": lambda t: t[..., :1]}),
    "one layer": ({}, {"gradients": lambda t: t[:, :1]}),
    "fewer places": ({}, {"position_effects": lambda t: t[..., 1:]}),
    "no gradients": ({}, {"gradients": lambda t: t[..., :0]}),
    "other heads": ({}, {"head_steering": lambda t: t[:, :1]}),
    "NaN metric": ({}, {"metric_clean": lambda t: t * torch.nan}),
    "no metric": ({}, {"metric_clean": None}),
    "a number": ({}, {"unaligned": lambda t: t.sum()}),
}


@pytest.mark.parametrize("case", DAMAGED_MAPS)
def test_a_damaged_or_edited_map_is_refused_in_one_line(tiny: HookedTransformer, tmp_path: Path, case: str) -> None:
    from safetensors import safe_open
    from safetensors.torch import save_file

    path = tmp_path / "map.safetensors"
    attribute(tiny, unequal_pairs()).save(path)
    with safe_open(str(path), framework="pt") as file:
        meta, tensors = file.metadata(), {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    edits, changes = DAMAGED_MAPS[case]
    for name, change in changes.items():
        tensors[name] = change(tensors[name]).contiguous() if change else None
    held = {k: v for k, v in tensors.items() if v is not None}
    save_file(held, str(path), metadata={k: v for k, v in (meta | edits).items() if v is not None})
    with pytest.raises(StarError) as failure:
        AttributionMap.load(path)
    assert str(path) in str(failure.value)
    assert len(str(failure.value).splitlines()) == 1
    assert len(str(failure.value)) < 500


def test_the_table_has_a_row_per_layer() -> None:
    attr = with_writes([0.1, 0.9, 0.3], [0.2, 0.7, 0.5])
    frame = attr.to_frame()
    assert list(frame.columns) == ["layer", *COMPONENTS, "writes", "completeness", "gain", "resamples"]
    assert frame.layer.tolist() == [0, 1, 2]
    assert frame.writes.tolist() == pytest.approx([0.15, 0.8, 0.4])
    assert frame.attn_out.tolist() == pytest.approx([0.75 * w for w in (0.15, 0.8, 0.4)])
    assert frame.resamples.isna().all()  # of two pairs
    assert frame.gain.tolist() == attr.choose_layer().gain.tolist()
    assert frame.resid_post.tolist() == pytest.approx([k * attr.scores.shape[-1] for k in (0.0, 1.0, 2.0)])


def test_a_map_whose_parts_differ_in_number_is_refused() -> None:
    attr = synthetic.attribution()
    with pytest.raises(StarError, match="differ in number"):
        dataclasses.replace(attr, pair_ids=attr.pair_ids[:-1])


def test_two_controls_of_one_trait_are_refused(tiny: HookedTransformer) -> None:
    pairs = unequal_pairs()
    with pytest.raises(StarError, match=r"^Two controls are of the same trait: [^\n]+$"):
        star.attribute(tiny, pairs, controls=[pairs, pairs], progress=False)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_a_layer_is_chosen_alike_whatever_torch_makes_by_default(tiny: HookedTransformer, dtype: torch.dtype) -> None:
    attr = star.attribute(tiny, unequal_pairs(), progress=False)
    plain = attr.choose_layer(resamples=50)
    torch.set_default_dtype(dtype)
    try:
        found = attr.choose_layer(resamples=50)
    finally:
        torch.set_default_dtype(torch.float32)
    assert (found.layer, found.p_value) == (plain.layer, plain.p_value)
