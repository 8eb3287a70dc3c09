"""What the Hub or the network may answer, against a server of our own: each fault is told apart."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

# By the name of the model that is asked for, the words of the one line.
FAULTS = {
    "someone/portal": ["is not the Hub", "log in to the network"],
    "someone/moved": ["is not the Hub", "log in to the network"],
    "someone/cut": ["connection was cut", "call again"],
    "someone/s401": ["gives no access", "(401)", "HF_TOKEN"],
    "someone/s403": ["gives no access", "(403)"],
    "someone/s404": ["(404)", "name another model"],
    "someone/s429": ["too many requests", "wait some minutes"],
    "someone/s500": ["a fault of its own (500)", "call again later"],
    "someone/s503": ["a fault of its own (503)", "call again later"],
    "someone/page": ["is not the Hub", "log in to the network"],
}
_CHILD = """
import json, sys
from star_tl.errors import StarError
from star_tl.models.hub import download
said = {}
for name in json.load(sys.stdin):
    try:
        said[name] = "no error: " + str(download(name, ["config.json"]))
    except StarError as error:
        said[name] = str(error)
print(json.dumps(said))
"""


class _Answer(BaseHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        pass

    def do_GET(self) -> None:
        name = next((p for p in self.path.split("?")[0].split("/") if f"someone/{p}" in FAULTS), "")
        if name == "moved":
            self.send_response(302)
            self.send_header("Location", "/login")
            self.send_header("Content-Length", "0")
            self.end_headers()
        elif name == "cut":
            self.send_response(200)
            self.send_header("Content-Length", "1000")
            self.end_headers()
            self.wfile.write(b'{"sha"')
            self.wfile.flush()
            self.connection.shutdown(socket.SHUT_RDWR)
        elif name.startswith("s"):
            self._send(int(name[1:]), "application/json", '{"error": "no"}')
        elif name == "page" and "/api/" in self.path:  # the list is there, the file is a page
            files = [{"type": "file", "path": "config.json", "size": 30, "oid": "a" * 40}]
            model = {"id": "someone/page", "sha": "b" * 40, "siblings": [{"rfilename": "config.json"}]}
            self._send(200, "application/json", json.dumps(files if "/tree/" in self.path else model))
        else:
            self._send(200, "text/html", "<html>Log in</html>")

    do_HEAD = do_GET

    def _send(self, status: int, kind: str, text: str) -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(text.encode())


@pytest.fixture(scope="module")
def said(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), _Answer) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        home: Path = tmp_path_factory.mktemp("hub")
        own = {"HF_ENDPOINT": f"http://127.0.0.1:{server.server_port}", "HF_HOME": str(home), "HF_HUB_OFFLINE": "0"}
        kept = {k: v for k, v in os.environ.items() if k not in ("HF_TOKEN", "HF_HUB_CACHE")}
        done = subprocess.run(
            [sys.executable, "-c", _CHILD],
            input=json.dumps(list(FAULTS)),
            env=kept | own,
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )
        server.shutdown()
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.parametrize("name", FAULTS)
def test_each_fault_of_hub_or_network_has_its_own_line(said: dict[str, str], name: str) -> None:
    assert all(words in said[name] for words in FAULTS[name]), said[name]
    assert len(said[name].splitlines()) == 1
    assert "no error" not in said[name]
