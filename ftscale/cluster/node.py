"""The one Slurm task of a node where a launcher starts its processes: torchrun or accelerate, in this process."""

from __future__ import annotations

import logging
import os
import signal
from collections.abc import Sequence

from ftscale.base.errors import EXIT_DONE, EXIT_FAULT
from ftscale.base.logs import log, setup_logging
from ftscale.base.resources import strategy_file
from ftscale.base.signals import LAUNCHER_SIGNALS
from ftscale.base.startup import begin_work

LAUNCHERS = ("torchrun", "accelerate", "srun")
"""One a node, or none: one Slurm task a process."""
SIGNALS = ",".join(number.name for number in LAUNCHER_SIGNALS)
SAVE_S = 3600  # for a checkpoint after a signal: torchrun's own 30 s tear it; Slurm's limits end it sooner


def launch_node(launcher: str, *, processes: int, arguments: Sequence[str]) -> int:
    """Start `ftscale ARGUMENTS` in the processes of this node; returns the exit code of the first that failed.

    launcher: torchrun or accelerate. A signal reaches all processes, and the launcher waits until they have saved. The
    nodes' number and the address of the first come from Slurm's step variables and MASTER_ADDR, MASTER_PORT.
    """
    from torch.distributed.elastic.multiprocessing import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

    # what torchrun says of its children is said below in a line
    logging.getLogger("torch.distributed.elastic").setLevel(logging.CRITICAL)
    setup_logging(rank=int(os.environ["SLURM_NODEID"]) * processes)
    begin_work()
    start = _torchrun if launcher == "torchrun" else _accelerate
    try:
        start(processes, ["-m", "ftscale", *arguments])
    except ChildFailedError as error:
        rank, failure = error.get_first_failure()
        return _exit_code(rank, failure.exitcode)
    except SignalException as error:
        return 128 + error.sigval
    return EXIT_DONE


def _torchrun(processes: int, program: Sequence[str]) -> None:
    from torch.distributed.run import parse_args, run

    options = {
        "nnodes": os.environ["SLURM_STEP_NUM_NODES"],
        "nproc_per_node": str(processes),
        "node_rank": os.environ["SLURM_NODEID"],
        "master_addr": os.environ["MASTER_ADDR"],
        "master_port": os.environ["MASTER_PORT"],
        "signals_to_handle": SIGNALS,
        "shutdown_timeout": str(SAVE_S),
    }
    arguments = [word for name, value in options.items() for word in (f"--{name}", value)]
    log.info("torchrun %s %s", " ".join(arguments), " ".join(program))
    run(parse_args([*arguments, *program]))


def _accelerate(processes: int, program: Sequence[str]) -> None:
    from accelerate.commands.launch import launch_command, launch_command_parser

    nodes = int(os.environ["SLURM_STEP_NUM_NODES"])
    options = {
        # only starts processes: the strategy is in ftscale's own arguments
        "config_file": str(strategy_file("ddp")),
        "num_machines": str(nodes),
        "num_processes": str(nodes * processes),
        "machine_rank": os.environ["SLURM_NODEID"],
        "main_process_ip": os.environ["MASTER_ADDR"],
        "main_process_port": os.environ["MASTER_PORT"],
        "rdzv_backend": "static",
    }
    arguments = [word for name, value in options.items() for word in (f"--{name}", value)]
    log.info("accelerate launch %s %s", " ".join(arguments), " ".join(program))
    command = launch_command_parser().parse_args([*arguments, *program])
    command.signals_to_handle, command.shutdown_timeout = SIGNALS, SAVE_S  # torchrun's, not in accelerate's parser
    launch_command(command)


def _exit_code(rank: int, code: int) -> int:
    if code < 0:
        log.error("the process of rank %d was ended by %s", rank, signal.Signals(-code).name)
        return 128 - code
    return code or EXIT_FAULT
