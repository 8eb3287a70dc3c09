"""The fast forward against the model's own, and what sampling makes of it."""

from __future__ import annotations

import itertools
import warnings
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from conftest import LLAMA3_ROPE
from hf_reference import forcing, load, logits, of, prompt_ids
from torch.nn import functional as F
from transformer_lens.cache.key_value_cache import TransformerLensKeyValueCache
from transformers import RepetitionPenaltyLogitsProcessor

import star_tl as star
from star_tl.errors import StarError
from star_tl.generation import decoding, sampling
from star_tl.generation.decoding import StockPass, begin
from star_tl.generation.picking import pick
from star_tl.generation.sampling import stream
from star_tl.locus import HOOK_POINTS, Locus
from star_tl.models import size
from star_tl.models.backend import attached, residual_stream
from star_tl.models.fast import decode
from star_tl.models.fast.decode import LlamaPass, RecordedStep
from star_tl.models.fast.forward import llama_forward
from star_tl.steering.hooks import injection_hooks, row_hooks
from star_tl.steering.positions import COUNTED, SCHEDULES, schedule

VARIANTS = {
    "grouped": {},
    "ungrouped": {"num_key_value_heads": 4},
    "llama3": {"rope_parameters": LLAMA3_ROPE},
    "tied": {"tie_word_embeddings": True},
    "wide heads": {"head_dim": 16},
    "biased": {"attention_bias": True},
}
CLOSE = {"rtol": 0, "atol": 1e-4}  # float32 round-off of two implementations on logits of order 1 to 10
PROMPTS = ("Would you sell the bicycle for forty dollars?", "no", "My sister lost her job and I feel bad.", "ok")
END = 14
EVERY = (*SCHEDULES, *(name.replace("N", "3") for name in COUNTED), (-2, 1), (0, 2))  # every kind of schedule


def batch(rows: int = 4) -> tuple[torch.Tensor, torch.Tensor]:
    """Left-padded random tokens and their mask."""
    tokens = torch.randint(5, 600, (rows, END), generator=torch.Generator().manual_seed(1))
    mask = torch.arange(END) >= torch.arange(rows)[:, None] * 2
    return tokens, mask


def agree(fast, stock, tokens, steps: int = 4) -> None:
    a, b = fast(tokens), stock(tokens)
    assert a.std() > 0.1
    torch.testing.assert_close(a, b, **CLOSE)
    for _ in range(steps):
        following = b.argmax(-1)[:, None]
        a, b = fast(following), stock(following)
        torch.testing.assert_close(a, b, **CLOSE)


@pytest.mark.parametrize("rows", [1, 4, decode.MANY_ROWS])
@pytest.mark.parametrize("variant", VARIANTS)
def test_the_fast_forward_equals_the_models_own(write_llama, variant: str, rows: int) -> None:
    model = star.load_model(write_llama(**VARIANTS[variant]))
    tokens, mask = batch(rows)
    mask |= rows > 4  # one batch without padding
    fast = begin(model, [], mask, END, END + 8)
    assert isinstance(fast, LlamaPass)
    agree(fast, StockPass(model, [], mask, END), tokens)


@pytest.mark.parametrize("positions", EVERY)
def test_rows_read_at_once_are_what_the_models_own_forward_makes_of_them(tiny, positions) -> None:
    tokens, mask = batch()
    replies = torch.randint(5, 600, (len(tokens), 6), generator=torch.Generator().manual_seed(2))
    tokens, mask = torch.cat([tokens, replies], 1), torch.cat([mask, torch.ones_like(replies, dtype=torch.bool)], 1)
    vector = torch.randn(1, 32, generator=torch.Generator().manual_seed(3))
    hooks = injection_hooks(vector, Locus("blocks.1.hook_resid_post"), positions, prompt_length=END)
    fast = decoding.residual_of(tiny, hooks, tokens, mask, END)
    with attached(tiny, hooks):
        assert llama_forward(tiny) is None  # the other side of the comparison is another forward
        torch.testing.assert_close(fast[mask], residual_stream(tiny, tokens, mask)[mask], **CLOSE)
    unsteered = decoding.residual_of(tiny, [], tokens, mask, END)
    assert (fast - unsteered)[mask].abs().max() > 0.1


