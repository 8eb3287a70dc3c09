"""Scores against hand computations: HuggingFace for the model's side, arithmetic for the tables."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
import pytest
import torch
from hf_reference import END_OF_TURN, load, logits, prompt_ids, steering_vector
from torch.distributions import Categorical, kl_divergence

import star_tl as star
from star_tl.data.chat import render
from star_tl.data.pairs import Trait
from star_tl.errors import StarError
from star_tl.evaluation import samples as samples_module
from star_tl.evaluation import scores
from star_tl.evaluation.scores import mark_coherent, summarise
from star_tl.evaluation.strength import dose_table
from star_tl.generation.likelihood import kl_per_token, reply_scores
from star_tl.generation.writing import Reply
from star_tl.models.fast.decode import LlamaPass
from star_tl.steering.condition import Condition
from star_tl.view.plots import plot_dose

TRAIT = Trait("comfort", "Be warm.", "Be cold.", ("sorry", "thank you", "here for you", "car(?:e|es)"))
PROMPTS = ("Hello there, how was your day?", "no", "My sister lost her job and I do not know what to say.")
TOKENS = ((50, 60, 70, 80), (90,), (100, 110))
TOLERANCE = 1e-4  # nats; float32 round-off of two implementations on logits of order 1 to 10


@pytest.fixture(scope="module")
def hf(tiny_folder):
    return load(tiny_folder)


def replies(*tokens: tuple[int, ...]) -> list[Reply]:
    return [Reply("some words", t, True) for t in tokens or TOKENS]


def distributions(hf, prompt: list[int], reply: tuple[int, ...], vector=None, rows=None) -> Categorical:
    """What HuggingFace predicts at each reply token; ``rows`` maps positions from the prompt's end to vectors."""
    ids = [*prompt, *reply]
    shifted = {len(prompt) + p: row for p, row in rows.items() if len(prompt) + p < len(ids)} if rows else None
    found = logits(hf, ids, vector.locus if vector else None, shifted)
    return Categorical(logits=found[len(prompt) - 1 : -1])


@pytest.fixture
def scored(tiny):
    """The scores of one text."""

    def score(text: str, trait: Trait = TRAIT) -> pd.Series:
        return star.score(tiny, trait, PROMPTS[:1], [Reply(text, TOKENS[0], True)]).iloc[0]

    return score


def test_scores_are_the_same_however_many_tokens_are_read_at_once(demo, monkeypatch) -> None:
    pairs, sampling = star.load_pairs("politeness"), star.Sampling(max_new_tokens=12)
    prompts, read = pairs.heldout.prompts[:6], []
    vector = star.extract_vector(demo, pairs, star.Locus("blocks.4.hook_resid_post"))
    conditions = [Condition(), Condition("steered", vector, 1.0)]
    real = scores.make_batch

    def counting(model, prompts, replies):
        read.append(sum(map(len, prompts)) + sum(map(len, replies)))
        return real(model, prompts, replies)

    monkeypatch.setattr(scores, "make_batch", counting)
    whole = samples_module.sample_conditions(demo, pairs.trait, prompts, conditions, sampling, progress=False)
    together = max(read)
    read.clear()
    monkeypatch.setattr(scores, "TOKENS", 150)
    parts = samples_module.sample_conditions(demo, pairs.trait, prompts, conditions, sampling, progress=False)
    assert max(read) <= 150 < together
    pd.testing.assert_frame_equal(whole, parts, rtol=1e-4, atol=1e-6)


def test_a_batch_of_replies_that_does_not_fit_is_halved(tiny, monkeypatch):
    condition = Condition(instruction="Be warm.")
    expected = star.score(tiny, TRAIT, PROMPTS, replies(), condition)
    sizes = []

    def limited(model, batch, plain, steered):
        sizes.append(len(batch.tokens))
        if len(batch.tokens) > 1:
            raise torch.OutOfMemoryError("planted")
        return reply_scores(model, batch, plain, steered)

    monkeypatch.setattr(scores, "reply_scores", limited)
    with pytest.warns(UserWarning, match="Memory ran out at 3 replies in a batch: going on with 1") as caught:
        found = star.score(tiny, TRAIT, PROMPTS, replies(), condition)
    assert len(caught) == 1
    assert sizes[0] == 3
    pd.testing.assert_frame_equal(found, expected, atol=TOLERANCE)


