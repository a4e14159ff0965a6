"""A disk that is full, in whichever phase of a run: one sentence, no traceback, and the same end when there is room."""

from __future__ import annotations

import builtins
import io
import os
import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import forks
import pyarrow
import pytest
import safetensors.torch
import tiny
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from ftscale.base.errors import EXIT_USER_ERROR, UserError, told_if_full
from ftscale.config import Config, parse_config
from ftscale.run.train import train
from ftscale.train.checkpoint import SaveError
from ftscale.train.manifest import complete_checkpoints

FULL_DEVICE = "/dev/full"  # whatever is written to it ends in ENOSPC
WRITING = re.compile("[wax+]")


@contextmanager
def full_disk(where: str, *, after: int = 0) -> Iterator[list[str]]:
    """Files whose path the pattern finds, and that are opened for writing, have no room; `after` the first so many.

    Gives the paths of those that had none.
    """
    pattern, met, passed = re.compile(where), list[str](), [0]
    real_open, real_os_open, real_arrow = builtins.open, os.open, pyarrow.OSFile
    real_rust = safetensors.torch.serialize_file

    def is_full(path: Any) -> bool:
        if isinstance(path, int) or not pattern.search(os.fspath(path)):
            return False
        passed[0] += 1
        if passed[0] <= after:
            return False
        met.append(os.fspath(path))
        return True

    def open_python(file: Any, mode: str = "r", *arguments: Any, **options: Any) -> Any:
        # an opener opens by os.open, which is watched too
        if "opener" not in options and WRITING.search(mode) and is_full(file):
            real_open(file, "ab").close()
            return real_open(FULL_DEVICE, mode.replace("x", "w").replace("a", "w"), *arguments, **options)
        return real_open(file, mode, *arguments, **options)

    def open_descriptor(path: Any, flags: int, *arguments: Any, **options: Any) -> int:
        if flags & (os.O_WRONLY | os.O_RDWR) and is_full(path):
            return real_os_open(FULL_DEVICE, os.O_WRONLY)
        return real_os_open(path, flags, *arguments, **options)

    def open_arrow(path: str, mode: str = "r", *arguments: Any) -> Any:
        return real_arrow(FULL_DEVICE if "w" in mode and is_full(path) else path, mode, *arguments)

    def write_rust(tensors: Any, path: Any, *arguments: Any, **options: Any) -> None:
        if is_full(path):
            raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")
        real_rust(tensors, path, *arguments, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(builtins, "open", open_python)
        patch.setattr(io, "open", open_python)
        patch.setattr(os, "open", open_descriptor)
        patch.setattr(pyarrow, "OSFile", open_arrow)
        patch.setattr(safetensors.torch, "serialize_file", write_rust)
        patch.setattr("transformers.modeling_utils.safe_save_file", safetensors.torch.save_file)
        yield met


@pytest.fixture(scope="module")
def whole(shared: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Callable[..., Config], Path]:
    """Configurations of runs of 4 steps that save after each and evaluate after two; and one that ended."""
    work = tmp_path_factory.mktemp("whole")

    forks.fresh_python("", environment=dict(os.environ))  # the server of the proofs: once, not in each run

    def config(place: Path, *, prove: str = "never") -> Config:
        values = tiny.settings(
            shared,
            place,
            train={"max_steps": 4},
            evaluation={"every": 2},
            checkpoint={"every": 1, "keep": 9, "prove": prove, "async": False},
        )
        return parse_config(values, source="test")

    train(config(work))
    return config, work / "run"


def _told(folder: Path) -> list[tuple[Any, ...]]:
    lines = (line for line in tiny.metrics(folder) if line["kind"] != "event")
    return [(line["kind"], line["step"], line.get("rows_hash"), line.get("loss")) for line in lines]


PHASES: dict[str, tuple[str, int, str]] = {
    # phase: what has no room, after so many of them; the sentence
    "the lock of the run folder": (r"/run/\.lock\.json", 0, "start again"),
    "prepared data": (r"/cache/.*source-0\.arrow", 0, "start again"),
    "the report of prepared data": (r"/cache/.*report\.json", 0, "start again"),
    "config.yaml": (r"/run/\.config\.yaml", 0, "start again"),
    "data.json": (r"/run/\.data\.json", 0, "go on with --resume"),
    "run.json": (r"/run/\.run\.json", 0, "go on with --resume"),
    "metrics": (r"/run/metrics\.jsonl", 0, "go on with --resume"),
    "a checkpoint's weights": (r"\.partial/state\.pt", 2, "the checkpoint of step 3 could not be written"),
    "a checkpoint's random state": (r"\.partial/random-", 1, "the checkpoint of step 2 could not be written"),
    "a checkpoint's list of files": (r"\.partial/\.\.files-", 1, "the checkpoint of step 2 could not be written"),
    "a manifest": (r"\.partial/manifest\.json", 3, "the checkpoint of step 4 could not be written"),
    "the final model's config": (r"/\.model\.[^/]*/?.*config\.json", 0, "go on with --resume"),
    "the final model's weights": (r"/\.model\..*model\.safetensors", 0, "go on with --resume"),
    "the proof's inputs": (r"ftscale-proof-.*inputs\.pt", 0, "go on with --resume"),
    "the proof's request": (r"ftscale-proof-.*request\.json", 0, "go on with --resume"),
    "result.json": (r"/run/\.result\.json", 0, "go on with --resume"),
}


@pytest.mark.parametrize("phase", PHASES)
def test_a_full_disk_is_told_in_a_sentence_and_the_run_comes_to_the_same_end(
    whole: tuple[Callable[..., Config], Path],
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    phase: str,
):
    make, uninterrupted = whole
    where, after, says = PHASES[phase]
    config, folder = make(tmp_path, prove="final" if "proof" in phase else "never"), tmp_path / "run"
    if "prepared" not in phase:
        shutil.copytree(uninterrupted.parent / "cache", tmp_path / "cache")
    with full_disk(where, after=after) as met, pytest.raises(UserError, match="No space left on device") as told:
        train(config)
    assert met
    assert says in str(told.value)
    assert len(told.value.problems) == 1
    assert isinstance(told.value, SaveError) == ("checkpoint of step" in says)
    assert "Logging error" not in capfd.readouterr().err
    resume = folder.exists() and any(path.name != ".lock.json.lock" for path in folder.glob("[!.]*"))
    done = len(complete_checkpoints(folder / "checkpoints"))
    assert done == (after if "checkpoint" in phase or phase == "a manifest" else 4 if _is_late(phase) else 0)
    assert train(config, resume=resume).status == "completed"
    assert _told(folder) == _told(uninterrupted)
    ended = (load_file(place / "model/model.safetensors") for place in (folder, uninterrupted))
    weights, others = ended
    assert weights.keys() == others.keys()
    assert all(torch.equal(weights[name], others[name]) for name in weights)


def _is_late(phase: str) -> bool:
    return phase.startswith(("the final", "the proof", "result"))


def test_lines_of_a_log_that_find_no_room_are_left_out_and_the_run_goes_on(
    whole: tuple[Callable[..., Config], Path], tmp_path: Path, capfd: pytest.CaptureFixture[str]
):
    make, uninterrupted = whole
    shutil.copytree(uninterrupted.parent / "cache", tmp_path / "cache")
    with full_disk(r"logs/rank-00000\.log"):
        assert train(make(tmp_path)).status == "completed"
    said = capfd.readouterr().err
    assert said.count("rank-00000.log cannot be written (No space left on device): lines may be lost") == 1
    assert "Traceback" not in said
    assert _told(tmp_path / "run") == _told(uninterrupted)


def test_a_full_disk_of_the_proofs_own_process_is_no_fault_of_the_model(
    whole: tuple[Callable[..., Config], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    make, uninterrupted = whole
    shutil.copytree(uninterrupted.parent / "cache", tmp_path / "cache")
    program = Path(__file__).resolve().parents[1] / "ftscale/models/reload.py"
    text = program.read_text().replace('(work / "outputs.pt").write_bytes', f'Path("{FULL_DEVICE}").write_bytes')
    read = Path.read_text
    with monkeypatch.context() as patch:
        patch.setattr(Path, "read_text", lambda path, *a, **k: text if path == program else read(path, *a, **k))
        with pytest.raises(UserError, match="a disk is full .No space left on device.*go on with --resume"):
            train(make(tmp_path, prove="final"))
    assert train(make(tmp_path, prove="final"), resume=True).status == "completed"


def test_a_command_says_in_a_sentence_that_its_disk_is_full(whole: tuple[Callable[..., Config], Path], tmp_path: Path):
    _, uninterrupted = whole
    rows = tmp_path / "rows.txt"
    rows.write_text("a film\n")
    with full_disk(r"answers\.csv"):
        done = tiny.command("predict", uninterrupted, rows, "--out", tmp_path / "answers.csv")
    assert done.code == EXIT_USER_ERROR
    assert "error: a disk is full (No space left on device" in done.stderr
    assert "Traceback" not in done.stderr
    with full_disk(r"/\.?out[./].*model\.safetensors"):
        done = tiny.command("export", uninterrupted, tmp_path / "out")
    assert done.code == EXIT_USER_ERROR
    assert "Traceback" not in done.stderr


def test_other_errors_of_files_are_told_as_they_are():
    with pytest.raises(PermissionError), told_if_full(lambda: "x"):
        raise PermissionError(13, "Permission denied")