@pytest.mark.parametrize("rows", [1, 4])
@pytest.mark.parametrize("point", HOOK_POINTS)
def test_every_hook_point_it_fires_takes_effect_as_in_the_models_own(tiny, point: str, rows: int) -> None:
    seen = []

    def double(activation: torch.Tensor, hook) -> torch.Tensor:
        seen.append((hook.name, tuple(activation.shape)))
        return 2 * activation

    tokens, mask = batch(rows)
    hooks = [(f"blocks.{i}.{point}", double) for i in (1, 2)]
    fast, stock = begin(tiny, hooks, mask, END, END + 8), StockPass(tiny, hooks, mask, END)
    assert isinstance(fast, LlamaPass)
    agree(fast, stock, tokens)
    assert seen[0::4] == seen[2::4]
    assert seen[1::4] == seen[3::4]
    plain = begin(tiny, [], mask, END, END + 8)(tokens)
    assert (begin(tiny, hooks, mask, END, END + 8)(tokens) - plain).abs().max() > 1e-2


def test_the_last_row_of_a_padded_batch_goes_on_through_numpy_as_before(tiny_folder) -> None:
    tokens, mask = batch()
    double = star.load_model(tiny_folder, dtype="float64")
    one, four = (begin(double, [], mask, END, END + 8) for _ in range(2))
    assert isinstance(one, LlamaPass)
    following = one(tokens).argmax(-1)[:, None]
    four(tokens)
    assert one.keep(torch.tensor([2]))
    for _ in range(4):
        expected = four(following)[2:3]
        torch.testing.assert_close(one(following[2:3]), expected, rtol=0, atol=1e-12)
        following = expected.argmax(-1)[:, None].expand(4, 1)
    assert one.single_row is not None


def test_a_hook_that_writes_into_what_it_gets_leaves_the_weights_alone(tiny) -> None:
    def spoil(activation: torch.Tensor, hook) -> None:
        activation += 1.0

    tokens, mask = batch(1)
    before = tiny.embed.W_E.clone()
    fast = begin(tiny, [("blocks.0.hook_resid_pre", spoil)], mask, END, END + 2)
    assert (fast(tokens) - begin(tiny, [], mask, END, END + 2)(tokens)).abs().max() > 1e-2
    fast(tokens[:, :1])
    assert torch.equal(tiny.embed.W_E, before)


@pytest.mark.parametrize("rows", [1, 4, decode.MANY_ROWS])
def test_the_step_that_a_graph_records_is_the_same_step_whatever_lies_in_unread_columns(tiny, rows: int) -> None:
    tokens, mask = batch(rows)
    mask |= rows > 4
    vector = of(torch.randn(1, 32, generator=torch.Generator().manual_seed(3)), Locus("blocks.1.hook_resid_post"))
    eager, fixed = (begin(tiny, vector.hooks(2.0, "generated"), mask, END, END + 8) for _ in range(2))
    a = eager(tokens)
    torch.testing.assert_close(fixed(tokens), a, rtol=0, atol=0)
    fixed.layers.cache[..., END:, :] = torch.nan  # as memory that was somebody else's may be
    step = RecordedStep(fixed.layers, END)
    for k in range(5):
        following = a.argmax(-1)[:, None]
        a = eager(following)
        fixed.position.advance(1)
        torch.testing.assert_close(step(following, END + k), a, **CLOSE)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_recorded_graph_writes_the_same_text(tiny_folder) -> None:
    vector = of(torch.randn(1, 32, generator=torch.Generator().manual_seed(3)), Locus("blocks.1.hook_resid_post"))
    texts = []
    for device in ("cpu", "cuda"):
        model = star.load_model(tiny_folder, device=device)
        texts.append(star.sample(model, PROMPTS, vector.hooks(2.0, "generated"), max_new_tokens=12, temperature=0))
    assert texts[0] == texts[1]


def test_only_schedules_that_do_the_same_at_every_step_are_steady() -> None:
    steady = ("prompt", "last_prompt", "generated", "all", (-3, -1))
    assert all(schedule(s).steady for s in steady)
    assert not any(schedule(s).steady for s in ("first 3", "every 2", "decay 2", (0,), (-1, 2)))


