"""Prompts as tokens, against the tokenizer's own chat template, under templates of several kinds."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from chat_templates import FAMILIES, NO_SYSTEM, THINKING
from conftest import SPECIAL, TEMPLATE
from tokenizers.processors import TemplateProcessing

from star_tl.data.chat import (
    Rendered,
    as_messages,
    as_prompts,
    distinct_prompts,
    render,
    reply_ids,
    set_chat_format,
    stop_ids,
    template_hash,
    with_instruction,
)
from star_tl.data.prompts import PromptItem
from star_tl.errors import StarError

BOS, HEADER, END_HEADER, EOT = SPECIAL[:4]
NO_BOS = TEMPLATE.replace("{{ '<|begin_of_text|>' }}", "")
CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
DROPS_SYSTEM = (
    "{{ bos_token }}{% for m in messages %}{% if m['role'] != 'system' %}{{ m['role'] + ': ' + m['content'] + '\n' }}"
    "{% endif %}{% endfor %}{% if add_generation_prompt %}{{ 'assistant: ' }}{% endif %}"
)
# Like Llama 3.1's and Qwen's: a system turn stands there even where none is given.
DEFAULT_SYSTEM = (
    "{{ bos_token }}{% if messages[0]['role'] != 'system' %}{{ '[system]Be helpful.[end]' }}{% endif %}"
    "{% for m in messages %}{{ '[' + m['role'] + ']' + m['content'] + '[end]' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '[assistant]' }}{% endif %}"
)
# Like the reasoning models': what the assistant said before is written otherwise than what it says last.
REWRITES_HISTORY = (
    "{{ bos_token }}{% for m in messages %}{{ '[' + m['role'] + ']' }}"
    "{% if m['role'] == 'assistant' and loop.last %}{{ '[thought]' }}{% endif %}{{ m['content'] + '[end]' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '[assistant]' }}{% endif %}"
)
NO_HEADER = "{{ bos_token }}{% for m in messages %}{{ '[' + m['role'] + ']' + m['content'] + '[end]' }}{% endfor %}"
TEMPLATES = {
    "llama3": TEMPLATE,
    "without BOS": NO_BOS,
    "chatml": CHATML,
    "default system": DEFAULT_SYSTEM,
    "rewrites history": REWRITES_HISTORY,
    **FAMILIES,
}

CHAT = (
    {"role": "system", "content": "You are kind."},
    {"role": "user", "content": "My cat is ill 🐈."},
    {"role": "assistant", "content": " Oh no! Since when? "},
    {"role": "user", "content": "Since yesterday\n\nShe won't eat."},
)
PROMPTS = {"text": "I had a bad day.", "chat with system": CHAT, "chat without": CHAT[1:], "system and user": CHAT[:2]}

Variant = Callable[..., Any]


@pytest.fixture
def variant(tokenizer: Any) -> Variant:
    """The test tokenizer with another chat template, or with none."""

    def make(template: str | None, adds_bos: bool = False) -> Any:
        made = copy.deepcopy(tokenizer)
        made.chat_template = template
        if adds_bos:
            made.backend_tokenizer.post_processor = TemplateProcessing(
                single=f"{BOS} $A", special_tokens=[(BOS, made.bos_token_id)]
            )
            assert made("x")["input_ids"][0] == made.bos_token_id
        return made

    return make


def text_of(tokenizer: Any, rendered: Rendered) -> str:
    return tokenizer.decode(rendered.ids, skip_special_tokens=False)


def span_texts(tokenizer: Any, rendered: Rendered) -> dict[str, str]:
    return {s.name: tokenizer.decode(rendered.ids[s.start : s.end]) for s in rendered.spans}


# --- ids -------------------------------------------------------------------------------------


@pytest.mark.parametrize("prompt", PROMPTS)
@pytest.mark.parametrize("template", TEMPLATES)
@pytest.mark.parametrize("adds_bos", [False, True], ids=["plain tokenizer", "tokenizer adds BOS"])
def test_ids_are_those_of_apply_chat_template(variant: Variant, template: str, prompt: str, adds_bos: bool) -> None:
    tok = variant(TEMPLATES[template], adds_bos)
    messages = [dict(m) for m in as_messages(PROMPTS[prompt])]
    if template == "no system" and messages[0]["role"] == "system":
        messages = [{"role": "user", "content": f"{messages[0]['content']}\n\n{messages[1]['content']}"}, *messages[2:]]
    expected = tok.apply_chat_template(messages, tokenize=True, add_generation_prompt=True, return_dict=False)
    assert list(render(tok, PROMPTS[prompt]).ids) == expected


def test_the_same_prompt_twice_is_one_and_the_first_stays_in_its_place():
    given = [
        "b",
        "a",
        [{"role": "user", "content": "b"}],
        [{"role": "system", "content": "b"}, {"role": "user", "content": "b"}],
    ]
    assert [chat[-1]["content"] for chat in distinct_prompts(given)] == ["b", "a", "b"]
    assert [len(chat) for chat in distinct_prompts(given)] == [1, 1, 2]


def test_a_tokenizer_without_bos_gets_none(variant: Variant) -> None:
    tok = variant(CHATML)
    tok.bos_token = None
    assert text_of(tok, render(tok, "hi")) == "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n"


def test_without_template_turns_are_plain_text(variant: Variant) -> None:
    tok = variant(None)
    rendered = render(tok, CHAT)
    assert text_of(tok, rendered) == (
        f"{BOS}You are kind.\nUser: My cat is ill 🐈.\nAssistant: Oh no! Since when?\n"
        "User: Since yesterday\n\nShe won't eat.\nAssistant:"
    )
    assert rendered.ids.count(tok.bos_token_id) == 1
    assert span_texts(tok, rendered) == {
        "system": f"{BOS}You are kind.\n",
        "user 1": "User: My cat is ill 🐈.\n",
        "assistant 1": "Assistant: Oh no! Since when?\n",
        "user 2": "User: Since yesterday\n\nShe won't eat.\n",
        "header": "Assistant:",
    }


# --- spans -----------------------------------------------------------------------------------


def test_spans_hold_each_turn_with_its_markup(tokenizer: Any) -> None:
    assert span_texts(tokenizer, render(tokenizer, CHAT)) == {
        "system": f"{BOS}{HEADER}system{END_HEADER}\n\nYou are kind.{EOT}",
        "user 1": f"{HEADER}user{END_HEADER}\n\nMy cat is ill 🐈.{EOT}",
        "assistant 1": f"{HEADER}assistant{END_HEADER}\n\nOh no! Since when?{EOT}",
        "user 2": f"{HEADER}user{END_HEADER}\n\nSince yesterday\n\nShe won't eat.{EOT}",
        "header": f"{HEADER}assistant{END_HEADER}\n\n",
    }


SPANNED = {
    "default system": {
        "system": f"{BOS}[system]Be helpful.[end]",
        "user 1": "[user]hi[end]",
        "header": "[assistant]",
    },
    "chatml, default system": {
        "system": "<|im_start|>system\nYou are a kind machine.<|im_end|>\n",
        "user 1": "<|im_start|>user\nhi<|im_end|>\n",
        "header": "<|im_start|>assistant\n",
    },
    "dated system": {
        "system": f"{BOS}{HEADER}system{END_HEADER}\n\nKnowledge ends: December 2023\nToday: 26 Jul 2024\n\n{EOT}",
        "user 1": f"{HEADER}user{END_HEADER}\n\nhi{EOT}",
        "header": f"{HEADER}assistant{END_HEADER}\n\n",
    },
    "thinking": {"user 1": "<|im_start|>user\nhi<|im_end|>\n", "header": "<|im_start|>assistant\n"},
    "no system": {"user 1": f"{BOS}<start_of_turn>user\nhi<end_of_turn>\n", "header": "<start_of_turn>model\n"},
    "brackets": {"user 1": f"{BOS}[INST] hi[/INST]"},
}


@pytest.mark.parametrize("template", SPANNED)
def test_a_system_turn_of_the_templates_own_is_a_span_of_its_own(variant: Variant, template: str) -> None:
    tok = variant(TEMPLATES[template])
    assert span_texts(tok, render(tok, "hi")) == SPANNED[template]


@pytest.mark.parametrize("word", ["user", "system", "a", "s", "kind", "<|im_end|>", "You are a kind machine."])
@pytest.mark.parametrize("template", ["llama3", *SPANNED])
def test_words_that_the_markup_has_too_do_not_mislead(variant: Variant, template: str, word: str) -> None:
    tok = variant(TEMPLATES[template])
    chat = [
        {"role": "user", "content": word},
        {"role": "assistant", "content": word},
        {"role": "user", "content": word},
    ]
    found, other = (
        span_texts(tok, render(tok, chat)),
        span_texts(tok, render(tok, [m | {"content": "QQQ"} for m in chat])),
    )
    assert list(found) == list(other)
    assert {k: v.replace("QQQ", word) for k, v in other.items()} == found


THOUGHTFUL = (
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "Hi!\n"},
    {"role": "assistant", "content": "<think>\nHm.\n</think>\n\nHello."},
    {"role": "user", "content": " How are you? "},
)


def test_turns_that_the_template_rewrites_keep_their_spans(variant: Variant) -> None:
    tok = variant(THINKING)
    assert span_texts(tok, render(tok, THOUGHTFUL)) == {
        "system": "<|im_start|>system\nBe brief.<|im_end|>\n",
        "user 1": "<|im_start|>user\nHi!\n<|im_end|>\n",
        "assistant 1": "<|im_start|>assistant\nHello.<|im_end|>\n",
        "user 2": "<|im_start|>user\n How are you? <|im_end|>\n",
        "header": "<|im_start|>assistant\n",
    }
    tok = variant(REWRITES_HISTORY)
    assert list(span_texts(tok, render(tok, CHAT))) == ["system", "user 1", "assistant 1", "user 2", "header"]


def test_a_system_message_in_the_last_user_turn_is_found_there(variant: Variant) -> None:
    tok = variant(TEMPLATES["brackets"])
    assert span_texts(tok, render(tok, CHAT)) == {
        "user 1": f"{BOS}[INST] My cat is ill 🐈.[/INST]",
        "assistant 1": f" Oh no! Since when?{EOT}",
        "system": "[INST] You are kind.\n\n",
        "user 2": "Since yesterday\n\nShe won't eat.[/INST]",
    }


def test_where_marks_change_the_rendering_the_prompt_is_one_span(variant: Variant) -> None:
    tok = variant("{% for m in messages %}{{ m['content'] | length }} {% endfor %}")
    assert set(span_texts(tok, render(tok, CHAT))) == {"prompt"}


# --- the rest of the chat format -------------------------------------------------------------


def test_template_arguments_reach_the_template_and_its_hash(variant: Variant) -> None:
    tok = variant(THINKING)
    plain, before = text_of(tok, render(tok, "hi")), template_hash(tok)
    set_chat_format(tok, template_args={"enable_thinking": False})
    assert text_of(tok, render(tok, "hi")) == plain + "<think>\n\n</think>\n\n"
    assert span_texts(tok, render(tok, "hi"))["header"] == "<|im_start|>assistant\n<think>\n\n</think>\n\n"
    assert template_hash(tok) != before
    assert template_hash(variant(THINKING)) == before


@pytest.mark.parametrize("form", ["dict", "list"])
def test_of_several_templates_the_default_is_taken_or_the_one_that_is_named(variant: Variant, form: str) -> None:
    named = {"default": TEMPLATE, "short": NO_HEADER}
    tok = variant(None)
    tok.chat_template = named if form == "dict" else [{"name": k, "template": v} for k, v in named.items()]
    assert render(tok, CHAT) == render(variant(TEMPLATE), CHAT)
    assert template_hash(tok) == template_hash(variant(TEMPLATE))
    assert reply_ids(tok, "Yes.") == reply_ids(variant(TEMPLATE), "Yes.")
    set_chat_format(tok, template_args={"chat_template": "short"})
    assert render(tok, CHAT) == render(variant(NO_HEADER), CHAT)
    with pytest.raises(StarError, match=r"no chat template 'long'.*default, short"):
        set_chat_format(tok, template_args={"chat_template": "long"})


def test_several_templates_without_a_default_ask_for_a_name(variant: Variant) -> None:
    tok = variant(None)
    tok.chat_template = {"short": NO_HEADER}
    with pytest.raises(StarError, match=r"template_args=.*short"):
        render(tok, "hi")


@pytest.mark.parametrize("eos", [7, [7, 3], None])
def test_stop_ids_are_joined_by_those_of_the_generation_config(variant: Variant, eos: Any) -> None:
    tok = variant(TEMPLATE)
    before = set(stop_ids(tok))
    set_chat_format(tok, eos)
    assert set(stop_ids(tok)) == before | ({7} if eos else set())


@pytest.mark.parametrize("eos", ["7", [None], True, -1, [1.5]])
def test_end_tokens_that_are_no_ids_are_refused(variant: Variant, eos: Any) -> None:
    with pytest.raises(StarError, match=r"end-of-turn tokens .* token ids"):
        set_chat_format(variant(TEMPLATE), eos)


@pytest.mark.parametrize("args", [["enable_thinking"], {1: 2}, {"tokenize": True}, 5])
def test_template_arguments_that_cannot_be_passed_are_refused(variant: Variant, args: Any) -> None:
    with pytest.raises(StarError, match="template_args"):
        set_chat_format(variant(TEMPLATE), template_args=args)


# --- prompts in many forms -------------------------------------------------------------------

TEXTS = ["Hi!", "I had a bad day."]
AS_CHATS = [({"role": "user", "content": t},) for t in TEXTS]


@pytest.mark.parametrize(
    "prompts",
    [
        TEXTS,
        tuple(TEXTS),
        (t for t in TEXTS),
        np.array(TEXTS),
        np.array(TEXTS, dtype=object),
        pd.Series(TEXTS),
        pd.DataFrame({"prompt": TEXTS, "n": [1, 2]}),
        [{"prompt": t} for t in TEXTS],
        [{"messages": list(c), "id": 1} for c in AS_CHATS],
        [PromptItem(str(i), c, "x") for i, c in enumerate(AS_CHATS)],
        AS_CHATS,
    ],
    ids=lambda p: type(p).__name__,
)
def test_prompts_are_read_whatever_they_come_in(prompts: Any) -> None:
    assert as_prompts(prompts) == AS_CHATS


@pytest.mark.parametrize(
    ("prompts", "words"),
    [
        ("I failed.", ["one text", "give a list"]),
        (np.str_("I failed."), ["one text", "give a list"]),
        ({"a": "I failed."}, ["a dict", "give a list"]),
        ({"role": "user", "content": "x"}, ["one message", "give a list"]),
        (list(AS_CHATS[0]), ["one chat", "[chat]"]),
        (pd.DataFrame({"text": TEXTS}), ["table without a column", "'prompt'", "frame['text']"]),
        (Path("prompts.txt"), ["is a path", "load_prompts"]),
        ([1, 2, 3], ["token ids", "decode"]),
        ([[1, 2], [3]], ["token ids", "decode"]),
        (np.array([[1, 2], [3, 4]]), ["token ids", "decode"]),
        (torch.tensor([[1, 2]]), ["token ids", "decode"]),
        ([torch.tensor([1, 2])], ["token ids", "decode"]),
        (itertools.repeat("again"), ["more than 1,000,000"]),
        ([], ["There are no prompts"]),
        (iter(()), ["There are no prompts"]),
        (None, ["is None", "give a list"]),
        (3, ["is 3", "give a list"]),
        (np.array("x"), ["give a list"]),
        ([None], ["Prompt 0", "neither a text nor messages"]),
        (["a", ""], ["Prompt 1", "is empty"]),
        (["a", float("nan")], ["Prompt 1", "neither"]),
        ([{"role": "user", "content": "a"}, "b"], ["Prompt 0", "neither"]),
        ([b"bytes"], ["Prompt 0", "neither"]),
        (b"bytes", ["give"]),
        (["\ud83d"], ["Prompt 0", "half a character"]),
    ],
    ids=lambda p: type(p).__name__,
)
def test_what_are_no_prompts_is_refused_in_one_line(prompts: Any, words: list[str]) -> None:
    with pytest.raises(StarError) as failure:
        as_prompts(prompts)
    assert all(w in str(failure.value) for w in words), str(failure.value)
    assert "\n" not in str(failure.value)


def test_a_template_without_assistant_header_has_no_header_span(variant: Variant) -> None:
    tok = variant(NO_HEADER)
    assert span_texts(tok, render(tok, CHAT[:2])) == {
        "system": f"{BOS}[system]You are kind.[end]",
        "user 1": "[user]My cat is ill 🐈.[end]",
    }


@pytest.mark.parametrize("prompt", PROMPTS)
@pytest.mark.parametrize("template", [*TEMPLATES.values(), NO_SYSTEM, DROPS_SYSTEM, NO_HEADER, None])
def test_spans_partition_the_tokens(variant: Variant, template: str | None, prompt: str) -> None:
    rendered = render(variant(template), PROMPTS[prompt])
    assert rendered.spans[0].start == 0
    assert rendered.spans[-1].end == len(rendered)
    assert all(a.end == b.start for a, b in pairwise(rendered.spans))
    assert all(len(s) > 0 for s in rendered.spans)
    assert len({s.name for s in rendered.spans}) == len(rendered.spans)


def test_span_at_finds_positions_from_both_ends(tokenizer: Any) -> None:
    rendered = render(tokenizer, CHAT)
    names = [s.name for s in rendered.spans for _ in range(len(s))]
    assert [rendered.span_at(k) for k in range(len(rendered))] == names
    assert [rendered.span_at(k) for k in range(-len(rendered), 0)] == names


# --- instructions ----------------------------------------------------------------------------


def test_an_instruction_becomes_the_system_message_or_joins_it() -> None:
    user = {"role": "user", "content": "hi"}
    assert with_instruction("hi", "Be warm.") == ({"role": "system", "content": "Be warm."}, user)
    assert with_instruction([user], "Be warm.") == ({"role": "system", "content": "Be warm."}, user)
    joined = with_instruction(CHAT, "Be warm.")
    assert joined == ({"role": "system", "content": "You are kind. Be warm."}, *CHAT[1:])
    assert CHAT[0]["content"] == "You are kind."


@pytest.mark.parametrize("nothing", [None, ""])
def test_no_instruction_leaves_the_prompt_alone(nothing: str | None) -> None:
    assert with_instruction(CHAT, nothing) == CHAT
    assert with_instruction("hi", nothing) == ({"role": "user", "content": "hi"},)


def test_a_refused_system_message_opens_the_first_user_message(variant: Variant) -> None:
    tok = variant(NO_SYSTEM)
    rendered = render(tok, with_instruction(CHAT[1:], "Be warm."))
    assert span_texts(tok, rendered) == {
        "user 1": f"{BOS}<start_of_turn>user\nBe warm.\n\nMy cat is ill 🐈.<end_of_turn>\n",
        "assistant 1": "<start_of_turn>model\nOh no! Since when?<end_of_turn>\n",
        "user 2": "<start_of_turn>user\nSince yesterday\n\nShe won't eat.<end_of_turn>\n",
        "header": "<start_of_turn>model\n",
    }
    assert rendered.ids.count(tok.bos_token_id) == 1


def test_a_dropped_system_message_opens_the_first_user_message(variant: Variant) -> None:
    """Otherwise the clean and the corrupted prompt would silently be the same."""
    tok = variant(DROPS_SYSTEM)
    assert text_of(tok, render(tok, with_instruction("hi", "Be warm."))) == f"{BOS}user: Be warm.\n\nhi\nassistant: "


def test_a_refused_system_message_alone_becomes_the_user_message(variant: Variant) -> None:
    tok = variant(NO_SYSTEM)
    rendered = render(tok, [{"role": "system", "content": "Be warm."}])
    assert text_of(tok, rendered) == f"{BOS}<start_of_turn>user\nBe warm.<end_of_turn>\n<start_of_turn>model\n"


def test_a_template_with_a_system_role_keeps_the_instruction_there(variant: Variant) -> None:
    tok = variant(CHATML)
    text = text_of(tok, render(tok, with_instruction("hi", "Be warm.")))
    assert text.startswith("<|im_start|>system\nBe warm.<|im_end|>\n<|im_start|>user\nhi<|im_end|>\n")


# --- replies ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("template", "closing"),
    [(TEMPLATE, EOT), (NO_BOS, EOT), (CHATML, "<|im_end|>\n"), (NO_SYSTEM, "<end_of_turn>\n"), (None, "\n")],
    ids=["llama3", "without BOS", "chatml", "no system", "no template"],
)
def test_prompt_and_reply_decode_to_the_templates_text_of_the_whole_chat(
    variant: Variant, template: str | None, closing: str
) -> None:
    tok = variant(template)
    reply = "I'm sorry, that sounds hard — poor cat! 🐈"
    chat = [*CHAT[1:], {"role": "assistant", "content": reply}]
    if template is None:
        whole = "".join(f"{m['role'].title()}: {m['content'].strip()}\n" for m in chat)
    else:
        whole = tok.apply_chat_template(chat, tokenize=False)
    ids = [*render(tok, CHAT[1:]).ids, *reply_ids(tok, f"  {reply}\n")]
    assert tok.decode(ids, skip_special_tokens=False) + closing == (BOS if template is None else "") + whole


def test_a_reply_has_no_bos_even_where_the_tokenizer_adds_it(variant: Variant) -> None:
    tok = variant(TEMPLATE, adds_bos=True)
    assert tok.decode(reply_ids(tok, "Yes."), skip_special_tokens=False) == "Yes."


def test_stop_ids_are_the_end_of_turn_tokens_that_the_vocabulary_has(variant: Variant) -> None:
    tok = variant(TEMPLATE)
    tok.add_tokens(["<|im_end|>"], special_tokens=True)
    tok.eos_token = SPECIAL[4]
    assert set(stop_ids(tok)) == {tok.convert_tokens_to_ids(t) for t in (EOT, "<|im_end|>", SPECIAL[4])}


def test_template_hash_tells_templates_apart(variant: Variant) -> None:
    hashes = [template_hash(variant(t)) for t in (TEMPLATE, NO_BOS, None, TEMPLATE)]
    assert hashes[0] == hashes[3]
    assert len(set(hashes)) == 3


# --- failures --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("prompt", "words"),
    [
        ("", ["prompt is empty", "give a text"]),
        (" \n", ["prompt is empty", "give a text"]),
        ([], ["prompt is empty", "at least one message"]),
        ([{"role": "user", "content": ""}], ["prompt is empty"]),
        ([{"role": "bot", "content": "x"}], ["Unknown role 'bot'", "system, user, assistant"]),
        ([{"content": "x"}], ["neither a text nor messages", "write [{"]),
        ([{"role": "user", "content": None}], ["neither a text nor messages", "write [{"]),
        (["hello"], ["neither a text nor messages", "write [{"]),
        ({"role": "user", "content": "x"}, ["neither a text nor messages", "write [{"]),
        (None, ["neither a text nor messages", "write [{"]),
    ],
)
def test_a_prompt_that_is_none_is_refused_in_one_line(tokenizer: Any, prompt: Any, words: list[str]) -> None:
    with pytest.raises(StarError) as failure:
        render(tokenizer, prompt)
    assert all(w in str(failure.value) for w in words)
    assert "\n" not in str(failure.value)


def test_a_prompt_that_the_template_refuses_is_refused_in_one_line(variant: Variant) -> None:
    with pytest.raises(StarError) as failure:
        render(variant(NO_SYSTEM), [CHAT[1], CHAT[1]])
    assert "Conversation roles must alternate user/assistant" in str(failure.value)
    assert "take turns" in str(failure.value)
    assert "\n" not in str(failure.value)


@pytest.mark.parametrize("space", [" ", "\n", "  "])
@pytest.mark.parametrize("family", ["chatml, default system", "brackets"])
def test_white_space_before_a_prompt_belongs_to_its_turn(tokenizer, family: str, space: str) -> None:
    own = copy.copy(tokenizer)
    own.chat_template = FAMILIES[family]
    for before in ([], [{"role": "system", "content": "Be kind."}]):
        plain, spaced = (render(own, [*before, {"role": "user", "content": f"{lead}I am sad"}]) for lead in ("", space))
        assert [span.name for span in spaced.spans] == [span.name for span in plain.spans]
        for name in {span.name for span in plain.spans} - {"user 1"}:
            lengths = [len(next(s for s in made.spans if s.name == name)) for made in (plain, spaced)]
            assert lengths[0] == lengths[1], name


def test_an_instruction_in_an_empty_system_turn_stands_alone() -> None:
    chat = [{"role": "system", "content": ""}, {"role": "user", "content": "Hi"}]
    assert with_instruction(chat, "Be kind.")[0]["content"] == "Be kind."
