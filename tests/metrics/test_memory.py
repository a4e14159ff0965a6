"""Metrics touch no shared file, so that processes can compute at once."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from ftscale.metrics.top_k import TopKAccuracy

PROGRAM = """
import sys
from ftscale.metrics.classification import ClassificationScores
right = int(sys.argv[1])
metrics = [ClassificationScores(("a", "b")) for _ in range(2)]
sys.stdin.readline()  # all processes begin together
for _ in range(50):
    for metric in metrics:
        metric.add_batch(predictions=[0] * right + [1] * (10 - right), references=[0] * 10)
    for metric in metrics:
        assert metric.compute()["accuracy"] == right / 10
print("done", flush=True)
"""


@pytest.mark.campaign
def test_two_processes_that_compute_at_once_get_their_own_scores(tmp_path: Path):
    environment = {"HF_HOME": str(tmp_path / "hf"), "HF_HUB_OFFLINE": "1", "PATH": ""}
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", PROGRAM, str(right)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=environment,
            cwd=Path(__file__).parents[2],
        )
        for right in (3, 8)
    ]
    for process in processes:
        process.stdin.write("go\n")
        process.stdin.flush()
    assert [process.communicate()[0].split() for process in processes] == [["done"], ["done"]]
    assert not [path for path in tmp_path.rglob("*") if "metrics" in str(path)]


def test_a_metric_that_holds_inputs_has_no_file_no_lock_and_no_folder():
    metric = TopKAccuracy(1)
    metric.add_batch(predictions=[[0]], references=[0])
    assert metric.cache_file_name is None
    assert metric.filelock is None
    assert not Path(metric.data_dir).exists()