def test_hooks_may_watch_without_changing_and_be_named_by_a_filter(tiny) -> None:
    tokens, mask = batch()
    seen: list[str] = []
    hooks = [(lambda name: name.endswith("hook_resid_post"), lambda activation, hook: seen.append(hook.name))]
    fast = begin(tiny, hooks, mask, END, END + 1)
    assert isinstance(fast, LlamaPass)
    torch.testing.assert_close(fast(tokens), begin(tiny, [], mask, END, END + 1)(tokens), rtol=0, atol=0)
    assert seen == [f"blocks.{i}.hook_resid_post" for i in range(3)]


def test_other_hook_points_other_models_and_foreign_hooks_go_through_the_models_own_forward(tiny, write_llama) -> None:
    _, mask = batch()
    pattern = [("blocks.1.attn.hook_pattern", lambda activation, hook: activation)]
    assert isinstance(begin(tiny, pattern, mask, END, END + 8), StockPass)
    with tiny.hooks(fwd_hooks=[("blocks.1.hook_resid_post", lambda activation, hook: activation)]):
        assert not llama_forward(tiny)
    assert llama_forward(tiny)
    apart = star.load_model(write_llama())
    apart.blocks[0].attn.W_Q.data = apart.blocks[0].attn.W_Q.data.clone(memory_format=torch.contiguous_format)
    with pytest.warns(UserWarning, match="copy_free_layout"):
        assert not llama_forward(apart)
    assert llama_forward(star.copy_free_layout(apart))


def test_a_model_that_was_moved_says_once_that_it_is_slower_now(write_llama) -> None:
    model = star.load_model(write_llama()).to(torch.float64, print_details=False)
    _, mask = batch()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for _ in range(2):
            assert isinstance(begin(model, [], mask, END, END + 8), StockPass)
    (found,) = [w for w in caught if "do not lie as load_model puts them" in str(w.message)]
    assert str(found.message).endswith("until star_tl.copy_free_layout(model) is called.")
    assert found.filename == decode.__file__, "torch's decorator asked for nothing"
    assert isinstance(begin(star.copy_free_layout(model), [], mask, END, END + 8), LlamaPass)


def test_weights_are_read_where_they_lie(tiny) -> None:
    tokens, mask = batch()
    fast = begin(tiny, [], mask, END, END + 1)
    assert isinstance(fast, LlamaPass)
    before = fast(tokens)
    with torch.no_grad():
        for name in ("W_Q", "_W_V", "W_O"):
            getattr(tiny.blocks[1].attn, name).mul_(1.5)
        for name in ("W_gate", "W_in", "W_out"):
            getattr(tiny.blocks[1].mlp, name).mul_(1.5)
        try:
            changed = begin(tiny, [], mask, END, END + 1)(tokens)
            torch.testing.assert_close(changed, StockPass(tiny, [], mask, END)(tokens), **CLOSE)
        finally:
            for name in ("W_Q", "_W_V", "W_O"):
                getattr(tiny.blocks[1].attn, name).div_(1.5)
            for name in ("W_gate", "W_in", "W_out"):
                getattr(tiny.blocks[1].mlp, name).div_(1.5)
    assert (changed - before).abs().max() > 1e-2


def ways(count: int) -> list:
    noise = torch.Generator().manual_seed(0)
    places = (
        Locus("blocks.1.hook_resid_post", (-1,)),
        Locus("blocks.0.hook_mlp_out", (-3, -1)),
        Locus("blocks.2.attn.hook_z", (-1,), 3),
    )
    schedules = (None, "generated", "first 2", "every 3", "decay 2")
    rows: list = [None]
    while len(rows) < count:
        place = places[len(rows) % 3]
        vector = torch.randn(len(place.positions), 8 if place.head is not None else 32, generator=noise)
        rows.append((vector, place, schedules[len(rows) % 5]))
    return rows


def test_what_rows_share_is_read_once_and_changes_nothing(tiny, tokenizer, monkeypatch) -> None:
    prompts = [tuple(prompt_ids(tokenizer, PROMPTS[i % 2])) for i in range(12)]
    read: list[int] = []
    own = LlamaPass.residual

    def counted(self, tokens):
        read.append(tokens.numel())
        return own(self, tokens)

    monkeypatch.setattr(LlamaPass, "residual", counted)
    options = sampling.Sampling(max_new_tokens=1, temperature=0)
    together, scores = sampling.read_prompts(tiny, prompts, row_hooks(ways(12)), options.max_new_tokens)
    assert read[0] == 2 * (max(map(len, prompts)) - 3)
    assert read[1] == 12 * 3
    for i, way in enumerate(ways(12)):
        alone, score = sampling.read_prompts(tiny, prompts[i : i + 1], row_hooks([way]), options.max_new_tokens)
        torch.testing.assert_close(scores[i], score[0], **CLOSE)
        assert together.position.read == max(map(len, prompts))
        assert alone.position.read == len(prompts[i])


