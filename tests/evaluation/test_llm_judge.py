"""The LLM judge against a local server: what it is told, what its answers mean, and what becomes of its failures."""

from __future__ import annotations

import json
import math
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from star_tl.data.pairs import Trait
from star_tl.errors import StarError
from star_tl.evaluation.llm_judge import LLMJudge

TRAIT = Trait("dry_wit", "Be wry.", "Be earnest.", (), "Saying funny things with a straight face.")


class Endpoint(ThreadingHTTPServer):
    """Answers by the reply that it is asked to grade: a content, a status, or raw bytes, one after the other."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.answers: dict[str, list[object]] = {}
        self.asked: list[tuple[str, dict, str | None]] = []
        self.lock = threading.Lock()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/v1"


class Handler(BaseHTTPRequestHandler):
    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        said = body["messages"][-1]["content"].split("<reply>\n")[1].removesuffix("\n</reply>")
        with self.server.lock:
            self.server.asked.append((self.path, body, self.headers["Authorization"]))
            waiting = self.server.answers[said]
            answer = waiting.pop(0) if len(waiting) > 1 else waiting[0]
        if answer is None:
            self.connection.close()
            return
        status = answer if isinstance(answer, int) else 200
        raw = (
            answer
            if isinstance(answer, bytes)
            else json.dumps({"choices": [{"message": {"content": answer}}]}).encode()
        )
        self.send_response(status)
        self.send_header("Content-Length", str(len(raw)))
        self.end_headers()
        self.wfile.write(raw)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def endpoint() -> Iterator[Endpoint]:
    server = Endpoint()
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield server
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.mark.parametrize(
    ("answer", "score"),
    [("7", 0.7), ("0", 0.0), ("10", 1.0), (" 3.\n", 0.3), ("8/10", 0.8), ("**4**", 0.4), ("Grade: 6", 0.6)],
)
def test_a_grade_is_divided_by_ten(endpoint, answer, score):
    endpoint.answers = {"Fine.": [answer]}
    assert LLMJudge(TRAIT, endpoint.url, "m").score(["Fine."]).tolist() == pytest.approx([score])


NO_GRADES = ["eleven", "11", "", "-3", "7 or 8", "I can't judge that.", {}]
NO_ANSWERS = [None, b"<html>", b"[]", b'{"choices": []}', 500, 401]


@pytest.mark.parametrize("answer", NO_GRADES + NO_ANSWERS, ids=repr)
def test_a_failed_judgement_is_missing_and_not_zero(endpoint, answer):
    endpoint.answers = {"good": ["9"], "bad": [answer]}
    judge = LLMJudge(TRAIT, endpoint.url, "m", retries=0)
    with pytest.warns(UserWarning, match=r"^2 of 3 judgements of http[^\n]+ failed and are missing[^\n]+$"):
        scores = judge.score(["bad", "good", "bad"])
    assert math.isnan(scores[0])
    assert math.isnan(scores[2])
    assert float(scores[1]) == pytest.approx(0.9)


def test_grades_keep_the_order_of_the_texts_however_they_come_back(endpoint):
    texts = [f"text {i}" for i in range(40)]
    endpoint.answers = {text: [str(i % 11)] for i, text in enumerate(texts)}
    scores = LLMJudge(TRAIT, endpoint.url, "m").score(texts)
    assert scores.tolist() == pytest.approx([(i % 11) / 10 for i in range(40)])


def test_a_busy_endpoint_is_asked_again_and_a_refusing_one_is_not(endpoint):
    endpoint.answers = {"busy": [429, 503, "5"], "refused": [400, "5"]}
    with pytest.warns(UserWarning, match="HTTP status 400"):
        busy, refused = LLMJudge(TRAIT, endpoint.url, "m", retries=2).score(["busy", "refused"]).tolist()
    assert busy == pytest.approx(0.5)
    assert math.isnan(refused)
    assert len(endpoint.asked) == 4


def test_the_judge_is_told_the_trait_the_conversation_and_the_reply(endpoint):
    endpoint.answers = {"How droll.": ["5"]}
    prompt = [
        {"role": "system", "content": "Be wry, says the primed run."},
        {"role": "user", "content": "It rains."},
        {"role": "assistant", "content": "Again?"},
        {"role": "user", "content": "Again."},
    ]
    LLMJudge(TRAIT, f"{endpoint.url}/", "small-1", api_key="secret").score(["How droll."], [prompt])
    ((path, body, key),) = endpoint.asked
    assert path == "/v1/chat/completions"
    assert (body["model"], body["temperature"], key) == ("small-1", 0, "Bearer secret")
    system, user = (m["content"] for m in body["messages"])
    for words in ("dry wit", TRAIT.description, TRAIT.positive_instruction, TRAIT.negative_instruction, "10"):
        assert words in system
    assert "user: It rains.\nassistant: Again?\nuser: Again." in user
    assert "says the primed run" not in user, "which would tell the judge the arm"


def test_an_empty_reply_is_not_sent(endpoint):
    endpoint.answers = {"x": ["1"]}
    empty, x = LLMJudge(TRAIT, endpoint.url, "m").score([" \n", "x"]).tolist()
    assert math.isnan(empty)
    assert x == pytest.approx(0.1)
    assert len(endpoint.asked) == 1
    assert LLMJudge(TRAIT, endpoint.url, "m").score([]).shape == (0,)


def test_nobody_at_the_url_is_missing_with_the_reason():
    with pytest.warns(UserWarning, match=r"^1 of 1 judgements of http://127[^\n]+ConnectError[^\n]+$"):
        (score,) = LLMJudge(TRAIT, "http://127.0.0.1:9", "m", api_key="secret", retries=0).score(["a"]).tolist()
    assert math.isnan(score)


@pytest.mark.parametrize(
    ("settings", "fault"),
    [
        ({"url": "localhost:80"}, "begins with http"),
        ({"model": ""}, "model's name"),
        ({"timeout": 0}, "timeout"),
        ({"retries": -1}, "retries"),
        ({"parallel": 0}, "parallel"),
    ],
)
def test_settings_that_cannot_work_are_refused(settings, fault):
    with pytest.raises(StarError, match=rf"^[^\n]*{fault}[^\n]*$"):
        LLMJudge(**{"trait": TRAIT, "url": "http://x", "model": "m"} | settings)


def test_the_key_is_not_shown():
    assert "secret" not in repr(LLMJudge(TRAIT, "http://x", "m", api_key="secret"))


def test_as_many_prompts_as_texts():
    with pytest.raises(StarError, match=r"^An LLM judge needs as many prompts as texts, or none\.$"):
        LLMJudge(TRAIT, "http://x", "m").score(["a", "b"], ["a"])
