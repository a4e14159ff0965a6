"""Frozen models at work: companions that the loss calls, and columns that are computed before the first step."""

from __future__ import annotations

import gc
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext

import numpy as np
import torch

from ftscale.base.errors import UserError, counted
from ftscale.base.logs import log
from ftscale.config import Config
from ftscale.data.computed import ColumnValues, column_digest, column_folder, is_whole, new_column, read_column
from ftscale.data.prepare import Prepared
from ftscale.distributed.runtime import Distributed
from ftscale.modalities.collate import Layout
from ftscale.models.companion import Companion, load_companion
from ftscale.models.trust import Trust
from ftscale.run.build_model import model_layout, weights_dtype
from ftscale.tasks.base import Task, collate_samples
from ftscale.tasks.computed import ComputedColumn
from ftscale.train.evaluate import evaluation_division

AS_CONFIGURED = Trust(code=True, pickle=True)
"""Of a configuration that its own user runs: what it says of a companion's trust counts."""


def place_companions(config: Config, task: Task, distributed: Distributed, *, trust: Trust = AS_CONFIGURED) -> Config:
    """Load the task's companions onto this rank's device; under ZeRO-3 each rank holds a piece of them. Collective.

    Returns the configuration, with `batch.layout: padded` where one of them takes no flat rows. Raises UserError where
    one cannot be loaded, or flat rows are asked for.
    """
    layouts = {_place(companion, config, task, distributed, trust=trust) for companion in task.companions()}
    return config if "padded" not in layouts else _padded(config)


def compute_columns(
    config: Config,
    task: Task,
    parts: Mapping[str, Prepared | None],
    distributed: Distributed,
    *,
    trust: Trust = AS_CONFIGURED,
) -> None:
    """Give prepared rows the columns that the task computes, from the cache or by their frozen models. Collective.

    `parts`: by the setting that names them; None = there are none. The batches are those of one process, dealt to the
    ranks, so that the values do not depend on their number.
    """
    columns, rows = task.computed(), {name: part for name, part in parts.items() if part is not None}
    digests = {column.name: _digest(column, config, distributed) for column in columns}
    for companion in dict.fromkeys(column.companion for column in columns):
        missing = [
            (column, name)
            for column in columns
            for name, part in rows.items()
            if column.companion is companion and not _is_cached(part, column, digests[column.name], distributed)
        ]
        if missing:
            _place(companion, _padded(config), task, distributed, trust=trust)
            for column, name in missing:
                log.info("%s: computing %s of %s", name, column.name, counted(len(rows[name]), "sample"))
                _compute(column, rows[name], digests[column.name], config, task, distributed)
            distributed.barrier()  # who writes a column may be behind those that read it
            _forget(companion)
    for column in columns:
        for part in rows.values():
            if part.folder is not None:
                folder = column_folder(part.folder, name=column.name, digest=digests[column.name])
                part.computed[column.name] = read_column(folder)


def _digest(column: ComputedColumn, config: Config, distributed: Distributed) -> str:
    """Rank 0's: on another machine, a large file is known by another time of change."""
    dtype = column.companion.dtype or weights_dtype(config)
    return distributed.gather_objects(column_digest({**column.identity(), "dtype": str(dtype)}))[0]


def _is_cached(part: Prepared, column: ComputedColumn, digest: str, distributed: Distributed) -> bool:
    """Whether every machine sees the whole column; one process of each looks."""
    seen = part.folder is not None and (
        not distributed.accelerator.is_local_main_process
        or is_whole(column_folder(part.folder, name=column.name, digest=digest))
    )
    return all(distributed.gather_objects(seen))


def _compute(
    column: ComputedColumn, part: Prepared, digest: str, config: Config, task: Task, distributed: Distributed
) -> None:
    """A batch for each rank at a time; each rank learns all values, and one of each machine writes them."""
    [groups] = evaluation_division(config, flat=False).divide(part.costs, world_size=1)
    shape: tuple[int, ...] | None = None
    with _values_of(part, column, digest, distributed) as values:
        for start in range(0, len(groups), distributed.world_size):
            # a rank for which no batch is left does the first again: under ZeRO-3 all call the model together
            own = groups[(start + distributed.rank) if start + distributed.rank < len(groups) else 0]
            found = distributed.gather_objects(_batch_values(column, part, own, config, task, distributed))
            for group, computed in zip(groups[start : start + distributed.world_size], found, strict=False):
                shape = _checked(column, computed, len(group), shape)
                if values is not None:
                    values.put(group, computed)
    if values is not None and part.folder is None:
        part.computed[column.name] = values.all()


def _values_of(
    part: Prepared, column: ComputedColumn, digest: str, distributed: Distributed
) -> AbstractContextManager[ColumnValues | None]:
    """Where this rank puts the values: in a file, or in memory where the rows are in none; None = another one does."""
    if part.folder is None:
        return nullcontext(ColumnValues(len(part)))
    if not distributed.accelerator.is_local_main_process:
        return nullcontext()
    return new_column(column_folder(part.folder, name=column.name, digest=digest), len(part))


def _batch_values(
    column: ComputedColumn, part: Prepared, group: np.ndarray, config: Config, task: Task, distributed: Distributed
) -> np.ndarray:
    samples = [part.sample(int(number), seed=config.seed) for number in group]
    batch = collate_samples(task, samples, layout="padded", train=False).to(distributed.device)
    with torch.no_grad():
        values = column.compute(column.companion, batch).cpu()
    return (values.float() if values.dtype == torch.bfloat16 else values).numpy()  # NumPy has no bfloat16


def _checked(
    column: ComputedColumn, values: np.ndarray, num_samples: int, shape: tuple[int, ...] | None
) -> tuple[int, ...]:
    """The shape of a sample's value. Raises UserError, on all ranks alike, where samples have none of one shape."""
    if values.ndim == 0 or len(values) != num_samples or shape not in (None, values.shape[1:]):
        before = "" if shape is None else f", after {shape} of each sample before"
        raise UserError(
            f"the computed column {column.name} gave values of the shape {values.shape} for "
            f"{counted(num_samples, 'sample')}{before}; it must give (samples, ...), of one shape in all batches."
        )
    return values.shape[1:]


def _place(companion: Companion, config: Config, task: Task, distributed: Distributed, *, trust: Trust) -> Layout:
    """Load a frozen model, ready to be called; returns the layout of batches that it takes."""
    quantised = companion.model.quantization != "none"
    in_pieces = distributed.strategy.shards_weights and not quantised
    with distributed.whole_weights() if companion.is_fresh or quantised else nullcontext():
        model = load_companion(companion, dtype=weights_dtype(config), trust=trust)
    if not in_pieces and not quantised:
        model.to(distributed.device)
    layout: Layout = "padded"
    if task.modality.in_tokens:
        layout = model_layout(
            model,
            companion.model,
            wanted=config.batch.layout,
            auto_class=companion.auto_class,
            settings=dict(companion.settings),
            pooled=companion.pools,
            distributed=distributed,
        )
    companion.module = distributed.shard_frozen(model) if in_pieces else model
    log.info("the %s: %s of %s, frozen", companion.name, type(model).__name__, companion.model.name)
    return layout


def _forget(companion: Companion) -> None:
    companion.module = None
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def _padded(config: Config) -> Config:
    return config.model_copy(update={"batch": config.batch.model_copy(update={"layout": "padded"})})
