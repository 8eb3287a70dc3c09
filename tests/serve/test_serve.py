"""The server, asked by OpenAI's own client: every reply is the offline sample of its seed and vector."""

from __future__ import annotations

import asyncio
import http.client
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import openai
import pytest
import uvicorn
from prometheus_client.parser import text_string_to_metric_families

import star_tl as star
from star_tl.errors import StarError
from star_tl.generation.running import Asked, RunningBatch
from star_tl.generation.sampling import render_prompts
from star_tl.generation.settings import Sampling
from star_tl.generation.writing import Reply
from star_tl.locus import Locus
from star_tl.serve.app import make_app
from star_tl.serve.engine import Engine, Full, Job, Limits
from star_tl.serve.run import check_reach, server_config
from star_tl.serve.text import printable_text
from star_tl.serve.vectors import Served, read_vectors, with_drift
from star_tl.steering.condition import Condition

MESSAGE = [{"role": "user", "content": "I failed my exam."}]
# Steered so strongly that this reply never comes to its end of turn.
ENDLESS = {"model": "demo", "messages": MESSAGE, "max_tokens": 900, "seed": 1}
ENDLESS |= {"steering": {"vector": "agree", "strength": 100, "positions": "all"}}


@pytest.fixture(scope="module")
def vectors(demo: Any) -> dict[str, Served]:
    """Three vectors at places of their own; the first two at one layer, which a wrong row would show."""
    places = {
        "support": ("emotional_support", Locus("blocks.5.hook_resid_post", (-2, -1))),
        "thanks": ("gratitude", Locus("blocks.5.hook_resid_post", (-1,))),
        "agree": ("agreement", Locus("blocks.3.hook_mlp_out", (-4, -1))),
    }
    return {n: Served(n, star.extract_vector(demo, star.load_pairs(t), locus)) for n, (t, locus) in places.items()}


@contextmanager
def served(model: Any, vectors: dict[str, Served], limits: Limits, key: str | None = None) -> Iterator[str]:
    """The address of a server that runs in a thread."""
    with socket.create_server(("127.0.0.1", 0)) as bound:
        app = make_app(model, vectors, "demo", limits, key)
        server = uvicorn.Server(server_config(app, limits))
        thread = threading.Thread(target=server.run, args=([bound],))
        thread.start()
        try:
            yield f"http://127.0.0.1:{bound.getsockname()[1]}"
        finally:
            server.should_exit = True
            thread.join()


@pytest.fixture(scope="module")
def address(demo: Any, vectors: dict[str, Served]) -> Iterator[str]:
    with served(demo, vectors, Limits(body=2**16)) as found:
        yield found


@pytest.fixture(scope="module")
def impatient(demo: Any, vectors: dict[str, Served]) -> Iterator[str]:
    """The address of one that waits a second only for a request, as a busy machine's many clients cannot promise."""
    with served(demo, vectors, Limits(patience=1.0)) as found:
        yield found


@pytest.fixture(scope="module")
def client(address: str) -> Any:
    return openai.OpenAI(base_url=f"{address}/v1", api_key="none", max_retries=0)


def measured(address: str) -> dict[str, float]:
    """The metrics, by name and outcome."""
    text = urllib.request.urlopen(f"{address}/metrics").read().decode()
    families = text_string_to_metric_families(text)
    return {s.name + s.labels.get("outcome", ""): s.value for family in families for s in family.samples}


def until(true: Callable[[], bool], what: str) -> None:
    for _ in range(600):
        if true():
            return
        time.sleep(0.05)
    pytest.fail(f"It never came true that {what}.")


def offline(model: Any, vectors: dict[str, Served], messages: Any, request: dict[str, Any]) -> Reply:
    """What ``star.generate`` writes for a request, by itself."""
    steering = (request.get("extra_body") or {}).get("steering")
    condition = Condition(seed=request["seed"])
    if steering:
        vector = vectors[steering["vector"]].vector
        condition = Condition(
            "steered", vector, steering.get("strength", 1.0), steering.get("positions"), seed=request["seed"]
        )
    stop = request.get("stop") or ()
    (found,) = star.generate(
        model,
        [messages],
        condition=condition,
        max_new_tokens=request["max_tokens"],
        temperature=request.get("temperature", 1.0),
        top_p=request.get("top_p", 1.0),
        stop=(stop,) if isinstance(stop, str) else stop,
        log_probs=True,
        progress=False,
    )
    return found


