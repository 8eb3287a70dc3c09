"""A sweep or an evaluation on two workers is that of one process, also where a worker dies or the call is stopped."""

from __future__ import annotations

import os
import secrets
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from typer.testing import CliRunner

pytest.importorskip("ray", reason="pip install 'star_tl[ray]'")

import star_tl as star
from star_tl.cli import app
from star_tl.errors import StarError
from star_tl.evaluation import ray_workers
from star_tl.evaluation.ray_workers import RayWorkers
from star_tl.locus import Locus

PAIRS = star.load_pairs("politeness")
SWEEP: dict[str, Any] = {
    "prompts": PAIRS.heldout.prompts[:6],
    "loci": [Locus("blocks.0.hook_resid_post"), Locus("blocks.1.hook_mlp_out", (-2, -1))],
    "strengths": (1.0, -2.0),
    "positions": ("locus", "generated"),
    "seeds": (0, 1),
    "max_new_tokens": 12,
    "batch_size": 16,
    "progress": False,
}


class Killed(RayWorkers):
    """Workers of whom one is killed as soon as the second piece of work is done."""

    started = 0

    def _started(self) -> Any:
        self.started += 1
        return super()._started()

    def run(self, method: str, pieces: Sequence[tuple[Any, ...]]) -> Iterator[tuple[int, Any]]:
        for n, found in enumerate(super().run(method, pieces)):
            if n == 1:
                self._ray.kill(self._actors[0])
            yield found


@pytest.fixture(scope="module")
def alone(tiny: Any, tmp_path_factory: pytest.TempPathFactory) -> tuple[pd.DataFrame, str]:
    """The table and the file of one process."""
    out = tmp_path_factory.mktemp("alone") / "samples.jsonl"
    return star.compare(tiny, PAIRS, out=out, **SWEEP).frame, out.read_text()


def test_two_workers_one_of_them_killed_make_the_table_of_one_process(
    tiny: Any, alone: tuple[pd.DataFrame, str], tmp_path: Path
) -> None:
    out = tmp_path / "samples.jsonl"
    with Killed(tiny, count=2) as workers:
        found = star.compare(tiny, PAIRS, out=out, workers=workers, **SWEEP).frame
        assert workers.started == 3, "not one was replaced while replies were written and scored"
    pd.testing.assert_frame_equal(found, alone[0], check_exact=True)
    assert out.read_text() == alone[1]


def test_the_command_evaluates_on_workers_as_it_does_alone(tiny_folder: Path, tmp_path: Path) -> None:
    given = ["evaluate", "--task", "joy", "--model", str(tiny_folder), "--limit", "2", "--max-new-tokens", "4"]
    given += ["--drift", "0.05", "--no-choose", "--no-side-effects"]
    for name, more in (("alone", []), ("shared", ["--ray", "local", "--workers", "1"])):
        done = CliRunner().invoke(app, [*given, "--out", str(tmp_path / name), *more])
        assert done.exit_code == 0, done.output
    for name in ("effects.csv", "samples.csv", "replies/arms.jsonl"):
        assert (tmp_path / "shared" / name).read_bytes() == (tmp_path / "alone" / name).read_bytes(), name


def test_what_a_worker_finds_is_said_as_it_is(tiny: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    class Deadly:
        def __reduce__(self) -> Any:
            return __import__("os")._exit, (1,)

    changed = star.load_model(tiny.cfg.model_name)
    changed.blocks[0].mlp.W_out.data *= 2
    monkeypatch.setattr(ray_workers, "_TRIES", 1)
    piece = PAIRS.trait, PAIRS.prompts[:2], [], star.Condition()
    with RayWorkers(changed, count=1) as workers:
        with pytest.raises(StarError, match="another model on a worker"):
            list(workers.run("score", [piece]))
        with pytest.raises(StarError, match="1 workers died"):
            list(workers.run("score", [(Deadly(), *piece[1:])]))


HEAD, WORKER = "10.77.19.1", "10.77.19.2"
PORTS = ("dashboard-agent-listen-port", "dashboard-agent-grpc-port", "runtime-env-agent-port", "metrics-export-port")
DRIVER = """
import sys
import pandas as pd
import ray
import star_tl as star
from star_tl.evaluation.ray_workers import RayWorkers

folder, address, *hosts = sys.argv[1:]
model, pairs = star.load_model(folder), star.load_pairs("politeness")
options = dict(prompts=pairs.heldout.prompts[:4], strengths=(1.0,), max_new_tokens=8, batch_size=8, progress=False)
with RayWorkers(model, address) as workers:
    assert {node["NodeManagerAddress"] for node in ray.nodes() if node["Alive"]} == set(hosts)
    assert workers.count == 1
    found = star.compare(model, pairs, workers=workers, **options).frame
pd.testing.assert_frame_equal(found, star.compare(model, pairs, **options).frame, check_exact=True)
print("equal")
"""


def ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, capture_output=True, text=True)


