"""Sampling: HuggingFace's greedy text, the right distribution, and a row's text whatever surrounds it."""

from __future__ import annotations

import math
import warnings

import numpy as np
import pandas as pd
import pytest
import torch
from hf_reference import END_OF_TURN, forcing, hooks_left, load, logits, prompt_ids, steering_vector
from scipy import stats

import star_tl as star
from star_tl.errors import StarError
from star_tl.generation import picking, sampling
from star_tl.generation.likelihood import reply_logits, reply_logprobs
from star_tl.generation.picking import pick
from star_tl.generation.writing import Reply
from star_tl.models.batch import make_batch
from star_tl.models.fast.decode import LlamaPass
from star_tl.models.memory import out_of_memory

PROMPTS = (
    "Hello there, how was your day?",
    "no",
    "My sister lost her job and I do not know what to say to her.",
    "Would you sell the bicycle for forty dollars?",
    "ok",
)
TOLERANCE = 1e-4  # float32 round-off of two implementations on logits of order 1 to 10


@pytest.fixture(scope="module")
def hf(tiny_folder):
    return load(tiny_folder)


@pytest.fixture(scope="module")
def talkative(write_llama, tmp_path_factory):
    """A model that often ends its turn: a folder, as a HookedTransformer, and in HuggingFace."""
    folder = write_llama(seed=5)
    hf = load(folder)
    with torch.no_grad():
        hf.lm_head.weight[END_OF_TURN] *= 1.6
    hf.save_pretrained(folder)
    return star.load_model(str(folder)), hf


def theirs(hf, ids: list[int], n: int) -> tuple[int, ...]:
    out = hf.generate(
        torch.tensor([ids]),
        attention_mask=torch.ones(1, len(ids), dtype=torch.long),
        max_new_tokens=n,
        do_sample=False,
        eos_token_id=END_OF_TURN,
        pad_token_id=END_OF_TURN,
    )
    return tuple(out[0, len(ids) :].tolist())


def test_greedy_is_huggingfaces_greedy(tiny, hf, tokenizer):
    for prompt, reply in zip(PROMPTS, star.generate(tiny, PROMPTS, max_new_tokens=12, temperature=0), strict=True):
        expected = theirs(hf, prompt_ids(tokenizer, prompt), 12)
        assert reply == Reply(tokenizer.decode(expected, skip_special_tokens=True).strip(), expected, False)


def test_a_row_ends_at_its_own_end_of_turn(talkative, tokenizer):
    model, hf = talkative
    prompts = [f"{p} {i}" for p in PROMPTS for i in range(4)]
    replies = star.generate(model, prompts, max_new_tokens=12, temperature=0)
    for prompt, reply in zip(prompts, replies, strict=True):
        expected = theirs(hf, prompt_ids(tokenizer, prompt), 12)
        ended = expected[-1] == END_OF_TURN
        assert reply.stopped == ended
        assert reply.tokens == (expected[:-1] if ended else expected)
    assert len({len(r.tokens) for r in replies}) > 3, "the rows all stop at once: nothing is tested"
    assert {r.stopped for r in replies} == {True, False}


@pytest.mark.parametrize("temperature", [0, 0.02])
def test_an_end_of_turn_that_is_forced_ends_the_reply_there(tiny, monkeypatch, temperature):
    token, vector = forcing(tiny)
    monkeypatch.setattr(sampling, "stop_ids", lambda tokenizer: (token,))
    for length in range(3):
        hooks = vector.hooks(positions=[length - 1])
        for reply in star.generate(tiny, PROMPTS[:2], hooks, max_new_tokens=3, temperature=temperature):
            assert (len(reply.tokens), reply.stopped) == (length, True)
            assert token not in reply.tokens
    assert star.sample(tiny, PROMPTS[:2], vector.hooks(), max_new_tokens=3, temperature=temperature) == ["", ""]


@pytest.mark.parametrize("steered", [False, True], ids=["unsteered", "steered"])
@pytest.mark.parametrize("options", [{"temperature": 0}, {"seed": 3}, {"top_p": 0.9, "temperature": 1.3}])
def test_the_text_of_a_row_depends_on_nothing_around_it(talkative, options, steered):
    model, _ = talkative

    def write(prompts, batch_size=64):
        hooks = steering_vector(scale=1.0).hooks(positions=[-1, 0, 2]) if steered else []
        return star.generate(model, prompts, hooks, max_new_tokens=12, batch_size=batch_size, **options)

    together = write(PROMPTS)
    assert together == [reply for p in PROMPTS for reply in write([p])]
    assert together == write(PROMPTS[::-1])[::-1]
    assert together == write(PROMPTS, batch_size=2)
    assert together == write([*PROMPTS, *PROMPTS[:3]])[: len(PROMPTS)]
    assert len(set(together)) > 2


