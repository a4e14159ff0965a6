"""Score a finished run on its evaluation rows, or on others."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from ftscale.base.errors import UserError
from ftscale.base.launched import launched_rank
from ftscale.base.logs import setup_logging
from ftscale.config import Config, parse_config
from ftscale.config.overrides import apply_overrides
from ftscale.config.schema import DistributedConfig
from ftscale.data.formats.select import role_problems
from ftscale.distributed.runtime import Distributed
from ftscale.models.trust import NO_TRUST, Trust
from ftscale.run.agreement import check_agreement, rows_text
from ftscale.run.build_model import batch_layout
from ftscale.run.finished import bound_task, load_model, module_of, read_run
from ftscale.run.frozen import compute_columns, place_companions
from ftscale.run.new_source import source_like
from ftscale.run.prepared_data import evaluation_rows
from ftscale.train.evaluate import evaluation_of

OF_FIRST = re.compile(r"data\.eval(\.0|\[0\])\.")
"""The beginning of a setting of the first evaluation source."""


def evaluate_run(
    run_folder: Path, *, data: str | Sequence[str] = (), overrides: Sequence[str] = (), trust: Trust = NO_TRUST
) -> dict[str, float]:
    """Metrics of a run's model on its evaluation rows, or on all rows of `data`. Works under a launcher too.

    `data`: a path, or several. `overrides`: settings laid over the run's, e.g. `data.eval.0.encoding=latin-1`, which
    counts for all of several paths. `trust`: what may be run of the model; what the run folder itself says of that does
    not count.
    Raises UserError: no finished run there; no evaluation rows; unreadable data.
    """
    setup_logging(rank=launched_rank())
    config, task = read_run(run_folder, trust=trust)
    if paths := [data] if isinstance(data, str) else data:
        known = [*config.data.eval, *config.data.train, *config.data.test]
        sources = tuple(
            source_like(known, path, config, setting=f"--data: data.eval[{number}]")
            for number, path in enumerate(paths)
        )
        ungrouped = config.evaluation.model_copy(update={"groups": ()})
        data_of = config.data.model_copy(update={"eval": sources})
        config = config.model_copy(update={"data": data_of, "evaluation": ungrouped})
        overrides = [*_for_the_others(overrides, len(paths)), *overrides]
    if overrides:
        config = parse_config(apply_overrides(config.model_dump(), overrides), source="the command line")
    _check_columns(config)
    task = bound_task(run_folder, config, task)
    rows = evaluation_rows(config, task)
    distributed = Distributed(DistributedConfig(), precision="fp32", max_grad_norm=0)
    try:
        check_agreement({"data.eval": rows_text(rows)}, distributed.gather_objects)
        compute_columns(config, task, {"data.eval": rows}, distributed, trust=trust)
        config = place_companions(config, task, distributed, trust=trust)
        model = load_model(run_folder, config, task).to(distributed.device)
        distributed.module = module_of(run_folder, model, task)
        layout = batch_layout(model, config, task, distributed)
        return evaluation_of(config, task, rows, distributed, layout=layout)().compute()
    finally:
        distributed.close()


def _for_the_others(overrides: Sequence[str], number: int) -> list[str]:
    """What is said of the first of so many sources, said of the others."""
    rests = [OF_FIRST.sub("", override) for override in overrides if OF_FIRST.match(override)]
    return [f"data.eval.{place}.{rest}" for rest in rests for place in range(1, number)]


def _check_columns(config: Config) -> None:
    """Raise UserError for names under `columns` of the evaluation rows that the task never reads."""
    also = [*config.evaluation.groups, *([config.data.stratify] if config.data.stratify else [])]
    problems = [
        problem
        for number, source in enumerate(config.data.eval)
        for problem in role_problems(source, roles=config.task.roles, setting=f"data.eval[{number}]", also=also)
    ]
    if problems:
        raise UserError(*problems)
