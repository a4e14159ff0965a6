"""Every setting of a run, with its unit and the meaning of 0 and null."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import reduce
from operator import or_
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import (
    BeforeValidator,
    ConfigDict,
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    SerializeAsAny,
    ValidatorFunctionWrapHandler,
    WrapValidator,
    model_validator,
)

from ftscale.config.methods import METHODS
from ftscale.config.methods.base import MethodSettings
from ftscale.config.methods.supervised import SupervisedSettings
from ftscale.config.own_method import OWN
from ftscale.config.own_task import own_class
from ftscale.config.section import Fraction, OneLine, Section
from ftscale.config.tasks import SETTINGS
from ftscale.config.tasks.base import TaskSettings

if TYPE_CHECKING:
    TaskConfig = TaskSettings
    TaskName = str
    MethodConfig = MethodSettings
    MethodName = str
else:

    def _one_of(kinds: dict[str, type[Section]]) -> Any:
        """A section of one of these kinds, by its name; pydantic chooses between two or more."""
        union = reduce(or_, kinds.values())
        return union if len(kinds) == 1 else Annotated[union, Field(discriminator="name")]

    TaskConfig, TaskName = _one_of(SETTINGS), Literal[tuple(SETTINGS)]
    MethodConfig, MethodName = _one_of(METHODS), Literal[tuple(METHODS)]


# ---------------------------------------------------------------- model


class ModelConfig(Section):
    """The base model."""

    name: str
    """Hub id, or a local folder (weights, or a config.json alone with `init: random`)."""
    revision: str | None = None
    """Branch, tag or commit on the hub; null = the default branch."""
    init: Literal["pretrained", "random"] = "pretrained"
    """Weights from `name`, or random ones for its config."""
    overrides: dict[str, Any] = {}
    """Fields of the model's own config to change, e.g. `{num_hidden_layers: 4}`."""
    processor: str | None = None
    """Hub id or folder of the tokenizer or image processor; null = `name`."""
    attention: str = "auto"
    """auto = flat rows where the model allows them, else its default; or a transformers name: sdpa, eager,
    flash_attention_2, ..."""
    quantization: Literal["none", "nf4", "int8"] = "none"
    """Frozen base weights in bitsandbytes' nf4 (double quantisation) or LLM.int8; needs an adapter."""
    trust_remote_code: bool = False
    """Run modelling code that comes with the model."""
    allow_pickle: bool = False
    """Also load .bin checkpoints, which can run code; false = safetensors only."""


class HeadConfig(Section):
    """The classification head: the model's own, or a new one that is a multi-layer perceptron."""

    keep: bool = False
    """Keep the head that a model brings along although its classes have other names, or it comes from another task:
    its rows are then those of `task.labels`; false = a new head. Equal names are kept in any case."""
    hidden_sizes: tuple[PositiveInt, ...] = ()
    """Widths of the hidden layers; empty = the model's own head."""
    activation: str = "gelu"
    """A transformers activation name between the layers."""
    dropout: Fraction = 0.1
    """Dropout before each layer."""


class AdapterConfig(Section):
    """A PEFT adapter; every other key is a field of that method's config in peft, e.g. `r`, `lora_alpha`."""

    model_config = ConfigDict(frozen=True, extra="allow", use_attribute_docstrings=True)

    method: str = "none"
    """A method that peft ships, by its name in lower case (lora, adalora, ia3, vera, oft, prefix_tuning, ...);
    none = no adapter."""


class TrainableConfig(Section):
    """Which of the base weights train when there is no adapter; frozen modules are in eval mode."""

    scope: Literal["all", "head", "last_blocks"] = "all"
    """Everything, the head alone, or the head and the last `last_blocks` transformer blocks."""
    last_blocks: NonNegativeInt = 0
    """Number of blocks for `scope: last_blocks`."""
    freeze_embeddings: bool = False
    """Keep the input embeddings as they are."""
    patterns: tuple[str, ...] = ()
    """Also train weights whose name matches one of these regular expressions (re.search)."""
    freeze_patterns: tuple[str, ...] = ()
    """Freeze weights whose name matches; wins over all else."""


