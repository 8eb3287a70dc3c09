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
import re
import subprocess
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import islice
from os import PathLike
from typing import Any, Protocol, TypeVar

from star_tl.data.tokenizer import Tokenizer
from star_tl.errors import StarError, check_text, quoted, shown

Message = Mapping[str, str]
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
        first = {"role": "system", "content": f"{messages[0]['content']} {instruction}"}
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
    pieces = _template_pieces(tokenizer, template, messages) if template else _plain_pieces(messages)
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


# Renders small chats with little memory and time. What is no fault of size or time is said where the template is used.
_TRIAL = """
import datetime, json, sys
import jinja2, jinja2.sandbox
try:
    import resource
    resource.setrlimit(resource.RLIMIT_AS, (1 << 30, 1 << 30))
    resource.setrlimit(resource.RLIMIT_CPU, (5, 5))
except (ImportError, ValueError, OSError):
    pass
text, chats = json.load(sys.stdin)
def refuse(message):
    raise jinja2.TemplateError(message)
env = jinja2.sandbox.ImmutableSandboxedEnvironment(
    trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"]
)
env.filters["tojson"] = json.dumps
env.globals.update(raise_exception=refuse, strftime_now=lambda form: datetime.datetime.now().strftime(form))
for chat in chats:
    try:
        made = env.from_string(text).render(messages=chat, add_generation_prompt=True, bos_token="", eos_token="")
    except MemoryError:
        sys.exit(3)
    except Exception:
        continue
    if len(made) > 1_000_000:
        sys.exit(3)
"""


def check_template(tokenizer: Tokenizer) -> None:
    """Raises StarError where a template makes gigabytes of a few words, or does not come to an end.

    It is tried in a process of its own, once: a template is a program from outside, and nothing else can stop one.
    """
    held = tokenizer.chat_template
    named = held.values() if isinstance(held, Mapping) else [held]
    for template in named:
        if isinstance(template, str) and not _comes_to_an_end(template):
            raise StarError(
                "The chat template does not end, or fills the memory, on a chat of a few words: correct chat_template "
                "in the tokenizer's folder, or name another checkpoint."
            )


@lru_cache(maxsize=64)
def _comes_to_an_end(template: str) -> bool:
    user, reply = {"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}
    chats = [[user], [{"role": "system", "content": "c"}, user], [user, reply, user]]
    try:
        tried = subprocess.run(
            [sys.executable, "-I", "-c", _TRIAL], input=json.dumps([template, chats]).encode(), timeout=120, check=False
        )
    except subprocess.TimeoutExpired:
        return False
    return tried.returncode in (0, 1)  # 1 where the trial itself failed, which says nothing


def _arguments(tokenizer: Tokenizer) -> dict[str, object]:
    return {k: v for k, v in chat_format(tokenizer).template_args.items() if k != "chat_template"}


def _template_pieces(tokenizer: Tokenizer, template: str, messages: Sequence[Message]) -> list[tuple[str, str]]:
    """The rendered text cut into turns: where each content ends, and the markup that the template closes its turn with.

    Contents are found by marks that are put behind them, in a rendering of its own. Renderings of the first turns only
    would not do: templates write what stood before otherwise than what comes last, or not at all.
    """

    def text(chat: Sequence[Message], header: bool = False) -> str:
        return tokenizer.apply_chat_template(
            [dict(m) for m in chat],
            chat_template=template,
            tokenize=False,
            add_generation_prompt=header,
            **_arguments(tokenizer),
        )

    def tried(chat: Sequence[Message], header: bool = False) -> str:
        try:
            return text(chat, header)
        except Exception:  # a template may refuse any chat, and a part of one sooner
            return ""

    messages = _without_refused_system(tried, messages)
    full = _rendered(text, messages)
    body = tried(messages)
    header = len(body) if body and full.startswith(body) else len(full)
    marks = _Marks.beside(full)
    places = marks.places(tried(marks.put(messages), True), full)
    if places is None:
        whole = [("prompt", full[:header]), ("header", full[header:])]
        return [(name, piece) for name, piece in whole if piece]

    closing = {m["role"]: _closing(tried, marks, m["role"]) for m in messages}
    names = _turn_names(messages)
    cuts: list[tuple[str, int]] = []
    order = sorted(places, key=places.__getitem__)
    first = order[0]
    content = messages[first]["content"].strip()
    begins = places[first] - len(content)
    if messages[first]["role"] != "system" and full.startswith(content, begins):
        own = _opening(tried, marks, messages[first]["role"])
        lead = full[:begins].removesuffix(own) if own else full[:begins]
        if lead.removeprefix(tokenizer.bos_token or "").strip() and len(lead) < begins:
            cuts.append(("system", len(lead)))  # the template's own
    for k, following in zip(order, [*order[1:], None], strict=True):
        at = _end_of_turn(full, places[k], messages[k], closing)
        if following is None:
            at = header if header < len(full) or at is None else at
        elif at is None:  # unknown markup: it is this turn's as far as the next content
            next_content = messages[following]["content"].strip()
            at = places[following] - len(next_content)
            at = at if at >= places[k] and full.startswith(next_content, at) else places[k]
        cuts.append((names[k], at))
    cuts.append(("header", len(full)))
    pieces, done = [], 0
    for name, at in cuts:
        if at > done:
            pieces.append((name, full[done:at]))
        done = max(done, at)
    return pieces


class _Renders(Protocol):
    """What the template makes of a chat, with the header of the next reply or without."""

    def __call__(self, chat: Sequence[Message], header: bool = False) -> str: ...


def _rendered(text: _Renders, messages: Sequence[Message]) -> str:
    from jinja2 import TemplateSyntaxError

    try:
        return text(messages, True)
    except TemplateSyntaxError as error:
        reason = shown(str(error))
        raise StarError(
            f"The chat template is broken ({reason}): correct chat_template in the tokenizer's folder."
        ) from None
    except Exception as error:
        reason = " ".join(str(error).split())[:200]
        raise StarError(
            f"The chat template refuses this prompt ({reason}): let user and assistant take turns, the user first."
        ) from None


@dataclass(frozen=True)
class _Marks:
    """Marks put behind the contents of messages, of a character that stands nowhere else."""

    sign: str

    @classmethod
    def beside(cls, text: str) -> _Marks:
        return cls(next(c for c in map(chr, range(0xE000, 0xF8FF)) if c not in text))

    def put(self, messages: Sequence[Message]) -> list[dict[str, str]]:
        marked = []
        for k, m in enumerate(messages):
            kept = m["content"].rstrip()  # white space stays outside, where a template can trim it
            marked.append({"role": m["role"], "content": f"{kept}{self.sign}{k}{self.sign}{m['content'][len(kept) :]}"})
        return marked

    def places(self, marked: str, plain: str) -> dict[int, int] | None:
        """Where in ``plain`` each marked content ends; None where the marks changed more than themselves."""
        found, at, text = {}, 0, ""
        for piece, k in re.findall(rf"([^{self.sign}]*)(?:{self.sign}(\d+){self.sign}|$)", marked):
            text, at = text + piece, at + len(piece)
            if k:
                found[int(k)] = at
        return found if text == plain and found else None


def _closing(tried: _Renders, marks: _Marks, role: str) -> str | None:
    """What the template writes behind the content of a turn of this role; None where it does not show it."""
    chat = {
        "system": [{"role": "system", "content": "a"}],
        "user": [{"role": "user", "content": "a"}],
        "assistant": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}],
    }[role]
    _, mark, after = tried(marks.put(chat)).rpartition(f"{marks.sign}{len(chat) - 1}{marks.sign}")
    return after if mark else None


