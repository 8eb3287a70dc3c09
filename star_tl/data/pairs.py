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

import io
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, cast

import regex

from star_tl.data.chat import Message, as_messages, with_instruction
from star_tl.data.markers import compile_markers, find_markers
from star_tl.errors import StarError, check_kind, check_text, nearest, quoted, shown
from star_tl.files import JsonObject, in_home, parse_json, read_text, replacing

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
        for key in ("name", "positive_instruction", "negative_instruction"):
            value = getattr(self, key)
            if value is None or (isinstance(value, str) and not value):
                raise StarError("A trait needs a name, a positive_instruction and a negative_instruction.")
        if not isinstance(self.name, str) or not NAME.fullmatch(self.name):  # folders are called by it
            raise StarError(
                f"A trait cannot be called {quoted(self.name)}: use up to 100 letters, digits, spaces, _, - and "
                "dots, the first a letter or digit."
            )
        for key in ("positive_instruction", "negative_instruction", "description"):
            check_text(getattr(self, key), f"{key} of trait {self.name!r}")
        if not isinstance(self.markers, (list, tuple)) or not all(isinstance(m, str) for m in self.markers):
            raise StarError(f"markers of trait {self.name!r} is {quoted(self.markers)}: give a list of texts.")
        object.__setattr__(self, "markers", tuple(self.markers))
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
        for name in ("positive", "negative"):
            check_text(getattr(self, name), f"{name} of pair {quoted(self.id)}")
        for name in ("context", "clean", "corrupted"):
            if name == "context" or getattr(self, name) is not None:
                object.__setattr__(self, name, as_messages(getattr(self, name)))
        if not self.positive.strip() or not self.negative.strip():
            raise StarError(f"pair {self.id!r} has an empty reply: write both.")
        if self.positive.strip() == self.negative.strip():
            raise StarError(f"pair {self.id!r} has equal replies: make them differ in the trait.")
        for name, known in (("split", SPLITS), ("metric", METRICS)):
            value = getattr(self, name)
            if not isinstance(value, str) or value not in known:
                raise StarError(f"pair {self.id!r} has {name} {quoted(value)}: use {' or '.join(known)}.")
        if (self.clean is None) != (self.corrupted is None):
            raise StarError(f"pair {self.id!r} has only one of clean and corrupted: give both or none.")


@dataclass(frozen=True)
class Pairs:
    """A trait with its contrastive pairs."""

    trait: Trait
    pairs: tuple[ContrastivePair, ...]

    def __post_init__(self) -> None:
        check_kind(self.trait, Trait, "a Trait")
        if not isinstance(self.pairs, (list, tuple)) or not all(isinstance(p, ContrastivePair) for p in self.pairs):
            raise StarError(f"pairs is {quoted(self.pairs)}: give a list of ContrastivePair.")
        object.__setattr__(self, "pairs", tuple(self.pairs))
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


def load_pairs(source: Any, trait: Trait | None = None) -> Pairs:
    """The pairs of a built-in trait, of a file, or of a table that you have.

        star.load_pairs("politeness")
        star.load_pairs("mine.jsonl")
        star.load_pairs([("My cat died.", "I am so sorry.", "Cats die.")], trait=star.Trait(...))

    Args:
        source: a built-in name; a JSONL file in the format above; a CSV file, a DataFrame, a HuggingFace dataset or a
            list of dicts with the columns ``prompt``, ``positive`` and ``negative``, optionally ``trait`` and
            ``split``; or a list of tuples ``(prompt, positive, negative)``.
        trait: of a table; default the built-in one that its column ``trait`` names.

    Raises:
        StarError: unknown name, missing file, a broken line, with file, line and remedy, or something of another shape.
    """
    if isinstance(source, (str, Path)):
        text = str(source)
        if text not in TRAITS and text.lower().endswith(".csv"):
            return _of_table(_csv(Path(text)), trait, text)
        if trait is not None:
            raise StarError(f"{shown(text, 200)} says its trait itself: leave trait out.")
        return _of_file(text)
    return _of_table(source, trait, "The table")


COLUMNS = ("prompt", "positive", "negative")
_SHAPE = "give a list of (prompt, positive, negative), or a table with the columns prompt, positive, negative"


