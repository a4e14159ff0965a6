"""Whatever stands in a run folder's files, who reads them goes on without, or says in a sentence what is wrong."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tiny
from fuzz.anything import altered, as_json, budget, damaged, refused
from hypothesis import given
from hypothesis import strategies as st

from ftscale.base.errors import UserError
from ftscale.base.sealed import line_of, sealed
from ftscale.cluster import slurm
from ftscale.cluster.outcome import Facts, judge
from ftscale.cluster.records import Records, read_failure
from ftscale.cluster.table import as_text, result_table
from ftscale.cluster.watch import status_lines
from ftscale.config import Config, parse_config
from ftscale.run.folder import check_run_folder, finished_result, locked, run_id, write_result
from ftscale.run.train import train
from ftscale.train.manifest import complete_checkpoints, latest_checkpoint, list_checkpoints, prune_checkpoints
from ftscale.train.metrics_file import cut_metrics

Change = Callable[[bytes], bytes]


@pytest.fixture(scope="module")
def run(shared: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Config, Path]:
    """A finished run of two steps, with a checkpoint of each."""
    work = tmp_path_factory.mktemp("run")
    values = tiny.settings(shared, work, train={"max_steps": 2}, checkpoint={"prove": "never", "every": 1, "keep": 2})
    config = parse_config(values, source="test")
    train(config)
    records = Records(Path(config.run_folder))
    records.add("submit", jobs=["7"])
    records.add("start", job="7", restart=0, step=0, nodes=["n1"])
    records.add("end", job="7", restart=0, step=2, reason="completed", counts=False, action="done", progress=2)
    failure = {"rank": 0, "host": "n1", "time": 1.0, "exit_code": 1, "peer_lost": False, "error": "E: x"}
    (Path(config.run_folder) / "logs/failure.json").write_text(line_of(failure))
    return config, Path(config.run_folder)


def changes(path: Path) -> st.SearchStrategy[bytes]:
    """Other bytes; and another object, which says of itself that it is right."""
    content = path.read_bytes()
    if path.suffix == ".yaml":
        return damaged(content)
    try:
        return damaged(content) | altered(json.loads(content)).map(_rehashed)
    except ValueError:
        lines = content.decode().splitlines()
        line = st.sampled_from(lines).flatmap(lambda text: altered(json.loads(text))).map(_rehashed)
        return damaged(content) | line.map(lambda changed: content + changed + b"\n" + content)


def _rehashed(value: Any) -> bytes:
    return as_json(sealed(value)) if isinstance(value, dict) else as_json(value)


def _looks(config: Config, folder: Path) -> dict[str, Callable[[], Any]]:
    """What reads a run folder."""
    root = folder / "checkpoints"
    return {
        "resume": lambda: check_run_folder(config, resume=True, overwrite=False),
        "run_id": lambda: run_id(folder),
        "result": lambda: finished_result(folder),
        "list": lambda: list_checkpoints(root, run_id=run_id(folder)),
        "complete": lambda: complete_checkpoints(root),
        "prune": lambda: prune_checkpoints(root, keep=5, best=None),
        "metrics": lambda: cut_metrics(folder / "metrics.jsonl", after_step=9),
        "status": lambda: status_lines(folder),
        "table": lambda: as_text(result_table([folder, folder.with_name("other")])),
        "failure": lambda: judge(Facts(exit_code=1, failure=read_failure(folder / "logs/failure.json"))),
        "lock": lambda: _lock(folder),
        "write": lambda: write_result(folder, _result()),
    }


def _lock(folder: Path) -> None:
    with locked(folder):
        pass


def _result() -> Any:
    from ftscale.run.folder import Result

    return Result("completed", 2, {"loss": math.nan}, None, 1.0, "model")


READERS = {
    "run.json": ("resume", "run_id", "result", "status", "write"),
    "result.json": ("result", "status", "table"),
    "data.json": ("resume",),
    "config.yaml": ("resume", "table"),
    "metrics.jsonl": ("metrics", "status"),
    "lock.json": ("lock",),
    "slurm/history.jsonl": ("status",),
    "logs/failure.json": ("failure",),
    "checkpoints/step-00000002/manifest.json": ("resume", "run_id", "list", "complete", "prune"),
}


@pytest.mark.parametrize("name", READERS)
def test_a_damaged_file_of_a_run_folder_ends_in_no_traceback(
    run: tuple[Config, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
):
    config, whole = run
    folder = tmp_path / "run"
    monkeypatch.setattr(slurm, "job_fields", lambda job: {})
    shutil.copytree(whole, folder)
    shutil.copytree(whole, tmp_path / "other", ignore=shutil.ignore_patterns("checkpoints", "model"))
    if name == "lock.json":
        (whole / name).write_bytes(as_json(sealed({"host": "h", "process": 1, "since": "now"})))
    config = config.model_copy(update={"run_folder": str(folder)})
    looks = _looks(config, folder)

    @budget(15)
    @given(changes(whole / name))
    def look(content: bytes) -> None:
        for what in READERS[name]:
            (folder / name).write_bytes(content)
            with refused(), _named(what):
                looks[what]()

    look()


class _named:  # noqa: N801
    """Says which reader it was."""

    def __init__(self, what: str) -> None:
        self.what = what

    def __enter__(self) -> None: ...

    def __exit__(self, kind: Any, error: Any, trace: Any) -> None:
        if error is not None and not isinstance(error, UserError):
            error.add_note(f"in {self.what}")


def test_a_damaged_manifest_leaves_the_checkpoint_before_it(run: tuple[Config, Path], tmp_path: Path):
    _, whole = run
    manifest = (whole / "checkpoints/step-00000002/manifest.json").read_bytes()

    @budget(15)
    @given(damaged(manifest))
    def read(content: bytes) -> None:
        shutil.rmtree(tmp_path / "checkpoints", ignore_errors=True)
        shutil.copytree(whole / "checkpoints", tmp_path / "checkpoints")
        (tmp_path / "checkpoints/step-00000002/manifest.json").write_bytes(content)
        found = latest_checkpoint(tmp_path / "checkpoints", run_id=run_id(whole))
        assert found is not None
        assert found.step == 1 or json.loads(content) == json.loads(manifest)

    read()
