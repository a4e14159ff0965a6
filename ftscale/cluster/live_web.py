"""`ftscale watch --web`: the table and the pages of runs, for a browser on this machine alone.

As Jupyter does it: it listens on 127.0.0.1, and answers those who know the token that is in its address.
"""

from __future__ import annotations

import secrets
from functools import cache
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Lock
from typing import Any
from urllib.parse import parse_qs, quote, urlsplit

from ftscale.base.errors import UserError
from ftscale.cluster.live import Watched, watch
from ftscale.report.facts import read_run
from ftscale.report.page import html_of, page_of_run

HOST = "127.0.0.1"
REFRESH_S = 10
"""How often a page is asked for anew."""
POLICY = "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline' 'unsafe-eval'; img-src data:"


class Server(ThreadingHTTPServer):
    """Answers for the runs of a folder."""

    daemon_threads = True

    def __init__(self, folder: Path, *, port: int) -> None:
        """`port`: 0 = any that is free. Raises UserError where it is taken."""
        self.folder, self.token = folder, secrets.token_urlsafe(24)
        self.runs = watch(folder)  # a folder without a run is told at once
        self._reads = Lock()
        try:
            super().__init__((HOST, port), Handler)
        except OSError as error:
            raise UserError(f"--port = {port} cannot be listened on ({error.strerror}); name another.") from error
        self.names = {f"{name}:{self.server_port}" for name in (HOST, "localhost")}

    @property
    def address(self) -> str:
        """What somebody opens."""
        return f"http://{HOST}:{self.server_port}/?token={self.token}"

    def answer(self, query: dict[str, list[str]]) -> str:
        """The page of a run, by its place in the table, or the table."""
        with self._reads:  # each request has a thread
            self.runs = runs = watch(self.folder, self.runs)
            for run in runs:
                run.read()
        place = query.get("run", [""])[0]
        if place.isdecimal() and int(place) < len(runs):
            text = html_of(page_of_run(read_run(runs[int(place)].folder, name=runs[int(place)].name)))
        else:
            text = _template().render(
                runs=[_row(run) for run in runs], token=quote(self.token), folder=str(self.folder)
            )
        return text.replace("<head>", f'<head>\n<meta http-equiv="refresh" content="{REFRESH_S}">', 1)


class Handler(BaseHTTPRequestHandler):
    """One request."""

    server: Server

    def do_GET(self) -> None:
        """Answer who knows the token, under this machine's own name: a page of elsewhere has another Host."""
        asked = urlsplit(self.path)
        query = parse_qs(asked.query)
        known = secrets.compare_digest(query.get("token", [""])[0].encode(), self.server.token.encode())
        if not known or self.headers.get("Host") not in self.server.names:
            self.send_error(HTTPStatus.FORBIDDEN, "open the address that ftscale watch has printed")
            return
        if asked.path != "/":
            self.send_error(HTTPStatus.NOT_FOUND)
            return
        try:
            text = self.server.answer(query).encode()
        except UserError as error:
            self.send_error(HTTPStatus.NOT_FOUND, str(error).splitlines()[0][:200])
            return
        self.send_response(HTTPStatus.OK)
        headers = {"Content-Type": "text/html; charset=utf-8", "Content-Length": str(len(text))}
        headers |= {"Content-Security-Policy": POLICY, "Referrer-Policy": "no-referrer", "Cache-Control": "no-store"}
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(text)

    def log_message(self, format: str, *arguments: Any) -> None:  # noqa: A002
        """Nothing: the address holds the token."""


def _row(run: Watched) -> dict[str, Any]:
    total = run.total
    return {
        "name": run.name,
        "state": run.state,
        "step": f"{run.step:,}" + (f" / {total:,}" if total else ""),
        "loss": f"{run.losses[-1]:.4f}" if run.losses else "",
        "score": run.score,
        "left": run.left,
    }


@cache
def _template() -> Any:
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent), autoescape=True, undefined=StrictUndefined
    )
    return environment.get_template("live.html")
