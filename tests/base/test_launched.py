"""What stands in the environment tells the rank, or is without effect, taken over with a line, or refused by name.

The variables and the keys are read out of the installed libraries, so that a new version with a new one fails here.
"""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import accelerate
import pytest
import torch
import yaml
from accelerate.commands.config.config_args import ClusterConfig
from accelerate.commands.launch import _validate_launch_command, launch_command_parser
from accelerate.utils.launch import prepare_deepspeed_cmd_env, prepare_multi_gpu_env, prepare_simple_launcher_cmd_env
from strategies import jobs

from ftscale.base.errors import UserError
from ftscale.base.launched import OTHERS, REFUSED, adopt_launch, check_launch, launched_processes, launched_rank
from ftscale.base.startup import unchanged_environment
from ftscale.config import parse_config
from ftscale.config.schema import DistributedConfig
from ftscale.distributed.runtime import Distributed
from ftscale.distributed.strategy import resolve_strategy
from ftscale.run.train import train

LIBRARIES = Path(accelerate.__file__).parents[1]
LAUNCHERS = (
    "RANK",
    "WORLD_SIZE",
    "LOCAL_",
    "MASTER_",
    "SLURM_",
    "OMPI_",
    "MV2_",
    "PMI_",
    "MPI_",
    "ACCELERATE_",
    "FSDP_",
)

ELSEWHERE = {
    # of the process: which devices it sees, how many threads it has, and how it talks to its peers
    *(
        "OMP_NUM_THREADS",
        "KMP_AFFINITY",
        "KMP_BLOCKTIME",
        "CUDA_VISIBLE_DEVICES",
        "NCCL_P2P_DISABLE",
        "NCCL_IB_DISABLE",
    ),
    *("NCCL_SOCKET_IFNAME", "XPU_EVENT_KL", "PYTORCH_NVML_BASED_CUDA_CHECK", "PYTORCH_ENABLE_MPS_FALLBACK"),
    *("DEEPSPEED_TIMEOUT", "TORCH_DISTRIBUTED_DEBUG"),  # waiting and checking; the run's own timeout_s is set besides
    # of Azure and SageMaker, read by DeepSpeed where it looks for MPI, which Accelerate tells it not to
    *("AZ_BATCHAI_MPI_MASTER_NODE", "AZ_BATCH_MASTER_NODE"),
    # of other programs: trackers, TPU pods, launching and SageMaker's start
    *("CLEARML_PROJECT", "CLEARML_TASK", "MLFLOW_EXPERIMENT_NAME", "MLFLOW_NESTED_RUN", "MLFLOW_RUN_ID", "MLFLOW_TAGS"),
    *("PJRT_DEVICE", "TPU_NAME", "NPROC", "AWS_ACCESS_KEY_ID", "AWS_DEFAULT_REGION", "AWS_PROFILE"),
    *("AWS_SECRET_ACCESS_KEY", "FOO", "AUTO_SAGEMAKER"),
    # of DeepSpeed: other machines' kernels, pinned memory, compiling and logging, parts that no strategy uses
    *("DS_SDMA_ALLGATHER", "DS_SDMA_ALLGATHER_MAX_NUMEL", "MORI_ENABLE_SDMA", "AUTOEP_FOLDING_DEBUG_PAYLOAD"),
    *("AUTOEP_FOLDING_DEBUG_SAMPLE_LIMIT", "DS_PIN_MEMORY_BACKEND", "DS_PIN_MEMORY_REGISTER_DEVICE"),
    *(
        "DISABLE_LOGS_WHILE_COMPILING",
        "LOGGER_METHODS_TO_EXCLUDE_FROM_DISABLE",
        "DS_ALLOW_DEPRECATED_FP",
        "DS_ACCELERATOR",
    ),
}
"""Variables with no say in what is trained, and why."""


@pytest.fixture(autouse=True)
def _no_launcher() -> Iterator[None]:
    """No launcher's variables, and after a test the environment as it was."""
    with unchanged_environment():
        for name in [name for name in os.environ if name.startswith(LAUNCHERS)]:
            del os.environ[name]
        yield


