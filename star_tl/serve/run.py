"""``star-tl serve``: the application behind uvicorn."""

from __future__ import annotations

import asyncio
import gc
import ipaddress
import socket
from collections.abc import Callable, Mapping

import uvicorn
from fastapi import FastAPI
from uvicorn.protocols.http.h11_impl import H11Protocol

from star_tl.errors import StarError
from star_tl.models.backend import Model
from star_tl.serve.app import make_app
from star_tl.serve.engine import Limits
from star_tl.serve.guard import refusal
from star_tl.serve.vectors import Served

_SHORTEST_KEY = 16
_HEARD_OUT = 1.0  # seconds
_BODY = bytes(refusal(503, "Too many connections are open: try again in a moment.", "overloaded").body)
_FULL = (
    b"HTTP/1.1 503 Service Unavailable\r\ncontent-type: application/json\r\nretry-after: 1\r\nconnection: close\r\n"
    b"content-length: %d\r\n\r\n%b" % (len(_BODY), _BODY)
)


def check_reach(host: str, key: str | None) -> None:
    """Raises StarError where others could reach the server and no key would be asked of them, or one easily guessed."""
    if key is not None and (len(key) < _SHORTEST_KEY or not key.isascii() or not key.isprintable() or " " in key):
        raise StarError(
            f"The API key must be {_SHORTEST_KEY} ASCII characters or more, without blanks: choose another."
        )
    if key is None and not _loopback(host):
        raise StarError(f"{host} can be reached from elsewhere: give --api-key, or bind 127.0.0.1.")


def serve(
    model: Model,
    vectors: Mapping[str, Served],
    name: str,
    host: str,
    port: int,
    limits: Limits,
    key: str | None,
    tell: Callable[[str], None],
) -> None:
    """Answer until a signal asks to stop; replies that are being written may then end. ``tell`` is given the address.

    Raises:
        StarError: the address cannot be bound, or it can be reached from elsewhere and there is no key.
    """
    check_reach(host, key)
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        bound = socket.create_server((host, port), family=family)
    except (OSError, OverflowError) as error:
        raise StarError(f"{host}:{port} cannot be bound ({error}): choose another --port or --host.") from None
    hosts = {"127.0.0.1", "localhost", "[::1]", f"[{host}]" if ":" in host else host}
    app = make_app(model, vectors, name, limits, key, tuple(hosts))
    config = server_config(app, limits)
    shown = f"[{host}]" if ":" in host else host
    gc.collect()
    gc.freeze()  # model and libraries stay: a look through them all would hold up every reply
    tell(f"http://{shown}:{bound.getsockname()[1]}")
    with bound:
        uvicorn.Server(config).run(sockets=[bound])


def server_config(app: FastAPI, limits: Limits) -> uvicorn.Config:
    """How uvicorn serves the application within its limits."""
    return uvicorn.Config(
        app,
        http=_impatient(limits.rows + limits.waiting + 64),
        log_level="warning",
        timeout_graceful_shutdown=int(limits.patience),
        h11_max_incomplete_event_size=2**16,
    )


def _impatient(most: int) -> type[_Impatient]:
    """The protocol for at most so many connections. Past its own limit uvicorn refuses those that there are, too."""
    return type("_Impatient", (_Impatient,), {"most": most})


class _Impatient(H11Protocol):
    """Refuses a connection too many, and closes one whose request line and headers do not come, for which uvicorn would
    wait for ever.

    They may take as long as replies may at a stop; the body's time is the application's.
    """

    most = 0
    _refused = False
    _late: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._refused = len(self.connections) > self.most
        if self._refused:  # and heard out for a moment: who is cut off while it sends does not read why
            transport.write(_FULL)
            transport.write_eof()
            self.loop.call_later(_HEARD_OUT, transport.close)
            return
        self._watch()

    def eof_received(self) -> None:
        if self._refused:
            self.transport.close()

    def data_received(self, data: bytes) -> None:
        if self._refused:
            return
        super().data_received(data)
        self._watch()

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        self._forget()

    def _watch(self) -> None:
        if self.cycle is not None and not self.cycle.response_complete:
            self._forget()
        elif self._late is None and not self.transport.is_closing():
            self._late = self.loop.call_later(self.config.timeout_graceful_shutdown or 0, self._close)

    def _close(self) -> None:
        if self.cycle is None or self.cycle.response_complete:
            self.transport.close()

    def _forget(self) -> None:
        if self._late is not None:
            self._late.cancel()
            self._late = None


def _loopback(host: str) -> bool:
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