def test_kl_is_that_of_torch_distributions():
    p, q = torch.randn(2, 2, 3, 7, generator=torch.Generator().manual_seed(0)) * 3
    expected = kl_divergence(Categorical(logits=p), Categorical(logits=q))
    assert torch.allclose(kl_per_token(p, q), expected, atol=1e-5)
    assert not torch.allclose(kl_per_token(q, p), expected, atol=1e-2), "the direction does not show here"
    assert (kl_per_token(p, p) == 0).all()


def test_prompts_are_read_once_for_both_passes_and_for_rows_that_share_them(tiny, monkeypatch):
    read = []
    residual = LlamaPass.residual
    monkeypatch.setattr(LlamaPass, "residual", lambda self, t, *a: read.append(t.numel()) or residual(self, t, *a))
    prompts, written = (PROMPTS[2],) * 3, [Reply("some words", t, True) for t in ((50, 60, 70),) * 3]
    star.score(tiny, TRAIT, prompts, written, Condition("steered", steering_vector(), 2.0, "last_prompt"))
    whole, *late = read  # all but the prompt's last token, then that one and the reply's first two
    assert late == [3 * 3, 3 * 3]
    assert whole == len(render(tiny.tokenizer, prompts[0]).ids) - 1


@pytest.mark.parametrize("batch_size", [1, 2, 32])
def test_logprob_is_huggingfaces_log_likelihood_of_the_reply(tiny, hf, tokenizer, batch_size):
    table = star.score(tiny, TRAIT, PROMPTS, replies(), batch_size=batch_size)
    for prompt, reply, row in zip(PROMPTS, TOKENS, table.itertuples(), strict=True):
        ids = prompt_ids(tokenizer, prompt)
        labels = torch.tensor([[-100] * len(ids) + list(reply)])
        with torch.no_grad():
            loss = float(hf(torch.tensor([[*ids, *reply]]), labels=labels).loss)
        assert row.logprob == pytest.approx(-loss, abs=TOLERANCE)
        assert row.perplexity == pytest.approx(math.exp(loss), rel=TOLERANCE)
        assert row.n_tokens == len(reply)


def test_drift_is_zero_where_nothing_was_steered(tiny):
    table = star.score(tiny, TRAIT, PROMPTS, replies())
    assert (table.drift == 0).all()
    assert (table.drift_max == 0).all()
    steered_by_nothing = star.score(tiny, TRAIT, PROMPTS, replies(), Condition("steered", steering_vector(), 0.0))
    assert (steered_by_nothing.drift == 0).all()


@pytest.mark.parametrize(
    ("positions", "places"),
    [(None, [-1]), ("last_prompt", [-1]), ("generated", range(-1, 9)), ([0, 2], [0, 2]), ("prompt", range(-99, 0))],
)
@pytest.mark.parametrize("batch_size", [1, 32])
def test_drift_is_the_kl_from_the_steered_to_the_plain_model(tiny, hf, tokenizer, positions, places, batch_size):
    vector, strength = steering_vector(), -1.5
    table = star.score(
        tiny, TRAIT, PROMPTS, replies(), Condition("steered", vector, strength, positions), batch_size=batch_size
    )
    for prompt, reply, row in zip(PROMPTS, TOKENS, table.itertuples(), strict=True):
        ids = prompt_ids(tokenizer, prompt)
        rows = {p: strength * vector.vector[0] for p in places if p >= -len(ids)}
        kl = kl_divergence(distributions(hf, ids, reply, vector, rows), distributions(hf, ids, reply))
        assert row.drift == pytest.approx(float(kl.mean()), abs=TOLERANCE)
        assert row.drift_total == pytest.approx(float(kl.sum()), abs=len(kl) * TOLERANCE)
        assert row.drift_max == pytest.approx(float(kl.max()), abs=TOLERANCE)
    assert table.drift.max() > 0.01, "so weak a vector shows nothing"


def test_the_logprob_of_steered_replies_is_the_unsteered_models(tiny):
    plain = star.score(tiny, TRAIT, PROMPTS, replies())
    steered = star.score(tiny, TRAIT, PROMPTS, replies(), Condition("steered", steering_vector()))
    assert np.allclose(plain.logprob, steered.logprob, atol=TOLERANCE)


