"""The file that `ftscale init` leaves."""

from __future__ import annotations

import os
from pathlib import Path

from ftscale.base.errors import UserError
from ftscale.base.sealed import write_text


def check_free(out: Path, *, overwrite: bool) -> None:
    """Raise UserError where a file is there already, unless it is to be replaced; before any question is asked."""
    if not overwrite and os.path.lexists(out):
        raise UserError(f"--out = {out} is there already; name another file, or give --overwrite to replace it.")


def write_file(text: str, out: Path, *, overwrite: bool) -> None:
    """Write run.yaml. Raises UserError where a file is there already, unless `overwrite`, or none can be written."""
    check_free(out, overwrite=overwrite)
    try:
        write_text(out, text)
    except OSError as error:
        raise UserError(f"--out = {out} cannot be written: {error.strerror}; name another file.") from error
