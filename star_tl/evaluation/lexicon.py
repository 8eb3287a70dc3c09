"""Joy and trust by a list of words: NRC's emotion lexicon (Mohammad & Turney 2013, arXiv 1308.6297).

NRC's terms forbid passing the list on, so none comes with this package: it is read from the file that the user has, or
from an installed NRCLex, which carries one. What it sees are single words out of context: "sorry", "thanks" and
"appreciate" are not in it, and "not happy" counts as "happy".
"""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from star_tl.errors import StarError
from star_tl.evaluation.scores import WORD
from star_tl.files import parse_json, read_text

AFFECTS = ("joy", "trust")  # of NRC's ten those that are traits here
FORMS = "NRC's table (word, affect, 0 or 1, between tabs) or JSON, a list of affects by word"


def load_lexicon(path: str | Path | None = None) -> Mapping[str, frozenset[str]] | None:
    """The words of each affect, in lower case; without a path those of an installed NRCLex, None where there is none.

    Raises:
        StarError: a file that cannot be read or is of another form.
    """
    source = Path(path) if path is not None else _installed()
    if source is None:
        return None
    text = read_text(source, "lexicon", f"give {FORMS}")
    pairs = _of_json(text, str(source)) if text.lstrip().startswith("{") else _of_table(text)
    found = {affect: frozenset(word for word, of in pairs if of == affect) for affect in AFFECTS}
    if not any(found.values()):
        raise StarError(f"{source} has no words of {' or '.join(AFFECTS)}: give {FORMS}.")
    return found


def words_in_100(texts: Sequence[str], words: frozenset[str]) -> np.ndarray:
    """How many in 100 words of each text are among these; NaN for a text without words."""
    spoken = [[word.lower() for word in WORD.findall(text.replace("’", "'"))] for text in texts]
    return np.array([100 * np.mean([w in words for w in said]) if said else np.nan for said in spoken])


def _of_json(text: str, where: str) -> list[tuple[str, str]]:
    value = parse_json(text, where, f"give {FORMS}")
    if not all(isinstance(affects, list) for affects in value.values()):
        raise StarError(f"{where}: a word has no list of affects: give {FORMS}.")
    return [(word.lower(), affect) for word, affects in value.items() for affect in affects]


def _of_table(text: str) -> list[tuple[str, str]]:
    rows = [line.strip().split("\t") for line in text.splitlines()]
    return [(row[0].lower(), row[1]) for row in rows if len(row) == 3 and row[2] == "1"]


def _installed() -> Path | None:
    """NRCLex's list, found without importing it: importing would need corpora that it downloads."""
    package = importlib.util.find_spec("nrclex")
    folders = [Path(folder) for folder in (package.submodule_search_locations or ())] if package is not None else []
    return next((file for folder in folders for file in sorted(folder.glob("**/nrc*.json"))), None)
