"""The composition root: names of the configuration become objects here, in reading order."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from ftscale.checks import PEFT_TASK_TYPES, check_config, steps_problems
from ftscale.config import Config
from ftscale.config.load import config_digest
from ftscale.data.batching import describe_batch
from ftscale.data.loader import TrainingSteps, evaluation_batches, iterate_steps
from ftscale.data.order import GlobalOrder
from ftscale.data.prepare import Prepared, prepare_sources, processor_key, split_rows
from ftscale.data.sources import read_rows
from ftscale.data.stream import StreamPosition, StreamSteps
from ftscale.distributed import Distributed
from ftscale.errors import UserError, unknown_name
from ftscale.logs import launched_rank, log, setup_logging
from ftscale.run_folder import (
    Result,
    check_run_folder,
    clear_run_folder,
    finished_result,
    installed_version,
    locked,
    open_run_folder,
    run_id,
    versions,
    write_result,
)
from ftscale.seeding import derive_seed, seed_everything
from ftscale.tasks import build_task
from ftscale.tasks.base import Layout, Task, model_inputs
from ftscale.train.checkpoint import Saver, load_checkpoint, load_more
from ftscale.train.evaluate import evaluate, to_device
from ftscale.train.guard import Statistics
from ftscale.train.loop import Loop, Progress, TaskModule, as_dict, best_checkpoint, run_loop
from ftscale.train.manifest import Checkpoint, latest_checkpoint
from ftscale.train.meters import MetricsFile
from ftscale.train.preemption import Interrupted, StopRequest, listening

SOME_ROWS = 8  # for trying out the evaluation
PROOF_ROWS = 4  # for comparing the saved model with the trained one


@dataclass
class Inputs:
    """Everything known before a process group exists."""

    config: Config
    """With what the training rows told filled in, e.g. labels."""
    task: Task
    processor: Any
    train: Prepared | None
    """None where training rows are streamed."""
    evaluation: Prepared | None
    test: Prepared | None


def train(
    config: Config, *, resume: bool = False, overwrite: bool = False, stop_request: StopRequest | None = None
) -> Result:
    """Fine-tune as the configuration says; call it in every process of a launch, or in a single one.

    `stop_request`: one that listens already; None = listen to signals while training.
    Raises UserError for mistakes in the configuration, the data or the run folder, before anything is written.
    """
    if stop_request is None:
        with listening() as stop_request:
            return train(config, resume=resume, overwrite=overwrite, stop_request=stop_request)
    rank, folder = launched_rank(), Path(config.run_folder)
    setup_logging(rank=rank)
    stop_request.set_deadline(config.checkpoint.before_end_s)
    try:
        if rank == 0:
            check_run_folder(config, resume=resume, overwrite=overwrite)
        inputs = prepare_inputs(config)
        with locked(folder) if rank == 0 else nullcontext():
            distributed = Distributed(
                config.distributed, precision=config.train.precision, max_grad_norm=config.train.max_grad_norm
            )
            stop_request.at_once = False  # from here on ranks wait for each other, and agree on stopping
            result = _train(inputs, distributed, stop_request, overwrite=overwrite)
    except Interrupted as request:
        log.info("asked to stop (%s) before training began; nothing is lost", request)
        return Result("preempted", 0, {}, None, 0.0, "")
    distributed.close()  # not after an error on this rank alone: the others may never come to it
    return result


def prepare_inputs(config: Config) -> Inputs:
    """Check the configuration and prepare its data: no process group, no weights."""
    processor = check_config(config)
    task, data = build_task(config.task), config.data
    held = split_rows(data.train, data=data, roles=task.columns, seed=config.seed) if _splits(config) else None
    learned = task.fit(_training_rows(config, task))
    config = config.model_copy(update={"task": config.task.model_copy(update=learned)})
    task = build_task(config.task)
    prepare = Preparer(task, processor)
    train_rows: Prepared | None
    evaluation: Prepared | None
    if held is not None:
        train_rows = _prepare(config, prepare, "train", keep=lambda source, row: row not in held[source])
        evaluation = _prepare(config, prepare, "eval", keep=lambda source, row: row in held[source])
    else:
        train_rows = None if data.streaming else _prepare(config, prepare, "train")
        evaluation = _prepare(config, prepare, "eval") if data.eval else None
    test = _prepare(config, prepare, "test") if data.test else None
    inputs = Inputs(config, task, processor, train_rows, evaluation, test)
    if problems := steps_problems(config, num_steps=_num_steps(inputs)):
        raise UserError(*problems)
    return inputs


def evaluation_rows(config: Config, task: Task, processor: Any) -> Prepared:
    """The prepared evaluation rows of a run's configuration. Raises UserError where there are none."""
    prepare = Preparer(task, processor)
    if config.data.eval:
        return _prepare(config, prepare, "eval")
    if not config.data.eval_ratio:
        raise UserError("the run has no evaluation rows (data.eval); name some with --data.")
    held = split_rows(config.data.train, data=config.data, roles=task.columns, seed=config.seed)
    return _prepare(config, prepare, "eval", keep=lambda source, row: row in held[source])


