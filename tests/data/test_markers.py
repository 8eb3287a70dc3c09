"""Markers of any script, patterns that must be refused, and how well the built-in ones find their trait."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from star_tl.data.pairs import TRAITS, Trait, load_pairs
from star_tl.errors import StarError

# Sentences of ours, labelled by reading them before any marker was run: trait, whether it shows, sentence.
SENTENCES = [json.loads(line) for line in (Path(__file__).parent / "marked.jsonl").read_text("utf-8").splitlines()]
# Measured, rounded down: (precision, recall). Words are a narrow measure, and these say how narrow.
MEASURED = {
    "agreement": (0.82, 0.74),
    "emotional_support": (0.78, 0.56),
    "gratitude": (0.76, 0.51),
    "joy": (0.83, 0.64),
    "politeness": (0.80, 0.54),
    "self_disclosure": (0.90, 0.66),
    "trust": (0.91, 0.67),
}


def trait(*markers: str) -> Trait:
    return Trait("own", "Be so.", "Be not so.", markers)


@pytest.mark.parametrize(
    ("marker", "text", "found"),
    [
        ("谢谢", "我很感动，谢谢你的帮助。", "谢谢"),
        ("ありがとう", "本当にありがとうございます", "ありがとう"),
        ("감사", "정말 감사합니다!", "감사"),
        ("ขอบคุณ", "ขอบคุณมากครับ", "ขอบคุณ"),
        ("спасибо", "Большое СПАСИБО вам", "СПАСИБО"),
        ("شكرا", "شكرا لك", "شكرا"),
        ("🙏", "That helps 🙏", "🙏"),
        ("👍", "deal👍🏽ok", "👍🏽"),
        ("❤️", "I ❤ it", "❤"),
        ("❤", "I ❤️ it", "❤️"),
        ("!", "Yes! No?", "!"),
        (r"\?", "Really?", "?"),
        ("？", "好吗？", "？"),
        ("？", "Is it?", "?"),
        ("thanks!", "oh thanks!now", "thanks!"),
        ("you're right", "You’re right.", "You’re right"),
        ("you’re right", "You're right.", "You're right"),
        ("you're right", "Youʼre right, you＇re", "Youʼre right"),
        ("cafe\u0301", "Un café crème", "café"),
        ("café", "Un cafe\u0301 noir", "cafe\u0301"),
        ("thanks", "Ｔｈａｎｋｓ a lot", "Ｔｈａｎｋｓ"),
        ("thank you", "thank\u00a0you", "thank\u00a0you"),
        ("(?:^|[.!?,] )yes", "Well, yes", "yes"),
    ],
)
def test_a_marker_is_found_in_any_script_and_spelling(marker, text, found):
    assert [text[a:b] for a, b in trait(marker).find(text)] == [found]


@pytest.mark.parametrize(
    ("marker", "text"), [("care", "scared"), ("hope", "hopeless"), ("è", "caffè"), ("спасибо", "спасибочки")]
)
def test_a_marker_in_a_script_with_spaces_is_a_whole_word(marker, text):
    assert not trait(marker).shown_in(text)


def test_a_place_behind_other_scripts_and_emoji_is_right():
    text = "ﬁne 👩‍👩‍👧 ½ 한 谢谢, thanks 🙏🏽 thanks"
    assert [text[a:b] for a, b in trait("thanks", "谢谢", "🙏").find(text)] == ["谢谢", "thanks", "🙏🏽", "thanks"]


@pytest.mark.parametrize(
    "marker", ["hope|", "x*", r"\w*", "", "^", r"\b", "(?=a)", "(?:so )?", "$", "a?b*", "[ae]{0,2}"]
)
def test_a_marker_that_matches_where_nothing_stands_is_refused(marker):
    with pytest.raises(StarError, match=r"^Trait 'own': marker [^\n]+ matches where nothing stands[^\n]+$"):
        trait("fine", marker)


@pytest.mark.parametrize("marker", ["(a+)+$", "(?:x|x)+y", "(a*)*b", r"([a-z]+)*\d", "(.+)+q", "(?:h+o*)+!$"])
def test_no_marker_hangs(marker):
    """It is refused or answers; whichever it is, within seconds."""
    text = "a" * 60 + "x" * 60 + "ho" * 30 + " !?"
    try:
        answer = str(trait(marker).shown_in(text))
    except StarError as error:
        answer = str(error)
    assert answer in ("True", "False") or "simplify" in answer


def test_a_pattern_without_end_is_refused():
    with pytest.raises(StarError, match=r"^Trait 'own': marker [^\n]+ takes too long[^\n]+simplify[^\n]+$"):
        trait(r"(?:a|a)+(?:a|aa)+$")


def test_a_reply_that_no_search_ends_on_is_one_line():
    nested = trait("(?:ab|ab)+c")
    with pytest.raises(StarError, match=r"^The markers take longer than 1 s on one reply: simplify[^\n]+$"):
        nested.find("ab" * 60)


@pytest.mark.parametrize(
    ("marker", "fault"),
    [("(glad", "not a regular expression"), ("[a", "not a regular"), (r"(a)\1", "by its number"), ("  ", "is blank")],
)
def test_a_marker_that_cannot_be_searched_for_is_refused(marker, fault):
    with pytest.raises(StarError, match=rf"^Trait 'own': [^\n]*{fault}[^\n]*$"):
        trait(marker)


def test_markers_with_an_apostrophe_find_the_curly_one_in_every_trait():
    """Each built-in positive reply shows its trait however its apostrophes are set."""
    for name in TRAITS:
        pairs = load_pairs(name)
        for pair in pairs:
            straight, curly = pair.positive.replace("’", "'"), pair.positive.replace("'", "’")
            assert pairs.trait.find(straight) == pairs.trait.find(curly)


@pytest.mark.parametrize("name", TRAITS)
def test_precision_and_recall_of_the_markers(name):
    found = load_pairs(name).trait.shown_in
    mine = [(row["shows"], found(row["text"])) for row in SENTENCES if row["trait"] == name]
    assert len(mine) >= 60
    assert min(sum(shows for shows, _ in mine), sum(not shows for shows, _ in mine)) >= 25
    hits = sum(shows and said for shows, said in mine)
    precision, recall = hits / sum(said for _, said in mine), hits / sum(shows for shows, _ in mine)
    print(f"{name}: precision {precision:.2f}, recall {recall:.2f} on {len(mine)} sentences")
    assert precision >= MEASURED[name][0]
    assert recall >= MEASURED[name][1]


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("joy", "She isn't so happy.", False),
        ("joy", "I’m never really glad.", False),
        ("joy", "I don't feel happy.", False),
        ("joy", "I'm not just happy, I'm thrilled.", True),
        ("joy", "Aren't you happy!", True),
        ("trust", "I don't have full confidence in you.", False),
        ("trust", "I can't have full trust in you.", False),
        ("trust", "I have full trust in you.", True),
        ("gratitude", "I am not thankful at all. No thanks.", False),
        ("gratitude", "I don't appreciate that.", False),
        ("gratitude", "I'm not very grateful.", False),
        ("gratitude", "_Thank you_ so much.", True),
        ("gratitude", "Your help is appreciated.", True),
        ("gratitude", "I can't thank you enough.", True),
        ("agreement", "I never agreed to that.", False),
        ("agreement", "We haven't fully agreed.", False),
        ("agreement", "I couldn't agree more.", True),
    ],
)
def test_a_denied_trait_is_none_and_a_word_in_italics_is_one(name, text, said):
    assert load_pairs(name).trait.shown_in(text) is said


def test_no_labelled_sentence_comes_twice_or_from_the_pairs():
    texts = [row["text"] for row in SENTENCES]
    assert len(set(texts)) == len(texts)
    replies = {text for name in TRAITS for pair in load_pairs(name) for text in (pair.positive, pair.negative)}
    assert not replies & set(texts)
