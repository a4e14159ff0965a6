"""What is installed: the wheel's files, the scripts, and versions that agree."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import sysconfig
import venv
import zipfile
from email import message_from_bytes, message_from_string
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from typing import Any

import pytest
import trove_classifiers
import yaml
from packaging.metadata import Metadata
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import ftscale
from ftscale.run import folder as run_folder
from ftscale.version import __version__

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).resolve().parents[2]
WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))
SCRIPTS = [*sorted((ROOT / "launch").glob("*.sh")), *sorted((ROOT / "slurm").glob("*.sbatch")), ROOT / ".ci" / "run"]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "--no-index"]
    subprocess.run([*command, "--wheel-dir", str(folder), str(ROOT)], check=True)
    return next(folder.glob("ftscale-*.whl"))


@pytest.fixture(scope="module")
def files(wheel: Path) -> set[str]:
    return set(zipfile.ZipFile(wheel).namelist())


def test_the_wheel_holds_launch_files_deepspeed_configs_and_slurm_templates(files: set[str]):
    shipped = {
        f"ftscale/_resources/{path.relative_to(ROOT).as_posix()}"
        for folder in ("launch", "ds_configs", "slurm")
        for path in (ROOT / folder).rglob("*")
        if path.is_file() and path.parent.name != "__pycache__"
    }
    assert len(shipped) > 15
    assert shipped <= files


def test_the_wheel_holds_every_file_of_the_package(files: set[str]):
    package = {
        path.relative_to(ROOT).as_posix()
        for path in (ROOT / "ftscale").rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    assert {"ftscale/demo/help_desk/train.csv", "ftscale/config/schema.py"} <= package
    assert package <= files


def test_the_wheel_holds_nothing_else(files: set[str]):
    assert {name.split("/")[0] for name in files} == {"ftscale", f"ftscale-{__version__}.dist-info"}


def test_the_wheel_says_that_it_is_typed(files: set[str]):
    """Without py.typed a type checker takes whatever ftscale gives for Any (PEP 561)."""
    assert "ftscale/py.typed" in files


def test_the_version_has_one_home(wheel: Path, monkeypatch: pytest.MonkeyPatch):
    about = message_from_bytes(zipfile.ZipFile(wheel).read(f"ftscale-{__version__}.dist-info/METADATA"))
    assert about["Version"] == __version__ == ftscale.__version__

    def not_installed(name: str) -> str:
        raise PackageNotFoundError(name)

    monkeypatch.setattr(run_folder, "version", not_installed)  # run.json tells of the code, not of an installation
    assert run_folder.versions()["ftscale"] == __version__

    sources = [ROOT / "pyproject.toml", *(ROOT / "ftscale").rglob("*.py")]
    assert [path.name for path in sources if f'"{__version__}"' in path.read_text()] == ["version.py"]


def test_the_changelog_has_the_version_and_what_is_unreleased():
    titles = re.findall(r"^## (.+)$", (ROOT / "CHANGELOG.md").read_text(), flags=re.MULTILINE)
    assert titles[:2] == ["Unreleased", __version__]


def test_an_installed_wheel_finds_its_resources(wheel: Path, tmp_path: Path):
    zipfile.ZipFile(wheel).extractall(tmp_path)
    program = (
        "from ftscale.base.resources import resource, strategies; print(resource('ds_configs')); print(*strategies())"
    )
    # -c puts the current folder first on the path, before an editable install
    done = subprocess.run([sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True, check=True)
    folder, names = done.stdout.splitlines()
    assert Path(folder) == tmp_path / "ftscale" / "_resources" / "ds_configs"
    assert names == "ddp single zero1 zero2 zero2_offload zero3 zero3_nvme zero3_offload"


ABROAD = """
import sys
from ftscale.cli import main

def command(*words):
    sys.argv = ["ftscale", *words]
    print("ftscale", *words[:1])
    try:
        main()
    except SystemExit as stop:
        assert not stop.code, (words, stop.code)

