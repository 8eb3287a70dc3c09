"""A running batch: whatever joins and leaves around it, a row's reply is the one that ``star.generate`` writes."""

from __future__ import annotations

import random
from dataclasses import replace
from typing import Any

import pytest
import torch
from families import write_random
from hf_reference import steering_vector

import star_tl as star
from star_tl.generation.running import Asked, RunningBatch
from star_tl.generation.sampling import render_prompts
from star_tl.generation.settings import Sampling
from star_tl.locus import Locus
from star_tl.models.fast.rows import LlamaRows
from star_tl.steering.condition import Condition

PROMPTS = ("Hello there, how was your day?", "no", "My sister lost her job.", "ok", "Would you sell it for $40?")
WHERE = (
    None,
    "prompt",
    "last_prompt",
    "generated",
    "all",
    "first 3",
    "every 3",
    "decay 4",
    (-2, 0, 3),
    "user turn",
    "header",
)
LOCI = (
    Locus("blocks.1.hook_resid_post", (-2, -1)),
    Locus("blocks.2.hook_resid_pre"),
    Locus("blocks.0.hook_mlp_out", (-3, -2, -1)),
    Locus("blocks.1.hook_attn_out"),
    Locus("blocks.1.hook_resid_mid", (-4, -1)),
    Locus("blocks.2.attn.hook_z", (-1,), head=3),
)
SAMPLINGS = (
    Sampling(max_new_tokens=1),
    Sampling(max_new_tokens=24, temperature=0),
    Sampling(max_new_tokens=17, top_p=0.9, temperature=1.3),
    Sampling(max_new_tokens=30, min_p=0.05),
    Sampling(max_new_tokens=9, repetition_penalty=1.4),
    Sampling(max_new_tokens=30, stop=("e", "the")),
)


def requests(n: int) -> list[tuple[str, Condition, Sampling]]:
    """All ways to steer and to sample, mixed."""
    dice = random.Random(0)
    found = []
    for i in range(n):
        locus = dice.choice(LOCI)
        width = 8 if locus.head is not None else 32
        rows = torch.randn(len(locus.positions), width, generator=torch.Generator().manual_seed(i))
        vector = replace(steering_vector(), vector=rows, locus=locus) if i % 4 else None
        positions = WHERE[i % len(WHERE)] if vector is not None else None
        more = (vector, replace(vector, vector=-0.5 * rows.flip(0))) if i % 5 == 2 and vector is not None else ()
        strength = dice.choice((-1.0, 0.5, 2.0))
        condition = Condition("way", vector, strength, positions, seed=dice.randrange(9), more=more)
        found.append((PROMPTS[i % len(PROMPTS)], condition, replace(dice.choice(SAMPLINGS), log_probs=True)))
    return found


def ask(model: Any, prompt: str, condition: Condition, sampling: Sampling, top: int = 0) -> Asked:
    (ids,) = render_prompts(model, [prompt], sampling.max_new_tokens)
    return Asked(model, ids, condition.rows(model.tokenizer, prompt), condition.seed, sampling, top)


def same_as_alone(model: Any, found: list[tuple[str, Condition, Sampling]], asked: list[Asked]) -> None:
    for (prompt, condition, sampling), one in zip(found, asked, strict=True):
        (alone,) = star.generate(model, [prompt], condition=condition, sampling=sampling, progress=False)
        reply = one.writing.reply
        assert replace(reply, log_probs=()) == replace(alone, log_probs=())
        assert reply.log_probs == pytest.approx(alone.log_probs, abs=2e-4)


def mixed(model: Any, found: list[tuple[str, Condition, Sampling]], seed: int) -> tuple[list[Asked], int]:
    """Rows join in groups of every size, at any step. Returns them and the most that were written at once."""
    dice, batch = random.Random(seed), RunningBatch(model)
    asked = [ask(model, *one) for one in found]
    waiting, most = list(asked), 0
    while waiting or batch.asked:
        n = dice.choice((0, 0, 1, 2, 7)) or (0 if batch.asked else 1)
        if joining := [waiting.pop(0) for _ in range(min(n, len(waiting)))]:
            batch.join(joining)
        most = max(most, len(batch.asked))
        batch.step()
    return asked, most


@pytest.mark.parametrize("seed", range(3))
def test_a_reply_is_the_offline_one_whoever_joins_and_leaves(tiny: Any, seed: int) -> None:
    found = requests(44)
    asked, most = mixed(tiny, found, seed)
    assert most > 8, "the rows hardly met"
    assert {a.writing.ended for a in asked} >= {"length", "text"}
    same_as_alone(tiny, found, asked)


