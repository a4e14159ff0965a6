"""A run of several stages: one run after another in the same processes, each with the model of the one before."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass, field
from pathlib import Path

from ftscale.base.errors import UserError, counted
from ftscale.base.files import remove
from ftscale.base.launched import launched_rank
from ftscale.base.logs import log, setup_logging
from ftscale.base.sealed import DamagedError, read_json
from ftscale.config import Config
from ftscale.config.stages import MODEL, Stage, by_stage, stages_of
from ftscale.distributed.process_state import leaving_no_trace
from ftscale.distributed.runtime import Distributed
from ftscale.methods.extra import copy_extra
from ftscale.models.save import export_model
from ftscale.models.trust import Trust
from ftscale.run.folder import (
    Result,
    at_real_folder,
    check_run_folder,
    clear_run_folder,
    holds_run,
    locked,
    open_whole_folder,
    what_stands,
    write_result,
)
from ftscale.run.prepared_data import prepare_inputs
from ftscale.run.report_page import write_page
from ftscale.tasks import build_task
from ftscale.train.stop_request import Interrupted, StopRequest

SEEN_S = 60.0  # until a folder that rank 0 has written shows on another node of a shared file system


def train_stages(
    config: Config, train: Callable[..., Result], *, resume: bool, overwrite: bool, stop_request: StopRequest
) -> Result:
    """Train the stages of a run one after another, and write the result of the whole; in every process of a launch.

    `train`: of the run that a stage is. A stage that has ended is not done again. Raises UserError for a mistake in any
    of them before the first begins.
    """
    config = at_real_folder(config)
    setup_logging(rank=launched_rank())
    stages = stages_of(config)
    whole = _Whole(config, stages, stop_request, overwrite=overwrite)
    try:
        with _prepared(config, stages, resume=resume, overwrite=overwrite):
            for number, stage in enumerate(stages):
                log.info("stage %s (%d of %d)", stage.name, number + 1, len(stages))
                result = whole.train(number, train)
                if whole.stopped or result.status == "preempted":
                    return whole.result("preempted")
            return whole.result(result.status)
    except Interrupted as request:
        log.info("asked to stop (%s) before training began; nothing is lost", request)
        return Result("preempted", 0, {}, None, 0.0, "")


def prepare_stages(stages: Sequence[Stage]) -> None:
    """Check all stages and prepare their data, as far as that needs no model of a stage before.

    Raises UserError with the mistakes of all of them.
    """
    problems: dict[str, Sequence[str]] = {}
    for stage in stages:
        problems[stage.name] = ()
        try:
            prepare_inputs(stage.beforehand)
        except UserError as error:
            problems[stage.name] = error.problems
    if told := by_stage(problems):
        raise UserError(*told)


@contextmanager
def _prepared(config: Config, stages: Sequence[Stage], *, resume: bool, overwrite: bool) -> Iterator[None]:
    """Every stage looked at; inside, rank 0 holds the lock of a run folder that it has judged."""
    rank, folder = launched_rank(), Path(config.run_folder)
    judged = what_stands(folder)
    if rank == 0:
        check_run_folder(config, resume=resume, overwrite=overwrite)
    log.info("checking %s and preparing their data", counted(len(stages), "stage"))
    setup_logging(rank=rank, level="WARNING")  # each stage says it again when it begins
    with leaving_no_trace():
        prepare_stages(stages)
    setup_logging(rank=rank)
    with locked(folder) if rank == 0 else nullcontext():
        if rank == 0 and what_stands(folder) != judged:  # another run was here meanwhile
            check_run_folder(config, resume=resume, overwrite=overwrite)
        yield


@dataclass
class _Whole:
    """What the stages of a run make together, and how far they have come."""

    config: Config
    stages: Sequence[Stage]
    stop_request: StopRequest
    overwrite: bool
    results: list[Result] = field(default_factory=list)
    """Of the stages that have ended."""
    stopped: bool = False
    """Asked to stop between two stages."""
    is_open: bool = False
    """This start has written the first files of the run folder."""

    @property
    def folder(self) -> Path:
        return Path(self.config.run_folder)

    def train(self, number: int, train: Callable[..., Result]) -> Result:
        """Do a stage, or find that it has ended."""
        stage = self.stages[number]
        overwrite = self.overwrite and number == 0
        resume = holds_run(stage.folder) and not overwrite  # what counts is what rank 0 sees
        part = Part(self, number)
        try:
            return train(stage.config, resume=resume, overwrite=overwrite, stop_request=self.stop_request, part=part)
        except Exception:
            if launched_rank() == 0 and self.is_open and _status(stage.folder) == "failed":
                with suppress(OSError):  # the disk may be full: the first error is the one to tell
                    write_result(self.folder, self.result("failed"))
            raise

    def result(self, status: str) -> Result:
        """Steps and time are those of all stages that have ended or stopped, scores those of the last one."""
        last, done = self.results[-1:], status not in ("preempted", "failed")
        return Result(
            status,
            sum(result.steps for result in self.results),
            dict(last[0].metrics) if last else {},
            last[0].best if last else None,
            round(sum(result.duration_s for result in self.results), 3),
            str(self.folder / MODEL) if done else "",
            dict(last[0].intervals) if last else {},
        )


@dataclass(frozen=True)
class Part:
    """What a run is of a run of several stages: told when its first file is written, and when it has ended."""

    whole: _Whole
    number: int

    @property
    def stage(self) -> Stage:
        """The stage that the run is."""
        return self.whole.stages[self.number]

    def open(self) -> None:
        """Write the first files of the whole, once in a start, and make the stage's folder; rank 0 alone.

        From here on an earlier run may be written over: every rank has come this far.
        """
        if not self.whole.is_open:
            if self.whole.overwrite:
                clear_run_folder(self.whole.folder)
            self.stage.folder.mkdir(parents=True, exist_ok=True)
            open_whole_folder(self.whole.config, run={"stages": [stage.name for stage in self.whole.stages]})
            self.whole.is_open = True
        self.stage.folder.mkdir(parents=True, exist_ok=True)

    def close(self, result: Result, distributed: Distributed) -> None:
        """Hand the model on, to the next stage or as that of the whole, and write the whole's result. Collective.

        All ranks learn here whether they were asked to stop between two stages.
        """
        whole, last = self.whole, self.number == len(self.whole.stages) - 1
        whole.results.append(result)
        ended = result.status != "preempted"
        if ended:
            self._hand_on(distributed, last=last)
            whole.stopped = not last and distributed.any(bool(whole.stop_request))
            if whole.stopped:
                reason = whole.stop_request.reason or "another rank"
                log.info("asked to stop (%s) after stage %s: resume to go on with the next", reason, self.stage.name)
        if distributed.is_main and (last or whole.stopped or not ended):
            write_result(whole.folder, whole.result(result.status if last else "preempted"))
            if last and ended and whole.config.report.page:
                write_page(whole.folder)
        distributed.barrier()

    def _hand_on(self, distributed: Distributed, *, last: bool) -> None:
        """Have the model where the next stage, or whoever uses the whole, looks for it. Collective."""
        outcome: Exception | None = None
        if distributed.is_main:
            try:
                if last:
                    _link(self.whole.folder / MODEL, self.stage.folder / MODEL)
                else:
                    with distributed.whole_weights():
                        _merge(self.stage)
            except (UserError, RuntimeError, OSError) as error:
                outcome = error
        if (outcome := distributed.gather_objects(outcome)[0]) is not None:
            raise outcome
        if not last:
            _wait_for(self.stage.handed_on)


def _link(link: Path, target: Path) -> None:
    """A relative link, so that the run folder can be moved."""
    remove(link)
    link.symlink_to(os.path.relpath(target, link.parent))


def _merge(stage: Stage) -> None:
    """Where a stage trained an adapter, the whole model that it makes: complete, or not there."""
    model, merged = stage.folder / MODEL, stage.handed_on
    if merged == model or merged.exists():
        return
    partial = merged.with_name(f".{merged.name}.partial")
    remove(partial)
    task, trusted = build_task(stage.config.task), stage.config.model
    try:
        export_model(
            model,
            partial,
            auto_class=task.auto_class,
            probe=task.modality.probe,
            merge=True,
            trust=Trust(code=trusted.trust_remote_code, pickle=trusted.allow_pickle),
        )
    except UserError as error:
        remove(partial)
        raise UserError(
            f"stage {stage.name}: the next stage goes on with the model that its adapter is merged into, and that "
            f"failed ({error}); make it the last stage, or take another adapter.method."
        ) from error
    copy_extra(model, partial, task)
    os.rename(partial, merged)
    log.info("the adapter of stage %s is merged into %s", stage.name, merged)


def _wait_for(model: Path) -> None:
    """Until the files that rank 0 has written show here too."""
    waited_until = time.monotonic() + SEEN_S
    while not (model / "config.json").is_file() and time.monotonic() < waited_until:
        time.sleep(0.1)


def _status(folder: Path) -> str:
    try:
        return str(read_json(folder / "result.json").get("status"))
    except (FileNotFoundError, DamagedError):
        return ""
