"""Prompts to write replies to: from published dialogues between people, or from files of one's own.

Three sets of dialogues are read as their authors publish them. The side whose replies matter for
social traits becomes the assistant:

=================  =========================  =================  =================
Source             File                       User               Assistant
=================  =========================  =================  =================
ESConv             ``ESConv.json`` or JSONL   the seeker         the supporter
CaSiNo             ``casino*.json``           each camper once   the other camper
CraigslistBargain  ``train.json`` and so on   the buyer          the seller
OffMyChest         CSV with ``full_text``     who confides       -
SMS and chat       XML or text, see below     each once          the other
=================  =========================  =================  =================

Of a dialogue only its words are used: offers, deals and their answers are dropped, no facts about the
item or the situation are added, and consecutive messages of one speaker become one. Of OffMyChest's labelled
sentences those are prompts in which somebody discloses something; a CSV without its labels gives every row.
Exports of SMS and chats, BOLT's among them, are described in :mod:`star_tl.data.exports`.

Files of one's own are JSONL lines ``{"prompt": "..."}`` or ``{"messages": [...]}`` (``"context"`` is
understood too, so that a file of contrastive pairs gives its contexts), or plain text, one prompt
a line. Their prompts are taken as they are, in both modes.
"""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from star_tl.data.chat import PROMPT_KEYS, Message, as_messages
from star_tl.data.exports import both_sides, is_folder, talk_of_xml, talks_of_folder, talks_of_text
from star_tl.errors import StarError, check_name, check_whole
from star_tl.files import JsonObject, parse_json, read_text, regular_file

MODES = ("single", "multi")
READABLE = (
    "ESConv, CaSiNo, CraigslistBargain or OffMyChest as published, an export of chats, JSONL with 'prompt', 'messages' "
    "or 'context' in every line, or .txt with one prompt a line"
)

# JSON, and not a prompt that begins with a remark in brackets.
_ARRAY, _OBJECT = re.compile(r'\s*\[\s*["{\]]'), re.compile(r'\s*\{\s*["}]')
# The published ESConv.json, its JSONL edition and FailedESConv.json name the two sides differently.
_ESCONV_ROLES = {
    **dict.fromkeys(("seeker", "usr", "speaker"), "user"),
    **dict.fromkeys(("supporter", "sys", "listener"), "assistant"),
}
_CRAIGSLIST_ROLES = {"buyer": "user", "seller": "assistant"}
FULL_TEXT = "full_text"  # the column of OffMyChest's sentences
_ESCAPED = re.compile(r"<U\+([0-9A-Fa-f]{4,8})>")
_CASINO_DEALS = {"Submit-Deal", "Accept-Deal", "Reject-Deal", "Walk-Away"}
_GREETINGS = re.compile(
    r"hi|hello|hey|hai|hiya|howdy|yo|greetings|there|good|nice|morning|afternoon|evening|goodevening|day|dear|friend|"
    r"sir|again|to|meet|how|how[\u2019']?s|how[\u2019']re|what[\u2019']s|up|are|it|things|going|you|u|doing|today"
)

Turn = tuple[str, str]


@dataclass(frozen=True)
class PromptItem:
    """A prompt, where it comes from, and what the person on the assistant's side replied, if anything."""

    id: str
    messages: tuple[Message, ...]
    source: str
    reference: str | None = None


