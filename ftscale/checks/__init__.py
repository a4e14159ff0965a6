"""What can be known of a run before it starts: settings, combinations, data, tokenizer, schedule."""

from ftscale.checks.report import Report, check_run
from ftscale.checks.settings import (
    PEFT_TASK_TYPES,
    check_config,
    quick_problems,
    read_config,
    source_problems,
    steps_problems,
)

__all__ = [
    "PEFT_TASK_TYPES",
    "Report",
    "check_config",
    "check_run",
    "quick_problems",
    "read_config",
    "source_problems",
    "steps_problems",
]
