"""The composition root: names of the configuration become objects here, in reading order."""

from __future__ import annotations

import hashlib
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from functools import partial
from pathlib import Path
from typing import Any

from ftscale.base.errors import UserError, counted, told_if_full, told_if_too_long
from ftscale.base.files import own_id
from ftscale.base.launched import launched_rank
from ftscale.base.logs import close_log, log, open_log, own_logging, setup_logging
from ftscale.base.seeding import derive_seed, seed_everything
from ftscale.base.startup import begin_work, keep_few_kernels
from ftscale.config import Config
from ftscale.config.load import config_digest, public
from ftscale.config.resume import LENGTH, SCHEDULED
from ftscale.config.schema import DistributedConfig
from ftscale.data.batching import Division, Ranks, describe_batch
from ftscale.data.cache import cache_folder
from ftscale.data.loader import TrainingSteps
from ftscale.data.order import GlobalOrder
from ftscale.data.stream import StreamSteps
from ftscale.distributed.process_state import leaving_no_trace
from ftscale.distributed.runtime import Distributed
from ftscale.methods.base import Context, Method, undisturbed
from ftscale.methods.extra import load_extra
from ftscale.modalities.collate import Layout
from ftscale.models.gradient_rule import GradientRule
from ftscale.models.initialize import seeded_weights
from ftscale.models.masks import Masks
from ftscale.run.agreement import check_agreement, derived
from ftscale.run.build_model import Built, build_model
from ftscale.run.disk import check_disk
from ftscale.run.dropout import Mode
from ftscale.run.final_model import finish, save_and_prove
from ftscale.run.folder import (
    Result,
    at_real_folder,
    began_with_dropout,
    check_run_folder,
    clear_run_folder,
    finished_result,
    given_anew,
    goes_on,
    holds_run,
    locked,
    open_run_folder,
    run_id,
    versions,
    what_stands,
    write_result,
)
from ftscale.run.frozen import compute_columns, place_companions
from ftscale.run.prepared_data import Inputs, Preparer, num_steps_of, prepare_inputs
from ftscale.run.report_page import write_data_report, write_page
from ftscale.run.stages import Part, train_stages
from ftscale.run.tracking import open_trackers
from ftscale.tasks.base import Evaluator, collate_samples
from ftscale.tasks.batch import total_of
from ftscale.train.checkpoint import Saver, load_checkpoint, load_more
from ftscale.train.evaluate import evaluation_of
from ftscale.train.evaluations import Evaluations, best_metric, evaluation_steps
from ftscale.train.guard import Statistics
from ftscale.train.loop import Loop, TaskModule, run_loop
from ftscale.train.manifest import Checkpoint, latest_checkpoint
from ftscale.train.metrics_file import MetricsFile
from ftscale.train.row_records import record_path, write_row_records
from ftscale.train.state import RunState
from ftscale.train.stop_request import Interrupted, StopRequest, listening


def train(
    config: Config,
    *,
    resume: bool = False,
    overwrite: bool = False,
    stop_request: StopRequest | None = None,
    part: Part | None = None,
) -> Result:
    """Fine-tune as the configuration says; call it in every process of a launch, or in a single one.

    `stop_request`: one that listens already; None = listen to signals while training. `part`: which stage of a run of
    several this is; None = a run by itself.
    Raises UserError for mistakes in the configuration, the data or the run folder, before anything is written.
    """
    if config.stages:
        with _listening(stop_request) as stop_request, _told(config):
            return train_stages(config, train, resume=resume, overwrite=overwrite, stop_request=stop_request)
    with leaving_no_trace(), _listening(stop_request) as stop_request, _told(config):
        config = _begin(config, stop_request)
        try:
            with _prepared(config, resume=resume, overwrite=overwrite, locks=part is None) as inputs:
                distributed = Distributed(
                    _in_own_offload_dir(config),
                    precision=config.train.precision,
                    max_grad_norm=config.train.max_grad_norm,
                )
                begin_work()
                keep_few_kernels()
                stop_request.at_once = False  # from here on ranks wait for each other, and agree on stopping
                with _closed_on_error(distributed):
                    result = _train(inputs, distributed, stop_request, overwrite=overwrite, part=part)
                    if part is not None:
                        part.close(result, distributed)
        except Interrupted as request:
            anew = "" if holds_run(Path(config.run_folder)) else ": there is nothing to resume yet"
            log.info("asked to stop (%s) before training began; nothing is lost%s", request, anew)
            return Result("preempted", 0, {}, None, 0.0, "")
        distributed.close()
        close_log()
        return result


