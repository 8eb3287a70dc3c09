"""A chat template's text cut into turns, and whether the template can be used at all."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Protocol

from star_tl.data.tokenizer import Tokenizer
from star_tl.errors import StarError, shown

Message = Mapping[str, str]

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


def template_pieces(
    tokenizer: Tokenizer, template: str, arguments: Mapping[str, object], messages: Sequence[Message]
) -> list[tuple[str, str]]:
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
            **arguments,
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
    begins = _begin(full, places[first], messages[first])
    if messages[first]["role"] != "system" and begins is not None:
        own = _opening(tried, marks, messages[first]["role"])
        lead = full[:begins].removesuffix(own) if own else full[:begins]
        if lead.removeprefix(tokenizer.bos_token or "").strip() and len(lead) < begins:
            cuts.append(("system", len(lead)))  # the template's own
    for k, following in zip(order, [*order[1:], None], strict=True):
        at = _end_of_turn(full, places[k], messages[k], closing)
        if following is None:
            at = header if header < len(full) or at is None else at
        elif at is None:  # unknown markup: it is this turn's as far as the next content
            at = max(places[k], _begin(full, places[following], messages[following]) or 0)
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


def _begin(full: str, end: int, message: Message) -> int | None:
    """Where the content begins that ends at ``end``; None where the template changes it."""
    for content in (message["content"].rstrip(), message["content"].strip()):  # a template may trim it
        if full.startswith(content, end - len(content)):
            return end - len(content)
    return None


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


def plain_pieces(messages: Sequence[Message]) -> list[tuple[str, str]]:
    """Turns of plain text, where a tokenizer has no template."""
    lead = {"system": "", "user": "User: ", "assistant": "Assistant: "}
    pieces = [
        (name, f"{lead[m['role']]}{m['content'].strip()}\n")
        for name, m in zip(_turn_names(messages), messages, strict=True)
    ]
    return [*pieces, ("header", "Assistant:")]
