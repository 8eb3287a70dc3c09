"""The application: OpenAI's chat completions over one engine."""

from __future__ import annotations

import asyncio
import json
import secrets
import time
import uuid
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import replace
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse, JSONResponse, Response, StreamingResponse
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException

from star_tl.data.chat import as_messages
from star_tl.errors import StarError
from star_tl.generation.running import Asked
from star_tl.generation.sampling import render_prompts
from star_tl.generation.settings import Sampling
from star_tl.models.backend import Model, tokenizer_of
from star_tl.models.load import fingerprint
from star_tl.serve.engine import Engine, Full, Job, Limits
from star_tl.serve.guard import Guard, refusal
from star_tl.serve.page import CONTENT_POLICY, PAGE
from star_tl.serve.text import printable_text
from star_tl.serve.vectors import Served, named
from star_tl.serve.wire import ChatReply, ChatRequest, Health, ModelCard, ModelList, Refusal
from star_tl.steering.condition import Condition
from star_tl.version import __version__

_BETWEEN = 0.05  # seconds between two parts of a stream, so that many streams do not cost a message a token
_MESSAGES = 400  # parts of all streams together a second, for the same reason
_DECODING = 0.1  # of the time at most goes into decoding the texts of streams, whose length the cost grows with
_BUCKETS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
COMPLETIONS = "/v1/chat/completions"
_LOOPBACK = ("127.0.0.1", "localhost", "[::1]")
_REFUSALS: dict[int | str, dict[str, Any]] = {
    400: {"model": Refusal, "description": "Something in the request cannot be used."},
    401: {"model": Refusal, "description": "The API key is missing or wrong."},
    404: {"model": Refusal, "description": "There is no such model."},
    408: {"model": Refusal, "description": "The body did not arrive in time."},
    413: {"model": Refusal, "description": "The body is too large."},
    415: {"model": Refusal, "description": "The body is no JSON."},
    429: {"model": Refusal, "description": "Too many requests wait."},
    500: {"model": Refusal, "description": "No reply could be written."},
}


class Completion:
    """A request that is being answered."""

    def __init__(self, job: Job, name: str, request: ChatRequest, condition: Condition) -> None:
        self.job, self.request, self.condition = job, request, condition
        self.changed, self.finished = asyncio.Event(), asyncio.Event()
        self.began = time.perf_counter()
        self.head = {
            "id": f"chatcmpl-{uuid.uuid4().hex}",
            "created": int(time.time()),
            "model": name,
            "seed": condition.seed,
            "steering": _steered(request, condition),
        }

    @property
    def problem(self) -> str | None:
        """Why there is no reply; None while there is one."""
        if self.job.asked.writing.ended == "broken":
            if self.condition.vector is None:
                return "The model's logits are NaN or infinite: load it in a wider dtype."
            return "Steered so, the model's logits are NaN or infinite: lower the strength."
        return self.job.error

    @property
    def finish_reason(self) -> str:
        """OpenAI's word for why the reply ended."""
        return "length" if self.job.asked.writing.ended == "length" else "stop"

    def usage(self) -> dict[str, int]:
        """Tokens so far."""
        writing = self.job.asked.writing
        prompt, written = len(writing.prompt), len(writing.tokens)
        return {"prompt_tokens": prompt, "completion_tokens": written, "total_tokens": prompt + written}

    def log_probs(self, start: int, stop: int) -> dict[str, object] | None:
        """OpenAI's form of the log-probabilities of these tokens; None where they were not asked for."""
        if not self.request.logprobs:
            return None
        asked = self.job.asked
        tokens, values, others = asked.writing.tokens, asked.writing.log_probs, asked.alternatives

        def entry(token: int, value: float) -> dict[str, object]:
            text = asked.writing.tokenizer.decode([token])
            return {"token": text, "logprob": value, "bytes": list(text.encode())}

        content = []
        for i in range(start, stop):
            top = [entry(t, v) for t, v in others[i]] if asked.top else []
            content.append(entry(tokens[i], values[i]) | {"top_logprobs": top})
        return {"content": content, "refusal": None}


