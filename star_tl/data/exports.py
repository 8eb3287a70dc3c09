"""Exports of SMS and chats, for whoever has them: nothing of such a corpus comes with this package.

**XML**, a talk in each file, or a folder of such files, in the form of LDC's BOLT SMS/Chat corpora (LDC2018T19,
LDC2018T15, LDC2017T07)::

    <conversation id="..." medium="...">
      <messages>
        <message id="m0000" participant="1"> <body>Are you home?</body> </message>
        ...

The elements ``messages/message/body`` and the message's ``id`` are as public programs that read the corpus take them;
the corpus itself was not at hand. So who speaks is looked for under several names (PARTICIPANT).

**Plain text**: a line ``NAME: message`` each, talks apart by an empty line, two names in every talk. A time in square
brackets may stand before the name. A line that begins with white space goes on with the message before.

Only talks of two are read; both have the same part to play, so that each is the user once.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from xml.etree import ElementTree

from star_tl.errors import StarError
from star_tl.files import JsonObject, read_text

PARTICIPANT = ("participant", "speaker", "author", "sender", "from", "user")
AS_BOLT = "give an export whose messages have a body and a participant, as BOLT's have"
_LINE = re.compile(r"(?:\[[^\]\n]{1,40}\]\s*)?(?P<who>[^\s:][^:\n]{0,39}):\s+(?P<text>\S.*)")


def is_folder(path: object) -> bool:
    """Whether it names a folder, in which each file is a talk."""
    try:
        return Path(path).is_dir() if isinstance(path, (str, os.PathLike)) else False
    except (OSError, ValueError):
        return False


def talks_of_folder(path: str | Path) -> Iterator[tuple[str, JsonObject]]:
    """The talks of two in a folder's XML files, in the order of their names.

    Raises:
        StarError: the folder has no XML file, or one is damaged.
    """
    files = sorted(Path(path).glob("*.xml"))
    if not files:
        raise StarError(f"{path} is a folder: name one file in it, or fill it with talks in XML.")
    for file in files:
        yield file.name, talk_of_xml(read_text(file, "prompts file"), str(file), file.stem)


def talk_of_xml(text: str, where: str, name: str = "1") -> JsonObject:
    """``{"id", "talk": [(who, what), ...]}`` of one talk.

    Raises:
        StarError: no XML, one that declares entities of its own, or without such messages.
    """
    if "<!ENTITY" in text:
        raise StarError(f"{where} declares entities, which may unfold without end: write their text in place of them.")
    try:
        root = ElementTree.fromstring(text)
    except ElementTree.ParseError as error:
        raise StarError(f"{where}: not valid XML ({error}): correct it or export it again.") from None
    said = []
    for message in root.iter("message"):
        who = next((message.attrib[key] for key in PARTICIPANT if key in message.attrib), None)
        body = message.find("body")
        if who is None or body is None:
            raise StarError(f"{where}: a message without a body or without who wrote it: {AS_BOLT}.")
        said.append((who, "".join(body.itertext())))
    if not said:
        raise StarError(f"{where} has no messages: {AS_BOLT}.")
    return {"id": root.attrib.get("id", name), "talk": said}


def talks_of_text(text: str) -> list[JsonObject]:
    """The talks of a text in which every line is of a speaker and every talk of two; else none, for it is another."""
    talks = []
    for block in re.split(r"\n\s*\n", text.strip("\n")):
        said: list[tuple[str, str]] = []
        for line in block.split("\n"):
            match = _LINE.fullmatch(line.rstrip())
            if match is None and not (said and line[:1].isspace()):
                return []
            if match is None:
                said[-1] = (said[-1][0], f"{said[-1][1]} {line.strip()}")
            else:
                said.append((match["who"], match["text"]))
        if len({who for who, _ in said}) != 2:
            return []
        talks.append({"talk": said})
    return talks


def both_sides(record: JsonObject) -> Sequence[list[tuple[str, str]]]:
    """The talk with each of the two as the user; none where it has more or fewer."""
    said = record["talk"]
    people = dict.fromkeys(who for who, _ in said)
    if len(people) != 2:
        return []
    return [[("user" if who == one else "assistant", text) for who, text in said] for one in people]
