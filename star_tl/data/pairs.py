r"""Contrastive pairs and the traits that they belong to.

A trait is one JSONL file. Its first line is the header::

    {"trait": "politeness", "description": "...",
     "positive_instruction": "Be very polite ...", "negative_instruction": "Be blunt ...",
     "markers": ["please", "(?:could|would) you", ...]}

``markers`` are regular expressions, matched as :mod:`star_tl.data.markers` says: case-insensitively, at the edges of
words where a script has them. Every other line is a pair::

    {"id": "po-001", "split": "extraction",
     "context": [{"role": "user", "content": "..."}],
     "positive": "a reply that shows the trait", "negative": "the same reply without it"}

``split`` is ``extraction`` (attribution and vectors) or ``heldout`` (evaluation). ``context`` may
also be a plain string. Optional: ``clean`` and ``corrupted``, prompts that replace the context
under the positive and the negative instruction, and ``"metric": "logit"`` for pairs whose replies are
one token, scored by their logit difference instead of mean log-probabilities.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import regex

from star_tl.data.chat import Message, as_messages, check_text, with_instruction
from star_tl.data.markers import compile_markers, find_markers
from star_tl.errors import StarError, nearest, shown
from star_tl.files import parse_json, read_text, replacing

FOLDER = Path(__file__).parent / "traits"
TRAITS = tuple(sorted(path.stem for path in FOLDER.glob("*.jsonl")))
SPLITS = ("extraction", "heldout")
METRICS = ("logprob", "logit")
NAME = regex.compile(r"[^\W_][\w .+-]{0,98}\w|[^\W_]")


@dataclass(frozen=True)
class Trait:
    """A social trait: how to ask for it, how to ask for its absence, how it shows in words."""

    name: str
    positive_instruction: str
    negative_instruction: str
    markers: tuple[str, ...]
    description: str = ""

    def __post_init__(self) -> None:
        if not self.name or not self.positive_instruction or not self.negative_instruction:
            raise StarError("A trait needs a name, a positive_instruction and a negative_instruction.")
        if not NAME.fullmatch(self.name):  # folders are called by it
            raise StarError(
                f"A trait cannot be called {shown(repr(self.name))}: use up to 100 letters, digits, spaces, _, - and "
                "dots, the first a letter or digit."
            )
        for text in (self.positive_instruction, self.negative_instruction, self.description):
            check_text(text, f"Trait {self.name!r}")
        try:
            self._pattern  # noqa: B018 - compiles
        except StarError as error:
            raise StarError(f"Trait {self.name!r}: {error}") from None

    @cached_property
    def _pattern(self) -> regex.Pattern[str]:
        return compile_markers(self.markers)

    def find(self, text: str) -> list[tuple[int, int]]:
        """Start and end of every marker in the text. Raises StarError where a marker takes longer than a second."""
        return find_markers(self._pattern, text)

    def shown_in(self, text: str) -> bool:
        """Whether the text holds a marker. Raises StarError as :meth:`find`."""
        return bool(self.find(text))


@dataclass(frozen=True)
class ContrastivePair:
    """A context and two replies to it that differ in the trait."""

    id: str
    context: tuple[Message, ...]
    positive: str
    negative: str
    split: str = "extraction"
    clean: tuple[Message, ...] | None = None
    corrupted: tuple[Message, ...] | None = None
    metric: str = "logprob"

    def __post_init__(self) -> None:
        check_text(self.id, "A pair's id")
        for text in (self.positive, self.negative):
            check_text(text, f"pair {self.id!r}")
        if not self.positive.strip() or not self.negative.strip():
            raise StarError(f"pair {self.id!r} has an empty reply: write both.")
        if self.positive.strip() == self.negative.strip():
            raise StarError(f"pair {self.id!r} has equal replies: make them differ in the trait.")
        if self.split not in SPLITS:
            raise StarError(f"pair {self.id!r} has split {shown(repr(self.split))}: use {' or '.join(SPLITS)}.")
        if self.metric not in METRICS:
            raise StarError(f"pair {self.id!r} has metric {shown(repr(self.metric))}: use {' or '.join(METRICS)}.")
        if (self.clean is None) != (self.corrupted is None):
            raise StarError(f"pair {self.id!r} has only one of clean and corrupted: give both or none.")


@dataclass(frozen=True)
class Pairs:
    """A trait with its contrastive pairs."""

    trait: Trait
    pairs: tuple[ContrastivePair, ...]

    def __post_init__(self) -> None:
        if not self.pairs:
            raise StarError(f"Trait {self.trait.name!r} has no pairs: add at least one line.")

    def __len__(self) -> int:
        return len(self.pairs)

    def __iter__(self) -> Iterator[ContrastivePair]:
        return iter(self.pairs)

    def __getitem__(self, index: int) -> ContrastivePair:
        return self.pairs[index]

    @property
    def extraction(self) -> Pairs:
        """The pairs for attribution and vectors; all of them where none is marked."""
        return self._split("extraction")

    @property
    def heldout(self) -> Pairs:
        """The pairs kept for evaluation; all of them where none is marked."""
        return self._split("heldout")

    @property
    def prompts(self) -> list[tuple[Message, ...]]:
        """The contexts, without instruction."""
        return [pair.context for pair in self.pairs]

    def clean_prompt(self, pair: ContrastivePair) -> tuple[Message, ...]:
        """The prompt of the clean run: the pair's own, or its context under the positive instruction."""
        return pair.clean or with_instruction(pair.context, self.trait.positive_instruction)

    def corrupted_prompt(self, pair: ContrastivePair) -> tuple[Message, ...]:
        """The prompt of the corrupted run: the pair's own, or its context under the negative one."""
        return pair.corrupted or with_instruction(pair.context, self.trait.negative_instruction)

    def save(self, path: str | Path) -> None:
        """Write the JSONL file that :func:`load_pairs` reads. Raises StarError where it cannot be written."""
        header = {
            "trait": self.trait.name,
            "description": self.trait.description,
            "positive_instruction": self.trait.positive_instruction,
            "negative_instruction": self.trait.negative_instruction,
            "markers": list(self.trait.markers),
        }
        lines = [header] + [_as_json(pair) for pair in self.pairs]
        text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
        with replacing(path) as partial:
            partial.write_text(text, encoding="utf-8")

    def __repr__(self) -> str:
        held = sum(p.split == "heldout" for p in self.pairs)
        return f"Pairs({self.trait.name!r}, {len(self)} pairs, {held} held out)"

    def _split(self, split: str) -> Pairs:
        chosen = tuple(p for p in self.pairs if p.split == split)
        return Pairs(self.trait, chosen or self.pairs)