@contextmanager
def _listening(stop_request: StopRequest | None) -> Iterator[StopRequest]:
    """The caller's, whose process ends with the run and tells of its end; or one that listens to signals inside."""
    if stop_request is not None:
        yield stop_request
    else:
        with own_logging(), listening() as own:
            yield own


@contextmanager
def _told(config: Config) -> Iterator[None]:
    """What the system says of a full disk and of names that no file can have, is told inside as a user's mistake."""
    with told_if_too_long(), told_if_full(partial(_space_for, config)):
        yield


def _space_for(config: Config) -> str:
    """What to do when a disk is full."""
    folder, cache = Path(config.run_folder), cache_folder(config.data)
    go_on = "go on with --resume: the complete checkpoints are as they were" if holds_run(folder) else "start again"
    places = f"run_folder = {folder}, data.cache_dir = {cache} and temporary files (TMPDIR)"
    return f"free space where {places} lie, then {go_on}."


def _begin(config: Config, stop_request: StopRequest) -> Config:
    """Log and deadline set up; the configuration with its run folder as it really lies."""
    config = at_real_folder(config)
    setup_logging(rank=launched_rank())
    if not stop_request.listens:
        log.info("training in a thread: signals are not noticed, and end the process as they did before")
    stop_request.set_deadline(config.checkpoint.before_end_s)
    return config


@contextmanager
def _prepared(config: Config, *, resume: bool, overwrite: bool, locks: bool) -> Iterator[Inputs]:
    """What is known before there are processes; inside, rank 0 holds the lock of a run folder that it has judged.

    `locks`: nobody holds the lock of a folder around it.
    """
    rank, folder = launched_rank(), Path(config.run_folder)
    judged = what_stands(folder)
    if rank == 0:
        check_run_folder(config, resume=resume, overwrite=overwrite)
    inputs = prepare_inputs(config)
    with locked(folder) if rank == 0 and locks else nullcontext():
        if rank == 0 and what_stands(folder) != judged:  # another run was here meanwhile
            check_run_folder(config, resume=resume, overwrite=overwrite)
        yield inputs


@contextmanager
def _closed_on_error(distributed: Distributed) -> Iterator[None]:
    """One process leaves its group when an error ends the run.

    After an error of one of several, the others may never come to it.
    """
    try:
        yield
    except BaseException:
        if distributed.world_size == 1:
            distributed.close()
        raise


def _in_own_offload_dir(config: Config) -> DistributedConfig:
    """Runs may share `offload_dir`: each swaps into a folder of its own there, the same one when it is resumed.

    Raises UserError where somebody else has put a folder or a link there.
    """
    settings = config.distributed
    if settings.offload_dir is None:
        return settings
    run_folder = Path(config.run_folder).resolve()
    name = f"{run_folder.name}-{hashlib.sha256(str(run_folder).encode()).hexdigest()[:12]}"
    own = Path(settings.offload_dir) / name
    if own.is_symlink() or (own.exists() and own.stat().st_uid != own_id(own.parent)):
        raise UserError(
            f"distributed.offload_dir = {settings.offload_dir}: {name} is a link or another user's; remove it, or name "
            "another folder."
        )
    return settings.model_copy(update={"offload_dir": str(own)})