@pytest.fixture
def own_folder() -> Iterator[str]:
    """Where a cluster keeps what it is: in Ray's own place the next one to look for a cluster would wait for it."""
    # A short path, for sockets lie in it; and the last of Ray's processes may still write when it is deleted.
    with tempfile.TemporaryDirectory(prefix="ray", dir="/tmp", ignore_cleanup_errors=True) as folder:
        yield folder


@pytest.fixture
def two_hosts() -> Iterator[tuple[list[str], list[str]]]:
    """What a command is begun with on either of two hosts, which are network namespaces joined by a wire."""
    names = [f"star{os.getpid()}{side}" for side in "ab"]
    try:
        for name in names:
            ip("netns", "add", name)
            ip("-n", name, "link", "set", "lo", "up")
        ip("-n", names[0], "link", "add", "wire", "type", "veth", "peer", "name", "wire", "netns", names[1])
        for name, address in zip(names, (HEAD, WORKER), strict=True):
            ip("-n", name, "address", "add", f"{address}/24", "dev", "wire")
            ip("-n", name, "link", "set", "wire", "up")
    except (OSError, subprocess.CalledProcessError) as error:
        pytest.skip(f"network namespaces cannot be made here: {getattr(error, 'stderr', None) or error}")
    try:
        yield (["ip", "netns", "exec", names[0]], ["ip", "netns", "exec", names[1]])
    finally:
        for name in names:
            subprocess.run(["ip", "netns", "delete", name], capture_output=True)


def test_a_worker_on_another_host_makes_the_table_of_one_process(
    tiny_folder: Path, own_folder: str, two_hosts, tmp_path: Path
) -> None:
    start = [sys.executable, "-m", "ray.scripts.scripts", "start", "--block", "--disable-usage-stats"]
    start += [f"--{name}={52365 + i}" for i, name in enumerate(PORTS)]
    head = ["--head", f"--node-ip-address={HEAD}", "--port=6379", "--num-cpus=0", "--include-dashboard=false"]
    head += [f"--temp-dir={own_folder}"]
    other = [f"--address={HEAD}:6379", f"--node-ip-address={WORKER}", "--num-cpus=1"]
    (tmp_path / "driver.py").write_text(DRIVER)
    driver = [sys.executable, "driver.py", str(tiny_folder), f"{HEAD}:6379", HEAD, WORKER]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(Path(star.__file__).parents[1]), *sys.path])}
    environment |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}  # alike on all hosts
    running: list[subprocess.Popen[bytes]] = []
    try:
        for host, options in zip(two_hosts, (head, other), strict=True):
            running.append(started([*host, *start, *options], environment, tmp_path / f"{len(running)}.log"))
        done = subprocess.run([*two_hosts[0], *driver], cwd=tmp_path, env=environment, capture_output=True, text=True)
        assert done.stdout.splitlines()[-1:] == ["equal"], done.stderr
    finally:
        for process in reversed(running):
            process.terminate()
            process.wait()


def started(command: list[str], environment: dict[str, str], log: Path) -> subprocess.Popen[bytes]:
    """A node of a cluster; begun anew where Ray's own processes took longer than the 15 s it gives them."""
    for _ in range(3):
        with log.open("wb") as to:
            process = subprocess.Popen(command, stdout=to, stderr=to, env=environment)
        while process.poll() is None:
            if b"Ray runtime started" in log.read_bytes():
                return process
            time.sleep(0.1)
    pytest.fail(log.read_text())


def test_a_session_of_somebody_elses_is_left_alone(tiny: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    import ray

    ended: list[int] = []
    monkeypatch.setattr(ray, "is_initialized", lambda: True)
    monkeypatch.setattr(ray, "shutdown", lambda: ended.append(1))
    with pytest.raises(StarError, match=r"runs in this process already: call ray\.shutdown\(\)"):
        RayWorkers(tiny, count=1)
    assert not ended


def test_workers_whose_start_is_interrupted_leave_no_session(tiny: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    import ray

    began: list[str] = []

    def interrupted() -> Any:
        raise KeyboardInterrupt

    monkeypatch.setattr(ray, "init", lambda *_, **__: began.append("begun"))
    monkeypatch.setattr(ray, "shutdown", lambda: began.append("ended"))
    monkeypatch.setattr(ray, "nodes", interrupted)
    with pytest.raises(KeyboardInterrupt):
        RayWorkers(tiny, count=1)
    assert began == ["begun", "ended"]


def test_what_cannot_be_started_is_one_line(tiny: Any) -> None:
    with pytest.raises(StarError, match="CPUs, for 4000 workers: use fewer"):
        RayWorkers(tiny, count=4000)
    with pytest.raises(StarError, match="at least 1"):
        RayWorkers(tiny, count=0)
    with pytest.raises(StarError, match="no Ray cluster"):
        RayWorkers(tiny, "auto")