def test_rows_that_have_ended_leave_the_batch_and_the_others_go_on_as_they_were(tiny, monkeypatch) -> None:
    token, vector = forcing(tiny)
    monkeypatch.setattr(sampling, "stop_ids", lambda tokenizer: (token,))
    rows = [None, None] + [(vector.vector, vector.locus, [n]) for n in (0, 2, 2, 4, 6)] + ways(4)[1:]
    kept: list[int] = []
    keep = LlamaPass.keep
    monkeypatch.setattr(LlamaPass, "keep", lambda self, rows: kept.append(len(rows)) or keep(self, rows))
    ids = sampling.render_prompts(tiny, [PROMPTS[i % 4] for i in range(len(rows))], 10)
    options = sampling.Sampling(max_new_tokens=10, temperature=0)
    order, together = next(
        sampling.in_batches(tiny, ids, [0] * len(ids), lambda b: row_hooks([rows[i] for i in b]), options, False)
    )
    assert kept
    assert kept == sorted(kept, reverse=True)
    for i, reply in zip(order, together, strict=True):
        (_, (alone,)) = next(
            sampling.in_batches(tiny, [ids[i]], [0], lambda b, i=i: row_hooks([rows[i]]), options, False)
        )
        assert reply == alone
    assert {r.stopped for r in together} == {True, False}


def test_a_hook_of_the_users_keeps_its_rows(tiny, monkeypatch) -> None:
    token, _ = forcing(tiny)
    monkeypatch.setattr(sampling, "stop_ids", lambda tokenizer: (token,))
    shapes = set()

    def third_row(activation, hook):
        shapes.add(len(activation))
        activation[2] += 1.0
        return activation

    star.generate(tiny, PROMPTS, [("blocks.1.hook_resid_post", third_row)], max_new_tokens=12)
    assert shapes == {len(PROMPTS)}


@pytest.fixture(params=[False, True], ids=["fast", "the model's own"])
def own_forward(request, monkeypatch) -> bool:
    """Whether the pass is the model's own forward."""
    if request.param:
        monkeypatch.setattr(decode, "llama_forward", lambda model: None)
    return request.param


@pytest.mark.parametrize("positions", [None, "generated", "first 3", "every 2", (-1, 1)])
def test_one_list_of_hooks_serves_several_texts_at_once(tiny, own_forward, positions) -> None:
    vector = of(torch.randn(1, 32, generator=torch.Generator().manual_seed(3)), Locus("blocks.1.hook_resid_post"))
    options = {"max_new_tokens": 8, "temperature": 0}

    def alone(prompt: str) -> str:
        return star.sample(tiny, [prompt], vector.hooks(2.0, positions), progress=False, **options)[0]

    expected = [alone(p) for p in PROMPTS]
    kept = vector.hooks(2.0, positions)

    # Interleaved, and after a text that was given up.
    given_up = stream(tiny, PROMPTS[:1], kept, **options)
    next(given_up)
    given_up.close()
    running = [stream(tiny, [p], kept, **options) for p in PROMPTS]
    last: list[str] = [""] * len(running)
    for step in itertools.zip_longest(*running):
        for i, replies in enumerate(step):
            last[i] = replies[0].text if replies else last[i]
    assert last == expected

    # Nested: while one text is written a hook writes another.
    def write(activation, hook) -> None:
        inner.append(star.sample(tiny, PROMPTS[1:2], kept, progress=False, **options)[0])

    inner: list[str] = []
    outer = [kept[0], ("blocks.0.hook_resid_post", write), *kept[1:]]
    if not own_forward:  # hooks on the model's own forward would act on the inner text, too, as TransformerLens has it
        assert star.sample(tiny, PROMPTS[:1], outer, progress=False, **options) == expected[:1]
        assert set(inner) == {expected[1]}

    # In threads, of one model.
    with ThreadPoolExecutor(4) as pool:
        written = [pool.submit(star.sample, tiny, [p], kept, progress=False, **options) for p in PROMPTS * 3]
    assert [w.result()[0] for w in written] == expected * 3

    # And in TransformerLens in between.
    ids = torch.tensor([prompt_ids(tiny.tokenizer, PROMPTS[2])])
    with tiny.hooks(fwd_hooks=kept):
        theirs = tiny.generate(ids, max_new_tokens=8, do_sample=False, stop_at_eos=False, verbose=False)
    assert tiny.tokenizer.decode(theirs[0, ids.shape[1] :], skip_special_tokens=True).strip() == expected[2]


