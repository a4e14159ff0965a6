"""The file that `ftscale init` leaves."""

from __future__ import annotations

import os
from pathlib import Path

from ftscale.base.errors import UserError
from ftscale.base.sealed import write_text


def write_file(text: str, out: Path, *, overwrite: bool) -> None:
    """Write run.yaml. Raises UserError where a file is there already, unless `overwrite`, or none can be written."""
    if not overwrite and os.path.lexists(out):
        raise UserError(f"--out = {out} is there already; name another file, or give --overwrite to replace it.")
    try:
        write_text(out, text)
    except OSError as error:
        raise UserError(f"--out = {out} cannot be written: {error.strerror}; name another file.") from error
