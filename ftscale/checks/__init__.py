"""What can be known of a run before it starts: settings, combinations, data, tokenizer, model, schedule."""

from ftscale.checks.report import Report, check_run

__all__ = ["Report", "check_run"]
