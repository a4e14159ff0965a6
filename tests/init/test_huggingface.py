"""TrainingArguments, alone and with the arguments of transformers' example scripts."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from transformers import SchedulerType, TrainingArguments
from translating import Translated, translated

from ftscale.base.errors import UserError
from ftscale.init import trainer
from ftscale.optim.optimizers import OPTIMIZERS, OTHER_NAMES

REVIEWS: dict[str, Any] = {  # in the form of run_classification's own arguments
    "model_name_or_path": "distilbert/distilbert-base-uncased",
    "train_file": "reviews/train.csv",
    "validation_file": "reviews/dev.csv",
    "text_column_names": "headline,body",
    "label_column_name": "stars",
    "max_seq_length": 192,
    "pad_to_max_length": True,
    "do_train": True,
    "do_eval": True,
    "per_device_train_batch_size": 16,
    "gradient_accumulation_steps": 2,
    "learning_rate": "3e-5",
    "num_train_epochs": 4,
    "warmup_ratio": 0.06,
    "weight_decay": 0.1,
    "adam_beta2": 0.98,
    "adam_epsilon": 1e-6,
    "eval_strategy": "epoch",
    "save_strategy": "epoch",
    "save_total_limit": 1,
    "load_best_model_at_end": True,
    "metric_for_best_model": "eval_f1",
    "greater_is_better": True,
    "fp16": True,
    "seed": 7,
    "output_dir": "out/reviews",
    "report_to": ["tensorboard"],
    "run_name": "first try",
    "push_to_hub": True,
    "hub_token": "hf_abcdefgh",
}


def hf(folder: Path, values: dict[str, Any], **options: Any) -> Translated:
    return translated(folder, json.dumps(values), name="training_args.json", **options)


def test_a_text_classification_of_the_example_script(tmp_path: Path):
    done = hf(tmp_path, REVIEWS, processes=4)
    config = done.config
    assert (config.task.name, config.task.max_length) == ("text_classification", 192)
    assert (config.model.name, config.run_folder, config.seed) == (
        "distilbert/distilbert-base-uncased",
        "out/reviews",
        7,
    )
    assert (config.data.train[0].path, config.data.eval[0].path) == ("reviews/train.csv", "reviews/dev.csv")
    assert config.data.train[0].columns == {"text": "headline", "text_pair": "body", "label": "stars"}
    assert (config.batch.global_size, config.batch.micro_size) == (16 * 2 * 4, 16)
    assert (config.optimizer.lr, config.optimizer.weight_decay) == (3e-5, 0.1)
    assert (config.optimizer.betas, config.optimizer.eps) == ((0.9, 0.98), 1e-6)
    assert (config.schedule.name, config.schedule.warmup_ratio) == ("linear", 0.06)
    assert (config.train.epochs, config.train.precision, config.report.to) == (4, "fp16", ("tensorboard",))
    assert config.report.name == "first try"
    evaluation = config.evaluation
    assert (evaluation.metric, evaluation.higher_is_better, evaluation.keep_best) == ("f1_macro", True, True)
    assert config.checkpoint.keep == 1
    assert done.found.open == ()
    assert {line.split(":")[0] for line in done.found.lacks} == {"pad_to_max_length", "push_to_hub", "hub_token"}
    assert "hf_abcdefgh" not in done.found.text + done.said


def test_each_line_names_its_key_and_defaults_of_theirs_are_written_out(tmp_path: Path):
    done = hf(tmp_path, {"output_dir": "out", "learning_rate": 1e-3, "save_steps": 20}, task="causal_lm")
    assert done.line("lr") == "lr: 0.001  # learning_rate"
    assert done.line("weight_decay") == "weight_decay: 0.0  # default of weight_decay in transformers"
    assert "(assumed)" in done.line("global_size")
    assert (done.config.batch.global_size, done.config.train.epochs) == (8, 3)
    assert done.config.optimizer.weight_decay == 0  # ours would be 0.01
    assert done.config.checkpoint.every == 20
    assert [sentence.split(" ")[0] for sentence in done.found.open] == ["model.name", "data.train", "batch.global_size"]


def test_all_that_training_arguments_write_is_known(tmp_path: Path):
    arguments = TrainingArguments(output_dir=str(tmp_path / "out"), use_cpu=True, report_to="none")
    done = translated(tmp_path, arguments.to_json_string(), name="args.json", task="causal_lm")
    assert done.found.unknown == ()
    assert {line.split(":")[0] for line in done.found.lacks} == {"use_cpu"}


def test_steps_go_before_epochs_and_shares_are_of_the_steps(tmp_path: Path):
    values = {
        **REVIEWS,
        "max_steps": 250,
        "eval_strategy": "steps",
        "eval_steps": 0.1,
        "save_strategy": "steps",
        "save_steps": 0.33,
        "logging_steps": 5,
        "warmup_steps": 0.2,
    }
    config = hf(tmp_path, values).config
    assert (config.train.max_steps, config.evaluation.every, config.checkpoint.every) == (250, 25, 83)
    assert (config.train.log_every, config.schedule.warmup_ratio, config.schedule.warmup_steps) == (5, 0.2, 0)
    done = hf(tmp_path, {**values, "max_steps": -1})
    assert (done.config.train.max_steps, done.config.train.epochs, done.config.evaluation.every) == (0, 4, 0)
    assert "eval_steps: 0.1 of the run" in done.said


def test_without_evaluation_rows_nothing_is_chosen_by_them(tmp_path: Path):
    done = hf(tmp_path, {key: value for key, value in REVIEWS.items() if key != "validation_file"})
    assert done.config.data.eval == ()
    assert done.config.evaluation.metric is None
    assert "load_best_model_at_end: there are no evaluation rows" in done.said


def test_glue_tasks_are_data_sets_of_the_hub_with_their_columns(tmp_path: Path):
    shared = {"model_name_or_path": "bert-base-cased", "per_device_train_batch_size": 32, "max_seq_length": 128}
    config = hf(tmp_path, {**shared, "task_name": "mrpc"}).config
    [source] = config.data.train
    assert (source.path, source.format, source.name) == ("nyu-mll/glue", "hub", "mrpc")
    assert source.columns == {"text": "sentence1", "text_pair": "sentence2"}
    assert config.data.eval[0].split == "validation"
    assert hf(tmp_path, {**shared, "task_name": "stsb"}).config.task.problem == "regression"
    assert hf(tmp_path, {**shared, "task_name": "mnli"}).config.data.eval[0].split == "validation_matched"
    tagged = {**shared, "task_name": "ner", "train_file": "a.json", "text_column_name": "tokens"}
    config = hf(tmp_path, tagged).config
    assert (config.task.name, config.data.train[0].columns) == ("token_classification", {"words": "tokens"})


def test_run_mlm_hides_its_share_of_joined_texts_or_of_lines(tmp_path: Path):
    given = {"model_name_or_path": "bert-base-cased", "train_file": "a.txt", "mlm_probability": 0.2}
    task = hf(tmp_path, {**given, "max_seq_length": 128}).config.task
    assert (task.name, task.mask_ratio, task.max_length, task.join_texts) == ("masked_lm", 0.2, 128, True)
    assert not hf(tmp_path, {**given, "line_by_line": True}).config.task.join_texts


def test_run_swag_reads_four_endings_which_a_user_says_it_is_for(tmp_path: Path):
    given = {"model_name_or_path": "bert-base-cased", "train_file": "a.csv", "max_seq_length": 80}
    config = hf(tmp_path, given, task="multiple_choice").config
    endings = ("ending0", "ending1", "ending2", "ending3")
    assert (config.task.name, config.task.max_length) == ("multiple_choice", 80)
    assert config.data.train[0].columns == {"context": "sent1", "question": "sent2", "choices": endings}


def test_an_optimizer_or_schedule_that_is_not_to_be_had_is_told(tmp_path: Path):
    done = hf(tmp_path, {**REVIEWS, "optim": "galore_adamw", "lr_scheduler_type": "constant", "warmup_steps": 10})
    assert (done.config.optimizer.name, done.config.schedule.name) == ("adamw", "constant")
    assert done.config.schedule.warmup_steps == 0
    assert "optim: galore_adamw is not among ftscale's optimizers" in done.said
    assert "warmup_steps: the schedule constant has no warm-up" in done.said
    sgd = hf(tmp_path, {**REVIEWS, "optim": "sgd"}).config.optimizer
    assert (sgd.name, sgd.momentum, sgd.betas) == ("sgd", 0.0, None)


def test_names_of_optimizers_and_schedules_are_those_of_ftscale():
    assert set(trainer.OPTIMIZERS.values()) <= set(OPTIMIZERS)
    assert OTHER_NAMES.items() <= trainer.OPTIMIZERS.items()
    assert set(trainer.SCHEDULES) <= {kind.value for kind in SchedulerType}


def test_defaults_are_those_of_transformers(tmp_path: Path):
    arguments = TrainingArguments(output_dir=str(tmp_path), use_cpu=True).to_dict()
    assert {name: arguments[name] for name in trainer.DEFAULTS} == trainer.DEFAULTS


@pytest.mark.parametrize(
    ("values", "said"),
    [
        (
            {"per_device_train_batch_size": 8},
            "does not tell the task, which TrainingArguments do not name; give --task",
        ),
        ({**REVIEWS, "learning_rate": "fast"}, "learning_rate = 'fast' of training_args.json must be a number"),
        ({**REVIEWS, "learning_rate": -1}, "optimizer.lr = -1 must be greater than 0"),
        ({**REVIEWS, "fp16": "perhaps"}, "fp16 = 'perhaps' of training_args.json must be true or false"),
    ],
)
def test_what_no_run_can_have_is_refused(tmp_path: Path, values: dict[str, Any], said: str):
    with pytest.raises(UserError, match=said):
        hf(tmp_path, values)