def requests(n: int) -> list[tuple[list[dict[str, str]], dict[str, Any]]]:
    """Chats and arguments, no two alike."""
    prompts = star.load_pairs("emotional_support").prompts
    where = (None, "generated", "all", "every 3", [-3, -1, 0], "user turn")
    found = []
    for i in range(n):
        messages = [dict(m) for m in prompts[i % len(prompts)]]
        request: dict[str, Any] = {"seed": i, "max_tokens": 8 + 7 * (i % 8), "temperature": (0, 0.8, 1.2)[i % 3]}
        if i % 5 == 1:
            request["stop"] = [["you", "."], "I "][i % 2]
        if i % 4:
            name = ("support", "thanks", "agree")[i % 3]
            request["extra_body"] = {"steering": {"vector": name, "strength": (1.0, -1.0, 2.5)[i // 3 % 3]}}
            if where[i % 6] is not None:
                request["extra_body"]["steering"]["positions"] = where[i % 6]
        found.append((messages, request))
    return found


def test_64_streams_with_mixed_vectors_are_each_the_offline_reply(
    address: str, demo: Any, vectors: dict[str, Served]
) -> None:
    asked = requests(64)
    before = measured(address)

    async def stream(client: Any, messages: Any, request: dict[str, Any]) -> tuple[str, str | None, Any]:
        parts, reason, usage = [], None, None
        async for part in await client.chat.completions.create(
            model="demo", messages=messages, stream=True, stream_options={"include_usage": True}, **request
        ):
            usage = part.usage or usage
            for choice in part.choices:
                parts.append(choice.delta.content or "")
                reason = choice.finish_reason or reason
        return "".join(parts), reason, usage

    async def everybody() -> list[Any]:
        async with openai.AsyncOpenAI(base_url=f"{address}/v1", api_key="none", max_retries=0) as client:
            return await asyncio.gather(*(stream(client, *one) for one in asked))

    found = asyncio.run(everybody())
    after = measured(address)
    alone = [offline(demo, vectors, *one) for one in asked]
    for (text, reason, usage), reply in zip(found, alone, strict=True):
        assert text == reply.text
        assert reason == ("stop" if reply.stopped else "length")
        assert usage.completion_tokens == len(reply.tokens)
    tokens = sum(len(reply.tokens) for reply in alone)
    assert after["star_tl_tokens"] - before["star_tl_tokens"] == tokens
    assert after["star_tl_steps"] - before["star_tl_steps"] < tokens / 8, "the streams shared no batch"
    assert len({reply.text for reply in alone}) > 48, "the replies are too much alike to tell a wrong one"


def test_a_reply_says_what_it_takes_to_write_it_again(client: Any, demo: Any, vectors: dict[str, Served]) -> None:
    steering = {"vector": "thanks", "strength": 2, "positions": "generated"}
    found = [
        client.chat.completions.create(model="demo", messages=MESSAGE, extra_body={"steering": s}, max_tokens=20)
        for s in (steering, None, steering)
    ]
    assert len({reply.seed for reply in found}) == 3, "a seed that is not given is always the same"
    assert [reply.steering for reply in found] == [steering, None, steering]
    for reply in found:
        again = {"seed": reply.seed, "max_tokens": 20, "extra_body": {"steering": reply.steering}}
        assert reply.choices[0].message.content == offline(demo, vectors, MESSAGE, again).text


@pytest.mark.parametrize("stream", [False, True])
def test_log_probabilities_are_those_of_the_offline_reply(client, demo, vectors, stream: bool) -> None:
    request = {"seed": 5, "max_tokens": 30, "temperature": 0}
    answer = client.chat.completions.create(
        model="demo", messages=MESSAGE, logprobs=True, top_logprobs=3, stream=stream, **request
    )
    choices = [c for part in answer for c in part.choices] if stream else answer.choices
    content = [entry for c in choices if c.logprobs for entry in c.logprobs.content]
    alone = offline(demo, vectors, MESSAGE, request)
    assert [entry.logprob for entry in content] == pytest.approx(alone.log_probs, abs=1e-4)
    assert [entry.token for entry in content] == [demo.tokenizer.decode([t]) for t in alone.tokens]
    for entry in content:
        assert [entry.token, *entry.bytes] == [entry.top_logprobs[0].token, *entry.token.encode()]  # greedy
        assert len(entry.top_logprobs) == 3


def test_roles_and_parts_are_the_chats_own(client: Any, demo: Any, vectors: dict[str, Served]) -> None:
    parts = [{"type": "text", "text": "I failed "}, {"type": "text", "text": "my exam."}]
    theirs = [{"role": "developer", "content": "Be brief."}, {"role": "user", "content": parts}]
    ours = [{"role": "system", "content": "Be brief."}, *MESSAGE]
    reply = client.chat.completions.create(model="demo", messages=theirs, seed=2, max_completion_tokens=25)
    assert reply.choices[0].message.content == offline(demo, vectors, ours, {"seed": 2, "max_tokens": 25}).text


REFUSED = {
    "no such vector": ({"steering": {"vector": "suport"}}, 400, "Did you mean 'support'"),
    "no such positions": ({"steering": {"vector": "support", "positions": "now"}}, 400, "Unknown positions"),
    "two doses": ({"steering": {"vector": "support", "strength": 1, "drift": 0.1}}, 400, "give one"),
    "drift not measured": ({"steering": {"vector": "support", "drift": 0.1}}, 400, "--measure-drift"),
    "no finite strength": ({"steering": {"vector": "support", "strength": "1"}}, 400, "steering.strength"),
    "no such model": ({"model": "gpt-5"}, 404, "use 'demo'"),
    "several replies": ({"n": 2}, 400, "n:"),
    "unknown field": ({"tools": []}, 400, "tools"),
    "no messages": ({"messages": []}, 400, "messages"),
    "an empty message": ({"messages": [{"role": "user", "content": " "}]}, 400, "empty"),
    "an unknown role": ({"messages": [{"role": "judge", "content": "x"}]}, 400, "messages.0.role"),
    "half a character": ({"messages": [{"role": "user", "content": "\ud800"}]}, 400, "surrogate"),
    "an image": ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, 400, "messages.0.content"),
    "too long a reply": ({"max_tokens": 5000}, 400, "at most 1024"),
    "too long a prompt": ({"messages": [{"role": "user", "content": "word " * 3000}]}, 400, "context"),
    "no temperature": ({"temperature": -1}, 400, "temperature"),
    "an empty stop": ({"stop": [""]}, 400, "stop"),
    "a seed that is none": ({"seed": 1.5}, 400, "seed"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_request_that_cannot_be_used_is_refused_in_one_line(address: str, name: str) -> None:
    change, status, says = REFUSED[name]
    found, body = post(address, {"model": "demo", "messages": MESSAGE} | change)
    assert found == status
    assert says in body["error"]["message"]
    assert "\n" not in body["error"]["message"]


def post(address: str, body: Any, **headers: str) -> tuple[int, Any]:
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    there = f"{address}/v1/chat/completions"
    asked = urllib.request.Request(there, data, {"Content-Type": "application/json"} | headers)
    try:
        with urllib.request.urlopen(asked) as answer:
            return answer.status, json.load(answer)
    except urllib.error.HTTPError as error:
        return error.code, json.load(error)


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b"null", b"\xff\xfe", b'{"model": NaN}', b"[" * 5000])
def test_what_is_no_request_is_refused(address: str, body: bytes) -> None:
    status, answer = post(address, body)
    assert status == 400
    assert answer["error"]["type"] == "invalid_request_error"
    assert answer["error"]["param"] != "0"


def test_every_refusal_is_counted_in_the_words_of_a_request(address: str) -> None:
    def refused() -> float:
        said = urllib.request.urlopen(f"{address}/metrics").read().decode()
        found = re.search(r'star_tl_replies_total\{outcome="refused"\} ([\d.]+)', said)
        return float(found[1]) if found else 0.0

    before, said = refused(), [{"role": "user", "content": "Hi"}]
    messages = [
        post(address, body)[1]["error"]["message"]
        for body in (
            b"{",
            {"model": "demo", "messages": said, "temperature": -1},
            {"model": "other", "messages": said},
            {"model": "demo", "messages": [{"role": "user", "content": "word " * 3000}], "max_tokens": 5},
        )
    ]
    assert refused() == before + 4
    assert messages[0].startswith("The body is no JSON")
    assert "lower max_tokens" in messages[3]
    assert "Prompt 0" not in messages[3]


def test_bodies_of_another_kind_or_for_another_host_are_refused(address: str) -> None:
    good = {"model": "demo", "messages": MESSAGE, "max_tokens": 2}
    assert post(address, good)[0] == 200
    assert post(address, good, **{"Content-Type": "text/plain"})[0] == 415  # what any web page may send
    assert post(address, good, Host="evil.example")[0] == 400


def raw(address: str, head: str, *parts: bytes) -> str:
    """The first line of the answer to what is sent as it stands."""
    host, port = address.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=60) as there:
        there.sendall(f"POST /v1/chat/completions HTTP/1.1\r\nHost: {host}\r\n{head}\r\n\r\n".encode())
        for part in parts:
            try:
                there.sendall(part)
            except OSError:  # refused before it was all sent
                break
        return there.recv(4096).decode().split("\r\n")[0]


JSON = "Content-Type: application/json\r\n"


def test_a_body_that_is_too_large_is_refused_before_it_is_read(address: str) -> None:
    assert " 413 " in raw(address, f"{JSON}Content-Length: 100000000")  # of which nothing is sent
    chunk = b"1000\r\n" + b"x" * 4096 + b"\r\n"
    assert " 413 " in raw(address, f"{JSON}Transfer-Encoding: chunked", *[chunk] * 17)


def test_a_body_that_does_not_come_is_not_waited_for(impatient: str) -> None:
    assert " 408 " in raw(impatient, f"{JSON}Content-Length: 100", b'{"model": ')
    client = openai.OpenAI(base_url=f"{impatient}/v1", api_key="none", max_retries=0)
    assert client.chat.completions.create(model="demo", messages=MESSAGE, max_tokens=3).choices


@pytest.mark.parametrize("begun", [b"", b"POST /v1/chat/comp", b"GET /health HTTP/1.1\r\nHost: 127.0.0.1\r\n"])
def test_a_request_that_does_not_come_is_not_waited_for(impatient: str, begun: bytes) -> None:
    host, port = impatient.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=60) as there:
        there.sendall(begun)
        assert there.recv(4096) == b"", "the connection is still open"