def load_prompts(
    path: str | Path, mode: str = "single", limit: int | None = None, max_turns: int = 8, seed: int = 0
) -> list[PromptItem]:
    """The prompts of a file, in its order. The format is recognised from the content.

    Args:
        path: dialogues or prompts in one of the formats above.
        mode: ``"single"``, the user's first message that is not a mere greeting ("Hi there!", "Hello, how
            are you?"), or the last one where all are; or ``"multi"``, the dialogue up to one reply of the
            assistant's side that has at least two turns of the user before it. Dialogues without
            such a message or reply are left out.
        limit: only the first so many prompts.
        max_turns: in ``"multi"``, at most so many messages before the reply; they begin and end with the user.
        seed: which reply ``"multi"`` stops at: 0 takes the middle one, other numbers go on from there.

    Raises:
        StarError: unknown mode, limit or max_turns below 1, missing, empty or unreadable file, unknown
            format, a broken line, an id that is used twice.
    """
    check_name(mode, MODES, "mode")
    if limit is not None:
        check_whole(limit, "limit")
    check_whole(max_turns, "max_turns")
    check_whole(seed, "seed", least=None)

    path = Path(path) if is_folder(path) else regular_file(path, "prompts file")
    items: dict[str, PromptItem] = {}
    for place, record in _records(path):
        for item in _items(f"{path}, {place}", place.replace(" ", "-"), record, mode, max_turns, seed):
            if item.id in items:
                raise StarError(f"{path}, {place}: id {item.id!r} is used twice: give every prompt its own.")
            items[item.id] = item
            if len(items) == limit:
                return list(items.values())
    if not items:
        reason = f"it has no words of a user: give {READABLE}"
        if mode == "multi":
            reason = "no dialogue has a reply after two turns of the user: use mode 'single'"
        raise StarError(f"no prompts in {path}: {reason}.")
    return list(items.values())


def load_turns(path: str | Path, turns: int, limit: int | None = None) -> list[tuple[str, ...]]:
    """What the user's side says, turn by turn, in the dialogues of a file that have at least so many turns of it.

    Errors as in :func:`load_prompts`; and where no dialogue is so long.
    """
    path = Path(path) if is_folder(path) else regular_file(path, "prompts file")
    found: list[tuple[str, ...]] = []
    for place, record in _records(path):
        for view in _views(f"{path}, {place}", record):
            said = tuple(text for role, text in view if role == "user")[:turns]
            if len(said) == turns and len(found) != limit:
                found.append(said)
    if not found:
        raise StarError(f"No dialogue in {path} has {turns} turns of the user: ask for fewer, or give another file.")
    return found


def _views(where: str, record: object) -> list[list[Turn]]:
    """A record's dialogue, for each side that can be the user."""
    own: Any = next((record[key] for key in PROMPT_KEYS if key in record), None) if isinstance(record, dict) else record
    if own is not None:
        try:
            messages = as_messages(own)
        except StarError as error:
            raise StarError(f"{where}: {error}") from None
        except (KeyError, TypeError, AttributeError):
            raise StarError(f"{where}: not a dialogue or prompt: give {READABLE}.") from None
        return [_merged([(m["role"], m["content"]) for m in messages if m["role"] != "system"])]
    if not isinstance(record, dict):
        raise StarError(f"{where}: not a dialogue or prompt: give {READABLE}.")
    return _dialogue(where, record)


def _source(where: str, record: JsonObject) -> tuple[str, str, Callable[[JsonObject], Sequence[list[Turn]]]]:
    field = next((field for field in _SOURCES if field in record), None)
    if field is None:
        raise StarError(f"{where}: unknown format: give {READABLE}.")
    return _SOURCES[field]


def _dialogue(where: str, record: JsonObject) -> list[list[Turn]]:
    """A published dialogue, for each side that can be the user."""
    source, _, turns_of = _source(where, record)
    try:
        return [_merged(view) for view in turns_of(record)]
    except (KeyError, IndexError, TypeError, AttributeError) as error:
        reason = f"{error} is missing or unknown" if isinstance(error, KeyError) else "a field has another form"
        raise StarError(f"{where}: not a dialogue of {source} as published ({reason}): download it again.") from None


