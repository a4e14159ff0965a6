"""What each fault costs on a real Slurm cluster: seconds to the first new step, and steps lost.

    python benchmarks/slurm_faults.py --shared ../shared      # as root; Debian's Slurm; about a quarter of an hour

Five nodes of namespaces on this machine, real training of a small model by 2 nodes x 2 processes on gloo. Slurm's
SlurmdTimeout is 6 s here and 300 s on most clusters: add the difference to the times of lost nodes. It fails where a
struck node is used again, more than two checkpoints' steps are lost, or a loss is not that of one undisturbed process.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

import tiny  # noqa: E402
from slurm_cluster import Cluster, Job  # noqa: E402
from slurm_story import EVALUATED, EVERY, HAPPENINGS, Story  # noqa: E402

from ftscale.train.evaluate import SAY_S  # noqa: E402

RESULTS = ROOT / "benchmarks/results/slurm.json"
STEPS = 3000
SLURMD_TIMEOUT, SILENCE_S = 6, 15  # what is measured ends with them
IN_EVALUATION = "time limit in an evaluation"
HANGS = "one worker stopped (SIGSTOP)"
LEFT_OUT = ("one worker killed", HANGS)
"""Their nodes are not used again: each of these has a run of its own, with the three that are left."""
LOST = ("node crashed without a farewell", "link cut")
"""Their nodes come back later."""


def main() -> None:
    """Let everything happen, write benchmarks/results/slurm.json, print its table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shared", type=Path, default=ROOT.parent / "shared", help="real weights and data")
    arguments = parser.parse_args()
    os.environ |= {"FTS_SLURMD_TIMEOUT": str(SLURMD_TIMEOUT), "FTS_KILL_WAIT": "20", "FTS_GRACE": "20"}
    cluster, rows = Cluster(5, shared=arguments.shared.resolve()), []
    try:
        cluster.site(silence_s=SILENCE_S)
        others = [name for name in HAPPENINGS if name not in (*LEFT_OUT, IN_EVALUATION)]
        for number, names in enumerate((LEFT_OUT, others, (IN_EVALUATION,))):
            rows += tell(cluster, f"run-{number}", list(names))
    finally:
        cluster.down()
    about = {
        "command": "python benchmarks/slurm_faults.py",
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, no GPU",
        "slurm": subprocess.run(["slurmctld", "-V"], capture_output=True, text=True).stdout.strip(),
        "versions": {name: version(name) for name in ("torch", "accelerate")},
        "settings": {
            "nodes": 2,
            "launcher": "torchrun",
            "processes_per_node": 2,
            "checkpoint_every": EVERY,
            "silence_s": SILENCE_S,
            "silence_s_in_an_evaluation": 2 * SAY_S,
            "SlurmdTimeout": SLURMD_TIMEOUT,
        },
        "faults": rows,
    }
    RESULTS.write_text(json.dumps(about, indent=1) + "\n")
    for row in rows:
        print(
            f"{row['fault']:<36} {row['seconds_to_new_step']:>6} s  {row['steps_lost']:>3} steps lost  {row['reason']}"
        )


def tell(cluster: Cluster, name: str, faults: list[str]) -> list[dict[str, object]]:
    """One run that these happen to; rows of the table."""
    captions = cluster.shared / "data/translation/multi30k_de-en"
    changes: dict[str, Any] = {}
    if faults == [IN_EVALUATION]:
        cluster.site(silence_s=2 * SAY_S)
        rows = {"path": str(captions / "train.en.gz"), "format": "text", "limit": 20_000}  # half a minute of two cores
        changes = {"evaluation": {"every": EVALUATED}, "data": {"eval": rows}}
    story = Story.begin(cluster, name, steps=STEPS, launcher="torchrun", **changes)
    for fault in faults:
        story.happen(fault)
    cluster.settle()
    check(story, cluster.run_file(f"{name}-alone", steps=STEPS))  # evaluations change no loss
    return [
        {
            "fault": fault,
            "seconds_to_new_step": story.events[fault].recovery_s,
            "steps_lost": story.events[fault].steps_lost,
            "reason": story.end(fault)["reason"],
        }
        for fault in faults
    ]


def check(story: Story, alone: Path) -> None:
    """Nothing lost, nothing changed; `alone`: the same run, for one process and without Slurm."""
    for fault, event in story.events.items():
        assert event.steps_lost <= 2 * EVERY, fault
        if fault in (*LEFT_OUT, *LOST):
            story.check_left_out(fault)
    if HANGS in story.events:
        assert story.end(HANGS)["reason"].startswith("nothing written for ")
        logs = "".join(path.read_text() for path in (story.job.folder / "logs").glob("rank-*.log"))
        assert "most recent call first" in logs  # where the ranks stood
        assert "_train_step" in logs
    found = story.job.losses()
    assert list(found) == list(range(1, len(found) + 1))
    outcome = tiny.command("train", alone)
    assert outcome.code == 0, outcome.stderr
    expected = Job(story.cluster.folder / alone.stem).losses()
    assert all(abs(loss / expected[step] - 1) < 1e-3 for step, loss in found.items())


if __name__ == "__main__":
    main()
