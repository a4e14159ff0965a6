"""What transformers' TrainingArguments mean in our settings; TRL, LLaMA-Factory and Axolotl build upon them."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from ftscale.base.errors import UserError, counted
from ftscale.init.draft import FILL_IN, Draft, Given, words

DEFAULTS: dict[str, Any] = {  # transformers 5.23; those that the course of a training depends on
    "per_device_train_batch_size": 8,
    "gradient_accumulation_steps": 1,
    "learning_rate": 5e-5,
    "lr_scheduler_type": "linear",
    "weight_decay": 0.0,
    "max_grad_norm": 1.0,
    "num_train_epochs": 3.0,
    "optim": "adamw_torch_fused",
    "eval_strategy": "no",
    "save_strategy": "steps",
    "save_steps": 500,
}

OPTIMIZERS = {  # TrainingArguments.optim: ours
    "adamw_hf": "adamw",
    "adamw_torch": "adamw",
    "adamw_torch_fused": "adamw",
    "adamw_torch_xla": "adamw",
    "adamw_torch_npu_fused": "adamw",
    "adamw_apex_fused": "adamw",
    "adamw_torch_8bit": "adamw_8bit",
    "adamw_bnb_8bit": "adamw_8bit",
    "adamw_8bit": "adamw_8bit",
    "paged_adamw_32bit": "paged_adamw",
    "paged_adamw": "paged_adamw",
    "paged_adamw_8bit": "paged_adamw_8bit",
    "adafactor": "adafactor",
    "sgd": "sgd",
    "lion": "lion",
    "lion_32bit": "lion",
    "lion_8bit": "lion_8bit",
    "paged_lion_32bit": "paged_lion",
    "paged_lion": "paged_lion",
    "paged_lion_8bit": "paged_lion_8bit",
    "ademamix": "ademamix",
    "ademamix_8bit": "ademamix_8bit",
    "paged_ademamix_32bit": "paged_ademamix",
    "paged_ademamix_8bit": "paged_ademamix_8bit",
}

SCHEDULES = words(  # transformers' SchedulerType, which ftscale takes by the same names
    "linear cosine cosine_with_restarts polynomial constant constant_with_warmup inverse_sqrt "
    "reduce_lr_on_plateau cosine_with_min_lr cosine_warmup_with_min_lr warmup_stable_decay greedy"
)
WITHOUT_WARMUP = ("constant", "reduce_lr_on_plateau", "greedy")

METRICS = {  # a metric of HF's examples: ours, by task where they differ
    "loss": "loss",
    "accuracy": "accuracy",
    "f1": {"text_classification": "f1_macro", "image_classification": "f1_macro", "token_classification": "f1"},
    "matthews_correlation": "mcc",
    "pearson": "pearson",
    "pearsonr": "pearson",
    "spearmanr": "spearman",
    "mse": "mse",
    "mae": "mae",
    "perplexity": "perplexity",
    "bleu": "bleu",
    "rouge1": "rouge1",
    "rouge2": "rouge2",
    "rougeL": "rougeL",
}

LACKS: dict[str, tuple[str, ...]] = {  # why: keys
    "ftscale sends nothing to a hub; upload the run folder's model/": (
        *("push_to_hub", "hub_model_id", "hub_private_repo", "hub_always_push", "hub_revision"),
        *("push_to_hub_model_id", "push_to_hub_organization"),
    ),
    "secrets do not belong into a configuration: set HF_TOKEN": ("hub_token", "push_to_hub_token", "token", "hf_token"),
    "ftscale train --resume goes on from the newest complete checkpoint": ("resume_from_checkpoint",),
    "ftscale train --overwrite replaces a run": ("overwrite_output_dir",),
    "the loss is that of the targets, without smoothing": ("label_smoothing_factor",),
    "no noise is added to embeddings": ("neftune_noise_alpha",),
    "models are not compiled": ("torch_compile", "torch_compile_backend", "torch_compile_mode"),
    "matrix products are as torch has them; set torch's own variable": ("tf32",),
    "ftscale runs the head only where a label stands, which is what such kernels save": (
        *("use_liger_kernel", "liger_kernel_config", "use_liger"),
    ),
    "a micro-batch that does not fit is not retried; ftscale plan says what fits": ("auto_find_batch_size",),
    "a checkpoint always holds what a resume needs": ("save_only_model",),
    "rows of the last, smaller batch are trained on, too": ("dataloader_drop_last",),
    "one seed for all": ("data_seed", "full_determinism"),
    "settings of a launcher: use accelerate launch, torchrun or srun": (
        *("accelerator_config", "parallelism_config", "ddp_backend", "use_cpu", "no_cuda", "tpu_num_cores"),
    ),
    "the optimizer has no further arguments": ("optim_args", "optim_target_modules"),
    "recomputed in the mode that is not reentrant": (
        "gradient_checkpointing_kwargs",
        "activation_checkpointing_kwargs",
    ),
    "evaluation begins with the first that is due": ("eval_delay",),
    "see report.project and report.options, which trackers get": ("project", "trackio_space_id"),
    "evaluation is in the precision of training": ("bf16_full_eval", "fp16_full_eval"),
    "ftscale evaluate and ftscale predict do that with a finished run": ("do_predict", "do_test"),
}
"""Keys that ask for what ftscale does not do; told only where a file switches them on."""

NO_MATTER = words(  # nothing that is trained depends on them, or ftscale does so by itself
    "do_train do_eval local_rank log_level log_level_replica log_on_each_node logging_dir logging_first_step "
    "logging_nan_inf_filter logging_strategy disable_tqdm dataloader_pin_memory dataloader_persistent_workers "
    "dataloader_prefetch_factor dataloader_in_order dataloader_multiprocessing_context remove_unused_columns "
    "label_names length_column_name ddp_find_unused_parameters ddp_bucket_cap_mb ddp_broadcast_buffers "
    "ddp_static_graph debug skip_memory_metrics hub_strategy save_safetensors save_on_each_node "
    "eval_accumulation_steps eval_do_concat_batches eval_use_gather_object prediction_loss_only "
    "include_for_metrics include_inputs_for_metrics batch_eval_metrics include_num_input_tokens_seen "
    "include_tokens_per_second average_tokens_across_devices ignore_data_skip "
    "restore_callback_states_from_checkpoint enable_jit_checkpoint torch_empty_cache_steps use_cache past_index "
    "fp16_backend fp16_opt_level half_precision_backend use_ipex jit_mode_eval use_mps_device ray_scope "
    "split_batches dispatch_batches mp_parameters sharded_ddp fsdp_min_num_params "
    "fsdp_transformer_layer_cls_to_wrap torchdynamo trackio_bucket_id trackio_static_space_id "
    "per_gpu_train_batch_size per_gpu_eval_batch_size _n_gpu n_gpu"
)


def put_training(draft: Draft, *, packed_length: int | None = None) -> None:
    """Set what TrainingArguments say of batch, optimizer, length, precision, evaluation and checkpoints.

    The task and `data.eval`, `data.eval_ratio` are set before. `packed_length`: tokens of a row that the other tool
    packs several samples into; None = a row is a sample.
    """
    draft.copy("output_dir", "run_folder", draft.text)
    draft.copy("seed", "seed", draft.whole)
    _batch(draft, packed_length)
    _length(draft)
    _optimizer(draft)
    _schedule(draft)
    _precision(draft)
    if draft.asked("gradient_checkpointing", "activation_checkpointing"):
        given = draft.ask("gradient_checkpointing", "activation_checkpointing")
        assert given is not None
        draft.put("train.activation_checkpointing", True, given.said)
    _evaluation(draft)
    _checkpoints(draft)
    _logging(draft)
    draft.copy("dataloader_num_workers", "data.num_workers", draft.whole)
    draft.copy("ddp_timeout", "distributed.timeout_s", draft.number)
    for why, keys in LACKS.items():
        draft.lack(why, *keys)
    draft.ignore(*NO_MATTER)


def _batch(draft: Draft, packed_length: int | None) -> None:
    """Set the global batch: that of a process, times accumulation, times processes."""
    per_device, steps = draft.ask("per_device_train_batch_size"), draft.ask("gradient_accumulation_steps")
    assert per_device is not None
    assert steps is not None
    size, times, processes = draft.whole(per_device), draft.whole(steps), draft.processes or 1
    why = f"{per_device.said} {size} x {steps.said} {times} x {counted(processes, 'process')}"
    draft.put("batch.global_size", size * times * processes, why + ("" if draft.processes else " (assumed)"))
    if draft.processes is None:
        draft.open.append(
            f"batch.global_size = {size * times} takes it that {draft.tool} ran on one process, which its file does "
            "not say; else give --processes N, or multiply it."
        )
    if packed_length is None:
        draft.put("batch.micro_size", size, per_device.said)
    else:
        draft.put(
            "batch.micro_tokens", size * packed_length, f"{per_device.said} {size} rows of {packed_length} tokens"
        )
        draft.open.append(
            f"batch.global_size = {size * times * processes} counts samples, where {draft.tool} counted packed rows of "
            f"up to {packed_length} tokens; multiply it by the samples that fit one, {packed_length} / the mean length "
            "that ftscale check shows."
        )
    if draft.asked("group_by_length") or _says(draft, "train_sampling_strategy", "group_by_length"):
        said = "group_by_length" if "group_by_length" in draft.values else "train_sampling_strategy"
        draft.put("data.group_by_length", True, said)
    if _says(draft, "train_sampling_strategy", "sequential"):
        draft.put("data.shuffle", False, "train_sampling_strategy")


def _says(draft: Draft, key: str, word: str) -> bool:
    given = draft.ask(key)
    return given is not None and str(given.value).lower() == word


def _length(draft: Draft) -> None:
    """Set steps, which go before epochs."""
    steps, epochs = draft.ask("max_steps"), draft.ask("num_train_epochs")
    if steps is not None and draft.whole(steps) > 0:
        draft.put("train.max_steps", draft.whole(steps), f"{steps.said}, which goes before epochs")
    elif epochs is not None:
        draft.put("train.epochs", draft.number(epochs), epochs.said)


def _optimizer(draft: Draft) -> None:
    given = draft.ask("optim")
    name = str(given.value).lower() if given is not None else "adamw_torch"
    ours = OPTIMIZERS.get(name)
    if given is not None and ours is not None:
        draft.put("optimizer.name", ours, f"{given.said}: {name}")
    elif given is not None:
        draft.lacks[given.said] = f"{name} is not among ftscale's optimizers; adamw is taken"
        draft.put("optimizer.name", "adamw", f"{given.said} = {name} is not to be had")
    draft.copy("learning_rate", "optimizer.lr", draft.number)
    draft.copy("weight_decay", "optimizer.weight_decay", draft.number)
    draft.copy("max_grad_norm", "train.max_grad_norm", draft.number)
    if ours == "sgd":
        draft.put("optimizer.momentum", 0.0, "torch's SGD has none unless it is told")
    _betas(draft, ours or "adamw")


def _betas(draft: Draft, name: str) -> None:
    """Set Adam's coefficients, where they are given and the optimizer has them."""
    first, second, eps = draft.ask("adam_beta1"), draft.ask("adam_beta2"), draft.ask("adam_epsilon")
    if name in ("sgd", "adafactor") or name.startswith(("ademamix", "paged_ademamix")):
        return
    if first is not None or second is not None:
        values = [0.9 if first is None else draft.number(first), 0.999 if second is None else draft.number(second)]
        said = " and ".join(given.said for given in (first, second) if given is not None)
        if values != [0.9, 0.999] or "lion" in name:
            draft.put("optimizer.betas", values, said)
    if eps is not None and "lion" not in name and draft.number(eps) != 1e-8:
        draft.put("optimizer.eps", draft.number(eps), eps.said)


