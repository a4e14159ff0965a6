"""Write a finished run's model as a plain Hugging Face folder."""

from __future__ import annotations

from pathlib import Path

from ftscale.base.errors import UserError
from ftscale.base.logs import setup_logging
from ftscale.methods.extra import copy_extra
from ftscale.models.save import export_model
from ftscale.models.trust import NO_TRUST, Trust
from ftscale.run.finished import read_run, say_what_is_left_out
from ftscale.run.model_card import CARD


def export_run(
    run_folder: Path, out: Path, *, merge: bool = False, dtype: str | None = None, trust: Trust = NO_TRUST
) -> list[str]:
    """Write the run's model as a plain Hugging Face folder; returns what there is to say about it.

    `trust`: as of evaluate_run.
    Raises UserError: no finished run there; `out` is not empty; `merge` without an adapter; an unknown dtype.
    """
    setup_logging()
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"OUT = {out} is not an empty folder; name a new one.")
    config, task = read_run(run_folder, trust=trust)
    say_what_is_left_out(run_folder, config)
    report = export_model(
        run_folder / "model",
        out,
        auto_class=task.auto_class,
        probe=task.modality.probe,
        merge=merge,
        dtype=dtype,
        trust=trust,
    )
    copy_extra(run_folder / "model", out, task, also=() if merge else (CARD,))
    lines = [f"model in {out}"]
    if merge or dtype is not None:
        lines.append(f"largest change of a logit: {report['largest_logit_change']:.3g}")
    return lines
