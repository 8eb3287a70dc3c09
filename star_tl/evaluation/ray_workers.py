"""Replicas of a model on the machines of a Ray cluster, which write and score replies."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Iterator, Sequence
from types import TracebackType
from typing import Any

import pandas as pd
import torch

from star_tl.data.chat import Message, chat_format
from star_tl.data.pairs import Trait
from star_tl.errors import StarError, shown
from star_tl.evaluation.scores import score, write_measured
from star_tl.generation.writing import Reply
from star_tl.models.backend import Model, tokenizer_of
from star_tl.models.lens import HookedTransformer
from star_tl.models.load import fingerprint, load_model
from star_tl.steering.condition import Condition

_TRIES = 3  # workers that may die over one piece of work
_STARTS = 3  # of a cluster of our own: Ray gives its processes 15 s, which a busy machine may not have


class RayWorkers:
    """Replicas, one to a worker. Use it as a context: ``with RayWorkers(model, count=2) as workers: compare(...)``."""

    def __init__(self, model: Model, address: str = "local", count: int | None = None) -> None:
        """
        Args:
            model: what :func:`star_tl.load_model` made of a name, a folder or a file that every machine finds under the
                same name; each worker loads it there.
            address: ``local`` for workers on this machine, ``auto`` for a running cluster, or where its head listens.
            count: workers; default one to a GPU of the cluster, or without GPUs one to a machine.

        Raises:
            StarError: Ray is not installed, or runs in this process already, there is no cluster at the address, or
                ``count`` is below 1 or more than there is room for.
        """
        if count is not None and count < 1:
            raise StarError(f"workers is {count}: use at least 1.")
        # Ray would else report its use to its makers, and hide the GPUs from workers that asked for none.
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        try:
            import ray
        except ModuleNotFoundError:
            raise StarError("Ray is not installed: pip install 'star_tl[ray]'.") from None
        self._ray: Any = ray
        if ray.is_initialized():  # what is there would end with the workers
            raise StarError("Ray runs in this process already: call ray.shutdown() first.")
        gpu = str(model.cfg.device).startswith("cuda")
        if address == "local" and not gpu and (count or 1) > (os.cpu_count() or 1):
            raise StarError(f"This machine has {os.cpu_count()} CPUs, for {count} workers: use fewer --workers.")
        try:
            self._begin(model, address, count, gpu)
        except BaseException:  # a Ctrl-C too: what was begun is nobody's else
            ray.shutdown()
            raise

    def _begin(self, model: Model, address: str, count: int | None, gpu: bool) -> None:
        ray, cfg = self._ray, model.cfg
        for started in range(1, _STARTS + 1):
            try:
                self._connect(address, count or os.cpu_count() or 1)
                break
            except Exception as error:  # Ray raises this itself where a machine is too slow to start it
                ray.shutdown()
                if address != "local" or started == _STARTS:
                    problem = f"There is no Ray cluster at {shown(address)} ({shown(str(error))})"
                    raise StarError(f"{problem}: see --ray.") from None
        kind = "GPU" if gpu else "CPU"
        machines = [int(node["Resources"].get(kind, 0)) for node in ray.nodes() if node["Alive"]]
        room, each = sum(machines), len([n for n in machines if n])
        self.count = count or max(1, room if gpu else each)
        if self.count > room:
            raise StarError(f"The Ray cluster has {room} {kind}s, for {self.count} workers: use fewer --workers.")
        self._actor = ray.remote(num_cpus=1, num_gpus=1 if gpu else 0)(_Replica)
        self._loading = {
            "name": cfg.model_name,
            "dtype": str(cfg.dtype),
            "device": "cuda" if gpu else "cpu",
            "first_n_layers": cfg.n_layers,
            "backend": "hooked" if isinstance(model, HookedTransformer) else "bridge",
            "template_args": dict(chat_format(tokenizer_of(model)).template_args),
        }
        self._identity = fingerprint(model)
        self._threads = torch.get_num_threads()  # sums may depend on it
        self._actors = [self._started() for _ in range(self.count)]

    def _connect(self, address: str, count: int) -> None:
        local = {"num_cpus": count, "object_store_memory": 10**8}  # Ray starts a process for each at once
        self._ray.init(address, include_dashboard=False, log_to_driver=False, **(local if address == "local" else {}))

    def __enter__(self) -> RayWorkers:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._ray.shutdown()

    def run(self, method: str, pieces: Sequence[tuple[object, ...]]) -> Iterator[tuple[int, Any]]:
        """What a method of the replicas makes of each piece of work, with the piece's number, as it comes.

        A worker that dies is replaced, and its piece is done again.

        Raises:
            StarError: what the method raises, or several workers died over one piece.
        """
        ray = self._ray
        waiting = deque((i, 0) for i in range(len(pieces)))
        idle, at_work = list(self._actors), {}
        while waiting or at_work:
            while waiting and idle:
                actor, (i, died) = idle.pop(), waiting.popleft()
                at_work[getattr(actor, method).remote(*pieces[i])] = actor, i, died
            (done,), _ = ray.wait(list(at_work), num_returns=1)
            actor, i, died = at_work.pop(done)
            try:
                found = ray.get(done)
            except ray.exceptions.RayActorError as error:
                if died + 1 == _TRIES:
                    raise StarError(
                        f"{_TRIES} workers died over the same rows ({shown(str(error))}): give them more memory, or "
                        "use a smaller batch_size."
                    ) from None
                waiting.appendleft((i, died + 1))
                self._actors.remove(actor)
                self._actors.append(self._started())
                idle.append(self._actors[-1])
            except ray.exceptions.RayTaskError as error:
                if isinstance(error.cause, StarError):
                    raise error.cause from None
                raise
            else:
                idle.append(actor)
                yield i, found

    def _started(self) -> Any:
        return self._actor.remote(self._loading, self._identity, self._threads)


class _Replica:
    """A model in a process of its own."""

    def __init__(self, loading: dict[str, Any], identity: str, threads: int) -> None:
        self.loading, self.identity = loading, identity
        torch.set_num_threads(threads)
        self._model: Model | None = None

    @property
    def model(self) -> Model:
        """Loaded for the first piece of work, whose caller then hears why it cannot be."""
        if self._model is None:
            self._model = load_model(**self.loading)
            if fingerprint(self._model) != self.identity:
                name = self.loading["name"]
                raise StarError(f"{name} is another model on a worker: load it from a folder that all share.")
        return self._model

    def write(self, *piece: Any) -> tuple[list[Reply], list[dict[str, float]] | None]:
        """Replies and what was measured, as :func:`star_tl.evaluation.scores.write_measured` gives them."""
        return write_measured(self.model, *piece)

    def score(
        self, trait: Trait, prompts: list[tuple[Message, ...]], replies: list[Reply], condition: Condition
    ) -> pd.DataFrame:
        """Scores as :func:`star_tl.score` gives them."""
        return score(self.model, trait, prompts, replies, condition)
