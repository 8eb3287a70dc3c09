"""Prompts as chats: rendering through the tokenizer's chat template, and where each turn lies.

A prompt is a string (one user message) or a list of messages ``{"role": ..., "content": ...}``. Its token ids are those
of ``tokenizer.apply_chat_template(messages, add_generation_prompt=True)``, nothing added; only where a tokenizer has no
template is the beginning-of-text token put before turns of plain text. Where a template has no system role, the
system message opens the first user message.

What a chat format needs beside the template (its arguments, such as ``enable_thinking``, and the tokens that end a
turn) travels with the tokenizer; see :func:`set_chat_format`.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import islice
from os import PathLike
from typing import Any, TypeVar

from star_tl.data.template import Message, plain_pieces, template_pieces
from star_tl.data.tokenizer import Tokenizer
from star_tl.errors import StarError, check_text, quoted

Prompt = str | Sequence[Message]
ROLES = ("system", "user", "assistant")
MOST_PROMPTS = 1_000_000  # a generator without an end is refused beyond

Positions = TypeVar("Positions")


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
    assistant header that asks for the next reply. A system turn that the template adds by itself is ``system`` too.
    Together they cover all tokens.
    """

    ids: tuple[int, ...]
    spans: tuple[Span, ...]

    def __len__(self) -> int:
        return len(self.ids)

    def span_at(self, position: int) -> str:
        """Name of the span that holds ``position`` (from the start, or negative from the end)."""
        position %= len(self.ids)
        return next(s.name for s in self.spans if s.start <= position < s.end)


@dataclass(frozen=True)
class ChatFormat:
    """What belongs to a tokenizer's chat format beside the template.

    ``template_args`` are passed to the template by name; ``chat_template`` among them names one of several templates.
    ``stop_ids`` end a turn, beside those that the tokenizer knows by itself.
    """

    template_args: Mapping[str, object] = field(default_factory=dict)
    stop_ids: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        if not isinstance(self.template_args, Mapping) or not all(isinstance(k, str) for k in self.template_args):
            raise StarError(f"template_args is {quoted(self.template_args)}: give names and values, as a dict.")
        for key in _OURS & set(self.template_args):
            raise StarError(f"template_args holds {key!r}, which star_tl sets by itself: leave it out.")
        if not all(isinstance(i, int) and not isinstance(i, bool) and i >= 0 for i in self.stop_ids):
            raise StarError(f"The end-of-turn tokens are {quoted(self.stop_ids)}: give token ids, 0 or more.")


_OURS = {"conversation", "tokenize", "add_generation_prompt", "continue_final_message", "return_dict"}


def set_chat_format(
    tokenizer: Tokenizer,
    eos: int | list[int] | tuple[int, ...] | None = None,
    template_args: Mapping[str, object] | None = None,
) -> None:
    """Give a tokenizer the rest of its chat format; what it held of one before is replaced.

    Args:
        tokenizer: of a model.
        eos: ``eos_token_id`` of the model's generation config: one id, several, or None.
        template_args: passed to the chat template by name, e.g. ``{"enable_thinking": False}``;
            ``{"chat_template": "rag"}`` chooses among several templates by name.

    Raises:
        StarError: ``eos`` is not made of token ids, or ``template_args`` of names and values, or it names a template
            that the tokenizer does not have.
    """
    ids = () if eos is None else tuple(eos) if isinstance(eos, (list, tuple)) else (eos,)
    tokenizer.chat_format = ChatFormat({} if template_args is None else template_args, ids)
    _template(tokenizer)


def chat_format(tokenizer: object) -> ChatFormat:
    """What :func:`set_chat_format` gave the tokenizer."""
    return getattr(tokenizer, "chat_format", None) or ChatFormat()


def as_messages(prompt: Prompt) -> tuple[dict[str, str], ...]:
    """The prompt as messages. Raises StarError where it is empty or a role is unknown."""
    if isinstance(prompt, str):
        prompt = [{"role": "user", "content": str(prompt)}]
    try:
        messages = tuple({"role": m["role"], "content": m["content"]} for m in prompt)
        text = "".join(m["content"] for m in messages)
    except (KeyError, TypeError, IndexError, ValueError, AttributeError):
        raise StarError(
            'A prompt is neither a text nor messages: write [{"role": "user", "content": "..."}].'
        ) from None
    if not text.strip():
        raise StarError("A prompt is empty: give a text or at least one message with content.")
    check_text(text, "A prompt")
    for m in messages:
        if m["role"] not in ROLES:
            raise StarError(f"Unknown role {quoted(m['role'])} in a prompt: use one of {', '.join(ROLES)}.")
    return messages


