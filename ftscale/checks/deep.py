"""Two optimizer steps of the model on the two longest samples, by the loop that trains; nothing is written."""

from __future__ import annotations

import math
import os
import time
import warnings
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ftscale.base.errors import UserError
from ftscale.checks.model import empty_model, quiet
from ftscale.checks.sample import DataSample
from ftscale.config import Config
from ftscale.config.schema import TrainableConfig
from ftscale.data.order import SourceRows
from ftscale.data.prepare import Prepared, SourceReport
from ftscale.data.sample import HASHES, Sample
from ftscale.distributed.runtime import Distributed
from ftscale.methods.base import Method
from ftscale.models.adapt import count_parameters, weight_bytes
from ftscale.models.load import load_model_config
from ftscale.models.shrink import narrow, shallow
from ftscale.models.trust import without_code
from ftscale.optim.optimizers import state_bytes_per_weight
from ftscale.run.prepared_data import Inputs
from ftscale.run.train import build_loop
from ftscale.tasks.base import Task, frozen_models
from ftscale.train.checkpoint import Saver
from ftscale.train.loop import run_loop
from ftscale.train.metrics_file import MetricsFile
from ftscale.train.stop_request import StopRequest

STEPS = 2
SAMPLES = 2
FEW_BLOCKS = 2
DIVISORS = (1, 4, 16)
"""By which a model that does not fit is made narrower, after it has lost most of its blocks."""
ROOM = 2.0
"""Memory to be free, as a multiple of weights, gradients and optimizer states: activations need the rest."""
BY_BLOCK = ("layers_to_transform", "layers_pattern", "layer_replication", "rank_pattern", "alpha_pattern")
"""Fields of adapters that treat blocks unlike each other."""


def two_steps(sample: DataSample) -> tuple[dict[str, Any], list[str]]:
    """What two steps came to, and what went wrong in them.

    On one process, whatever the strategy. Where the model does not fit, a random one with fewer and narrower blocks.
    """
    longest = sorted(sample.train.kept, key=lambda item: item.cost, reverse=True)[:SAMPLES]
    chosen = _fitting(_short(sample.config), sample.task)
    if chosen is None:
        return {"model": "none", "losses": []}, [
            "check --deep: the model does not fit into the memory of this machine, and no smaller one can be made of "
            "it; check it where there is more."
        ]
    config, what = chosen
    for companion in frozen_models(sample.task):
        companion.model = without_code(companion.model)
    facts: dict[str, Any] = {"model": what, "losses": []}
    if sample.task.modality.in_tokens:
        facts["lengths"] = [item.cost for item in longest]
    try:
        facts |= _train(config, sample.task, longest)
    except UserError as error:
        return facts, list(error.problems)
    except (RuntimeError, ValueError, IndexError, KeyError, TypeError, AttributeError, NotImplementedError) as error:
        first = str(error).strip().splitlines()[0] if str(error).strip() else ""
        return facts, [f"check --deep: a step of the model ends in an error, {type(error).__name__}: {first}"]
    if not all(math.isfinite(loss) for loss in facts["losses"]):
        return facts, [f"check --deep: the losses of two steps are {facts['losses']}; look at the learning rate."]
    return facts, []


