"""Dialogues as prompts: invented ones in every format, every failure, and the published files where present."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from star_tl.data.pairs import load_pairs
from star_tl.data.prompts import PromptItem, load_prompts, load_turns
from star_tl.errors import StarError

Write = Callable[..., Path]
DATA = Path(__file__).parents[2].parent / "shared" / "data"


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """Writes a text, or values as a JSON array, or as JSON lines where the name ends in ``.jsonl``."""

    def to_file(content: Any, name: str = "file.json") -> Path:
        path = tmp_path / name
        if not isinstance(content, str):
            lines = "".join(json.dumps(value, ensure_ascii=False) + "\n" for value in content)
            content = lines if name.endswith(".jsonl") else json.dumps(content, ensure_ascii=False, indent=1)
        path.write_text(content, encoding="utf-8")
        return path

    return to_file


def esconv(*turns: tuple[str, str], published: bool = False) -> dict[str, Any]:
    """A dialogue of (u or s, text), in the field names of ESConv.json or of its JSONL edition."""
    if published:
        speakers = {"u": "seeker", "s": "supporter"}
        dialog = [{"speaker": speakers[who], "annotation": {}, "content": f"{text}\n"} for who, text in turns]
    else:
        dialog = [{"text": text, "speaker": {"u": "usr", "s": "sys"}[who]} for who, text in turns]
    return {"emotion_type": "sadness", "situation": "The violin broke.", "dialog": dialog}


def casino(number: int, *turns: tuple[int, str]) -> dict[str, Any]:
    """A dialogue of (camper, text)."""
    logs = [{"text": text, "task_data": {}, "id": f"mturk_agent_{who}"} for who, text in turns]
    return {"dialogue_id": number, "chat_logs": logs, "participant_info": {}}


def craigslist(
    name: str, *events: tuple[int, str, Any], roles: tuple[str, str] = ("buyer", "seller")
) -> dict[str, Any]:
    """A dialogue of (agent, action, data)."""
    return {
        "uuid": name,
        "scenario": {"kbs": [{"personal": {"Role": role}, "item": {"Title": "A kite"}} for role in roles]},
        "events": [{"agent": agent, "action": action, "data": data} for agent, action, data in events],
    }


VIOLIN = (
    ("s", "Welcome, what is it?"),
    ("u", "Hi there!"),
    ("s", "Good to see you."),
    ("u", "My violin fell down the stairs."),
    ("u", "  The concert \n is tomorrow. "),
    ("s", "Oh dear."),
    ("s", "Can it be glued?"),
    ("u", "The neck is off."),
    ("s", "Could you borrow one?"),
    ("u", "From my teacher, perhaps."),
)


def texts(item: PromptItem) -> list[str]:
    return [message["content"] for message in item.messages]


def roles(item: PromptItem) -> list[str]:
    return [message["role"] for message in item.messages]


@pytest.mark.parametrize(("published", "name"), [(False, "valid.jsonl"), (False, "valid.json"), (True, "ESConv.json")])
def test_esconv_single_is_the_first_message_that_says_something(write: Write, published: bool, name: str) -> None:
    (item,) = load_prompts(write([esconv(*VIOLIN, published=published)], name))
    assert texts(item) == ["My violin fell down the stairs. The concert is tomorrow."]
    assert roles(item) == ["user"]
    assert item.reference == "Oh dear. Can it be glued?"
    assert item.source == "ESConv"
    assert item.id == ("esconv-line-1" if name.endswith("jsonl") else "esconv-entry-1")


def test_a_text_that_begins_with_a_remark_in_braces_is_no_json(tmp_path):
    (tmp_path / "p.txt").write_text("{curly} hello\n[sad] again")
    assert [item.messages[0]["content"] for item in load_prompts(tmp_path / "p.txt")] == [
        "{curly} hello",
        "[sad] again",
    ]


def test_speaker_and_listener_are_understood(write: Write) -> None:
    dialog = [{"speaker": "listener", "content": "Yes?"}, {"speaker": "speaker", "content": "I lost my keys."}]
    (item,) = load_prompts(write([{"dialog": dialog}]))
    assert texts(item) == ["I lost my keys."]
    assert item.reference is None


@pytest.mark.parametrize(
    "greeting", ["Hi", "hello!!", "Hey there :)", "Good morning, how\u2019s it going?", "…", "Hi, how are you today?"]
)
def test_greetings_are_passed_over(write: Write, greeting: str) -> None:
    (item,) = load_prompts(write([esconv(("u", greeting), ("s", "Hello."), ("u", "I am sad"), ("s", "Why?"))]))
    assert texts(item) == ["I am sad"]
    assert item.reference == "Why?"


@pytest.mark.parametrize("message", ["I am sad", "Hello, I am lost", "Not good", "Is it good?"])
def test_short_messages_that_say_something_are_kept(write: Write, message: str) -> None:
    (item,) = load_prompts(write([esconv(("u", message), ("s", "Tell me."), ("u", "There is little to tell."))]))
    assert texts(item) == [message]


def test_the_last_greeting_is_kept_where_nothing_follows(write: Write) -> None:
    (item,) = load_prompts(write([esconv(("u", "Hi"), ("s", "Hello."), ("u", "Hello there"))]))
    assert texts(item) == ["Hello there"]
    assert item.reference is None


def test_multi_is_the_history_up_to_the_middle_reply(write: Write) -> None:
    path = write([esconv(*VIOLIN)])
    (item,) = load_prompts(path, mode="multi")
    assert roles(item) == ["user", "assistant", "user", "assistant", "user"]
    assert texts(item)[0] == "Hi there!"
    assert texts(item)[-1] == "The neck is off."
    assert item.reference == "Could you borrow one?"
    (other,) = load_prompts(path, mode="multi", seed=1)
    assert other.reference == "Oh dear. Can it be glued?"
    assert texts(other) == texts(item)[:3]
    assert load_prompts(path, mode="multi") == [item]


@pytest.mark.parametrize(("max_turns", "length"), [(1, 1), (2, 1), (3, 3), (4, 3), (5, 5), (8, 5)])
def test_multi_keeps_the_last_turns_and_begins_with_the_user(write: Write, max_turns: int, length: int) -> None:
    (item,) = load_prompts(write([esconv(*VIOLIN)]), mode="multi", max_turns=max_turns)
    assert len(item.messages) == length
    assert roles(item)[0] == roles(item)[-1] == "user"
    assert texts(item)[-1] == "The neck is off."


def test_multi_leaves_out_dialogues_that_are_too_short(write: Write) -> None:
    short = esconv(("u", "I missed the ferry."), ("s", "And now?"), ("u", "I wait."))
    path = write([short, esconv(*VIOLIN)])
    assert [item.id for item in load_prompts(path, mode="multi")] == ["esconv-entry-2"]
    assert [item.id for item in load_prompts(path)] == ["esconv-entry-1", "esconv-entry-2"]


def test_casino_each_camper_is_the_user_once_and_deals_are_dropped(write: Write) -> None:
    dialogue = casino(
        7,
        (2, "I would like the lamp oil."),
        (1, "Take it, I need rope."),
        (2, "Rope is yours."),
        (2, "Submit-Deal"),
        (1, "Reject-Deal"),
        (1, "All of the rope, please."),
        (2, "Fine."),
        (1, "Accept-Deal"),
    )
    path = write([dialogue])
    single, other = load_prompts(path)
    assert (single.id, single.source) == ("casino-7", "CaSiNo")
    assert texts(single) == ["I would like the lamp oil."]
    assert single.reference == "Take it, I need rope."
    assert other.id == "casino-7-other-side"
    assert texts(other) == ["Take it, I need rope."]
    assert other.reference == "Rope is yours."
    multi = load_prompts(path, mode="multi")[0]
    assert texts(multi)[-1] == "Rope is yours."
    assert multi.reference == "All of the rope, please."


@pytest.mark.parametrize("order", [("buyer", "seller"), ("seller", "buyer")])
def test_craigslist_buyer_is_the_user_whoever_opens(write: Write, order: tuple[str, str]) -> None:
    buyer, seller = order.index("buyer"), order.index("seller")
    path = write(
        [
            craigslist(
                "C_1",
                (seller, "message", "A kite for you?"),
                (buyer, "message", "Does it fly?"),
                (seller, "message", "Very high."),
                (buyer, "message", "Ten for it."),
                (buyer, "offer", {"price": 10.0}),
                (seller, "message", "Twelve."),
                (seller, "accept", None),
                roles=order,
            ),
            craigslist("C_2", (seller, "message", "Anyone?"), (buyer, "quit", None), roles=order),
            craigslist("C_3", (buyer, "offer", {"price": 3.0}), (seller, "accept", None), roles=order),
        ]
    )
    (single,) = load_prompts(path)
    assert (single.id, single.source) == ("craigslistbargain-C_1", "CraigslistBargain")
    assert texts(single) == ["Does it fly?"]
    assert single.reference == "Very high."
    (multi,) = load_prompts(path, mode="multi")
    assert texts(multi) == ["Does it fly?", "Very high.", "Ten for it."]
    assert multi.reference == "Twelve."


@pytest.mark.parametrize("mode", ["single", "multi"])
def test_own_lines_are_taken_as_they_are(write: Write, mode: str) -> None:
    user, assistant = {"role": "user", "content": "Is tea on?"}, {"role": "assistant", "content": "It is."}
    system = {"role": "system", "content": "Be brief."}
    lines = [
        {"prompt": "Sing for me.", "id": "song"},
        {"messages": [system, user, assistant]},
        {"context": [user, assistant, user]},
        {"prompt": "  "},
        {"prompt": [user]},
        {"messages": [{"role": "user", "content": ""}]},
    ]
    first, second, third, fourth = load_prompts(write(lines, "own.jsonl"), mode=mode)
    assert first == PromptItem("song", ({"role": "user", "content": "Sing for me."},), "prompts", None)
    assert second.id == "line-2"
    assert roles(second) == ["system", "user"]
    assert second.reference == "It is."
    assert roles(third) == ["user", "assistant", "user"]
    assert third.reference is None
    assert fourth.id == "line-5"


def test_pairs_files_give_their_contexts(tmp_path: Path) -> None:
    pairs = load_pairs("gratitude")
    pairs.save(tmp_path / "mine.jsonl")
    items = load_prompts(tmp_path / "mine.jsonl")
    assert [item.messages for item in items] == pairs.prompts
    assert [item.id for item in items] == [pair.id for pair in pairs]


def test_text_has_one_prompt_a_line(write: Write) -> None:
    path = write("\ufeffThe soup is cold.\n\n[At work] My chair broke.\r\n", "mine.txt")
    assert [texts(item) for item in load_prompts(path)] == [["The soup is cold."], ["[At work] My chair broke."]]
    assert texts(load_prompts(write("[Sighing] The soup is cold.", "mine.txt"))[0]) == ["[Sighing] The soup is cold."]


def test_format_is_recognised_from_the_content(write: Write) -> None:
    lines = json.dumps(esconv(*VIOLIN))
    assert load_prompts(write(lines, "valid.txt"))[0].source == "ESConv"
    assert load_prompts(write(json.dumps([casino(1, (1, "Some rope?"))]), "dialogues"))[0].source == "CaSiNo"
    assert [texts(i) for i in load_prompts(write(["Sing.", "Dance."]))] == [["Sing."], ["Dance."]]


def test_a_line_separator_inside_a_text_does_not_end_the_line(write: Write) -> None:
    (item,) = load_prompts(write([{"prompt": "One\u2028two"}], "own.jsonl"))
    assert texts(item) == ["One\u2028two"]


def test_limit_takes_the_first_in_order(write: Write) -> None:
    path = write([{"prompt": ""}, *({"prompt": f"Say {i}."} for i in range(5))], "own.jsonl")
    assert [texts(item)[0] for item in load_prompts(path, limit=2)] == ["Say 0.", "Say 1."]
    assert len(load_prompts(path, limit=99)) == 5


CASES: list[tuple[str, str, dict[str, Any], list[str]]] = [
    ("", "empty.jsonl", {}, ["no prompts in", "empty"]),
    ("\n \n", "blank.txt", {}, ["no prompts in", "empty"]),
    ("[]", "none.json", {}, ["no prompts in", "CaSiNo"]),
    ('{"prompt": " "}', "none.jsonl", {}, ["no prompts in", "words of a user"]),
    (json.dumps([esconv(("u", "I fell."))]), "short.json", {"mode": "multi"}, ["no prompts in", "use mode 'single'"]),
    ("a,b\n1,2\n", "table.csv", {}, ["unknown format", "ESConv", "CaSiNo", "CraigslistBargain", ".txt"]),
    ('{"title": "x"}\n', "other.jsonl", {}, ["line 1", "unknown format", "'prompt'"]),
    ('[{"title": "x"}]', "other.json", {}, ["entry 1", "unknown format"]),
    ('{"prompt": "a"}\n[1]\n', "list.jsonl", {}, ["line 2", "not a dialogue or prompt"]),
    ('{"prompt": "a"}\n\n{"prompt": \n', "broken.jsonl", {}, ["line 3", "not valid JSON", "one object a line"]),
    ('[\n{"dialog": []},\n{"dialog" []}]', "broken.json", {}, ["line 3", "not valid JSON", "download"]),
    ('{"prompt": "a"}\n{"prompt": 3}\n', "number.jsonl", {}, ["line 2", "another form", "write"]),
    ('{"messages": ["a"]}\n', "texts.jsonl", {}, ["line 1", "another form"]),
    ('{"messages": [{"role": "user"}]}\n', "bare.jsonl", {}, ["line 1", "another form"]),
    ('{"messages": []}\n', "nothing.jsonl", {}, ["line 1", "empty"]),
    ('{"messages": [{"role": "owl", "content": "Hu"}]}\n', "owl.jsonl", {}, ["line 1", "'owl'", "use one of"]),
    ('{"messages": [{"role": "assistant", "content": "Hu"}]}\n', "reply.jsonl", {}, ["line 1", "no user message"]),
    ('{"prompt": "a", "id": 1}\n{"prompt": "b", "id": 1}\n', "twice.jsonl", {}, ["line 2", "'1'", "used twice"]),
    ('[{"dialog": [{"text": "a", "speaker": "owl"}]}]', "owl.json", {}, ["entry 1", "ESConv", "'owl'", "download"]),
    ('[{"dialog": [{"speaker": "usr"}]}]', "bare.json", {}, ["entry 1", "ESConv", "'content'"]),
    ('[{"dialog": [{"speaker": "usr", "text": 4}]}]', "type.json", {}, ["entry 1", "ESConv", "another form"]),
    ('[{"chat_logs": [{"text": "a"}]}]', "camp.json", {}, ["entry 1", "CaSiNo", "'id'"]),
    ('[{"events": []}]', "sale.json", {}, ["entry 1", "CraigslistBargain", "'scenario'"]),
    ("A prompt.", "mine.txt", {"mode": "dialogue"}, ["Unknown mode 'dialogue'", "single", "multi"]),
    ("A prompt.", "mine.txt", {"limit": 0}, ["limit is 0", "at least 1"]),
    ("A prompt.", "mine.txt", {"max_turns": 0}, ["max_turns is 0", "at least 1"]),
]


@pytest.mark.parametrize(
    ("content", "name", "options", "words"), CASES, ids=[f"{c[1]}-{'-'.join(c[2])}" for c in CASES]
)
def test_failures_are_one_line_with_a_remedy(
    write: Write, content: str, name: str, options: dict[str, Any], words: list[str]
) -> None:
    with pytest.raises(StarError) as error:
        load_prompts(write(content, name), **options)
    message = str(error.value)
    assert "\n" not in message
    assert message.endswith(".")
    about_the_call = message.startswith(("Unknown mode", "limit", "max_turns"))
    for word in words if about_the_call else [name, *words]:
        assert word in message


def test_paths_that_are_no_text_file(tmp_path: Path) -> None:
    with pytest.raises(StarError, match=r"No prompts file at .*none\.jsonl: check the path"):
        load_prompts(tmp_path / "none.jsonl")
    with pytest.raises(StarError, match="is a folder: name one file"):
        load_prompts(tmp_path)
    (tmp_path / "image.txt").write_bytes(b"\xff\xfe\x00\x81")
    with pytest.raises(StarError, match="not UTF-8 text"):
        load_prompts(tmp_path / "image.txt")


PUBLISHED = [
    ("esconv/valid.jsonl", 195, 195),
    ("casino/casino_valid.json", 60, 60),
    ("casino/casino_train.json", 1800, 1800),
    # Of 643 dialogues 32 hold no word of the buyer's: the seller or nobody writes before the offer or the end.
    ("craigslist_bargain/dev.json", 643 - 32, 524),
]


@pytest.mark.parametrize("mode", ["single", "multi"])
@pytest.mark.parametrize(("name", "single", "multi"), PUBLISHED, ids=[name for name, *_ in PUBLISHED])
def test_published_files(name: str, single: int, multi: int, mode: str) -> None:
    path = DATA / name
    if not path.is_file():
        pytest.skip(f"the published file {name} is not beside the repository, in shared/data")
    items = load_prompts(path, mode=mode)
    assert len(items) == (single if mode == "single" else multi)
    assert len({item.id for item in items}) == len(items)
    for item in items:
        assert roles(item) == [("user", "assistant")[i % 2] for i in range(len(item.messages))]
        assert roles(item)[-1] == "user"
        assert all(text.strip() for text in texts(item))
        assert item.reference != ""
        assert len(item.messages) == 1 if mode == "single" else item.reference and len(item.messages) in (3, 5, 7)
        assert not {"Submit-Deal", "Accept-Deal", "Reject-Deal", "Walk-Away"}.intersection(texts(item))
    assert load_prompts(path, mode=mode, limit=7) == items[:7]


BOLT = """<?xml version="1.0" encoding="UTF-8"?>
<conversation id="CHT_OURS_1" medium="CHT"><messages>
<message id="m0000" participant="7"><body>hey</body></message>
<message id="m0001" participant="9"><body>Hi! What is up?</body></message>
<message id="m0002" participant="7"><body>My kite is &lt;gone&gt;.</body></message>
<message id="m0003" participant="7"><body>The wind took it</body></message>
<message id="m0004" participant="9"><body>Oh no. From the hill?</body></message>
<message id="m0005" participant="7"><body>Yes</body></message>
</messages></conversation>
"""


def test_a_chat_export_is_read_with_each_side_as_the_user(write: Write, tmp_path: Path) -> None:
    path = write(BOLT, "talk.xml")
    one, other = load_prompts(path)
    assert texts(one) == ["My kite is <gone>. The wind took it"]
    assert one.reference == "Oh no. From the hill?"
    assert texts(other) == ["Hi! What is up?"]
    assert (one.id, other.id) == ("sms-and-chat-CHT_OURS_1", "sms-and-chat-CHT_OURS_1-other-side")
    assert one.source == "SMS and chat"
    folder = tmp_path / "source"
    folder.mkdir()
    for number in (1, 2):
        (folder / f"{number}.xml").write_text(BOLT.replace("OURS_1", f"OURS_{number}"))
    (folder / "3.xml").write_text(BOLT.replace("OURS_1", "OURS_3").replace('m0005" participant="7', 'm0005" sender="8'))
    assert [item.id for item in load_prompts(folder, limit=3)] == [
        "sms-and-chat-CHT_OURS_1",
        "sms-and-chat-CHT_OURS_1-other-side",
        "sms-and-chat-CHT_OURS_2",
    ]
    assert len(load_prompts(folder)) == 4, "a talk of three is left out"


def test_a_chat_in_plain_text_is_read_and_a_list_of_prompts_is_not_taken_for_one(write: Write) -> None:
    talk = "[12:01] Ann: My kite is gone.\n  The wind took it.\nBen: Oh no.\n\nBen: Are you home?\nAnn: At six.\n"
    items = load_prompts(write(talk, "talk.txt"))
    assert [texts(item) for item in items] == [
        ["My kite is gone. The wind took it."],
        ["Oh no."],
        ["Are you home?"],
        ["At six."],
    ]
    assert items[0].reference == "Oh no."
    for listed in ("Q: Who flew first?\nQ: And where?\n", "Ann: one\nBen: two\nEve: three\n", "Ann: hi\nand no name\n"):
        assert [item.source for item in load_prompts(write(listed, "list.txt"))] == ["prompts"] * listed.count("\n")


def test_sentences_that_disclose_something_are_prompts_without_copies(write: Write) -> None:
    rows = [("1", "He<U+0092>s gone", "1", "0"), ("2", "Buy milk", "0", "0"), ("3", "I told no one", "0", "1")]
    rows.append(("4", *rows[2][1:]))
    head = "sentenceid,full_text,Emotional_disclosure,Information_disclosure"
    table = "\n".join([head, *(",".join(row) for row in rows)]) + "\n"
    items = load_prompts(write(table, "posts.csv"))
    assert [texts(item) for item in items] == [["He’s gone"], ["I told no one"]]
    assert [item.id for item in items] == ["offmychest-1", "offmychest-3"]
    assert [texts(i)[0] for i in load_prompts(write('full_text\n"Hello, I am lost"\n', "own.csv"))] == [
        "Hello, I am lost"
    ]


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("x.csv", "a,b\n1,2\n", "no column full_text"),
        ("x.xml", "<a><b></a>", "not valid XML"),
        ("x.xml", "<a/>", "no messages"),
        ("x.xml", "<a><message><body>x</body></message></a>", "without who wrote it"),
        ("x.xml", '<!DOCTYPE a [<!ENTITY b "c">]><a>&b;</a>', "declares entities"),
    ],
)
def test_a_broken_export_is_one_line(write: Write, name: str, content: str, said: str) -> None:
    with pytest.raises(StarError, match=rf"^[^\n]*{said}[^\n]*$"):
        load_prompts(write(content, name))


@pytest.mark.skipif(not (DATA / "offmychest").exists(), reason="the published data are not beside the repository")
def test_offmychest_as_published_gives_hundreds_of_prompts() -> None:
    items = load_prompts(DATA / "offmychest" / "labeled_training_set.csv", limit=500)
    assert len({texts(item)[0] for item in items}) == 500
    assert not any("<U+" in texts(item)[0] for item in items)


def test_the_users_turns_of_long_enough_dialogues_are_read_to_be_said_again(write: Write) -> None:
    short = esconv(("u", "I fell."), ("s", "Oh."))
    path = write([esconv(*VIOLIN), short], "d.jsonl")
    assert load_turns(path, 3) == [
        ("Hi there!", "My violin fell down the stairs. The concert is tomorrow.", "The neck is off.")
    ]
    assert [len(said) for said in load_turns(path, 1)] == [1, 1]
    assert load_turns(path, 1, limit=1) == [("Hi there!",)]
    own = [{"messages": [{"role": r, "content": c} for r, c in (("user", "a"), ("assistant", "b"), ("user", "c"))]}]
    assert load_turns(write(own, "own.jsonl"), 2) == [("a", "c")]
    with pytest.raises(StarError, match=r"^No dialogue in [^\n]+ has 9 turns [^\n]+$"):
        load_turns(path, 9)


def test_a_chat_with_an_empty_system_turn_is_a_prompt(tmp_path: Path) -> None:
    path = tmp_path / "mine.jsonl"
    empty, said = {"role": "system", "content": ""}, {"role": "user", "content": "I lost my job."}
    blank = {"role": "user", "content": " "}
    path.write_text("".join(json.dumps({"messages": chat}) + "\n" for chat in ([empty, said], [empty, blank])))
    (found,) = load_prompts(path)
    assert [turn["content"] for turn in found.messages] == ["", "I lost my job."]
