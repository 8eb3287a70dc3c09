"""What README, CONTRIBUTING and RESULTS say can be run, found and imported."""

from __future__ import annotations

import ast
import importlib
import os
import re
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.main import get_command

import star_tl as star
from star_tl import attribution, vectors
from star_tl.cli import app
from star_tl.steering.positions import SCHEDULES

ROOT = Path(__file__).parents[1]
README, CONTRIBUTING, RESULTS = (ROOT / name for name in ("README.md", "CONTRIBUTING.md", "scripts/RESULTS.md"))
PAGES = (README, CONTRIBUTING, RESULTS, ROOT / "notebooks/README.md", ROOT / "star_tl/models/demo/README.md")


def blocks(page: Path, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", page.read_text(), re.M | re.S)


def commands(page: Path) -> list[list[str]]:
    """Every command on a page that calls star-tl or a script, in a block or in backticks."""
    text = page.read_text()
    found = [
        *re.findall(r"`([^`\n]+)`", text),
        *re.findall(r"^    (\S.*)$", text, re.M),
        *re.findall(r"^\S.*", text, re.M),
    ]
    words = [re.sub(r"\s+#.*", "", line).replace(".venv/bin/", "").split() for line in found]
    return [w[w.index("star-tl") :] if "star-tl" in w[:2] else w for w in words if is_command(w)]


def is_command(words: list[str]) -> bool:
    called = bool(words) and re.fullmatch(r"scripts/\w+", words[0]) is not None
    return called or "star-tl" in words[:2] or (len(words) > 1 and words[0] == "python")


def options(words: list[str]) -> set[str]:
    return {re.sub(r"[^-\w].*", "", w) for w in words if re.match(r"--\w", w)}


def test_the_readmes_python_runs(capsys: pytest.CaptureFixture[str]) -> None:
    code, _ = blocks(README, "python")  # the client's runs in test_production.py
    assert len([line for line in code.splitlines() if line.startswith(("import", *"abcdefghijklmnopqrstuvwxyz"))]) <= 9
    names: dict[str, Any] = {}
    exec(code, names)
    assert names["choice"].table.reward.max() > names["choice"].unsteered.reward
    assert names["better"][0].text
    shown = [line.removeprefix("# ") for line in code.splitlines() if line.startswith("# ")]
    assert len(shown) == 3
    assert capsys.readouterr().out.startswith("\n".join(shown) + "\n"), "README shows what its code prints"
    down, unsteered, up = (names["pairs"].trait.shown_in(reply) for reply in shown)
    assert (down, unsteered, up) == (False, False, True)
    assert names["vector"].norm > 0


def test_the_readmes_trait_is_read(tmp_path: Path) -> None:
    (lines,) = blocks(README, "json")
    (tmp_path / "hope.jsonl").write_text(lines)
    pairs = star.load_pairs(tmp_path / "hope.jsonl")
    assert pairs.trait.shown_in(pairs.pairs[0].positive)
    assert not pairs.trait.shown_in(pairs.pairs[0].negative)


@pytest.mark.parametrize(
    "page", [README, CONTRIBUTING, RESULTS, ROOT / "scripts/demo"], ids=lambda p: str(p.relative_to(ROOT))
)
def test_every_command_exists_with_its_options(page: Path) -> None:
    known = get_command(app)
    for words in commands(page):
        if words[0] == "star-tl":
            name = words[1] if len(words) > 1 and not words[1].startswith("-") else None
            command = known if name is None else known.commands[name]
            assert options(words) <= {opt for p in command.params for opt in (*p.opts, *p.secondary_opts)} | {
                "--help"
            }, words
            continue
        script = ROOT / (words[1] if words[0] == "python" else words[0])
        assert script.is_file(), words
        if words[0] == "python":
            strings = {n.value for n in ast.walk(ast.parse(script.read_text())) if isinstance(n, ast.Constant)}
            assert options(words) <= strings, words
        else:
            assert os.access(script, os.X_OK), words


def test_there_are_commands_to_check() -> None:
    assert {tuple(w[:2]) for w in commands(README)} >= {("scripts/demo",), ("scripts/test",), ("star-tl", "run")}
    measured = {w[1] for w in commands(RESULTS)}
    assert measured >= {f"scripts/{p.name}" for p in (ROOT / "scripts").glob("measure_*.py")}
    assert measured >= {f"scripts/{p.name}" for p in (ROOT / "scripts").glob("bench_*.py")}
    assert commands(ROOT / "scripts/demo")


@pytest.mark.parametrize("page", PAGES, ids=lambda p: str(p.relative_to(ROOT)))
def test_every_link_leads_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text()):
        path, _, anchor = target.partition("#")
        if "://" in path:
            continue
        there = (page.parent / path).resolve() if path else page
        assert there.exists(), target
        if anchor:
            titles = re.findall(r"^#+ (.*)", there.read_text(), re.M)
            assert anchor in {re.sub(r"[^\w\- ]", "", t.lower()).replace(" ", "-") for t in titles}, target


