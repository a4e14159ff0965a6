"""What is wrong with a run before any row is prepared; `train` looks first, and so does `check`."""

from ftscale.precheck.settings import (
    check_config,
    folder_problems,
    machine_problems,
    metric_problems,
    quick_problems,
    read_config,
    source_problems,
    steps_problems,
)

__all__ = [
    "check_config",
    "folder_problems",
    "machine_problems",
    "metric_problems",
    "quick_problems",
    "read_config",
    "source_problems",
    "steps_problems",
]