def test_a_text_of_transformer_lens_goes_on_after_star_tl_used_its_hooks(tiny, tokenizer) -> None:
    vector = of(torch.randn(1, 32, generator=torch.Generator().manual_seed(3)), Locus("blocks.1.hook_resid_post"))
    kept, ids = vector.hooks(2.0, "first 3"), torch.tensor([prompt_ids(tokenizer, PROMPTS[0])])
    whole = tiny.run_with_hooks(
        torch.cat([ids, ids[:, :3]], 1), fwd_hooks=vector.hooks(2.0, "first 3", prompt_length=ids.shape[1])
    )
    cache = TransformerLensKeyValueCache.init_cache(tiny.cfg, "cpu", 1)
    found = []
    for part in (ids, *(ids[:, i : i + 1] for i in range(3))):
        with tiny.hooks(fwd_hooks=kept):
            found.append(tiny(part, past_kv_cache=cache))
        star.sample(tiny, PROMPTS[1:3], kept, max_new_tokens=3, progress=False)
    torch.testing.assert_close(torch.cat(found, 1), whole, **CLOSE)


def test_an_injection_that_the_user_wrapped_acts_where_it_did(tiny) -> None:
    vector = of(torch.randn(1, 32, generator=torch.Generator().manual_seed(3)), Locus("blocks.1.hook_resid_post"))
    options = {"max_new_tokens": 6, "temperature": 0, "progress": False}
    (clock_at, clock), (at, inject) = vector.hooks(2.0, "first 2")
    wrapped = [(clock_at, clock), (at, lambda activation, hook: inject(activation, hook))]
    for prompt in PROMPTS:
        assert star.sample(tiny, [prompt], wrapped, **options) == star.sample(
            tiny, [prompt], vector.hooks(2.0, "first 2"), **options
        )


@pytest.mark.parametrize("own_forward", [False, True], ids=["fast", "the model's own"])
@pytest.mark.parametrize("positions", EVERY)
def test_schedules_are_the_same_cached_uncached_and_in_transformer_lens(
    tiny, tokenizer, monkeypatch, positions, own_forward: bool
) -> None:
    if own_forward:
        monkeypatch.setattr(decode, "llama_forward", lambda model: None)
    place = Locus("blocks.1.hook_resid_post", (-3, -1))
    vector = of(torch.randn(2, 32, generator=torch.Generator().manual_seed(3)), place)
    ids = torch.tensor([prompt_ids(tokenizer, PROMPTS[0])])
    end = ids.shape[1]
    steps = 6
    step = begin(tiny, vector.hooks(2.0, positions), torch.ones_like(ids).bool(), end, end + steps)
    assert isinstance(step, StockPass if own_forward else LlamaPass)
    cached = [step(ids)]
    for _ in range(steps - 1):
        cached.append(step(cached[-1].argmax(-1)[:, None]))
    written = torch.cat([c.argmax(-1)[:, None] for c in cached], 1)
    both = torch.cat([ids, written[:, :-1]], 1)
    whole = tiny.run_with_hooks(both, fwd_hooks=vector.hooks(2.0, positions, prompt_length=end))
    torch.testing.assert_close(torch.cat(cached), whole[0, end - 1 :], **CLOSE)
    with tiny.hooks(fwd_hooks=vector.hooks(2.0, positions)):
        theirs = tiny.generate(ids, max_new_tokens=steps, do_sample=False, stop_at_eos=False, verbose=False)
    assert theirs[0, end:].tolist() == written[0].tolist()
    assert (whole[0, end - 1 :] - tiny(both)[0, end - 1 :]).abs().max() > 1e-2


