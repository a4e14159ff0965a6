"""Which settings go together: a table, each row with its reason and its source."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from ftscale.config.schema import Config, TrainableConfig
from ftscale.config.strategies import Strategy, find_strategy
from ftscale.config.tasks import SETTINGS

CPU_OPTIMIZERS = ("adam", "adamw")
BY_ELEMENT = ("adam", "adamw", "sgd", "lion", "ademamix")
PROMPT_METHODS = ("prompt_tuning", "multitask_prompt_tuning", "p_tuning", "prefix_tuning", "cpt", "cartridge")


@dataclass(frozen=True)
class Row:
    """A combination of settings, and what is known of it."""

    name: str
    when: Callable[[Config, Strategy | None], bool]
    """Whether a config under a strategy (None = the launcher has not said) has this combination."""
    verdict: Literal["works", "refused"]
    text: str
    """Refused: the problem as a sentence, with the nearest combination that works. Works: what was seen."""
    source: str
    """Where this is known from: a page of a library's documentation, or a measurement."""
    tests: tuple[str, ...] = ()
    """Tests that run the combination (works), or that show it to fail or be wrong (refused)."""


def check_combination(config: Config, *, strategy: Strategy | None = None) -> list[str]:
    """A sentence for each combination in `config` that is refused; empty = all of it goes together.

    `strategy`: as the launcher says it, where `config.distributed.strategy` leaves it open.
    """
    strategy = find_strategy(config.distributed.strategy) or strategy
    refused = [row.text for row in TABLE if row.verdict == "refused" and row.when(config, strategy)]
    return [*_unmet_needs(config), *refused]


def _unmet_needs(config: Config) -> list[str]:
    """What the method needs and the task cannot give, with the tasks that can."""
    task, method = config.task, config.method
    if method.needs <= task.can:
        return []
    needed, lacking = (", ".join(sorted(names)) for names in (method.needs, method.needs - task.can))
    able = ", ".join(name for name, settings in SETTINGS.items() if method.needs <= settings.can) or "none of ftscale's"
    return [
        f"method.name = {method.name} needs of its task: {needed}; task.name = {task.name} lacks {lacking}; set "
        f"task.name to one that has all ({able}), or take another method."
    ]


def matching_rows(config: Config, *, strategy: Strategy | None = None) -> list[Row]:
    """What is known of the combinations in `config`."""
    strategy = find_strategy(config.distributed.strategy) or strategy
    return [row for row in TABLE if row.when(config, strategy)]


def _has_adapter(config: Config) -> bool:
    return config.adapter.method != "none"


def _quantised(config: Config) -> bool:
    return config.model.quantization != "none"


def _writes(config: Config) -> bool:
    return "writes_text" in config.task.can


def _brings_no_head(config: Config) -> bool:
    return _writes(config) or bool(config.head.hidden_sizes) or config.model.init == "random"


def _evaluates(config: Config) -> bool:
    return bool(config.evaluation.metric or config.evaluation.patience or config.evaluation.before)


def _several(strategy: Strategy | None) -> bool:
    """DDP, or ZeRO in any form."""
    return strategy is not None and not strategy.one_process


def _zero(strategy: Strategy | None) -> bool:
    return strategy is not None and strategy.is_zero


def _zero3(strategy: Strategy | None) -> bool:
    return strategy is not None and strategy.shards_weights


def _on_devices(strategy: Strategy | None, *, stages: tuple[int, ...]) -> bool:
    """DDP (stage 0) or ZeRO of these stages, with nothing offloaded."""
    return (
        strategy is not None
        and not strategy.one_process
        and not strategy.offloads_optimizer
        and strategy.stage in stages
    )