def _train(config: Config, task: Method, samples: list[Sample]) -> dict[str, Any]:
    from datasets import Dataset

    report = SourceReport("the longest samples", read=len(samples), kept=len(samples))
    rows = [{name: value for name, value in item.stored().items() if name != HASHES} for item in samples]
    sources, costs = [SourceRows(0, len(rows), 1.0)], np.array([item.cost for item in samples])
    counts = {name: np.array([(item.counts or {})[name] for item in samples]) for name in samples[0].counts or {}}
    prepared = Prepared(Dataset.from_list(rows), sources, [report], "", costs, counts)
    evaluated = prepared if config.data.eval or config.data.eval_ratio else None
    started = time.perf_counter()
    with quiet(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of scores of two rows
        train = config.train
        distributed = Distributed(config.distributed, precision=train.precision, max_grad_norm=train.max_grad_norm)
        try:
            inputs = Inputs(config, task, prepared, evaluated, None)
            loop = build_loop(inputs, distributed, StopRequest(), started=time.time(), dropout=train.dropout)
            unsaved, unwritten = Unsaved(loop.saver.root, distributed), Unwritten()
            run_loop(replace(loop, saver=unsaved, after_save=lambda: None, metrics=unwritten))
        finally:
            distributed.close()
    seconds = round(time.perf_counter() - started, 2)
    metrics = {name: value for name, value in loop.state.progress.last_metrics.items() if math.isfinite(value)}
    return {"losses": unwritten.losses, "metrics": metrics, "layout": loop.layout, "seconds": seconds}


class Unsaved(Saver):
    """A saver that writes no checkpoint."""

    def __init__(self, root: Path, distributed: Distributed) -> None:
        super().__init__(root, distributed, identity={}, keep=1, asynchronous=False)

    def save(self, step: int, progress: dict[str, Any], **about: Any) -> None:
        """Leave the disk as it is, at every step."""


class Unwritten(MetricsFile):
    """Keeps the loss of each step, and writes nothing."""

    def __init__(self) -> None:
        super().__init__(Path(), enabled=False, start_time=0.0)
        self.losses: list[float] = []

    def write(self, kind: str, step: int, **figures: Any) -> None:
        """Of a step its loss."""
        if kind == "train":
            self.losses.append(figures["loss"])


def _short(config: Config) -> Config:
    """The run as two steps over two samples on one process."""
    options = config.schedule.options
    return config.model_copy(
        update={
            "batch": config.batch.model_copy(update={"global_size": SAMPLES, "unit": "samples"}),
            "train": config.train.model_copy(update={"max_steps": STEPS}),
            "schedule": type(config.schedule)(name=config.schedule.name, options=options),
            "evaluation": config.evaluation.model_copy(update={"every": 0, "before": False, "patience": 0}),
            "data": config.data.model_copy(update={"num_workers": 0, "group_by_length": False, "streaming": False}),
            "distributed": config.distributed.model_copy(update={"strategy": "single"}),
        }
    )


# ---------------------------------------------------------------- memory


def _fitting(config: Config, task: Task) -> tuple[Config, str] | None:
    """The run with its own model or a smaller one, whichever fits first, and what it is; None = none does."""
    free = free_bytes()
    if ROOM * _needed_bytes(config, empty_model(config, task)) <= free:
        return config, "the model itself"
    for smaller, what in _smaller(config, task):
        try:
            model = empty_model(smaller, task)
        except (UserError, RuntimeError, ValueError, TypeError):  # a form that this architecture does not have
            continue
        if ROOM * _needed_bytes(smaller, model) <= free:
            return smaller, what
    return None


def free_bytes() -> float:
    """Memory of the device that a step would run on here, as far as it is free."""
    if torch.cuda.is_available():
        return float(torch.cuda.mem_get_info()[0])
    if os.path.exists("/proc/meminfo"):
        with open("/proc/meminfo", encoding="ascii") as file:
            return next(1024.0 * int(line.split()[1]) for line in file if line.startswith("MemAvailable"))
    return float(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))


def _needed_bytes(config: Config, model: Any) -> float:
    """Weights, gradients, optimizer states and float32 masters."""
    trained_bytes, everything = weight_bytes(model)
    masters = 4.0 if config.train.precision == "bf16" else 0.0
    states = count_parameters(model)[0] * (state_bytes_per_weight(config.optimizer) + masters)
    return everything + trained_bytes + states


def _smaller(config: Config, task: Task) -> Iterator[tuple[Config, str]]:
    """Random models of the same architecture, from the largest to the smallest."""
    known = load_model_config(config.model, settings=task.model_settings()).to_dict()
    few = shallow(known, FEW_BLOCKS)
    adapter = config.adapter.model_dump()
    for divisor in DIVISORS:
        fields = {**few, **(narrow(known, divisor) if divisor > 1 else {})}
        if not fields:
            continue
        told = ", ".join(f"{name} {value} of {known[name]}" for name, value in fields.items() if isinstance(value, int))
        overrides = {**config.model.overrides, **fields}
        update = {"init": "random", "quantization": "none", "overrides": overrides}
        yield (
            config.model_copy(
                update={
                    "model": config.model.model_copy(update=update),
                    "adapter": type(config.adapter)(**{k: v for k, v in adapter.items() if k not in BY_BLOCK}),
                    "trainable": TrainableConfig(),
                }
            ),
            f"a smaller one with random weights ({told})",
        )