run = ["run.yaml", *sys.argv[1:]]
command("check", *run)
command("submit", *run, "--dry-run")
command("train", *run)
"""


@pytest.fixture
def installed(wheel: Path, tmp_path: Path) -> Path:
    """The programs of a virtual environment with the wheel; what it requires is that of these tests."""
    folder = tmp_path / "environment"
    venv.EnvBuilder(with_pip=False, symlinks=True).create(folder)
    pip = [sys.executable, "-m", "pip", "--python", folder / "bin/python", "install", "--quiet"]
    subprocess.run([*pip, "--no-deps", "--no-index", "--no-compile", wheel], check=True)
    packages = Path(sysconfig.get_path("purelib", vars={"base": str(folder)}))
    (packages / "dependencies.pth").write_text(sysconfig.get_path("purelib"))
    return folder / "bin"


@pytest.mark.slow
def test_an_installed_wheel_trains_checks_and_submits_its_recipes(installed: Path, minilm: Path, tmp_path: Path):
    work = tmp_path / "work"
    work.mkdir()
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"} | {"HOME": str(work)}
    extensions = environment.get("TORCH_EXTENSIONS_DIR", str(Path.home() / ".cache/torch_extensions"))
    environment["TORCH_EXTENSIONS_DIR"] = extensions  # what DeepSpeed has compiled, a minute's work

    def output(*words: object) -> str:
        return subprocess.run([*words], cwd=work, env=environment, text=True, stdout=subprocess.PIPE, check=True).stdout

    assert "help_desk" in output(installed / "ftscale", "recipes")
    (work / "run.yaml").write_text(output(installed / "ftscale", "recipes", "help_desk"))
    settings = [f"model={minilm}", "run_folder=run", "data.cache_dir=cache", "distributed.strategy=zero1"]
    settings += ["train.max_steps=2", "checkpoint.prove=never", "data.train.0.limit=64", "data.eval.0.limit=16"]
    said = output(installed / "python", "-I", "-c", ABROAD, *settings)
    checked, _, rest = said.partition("ftscale submit\n")
    assert "nothing wrong found" in checked
    script, _, _ = rest.partition("ftscale train\n")
    subprocess.run(["bash", "-n"], input=script, text=True, check=True)
    assert f"set -- {work}/run/slurm/run.yaml\n" in script
    about = json.loads((work / "run/run.json").read_text())
    assert (about["strategy"], about["versions"]["ftscale"]) == ("zero1", __version__)
    result = json.loads((work / "run/result.json").read_text())
    assert (result["status"], result["steps"]) == ("completed", 2)
    trained = (work / "run/config.yaml").read_text()
    assert f"{installed.parent}/lib" in trained  # its own rows, not the checkout's
    assert str(ROOT / "ftscale") not in trained


def test_an_index_takes_what_the_wheel_says_of_itself(wheel: Path):
    about = zipfile.ZipFile(wheel).read(f"ftscale-{__version__}.dist-info/METADATA")
    found = Metadata.from_email(about, validate=True)
    assert found.description_content_type == "text/markdown"
    assert set(found.classifiers) <= trove_classifiers.classifiers
    assert not any(name.startswith("License ::") for name in found.classifiers)  # PEP 639: license-expression alone
    assert found.license_expression == "MIT"
    assert set(found.provides_extra) == set(_project()["optional-dependencies"])
    versions = [name.rpartition(" ")[2] for name in found.classifiers if "Python :: 3." in name]
    assert versions
    assert all(found.requires_python.contains(version) for version in versions)


def test_the_page_on_an_index_has_no_link_into_the_repository(wheel: Path):
    about = zipfile.ZipFile(wheel).read(f"ftscale-{__version__}.dist-info/METADATA").decode("utf-8")
    page = message_from_string(about).get_payload()
    links = re.findall(r"\]\(([^)]*)\)", page)
    assert [link for link in links if not re.match(r"https?://|#", link)] == []
    readme = (ROOT / "README.md").read_text()
    assert page.splitlines()[0] == readme.splitlines()[0]
    assert {line for line in readme.splitlines() if "](" not in line} <= set(page.splitlines())
    assert {found[1] for found in re.finditer(r"[^!]\[(\w[^\]]*)\]\(", readme) if found[1] not in page} == set()


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_each_script_parses_and_stops_at_the_first_error(script: Path):
    subprocess.run(["bash", "-n", str(script)], check=True)
    text = script.read_text()
    assert text.startswith("#!/usr/bin/env bash\n")
    assert "\nset -euo pipefail\n" in text


def test_every_requirement_is_pinned_within_its_range():
    pins = _pins()
    wrong = [
        f"{requirement} is pinned to {pins.get(name)}"
        for name, requirement in _requirements().items()
        if name not in pins or not requirement.specifier.contains(pins[name])
    ]
    assert wrong == []


def test_this_environment_has_the_pinned_versions():
    different = {}
    for name, version in _pins().items():
        try:
            installed = distribution(name).version.partition("+")[0]  # torch 2.13.0+cpu is 2.13.0
        except PackageNotFoundError:
            continue
        if installed != version:
            different[name] = (installed, version)
    assert different == {}


def test_everything_that_a_requirement_brings_along_is_pinned():
    pins, missing, todo = _pins(), [], list(_requirements().values())
    seen: set[str] = set()
    while todo:
        requirement = todo.pop()
        name = canonicalize_name(requirement.name)
        if str(requirement) in seen or name == "ftscale" or not _applies(requirement):
            continue
        seen.add(str(requirement))
        if name not in pins:
            missing.append(name)
            continue
        for text in distribution(name).requires or []:
            inner = Requirement(text)
            if _applies(inner, requirement.extras):
                inner.marker = None
                todo.append(inner)
    assert sorted(set(missing)) == []


def test_pre_commit_has_the_pinned_linters():
    pins = _pins()
    hooks = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"][0]["hooks"]
    named = {dependency for hook in hooks for dependency in hook["additional_dependencies"]}
    assert {name.partition("==")[0] for name in named} >= {"ruff", "mypy", "codespell"}
    different = {}
    for dependency in named:
        name, _, version = dependency.partition("==")
        if pins.get(canonicalize_name(name), version) != version:
            different[name] = version
    assert different == {}


def _pins() -> dict[str, str]:
    """Pinned versions that apply to this Python."""
    text = re.sub(r"#.*\n", "", (ROOT / "launch" / "constraints.txt").read_text())
    parsed = []
    for pin in re.split(r"(?<!\\)\n", text.strip()):
        line, *hashes = re.split(r"\\\n\s*--hash=", pin)
        assert all(re.fullmatch(r"sha256:[0-9a-f]{64}\s*", item) for item in hashes), line
        assert hashes, f"{line}: without a hash pip takes whatever it gets"
        parsed.append(Requirement(line.strip()))
    for requirement in parsed:
        assert re.fullmatch(r"==[0-9][0-9a-z.]*", str(requirement.specifier)), requirement
    applying = [requirement for requirement in parsed if _applies(requirement)]
    pins = {canonicalize_name(item.name): str(item.specifier).removeprefix("==") for item in applying}
    assert len(pins) == len(applying), "a name is pinned twice for this Python"
    return pins


def _project() -> dict[str, Any]:
    return tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def _requirements() -> dict[str, Requirement]:
    """What pyproject.toml asks for, extras included."""
    project = _project()
    lines = [*project["dependencies"], *(line for extra in project["optional-dependencies"].values() for line in extra)]
    parsed = [Requirement(line) for line in lines]
    return {canonicalize_name(item.name): item for item in parsed if item.name != "ftscale"}


def _applies(requirement: Requirement, extras: set[str] = frozenset()) -> bool:
    marker = requirement.marker
    return marker is None or any(marker.evaluate({"extra": extra}) for extra in {"", *extras})


def test_of_what_bandit_finds_pickles_are_never_accepted():
    """Each finding that is accepted says why; those of loading without weights_only (B614) are mended instead."""
    accepted = json.loads((ROOT / "launch" / "bandit.json").read_text())["results"]
    assert {(item["test_id"], bool(item["why"])) for item in accepted} == {("B615", True), ("B506", True)}
    assert all((ROOT / item["filename"]).is_file() for item in accepted)


def test_actions_are_pinned_by_commit_and_read_the_repository_alone():
    """A tag may be moved to other code; a commit is what it is."""
    for path in WORKFLOWS:
        workflow = yaml.safe_load(path.read_text())
        assert workflow["permissions"] == {"contents": "read"}
        for job in workflow["jobs"].values():
            used = [step["uses"] for step in job["steps"] if "uses" in step]
            assert used
            assert all(re.fullmatch(r"[\w/-]+@[0-9a-f]{40}", action) for action in used), used


def test_an_action_has_one_version_in_all_workflows():
    used = {
        step["uses"]
        for path in WORKFLOWS
        for job in yaml.safe_load(path.read_text())["jobs"].values()
        for step in job["steps"]
        if "uses" in step
    }
    assert len({action.partition("@")[0] for action in used}) == len(used) > 1


def test_the_newest_dependencies_are_tried_without_constraints_and_may_fail():
    (job,) = yaml.safe_load((ROOT / ".github" / "workflows" / "newest.yml").read_text())["jobs"].values()
    assert job["continue-on-error"] is True
    commands = "\n".join(step["run"] for step in job["steps"] if "run" in step)
    assert '--upgrade-strategy eager -e ".[demo,dev]"' in commands
    assert "constraints" not in commands
    assert ".ci/run" not in commands
    left_out = re.findall(r"--deselect (\S+)::(\S+)", commands)
    assert len(left_out) == 2
    assert all(f"def {name}(" in (ROOT / file).read_text() for file, name in left_out)


@pytest.mark.parametrize("form", ["bug", "feature"])
def test_issue_forms_are_what_github_takes(form: str):
    """https://docs.github.com/communities/using-templates-to-encourage-useful-issues-and-pull-requests"""
    about = yaml.safe_load((ROOT / ".github" / "ISSUE_TEMPLATE" / f"{form}.yml").read_text())
    assert set(about) == {"name", "description", "labels", "body"}
    fields = [field for field in about["body"] if field["type"] != "markdown"]
    assert {field["type"] for field in fields} == {"textarea"}
    assert all(field["attributes"]["label"] for field in fields)
    names = [field["id"] for field in fields]
    assert len(set(names)) == len(names)
    needed = {field["id"] for field in fields if field.get("validations", {}).get("required")}
    assert needed == {"bug": {"what", "command", "config", "versions", "log"}, "feature": {"want", "use"}}[form]
