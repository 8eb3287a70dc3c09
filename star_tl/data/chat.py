"""Prompts as chats: rendering through the tokenizer's chat template, and where each turn lies.

A prompt is a string (one user message) or a list of messages ``{"role": ..., "content": ...}``.
Rendering adds the beginning-of-text token exactly once, through the template or, where a tokenizer
has no template, by hand. Where a template has no system role, the system message opens the first
user message.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from star_tl.errors import StarError

Message = Mapping[str, str]
Prompt = str | Sequence[Message]
ROLES = ("system", "user", "assistant")


@dataclass(frozen=True)
class Span:
    """A named stretch of tokens, ``start`` inclusive, ``end`` exclusive."""

    name: str
    start: int
    end: int

    def __len__(self) -> int:
        return self.end - self.start


@dataclass(frozen=True)
class Rendered:
    """A prompt as token ids, with the spans of its turns.

    Spans are named ``system``, ``user 1``, ``assistant 1``, ``user 2`` …, and ``header`` for the
    assistant header that asks for the next reply. Together they cover all tokens.
    """

    ids: tuple[int, ...]
    spans: tuple[Span, ...]

    def __len__(self) -> int:
        return len(self.ids)

    def span_at(self, position: int) -> str:
        """Name of the span that holds ``position`` (from the start, or negative from the end)."""
        position %= len(self.ids)
        return next(s.name for s in self.spans if s.start <= position < s.end)


def as_messages(prompt: Prompt) -> tuple[dict[str, str], ...]:
    """The prompt as messages. Raises StarError where it is empty or a role is unknown."""
    if isinstance(prompt, str):
        prompt = [{"role": "user", "content": prompt}]
    try:
        messages = tuple({"role": m["role"], "content": m["content"]} for m in prompt)
        text = "".join(m["content"] for m in messages)
    except (KeyError, TypeError):
        raise StarError(
            'A prompt is neither a text nor messages: write [{"role": "user", "content": "..."}].'
        ) from None
    if not text.strip():
        raise StarError("A prompt is empty: give a text or at least one message with content.")
    for m in messages:
        if m["role"] not in ROLES:
            raise StarError(f"Unknown role {m['role']!r} in a prompt: use one of {', '.join(ROLES)}.")
    return messages


def with_instruction(prompt: Prompt, instruction: str | None) -> tuple[dict[str, str], ...]:
    """The prompt under a system instruction, added to a system message that is there already."""
    messages = as_messages(prompt)
    if not instruction:
        return messages
    if messages[0]["role"] == "system":
        first = {"role": "system", "content": f"{messages[0]['content']} {instruction}"}
        return (first, *messages[1:])
    return ({"role": "system", "content": instruction}, *messages)


def render(tokenizer: Any, prompt: Prompt) -> Rendered:
    """Token ids of the prompt up to and including the assistant header, and its spans.

    Raises:
        StarError: the chat template refuses the prompt.
    """
    pieces = _template_pieces(tokenizer, as_messages(prompt))
    text = "".join(piece for _, piece in pieces)
    encoded = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    ids, starts = list(encoded["input_ids"]), [start for start, _ in encoded["offset_mapping"]]
    bos = tokenizer.bos_token_id
    if bos is not None and ids[:1] != [bos]:
        ids, starts = [bos, *ids], [0, *starts]

    spans, at, begin = [], 0, 0
    for i, (name, piece) in enumerate(pieces):
        at += len(piece)
        last = i == len(pieces) - 1
        end = len(ids) if last else next((k for k in range(begin, len(ids)) if starts[k] >= at), len(ids))
        if end > begin:
            spans.append(Span(name, begin, end))
        begin = end
    return Rendered(tuple(ids), tuple(spans))


SPANS = ("system", "user turn", "header")


def span_positions(tokenizer: Any, prompt: Prompt, name: str) -> tuple[int, ...]:
    """Positions, counted from the prompt's end, of its system message, last user turn or assistant header.

    Raises:
        StarError: an unknown name, or a prompt without such a span.
    """
    if name not in SPANS:
        raise StarError(f"Unknown span {name!r}: use one of {', '.join(SPANS)}.")
    rendered = render(tokenizer, prompt)
    span = span_named(rendered, name)
    if span is None:
        raise StarError(f"A prompt has no span {name!r}: it has {', '.join(s.name for s in rendered.spans)}.")
    return tuple(range(span.start - len(rendered), span.end - len(rendered)))


def span_named(rendered: Rendered, name: str) -> Span | None:
    """The span of one of SPANS; the last, where there are several, and None where there is none."""
    wanted = "user" if name == "user turn" else name
    return next((s for s in reversed(rendered.spans) if s.name.split()[0] == wanted), None)


def resolve_span(tokenizer: Any, prompt: Prompt, positions: Any) -> Any:
    """The positions that a span of SPANS has in this prompt; whatever else ``positions`` is stays as it is.

    Raises:
        StarError: a prompt without such a span.
    """
    return span_positions(tokenizer, prompt, positions) if positions in SPANS else positions


def reply_ids(tokenizer: Any, reply: str) -> tuple[int, ...]:
    """Token ids of a reply as it follows an assistant header, without the end of turn."""
    text = reply.strip() if tokenizer.chat_template else " " + reply.strip()
    return tuple(tokenizer(text, add_special_tokens=False)["input_ids"])


def stop_ids(tokenizer: Any) -> tuple[int, ...]:
    """Tokens that end an assistant's turn: the tokenizer's end and the usual end-of-turn tokens."""
    known = ("<|eot_id|>", "<|eom_id|>", "<|end_of_text|>", "<|im_end|>", "<end_of_turn>", "<|end|>", "</s>")
    vocabulary = tokenizer.get_vocab()
    ids = {vocabulary[t] for t in known if t in vocabulary}
    if tokenizer.eos_token_id is not None:
        ids.add(tokenizer.eos_token_id)
    return tuple(sorted(ids))


def template_hash(tokenizer: Any) -> str:
    """Identifies the chat template, because a vector belongs to the positions that it makes."""
    return hashlib.sha256((tokenizer.chat_template or "plain").encode()).hexdigest()[:16]


def _template_pieces(tokenizer: Any, messages: tuple[dict[str, str], ...]) -> list[tuple[str, str]]:
    if not tokenizer.chat_template:
        return _plain_pieces(messages)

    messages = _without_refused_system(tokenizer, messages)

    def text(upto: int, header: bool) -> str:
        return tokenizer.apply_chat_template(list(messages[:upto]), tokenize=False, add_generation_prompt=header)

    try:
        full, body = text(len(messages), True), text(len(messages), False)
    except Exception as error:
        reason = " ".join(str(error).split())
        raise StarError(
            f"The chat template refuses this prompt ({reason}): let user and assistant take turns, the user first."
        ) from None
    if not full.startswith(body):
        return [("prompt", full)]
    names = _turn_names(messages)
    pieces, done = [], ""
    for k, name in enumerate(names, start=1):
        try:
            upto = text(k, False)
        except Exception:  # some templates refuse a chat that is only a system message
            continue
        if not upto.startswith(done):
            return [("prompt", body), ("header", full[len(body) :])]
        pieces.append((name, upto[len(done) :]))
        done = upto
    return [*pieces, ("header", full[len(done) :])]


def _without_refused_system(tokenizer: Any, messages: tuple[dict[str, str], ...]) -> tuple[dict[str, str], ...]:
    """The messages; a system message that the template refuses or drops opens the first user message instead."""
    first, *rest = messages
    if first["role"] != "system":
        return messages
    system = first["content"].strip()
    try:
        if system in tokenizer.apply_chat_template(list(messages), tokenize=False):
            return messages
    except Exception:  # raise_exception('System role not supported'), as Gemma's does
        pass
    if rest and rest[0]["role"] == "user":
        return ({"role": "user", "content": f"{system}\n\n{rest[0]['content']}"}, *rest[1:])
    return ({"role": "user", "content": system}, *rest)


def _turn_names(messages: tuple[dict[str, str], ...]) -> list[str]:
    counts = {"user": 0, "assistant": 0}
    names = []
    for m in messages:
        if m["role"] == "system":
            names.append("system")
        else:
            counts[m["role"]] += 1
            names.append(f"{m['role']} {counts[m['role']]}")
    return names


def _plain_pieces(messages: tuple[dict[str, str], ...]) -> list[tuple[str, str]]:
    lead = {"system": "", "user": "User: ", "assistant": "Assistant: "}
    pieces = [
        (name, f"{lead[m['role']]}{m['content'].strip()}\n")
        for name, m in zip(_turn_names(messages), messages, strict=True)
    ]
    return [*pieces, ("header", "Assistant:")]
