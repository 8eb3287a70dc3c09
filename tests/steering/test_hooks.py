"""Injection against HuggingFace: the same vector at the same absolute tokens gives the same logits."""

from __future__ import annotations

import copy
import math
import pickle
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pytest
import torch
from hf_reference import END_OF_TURN, forcing, greedy, hooks_left, load, logits, prompt_ids, steering_vector
from torch import Tensor
from transformer_lens.cache.key_value_cache import TransformerLensKeyValueCache

import star_tl as star
from star_tl.errors import StarError
from star_tl.models.batch import make_batch
from star_tl.models.position import Position
from star_tl.steering.condition import batch_hooks
from star_tl.steering.positions import COUNTED, SCHEDULES
from star_tl.vectors import SteeringVector

TOLERANCE = 1e-4  # float32 round-off of two implementations on logits of order 1 to 10
SHORT, LONG, REPLY = 5, 9, 4
LOCUS = (-3, -1)

# What to steer, and the positions that means in a sequence of `total` tokens of which `prompt` are the prompt's; each
# with the row of the vector that is added, or the factor of the rows' mean.
PLACES: dict[str, tuple[object, Callable[[int, int], Mapping[int, int | float | None]]]] = {
    "default": (None, lambda prompt, total: {prompt - 3: 0, prompt - 1: 1}),
    "locus": ("locus", lambda prompt, total: {prompt - 3: 0, prompt - 1: 1}),
    "locus by number": ([-1, -3], lambda prompt, total: {prompt - 3: 0, prompt - 1: 1}),
    "prompt": ("prompt", lambda prompt, total: dict.fromkeys(range(prompt))),
    "last_prompt": ("last_prompt", lambda prompt, total: {prompt - 1: None}),
    "generated": ("generated", lambda prompt, total: dict.fromkeys(range(prompt - 1, total))),
    "all": ("all", lambda prompt, total: dict.fromkeys(range(total))),
    "first 3": ("first 3", lambda prompt, total: dict.fromkeys(range(prompt - 1, prompt + 2))),
    "every 2": ("every 2", lambda prompt, total: dict.fromkeys(range(prompt - 1, total, 2))),
    "decay 2": ("decay 2", lambda prompt, total: {p: 0.5 ** ((p - prompt + 1) / 2) for p in range(prompt - 1, total)}),
    "one before the end": ([-2], lambda prompt, total: {prompt - 2: None}),
    "first generated": ([0], lambda prompt, total: {prompt: None}),
    "around the end": (range(-2, 2), lambda prompt, total: dict.fromkeys(range(prompt - 2, prompt + 2))),
    "far ends": ((-7, 3), lambda prompt, total: {prompt - 7: None, prompt + 3: None}),
}
places = pytest.mark.parametrize(("positions", "where"), PLACES.values(), ids=PLACES.keys())


@pytest.fixture(scope="module")
def hf(tiny_folder):
    return load(tiny_folder)


def random_ids(length: int, seed: int) -> list[int]:
    return torch.randint(5, 500, (length,), generator=torch.Generator().manual_seed(seed)).tolist()


def rows_at(vector: SteeringVector, places: Mapping[int, int | float | None], total: int) -> dict[int, Tensor]:
    """What is added at each place in the sequence: a row of the vector, or the mean of its rows by a factor."""
    mean = vector.vector.mean(0)
    added = {None: mean, **dict(enumerate(vector.vector))}
    return {p: mean * x if isinstance(x, float) else added[x] for p, x in places.items() if 0 <= p < total}


def test_every_kind_of_schedule_is_among_the_places() -> None:
    kinds = {str(positions).split()[0] for positions, _ in PLACES.values()}
    assert kinds >= {*SCHEDULES, *(name.split()[0] for name in COUNTED)}


def close(ours: Tensor, theirs: Tensor) -> bool:
    return torch.allclose(ours, theirs, atol=TOLERANCE, rtol=0)