def test_a_client_that_does_not_read_holds_no_row(address: str) -> None:
    before = measured(address)
    data = json.dumps(ENDLESS | {"stream": True, "max_tokens": 200, "logprobs": True, "top_logprobs": 20}).encode()
    host, port = address.removeprefix("http://").split(":")
    with socket.socket() as there:
        there.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
        there.connect((host, int(port)))
        head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: {host}\r\n{JSON}Content-Length: {len(data)}\r\n\r\n"
        there.sendall(head.encode() + data)
        until(lambda: measured(address)["star_tl_tokens"] >= before["star_tl_tokens"] + 200, "the reply was written")
        until(lambda: measured(address)["star_tl_rows_running"] == 0, "the row is free")


@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_goes_away_frees_its_row(address: str, monkeypatch, stream: bool) -> None:
    own = RunningBatch.step
    monkeypatch.setattr(RunningBatch, "step", lambda self: (time.sleep(0.02), own(self)))  # 900 tokens take 18 s then
    before = measured(address)
    data = json.dumps(ENDLESS | {"stream": stream}).encode()
    host, port = address.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port))) as there:
        head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: {host}\r\n{JSON}Content-Length: {len(data)}\r\n\r\n"
        there.sendall(head.encode() + data)
        until(lambda: measured(address)["star_tl_tokens"] > before["star_tl_tokens"], "the row was written")
        if stream:
            assert b"data: " in there.recv(4096)
    until(lambda: measured(address)["star_tl_rows_running"] == 0, "the row is free")
    after = measured(address)
    assert after.get("star_tl_replies_totalgone", 0) == before.get("star_tl_replies_totalgone", 0) + 1
    assert after["star_tl_tokens"] - before["star_tl_tokens"] < 900


