"""The reference names every public function, is what the script writes, and its examples run."""

from __future__ import annotations

import doctest
import importlib.util
import re
from pathlib import Path

import pytest

import star_tl as star

spec = importlib.util.spec_from_file_location("reference", Path(__file__).parents[2] / "scripts" / "reference.py")
made = importlib.util.module_from_spec(spec)
spec.loader.exec_module(made)
PAGE, EXAMPLES, reference = made.PAGE, made.EXAMPLES, made.reference


def test_the_page_is_what_the_script_writes() -> None:
    assert PAGE.read_text(encoding="utf-8") == reference(), "run python scripts/reference.py"
    assert set(EXAMPLES) == set(star.__all__)


@pytest.mark.hooked
def test_the_examples_run_from_top_to_bottom() -> None:
    text = PAGE.read_text(encoding="utf-8")
    examples = doctest.DocTestParser().get_doctest(
        re.sub("^```.*$", "", text, flags=re.MULTILINE), {}, "reference", None, 0
    )
    assert len(examples.examples) > 60
    found = doctest.DocTestRunner().run(examples)
    assert found.failed == 0