def _records(path: Path) -> Iterator[tuple[str, object]]:
    """What the file lists and where: JSON values, rows of a table, talks of an export, or lines of text."""
    if is_folder(path):
        yield from talks_of_folder(path)
        return
    text = _read(path)
    # Not splitlines(): JSON may hold line separators such as U+2028 inside a text.
    lines = [(i, line.strip()) for i, line in enumerate(text.split("\n"), start=1) if line.strip()]
    values: Iterable[tuple[str, object]]
    if _ARRAY.match(text):
        values = [(f"entry {i}", value) for i, value in enumerate(_json(path, 1, text), start=1)]
    elif _OBJECT.match(text):
        values = ((f"line {i}", _json(path, i, line)) for i, line in lines)
    elif path.suffix.lower() == ".xml":
        values = [("entry 1", talk_of_xml(text, str(path)))]
    elif path.suffix.lower() == ".csv":
        values = _rows(path, text)
    elif path.suffix.lower() in ("", ".txt") and (talks := talks_of_text(text)):
        values = [(f"talk {i}", talk) for i, talk in enumerate(talks, start=1)]
    elif path.suffix.lower() in ("", ".txt"):
        values = [(f"line {i}", line) for i, line in lines]
    else:  # any text could be prompts: without this a table would be taken for them, row by row
        raise StarError(f"{path}: unknown format: give {READABLE}.")
    for i, (place, value) in enumerate(values):
        if i == 0 and isinstance(value, dict) and "trait" in value and not any(k in value for k in PROMPT_KEYS):
            continue  # the header of a pairs file
        yield place, value


def _rows(path: Path, text: str) -> Iterator[tuple[str, object]]:
    """The rows of a table that has texts, without copies; where disclosure is labelled, those that have it."""
    reader = csv.DictReader(io.StringIO(text, newline=""))
    if FULL_TEXT not in (reader.fieldnames or ()):
        raise StarError(f"{path}: unknown format, for a table it has no column {FULL_TEXT}: give {READABLE}.")
    labels, seen = [name for name in reader.fieldnames or () if name.endswith("_disclosure")], set()
    try:
        for number, row in enumerate(reader, start=2):
            words = _ESCAPED.sub(lambda m: _sign(int(m[1], 16)), row[FULL_TEXT] or "").strip()
            if words and words not in seen and (not labels or "1" in {row[name] for name in labels}):
                seen.add(words)
                yield f"row {number}", row | {FULL_TEXT: words}
    except csv.Error as error:
        raise StarError(f"{path}: not a table in CSV ({error}): save it again.") from None


def _sign(code: int) -> str:
    """The sign that was meant: OffMyChest writes those of Windows by their number there."""
    if 0x80 <= code < 0xA0:
        return bytes([code]).decode("cp1252", "replace")
    return "\ufffd" if 0xD800 <= code < 0xE000 or code > 0x10FFFF else chr(code)


def _read(path: Path) -> str:
    text = read_text(path, "prompts file", "save it as UTF-8")
    if not text.strip():
        raise StarError(f"no prompts in {path}: the file is empty: give {READABLE}.")
    return text


def _json(path: Path, line: int, text: str) -> Any:
    """The value of a JSON text that begins in this line of the file."""
    return parse_json(text, str(path), "correct it (JSONL has one object a line) or download the file again", line)


def _items(where: str, name: str, record: object, mode: str, max_turns: int, seed: int) -> Iterator[PromptItem]:
    """The record's prompts, one for each side that can be the user. ``name`` is the id of a record without one."""
    if isinstance(record, str):
        record = {"prompt": record}
    if not isinstance(record, dict):
        raise StarError(f"{where}: not a dialogue or prompt: give {READABLE}.")
    if any(key in record for key in PROMPT_KEYS):
        own = _own_prompt(where, name, record)
        if own is not None:
            yield own
        return
    source, id_field, _ = _source(where, record)
    views = _dialogue(where, record)
    for view, turns in enumerate(views):
        span = _span(turns, mode, max_turns, seed)
        if span is None:
            continue
        start, end = span
        yield PromptItem(
            id=f"{source.lower().replace(' ', '-')}-{record.get(id_field, name)}{'-other-side' if view else ''}",
            messages=tuple({"role": role, "content": text} for role, text in turns[start:end]),
            source=source,
            reference=turns[end][1] if end < len(turns) else None,
        )