def ask(model: Any, tokens: int, seed: int = 0) -> Asked:
    sampling = Sampling(max_new_tokens=tokens)
    (ids,) = render_prompts(model, [MESSAGE], tokens)
    return Asked(model, ids, [], seed, sampling)


def test_a_job_that_is_given_up_is_not_in_the_next_step(tiny: Any) -> None:
    steps: list[list[Job]] = []
    jobs = [Job(ask(tiny, 40, seed)) for seed in range(3)]
    ready = threading.Event()

    def notify(touched: Sequence[Job]) -> None:
        steps.append(list(touched))
        if len(steps) == 8:  # in the engine's own thread: between two steps
            engine.cancel(jobs[1])
        if len(steps) > 20:
            ready.set()

    engine = Engine(tiny, Limits(), notify)
    for job in jobs:
        engine.submit(job)
    assert ready.wait(60)
    engine.close()
    assert jobs[1] in steps[7]
    assert all(jobs[1] not in touched for touched in steps[8:-1])
    assert any(jobs[0] in touched for touched in steps[8:-1])


def test_a_full_queue_refuses_and_a_closed_engine_says_so(tiny: Any) -> None:
    engine = Engine(tiny, Limits(rows=1, waiting=2), lambda jobs: hold.wait(60))
    hold = threading.Event()
    jobs = [Job(ask(tiny, 400)) for _ in range(4)]
    engine.submit(jobs[0])
    until(lambda: engine.running == 1, "the first is written")
    for job in jobs[1:3]:
        engine.submit(job)
    with pytest.raises(Full):
        engine.submit(jobs[3])
    hold.set()
    engine.close()
    assert all(job.done for job in jobs[:3])
    assert jobs[2].error
    with pytest.raises(Full):
        engine.submit(jobs[3])


