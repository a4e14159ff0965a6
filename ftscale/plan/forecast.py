"""`ftscale plan`: memory, time and cost of a run before it starts, and what else would fit."""

from __future__ import annotations

import json
from bisect import bisect_left
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import takewhile
from typing import Any

from ftscale.base.errors import UserError
from ftscale.base.logs import log
from ftscale.checks.sample import read_sample
from ftscale.checks.schedule import steps_per_epoch
from ftscale.config import Config
from ftscale.config.compatibility import check_combination
from ftscale.config.methods.supervised import SupervisedSettings
from ftscale.config.schema import TrainableConfig
from ftscale.config.stages import stages_of
from ftscale.config.strategies import STRATEGIES, Strategy, default_strategy, find_strategy
from ftscale.methods.supervised import Supervised
from ftscale.models.trust import NeedsCodeError, without_code
from ftscale.plan.batches import MicroBatches
from ftscale.plan.devices import Device, load_device
from ftscale.plan.dry_run import DryStep, Probe, dry_step
from ftscale.plan.memory import Memory, forecast_memory, state_bytes
from ftscale.plan.timing import Time, forecast_time, traffic_bytes, update_seconds
from ftscale.precheck import check_config
from ftscale.tasks import build_task

INTERCONNECT_GB_S = 25.0
"""Between machines, a device's share: 200 Gbit/s."""
OFFERED = tuple(strategy for strategy in STRATEGIES.values() if not strategy.on_disk)
"""Strategies that are compared; of a disk there is no estimate, and it needs a folder."""
LORA = {"method": "lora", "r": 16, "target_modules": "all-linear"}
WEIGHTS: dict[str, dict[str, Any]] = {
    "as configured": {},
    "full": {"adapter": {"method": "none"}, "model.quantization": "none"},
    "lora": {"adapter": LORA, "model.quantization": "none"},
    "nf4 + lora": {"adapter": LORA, "model.quantization": "nf4"},
}


@dataclass(frozen=True)
class Choice:
    """A way to run that fits."""

    settings: dict[str, Any]
    """What differs from the configuration: dotted settings and their values."""
    strategy: str
    weights: str
    checkpointing: bool
    memory: Memory
    time: Time

    def lines(self) -> list[str]:
        """As they can be pasted behind `ftscale train RUN.yaml`."""
        return [f"{name}={_written(value)}" for name, value in self.settings.items()]


@dataclass(frozen=True)
class Plan:
    """The forecast of a run."""

    config: Config
    device: Device
    nodes: int
    gpus_per_node: int
    strategy: str
    memory: Memory
    step: DryStep
    time: Time
    num_steps: int | None
    micro_batch_tokens: int
    largest_micro_size: int
    """Longest samples that fit into a micro-batch; 0 = not even one."""
    checkpoint_bytes: float
    """Of one checkpoint on disk."""
    disk_bytes: float
    """Of all checkpoints that are kept, the one being written, and the model."""
    choices: list[Choice]
    """Ways that fit, the recommended one first; empty where they were not asked for."""
    stages: dict[str, Plan] = field(default_factory=dict)
    """Of a run of several stages the plan of each by its name; the whole is that of the fullest, with the time of all
    and without choices."""

    @property
    def fits(self) -> bool:
        """Tell whether the fullest moment stays within the memory of a device."""
        return self.memory.total <= self.device.memory

    @property
    def world_size(self) -> int:
        """Count the processes of all nodes, one for each device."""
        return self.nodes * self.gpus_per_node