def _train(
    inputs: Inputs, distributed: Distributed, stop_request: StopRequest, *, overwrite: bool, part: Part | None
) -> Result:
    config, folder = inputs.config, Path(inputs.config.run_folder)
    started = time.time()
    # rank 0 reads it for all: on a shared file system another node may not see the same for a moment
    goes_on_here = distributed.is_main and not overwrite
    own = finished_result(folder) if goes_on_here else None
    dropout = began_with_dropout(folder, config) if goes_on_here else config.train.dropout
    if own is not None and goes_on(own, config, num_steps=num_steps_of(inputs)):
        own = None
    finished, dropout = distributed.gather_objects((own, dropout))[0]
    if finished is not None:
        log.info(
            "%s is finished (%s, %s); nothing to do. More train.epochs or train.max_steps would have it go on",
            folder,
            finished.status,
            counted(finished.steps, "step"),
        )
        return finished
    check_agreement(derived(inputs), distributed.gather_objects)
    loop = build_loop(inputs, distributed, stop_request, started=started, dropout=dropout)
    checkpoint = _open(loop, inputs, overwrite=overwrite, part=part)
    if checkpoint is not None:
        _resume(loop, checkpoint, config)
    if distributed.is_main:
        about = {"processes": distributed.world_size, "strategy": distributed.strategy.name, "steps": loop.num_steps}
        run, step = loop.saver.identity["run_id"], loop.state.progress.step
        open_trackers(loop.trackers, config, run_id=run, about=about, step=step)
    log.info("%s; %s", counted(loop.num_steps, "optimizer step"), _described_batch(loop, config))
    ended = "failed"
    try:
        status = run_loop(loop)
        result = finish(inputs, loop, loop.state.progress, status, layout=loop.layout)
        ended = result.status
    except Exception as error:
        if distributed.is_main:
            progress = loop.state.progress
            with suppress(OSError):  # the disk may be full: the first error is the one to tell
                loop.metrics.write("event", progress.step, event="failed", error=str(error))
                write_result(folder, Result("failed", progress.step, {}, None, round(progress.elapsed_s, 3), ""))
                if config.report.page:
                    write_page(folder)
        raise
    finally:
        loop.saver.end()
        loop.metrics.close()
        loop.trackers.close(ended)
    return result


def _described_batch(loop: Loop, config: Config) -> str:
    layout = loop.layout if loop.task.modality.in_tokens else None
    return describe_batch(config.batch, world_size=loop.distributed.world_size, layout=layout)


def _open(loop: Loop, inputs: Inputs, *, overwrite: bool, part: Part | None) -> Checkpoint | None:
    """Write the run folder's first files; the checkpoint that the run goes on from, None = from the start. Collective.

    From here on an earlier run may be written over: every rank has come this far.
    """
    config, distributed, folder = inputs.config, loop.distributed, Path(inputs.config.run_folder)
    distributed.barrier()
    opened: tuple[dict[str, str], Checkpoint | None] | None = None
    if distributed.is_main:
        if part is not None:
            part.open()
        elif overwrite:
            clear_run_folder(folder)
        root = loop.saver.root
        identity = run_id(folder)
        checkpoint = latest_checkpoint(root, run_id=identity, fits=loop.state.misfit) if root.is_dir() else None
        name = distributed.strategy.name
        about = {"world_size": distributed.world_size, "strategy": name, "num_steps": loop.num_steps}
        opened = open_run_folder(config, run=about, step=checkpoint.step if checkpoint else -1), checkpoint
        write_data_report(folder, inputs)
    shared = distributed.gather_objects(opened)[0]
    assert shared is not None
    about_run, checkpoint = shared
    loop.saver.identity |= about_run
    open_log(folder, rank=distributed.rank)
    return checkpoint


def build_loop(
    inputs: Inputs, distributed: Distributed, stop_request: StopRequest, *, started: float, dropout: Mode = "auto"
) -> Loop:
    """Everything that training touches. Nothing is written. Collective. `dropout`: see `choose_dropout`."""
    from ftscale.optim.schedules import Schedules

    config, task = inputs.config, inputs.task
    order, num_steps = inputs.order, num_steps_of(inputs)
    built = _build_model(inputs, distributed, num_steps=num_steps, dropout=dropout)
    layout, masks = built.layout, built.masks
    module = _build_module(config, built, task)
    optimizer = _build_optimizer(config, module, built.head_names, distributed)
    steps = _build_steps(inputs, order, distributed, layout=layout, num_steps=num_steps)
    schedules = Schedules(optimizer, config.schedule, num_steps=num_steps)
    state = RunState(schedules, _build_rule(config, module), stream=steps if isinstance(steps, StreamSteps) else None)
    distributed.prepare(module, optimizer, unused_weights=_leaves_weights_unused(module, steps, distributed))
    # every rank draws its own numbers from here on: dropout too, where it is by process
    seed_everything(derive_seed(config.seed, "train", distributed.rank))
    metrics = MetricsFile(Path(config.run_folder) / "metrics.jsonl", enabled=distributed.is_main, start_time=started)
    loop = Loop(
        task=task,
        distributed=distributed,
        state=state,
        steps=steps,
        num_steps=num_steps,
        layout=layout,
        train=config.train,
        checkpoint=config.checkpoint,
        guard=config.guard,
        evaluations=_build_evaluations(inputs, order, distributed, stop_request, layout=layout, num_steps=num_steps),
        saver=_build_saver(config, distributed, state, masks=masks),
        after_save=partial(_prove_checkpoint, inputs, distributed, metrics),
        metrics=metrics,
        stop_request=stop_request,
        statistics=Statistics(module),
        masks=masks,
    )
    check_disk(loop, config)
    return loop