@torch.no_grad()
def in_chunks(model, tokens: Tensor, mask: Tensor, hooks, lengths: list[int]) -> Tensor:
    """Logits of a cached run that takes the tokens in chunks."""
    cache = TransformerLensKeyValueCache.init_cache(model.cfg, "cpu", len(tokens))
    pieces, start = [], 0
    with model.hooks(fwd_hooks=hooks):
        for length in lengths:
            part = slice(start, start + length)
            pieces.append(model(tokens[:, part], attention_mask=mask[:, part], past_kv_cache=cache))
            start += length
    return torch.cat(pieces, 1)


@pytest.mark.parametrize("length", [SHORT, LONG])
@places
def test_every_schedule_steers_the_tokens_that_it_names(tiny, hf, positions, where, length):
    vector, ids = steering_vector(positions=LOCUS), random_ids(length + REPLY, seed=length)
    hooks = vector.hooks(positions=positions, prompt_length=length)
    ours = tiny.run_with_hooks(torch.tensor([ids]), fwd_hooks=hooks)[0]
    rows = rows_at(vector, where(length, len(ids)), len(ids))
    assert close(ours, logits(hf, ids, vector.locus, rows))
    assert not close(ours, logits(hf, ids)), "so weak a vector shows nothing"


@pytest.mark.parametrize("cached", [False, True], ids=["one pass", "cached"])
@places
def test_rows_of_a_left_padded_batch_are_steered_as_if_alone(tiny, hf, positions, where, cached):
    vector, lengths = steering_vector(positions=LOCUS), (SHORT, LONG, 7)
    texts = [random_ids(n + REPLY, seed=n) for n in lengths]
    batch = make_batch(tiny, [t[:-REPLY] for t in texts], [t[-REPLY:] for t in texts])
    mask = batch.mask.int()
    if cached:
        hooks = vector.hooks(positions=positions)
        ours = in_chunks(tiny, batch.tokens, mask, hooks, [LONG] + [1] * REPLY)
    else:
        hooks = vector.hooks(positions=positions, prompt_length=LONG)
        ours = tiny.run_with_hooks(batch.tokens, attention_mask=mask, fwd_hooks=hooks)
    for row, (ids, length) in enumerate(zip(texts, lengths, strict=True)):
        rows = rows_at(vector, where(length, len(ids)), len(ids))
        assert close(ours[row, LONG - length :], logits(hf, ids, vector.locus, rows))


@pytest.mark.parametrize(
    ("chunks", "said"),
    [([LONG, 1, 1, 1, 1], False), ([LONG, 1, 1, 1, 1], True), ([1] * (LONG + REPLY), True), ([4, 6, 1, 2], True)],
    ids=["prompt then tokens", "the same, length given", "token by token", "odd chunks"],
)
@places
def test_a_cache_changes_nothing(tiny, positions, where, chunks, said):
    vector, tokens = steering_vector(positions=LOCUS), torch.tensor([random_ids(LONG + REPLY, seed=1)])
    whole = tiny.run_with_hooks(tokens, fwd_hooks=vector.hooks(positions=positions, prompt_length=LONG))
    hooks = vector.hooks(positions=positions, prompt_length=LONG if said else None)
    assert close(in_chunks(tiny, tokens, torch.ones_like(tokens), hooks, chunks), whole)


