"""What happens to samples that are too long."""

from __future__ import annotations

from typing import Literal

from ftscale.base.errors import UserError
from ftscale.tasks.base import Row
from ftscale.tasks.rows import where


def is_cut(
    length: int, row: Row, *, limit: int, too_long: Literal["truncate", "drop", "raise"], setting: str = "max_length"
) -> tuple[bool, str]:
    """Whether a sample is truncated under `task.too_long`, and why it is dropped ("" = it is not).

    Raises UserError where a longer one is to be refused.
    """
    if length <= limit:
        return False, ""
    if too_long == "raise":
        raise UserError(
            f"{where(row)}: {length} tokens are more than task.{setting} = {limit}; shorten the row, or set "
            "task.too_long: truncate or drop."
        )
    return (True, "") if too_long == "truncate" else (False, "too_long")
