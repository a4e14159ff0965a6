"""Forks are what starts would be: their environment, ranks that know each other, exit codes, clean Pythons."""

from __future__ import annotations

import json
import os
from pathlib import Path

import forks
import pytest
import tiny

RANK = """
import json, os, sys
from pathlib import Path
import torch
torch.distributed.init_process_group("gloo")
rank = torch.tensor([torch.distributed.get_rank() + 1])
torch.distributed.all_reduce(rank)
about = {"sum": rank.item(), "mine": os.environ.get("MINE"), "home": os.environ.get("HOME"), "arguments": sys.argv[1:]}
Path(sys.argv[1], f"{os.environ['RANK']}.json").write_text(json.dumps(about))
os.write(1, f"said by {os.environ['RANK']}\\n".encode())  # in one piece: print writes the end of a line by itself
"""

FAILS = """
import os, sys, time
if os.environ["RANK"] == "1":
    sys.exit(7)
time.sleep(100_000)
"""


@pytest.fixture
def script(tmp_path: Path) -> Path:
    path = tmp_path / "script.py"
    path.write_text(RANK)
    return path


def test_ranks_have_the_environment_that_is_given_and_reduce_together(script: Path, tmp_path: Path):
    environment = {"MINE": "1", "PATH": os.environ["PATH"]}
    done = forks.run_ranks(script, [str(tmp_path)], processes=3, environment=environment)
    assert done.returncode == 0, done.stderr
    assert sorted(done.stdout.splitlines()) == ["said by 0", "said by 1", "said by 2"]
    found = [json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(3)]
    assert found == [{"sum": 6, "mine": "1", "home": None, "arguments": [str(tmp_path)]}] * 3


def test_the_others_are_ended_where_a_rank_fails(script: Path, tmp_path: Path):
    script.write_text(FAILS)
    done = forks.run_ranks(script, [], processes=2, environment=os.environ)
    assert done.returncode == 1


def test_a_fresh_python_has_never_imported_ftscale_nor_what_only_runs_need():
    program = """
import sys
loaded = {name.partition(".")[0] for name in sys.modules}
assert {"torch", "transformers", "peft"} <= loaded
print(*sorted({"ftscale", "deepspeed", "forks"} & loaded), sys.argv[1:])
sys.exit(3)
"""
    done = forks.fresh_python(program, "one", "two", environment={})
    assert (done.returncode, done.stdout) == (3, "['one', 'two']\n")


def test_what_forks_took_is_counted():
    before = forks.processor_seconds()
    program = "import time\nwhile time.process_time() < 0.3:\n    pass"
    assert forks.fresh_python(program, environment={}).returncode == 0
    tiny.wait_until(lambda: forks.processor_seconds() - before >= 0.3, "the fork to be counted")