def test_a_seed_is_a_text(tiny):
    def write(seed, n=8):
        return [r.tokens for r in star.generate(tiny, PROMPTS, max_new_tokens=n, seed=seed)]

    assert write(0) == write(0) == write(np.int64(0))
    assert all(a != b for a, b in zip(write(0), write(1), strict=True))
    assert [r[:3] for r in write(0)] == write(0, n=3), "a longer limit rewrites the beginning"


def test_sample_gives_the_texts_of_generate(tiny):
    for prompts in (PROMPTS, pd.Series(PROMPTS), [[{"role": "user", "content": p}] for p in PROMPTS]):
        assert star.sample(tiny, prompts, max_new_tokens=5) == [
            r.text for r in star.generate(tiny, PROMPTS, max_new_tokens=5)
        ]


def kept_by_top_p(weights: list[float], top_p: float) -> dict[int, float]:
    """Slowly: the most probable tokens until their sum reaches top_p, renormalised."""
    kept: dict[int, float] = {}
    for token in sorted(range(len(weights)), key=lambda t: -weights[t]):
        kept[token] = weights[token]
        if math.fsum(kept.values()) >= top_p:
            break
    return {token: weight / math.fsum(kept.values()) for token, weight in kept.items()}


@pytest.mark.parametrize("temperature", [0.3, 1.0, 2.5])
@pytest.mark.parametrize("top_p", [1.0, 0.9, 0.5, 1e-6])
def test_pick_follows_the_distribution(temperature, top_p):
    scores = torch.randn(2, 12, generator=torch.Generator().manual_seed(0)) * 2
    n = 20_000
    for row in scores:
        powers = [math.exp(float(x) / temperature) for x in row]
        expected = kept_by_top_p([p / math.fsum(powers) for p in powers], top_p)
        grid = (torch.arange(n) + 0.5) / n
        picked = pick(row.repeat(n, 1), grid, temperature, top_p)
        share = torch.bincount(picked, minlength=12) / n
        # A stretch of the unit interval holds its length's share of an even grid, to one point at either end.
        for token in range(12):
            assert float(share[token]) == pytest.approx(expected.get(token, 0.0), abs=2 / n)
        assert all(share[t] == 0 for t in range(12) if t not in expected)


def test_pick_reads_every_row_with_its_own_number():
    even = torch.zeros(4, 4)
    tokens = pick(even, torch.tensor([0.1, 0.3, 0.6, 0.9]), 1.0, 1.0)
    assert sorted(tokens.tolist()) == [0, 1, 2, 3]
    sure = torch.tensor([[0.0, 50.0, 0.0], [50.0, 0.0, 0.0], [0.0, 0.0, 50.0]])
    for temperature, top_p in ((0, 1.0), (1.0, 1.0), (1.0, 0.5)):
        assert pick(sure, torch.tensor([1e-7, 0.5, 1 - 1e-7]), temperature, top_p).tolist() == [1, 0, 2]


def record(monkeypatch) -> list[tuple[torch.Tensor, torch.Tensor, torch.Tensor]]:
    """What generation hands to ``pick`` and gets back, step by step."""
    steps = []

    def recorded(scores, uniform, *bounds):
        tokens = pick(scores, uniform, *bounds)
        steps.append((scores.clone(), uniform.clone(), tokens))
        return tokens

    monkeypatch.setattr(picking, "pick", recorded)
    return steps


def test_every_prompt_seed_and_step_has_a_number_of_its_own(tiny, monkeypatch):
    steps = record(monkeypatch)
    for seed in range(40):
        star.generate(tiny, PROMPTS, max_new_tokens=3, seed=seed)
    numbers = torch.cat([uniform for _, uniform, _ in steps])
    assert len(numbers.unique()) == len(numbers) == 40 * 3 * len(PROMPTS)
    assert stats.kstest(numbers.numpy(), "uniform").pvalue > 0.01
    first, second = torch.stack([u for _, u, _ in steps])[0::3], torch.stack([u for _, u, _ in steps])[1::3]
    assert abs(np.corrcoef(first.flatten(), second.flatten())[0, 1]) < 0.2  # about 3 standard errors