def _build_model(inputs: Inputs, distributed: Distributed, *, num_steps: int, dropout: Mode) -> Built:
    """The model, built alike on all ranks, with the frozen ones at their work beside it."""
    laid_out = _place_frozen(inputs, distributed)
    built = build_model(laid_out, inputs.task, distributed, num_steps=num_steps, dropout=dropout)
    draw = "by process" if built.masks is None else "by row"
    check_agreement({"the layout of batches": built.layout, "the draw of dropout": draw}, distributed.gather_objects)
    return built


def _place_frozen(inputs: Inputs, distributed: Distributed) -> Config:
    """Frozen models at their work; returns the configuration with the layout of batches that all of them take."""
    parts = {"data.train": inputs.train, "data.eval": inputs.evaluation, "data.test": inputs.test}
    compute_columns(inputs.config, inputs.task, parts, distributed)
    return place_companions(inputs.config, inputs.task, distributed)


def _build_module(config: Config, built: Built, task: Method) -> TaskModule:
    """Model and method in one; the method's own weights are new, or those that lie beside the model."""
    with seeded_weights(config.seed, "extra"):
        module = TaskModule(built.model, task, masks=built.masks)
    if load_extra(task, Path(config.model.name)):
        log.info("the method's own weights are those beside the model in %s", config.model.name)
    return module


def _build_rule(config: Config, module: TaskModule) -> GradientRule:
    """The method's, or the adapter's: the table of combinations lets only one of them have one."""
    from ftscale.models.adapt import gradient_rule

    return module.task.gradient_rule(module) if config.method.has_rule else gradient_rule(module.model)


def _build_optimizer(config: Config, module: TaskModule, head_names: list[str], distributed: Distributed) -> Any:
    from ftscale.optim.optimizers import build_cpu_adam, build_optimizer

    if distributed.strategy.offloads_optimizer:
        return build_cpu_adam(module, config.optimizer, head_names=head_names)
    # DeepSpeed keeps float32 masters of its own
    masters = config.train.precision == "bf16" and not distributed.strategy.is_zero
    return build_optimizer(module, config.optimizer, head_names=head_names, master_weights=masters)


def _build_steps(
    inputs: Inputs, order: GlobalOrder | None, distributed: Distributed, *, layout: Layout, num_steps: int
) -> TrainingSteps | StreamSteps:
    """Where optimizer steps come from: prepared rows in their order, or a stream."""
    config, task = inputs.config, inputs.task
    collate = partial(collate_samples, task, layout=layout, train=True)
    division = Division(config.batch, flat=layout == "flat")
    ranks = Ranks(distributed.rank, distributed.world_size)
    if order is None or inputs.train is None:
        return StreamSteps(
            config.data,
            Preparer(task),
            collate,
            roles=task.settings.roles,
            joins=not task.by_row,
            division=division,
            ranks=ranks,
            seed=config.seed,
            gather=distributed.gather_objects,
        )
    return TrainingSteps(
        inputs.train,
        order,
        collate,
        division=division,
        ranks=ranks,
        seed=config.seed,
        num_steps=num_steps,
        num_workers=config.data.num_workers,
    )