def test_a_full_queue_is_429_and_an_engine_that_failed_goes_on(demo, vectors, monkeypatch) -> None:
    with served(demo, vectors, Limits(rows=1, waiting=1)) as address:
        threads = [threading.Thread(target=post, args=(address, ENDLESS)) for _ in range(2)]
        hold, own = threading.Event(), RunningBatch.step
        with monkeypatch.context() as held:
            held.setattr(RunningBatch, "step", lambda self: (hold.wait(60), own(self)))
            for thread, row in zip(threads, ("star_tl_rows_running", "star_tl_rows_waiting"), strict=True):
                thread.start()
                until(lambda: measured(address)[row] == 1, f"{row} is 1")  # noqa: B023
            status, body = post(address, ENDLESS)
            assert (status, body["error"]["code"]) == (429, "queue_full")
            hold.set()
        for thread in threads:
            thread.join()
        with monkeypatch.context() as broken:
            broken.setattr(RunningBatch, "step", lambda self: 1 / 0)
            status, body = post(address, ENDLESS)
            assert (status, body["error"]["type"]) == (500, "server_error")
        assert post(address, {"model": "demo", "messages": MESSAGE, "max_tokens": 3})[0] == 200


def test_after_a_step_that_failed_the_next_jobs_find_the_memory_that_was_there(tiny: Any, monkeypatch) -> None:
    """Measured while the failed batch still lies in memory there would be too little, for ever."""
    engine = Engine(tiny, Limits(), lambda jobs: None)
    with monkeypatch.context() as broken:
        broken.setattr(RunningBatch, "step", lambda self: 1 / 0)
        broken.setattr("star_tl.generation.running.cache_columns", lambda model: 1)
        first = Job(ask(tiny, 4))
        engine.submit(first)
        until(lambda: first.done, "the first is given up")
    second = Job(ask(tiny, 4))
    engine.submit(second)
    until(lambda: second.done, "the second is written")
    engine.close()
    assert first.error
    assert second.error is None


def test_what_memory_can_never_hold_is_400_and_counted(demo, vectors, monkeypatch) -> None:
    monkeypatch.setattr("star_tl.generation.running.cache_columns", lambda model: 40)
    with served(demo, vectors, Limits()) as address:
        before = measured(address).get("star_tl_replies_totalrefused", 0)
        status, body = post(address, {"model": "demo", "messages": MESSAGE, "max_tokens": 900})
        assert status == 400
        assert "Memory is too small" in body["error"]["message"]
        assert measured(address)["star_tl_replies_totalrefused"] == before + 1


