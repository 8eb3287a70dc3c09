"""What stands before the application: who may ask, how much, and how long it may take to ask."""

from __future__ import annotations

import asyncio
import hmac
import re

from starlette.datastructures import Headers
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from star_tl.serve.engine import Limits

_OPEN = ("/", "/health")  # answered without a key


def refusal(status: int, message: str, code: str | None = None, param: str | None = None) -> JSONResponse:
    """An answer in the form of OpenAI's errors."""
    kind = "server_error" if status >= 500 else "rate_limit_error" if status == 429 else "invalid_request_error"
    body = {"error": {"message": message, "type": kind, "param": param, "code": code}}
    headers = {401: {"WWW-Authenticate": "Bearer"}, 429: {"Retry-After": "1"}}.get(status)
    return JSONResponse(body, status, headers)


class Guard:
    """Refuses foreign hosts, wrong keys, and bodies that are too large, too slow or no JSON; reads the others whole.

    Without a key only requests that name one of ``hosts`` are answered: a page that points a name of its own at this
    machine could else have a visitor's browser ask.
    """

    def __init__(self, app: ASGIApp, limits: Limits, key: str | None, hosts: tuple[str, ...]) -> None:
        self.app, self.limits, self.key, self.hosts = app, limits, key, hosts

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        refused, body = self._refused(scope, headers), None
        if refused is None:
            try:
                body = await asyncio.wait_for(self._body(headers, receive), self.limits.patience)
            except asyncio.TimeoutError:
                refused = refusal(408, "The request's body did not arrive in time: send it again.", "timeout")
            else:
                most = f"{self.limits.body} bytes"
                refused = refusal(413, f"The request is larger than {most}: shorten it.", "request_too_large")
        if body is not None:
            await self.app(scope, _replayed(body, receive), send)
            return
        refused.headers["Connection"] = "close"
        await refused(scope, receive, send)

    def _refused(self, scope: Scope, headers: Headers) -> JSONResponse | None:
        if self.key is None:
            host = re.sub(r":\d+$", "", headers.get("host", ""))
            if host.lower() not in self.hosts:
                return refusal(400, "This server answers to its own name only: use 127.0.0.1.", "unknown_host")
        elif scope["path"] not in _OPEN:
            scheme, _, given = headers.get("authorization", "").partition(" ")
            if not hmac.compare_digest(given.encode(), self.key.encode()) or scheme.lower() != "bearer":
                return refusal(401, "The API key is missing or wrong: send it as a bearer token.", "invalid_api_key")
        sent = headers.get("content-type", "").split(";")[0].strip().lower()
        if scope["method"] == "POST" and sent != "application/json":
            return refusal(415, "Send JSON, with Content-Type: application/json.", "unsupported_media_type")
        return None

    async def _body(self, headers: Headers, receive: Receive) -> bytes | None:
        """The request's body; None where it is too large, of which no more is read than that shows."""
        announced = headers.get("content-length", "0")
        if not announced.isdigit() or int(announced) > self.limits.body:
            return None
        body = bytearray()
        while True:
            message = await receive()
            if message["type"] != "http.request":
                return bytes(body)  # gone: the next message says so again
            body += message.get("body", b"")
            if len(body) > self.limits.body:
                return None
            if not message.get("more_body", False):
                return bytes(body)


def _replayed(body: bytes, receive: Receive) -> Receive:
    given = False

    async def replay() -> Message:
        nonlocal given
        if given:
            return await receive()
        given = True
        return {"type": "http.request", "body": body, "more_body": False}

    return replay
