"""The composition root: names of the configuration become objects here, in reading order."""

from __future__ import annotations

import hashlib
import json
import shutil
import time
from collections.abc import Callable, Generator, Iterator
from contextlib import nullcontext, suppress
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import TypeAdapter, ValidationError

from ftscale.agreement import check_agreement, derived
from ftscale.config import Config
from ftscale.config.load import config_digest, public
from ftscale.config.schema import DistributedConfig
from ftscale.data.batching import describe_batch
from ftscale.data.loader import TrainingSteps, iterate_steps
from ftscale.data.order import GlobalOrder
from ftscale.data.prepare import cache_folder
from ftscale.data.stream import StreamPosition, StreamSteps
from ftscale.distributed import Distributed, leaving_no_trace
from ftscale.errors import UserError, counted, told_if_full
from ftscale.files import own_id
from ftscale.finish import check_disk, finish, save_and_prove
from ftscale.inputs import Inputs, Preparer, global_order, joins, num_steps_of, prepare_inputs
from ftscale.launched import launched_rank
from ftscale.logs import close_log, log, open_log, own_logging, setup_logging
from ftscale.metrics.directions import higher_is_better
from ftscale.precheck import PEFT_TASK_TYPES
from ftscale.processes import begin_work
from ftscale.run_folder import (
    Result,
    at_real_folder,
    check_run_folder,
    clear_run_folder,
    finished_result,
    holds_run,
    locked,
    open_run_folder,
    run_id,
    versions,
    what_stands,
    write_result,
)
from ftscale.seeding import derive_seed, seed_everything
from ftscale.tasks.base import Layout, Task
from ftscale.train.checkpoint import Saver, load_checkpoint, load_more
from ftscale.train.evaluate import evaluation_of, to_device
from ftscale.train.guard import Statistics
from ftscale.train.loop import Loop, Progress, TaskModule, as_dict, run_loop
from ftscale.train.manifest import Checkpoint, latest_checkpoint
from ftscale.train.meters import MetricsFile
from ftscale.train.preemption import Interrupted, StopRequest, listening


def train(
    config: Config, *, resume: bool = False, overwrite: bool = False, stop_request: StopRequest | None = None
) -> Result:
    """Fine-tune as the configuration says; call it in every process of a launch, or in a single one.

    `stop_request`: one that listens already; None = listen to signals while training.
    Raises UserError for mistakes in the configuration, the data or the run folder, before anything is written.
    """
    with leaving_no_trace():
        if stop_request is not None:  # of a process that ends with the run, and tells of its end
            with told_if_full(partial(_space_for, config)):
                return _train_in_this_process(config, stop_request, resume=resume, overwrite=overwrite)
        with own_logging(), listening() as stop_request, told_if_full(partial(_space_for, config)):
            return _train_in_this_process(config, stop_request, resume=resume, overwrite=overwrite)


def _space_for(config: Config) -> str:
    """What to do when a disk is full."""
    folder, cache = Path(config.run_folder), cache_folder(config.data)
    go_on = "go on with --resume: the complete checkpoints are as they were" if holds_run(folder) else "start again"
    places = f"run_folder = {folder}, data.cache_dir = {cache} and temporary files (TMPDIR)"
    return f"free space where {places} lie, then {go_on}."


def _train_in_this_process(config: Config, stop_request: StopRequest, *, resume: bool, overwrite: bool) -> Result:
    rank, config = launched_rank(), at_real_folder(config)
    folder = Path(config.run_folder)
    setup_logging(rank=rank)
    if not stop_request.listens:
        log.info("training in a thread: signals are not noticed, and end the process as they did before")
    stop_request.set_deadline(config.checkpoint.before_end_s)
    try:
        judged = what_stands(folder)
        if rank == 0:
            check_run_folder(config, resume=resume, overwrite=overwrite)
        inputs = prepare_inputs(config)
        with locked(folder) if rank == 0 else nullcontext():
            if rank == 0 and what_stands(folder) != judged:  # another run was here meanwhile
                check_run_folder(config, resume=resume, overwrite=overwrite)
            distributed = Distributed(
                _in_own_offload_dir(config),
                precision=config.train.precision,
                max_grad_norm=config.train.max_grad_norm,
            )
            begin_work()
            stop_request.at_once = False  # from here on ranks wait for each other, and agree on stopping
            try:
                result = _train(inputs, distributed, stop_request, overwrite=overwrite)
            except BaseException:
                if distributed.world_size == 1:  # after an error on one rank the others may never come to it
                    distributed.close()
                raise
    except Interrupted as request:
        anew = "" if holds_run(folder) else ": there is nothing to resume yet"
        log.info("asked to stop (%s) before training began; nothing is lost%s", request, anew)
        return Result("preempted", 0, {}, None, 0.0, "")
    distributed.close()
    close_log()
    return result


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