def test_a_key_is_asked_for(demo: Any, vectors: dict[str, Served]) -> None:
    key = "0123456789abcdef"
    with served(demo, vectors, Limits(), key) as address:
        for given, right in ((key, True), (key[:-1], False), ("é" * 16, False)):
            bearer = f"Bearer {given}".encode().decode("latin-1")
            asked = {"model": "demo", "messages": MESSAGE, "max_tokens": 2}
            status, _ = post(address, asked, Authorization=bearer)
            assert status == (200 if right else 401)
        client = openai.OpenAI(base_url=f"{address}/v1", api_key=key, max_retries=0)
        assert [m.id for m in client.models.list()] == ["demo"]
        with pytest.raises(openai.AuthenticationError):
            client.with_options(api_key="wrong").models.list()
        assert urllib.request.urlopen(f"{address}/health").status == 200
        with pytest.raises(urllib.error.HTTPError, match="401"):
            urllib.request.urlopen(f"{address}/metrics")


def test_without_a_key_only_this_machine_may_ask() -> None:
    for host in ("127.0.0.1", "::1", "localhost", "127.8.0.1"):
        check_reach(host, None)
    for host in ("0.0.0.0", "::", "192.168.1.4", "example.org", ""):
        with pytest.raises(StarError, match="--api-key"):
            check_reach(host, None)
        check_reach(host, "0123456789abcdef")
    for key in ("", "short", "ümlaute-und-noch-mehr", "with a blank in it"):
        with pytest.raises(StarError, match="API key"):
            check_reach("127.0.0.1", key)


def test_a_connection_too_many_is_refused_and_those_that_there_are_are_answered(demo: Any, vectors: Any) -> None:
    limits = Limits(rows=1, waiting=1, patience=20.0)
    with served(demo, vectors, limits) as address, ExitStack() as idle:
        host, port = address.removeprefix("http://").split(":")
        first = http.client.HTTPConnection(host, int(port), timeout=20)
        first.request("GET", "/health")
        assert first.getresponse().read()
        for _ in range(limits.rows + limits.waiting + 63):
            idle.enter_context(socket.create_connection((host, int(port))))

        def refused() -> bool:
            with socket.create_connection((host, int(port)), timeout=20) as one:
                one.settimeout(0.5)
                try:
                    return one.recv(1 << 16).startswith(b"HTTP/1.1 503 ")
                except TimeoutError:  # some of the others are not taken in yet
                    return False

        until(refused, "one more is refused")
        with pytest.raises(urllib.error.HTTPError) as caught:
            urllib.request.urlopen(f"{address}/health")
        assert caught.value.code == 503
        assert json.loads(caught.value.read())["error"]["code"] == "overloaded"
        for _ in range(3):
            first.request("GET", "/health")
            answer = first.getresponse()
            assert (answer.status, bool(answer.read())) == (200, True)
        first.close()


def test_a_reply_is_sent_back_as_openais_client_holds_it(client: Any, demo: Any) -> None:
    said: list[Any] = list(MESSAGE)
    for way in (lambda m: m, lambda m: m.model_dump()):
        more = client.chat.completions.create(model="demo", messages=said, max_tokens=8, seed=0)
        said += [way(more.choices[0].message), {"role": "user", "content": "And then?"}]
    last = client.chat.completions.create(model="demo", messages=said, max_tokens=8, seed=0)
    plain = [{"role": m["role"], "content": m["content"]} if isinstance(m, dict) else m for m in said]
    plain = [m if isinstance(m, dict) else {"role": m.role, "content": m.content} for m in plain]
    (offline_reply,) = star.generate(demo, [plain], max_new_tokens=8, temperature=1.0, progress=False)
    assert last.choices[0].message.content == offline_reply.text


def test_names_of_headers_and_schemes_are_read_in_either_case(demo: Any, vectors: Any) -> None:
    key = "0123456789abcdef"
    body = json.dumps({"model": "demo", "messages": MESSAGE, "max_tokens": 2}).encode()
    with served(demo, vectors, Limits(), key) as address:
        for scheme, given, status in (("bearer", key, 200), ("BEARER", key, 200), ("Basic", key, 401), (key, "", 401)):
            headers = {"authorization": f"{scheme} {given}".strip(), "Content-Type": "Application/JSON; charset=utf-8"}
            asked = urllib.request.Request(f"{address}/v1/chat/completions", body, headers)
            if status == 200:
                assert urllib.request.urlopen(asked).status == status
            else:
                with pytest.raises(urllib.error.HTTPError, match=str(status)):
                    urllib.request.urlopen(asked)