@pytest.mark.parametrize("cap", [0.0, 0.5], ids=["plain", "soft-capped"])
def test_sampled_from_the_logits_of_the_models_own_forward(tiny, hf, tokenizer, monkeypatch, cap):
    monkeypatch.setattr(tiny.cfg, "output_logits_soft_cap", cap)
    steps = record(monkeypatch)
    prompt = prompt_ids(tokenizer, PROMPTS[0])
    star.generate(tiny, PROMPTS[:1], max_new_tokens=4)
    ids = prompt + [int(tokens) for _, _, tokens in steps]
    expected = logits(hf, ids)
    if cap:
        expected = cap * torch.tanh(expected / cap)
    ours = torch.cat([scores for scores, _, _ in steps])
    assert torch.allclose(ours, expected[len(prompt) - 1 : -1], atol=TOLERANCE, rtol=0)
    batch = make_batch(tiny, [prompt], [ids[len(prompt) :]])
    assert torch.allclose(reply_logits(tiny, batch)[0], ours, atol=TOLERANCE, rtol=0)


def test_a_batch_ends_all_prompts_in_one_column(tiny):
    batch = make_batch(tiny, [[5, 6], [7, 8, 9, 10]], [[11, 12, 13], [14]])
    pad = tiny.tokenizer.pad_token_id
    assert batch.tokens.tolist() == [[pad, pad, 5, 6, 11, 12, 13], [7, 8, 9, 10, 14, pad, pad]]
    assert batch.mask.int().tolist() == [[0, 0, 1, 1, 1, 1, 1], [1, 1, 1, 1, 1, 0, 0]]
    assert batch.prompt_end == 4
    assert batch.reply_lengths.tolist() == [3, 1]
    assert batch.reply_mask.int().tolist() == [[1, 1, 1], [1, 0, 0]]


@torch.no_grad()
def test_reply_logits_and_logprobs_are_huggingfaces_of_each_row_alone(tiny, hf):
    prompts, replies = [[5, 6], [7, 8, 9, 10], [20, 21, 22]], [[11, 12, 13], [14], [15, 16]]
    batch = make_batch(tiny, prompts, replies)
    ours = reply_logits(tiny, batch)
    logprobs = reply_logprobs(ours, batch)
    for row, (prompt, reply) in enumerate(zip(prompts, replies, strict=True)):
        expected = logits(hf, prompt + reply)[len(prompt) - 1 : -1]
        assert torch.allclose(ours[row, : len(reply)], expected, atol=TOLERANCE, rtol=0)
        loss = torch.nn.functional.cross_entropy(expected, torch.tensor(reply), reduction="none")
        assert torch.allclose(logprobs[row, : len(reply)], -loss, atol=TOLERANCE, rtol=0)
        assert (logprobs[row, len(reply) :] == 0).all()


def test_a_prompt_may_fill_the_context_and_not_more(write_llama, tokenizer):
    model = star.load_model(str(write_llama(max_position_embeddings=64)))
    prompt = "no " * 12
    room = 64 - len(prompt_ids(tokenizer, prompt))
    assert room > 1
    assert len(star.sample(model, [prompt], max_new_tokens=room)) == 1
    with pytest.raises(StarError, match=r"^Prompt 1 has [^\n]+ context of 64: shorten it[^\n]+$"):
        star.generate(model, ["ok", prompt], max_new_tokens=room + 1)
    with pytest.raises(StarError, match=r"^A prompt with its reply has 65 tokens[^\n]+context is 64[^\n]+$"):
        make_batch(model, [[5] * 60], [[6] * 5])


@pytest.mark.parametrize(
    ("prompts", "message"),
    [
        ([], "no prompts"),
        ("hello", "one text: give a list"),
        ([""], "empty"),
        (["fine", "  "], "empty"),
        ([{"role": "user", "content": "one chat, not a list of chats"}], "one chat: give a list"),
        ([None], "neither a text nor messages"),
    ],
)
def test_prompts_that_cannot_be_used_are_named(tiny, prompts, message):
    with pytest.raises(StarError, match=rf"^[^\n]*{message}[^\n]*$"):
        star.generate(tiny, prompts, max_new_tokens=2)


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("max_new_tokens", [0, -1, 2.5, "60", None]),
        ("batch_size", [0, -4, 1.5, True]),
        ("temperature", [-0.1, math.nan, math.inf, "hot", None]),
        ("top_p", [0, -0.5, 1.01, math.nan, "most", None]),
        ("seed", [0.5, "zero"]),
    ],
)
def test_arguments_out_of_range_are_refused(tiny, name, values):
    for value in values:
        with pytest.raises(StarError, match=rf"^{name} is [^\n]+: use [^\n]+$"):
            star.generate(tiny, PROMPTS[:1], **{name: value})