def variables_read(library: str, *, without: tuple[str, ...] = ()) -> set[str]:
    """Names of the environment in a library's source, as far as they stand there whole or as a beginning."""
    call = r"(?:environ(?:\.get\(|\.pop\(|\.setdefault\(|\[)|getenv\(|from_env\()\s*f?[\"']([A-Z][A-Z0-9_]+)"
    listed = r"get_int_from_env\(\s*\[([^\]]*)\]"
    beginning = r"(?:prefix|env_prefix) *= *[\"']([A-Z_]+)[\"']"
    found: set[str] = set()
    for path in sorted((LIBRARIES / library).rglob("*.py")):
        if not path.relative_to(LIBRARIES / library).as_posix().startswith(without):
            text = path.read_text(encoding="utf-8")
            found.update(re.findall(call, text), re.findall(beginning, text))
            found.update(name for names in re.findall(listed, text) for name in re.findall(r"[A-Z][A-Z0-9_]+", names))
            found.update(re.findall(r"[\"']((?:ACCELERATE|FSDP|MEGATRON_LM|PARALLELISM_CONFIG)_[A-Z0-9_]+)[\"']", text))
    return found


def accelerate_variables() -> list[str]:
    return sorted(variables_read("accelerate", without=("test_utils", "commands")) - ELSEWHERE)


def deepspeed_variables() -> list[str]:
    parts = ("accelerator", "comm", "runtime", "utils", "moe")
    return sorted(set().union(*(variables_read(f"deepspeed/{part}") for part in parts)) - ELSEWHERE)


def gradient_norm() -> float:
    """Of a linear layer, by Distributed; plain torch gives 32."""
    distributed = Distributed(DistributedConfig(), precision="fp32", max_grad_norm=0)
    try:
        module = torch.nn.Linear(4, 1, bias=False)
        distributed.prepare(module, torch.optim.SGD(module.parameters(), lr=0.1), unused_weights=False)
        with distributed.micro_batch(last=True):
            distributed.backward(distributed.module(torch.full((16, 4), 1.0)).sum(), last=True)
        return distributed.step()
    finally:
        distributed.close()


def test_the_libraries_are_read():
    assert {"ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "OMPI_COMM_WORLD_SIZE", "FSDP_", "RANK"} <= {
        *accelerate_variables(),
        *variables_read("accelerate"),
        "FSDP_",
    }
    assert len(accelerate_variables()) > 50
    assert {"LOCAL_SIZE", "OMPI_COMM_WORLD_RANK"} <= set(deepspeed_variables())


@pytest.mark.parametrize("value", ["4", "true"])
def test_no_variable_that_accelerate_or_deepspeed_reads_changes_a_gradient(monkeypatch: pytest.MonkeyPatch, value: str):
    assert gradient_norm() == 32.0
    without_effect, refused = [], {}
    for name in sorted({*accelerate_variables(), *deepspeed_variables()}):
        with monkeypatch.context() as patch:
            patch.setenv(name, value)
            before = dict(os.environ)
            try:
                assert gradient_norm() == 32.0, name
                without_effect.append(name)
            except UserError as error:
                refused[name] = str(error)
            assert dict(os.environ) == before, name
    assert "ACCELERATE_GRADIENT_ACCUMULATION_STEPS" in without_effect
    assert [name for name, said in refused.items() if name not in said] == []


def test_what_accelerate_reads_is_not_there_when_it_looks(monkeypatch: pytest.MonkeyPatch):
    names = [name for name in accelerate_variables() if name not in REFUSED]
    for name in names:
        monkeypatch.setenv(name, "1" if name in ("WORLD_SIZE", "LOCAL_WORLD_SIZE") else "0")
    for name in ("PMI_SIZE", "OMPI_COMM_WORLD_SIZE", "MV2_COMM_WORLD_SIZE"):
        monkeypatch.setenv(name, "4")
    adopt_launch(precision="fp32")
    assert [name for name in names if name in os.environ] == []


@pytest.mark.parametrize("name", REFUSED)
def test_what_asks_for_more_is_refused_by_name(monkeypatch: pytest.MonkeyPatch, name: str):
    monkeypatch.setenv(name, "True")
    with pytest.raises(UserError, match=f"{name} = True in the environment asks for .*, which ftscale does not do"):
        check_launch()
    monkeypatch.setenv(name, "false")
    check_launch()


def test_a_line_says_what_is_without_effect_and_what_counts(monkeypatch: pytest.MonkeyPatch):
    for name, value in {"MIXED_PRECISION": "bf16", "GRADIENT_ACCUMULATION_STEPS": "4", "DYNAMO_BACKEND": "no"}.items():
        monkeypatch.setenv(f"ACCELERATE_{name}", value)
    place = adopt_launch(precision="fp32")
    assert place.said == (
        "without effect, since the run's own configuration alone counts: ACCELERATE_GRADIENT_ACCUMULATION_STEPS=4 "
        "(batch.global_size, batch.micro_size counts), ACCELERATE_MIXED_PRECISION=bf16 (train.precision counts)",
    )
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "bf16")
    assert adopt_launch(precision="bf16").said == ()