def _steered(request: ChatRequest, condition: Condition) -> dict[str, object] | None:
    if request.steering is None:
        return None
    positions = "locus" if condition.positions is None else condition.positions
    where = positions if isinstance(positions, str) else list(positions)
    return {"vector": request.steering.vector, "strength": condition.strength, "positions": where}


class Metrics:
    """What Prometheus reads."""

    def __init__(self, engine: Engine) -> None:
        self.registry = CollectorRegistry()
        self.replies = Counter("star_tl_replies", "Answers by outcome.", ["outcome"], registry=self.registry)
        self.first = Histogram(
            "star_tl_first_token_seconds", "Time to a reply's first token.", buckets=_BUCKETS, registry=self.registry
        )
        for name, what, read in (
            ("star_tl_rows_running", "Replies that are being written.", lambda: engine.running),
            ("star_tl_rows_waiting", "Requests that wait for a row.", lambda: engine.waiting),
            ("star_tl_tokens", "Tokens written so far.", lambda: engine.tokens),
            ("star_tl_steps", "Steps of the running batch so far.", lambda: engine.steps),
        ):
            Gauge(name, what, registry=self.registry).set_function(read)


def make_app(
    model: Model,
    vectors: Mapping[str, Served],
    name: str,
    limits: Limits = Limits(),  # noqa: B008 - frozen
    key: str | None = None,
    hosts: Sequence[str] = _LOOPBACK,
) -> FastAPI:
    """The application; its engine runs from its start to its stop.

    Args:
        model: from :func:`star_tl.load_model`.
        vectors: by the names that requests use.
        name: of the model, which requests give.
        limits: what is taken.
        key: that requests must bear; None where nobody else can reach the server.
        hosts: names under which it answers where there is no key.
    """
    identity, started = fingerprint(model), int(time.time())
    state: dict[str, Any] = {}

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        loop = asyncio.get_running_loop()
        waiting: dict[Job, Completion] = {}

        def tell(jobs: list[Job]) -> None:
            for job in jobs:
                if reply := waiting.get(job):
                    reply.changed.set()
                    if job.done:
                        reply.finished.set()

        engine = Engine(model, limits, lambda jobs: loop.call_soon_threadsafe(tell, list(jobs)))
        state.update(engine=engine, waiting=waiting, metrics=Metrics(engine))
        yield
        await run_in_threadpool(engine.close)

    app = FastAPI(title="star_tl", version=__version__, lifespan=lifespan, redoc_url=None, docs_url=None)

    def prepared(request: ChatRequest) -> tuple[Job, Condition]:
        """The job that a request asks for. Raises StarError where it cannot be used."""
        condition = Condition(seed=secrets.randbelow(2**31) if request.seed is None else request.seed)
        steering = request.steering
        if steering is not None:
            served = named(dict(vectors), steering.vector)
            strength = 1.0 if steering.strength is None else steering.strength
            if steering.drift is not None:
                strength = served.strength_at(steering.drift)
            positions = tuple(steering.positions) if isinstance(steering.positions, list) else steering.positions
            condition = replace(condition, name="steered", vector=served.vector, strength=strength, positions=positions)
        prompt = as_messages([turn.message for turn in request.messages])
        most = request.max_tokens or request.max_completion_tokens
        if most is not None and most > limits.tokens:
            raise StarError(f"max_tokens is {most}: this server writes at most {limits.tokens}.")
        try:
            (ids,) = render_prompts(model, [prompt], most or 1)
        except StarError as error:  # in the words of a request
            raise StarError(
                str(error).replace("max_new_tokens", "max_tokens").replace("Prompt 0 has", "The prompt has")
            ) from None
        stop = (request.stop,) if isinstance(request.stop, str) else tuple(request.stop or ())
        sampling = Sampling(
            max_new_tokens=most or min(limits.tokens, model.cfg.n_ctx - len(ids)),
            stop=stop,
            log_probs=bool(request.logprobs),
            temperature=1.0 if request.temperature is None else request.temperature,
            top_p=1.0 if request.top_p is None else request.top_p,
        )
        rows = condition.rows(tokenizer_of(model), prompt)
        return Job(Asked(model, ids, rows, condition.seed, sampling, request.top_logprobs or 0)), condition

    @app.exception_handler(RequestValidationError)
    async def malformed(request: Request, error: RequestValidationError) -> Response:
        if request.url.path == COMPLETIONS:
            state["metrics"].replies.labels("refused").inc()
        first = error.errors()[0]
        if first["type"] == "json_invalid":
            return refusal(400, f"The body is no JSON: {first['ctx']['error']}.", "invalid_value")
        param = ".".join(str(part) for part in first["loc"] if part != "body")
        return refusal(400, f"{param or 'The body'}: {first['msg']}.", "invalid_value", param or None)

    @app.exception_handler(StarError)
    async def unusable(request: Request, error: StarError) -> Response:
        return refusal(400, str(error), "invalid_value")

    @app.exception_handler(HTTPException)
    async def unknown(request: Request, error: HTTPException) -> Response:
        answer = refusal(error.status_code, f"{request.method} {request.url.path}: {error.detail}.")
        answer.headers.update(error.headers or {})
        return answer

    @app.post(
        COMPLETIONS,
        response_model=ChatReply,
        responses=_REFUSALS | {200: {"content": {"text/event-stream": {}}}},
    )
    async def chat_completions(body: ChatRequest, request: Request) -> Response:
        metrics: Metrics = state["metrics"]
        engine: Engine = state["engine"]
        if body.model != name:
            metrics.replies.labels("refused").inc()
            return no_model(body.model)
        try:
            job, condition = await run_in_threadpool(prepared, body)
        except StarError:
            metrics.replies.labels("refused").inc()
            raise
        try:
            reply = Completion(job, name, body, condition)
            reply.head["system_fingerprint"] = identity
            state["waiting"][job] = reply
            engine.submit(job)
        except StarError:
            state["waiting"].pop(job, None)
            metrics.replies.labels("refused").inc()
            raise
        except Full:
            state["waiting"].pop(job, None)
            metrics.replies.labels("full").inc()
            return refusal(429, "Too many requests wait already: ask again later.", "queue_full")
        watch = asyncio.create_task(_gone(request, reply, engine))
        if body.stream:
            return StreamingResponse(parts(reply, watch), media_type="text/event-stream")
        try:
            while not (job.done or job.cancelled):
                await reply.changed.wait()
                reply.changed.clear()
                first_token(reply)
        finally:
            end(reply, watch)
        if job.cancelled:
            return Response(status_code=499)  # which nobody reads
        if reply.problem is not None:
            return refusal(400 if job.error is None else 500, reply.problem, "no_reply")
        written = len(job.asked.writing.tokens)
        choice = {
            "index": 0,
            "message": {"role": "assistant", "content": printable_text(job.asked.writing), "refusal": None},
            "logprobs": reply.log_probs(0, written),
            "finish_reason": reply.finish_reason,
        }
        content = reply.head | {"object": "chat.completion", "choices": [choice], "usage": reply.usage()}
        return JSONResponse(content)

    def no_model(wanted: str) -> Response:
        return refusal(404, f"There is no model {wanted!r}: use {name!r}.", "model_not_found", "model")

    def first_token(reply: Completion) -> None:
        if reply.began and reply.job.asked.writing.tokens:
            state["metrics"].first.observe(time.perf_counter() - reply.began)
            reply.began = 0.0

    def end(reply: Completion, watch: asyncio.Task[None]) -> None:
        watch.cancel()
        state["waiting"].pop(reply.job, None)
        done = reply.job.done
        if not done:
            state["engine"].cancel(reply.job)
        outcome = "gone" if not done else "failed" if reply.problem is not None else reply.finish_reason
        state["metrics"].replies.labels(outcome).inc()

    async def parts(reply: Completion, watch: asyncio.Task[None]) -> AsyncIterator[str]:
        """The stream: what is sure not to change, as it comes; then why it ended, and what was used."""
        job, head = reply.job, reply.head | {"object": "chat.completion.chunk"}
        usage = bool(reply.request.stream_options and reply.request.stream_options.include_usage)
        more = {"usage": None} if usage else {}
        sent, told, delta = "", 0, {"role": "assistant", "content": ""}
        try:
            while True:
                await reply.changed.wait()
                reply.changed.clear()
                if job.cancelled:
                    return
                done = job.done
                if reply.problem is not None:
                    yield _event({"error": {"message": reply.problem, "type": "server_error", "code": "no_reply"}})
                    return
                first_token(reply)
                began = time.thread_time()
                written, text = len(job.asked.writing.tokens), printable_text(job.asked.writing)
                streams = len(state["waiting"])
                pause = max(_BETWEEN, streams / _MESSAGES, (time.thread_time() - began) * streams / _DECODING)
                if reply.request.logprobs:
                    written = min(written, len(job.asked.writing.log_probs))
                if text.startswith(sent) and (text != sent or told == 0 or (written > told and reply.request.logprobs)):
                    delta = delta | {"content": text[len(sent) :]}
                    choice = {"index": 0, "delta": delta, "finish_reason": None}
                    part = _event(head | {"choices": [choice | {"logprobs": reply.log_probs(told, written)}]} | more)
                    sent, told, delta = text, written, {}
                else:
                    part = ""
                if done:
                    break
                if part:
                    yield part
                with suppress(asyncio.TimeoutError):
                    await asyncio.wait_for(reply.finished.wait(), pause)
            choice = {"index": 0, "delta": {}, "logprobs": None, "finish_reason": reply.finish_reason}
            part += _event(head | {"choices": [choice]} | more)
            if usage:
                part += _event(head | {"choices": [], "usage": reply.usage()})
            yield part + "data: [DONE]\n\n"  # at once: a message costs more than what it says
        finally:
            end(reply, watch)

    card = {
        "id": name,
        "created": started,
        "context": model.cfg.n_ctx,
        "max_tokens": limits.tokens,
        "vectors": [
            {
                "id": v.name,
                "trait": v.vector.trait,
                "locus": str(v.vector.locus),
                "fraction": v.vector.fraction,
                "drift": v.doses,
            }
            for v in vectors.values()
        ],
    }

    @app.get("/v1/models", response_model=ModelList, responses={401: _REFUSALS[401]})
    async def models() -> dict[str, object]:
        return {"data": [card]}

    @app.get("/v1/models/{wanted:path}", response_model=ModelCard, responses={k: _REFUSALS[k] for k in (401, 404)})
    async def one_model(wanted: str) -> Any:
        return card if wanted == name else no_model(wanted)

    @app.get("/health", response_model=Health)
    async def health() -> dict[str, object]:
        return {"running": state["engine"].running, "waiting": state["engine"].waiting}

    @app.get("/metrics", response_class=Response, responses={200: {"content": {"text/plain": {}}}, 401: _REFUSALS[401]})
    async def metrics() -> Response:
        return Response(generate_latest(state["metrics"].registry), media_type="text/plain; version=0.0.4")

    @app.get("/", response_class=HTMLResponse, include_in_schema=False)
    async def page() -> Response:
        return HTMLResponse(PAGE, headers={"Content-Security-Policy": CONTENT_POLICY})

    app.add_middleware(Guard, limits=limits, key=key, hosts=tuple(h.lower() for h in hosts))
    return app


async def _gone(request: Request, reply: Completion, engine: Engine) -> None:
    """Gives the row up as soon as the client has gone away."""
    while (await request.receive())["type"] != "http.disconnect":
        pass
    engine.cancel(reply.job)
    reply.changed.set()
    reply.finished.set()


def _event(data: Mapping[str, object]) -> str:
    return f"data: {json.dumps(data, ensure_ascii=False)}\n\n"
