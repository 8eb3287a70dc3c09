"""People as judges: which pairs of replies they see, blinded and in random order, and what their ratings say.

The form itself is :func:`star_tl.view.rating_form.write_form`. What it shows comes of the samples and a seed alone, so
that ratings are read back beside the same evaluation without another file.
"""

from __future__ import annotations

import csv
import hashlib
import io
import random
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from star_tl import stats
from star_tl.errors import StarError
from star_tl.evaluation.conditions import CAA, PRIMED, asked_about
from star_tl.evaluation.evaluated import Evaluation
from star_tl.evaluation.measures import main_measures
from star_tl.files import read_text
from star_tl.steering.condition import UNSTEERED

QUESTIONS = ("trait", "better")
ANSWERS = ("A", "B", "same")
COLUMNS = ("form", "rater", "item", *QUESTIONS)
OTHERS = (UNSTEERED, PRIMED, CAA, "random 0")
MOST_ITEMS = 80  # an hour's work


def blinded(result: Evaluation, limit: int = MOST_ITEMS, seed: int = 0) -> pd.DataFrame:
    """The items of a form: a row each, with the two replies, which condition wrote which, and the prompt's number.

    The intervention (``chosen``, else the located vector) stands beside one of OTHERS, all of them equally often; sides
    and order are random. Equal replies are left out, for there is nothing to tell.
    """
    texts = _first(result).text
    mine = asked_about(set(result.samples.arm))
    draw = random.Random(seed)
    rows = []
    for number, prompt in enumerate(dict.fromkeys(result.samples.prompt_id)):
        for other in OTHERS[number % 2 :: 2]:
            sides = [mine, other]
            draw.shuffle(sides)
            if (other, prompt) in texts.index and texts[mine, prompt] != texts[other, prompt]:
                a, b = (texts[arm, prompt] for arm in sides)
                rows.append((prompt, a, b, *sides))
    draw.shuffle(rows)
    table = pd.DataFrame(rows[:limit], columns=["prompt_id", "a", "b", "arm_a", "arm_b"])
    return table.assign(item=range(1, len(table) + 1))


def _first(result: Evaluation) -> pd.DataFrame:
    """The first reply of every arm to every prompt: random vectors have seeds of their own."""
    return result.samples.drop_duplicates(["arm", "prompt_id"]).set_index(["arm", "prompt_id"])


def form_id(items: pd.DataFrame) -> str:
    """What tells a form from others."""
    return hashlib.sha256(repr(items[["prompt_id", "a", "b"]].to_numpy().tolist()).encode()).hexdigest()[:12]


def read_ratings(paths: Sequence[str | Path], items: pd.DataFrame) -> pd.DataFrame:
    """The ratings of one file per rater: ``rater``, ``item``, and an answer of ANSWERS to each question, or "".

    Raises:
        StarError: a file of another form, a rating without a rater, an unknown item or answer, an item that a rater
            rates twice, or a rater who stands in two files.
    """
    rows, raters, rated = [], set(), set()
    for path in paths:
        records = list(csv.DictReader(io.StringIO(read_text(path, "file of ratings"))))
        if not records or set(COLUMNS) - set(records[0]):
            raise StarError(f"{path} is no file that the form saved: its columns are {', '.join(COLUMNS)}.")
        if {r["form"] for r in records} != {form_id(items)}:
            raise StarError(f"{path} rates another form: give the folder of the evaluation that it came from.")
        names = {(r["rater"] or "").strip() for r in records}
        if "" in names:
            raise StarError(f"{path}: a rating has no rater: write a name or number in that column.")
        if names & raters:
            raise StarError(f"{path}: rater {sorted(names & raters)[0]!r} stands in another file too: rename one.")
        raters |= names
        for number, record in enumerate(records, start=2):
            known = (record["item"] or "").isdecimal() and 1 <= int(record["item"]) <= len(items)
            if not known or any(record[q] not in (*ANSWERS, "") for q in QUESTIONS):
                raise StarError(f"{path}, line {number}: items are numbers, answers {', '.join(ANSWERS)} or empty.")
            rating = {**record, "rater": record["rater"].strip(), "item": int(record["item"])}
            if (key := (rating["rater"], rating["item"])) in rated:
                raise StarError(f"{path}, line {number}: rater {key[0]!r} rates item {key[1]} twice: keep one of them.")
            rated.add(key)
            rows.append(rating)
    return pd.DataFrame(rows, columns=list(COLUMNS)).drop(columns="form")


