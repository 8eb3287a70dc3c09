"""Memory that a stage needed is the next one's to have."""

from __future__ import annotations

import subprocess
import sys

import pytest

from star_tl.models import memory

# Blocks below the size from which glibc maps each by itself, which a larger block that was freed has raised.
STAGE = """
import torch
from star_tl.models.memory import give_back

def resident():
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) / 1e3 for line in file if line.startswith("VmRSS"))

def work():
    torch.ones(30_000_000 // 4)
    blocks = [torch.ones(1_000_000 // 4) for _ in range(500)]
    at_most.append(resident())
    return torch.ones(2_000_000 // 4)  # what is kept lies behind all that was freed

at_most, before = [], resident()
kept = work()
give_back()
print(at_most[0] - before, resident() - before)
"""


def test_memory_of_a_stage_is_given_back() -> None:
    if memory._trim() is None:
        pytest.skip("this C library has no malloc_trim")
    done = subprocess.run([sys.executable, "-c", STAGE], capture_output=True, text=True, check=True)
    taken, left = map(float, done.stdout.split())
    assert taken > 450
    assert left < 100


def test_memory_is_given_back_before_the_next_batch_begins(monkeypatch: pytest.MonkeyPatch) -> None:
    did: list[object] = []
    monkeypatch.setattr(memory, "give_back", lambda: did.append("given back"))
    batches = memory.fitting_batches(
        [1, 2, 3], lambda left: 2, lambda some: did.append(list(some)), lambda item: "", "numbers"
    )
    for some, _ in batches:
        did.append(("taken", list(some)))
    assert did == [[1, 2], ("taken", [1, 2]), "given back", [3], ("taken", [3]), "given back"]