@pytest.mark.parametrize("steered", [False, True], ids=["primed", "primed and steered"])
def test_primed_drift_is_measured_against_the_plain_prompt(tiny, hf, tokenizer, steered):
    vector = steering_vector() if steered else None
    way = Condition("primed", vector, instruction=TRAIT.positive_instruction)
    table = star.score(tiny, TRAIT, PROMPTS, replies(), way, batch_size=2)
    for prompt, reply, row in zip(PROMPTS, TOKENS, table.itertuples(), strict=True):
        plain = distributions(hf, prompt_ids(tokenizer, prompt), reply)
        under = prompt_ids(tokenizer, prompt, system=TRAIT.positive_instruction)
        wrote = distributions(hf, under, reply, vector, {-1: vector.vector[0]} if vector else None)
        kl = kl_divergence(wrote, plain)
        assert row.drift == pytest.approx(float(kl.mean()), abs=TOLERANCE)
        assert row.drift_max == pytest.approx(float(kl.max()), abs=TOLERANCE)
        assert row.logprob == pytest.approx(float(plain.log_prob(torch.tensor(reply)).mean()), abs=TOLERANCE)
    assert table.drift.min() > 0.001


@pytest.mark.parametrize(
    ("text", "markers"),
    [
        ("I am so SORRY. Sorry, thank you!", "sorry, thank you"),
        ("She cares, I care.", "cares, care"),
        ("Careful scars, thank yous, a sorrybird.", ""),
        ("", ""),
    ],
)
def test_markers_are_whole_words_in_any_case_named_once(scored, text, markers):
    row = scored(text)
    assert row.markers == markers
    assert row.shows == bool(markers)


def test_a_trait_without_markers_is_never_shown(scored):
    row = scored("anything at all", Trait("none", "Be so.", "Be not so.", ()))
    assert not row.shows


@pytest.mark.parametrize(
    ("text", "first_person", "length"),
    [
        ("I told my sister that I'm fine", 100 * 3 / 7, 7),
        ("I’ve hurt myself", 100 * 2 / 3, 3),  # a typographic apostrophe
        ("In Miami, mice mine tin. It's 'me'!", 100 * 2 / 7, 7),
        ("Iʼm sure I＇ve seen ｍｅ", 100 * 3 / 5, 5),  # the apostrophe that is a letter, and full width
        ("They left.", 0, 2),
        ("?!", 0, 0),
    ],
)
def test_first_person_pronouns_per_hundred_words(scored, text, first_person, length):
    row = scored(text)
    assert row.length == length
    assert row.first_person == pytest.approx(first_person)


@pytest.mark.parametrize(
    ("text", "repetition"),
    [
        ("one two three four five", 0),
        ("a b c a b c", 1 / 4),  # abc bca cab abc
        ("no no no no no no", 3 / 4),
        ("so it goes, so it goes, so it goes", 4 / 7),
        ("too short", 0),
        ("", 0),
    ],
)
def test_repetition_is_the_share_of_trigrams_seen_before(scored, text, repetition):
    assert scored(text).repetition == pytest.approx(repetition)


def test_an_empty_reply_has_no_logprob_and_is_not_coherent(tiny, hf, tokenizer):
    vector = steering_vector()
    empty = [Reply("", (), True), *replies()[1:]]
    table = star.score(tiny, TRAIT, PROMPTS, empty, Condition("steered", vector))
    others = star.score(tiny, TRAIT, PROMPTS[1:], replies()[1:], Condition("steered", vector))
    row = table.iloc[0]
    assert math.isnan(row.logprob)
    assert math.isnan(row.perplexity)
    assert (row.n_tokens, row.length, row.markers, row.shows, row.repetition) == (0, 0, "", False, 0)
    ids = prompt_ids(tokenizer, PROMPTS[0])
    steered = distributions(hf, ids, (END_OF_TURN,), vector, {-1: vector.vector[0]})
    kl = kl_divergence(steered, distributions(hf, ids, (END_OF_TURN,)))
    assert row.drift == pytest.approx(float(kl), abs=TOLERANCE)
    assert np.allclose(table.logprob[1:], others.logprob, atol=TOLERANCE)
    marked = mark_coherent(pd.concat([table.assign(arm="steered"), others.assign(arm="unsteered")]))
    assert not marked.iloc[0].coherent


def test_as_many_replies_as_prompts(tiny):
    with pytest.raises(StarError, match=r"^score needs as many replies as prompts[^\n]*$"):
        star.score(tiny, TRAIT, PROMPTS, replies()[:2])


def samples(arm: str, shows: str, coherent: str | None = None, **columns) -> pd.DataFrame:
    """A reply per prompt from strings of 0 and 1; figures that do not matter are constant."""
    hits = np.array([c == "1" for c in shows])
    fine = np.array([c == "1" for c in coherent]) if coherent else np.ones(len(hits), bool)
    constant = {"logprob": -0.5, "drift": 0.0, "drift_total": 0.0, "length": 10, "first_person": 1.0, "repetition": 0.0}
    ids = [f"p{i}" for i in range(len(hits))]
    return pd.DataFrame({"prompt_id": ids, "arm": arm, "shows": hits, "coherent": fine, **(constant | columns)})