def plan_run(
    config: Config,
    *,
    gpu: str | None = None,
    nodes: int = 1,
    gpus_per_node: int = 1,
    interconnect_gb_s: float = INTERCONNECT_GB_S,
    usd_per_hour: float | None = None,
    full: bool = False,
    compare: bool = True,
) -> Plan:
    """Forecast a run on `nodes` machines of `gpus_per_node` devices. No weights are read, no code of the model is run.

    `gpu`: a name of devices.json; None = this machine's processor. `full`: look at all rows. `compare`: also rank other
    strategies, adapters and activation checkpointing. Raises UserError for what `ftscale check` finds, and for an
    unknown device.
    """
    if stages := stages_of(config):
        plans = {
            stage.name: plan_run(
                stage.beforehand,
                gpu=gpu,
                nodes=nodes,
                gpus_per_node=gpus_per_node,
                interconnect_gb_s=interconnect_gb_s,
                usd_per_hour=usd_per_hour,
                full=full,
                compare=False,
            )
            for stage in stages
        }
        return _together(plans)
    device = load_device(gpu, usd_per_hour=usd_per_hour)
    processor = check_config(config, runs_code=False)
    if config.model.trust_remote_code:
        if processor is None and not build_task(config.task).modality.learns:
            raise NeedsCodeError(
                f"model.trust_remote_code = true, but a plan runs no code of a model, and {config.model.name} cannot "
                "be had without; train a few steps (train.max_steps: 5) and look at memory and time in metrics.jsonl."
            )
        log.warning("model.trust_remote_code = true: a plan runs no code of a model; this is the plan without it")
        config = config.model_copy(update={"model": without_code(config.model)})
    sample = read_sample(config, processor, full=full)
    if sample.task.says("before_step"):
        log.warning(
            "method.name = %s acts before each step: this is the plan of the task without it", config.method.name
        )
        sample = replace(sample, task=Supervised(SupervisedSettings(), sample.task.inner))
    config, world_size = sample.config, nodes * gpus_per_node
    if sample.problems:
        raise UserError(*sample.problems)
    planner = _Planner(
        config,
        device,
        MicroBatches(sample, world_size=world_size),
        nodes=nodes,
        world_size=world_size,
        interconnect_gb_s=interconnect_gb_s,
        epoch_steps=steps_per_epoch(config, sample),
    )
    strategy = find_strategy(config.distributed.strategy) or default_strategy(world_size)
    if problems := check_combination(config, strategy=strategy):
        raise UserError(*problems)
    step = planner.dry(config, strategy)
    memory = planner.memory(config, strategy)
    saved = _checkpoint_bytes(config, step)
    return Plan(
        config=config,
        device=device,
        nodes=nodes,
        gpus_per_node=gpus_per_node,
        strategy=strategy.name,
        memory=memory,
        step=step,
        time=planner.time(config, strategy),
        num_steps=planner.num_steps(config),
        micro_batch_tokens=planner.batches.tokens(config, flat=step.layout == "flat"),
        largest_micro_size=planner.largest_micro_size(config, strategy),
        checkpoint_bytes=saved,
        disk_bytes=saved * (config.checkpoint.keep + 2) + step.sizes.bytes,
        choices=planner.choices(config) if compare else [],
    )


def _together(plans: dict[str, Plan]) -> Plan:
    """The plan of the fullest stage, with the steps, time, cost and disk of all of them."""
    every = list(plans.values())
    fullest = max(every, key=lambda plan: plan.memory.total)
    time = replace(
        fullest.time,
        total_s=_sum([plan.time.total_s for plan in every]),
        gpu_hours=_sum([plan.time.gpu_hours for plan in every]),
        usd=_sum([plan.time.usd for plan in every]),
    )
    steps = _sum([plan.num_steps for plan in every])
    return replace(
        fullest,
        time=time,
        num_steps=None if steps is None else int(steps),
        disk_bytes=sum(plan.disk_bytes for plan in every),
        stages=plans,
    )


def _sum(values: Sequence[float | None]) -> float | None:
    """None where one of them is not known."""
    known = [value for value in values if value is not None]
    return sum(known) if len(known) == len(values) else None