def _leaves_weights_unused(module: TaskModule, steps: TrainingSteps | StreamSteps, distributed: Distributed) -> bool:
    """Whether some trained weights get no gradient from a first micro-batch of some rank, tried out before training.

    A mistake in model or data shows here. Collective: each rank tries rows of its own, and DDP must be told the same.
    A stream is not begun for it.
    """
    import torch

    if distributed.strategy.is_zero or distributed.world_size == 1:  # no DDP to tell
        return False
    step = None if isinstance(steps, StreamSteps) else next(steps.after(0), None)
    if step is None:
        return False
    module.train()
    module.model.eval()  # no dropout drawn, no statistics moved
    with torch.random.fork_rng(devices=[]), undisturbed(module):
        step = module.task.before_step(step, Context(module, distributed, step=1))
        batch = step.micro_batches[-1][0].to(distributed.device)
        total_of(module(batch=batch), module.task.terms).backward()
    unused = [name for name, weight in module.named_parameters() if weight.requires_grad and weight.grad is None]
    module.zero_grad(set_to_none=True)
    if unused:
        log.info("%d trained weights get no gradient in a forward, e.g. %s", len(unused), unused[0])
    return distributed.any(bool(unused))


def _build_evaluations(
    inputs: Inputs,
    order: GlobalOrder | None,
    distributed: Distributed,
    stop_request: StopRequest,
    *,
    layout: Layout,
    num_steps: int,
) -> Evaluations:
    config, task, score = inputs.config, inputs.task, None
    if inputs.evaluation is not None:
        run = evaluation_of(config, task, inputs.evaluation, distributed, layout=layout, stop_request=stop_request)
        score = partial(_scores, run, inputs, is_main=distributed.is_main)
    steps = evaluation_steps(config.evaluation.every, order, num_steps=num_steps)
    metric, higher = best_metric(config.evaluation, task)
    return Evaluations(config.evaluation, steps, score, metric, higher_is_better=higher)


def _scores(run: Callable[[], Evaluator], inputs: Inputs, step: int, *, is_main: bool) -> dict[str, float]:
    """Metrics of the evaluation rows with the model as it stands; what came out for each row is noted. Collective."""
    evaluator, rows = run(), inputs.evaluation
    if is_main and rows is not None:
        write_row_records(record_path(Path(inputs.config.run_folder), "eval", step), inputs.task, evaluator, rows)
    return evaluator.compute()


def _build_saver(config: Config, distributed: Distributed, state: RunState, *, masks: Masks | None) -> Saver:
    return Saver(
        Path(config.run_folder) / "checkpoints",
        distributed,
        identity={
            "config_digest": config_digest(config),
            "config": public(config).model_dump(mode="json"),
            "versions": versions(),
            "dropout": "by_process" if masks is None else "by_row",
        },
        keep=config.checkpoint.keep,
        asynchronous=config.checkpoint.in_background,
        more=state.tensors,
    )


def _prove_checkpoint(inputs: Inputs, distributed: Distributed, metrics: MetricsFile) -> None:
    """Where every checkpoint is to be proved: save the model as it stands, prove that, and remove it. Collective."""
    if inputs.config.checkpoint.prove == "always":
        copy = Path(inputs.config.run_folder) / "checkpoints" / ".proof"
        save_and_prove(inputs, distributed, copy, metrics)
        if distributed.is_main:
            shutil.rmtree(copy)


def _resume(loop: Loop, checkpoint: Checkpoint, config: Config) -> None:
    """Bring back everything that the checkpoint holds, but what the run was given anew since. Collective."""
    anew = given_anew(checkpoint.manifest, config, of=SCHEDULED)
    loop.state.begin_schedule(checkpoint.progress, anew=anew)
    load_checkpoint(checkpoint, loop.distributed)
    loop.state.load_tensors(load_more(checkpoint))
    loop.state.load_state_dict(checkpoint.progress, anew=anew)
    if given_anew(checkpoint.manifest, config, of=LENGTH):
        loop.state.progress.bad_evaluations = 0
    loop.saver.saved = loop.state.progress.step
    log.info("resumed from %s at step %d", checkpoint.folder, loop.saver.saved)
    if anew:
        left = counted(loop.num_steps - loop.saver.saved, "optimizer step")
        log.info("a new schedule of the learning rate begins here, over the %s that are left", left)
        if loop.num_steps <= loop.saver.saved:
            log.warning(
                "the run ends here: the checkpoint was of a longer one, whose train.epochs or train.max_steps this "
                "start did not have; give it again with --resume to go on"
            )
