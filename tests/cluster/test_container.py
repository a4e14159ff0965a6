"""Steps in a container: what is bound, what srun is called with, and what is refused. No image is run here."""

from __future__ import annotations

import logging
import os
from pathlib import Path
from typing import Any

import pytest
import tiny

from ftscale.base.errors import UserError
from ftscale.cluster.container import (
    Container,
    as_variable,
    bound_folders,
    container_problems,
    program,
    read_container,
    runtime_problems,
)
from ftscale.cluster.site import load_site
from ftscale.cluster.step import Allocation, Start, Step
from ftscale.cluster.submit import Request, submit
from ftscale.config import Config
from ftscale.config.load import parse_config


@pytest.fixture
def work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working folder, beside the others that a run may name, and a home."""
    for name in ("work", "home", "data/news", "bulk", "models/bert"):
        (tmp_path / name).mkdir(parents=True)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    for name in ("HF_HOME", "HF_HUB_CACHE", "HF_DATASETS_CACHE", "TORCH_EXTENSIONS_DIR", "TMPDIR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.chdir(tmp_path / "work")
    return tmp_path / "work"


def config(**changes: Any) -> Config:
    values = {"task": "text_classification", "run_folder": "runs/mine", "model": "a/model", "data": {"train": "t.csv"}}
    return parse_config({**values, **changes}, source="run.yaml")


def bound(run: Config, *more: str) -> set[str]:
    """Names of the folders beside `work`, or below it."""
    return {os.path.relpath(folder, Path.cwd().parent) for folder in bound_folders(run, more=more)}


# ---------------------------------------------------------------- what is bound


def test_the_working_folder_holds_what_is_below_it_and_the_caches_lie_in_the_home(work: Path):
    assert bound(config()) == {"work", "home"}  # no cache is there yet
    (work.parent / "home/.cache/huggingface").mkdir(parents=True)
    (work.parent / "home/.cache/ftscale").mkdir()
    assert bound(config()) == {"work", "home/.cache/huggingface", "home/.cache/ftscale"}


@pytest.mark.parametrize(
    ("changes", "folder"),
    [
        ({"run_folder": "{root}/bulk/runs/mine"}, "bulk"),
        ({"data": {"train": "../data/news/train.csv"}}, "data/news"),
        ({"data": {"train": "{root}/data/*/train-*.csv"}}, "data"),
        ({"data": {"train": "{root}/data/news/train.{{de,en}}.gz"}}, "data/news"),
        ({"data": {"train": "t.csv", "test": "{root}/data/news"}}, "data/news"),
        ({"data": {"train": "t.csv", "cache_dir": "{root}/bulk/cache"}}, "bulk"),
        ({"model": {"name": "{root}/models/bert"}}, "models/bert"),
        ({"model": {"name": "a/model", "processor": "{root}/models/bert"}}, "models/bert"),
        ({"distributed": {"offload_dir": "{root}/bulk"}}, "bulk"),
    ],
)
def test_what_a_run_names_elsewhere_is_bound(changes: dict[str, Any], folder: str, work: Path):
    def placed(value: Any) -> Any:
        if isinstance(value, dict):
            return {name: placed(item) for name, item in value.items()}
        return value.format(root=work.parent)

    assert bound(config(**placed(changes))) == {"work", "home", folder}


def test_a_hub_data_set_a_url_and_a_text_are_no_folders(work: Path):
    sources = [{"path": "stanfordnlp/sst2", "format": "hub"}, "https://localhost/data/train.csv"]
    assert bound(config(data={"train": sources}, task={"name": "text_classification", "labels": ["/", "no"]})) == {
        "work",
        "home",
    }


def test_a_link_is_bound_with_what_it_leads_to(work: Path):
    (work.parent / "bulk/train.csv").write_text("text,label\n")
    (work.parent / "data/news/train.csv").symlink_to(work.parent / "bulk/train.csv")
    assert bound(config(data={"train": str(work.parent / "data/news/train.csv")})) == {
        "work",
        "home",
        "data/news",
        "bulk",
    }


def test_a_file_of_the_users_own_and_later_stages_count(work: Path):
    task = work.parent / "bulk/shouting.py"
    task.write_text((tiny.ROOT / "docs/add_a_task.md").read_text().partition("```python\n")[2].partition("```")[0])
    stages = [{"name": "first"}, {"name": "second", "data": {"train": f"{work.parent}/data/news/*.csv"}}]
    assert bound(config(stages=stages), str(task)) == {"work", "home", "bulk", "data/news"}


def test_folders_of_the_environment_are_bound(work: Path, monkeypatch: pytest.MonkeyPatch):
    for name, folder in (("HF_HOME", "bulk"), ("TMPDIR", "data"), ("TORCH_EXTENSIONS_DIR", "models")):
        monkeypatch.setenv(name, str(work.parent / folder))
    (work.parent / "home/.cache/ftscale").mkdir(parents=True)
    assert bound(config()) == {"work", "bulk", "data", "models", "home/.cache/ftscale"}


@pytest.mark.parametrize("name", ["a,b", "a:b"])
def test_a_folder_whose_name_parts_mounts_is_refused(name: str, work: Path):
    (work.parent / name).mkdir()
    with pytest.raises(UserError, match="holds a comma or a colon, which part mounts: rename it"):
        bound_folders(config(run_folder=str(work.parent / name / "run")))


# ---------------------------------------------------------------- what is called

SIF = Container(runtime="apptainer", image="/images/f.sif")
SQSH = Container(runtime="pyxis", image="docker://ftscale:1")


def test_apptainer_stands_before_the_command_and_no_shell_is_between(work: Path):
    folders = ["/data", str(work)]
    mounts = f"/data:/data,{work}:{work}"
    words = ["apptainer", "exec", "--bind", mounts, "--pwd", str(work), "/images/f.sif", "ftscale"]
    assert program(SIF, folders, gpus=False) == ([], words)
    assert program(SIF, folders, gpus=True) == ([], [*words[:2], "--nv", *words[2:]])


def test_pyxis_is_options_of_srun(work: Path):
    container = SQSH.model_copy(update={"options": ("--container-mount-home",)})
    options = [
        "--container-image=docker://ftscale:1",
        f"--container-mounts=/data:/data,{work}:{work}",
        f"--container-workdir={work}",
        "--no-container-entrypoint",
        "--container-mount-home",
    ]
    assert program(container, ["/data", str(work)], gpus=True) == (options, ["ftscale"])


def test_own_mounts_and_options_win(work: Path):
    container = SIF.model_copy(update={"mounts": ("/data:/data:ro", "/x:/y", "/z"), "options": ("--rocm", "--env=A=1")})
    _, words = program(container, ["/data", str(work)], gpus=True)
    assert words[words.index("--bind") + 1] == f"{work}:{work},/data:/data:ro,/x:/y,/z:/z"
    assert "--nv" not in words
    assert words[-4:] == ["--rocm", "--env=A=1", "/images/f.sif", "ftscale"]


def test_a_step_hands_srun_the_container_and_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    srun = tmp_path / "srun"
    srun.write_text(f'#!/bin/sh\nprintf "%s\\n" "$@" > {tmp_path}/words; env > {tmp_path}/variables\n')
    srun.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.setenv("WANDB_MODE", "offline")
    allocation = Allocation(job="1", restart=0, nodes=["n1", "n2"], cpus=4, gpus=2)
    start = Start(["--container-image=x"], ["ftscale"])
    command = ["train", "my run.yaml"]
    options = ["--wait=0"]
    step = Step(
        allocation,
        command,
        name="t",
        tasks_per_node=1,
        environment={"MASTER_PORT": "1"},
        options=options,
        start=start,
    )
    assert step.process.wait() == 0
    words = (tmp_path / "words").read_text().splitlines()
    assert words[-5:] == ["--wait=0", "--container-image=x", "ftscale", *command]
    variables = (tmp_path / "variables").read_text().splitlines()
    assert {"WANDB_MODE=offline", "MASTER_PORT=1", "PYTHONNOUSERSITE=1"} <= set(variables)


# ---------------------------------------------------------------- what is refused


def refused(line: str) -> str:
    Path("cluster.yaml").write_text(f"container: {line}\n")
    with pytest.raises(UserError) as failure:
        load_site()
    return str(failure.value)


@pytest.mark.parametrize(
    ("line", "why"),
    [
        ("{image: /x.sif}", "container.runtime is missing"),
        ("{runtime: docker, image: /x.sif}", "container.runtime = 'docker'"),
        ("{runtime: pyxis}", "container.image is missing"),
        ('{runtime: pyxis, image: "/x\\ntouch PWN"}', "no line ends and other control characters"),
        ("{runtime: pyxis, image: --privileged}", "must be a file or a docker:// URL"),
        ("{runtime: pyxis, image: /x, mounts: [data]}", "must be a path from / on"),
        ("{runtime: pyxis, image: /x, mounts: ['/a,/etc:/etc']}", "must be a path from / on"),
        ('{runtime: pyxis, image: /x, mounts: ["/a\\nb"]}', "no line ends and other control characters"),
        ("{runtime: apptainer, image: /x, options: [rm]}", "must begin with a hyphen"),
        ('{runtime: apptainer, image: /x, options: ["--a\\r"]}', "no line ends and other control characters"),
        ("{runtime: apptainer, image: /x, bind: [/a]}", "container.bind is not a setting"),
    ],
)
def test_a_mistake_in_the_settings_is_told(line: str, why: str, work: Path):
    text = refused(line)
    assert "cluster.yaml: " in text
    assert why in text


@pytest.mark.parametrize(
    ("runtime", "image", "why"),
    [
        (
            "apptainer",
            "gone.sif",
            "is no file here; name one (`apptainer build ftscale.sif launch/ftscale.def` makes it)",
        ),
        ("pyxis", ".", "is no file here"),
        ("pyxis", "oras://a/b", "pyxis takes files and docker://."),
        ("apptainer", "https://localhost/a.sif", "apptainer takes files and docker://, library://, oras://."),
    ],
)
def test_an_image_that_is_not_there_is_told(runtime: Any, image: str, why: str, work: Path):
    [problem] = container_problems(Container(runtime=runtime, image=image))
    assert problem.startswith(f"container.image = {image}")
    assert why in problem


def test_an_image_that_is_there_or_fetched_is_taken(work: Path, monkeypatch: pytest.MonkeyPatch):
    (work / "f.sif").touch()
    assert container_problems(Container(runtime="pyxis", image="f.sif")) == []
    assert container_problems(Container(runtime="apptainer", image=".")) == []  # a folder that `build --sandbox` made
    assert container_problems(SQSH) == []
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    assert container_problems(Container(runtime="pyxis", image="f.sif")) == [
        "container.image = f.sif cannot be read; change its permissions."
    ]


def test_a_node_without_apptainer_says_so(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("PATH", "/nowhere")
    assert "container.runtime = apptainer is not on the path of " in runtime_problems(SIF)[0]
    assert runtime_problems(SQSH) == []


# ---------------------------------------------------------------- the job script


def test_a_job_script_hands_its_container_over_whole(work: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    image = "it's $(touch PWN) `touch PWN` ; # \u00fc.sif"
    (work / image).touch()
    options = ["--env=A=$(touch PWN)", "--env=B=\"'"]
    values = {"runtime": "apptainer", "image": image, "mounts": [f"{tmp_path}:/x:ro"], "options": options}
    tiny.write_run(work, {"container": values}, name="cluster.yaml")
    monkeypatch.setattr("ftscale.cluster.submit._check_and_plan", lambda *_: None)  # of the run itself
    values = {"task": "text_classification", "run_folder": "run", "model": "a/b", "data": {"train": "t.csv"}}
    (work / "t.csv").write_text("text,label\na,b\n")
    run = tiny.write_run(work, values)
    tools = tmp_path / "tools"
    tools.mkdir()
    for name, text in {"sbatch": 'bash "${@: -1}" && echo 1', "python": f'printf "%s\\n" "$@" > {tools}/words'}.items():
        (tools / name).write_text(f"#!/bin/bash\n{text}\n")
        (tools / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tools}:/usr/bin:/bin")
    submit(run, (), Request())
    words = (tools / "words").read_text().splitlines()
    found = read_container(words[words.index("--container") + 1])
    assert found == Container(**{**load_site().container.model_dump(), "image": str(work / image)})  # type: ignore[union-attr]
    assert read_container(as_variable(found)) == found
    assert not list(tmp_path.rglob("PWN"))


def test_a_script_by_hand_names_it_as_yaml():
    assert read_container("{runtime: apptainer, image: /images/f.sif}") == SIF
    assert read_container("") is None
    with pytest.raises(UserError, match="CONTAINER: runtme is not a setting"):
        read_container("{runtme: apptainer, image: /images/f.sif}")
    with pytest.raises(UserError, match="CONTAINER"):
        read_container("/images/f.sif")


def test_submit_says_how_steps_will_run(work: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch):
    caplog.set_level(logging.INFO, "ftscale")
    (work / "f.sif").touch()
    (work / "t.csv").write_text("text,label\na,b\n")
    tiny.write_run(work, {"container": {"runtime": "apptainer", "image": "f.sif"}}, name="cluster.yaml")
    monkeypatch.setattr("ftscale.cluster.submit._check_and_plan", lambda *_: None)
    values = {"task": "text_classification", "run_folder": "run", "model": "a/b", "data": {"train": "t.csv"}}
    script = submit(tiny.write_run(work, values), (), Request(gpus_per_node=1), dry_run=True).script
    assert f'CONTAINER=\'{{"runtime": "apptainer", "image": "{work}/f.sif"}}\' # of the steps' in script
    home = work.parent / "home"
    bound = f"--bind {home}:{home},{work}:{work} --pwd {work}"
    assert f"steps run in a container: srun apptainer exec --nv {bound} {work}/f.sif ftscale" in caplog.text
    tiny.write_run(work, {"container": {"runtime": "apptainer", "image": "gone.sif"}}, name="cluster.yaml")
    with pytest.raises(UserError, match="container.image = gone.sif is no file here"):
        submit(work / "run.yaml", (), Request(), dry_run=True)