@pytest.mark.hooked
def test_rows_of_a_llama_share_one_pass(tiny: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[int] = []
    own = LlamaRows.__call__
    monkeypatch.setattr(LlamaRows, "__call__", lambda self, t, hooks: read.append(len(t)) or own(self, t, hooks))
    batch = RunningBatch(tiny)
    asked = [ask(tiny, p, Condition(seed=i), Sampling(max_new_tokens=6, temperature=0)) for i, p in enumerate(PROMPTS)]
    batch.join(asked)
    while batch.asked:
        batch.step()
    assert read[0] == len(PROMPTS)
    assert len(read) <= 5


def test_the_prompt_of_another_family_is_read_once(tokenizer, tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
    from star_tl.generation import running

    model, read, own = star.load_model(write_random("gpt2", tmp_path / "model", tokenizer)), [], running.read_prompts
    monkeypatch.setattr(running, "read_prompts", lambda m, p, *others: read.extend(p) or own(m, p, *others))
    prompts = [(5, 6, 7), (8, 9)]
    RunningBatch(model).join([Asked(model, p, [], 0, Sampling(max_new_tokens=3)) for p in prompts])
    assert read == prompts


@pytest.mark.parametrize("family", ["gpt2", "qwen-3"])
def test_other_families_are_written_row_by_row_to_the_same_texts(family, tokenizer, tmp_path) -> None:
    model = star.load_model(write_random(family, tmp_path / "model", tokenizer))
    found = [one for one in requests(16) if one[1].vector is None or one[1].vector.locus.head is None]
    same_as_alone(model, found, mixed(model, found, 0)[0])


def test_a_row_that_leaves_changes_nothing_for_the_others(tiny: Any) -> None:
    found = [(p, c, replace(s, max_new_tokens=20, stop=())) for p, c, s in requests(12)]
    asked, batch = [ask(tiny, *one) for one in found], RunningBatch(tiny)
    batch.join(asked)
    for i in (0, 5, 11):
        batch.step()
        batch.leave(asked[i])
        assert asked[i] not in batch.asked
        batch.leave(asked[i])  # nothing more happens
    left = [len(asked[i].writing.tokens) for i in (0, 5, 11)]
    while batch.asked:
        batch.step()
    assert [len(asked[i].writing.tokens) for i in (0, 5, 11)] == left
    rest = [i for i in range(12) if i not in (0, 5, 11)]
    same_as_alone(tiny, [found[i] for i in rest], [asked[i] for i in rest])


def test_a_row_that_steering_broke_ends_alone_and_leaves_no_trace_in_its_place(tiny: Any) -> None:
    broken = replace(steering_vector(), vector=torch.full((1, 32), 3e38))
    found = [(p, Condition(seed=1), Sampling(max_new_tokens=12, log_probs=True)) for p in PROMPTS]
    batch = RunningBatch(tiny)
    way = Condition("bad", broken, 1.0, (2,), more=(broken,))  # finite each, and together not
    sampling = Sampling(max_new_tokens=12, temperature=0)
    bad = [ask(tiny, PROMPTS[2], way, sampling) for _ in range(6)]
    good = [ask(tiny, *one) for one in found]
    batch.join([good[0], *bad])
    while bad[0] in batch.asked:
        batch.step()
    batch.join(good[1:])  # of other lengths, in the places of the broken ones
    while batch.asked:
        batch.step()
    assert {one.writing.ended for one in bad} == {"broken"}
    same_as_alone(tiny, found, good)


def test_the_likeliest_others_are_those_of_the_whole_distribution(tiny: Any) -> None:
    way, sampling = Condition("steered", steering_vector(), 1.0, "all"), Sampling(8, temperature=0, log_probs=True)
    asked, batch = ask(tiny, PROMPTS[0], way, sampling, top=4), RunningBatch(tiny)
    batch.join([asked])
    while batch.asked:
        batch.step()
    tokens, found = asked.writing.tokens, asked.alternatives
    assert [top[0][0] for top in found] == tokens  # greedy
    prompt = asked.writing.prompt
    with torch.no_grad(), tiny.hooks(fwd_hooks=way.vector.hooks(1.0, "all", prompt_length=len(prompt))):
        whole = tiny(torch.tensor([[*prompt, *tokens]]))[0, len(prompt) - 1 : -1].log_softmax(-1)
    for row, top in zip(whole, found, strict=True):
        values, ids = row.topk(4)
        assert [t for t, _ in top] == ids.tolist()
        assert [v for _, v in top] == pytest.approx(values.tolist(), abs=2e-4)


def test_memory_bounds_how_many_rows_there_may_be(tiny: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    batch = RunningBatch(tiny)
    one = ask(tiny, PROMPTS[0], Condition(), Sampling(max_new_tokens=10))
    monkeypatch.setattr(batch, "columns", 3 * one.columns)
    assert batch.room_for([one] * 3)
    assert not batch.room_for([one] * 4)


@pytest.mark.hooked
def test_the_cache_holds_no_more_than_its_rows_may_take(tiny: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """A long row leaves its columns behind, many rows theirs: neither is kept for the other kind."""
    batch, held = RunningBatch(tiny), []
    monkeypatch.setattr(batch, "columns", 1200)
    own = LlamaRows._take
    monkeypatch.setattr(
        LlamaRows, "_take", lambda self, cache: (held.append(cache.shape[2] * cache.shape[4]), own(self, cache))
    )
    short = [ask(tiny, PROMPTS[1], Condition(seed=i), Sampling(max_new_tokens=8)) for i in range(30)]
    long = [ask(tiny, PROMPTS[1], Condition(seed=i), Sampling(max_new_tokens=400)) for i in range(2)]
    for row in long:
        row.writing.stops = frozenset()
    waiting = [long[0], *short[:15], long[1], *short[15:]]
    while waiting or batch.asked:
        joining = []
        while waiting and batch.room_for([*joining, waiting[0]]):
            joining.append(waiting.pop(0))
        if joining:
            batch.join(joining)
        batch.step()
    assert all(len(row.writing.tokens) == 400 for row in long)
    assert max(held) <= 1200 + 64 * 16, held  # up to a grain of 64 columns a row
    assert max(held) > 400
