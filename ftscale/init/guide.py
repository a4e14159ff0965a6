"""From rows to a run.yaml that `check` takes, with a reason for each line."""

from __future__ import annotations

import math
import os
from dataclasses import dataclass, replace
from pathlib import Path

from ftscale.base.errors import UserError, unknown_name
from ftscale.config import Config
from ftscale.config.load import parse_config
from ftscale.config.tasks import SETTINGS
from ftscale.config.yaml_text import read_yaml
from ftscale.data.formats.discover import detect_format
from ftscale.data.formats.paths import files_below
from ftscale.init.choose import put_model
from ftscale.init.columns import Rows, rows_of
from ftscale.init.device import Machine, this_machine
from ftscale.init.doubts import Ask, Doubts
from ftscale.init.draft import Draft
from ftscale.init.fit import LORA, Fit, fit_by_plan, fit_by_size, measured
from ftscale.init.labels import put_label
from ftscale.init.language import Language, language_of
from ftscale.init.lengths import READ, WRITTEN, lengths_of, texts_of
from ftscale.init.limits import put_length, put_measured, put_metric
from ftscale.init.look import SETTING, Look, look_at
from ftscale.init.mapped import named_columns
from ftscale.init.markup import refuse_archive
from ftscale.init.models import Known
from ftscale.init.parts import Parts, parts_of, run_name, without_path
from ftscale.init.sources import how_many, put_sources
from ftscale.init.training import put_batch, put_rates
from ftscale.init.unlearned import refuse_files, refuse_rows
from ftscale.init.write import as_yaml, one_line

MICRO_TOKENS = {False: 4096, True: 16384}
"""Tokens on a processor, and on a GPU, at once."""
WHY_HALVES = {
    "bf16": "half the memory of fp32 for weights, and faster here",
    "fp16": "faster than fp32 here, and bf16 is not",
}
HOUR = 3600.0


@dataclass(frozen=True)
class Guide:
    """A run.yaml for a file, and what its reader should look at."""

    text: str
    seen: str
    """What the file is, in a line."""
    unsure: tuple[str, ...]
    launch: str = ""
    """How several GPUs are used; empty = there is one device."""

    def told(self, out: Path) -> list[str]:
        """Say what was seen and written, and what is not sure, a line each."""
        lines = [self.seen, f"{out} is written; each line says why"]
        lines += ["not sure of:", *(f"  {item}" for item in self.unsure)] if self.unsure else []
        return [*lines, f"next: ftscale check {out}{self.launch}"]


def guide_to(
    path: str | Path,
    *,
    task: str | None = None,
    columns: str | None = None,
    model: str | None = None,
    ask: Ask | None = None,
    plan: bool = True,
) -> Guide:
    """Look at a file, a folder or a data set of the hub, and write settings for it.

    `columns`: what the task calls them, with their names in the file, e.g. "{text: 2, label: 1}"; None = as the file
    tells. `model`: a hub id or folder; None = one that is usual. `ask`: how to ask what is not sure; None = nobody
    answers. `plan`: ask `ftscale plan` whether it fits. Raises UserError where the file cannot be read, is of a task
    that ftscale does not have, or nothing tells the task and `task` is None.
    """
    if task is not None and task not in SETTINGS:
        raise UserError(unknown_name("--task", task, SETTINGS))
    named = None if columns is None else named_columns(columns)
    path, doubts = str(path), Doubts(ask)
    parts, total = _parts(path, task, doubts)
    found = look_at(parts.train[0]["path"], doubts=doubts, **without_path(parts.train[0]))
    found.is_whole &= len(parts.train) == 1
    if task is None and named is None:
        refuse_rows(found)
    rows = rows_of(found, task, named)
    machine = this_machine()
    draft = Draft("", os.path.basename(path), {})
    draft.put("task.name", rows.task, "--task" if task else rows.why)
    for name, (value, why) in rows.settings.items():
        draft.put(f"task.{name}", value, why)
    draft.put("run_folder", f"runs/{run_name(path)}", "yours to name")
    language = language_of(texts_of(found, rows.columns, (*READ, *WRITTEN)))
    known = put_model(draft, rows, found, model, language, machine)
    put_sources(draft, found, rows, parts, total)
    unread = _unread(draft.value("model.name")) if plan else None
    can_read = plan and unread is None
    if not can_read or draft.value("task.join_texts"):
        put_length(draft, found, rows, known, language)
    if "labels" in SETTINGS[rows.task].learned and "label" in SETTINGS[rows.task].label_columns:
        put_label(draft, rows, found.path, doubts)
    else:
        put_metric(draft, rows)
    samples = _samples(draft, found, rows, total, language)
    put_batch(draft, rows.task, samples, is_whole=found.is_whole or total is not None)
    _put_device(draft, rows, machine)
    if can_read:
        fit = _measured_and_planned(draft, path, rows, machine)
    else:
        fit = _guessed(draft, rows, known, machine, unread)
    if model is not None and (of_model := [problem for problem in fit.problems if problem.startswith("model.")]):
        raise UserError(*of_model)
    _put_fit(draft, fit)
    put_rates(draft, rows.task, known, adapts=fit.adapts, millions=fit.millions)
    draft.open += doubts.notes
    seen = _seen(found, rows, parts, total)
    launch = f"; then ftscale launch run.yaml --processes {machine.count}" if machine.count > 1 else ""
    return Guide(_written(draft, path, seen)[0], seen, tuple(map(one_line, draft.open)), launch)


