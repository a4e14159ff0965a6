"""Data behind a password and a token: neither is written anywhere, and the run can still go on."""

from __future__ import annotations

import base64
import gzip
import hashlib
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest
import tiny
from launching import forget_after
from strategies import jobs

from ftscale.base.errors import UserError
from ftscale.cluster.submit import Request, submit
from ftscale.config import load_config, parse_config
from ftscale.run.evaluate import evaluate_run
from ftscale.run.train import train

PASSWORD, TOKENS = "p4ssw0rd", ("t0k3n-of-today", "t0k3n-of-tomorrow")
LOGIN = base64.b64encode(f"reader:{PASSWORD}".encode()).decode()


class Handler(BaseHTTPRequestHandler):
    """Gives the rows to those who know password and token, and a stamp of the content."""

    rows = b""

    def do_GET(self) -> None:
        query = parse_qs(urlsplit(self.path).query)
        known = self.headers["Authorization"] == f"Basic {LOGIN}" and query.get("token", [""])[0] in TOKENS
        self.send_response(200 if known else 403)
        self.send_header("Content-Length", str(len(self.rows)))
        self.send_header("ETag", hashlib.sha256(self.rows).hexdigest())
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(self.rows)

    do_HEAD = do_GET

    def log_message(self, *_: object) -> None:
        """Say nothing."""


@pytest.fixture
def server(shared: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    with gzip.open(shared / "data/translation/multi30k_de-en/train.en.gz") as file:
        monkeypatch.setattr(Handler, "rows", b"".join(line for line, _ in zip(file, range(30), strict=False)))
    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as http:
        threading.Thread(target=http.serve_forever, daemon=True).start()
        yield f"http://reader:{PASSWORD}@127.0.0.1:{http.server_port}/rows.txt?token="
        http.shutdown()


def settings(shared: Path, tmp_path: Path, url: str) -> dict[str, Any]:
    """4 steps over the rows of the server, with a checkpoint after each."""
    config = jobs.captions(shared, tmp_path)
    data = {"cache_dir": str(tmp_path / "cache"), "train": {"path": url, "format": "text"}, "eval": url}
    more = {"train": {"max_steps": 4}, "checkpoint": {"every": 1, "keep": 9, "prove": "never"}}
    return {**config, **more, "data": data, "run_folder": str(tmp_path / "run")}


def check_no_secret(folder: Path) -> None:
    for path in folder.rglob("*"):
        content = path.read_bytes() if path.is_file() else b""
        for secret in (PASSWORD, LOGIN, *TOKENS):
            assert secret.encode() not in content, path
            assert secret not in path.name


def test_no_secret_of_a_url_is_written_and_the_run_goes_on_with_another(
    server: str, shared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    url, folder = server + TOKENS[0], tmp_path / "run"
    hidden = server.replace(f"reader:{PASSWORD}", "<secret>") + "<secret>"
    config = settings(shared, tmp_path, url)
    monkeypatch.setattr("sys.argv", ["ftscale", "train", "run.yaml", f"data.train.0.path={url}"])
    result = train(parse_config(config, source="test"))
    check_no_secret(tmp_path)
    assert json.loads((folder / "run.json").read_text())["command"][-1] == f"data.train.0.path={hidden}"
    assert f"data.train {hidden}: 30 rows read" in capsys.readouterr().err
    written = (folder / "config.yaml").read_text()
    assert written.startswith("# data.train.0.path is to be filled in where it says <secret>, here or by data.train.0.")
    assert load_config(folder / "config.yaml").data.train[0].path == hidden
    assert list(json.loads((folder / "data.json").read_text())["data.train[0]"]) == [hidden]

    with pytest.raises(UserError) as failure:  # as it stands, it says what to fill in
        train(load_config(folder / "config.yaml", [f"run_folder={tmp_path / 'again'}"]))
    assert f"data.train[0].path = {hidden!r}: <secret> stands for what is not written down" in str(failure.value)
    assert "data.eval.0.path=... on the command line" in str(failure.value)
    with pytest.raises(UserError, match=r"data\.eval\.0\.path=\.\.\. on the command line"):
        evaluate_run(folder)
    assert evaluate_run(folder, overrides=[f"data.eval.0.path={url}"])["loss"] == pytest.approx(result.metrics["loss"])

    stopped = tmp_path / "stopped"
    forget_after(folder, stopped, step=2)
    fresh = settings(shared, tmp_path, server + TOKENS[1]) | {"run_folder": str(stopped)}
    resumed = train(parse_config(fresh, source="test"), resume=True)
    assert resumed.metrics == result.metrics
    check_no_secret(tmp_path)

    monkeypatch.setattr(Handler, "rows", Handler.rows.replace(b" a ", b" the "))
    forget_after(folder, tmp_path / "other", step=2)
    with pytest.raises(UserError) as failure:
        train(parse_config({**fresh, "run_folder": str(tmp_path / "other")}, source="test"), resume=True)
    assert f"data.train[0].path: {hidden} has changed" in str(failure.value)


def test_a_submitted_run_keeps_its_secrets_where_its_user_alone_reads(
    server: str, shared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    tools = tmp_path / "tools"
    tools.mkdir()
    (tools / "sbatch").write_text("#!/bin/bash\necho 4242\n")
    (tools / "sbatch").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tools}:/usr/bin:/bin")
    url = server + TOKENS[0]
    submit(tiny.write_run(tmp_path, settings(shared, tmp_path, url)), (), Request())
    run = tmp_path / "run/slurm/run.yaml"
    assert load_config(run).data.train[0].path == url
    assert run.stat().st_mode & 0o777 == 0o600
    others = [path for path in (tmp_path / "run").rglob("*") if path.is_file() and path != run]
    assert others
    assert not any(PASSWORD in path.read_text() for path in others)


@pytest.mark.parametrize("command", ["check", "train"])
def test_what_a_server_refuses_is_told_in_a_sentence_without_the_secret(
    command: str, server: str, shared: Path, tmp_path: Path
):
    run = tiny.write_run(tmp_path, settings(shared, tmp_path, f"{server}an-old-t0k3n"))
    outcome = tiny.command(command, run)
    assert outcome.code == 2
    lines = outcome.stderr.strip().splitlines()
    assert "data.train[0].path: http://<secret>@127.0.0.1:" in lines[-2]
    assert "refuses this name, password or token; correct the URL." in lines[-1]
    assert not any(secret in outcome.stdout + outcome.stderr for secret in (PASSWORD, "an-old-t0k3n"))