def _train(inputs: Inputs, distributed: Distributed, stop_request: StopRequest, *, overwrite: bool) -> Result:
    config, folder = inputs.config, Path(inputs.config.run_folder)
    started = time.time()
    # rank 0 reads it for all: on a shared file system another node may not see the same for a moment
    own = finished_result(folder) if distributed.is_main and not overwrite else None
    if (finished := distributed.gather_objects(own)[0]) is not None:
        log.info("%s is finished (%s, %s); nothing to do", folder, finished.status, counted(finished.steps, "step"))
        return finished
    check_agreement(derived(inputs), distributed.gather_objects)
    loop, layout, stream = build_loop(inputs, distributed, stop_request, started=started)
    checkpoint = _open(loop, inputs, overwrite=overwrite)
    if config.train.trackers:
        _start_trackers(config, distributed)
    progress = Progress()
    if checkpoint is not None:
        progress = _restore(loop, checkpoint, stream)
    log.info(
        "%s; %s",
        counted(loop.num_steps, "optimizer step"),
        describe_batch(
            config.batch,
            world_size=distributed.world_size,
            flat=layout == "flat" if inputs.task.processor_class == "tokenizer" else None,
        ),
    )
    try:
        status = run_loop(loop, progress)
        result = finish(inputs, loop, progress, status, layout=layout)
    except Exception as error:
        if distributed.is_main:
            with suppress(OSError):  # the disk may be full: the first error is the one to tell
                loop.metrics.write("event", progress.step, event="failed", error=str(error))
                write_result(folder, Result("failed", progress.step, {}, None, round(progress.elapsed_s, 3), ""))
        raise
    finally:
        loop.saver.end()
        loop.metrics.close()
    return result


def _open(loop: Loop, inputs: Inputs, *, overwrite: bool) -> Checkpoint | None:
    """Write the run folder's first files; the checkpoint that the run goes on from, None = from the start. Collective.

    From here on an earlier run may be written over: every rank has come this far.
    """
    config, distributed, folder = inputs.config, loop.distributed, Path(inputs.config.run_folder)
    distributed.barrier()
    opened: tuple[dict[str, str], Checkpoint | None] | None = None
    if distributed.is_main:
        if overwrite:
            clear_run_folder(folder)
        root = loop.saver.root
        identity = run_id(folder)
        checkpoint = latest_checkpoint(root, run_id=identity, fits=partial(_fits, loop)) if root.is_dir() else None
        about = {"world_size": distributed.world_size, "strategy": distributed.strategy, "num_steps": loop.num_steps}
        opened = open_run_folder(config, run=about, step=checkpoint.step if checkpoint else -1), checkpoint
    shared = distributed.gather_objects(opened)[0]
    assert shared is not None
    about_run, checkpoint = shared
    loop.saver.identity |= about_run
    open_log(folder, rank=distributed.rank)
    return checkpoint