def _schedule(draft: Draft) -> None:
    given = draft.ask("lr_scheduler_type")
    name = str(given.value).lower() if given is not None else "linear"
    if given is not None and name in SCHEDULES:
        draft.put("schedule.name", name, given.said)
    elif given is not None:
        draft.lacks[given.said] = f"ftscale has no schedule {name}; cosine is taken"
        draft.put("schedule.name", "cosine", f"{given.said} = {name} is not to be had")
    steps, ratio = draft.ask("warmup_steps"), draft.ask("warmup_ratio")
    if steps is not None and 0 < draft.number(steps) < 1:  # transformers 5 takes a share there
        ratio, steps = steps, None
    if steps is not None and draft.whole(steps) > 0:
        setting, value, said = "schedule.warmup_steps", draft.number(steps), steps.said
    elif ratio is not None and draft.number(ratio) > 0:
        setting, value, said = "schedule.warmup_ratio", draft.number(ratio), ratio.said
    else:
        setting, value, said = "", 0, ""
    if setting and name in WITHOUT_WARMUP:
        draft.lacks[said] = f"the schedule {name} has no warm-up, and {draft.tool}'s ignores it; take it as it is, or "
        draft.lacks[said] += "schedule.name: constant_with_warmup"
    elif setting:
        draft.put(setting, value, said)
    if (options := draft.ask("lr_scheduler_kwargs")) is not None and options.value not in ({}, "", "{}"):
        if isinstance(options.value, dict):
            draft.put("schedule.options", options.value, options.said)
        else:
            draft.lacks[options.said] = "it must be a section of keys and values to be taken over"