TABLE: tuple[Row, ...] = (
    # ------------------------------------------------------------ what training is made of
    Row(
        "all weights, DDP or ZeRO",
        lambda config, strategy: not _has_adapter(config) and _several(strategy),
        "works",
        "losses and gradient norms are those of one process",
        "measured with deepspeed 0.19.8 on 2 processes",
        (
            "tests/strategies/test_full_weights.py::test_losses_and_gradient_norms_are_those_of_one_process",
            "tests/strategies/test_nvme.py::test_weights_on_a_disk_go_the_way_of_one_process",
        ),
    ),
    Row(
        "LoRA, DDP or ZeRO",
        lambda config, strategy: config.adapter.method == "lora" and _several(strategy) and not _quantised(config),
        "works",
        "losses and gradient norms are those of one process, and the saved adapter is the trained one",
        "measured with deepspeed 0.19.8 and peft 0.21.2 on 2 processes",
        (
            "tests/strategies/test_adapters.py::test_lora_goes_the_way_of_one_process",
            "tests/strategies/test_nvme.py::test_weights_on_a_disk_go_the_way_of_one_process",
        ),
    ),
    Row(
        "bf16 under DDP and ZeRO",
        lambda config, strategy: config.train.precision == "bf16" and _on_devices(strategy, stages=(0, 2, 3)),
        "works",
        "losses stay near those of fp32, and a resumed run goes the same way",
        "measured with deepspeed 0.19.8 on 2 processes",
        ("tests/strategies/test_full_weights.py::test_bf16_stays_near_fp32_and_resumes",),
    ),
    Row(
        "activation checkpointing under DDP and ZeRO-3",
        lambda config, strategy: config.train.activation_checkpointing and _on_devices(strategy, stages=(0, 3)),
        "works",
        "recomputed activations change no loss",
        "torch documentation, page torch.utils.checkpoint (not reentrant)",
        ("tests/strategies/test_full_weights.py::test_recomputed_activations_change_no_loss",),
    ),
    Row(
        "flat rows (packing) under DDP and ZeRO",
        lambda config, strategy: (
            _writes(config) and "flat_rows" in config.task.can and config.batch.layout != "padded" and _zero(strategy)
        ),
        "works",
        "samples end to end in one row give the losses of padded rows; each sees itself alone",
        "measured: tests/trajectories",
        ("tests/trajectories/test_trajectories.py::test_loss_and_gradient_do_not_depend_on_how_a_step_is_cut_up",),
    ),
    Row(
        "optimizers over float32 masters",
        lambda config, strategy: config.train.precision == "bf16" and not _zero(strategy),
        "works",
        "every optimizer of the table lowers the loss on bf16 weights with float32 masters",
        "ftscale/optim/master_weights.py",
        ("tests/optim/test_optimizers.py::test_every_optimizer_lowers_the_loss",),
    ),
    # ------------------------------------------------------------ quantised bases
    Row(
        "quantised base without an adapter",
        lambda config, _: _quantised(config) and not _has_adapter(config),
        "refused",
        "model.quantization needs an adapter: weights in 4 or 8 bits have no gradient; set adapter.method: lora, or "
        "model.quantization: none.",
        "transformers documentation, page bitsandbytes: only extra parameters can be trained on 4-bit and 8-bit models",
        ("tests/config/test_refusals.py::test_a_quantised_weight_takes_no_gradient",),
    ),
    Row(
        "quantised base, random weights",
        lambda config, _: _quantised(config) and config.model.init == "random",
        "refused",
        "model.quantization does not go with model.init = random: weights are quantised while a checkpoint is read; "
        "set model.init: pretrained, or model.quantization: none.",
        "transformers documentation, page bitsandbytes: the quantisation config is an argument of from_pretrained",
        ("tests/config/test_refusals.py::test_random_weights_are_not_quantised",),
    ),
    Row(
        "quantised base, ZeRO-3",
        lambda config, strategy: _quantised(config) and _zero3(strategy),
        "refused",
        "model.quantization does not go with ZeRO-3, which would cut packed 4-bit and 8-bit weights apart from the "
        "scales that they are read with; use distributed.strategy: zero2, which keeps the small quantised base whole.",
        "PEFT documentation, page DeepSpeed: ZeRO-3 wants 4-bit weights stored in the dtype of the others "
        "(bnb_4bit_quant_storage); ours are in uint8, bitsandbytes' default",
        ("https://github.com/deepspeedai/DeepSpeed/issues/3620",),
    ),
    Row(
        "quantised base with an adapter, DDP, ZeRO-1 or ZeRO-2",
        lambda config, strategy: (
            _quantised(config) and _has_adapter(config) and strategy is not None and not strategy.shards_weights
        ),
        "works",
        "the quantised base is bit-identical after training",
        "PEFT documentation, page DeepSpeed; tests/models/test_quantize.py",
        (
            "tests/strategies/test_adapters.py::test_lora_on_a_quantised_base_goes_the_way_of_one_process",
            "tests/strategies/test_adapters.py::test_a_quantised_base_is_bit_identical_after_training",
        ),
    ),
    Row(
        "quantised base, activation checkpointing",
        lambda config, _: _quantised(config) and config.train.activation_checkpointing,
        "works",
        "blocks are recomputed from the same frozen weights, in the mode that is not reentrant",
        "PEFT documentation, page Quantization; torch documentation, page torch.utils.checkpoint",
        ("tests/config/test_works.py::test_a_quantised_base_learns_the_same_with_recomputed_activations",),
    ),
    # ------------------------------------------------------------ adapters
    Row(
        "adapter and trainable",
        lambda config, _: _has_adapter(config) and config.trainable != TrainableConfig(),
        "refused",
        "trainable says which base weights train, and with adapter.method set none do; leave out trainable, or set "
        "adapter.method: none.",
        "schema: trainable holds where there is no adapter",
        ("tests/config/test_refusals.py::test_an_adapter_freezes_the_whole_base",),
    ),
    Row(
        "adalora under ZeRO",
        lambda config, strategy: config.adapter.method == "adalora" and _zero(strategy),
        "refused",
        "adapter.method = adalora does not go with ZeRO: it moves ranks by gradients that DeepSpeed does not leave on "
        "the weights; use adapter.method: lora, or distributed.strategy: ddp.",
        "PEFT documentation, page AdaLoRA (update_and_allocate before zero_grad); DeepSpeed documentation, page ZeRO",
        ("tests/config/test_refusals.py::test_adalora_needs_the_gradients_that_zero_takes",),
    ),
    Row(
        "adalora under DDP",
        lambda config, strategy: config.adapter.method == "adalora" and _on_devices(strategy, stages=(0,)),
        "works",
        "losses are those of one process: every rank moves the same ranks",
        "measured with peft 0.21.2 on 2 processes",
        ("tests/strategies/test_adapters.py::test_adalora_under_ddp_goes_the_way_of_one_process",),
    ),
    Row(
        "gradient rule of a method under ZeRO",
        lambda config, strategy: config.method.has_rule and _zero(strategy),
        "refused",
        "method.name is of one with a gradient rule, which does not go with ZeRO: DeepSpeed does not leave gradients "
        "on the weights; use distributed.strategy: ddp.",
        "DeepSpeed documentation, page ZeRO: gradients are reduced into buffers of its own, and partitioned",
        ("tests/methods/test_gradient_rules.py::test_zero_takes_the_gradients_that_a_rule_needs",),
    ),
    Row(
        "gradient rule of a method under DDP",
        lambda config, strategy: config.method.has_rule and _on_devices(strategy, stages=(0,)),
        "works",
        "losses are those of one process: every rank has the whole gradient",
        "torch documentation, page DistributedDataParallel",
        ("tests/methods/test_gradient_rules.py::test_a_rule_sees_the_whole_gradient_on_every_rank",),
    ),
    Row(
        "gradient rule of a method, adalora",
        lambda config, _: config.method.has_rule and config.adapter.method == "adalora",
        "refused",
        "adapter.method = adalora does not go with a method that has a gradient rule, of which a run has one, and "
        "AdaLoRA's would be another; use adapter.method: lora, or another method.",
        "ftscale/models/gradient_rule.py: a run has one",
        ("tests/methods/test_gradient_rules.py::test_adalora_has_a_gradient_rule_of_its_own",),
    ),
    Row(
        "random base with an adapter, ZeRO-3",
        lambda config, strategy: _has_adapter(config) and config.model.init == "random" and _zero3(strategy),
        "refused",
        "model.init = random with an adapter does not go with ZeRO-3: the random base must be saved beside the "
        "adapter, and no rank holds it whole; use distributed.strategy: zero2, or name a base that is on disk.",
        "DeepSpeed documentation, page ZeRO: stage 3 partitions the weights",
        ("tests/config/test_refusals.py::test_a_partitioned_random_base_cannot_be_saved",),
    ),
    Row(
        "prefix tuning, activation checkpointing",
        lambda config, _: config.adapter.method == "prefix_tuning" and config.train.activation_checkpointing,
        "refused",
        "adapter.method = prefix_tuning does not go with train.activation_checkpointing: transformers drops the past "
        "keys and values, which the prefix is, from blocks that it recomputes; set it to false.",
        "transformers 5.23, GradientCheckpointingLayer: past_key_values=None under gradient checkpointing",
        ("https://github.com/huggingface/peft/issues/869",),
    ),
    Row(
        "learned prompt, flat layout",
        lambda config, _: config.adapter.method in PROMPT_METHODS and config.batch.layout == "flat",
        "refused",
        "batch.layout = flat does not go with an adapter that puts a learned prompt before each sample: in a flat row "
        "only the first sample would get it; set batch.layout: padded.",
        "PEFT documentation, page Soft prompts: the prompt is put before the whole row",
        ("tests/config/test_refusals.py::test_a_learned_prompt_reaches_only_the_first_sample_of_a_flat_row",),
    ),
    # ------------------------------------------------------------ heads and frozen parts
    Row(
        "MLP head, no classification",
        lambda config, _: bool(config.head.hidden_sizes) and _writes(config),
        "refused",
        "head.hidden_sizes needs a task with a classifier, and this task's head is the vocabulary; leave out head.",
        "schema: head is a classification head",
        ("tests/config/test_refusals.py::test_a_language_model_has_no_classifier_to_replace",),
    ),
    Row(
        "a kept head where there is none",
        lambda config, _: config.head.keep and _brings_no_head(config),
        "refused",
        "head.keep = true keeps the classifier that a model brings along, and there is none: causal_lm and seq2seq "
        "have none, head.hidden_sizes puts another one, model.init: random makes all anew; leave out head.keep.",
        "schema: keep is for a pretrained classifier",
        ("tests/config/test_refusals.py::test_a_head_that_is_made_anew_is_not_kept",),
    ),
    Row(
        "last_blocks scope without a number",
        lambda config, _: config.trainable.scope == "last_blocks" and config.trainable.last_blocks == 0,
        "refused",
        "trainable.last_blocks = 0 must be positive for trainable.scope: last_blocks; set it, or set "
        "trainable.scope: head.",
        "schema: last_blocks is the number of blocks",
        ("tests/config/test_refusals.py::test_no_last_blocks_is_no_number_of_blocks",),
    ),
    Row(
        "a number of last blocks in another scope",
        lambda config, _: config.trainable.scope != "last_blocks" and config.trainable.last_blocks > 0,
        "refused",
        "trainable.last_blocks is read for trainable.scope: last_blocks alone; set the scope, or leave it out.",
        "schema: last_blocks is for that scope",
        ("tests/config/test_refusals.py::test_the_number_of_last_blocks_is_not_read_in_another_scope",),
    ),
    # ------------------------------------------------------------ optimizers
    Row(
        "offloaded optimizer other than Adam",
        lambda config, strategy: (
            strategy is not None and strategy.offloads_optimizer and config.optimizer.name not in CPU_OPTIMIZERS
        ),
        "refused",
        "optimizer.name must be adam or adamw where the optimizer is offloaded: its state lies in CPU memory, where "
        "DeepSpeed steps it by its own Adam; use one of the two, or a strategy without offload (zero2) for others.",
        "DeepSpeed documentation, tutorial ZeRO-Offload: DeepSpeedCPUAdam",
        ("tests/optim/test_optimizers.py::test_only_adam_can_be_offloaded",),
    ),
    Row(
        "adafactor under ZeRO",
        lambda config, strategy: config.optimizer.name == "adafactor" and _zero(strategy),
        "refused",
        "optimizer.name = adafactor does not go with ZeRO: it factors the second moments of a matrix into a row and a "
        "column, and ZeRO hands it flat shares, of which it keeps them all; use adamw_8bit, or "
        "distributed.strategy: ddp.",
        "measured with deepspeed 0.19.8 on 2 processes: 6 % off after six steps; Shazeer and Stern 2018, section 3",
        ("tests/config/test_refusals.py::test_adafactor_does_not_factor_a_flat_share",),
    ),
    Row(
        "optimizers element by element under ZeRO without offload",
        lambda config, strategy: _on_devices(strategy, stages=(1, 2, 3)) and config.optimizer.name in BY_ELEMENT,
        "works",
        "losses are those of one process",
        "measured with deepspeed 0.19.8 and bitsandbytes 0.50.2 on 2 processes (zero_allow_untested_optimizer)",
        ("tests/strategies/test_full_weights.py::test_an_optimizer_by_element_goes_the_way_of_one_process",),
    ),
    Row(
        "8-bit optimizers under ZeRO without offload",
        lambda config, strategy: _on_devices(strategy, stages=(1, 2, 3)) and "8bit" in config.optimizer.name,
        "works",
        "losses stay near those of one process: states are quantised in blocks of a rank's share, in uint8",
        "measured with deepspeed 0.19.8 and bitsandbytes 0.50.2 on 2 processes (zero_allow_untested_optimizer)",
        ("tests/strategies/test_full_weights.py::test_an_8bit_optimizer_stays_near_one_process",),
    ),
    Row(
        "SGD8bit without momentum",
        lambda config, _: config.optimizer.name == "sgd_8bit" and config.optimizer.momentum == 0,
        "refused",
        "optimizer.momentum = 0 must be positive for sgd_8bit, whose 8-bit state is the momentum; use sgd instead.",
        "bitsandbytes 0.50.2, SGD8bit: SGD without momentum is not supported",
        ("tests/config/test_refusals.py::test_bitsandbytes_has_no_sgd_without_momentum",),
    ),
    # ------------------------------------------------------------ data
    Row(
        "stream without a number of steps",
        lambda config, _: config.data.streaming and config.train.max_steps == 0,
        "refused",
        "train.max_steps = 0 must be positive with data.streaming: a stream has no length to count epochs in; set "
        "train.max_steps, or data.streaming: false.",
        "datasets documentation, page Stream: an IterableDataset has no length",
        ("tests/config/test_refusals.py::test_a_stream_has_no_length",),
    ),
    Row(
        "evaluation settings without evaluation rows",
        lambda config, _: not (config.data.eval or config.data.eval_ratio) and _evaluates(config),
        "refused",
        "evaluation.metric, evaluation.patience and evaluation.before need evaluation rows; set data.eval or "
        "data.eval_ratio, or leave them out.",
        "schema: they choose by the scores of the evaluation rows",
        ("tests/config/test_refusals.py::test_without_evaluation_rows_nothing_is_chosen",),
    ),
    Row(
        "stream cut by targets",
        lambda config, _: config.data.streaming and config.batch.unit == "targets",
        "refused",
        "batch.unit = targets does not go with data.streaming: targets are counted when rows are prepared, and a "
        "stream is dealt to the ranks before; set batch.unit: samples (with task.join_texts all samples are of one "
        "length), or data.streaming: false.",
        "ftscale/data/stream.py: the order of a stream depends on rows alone",
        ("tests/config/test_refusals.py::test_a_row_that_is_not_prepared_has_no_targets",),
    ),
    Row(
        "stream with a share held out",
        lambda config, _: config.data.streaming and config.data.eval_ratio > 0 and not config.data.eval,
        "refused",
        "data.eval_ratio does not go with data.streaming: a share is drawn from all rows, which a stream never has at "
        "once; name evaluation rows in data.eval, or set data.streaming: false.",
        "scikit-learn documentation, page train_test_split: it needs the number of rows",
        ("tests/config/test_refusals.py::test_a_split_needs_all_rows",),
    ),
    Row(
        "batches of like length without a shuffle",
        lambda config, _: config.data.group_by_length and (config.data.streaming or not config.data.shuffle),
        "refused",
        "data.group_by_length sorts a large random draw of prepared rows; set it to false, or data.shuffle: true and "
        "data.streaming: false.",
        "ftscale/data/order.py: it sorts within a hundred shuffled global batches",
        ("tests/config/test_refusals.py::test_without_a_shuffle_sorted_batches_lose_the_files_order",),
    ),
    Row(
        "stream with collating workers",
        lambda config, _: config.data.streaming and config.data.num_workers > 0,
        "refused",
        "data.num_workers does not go with data.streaming: the ranks agree on each step of a stream while it is made, "
        "which only the training process can; set it to 0.",
        "torch documentation, page torch.utils.data: workers are processes of their own, outside the process group",
        ("tests/config/test_refusals.py::test_a_worker_process_is_in_no_group",),
    ),
    # ------------------------------------------------------------ strategies
    Row(
        "nvme without a folder",
        lambda config, strategy: strategy is not None and strategy.on_disk and config.distributed.offload_dir is None,
        "refused",
        "distributed.offload_dir = null must name a fast local folder for zero3_nvme; set it, or use zero3_offload.",
        "DeepSpeed documentation, page DeepSpeed Configuration JSON: nvme_path",
        ("tests/config/test_refusals.py::test_deepspeed_needs_a_folder_for_nvme",),
    ),
)
