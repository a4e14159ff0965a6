"""What is told of a submitted run: nothing in its folder steers the terminal of the one who looks."""

from __future__ import annotations

from pathlib import Path

import pytest
import tiny

from ftscale.base.sealed import write_json
from ftscale.cluster.records import Records

TITLE = "\x1b]0;owned\x07"
CLIPBOARD = "\x1b]52;c;ZWNobyBvd25lZA==\x07"


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A run that ended, with what a stranger wrote into each of its files."""
    monkeypatch.setenv("PATH", "/nowhere")
    folder = tmp_path / "run"
    records = Records(folder)
    records.add("submit", jobs=["4242"])
    about = {"job": "4242", "restart": 0, "step": 3}
    records.add("start", **about, nodes=["n1"])
    records.add("end", **about, reason=f"{TITLE}done", counts=False, action="done", progress=3)
    write_json(folder / "result.json", {"status": f"{CLIPBOARD}completed", "steps": 3, "metrics": {f"{TITLE}x": 1.0}})
    (records.folder / "job-4242.log").write_text(f"step 1{CLIPBOARD}\x9b2J\nstep 2\n")
    (folder / "logs").mkdir()
    (folder / "logs/rank-00001.log").write_text(f"{TITLE}rank 1\n")
    (folder / "checkpoints/step-00000003").mkdir(parents=True)
    write_json(folder / "run.json", {"run_id": "a"})
    return folder


@pytest.mark.parametrize(
    ("command", "expected"),
    [
        (("status",), r"\x1b]52;c;ZWNobyBvd25lZA==\x07completed at step 3  \x1b]0;owned\x07x 1"),
        (("status",), r"\x1b]0;owned\x07done (step 3, +3)"),
        (("logs",), "step 1\\x1b]52;c;ZWNobyBvd25lZA==\\x07\\x9b2J\nstep 2\n"),
        (("logs", "--follow"), "step 1\\x1b]52;c;ZWNobyBvd25lZA==\\x07\\x9b2J\nstep 2\n"),
        (("logs", "--rank", "1"), "\\x1b]0;owned\\x07rank 1\n"),
        (("checkpoints",), "incomplete: no manifest"),
    ],
)
def test_what_steers_a_terminal_is_told_in_letters(command: tuple[str, ...], expected: str, folder: Path):
    outcome = tiny.command(command[0], folder, *command[1:])
    assert outcome.code == 0
    assert expected in outcome.stdout
    assert not set("\x1b\x07\x9b") & set(outcome.stdout + outcome.stderr)
