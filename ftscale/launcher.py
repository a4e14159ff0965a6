"""`ftscale launch`: everything that can go wrong early is found here, then Accelerate starts the processes."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from ftscale.config import load_config
from ftscale.errors import EXIT_FAULT, UserError
from ftscale.logs import setup_logging
from ftscale.resources import strategy_file


def launch_training(
    run: Path, overrides: list[str], *, processes: int, strategy: str, resume: bool, overwrite: bool
) -> int:
    """Start `ftscale train` in several processes of this machine; returns the exit code of the first that failed.

    Raises UserError: as `ftscale train`, and for a strategy without a file in launch/accelerate/.
    """
    strategy_file(strategy)
    if strategy == "single" and processes > 1:
        raise UserError(f"--strategy single is for one process, not {processes}; use ddp.")
    settings = [*overrides, f"distributed.strategy={strategy}"]
    config = load_config(run, settings)
    from ftscale.run import check_run_folder, prepare_inputs

    setup_logging()
    check_run_folder(config, resume=resume, overwrite=overwrite)
    prepare_inputs(config)
    flags = ["--resume"] * resume + ["--overwrite"] * overwrite
    return _run_accelerate([str(run), *settings, *flags], processes=processes, strategy=strategy)


def _run_accelerate(arguments: list[str], *, processes: int, strategy: str) -> int:
    from accelerate.commands.launch import launch_command, launch_command_parser
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

    # DeepSpeed configs are named relative to the folder that holds ds_configs/; the strategy is in the arguments
    file = strategy_file("single" if strategy == "single" else "ddp")
    options = ["--config_file", str(file), "--num_processes", str(processes), "--num_machines", "1"]
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // processes)))
    command = [*options, "--main_process_port", "0", "-m", "ftscale", "train", *arguments]
    try:
        launch_command(launch_command_parser().parse_args(command))
    except ChildFailedError as error:
        _, failure = error.get_first_failure()
        return failure.exitcode if failure.exitcode > 0 else EXIT_FAULT
    except SystemExit as error:
        return int(error.code or 0)
    finally:
        sys.stderr.flush()
    return 0
