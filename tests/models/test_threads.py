"""Threads that compute stay out of each other's way; told by what the kernel counts of them, not by a clock."""

from __future__ import annotations

import os
import re
import subprocess
import sys

import pytest

from star_tl.models import threads

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="threads are counted in /proc")

BEGIN = """
import os, sys, time
from pathlib import Path
import torch
import star_tl as star
from star_tl.models.threads import hand_over

def tasks():
    return {int(name) for name in os.listdir("/proc/self/task")}

def woken(workers):
    lines = [Path(f"/proc/self/task/{w}/status").read_text().splitlines() for w in workers]
    return sum(int(line.split()[1]) for found in lines for line in found if "ctxt_switches" in line)

def ended(workers):
    for _ in range(600):
        if not workers & tasks():
            return True
        time.sleep(0.05)

before = tasks()
torch.ones(2_000_000).add_(1.0)  # shared out by OpenMP
workers = tasks() - before
assert workers, "OpenMP began no worker"
"""
ONE_ROW = """
model = star.load_model("demo")
for sampling in ({"temperature": 0.8}, {"temperature": 0.8, "top_p": 0.9}, {"temperature": 0.0}):
    replies = star.stream(model, ["I lost my job today."], max_new_tokens=12, seed=1, **sampling)
    next(replies)
    count = -1
    while count != (count := woken(workers)):  # until the workers, who read the prompt, are asleep
        time.sleep(0.3)
    for _ in range(8):
        next(replies)
    assert woken(workers) == count, sampling
"""
HANDED_OVER = """
first = torch.linspace(0, 1, 2_000_000).exp().sum()
hand_over()
assert ended(workers)
assert torch.equal(torch.linspace(0, 1, 2_000_000).exp().sum(), first)
"""
SERVED = """
from star_tl.serve.engine import Engine, Limits
engine = Engine(star.load_model("demo"), Limits(), lambda jobs: None)
assert ended(workers)
engine.close()
"""


def in_a_process(code: str) -> None:
    environment = os.environ | {"OMP_NUM_THREADS": "2"}
    done = subprocess.run([sys.executable, "-c", BEGIN + code], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr


def test_while_one_row_is_written_no_worker_of_openmp_is_woken() -> None:
    in_a_process(ONE_ROW)


@pytest.mark.skipif(threads._pause() is None, reason="this PyTorch has no GNU OpenMP of its own")
@pytest.mark.parametrize("code", [HANDED_OVER, SERVED], ids=["by hand", "to the server's engine"])
def test_another_thread_that_computes_finds_no_idle_workers(code: str) -> None:
    in_a_process(code)


def test_weights_that_lie_in_the_caches_are_multiplied_by_one_thread() -> None:
    libraries = threads._blas().lib_controllers
    if not libraries or max(lib.num_threads for lib in libraries) == 1:
        pytest.skip("numpy's BLAS has one thread here")
    before = [lib.num_threads for lib in libraries]
    with threads.products_of(threads.NEAR):
        assert {lib.num_threads for lib in libraries} == {1}
    with threads.products_of(threads.NEAR + 1):
        assert [lib.num_threads for lib in libraries] == before
    assert [lib.num_threads for lib in libraries] == before


def test_threads_sleep_sooner_unless_somebody_has_said_how_they_wait() -> None:
    """By what GNU's OpenMP says of itself when torch loads it."""

    def told(**more: str) -> str:
        ours = ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")
        given = {k: v for k, v in os.environ.items() if k not in ours} | {"OMP_DISPLAY_ENV": "VERBOSE"} | more
        done = subprocess.run(
            [sys.executable, "-c", "import star_tl, torch"], env=given, capture_output=True, text=True, check=True
        )
        found = re.search(r"GOMP_SPINCOUNT = '(\d+)'", done.stderr)
        if found is None:
            pytest.skip("torch has another OpenMP than GNU's here")
        return found[1]

    assert told() == "5000"
    assert told(GOMP_SPINCOUNT="77") == "77"
    assert told(OMP_WAIT_POLICY="PASSIVE") == "0"


@pytest.mark.parametrize(("said", "wanted"), [(None, "32"), ("7", "7")])
def test_few_products_are_kept_unless_somebody_has_said_how_many(said: str | None, wanted: str) -> None:
    name = "ONEDNN_PRIMITIVE_CACHE_CAPACITY"
    given = {k: v for k, v in os.environ.items() if k != name} | ({name: said} if said else {})
    script = (
        f"import ctypes, star_tl; get = ctypes.CDLL(None).getenv; get.restype = ctypes.c_char_p; print(get(b'{name}'))"
    )
    done = subprocess.run([sys.executable, "-c", script], env=given, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == str(wanted.encode()), "what oneDNN, a library in C, will read"
