"""The pages of a run behind a real server on a free port."""

import http.client
import json
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from aiohttp import web

from sae.commands.serve import ServeConfig, pages_of
from sae.pages.server.app import application
from sae.pages.server.guard import name_check
from sae.pages.server.listening import listen, serve_until_stopped

JSON = {"Content-Type": "application/json"}


@dataclass
class Server:
    port: int

    def ask(self, path: str, body=None, method=None, **headers: str):
        """Status, headers and body; the path goes out as it is written."""
        data = body if body is None or isinstance(body, bytes) else json.dumps(body).encode()
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        headers = {key.replace("_", "-"): value for key, value in headers.items()}
        headers = (JSON if data is not None else {}) | headers
        connection.putrequest(
            method or ("GET" if data is None else "POST"),
            path,
            skip_host="Host" in headers,
            skip_accept_encoding=True,
        )
        for key, value in headers.items():
            connection.putheader(key, value)
        if data is not None:
            connection.putheader("Content-Length", str(len(data)))
        connection.endheaders(data)
        answer = connection.getresponse()
        found = answer.status, answer.headers, answer.read()
        connection.close()
        return found

    def raw(self, data: bytes, timeout: float = 10) -> bytes:
        """All that comes back until the server closes; `HOST` stands for its own name."""
        own = b"Host: 127.0.0.1:%d" % self.port
        with socket.create_connection(("127.0.0.1", self.port), timeout) as connection:
            connection.sendall(data.replace(b"HOST", own).replace(b"\n", b"\r\n"))
            return b"".join(iter(lambda: connection.recv(1 << 16), b""))

    def json(self, path: str, body=None, **headers: str):
        status, _, data = self.ask(path, body, **headers)
        assert status == 200, data
        return json.loads(data)

    def refused(self, path: str, body, status=400, **headers: str) -> str:
        found, _, data = self.ask(path, body, **headers)
        assert found == status, data
        (sentence,) = json.loads(data).values()
        if isinstance(sentence, dict):
            # OpenAI's interface has an object of its own.
            assert sentence.pop("type") == "invalid_request_error"
            (sentence,) = sentence.values()
        assert "\n" not in sentence
        return sentence


@contextmanager
def serving(run: Path) -> Iterator[Server]:
    pages = pages_of(ServeConfig(run=str(run), device="cpu"))
    with answering(lambda: application(pages, name_check("127.0.0.1"))) as server:
        yield server


@contextmanager
def answering(make: Callable[[], web.Application]) -> Iterator[Server]:
    """Any application behind a real server."""
    stops, ready = [], threading.Event()

    def started(stop) -> None:
        stops.append(stop)
        ready.set()

    with listen("127.0.0.1", 0) as listening:
        thread = threading.Thread(target=serve_until_stopped, args=(make, listening, started))
        thread.start()
        assert ready.wait(20)
        try:
            yield Server(listening.getsockname()[1])
        finally:
            stops[0]()
            thread.join(20)
            assert not thread.is_alive()
