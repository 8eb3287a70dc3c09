"""Ratings are read back beside the evaluation that the form was made from, and say what was planted in them."""

from __future__ import annotations

import csv
import random

import numpy as np
import pandas as pd
import pytest
from synthetic import evaluated

from star_tl.errors import StarError
from star_tl.evaluation.human import (
    COLUMNS,
    agreement_with_judges,
    blinded,
    form_id,
    human_tables,
    read_ratings,
    reliability,
    win_rates,
)


def write(path, items, answer, rater="r1", columns=COLUMNS):
    with path.open("w", newline="") as file:
        out = csv.writer(file)
        out.writerow(columns)
        for row in items.itertuples():
            out.writerow([form_id(items), rater, row.item, answer(row), "same"])
    return path


def prefers_located(row) -> str:
    return "A" if row.arm_a == "located" else "B"


def test_items_are_blinded_balanced_and_the_same_each_time() -> None:
    result = evaluated(prompts=40)
    items = blinded(result)
    assert items.equals(blinded(result))
    assert len(items) == 80
    sides = (items.arm_a == "located").mean()
    assert 0.3 < sides < 0.7
    others = items.arm_a.where(items.arm_a != "located", items.arm_b).value_counts()
    assert set(others) == {20}
    texts = result.samples.set_index(["arm", "prompt_id"]).text
    for row in items.itertuples():
        assert row.a == texts[row.arm_a, row.prompt_id]
        assert row.b == texts[row.arm_b, row.prompt_id]


def test_random_vectors_stand_in_the_form_whatever_their_seeds() -> None:
    """Each has but one of an evaluation's seeds, and it need not be the first."""
    result = evaluated(prompts=40)
    result.samples.loc[result.samples.arm == "random 0", "seed"] = 7
    items = blinded(result)
    assert (items[["arm_a", "arm_b"]] == "random 0").any(axis=1).sum() == 20


def test_equal_replies_are_left_out() -> None:
    result = evaluated(prompts=6)
    same = result.samples.prompt_id == "p000"
    result.samples.loc[same, "text"] = "the same"
    assert "p000" not in set(blinded(result).prompt_id)


def test_wins_alpha_and_kappa_of_planted_ratings(tmp_path) -> None:
    result = evaluated(prompts=40)
    items = blinded(result)
    draw = random.Random(0)

    def noisy(row) -> str:
        return prefers_located(row) if draw.random() < 0.8 else draw.choice(["A", "B", "same"])

    paths = [write(tmp_path / f"{r}.csv", items, noisy, r) for r in ("r1", "r2", "r3")]
    ratings = read_ratings(paths, items)
    wins = win_rates(ratings, items)
    trait = wins[wins.question == "trait"]
    assert trait.wins.between(0.75, 0.98).all()
    assert ((trait.low <= trait.wins) & (trait.wins <= trait.high)).all()
    assert (wins[wins.question == "better"].wins == 0.5).all()
    alpha = reliability(ratings).set_index("question").alpha
    assert alpha["trait"] == pytest.approx(alpha_by_hand(ratings.pivot(index="rater", columns="item", values="trait")))
    assert np.isnan(alpha["better"]), "all answers are one"
    agreed = agreement_with_judges(ratings, items, result).set_index("judge")
    assert agreed.loc["markers", "kappa"] > 0.6, "the located replies were given the higher scores"
    assert set(human_tables(result, paths)) >= {"people and judges: kappa"}


def test_people_and_judges_are_compared_where_most_people_named_a_side() -> None:
    result = evaluated(prompts=40)
    items = blinded(result)
    votes = [("A", "same", "same"), ("A", "A", "B"), ("A", "B", "same")]
    rows = [(i, f"r{k}", vote, "") for n, i in enumerate(items.item) for k, vote in enumerate(votes[n % 3])]
    ratings = pd.DataFrame(rows, columns=["item", "rater", "trait", "better"])
    found = agreement_with_judges(ratings, items, result).set_index("judge")
    second = agreement_with_judges(ratings[ratings.item.isin(items.item[1::3])], items, result).set_index("judge")
    assert found["items"].equals(second["items"]), "of every second and third kind nobody knows which side most named"
    assert (found["items"] > 0).any()


def alpha_by_hand(table: pd.DataFrame) -> float:
    """Krippendorff's nominal alpha without missing values: one less disagreement observed over that expected."""
    units = table.to_numpy().T
    m = units.shape[1]
    observed = np.mean([sum(a != b for i, a in enumerate(u) for j, b in enumerate(u) if i != j) for u in units])
    observed /= m * (m - 1)
    flat = units.flatten()
    counts = np.array([(flat == v).sum() for v in set(flat)])
    n = len(flat)
    expected = 1 - (counts * (counts - 1)).sum() / (n * (n - 1))
    return 1 - observed / expected


def test_files_of_another_form_and_broken_ones_are_refused(tmp_path) -> None:
    items = blinded(evaluated(prompts=10))
    other = blinded(evaluated(prompts=12))
    good = write(tmp_path / "good.csv", items, prefers_located)
    cases = [
        (write(tmp_path / "other.csv", other, prefers_located), "another form"),
        (write(tmp_path / "answer.csv", items, lambda row: "C"), "answers A, B, same"),
        (write(tmp_path / "nobody.csv", items, prefers_located, ""), "no rater"),
        (write(tmp_path / "columns.csv", items, prefers_located, columns=[*"abcde"]), "no file that the form saved"),
    ]
    twice = tmp_path / "twice.csv"
    twice.write_text(good.read_text() + good.read_text().splitlines()[3].replace(",A,", ",B,") + "\n")
    cases.append((twice, r"line 22: rater 'r1' rates item 3 twice"))
    for path, said in cases:
        with pytest.raises(StarError, match=said):
            read_ratings([path], items)
    with pytest.raises(StarError, match="another file too"):
        read_ratings([good, good], items)


def test_one_rater_has_no_agreement(tmp_path) -> None:
    items = blinded(evaluated(prompts=10))
    ratings = read_ratings([write(tmp_path / "one.csv", items, prefers_located)], items)
    assert reliability(ratings).alpha.isna().all()
