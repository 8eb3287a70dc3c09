"""A lexicon in either form counts the same words; VADER sees what its warning says that it sees."""

from __future__ import annotations

import json
from importlib.machinery import ModuleSpec

import numpy as np
import pytest

from star_tl.errors import StarError
from star_tl.evaluation import lexicon

TABLE = "glad\tjoy\t1\nglad\ttrust\t0\nfriend\tjoy\t1\nFriend\ttrust\t1\nfog\tsadness\t1\n"
AS_JSON = json.dumps({"glad": ["joy"], "friend": ["joy", "trust"], "fog": ["sadness"]})


@pytest.mark.parametrize(("name", "text"), [("nrc.txt", TABLE), ("nrc.json", AS_JSON)])
def test_both_forms_of_a_lexicon_count_the_same_words(tmp_path, name, text) -> None:
    (tmp_path / name).write_text(text)
    found = lexicon.load_lexicon(tmp_path / name)
    assert found == {"joy": {"glad", "friend"}, "trust": {"friend"}}
    counts = lexicon.words_in_100(["Glad, my FRIEND!", "No fog", "", "a friend's friend"], found["joy"])
    assert counts[[0, 1, 3]] == pytest.approx([200 / 3, 0, 100 / 3])
    assert np.isnan(counts[2])


@pytest.mark.parametrize("text", ["just words\n", "{}", '{"glad": "joy"}', '{"fog": ["sadness"]}'])
def test_another_form_is_refused(tmp_path, text) -> None:
    (tmp_path / "x").write_text(text)
    with pytest.raises(StarError, match=r"^[^\n]+: give NRC's table [^\n]+$"):
        lexicon.load_lexicon(tmp_path / "x")


def test_an_installed_list_is_found_without_importing_it(tmp_path, monkeypatch) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "nrc_en.json").write_text(AS_JSON)
    (tmp_path / "__init__.py").write_text("raise ImportError")
    spec = ModuleSpec("nrclex", None, is_package=True)
    assert spec.submodule_search_locations is not None
    spec.submodule_search_locations.append(str(tmp_path))
    monkeypatch.setattr("importlib.util.find_spec", lambda name: spec)
    found = lexicon.load_lexicon()
    assert found is not None
    assert found["trust"] == {"friend"}
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert lexicon.load_lexicon() is None


def test_vader_follows_the_mood_of_the_words_and_not_of_the_speaker() -> None:
    """Why it never stands alone: consoling counts as gloom."""
    module = pytest.importorskip("vaderSentiment.vaderSentiment", reason="vaderSentiment is not installed")
    score = module.SentimentIntensityAnalyzer().polarity_scores
    assert score("I am so sorry. Losing a friend hurts, and you must feel awful.")["compound"] < 0
    assert score("Great, fine, lovely weather.")["compound"] > 0