def _csv(path: Path) -> list[dict[str, str]]:
    import csv

    text = io.StringIO(read_text(path, "CSV file", "save it as UTF-8"), newline="")  # which knows a CSV's line ends
    try:
        return list(csv.DictReader(text))
    except csv.Error as error:
        raise StarError(f"{path}: not a table in CSV ({error}): save it again.") from None


def _of_table(table: Any, trait: Trait | None, name: str) -> Pairs:
    if hasattr(table, "columns") and hasattr(table, "to_dict"):  # a DataFrame
        table = table.to_dict("records")
    elif isinstance(table, Mapping):
        if not all(hasattr(table, "get") and isinstance(table.get(c), (list, tuple)) for c in COLUMNS):
            splits = f", as in dataset[{quoted(next(iter(table), 'train'))}]" if table else ""
            raise StarError(f"{name} is a dict: {_SHAPE}{splits}.")
        table = [dict(zip(table, row, strict=False)) for row in zip(*table.values(), strict=False)]
    try:
        rows: list[Any] = list(table)
    except TypeError:
        raise StarError(f"Pairs cannot be made of {quoted(table)}: {_SHAPE}.") from None
    if not rows:
        raise StarError(f"{name} is empty: {_SHAPE}.")
    pairs, names = [], set()
    row: Any
    for number, row in enumerate(rows, 1):
        if isinstance(row, (tuple, list)) and len(row) == len(COLUMNS):
            row = cast(JsonObject, dict(zip(COLUMNS, row, strict=True)))
        if not isinstance(row, Mapping) or any(row.get(c) is None for c in COLUMNS):
            lacks = [c for c in COLUMNS if row.get(c) is None] if isinstance(row, Mapping) else []
            what = f"lacks {' and '.join(lacks)}" if lacks else f"is {quoted(row)}"
            raise StarError(f"{name}, row {number} {what}: {_SHAPE}.")
        for key in COLUMNS[1:]:
            if not isinstance(row[key], str):
                raise StarError(f"{name}, row {number}: {key!r} is not a text: write the reply as a string.")
        if isinstance(row.get("trait"), str):
            names.add(row["trait"])
        split = row.get("split")
        try:
            pairs.append(
                ContrastivePair(
                    id=str(row.get("id", f"row-{number}")),
                    context=as_messages(row["prompt"]),
                    positive=row["positive"],
                    negative=row["negative"],
                    split={"train": "extraction", "test": "heldout"}.get(str(split), split)
                    if isinstance(split, str) and split
                    else "extraction",
                )
            )
        except StarError as error:
            raise StarError(f"{name}, row {number}: {error}") from None
    if trait is None:
        if len(names) != 1 or not names <= set(TRAITS):
            given = f"names {', '.join(sorted(map(shown, map(repr, names))))}" if names else "names no trait"
            raise StarError(
                f"{name} {given}: give trait=star.Trait(name, positive_instruction, negative_instruction, markers), or "
                f"a column 'trait' with one of {', '.join(TRAITS)}."
            )
        trait = load_pairs(names.pop()).trait
    return Pairs(trait, tuple(pairs))


def _of_file(text: str) -> Pairs:
    path = FOLDER / f"{text}.jsonl" if text in TRAITS else in_home(text)
    if not _exists(path):
        if "/" in text or text.endswith(".jsonl"):
            names = ", ".join(TRAITS)
            raise StarError(f"No pairs file at {shown(text, 200)}: check the path, or name a built-in trait ({names}).")
        raise StarError(f"Unknown trait {quoted(text)}.{nearest(text[:99], TRAITS)}")
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


def _json(path: Path, number: int, line: str) -> JsonObject:
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


def _as_json(pair: ContrastivePair) -> dict[str, object]:
    value: dict[str, object] = {"id": pair.id, "split": pair.split, "context": [dict(m) for m in pair.context]}
    value |= {"positive": pair.positive, "negative": pair.negative}
    if pair.clean is not None and pair.corrupted is not None:
        value |= {"clean": [dict(m) for m in pair.clean], "corrupted": [dict(m) for m in pair.corrupted]}
    if pair.metric != "logprob":
        value["metric"] = pair.metric
    return value