def load_pairs(name_or_path: str | Path) -> Pairs:
    """The pairs of a built-in trait, or of a JSONL file in the format above.

    Raises:
        StarError: unknown name, missing file, or a broken line, with file, line and remedy.
    """
    text = str(name_or_path)
    path = FOLDER / f"{text}.jsonl" if text in TRAITS else Path(text)
    if not _exists(path):
        if "/" in text or text.endswith(".jsonl"):
            names = ", ".join(TRAITS)
            raise StarError(f"No pairs file at {shown(text, 200)}: check the path, or name a built-in trait ({names}).")
        raise StarError(f"Unknown trait {shown(repr(text))}.{nearest(text[:99], TRAITS)}")
    written = read_text(path, "pairs file", "save it as UTF-8 JSONL")
    lines = [(i, line) for i, line in enumerate(written.split("\n"), start=1) if line.strip()]
    if not lines:
        raise StarError(f"{path} is empty: the first line is the trait's header, the others are pairs.")
    trait = _trait(path, *lines[0])
    if len(lines) == 1:
        raise StarError(f"{path}, line {lines[0][0]}: the header stands alone: add at least one pair below it.")
    return Pairs(trait, tuple(_pair(path, number, line) for number, line in lines[1:]))


def _exists(path: Path) -> bool:
    try:
        return path.exists() and not path.is_dir()
    except (OSError, ValueError):  # a name that no file can have
        return False


def _json(path: Path, number: int, line: str) -> dict[str, Any]:
    value = parse_json(line, str(path), "write one object a line", number)
    if not isinstance(value, dict):
        raise StarError(f"{path}, line {number}: not a JSON object: write {{...}}.")
    return value


def _trait(path: Path, number: int, line: str) -> Trait:
    header = _json(path, number, line)
    for key in ("trait", "positive_instruction", "negative_instruction", "markers"):
        if key not in header:
            raise StarError(
                f"{path}, line {number}: the header lacks {key!r}: add it (the first line describes the trait)."
            )
    for key in ("trait", "positive_instruction", "negative_instruction", "description"):
        if not isinstance(header.get(key, ""), str):
            raise StarError(f"{path}, line {number}: {key!r} is not a text: write it as a string.")
    if not isinstance(header["markers"], list) or not all(isinstance(m, str) for m in header["markers"]):
        raise StarError(f"{path}, line {number}: 'markers' is not a list of texts: write [\"word\", ...].")
    try:
        return Trait(
            header["trait"],
            header["positive_instruction"],
            header["negative_instruction"],
            tuple(header["markers"]),
            header.get("description", ""),
        )
    except StarError as error:
        raise StarError(f"{path}, line {number}: {error}") from None


def _pair(path: Path, number: int, line: str) -> ContrastivePair:
    value = _json(path, number, line)
    for key in ("context", "positive", "negative"):
        if key not in value:
            raise StarError(f"{path}, line {number}: lacks {key!r}: a pair has context, positive and negative.")
    for key in ("positive", "negative"):
        if not isinstance(value[key], str):
            raise StarError(f"{path}, line {number}: {key!r} is not a text: write the reply as a string.")
    try:
        return ContrastivePair(
            id=str(value.get("id", f"line-{number}")),
            context=as_messages(value["context"]),
            positive=value["positive"],
            negative=value["negative"],
            split=value.get("split", "extraction"),
            clean=as_messages(value["clean"]) if "clean" in value else None,
            corrupted=as_messages(value["corrupted"]) if "corrupted" in value else None,
            metric=value.get("metric", "logprob"),
        )
    except StarError as error:
        raise StarError(f"{path}, line {number}: {error}") from None


def _as_json(pair: ContrastivePair) -> dict[str, Any]:
    value: dict[str, Any] = {"id": pair.id, "split": pair.split, "context": [dict(m) for m in pair.context]}
    value |= {"positive": pair.positive, "negative": pair.negative}
    if pair.clean is not None and pair.corrupted is not None:
        value |= {"clean": [dict(m) for m in pair.clean], "corrupted": [dict(m) for m in pair.corrupted]}
    if pair.metric != "logprob":
        value["metric"] = pair.metric
    return value