class _Planner:
    """Forecasts for variants of one configuration; steps that were run once are kept."""

    def __init__(
        self,
        config: Config,
        device: Device,
        batches: MicroBatches,
        *,
        nodes: int,
        world_size: int,
        interconnect_gb_s: float,
        epoch_steps: int | None,
    ) -> None:
        self.config = config
        self.device = device
        self.batches = batches
        self.nodes = nodes
        self.world_size = world_size
        self.interconnect_gb_s = interconnect_gb_s
        self.epoch_steps = epoch_steps
        self.steps: dict[str, DryStep] = {}
        self.sizes: dict[str, DryStep] = {}
        """A step of each kind of weights, for what does not depend on activations."""

    @cached_property
    def probe(self) -> Probe | None:
        task = self.batches.sample.task
        if not task.modality.in_tokens:
            return None
        probe = Probe(self.config, task)
        probe.know_head(task, self.batches.shortest())
        return probe

    def dry(self, config: Config, strategy: Strategy) -> DryStep:
        """A step of the longest micro-batch."""
        sharded = strategy.shards_weights
        model = config.model.model_copy(update={"quantization": "none"})  # counted in the memory, not in the step
        sections = (model, config.adapter, config.trainable, config.head, config.batch, config.train)
        key = "/".join([*(section.model_dump_json() for section in sections), str(sharded)])
        if key not in self.steps:
            probe = self.probe
            count, _ = self.batches.per_step(config, flat=probe is not None)
            self.steps[key] = dry_step(
                config,
                self.batches.sample.task,
                self.batches.longest(config),
                probe=probe,
                kind="cuda" if self.device.is_gpu else "cpu",
                accumulates=count > 1,
                sharded=sharded,
            )
        return self.steps[key]

    def memory(self, config: Config, strategy: Strategy) -> Memory:
        return self._memory(config, self.dry(config, strategy), strategy)

    def _memory(self, config: Config, step: DryStep, strategy: Strategy) -> Memory:
        return forecast_memory(
            config,
            step,
            strategy=strategy,
            world_size=self.world_size,
            on_gpu=self.device.is_gpu,
        )

    def num_steps(self, config: Config) -> int | None:
        if config.train.max_steps:
            return config.train.max_steps
        return None if self.epoch_steps is None else max(1, round(self.epoch_steps * config.train.epochs))

    def time(self, config: Config, strategy: Strategy) -> Time:
        step = self.dry(config, strategy)
        flat = step.layout == "flat"
        count, tokens = self.batches.per_step(config, flat=flat)
        traffic = traffic_bytes(
            step.sizes,
            strategy=strategy,
            world_size=self.world_size,
            micro_batches=count,
            weight_bytes=step.sizes.trained_bytes / max(step.sizes.trained, 1),
        )
        return forecast_time(
            flops=step.flops * tokens / max(self.batches.tokens(config, flat=flat), 1),
            update_s=update_seconds(
                config, step.sizes, strategy=strategy, world_size=self.world_size, device=self.device
            ),
            traffic=traffic,
            tokens=self.batches.mean_tokens(config),
            num_steps=self.num_steps(config),
            strategy=strategy,
            device=self.device,
            precision=config.train.precision,
            world_size=self.world_size,
            nodes=self.nodes,
            interconnect_gb_s=self.interconnect_gb_s,
        )

    def largest_micro_size(self, config: Config, strategy: Strategy) -> int:
        """Longest samples of a micro-batch that fit: activations grow with tokens, all else stays."""
        step = self.dry(config, strategy)
        tokens = self.batches.tokens(config, flat=step.layout == "flat")
        longest = int(self.batches.lengths.max())

        def fits(size: int) -> bool:
            grown = size * longest / tokens
            moments = [{**kinds, "activations": kinds["activations"] * grown} for kinds in step.moments]
            return self._memory(config, replace(step, moments=moments), strategy).total <= self.device.memory

        sizes = range(1, self.batches.global_rows(config) + 1)
        return bisect_left(sizes, True, key=lambda size: not fits(size))

    def choices(self, config: Config) -> list[Choice]:
        """What fits, the cheapest first; the smallest change of the configuration where the cost is about the same."""
        found = []
        self.sizes["as configured"] = next(iter(self.steps.values()))
        for weights, settings in WEIGHTS.items():
            if weights == _weights_of(config):
                continue
            for checkpointing in (False, True):
                changes = {**settings, "train.activation_checkpointing": checkpointing}
                if changes.get("adapter") == LORA:
                    changes["trainable"] = TrainableConfig().model_dump()
                variant = _with(config, changes)
                for strategy in OFFERED:
                    found += self._choice(config, variant, changes, weights, strategy)
        return list(_ranked(found))

    def _choice(
        self, config: Config, variant: Config, changes: dict[str, Any], weights: str, strategy: Strategy
    ) -> list[Choice]:
        if not strategy.is_zero and strategy != default_strategy(self.world_size):
            return []
        if check_combination(_with(variant, {"distributed.strategy": strategy.name})):
            return []
        known = self.sizes.get(weights)
        if known and self._memory(variant, replace(known, moments=[]), strategy).total > self.device.memory:
            return []  # weights and optimizer alone are too much
        try:
            memory = self.memory(variant, strategy)
        except UserError:  # not every model can recompute its activations, or take LoRA
            return []
        self.sizes.setdefault(weights, self.dry(variant, strategy))
        if memory.total > self.device.memory:
            return []
        settings = {name: value for name, value in changes.items() if _differs(config, name, value)}
        if strategy.name != (config.distributed.strategy or default_strategy(self.world_size).name):
            settings["distributed.strategy"] = strategy.name
        checkpointing = variant.train.activation_checkpointing
        return [Choice(settings, strategy.name, weights, checkpointing, memory, self.time(variant, strategy))]