def _own_prompt(where: str, name: str, record: JsonObject) -> PromptItem | None:
    """A line of one's own format. A last message of the assistant is what its side replied."""
    prompt = next(record[key] for key in PROMPT_KEYS if key in record)
    if isinstance(prompt, str):
        prompt = [{"role": "user", "content": prompt}]
    try:
        if any(not m["content"].strip() for m in prompt if m["role"] != "system"):
            return None
        messages = as_messages(prompt)
    except (KeyError, TypeError, AttributeError):
        form = 'a text or a list of {"role", "content"} messages'
        raise StarError(f"{where}: the prompt has another form: write {form}.") from None
    except StarError as error:
        raise StarError(f"{where}: {error}") from None
    replied = messages[-1]["role"] == "assistant"
    history, reference = (messages[:-1], messages[-1]["content"]) if replied else (messages, None)
    if not history or history[-1]["role"] != "user":
        raise StarError(f"{where}: no user message before the reply: end the messages with one.")
    return PromptItem(str(record.get("id", name)), history, "prompts", reference)


def _esconv(record: JsonObject) -> list[list[Turn]]:
    return [[(_ESCONV_ROLES[t["speaker"]], t["text"] if "text" in t else t["content"]) for t in record["dialog"]]]


def _casino(record: JsonObject) -> list[list[Turn]]:
    said = [t for t in record["chat_logs"] if t["text"] not in _CASINO_DEALS]
    campers = dict.fromkeys(t["id"] for t in said)  # the two have the same part to play
    return [[("user" if t["id"] == camper else "assistant", t["text"]) for t in said] for camper in campers]


def _craigslist(record: JsonObject) -> list[list[Turn]]:
    roles = [_CRAIGSLIST_ROLES[kb["personal"]["Role"]] for kb in record["scenario"]["kbs"]]
    return [[(roles[e["agent"]], e["data"]) for e in record["events"] if e["action"] == "message"]]


# By the field that only this source has: its name, the field of a dialogue's id, and how to read a dialogue.
_SOURCES: dict[str, tuple[str, str, Callable[[JsonObject], Sequence[list[Turn]]]]] = {
    "dialog": ("ESConv", "dialogue_id", _esconv),  # published without ids: the place in the file stands in
    "chat_logs": ("CaSiNo", "dialogue_id", _casino),
    "events": ("CraigslistBargain", "uuid", _craigslist),
    FULL_TEXT: ("OffMyChest", "sentenceid", lambda row: [[("user", row[FULL_TEXT])]]),
    "talk": ("SMS and chat", "id", both_sides),
}


def _merged(turns: list[Turn]) -> list[Turn]:
    """Alternating turns: white space normalised, empty texts dropped, consecutive ones of a speaker joined."""
    merged: list[Turn] = []
    for role, text in turns:
        text = " ".join(text.split())
        if text and merged and merged[-1][0] == role:
            merged[-1] = (role, f"{merged[-1][1]} {text}")
        elif text:
            merged.append((role, text))
    return merged


def _span(turns: list[Turn], mode: str, max_turns: int, seed: int) -> tuple[int, int] | None:
    """Start and end of the prompt in alternating turns; the reply to it is the turn at the end."""
    users = [i for i, (role, _) in enumerate(turns) if role == "user"]
    if mode == "single":
        first = next((i for i in users if not _is_greeting(turns[i][1])), users[-1] if users else None)
        return None if first is None else (first, first + 1)
    replies = [i + 1 for i in users[1:] if i + 1 < len(turns)]
    if not replies:
        return None
    end = replies[(len(replies) // 2 + seed) % len(replies)]
    return next(i for i in users if i >= end - max_turns), end


def _is_greeting(text: str) -> bool:
    """Whether a message has only words of greeting, or no words, and so nothing that a reply could take up."""
    return all(_GREETINGS.fullmatch(word) for word in re.findall(r"[\w\u2019']+", text.lower()))
