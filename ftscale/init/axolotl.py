"""Axolotl's YAML."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from ftscale.base.errors import UserError
from ftscale.init import trainer
from ftscale.init.draft import FILL_IN, Draft, Given, refuse, words
from ftscale.init.trl import put_attention
from ftscale.init.zero_file import put_strategy

NAME = "Axolotl"
KEYS = words(
    "base_model micro_batch_size sequence_len sample_packing val_set_size num_epochs lora_target_linear "
    "pad_to_sequence_len dataset_prepared_path train_on_inputs flash_attention evals_per_epoch saves_per_epoch "
    "adapter datasets special_tokens strict wandb_project xformers_attention base_model_config lr_scheduler "
    "optimizer"
)
NAMES = {  # TrainingArguments' name: Axolotl's
    "per_device_train_batch_size": "micro_batch_size",
    "per_device_eval_batch_size": "eval_batch_size",
    "num_train_epochs": "num_epochs",
    "lr_scheduler_type": "lr_scheduler",
    "optim": "optimizer",
    "model_name_or_path": "base_model",
}
DEFAULTS: dict[str, Any] = {
    "per_device_train_batch_size": 1,
    "gradient_accumulation_steps": 1,
    "num_train_epochs": 1.0,
    "lr_scheduler_type": "cosine",
    "optim": "adamw_torch_fused",
    "weight_decay": 0.0,
    "max_grad_norm": 1.0,
    "bf16": "auto",
    "warmup_ratio": 0.03,
    "save_strategy": "epoch",
    "save_total_limit": 4,
    "output_dir": "./model-out",
    "sequence_len": 512,
    "lora_dropout": 0.0,
}

METHODS = {
    "rl": "preference or reinforcement training",
    "reward_model": "reward modelling",
    "process_reward_model": "reward modelling",
}
TEMPLATES = {"chatml": "chatml", "llama3": "llama3", "alpaca": "alpaca"}
CHATS = ("chat_template", "sharegpt")
TEXTS = ("completion", "pretrain")

LACKS = {
    "rows are padded to the longest of their micro-batch, or laid end to end": (
        *("pad_to_sequence_len", "eval_sample_packing", "sample_packing_group_size", "sample_packing_bin_size"),
        *("batch_flattening", "multipack_real_batches", "sample_packing_sequentially", "pad_to_multiple_of"),
    ),
    "tokens are not added; mend the tokenizer's folder": ("special_tokens", "tokens", "added_tokens_overrides"),
    "training goes on from a checkpoint alone; merge the adapter into the model first": ("lora_model_dir",),
    "ftscale train --resume goes on from the newest complete checkpoint": ("auto_resume_from_checkpoints",),
    "the model runs by transformers' own code": (
        *("flash_attn_cross_entropy", "flash_attn_rms_norm", "flash_attn_fuse_qkv", "flash_attn_fuse_mlp"),
        *("lora_mlp_kernel", "lora_qkv_kernel", "lora_o_kernel", "unsloth_cross_entropy_loss", "s2_attention"),
        *("unsloth_lora_mlp", "unsloth_lora_qkv", "unsloth_lora_o", "unsloth_rms_norm", "unsloth_rope", "plugins"),
        *("liger_rope", "liger_rms_norm", "liger_glu_activation", "liger_layer_norm", "cut_cross_entropy"),
        *("liger_fused_linear_cross_entropy", "liger_cross_entropy", "experimental_skip_move_to_device"),
    ),
    "see report, which says what trackers get": ("wandb_watch", "wandb_log_model", "comet_project_name"),
    "a run's id there is made of its run folder's": ("wandb_run_id",),
    "a loss that is out of line is seen by guard.spike_z, in standard deviations": (
        *("loss_watchdog_threshold", "loss_watchdog_patience"),
    ),
    "task.generate writes texts in evaluation": (
        *("eval_table_size", "eval_max_new_tokens", "eval_table_max_new_tokens", "do_causal_lm_eval"),
        *("eval_causal_lm_metrics", "do_bench_eval"),
    ),
    "see trainable.patterns, which trains weights beside a head or blocks": ("unfrozen_parameters",),
    "one learning rate, and head_lr of a new head": (
        *("lr_groups", "embedding_lr", "embedding_lr_scale", "loraplus_lr_ratio", "lr_quadratic_warmup"),
    ),
    "no such adapter training": (
        "relora",
        "relora_steps",
        "peft_layer_replication",
        "loftq_config",
        "qat",
        "quantization",
    ),
    "the base is quantised when it is loaded, by bitsandbytes": (
        "gptq",
        "peft",
        "bnb_config_kwargs",
        "bnb_4bit_quant_type",
    ),
    "sequences are not split over devices": (
        *("sequence_parallel_degree", "context_parallel_size", "tensor_parallel_size", "ring_attn_func"),
    ),
    "exact duplicates are counted by ftscale check": ("dataset_exact_deduplication",),
    "shards are drawn by distributed.strategy": ("device_map", "max_memory", "gpu_memory_limit", "fsdp_version"),
    "a template's own words are in the template": ("default_system_message", "eot_tokens"),
    "streams are shuffled by data.shuffle_buffer": ("curriculum_sampling", "shuffle_merged_datasets"),
    "model.overrides changes fields of the model's config": ("overrides_of_model_config", "rope_scaling", "use_pose"),
    "fp8 is not trained in": ("fp8",),
    "recomputed activations stay on the device": ("activation_offloading",),
}
TRACKED = {
    "report.project": ("mlflow_experiment_name", "wandb_project"),
    "report.name": ("mlflow_run_name", "wandb_name"),
}
"""Our settings of trackers, and the keys for them; the last one counts."""
TRACKER_OPTIONS = {
    "wandb": {"entity": "wandb_entity", "mode": "wandb_mode"},
    "mlflow": {"tracking_uri": "mlflow_tracking_uri"},
}
NO_MATTER = words(
    "strict model_type tokenizer_type is_llama_derived_model is_mistral_derived_model is_falcon_derived_model "
    "is_qwen_derived_model tokenizer_use_fast base_model_config base_model_ignore_patterns dataset_keep_in_memory "
    "shuffle_merged_datasets lora_fan_in_fan_out gc_steps low_cpu_mem_usage lora_on_cpu float16 float32 "
    "world_size device ddp hf_use_auth_token push_dataset_to_hub preprocess_iterable chat_template_jinja "
    "profiler_steps trust_remote_code_dataset skip_prepare_dataset dataset_shard_num "
    "dataset_shard_idx resize_token_embeddings_to_32x loraplus_lr_embedding qlora_sharded_model_loading "
    "torchdistx_path tokenizer_legacy"
)


def translate(draft: Draft, *, folder: Path, task: str | None) -> None:
    """Fill the draft. Raises UserError for a method that ftscale does not have."""
    for key, method in METHODS.items():
        given = draft.ask(key)
        if given is not None and given.value is not False:
            raise refuse(draft, method, f"{key}: {given.value}")
    draft.put("task.name", "causal_lm", "Axolotl trains causal language models")
    draft.copy("sequence_len", "task.max_length", draft.whole)
    _model(draft)
    types = _data(draft)
    _chats(draft, types)
    packed = draft.asked("sample_packing") and draft.value("task.join_texts") is not True
    _per_epoch(draft)
    _batch_size(draft)
    _trackers(draft)
    if draft.ask("learning_rate") is None:
        raise UserError(f"learning_rate is missing in {draft.file}, and Axolotl has no default of it; name it there.")
    _checkpointing(draft)
    if draft.asked("fp16"):
        draft.defaults = {**draft.defaults, "bf16": None}
    if draft.asked("bfloat16") and draft.values.get("bf16") is None:
        draft.put("train.precision", "bf16", "bfloat16")
    trainer.put_training(draft, packed_length=draft.value("task.max_length") if packed else None)
    minimum = draft.ask("cosine_min_lr_ratio")
    if minimum is not None and draft.value("schedule.name") == "cosine":
        draft.put("schedule.name", "cosine_with_min_lr", minimum.said)
        draft.put("schedule.options", {"min_lr_rate": draft.number(minimum)}, minimum.said)
    draft.lack("cosine falls to the end of the run", "cosine_constant_lr_ratio")
    put_strategy(draft, folder=folder)
    for why, keys in LACKS.items():
        draft.lack(why, *keys)
    draft.ignore(*NO_MATTER)


def _model(draft: Draft) -> None:
    given = draft.ask("model_name_or_path")
    if given is None:
        raise UserError(f"base_model is missing in {draft.file}; name the model there.")
    draft.put("model.name", draft.text(given), given.said)
    revision, tokenizer = draft.ask("revision_of_model"), draft.ask("tokenizer_config")
    if revision is not None:
        draft.put("model.revision", draft.text(revision), revision.said)
    if tokenizer is not None and tokenizer.value != given.value:
        draft.put("model.processor", draft.text(tokenizer), tokenizer.said)
    if draft.asked("trust_remote_code"):
        draft.put("model.trust_remote_code", True, "trust_remote_code")
    _attention(draft)
    adapter = draft.ask("adapter")
    name = "" if adapter is None else str(adapter.value).lower()
    four, eight = draft.ask("load_in_4bit"), draft.ask("load_in_8bit")
    trainer.put_quantization(draft, four=four, eight=eight)
    if name == "qlora" and draft.value("model.quantization") is None:
        draft.put("model.quantization", "nf4", "adapter: qlora")
    if name in ("lora", "qlora"):
        _lora(draft)
    elif name:
        raise UserError(
            f"adapter = {name} of {draft.file} has no counterpart that is read from Axolotl's keys; take lora, or set "
            "adapter.method in run.yaml to a method of peft."
        )
    else:
        draft.lack("without adapter: lora, Axolotl trains all weights", *_LORA.values(), "lora_target_linear")


_LORA = {
    "r": "lora_r",
    "lora_alpha": "lora_alpha",
    "lora_dropout": "lora_dropout",
    "target_modules": "lora_target_modules",
    "target_parameters": "lora_target_parameters",
    "modules_to_save": "lora_modules_to_save",
    "use_rslora": "peft_use_rslora",
    "use_dora": "peft_use_dora",
    "init_lora_weights": "peft_init_lora_weights",
    "layers_to_transform": "peft_layers_to_transform",
}


def _lora(draft: Draft) -> None:
    trainer.put_lora(draft, _LORA)
    if draft.asked("lora_target_linear"):
        draft.put("adapter.target_modules", "all-linear", "lora_target_linear")


def _attention(draft: Draft) -> None:
    named = draft.ask("attn_implementation")
    if named is not None:
        put_attention(draft, str(named.value), named.said)
    for key, name in (
        ("flash_attention", "flash_attention_2"),
        ("sdp_attention", "sdpa"),
        ("eager_attention", "eager"),
        ("flex_attention", "flex_attention"),
        ("xformers_attention", "sdpa"),
    ):
        if draft.asked(key):
            put_attention(draft, name, key)


def _data(draft: Draft) -> set[str]:
    """Set the sources; returns the kinds of rows."""
    types: set[str] = set()
    for part, key in (("train", "datasets"), ("eval", "test_datasets")):
        given = draft.ask(key)
        if given is None:
            continue
        sources = [_source(draft, entry, types) for entry in draft.sections(given)]
        draft.put(f"data.{part}", sources if len(sources) > 1 else sources[0], given.said)
    stream = draft.ask("pretraining_dataset")
    if stream is not None:
        entries = draft.sections(stream)
        sources = []
        for entry in entries:
            column = entry.get("text_column")
            source = _place(draft, {"split": "train", **entry})
            sources.append(source | ({"columns": {"text": str(column)}} if column and column != "text" else {}))
        draft.put("data.train", sources if len(sources) > 1 else sources[0], stream.said)
        draft.put("data.streaming", True, stream.said)
        types.add("pretrain")
    if draft.value("data.train") is None:
        draft.put("data.train", FILL_IN, "to be filled in: the file names no datasets")
        draft.open.append("data.train is to be filled in: a file, a folder or a hub data set.")
    trainer.put_held_out(draft, "val_set_size")
    draft.copy("dataset_prepared_path", "data.cache_dir", draft.text)
    workers = draft.ask("dataset_processes", "dataset_num_proc")
    if workers is not None:
        draft.put("data.prepare_workers", draft.whole(workers), workers.said)
    return types


def _source(draft: Draft, entry: dict[str, Any], types: set[str]) -> dict[str, Any]:
    """One data set: where it lies, and what its columns are called."""
    source = _place(draft, entry)
    kind = entry.get("type")
    if isinstance(kind, dict):
        types.add("alpaca")
        columns = _own_columns(draft, kind, str(entry.get("path")))
    else:
        name = str(kind or "").split(":")[0].split(".")[0]
        types.add(name or "completion")
        columns = _columns(draft, entry, name)
    if columns:
        source["columns"] = columns
    return source


def _place(draft: Draft, entry: dict[str, Any]) -> dict[str, Any]:
    """Where a data set lies: a file, a folder, or on the hub."""
    path, files = str(entry.get("path") or FILL_IN), entry.get("data_files")
    if files:
        first = [str(file) for file in (files if isinstance(files, list) else [files])]
        if len(first) > 1:
            draft.open.append(f"data: {path} names several data_files, of which the first is taken; add the others.")
        file = first[0]
        folder = Path(path)
        local = path in ("json", "csv", "parquet", "text") or not folder.suffix
        return {"path": file if local and path in ("json", "csv", "parquet", "text") else str(folder / file)}
    source: dict[str, Any] = {"path": path}
    suffixes = (".json", ".jsonl", ".csv", ".parquet", ".txt", ".tsv")
    if not (entry.get("ds_type") or path.startswith((".", "/", "~")) or "://" in path or path.endswith(suffixes)):
        source["format"] = "hub"
        source |= {key: str(entry[key]) for key in ("name", "split") if entry.get(key)}
    return source


def _columns(draft: Draft, entry: dict[str, Any], kind: str) -> dict[str, str]:
    if kind in CHATS:
        mapping = entry.get("message_property_mappings") or {}
        role = entry.get("message_field_role") or (mapping.get("role") if isinstance(mapping, dict) else None)
        field = str(entry.get("field_messages") or ("conversations" if kind == "sharegpt" else "messages"))
        ours = "conversations" if kind == "sharegpt" or role == "from" else "messages"
        columns = {} if field == ours else {ours: field}
        tools = entry.get("field_tools")
        return columns | ({"tools": str(tools)} if tools and tools != "tools" else {})
    if kind in TEXTS:
        field = str(entry.get("field") or "text")
        return {} if field == "text" else {"text": field}
    if kind in ("alpaca", ""):
        return {}
    draft.open.append(
        f"data: rows of the type {kind} are not known; ftscale reads messages, conversations, instruction and output, "
        "prompt and completion, or text: name the columns."
    )
    return {}


def _own_columns(draft: Draft, kind: dict[str, Any], path: str) -> dict[str, str]:
    """A prompt of the user's own: which columns it reads."""
    roles = {"instruction": "field_instruction", "input": "field_input", "output": "field_output"}
    columns = {ours: str(kind[key]) for ours, key in roles.items() if kind.get(key) and kind[key] != ours}
    if kind.get("format") or kind.get("system_format") or kind.get("field_system"):
        draft.open.append(
            f"data: the prompt format of {path} is not taken over; task.chat_template says how instruction and input "
            "are written (alpaca, or a .jinja file)."
        )
    return columns


