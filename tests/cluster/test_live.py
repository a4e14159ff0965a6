"""Runs that are watched: read as they grow, in terminals of two widths, and by a browser that knows the token."""

from __future__ import annotations

import json
import os
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
import tiny
from report.made import write_folder
from rich.console import Console

from ftscale.base.errors import UserError
from ftscale.cluster.live import SILENT_S, Watched, runs_in, table_of, watch
from ftscale.cluster.live_web import Server
from ftscale.config.stages import STAGES

PLANTED = "<script>window.struck = 1<b>"


def line(step: int, **figures: object) -> str:
    return json.dumps({"kind": "train", "step": step, "time_s": 2.0 * step, "loss": 3.0 - step / 10, **figures}) + "\n"


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    """One that goes on, one that is done, one that failed, and one of stages, in two levels."""
    root = tmp_path / "runs"
    write_folder(root / "going", [3.0, 2.5, 2.0], {3: {"loss": 2.0, "accuracy": 0.25}})
    result = {"best": {"step": 2, "metric": "f1", "value": 0.5}, "metrics": {"f1": 0.5}}
    write_folder(root / "sweep/done", [1.0, 0.5], {2: {"loss": 0.4, "accuracy": 0.75, "f1": 0.5}}, result=result)
    write_folder(root / "sweep/failed", [1.0], result={"status": "failed"})
    write_folder(root / "staged", [])
    write_folder(root / "staged" / STAGES / "1-head", [9.0])
    write_folder(root / "staged" / STAGES / "2-all", [8.0, 7.0])
    return root


def test_runs_are_found_in_folders_and_stages_are_parts_of_theirs(runs: Path):
    names = [path.relative_to(runs).as_posix() for path in runs_in(runs)]
    assert names == ["going", "staged", "sweep/done", "sweep/failed"]
    assert runs_in(runs / "going") == [runs / "going"]
    with pytest.raises(UserError, match="holds no run"):
        runs_in(runs / "going/logs")


def test_what_is_new_is_read_and_no_line_that_is_half_written(tmp_path: Path):
    folder = write_folder(tmp_path / "run", [])
    run, file = Watched(folder, "run"), folder / "metrics.jsonl"
    run.read()
    assert run.step == 0
    file.write_text(line(1) + line(2) + line(3)[:20])
    run.read()
    assert (run.step, list(run.losses)) == (2, [2.9, 2.8])
    with file.open("a") as more:
        more.write(line(3)[20:] + "damaged\n" + line(4, tokens_per_s=1234.5))
    run.read()
    assert (run.step, run.tokens_per_s) == (4, 1234.5)
    file.write_text(line(1))  # cut behind the checkpoint that it goes on from
    run.read()
    assert run.step == 1


def test_how_a_run_stands(runs: Path):
    going, staged, done, failed = watch(runs)
    for run in (going, staged, done, failed):
        run.read()
    assert [run.state for run in (going, done, failed)] == ["going on", "completed", "failed"]
    assert (staged.step, staged.losses[-1]) == (2, 7.0)
    assert (going.score, done.score) == ("accuracy 0.25", "f1 0.5")
    long_ago = time.time() - SILENT_S - 3600
    os.utime(runs / "going/metrics.jsonl", (long_ago, long_ago))
    assert going.state == "silent for 1h05m"
    assert [run.ended for run in (going, done, failed)] == [False, True, True]


def test_what_is_left_is_told_by_the_pace_of_the_last_steps(tmp_path: Path):
    folder = write_folder(tmp_path / "run", [])
    (folder / "run.json").write_text(json.dumps({"num_steps": 100}))
    (folder / "metrics.jsonl").write_text("".join(map(line, range(1, 41))))
    run = Watched(folder, "run")
    run.read()
    assert run.left == "2m00s"  # 60 steps of 2 seconds


@pytest.mark.parametrize("width", [80, 200])
def test_a_table_fits_its_terminal(runs: Path, width: int):
    console = Console(width=width, record=True, quiet=False, stderr=True)
    with console.capture() as captured:
        console.print(table_of(watch(runs), width=width))
    lines = captured.get().splitlines()
    assert max(map(len, lines)) <= width
    assert any("sweep/done" in text and "completed" in text and "f1 0.5" in text for text in lines)
    assert ("tokens/s" in lines[0]) is (width == 200)


def test_the_command_prints_once_where_nobody_looks(runs: Path):
    done = tiny.command("watch", runs, "--once")
    assert done.code == 0
    assert "sweep/failed" in done.stdout
    assert tiny.command("watch", runs / "nothing").code == 2


# ---------------------------------------------------------------- in a browser


@pytest.fixture
def server(runs: Path) -> Iterator[Server]:
    (runs / "going").rename(runs / PLANTED)
    with Server(runs, port=0) as found:
        thread = threading.Thread(target=found.serve_forever, daemon=True)
        thread.start()
        yield found
        found.shutdown()
        thread.join()


def fetch(address: str, **headers: str) -> tuple[int, str]:
    try:
        with urllib.request.urlopen(urllib.request.Request(address, headers=headers)) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


def test_a_browser_that_knows_the_token_sees_runs_and_their_pages(server: Server):
    code, text = fetch(server.address)
    assert code == 200
    assert "sweep/done" in text
    assert PLANTED not in text
    assert PLANTED.replace("<", "&lt;").replace(">", "&gt;") in text
    code, page = fetch(f"{server.address}&run=2")
    assert code == 200
    assert "It was completed after 2 optimizer steps" in page
    assert 'http-equiv="refresh"' in page


def test_nobody_else_sees_anything(server: Server):
    assert server.server_address[0] == "127.0.0.1"
    bare, _, token = server.address.partition("?token=")
    for address in (bare, f"{bare}?token=", f"{bare}?token={token[:-1]}", f"{bare}?token={token}x"):
        assert fetch(address)[0] == 403
    assert fetch(server.address, Host="elsewhere.example")[0] == 403  # a name of another's that leads here
    assert fetch(server.address.replace("/?", "/../../etc/passwd?"))[0] == 404
    assert fetch(f"{server.address}&run=99")[0] == 200  # the table
