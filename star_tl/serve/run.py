"""``star-tl serve``: the application behind uvicorn."""

from __future__ import annotations

import ipaddress
import socket
from collections.abc import Callable, Mapping

import uvicorn

from star_tl.errors import StarError
from star_tl.models.backend import Model
from star_tl.serve.app import make_app
from star_tl.serve.engine import Limits
from star_tl.serve.vectors import Served

_SHORTEST_KEY = 16


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
    config = uvicorn.Config(
        app,
        log_level="warning",
        limit_concurrency=limits.rows + limits.waiting + 64,  # connections; what is more is refused at once (503)
        timeout_graceful_shutdown=int(limits.patience),
        h11_max_incomplete_event_size=2**16,
    )
    shown = f"[{host}]" if ":" in host else host
    tell(f"http://{shown}:{bound.getsockname()[1]}")
    with bound:
        uvicorn.Server(config).run(sockets=[bound])


def _loopback(host: str) -> bool:
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