def _chats(draft: Draft, types: set[str]) -> None:
    """Set which tokens are learned and how a chat is written."""
    if types and types <= set(TEXTS):
        if draft.asked("sample_packing") or "pretrain" in types:
            draft.put("task.join_texts", True, "plain texts are packed end to end")
        return
    if draft.asked("train_on_inputs"):
        draft.put("task.targets", "all", "train_on_inputs")
    entries = draft.values.get("datasets")
    entries = [entry for entry in entries if isinstance(entry, dict)] if isinstance(entries, list) else []
    given, jinja = draft.ask("chat_template"), draft.ask("chat_template_jinja")
    if given is None:
        named = [str(entry["chat_template"]) for entry in entries if entry.get("chat_template")]
        given = Given(named[0], "datasets: chat_template") if named else None
    name = "" if given is None else str(given.value).removeprefix("tokenizer_default_fallback_")
    if jinja is not None and name in ("", "jinja"):
        draft.put("task.chat_template", draft.text(jinja), jinja.said)
    elif name in TEMPLATES and given is not None:
        draft.put("task.chat_template", TEMPLATES[name], f"{given.said}: {name}")
    elif "alpaca" in types and not types & set(CHATS):
        draft.put("task.chat_template", "alpaca", "datasets: type: alpaca")
    elif given is not None and name != "tokenizer_default":
        draft.put("task.chat_template", None, f"{given.said}: {name}; null = the one that the tokenizer brings along")
        draft.open.append(
            f"task.chat_template: {name} of Axolotl is not one of ftscale's (chatml, llama2, llama3, alpaca); the "
            "tokenizer's own is taken, or name a .jinja file."
        )
    if any(entry.get("roles_to_train") not in (None, ["assistant"], ["gpt"]) for entry in entries):
        draft.open.append("task.targets: roles_to_train of Axolotl is not taken over; it is assistant, last or all.")
    if any(entry.get("train_on_eos") not in (None, "turn") for entry in entries):
        draft.open.append(
            "task.targets: train_on_eos of Axolotl is not taken over; the end of a learned turn is learned."
        )