@pytest.mark.parametrize("cached", [False, True], ids=["one pass", "cached"])
@pytest.mark.parametrize(
    ("hook_point", "head"),
    [
        ("blocks.1.hook_resid_pre", None),
        ("blocks.2.hook_resid_pre", None),
        ("blocks.0.hook_resid_mid", None),
        ("blocks.0.hook_resid_post", None),
        ("blocks.2.hook_resid_post", None),
        ("blocks.1.hook_attn_out", None),
        ("blocks.0.hook_mlp_out", None),
        ("blocks.0.attn.hook_z", 0),
        ("blocks.1.attn.hook_z", 2),
        ("blocks.2.attn.hook_z", 3),
    ],
)
def test_every_hook_point_is_where_huggingface_has_it(tiny, hf, hook_point, head, cached):
    vector = steering_vector(hook_point, (-2, -1), head, scale=2.0)
    ids = random_ids(LONG + REPLY, seed=2)
    tokens = torch.tensor([ids])
    if cached:
        ours = in_chunks(tiny, tokens, torch.ones_like(tokens), vector.hooks(), [LONG] + [1] * REPLY)[0]
    else:
        ours = tiny.run_with_hooks(tokens, fwd_hooks=vector.hooks(prompt_length=LONG))[0]
    rows = {LONG - 2: vector.vector[0], LONG - 1: vector.vector[1]}
    assert close(ours, logits(hf, ids, vector.locus, rows))
    assert not close(ours, logits(hf, ids))


def test_the_same_hooks_serve_one_call_after_another(tiny):
    vector = steering_vector(positions=LOCUS)
    for positions in (None, "generated", [-1, 0]):
        kept = vector.hooks(positions=positions)
        for length in (LONG, SHORT, 12, LONG):  # shorter, longer, and the first again
            tokens = torch.tensor([random_ids(length + REPLY, seed=length)])
            mask, chunks = torch.ones_like(tokens), [length] + [1] * REPLY
            fresh = vector.hooks(positions=positions)
            again = in_chunks(tiny, tokens, mask, kept, chunks)
            assert torch.equal(again, in_chunks(tiny, tokens, mask, fresh, chunks))


@torch.no_grad()
def test_a_prefix_that_was_cached_without_hooks_counts_as_prompt(tiny):
    vector, prefix = steering_vector(), 6
    for seed in range(2):
        kept = vector.hooks()
        tokens = torch.tensor([random_ids(LONG + REPLY, seed)])
        cache = TransformerLensKeyValueCache.init_cache(tiny.cfg, "cpu", 1)
        tiny(tokens[:, :prefix], past_kv_cache=cache)
        with tiny.hooks(fwd_hooks=kept):
            parts = [tiny(tokens[:, a:b], past_kv_cache=cache) for a, b in ((prefix, LONG), (LONG, LONG + REPLY))]
        whole = tiny.run_with_hooks(tokens, fwd_hooks=vector.hooks(prompt_length=LONG))
        assert close(torch.cat(parts, 1), whole[:, prefix:])


@torch.no_grad()
def test_several_continuations_of_one_frozen_cache_keep_the_end_of_the_prompt(tiny):
    vector, prompt = steering_vector(), random_ids(LONG, seed=0)
    replies = [random_ids(REPLY, seed) for seed in (1, 2)]
    cache = TransformerLensKeyValueCache.init_cache(tiny.cfg, "cpu", 1)
    with tiny.hooks(fwd_hooks=vector.hooks(positions=[-1, 1])):
        tiny(torch.tensor([prompt]), past_kv_cache=cache)
        cache.freeze()
        ours = [tiny(torch.tensor([reply]), past_kv_cache=cache) for reply in replies]
    for reply, continued in zip(replies, ours, strict=True):
        hooks = vector.hooks(positions=[-1, 1], prompt_length=LONG)
        whole = tiny.run_with_hooks(torch.tensor([prompt + reply]), fwd_hooks=hooks)
        assert close(continued, whole[:, LONG:])


def stepwise(model, tokens: Tensor, end: int, hooks):
    """Logits of stock TransformerLens, a token at a time after the prompt; a generator, to be interleaved."""
    cache = TransformerLensKeyValueCache.init_cache(model.cfg, "cpu", len(tokens))
    for part in (slice(end), *(slice(i, i + 1) for i in range(end, tokens.shape[1]))):
        with torch.no_grad(), model.hooks(fwd_hooks=hooks):
            logits = model(tokens[:, part], past_kv_cache=cache)
        yield logits