def wilson(hits: int, n: int, z: float = 1.959964) -> tuple[float, float]:
    """Wilson 1927: the roots of (p - hits/n)² = z² p (1 - p) / n."""
    low, high = np.sort(np.roots([1 + z * z / n, -2 * hits / n - z * z / n, (hits / n) ** 2]).real)
    return float(low), float(high)


def test_coherent_is_at_or_above_the_two_percent_quantile_of_the_unsteered():
    unsteered = pd.DataFrame({"arm": "unsteered", "logprob": [-float(i) for i in range(101)]})  # quantile: -98
    steered = pd.DataFrame({"arm": "steered", "logprob": [-1.0, -98.0, -98.1, -500.0, math.nan]})
    marked = mark_coherent(pd.concat([steered, unsteered], ignore_index=True))
    assert marked[marked.arm == "steered"].coherent.tolist() == [True, True, False, False, False]
    assert marked[marked.arm == "unsteered"].coherent.sum() == 99


def test_coherence_needs_unsteered_replies():
    with pytest.raises(StarError, match=r"^Coherence [^\n]+ 'unsteered' too\.$"):
        mark_coherent(pd.DataFrame({"arm": ["steered"], "logprob": [-1.0]}))


def test_the_rate_counts_only_coherent_replies_with_a_wilson_interval():
    table = summarise(
        pd.concat(
            [
                samples("unsteered", "1100000000"),
                samples("steered", "1111111100", "1111110010", drift=np.arange(10) / 10, logprob=-1.0, length=20),
            ]
        )
    ).set_index("arm")
    assert list(table.index) == ["unsteered", "steered"]
    steered = table.loc["steered"]
    assert (steered.n, steered.trait_rate, steered.marker_rate, steered.coherent_rate) == (10, 0.6, 0.8, 0.7)
    assert (steered.low_rate, steered.high_rate) == pytest.approx(wilson(6, 10), abs=1e-6)
    assert (steered.drift, steered.drift_p95) == pytest.approx((0.45, 0.855))
    assert (steered.perplexity, steered.length) == pytest.approx((math.e, 20))
    unsteered = table.loc["unsteered"]
    assert (unsteered.low_rate, unsteered.high_rate) == pytest.approx(wilson(2, 10), abs=1e-6)
    assert unsteered[["difference", "low", "high", "p_value", "wrong_way"]].isna().all()


def test_the_difference_is_paired_by_prompt():
    # Six prompts rise, two fall, twelve stay; the same replies unpaired would hide which.
    base, steered = "00000011" + "1" * 6 + "0" * 6, "11111100" + "1" * 6 + "0" * 6
    both = pd.concat([samples("unsteered", base), samples("steered", steered).sample(frac=1, random_state=0)])
    row = summarise(both, resamples=5000).set_index("arm").loc["steered"]
    assert row.difference == pytest.approx(100 * 4 / 20)
    assert row.wrong_way == pytest.approx(2 / 20)
    # Of the 2^8 ways to flip the eight signs, those with a sum of at least 4 or at most -4.
    exact = 2 * sum(math.comb(8, k) for k in (6, 7, 8)) / 2**8
    assert row.p_value == pytest.approx(exact, abs=0.02)
    # Bootstrap by hand: the mean of 20 draws from {+1: 6/20, -1: 2/20, 0: 12/20}.
    draws = np.random.default_rng(1).choice([1, -1, 0], p=[0.3, 0.1, 0.6], size=(20_000, 20)).mean(1)
    low, high = np.quantile(draws, [0.025, 0.975])
    assert (row.low, row.high) == pytest.approx((100 * low, 100 * high), abs=5.01)  # one step of the mean


def test_few_prompts_have_an_exact_p_value():
    both = pd.concat([samples("unsteered", "00000"), samples("steered", "11111")])
    row = summarise(both).set_index("arm").loc["steered"]
    assert row.p_value == pytest.approx(2 / 2**5)
    assert (row.difference, row.low, row.high, row.wrong_way) == (100, 100, 100, 0)


def test_an_arm_that_changes_nothing():
    both = pd.concat([samples("unsteered", "0101"), samples("steered", "0101")])
    row = summarise(both).set_index("arm").loc["steered"]
    assert (row.difference, row.low, row.high, row.p_value, row.wrong_way) == (0, 0, 0, 1, 0)


