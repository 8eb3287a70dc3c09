"""The one thread that owns the model, and the queue before it."""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from star_tl.errors import StarError
from star_tl.generation.running import Asked, RunningBatch
from star_tl.models.backend import Model
from star_tl.models.memory import out_of_memory
from star_tl.models.threads import hand_over

_LOG = logging.getLogger("star_tl")
_READ_AT_ONCE = 1024  # prompt tokens, padding among them, that are read before the others' next token


@dataclass(frozen=True)
class Limits:
    """What a server takes.

    Attributes:
        rows: replies that are written at once.
        waiting: requests that wait for a row; more are refused (429).
        tokens: most tokens of a reply.
        body: bytes of a request; more are refused (413).
        patience: seconds in which a request's body must have arrived, and in which replies may end at a stop.

    Raises:
        StarError: one of them is below 1.
    """

    rows: int = 64
    waiting: int = 256
    tokens: int = 1024
    body: int = 2**20
    patience: float = 30.0

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if not value >= 1:
                raise StarError(f"The server's limit {name} is {value!r}: use 1 or more.")


class Full(Exception):
    """The queue is full, or the server is going down."""


class Job:
    """A reply that a client waits for. ``error`` says in one line why there is none."""

    def __init__(self, asked: Asked) -> None:
        self.asked = asked
        self.error: str | None = None
        self.cancelled = False

    @property
    def done(self) -> bool:
        """Whether nothing more will come."""
        return self.error is not None or self.asked.writing.ended is not None

    def cancel(self) -> None:
        """Give the row up before its next token."""
        self.cancelled = True


class Engine:
    """Writes the replies of all jobs in one running batch, until it is closed.

    ``notify`` is called, in the engine's thread, with the jobs that have something new after each step.
    """

    def __init__(self, model: Model, limits: Limits, notify: Callable[[Sequence[Job]], object]) -> None:
        self.model, self.limits, self.notify = model, limits, notify
        self.tokens = self.steps = 0  # written so far
        self._batch = RunningBatch(model)
        self._waiting: deque[Job] = deque()
        self._running: list[Job] = []
        self._closing = False
        self._changed = threading.Condition()
        hand_over()
        self._thread = threading.Thread(target=self._work, name="star_tl engine", daemon=True)
        self._thread.start()

    @property
    def running(self) -> int:
        """Replies that are being written."""
        return len(self._running)

    @property
    def waiting(self) -> int:
        """Jobs that wait for a row."""
        return len(self._waiting)

    def submit(self, job: Job) -> None:
        """Let a job wait for its row.

        Raises:
            Full: too many wait already, or the engine is closed.
            StarError: memory is too small for it, even alone.
        """
        if job.asked.columns > self._batch.columns:
            raise StarError(
                f"Memory is too small for {job.asked.columns} tokens, prompt and reply: use a shorter prompt or a "
                "lower max_tokens."
            )
        with self._changed:
            if self._closing or len(self._waiting) >= self.limits.waiting:
                raise Full
            self._waiting.append(job)
            self._changed.notify()

    def cancel(self, job: Job) -> None:
        """Give a job up: its row is free before the next token of the others."""
        job.cancel()
        with self._changed:
            self._changed.notify()

    def close(self) -> None:
        """Give all jobs up and end the thread."""
        with self._changed:
            self._closing = True
            self._changed.notify()
        self._thread.join()

    def _work(self) -> None:
        while True:
            with self._changed:
                while not (self._closing or self._waiting or self._running):
                    self._changed.wait()
                if self._closing:
                    break
                self._leave()
                joining = self._joining()
            if joining:
                self._running += joining
                self._try(lambda: self._batch.join([job.asked for job in joining]), joining)  # noqa: B023
            if self._running:
                self._try(self._batch.step, list(self._running))
        self._end([*self._running, *self._waiting], "The server is going down.")

    def _joining(self) -> list[Job]:
        """The next jobs that find a row, memory, and time to read their prompts before the others go on."""
        for job in [job for job in self._waiting if job.cancelled]:
            self._waiting.remove(job)
        if not self._waiting or len(self._running) == self.limits.rows:
            return []
        joining: list[Job] = []
        first = len(self._waiting[0].asked.writing.prompt)
        longest = 0
        # The first in the queue, and those whose prompts are of about its length: the shorter are padded.
        for job in sorted(self._waiting, key=lambda job: abs(len(job.asked.writing.prompt) - first)):
            if len(self._running) + len(joining) >= self.limits.rows:
                break
            longest = max(longest, len(job.asked.writing.prompt))
            if joining and (len(joining) + 1) * longest > _READ_AT_ONCE:
                break
            if not self._batch.room_for([*(job.asked for job in joining), job.asked]):
                break
            joining.append(job)
        for job in joining:
            self._waiting.remove(job)
        return joining

    def _leave(self) -> None:
        for job in [job for job in self._running if job.cancelled]:
            self._batch.leave(job.asked)
            self._running.remove(job)

    def _try(self, work: Callable[[], None], touched: list[Job]) -> None:
        before = sum(len(job.asked.writing.tokens) for job in touched)
        try:
            work()
        except Exception as error:  # whatever it is, the next request must find a server
            memory = isinstance(error, RuntimeError) and out_of_memory(error)
            if not memory:
                _LOG.exception("A step failed; all replies in it are given up.")
            why = (
                "Memory ran out: ask for fewer tokens, or again later." if memory else "The server failed: see its log."
            )
            self._batch.clear()  # the same batch: what it may hold was measured before anything lay in memory
            self._end(self._running, why)
        self.steps += 1
        self.tokens += sum(len(job.asked.writing.tokens) for job in touched) - before
        self._running = [job for job in self._running if not job.done]
        self.notify(touched)

    def _end(self, jobs: Sequence[Job], why: str) -> None:
        for job in jobs:
            if not job.done:
                job.error = why
        self.notify(jobs)
