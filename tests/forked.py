"""A process that loads a model once and forks a child for every call, so that ten can be killed at little cost."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

SERVER = """
import json, os, signal, sys, threading, torch, tqdm.auto, star_tl as star
torch.set_num_threads(1)  # a thread pool does not survive a fork
model = star.load_model(sys.argv[1])
exec(sys.argv[2])

def die(under, opened, later):
    left = opened
    def heard(event, arguments):
        nonlocal left
        if event in ("open", "os.rename") and str(arguments[0]).startswith(under):
            left -= 1
            if left == 0 and later:
                signal.setitimer(signal.ITIMER_REAL, later)  # whose signal ends a process that does not catch it
            elif left == -2 or left == 0:
                os.kill(os.getpid(), signal.SIGALRM)
    sys.addaudithook(heard)

for line in sys.stdin:
    child = os.fork()
    if not child:
        # Their own locks, a class's each, are all children's, and one that is killed may have them for ever.
        for bar in (tqdm.tqdm, tqdm.auto.tqdm):
            bar.set_lock(threading.RLock())
        argument, dying = json.loads(line)
        if dying:
            die(*dying)
        work(model, argument)
        os._exit(0)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""


class Forks:
    """Calls of one function, each in a child of its own; one at a time."""

    def __init__(self, asked: IO[str], answered: IO[str]) -> None:
        self._asked, self._answered = asked, answered

    def run(self, argument: object) -> None:
        """A call that ends by itself."""
        assert self._exit_code(argument, None) == 0

    def kill(self, argument: object, under: Path, opened: int, later: float) -> None:
        """A call that dies ``later`` seconds after a file under a path is opened or moved for the so manieth time.

        Before that is done where ``later`` is 0, else two such files further on at the latest: not the machine's speed
        decides whether the kill hits it at work.
        """
        code = self._exit_code(argument, (str(under), opened, later))
        assert code == -signal.SIGALRM, "the kill must hit a call at work"

    def _exit_code(self, *asked: object) -> int:
        self._asked.write(json.dumps(asked) + "\n")
        self._asked.flush()
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
