"""Tasks: what is evaluated on which prompts, one small JSON file each in ``data/tasks``.

A file names the trait, whose held-out contexts are the built-in prompts, the published dialogues that may take their
place, who the two sides are, the judges that see more than the trait's own, the measures of every reply, of which the
first is what the task is about, and whether a deal can come of the talk.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from star_tl.data.pairs import TRAITS
from star_tl.errors import StarError, check_kind, nearest
from star_tl.files import parse_json, read_text

FOLDER = Path(__file__).parent / "tasks"
TASKS = tuple(sorted(path.stem for path in FOLDER.glob("*.json")))
MEASURES = ("markers", "relevance", "first_person", "perplexity", "repetition", "vader", "lexicon")
_FIELDS = ("task", "description", "trait", "roles", "data", "judges", "measures", "outcomes")


@dataclass(frozen=True)
class Task:
    """One task; ``roles`` says who ``user`` and ``assistant`` are, ``data`` which dialogues fit, ``judges`` of what."""

    name: str
    description: str
    trait: str
    roles: Mapping[str, str]
    data: tuple[str, ...]
    judges: tuple[str, ...]
    measures: tuple[str, ...]
    outcomes: bool = False

    def __post_init__(self) -> None:
        if self.trait not in TRAITS and not self.trait.endswith(".jsonl"):
            raise StarError(f"Task {self.name!r} has unknown trait {self.trait!r}.{nearest(self.trait, TRAITS)}")
        if set(self.roles) != {"user", "assistant"}:
            raise StarError(f"Task {self.name!r} needs the roles user and assistant: say who each is.")
        for measure in self.measures:
            if measure not in MEASURES:
                raise StarError(f"Task {self.name!r}: unknown measure {measure!r}.{nearest(measure, MEASURES)}")


def load_task(name_or_path: str | Path) -> Task:
    """A built-in task, or one of a JSON file of the same form.

    Raises:
        StarError: unknown name, or a file that is missing or says too little.
    """
    check_kind(name_or_path, (str, Path), "a task's name, or the path of its file")
    text = str(name_or_path)
    if text not in TASKS and not text.endswith(".json"):
        raise StarError(f"Unknown task {text[:99]!r}.{nearest(text[:99], TASKS)}")
    path = FOLDER / f"{text}.json" if text in TASKS else Path(text)
    value = parse_json(read_text(path, "task file"), str(path), "write one object")
    if not isinstance(value, dict) or set(value) != set(_FIELDS):
        raise StarError(f"{path}: a task has exactly {', '.join(_FIELDS)}: correct it.")
    texts = (value["task"], value["description"], value["trait"])
    lists = (value["data"], value["judges"], value["measures"])
    if (
        not all(isinstance(x, str) for x in texts)
        or not all(isinstance(x, list) and all(isinstance(y, str) for y in x) for x in lists)
        or not isinstance(value["roles"], dict)
        or not isinstance(value["outcomes"], bool)
    ):
        raise StarError(f"{path}: a field has another form than in the built-in tasks: correct it.")
    data, judges, measures = map(tuple, lists)
    return Task(*texts, value["roles"], data, judges, measures, value["outcomes"])
