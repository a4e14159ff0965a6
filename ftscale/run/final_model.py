"""How a run ends: its best weights, test rows, the saved model and its proof."""

from __future__ import annotations

from itertools import islice
from pathlib import Path
from typing import Any

import torch

from ftscale.base.errors import UserError
from ftscale.base.logs import log
from ftscale.data.sample import Sample
from ftscale.data.sources import read_rows
from ftscale.distributed.runtime import Distributed
from ftscale.methods.base import Method
from ftscale.methods.extra import save_extra
from ftscale.metrics.bootstrap import Interval, intervals
from ftscale.modalities.collate import Layout
from ftscale.run.end_lines import tell_end
from ftscale.run.folder import Result, write_result
from ftscale.run.model_card import write_card
from ftscale.run.prepared_data import Inputs, Preparer
from ftscale.run.report_page import write_page
from ftscale.train.evaluate import evaluation_of
from ftscale.train.loop import Loop, best_checkpoint
from ftscale.train.metrics_file import MetricsFile
from ftscale.train.row_records import record_path, write_row_records
from ftscale.train.state import Progress
from ftscale.train.stop_request import Interrupted

PROOF_ROWS = 4  # for comparing the saved model with the trained one


def finish(inputs: Inputs, loop: Loop, progress: Progress, status: str, *, layout: Layout) -> Result:
    """Best weights, test rows, the saved model and its proof, and result.json; asked to stop meanwhile: preempted."""
    distributed, folder = loop.distributed, Path(inputs.config.run_folder)
    loop.saver.wait()
    metrics, model = dict(progress.last_metrics), ""
    spread: dict[str, Interval] = {}
    if status != "preempted":
        best = distributed.gather_objects(best_checkpoint(loop, progress) if distributed.is_main else None)[0]
        if best is not None:
            distributed.load_state(best.folder, weights_only=True)
            metrics = dict(progress.best_metrics)
            log.info("the best weights are those of step %d", best.step)
        try:
            scores, spread = _test(inputs, loop, progress, task=inputs.task.after(metrics), layout=layout)
            metrics |= scores
            if distributed.any(bool(loop.stop_request)):
                raise Interrupted
            model = str(folder / "model")
            save_and_prove(inputs, distributed, Path(model), loop.metrics)
        except Interrupted:
            status, model = "preempted", ""
            log.info("asked to stop (%s): resume to finish", loop.stop_request.reason or "another rank")
    found = (
        None
        if progress.best_step is None
        else {"step": progress.best_step, "metric": loop.evaluations.metric, "value": progress.best_metric}
    )
    result = Result(status, progress.step, metrics, found, round(progress.elapsed_s, 3), model, spread)
    if distributed.is_main:
        write_result(folder, result)
        if model:
            write_card(Path(model), inputs, result)
        if inputs.config.report.page and status != "preempted":
            write_page(folder)
    distributed.barrier()
    if status != "preempted":
        loop.trackers.log(_told(result), step=result.steps)
        tell_end(result, folder)
    return result


def _told(result: Result) -> dict[str, float]:
    """What trackers get at the end: the best evaluation, the test scores, and the time over all starts."""
    best = result.best and {"best/step": result.best["step"], f"best/{result.best['metric']}": result.best["value"]}
    scores = {name: value for name, value in result.metrics.items() if name.startswith("test/")}
    return {**(best or {}), **scores, "duration_s": result.duration_s}


def _test(
    inputs: Inputs, loop: Loop, progress: Progress, *, task: Method, layout: Layout
) -> tuple[dict[str, float], dict[str, Interval]]:
    """Metrics of the test rows and their intervals, by names that begin with `test/`; none where there are no rows."""
    if inputs.test is None:
        return {}, {}
    run = evaluation_of(
        inputs.config,
        task,
        inputs.test,
        loop.distributed,
        layout=layout,
        stop_request=loop.stop_request,
    )
    evaluator = run()
    if loop.distributed.is_main:
        path = record_path(Path(inputs.config.run_folder), "test", progress.step)
        write_row_records(path, task, evaluator, inputs.test)
    scores = {f"test/{name}": value for name, value in evaluator.compute().items()}
    loop.metrics.write("eval", progress.step, **scores)
    found = intervals(evaluator.score, evaluator.in_order()) if loop.distributed.is_main else {}
    return scores, {f"test/{name}": interval for name, interval in found.items()}


def save_and_prove(inputs: Inputs, distributed: Distributed, folder: Path, metrics: MetricsFile) -> None:
    """The saved model, and the proof that it loads and answers as the trained one. Collective."""
    from ftscale.models.save import save_model

    state = distributed.full_state_dict()
    if state is not None:
        module = distributed.unwrapped
        own = {name.removeprefix("model."): weight for name, weight in state.items() if name.startswith("model.")}
        task = inputs.task
        save_model(module.model, task.processor, folder, state_dict=own, end_ids=task.end_ids())
        save_extra(state, folder, task)
        task.save_extras(folder)
    distributed.barrier()
    if inputs.config.checkpoint.prove != "never":
        _prove(inputs, distributed, folder, metrics)


def _prove(inputs: Inputs, distributed: Distributed, folder: Path, metrics: MetricsFile) -> None:
    from ftscale.models.prove import prove_saved

    config, module = inputs.config, distributed.unwrapped
    task, dtype = inputs.task, module.model.dtype
    proved = {
        name: value.to(distributed.device, dtype if value.is_floating_point() else value.dtype)
        for name, value in task.proof_inputs(_kept_samples(inputs)).items()
    }
    distributed.module.eval()
    with torch.no_grad():
        outputs = {name: value.float().cpu() for name, value in distributed.module(inputs=proved).items()}
    outcome: Any = None
    if distributed.is_main:
        try:
            outcome = prove_saved(
                folder,
                proved,
                outputs,
                auto_class=task.auto_class,
                dtype=dtype,
                device=distributed.device,
                quantized=config.model.quantization != "none",
                trust_remote_code=config.model.trust_remote_code,
                allow_pickle=config.model.allow_pickle,
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


def _kept_samples(inputs: Inputs) -> list[Sample]:
    """The first few that were kept, of the evaluation rows where there are some, else of the training rows."""
    prepared = inputs.evaluation or inputs.train
    if prepared is not None:
        return [prepared.sample(number) for number in range(min(PROOF_ROWS, len(prepared)))]
    task, data = inputs.task, inputs.config.data
    rows = read_rows(data.train[0], roles=task.settings.roles, setting="data.train[0]")
    prepare = Preparer(task)
    chunks = iter(lambda: list(islice(rows, PROOF_ROWS)), [])
    kept = (sample for chunk in chunks for sample in prepare(chunk) if not sample.drop)
    return list(islice(kept, PROOF_ROWS))