def test_the_readme_is_short_and_its_table_is_that_of_the_results() -> None:
    text = README.read_text()
    assert len(text.splitlines()) <= 120
    rows = [line for line in text.splitlines() if line.startswith("|")]
    intervals = {found for row in rows for found in re.findall(r"[*.\d]+ \[[−+][\d.]+, [−+][\d.]+\]", row)}
    assert len(intervals) >= 20
    assert {found for found in intervals if found not in RESULTS.read_text()} == set()


def test_the_readme_names_functions_and_ways_that_there_are() -> None:
    text = README.read_text()
    owners = {"attr": star.AttributionMap, "vector": star.SteeringVector, "": star}
    steps = re.findall(r"^\| \w+ \| (`.*?) \|", text, re.M)
    called = [name for step in steps for name in re.findall(r"`(?:(attr|vector)\.)?(\w+)", step)]
    assert len(called) >= 10
    for owner, name in called:
        assert hasattr(owners[owner], name), (owner, name)
    for way in (*attribution.ESTIMATORS, *vectors.METHODS, *SCHEDULES):
        assert f'"{way}"' in text, way


def listing() -> list[tuple[str, list[str]]]:
    """The floors in CONTRIBUTING with what stands on each."""
    section = CONTRIBUTING.read_text().partition("## The floors")[2].partition("\n## ")[0]
    parts = re.split(r"^\*\*(.+?)\*\*.*$", section, flags=re.M)[1:]
    return [
        (floor, re.findall(r"^- `(\S+)` – \S", text, re.M)) for floor, text in zip(parts[::2], parts[1::2], strict=True)
    ]


def test_every_module_is_in_the_listing_on_its_floor() -> None:
    named = [name for _, names in listing() for name in names]
    assert len(named) == len(set(named))
    package = ROOT / "star_tl"
    modules = {str(p.relative_to(package)) for p in package.rglob("*.py") if p.name != "__init__.py"}
    assert modules - set(named) == set(), "name it in CONTRIBUTING.md"
    assert [name for name in named if not (package / name).exists()] == []
    for floor, names in listing():
        assert {re.split(r"[./]", name)[0] for name in names} <= set(floor.split(" | "))


def test_the_floors_are_those_that_import_linter_holds() -> None:
    toml = importlib.import_module("tomllib" if sys.version_info >= (3, 11) else "tomli")
    contracts = toml.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]
    (layers,) = [c["layers"] for c in contracts if c["type"] == "layers"]
    assert [floor for floor, _ in listing()] == layers[::-1]


def test_the_version_to_cite_is_this_one() -> None:
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert citation["version"] == star.__version__
    assert star.__version__ in (ROOT / "CHANGELOG.md").read_text()
    cited = {i["value"].removeprefix("arXiv:") for r in citation["references"] for i in r["identifiers"]}
    assert cited == set(re.findall(r"arxiv\.org/abs/([\d.]+)", README.read_text()))
