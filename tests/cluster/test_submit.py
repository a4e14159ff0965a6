"""Requests that need no cluster: what is refused, what an array's members are, and the script."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path
from typing import Any

import pytest
import tiny
from plan.worlds import llama, run_of

from ftscale.base.errors import UserError
from ftscale.base.resources import resource
from ftscale.cluster.records import Records
from ftscale.cluster.site import Site
from ftscale.cluster.submit import Request, job_script, resubmit, submit
from ftscale.cluster.watch import cancel
from ftscale.config import load_config


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


# ---------------------------------------------------------------- a run that is finished


LONGER = ("train.max_steps=6",)


@pytest.fixture
def finished(run: Path) -> Path:
    """A run of three steps, done."""
    assert tiny.command("train", run).code == 0
    return run


def test_a_finished_run_is_submitted_for_longer_and_its_job_goes_on(finished: Path, slurm: Path, tmp_path: Path):
    submit(finished, LONGER, Request(resume=True))
    arguments = (slurm / "arguments").read_text().splitlines()
    job_run = arguments[arguments.index("--") + 1]
    assert job_run == str(tmp_path / "run/slurm/run.yaml")
    done = tiny.command("train", job_run, "--resume")  # as the job does in a folder that holds a run
    assert done.code == 0, done.stderr
    assert [step["step"] for step in tiny.steps(tmp_path / "run")] == [1, 2, 3, 4, 5, 6]


def test_a_finished_run_that_asks_for_no_more_is_refused(finished: Path, slurm: Path, tmp_path: Path):
    with pytest.raises(UserError, match=r"is finished \(completed\); there is nothing to submit") as failure:
        submit(finished, (), Request(resume=True))
    assert "ftscale submit RUN.yaml --resume train.epochs=" in str(failure.value)
    assert not (tmp_path / "run/slurm").exists()


def test_a_longer_run_whose_job_never_began_is_submitted_again(finished: Path, slurm: Path, tmp_path: Path):
    submit(finished, LONGER, Request(resume=True))
    assert resubmit(tmp_path / "run").jobs == ("4242",)
    assert tiny.command("train", tmp_path / "run/slurm/run.yaml", "--resume").code == 0
    with pytest.raises(UserError, match=r"is finished \(completed\)"):
        resubmit(tmp_path / "run")


# ---------------------------------------------------------------- what reaches a shell


@pytest.fixture
def slurm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An sbatch that runs the script at once, and a python in it that writes what it was given; gives the folder."""
    tools = tmp_path / "tools"
    tools.mkdir()
    for name, text in {
        "sbatch": 'SLURM_ARRAY_TASK_ID=${TASK:-0} bash "${@: -1}" >&2 && echo "${ANSWER:-4242}"',
        "python": f'printf "%s\\n" "$@" > {tools}/arguments',
        "scontrol": "exit 1",
        "scancel": f'printf "%s\\n" "$@" > {tools}/cancelled',
    }.items():
        (tools / name).write_text(f"#!/bin/bash\n{text}\n")
        (tools / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tools}:/usr/bin:/bin")
    return tools


def test_a_run_folder_of_several_lines_is_no_run_folder(run: Path, slurm: Path, tmp_path: Path):
    with pytest.raises(UserError, match="run_folder = .* must hold no line ends and other control characters"):
        submit(run, ['run_folder="runs/x\\ntouch PWN\\n#"'], Request())
    assert not list(tmp_path.rglob("PWN"))


def test_no_request_is_a_line_of_bash(run: Path, slurm: Path, tmp_path: Path):
    bad = "x\ntouch PWN\n#"
    for request in (
        Request(partition=bad),
        Request(account=bad),
        Request(sbatch=(f"qos={bad}",)),
        Request(sbatch=(bad,)),
    ):
        with pytest.raises(UserError, match="line ends or other control characters|is no option of sbatch"):
            submit(run, (), request)
    assert not list(tmp_path.rglob("PWN"))


def test_nor_is_the_name_of_a_folder_above(run: Path, slurm: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "a\ntouch PWN\n#").mkdir()
    monkeypatch.chdir(tmp_path / "a\ntouch PWN\n#")
    with pytest.raises(UserError, match="also from the names of folders"):
        submit(run, ["run_folder=run"], Request())
    assert not list(tmp_path.rglob("PWN"))


def test_a_folder_below_which_slurm_writes_no_log_is_refused(tmp_path: Path):
    with pytest.raises(UserError, match="because of its backslash; rename it"):
        job_script(tmp_path / "a\\b", Request(), Site(), array=None)


@pytest.mark.parametrize("folder", ["runs/my run", "runs/it's $(touch PWN) `touch PWN` ; #1 100%j"])
def test_every_member_of_an_array_gets_its_own_file_whatever_its_folder_is_called(
    folder: str, run: Path, slurm: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("TASK", "1")
    submit(run, [f"run_folder={tmp_path / folder}", "report=tensorboard"], Request(seeds=2))
    name, report = Path(folder).name, load_config(tmp_path / folder / "slurm/run-00001.yaml").report
    assert (report.name, report.group) == (f"{name}-seed-1", name)
    arguments = (slurm / "arguments").read_text().splitlines()
    assert arguments[arguments.index("--") + 1 :] == [str(tmp_path / folder / "slurm/run-00001.yaml")]
    assert not list(tmp_path.rglob("PWN"))


def test_a_run_folder_may_be_a_link_into_a_cleared_disk(run: Path, slurm: Path, tmp_path: Path):
    (tmp_path / "link").symlink_to(tmp_path / "scratch/run")
    script = submit(run, [f"run_folder={tmp_path / 'link'}"], Request()).script
    assert f"#SBATCH --output={tmp_path}/scratch/run/slurm/job-%j.log" in script
    assert (tmp_path / "scratch/run/slurm/run.yaml").is_file()


def test_a_line_written_by_hand_is_split_as_words(slurm: Path, tmp_path: Path):
    (tmp_path / "runs.txt").write_text('run.yaml seed=1\n"my run.yaml" seed=2 "run_folder=runs/my run" $(touch PWN)\n')
    script = resource("slurm", "array.sbatch")
    environment = {**os.environ, "SLURM_ARRAY_TASK_ID": "1"}
    subprocess.run(["bash", str(script), "runs.txt"], cwd=tmp_path, env=environment, check=True)
    arguments = (slurm / "arguments").read_text().splitlines()
    words = ["my run.yaml", "seed=2", "run_folder=runs/my run", "$(touch", "PWN)"]
    assert arguments[arguments.index("--") + 1 :] == words


def test_an_answer_that_is_no_number_is_no_job(run: Path, slurm: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("ANSWER", "--user=root")
    with pytest.raises(UserError, match="sbatch answered '--user=root' instead of a job's number"):
        submit(run, (), Request())
    assert not (tmp_path / "run").exists()


def test_only_numbers_of_jobs_are_cancelled(slurm: Path, tmp_path: Path):
    (slurm / "scontrol").write_text("#!/bin/bash\necho JobState=PENDING\n")
    records = Records(tmp_path / "run")
    records.add("submit", jobs=["--user=root", "-u root"])
    with pytest.raises(UserError, match="no job was submitted for it"):
        cancel(tmp_path / "run")
    records.add("submit", jobs=["4242", "4243_7"])
    records.add("submit", jobs=[4244])
    records.add("start", job="4245 --user=root", restart=0, nodes=["n1"], step=0)
    records.add("start", job="4246", restart=0, nodes=["--all"], step=0)
    cancel(tmp_path / "run")
    assert (slurm / "cancelled").read_text() == "4242\n4243_7\n"
