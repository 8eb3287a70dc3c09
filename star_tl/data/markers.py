r"""Markers: regular expressions that find a trait in words of any script, in emoji and in punctuation.

A marker begins and ends at a word's edge. Scripts that write words without spaces between them (Chinese, Japanese,
Thai and their like), and Korean, whose endings cling to the word, have no edges to look for. Case, the shape of an
apostrophe, width and composition of letters (Unicode NFKC) and variation selectors make no difference.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence

import regex

from star_tl.errors import StarError

SECONDS = 1.0  # a reply takes microseconds; a pattern that backtracks without end takes centuries
_UNSPACED = r"\p{Han}\p{Hiragana}\p{Katakana}\p{Hangul}\p{Thai}\p{Lao}\p{Khmer}\p{Myanmar}"
_LETTER = rf"(?:(?![{_UNSPACED}ー_])\w)"  # what is _emphasized_ in Markdown is a word
_BEFORE, _AFTER = rf"(?:(?<!{_LETTER})|(?!{_LETTER}))", rf"(?:(?!{_LETTER})|(?<!{_LETTER}))"
_SAME = str.maketrans(dict.fromkeys("’‘‛ʼ＇´", "'") | dict.fromkeys("\ufe0e\ufe0f", ""))
_CLUSTER = regex.compile(r"\X")
_NUMBERED = regex.compile(r"(?<!\\)(?:\\\\)*\\[1-9]")


def plain(text: str) -> str:
    """The text in the form in which markers are looked for: NFKC, straight apostrophes, no variation selectors."""
    return text if text.isascii() else unicodedata.normalize("NFKC", text.translate(_SAME)).translate(_SAME)


def at_edges(alternatives: str) -> str:
    """A pattern for any of the alternatives, beginning and ending at a word's edge where its script has them."""
    return rf"{_BEFORE}(?:{alternatives}){_AFTER}"


def compile_markers(markers: Sequence[str]) -> regex.Pattern[str]:
    """One pattern that finds any marker in a plain text.

    Raises:
        StarError: a marker that is no regular expression, that matches where nothing stands, that refers to a group
            by its number, or that takes too long.
    """
    for marker in markers:
        _check(marker)
    return _compile(at_edges("|".join(map(_plain_marker, markers)) or "(?!)"))


def find_markers(pattern: regex.Pattern[str], text: str) -> list[tuple[int, int]]:
    """Where the markers stand in the text: start and end of each, without the punctuation that led up to it.

    Raises:
        StarError: the pattern takes longer than a second.
    """
    searched, origin = text, None
    if not text.isascii():
        clusters = list(_CLUSTER.finditer(text))
        pieces = [plain(c[0]) for c in clusters]
        searched = "".join(pieces)
        origin = [c.span() for c, piece in zip(clusters, pieces, strict=True) for _ in piece]
    try:
        matches = [m.span() for m in pattern.finditer(searched, timeout=SECONDS)]
    except TimeoutError:
        raise StarError(
            f"The markers take longer than {SECONDS:g} s on one reply: simplify those that repeat a repetition, "
            "such as (a+)+."
        ) from None
    spans = []
    for start, end in matches:
        words = [i for i in range(start, end) if searched[i].isalnum()]
        start = words[0] if words else start
        if end > start:
            spans.append((start, end) if origin is None else (origin[start][0], origin[end - 1][1]))
    return spans


def _plain_marker(marker: str) -> str:
    """The marker as it must read to find plain texts: NFKC, but never with a sign that gains a meaning (？ is no ?)."""
    letters = unicodedata.normalize("NFC", marker.translate(_SAME))
    return "".join(c if c.isascii() else regex.escape(plain(c)) for c in letters)


def _compile(pattern: str) -> regex.Pattern[str]:
    return regex.compile(pattern, regex.IGNORECASE)


def _check(marker: str) -> None:
    try:
        alone = _compile(_plain_marker(marker))
    except regex.error as error:
        raise StarError(f"marker {marker!r} is not a regular expression: {error}.") from None
    if _NUMBERED.search(marker):
        raise StarError(f"marker {marker!r} refers to a group by its number: name it, (?P<x>...)(?P=x).")
    letters = dict.fromkeys(c for c in marker if c.isalnum())
    probes = ["", "a", "I am, you are. ", *(letter * 40 + "\n!" for letter in list(letters)[:20])]
    try:
        if any(m.end() == m.start() for probe in probes for m in alone.finditer(probe, timeout=SECONDS / 5)):
            raise StarError(f"marker {marker!r} matches where nothing stands, so every reply shows it: ask for a word.")
    except TimeoutError:
        raise StarError(
            f"marker {marker!r} takes too long to search for: simplify what repeats a repetition, such as (a+)+."
        ) from None
    if not marker.strip():
        raise StarError("a marker is blank: write a word or leave it out.")