def test_hooks_that_cannot_be_used_are_refused(tiny):
    with pytest.raises(StarError, match=r"no hook point 'blocks\.0\.hook_resid_pst'.*'blocks\.0\.hook_resid_post'"):
        star.generate(tiny, PROMPTS, [("blocks.0.hook_resid_pst", lambda a, hook: a)])
    with pytest.raises(StarError, match=r"pass vector\.hooks"):
        star.generate(tiny, PROMPTS, steering_vector(scale=1.0))


def test_hooks_are_gone_after_sampling(tiny):
    before = star.sample(tiny, PROMPTS, max_new_tokens=4)
    star.sample(tiny, PROMPTS, steering_vector(scale=3.0).hooks(), max_new_tokens=4)
    assert hooks_left(tiny) == 0
    assert star.sample(tiny, PROMPTS, max_new_tokens=4) == before


def small_memory(monkeypatch: pytest.MonkeyPatch, limit: int) -> list[int]:
    """From the second token on no more rows than ``limit``; returns the rows of every pass."""
    rows: list[int] = []
    call = LlamaPass.__call__

    def limited(self: LlamaPass, tokens: torch.Tensor) -> torch.Tensor:
        rows.append(len(tokens))
        if len(tokens) > limit and tokens.shape[1] == 1:
            raise torch.OutOfMemoryError("planted")
        return call(self, tokens)

    monkeypatch.setattr(LlamaPass, "__call__", limited)
    return rows


@pytest.mark.hooked
def test_a_batch_that_does_not_fit_is_halved_with_one_line_and_no_reply_is_lost(tiny, monkeypatch):
    expected = star.generate(tiny, PROMPTS, max_new_tokens=6)
    rows = small_memory(monkeypatch, 2)
    with pytest.warns(UserWarning, match=r"^Memory ran out at 5 rows in a batch: going on with 2\.$") as caught:
        assert star.generate(tiny, PROMPTS, max_new_tokens=6) == expected
    assert len(caught) == 1
    assert rows[0] == 5


@pytest.mark.hooked
def test_memory_too_small_for_one_row_is_said(tiny, monkeypatch):
    small_memory(monkeypatch, 0)
    with pytest.raises(StarError, match=r"Memory is too small for a single row of .* lower max_new_tokens"):
        star.generate(tiny, PROMPTS[:1], max_new_tokens=6)


def test_out_of_memory_is_told_from_other_errors_also_behind_a_broken_recording():
    assert out_of_memory(torch.OutOfMemoryError("CUDA out of memory."))
    assert out_of_memory(RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling cublasCreate"))
    assert not out_of_memory(RuntimeError("CUDA error: an illegal memory access was encountered"))

    def record() -> None:
        try:
            raise torch.OutOfMemoryError("planted")
        finally:
            raise RuntimeError("operation failed due to a previous error during capture")

    with pytest.raises(RuntimeError, match="capture") as broken:
        record()
    assert out_of_memory(broken.value)


@pytest.mark.parametrize("write", [star.sample, lambda *args, **more: list(star.stream(*args, **more))[-1]])
def test_hooks_that_can_be_read_once_steer_like_a_list(tiny, write) -> None:
    hooks, prompts = steering_vector(scale=4.0).hooks(positions="all"), ["a"]
    plain = write(tiny, prompts, max_new_tokens=8, temperature=0)
    listed = write(tiny, prompts, hooks, max_new_tokens=8, temperature=0)
    assert listed != plain, "the vector does nothing here"
    for once in (iter(hooks), (hook for hook in hooks)):
        assert write(tiny, prompts, once, max_new_tokens=8, temperature=0) == listed


@pytest.mark.parametrize("temperature", [1e-6, 1e-5])
def test_the_lowest_temperature_is_greedy_and_lower_ones_are_refused(tiny, temperature: float) -> None:
    greedy = star.sample(tiny, ["a"], max_new_tokens=8, temperature=0)
    assert star.sample(tiny, ["a"], max_new_tokens=8, temperature=temperature) == greedy
    with pytest.raises(StarError, match=r"^temperature is 1e-39: use 0 \(greedy\), or 1e-6 to 1e6\.$"):
        star.Sampling(temperature=1e-39)


@pytest.mark.parametrize("positions", [5000, -5000])
def test_positions_that_no_text_has_are_warned_of(tiny, positions: int) -> None:
    never = star.Condition("steered", steering_vector(), 3.0, (positions,))
    with pytest.warns(UserWarning, match=rf"^No prompt has the positions {positions}, [^\n]+: nothing is added\.$"):
        star.sample(tiny, ["a", "b c"], condition=never, max_new_tokens=4)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for at in (None, "generated", (positions, -1), (3,)):
            way = star.Condition("steered", steering_vector(), 3.0, at)
            star.sample(tiny, ["a", "b c"], condition=way, max_new_tokens=4)