def test_several_seeds_of_a_prompt_are_one_pair():
    base = pd.concat([samples("unsteered", "0000"), samples("unsteered", "1000")])
    steered = pd.concat([samples("steered", "1100"), samples("steered", "0100")])
    row = summarise(pd.concat([base, steered])).set_index("arm").loc["steered"]
    assert row.n == 8
    assert row.trait_rate == 3 / 8
    # Prompt by prompt: 1/2 - 1/2, 1 - 0, 0, 0. The one change can only flip its sign.
    assert row.difference == pytest.approx(25)
    assert row.p_value == 1


def test_p_values_are_holm_corrected_over_arms():
    arms = {"a": "111111111", "b": "111111000", "c": "000000000"}
    base = samples("unsteered", "000000000")
    together = summarise(pd.concat([base, *(samples(a, s) for a, s in arms.items())])).set_index("arm").p_value
    alone = {a: summarise(pd.concat([base, samples(a, s)])).set_index("arm").p_value[a] for a, s in arms.items()}
    assert alone["a"] == pytest.approx(2 / 2**9)
    assert alone["b"] == pytest.approx(2 / 2**6)
    assert together["a"] == pytest.approx(3 * alone["a"])
    assert together["b"] == pytest.approx(2 * alone["b"])
    assert together["c"] == 1
    assert math.isnan(together["unsteered"])


def test_one_prompt_is_not_compared():
    row = summarise(pd.concat([samples("unsteered", "0"), samples("steered", "1")])).set_index("arm").loc["steered"]
    assert row.trait_rate == 1
    assert math.isnan(row.difference)
    assert math.isnan(row.p_value)


def test_the_dose_table_has_a_row_per_strength_with_intervals():
    dosed = pd.concat(
        [
            samples("steered", "1111111111", "1100000000", strength=2.0, drift=3.0),
            samples("unsteered", "1110000000", strength=0.0),
            samples("steered", "1111111100", "1111111110", strength=1.0, drift=np.arange(10) / 10),
            samples("steered", "0000000000", strength=-1.0),
        ]
    )
    table = dose_table(dosed)
    assert table.strength.tolist() == [-1.0, 0.0, 1.0, 2.0]
    assert table.n.tolist() == [10] * 4
    assert table.trait_rate.tolist() == [0, 0.3, 0.8, 0.2]
    assert table.coherent_rate.tolist() == [1, 1, 0.9, 0.2]
    assert table.drift.tolist() == pytest.approx([0, 0, 0.45, 3])
    intervals = list(zip(table.low_rate, table.high_rate, strict=True))
    for found, hits in zip(intervals, (0, 3, 8, 2), strict=True):
        assert found == pytest.approx(wilson(hits, 10), abs=1e-6)


def test_the_dose_figure_draws_the_intervals():
    table = dose_table(pd.concat([samples("steered", "1100", strength=s) for s in (1.0, 2.0)]))
    low, high = wilson(2, 4)
    whiskers = plot_dose(table).data[0].error_y
    assert list(whiskers.array) == pytest.approx([100 * (high - 0.5)] * 2, abs=1e-4)
    assert list(whiskers.arrayminus) == pytest.approx([100 * (0.5 - low)] * 2, abs=1e-4)


@pytest.mark.parametrize("backend", ["hooked", "bridge"])
def test_scores_taken_while_sampling_are_those_taken_afterwards(tiny_folder, backend, monkeypatch):
    model = star.load_model(str(tiny_folder), backend=None if backend == "hooked" else backend)
    pairs = star.load_pairs("agreement")
    vector = star.extract_vector(
        model, type(pairs)(pairs.trait, pairs.pairs[:2]), star.Locus("blocks.1.hook_resid_post", (-1,))
    )
    ways = [
        Condition(),
        Condition("locus", vector, 2.0),
        Condition("generated", vector, 1.0, "generated", seed=3),
        Condition("primed", instruction="Be brief."),
        Condition("both", vector, -1.0, instruction="Be brief."),
    ]
    sampling = star.Sampling(max_new_tokens=6, temperature=1.0)
    with monkeypatch.context() as patch:
        patch.setattr(samples_module, "score", lambda *args: pytest.fail("replies were read a second time"))
        found = samples_module.sample_conditions(model, TRAIT, PROMPTS, ways, sampling, progress=False)
    for k, way in enumerate(ways):
        written = star.generate(model, PROMPTS, condition=way, sampling=sampling, progress=False)
        after = star.score(model, TRAIT, PROMPTS, written, way)
        own = found.iloc[3 * k : 3 * k + 3].reset_index(drop=True)
        pd.testing.assert_frame_equal(own[after.columns.tolist()], after, atol=TOLERANCE)
