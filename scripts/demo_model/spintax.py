"""Expand templates such as ``[Hi|Hello], I lost my {thing}.`` into sentences.

``[a|b|]`` picks one alternative (they nest, and one may be empty); ``{slot}`` is looked up in the
chat's slots, so that a thing named by the user is the thing the assistant speaks about. A slot
value ``"my boss || your boss"`` has two persons: ``{who}`` is the user's form and ``{who.you}``
the assistant's.
"""

from __future__ import annotations

import random
import re

_INNERMOST = re.compile(r"\[([^\[\]]*)\]")
_SLOT = re.compile(r"\{([a-z_]+)(\.you)?\}")
_SPACES = re.compile(r"\s+")
_BEFORE_PUNCTUATION = re.compile(r"\s+([,.!?;:])")
_SENTENCE_START = re.compile(r"(^|[.!?]\s+)([a-z])")
_ARTICLE = re.compile(r"\b([Aa]) (?=[aeioAEIO]|u[nmlps](?!i[^nm])|hour|honest)")


def expand(template: str, rng: random.Random, slots: dict[str, str]) -> str:
    """One random sentence of ``template``. Raises KeyError for a slot that the chat lacks."""
    text = template
    while True:
        match = _INNERMOST.search(text)
        if match is None:
            break
        choice = rng.choice(match.group(1).split("|"))
        text = text[: match.start()] + choice + text[match.end() :]
    for _ in range(3):  # a slot's value may itself name a slot
        if "{" not in text:
            break
        text = _SLOT.sub(lambda m: _person(slots[m.group(1)], m.group(2) is not None), text)
    text = _BEFORE_PUNCTUATION.sub(r"\1", _SPACES.sub(" ", text)).strip(" ,")
    text = _ARTICLE.sub(r"\1n ", text)
    return _SENTENCE_START.sub(lambda m: m.group(1) + m.group(2).upper(), text)


def choose_slots(values: dict[str, tuple[str, ...]], rng: random.Random) -> dict[str, str]:
    """One value for every slot, some of which have alternatives of their own."""
    chosen: dict[str, str] = {}
    for name, options in values.items():
        value = rng.choice(options)
        while (match := _INNERMOST.search(value)) is not None:
            pick = rng.choice(match.group(1).split("|"))
            value = value[: match.start()] + pick + value[match.end() :]
        chosen[name] = value
    return chosen


def _person(value: str, assistant: bool) -> str:
    user_form, _, assistant_form = value.partition("||")
    return (assistant_form if assistant and assistant_form else user_form).strip()
