"""Every setting of a run, with its unit and the meaning of 0 and null."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    model_validator,
)

from ftscale.config.class_names import names_and_ids, only_names
from ftscale.shown import control_characters

Labels = Annotated[
    tuple[str, ...] | None,
    BeforeValidator(only_names, json_schema_input_type=list[str | int] | dict[str, str] | str | None),
]
Fraction = Annotated[float, Field(ge=0, le=1)]


def _one_line(value: str) -> str:
    if found := control_characters(value):
        raise ValueError(f"must hold no line ends and other control characters (it has {found})")
    return value


OneLine = Annotated[str, AfterValidator(_one_line)]
"""A text that reaches a job script, where a line end would begin a command."""


class Section(BaseModel):
    """A part of the configuration: frozen, unknown keys refused, field docstrings kept as descriptions."""

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        allow_inf_nan=False,
        use_attribute_docstrings=True,
        protected_namespaces=(),
        serialize_by_alias=True,  # `async` in files, which is no name in Python
    )


# ---------------------------------------------------------------- tasks


class TextSettings(Section):
    """What all text tasks share."""

    max_length: PositiveInt | None = None
    """Longest sample in tokens; null = the model's own limit (at most 2048)."""
    too_long: Literal["truncate", "drop", "raise"] = "truncate"
    """What happens to a longer sample; each is counted in the data report."""


class ClassNames(Section):
    """Classes and their numbers."""

    labels: Labels = None
    """Class names in the order of their ids, or numbers that the files write to names, e.g. {0: repair}, or a text file
    with a name a line (JSON: a list or a mapping); null = those of the training data, sorted."""
    label_ids: tuple[int, ...] | None = None
    """Numbers that stand for `labels` in the files, in their order; null = with `labels` that are no numbers
    themselves 0, 1, 2, ..., else none."""

    @model_validator(mode="before")
    @classmethod
    def _number_names(cls, data: Any) -> Any:
        if not isinstance(data, dict) or data.get("labels") is None or "label_ids" in data:
            return data
        try:
            names, ids = names_and_ids(data["labels"])
        except ValueError:  # told where the field itself is read
            return data
        return {**data, "labels": names, "label_ids": ids}

    @model_validator(mode="after")
    def _as_many_numbers(self) -> ClassNames:
        if self.label_ids is not None and len(self.label_ids) != len(self.labels or ()):
            raise ValueError(
                f"label_ids has {len(self.label_ids)} numbers for {len(self.labels or ())} labels; make it null"
            )
        return self


class TextClassificationSettings(TextSettings, ClassNames):
    """Classes, several classes at once, or a number for a text or a pair of texts (`text`, `text_pair`, `label`)."""

    name: Literal["text_classification"] = "text_classification"
    """The task."""
    problem: Literal["single_label", "multi_label", "regression"] = "single_label"
    """One class a row, any number of classes a row (a list, or joined by `label_separator`), or a number."""
    label_separator: str = ","
    """Splits the label column of a multi-label row that is not a list."""


class TokenClassificationSettings(TextSettings, ClassNames):
    """A tag for each word (`words`, `tags`)."""

    name: Literal["token_classification"] = "token_classification"
    """The task."""
    scheme: Literal["auto", "IOB1", "IOB2", "BIOES"] = "auto"
    """The tag scheme of the files (BIOES is also known as IOBES); auto = recognised. Trained and scored as IOB2."""


class GenerationSettings(Section):
    """Text generated in evaluation."""

    max_new_tokens: PositiveInt = 64
    """Longest generated text in tokens."""
    num_beams: PositiveInt = 1
    """Beam width; 1 = greedy."""
    options: dict[str, Any] = {}
    """Fields of transformers' GenerationConfig that say which tokens may follow, over the model's own, e.g.
    `{repetition_penalty: 1.0, min_length: 0, forced_bos_token_id: null}`."""


class CausalLMSettings(TextSettings):
    """The next token: of plain text (`text`), of a completion (`prompt`, `completion`), or of a chat.

    A chat is a `messages` column (role, content), ShareGPT's `conversations` (from, value), or Alpaca's
    `instruction`, `input`, `output`.
    """

    name: Literal["causal_lm"] = "causal_lm"
    """The task."""
    targets: Literal["assistant", "last", "all"] = "assistant"
    """Supervised tokens of a chat or a completion: every assistant turn, the last one, or every token."""
    chat_template: str | None = None
    """A Jinja template (text, or the path of a .jinja file), or one of chatml, llama2, llama3, alpaca; null = the
    tokenizer's own."""
    join_texts: bool = False
    """Lay plain texts end to end, separated by the end token, and cut into samples of `max_length`."""
    generate: GenerationSettings | None = None
    """Generate the last turn in evaluation and score it by exact match and ROUGE; null = do not."""
    answer_pattern: str | None = None
    """Regular expression whose last match (first group) is the answer that exact match compares, e.g. `#### (.+)`;
    null = the whole text."""


