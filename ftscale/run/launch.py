"""`ftscale launch`: everything that can go wrong early is found here, then Accelerate starts the processes."""

from __future__ import annotations

import logging
import os
import signal
from pathlib import Path

from ftscale.base.errors import EXIT_FAULT, EXIT_PREEMPTED, UserError
from ftscale.base.logs import log, setup_logging
from ftscale.base.resources import strategy_file
from ftscale.base.sealed import DamagedError, read_json
from ftscale.base.signals import LAUNCHER_SIGNALS, heeded
from ftscale.base.started import STARTED_BY, GoOn
from ftscale.base.startup import begin_work, leave_out_working_folder, unchanged_environment
from ftscale.config import Config
from ftscale.config.stages import stages_of
from ftscale.config.strategies import STRATEGIES
from ftscale.precheck import read_config
from ftscale.train.stop_request import Interrupted, listening

SIGNALLED = 128  # above it, as shells have it, the number of the signal by which the processes were stopped
STOP_TIMEOUT_S = 600  # for a checkpoint to be written after a signal; torchrun's own is 30 s


def launch_training(
    run: Path, overrides: list[str], *, processes: int, strategy: str, resume: bool, overwrite: bool
) -> int:
    """Start `ftscale train` in several processes of this machine; returns the exit code of the first that failed.

    A single process is this one. Raises UserError: as `ftscale train`, and for a strategy without a file in
    launch/accelerate/.
    """
    strategy_file(strategy)
    if STRATEGIES[strategy].one_process and processes > 1:
        raise UserError(f"--strategy single is for one process, not {processes}; use ddp.")
    settings = [*overrides, f"distributed.strategy={strategy}"]
    config = read_config(run, settings)
    from ftscale.run.folder import first_files

    go_on = GoOn()
    go_on.watch(lambda: first_files(Path(config.run_folder)))
    code = _launch(run, settings, config, processes=processes, resume=resume, overwrite=overwrite, go_on=go_on)
    if code == EXIT_PREEMPTED or code > SIGNALLED:
        go_on.tell()
    return code


def _launch(
    run: Path, settings: list[str], config: Config, *, processes: int, resume: bool, overwrite: bool, go_on: GoOn
) -> int:
    from ftscale.run.folder import check_run_folder
    from ftscale.run.prepared_data import prepare_inputs
    from ftscale.run.stages import prepare_stages
    from ftscale.run.train import train

    if processes == 1:
        return EXIT_PREEMPTED if train(config, resume=resume, overwrite=overwrite).status == "preempted" else 0
    setup_logging()
    log.info("checking %s and preparing its data for %d processes", run, processes)
    setup_logging(level="WARNING")  # the first process says all of it again
    check_run_folder(config, resume=resume, overwrite=overwrite)
    with listening():
        try:
            if stages := stages_of(config):
                prepare_stages(stages)
            else:
                prepare_inputs(config)
        except Interrupted:
            return EXIT_PREEMPTED
    setup_logging()
    begin_work()
    flags = ["--resume"] * resume + ["--overwrite"] * overwrite
    return _run_accelerate([str(run), *settings, *flags], config=config, processes=processes, go_on=go_on)


def _run_accelerate(arguments: list[str], *, config: Config, processes: int, go_on: GoOn) -> int:
    from accelerate.commands.launch import launch_command, launch_command_parser
    from torch.distributed.elastic.multiprocessing import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

    # what torchrun says of its children is said below in a line
    logging.getLogger("torch.distributed.elastic").setLevel(logging.CRITICAL)
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // processes)))
    # DeepSpeed configs are named relative to the folder that holds ds_configs/; the strategy is in the arguments
    options = ["--config_file", str(strategy_file("ddp")), "--num_processes", str(processes), "--num_machines", "1"]
    command = launch_command_parser().parse_args(
        [*options, "--main_process_port", "0", "-m", "ftscale", "train", *arguments]
    )
    # torchrun's, not in the parser
    command.signals_to_handle = ",".join(number.name for number in heeded(LAUNCHER_SIGNALS))
    command.shutdown_timeout = STOP_TIMEOUT_S
    folder = Path(config.run_folder)
    try:
        with unchanged_environment():
            leave_out_working_folder()
            os.environ[STARTED_BY] = "ftscale launch"
            launch_command(command)
    except ChildFailedError as error:
        rank, failure = error.get_first_failure()
        return _exit_code(rank, failure.exitcode)
    except SignalException as error:
        saved = not go_on.has_begun() or _is_preempted(folder)
        return EXIT_PREEMPTED if saved else SIGNALLED + error.sigval
    return 0


def _exit_code(rank: int, code: int) -> int:
    if code < 0:
        log.error("the process of rank %d was ended by %s", rank, signal.Signals(-code).name)
    return code if code > 0 else EXIT_FAULT


def _is_preempted(folder: Path) -> bool:
    """Whether the processes wrote a checkpoint and then their result; an earlier start's is gone since they began."""
    try:
        return read_json(folder / "result.json").get("status") == "preempted"
    except (FileNotFoundError, DamagedError):
        return False