# ---------------------------------------------------------------- keys of an accelerate config

LOUD: dict[str, Any] = {
    "distributed_type": "MULTI_CPU",
    "mixed_precision": "bf16",
    "num_processes": 2,
    "dynamo_config": {
        "dynamo_backend": "INDUCTOR",
        "dynamo_mode": "max-autotune",
        "dynamo_use_dynamic": True,
        "dynamo_use_fullgraph": True,
        "dynamo_use_regional_compilation": True,
    },
    "fp8_config": {"backend": "MSAMP", "fp8_format": "E4M3", "margin": 1},
    "debug": True,
    "downcast_bf16": True,
    "enable_cpu_affinity": True,
    "main_training_function": "other",
}
PLUGINS = {
    "deepspeed_config": {
        "zero_stage": 3,
        "gradient_accumulation_steps": 4,
        "gradient_clipping": 0.1,
        "offload_optimizer_device": "none",
        "offload_param_device": "none",
        "zero3_init_flag": True,
        "zero3_save_16bit_model": True,
        "deepspeed_moe_layer_cls_names": "Experts",
    },
    "fsdp_config": {
        "fsdp_sharding_strategy": "FULL_SHARD",
        "fsdp_offload_params": True,
        "fsdp_state_dict_type": "FULL",
    },
    "megatron_lm_config": {"megatron_lm_tp_degree": 2, "megatron_lm_gradient_clipping": 0.1},
    "parallelism_config": {"parallelism_config_tp_size": 2, "parallelism_config_cp_size": 2},
}
TYPES = {"deepspeed_config": "DEEPSPEED", "fsdp_config": "FSDP", "megatron_lm_config": "MEGATRON_LM"}
OF_THE_LAUNCHER = {
    *("compute_environment", "use_cpu", "num_machines", "gpu_ids", "machine_rank", "main_process_ip"),
    *("main_process_port", "rdzv_backend", "same_network", "mpirun_config", "tpu_name", "tpu_zone", "tpu_use_cluster"),
    *("tpu_use_sudo", "command_file", "commands", "tpu_vm", "tpu_env", "ipex_config"),
}
"""Keys about where and how processes are started."""


def launched_by(work: Path, settings: dict[str, Any]) -> dict[str, str]:
    """What `accelerate launch -m ftscale train` with this config file puts into the environment."""
    work.mkdir(parents=True, exist_ok=True)
    file = work / "default_config.yaml"
    file.write_text(yaml.safe_dump({"distributed_type": "NO", "compute_environment": "LOCAL_MACHINE", **settings}))
    arguments = launch_command_parser().parse_args(["--config_file", str(file), "-m", "ftscale", "train"])
    arguments, *_ = _validate_launch_command(arguments)
    arguments.main_process_port = 0
    arguments.deepspeed_fields_from_accelerate_config = ",".join(settings.get("deepspeed_config", {}))
    if settings.get("distributed_type") == "DEEPSPEED":
        _, environment = prepare_deepspeed_cmd_env(arguments)
    elif settings.get("distributed_type") in ("FSDP", "MEGATRON_LM") or "parallelism_config" in settings:
        environment = prepare_multi_gpu_env(arguments)
    else:
        _, environment = prepare_simple_launcher_cmd_env(arguments)
    return {name: value for name, value in environment.items() if os.environ.get(name) != value}


def test_every_key_of_an_accelerate_config_is_gone_over():
    keys = {*ClusterConfig.__dataclass_fields__}
    assert keys <= {*LOUD, *PLUGINS, *OF_THE_LAUNCHER}, keys - {*LOUD, *PLUGINS, *OF_THE_LAUNCHER}


@pytest.mark.parametrize("key", [*LOUD, *PLUGINS])
def test_no_key_of_an_accelerate_config_changes_a_gradient(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, key: str):
    value = LOUD.get(key, PLUGINS.get(key))
    kind = {"distributed_type": TYPES[key]} if key in TYPES else {}
    told = launched_by(tmp_path, {"num_processes": 1, "mixed_precision": "no", **kind, key: value})
    for name, text in told.items():
        if not name.startswith(("RANK", "WORLD", "MASTER")):
            monkeypatch.setenv(name, text)
    unknown = {name for name in told if not name.startswith(OTHERS)} - ELSEWHERE
    assert not {name for name in unknown if not name.startswith(("MASTER_", "PYTHON", "OMP", "KMP"))}
    if key in ("fsdp_config", "megatron_lm_config", "parallelism_config"):
        with pytest.raises(UserError, match=key):
            check_launch()
    elif key == "deepspeed_config":
        assert resolve_strategy(DistributedConfig()).name == "zero3"
        with pytest.raises(UserError, match="zero1, but the launcher was started with zero3"):
            resolve_strategy(DistributedConfig(strategy="zero1"))
    else:
        assert gradient_norm() == 32.0


