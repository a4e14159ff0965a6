"""The exit code of a launch that was asked to stop tells whether it can simply be started again."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import accelerate.commands.launch
import pytest
import tiny
from torch.distributed.elastic.multiprocessing import SignalException

import ftscale.run.train  # noqa: F401  before a test replaces what it takes from prepared_data
from ftscale.run.launch import launch_training


def nothing(folder: Path) -> None:
    """The processes were still importing."""


def begins(folder: Path) -> None:
    """As the first process opens the folder: an earlier start's result goes, run.json is written anew."""
    folder.mkdir(exist_ok=True)
    (folder / "result.json").unlink(missing_ok=True)
    (folder / "run.json").write_text('{"run_id": "this", "started": "now"}')


def begins_and_saves(folder: Path) -> None:
    begins(folder)
    (folder / "result.json").write_text(json.dumps({"status": "preempted"}))


def fails(folder: Path) -> None:
    begins(folder)
    (folder / "result.json").write_text(json.dumps({"status": "failed"}))


@pytest.mark.parametrize("number", [signal.SIGHUP, signal.SIGTERM])
@pytest.mark.parametrize(("act", "saved"), [(nothing, True), (begins, False), (begins_and_saves, True), (fails, False)])
@pytest.mark.parametrize("earlier", ["", "preempted"])
def test_75_is_said_where_this_start_left_a_checkpoint_or_needed_none(
    monkeypatch: pytest.MonkeyPatch,
    shared: Path,
    tmp_path: Path,
    number: signal.Signals,
    act: Callable[[Path], None],
    saved: bool,
    earlier: str,
):
    folder = tmp_path / "run"
    if earlier:
        folder.mkdir()
        (folder / "run.json").write_text('{"run_id": "this", "started": "before"}')
        (folder / "result.json").write_text(json.dumps({"status": earlier}))
    seen: list[Any] = []

    def launch_command(options: Any) -> None:
        seen.append(options)
        act(folder)
        raise SignalException("asked to stop", number)

    monkeypatch.setattr(accelerate.commands.launch, "launch_command", launch_command)
    monkeypatch.setattr("ftscale.run.prepared_data.prepare_inputs", lambda config: None)
    monkeypatch.setattr("ftscale.run.folder.check_run_folder", lambda config, **how: None)
    file = tiny.write_run(tmp_path, tiny.settings(shared, tmp_path))
    code = launch_training(file, [], processes=2, strategy="ddp", resume=bool(earlier), overwrite=False)
    assert code == (75 if saved else 128 + number)
    assert "SIGHUP" in seen[0].signals_to_handle.split(",")


def test_ranks_import_nothing_of_the_working_folder(monkeypatch: pytest.MonkeyPatch, shared: Path, tmp_path: Path):
    seen: dict[str, str] = {}

    def launch_command(options: Any) -> None:
        seen.update(os.environ)

    monkeypatch.setattr(accelerate.commands.launch, "launch_command", launch_command)
    monkeypatch.setattr("ftscale.run.prepared_data.prepare_inputs", lambda config: None)
    file = tiny.write_run(tmp_path, tiny.settings(shared, tmp_path))
    monkeypatch.chdir(tmp_path)
    assert launch_training(file, [], processes=2, strategy="ddp", resume=False, overwrite=False) == 0
    assert seen["PYTHONSAFEPATH"] == "1"
    assert "PYTHONSAFEPATH" not in os.environ
