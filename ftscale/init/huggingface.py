"""TrainingArguments of transformers, alone or with the arguments of its example scripts (run_glue, run_ner, ...)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ftscale.base.errors import UserError
from ftscale.init import trainer
from ftscale.init.draft import FILL_IN, Draft, words
from ftscale.init.zero_file import put_strategy

NAME = "transformers"
KEYS = words(  # what tells that a file is one of TrainingArguments
    "per_device_train_batch_size num_train_epochs lr_scheduler_type gradient_accumulation_steps eval_strategy "
    "evaluation_strategy save_strategy warmup_ratio adam_beta1 adam_epsilon max_grad_norm logging_steps "
    "save_steps train_file validation_file max_seq_length max_train_samples dataset_config_name source_prefix "
    "task_name"
)
DEFAULTS = trainer.DEFAULTS

GLUE = {  # task_name of run_glue: the columns that a model reads
    "cola": ("sentence", None),
    "mnli": ("premise", "hypothesis"),
    "mrpc": ("sentence1", "sentence2"),
    "qnli": ("question", "sentence"),
    "qqp": ("question1", "question2"),
    "rte": ("sentence1", "sentence2"),
    "sst2": ("sentence", None),
    "stsb": ("sentence1", "sentence2"),
    "wnli": ("sentence1", "sentence2"),
}
TAGGING = ("ner", "pos", "chunk")
TASKS = {  # by keys of the example scripts
    "text_classification": ("text_column_names", "text_column_delimiter", "metric_name", "shuffle_train_dataset"),
    "token_classification": ("label_all_tokens", "return_entity_level_metrics"),
    "seq2seq": (
        "max_source_length",
        "max_target_length",
        "source_prefix",
        "source_lang",
        "summary_column",
        "text_column",
    ),
    "image_classification": ("image_column_name", "train_dir", "train_val_split"),
    "masked_lm": ("mlm_probability", "line_by_line"),
    "causal_lm": ("block_size", "validation_split_percentage"),
}
LACKS = {
    "rows are padded to the longest of their micro-batch, or laid end to end": ("pad_to_max_length",),
    "the hub's own folder is used; set HF_HOME": ("cache_dir",),
    "a fast tokenizer is used": ("use_fast_tokenizer", "use_fast"),
    "prepared rows are kept by their content and never stale": ("overwrite_cache",),
    "train.precision says the type of the weights": ("torch_dtype", "dtype"),
    "a model's head is replaced where its classes differ; see head": ("ignore_mismatched_sizes",),
    "model.overrides changes fields of the model's config": ("config_name", "config_overrides", "model_type"),
    "ftscale scores the task's metrics itself": ("metric_name", "return_entity_level_metrics"),
    "each word is one label, at its first piece": ("label_all_tokens",),
    "ftscale predict reads other rows": ("max_predict_samples",),
}


def translate(draft: Draft, *, folder: Path, task: str | None) -> None:
    """Fill the draft. `task`: as the user says it. Raises UserError where nothing tells the task."""
    name = task or _task(draft)
    draft.put("task.name", name, "--task" if task else "by the keys of the example script")
    _lengths(draft, name)
    _model(draft)
    _data(draft, name)
    trainer.put_training(draft)
    put_strategy(draft, folder=folder)
    for why, keys in LACKS.items():
        draft.lack(why, *keys)


def _task(draft: Draft) -> str:
    given = draft.ask("task_name")
    said = "" if given is None else str(given.value).lower()
    if said in GLUE:
        return "text_classification"
    if said in TAGGING:
        return "token_classification"
    if draft.asked("mlm"):
        return "masked_lm"
    for task, keys in TASKS.items():
        if any(draft.values.get(key) is not None for key in keys):
            return task
    raise UserError(
        f"--from = {draft.file} does not tell the task, which TrainingArguments do not name; give --task "
        "text_classification, token_classification, causal_lm, masked_lm, multiple_choice, seq2seq or "
        "image_classification."
    )


def _lengths(draft: Draft, task: str) -> None:
    if task == "image_classification":
        return
    keys = {"seq2seq": "max_source_length", "causal_lm": "block_size"}
    key = keys.get(task, "max_seq_length")
    given = draft.ask(key, "max_seq_length", "max_length")
    if given is not None:
        draft.put("task.max_length", draft.whole(given), given.said)
    if task == "masked_lm":
        draft.copy("mlm_probability", "task.mask_ratio", draft.number)
        if not draft.asked("line_by_line"):
            draft.put("task.join_texts", True, "run_mlm lays texts end to end where line_by_line is not set")
    if task == "causal_lm":
        draft.put("task.join_texts", True, "run_clm lays texts end to end and cuts them into blocks")
    if task == "seq2seq":
        draft.copy("max_target_length", "task.max_target_length", draft.whole)
        draft.copy("source_prefix", "task.source_prefix", draft.text)
        beams, length = draft.ask("num_beams", "generation_num_beams"), draft.ask("generation_max_length")
        if beams is not None:
            draft.put("task.generate.num_beams", draft.whole(beams), beams.said)
        if length is not None:
            draft.put("task.generate.max_new_tokens", draft.whole(length), length.said)
        draft.ignore("predict_with_generate", "sortish_sampler", "ignore_pad_token_for_loss", "val_max_target_length")
    if task == "text_classification" and (draft.asked("do_regression") or _says_stsb(draft)):
        draft.put("task.problem", "regression", "do_regression" if "do_regression" in draft.values else "task_name")


def _says_stsb(draft: Draft) -> bool:
    given = draft.ask("task_name")
    return given is not None and str(given.value).lower() == "stsb"


def _model(draft: Draft) -> None:
    trainer.put_model(draft, missing="TrainingArguments do")
    tokenizer = draft.ask("tokenizer_name")
    if tokenizer is not None and tokenizer.value != draft.value("model.name"):
        draft.put("model.processor", draft.text(tokenizer), tokenizer.said)


def _data(draft: Draft, task: str) -> None:
    """Set the sources: files go before a data set of the hub."""
    files = {part: draft.ask(*keys) for part, keys in _FILES.items()}
    hub, config, glue = draft.ask("dataset_name"), draft.ask("dataset_config_name"), draft.ask("task_name")
    columns = _columns(draft, task)
    limits = {"train": draft.ask("max_train_samples"), "eval": draft.ask("max_eval_samples")}
    for part in ("train", "eval", "test"):
        source: dict[str, Any] = {}
        given = files[part]
        if given is not None:
            source, said = {"path": draft.text(given)}, given.said
        elif hub is not None and part == "train":
            source, said = {"path": draft.text(hub), "format": "hub"}, hub.said
        elif hub is not None and part == "eval" and "validation_split_percentage" not in draft.values:
            source, said = (
                {"path": draft.text(hub), "format": "hub", "split": "validation"},
                f"{hub.said}, as its script",
            )
        elif glue is not None and str(glue.value).lower() in GLUE and part != "test" and files["train"] is None:
            source, said = {"path": "nyu-mll/glue", "format": "hub", "name": str(glue.value).lower()}, glue.said
            columns = columns or _glue_columns(str(glue.value).lower())
            if part == "eval":
                source["split"] = "validation_matched" if source["name"] == "mnli" else "validation"
        if not source:
            continue
        if config is not None and source.get("format") == "hub" and "name" not in source:
            source["name"] = draft.text(config)
        if columns:
            source["columns"] = columns
        limit = limits.get(part)
        if limit is not None:
            source["limit"], said = draft.whole(limit), f"{said}, {limit.said}"
        draft.put(f"data.{part}", source if len(source) > 1 else source["path"], said)
    percent = draft.ask("validation_split_percentage")
    share = draft.ask("train_val_split")
    if draft.value("data.eval") is None and percent is not None:
        draft.put("data.eval_ratio", draft.number(percent) / 100, percent.said)
    elif draft.value("data.eval") is None and share is not None:
        draft.put("data.eval_ratio", draft.number(share), share.said)
    if draft.value("data.train") is None:
        draft.put("data.train", FILL_IN, "to be filled in: TrainingArguments do not name the rows")
        draft.open.append("data.train is to be filled in: a file, a folder or a hub data set; data.eval as well.")
    draft.copy("preprocessing_num_workers", "data.prepare_workers", draft.whole)
    if draft.asked("streaming"):
        draft.put("data.streaming", True, "streaming")


_FILES = {
    "train": ("train_file", "train_dir"),
    "eval": ("validation_file", "validation_dir"),
    "test": ("test_file", "test_dir"),
}


def _glue_columns(name: str) -> dict[str, str]:
    first, second = GLUE[name]
    return {"text": str(first), **({"text_pair": second} if second else {})}


def _columns(draft: Draft, task: str) -> dict[str, Any]:
    """What the task's columns are called in the rows."""
    if task == "multiple_choice":  # run_swag reads rows of these names alone
        return {"context": "sent1", "question": "sent2", "choices": [f"ending{number}" for number in range(4)]}
    keys: dict[str, dict[str, tuple[str, ...]]] = {
        "text_classification": {"text": ("text_column_names", "text_column_name"), "label": ("label_column_name",)},
        "token_classification": {"words": ("text_column_name",), "tags": ("label_column_name",)},
        "seq2seq": {"source": ("text_column", "source_lang"), "target": ("summary_column", "target_lang")},
        "image_classification": {"image": ("image_column_name",), "label": ("label_column_name",)},
        "causal_lm": {"text": ("text_column_name",)},
        "masked_lm": {"text": ("text_column_name",)},
    }
    found: dict[str, str] = {}
    for role, names in keys.get(task, {}).items():
        given = draft.ask(*names)
        if given is None:
            continue
        columns = draft.names_of(given)
        if role == "text" and task == "text_classification" and len(columns) == 2:
            found |= {"text": columns[0], "text_pair": columns[1]}
        elif columns and columns[0] != role:
            found[role] = columns[0]
    if task == "seq2seq" and ("source_lang" in draft.values or "target_lang" in draft.values):
        draft.open.append(
            "data: run_translation reads a column of translations by language; rows with source and target columns, "
            "or parallel files, are what ftscale reads."
        )
    return found
