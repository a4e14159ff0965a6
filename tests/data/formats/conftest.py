"""How the format tests read a file: all rows, or the message of the refusal; and a server that fails."""

from __future__ import annotations

import re
import threading
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from ftscale.base.errors import UserError
from ftscale.config.schema import SourceConfig
from ftscale.data.formats import remote
from ftscale.data.sources import read_rows


def _read(path: object, *roles: tuple[str, ...], absent: Collection[str] = (), **settings: object) -> list[dict]:
    source = SourceConfig(path=str(path), **settings)
    return list(read_rows(source, roles=roles or (("text", "label"),), absent=absent))


@pytest.fixture
def read() -> Callable[..., list[dict]]:
    """`read(path, roles, ..., **settings of the source)`: its rows."""
    return _read


@pytest.fixture
def refused() -> Callable[..., str]:
    """The same for a source that must be refused: the message."""

    def message(path: object, *roles: tuple[str, ...], **settings: object) -> str:
        with pytest.raises(UserError) as caught:
            _read(path, *roles, **settings)
        return str(caught.value)

    return message


@dataclass
class Server:
    """What a server has and how it fails; a failure is used up by one answer."""

    content: bytes = b""
    has_parts: bool = True
    etag: str = "one"
    cuts: list[int] = field(default_factory=list)
    """Bytes after which the next answers break off; -1 = they are whole."""
    statuses: list[int] = field(default_factory=list)
    """Of the next answers to GET; 0 = as it should be."""
    claims: int = 0
    """Bytes more than there are that are promised."""
    changes_after: int = -1
    """Answers after which the file is another."""
    asked: list[str] = field(default_factory=list)
    """What was asked for, GET and its range."""
    url: str = ""


@pytest.fixture
def failing_server() -> Iterator[Server]:
    made = Server()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_HEAD(self) -> None:
            self._answer(200, len(made.content) + made.claims)

        def do_GET(self) -> None:
            span = self.headers.get("Range") if made.has_parts else None
            made.asked.append(span or "whole")
            if made.changes_after == len(made.asked) - 1:
                made.etag = "two"
            status = made.statuses.pop(0) if made.statuses else 0
            if status:
                self._answer(status, 0)
                return
            first, last = re.fullmatch(r"bytes=(\d+)-(\d+)", span).groups() if span else (0, len(made.content))
            part = made.content[int(first) : int(last) + 1]
            promised = len(part) + made.claims
            self._answer(206 if span else 200, promised, first=int(first) if span else None)
            cut = made.cuts.pop(0) if made.cuts else -1
            self.wfile.write(part if cut < 0 else part[:cut])
            if cut >= 0 or made.claims:
                self.close_connection = True

        def _answer(self, status: int, size: int, *, first: int | None = None) -> None:
            self.send_response(status)
            self.send_header("ETag", made.etag)
            self.send_header("Content-Length", str(size))
            if made.has_parts:
                self.send_header("Accept-Ranges", "bytes")
            if first is not None:
                self.send_header("Content-Range", f"bytes {first}-{first + size - 1}/{len(made.content)}")
            self.end_headers()

        def log_message(self, *_: object) -> None:
            """Say nothing."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as http:
        threading.Thread(target=http.serve_forever, daemon=True).start()
        made.url = f"http://127.0.0.1:{http.server_port}"
        yield made
        http.shutdown()


@pytest.fixture
def no_waiting(monkeypatch) -> list[float]:
    """The seconds that would have been waited."""
    waited: list[float] = []
    monkeypatch.setattr(remote.time, "sleep", waited.append)
    return waited