# ---------------------------------------------------------------- data


class SourceConfig(Section):
    """One source of rows."""

    path: str
    """A file, a glob, a folder, a zip archive (read as a folder: films.zip/train.csv), a remote URL, or a hub data set
    id."""
    format: str = "auto"
    """csv, tsv, jsonl, json, parquet, excel, text, document (a file is a row), parallel, conll, image_folder, idx,
    beir, hub; auto = by the name."""
    name: str | None = None
    """The configuration of a hub data set, or of a folder whose README.md names some; null = its default."""
    split: str | None = None
    """The split of a hub data set, or of a folder whose names tell its splits as those on the hub do
    (data/train-00000-of-00001.parquet, train/, test.csv); all = every file of the folder; null = train on the hub, and
    every file of a folder that holds no more than one."""
    columns: dict[str, str | int | tuple[str, ...]] = {}
    """What the task calls a column: the file's name of it, or its number from 0 where there is no header; a path into
    objects (translation.en); a text with names in braces ("{Body} {Question}"); or a list of columns: of 0 and 1, whose
    names are the classes, or of several targets."""
    set: dict[str, str | int | float] = {}
    """What the task calls a column, with the one value that it has in all rows, e.g. {label: pos}; {folder} and {file}
    in it are the names of the file's folder and of the file without its suffix."""
    rows: str | None = None
    """Where the list of rows is in a JSON document, e.g. train, or result.items; null = the document itself, or its
    data."""
    pattern: str | None = None
    """A regular expression that matches each line of a text file, whose named groups are the columns, e.g.
    "(?P<label>\\S+) (?P<text>.+)"; null = a line is a text."""
    header: bool = True
    """The first line of a CSV or TSV file, or of a sheet, names the columns."""
    sheet: str | int | None = None
    """The sheet of an Excel workbook, by its name or its number from 0; null = the only one that has rows."""
    separator: str | None = None
    """Column separator of CSV, TSV and CoNLL files; null = by format (CoNLL: any white space)."""
    comment: str | None = None
    """Lines of a CoNLL file that start with this are left out; null = none."""
    encoding: str = "utf-8"
    """Text encoding of the files."""
    weight: PositiveFloat = 1.0
    """Times each row is read an epoch: 2 = twice, 0.5 = another random half each epoch. In a stream: how often this
    source is drawn, relative to the others."""
    limit: NonNegativeInt = 0
    """Use only the first rows, this many; 0 = all."""
    missing_values: tuple[str, ...] = ()
    """Texts that stand for a missing value in these files, e.g. [NaN, "N/A"]; null, NaN and an empty class
    always do."""
    drop: tuple[Literal["missing", "unlabelled", "blank", "unreadable"], ...] = ()
    """Rows that are left out and counted: missing = without a value that the task needs, unlabelled = without a label,
    unreadable = with an image that cannot be read (all three are refused otherwise), blank = with a text of white space
    alone (kept with a warning otherwise)."""


def _as_sources(value: Any) -> Any:
    if isinstance(value, (str, dict)):
        value = [value]
    if isinstance(value, (list, tuple)):
        return tuple({"path": item} if isinstance(item, str) else item for item in value)
    return value


Sources = Annotated[
    tuple[SourceConfig, ...],
    BeforeValidator(_as_sources, json_schema_input_type=str | SourceConfig | list[str | SourceConfig]),
]


