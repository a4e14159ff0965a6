"""`ftscale check`: everything that can be known of a run, as errors, warnings and facts."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from ftscale.checks.settings import check_config, quick_problems, read_config, steps_problems
from ftscale.config import Config
from ftscale.config.compatibility import matching_rows
from ftscale.errors import UserError


@dataclass
class Report:
    """What a check found."""

    errors: list[str] = field(default_factory=list)
    """The run would not start, or not end."""
    warnings: list[str] = field(default_factory=list)
    """Likely mistakes."""
    facts: dict[str, Any] = field(default_factory=dict)
    """combination, data, tokenizer, schedule: as JSON holds them."""
    rows: list[list[tuple[str, bool]]] = field(default_factory=list)
    """Some samples in pieces of text, each with whether it is a target."""

    def as_json(self) -> str:
        return json.dumps(asdict(self), indent=2)


def check_run(
    path: str | Path,
    overrides: Sequence[str] = (),
    *,
    nodes: int = 1,
    gpus_per_node: int = 1,
    full: bool = False,
) -> Report:
    """Check a run's configuration file as `ftscale train` will, and its data beyond that.

    No code of the model is run, also where `model.trust_remote_code` is true; a warning then says so. Errors of the
    schema, of combinations, files and columns are found without importing torch and reported together;
    names inside libraries (optimizer, adapter, schedule, model) are looked at where there are none of these.
    `full`: prepare all rows instead of the first 2000 of each part.
    """
    config, problems = quick_problems(path, overrides)
    if problems or config is None:
        return Report(errors=problems)
    try:
        return _check(read_config(path, overrides), world_size=nodes * gpus_per_node, full=full)
    except UserError as error:
        return Report(errors=list(error.problems))


def _check(config: Config, *, world_size: int, full: bool) -> Report:
    from ftscale.checks.data import describe_data, marked_rows
    from ftscale.checks.fit import head_warnings
    from ftscale.checks.metric import metric_warnings
    from ftscale.checks.sample import read_sample
    from ftscale.checks.schedule import describe_schedule
    from ftscale.models.trust import without_code

    processor = check_config(config, runs_code=False)
    report = Report()
    if config.model.trust_remote_code:
        report.warnings.append(_without_code(processor is not None))
        config = config.model_copy(update={"model": without_code(config.model)})
    report.facts["combination"] = [
        {"name": row.name, "text": row.text, "source": row.source, "tests": list(row.tests)}
        for row in matching_rows(config)
    ]
    if processor is None:
        return report
    sample = read_sample(config, processor, full=full)
    report.facts["data"], warnings = describe_data(sample, processor)
    report.warnings += [*warnings, *metric_warnings(sample), *head_warnings(sample.config, sample.task)]
    report.rows = marked_rows(sample, processor)
    data_errors = _data_errors(config, report.facts["data"])
    tokenizer, problems, notes = _tokenizer(sample.config, processor)
    report.facts["tokenizer"] = tokenizer
    report.warnings += notes
    schedule = describe_schedule(sample.config, sample, world_size=world_size, flat=config.batch.layout == "flat")
    report.facts["schedule"] = schedule
    report.errors += [*data_errors, *problems, *steps_problems(config, num_steps=schedule["total_steps"])]
    if world_size > 1 and config.distributed.strategy == "single":
        report.errors.append(
            f"distributed.strategy = single does not go with {world_size} processes; set ddp or zero2, or use one."
        )
    return report


def _without_code(looked: bool) -> str:
    text = "model.trust_remote_code = true: check runs no code of a model"
    if looked:
        return f"{text}; what is said here is of the model and the tokenizer without it."
    return f"{text}, and this one cannot be had without; tokenizer, prepared rows and schedule are not looked at."


def _data_errors(config: Config, facts: dict[str, Any]) -> list[str]:
    train = facts["train"]
    if not train["kept"]:
        return [f"data.train: none of {train['rows_looked_at']} rows is left to use; dropped: {train['dropped']}."]
    if train["no_target"] > config.data.max_empty * train["rows_looked_at"]:
        return [
            f"data.train: {train['no_target']} of {train['rows_looked_at']} rows have no target left, more than "
            f"data.max_empty = {config.data.max_empty:.1%}; look at the columns and task.max_length, or raise it."
        ]
    return []


def _tokenizer(config: Config, processor: Any) -> tuple[dict[str, Any], list[str], list[str]]:
    """Facts, errors and warnings of the tokenizer beside the model."""
    from ftscale.models.load import load_model_config
    from ftscale.tasks import build_task

    task = build_task(config.task)
    if task.processor_class != "tokenizer":
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
