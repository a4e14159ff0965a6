"""Requests that need no cluster: what is refused, what an array's members are, and the script."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import tiny
from plan.worlds import llama, run_of

from ftscale.cluster.site import Site
from ftscale.cluster.submit import Request, job_script, submit
from ftscale.errors import UserError


@pytest.fixture
def run(shared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    return tiny.write_run(tmp_path, tiny.settings(shared, tmp_path))


def problems(run: Path, *overrides: str, **request: Any) -> str:
    with pytest.raises(UserError) as failure:
        submit(run, overrides, Request(**request), dry_run=True)
    return "\n".join(failure.value.problems)


def test_all_mistakes_of_request_and_run_are_reported_together(run: Path):
    text = problems(run, "optimizer.lrr=1", launcher="torchrum", grid=("lr",), time="soon", array="0-3", chain=2)
    assert "--launcher = 'torchrum' is not known; did you mean 'torchrun'?" in text
    assert "--grid 'lr' must be setting=value,value" in text
    assert "--time soon is no time limit" in text
    assert "--chain is for a single run" in text
    assert "optimizer.lrr is not a setting" in text


def test_an_array_needs_members(run: Path):
    assert "--array 0-3 chooses among members, and there are none" in problems(run, array="0-3")


def test_a_time_limit_within_which_nothing_can_be_trained_is_refused(run: Path):
    text = problems(run, time="2")
    assert "--time 2 leaves no time to train" in text
    assert "checkpoint.before_end_s = 120 s" in text
    assert "ask for 3 minutes or more" in text


def test_a_mistake_in_the_run_is_found_before_anything_is_written(run: Path, tmp_path: Path):
    assert "data.train[0].path" in problems(run, "data.train.path=missing.tsv")
    assert not (tmp_path / "run").exists()


def test_what_check_finds_in_the_data_is_refused(shared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "pairs.jsonl").write_text('{"prompt": "What is a job?", "completion": ""}\n' * 4)
    values = run_of(llama("small", tmp_path / "model", shared), tmp_path, data={"train": str(tmp_path / "pairs.jsonl")})
    run = tiny.write_run(tmp_path, values)
    assert "data.train: " in problems(run)
    assert not (tmp_path / "run").exists()


def test_a_run_that_does_not_fit_the_sites_gpus_is_refused(
    shared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    tiny.write_run(tmp_path, {"gpus_per_node": 2, "gpu": "l4"}, name="cluster.yaml")
    run = tiny.write_run(tmp_path, run_of(llama("7b", tmp_path / "model", shared), tmp_path))
    text = problems(run)
    assert "ddp on 1 x 2 NVIDIA L4: " in text
    assert "does not fit" in text
    assert "--gpu l4 --nodes 1 --gpus-per-node 2` ranks what would" in text
    assert "#SBATCH --gpus-per-node=2\n" in submit(run, (), Request(plan=False), dry_run=True).script


def test_seeds_and_grid_make_every_combination(run: Path):
    script = submit(run, (), Request(seeds=2, grid=("optimizer.lr=1e-4,2e-4", "adapter.r=8")), dry_run=True).script
    assert "#SBATCH --array=0-3\n" in script
    limited = submit(run, (), Request(seeds=4, array="0-3%2"), dry_run=True).script
    assert "#SBATCH --array=0-3%2\n" in limited


def test_a_member_with_a_wrong_value_is_refused(run: Path):
    assert "optimizer.lr = -1" in problems(run, grid=("optimizer.lr=1e-4,-1",))


@pytest.mark.parametrize(("time", "seconds"), [("30", 300), ("10", 150), ("2-00:00:00", 300), ("UNLIMITED", 300)])
def test_a_short_job_is_warned_a_quarter_of_its_time_before_the_end(time: str, seconds: int, tmp_path: Path):
    script = job_script(tmp_path, Request(time=time), Site(), array=None)
    assert f"#SBATCH --signal=B:USR1@{seconds} " in script


def test_the_command_line_wins_over_the_site(tmp_path: Path):
    site = Site(partition="gpu", account="physics", gpus_per_node=4, sbatch={"qos": "long", "exclusive": ""})
    request = Request(nodes=2, partition="big", sbatch=("qos=short", "hold"), elastic=True)
    script = job_script(tmp_path, request, site, array=None)
    lines = [line.partition("  ")[0] for line in script.splitlines()]
    for option in (
        "partition=big",
        "account=physics",
        "gpus-per-node=4",
        "qos=short",
        "exclusive",
        "hold",
        "nodes=1-2",
    ):
        assert f"#SBATCH --{option}" in lines
    assert "ntasks-per-node" not in script.split("set -euo")[0]
    assert "PROCESSES=4" in lines
    assert "ELASTIC=yes" in lines


def test_a_chain_is_never_requeued(tmp_path: Path):
    script = job_script(tmp_path, Request(chain=3), Site(), array=None)
    assert "#SBATCH --no-requeue\n" in script
    assert "#SBATCH --requeue" not in script
    assert "ON_STOP=end " in script


def test_without_slurm_submit_says_so(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(UserError, match="sbatch is not on the path"):
        submit(run, (), Request())
    assert not (tmp_path / "run").exists()
