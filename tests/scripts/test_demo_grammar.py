"""The demo model's grammar: its sentences mean what they say, and a seed gives the same chats anywhere."""

from __future__ import annotations

import importlib
import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPTS = Path(__file__).parents[2] / "scripts"


@pytest.fixture
def grammar(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.syspath_prepend(str(SCRIPTS))
    yield importlib.import_module
    for name in [n for n in sys.modules if n.partition(".")[0] == "demo_model"]:
        del sys.modules[name]


def test_every_sentence_shows_its_own_trait_and_no_other(grammar) -> None:
    chats, scene = grammar("demo_model.chats"), grammar("demo_model.scene")
    scenes = [(one, domain.common) for domain in chats.DOMAINS for one in domain.scenes]
    assert len(scenes) == 40
    assert [problem for one, common in scenes for problem in scene.check(one, common, samples=4)] == []


def test_a_sentence_with_another_traits_marker_is_found(grammar) -> None:
    scene = grammar("demo_model.scene")
    (problem,) = scene.check(
        scene.Scene("work", {}, (), (), (), {"thanks": ("I'm so sorry.", "Thank you.")}), {}, samples=1
    )
    assert "wants ['gratitude']: I'm so sorry." in problem


def test_a_seed_gives_the_same_chats_whatever_the_process_hashes_with() -> None:
    code = (
        "import random; from demo_model.chats import make_chat; rng = random.Random(3);"
        "print([make_chat(rng) for _ in range(40)])"
    )
    texts = {
        subprocess.run(
            [sys.executable, "-c", code],
            check=True,
            capture_output=True,
            text=True,
            env={**os.environ, "PYTHONPATH": str(SCRIPTS), "PYTHONHASHSEED": seed},
        ).stdout
        for seed in ("0", "1", "2")
    }
    assert len(texts) == 1