def as_prompts(prompts: Any) -> list[tuple[dict[str, str], ...]]:
    """Prompts as chats, whatever they come in.

    Args:
        prompts: a list, tuple, generator, array or column of texts or chats; what :func:`star_tl.load_prompts` returns;
            or rows (a DataFrame, a HuggingFace dataset, a list of dicts) with ``prompt``, ``messages`` or ``context``.

    Raises:
        StarError: no prompts, one text or one chat instead of several, token ids, a path, or something else; or one of
            them is empty or has an unknown role.
    """
    if isinstance(prompts, str):
        raise StarError("prompts is one text: give a list of prompts.")
    if isinstance(prompts, PathLike):
        raise StarError("prompts is a path: read it with star_tl.load_prompts first.")
    if isinstance(prompts, Mapping):
        kind = "one message" if "role" in prompts else "a dict"
        raise StarError(f"prompts is {kind}: give a list of prompts, each a text or a list of messages.")
    if hasattr(prompts, "columns") and hasattr(prompts, "to_dict"):
        if not any(key in prompts.columns for key in PROMPT_KEYS):
            raise StarError(f"prompts is a table without a column {_KEYS}: pass one column, as in frame['text'].")
        prompts = prompts.to_dict("records")
    try:
        given = list(islice(prompts, MOST_PROMPTS + 1))
    except TypeError:
        raise StarError(f"prompts is {quoted(prompts)}: give a list of prompts, each a text or messages.") from None
    if not given:
        raise StarError("There are no prompts: give at least one.")
    if len(given) > MOST_PROMPTS:
        raise StarError(f"There are more than {MOST_PROMPTS:,} prompts: give fewer at a time.")
    if all(isinstance(p, Mapping) and "role" in p for p in given):
        raise StarError("prompts is one chat: give a list of chats, [chat].")
    if _is_ids(given) or any(_is_ids(p) for p in given):
        raise StarError("prompts holds token ids: give texts or chats, as tokenizer.decode(ids) makes them.")
    chats = []
    for i, prompt in enumerate(given):
        try:
            chats.append(as_messages(_own(prompt)))
        except StarError as error:
            raise StarError(f"Prompt {i}: {str(error)[0].lower()}{str(error)[1:]}") from None
    return chats


def distinct_prompts(prompts: Any) -> list[tuple[dict[str, str], ...]]:
    """:func:`as_prompts`, each once: the same prompt gets the same replies, and they are no evidence a second time."""
    once: dict[object, tuple[dict[str, str], ...]] = {}
    for chat in as_prompts(prompts):
        once.setdefault(tuple(tuple(turn.items()) for turn in chat), chat)
    return list(once.values())


PROMPT_KEYS = ("prompt", "messages", "context")
_KEYS = " or ".join(repr(k) for k in PROMPT_KEYS)


def _own(prompt: Any) -> Any:
    """A prompt out of a row, or out of what has it with more beside."""
    if isinstance(prompt, Mapping):
        return next((prompt[key] for key in PROMPT_KEYS if key in prompt), prompt)
    return getattr(prompt, "messages", prompt)


def _is_ids(values: object) -> bool:
    """Whether these are numbers; tensors and arrays of them included."""
    if isinstance(values, (str, bytes, Mapping)) or not isinstance(values, Iterable):
        return False
    if kind := str(getattr(values, "dtype", "")):
        return "int" in kind
    first = next(iter(values), None) if isinstance(values, Sequence) else None
    return isinstance(first, int) or (not isinstance(first, str) and hasattr(first, "__index__"))


def with_instruction(prompt: Prompt, instruction: str | None) -> tuple[dict[str, str], ...]:
    """The prompt under a system instruction, added to a system message that is there already."""
    messages = as_messages(prompt)
    if not instruction:
        return messages
    if messages[0]["role"] == "system":
        held = messages[0]["content"]
        first = {"role": "system", "content": f"{held} {instruction}" if held.strip() else instruction}
        return (first, *messages[1:])
    return ({"role": "system", "content": instruction}, *messages)