def build_loop(
    inputs: Inputs, distributed: Distributed, stop_request: StopRequest, *, started: float
) -> tuple[Loop, Layout, StreamSteps | None]:
    """Everything that training touches, the layout of its batches, and the stream that they come from if there is one.

    Nothing is written. Collective.
    """
    config, task, folder = inputs.config, inputs.task, Path(inputs.config.run_folder)
    order, num_steps = global_order(inputs), num_steps_of(inputs)
    model, head_names, layout = build_model(config, task, inputs.processor, distributed, num_steps=num_steps)
    check_agreement({"the layout of batches": layout}, distributed.gather_objects)
    optimizer = _build_optimizer(config, model, head_names, distributed)
    steps, stream = _build_steps(inputs, order, distributed, layout=layout, num_steps=num_steps)
    from ftscale.optim.schedules import advance_schedule, build_schedule

    schedule = build_schedule(optimizer, config.schedule, num_steps=num_steps)
    module = TaskModule(model, task)
    unused = _unused_weights(module, steps(0) if inputs.train is not None else iter(()), distributed)
    distributed.prepare(module, optimizer, unused_weights=unused)
    # every rank draws its own dropout from here on
    seed_everything(derive_seed(config.seed, "train", distributed.rank))
    from ftscale.models.adapt import adapter_state, advance_adapter
    from ftscale.models.freeze import set_training_mode

    def state(progress: Progress) -> dict[str, Any]:
        return {
            "loop": as_dict(progress),
            "schedule": schedule.state_dict(),
            "stream": vars(stream.position) if stream else None,
        }

    train_rows: Any = inputs.train

    def where(row: int) -> str:
        return stream.where(row) if stream is not None else train_rows.dataset[row]["where"]

    def prove_checkpoint() -> None:
        if config.checkpoint.prove == "always":
            copy = folder / "checkpoints" / ".proof"
            save_and_prove(inputs, distributed, copy, loop.metrics)
            if distributed.is_main:
                shutil.rmtree(copy)

    evaluation = None
    if inputs.evaluation is not None:
        evaluation = evaluation_of(
            config, task, inputs.processor, inputs.evaluation, distributed, layout=layout, stop_request=stop_request
        )
    metric, higher = _best_metric(config, task)
    loop = Loop(
        task=task,
        distributed=distributed,
        schedule=schedule,
        steps=steps,
        num_steps=num_steps,
        train=config.train,
        evaluation=config.evaluation,
        checkpoint=config.checkpoint,
        guard=config.guard,
        evaluation_steps=_evaluation_steps(config, order, num_steps),
        evaluate=evaluation,
        set_training_mode=lambda: set_training_mode(distributed.module),
        advance_schedule=lambda loss: advance_schedule(schedule, loss=loss),
        after_update=lambda step: advance_adapter(model, step=step),
        state=state,
        saver=Saver(
            folder / "checkpoints",
            distributed,
            identity={
                "config_digest": config_digest(config),
                "config": public(config).model_dump(mode="json"),
                "versions": versions(),
            },
            keep=config.checkpoint.keep,
            asynchronous=config.checkpoint.in_background,
            more=lambda: adapter_state(model),
        ),
        after_save=prove_checkpoint,
        where=where,
        metrics=MetricsFile(folder / "metrics.jsonl", enabled=distributed.is_main, start_time=started),
        stop_request=stop_request,
        best_metric=(metric, higher),
        statistics=Statistics(module),
    )
    check_disk(loop, config)
    return loop, layout, stream