def _per_epoch(draft: Draft) -> None:
    """Turn evaluations and saves an epoch into strategies that TrainingArguments have."""
    for key, what in (("evals_per_epoch", "eval"), ("saves_per_epoch", "save")):
        given = draft.ask(key)
        if given is None or draft.number(given) <= 0:
            continue
        times = draft.number(given)
        if draft.values.get(f"{what}_steps"):
            continue
        draft.names = {**draft.names, f"{what}_strategy": key}
        draft.values = {**draft.values, key: "epoch"}
        if times != 1:
            setting = "evaluation.every" if what == "eval" else "checkpoint.every"
            draft.open.append(
                f"{setting} = 0 is once an epoch, where {key} = {times} is asked for; set it to the steps of an epoch, "
                f"which ftscale check counts, divided by {times}."
            )
    if draft.values.get("eval_steps"):
        draft.defaults = {**draft.defaults, "eval_strategy": "steps", "eval_on_start": True}
    elif draft.values.get("eval_strategy"):
        draft.defaults = {**draft.defaults, "eval_on_start": True}
    if draft.values.get("save_steps"):
        draft.defaults = {**draft.defaults, "save_strategy": "steps"}


def _batch_size(draft: Draft) -> None:
    """Take `batch_size`, that of a process with accumulation, apart."""
    given = draft.ask("batch_size")
    if given is None or draft.values.get("gradient_accumulation_steps"):
        return
    micro = draft.ask("per_device_train_batch_size")
    assert micro is not None
    times = max(1, draft.whole(given) // draft.whole(micro))
    draft.names = {**draft.names, "gradient_accumulation_steps": "batch_size / micro_batch_size"}
    draft.values = {**draft.values, "batch_size / micro_batch_size": times}


def _trackers(draft: Draft) -> None:
    names: dict[str, tuple[str, ...]] = {
        "wandb": ("wandb_project", "use_wandb"),
        "mlflow": ("mlflow_tracking_uri", "use_mlflow"),
        "tensorboard": ("use_tensorboard",),
        "comet_ml": ("use_comet",),
    }
    found = {name: key for name, keys in names.items() for key in keys if draft.ask(key) and draft.values[key]}
    draft.ignore(*(key for keys in TRACKED.values() for key in keys))
    draft.ignore(*(key for own in TRACKER_OPTIONS.values() for key in own.values()))
    if not found:
        return
    draft.put("report.to", list(found), ", ".join(found.values()))
    for setting, keys in TRACKED.items():
        for key in keys:
            given = draft.ask(key)
            if given is not None and key.partition("_")[0] in found:
                draft.put(setting, draft.text(given), given.said)
    for name, own in TRACKER_OPTIONS.items():
        if name in found and (asked := {option: key for option, key in own.items() if draft.ask(key)}):
            options = {option: draft.values[key] for option, key in asked.items()}
            draft.put(f"report.options.{name}", options, ", ".join(asked.values()))


def _checkpointing(draft: Draft) -> None:
    """Have gradient_checkpointing be a yes or no: offload and unsloth are ways of it."""
    given = draft.ask("gradient_checkpointing")
    if given is not None and re.search("offload|unsloth", str(given.value), re.IGNORECASE):
        draft.open.append(f"train.activation_checkpointing recomputes activations; {given.value} is not to be had.")
        draft.values = {**draft.values, "gradient_checkpointing": True}