def test_models_and_health_say_what_is_served(client: Any, address: str, vectors: dict[str, Served]) -> None:
    (model,) = client.models.list()
    assert model.id == "demo"
    assert {v["id"]: v["locus"] for v in model.vectors} == {n: str(v.vector.locus) for n, v in vectors.items()}
    assert client.models.retrieve("demo") == model
    with pytest.raises(openai.NotFoundError, match="use 'demo'"):
        client.models.retrieve("dem/o")
    assert json.load(urllib.request.urlopen(f"{address}/health"))["status"] == "ok"


def test_a_drift_is_a_strength_that_drifts_so_much(demo: Any, vectors: dict[str, Served]) -> None:
    support = with_drift(vectors["support"], demo)
    for strength, drift in support.doses:
        if drift == max(d for s, d in support.doses if s <= strength):
            assert support.strength_at(drift) == pytest.approx(strength)
    strengths = [support.strength_at(d) for d in (0.0, 0.01, 0.03, 0.05)]
    assert strengths[0] == 0
    assert strengths == sorted(strengths)
    with pytest.raises(StarError, match="was measured from 0"):
        support.strength_at(100.0)
    # On other prompts than those that it was measured on.
    pairs = star.load_pairs("emotional_support")
    chats = pairs.heldout.prompts
    condition = Condition("steered", support.vector, support.strength_at(0.05))
    replies = star.generate(demo, chats, condition=condition, progress=False)
    assert 0.025 < star.score(demo, pairs.trait, chats, replies, condition).drift.mean() < 0.1


def test_two_vectors_of_one_name_are_refused(demo: Any, vectors: dict[str, Served], tmp_path: Path) -> None:
    paths = [tmp_path / "a" / "v.safetensors", tmp_path / "b" / "v.safetensors"]
    for path in paths:
        vectors["support"].vector.save(path)
    assert list(read_vectors(paths[:1], demo)) == ["v"]
    with pytest.raises(StarError, match="rename"):
        read_vectors(paths, demo)


class Letters:
    """A tokenizer of bytes; a letter of two bytes is half a character after the first."""

    eos_token_id, clean_up_tokenization_spaces = None, False

    def decode(self, ids: Sequence[int], skip_special_tokens: bool = False) -> str:
        return bytes(ids).decode(errors="replace")


@pytest.mark.parametrize("stop", [(), ("END",), ("ss", "s ")])
@pytest.mark.parametrize("text", ["  Grüße an alle.  ", "EN ENEND after", "no stress", "🙂🙂"])
def test_a_stream_never_takes_back_what_it_has_sent(text: str, stop: tuple[str, ...]) -> None:
    from star_tl.generation.writing import Writing

    writing = Writing(Letters(), (1,), 0, Sampling(max_new_tokens=len(text.encode()), stop=stop), frozenset())
    sent = ""
    for token in text.encode():
        writing.take(token)
        now = printable_text(writing)
        assert now.startswith(sent)
        sent = now
    assert writing.ended is not None
    assert sent == writing.reply.text


def test_a_stop_string_is_not_sent_between_its_last_token_and_the_end_it_brings() -> None:
    """The engine's thread appends a token, and looks for the stop string only then."""
    from star_tl.generation.writing import Writing

    writing = Writing(Letters(), (1,), 0, Sampling(max_new_tokens=9, stop=("END",)), frozenset())
    writing.tokens.extend(b"so END")
    assert writing.ended is None
    assert printable_text(writing) == "so"