@pytest.mark.parametrize("positions", [None, "first 3", (-1, 1)])
def test_two_texts_in_turn_in_transformer_lens_are_refused_or_right(tiny, positions):
    vector = steering_vector()
    texts = [torch.tensor([random_ids(n + REPLY, seed=n)]) for n in (LONG, SHORT)]

    def wholes(end: int, tokens: Tensor) -> Tensor:
        return tiny.run_with_hooks(tokens, fwd_hooks=vector.hooks(positions=positions, prompt_length=end))

    kept = vector.hooks(positions=positions)
    first, second = (stepwise(tiny, t, t.shape[1] - REPLY, kept) for t in texts)
    next(first), next(second)
    with pytest.raises(
        StarError, match=r"^These hooks meet token 9 [^\n]+ vector\.hooks\(\), or give prompt_length\.$"
    ):
        next(first)
    assert hooks_left(tiny) == 0
    # The second is unharmed, and the first is written by hooks of its own or where the length is given.
    assert close(torch.cat([*second], 1), wholes(SHORT, texts[1])[:, SHORT:])
    lists = [[vector.hooks(positions=positions, prompt_length=n) for n in (LONG, SHORT)]]
    lists.append([vector.hooks(positions=positions) for _ in texts])
    for hooks in lists:
        running = [stepwise(tiny, t, t.shape[1] - REPLY, h) for t, h in zip(texts, hooks, strict=True)]
        steps = list(zip(*running, strict=True))
        for tokens, parts in zip(texts, zip(*steps, strict=True), strict=True):
            assert close(torch.cat(parts, 1), wholes(tokens.shape[1] - REPLY, tokens))


def test_one_list_serves_two_models_and_two_threads_of_transformer_lens_at_once(tiny, write_llama):
    vector = steering_vector(positions=LOCUS)
    kept = vector.hooks(positions=[-1, 1])
    other = star.load_model(write_llama(seed=1))
    texts = [torch.tensor([random_ids(n + REPLY, seed=n)]) for n in (LONG, SHORT)]
    alone = [
        torch.cat([*stepwise(m, t, t.shape[1] - REPLY, vector.hooks(positions=[-1, 1]))], 1)
        for m, t in zip((tiny, other), texts, strict=True)
    ]
    running = [stepwise(m, t, t.shape[1] - REPLY, kept) for m, t in zip((tiny, other), texts, strict=True)]
    for whole, parts in zip(alone, zip(*zip(*running, strict=True), strict=True), strict=True):
        assert torch.equal(torch.cat(parts, 1), whole)
    with ThreadPoolExecutor(2) as pool:
        made = [
            pool.submit(lambda m=m, t=t: torch.cat([*stepwise(m, t, t.shape[1] - REPLY, kept)], 1))
            for m, t in zip((tiny, other), texts, strict=True)
        ]
    assert all(torch.equal(a, m.result()) for a, m in zip(alone, made, strict=True))


@pytest.mark.parametrize("positions", [None, "generated", "first 3", "every 2", "decay 2", (-2, 1)])
@pytest.mark.parametrize("copied", [copy.deepcopy, lambda hooks: pickle.loads(pickle.dumps(hooks))])
def test_hooks_are_copied_and_pickled_without_what_they_counted(tiny, positions, copied):
    tokens = torch.tensor([random_ids(LONG + REPLY, seed=1)])
    hooks = steering_vector(positions=(-1,)).hooks(positions=positions)
    whole = torch.cat([*stepwise(tiny, tokens, LONG, hooks)], 1)
    begun = stepwise(tiny, tokens, SHORT, hooks)
    next(begun)
    again = copied(hooks)
    assert torch.equal(torch.cat([*stepwise(tiny, tokens, LONG, again)], 1), whole)
    next(begun)