def build_model(
    config: Config, task: Task, processor: Any, distributed: Distributed, *, num_steps: int
) -> tuple[Any, list[str], Layout]:
    """The model that trains, the modules that are its new head, and the layout of its batches.

    Loaded, then its head, adapter or frozen parts, then the layout of its batches, in which it is tried out.
    """
    import torch

    from ftscale.models.adapt import apply_adapter, count_parameters, enable_checkpointing
    from ftscale.models.agree import agree_on_padding, agree_on_start
    from ftscale.models.freeze import freeze
    from ftscale.models.head import head_module_names, replace_head
    from ftscale.models.load import fit_vocabulary, load_model

    dtype = torch.bfloat16 if config.train.precision == "bf16" else torch.float32
    settings = task.model_settings()
    # random weights, as of a new head, must be the same under every strategy, and those made in shards draw other
    # numbers; nor can transformers (5.23, integrations/deepspeed.py) replace a head of another size in shards
    fresh = config.model.init == "random" or "num_labels" in settings
    whole = distributed.whole_weights() if fresh else nullcontext()
    with whole:
        model: Any = load_model(
            config.model,
            auto_class=task.auto_class,
            settings=settings,
            dtype=dtype,
            seed=config.seed,
            keep_head=config.head.keep,
        )
    if task.processor_class == "tokenizer":
        fit_vocabulary(model, processor, seed=config.seed)
        agree_on_padding(model, processor)
        if task.auto_class == "AutoModelForSeq2SeqLM":
            agree_on_start(model, processor)
    if config.head.hidden_sizes:
        replace_head(model, config.head, seed=config.seed)
    head_names = head_module_names(model) if "num_labels" in settings else []
    if config.adapter.method != "none":
        model = apply_adapter(
            model,
            config.adapter,
            task_type=PEFT_TASK_TYPES.get(task.auto_class),
            new_modules=head_names,
            dtype=dtype,
            num_steps=num_steps,
            seed=config.seed,
            revision=config.model.revision,
        )
    else:
        freeze(model, config.trainable)
    if config.model.quantization == "none":
        model.to(distributed.device)
    layout = batch_layout(model, config, task, distributed)
    if config.train.activation_checkpointing:
        enable_checkpointing(model)
    trained, total = count_parameters(model)
    log.info(
        "%s: %s of %s parameters train (%.2f %%)",
        type(model).__name__,
        f"{trained:,}",
        f"{total:,}",
        100 * trained / total,
    )
    return model, head_names, layout


def batch_layout(model: Any, config: Config, task: Task, distributed: Distributed) -> Layout:
    """Choose flat or padded, as the configuration asks and the model allows; prepares the model for flat rows."""
    from ftscale.models.layout import choose_layout
    from ftscale.models.load import load_small_twin

    if task.processor_class != "tokenizer":
        return "padded"
    twin = None
    if distributed.zero_stage == 3 and config.batch.layout != "padded":
        with distributed.whole_weights():  # sharded weights cannot be tried out before training
            twin = load_small_twin(config.model, auto_class=task.auto_class, settings=task.model_settings())
    return choose_layout(
        model,
        wanted=config.batch.layout,
        attention=config.model.attention,
        pooled=task.auto_class == "AutoModelForSequenceClassification",
        encoder_decoder=bool(model.config.is_encoder_decoder),
        probed=twin,
    )


def _build_optimizer(config: Config, model: Any, head_names: list[str], distributed: Distributed) -> Any:
    from ftscale.optim.optimizers import build_cpu_adam, build_optimizer

    if distributed.offloads:
        return build_cpu_adam(model, config.optimizer, head_names=head_names)
    # DeepSpeed keeps float32 masters of its own
    masters = config.train.precision == "bf16" and not distributed.zero_stage
    return build_optimizer(model, config.optimizer, head_names=head_names, master_weights=masters)


Steps = Callable[[int], Generator[Any, None, None]]


def _build_steps(
    inputs: Inputs, order: GlobalOrder | None, distributed: Distributed, *, layout: Layout, num_steps: int
) -> tuple[Steps, StreamSteps | None]:
    """Optimizer steps from a given one on, and the stream that they come from where there is one."""
    config, task, processor = inputs.config, inputs.task, inputs.processor
    collate = task.collator(processor, layout=layout, train=True)
    batch, flat, seed = config.batch, layout == "flat", config.seed
    rank, world_size = distributed.rank, distributed.world_size
    if order is None or inputs.train is None:
        stream = StreamSteps(
            config.data.train,
            Preparer(task, processor),
            collate,
            roles=task.columns,
            batch=batch,
            flat=flat,
            buffer=config.data.shuffle_buffer,
            shuffle=config.data.shuffle,
            max_empty=config.data.max_empty,
            joins=joins(task),
            rank=rank,
            world_size=world_size,
            seed=seed,
            gather=distributed.gather_objects,
        )
        return lambda start: stream.steps(stream.position), stream
    dataset = inputs.train.dataset
    rows, lengths = dataset.remove_columns(["length", "targets", "where"]), np.asarray(dataset["length"])
    steps = TrainingSteps(
        rows, order, lengths, collate, batch=batch, flat=flat, rank=rank, world_size=world_size, seed=seed
    )
    workers = config.data.num_workers
    return lambda start: iterate_steps(steps, start=start, stop=num_steps, num_workers=workers), None


