"""A process that loads a model once and forks a child for every call, so that ten can be killed at little cost."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

SERVER = """
import json, os, sys, threading, torch, tqdm.auto, star_tl as star
torch.set_num_threads(1)  # a thread pool does not survive a fork
model = star.load_model(sys.argv[1])
exec(sys.argv[2])
for line in sys.stdin:
    child = os.fork()
    if not child:
        # Their own locks, a class's each, are all children's, and one that is killed may have them for ever.
        for bar in (tqdm.tqdm, tqdm.auto.tqdm):
            bar.set_lock(threading.RLock())
        work(model, json.loads(line))
        os._exit(0)
    print(child, flush=True)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""


class Forks:
    """Calls of one function, each in a child of its own; one at a time."""

    def __init__(self, asked: IO[str], answered: IO[str]) -> None:
        self._asked, self._answered = asked, answered

    def start(self, argument: object) -> int:
        """Begin a call; the number of its process."""
        self._asked.write(json.dumps(argument) + "\n")
        self._asked.flush()
        return int(self._answered.readline())

    def exit_code(self) -> int:
        """How the call ended, when it has; minus the signal where it was killed."""
        return int(self._answered.readline())


@contextmanager
def forks(folder: Path, work: str) -> Iterator[Forks]:
    """Children that run ``work(model, argument)``, which the source text ``work`` defines, on the model in a folder."""
    with subprocess.Popen(
        [sys.executable, "-c", SERVER, str(folder), work],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        yield Forks(process.stdin, process.stdout)
        process.stdin.close()
