"""LLaMA-Factory's YAML, with the data sets that its dataset_info.json describes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from ftscale.base.errors import UserError
from ftscale.init import trainer
from ftscale.init.draft import FILL_IN, Draft, Given, refuse, words
from ftscale.init.trl import put_attention
from ftscale.init.zero_file import put_strategy

NAME = "LLaMA-Factory"
KEYS = words(
    "stage finetuning_type template cutoff_len lora_rank lora_target dataset_dir val_size quantization_bit "
    "flash_attn neat_packing train_on_prompt mask_history max_samples overwrite_cache plot_loss "
    "adapter_name_or_path pure_bf16 eval_dataset mix_strategy tokenized_path enable_liger_kernel "
    "quantization_method"
)
DEFAULTS: dict[str, Any] = {
    **trainer.DEFAULTS,
    "stage": "sft",
    "finetuning_type": "lora",
    "cutoff_len": 2048,
    "lora_rank": 8,
    "lora_dropout": 0.0,
    "lora_target": "all",
    "dataset_dir": "data",
}

METHODS = {"rm": "reward modelling", "ppo": "PPO", "dpo": "preference training (DPO)", "kto": "KTO"}
TEMPLATES = {  # template: ours, where we have it under a name; others are what the model's tokenizer brings along
    "llama2": "llama2",
    "llama3": "llama3",
    "alpaca": "alpaca",
    "chatml": "chatml",
    "chatml_de": "chatml",
}
OWN_TEMPLATE = words(
    "qwen qwen3 qwen3_nothink mistral gemma gemma2 gemma3 phi phi4 deepseek3 yi glm4 cohere granite3 olmo"
)
ATTENTION = {"disabled": "eager", "sdpa": "sdpa", "fa2": "flash_attention_2", "fa3": "flash_attention_3"}

LACKS = {
    "the loss stands in metrics.jsonl, and trackers draw it": ("plot_loss",),
    "prepared rows are kept by their content and never stale": ("overwrite_cache",),
    "prepared rows lie in data.cache_dir, by their content": ("tokenized_path",),
    "training goes on from a checkpoint alone; merge the adapter into the model first (export)": (
        *("adapter_name_or_path", "adapter_folder", "create_new_adapter"),
    ),
    "ftscale runs the head only where a label stands, which is what such kernels save": ("enable_liger_kernel",),
    "the model runs by transformers' own code": (
        *(
            "use_unsloth",
            "use_unsloth_gc",
            "use_v1_kernels",
            "shift_attn",
            "mixture_of_depths",
            "use_kt",
            "use_hyper_parallel",
        ),
    ),
    "model.overrides changes fields of the model's config, e.g. rope_parameters": ("rope_scaling", "moe_aux_loss_coef"),
    "ftscale has no such optimizer": (
        *("use_galore", "use_apollo", "use_badam", "use_adam_mini", "use_muon", "loraplus_lr_ratio", "use_mca"),
    ),
    "ftscale has no such training": ("use_llama_pro", "use_asft_loss", "use_dft_loss", "use_eaft_loss"),
    "an adapter begins as peft's own, unless adapter.init_lora_weights says otherwise": ("pissa_init", "pissa_convert"),
    "double quantisation is always on": ("double_quantization",),
    "weights are quantised in nf4": ("quantization_type",),
    "tokens are not added": ("add_tokens", "add_special_tokens", "new_special_tokens_config", "resize_vocab"),
    "norms and head are in train.precision": ("upcast_layernorm", "upcast_lmhead_output"),
    "the hub's own folder is used; set HF_HOME": ("cache_dir",),
    "secrets do not belong into a configuration: set HF_TOKEN": ("hf_hub_token", "ms_hub_token", "om_hub_token"),
    "trackers are those of Accelerate": ("use_swanlab", "swanlab_project", "swanlab_run_name", "swanlab_mode"),
    "all sources are read an epoch, by their weight": ("mix_strategy", "interleave_probs"),
    "images, sound and videos in chats are not read": ("media_dir", "image_max_pixels", "video_max_pixels"),
    "ftscale export --merge writes the merged model": ("export_dir", "export_size", "export_legacy_format"),
    "tools are told as the template says": ("tool_format", "default_system", "enable_thinking"),
    "each data set is scored with the others": ("eval_on_each_dataset", "eval_num_beams"),
    "token accuracy is always scored": ("compute_accuracy",),
}
NO_MATTER = words(
    "preprocessing_batch_size ignore_pad_token_for_loss use_fast_tokenizer low_cpu_mem_usage use_reentrant_gc "
    "disable_gradient_checkpointing print_param_status infer_backend infer_dtype use_kv_cache offload_folder "
    "do_sample temperature top_p top_k num_beams repetition_penalty loraplus_lr_embedding galore_target "
    "badam_mode template data_shared_file_system split_special_tokens include_effective_tokens_per_second "
    "disable_shuffling"
)


def translate(draft: Draft, *, folder: Path, task: str | None) -> None:
    """Fill the draft. Raises UserError for a stage or a kind of fine-tuning that ftscale does not have."""
    stage = str(getattr(draft.ask("stage"), "value", "sft"))
    if stage in METHODS:
        raise refuse(draft, METHODS[stage], f"stage: {stage}")
    if stage not in ("pt", "sft"):
        raise UserError(
            f"stage = {stage!r} of {draft.file} is not one of LLaMA-Factory's; it has pt, sft, rm, ppo, dpo, kto."
        )
    draft.put(
        "task.name", "causal_lm", f"stage: {stage}" if "stage" in draft.values else "default of stage in LLaMA-Factory"
    )
    draft.copy("cutoff_len", "task.max_length", draft.whole)
    packed = draft.asked("packing", "neat_packing") or draft.asked("neat_packing")
    if stage == "pt":
        draft.put("task.join_texts", True, "stage: pt lays texts end to end")
    else:
        _chats(draft)
    _model(draft)
    _weights(draft)
    _data(draft, stage, folder)
    if not draft.asked("disable_gradient_checkpointing"):
        draft.defaults = {**draft.defaults, "gradient_checkpointing": True}
    if draft.asked("pure_bf16"):
        draft.put("train.precision", "bf16", "pure_bf16; what trains has fp32 masters here")
    packs = packed and stage == "sft"
    trainer.put_training(draft, packed_length=draft.value("task.max_length") if packs else None)
    if packs and not draft.asked("neat_packing"):
        why = "samples that lie in one row never see each other, as with neat_packing"
        draft.lack(why, "packing")
    put_strategy(draft, folder=folder)
    for why, keys in LACKS.items():
        draft.lack(why, *keys)
    draft.ignore(*NO_MATTER)


def _chats(draft: Draft) -> None:
    """Set which tokens are learned and how a chat is written."""
    if draft.asked("train_on_prompt"):
        draft.put("task.targets", "all", "train_on_prompt")
    elif draft.asked("mask_history"):
        draft.put("task.targets", "last", "mask_history")
    template = draft.ask("template")
    if template is not None:
        name = str(template.value)
        if name in TEMPLATES:
            draft.put("task.chat_template", TEMPLATES[name], f"{template.said}: {name}")
        else:
            draft.put(
                "task.chat_template", None, f"{template.said}: {name}; null = the one that the tokenizer brings along"
            )
            known = name in OWN_TEMPLATE
            if not known:
                draft.open.append(
                    f"task.chat_template: {name} of LLaMA-Factory is not one of ftscale's (chatml, llama2, llama3, "
                    "alpaca); the tokenizer's own is taken, or name a .jinja file."
                )
    if draft.asked("predict_with_generate"):
        length = draft.ask("max_new_tokens")
        draft.put(
            "task.generate.max_new_tokens", 1024 if length is None else draft.whole(length), "predict_with_generate"
        )
    draft.ignore("max_new_tokens")


def _model(draft: Draft) -> None:
    trainer.put_model(draft, missing=None)
    if draft.asked("train_from_scratch"):
        draft.put("model.init", "random", "train_from_scratch")
    attention = draft.ask("flash_attn")
    if attention is not None and (name := ATTENTION.get(str(attention.value).lower())):
        put_attention(draft, name, attention.said)
    bits, method = draft.ask("quantization_bit"), draft.ask("quantization_method")
    if bits is None:
        return
    number, how = draft.whole(bits), "bnb" if method is None else str(method.value).lower()
    ours = {4: "nf4", 8: "int8"}.get(number)
    if ours is None or how not in ("bnb", "bitsandbytes"):
        draft.lacks[bits.said] = f"{number} bits by {how} is not to be had; set model.quantization to nf4 or int8"
    else:
        draft.put("model.quantization", ours, f"{bits.said}: {number}")


def _weights(draft: Draft) -> None:
    """Set which weights train."""
    given = draft.ask("finetuning_type")
    assert given is not None
    kind = str(given.value)
    lora = {
        "r": "lora_rank",
        "lora_alpha": "lora_alpha",
        "lora_dropout": "lora_dropout",
        "target_modules": "lora_target",
        "modules_to_save": "additional_target",
        "use_rslora": "use_rslora",
        "use_dora": "use_dora",
    }
    if kind == "lora":
        trainer.put_lora(draft, lora)
        if draft.value("adapter.lora_alpha") is None:
            rank = draft.value("adapter.r")
            draft.put("adapter.lora_alpha", 2 * rank, "default of lora_alpha in LLaMA-Factory: twice lora_rank")
        return
    draft.lack(f"finetuning_type: {kind} has no LoRA adapter", *lora.values())
    if kind == "freeze":
        _freeze(draft)
    elif kind == "oft":
        draft.put("adapter.method", "oft", "finetuning_type")
        for field, key in (
            ("r", "oft_rank"),
            ("oft_block_size", "oft_block_size"),
            ("module_dropout", "module_dropout"),
        ):
            value = draft.ask(key)
            if value is not None and draft.number(value):
                draft.put(f"adapter.{field}", draft.number(value), value.said)
        target = draft.ask("oft_target")
        modules = "all-linear" if target is None else trainer.target_modules(draft, target)
        draft.put(
            "adapter.target_modules",
            modules,
            "default of oft_target in LLaMA-Factory" if target is None else target.said,
        )
    elif kind != "full":
        raise UserError(f"finetuning_type = {kind!r} of {draft.file} is not known; it has lora, oft, freeze and full.")


def _freeze(draft: Draft) -> None:
    blocks = draft.ask("freeze_trainable_layers")
    number = 2 if blocks is None else draft.whole(blocks)
    said = "default of freeze_trainable_layers in LLaMA-Factory" if blocks is None else blocks.said
    if number <= 0:
        raise UserError(
            f"{said} = {number} of {draft.file} trains the first layers, which ftscale cannot; name the last."
        )
    draft.put("trainable.scope", "last_blocks", "finetuning_type: freeze")
    draft.put("trainable.last_blocks", number, said)
    draft.open.append("trainable.scope: last_blocks trains the head too, which LLaMA-Factory's freeze does not.")
    draft.lack(
        "see trainable.patterns, regular expressions of names", "freeze_trainable_modules", "freeze_extra_modules"
    )


def _data(draft: Draft, stage: str, folder: Path) -> None:
    names = draft.ask("dataset")
    place = draft.ask("dataset_dir")
    assert place is not None
    described, base = _described(str(place.value), folder)
    limit = draft.ask("max_samples")
    for part, given in (("train", names), ("eval", draft.ask("eval_dataset"))):
        if given is None or not given.value:
            continue
        sources = []
        for name in draft.names_of(given):
            source = _source(draft, name, described, base, stage)
            if limit is not None:
                source["limit"] = draft.whole(limit)
            sources.append(source)
        said = given.said if limit is None else f"{given.said}, {limit.said}"
        draft.put(f"data.{part}", sources if len(sources) > 1 else sources[0], said)
    if draft.value("data.train") is None:
        draft.put("data.train", FILL_IN, "to be filled in: the file names no dataset")
        draft.open.append("data.train is to be filled in: a file, a folder or a hub data set.")
    trainer.put_held_out(draft, "val_size")
    draft.copy("preprocessing_num_workers", "data.prepare_workers", draft.whole)
    if draft.asked("streaming"):
        draft.put("data.streaming", True, "streaming")
        draft.copy("buffer_size", "data.shuffle_buffer", draft.whole)


def _described(place: str, folder: Path) -> tuple[dict[str, Any] | None, str]:
    """What dataset_info.json says, beside the file or in the working folder; None = it is not there."""
    for base in (Path(place), folder / place, folder):
        try:
            found = json.loads((base / "dataset_info.json").read_text(encoding="utf-8"))
        except (OSError, ValueError):
            continue
        if isinstance(found, dict):
            return found, str(base)
    return None, place


def _source(draft: Draft, name: str, described: dict[str, Any] | None, base: str, stage: str) -> dict[str, Any]:
    about = (described or {}).get(name)
    if not isinstance(about, dict):
        where = f"{base}/dataset_info.json"
        why = "was not found" if described is None else "does not describe it"
        draft.open.append(
            f"data: the file of the data set {name} is a guess, since {where} {why}; set its path and columns."
        )
        return {"path": f"{base}/{name}.json"}
    if about.get("ranking"):
        raise refuse(draft, "preference training", f"ranking of {name}")
    if hub := about.get("hf_hub_url"):
        source: dict[str, Any] = {"path": str(hub), "format": "hub"}
        source |= {ours: str(about[key]) for key, ours in (("subset", "name"), ("split", "split")) if about.get(key)}
    elif file := (about.get("file_name") or about.get("cloud_file_name")):
        source = {"path": str(file) if "://" in str(file) or str(file).startswith("/") else f"{base}/{file}"}
    else:
        draft.open.append(f"data: {name} lies where ftscale does not read (its dataset_info.json); set its path.")
        source = {"path": FILL_IN}
    if count := about.get("num_samples"):
        source["limit"] = draft.whole(Given(count, f"num_samples of {name}"))
    if columns := _columns(draft, name, about, stage):
        source["columns"] = columns
    return source


def _columns(draft: Draft, name: str, about: dict[str, Any], stage: str) -> dict[str, str]:
    columns = about.get("columns") or {}
    if not isinstance(columns, dict):
        return {}
    if stage == "pt":
        text = str(columns.get("prompt", "text"))
        return {} if text == "text" else {"text": text}
    if str(about.get("formatting", "alpaca")) == "sharegpt":
        tags = about.get("tags") or {}
        role = "messages" if isinstance(tags, dict) and tags.get("role_tag", "from") == "role" else "conversations"
        wanted = {"messages": role, "tools": "tools"}
        columns = {"messages": "conversations", **columns}
    else:
        wanted = {"prompt": "instruction", "query": "input", "response": "output"}
    left = [str(columns[key]) for key in ("system", "history", "images", "videos", "audios") if columns.get(key)]
    if left:
        draft.open.append(f"data: the columns {', '.join(left)} of {name} are not read; put them into the rows' turns.")
    return {ours: str(columns[key]) for key, ours in wanted.items() if columns.get(key) and columns[key] != ours}