def test_an_error_in_the_forward_leaves_no_hooks(tiny):
    def fail(activation, hook):
        raise RuntimeError("planted")

    tokens, vector = torch.tensor([random_ids(LONG, seed=0)]), steering_vector()
    plain, hooks = tiny(tokens), vector.hooks()
    steered = tiny.run_with_hooks(tokens, fwd_hooks=hooks)
    planted = [*hooks, ("blocks.2.hook_mlp_out", fail)]
    with pytest.raises(RuntimeError, match="planted"):
        tiny.run_with_hooks(tokens, fwd_hooks=planted)
    with pytest.raises(RuntimeError, match="planted"):
        star.generate(tiny, ["hello"], planted, max_new_tokens=3)
    assert hooks_left(tiny) == 0
    assert torch.equal(tiny(tokens), plain)
    assert torch.equal(tiny.run_with_hooks(tokens, fwd_hooks=hooks), steered)


TALK = ("Hello there, how was your day?", "no", "My sister lost her job and I do not know what to say to her.")


@pytest.mark.parametrize("cached", [True, False], ids=["cached", "uncached"])
@pytest.mark.parametrize("name", PLACES)
def test_stock_generate_writes_what_ours_and_huggingface_write(tiny, hf, tokenizer, name, cached):
    positions, where = PLACES[name]
    vector, n = steering_vector(positions=LOCUS, scale=1.0), 8
    ours = [
        r.tokens for r in star.generate(tiny, TALK, vector.hooks(positions=positions), max_new_tokens=n, temperature=0)
    ]
    assert ours != [r.tokens for r in star.generate(tiny, TALK, (), max_new_tokens=n, temperature=0)], (
        "so weak a vector shows nothing"
    )
    for text, reply in zip(TALK, ours, strict=True):
        ids = prompt_ids(tokenizer, text)
        hooks = vector.hooks(positions=positions, prompt_length=None if cached else len(ids))
        with tiny.hooks(fwd_hooks=hooks):
            out = tiny.generate(
                torch.tensor([ids]), max_new_tokens=n, do_sample=False, use_past_kv_cache=cached, verbose=False
            )
        written = out[0, len(ids) :].tolist()
        stock = tuple(written[: written.index(END_OF_TURN)] if END_OF_TURN in written else written)
        theirs = greedy(hf, ids, n, vector.locus, lambda prompt, total: rows_at(vector, where(prompt, total), total))
        assert stock == theirs
        assert reply == theirs


def test_the_first_sampled_token_is_steered_and_each_schedule_ends_where_it_says(tiny):
    (token, vector), n = forcing(tiny), 4

    def forced(positions) -> list[bool]:
        (reply,) = star.generate(tiny, TALK[:1], vector.hooks(positions=positions), max_new_tokens=n, temperature=0.02)
        return [t == token for t in reply.tokens]

    assert forced("locus") == forced("prompt") == forced("last_prompt") == [True, False, False, False]
    assert forced("generated") == forced("all") == [True, True, True, True]
    assert forced([0]) == [False, True, False, False]
    assert forced([-1, 1]) == [True, False, True, False]
    assert forced([-2]) == [False, False, False, False]


def test_bfloat16_is_added_in_float32(tiny_folder):
    model = star.load_model(str(tiny_folder), dtype="bfloat16")
    # Far below the spacing of bfloat16 (1/128 at 1): rounded by itself first, it would change other digits.
    vector = steering_vector(scale=4e-3)
    seen = []

    def keep(activation, hook):
        seen.append(activation.clone())

    name = vector.locus.hook_point
    tokens = torch.tensor([random_ids(LONG, seed) for seed in range(16)])
    model.run_with_hooks(tokens, fwd_hooks=[(name, keep), *vector.hooks(), (name, keep)])
    before, after = (s[:, -1] for s in seen)
    assert after.dtype == torch.bfloat16
    assert torch.equal(seen[0][:, :-1], seen[1][:, :-1])
    assert torch.equal(after, (before.float() + vector.vector).bfloat16())
    assert not torch.equal(after, before + vector.vector.bfloat16()), "the two ways do not differ here"