def render(tokenizer: Tokenizer, prompt: Prompt) -> Rendered:
    """Token ids of the prompt up to and including the assistant header, and its spans.

    Raises:
        StarError: the chat template refuses the prompt, or is broken.
    """
    written = tuple((m["role"], m["content"]) for m in as_messages(prompt))
    arguments = json.dumps(_arguments(tokenizer), sort_keys=True, default=repr)
    return _kept(tokenizer, _template(tokenizer), arguments, len(tokenizer), tokenizer.bos_token_id, written)


@lru_cache(maxsize=4096)  # a prompt is asked for again with every condition, and a template takes milliseconds
def _kept(
    tokenizer: Tokenizer,
    template: str | None,
    arguments: str,
    words: int,
    bos: int | None,
    written: tuple[tuple[str, str], ...],
) -> Rendered:
    """Rendered once for all that decides how it reads."""
    messages = tuple({"role": role, "content": content} for role, content in written)
    pieces = (
        template_pieces(tokenizer, template, _arguments(tokenizer), messages) if template else plain_pieces(messages)
    )
    text = "".join(piece for _, piece in pieces)
    try:
        encoded = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    except NotImplementedError:
        raise StarError(
            "This tokenizer does not say where its tokens begin: load a fast one (tokenizer.json)."
        ) from None
    ids, starts = list(encoded["input_ids"]), [start for start, _ in encoded["offset_mapping"]]
    if not template and bos is not None and ids[:1] != [bos]:
        ids, starts = [bos, *ids], [0, *starts]
    if not ids:
        raise StarError("The chat template makes no tokens of this prompt: correct chat_template.")

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


def span_positions(tokenizer: Tokenizer, prompt: Prompt, name: str) -> tuple[int, ...]:
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


def resolve_span(tokenizer: Tokenizer, prompt: Prompt, positions: Positions) -> Positions | tuple[int, ...]:
    """The positions that a span of SPANS has in this prompt; whatever else ``positions`` is stays as it is.

    Raises:
        StarError: a prompt without such a span.
    """
    return span_positions(tokenizer, prompt, positions) if positions in SPANS else positions


def reply_ids(tokenizer: Tokenizer, reply: str) -> tuple[int, ...]:
    """Token ids of a reply as it follows an assistant header, without the end of turn."""
    text = reply.strip() if tokenizer.chat_template else " " + reply.strip()
    return tuple(tokenizer(text, add_special_tokens=False)["input_ids"])


def stop_ids(tokenizer: Tokenizer) -> tuple[int, ...]:
    """Tokens that end an assistant's turn: the tokenizer's end, the usual end-of-turn tokens, and the chat format's."""
    known = ("<|eot_id|>", "<|eom_id|>", "<|end_of_text|>", "<|im_end|>", "<end_of_turn>", "<|end|>", "</s>")
    found = {token: tokenizer.convert_tokens_to_ids(token) for token in known}  # an unknown one's is the unknown token
    ids = {i for token, i in found.items() if i is not None and tokenizer.convert_ids_to_tokens(i) == token}
    ids.update(chat_format(tokenizer).stop_ids)
    if tokenizer.eos_token_id is not None:
        ids.add(tokenizer.eos_token_id)
    return tuple(sorted(ids))


def template_hash(tokenizer: Tokenizer) -> str:
    """Identifies the chat template and its arguments, because a vector belongs to the positions that they make."""
    text = _template(tokenizer) or "plain"
    if more := _arguments(tokenizer):
        text += json.dumps(more, sort_keys=True, default=repr)
    return hashlib.sha256(text.encode(errors="surrogatepass")).hexdigest()[:16]


def _template(tokenizer: Tokenizer) -> str | None:
    """The template in use: of several the one that the chat format names, else the default."""
    held = tokenizer.chat_template
    wanted = chat_format(tokenizer).template_args.get("chat_template")
    if isinstance(held, (list, tuple)) and all(isinstance(t, Mapping) and {"name", "template"} <= set(t) for t in held):
        held = {t["name"]: t["template"] for t in held}
    if isinstance(held, Mapping) and held:
        if (name := wanted or "default") not in held:
            known = ", ".join(sorted(held))
            raise StarError(
                f"There is no chat template {name!r}: choose by template_args={{'chat_template': one of {known}}}."
            )
        return held[name]
    if wanted is not None:
        raise StarError(f"There is no chat template {wanted!r}: this tokenizer has {'one' if held else 'none'}.")
    return held if isinstance(held, str) and held else None


def _arguments(tokenizer: Tokenizer) -> dict[str, object]:
    return {k: v for k, v in chat_format(tokenizer).template_args.items() if k != "chat_template"}
