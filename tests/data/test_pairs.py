"""Contrastive pairs: the built-in traits, the file format, and one clear line for every broken file."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from star_tl.data.pairs import TRAITS, ContrastivePair, Pairs, Trait, load_pairs
from star_tl.errors import StarError

HEADER = {
    "trait": "cheer",
    "description": "Good spirits.",
    "positive_instruction": "Be cheerful.",
    "negative_instruction": "Be gloomy.",
    "markers": ["hooray", "(?:so|very) glad"],
}
PAIR = {"id": "c-1", "context": "How was it?", "positive": "Hooray, it was fun.", "negative": "It was dull."}


def changed(value: dict[str, Any], **fields: Any) -> str:
    """The value as a JSON line, with fields replaced, or left out where they are None."""
    return json.dumps({k: v for k, v in (value | fields).items() if v is not None})


def write(path: Path, *lines: Any) -> Path:
    texts = [line if isinstance(line, str) else json.dumps(line, ensure_ascii=False) for line in lines]
    path.write_text("\n".join(texts) + "\n", encoding="utf-8")
    return path


# --- the built-in traits ---------------------------------------------------------------------


@pytest.fixture(scope="module", params=TRAITS)
def built_in(request: pytest.FixtureRequest) -> Pairs:
    return load_pairs(request.param)


def test_built_in_trait_has_enough_pairs_in_both_splits(built_in: Pairs) -> None:
    assert len(built_in) >= 40
    assert {p.split for p in built_in.extraction} == {"extraction"}
    assert {p.split for p in built_in.heldout} == {"heldout"}
    assert len(built_in.extraction) + len(built_in.heldout) == len(built_in)
    assert len(built_in.extraction) >= 20
    assert len(built_in.heldout) >= 20
    assert len({p.id for p in built_in}) == len(built_in)


def test_built_in_positive_shows_a_marker_and_negative_none(built_in: Pairs) -> None:
    shows = built_in.trait.shown_in
    assert [p.id for p in built_in if not shows(p.positive)] == []
    assert [p.id for p in built_in if shows(p.negative)] == []


def test_built_in_replies_differ_and_are_equally_long(built_in: Pairs) -> None:
    """A reply that is longer on one side would let length pass for the trait."""
    assert all(p.positive.strip() != p.negative.strip() for p in built_in)
    ratios = {p.id: len(p.positive) / len(p.negative) for p in built_in}
    assert {i: r for i, r in ratios.items() if not 3 / 4 <= r <= 4 / 3} == {}
    assert sum(ratios.values()) / len(ratios) == pytest.approx(1, abs=0.1)


def test_built_in_instructions_differ(built_in: Pairs) -> None:
    assert built_in.trait.positive_instruction != built_in.trait.negative_instruction
    assert built_in.trait.description


def test_no_built_in_context_comes_twice() -> None:
    """Neither within a trait, where it would leak from extraction into evaluation, nor across traits."""
    contexts = Counter(tuple(m["content"].casefold().strip() for m in p.context) for t in TRAITS for p in load_pairs(t))
    assert [c for c, n in contexts.items() if n > 1] == []


def test_built_in_contexts_end_with_the_user() -> None:
    for trait in TRAITS:
        assert {p.context[-1]["role"] for p in load_pairs(trait)} == {"user"}


# --- the format ------------------------------------------------------------------------------


def test_a_file_is_read_as_written(tmp_path: Path) -> None:
    chat = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Yes?"}]
    chat.append({"role": "user", "content": "Wie wär's?"})
    own = {"clean": "Cheer up!", "corrupted": [{"role": "user", "content": "Mope."}], "metric": "logit"}
    path = write(tmp_path / "cheer.jsonl", HEADER, "", PAIR, PAIR | own | {"context": chat, "split": "heldout"})
    pairs = load_pairs(path)
    assert pairs.trait == Trait("cheer", "Be cheerful.", "Be gloomy.", tuple(HEADER["markers"]), "Good spirits.")
    first, second = pairs
    assert first == ContrastivePair("c-1", ({"role": "user", "content": "How was it?"},), *list(PAIR.values())[2:])
    assert second.context == tuple(chat)
    assert (second.split, second.metric) == ("heldout", "logit")
    assert second.clean == ({"role": "user", "content": "Cheer up!"},)
    assert second.corrupted == ({"role": "user", "content": "Mope."},)
    assert pairs.prompts == [first.context, second.context]


def test_saving_and_loading_gives_the_same_pairs(tmp_path: Path) -> None:
    own = {"clean": "Grüß dich 🙂", "corrupted": "b", "metric": "logit", "split": "heldout"}
    pairs = load_pairs(write(tmp_path / "a.jsonl", HEADER, PAIR, PAIR | own))
    pairs.save(tmp_path / "b.jsonl")
    again = load_pairs(tmp_path / "b.jsonl")
    assert again == pairs
    assert "Grüß dich 🙂" in (tmp_path / "b.jsonl").read_text(encoding="utf-8")


def test_a_file_with_a_byte_order_mark_is_read(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", HEADER, PAIR)
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes().replace(b"\n", b"\r\n"))
    assert len(load_pairs(path)) == 1


def test_where_no_pair_is_held_out_all_pairs_evaluate(tmp_path: Path) -> None:
    pairs = load_pairs(write(tmp_path / "a.jsonl", HEADER, PAIR))
    assert pairs.heldout == pairs.extraction == pairs


def test_prompts_of_the_two_runs_carry_the_instructions_or_are_the_pairs_own(tmp_path: Path) -> None:
    own = {"clean": "Cheer up!", "corrupted": "Mope."}
    pairs = load_pairs(write(tmp_path / "a.jsonl", HEADER, PAIR, PAIR | own))
    user = {"role": "user", "content": "How was it?"}
    assert pairs.clean_prompt(pairs[0]) == ({"role": "system", "content": "Be cheerful."}, user)
    assert pairs.corrupted_prompt(pairs[0]) == ({"role": "system", "content": "Be gloomy."}, user)
    assert pairs.clean_prompt(pairs[1]) == ({"role": "user", "content": "Cheer up!"},)
    assert pairs.corrupted_prompt(pairs[1]) == ({"role": "user", "content": "Mope."},)


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("HOORAY!", True),
        ("I am very glad.", True),
        ("I am glad.", False),
        ("hoorays", False),
        ("xhooray", False),
        ("nothing", False),
        ("", False),
    ],
)
def test_markers_match_whole_words_in_any_case(text: str, shown: bool) -> None:
    trait = Trait("cheer", "a", "b", tuple(HEADER["markers"]))
    assert trait.shown_in(text) is shown


def test_a_trait_without_markers_shows_nowhere() -> None:
    assert not Trait("cheer", "a", "b", ()).shown_in("anything at all")


# --- failures --------------------------------------------------------------------------------

GOOD = json.dumps(HEADER)
BROKEN = {
    "header is not JSON": ("{'trait'}\n" + json.dumps(PAIR), 1, "not valid JSON", "one object a line"),
    "header is a list": ("[]", 1, "not a JSON object", "write {"),
    **{
        f"header without {key}": (changed(HEADER, **{key: None}), 1, f"lacks '{key}'", "add it")
        for key in ("trait", "positive_instruction", "negative_instruction", "markers")
    },
    "trait is a number": (changed(HEADER, trait=3), 1, "'trait' is not a text", "write it as a string"),
    "instruction is a list": (
        changed(HEADER, positive_instruction=["a"]),
        1,
        "'positive_instruction' is not a text",
        "write it as a string",
    ),
    "instruction is empty": (changed(HEADER, negative_instruction=""), 1, "needs a name", "negative_instruction"),
    "markers are a text": (changed(HEADER, markers="glad"), 1, "not a list of texts", 'write ["word", ...]'),
    "markers are numbers": (changed(HEADER, markers=[1]), 1, "not a list of texts", 'write ["word", ...]'),
    "marker is no pattern": (changed(HEADER, markers=["(glad"]), 1, "marker", "not a regular expression"),
    "no pairs": (GOOD + "\n\n", 1, "the header stands alone", "add at least one pair"),
    "pair is not JSON": (f"{GOOD}\n{changed(PAIR)}\n{{oops", 3, "not valid JSON", "one object a line"),
    "pair cut off": (f"{GOOD}\n{changed(PAIR)[:-4]}", 2, "not valid JSON", "one object a line"),
    "pair is a text": (f'{GOOD}\n"hello"', 2, "not a JSON object", "write {"),
    **{
        f"pair without {key}": (f"{GOOD}\n\n\n{changed(PAIR, **{key: None})}", 4, f"lacks '{key}'", "a pair has")
        for key in ("context", "positive", "negative")
    },
    "reply is a number": (f"{GOOD}\n{changed(PAIR, positive=5)}", 2, "'positive' is not a text", "as a string"),
    "reply is blank": (f"{GOOD}\n{changed(PAIR, negative=' ')}", 2, "empty reply", "write both"),
    "replies are equal": (f"{GOOD}\n{changed(PAIR, negative=PAIR['positive'] + ' ')}", 2, "equal replies", "differ"),
    "split is unknown": (f"{GOOD}\n{changed(PAIR, split='test')}", 2, "split 'test'", "extraction or heldout"),
    "metric is unknown": (f"{GOOD}\n{changed(PAIR, metric='loss')}", 2, "metric 'loss'", "logprob or logit"),
    "only a clean prompt": (f"{GOOD}\n{changed(PAIR, clean='x')}", 2, "only one of clean", "both or none"),
    "context is empty": (f"{GOOD}\n{changed(PAIR, context='  ')}", 2, "prompt is empty", "give a text"),
    "context has no messages": (f"{GOOD}\n{changed(PAIR, context=[])}", 2, "prompt is empty", "give a text"),
    "context is a number": (f"{GOOD}\n{changed(PAIR, context=4)}", 2, "neither a text nor messages", "write [{"),
    "context is one message": (f"{GOOD}\n{changed(PAIR, context={'role': 'user'})}", 2, "neither a text", "write [{"),
    "message without content": (f"{GOOD}\n{changed(PAIR, context=[{'role': 'user'}])}", 2, "neither", "write [{"),
    "message is a number": (
        f"{GOOD}\n{changed(PAIR, context=[{'role': 'user', 'content': 1}])}",
        2,
        "neither a text nor messages",
        "write [{",
    ),
    "role is unknown": (
        f"{GOOD}\n{changed(PAIR, context=[{'role': 'seller', 'content': 'x'}])}",
        2,
        "Unknown role 'seller'",
        "system, user, assistant",
    ),
    "corrupted prompt is a number": (
        f"{GOOD}\n{changed(PAIR, clean='x', corrupted=1)}",
        2,
        "neither a text",
        "write [{",
    ),
}


@pytest.mark.parametrize("case", BROKEN)
def test_a_broken_line_is_refused_with_file_line_and_remedy(tmp_path: Path, case: str) -> None:
    text, line, fault, remedy = BROKEN[case]
    path = tmp_path / "broken.jsonl"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(StarError) as failure:
        load_pairs(path)
    message = str(failure.value)
    assert message.startswith(f"{path}, line {line}: ")
    assert fault in message
    assert remedy in message
    assert "\n" not in message


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", ["is empty", "first line is the trait's header"]),
        (b" \n\n", ["is empty", "first line is the trait's header"]),
        ('{"trait": "Grüße"}'.encode("latin-1"), ["not UTF-8", "save it as UTF-8"]),
    ],
)
def test_a_file_that_is_no_pairs_file_is_refused(tmp_path: Path, content: bytes, words: list[str]) -> None:
    path = tmp_path / "broken.jsonl"
    path.write_bytes(content)
    with pytest.raises(StarError) as failure:
        load_pairs(path)
    assert all(w in str(failure.value) for w in [str(path), *words])
    assert "\n" not in str(failure.value)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("politness", ["Unknown trait 'politness'", "Did you mean 'politeness'?", "agreement"]),
        ("zzz", ["Unknown trait 'zzz'", "Known: ", "gratitude"]),
        ("nowhere/at_all.jsonl", ["No pairs file at nowhere/at_all.jsonl", "check the path", "gratitude"]),
        ("missing.jsonl", ["No pairs file at missing.jsonl", "check the path"]),
        (".", ["Unknown trait '.'"]),
    ],
)
def test_an_unknown_name_is_refused_with_the_known_ones(name: str, words: list[str]) -> None:
    with pytest.raises(StarError) as failure:
        load_pairs(name)
    assert all(w in str(failure.value) for w in words)
    assert "\n" not in str(failure.value)
    assert "Did you mean" in str(failure.value) or name != "politness"


@pytest.mark.parametrize("name", ["../../../../esc", "a/b", "a\\b", ".hidden", "a[/b]c", "x" * 101, "a\nb", " a", "a "])
def test_a_name_that_could_leave_its_folder_is_refused(name: str) -> None:
    with pytest.raises(StarError, match="A trait cannot be called") as failure:
        Trait(name, "a", "b", ())
    assert len(str(failure.value).splitlines()) == 1


@pytest.mark.parametrize("name", ["emotional_support", "Höflichkeit", "one two-3", "感謝", "a.b", "x"])
def test_a_name_of_words_is_kept(name: str) -> None:
    assert Trait(name, "a", "b", ()).name == name


@pytest.mark.parametrize("text", ["[" * 100_000, '{"a":' * 100_000, '{"id": ' + "9" * 5000 + "}"])
def test_json_beyond_measure_is_refused_with_its_line(tmp_path: Path, text: str) -> None:
    path = tmp_path / "deep.jsonl"
    path.write_text(f"{GOOD}\n{text}")
    with pytest.raises(StarError, match=r"line 2: not valid JSON .*: write one object a line"):
        load_pairs(path)


def test_half_characters_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "half.jsonl"
    path.write_text(f"{GOOD}\n{changed(PAIR, positive=chr(0xD83D))}")
    with pytest.raises(StarError, match=r"line 2: .* half a character"):
        load_pairs(path)


def test_pairs_need_at_least_one_pair() -> None:
    with pytest.raises(StarError, match="has no pairs: add at least one"):
        Pairs(Trait("cheer", "a", "b", ()), ())


ROWS = [("My cat died.", "I am so sorry.", "Cats die."), ("I failed.", "That must hurt.", "Exams are hard.")]
COLUMNS = ["prompt", "positive", "negative"]


class Dataset:
    """As a HuggingFace dataset: it yields a dict a row and knows the names of its columns."""

    column_names = COLUMNS

    def __iter__(self):
        return (dict(zip(COLUMNS, row, strict=True)) for row in ROWS)


def test_pairs_come_from_whatever_table_is_at_hand(tmp_path: Path) -> None:
    trait = load_pairs("emotional_support").trait
    frame = pd.DataFrame(ROWS, columns=COLUMNS)
    frame.assign(trait="emotional_support", split=["train", "test"]).to_csv(tmp_path / "a.csv", index=False)
    of_file = load_pairs(tmp_path / "a.csv")
    assert of_file.trait == trait
    assert [p.split for p in of_file] == ["extraction", "heldout"]
    for table in (ROWS, [list(row) for row in ROWS], frame, Dataset(), frame.to_dict("list"), frame.to_dict("records")):
        pairs = load_pairs(table, trait)
        assert [(p.context[0]["content"], p.positive, p.negative) for p in pairs] == ROWS
        assert [(p.context[0]["content"], p.positive, p.negative) for p in of_file] == ROWS
    chat = [
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": "Yes?"},
        {"role": "user", "content": "Help"},
    ]
    (pair,) = load_pairs([(chat, "Gladly.", "No.")], trait)
    assert len(pair.context) == 3


@pytest.mark.parametrize(
    "table",
    [5, [], [("a", "b")], [{"prompt": "a", "positive": "b"}], {"train": Dataset()}, [("a", 1, "b")], [1], [None]],
)
def test_another_shape_is_refused_in_one_line_with_the_right_one(table: Any) -> None:
    with pytest.raises(StarError, match=r"prompt, positive, negative|as a string") as refused:
        load_pairs(table, load_pairs("gratitude").trait)
    assert "\n" not in str(refused.value)


def test_a_table_needs_to_say_its_trait() -> None:
    with pytest.raises(StarError, match="names no trait: give trait="):
        load_pairs(ROWS)
    with pytest.raises(StarError, match="says its trait itself"):
        load_pairs("gratitude", load_pairs("gratitude").trait)


@pytest.mark.parametrize("sign", ["\u2028", "\u0085", "\x0b", "\x1c"])
def test_a_row_of_a_csv_ends_at_the_end_of_its_line_alone(tmp_path: Path, sign: str) -> None:
    path = tmp_path / "mine.csv"
    path.write_text(f"prompt,positive,negative\nI lost{sign}my job,I am sorry{sign},Deal with it\n", encoding="utf-8")
    (found,) = load_pairs(path, Trait("mine", "Be kind.", "Be cold.", ()))
    assert found.context[0]["content"] == f"I lost{sign}my job"


def test_a_quotation_mark_that_is_never_closed_is_one_line(tmp_path: Path) -> None:
    path = tmp_path / "mine.csv"
    path.write_text('prompt,positive,negative\n"I lost,a,b\n' + "x,a,b\n" * 40_000)
    with pytest.raises(StarError, match=r"^\S+mine\.csv: not a table in CSV \([^\n]+\): save it again\.$"):
        load_pairs(path, Trait("mine", "Be kind.", "Be cold.", ()))
