"""The command that goes on with a stopped run, as those who started it would type it."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import tiny

SHOWS = """
import sys
from ftscale.base.started import go_on_command, started_command
words = started_command()
print("nobody knows" if words is None else go_on_command(words, begun={begun}))
"""
LAUNCHES = """#!{python}
import subprocess, sys
module = sys.argv[sys.argv.index("-m"):]
sys.exit(subprocess.call([sys.executable, "-u", *module]))
"""


def told(folder: Path, words: list[str], *, begun: bool = True, **variables: str) -> str:
    """What a program `shows` says that is started by the words in a folder, where `accelerate` is a launcher."""
    for name, text in (("shows", f"#!{sys.executable}{SHOWS}"), ("shows.py", SHOWS), ("accelerate", LAUNCHES)):
        (folder / name).write_text(text.format(begun=begun, python=sys.executable))
        (folder / name).chmod(0o755)
    (folder / "shows.py").chmod(0o644)
    path = os.pathsep.join([str(folder), str(Path(sys.executable).parent), os.environ["PATH"]])
    variables = {**os.environ, "PATH": path, "PYTHONPATH": str(tiny.ROOT), **variables}
    done = subprocess.run(words, env=variables, cwd=folder, capture_output=True, text=True, check=True)
    return done.stdout.rstrip("\n")


@pytest.mark.parametrize(
    "words",
    [
        ["shows", "train", "my run.yaml", "task.labels=[a, b]"],
        ["python", "-m", "shows", "train", "run.yaml"],
        ["python", "shows.py", "launch", "run.yaml", "--processes", "2"],
        ["accelerate", "launch", "--num_processes", "2", "-m", "shows", "train", "my run.yaml", "optimizer.lr=1e-4"],
        ["timeout", "600", "shows", "train", "run.yaml"],
        ["timeout", "600", "accelerate", "launch", "-m", "shows", "train", "run.yaml", "x='$HOME'"],
    ],
    ids=lambda words: " ".join(words[:3]),
)
def test_it_is_the_command_that_was_typed_quoted_for_a_shell(tmp_path: Path, words: list[str]):
    said = told(tmp_path, words)
    assert shlex.split(said) == [*words, "--resume"]
    assert said == f"{' '.join(map(shlex.quote, words))} --resume"


def test_a_program_that_is_not_on_the_path_keeps_its_folder(tmp_path: Path):
    (tmp_path / "else").mkdir()
    said = told(tmp_path, [f"{tmp_path}/shows", "train", "run.yaml"], PATH=os.environ["PATH"])
    assert said == f"{tmp_path}/shows train run.yaml --resume"


@pytest.mark.parametrize(
    ("given", "begun", "wanted"),
    [
        (["run.yaml", "--resume"], True, "run.yaml --resume"),
        (["--overwrite", "run.yaml"], True, "run.yaml --resume"),
        (["--overwrite", "run.yaml"], False, "--overwrite run.yaml"),
        (["run.yaml", "--", "x=1"], True, "run.yaml --resume -- x=1"),
    ],
)
def test_an_earlier_run_is_not_replaced_again_and_none_is_resumed_that_was_not_begun(
    tmp_path: Path, given: list[str], begun: bool, wanted: str
):
    assert told(tmp_path, ["shows", "train", *given], begun=begun) == f"shows train {wanted}"


def test_one_of_several_processes_says_nothing_that_would_start_a_single_one(tmp_path: Path):
    words = ["shows", "train", "run.yaml"]
    assert told(tmp_path, words, RANK="0", WORLD_SIZE="2") == "nobody knows"
    launcher = ["accelerate", "launch", "-m", *words]
    assert told(tmp_path, launcher, RANK="0", WORLD_SIZE="2") == " ".join([*launcher, "--resume"])
    assert told(tmp_path, launcher, RANK="0", WORLD_SIZE="2", FTSCALE_STARTED_BY="ftscale launch") == "nobody knows"