def _parts(path: str, task: str | None, doubts: Doubts) -> tuple[Parts, int | None]:
    """The parts, and the rows for training where they are known without reading all."""
    place = os.path.expanduser(path)
    if os.path.isdir(place):
        if task is None:
            refuse_files(path, [os.path.join(path, file) for file in files_below(place, hidden=(".",))])
    elif os.path.exists(place):
        refuse_archive(path)
    elif _is_hub(path):
        from ftscale.init.hub import hub_parts

        return hub_parts(path, doubts)
    return parts_of(path, doubts), None


def _is_hub(path: str) -> bool:
    try:
        return detect_format(path, setting=SETTING) == "hub"
    except UserError:  # told by the look at it
        return False


def _written(draft: Draft, path: str, seen: str) -> tuple[str, Config]:
    """The draft as YAML, and the configuration that this is."""
    tail = [("Not sure, so look at:", draft.open)] if draft.open else []
    text = as_yaml(draft.lines, head=(seen, "Look it over, then: ftscale check THIS_FILE"), tail=tail)
    return text, parse_config(read_yaml(text, source=path), source=f"{path}, as settings of ftscale")


def _seen(found: Look, rows: Rows, parts: Parts, total: int | None) -> str:
    mapped = ", ".join(f"{role} = {name}" for role, name in rows.columns.items())
    about = ", ".join(dict.fromkeys([*found.why, *([parts.why] if parts.why else [])])) or found.form
    task = f"{rows.task}{f' of {mapped}' if mapped else ''}"
    return one_line(f"{found.path}: {about}; {how_many(found, total)}; {task}")


# ---------------------------------------------------------------- settings


def _samples(draft: Draft, found: Look, rows: Rows, total: int | None, language: Language) -> int:
    """Training samples of a pass."""
    count = total or found.rows
    if draft.value("task.join_texts"):
        lengths = lengths_of(texts_of(found, rows.columns, READ), english=language.is_english)
        tokens = lengths.total if lengths else 0.0
        count = math.ceil(tokens / draft.value("task.max_length"))
    return max(1, round(count * (1 - (draft.value("data.eval_ratio") or 0.0))))


def _put_device(draft: Draft, rows: Rows, machine: Machine) -> None:
    if rows.task == "image_classification":
        size = min(64 if machine.gpu else 32, draft.value("batch.global_size"))
        draft.put("batch.micro_size", size, "images on the device at once")
    else:
        tokens = MICRO_TOKENS[machine.gpu is not None]
        draft.put("batch.micro_tokens", tokens, "tokens on the device at once; the global batch stays the same")
    if machine.halves is not None and (machine.gpu or rows.task == "causal_lm"):
        draft.put("train.precision", machine.halves, WHY_HALVES[machine.halves])


# ---------------------------------------------------------------- fit


def _measured_and_planned(draft: Draft, path: str, rows: Rows, machine: Machine) -> Fit:
    """What fits by a plan, with lengths as the model's own tokenizer cuts the rows."""
    try:
        put_measured(draft, rows, measured(_written(draft, path, "")[1]))
    except UserError as error:  # as check will tell
        return Fit(problems=error.problems)
    return fit_by_plan(_written(draft, path, "")[1], machine)


def _guessed(draft: Draft, rows: Rows, known: Known | None, machine: Machine, unread: UserError | None) -> Fit:
    """What fits by what is known of the model, which was not read. `unread`: why it cannot be; None = nobody tried."""
    adapts = rows.task == "causal_lm"
    if known is not None:
        return fit_by_size(known, machine, may_adapt=adapts)
    if unread is not None and draft.value("model.name").startswith((".", "/", "~")):
        raise unread
    draft.open.append("whether the model fits was not looked at; ftscale plan run.yaml says it.")
    return Fit(dict(LORA) if adapts else {})


def _unread(model: str) -> UserError | None:
    """Why a model cannot be read here; None = it can."""
    from ftscale.config.schema import ModelConfig
    from ftscale.models.load import load_model_config

    try:
        load_model_config(ModelConfig(name=model), settings={})
    except UserError as error:
        return error
    return None


def _put_fit(draft: Draft, fit: Fit) -> None:
    """Set what makes the run fit, and write the numbers beside the model."""
    for setting, (value, why) in fit.settings.items():
        draft.put(setting, value, why)
    if fit.why:
        draft.lines["model.name"] = replace(
            draft.lines["model.name"], why=f"{draft.lines['model.name'].why}; {fit.why}"
        )
    if fit.seconds is not None:
        line = draft.lines["train.epochs"]
        draft.lines["train.epochs"] = replace(
            line, why=f"{line.why}; about {_lasting(fit.seconds)} here by ftscale plan"
        )
    draft.open += [f"ftscale check refuses it as it is: {problem}" for problem in fit.problems]


def _lasting(seconds: float) -> str:
    return f"{seconds / HOUR:.1f} hours" if seconds >= HOUR else f"{math.ceil(seconds / 60)} min"
