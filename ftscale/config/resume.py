"""Which settings a run may be given anew when it is resumed."""

from __future__ import annotations

from ftscale.config.schema import Config

FREE_TO_CHANGE = (
    "run_folder",
    "batch.micro_tokens",
    "batch.micro_size",
    "batch.layout",
    "data.num_workers",
    "data.prepare_workers",
    "data.cache_dir",
    "data.test",
    "train.log_every",
    "train.activation_checkpointing",
    "evaluation",
    "checkpoint",
    "distributed",
    "report",
    "model.attention",
    "task.file",  # what the file says may not
    "method.file",
)
"""Settings that a resumed run may change: the global batches and their gradients do not depend on them."""
SCHEDULED = ("train.epochs", "train.max_steps", "optimizer.lr", "optimizer.head_lr", "schedule")
"""Settings that a resumed run may change too, where it is no stage of several.

From the step that it goes on from, a new schedule of the learning rate runs over the steps that are left.
"""
LENGTH = ("train.epochs", "train.max_steps", "evaluation.patience")
"""Of which a change has a run that had ended go on."""


COLUMNS = ("section", "taken", "taken, with a new schedule from there", "refused")


def resume_table() -> str:
    """What becomes of a setting that is another at a resume, for each of the schema, as a table of Markdown."""
    lines = ["| " + " | ".join(COLUMNS) + " |", "|---" * len(COLUMNS) + "|"]
    for section, field in Config.model_fields.items():
        parts = [f"{section}.{name}" for name in getattr(field.annotation, "model_fields", {})] or [section]
        cells = [[part for part in parts if _what_becomes(part) == column] for column in COLUMNS[1:]]
        shown = [_names(cell, whole=len(cell) == len(parts)) for cell in cells]
        lines.append(f"| `{section}` | " + " | ".join(shown) + " |")
    return "\n".join(lines) + "\n"


def _names(parts: list[str], *, whole: bool) -> str:
    return "all of it" if whole else ", ".join(f"`{part.partition('.')[2]}`" for part in parts)


def _what_becomes(name: str) -> str:
    """The column that a setting stands in."""
    return COLUMNS[2 if is_of(name, SCHEDULED) else 1 if is_of(name, FREE_TO_CHANGE) else 3]


def is_of(name: str, settings: tuple[str, ...]) -> bool:
    """Tell whether it is one of the settings, or in one of these sections."""
    return any(name == setting or name.startswith(f"{setting}.") for setting in settings)