@contextmanager
def command(*arguments: str) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """``star-tl serve`` in a process of its own, and its address."""
    code = "from star_tl.cli import app; app()"
    process = subprocess.Popen(
        [sys.executable, "-c", code, "serve", "--port", "0", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=os.environ | {"PYTHONUNBUFFERED": "1"},
    )
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        found = re.search(r"http://\S+", line)
        assert found, line + process.stdout.read()
        yield process, found[0]
    finally:
        process.kill()
        process.wait()


def test_a_stop_lets_replies_end(demo: Any, vectors: dict[str, Served], tmp_path: Path) -> None:
    vectors["agree"].vector.save(tmp_path / "agree.safetensors")
    request = {"seed": 1, "max_tokens": 400, "extra_body": {"steering": ENDLESS["steering"]}}
    with command("--vector", str(tmp_path / "agree.safetensors")) as (process, address):
        client = openai.OpenAI(base_url=f"{address}/v1", api_key="none", max_retries=0)
        stream = client.chat.completions.create(model="demo", messages=MESSAGE, stream=True, **request)
        parts = [next(stream)]
        process.send_signal(signal.SIGTERM)
        parts += stream
        assert process.wait(60) == -signal.SIGTERM  # which uvicorn raises again when it is done
    text = "".join(c.delta.content or "" for part in parts for c in part.choices)
    assert text == offline(demo, vectors, MESSAGE, request).text
    assert parts[-1].choices[0].finish_reason


def test_the_page_chats_under_the_slider_and_shows_text_as_text(
    address: str, demo: Any, vectors: dict[str, Served]
) -> None:
    sync_api = pytest.importorskip("playwright.sync_api")
    chromium = shutil.which("chromium")
    if chromium is None:
        pytest.skip("chromium is not installed: apt install chromium")
    evil = "<img src=x onerror='document.title=1'>"
    request = {"seed": 4, "max_tokens": 900, "temperature": 0}
    request["extra_body"] = {"steering": {"vector": "thanks", "strength": 2.5}}
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox", "--disable-gpu"])
        page = browser.new_page()
        problems: list[str] = []
        page.on("pageerror", lambda error: problems.append(str(error)))
        page.on("console", lambda message: message.type == "error" and problems.append(message.text))
        page.goto(address)
        page.locator("#vector option[value=thanks]").wait_for(state="attached")
        page.select_option("#vector", "thanks")
        page.fill("#temperature", "0")
        page.fill("#seed", "4")
        page.locator("#strength").fill("2.5")
        assert page.text_content("#shown") == "2.5"
        page.fill("#text", f"I failed my exam. {evil}")
        page.click("#send")
        page.locator("#send:enabled").wait_for()
        assert page.locator("#chat img").count() == 0
        assert evil in page.text_content("#chat .user")
        first = [{"role": "user", "content": f"I failed my exam. {evil}"}]
        assert page.text_content("#chat .assistant span") == offline(demo, vectors, first, request).text
        assert page.text_content("#chat .assistant small") == "thanks × 2.5"
        page.route("**/v1/chat/completions", lambda route: route.fulfill(body=event(evil)))  # a model that is evil
        page.fill("#text", "And now?")
        page.press("#text", "Enter")
        page.locator("#chat .assistant").nth(1).wait_for()
        page.locator("#send:enabled").wait_for()
        assert page.locator("#chat .assistant span").nth(1).text_content() == evil
        assert page.locator("#chat img").count() == 0
        assert not [p for p in problems if "favicon" not in p]
        browser.close()


def event(text: str) -> str:
    return f"data: {json.dumps({'choices': [{'delta': {'content': text}}]})}\n\ndata: [DONE]\n\n"


@pytest.mark.parametrize("mode", ["positive", "negative"])
def test_the_schema_is_kept_whatever_is_sent(demo: Any, vectors: dict[str, Served], mode: str) -> None:
    schemathesis = pytest.importorskip("schemathesis")
    from hypothesis import HealthCheck, given, settings
    from schemathesis import GenerationMode
    from schemathesis.checks import not_a_server_error
    from schemathesis.specs.openapi import checks

    kept = (
        not_a_server_error,
        checks.status_code_conformance,
        checks.content_type_conformance,
        checks.response_schema_conformance,
    )
    statuses: set[int] = set()
    with served(demo, vectors, Limits(tokens=8)) as address:
        schema = schemathesis.openapi.from_url(f"{address}/openapi.json")
        for operation in schema.get_all_operations():

            @given(case=operation.ok().as_strategy(generation_mode=GenerationMode(mode)))
            @settings(max_examples=40, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
            def call(case: Any) -> None:
                answer = case.call()
                statuses.add(answer.status_code)
                case.validate_response(answer, checks=kept)

            if mode == "positive" or operation.ok().method == "post":
                call()
        # The schema does not know the model's name: one that fits it is asked for by hand.
        statuses.add(post(address, {"model": "demo", "messages": MESSAGE})[0])
    assert statuses >= ({200, 404} if mode == "positive" else {400})