def _unused_weights(module: TaskModule, steps: Iterator[Any], distributed: Distributed) -> bool:
    """Whether some trained weights get no gradient from a first micro-batch of some rank, tried out before training.

    A mistake in model or data shows here. Collective: each rank tries rows of its own, and DDP must be told the same.
    """
    import torch

    if distributed.zero_stage or distributed.world_size == 1:  # no DDP to tell
        return False
    step = next(steps, None)
    if step is None:
        return False
    module.train()
    module.model.eval()  # no dropout drawn, no statistics moved
    with torch.random.fork_rng(devices=[]):
        module(to_device(step.micro_batches[-1][0], distributed.device)).backward()
    unused = [name for name, weight in module.named_parameters() if weight.requires_grad and weight.grad is None]
    module.zero_grad(set_to_none=True)
    if unused:
        log.info("%d trained weights get no gradient in a forward, e.g. %s", len(unused), unused[0])
    return distributed.any(bool(unused))


def _evaluation_steps(config: Config, order: GlobalOrder | None, num_steps: int) -> frozenset[int]:
    """After every `evaluation.every` steps, or at the end of each epoch; and after the last."""
    every = config.evaluation.every
    if every:
        return frozenset([*range(every, num_steps + 1, every), num_steps])
    ends, step, epoch = [num_steps], 0, 0
    while order is not None and (step := step + order.size(epoch)) < num_steps:
        ends.append(step)
        epoch += 1
    return frozenset(ends)


def _fits(loop: Loop, state: dict[str, Any]) -> str:
    """Why what a checkpoint says of the loop is not what this run stores; "" = it is. Another version may have."""
    ours = loop.state(Progress())
    kinds = {"loop": Progress, **({} if ours["stream"] is None else {"stream": StreamPosition})}
    if state.keys() != ours.keys() or {**ours["schedule"]}.keys() != {**state["schedule"]}.keys():
        return "another version of ftscale wrote it"
    try:
        for name, kind in kinds.items():
            TypeAdapter(kind).validate_json(json.dumps(state[name]), strict=True, extra="forbid")
    except ValidationError as error:
        first = error.errors()[0]
        return f"its progress is not that of a run: {'.'.join(map(str, first['loc']))}: {first['msg']}"
    return ""


def _restore(loop: Loop, checkpoint: Checkpoint, stream: StreamSteps | None) -> Progress:
    from ftscale.models.adapt import load_adapter_state

    load_checkpoint(checkpoint, loop.distributed)
    load_adapter_state(loop.distributed.unwrapped.model, load_more(checkpoint))
    if stream is not None:
        stream.position = StreamPosition(**checkpoint.progress["stream"])
    progress = Progress(**checkpoint.progress["loop"])
    loop.schedule.load_state_dict(checkpoint.progress["schedule"])
    loop.saved = progress.step
    log.info("resumed from %s at step %d", checkpoint.folder, progress.step)
    return progress


def _best_metric(config: Config, task: Task) -> tuple[str, bool]:
    """The metric that chooses the best checkpoint, and whether higher is better."""
    name = config.evaluation.metric or task.best_metric[0]
    known, asked = higher_is_better(name), config.evaluation.higher_is_better
    if None not in (known, asked) and known != asked:
        log.warning(
            "evaluation.higher_is_better = %s, though %s is better %s: the worst checkpoint would be kept as the best",
            str(asked).lower(),
            name,
            "high" if known else "low",
        )
    return name, bool(known) if asked is None else asked


def _start_trackers(config: Config, distributed: Distributed) -> None:
    from accelerate.utils import LoggerType

    accelerator = distributed.accelerator
    accelerator.project_configuration.set_directories(config.run_folder)
    accelerator.log_with = [LoggerType(name) for name in config.train.trackers]
    accelerator.init_trackers("trackers")
