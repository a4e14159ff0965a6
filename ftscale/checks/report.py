"""`ftscale check`: everything that can be known of a run, as errors, warnings and facts."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from ftscale.base.errors import UserError
from ftscale.config import Config
from ftscale.config.compatibility import matching_rows
from ftscale.config.own_task import OwnFile
from ftscale.config.stages import Stage, by_stage, stages_of
from ftscale.config.strategies import find_strategy
from ftscale.precheck import (
    check_config,
    folder_problems,
    machine_problems,
    metric_problems,
    quick_problems,
    read_config,
    steps_problems,
)


@dataclass
class Report:
    """What a check found."""

    errors: list[str] = field(default_factory=list)
    """The run would not start, or not end."""
    warnings: list[str] = field(default_factory=list)
    """Likely mistakes."""
    facts: dict[str, Any] = field(default_factory=dict)
    """combination, task and method (of the user's own), data, tokenizer, schedule, steps: as JSON holds them; of a run
    of several stages, `stages` with these of each."""
    rows: list[list[tuple[str, bool]]] = field(default_factory=list)
    """Some samples in pieces of text, each with whether it is a target."""

    def as_json(self) -> str:
        """Return the report as the JSON text that `ftscale check --json` prints."""
        return json.dumps(asdict(self), indent=2)


@dataclass(frozen=True)
class Start:
    """How the run is to be started."""

    nodes: int = 1
    gpus_per_node: int | None = None
    """Devices of each; None = the run starts on this machine as it is, in one process."""
    resume: bool = False
    overwrite: bool = False

    @property
    def world_size(self) -> int:
        """Count the processes of all nodes: one for each device, or one a node where no devices are named."""
        return self.nodes * (self.gpus_per_node or 1)

    @property
    def here(self) -> bool:
        """Whether this machine is the one to train on."""
        return self.nodes == 1 and self.gpus_per_node is None


def check_run(
    path: str | Path,
    overrides: Sequence[str] = (),
    *,
    nodes: int = 1,
    gpus_per_node: int | None = None,
    resume: bool = False,
    overwrite: bool = False,
    full: bool = False,
    deep: bool = False,
) -> Report:
    """Check a run's configuration file as `ftscale train` will, and its data beyond that.

    No code of the model is run, also where `model.trust_remote_code` is true; a warning then says so.
    Errors of the schema, of combinations, files and columns are found without importing torch and reported together;
    names inside libraries (optimizer, adapter, schedule, model) are looked at where there are none of these, then the
    data, and the model without its weights.
    `nodes`, `gpus_per_node`: of the machines that will train; gpus_per_node None = this one, as it is.
    `full`: prepare all rows instead of a draw of 2000 of each part. `deep`: also take two steps of the model.
    """
    config, problems = quick_problems(path, overrides)
    if problems or config is None:
        return Report(errors=problems)
    start = Start(nodes, gpus_per_node, resume, overwrite)
    try:
        config = read_config(path, overrides)
        if stages := stages_of(config):
            return _check_stages(config, stages, start, full=full, deep=deep)
        return _check(config, start, _start_problems(config, start), full=full, deep=deep)
    except UserError as error:
        return Report(errors=list(error.problems))


def _check_stages(config: Config, stages: Sequence[Stage], start: Start, *, full: bool, deep: bool) -> Report:
    """Every stage as a run of its own, the later ones with the model of the first; and the folder of the whole."""
    from ftscale.run.folder import holds_run

    found: dict[str, Report] = {}
    for stage in stages:
        resume = start.resume and holds_run(stage.folder)
        problems = _start_problems(stage.config, replace(start, resume=resume, overwrite=not resume))
        init = stage.first_model.init
        try:
            found[stage.name] = _check(stage.beforehand, start, problems, full=full, deep=deep, init=init)
        except UserError as error:
            found[stage.name] = Report(errors=[*problems, *error.problems])
    errors = [*_start_problems(config, start), *by_stage({name: report.errors for name, report in found.items()})]
    rows = [row for report in found.values() for row in report.rows]
    return Report(
        errors=list(dict.fromkeys(errors)),
        warnings=by_stage({name: report.warnings for name, report in found.items()}),
        facts={"stages": {name: report.facts for name, report in found.items()}},
        rows=[row for number, row in enumerate(rows) if row not in rows[:number]],
    )


def _check(config: Config, start: Start, problems: list[str], *, full: bool, deep: bool, init: str = "") -> Report:
    """What a run is by itself. `problems`: those of its start.

    `init`: of the model of a stage, which the stages before make; "" = as configured.
    """
    from ftscale.checks.advice import advice
    from ftscale.checks.data import describe_data, marked_rows
    from ftscale.checks.metric import metric_warnings
    from ftscale.checks.model import model_problems
    from ftscale.checks.sample import read_sample
    from ftscale.checks.schedule import describe_schedule
    from ftscale.models.trust import without_code
    from ftscale.precheck.fit import generation_facts, head_warnings
    from ftscale.precheck.vocabulary import vocabulary_warnings
    from ftscale.tasks import build_task

    report = Report(errors=list(problems))
    left_out = config.model.trust_remote_code
    try:
        processor = check_config(config, runs_code=False)
        config = config.model_copy(update={"model": without_code(config.model)})
        looks = processor is not None or (bool(build_task(config.task).modality.learns) and not left_out)
        sample = read_sample(config, processor, full=full) if looks else None
    except UserError as error:
        report.errors += error.problems
        return report
    report.facts["combination"] = [
        {"name": row.name, "text": row.text, "source": row.source, "tests": list(row.tests)}
        for row in matching_rows(config)
    ]
    if left_out:
        report.warnings.append(_left_out(looked=sample is not None))
    if sample is None:
        return report
    if init:
        sample.config = sample.config.model_copy(
            update={"model": sample.config.model.model_copy(update={"init": init})}
        )
    for name, settings in (("task", sample.config.task), ("method", sample.config.method)):
        if isinstance(settings, OwnFile):
            report.facts[name] = settings.model_dump(mode="json")
    report.facts["data"], warnings = describe_data(sample)
    report.warnings += [*warnings, *metric_warnings(sample), *head_warnings(sample.config, sample.task)]
    report.rows = marked_rows(sample)
    tokenizer, problems, notes = _tokenizer(sample)
    report.facts["tokenizer"] = tokenizer
    report.warnings += [*notes, *vocabulary_warnings(sample.config, sample.task)]
    if generation := generation_facts(sample.config):
        report.facts["generation"] = generation
    wanted = config.batch.layout if "flat" in sample.task.layouts else "padded"
    layout = wanted if sample.task.modality.in_tokens else None
    schedule = describe_schedule(sample.config, sample, world_size=start.world_size, layout=layout)
    report.facts["schedule"] = schedule
    report.warnings += advice(sample, num_steps=schedule["total_steps"])
    built = _as_built(sample.config, start)
    refused, untried = model_problems(built, sample.task, here=start.here)
    report.warnings += untried
    report.warnings += refused if left_out else []  # with its code the model may be another
    report.errors += [
        *sample.problems,
        *problems,
        *steps_problems(config, num_steps=schedule["total_steps"]),
        *metric_problems(sample.config, sample.task),
        *([] if left_out else refused),
    ]
    if deep and not report.errors:
        from ftscale.checks.deep import two_steps

        report.facts["steps"], problems = two_steps(sample)
        report.errors += problems
    return report


def _left_out(*, looked: bool) -> str:
    text = "model.trust_remote_code = true: check runs no code of a model"
    if looked:
        return f"{text}; what is said here is of the model and the tokenizer without it."
    return f"{text}, and this one cannot be had without; tokenizer, prepared rows and schedule are not looked at."


def _start_problems(config: Config, start: Start) -> list[str]:
    """What is wrong with where and how the run is to start."""
    from ftscale.run.folder import at_real_folder, check_run_folder

    problems: list[str] = []
    try:
        config = at_real_folder(config)
        check_run_folder(config, resume=start.resume, overwrite=start.overwrite)
        if start.resume and not start.overwrite:
            _check_checkpoint(config, start)
    except UserError as error:
        problems += error.problems
    # of other machines, the run folder alone is known: they share it with this one
    problems += machine_problems(config) if start.here else folder_problems("run_folder", Path(config.run_folder))
    strategy = find_strategy(config.distributed.strategy)
    if start.world_size > 1 and strategy is not None and strategy.one_process:
        problems.append(
            f"distributed.strategy = single does not go with {start.world_size} processes; set ddp or zero2, or use "
            "one."
        )
    return problems


def _check_checkpoint(config: Config, start: Start) -> None:
    """Raise UserError where the newest checkpoint's state is none for this strategy or number of processes."""
    from ftscale.distributed.strategy import check_takeover, resolve_strategy
    from ftscale.run.folder import run_id
    from ftscale.train.manifest import folder_name, newest_manifest

    root = Path(config.run_folder) / "checkpoints"
    newest = newest_manifest(root)  # a job may be writing there: nothing is set aside
    if newest is None or newest["run_id"] != run_id(root.parent):
        return
    if not start.here and config.distributed.strategy is None:
        return  # what the launcher will say is not known here
    check_takeover(
        str(root / folder_name(newest["step"])),
        made_by=(newest["strategy"], newest["world_size"]),
        here=(resolve_strategy(config.distributed), start.world_size),
    )


def _as_built(config: Config, start: Start) -> Config:
    """Without the attention that only the machines that will train may have."""
    if start.here:
        return config
    return config.model_copy(update={"model": config.model.model_copy(update={"attention": "auto"})})


def _tokenizer(sample: Any) -> tuple[dict[str, Any], list[str], list[str]]:
    """Facts, errors and warnings of the tokenizer beside the model."""
    from ftscale.models.load import load_model_config

    config, processor = sample.config, sample.task.processor
    if not sample.task.modality.in_tokens:
        return {"kind": type(processor).__name__}, [], []
    model = load_model_config(config.model, settings={}).get_text_config()
    tokens, rows = len(processor), model.vocab_size
    facts = {
        "kind": type(processor).__name__,
        "tokens": tokens,
        "embeddings": rows,
        "pad": processor.pad_token,
        "end": processor.eos_token,
        "template": bool(processor.chat_template),
    }
    errors, warnings = [], []
    if tokens > rows and config.model.quantization != "none":
        errors.append(
            f"model.processor has {tokens} tokens and the model {rows} embeddings, which cannot grow in a quantised "
            "model; use the model's own tokenizer, or model.quantization: none."
        )
    elif tokens > rows:
        warnings.append(f"the tokenizer has {tokens} tokens and the model {rows} embeddings: {tokens - rows} are new.")
    ends = model.eos_token_id if isinstance(model.eos_token_id, (list, tuple)) else [model.eos_token_id]
    if processor.eos_token_id is not None and ends != [None] and processor.eos_token_id not in ends:
        warnings.append(
            f"the tokenizer's end token is {processor.eos_token!r} ({processor.eos_token_id}), the model's config has "
            f"{model.eos_token_id}; a mistake if the model is to stop by it."
        )
    return facts, errors, warnings