def test_a_run_with_all_of_it_in_the_environment_is_the_run_without(
    shared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    config = jobs.captions(shared, tmp_path) | {"train": {"max_steps": 2}, "evaluation": {}}
    config["data"].pop("eval")

    def steps(name: str) -> list[tuple[float, float]]:
        train(parse_config({**config, "run_folder": str(tmp_path / name)}, source="test"))
        return [(line["loss"], line["grad_norm"]) for line in jobs.train_lines(tmp_path / name)]

    expected = steps("without")
    for name, text in launched_by(tmp_path, LOUD | {"distributed_type": "NO", "num_processes": 1}).items():
        monkeypatch.setenv(name, text)
    monkeypatch.setenv("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "4")
    monkeypatch.setenv("PMI_SIZE", "3")
    assert steps("with") == expected
    assert "ACCELERATE_GRADIENT_ACCUMULATION_STEPS=4" in capsys.readouterr().err


# ---------------------------------------------------------------- ranks, whole, in part and left over

TORCHRUN = {"RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "1", "MASTER_ADDR": "node", "MASTER_PORT": "1234"}
SRUN = {
    "SLURM_PROCID": "3",
    "SLURM_LOCALID": "1",
    "SLURM_STEP_NUM_TASKS": "4",
    "SLURM_STEP_NODELIST": "node[1-2]",
    "SLURM_JOB_ID": "77",
    "SLURM_STEP_ID": "2",
}
MPIRUN = {"OMPI_COMM_WORLD_RANK": "1", "OMPI_COMM_WORLD_SIZE": "2", "OMPI_COMM_WORLD_LOCAL_RANK": "1"}
ADDRESS = {"MASTER_ADDR": "node", "MASTER_PORT": "1234"}


def place(monkeypatch: pytest.MonkeyPatch, variables: dict[str, str]) -> tuple[int, int, dict[str, str]]:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    before = launched_rank(), launched_processes()
    found = adopt_launch(precision="fp32")
    assert before == (found.rank, found.world_size)
    return *before, {name: os.environ[name] for name in TORCHRUN if name in os.environ}


@pytest.fixture
def scontrol(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = tmp_path / "bin/scontrol"
    program.parent.mkdir()
    program.write_text("#!/bin/sh\nprintf 'node1\\nnode2\\n'\n")
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", f"{program.parent}{os.pathsep}{os.environ['PATH']}")


def test_torchrun_srun_and_mpirun_tell_the_rank(monkeypatch: pytest.MonkeyPatch, scontrol: None):
    assert place(monkeypatch, {**TORCHRUN, **SRUN, "PMI_SIZE": "9", "PMI_RANK": "5"}) == (1, 2, TORCHRUN)
    for name in TORCHRUN:
        monkeypatch.delenv(name)
    told = {"RANK": "3", "WORLD_SIZE": "4", "LOCAL_RANK": "1", "MASTER_ADDR": "node1", "MASTER_PORT": "10772"}
    assert place(monkeypatch, SRUN) == (3, 4, told)
    for name in [*TORCHRUN, *SRUN]:
        monkeypatch.delenv(name, raising=False)
    assert place(monkeypatch, MPIRUN | ADDRESS) == (1, 2, TORCHRUN)


@pytest.mark.parametrize(
    "variables",
    [
        {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0", **ADDRESS, "TORCHELASTIC_USE_AGENT_STORE": "True"},
        {"LOCAL_RANK": "3"},
        {"LOCAL_RANK": "3", **ADDRESS},
        {"MASTER_PORT": "1"},
        {"SLURM_PROCID": "3", "SLURM_LOCALID": "1", "SLURM_NTASKS": "8", "SLURM_JOB_ID": "77"},
        {"SLURM_PROCID": "0", "SLURM_STEP_NUM_TASKS": "1"},
        {"PMI_SIZE": "4"},
        {"OMPI_COMM_WORLD_RANK": "3"},
        {"OMPI_COMM_WORLD_RANK": "0", "OMPI_COMM_WORLD_SIZE": "1"},
        {"LOCAL_SIZE": "4", "CROSS_RANK": "2"},
    ],
    ids=lambda variables: " ".join(variables),
)
def test_what_is_left_over_of_a_job_leaves_a_process_alone(monkeypatch: pytest.MonkeyPatch, variables: dict[str, str]):
    assert place(monkeypatch, variables) == (0, 1, {})
    assert "TORCHELASTIC_USE_AGENT_STORE" not in os.environ


@pytest.mark.parametrize(
    ("variables", "says"),
    [
        ({"WORLD_SIZE": "2"}, "WORLD_SIZE = 2 in the environment, but no RANK, LOCAL_RANK, MASTER_ADDR, MASTER_PORT"),
        ({"RANK": "3"}, r"RANK = 3 of WORLD_SIZE = \(not set\) in the environment cannot be"),
        ({**TORCHRUN, "RANK": "2"}, "RANK = 2 of WORLD_SIZE = 2 in the environment cannot be"),
        ({**TORCHRUN, "RANK": "-1"}, "RANK = -1 of WORLD_SIZE = 2"),
        ({"WORLD_SIZE": "two"}, "WORLD_SIZE = 'two' in the environment is no number"),
        ({"RANK": ""}, "RANK = '' in the environment is no number"),
        (
            {name: TORCHRUN[name] for name in TORCHRUN if name != "MASTER_ADDR"},
            "2 in the environment, but no MASTER_ADDR",
        ),
        ({name: TORCHRUN[name] for name in TORCHRUN if name != "LOCAL_RANK"}, "but no LOCAL_RANK"),
        (
            {"SLURM_STEP_NUM_TASKS": "4"},
            "SLURM_STEP_NUM_TASKS = 4 in the environment, but no SLURM_PROCID, SLURM_LOCALID",
        ),
        (MPIRUN, "OMPI_COMM_WORLD_SIZE = 2 in the environment is mpirun's, but MASTER_ADDR and MASTER_PORT is not set"),
    ],
)
def test_what_tells_a_rank_in_part_is_refused(monkeypatch: pytest.MonkeyPatch, variables: dict[str, str], says: str):
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(UserError, match=says):
        check_launch()
    with pytest.raises(UserError, match=says):
        Distributed(DistributedConfig(), precision="fp32", max_grad_norm=0)


def test_srun_without_slurm_is_one_sentence(monkeypatch: pytest.MonkeyPatch):
    for name, value in {**SRUN, "PATH": "/nowhere"}.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(UserError, match="SLURM_STEP_NODELIST = .* scontrol cannot tell its nodes"):
        adopt_launch(precision="fp32")


@pytest.mark.parametrize(
    ("told", "strategy"),
    [
        ({"ZERO_STAGE": "2"}, "zero2"),
        ({"ZERO_STAGE": "2", "OFFLOAD_OPTIMIZER_DEVICE": "cpu"}, "zero2_offload"),
        ({"ZERO_STAGE": "3", "OFFLOAD_PARAM_DEVICE": "nvme", "OFFLOAD_OPTIMIZER_DEVICE": "cpu"}, "zero3_nvme"),
        ({}, "single"),
    ],
)
def test_the_answers_to_accelerate_config_name_the_strategy(
    monkeypatch: pytest.MonkeyPatch, told: dict[str, str], strategy: str
):
    monkeypatch.setenv("ACCELERATE_USE_DEEPSPEED", "true")
    for name, value in told.items():
        monkeypatch.setenv(f"ACCELERATE_DEEPSPEED_{name}", value)
    assert resolve_strategy(DistributedConfig()).name == strategy


@pytest.mark.parametrize("told", [{"ZERO_STAGE": "0"}, {"ZERO_STAGE": "1", "OFFLOAD_OPTIMIZER_DEVICE": "cpu"}])
def test_a_stage_that_is_no_strategy_is_refused(monkeypatch: pytest.MonkeyPatch, told: dict[str, str]):
    monkeypatch.setenv("ACCELERATE_USE_DEEPSPEED", "true")
    for name, value in told.items():
        monkeypatch.setenv(f"ACCELERATE_DEEPSPEED_{name}", value)
    with pytest.raises(UserError, match=r"ACCELERATE_DEEPSPEED_ZERO_STAGE = \d in the environment .* name one: single"):
        resolve_strategy(DistributedConfig())


def test_deepspeed_that_is_to_be_left_out_is_refused(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    assert resolve_strategy(DistributedConfig()).name == "single"
    with pytest.raises(UserError, match="zero2 asked for DeepSpeed, but ACCELERATE_USE_CPU = true"):
        resolve_strategy(DistributedConfig(strategy="zero2"))