class DataConfig(Section):
    """Where rows come from and how they become samples."""

    train: Sources = Field(min_length=1)
    """Training sources: a path, a source, or a list of them."""
    eval: Sources = ()
    """Evaluation sources; empty = see `eval_ratio`."""
    test: Sources = ()
    """Sources scored once after training; empty = none."""
    eval_ratio: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Share of the training rows held out for evaluation where `eval` is empty; 0 = none."""
    stratify: str | None = None
    """Column whose values keep their shares in both parts of `eval_ratio`; null = a plain random split."""
    streaming: bool = False
    """Read the training rows while training, without a prepared copy on disk."""
    shuffle: bool = True
    """A new seeded order each epoch."""
    group_by_length: bool = False
    """Global batches of samples of like length, in a random order: less padding where rows cannot be laid flat, but
    batches are no plain random draw any more."""
    shuffle_buffer: PositiveInt = 10_000
    """Rows held back for shuffling a stream."""
    max_empty: Fraction = 0.01
    """Largest accepted share of training rows whose targets come out empty."""
    num_workers: NonNegativeInt = 0
    """Processes that collate batches; 0 = in the training process."""
    prepare_workers: PositiveInt = 1
    """Processes that tokenise, where a source has more rows than one of them prepares at a time (1,000)."""
    cache_dir: str | None = None
    """Folder of prepared data; null = ~/.cache/ftscale."""


class BatchConfig(Section):
    """The global batch, and how a device works through its share."""

    global_size: PositiveInt = 32
    """Samples (or targets, see `unit`) per optimizer step, over all devices and accumulation."""
    unit: Literal["samples", "targets"] = "samples"
    """What `global_size` counts: samples, or supervised tokens."""
    micro_tokens: NonNegativeInt = 0
    """Most tokens, padding included, of one micro-batch on a device; 0 = no limit (`micro_size` rules)."""
    micro_size: NonNegativeInt = 0
    """Most samples of one micro-batch on a device; 0 = no limit (`micro_tokens` rules). Both 0 = 8."""
    layout: Literal["auto", "flat", "padded"] = "auto"
    """flat = samples end to end in one row without padding; padded = each to the longest of its micro-batch; auto =
    flat where the model gives the same outputs for it."""


# ---------------------------------------------------------------- optimization


class OptimizerConfig(Section):
    """The optimizer."""

    name: str = "adamw"
    """adamw, adam, sgd, adafactor, lion, ademamix, and the 8-bit and paged ones of bitsandbytes: adamw_8bit,
    adam_8bit, lion_8bit, ademamix_8bit, sgd_8bit, paged_adamw_8bit, ..."""
    lr: PositiveFloat = 5e-5
    """Peak learning rate."""
    head_lr: PositiveFloat | None = None
    """Learning rate of a new head; null = `lr`."""
    weight_decay: NonNegativeFloat = 0.01
    """Weight decay; never on biases and norms."""
    betas: tuple[float, ...] | None = None
    """Momentum coefficients; null = the optimizer's own."""
    eps: PositiveFloat | None = None
    """Added to the denominator; null = the optimizer's own."""
    momentum: Fraction = 0.9
    """Momentum of SGD."""


class ScheduleConfig(Section):
    """The learning rate over optimizer steps."""

    name: str = "linear"
    """A transformers schedule (linear, cosine, constant_with_warmup, polynomial, ...) or exponential."""
    warmup_steps: NonNegativeInt = 0
    """Optimizer steps of linear warm-up; 0 = see `warmup_ratio`."""
    warmup_ratio: Fraction = 0.0
    """Warm-up as a share of all steps, where `warmup_steps` is 0."""
    options: dict[str, Any] = {}
    """Further arguments of the schedule, e.g. `{num_cycles: 3}`, `{min_lr: 1e-6}`, `{gamma: 0.99}`."""


class TrainConfig(Section):
    """How long and how precisely to train."""

    epochs: PositiveFloat = 3.0
    """Passes over the training rows; see `max_steps`."""
    max_steps: NonNegativeInt = 0
    """Optimizer steps; 0 = by `epochs`."""
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    """fp32; bf16 = weights and arithmetic in bfloat16 with fp32 masters of trained weights; fp16 = autocast with
    loss scaling (GPU)."""
    max_grad_norm: NonNegativeFloat = 1.0
    """Gradients are scaled down to this global norm; 0 = never."""
    activation_checkpointing: bool = False
    """Recompute activations in the backward pass: less memory, about a third more time."""
    dropout: Literal["auto", "by_row", "by_process"] = "auto"
    """by_row = a mask is a function of seed, step, row, module and position, the same however a step is cut up;
    by_process = each process draws in turn, as torch does; auto = by row where the model allows it, on CPUs."""
    log_every: PositiveInt = 10
    """Optimizer steps between lines of the log, and between those that trackers get; metrics.jsonl has every step."""