def _precision(draft: Draft) -> None:
    for key, name in (("bf16", "bf16"), ("fp16", "fp16")):
        given = draft.ask(key)
        if given is None:
            continue
        if str(given.value).lower() == "auto":
            draft.put("train.precision", "bf16", f"{given.said}: auto, which is bf16 where the GPU has it")
            return
        if str(given.value).lower() == "full" or draft.flag(given):
            draft.put("train.precision", name, given.said)
            return


def _evaluation(draft: Draft) -> None:
    """Set when rows are scored and what follows from it, where there are rows to score."""
    strategy = draft.ask("eval_strategy", "evaluation_strategy")
    steps, name = draft.ask("eval_steps"), "no" if strategy is None else _word(strategy)
    best, metric = draft.ask("load_best_model_at_end"), draft.ask("metric_for_best_model")
    higher, patience = draft.ask("greater_is_better"), draft.ask("early_stopping_patience")
    batch = draft.ask("per_device_eval_batch_size")
    if not (draft.value("data.eval") or draft.value("data.eval_ratio")):
        why = "there are no evaluation rows in this file; set data.eval or data.eval_ratio first"
        draft.lack(why, "eval_strategy", "evaluation_strategy", "eval_steps", "load_best_model_at_end")
        draft.lack(why, "metric_for_best_model", "early_stopping_patience")
        return
    if name == "steps":
        steps = steps or draft.ask("logging_steps")
        _every(draft, "evaluation.every", steps or Given(500, f"default of eval_steps in {draft.tool}"))
    elif name == "epoch":
        assert strategy is not None
        draft.put("evaluation.every", 0, f"{strategy.said}: epoch")
    elif strategy is not None:
        draft.open.append(
            f"the rows of data.eval are scored at the end of each epoch, where {strategy.said} = {name} scores none "
            "while it trains; set evaluation.every to a large number against it."
        )
    keeps = best is not None and draft.flag(best)
    default = f"{draft.tool} ends with the weights of the last step"
    draft.put("evaluation.keep_best", keeps, best.said if best is not None else default)
    if draft.asked("eval_on_start"):
        draft.put("evaluation.before", True, "eval_on_start")
    if batch is not None:
        draft.put("evaluation.micro_size", draft.whole(batch), batch.said)
    if patience is not None and draft.whole(patience) > 0:
        draft.put("evaluation.patience", draft.whole(patience), patience.said)
    if metric is not None:
        _metric(draft, metric, higher)