def test_positions_that_a_short_prompt_lacks_are_left_out_alone_and_in_a_batch(tiny, tokenizer):
    short, long = TALK[1], TALK[2]
    before_start = -len(prompt_ids(tokenizer, short)) - 1
    assert -before_start <= len(prompt_ids(tokenizer, long))
    hooks = steering_vector("blocks.0.hook_resid_post", (before_start,), scale=5.0).hooks()

    def write(prompts, hooks=()):
        return star.generate(tiny, prompts, hooks, max_new_tokens=6, temperature=0)

    unsteered, steered = write([short, long]), write([short, long], hooks)
    assert steered[0] == unsteered[0] == write([short], hooks)[0]
    assert steered[1] != unsteered[1]


@pytest.mark.parametrize("strength", [0, 0.0, -1, -0.5, 2.5, np.float32(0.5), np.int64(2)])
def test_strength_multiplies_the_vector(tiny, hf, strength):
    vector, ids = steering_vector(), random_ids(LONG, seed=0)
    ours = tiny.run_with_hooks(torch.tensor([ids]), fwd_hooks=vector.hooks(strength))[0]
    assert close(ours, logits(hf, ids, vector.locus, {LONG - 1: float(strength) * vector.vector[0]}))
    assert torch.equal(ours, tiny(torch.tensor([ids]))[0]) == (strength == 0)


@pytest.mark.parametrize("strength", [math.nan, math.inf, -math.inf, "1", True, None, 1j])
def test_a_strength_that_is_no_finite_number_is_refused(strength):
    with pytest.raises(StarError, match=r"^strength is [^\n]+finite number[^\n]+$"):
        steering_vector().hooks(strength)


@pytest.mark.parametrize("positions", ["", "replies", -1, [], [0.5], ["-1"], [None]])
def test_positions_that_mean_nothing_are_refused(positions):
    with pytest.raises(StarError, match=r"positions[^\n]+use one of locus[^\n]+numbers[^\n]+$"):
        steering_vector().hooks(positions=positions)


@pytest.mark.parametrize("positions", [None, *SCHEDULES, [-1]])
def test_resid_pre_of_layer_zero_is_refused_with_another_place(positions):
    vector = steering_vector("blocks.1.hook_resid_pre")
    vector.hooks(positions=positions)
    with pytest.raises(StarError, match=r"^blocks\.0\.hook_resid_pre [^\n]+$"):
        vector.at_layer(0).hooks(positions=positions)


@pytest.mark.parametrize("share", [1.0, 0.4])
def test_what_lies_along_a_vector_is_removed_alone_in_a_batch_and_with_a_cache(tiny, hf, tokenizer, share):
    """Beside HuggingFace with the projection taken away by hand, whatever the other rows are steered with."""
    vector = steering_vector(positions=LOCUS, scale=1.0)
    removed = star.Condition("removed", vector, share, "all", remove=True)
    unit = vector.vector.mean(0) / vector.vector.mean(0).norm()

    def take_away(module, args, output):
        hidden = output[0] if isinstance(output, tuple) else output
        changed = hidden - share * (hidden @ unit)[..., None] * unit
        return (changed, *output[1:]) if isinstance(output, tuple) else changed

    ids = prompt_ids(tokenizer, TALK[0])
    plain = logits(hf, ids)
    handle = hf.model.layers[vector.locus.layer].register_forward_hook(take_away)
    try:
        wanted, written = logits(hf, ids), list(ids)
        for _ in range(8):
            written.append(int(logits(hf, written)[-1].argmax()))
    finally:
        handle.remove()
    hooks = removed.hooks(tokenizer, [TALK[0]], len(ids))
    assert close(tiny.run_with_hooks(torch.tensor([ids]), fwd_hooks=hooks)[0], wanted)
    assert not close(plain, wanted), "so little shows nothing"
    before = tiny.run_with_cache(torch.tensor([ids]))[1][vector.locus.hook_point]
    after = removed.hooks(tokenizer, [TALK[0]], len(ids))[1][1].follow(Position(len(ids)))(before, None)
    left = (after @ unit).abs().max() / (before @ unit).abs().max()
    assert float(left) == pytest.approx(1 - share, abs=1e-5)
    ways = [star.Condition("x", vector, 2.0, "generated"), removed, star.Condition()]
    rows = [way.rows(tokenizer, text) for way, text in zip(ways, (TALK[2], TALK[0], TALK[1]), strict=True)]
    for hooks, prompts in (
        (removed.hooks(tokenizer, [TALK[0]]), [TALK[0]]),
        (batch_hooks(rows), [*TALK[2::-2], TALK[1]]),
    ):
        replies = star.generate(tiny, prompts, hooks, max_new_tokens=8, temperature=0)
        said = replies[prompts.index(TALK[0])].tokens
        assert said == tuple(written[len(ids) :][: len(said)])