def win_rates(ratings: pd.DataFrame, items: pd.DataFrame, resamples: int = 2000) -> pd.DataFrame:
    """How often people preferred the intervention to each other condition, "same" as half.

    A row per question and other condition: ``n`` items, ``wins`` with its 95 % bootstrap interval over items (an item's
    raters are averaged).
    """
    merged = ratings.merge(items, on="item")
    mine = asked_about({*items.arm_a, *items.arm_b})
    rows = []
    for question in QUESTIONS:
        told = merged[merged[question] != ""]
        side = np.where(told[question] == "A", told.arm_a, told.arm_b)
        won = np.where(told[question] == "same", 0.5, (side == mine).astype(float))
        other = np.where(told.arm_a == mine, told.arm_b, told.arm_a)
        for name, group in told.assign(won=won, other=other).groupby("other"):
            values = group.groupby("item").won.mean().to_numpy()
            low, high = stats.bootstrap_interval(values, resamples)
            rows.append((question, name, len(values), values.mean(), low, high))
    return pd.DataFrame(rows, columns=["question", "other", "n", "wins", "low", "high"])


def reliability(ratings: pd.DataFrame) -> pd.DataFrame:
    """Krippendorff's alpha of the raters, nominal, by question; NaN for one rater or where all answers are one.

    Raises:
        StarError: the package ``krippendorff`` is not installed.
    """
    try:
        import krippendorff
    except ModuleNotFoundError:
        raise StarError('Agreement of raters needs krippendorff: pip install "star_tl[human]".') from None
    rows = []
    for question in QUESTIONS:
        codes = ratings.assign(code=ratings[question].map({a: float(i) for i, a in enumerate(ANSWERS)}))
        table = codes.pivot(index="rater", columns="item", values="code").to_numpy(dtype=float)
        given = table[~np.isnan(table)]
        usable = len(table) > 1 and len(set(given)) > 1 and bool(((~np.isnan(table)).sum(0) > 1).any())
        alpha = krippendorff.alpha(reliability_data=table, level_of_measurement="nominal") if usable else float("nan")
        rows.append((question, len(table), len(given), float(alpha)))
    return pd.DataFrame(rows, columns=["question", "raters", "answers", "alpha"])


def agreement_with_judges(ratings: pd.DataFrame, items: pd.DataFrame, result: Evaluation) -> pd.DataFrame:
    """Cohen's kappa of people and every judge on which reply shows more of the trait.

    Over items on which most people named a side and the judge's scores differ.
    """
    shares = ratings[ratings.trait != ""].groupby("item").trait.value_counts(normalize=True).unstack(fill_value=0.0)
    sides = {side: shares.get(side, pd.Series(dtype=float)) > 0.5 for side in ("A", "B")}
    votes = sides["A"].astype(float).sub(sides["B"].astype(float), fill_value=0.0)
    first, rows = _first(result), []
    for measure in main_measures(result.measures):
        scores = first[measure]
        gap = np.array([scores[r.arm_a, r.prompt_id] - scores[r.arm_b, r.prompt_id] for r in items.itertuples()])
        people = items.item.map(votes).fillna(0).to_numpy(dtype=float)
        both = (people != 0) & (gap != 0) & ~np.isnan(gap)
        rows.append((measure, int(both.sum()), stats.kappa(people[both] > 0, gap[both] > 0)))
    return pd.DataFrame(rows, columns=["judge", "items", "kappa"])


def human_tables(result: Evaluation, paths: Sequence[str | Path]) -> dict[str, pd.DataFrame]:
    """Win rates, reliability and agreement with the judges, by heading. Errors as in :func:`read_ratings`."""
    items = blinded(result)
    ratings = read_ratings(paths, items)
    return {
        "people: how often the intervention won": win_rates(ratings, items),
        "people: Krippendorff's alpha": reliability(ratings),
        "people and judges: kappa": agreement_with_judges(ratings, items, result),
    }
