from __future__ import annotations

import json
from pathlib import Path

import pytest

from ftscale.base.sealed import line_of
from ftscale.cluster.records import Records, read_failure, read_json, run_status
from ftscale.cluster.watch import status_lines

END = {"job": "7", "restart": 0, "reason": "completed", "counts": False, "action": "done", "step": 4, "progress": 4}
BAD = (
    b"\xff\xfe",
    b"[1]",
    b"null",
    b'{"event": "end", "job": "7"}',
    b'{"event": ["end"]}',
    b'{"event": "submit", "time": 1.0, "jobs": 7}',
    b"[" * 100_000,
)


@pytest.fixture
def records(tmp_path: Path) -> Records:
    """A submission, a start and an end; and between them lines that nobody wrote."""
    found = Records(tmp_path / "run")
    found.add("submit", jobs=["7"])
    path = found.folder / "history.jsonl"
    for line in BAD:
        with path.open("ab") as file:
            file.write(line + b"\n")
    found.add("start", job="7", restart=0, nodes=["a"], step=0)
    found.add("end", **END)
    return found


def test_lines_that_nobody_wrote_are_left_out_of_the_history(records: Records):
    assert [event["event"] for event in records.events("submit", "start", "end")] == ["submit", "start", "end"]
    assert records.jobs() == ["7"]
    path = records.folder / "history.jsonl"
    path.write_bytes(path.read_bytes().replace(b'"progress": 4', b'"progress": 6'))
    assert records.events("end") == []  # its hash is another


@pytest.mark.parametrize("text", [*BAD, b'{"status": 3, "metrics": {}}', b'{"metrics": {}}', b"{}", b'{"status": "'])
def test_a_result_that_nobody_wrote_is_none(records: Records, text: bytes):
    path = records.run_folder / "result.json"
    path.write_bytes(text)
    assert run_status(records.run_folder) == ""
    (records.run_folder / "metrics.jsonl").write_bytes(
        text + b"\n" + line_of({"kind": "train", "step": 3, "time_s": 1.0, "loss": "nan"}).encode()
    )
    (records.run_folder / "run.json").write_bytes(text)
    assert status_lines(records.run_folder)[0].endswith("run: step 3  loss nan  checkpoint of step 0")


def test_a_failure_without_its_fields_is_none(tmp_path: Path):
    path = tmp_path / "failure.json"
    path.write_text(json.dumps({"error": "out of memory"}))
    assert read_failure(path) == {}
    assert read_json(path) == {"error": "out of memory"}
    whole = {"rank": 1, "host": "a", "time": 1.0, "exit_code": 1, "peer_lost": False, "error": "out of memory"}
    path.write_text(json.dumps(whole))
    assert read_failure(path) == whole
