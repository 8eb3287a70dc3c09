"""Outcomes are read off made-up talks as they are meant, and off people's as their buttons say."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import pytest

import star_tl as star
from star_tl.data.chat import render
from star_tl.data.scenarios import Scenario, load_scenarios, scenario_of
from star_tl.errors import StarError
from star_tl.evaluation import played
from star_tl.evaluation.negotiation import outcome, outcomes, prices
from star_tl.evaluation.played import Talk, play, texts_of
from star_tl.locus import Locus
from star_tl.steering.condition import Condition

ITEM = Scenario("x", "A brass lamp", 100, 60)
DATA = Path(__file__).parents[2].parent / "shared" / "data" / "craigslist_bargain" / "dev.json"


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("Would you take $80?", [80]),
        ("I’d pay 75 dollars, or 70 if I pick it up at 5pm.", [75, 70]),
        ("$1,250 is the price; 1.2k dollars at the least", [1250, 1200]),
        ("1,200, or 79.50, or 3k, or 3.5k", [1200, 79.5, 3000, 3500]),
        ("It is 3.5 long, 5 of them, version 1.2", []),
        ("It has 21 gears, is 15 years old and 60 cm long.", []),
        ("Nothing here", []),
    ],
)
def test_prices_are_found_and_other_numbers_are_not(text, found) -> None:
    assert [p for p in prices(text) if p != 21] == found


@pytest.mark.parametrize(
    ("talk", "price"),
    [
        (["Would you take $80?", "Deal!"], 80),
        (["Would you take $60?", "I can't do that. How about $90?", "Okay, that works for me."], 90),
        (["I can offer 70 dollars.", "Make it $75 and it's a deal.", "Sounds good, I'll take it."], 75),
        (["Would you take $80?", "No, that is too low."], None),
        (["Would you take $80?", "Sure, but what about delivery?"], None),
        (["Would you take $80?", "Deal.", "Wait, I meant $70."], None),
        (["Sounds good.", "Great!"], None),
        (["Would you take 3 dollars?", "Deal!"], None),
        (["Would you take $80?", "Deal!", "Sorry, I changed my mind. No deal."], None),
        (["I can offer $70.", "Make it $95 and we have a deal.", "No, that is too much for me."], None),
        (["I can offer $70.", "If you pay $95, we have a deal.", "I can't do that. Goodbye."], None),
        (["I offer $70.", "We have not agreed on anything. I want $95."], None),
        (["$80?", "Okay, no."], None),
        (["$80?", "I never agreed to that."], None),
        (["$80?", "I would not say that is fair."], None),
        (["$80?", "I already sold the lamp."], None),
        (["I offer $80.", "Let me think about it for a moment.", "Okay."], None),
        (["I offer $80.", "Could you deliver it too?", "Deal!"], 80),
        (["$80?", "Deal!", "Great, can you come at 5pm?", "Yes. I won't be late."], 80),
        (["$80?", "Why not, it's a deal!"], 80),
        (["$80?", "Deal!", "I can't go today, tomorrow is fine."], 80),
        (["$80?", "Deal!", "On second thoughts I can't do that."], None),
        (["How about $90?", "I can do $85 and pick it up today.", "Ok, sounds good."], 85),
        (["I'd pay $80.", "Deal at $80, down from $100."], 80),
        (["I'd pay $80, not $100.", "Deal!"], 80),
    ],
)
def test_a_deal_is_an_acceptance_after_a_price(talk, price) -> None:
    found = outcome(talk, ITEM)
    assert (found.deal, found.price) == (price is not None, price)
    if price is not None:
        assert found.seller == pytest.approx((price - 60) / 40)
        assert found.buyer == pytest.approx(1 - found.seller)


def test_outcomes_of_people_are_read_as_their_buttons_say() -> None:
    if not DATA.exists():
        pytest.skip("CraigslistBargain is not beside the repository")
    spec = importlib.util.spec_from_file_location("m", Path(__file__).parents[2] / "scripts" / "measure_negotiation.py")
    assert spec is not None
    assert spec.loader is not None
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    found = script.read(json.loads(DATA.read_text()))
    assert found["both"] / found["said"] > 0.9, "precision"
    assert found["both"] / found["true"] > 0.65, "recall"
    assert found["right"] / found["both"] > 0.9, "price"
    assert len(load_scenarios(DATA, 5)) == 5


def test_items_are_read_and_broken_ones_left_out(tmp_path) -> None:
    built_in = load_scenarios()
    assert len(built_in) == 16
    assert all(f"${s.price:g}" in s.roles["assistant"] and f"${s.target:g}" in s.roles["user"] for s in built_in)
    assert all(f"${s.target:g}" not in s.roles["assistant"] for s in built_in), "the seller does not know it"
    item = {"Title": " A  lamp ", "Price": 100}
    sides = [{"personal": {"Role": role, "Target": t}, "item": item} for role, t in (("buyer", 60), ("seller", 100))]
    record = {"uuid": "u", "scenario": {"kbs": sides}}
    assert scenario_of(record, 0) == Scenario("u", "A lamp", 100, 60)
    sides[0]["personal"]["Target"] = None
    assert scenario_of(record, 0) is None
    path = tmp_path / "train.json"
    path.write_text(json.dumps([record]))
    with pytest.raises(StarError, match="no items"):
        load_scenarios(path)


def test_two_sides_talk_in_turn_and_only_one_is_steered(tiny) -> None:
    talks = [Talk("You are the buyer.", "You are the seller.", ("Is the lamp still there?",)), Talk("A.", "B.")]
    trait, sampling = star.load_pairs("politeness").trait, star.Sampling(max_new_tokens=6)
    vector = star.extract_vector(tiny, star.load_pairs("politeness"), Locus("blocks.1.hook_resid_post"))
    plain = play(tiny, trait, talks, Condition(), 2, sampling, progress=False)
    steered = play(tiny, trait, talks, Condition("steered", vector, 50.0, seed=0), 2, sampling, progress=False)
    assert plain.turn.tolist() == [1, 1, 2, 2]
    assert plain.user[0] == "Is the lamp still there?"
    assert plain.user[:2].tolist() == steered.user[:2].tolist(), "the other side heard the same so far"
    assert (steered.drift > plain.drift).all()
    talk = texts_of(plain)[0]
    assert talk == [plain.user[0], plain.text[0], plain.user[2], plain.text[2]]
    assert outcomes([["Would you take $80?", "Deal!"], talk], [ITEM, ITEM]).deal.iloc[0] == 1


def test_a_played_talk_goes_on_where_it_was_stopped(tiny, tmp_path) -> None:
    talks, trait = [Talk("A.", "B.", ("Hello",))], star.load_pairs("politeness").trait
    sampling = star.Sampling(max_new_tokens=4)
    whole = play(tiny, trait, talks, Condition(), 3, sampling, tmp_path / "a", progress=False)
    play(tiny, trait, talks, Condition(), 1, sampling, tmp_path / "b", progress=False)
    again = play(tiny, trait, talks, Condition(), 3, sampling, tmp_path / "b", progress=False)
    assert again.equals(whole)


def test_of_a_talk_that_no_longer_fits_the_last_turns_are_heard(tiny, monkeypatch) -> None:
    said = tuple(f"{n} " + "what a long day that was " * 4 for n in range(12))
    trait, sampling = star.load_pairs("politeness").trait, star.Sampling(max_new_tokens=20)
    heard: list[list[dict[str, str]]] = []
    sample = played.sample_conditions

    def listening(model, trait, prompts, *rest, **more):
        heard.extend(prompts)
        return sample(model, trait, prompts, *rest, **more)

    monkeypatch.setattr(played, "sample_conditions", listening)
    told = Condition("primed", instruction="Be very polite to everybody, whatever they say.")
    talk = play(tiny, trait, [Talk("A.", "You are B.", said)], told, 12, sampling, progress=False)
    assert talk.turn.tolist() == list(range(1, 13))
    whole = [{"role": "system", "content": "You are B."}]
    for row, chat in zip(talk.itertuples(), heard, strict=True):
        whole.append({"role": "user", "content": row.user})
        assert chat == [whole[0], *whole[len(whole) - len(chat) + 1 :]], "another talk than the last turns of this one"
        (asked,) = told.prompted([chat])
        assert len(render(tiny.tokenizer, asked)) + 20 <= tiny.cfg.n_ctx
        more = told.prompted([[whole[0], *whole[len(whole) - len(chat) - 1 :]]])[0]
        assert len(chat) == len(whole) or len(render(tiny.tokenizer, more)) + 20 > tiny.cfg.n_ctx, "one more fits"
        whole.append({"role": "assistant", "content": row.text.strip() or "..."})
    assert len(heard[-1]) < len(whole) - 1, "all of it fits: nothing was tested"
