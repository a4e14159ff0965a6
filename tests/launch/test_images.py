"""launch/Dockerfile and launch/ftscale.def, as far as they can be looked at: no image is built or run by the tests."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from packaging.specifiers import SpecifierSet

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).resolve().parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
PYTHON = {"ubuntu22.04": "3.10", "ubuntu24.04": "3.12"}
"""Of the distribution's package python3 (packages.ubuntu.com)."""
INSTRUCTIONS = {"ARG", "CMD", "COPY", "ENTRYPOINT", "ENV", "FROM", "RUN", "USER", "WORKDIR"}


def joined(text: str) -> list[str]:
    """Lines without comments, those that go on in the next one whole."""
    kept = "\n".join(line for line in text.splitlines() if not line.lstrip().startswith("#"))
    return [line for line in re.sub(r"\\\n\s*", " ", kept).splitlines() if line.strip()]


def dockerfile() -> list[tuple[str, str]]:
    found = [line.partition(" ")[::2] for line in joined((ROOT / "launch/Dockerfile").read_text())]
    assert {name for name, _ in found} <= INSTRUCTIONS
    return found


def definition() -> dict[str, list[str]]:
    """The sections of ftscale.def; "" = its head."""
    sections: dict[str, list[str]] = {"": []}
    for line in joined((ROOT / "launch/ftscale.def").read_text()):
        if line.startswith("%"):
            sections[line.strip()] = []
        else:
            sections[list(sections)[-1]].append(line.strip())
    return sections


def values(name: str) -> list[str]:
    return [value for instruction, value in dockerfile() if instruction == name]


def copy(value: str, folder: Path) -> None:
    """What COPY does in that folder."""
    *sources, target = value.split()
    for source in sources:
        place = folder / target / Path(source).name if target == "./" else folder / target
        place.parent.mkdir(parents=True, exist_ok=True)
        if (ROOT / source).is_dir():
            shutil.copytree(ROOT / source, place, dirs_exist_ok=True, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(ROOT / source, place)


def test_both_begin_with_the_same_image_whose_python_and_cuda_fit():
    [base] = values("FROM")
    assert definition()[""] == ["Bootstrap: docker", f"From: {base}"]
    name, _, tag = base.partition(":")
    assert name == "nvidia/cuda"
    cuda, kind, system = tag.split("-")
    assert kind == "devel"
    assert SpecifierSet(PROJECT["requires-python"]).contains(PYTHON[system])
    [runtime] = re.findall(r"^nvidia-cuda-runtime==(\d+\.\d+)\.", (ROOT / "launch/constraints.txt").read_text(), re.M)
    assert cuda.rpartition(".")[0] == runtime


def test_both_install_the_same():
    def commands(lines: list[str]) -> list[str]:
        return [re.sub(r"\s+", " ", line.strip()) for text in lines for line in text.split("&&")]

    first, second = commands(values("RUN")), commands(definition()["%post"])
    assert [line for line in first if "useradd" not in line] == [
        line for line in second if not line.startswith(("set ", "cd "))
    ]
    [install] = [shlex.split(line) for line in first if "install.sh" in line]
    assert install[-3:-1] == ["bash", "launch/install.sh"]
    assert set(install[-1].split(",")) <= set(PROJECT["optional-dependencies"])
    copied = {word for value in values("COPY") for word in value.split()[:-1]} - {"ftscale/version.py"}
    lines = [line.split() for line in definition()["%files"]]
    assert {source for source, _ in lines} == copied
    assert all(target == f"/opt/ftscale/{source}" for source, target in lines)


def test_what_is_copied_before_the_installation_is_enough_for_it_and_all_of_it_runs(tmp_path: Path):
    folder, built = tmp_path / "copy", tmp_path / "built"
    built.mkdir()
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}

    def python(program: str, *arguments: object) -> str:
        command = [sys.executable, "-c", program, *map(str, arguments)]
        return subprocess.run(command, cwd=folder, env=environment, text=True, check=True, capture_output=True).stdout

    for instruction, value in dockerfile():
        if instruction == "COPY":
            copy(value, folder)
        elif "install.sh" in value:  # its last step is `pip install -e .`
            python("import sys; from hatchling.build import build_editable; build_editable(sys.argv[1])", built)
            subprocess.run([sys.executable, "launch/requirements.py", value.split()[-1]], cwd=folder, check=True)
    assert [path.suffix for path in built.iterdir()] == [".whl"]
    shown = python("from ftscale.base.resources import resource; print(resource('slurm', 'train.sbatch'))")
    assert shown.strip() == str(folder / "slurm/train.sbatch")


def test_ftscale_is_what_is_run_and_gets_the_signals():
    [entry] = values("ENTRYPOINT")
    assert json.loads(entry) == ["ftscale"]  # no shell between
    assert definition()["%runscript"] == ['exec ftscale "$@"']
    assert "ftscale" in PROJECT["scripts"]


def test_nobody_is_root_and_the_users_own_packages_are_left_out():
    [user] = values("USER")
    assert f"useradd --create-home {user}" in values("RUN")
    assert [value for value in values("ENV") if "PYTHONNOUSERSITE=1" in value and "/opt/ftscale/.venv/bin:" in value]
    assert definition()["%environment"] == [
        "export PATH=/opt/ftscale/.venv/bin:$PATH",
        "export PYTHONNOUSERSITE=1",
    ]


@pytest.mark.parametrize("section", ["%post", "%environment", "%runscript", "%test"])
def test_the_scripts_of_the_definition_parse(section: str):
    subprocess.run(["sh", "-n"], input="\n".join(definition()[section]), text=True, check=True)