def test_schedules_say_where_and_how_much() -> None:
    at = {name: schedule(name).columns(10, 0, 20) for name in ("first 3", "every 4", "decay 2", "prompt")}
    assert at["first 3"] == [(9, 0, 1.0), (10, 0, 1.0), (11, 0, 1.0)]
    assert [c for c, _, _ in at["every 4"]] == [9, 13, 17]
    assert at["decay 2"][:3] == [(9, 0, 1.0), (10, 0, 0.5**0.5), (11, 0, 0.5)]
    assert [c for c, _, _ in at["prompt"]] == list(range(10))
    for name in ("first", "first 0", "every x", "often"):
        with pytest.raises(StarError, match="Unknown positions"):
            schedule(name)


@pytest.mark.parametrize("temperature", [0.0, 0.9])
def test_a_row_is_the_same_alone_among_sixty_four_and_in_another_order(tiny, temperature: float) -> None:
    prompts = [f"{PROMPTS[i % 4]} {i}" for i in range(64)]
    options = {"temperature": temperature, "max_new_tokens": 10, "seed": 3, "progress": False}
    together = star.sample(tiny, prompts, **options)
    assert star.sample(tiny, prompts[::-1], **options)[::-1] == together
    assert [star.sample(tiny, [p], **options)[0] for p in prompts] == together


@pytest.mark.parametrize(
    "shared", [False, True], ids=["all schedules", "those that leave the prompt's beginning alone"]
)
@pytest.mark.parametrize("temperature", [0.0, 0.9])
def test_a_steered_row_is_the_same_alone_among_sixty_four_and_in_another_order(
    tiny, monkeypatch, temperature: float, shared: bool
) -> None:
    schedules = [s for s in EVERY if not shared or s == "locus" or schedule(s).reach is not None]
    noise = torch.Generator().manual_seed(0)
    places = [
        Locus("blocks.1.hook_resid_post", (-3, -1)),
        Locus("blocks.0.hook_mlp_out"),
        Locus("blocks.2.attn.hook_z", (-1,), 3),
    ]
    rows: list = [None]
    for i in range(63):
        place = places[i % 3]
        vector = torch.randn(len(place.positions), 8 if place.head is not None else 32, generator=noise)
        rows.append((vector, place, schedules[i % len(schedules)]))
    chats = sampling.render_prompts(tiny, [f"{PROMPTS[i % 4]} {i // 32}" for i in range(64)], 10)
    prefixes: list[int] = []
    go_on = LlamaPass.go_on_from
    monkeypatch.setattr(
        LlamaPass,
        "go_on_from",
        lambda self, other, rows: prefixes.append(other.position.read) or go_on(self, other, rows),
    )

    def write(order: list[int], batch_size: int = 64) -> dict[int, sampling.Reply]:
        options = sampling.Sampling(max_new_tokens=10, temperature=temperature, batch_size=batch_size)
        batches = sampling.in_batches(
            tiny,
            [chats[i] for i in order],
            [7] * len(order),
            lambda batch: row_hooks([rows[order[k]] for k in batch]),
            options,
            progress=False,
        )
        return {order[k]: reply for batch, replies in batches for k, reply in zip(batch, replies, strict=True)}

    together = write(list(range(64)))
    assert bool(prefixes) == shared
    assert write(list(range(64))[::-1]) == together
    assert write(list(range(64)), batch_size=1) == together
    assert len({reply.text for reply in together.values()}) > 32


def test_a_stream_grows_to_what_generate_returns_and_can_be_closed(tiny) -> None:
    options = {"max_new_tokens": 7, "seed": 4, "log_probs": True}
    whole = star.generate(tiny, PROMPTS, progress=False, **options)
    seen = list(stream(tiny, PROMPTS, **options))
    assert [(r.text, r.tokens, r.stopped) for r in seen[-1]] == [(r.text, r.tokens, r.stopped) for r in whole]
    for mine, theirs in zip(seen[-1], whole, strict=True):  # rows stand in another order, and rounding depends on it
        assert mine.log_probs == pytest.approx(theirs.log_probs, abs=1e-4)
    assert [max(len(r.tokens) for r in s) for s in seen] == list(range(1, len(seen) + 1))
    running = stream(tiny, PROMPTS, **options)
    next(running)
    running.close()
    assert star.generate(tiny, PROMPTS, progress=False, **options) == whole