def _as_report(value: Any) -> Any:
    return {"to": value} if isinstance(value, (str, list, tuple)) else value


def _as_names(value: Any) -> Any:
    return [value] if isinstance(value, str) else value


class ReportConfig(Section):
    """The page of a run (docs/report.md), and trackers that it is reported to, by rank 0 (docs/trackers.md).

    A list of names of trackers is short for `to`.
    """

    page: bool = True
    """Write report.html into the run folder when the run ends."""
    to: Annotated[tuple[str, ...], BeforeValidator(_as_names, json_schema_input_type=str | list[str])] = ()
    """Names of Accelerate's trackers: tensorboard, wandb, mlflow, trackio, comet_ml, ...; empty = none."""
    project: OneLine | None = None
    """Project of wandb and trackio, experiment of mlflow; null = what WANDB_PROJECT, MLFLOW_EXPERIMENT_NAME or
    TRACKIO_PROJECT says, else ftscale."""
    name: OneLine | None = None
    """The run's name there; null = that of its folder."""
    group: OneLine | None = None
    """Runs of a group are shown together; null = none, but for the stages of a run and the members of an array."""
    tags: tuple[OneLine, ...] = ()
    """Words to find the run by."""
    options: dict[str, dict[str, Any]] = {}
    """Further arguments of a tracker's own start, by its name, e.g. `{wandb: {mode: offline}}`."""


class EvaluationConfig(Section):
    """When the evaluation rows are scored, and what follows from it."""

    every: NonNegativeInt = 0
    """Optimizer steps between evaluations; 0 = at the end of each epoch and of training."""
    before: bool = False
    """Also evaluate before the first step."""
    micro_size: NonNegativeInt = 0
    """Most samples of one evaluation batch; 0 = as in training."""
    metric: str | None = None
    """Metric that chooses the best checkpoint, of two equal ones the one of the lower loss; null = the task's first."""
    higher_is_better: bool | None = None
    """Direction of `metric`; null = the metric's own: lower for loss, perplexity, mse and mae, higher for all else."""
    keep_best: bool = True
    """End with the weights of the best evaluation instead of the last step."""
    patience: NonNegativeInt = 0
    """Stop after this many evaluations without a better value; 0 = never."""
    groups: tuple[OneLine, ...] = ()
    """Columns of the held-out and test rows, e.g. `[language, domain]`, by which the page of the run tells scores
    apart; a source has such a column, or names it under `columns` or `set`."""

    def with_groups(self, roles: Sequence[Sequence[str]]) -> tuple[tuple[str, ...], ...]:
        """The columns of scored rows: a task's alternatives, each with `groups` besides."""
        return tuple(tuple(dict.fromkeys((*alternative, *self.groups))) for alternative in roles)


class CheckpointConfig(Section):
    """Saved states that a run can be resumed from, and the proof of what was saved."""

    every: NonNegativeInt = 0
    """Optimizer steps between checkpoints; 0 = at each evaluation."""
    keep: PositiveInt = 2
    """Newest complete checkpoints kept; the best one is kept besides."""
    in_background: bool = Field(False, alias="async")
    """Copy the state and go on training while a thread writes it, at most one checkpoint at a time."""
    before_end_s: NonNegativeFloat = 120.0
    """Write a checkpoint and stop (exit 75) so many seconds before the end of the job's time, where the launcher names
    it (SLURM_JOB_END_TIME, FTSCALE_END_TIME: seconds since 1970); 0 = never."""
    prove: Literal["never", "final", "always"] = "final"
    """Load the saved model in a fresh process without ftscale and compare its outputs with the trained one's: never,
    of the final model, or also after each checkpoint (of a copy that is deleted again)."""


class GuardConfig(Section):
    """What happens when a loss or gradient is not finite, or a loss is out of line; nothing of it is ever applied."""

    policy: Literal["stop", "skip", "rewind"] = "stop"
    """stop = end the run; skip = leave the global batch out; rewind = also go back to the weights of the last
    checkpoint, and on with the batch after the bad one."""
    limit: PositiveInt = 5
    """Bad global batches in a row after which the run stops all the same."""
    spike_z: NonNegativeFloat = 0.0
    """A loss so many standard deviations above the mean of the last `window` is bad too; 0 = never."""
    window: Annotated[int, Field(ge=10)] = 100
    """Optimizer steps whose losses `spike_z` looks at, 10 or more."""


