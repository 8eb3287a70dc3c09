"""Prompts as tokens, against the tokenizer's own chat template, under templates of several kinds."""

from __future__ import annotations

import copy
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import pytest
from conftest import SPECIAL, TEMPLATE
from tokenizers.processors import TemplateProcessing

from star_tl.data.chat import Rendered, as_messages, render, reply_ids, stop_ids, template_hash, with_instruction
from star_tl.errors import StarError

BOS, HEADER, END_HEADER, EOT = SPECIAL[:4]
NO_BOS = TEMPLATE.replace("{{ '<|begin_of_text|>' }}", "")
CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
# Like Gemma's: no system role, turns must alternate, the assistant is called model.
NO_SYSTEM = (
    "{{ bos_token }}{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}"
    "{% endif %}{% for m in messages %}{% if (m['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Conversation roles must alternate\nuser/assistant') }}{% endif %}"
    "{{ '<start_of_turn>' + m['role'].replace('assistant', 'model') + '\n' + m['content'] | trim + '<end_of_turn>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<start_of_turn>model\n' }}{% endif %}"
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
def test_ids_are_the_templates_own_with_bos_exactly_once(
    variant: Variant, template: str, prompt: str, adds_bos: bool
) -> None:
    tok = variant(TEMPLATES[template], adds_bos)
    messages = [dict(m) for m in as_messages(PROMPTS[prompt])]
    expected = tok.apply_chat_template(messages, tokenize=True, add_generation_prompt=True, return_dict=False)
    if expected[0] != tok.bos_token_id:
        assert template in ("without BOS", "chatml")
        expected = [tok.bos_token_id, *expected]
    ids = render(tok, PROMPTS[prompt]).ids
    assert list(ids) == expected
    assert ids.count(tok.bos_token_id) == 1


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


def test_a_default_system_turn_belongs_to_the_first_turn(variant: Variant) -> None:
    tok = variant(DEFAULT_SYSTEM)
    assert span_texts(tok, render(tok, "hi")) == {
        "user 1": f"{BOS}[system]Be helpful.[end][user]hi[end]",
        "header": "[assistant]",
    }


def test_where_turns_cannot_be_told_apart_the_prompt_is_one_span(variant: Variant) -> None:
    tok = variant(REWRITES_HISTORY)
    spans = span_texts(tok, render(tok, CHAT))
    assert set(spans) == {"prompt", "header"}
    assert spans["header"] == "[assistant]"


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
    assert text.startswith(f"{BOS}<|im_start|>system\nBe warm.<|im_end|>\n<|im_start|>user\nhi<|im_end|>\n")


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
    assert tok.decode(ids, skip_special_tokens=False) + closing == BOS + whole.removeprefix(BOS)


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
