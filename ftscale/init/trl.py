"""TRL's YAML for supervised fine-tuning: SFTConfig, ScriptArguments and ModelConfig in one file."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from ftscale.init import trainer
from ftscale.init.draft import FILL_IN, Draft, Given, refuse, words
from ftscale.init.zero_file import put_strategy

NAME = "TRL"
KEYS = words(
    "dataset_train_split dataset_test_split dataset_config dataset_streaming dataset_text_field use_peft lora_r "
    "lora_target_modules load_in_4bit load_in_8bit use_bnb_nested_quant packing packing_strategy "
    "assistant_only_loss completion_only_loss max_length padding_free attn_implementation chat_template_path "
    "eos_token dataset_num_proc shuffle_dataset dataset_mixture beta max_prompt_length num_generations "
    "reward_model_path max_completion_length"
)
DEFAULTS: dict[str, Any] = {
    **trainer.DEFAULTS,
    "learning_rate": 2e-5,
    "bf16": True,
    "gradient_checkpointing": True,
    "logging_steps": 10,
    "max_length": 1024,
    "dataset_train_split": "train",
    "dataset_test_split": "test",
    "lora_r": 16,
    "lora_alpha": 32,
    "lora_dropout": 0.05,
}

METHODS = {  # keys that tell another trainer than SFTTrainer: what it does
    "GRPO": ("num_generations", "reward_funcs", "scale_rewards"),
    "PPO": ("kl_coef", "num_ppo_epochs", "cliprange", "whiten_rewards"),
    "online preference training": ("judge", "missing_eos_penalty", "response_length"),
    "KTO": ("desirable_weight", "undesirable_weight"),
    "reward modelling": ("center_rewards_coefficient", "reward_model_path"),
    "DPO": (
        "beta",
        "max_prompt_length",
        "precompute_ref_log_probs",
        "ref_model_init_kwargs",
        "rpo_alpha",
        "label_pad_token_id",
    ),
    "distillation": ("teacher_model_name_or_path", "lmbda"),
}

LACKS = {
    "rows are laid end to end, each seeing itself alone, wherever the model allows it": (
        *("padding_free", "pad_to_multiple_of", "eval_packing", "packing_strategy"),
    ),
    "double quantisation is always on": ("use_bnb_nested_quant",),
    "weights are quantised in nf4": ("bnb_4bit_quant_type", "bnb_4bit_quant_storage"),
    "the tokenizer's own is used; mend the tokenizer's folder": ("eos_token", "pad_token"),
    "truncation keeps the start": ("truncation_mode",),
    "model.overrides changes fields of the model's config": ("model_init_kwargs",),
    "train.precision says the type of the weights": ("torch_dtype", "dtype"),
    "activations are recomputed instead": ("activation_offloading",),
    "the adapter's task is that of the run": ("lora_task_type",),
    "the loss is the mean of the targets' log-probabilities": ("loss_type", "use_dft_loss"),
    "a script's own settings": ("dataset_kwargs", "ignore_bias_buffers", "gradient_checkpointing_use_reentrant"),
}


def translate(draft: Draft, *, folder: Path, task: str | None) -> None:
    """Fill the draft. Raises UserError for a method that ftscale does not have."""
    for method, keys in METHODS.items():
        if found := [key for key in keys if draft.values.get(key) is not None]:
            raise refuse(draft, method, found[0])
    draft.put("task.name", "causal_lm", "TRL trains causal language models")
    length = draft.ask("max_length", "max_seq_length")
    if "max_seq_length" in draft.values and "max_length" not in draft.values:
        length = draft.ask("max_seq_length")
    packed = draft.asked("packing")
    if length is not None:
        draft.put("task.max_length", draft.whole(length), length.said)
    _targets(draft, packed=packed)
    _model(draft)
    _data(draft)
    whole = draft.value("task.join_texts") is True
    size = draft.value("task.max_length")
    if draft.asked("fp16"):  # TRL's bf16 is on where fp16 is not
        draft.defaults = {**draft.defaults, "bf16": None}
    trainer.put_training(draft, packed_length=size if packed and not whole else None)
    put_strategy(draft, folder=folder)
    for why, keys in LACKS.items():
        draft.lack(why, *keys)


def _targets(draft: Draft, *, packed: bool) -> None:
    """Set which tokens are learned: TRL learns all of a chat and of a text, and a completion alone."""
    given, completion = draft.ask("assistant_only_loss"), draft.ask("completion_only_loss")
    if given is not None:
        targets = "assistant" if draft.flag(given) else "all"
        draft.put("task.targets", targets, given.said)
    elif completion is not None:
        targets = "assistant" if draft.flag(completion) else "all"
        draft.put("task.targets", targets, completion.said)
    else:
        draft.put("task.targets", "all", "default of assistant_only_loss in TRL: it learns all tokens of a chat")
        draft.open.append(
            "task.targets = all is what TRL does with chats and texts; of rows with prompt and completion it learns "
            "the completion alone: set assistant for these."
        )
    template = draft.ask("chat_template_path")
    if template is not None and str(template.value).endswith((".jinja", ".j2")):
        draft.put("task.chat_template", draft.text(template), template.said)
    elif template is not None:
        draft.put("model.processor", draft.text(template), f"{template.said}, a tokenizer whose template is taken")
    if packed and draft.ask("packing_strategy") is not None and draft.values["packing_strategy"] == "wrapped":
        draft.put("task.join_texts", True, "packing_strategy: wrapped")


def _model(draft: Draft) -> None:
    trainer.put_model(draft, missing="the file does")
    attention = draft.ask("attn_implementation")
    if attention is not None:
        put_attention(draft, str(attention.value), attention.said)
    trainer.put_quantization(draft, four=draft.ask("load_in_4bit"), eight=draft.ask("load_in_8bit"))
    keys = {
        "r": "lora_r",
        "lora_alpha": "lora_alpha",
        "lora_dropout": "lora_dropout",
        "target_modules": "lora_target_modules",
        "target_parameters": "lora_target_parameters",
        "modules_to_save": "lora_modules_to_save",
        "use_rslora": "use_rslora",
        "use_dora": "use_dora",
    }
    if draft.asked("use_peft"):
        trainer.put_lora(draft, keys)
    else:
        draft.lack("TRL reads it with use_peft: true alone; this file trains all weights", *keys.values())


def put_attention(draft: Draft, name: str, said: str) -> None:
    """Set the attention; flash attention is what flat rows take by themselves on a GPU."""
    if "flash" in name.lower():
        draft.put("model.attention", "auto", f"{said} = {name}: flat rows take torch's flash kernel on a GPU")
    else:
        draft.put("model.attention", name, said)


def _data(draft: Draft) -> None:
    """Set the sources; test rows are read where TRL evaluates."""
    given, config = draft.ask("dataset_name"), draft.ask("dataset_config")
    train, test = draft.ask("dataset_train_split"), draft.ask("dataset_test_split")
    column = draft.ask("dataset_text_field")
    columns = {"text": str(column.value)} if column is not None and column.value != "text" else {}
    mixture = draft.ask("datasets", "dataset_mixture")
    if mixture is not None:
        of_mixture = isinstance(mixture.value, dict) and "datasets" in mixture.value
        listed = Given(mixture.value["datasets"], mixture.said) if of_mixture else mixture
        draft.put("data.train", [_entry(entry) for entry in draft.sections(listed)], mixture.said)
        share = draft.ask("test_split_size")
        if share is not None:
            draft.put("data.eval_ratio", draft.number(share), share.said)
    elif given is not None:
        path = draft.text(given)
        source: dict[str, Any] = {"path": path}
        local = (
            os.path.exists(path) or path.startswith((".", "/", "~")) or Path(path).suffix in (".json", ".jsonl", ".csv")
        )
        if not local:
            source["format"] = "hub"
        if config is not None:
            source["name"] = draft.text(config)
        assert train is not None
        assert test is not None
        draft.put("data.train", {**source, "split": draft.text(train), **_with(columns)}, f"{given.said}, {train.said}")
        strategy = draft.ask("eval_strategy", "evaluation_strategy")
        if strategy is not None and str(strategy.value).lower() not in ("no", "none"):
            draft.put(
                "data.eval", {**source, "split": draft.text(test), **_with(columns)}, f"{given.said}, {test.said}"
            )
    else:
        draft.put("data.train", FILL_IN, "to be filled in: the file does not name the rows")
        draft.open.append("data.train is to be filled in: a file, a folder or a hub data set; data.eval as well.")
    if draft.asked("dataset_streaming"):
        draft.put("data.streaming", True, "dataset_streaming")
    draft.copy("dataset_num_proc", "data.prepare_workers", draft.whole)
    draft.ignore("shuffle_dataset", "dataset_test_split", "dataset_batch_size", "test_split_size", "seed_mixture")


def _with(columns: dict[str, str]) -> dict[str, Any]:
    return {"columns": columns} if columns else {}


def _entry(entry: dict[str, Any]) -> dict[str, Any]:
    """One data set of a mixture."""
    source: dict[str, Any] = {"path": str(entry.get("path") or entry.get("id") or FILL_IN), "format": "hub"}
    if name := (entry.get("name") or entry.get("config")):
        source["name"] = str(name)
    if split := entry.get("split"):
        source["split"] = str(split)
    if weight := entry.get("weight"):
        source["weight"] = weight
    return source