def test_stop_strings_cut_the_reply(tiny) -> None:
    (whole,) = star.generate(tiny, PROMPTS[:1], max_new_tokens=12, temperature=0, progress=False)
    word = whole.text[4:7]
    (cut,) = star.generate(tiny, PROMPTS[:1], max_new_tokens=12, temperature=0, stop=[word], progress=False)
    assert cut.text == whole.text[: whole.text.index(word)].strip()
    assert cut.stopped
    assert len(cut.tokens) < len(whole.tokens)
    with pytest.raises(StarError, match="stop is"):
        star.generate(tiny, PROMPTS[:1], stop=word)


def test_log_probs_are_huggingfaces(tiny, tiny_folder, tokenizer) -> None:
    (reply,) = star.generate(tiny, PROMPTS[:1], max_new_tokens=6, log_probs=True, top_p=0.9, progress=False)
    prompt = prompt_ids(tokenizer, PROMPTS[0])
    scores = logits(load(tiny_folder), prompt + list(reply.tokens))[len(prompt) - 1 : -1]
    expected = -F.cross_entropy(scores, torch.tensor(reply.tokens), reduction="none")
    assert reply.log_probs == pytest.approx(expected.tolist(), abs=1e-4)
    assert star.generate(tiny, PROMPTS[:1], max_new_tokens=2, progress=False)[0].log_probs == ()


def test_min_p_and_repetition_penalty_are_the_published_ones(tiny, tokenizer) -> None:
    scores = torch.log(torch.tensor([[0.5, 0.3, 0.15, 0.05]]))
    grid = (torch.arange(1000) + 0.5) / 1000
    share = torch.bincount(pick(scores.repeat(1000, 1), grid, 1.0, 1.0, 0.31), minlength=4) / 1000
    assert share.tolist() == pytest.approx([0.625, 0.375, 0, 0], abs=2e-3)
    prompt = prompt_ids(tokenizer, PROMPTS[0])
    reply = star.generate(tiny, PROMPTS[:1], max_new_tokens=8, temperature=0, repetition_penalty=1.8, progress=False)[0]
    processor = RepetitionPenaltyLogitsProcessor(1.8)
    for n, token in enumerate(reply.tokens):
        ids = torch.tensor([prompt + list(reply.tokens[:n])])
        assert int(processor(ids, tiny(ids)[:, -1]).argmax()) == token
    plain = star.generate(tiny, PROMPTS[:1], max_new_tokens=8, temperature=0, progress=False)[0]
    assert reply.tokens != plain.tokens


def test_a_row_whose_logits_break_ends_alone(tiny) -> None:
    broken = of(torch.full((1, 32), 1e38), Locus("blocks.1.hook_resid_post"))
    rows = [None, (broken.vector * 10, broken.locus, [2]), None]
    ids = sampling.render_prompts(tiny, PROMPTS[:3], 6)
    options = sampling.Sampling(max_new_tokens=6, temperature=0)
    order, replies = next(
        sampling.in_batches(tiny, ids, [0] * 3, lambda b: row_hooks([rows[i] for i in b]), options, False)
    )
    plain = star.generate(tiny, PROMPTS[:3], max_new_tokens=6, temperature=0, progress=False)
    assert sorted(order) == [0, 1, 2]
    for i, reply in zip(order, replies, strict=True):
        assert reply.broken == (i == 1)
        assert reply == plain[i] if i != 1 else len(reply.tokens) == 3


def test_a_batch_is_cut_to_the_memory_there_is(tiny, monkeypatch) -> None:
    prompts = [f"{p} {i}" for i in range(4) for p in PROMPTS]
    whole = star.sample(tiny, prompts, max_new_tokens=4, progress=False)
    sizes = []
    written = sampling._written

    def counted(model, rows, *args, **more):
        sizes.append(len(rows))
        return written(model, rows, *args, **more)

    monkeypatch.setattr(sampling, "_written", counted)
    per_column = 2 * 3 * 2 * 8 * 4
    monkeypatch.setattr(
        size.psutil, "virtual_memory", lambda: type("Memory", (), {"available": 4 * 100 * per_column * 3})
    )
    assert star.sample(tiny, prompts, max_new_tokens=4, progress=False) == whole
    assert max(sizes) < 16
    assert sum(sizes) == 16