class DistributedConfig(Section):
    """How processes share the work."""

    strategy: str | None = None
    """single, ddp, zero1, zero2, zero2_offload, zero3, zero3_offload, zero3_nvme; null = what the launcher says."""
    offload_dir: str | None = None
    """Fast local folder for zero3_nvme; a run makes one of its own in it, and removes it at its end."""
    timeout_s: PositiveFloat = 1800.0
    """A collective that takes longer ends the run."""


# ---------------------------------------------------------------- the whole


def _by_name(value: Any) -> Any:
    return {"name": value} if isinstance(value, str) else value


def _own_or_known(section: str) -> Callable[[Any, ValidatorFunctionWrapHandler], Any]:
    """What a `section` says: one of ftscale's by its name, or the one that a file of the user's describes."""
    own, unread = OWN[section]

    def read(value: Any, known: ValidatorFunctionWrapHandler) -> Any:
        if isinstance(value, own):
            return value
        if isinstance(value, dict) and "file" in value:
            return own_class(value["file"], section=section, own=own, unread=unread).model_validate(value)
        return known(_by_name(value))

    return read


if TYPE_CHECKING:
    TaskField = TaskSettings
    MethodField = MethodSettings
else:
    TaskField = Annotated[
        SerializeAsAny[TaskConfig], WrapValidator(_own_or_known("task"), json_schema_input_type=TaskName | TaskConfig)
    ]
    """What a `task` section may be."""
    MethodField = Annotated[
        SerializeAsAny[MethodConfig],
        WrapValidator(_own_or_known("method"), json_schema_input_type=MethodName | MethodConfig),
    ]
    """What a `method` section may be."""


class Config(Section):
    """A run of ftscale."""

    task: TaskField
    """The task: its name, or a section with its name and settings."""
    method: MethodField = SupervisedSettings()
    """What is learned of the task: the method's name, or a section with its name and settings."""
    run_folder: OneLine
    """Folder that the run writes; must not exist yet unless resumed or overwritten."""
    seed: NonNegativeInt = 0
    """Seed of the data order, new weights, dropout and augmentation."""
    model: Annotated[ModelConfig, BeforeValidator(_by_name, json_schema_input_type=str | ModelConfig)]
    head: HeadConfig = HeadConfig()
    adapter: AdapterConfig = AdapterConfig()
    trainable: TrainableConfig = TrainableConfig()
    data: DataConfig
    batch: BatchConfig = BatchConfig()
    optimizer: OptimizerConfig = OptimizerConfig()
    schedule: ScheduleConfig = ScheduleConfig()
    train: TrainConfig = TrainConfig()
    evaluation: EvaluationConfig = EvaluationConfig()
    checkpoint: CheckpointConfig = CheckpointConfig()
    guard: GuardConfig = GuardConfig()
    distributed: DistributedConfig = DistributedConfig()
    report: Annotated[
        ReportConfig, BeforeValidator(_as_report, json_schema_input_type=str | list[str] | ReportConfig)
    ] = ReportConfig()
    stages: tuple[dict[str, Any], ...] = Field((), exclude_if=lambda stages: not stages)
    """Runs one after another, each of which goes on with the model of the one before: a section each, with a `name` and
    the settings in which it differs from the rest of the configuration; empty = one run."""

    @model_validator(mode="before")
    @classmethod
    def _with_earlier_names(cls, data: Any) -> Any:
        """Take `train.trackers`, as run folders of earlier versions have it, for `report`."""
        train = data.get("train") if isinstance(data, dict) else None
        if not isinstance(train, dict) or not isinstance(names := train.get("trackers"), (list, tuple)):
            return data
        if names and "report" in data:
            return data
        moved = {"report": names} if names else {}
        return {**data, **moved, "train": {key: value for key, value in train.items() if key != "trackers"}}