SAME_SPEED = 0.05
"""Steps whose forecasts are this close, as a ratio, are taken for equally fast: the forecast itself is no closer."""

PREFERENCE = {"as configured": 0, "full": 1, "lora": 2, "nf4 + lora": 3}


def _ranked(choices: list[Choice]) -> Iterator[Choice]:
    """The weights that were asked for first, then the fastest; of those as fast, the one that changes least."""
    left = sorted(choices, key=lambda choice: (PREFERENCE[choice.weights], choice.time.step_s, choice.memory.total))
    while left:
        as_fast = takewhile(lambda choice: _is_as_fast(choice, left[0]), left)
        chosen = min(as_fast, key=lambda choice: len(choice.settings))
        left.remove(chosen)
        yield chosen


def _is_as_fast(choice: Choice, fastest: Choice) -> bool:
    return choice.weights == fastest.weights and choice.time.step_s <= fastest.time.step_s * (1 + SAME_SPEED)


def _weights_of(config: Config) -> str:
    if config.adapter.method == "none":
        return "full"
    return "nf4 + lora" if config.model.quantization == "nf4" else "lora" if config.adapter.method == "lora" else ""


def _with(config: Config, changes: dict[str, Any]) -> Config:
    """The configuration with sections and dotted settings changed; an adapter leaves no base weight to `trainable`."""
    data = config.model_dump()
    for name, value in changes.items():
        section, _, key = name.partition(".")
        if key:
            data[section][key] = value
        else:
            data[section] = value
    return Config.model_validate(data)


def _differs(config: Config, name: str, value: Any) -> bool:
    section, _, key = name.partition(".")
    written = config.model_dump()[section]
    return (written[key] if key else written) != value


def _checkpoint_bytes(config: Config, step: DryStep) -> float:
    """Trained weights, masters and state of all ranks together."""
    sizes = step.sizes
    masters = sizes.trained * 4 if config.train.precision == "bf16" else 0.0
    return sizes.trained_bytes + masters + state_bytes(config.optimizer.name, sizes.trained)


def _written(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)