def test_removal_is_refused_without_a_vector_or_with_a_strength_below_zero():
    for wrong in ({"vector": None}, {"vector": steering_vector(), "strength": -1.0}):
        with pytest.raises(StarError, match=r"^remove takes away what lies along a vector: [^\n]+$"):
            star.Condition("x", remove=True, **wrong)


@pytest.mark.parametrize("positions", [None, "locus", [-1, -3], (-3, -1)])
def test_removal_at_the_vectors_own_positions_is_of_its_own_rows_however_they_are_named(tiny, tokenizer, positions):
    vector = steering_vector(positions=LOCUS, scale=1.0)
    ids = prompt_ids(tokenizer, TALK[0])
    removed = star.Condition("removed", vector, 1.0, positions, remove=True)
    hooks = removed.hooks(tokenizer, [TALK[0]], len(ids))
    kept: list[Tensor] = []
    name = vector.locus.hook_point
    tiny.run_with_hooks(torch.tensor([ids]), fwd_hooks=[*hooks, (name, lambda x, hook: kept.append(x.clone()))])
    for row, at in zip(vector.vector, LOCUS, strict=True):
        assert abs(float(kept[0][0, at] @ row / row.norm())) < 1e-5


@pytest.mark.parametrize("positions", [None, "all"])
def test_of_several_vectors_at_one_place_nothing_is_left(tiny, tokenizer, positions):
    """They are no right angles apart: taken away one after another they would leave some of the first."""
    first, second = (steering_vector(positions=LOCUS, scale=1.0, seed=seed) for seed in (0, 1))
    second = replace(second, vector=second.vector + first.vector)
    again = replace(first, vector=2 * first.vector)  # holds nothing new
    ids = prompt_ids(tokenizer, TALK[0])
    removed = star.Condition("removed", first, 1.0, positions, more=(second, again), remove=True)
    kept: list[Tensor] = []
    for hooks in (removed.hooks(tokenizer, [TALK[0]], len(ids)), batch_hooks([removed.rows(tokenizer, TALK[0])])):
        watched = [*hooks, (first.locus.hook_point, lambda x, hook: kept.append(x.clone()))]
        tiny.run_with_hooks(torch.tensor([ids]), fwd_hooks=watched)
    for left in kept:
        for vector in (first, second):
            for row, at in zip(vector.vector, LOCUS, strict=True):
                row = row if positions is None else vector.vector.mean(0)
                assert abs(float(left[0, at] @ row / row.norm())) < 1e-4


def test_a_vector_that_is_trained_may_be_a_conditions(tokenizer):
    vector = steering_vector()
    trained = replace(vector, vector=vector.vector.clone().requires_grad_())
    assert star.Condition("x", trained).identity == star.Condition("x", vector).identity