def _opening(tried: _Renders, marks: _Marks, role: str) -> str:
    """What the template writes before the content of a turn of this role, where another turn precedes it."""
    roles = ["user", "assistant", "user"] if role == "user" else ["user", "assistant"]
    chat = [{"role": r, "content": "a"} for r in roles]
    found = tried(marks.put(chat)).rpartition(f"{marks.sign}{len(chat) - 1}{marks.sign}")[0]
    between = found.rpartition(f"{marks.sign}{len(chat) - 2}{marks.sign}")[2]
    return between.removeprefix(_closing(tried, marks, roles[-2]) or "").removesuffix("a")


def _end_of_turn(full: str, at: int, message: Message, closing: Mapping[str, str | None]) -> int | None:
    """Where the turn ends whose content ends at ``at``: behind its role's closing, or behind another's."""
    space = message["content"][len(message["content"].rstrip()) :]
    others = sorted((c for c in closing.values() if c), key=len, reverse=True)
    for close in (closing[message["role"]], *others):
        for kept in (space, ""):  # a template may trim it
            if close is not None and full.startswith(kept + close, at):
                return at + len(kept + close)
    return None


def _without_refused_system(tried: _Renders, messages: Sequence[Message]) -> Sequence[Message]:
    """The messages; a system message that the template refuses or drops opens the first user message instead."""
    first, *rest = messages
    if first["role"] != "system":
        return messages
    system, marks = first["content"].strip(), _Marks.beside("".join(m["content"] for m in messages))
    if f"{marks.sign}0{marks.sign}" in tried(marks.put(messages), True):
        return messages
    if rest and rest[0]["role"] == "user":
        return ({"role": "user", "content": f"{system}\n\n{rest[0]['content']}"}, *rest[1:])
    return ({"role": "user", "content": system}, *rest)


def _turn_names(messages: Sequence[Message]) -> list[str]:
    counts = {"user": 0, "assistant": 0}
    names = []
    for m in messages:
        if m["role"] == "system":
            names.append("system")
        else:
            counts[m["role"]] += 1
            names.append(f"{m['role']} {counts[m['role']]}")
    return names


def _plain_pieces(messages: Sequence[Message]) -> list[tuple[str, str]]:
    lead = {"system": "", "user": "User: ", "assistant": "Assistant: "}
    pieces = [
        (name, f"{lead[m['role']]}{m['content'].strip()}\n")
        for name, m in zip(_turn_names(messages), messages, strict=True)
    ]
    return [*pieces, ("header", "Assistant:")]