class Seq2SeqSettings(TextSettings):
    """A text from a text (`source`, `target`)."""

    name: Literal["seq2seq"] = "seq2seq"
    """The task."""
    max_target_length: PositiveInt | None = None
    """Longest target in tokens; null = `max_length`."""
    source_prefix: str = ""
    """Put before each source, e.g. `translate German to English: ` for T5."""
    source_language: str | None = None
    """Code of the sources' language, where the tokenizer writes one (mBART, NLLB, M2M100), e.g. `deu_Latn`; null = as
    the tokenizer's files say."""
    target_language: str | None = None
    """Code of the targets' language; generation begins with it. null = as the tokenizer's files say."""
    generate: GenerationSettings | None = GenerationSettings()
    """Generate in evaluation and score by sacreBLEU, chrF and ROUGE; null = loss and token accuracy only."""


class AugmentationSettings(Section):
    """Random changes of training images, by kornia, seeded by sample and epoch."""

    crop: Fraction = 0.0
    """Random resized crop keeping at least this share of the area; 0 = none."""
    flip: bool = False
    """Mirror left to right with probability one half."""
    color: NonNegativeFloat = 0.0
    """Strength of the jitter of brightness, contrast and saturation; 0 = none."""
    rand_augment: Annotated[int, Field(ge=0, le=15)] = 0
    """Number of RandAugment operations, at most 15; 0 = none."""
    rand_augment_magnitude: Annotated[int, Field(ge=1, le=29)] = 9
    """Strength of each RandAugment operation, 1 to 29."""


class ImageClassificationSettings(ClassNames):
    """A class for an image (`image`: path or bytes, `label`)."""

    name: Literal["image_classification"] = "image_classification"
    """The task."""
    image_size: PositiveInt | None = None
    """Height and width in pixels after preparation; null = the image processor's own."""
    max_pixels: PositiveInt = 64_000_000
    """Most pixels of an image as it lies in its file; one with more is refused before it is decoded, which takes up to
    32 bytes of memory a pixel."""
    augment: AugmentationSettings = AugmentationSettings()
    """Random changes of training images."""


TaskSettings = Annotated[
    TextClassificationSettings
    | TokenClassificationSettings
    | CausalLMSettings
    | Seq2SeqSettings
    | ImageClassificationSettings,
    Field(discriminator="name"),
]

TaskName = Literal["text_classification", "token_classification", "causal_lm", "seq2seq", "image_classification"]


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
    """A file, a glob, a folder, a remote URL, or a hub data set id."""
    format: str = "auto"
    """csv, tsv, jsonl, json, parquet, text, parallel, conll, image_folder, idx, hub; auto = by the file's name."""
    name: str | None = None
    """The configuration of a hub data set, or of a folder whose README.md names some; null = its default."""
    split: str | None = None
    """The split of a hub data set, or of a folder whose names tell its splits as those on the hub do
    (data/train-00000-of-00001.parquet, train/, test.csv); all = every file of the folder; null = train on the hub, and
    every file of a folder that holds no more than one."""
    columns: dict[str, str | int] = {}
    """What the task calls a column: the file's name of it, or its number from 0 where there is no header."""
    header: bool = True
    """The first line of a CSV or TSV file names the columns."""
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
    drop: tuple[Literal["missing", "blank"], ...] = ()
    """Rows that are left out and counted: missing = without a value that the task needs (refused otherwise), blank =
    with a text of white space alone (kept with a warning otherwise)."""


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
    """Processes that tokenise."""
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
    log_every: PositiveInt = 10
    """Optimizer steps between lines of the log; metrics.jsonl has every step."""
    trackers: tuple[str, ...] = ()
    """Trackers of Accelerate to report to: tensorboard, wandb, mlflow, ..."""


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


class Config(Section):
    """A run of ftscale."""

    task: Annotated[TaskSettings, BeforeValidator(_by_name, json_schema_input_type=TaskName | TaskSettings)]
    """The task: its name, or a section with its name and settings."""
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