def _word(given: Given) -> str:
    """Return the word of an option, also of an enum's name (IntervalStrategy.STEPS)."""
    return str(given.value).rpartition(".")[2].lower()


def _metric(draft: Draft, metric: Given, higher: Given | None) -> None:
    theirs = str(metric.value).removeprefix("eval_")
    ours: Any = METRICS.get(theirs)
    if isinstance(ours, dict):
        ours = ours.get(draft.value("task.name"))
    if ours is None:
        why = f"{theirs} is not known to be among the task's metrics; set evaluation.metric"
        draft.lacks[metric.said] = why
        return
    draft.put("evaluation.metric", ours, f"{metric.said}: {theirs}")
    if higher is not None:
        draft.put("evaluation.higher_is_better", draft.flag(higher), higher.said)


def _checkpoints(draft: Draft) -> None:
    strategy, steps = draft.ask("save_strategy"), draft.ask("save_steps")
    name = "steps" if strategy is None else _word(strategy)
    if name == "steps" and steps is not None:
        _every(draft, "checkpoint.every", steps)
    elif name == "epoch" and strategy is not None:
        if draft.value("evaluation.every"):
            draft.lacks[strategy.said] = "checkpoints come at evaluations or every so many steps; see checkpoint.every"
        else:
            draft.put("checkpoint.every", 0, f"{strategy.said}: epoch, when ftscale evaluates")
    elif strategy is not None:
        why = "ftscale saves at each evaluation, so that nothing is lost, and keeps the best"
        draft.lacks[strategy.said] = why
    limit = draft.ask("save_total_limit")
    if limit is not None and draft.whole(limit) > 0:
        draft.put("checkpoint.keep", draft.whole(limit), limit.said)


