"""Who takes what is read off made-up talks as it is meant, and off people's as their forms say."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import pytest

from star_tl.data.scenarios import Camp, camp_of, load_scenarios
from star_tl.errors import StarError
from star_tl.evaluation.allotment import allotment, outcomes

CAMP = Camp(
    "x",
    {"food": "High", "water": "Medium", "firewood": "Low"},
    {"food": "Low", "water": "Medium", "firewood": "High"},
)
DATA = Path(__file__).parents[2].parent / "shared" / "data" / "casino"


@pytest.mark.parametrize(
    ("talk", "user"),
    [
        (["I take 3 food and 1 water, you take 2 water and 3 firewood.", "Deal!"], (3, 1, 0)),
        (["You can have all the firewood and two water. I’d like three packages of food.", "Sounds good."], (3, 1, 0)),
        (["2 food, 1 water and no firewood for me, okay?", "I take 1 food.", "Deal.", "Deal."], (2, 1, 0)),
        (["I would like 3 food and 1 water, and 3 firewood for you.", "Deal."], (3, 1, 0)),
        (["I can give 2 food and 1 water for you and 3 wood for me", "Deal!"], (1, 2, 3)),
        (["I take 3 food, 2 water and 1 wood.", "Deal!", "Okay, I have no water at home, so thank you."], (3, 2, 1)),
        (["I need 3 food, 3 water, 3 wood.", "You get 1 food, 1 water and I get 3 firewood.", "Agreed."], (1, 1, 0)),
    ],
)
def test_a_number_before_an_item_belongs_to_whom_it_names(talk, user) -> None:
    found = allotment(talk, CAMP)
    assert found.deal
    assert found.user == dict(zip(("food", "water", "firewood"), user, strict=True))
    mine = 5 * user[0] + 4 * user[1] + 3 * user[2]
    theirs = 3 * (3 - user[0]) + 4 * (3 - user[1]) + 5 * (3 - user[2])
    assert found.points == (mine, theirs)


@pytest.mark.parametrize(
    ("talk", "deal"),
    [
        (["I take 3 food.", "Deal!"], True),
        (["I take 3 food, 3 water and 3 firewood.", "No, that is not fair."], False),
        (["I take 3 food.", "Deal!", "And you take 1 food?"], False),
        (["Nice weather.", "Sounds good!"], False),
        (["I take 3 food, 1 water and 0 firewood.", "Deal!", "Sorry, no deal, I changed my mind."], False),
    ],
)
def test_what_was_not_divided_whole_has_no_points(talk, deal) -> None:
    found = allotment(talk, CAMP)
    assert (found.deal, found.user, found.points) == (deal, None, None)


def test_campers_are_told_their_own_wishes_alone() -> None:
    assert "food most, then water, firewood least" in CAMP.roles["user"]
    assert "firewood most, then water, food least" in CAMP.roles["assistant"]
    assert CAMP.points("user", {"food": 3, "water": 3, "firewood": 3}) == 36
    with pytest.raises(StarError, match="one of food, water, firewood most"):
        Camp("y", {"food": "High"}, {"food": "High"})
    assert camp_of({"dialogue_id": 1}) is None


def test_outcomes_stand_in_a_table_with_both_sides_points() -> None:
    talks = [["I take 3 food and 1 water, you take 3 firewood.", "Deal!"], ["Hello", "Hello"]]
    table = outcomes(talks, [CAMP, CAMP])
    assert table.deal.tolist() == [1, 0]
    assert table.loc[0, ["user", "assistant"]].tolist() == [19, 23]
    assert table.loc[1, ["user", "assistant"]].isna().all()


def test_campers_of_people_and_their_deals_are_read() -> None:
    if not DATA.exists():
        pytest.skip("CaSiNo is not beside the repository")
    camps = load_scenarios(DATA / "casino_valid.json", 3)
    assert len(camps) == 3
    assert all(isinstance(camp, Camp) for camp in camps)
    spec = importlib.util.spec_from_file_location("m", Path(__file__).parents[2] / "scripts" / "measure_negotiation.py")
    assert spec is not None
    assert spec.loader is not None
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    found = script.read_camps(json.loads((DATA / "casino_train.json").read_text()))
    assert found["both"] / found["said"] > 0.95, "precision"
    assert found["both"] / found["true"] > 0.6, "recall"
    assert found["right"] / found["whole"] > 0.7, "who takes what"