def _prepare(
    config: Config, prepare: Preparer, name: str, *, keep: Callable[[int, int], bool] | None = None
) -> Prepared:
    """One part of the data: train, eval or test; with `keep`, a part of the training sources."""
    data = config.data
    split = f"{data.eval_ratio}/{data.stratify}/{config.seed}" if keep else "whole"
    return prepare_sources(
        data.train if keep else getattr(data, name),
        prepare,
        name=name,
        key=f"{prepare.key()}/{split}",
        roles=prepare.task.columns,
        data=data,
        keep=keep,
    )


@dataclass
class Preparer:
    """`task.prepare` with its processor, as worker processes can take it along."""

    task: Any
    processor: Any
    labelled: bool = True

    def __call__(self, rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """Samples of rows of one source; `where` says where each was read."""
        samples = self.task.prepare(rows, self.processor, labelled=self.labelled)
        if joins(self.task):
            span = f"{rows[0]['_where']} to {rows[-1]['_where']}"
            return [{**sample, "where": span} for sample in samples]
        return [{**sample, "where": row["_where"]} for sample, row in zip(samples, rows, strict=True)]

    def key(self) -> str:
        """Everything that prepared samples depend on besides the rows."""
        return f"{installed_version('ftscale')}/{self.task.settings.model_dump_json()}/{processor_key(self.processor)}"


def joins(task: Any) -> bool:
    """Whether the task makes samples from several rows together, so that they are not one a row."""
    return task.settings.name == "causal_lm" and task.settings.join_texts


def _train(inputs: Inputs, distributed: Distributed, stop_request: StopRequest, *, overwrite: bool) -> Result:
    config, folder = inputs.config, Path(inputs.config.run_folder)
    started = time.time()
    if not overwrite and (finished := finished_result(folder)) is not None:
        log.info("%s is finished (%s, %d steps); nothing to do", folder, finished.status, finished.steps)
        return finished
    loop, layout, stream = _build(inputs, distributed, stop_request, started=started)
    checkpoint = _open(loop, inputs, overwrite=overwrite)
    if config.train.trackers:
        _start_trackers(config, distributed)
    progress = Progress()
    if checkpoint is not None:
        progress = _restore(loop, checkpoint, stream)
    log.info(
        "%d optimizer steps; %s",
        loop.num_steps,
        describe_batch(config.batch, world_size=distributed.world_size, flat=layout == "flat"),
    )
    try:
        status = run_loop(loop, progress)
        result = _finish(inputs, loop, progress, status, layout=layout)
    except Exception as error:
        if distributed.is_main:
            loop.metrics.write("event", progress.step, event="failed", error=str(error))
            write_result(folder, Result("failed", progress.step, {}, None, round(progress.elapsed_s, 3), ""))
        raise
    loop.metrics.close()
    return result


def _open(loop: Loop, inputs: Inputs, *, overwrite: bool) -> Checkpoint | None:
    """Write the run folder's first files; the checkpoint that the run goes on from, None = from the start. Collective.

    From here on an earlier run may be written over: every rank has come this far.
    """
    config, distributed, folder = inputs.config, loop.distributed, Path(inputs.config.run_folder)
    distributed.barrier()
    opened: tuple[str, Checkpoint | None] | None = None
    if distributed.is_main:
        if overwrite:
            clear_run_folder(folder)
        root = loop.saver.root
        checkpoint = latest_checkpoint(root, run_id=run_id(folder)) if root.is_dir() else None
        about = {"world_size": distributed.world_size, "strategy": distributed.strategy}
        opened = open_run_folder(config, run=about, step=checkpoint.step if checkpoint else -1), checkpoint
    shared = distributed.gather_objects(opened)[0]
    loop.saver.identity["run_id"], checkpoint = shared
    return checkpoint


def _build(
    inputs: Inputs, distributed: Distributed, stop_request: StopRequest, *, started: float
) -> tuple[Loop, Layout, StreamSteps | None]:
    config, task, folder = inputs.config, inputs.task, Path(inputs.config.run_folder)
    order, num_steps = _global_order(inputs), _num_steps(inputs)
    model, head_names, layout = build_model(config, task, inputs.processor, distributed, num_steps=num_steps)
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
            _save_and_prove(inputs, distributed, copy, loop.metrics)
            if distributed.is_main:
                shutil.rmtree(copy)

    evaluation = None
    if inputs.evaluation is not None:
        evaluation = run_evaluation(
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
            identity={"config_digest": config_digest(config), "versions": versions()},
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
    if config.evaluation.metric and inputs.evaluation is not None:
        _check_metric(inputs, inputs.evaluation, distributed, layout=layout)
    _check_disk(loop, config)
    return loop, layout, stream


def build_model(
    config: Config, task: Task, processor: Any, distributed: Distributed, *, num_steps: int
) -> tuple[Any, list[str], Layout]:
    """The model that trains, the modules that are its new head, and the layout of its batches.

    Loaded, then its head, adapter or frozen parts, then the layout of its batches, in which it is tried out.
    """
    import torch

    from ftscale.models.adapt import apply_adapter, count_parameters, enable_checkpointing
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
            config.model, auto_class=task.auto_class, settings=settings, dtype=dtype, seed=config.seed
        )
    if task.processor_class == "tokenizer":
        fit_vocabulary(model, processor, seed=config.seed)
        if "num_labels" in settings and model.config.pad_token_id is None:
            # by it a decoder finds the last token of each padded row, which its head reads
            model.config.pad_token_id = processor.pad_token_id
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
    """flat or padded, as the configuration asks and the model allows; prepares the model for flat rows."""
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


Steps = Callable[[int], Iterator[Any]]


def _global_order(inputs: Inputs) -> GlobalOrder | None:
    """The order of prepared training rows; None for a stream."""
    if inputs.train is None:
        return None
    config = inputs.config
    return GlobalOrder(
        np.asarray(inputs.train.dataset["targets"]),
        inputs.train.sources,
        batch=config.batch,
        shuffle=config.data.shuffle,
        seed=config.seed,
        lengths=np.asarray(inputs.train.dataset["length"]) if config.data.group_by_length else None,
    )


def _num_steps(inputs: Inputs) -> int:
    """Optimizer steps of the run."""
    if inputs.config.train.max_steps:
        return inputs.config.train.max_steps
    order = _global_order(inputs)
    assert order is not None, "a stream has max_steps"
    return order.num_steps(inputs.config.train.epochs)


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
    """Whether some trained weights get no gradient from a first micro-batch, tried out before training.

    A mistake in model or data shows here, before processes wait for each other.
    """
    import torch

    from ftscale.train.evaluate import to_device

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
    return bool(unused)


def run_evaluation(
    config: Config,
    task: Task,
    processor: Any,
    rows: Prepared,
    distributed: Distributed,
    *,
    layout: Layout,
    stop_request: StopRequest | None = None,
) -> Callable[[], dict[str, float]]:
    """A function that scores the rows with the model as it stands. Collective; see `evaluate`."""
    collate = task.collator(processor, layout=layout, train=False)
    batch = config.batch
    if config.evaluation.micro_size:
        batch = batch.model_copy(update={"micro_size": config.evaluation.micro_size, "micro_tokens": 0})
    lengths = np.asarray(rows.dataset["length"])
    samples = rows.dataset.remove_columns(["length", "targets", "where"])

    def run() -> dict[str, float]:
        batches = evaluation_batches(
            samples,
            lengths,
            collate,
            batch=batch,
            flat=layout == "flat",
            rank=distributed.rank,
            world_size=distributed.world_size,
            seed=config.seed,
        )
        return evaluate(task, distributed, batches, processor=processor, stop_request=stop_request)

    return run


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


def _finish(inputs: Inputs, loop: Loop, progress: Progress, status: str, *, layout: Layout) -> Result:
    """Best weights, test rows, the saved model and its proof, and result.json; asked to stop meanwhile: preempted."""
    distributed, folder = loop.distributed, Path(inputs.config.run_folder)
    loop.saver.wait()
    metrics, model = dict(progress.last_metrics), ""
    if status != "preempted":
        best = distributed.gather_objects(best_checkpoint(loop, progress) if distributed.is_main else None)[0]
        if best is not None:
            distributed.load_state(best.folder, weights_only=True)
            metrics = dict(progress.best_metrics)
            log.info("the best weights are those of step %d", best.step)
        try:
            metrics |= _test(inputs, loop, progress, layout=layout)
            if distributed.any(bool(loop.stop_request)):
                raise Interrupted
            model = str(folder / "model")
            _save_and_prove(inputs, distributed, Path(model), loop.metrics)
        except Interrupted:
            status, model = "preempted", ""
            log.info("asked to stop (%s): resume to finish", loop.stop_request.reason or "another rank")
    found = (
        None
        if progress.best_step is None
        else {"step": progress.best_step, "metric": loop.best_metric[0], "value": progress.best_metric}
    )
    result = Result(status, progress.step, metrics, found, round(progress.elapsed_s, 3), model)
    if distributed.is_main:
        write_result(folder, result)
    distributed.barrier()
    if status != "preempted":
        log.info("%s after %d steps; model in %s", status, progress.step, model)
    return result


def _test(inputs: Inputs, loop: Loop, progress: Progress, *, layout: Layout) -> dict[str, float]:
    """Metrics of the test rows, by names that begin with `test/`; none where there are no such rows."""
    if inputs.test is None:
        return {}
    run = run_evaluation(
        inputs.config,
        inputs.task,
        inputs.processor,
        inputs.test,
        loop.distributed,
        layout=layout,
        stop_request=loop.stop_request,
    )
    scores = {f"test/{name}": value for name, value in run().items()}
    loop.metrics.write("eval", progress.step, **scores)
    return scores


def _save_and_prove(inputs: Inputs, distributed: Distributed, folder: Path, metrics: MetricsFile) -> None:
    """The saved model, and the proof that it loads and answers as the trained one. Collective."""
    from ftscale.models.save import save_model

    state = distributed.full_state_dict()
    if state is not None:
        module = distributed.unwrapped
        own = {name.removeprefix("model."): weight for name, weight in state.items()}
        save_model(module.model, inputs.processor, folder, state_dict=own)
    distributed.barrier()
    if inputs.config.checkpoint.prove != "never":
        _prove(inputs, distributed, folder, metrics)


def _prove(inputs: Inputs, distributed: Distributed, folder: Path, metrics: MetricsFile) -> None:
    import torch

    from ftscale.models.prove import prove_saved

    config, module = inputs.config, distributed.unwrapped
    batch = to_device(_kept_batch(inputs), distributed.device)
    dtype = module.model.dtype
    proved = {
        name: value.to(dtype) if value.is_floating_point() else value
        for name, value in batch.items()
        if isinstance(value, torch.Tensor)
    }
    distributed.module.eval()
    with torch.no_grad():
        logits = distributed.module(proved, plain=True).float().cpu()
    outcome: Any = None
    if distributed.is_main:
        try:
            outcome = prove_saved(
                folder,
                proved,
                logits,
                auto_class=inputs.task.auto_class,
                dtype=dtype,
                device=distributed.device,
                quantized=config.model.quantization != "none",
            )
        except (UserError, RuntimeError) as error:
            outcome = error
    outcome = distributed.gather_objects(outcome)[0]
    if isinstance(outcome, Exception):
        raise outcome
    metrics.write("event", -1, event="proved", **vars(outcome))
    log.info(
        "the saved model loads without ftscale and answers as the trained one (largest difference %.1e)",
        outcome.largest_difference,
    )


def _kept_batch(inputs: Inputs) -> dict[str, Any]:
    """The first few rows as inputs of the model's forward: padded tensors with one entry a sample."""
    task, data = inputs.task, inputs.config.data
    part = "eval" if data.eval else "train"
    rows = read_rows(getattr(data, part)[0], roles=task.columns, setting=f"data.{part}[0]")
    samples = Preparer(task, inputs.processor)(list(islice(rows, PROOF_ROWS)))
    numbered = [{**sample, "row": row, "epoch": 0, "seed": 0} for row, sample in enumerate(samples)]
    batch = task.collator(inputs.processor, layout="padded", train=False)(numbered)
    kept = model_inputs(batch)
    return {**kept, "labels": batch["labels"]} if task.auto_class == "AutoModelForSeq2SeqLM" else kept


def _check_disk(loop: Loop, config: Config) -> None:
    """Raise UserError where the checkpoints to keep and the saved model will not fit on the disk. Collective."""
    needed, free = 0, 0
    if loop.distributed.is_main:
        root = loop.saver.root
        # the newest ones, the best, and one that is being written; what is there already will be written over
        there = sum(item.stat().st_size for item in root.rglob("*") if item.is_file()) if root.is_dir() else 0
        checkpoint, model = _forecast_bytes(loop.distributed, config)
        needed = (config.checkpoint.keep + 2) * checkpoint + model - there
        free = shutil.disk_usage(next(place for place in (root, *root.resolve().parents) if place.is_dir())).free
    needed, free = loop.distributed.gather_objects((needed, free))[0]
    if needed > free:
        raise UserError(
            f"run_folder = {config.run_folder}: {config.checkpoint.keep + 2} checkpoints (checkpoint.keep = "
            f"{config.checkpoint.keep}, the best and one that is being written) and the model need about "
            f"{needed / 2**20:.0f} MiB, and {free / 2**20:.0f} MiB are free there; free space, lower checkpoint.keep, "
            "or name a folder on another disk."
        )


def _forecast_bytes(distributed: Distributed, config: Config) -> tuple[int, int]:
    """Bytes of a checkpoint and of the saved model, as they will be."""
    from ftscale.models.adapt import count_parameters, weight_bytes
    from ftscale.optim.optimizers import state_bytes_per_weight

    model = distributed.unwrapped.model
    trained, everything = weight_bytes(model)
    masters = 4.0 if config.train.precision == "bf16" or distributed.zero_stage else 0.0
    states = count_parameters(model)[0] * (state_bytes_per_weight(config.optimizer) + masters)
    return trained + int(states), trained if config.adapter.method != "none" else everything


def _splits(config: Config) -> bool:
    return bool(config.data.eval_ratio and not config.data.eval)


def _training_rows(config: Config, task: Task) -> Iterator[dict[str, Any]]:
    for index, source in enumerate(config.data.train):
        yield from read_rows(source, roles=task.columns, setting=f"data.train[{index}]")


def _best_metric(config: Config, task: Task) -> tuple[str, bool]:
    name, higher = task.best_metric
    name = config.evaluation.metric or name
    if config.evaluation.higher_is_better is not None:
        return name, config.evaluation.higher_is_better
    return name, higher if name == task.best_metric[0] else not any(
        word in name for word in ("loss", "perplexity", "error", "mse", "wer", "cer")
    )


def _check_metric(inputs: Inputs, rows: Prepared, distributed: Distributed, *, layout: Layout) -> None:
    """Score a few rows to see whether the metric that is to choose the best checkpoint is among the task's."""
    name = inputs.config.evaluation.metric
    few = replace(rows, dataset=rows.dataset.select(range(min(SOME_ROWS, len(rows)))))
    known = run_evaluation(inputs.config, inputs.task, inputs.processor, few, distributed, layout=layout)()
    if name not in known and "/" not in str(name):  # a class may be missing in a few rows
        raise UserError(unknown_name("evaluation.metric", name, known))


def _start_trackers(config: Config, distributed: Distributed) -> None:
    from accelerate.utils import LoggerType

    accelerator = distributed.accelerator
    accelerator.project_configuration.set_directories(config.run_folder)
    accelerator.log_with = [LoggerType(name) for name in config.train.trackers]
    accelerator.init_trackers("trackers")