def _logging(draft: Draft) -> None:
    strategy, steps = draft.ask("logging_strategy"), draft.ask("logging_steps")
    if steps is not None and (strategy is None or _word(strategy) == "steps"):
        _every(draft, "train.log_every", steps)
    report, name = draft.ask("report_to"), draft.ask("run_name")
    if report is None or report.value in ("none", ["none"], [], ""):
        return
    names = [name.lower() for name in draft.names_of(report)]
    if "all" in names:
        draft.lacks[report.said] = "name the trackers: report: [tensorboard, wandb, mlflow, trackio]"
    else:
        draft.put("report.to", names, report.said)
        if name is not None:
            draft.put("report.name", draft.text(name), name.said)


def _every(draft: Draft, setting: str, given: Given) -> None:
    """Set a number of steps; a share below 1 is one of the run, which is known where its steps are."""
    value = draft.number(given)
    if value <= 0:
        draft.lacks[given.said] = f"{value} is no number of steps; {setting} is left as it is"
        return
    if value >= 1:
        draft.put(setting, draft.whole(given), given.said)
        return
    steps = draft.value("train.max_steps")
    if steps:
        draft.put(setting, math.ceil(value * steps), f"{given.said}: {value} of {steps} steps, rounded up")
    else:
        draft.lacks[given.said] = (
            f"{value:.4g} of the run; set {setting} to steps, of which ftscale check counts the run's"
        )


def put_model(draft: Draft, *, missing: str | None) -> None:
    """Set what names the model. `missing`: what is said where the file does not; None = it is refused then.

    Raises UserError for a file without a model that has to name one.
    """
    given = draft.ask("model_name_or_path")
    if given is not None:
        draft.put("model.name", draft.text(given), given.said)
    elif missing is None:
        raise UserError(f"model_name_or_path is missing in {draft.file}; name the model there.")
    else:
        draft.put("model.name", FILL_IN, f"to be filled in: {missing} not name the model")
        draft.open.append("model.name is to be filled in: a hub id or a folder.")
    revision = draft.ask("model_revision")
    if revision is not None and revision.value != "main":
        draft.put("model.revision", draft.text(revision), revision.said)
    if draft.asked("trust_remote_code"):
        draft.put("model.trust_remote_code", True, "trust_remote_code")


def put_held_out(draft: Draft, key: str) -> None:
    """Set the evaluation rows that are held out of the training rows: a share there, or a number of rows."""
    given = draft.ask(key)
    if given is None or (held := draft.number(given)) <= 0 or draft.value("data.eval") is not None:
        return
    if held < 1:
        draft.put("data.eval_ratio", held, given.said)
        return
    draft.lacks[given.said] = f"{held} rows; ftscale holds out a share: set data.eval_ratio"
    draft.put("data.eval_ratio", 0.1, f"{given.said}: a number of rows there; a share that is to be set")


def put_lora(draft: Draft, keys: dict[str, str]) -> None:
    """Set a LoRA adapter. keys: peft's field to the other tool's key, e.g. r to lora_rank."""
    readers: dict[str, Callable[[Given], Any]] = {
        "r": draft.whole,
        "lora_alpha": draft.number,
        "lora_dropout": draft.number,
        "target_modules": lambda given: target_modules(draft, given),
        "modules_to_save": draft.names_of,
        "use_rslora": draft.flag,
        "use_dora": draft.flag,
        "init_lora_weights": lambda given: given.value,
        "layers_to_transform": lambda given: given.value,
        "target_parameters": draft.names_of,
    }
    draft.put("adapter.method", "lora", "a LoRA adapter is asked for")
    for name, key in keys.items():
        given = draft.ask(key)
        if given is None or given.value in ("", [], False):
            continue
        draft.put(f"adapter.{name}", readers[name](given), given.said)


def target_modules(draft: Draft, given: Given) -> list[str] | str:
    """Return the modules that an adapter changes; `all` and its like are peft's all-linear."""
    names = draft.names_of(given)
    if [name.lower().replace("_", "-") for name in names] in (["all"], ["all-linear"]):
        return "all-linear"
    if isinstance(given.value, str) and any(mark in given.value for mark in "*|()\\"):  # a regular expression
        return given.value
    return names


def put_quantization(draft: Draft, *, four: Given | None, eight: Given | None) -> None:
    """Set the quantisation of the base weights. Raises UserError where both 4 and 8 bits are asked for."""
    on = [given for given in (four, eight) if given is not None and draft.flag(given)]
    if len(on) > 1:
        raise UserError(f"{on[0].said} and {on[1].said} of {draft.file} cannot both be true; leave one out there.")
    if on:
        draft.put("model.quantization", "nf4" if on[0] is four else "int8", on[0].said)
