"""The command line. torch is imported by the commands that need it, not for --help."""

from __future__ import annotations

import json
import socket
import sys
import time
from pathlib import Path
from typing import Annotated

import typer

from ftscale.errors import EXIT_PREEMPTED, EXIT_USER_ERROR, UserError
from ftscale.logs import launched_rank, quiet_libraries

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Fine-tune Hugging Face models, from a laptop to many nodes.",
)

SILENCE_S = 10.0  # a launcher looks at its processes every second or more often, and srun not at all
RunFile = Annotated[Path, typer.Argument(metavar="RUN.yaml", help="The configuration of the run.")]
Overrides = Annotated[
    list[str] | None, typer.Argument(metavar="[section.key=value ...]", help="Settings laid over the file's.")
]
RunFolder = Annotated[Path, typer.Argument(metavar="RUN_FOLDER", help="The folder that a run wrote.")]
Resume = Annotated[bool, typer.Option("--resume", help="Go on with the run in its folder from the last checkpoint.")]
Nodes = Annotated[int, typer.Option(min=1, help="Machines.")]
GpusPerNode = Annotated[int, typer.Option(min=1, help="Devices, and processes, of a machine.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace the run in its folder.")]


def main() -> None:
    """Run a command; the user's mistakes end in one message and exit code 2, without a traceback."""
    quiet_libraries()
    try:
        app()
    except UserError as error:
        report(error)
        sys.exit(EXIT_USER_ERROR)


def report(error: UserError) -> None:
    """Print a user's mistakes; of several processes that find the same ones, the first alone does."""
    rank, who = launched_rank(), ""
    if rank:  # the launcher ends this process as soon as the first has ended, unless that one found nothing wrong
        time.sleep(SILENCE_S)
        who = f"[rank {rank} on {socket.gethostname()}] "
    print("\n".join(f"{who}error: {problem}" for problem in error.problems), file=sys.stderr, flush=True)


@app.command(epilog="Example: ftscale train run.yaml optimizer.lr=1e-4 train.epochs=2")
def train(run: RunFile, overrides: Overrides = None, resume: Resume = False, overwrite: Overwrite = False) -> None:
    """Fine-tune as RUN.yaml says; alone, or in each process of accelerate launch, torchrun or srun."""
    from ftscale.processes import stop_with_launcher
    from ftscale.train.preemption import Interrupted, StopRequest

    stop_request = StopRequest()
    try:
        stop_request.listen()  # before torch is imported, which takes seconds, and until the process has ended
        stop_with_launcher()
        from ftscale.checks import read_config

        config = read_config(run, overrides or ())
        from ftscale.run import train as run_training

        result = run_training(config, resume=resume, overwrite=overwrite, stop_request=stop_request)
    except Interrupted:
        sys.exit(EXIT_PREEMPTED)
    if result.status == "preempted":
        sys.exit(EXIT_PREEMPTED)


@app.command(epilog="Example: ftscale checkpoints runs/demo")
def checkpoints(run_folder: RunFolder) -> None:
    """List the checkpoints of a run: step, complete or why not, size, number of processes, metric."""
    from rich.console import Console
    from rich.table import Table

    from ftscale.run_folder import run_id
    from ftscale.train.manifest import list_checkpoints

    if (identity := run_id(run_folder)) is None:
        raise UserError(f"RUN_FOLDER = {run_folder} holds no run (no run.json); name the folder of one.")
    table = Table("step", "state", "size", "processes", "metric", box=None)
    for item in list_checkpoints(run_folder / "checkpoints", run_id=identity):
        if (found := item.checkpoint) is None:
            table.add_row(item.folder.name, f"incomplete: {item.reason}", "", "", "")
            continue
        metric, about = found.manifest["metric"], found.manifest
        shown = "" if metric is None else f"{metric:.4f}"
        size = f"{found.size_bytes / 2**20:.1f} MiB"
        table.add_row(str(found.step), "complete", size, f"{about['world_size']} ({about['strategy']})", shown)
    Console().print(table)


@app.command(epilog="Example: ftscale launch run.yaml --processes 8 --strategy zero2 --resume")
def launch(
    run: RunFile,
    overrides: Overrides = None,
    processes: Annotated[int, typer.Option(min=1, help="Processes on this machine.")] = 1,
    strategy: Annotated[str, typer.Option(help="A strategy of launch/accelerate/.")] = "ddp",
    resume: Resume = False,
    overwrite: Overwrite = False,
) -> None:
    """Check RUN.yaml and prepare its data, then train on several processes of this machine through Accelerate."""
    from ftscale.launcher import launch_training

    sys.exit(
        launch_training(
            run, overrides or [], processes=processes, strategy=strategy, resume=resume, overwrite=overwrite
        )
    )


@app.command(epilog="Example: ftscale evaluate runs/demo --data test.csv")
def evaluate(
    run_folder: RunFolder,
    overrides: Overrides = None,
    data: Annotated[str | None, typer.Option(help="Rows to score instead of the run's evaluation rows.")] = None,
    out: Annotated[Path | None, typer.Option(help="Also write the metrics to this JSON file.")] = None,
) -> None:
    """Score a finished run's model; settings such as data.eval.0.encoding=latin-1 are laid over the run's."""
    from ftscale.inference import evaluate_run

    metrics = evaluate_run(run_folder, data=data, overrides=overrides or ())
    if launched_rank() == 0:
        text = json.dumps(metrics, indent=2)
        print(text)
        if out:
            out.write_text(text + "\n")


@app.command(epilog="Example: ftscale predict runs/demo messages.csv --out answers.csv")
def predict(
    run_folder: RunFolder,
    input_path: Annotated[str, typer.Argument(metavar="INPUT", help="CSV, TSV, JSONL, text, image folder; - = stdin.")],
    reading: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[input.key=value ...]", help="How to read INPUT, e.g. input.columns.text=body, input.separator=;"
        ),
    ] = None,
    out: Annotated[Path | None, typer.Option(help="CSV, TSV or JSONL file; printed as JSON lines without it.")] = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Rows worked on at a time.")] = 32,
) -> None:
    """Predict for new rows, in their order; adds prediction and score to the input's columns."""
    from ftscale.inference import predict_file

    predict_file(run_folder, input_path, reading=reading or (), out=out, batch_size=batch_size)


@app.command(epilog="Example: ftscale export runs/demo exported --merge --dtype bf16")
def export(
    run_folder: RunFolder,
    out: Annotated[Path, typer.Argument(metavar="OUT", help="The folder to write.")],
    merge: Annotated[bool, typer.Option("--merge", help="Merge the adapter into the base model.")] = False,
    dtype: Annotated[str | None, typer.Option(help="fp32, bf16 or fp16; the trained one by default.")] = None,
) -> None:
    """Write a plain Hugging Face folder that transformers loads without ftscale."""
    from ftscale.inference import export_run

    for line in export_run(run_folder, out, merge=merge, dtype=dtype):
        print(line)


@app.command(epilog="Example: ftscale check run.yaml --nodes 2 --gpus-per-node 4")
def check(
    run: RunFile,
    overrides: Overrides = None,
    nodes: Nodes = 1,
    gpus_per_node: GpusPerNode = 1,
    full: Annotated[bool, typer.Option("--full", help="Prepare all rows instead of the first 2000.")] = False,
    as_json: AsJson = False,
) -> None:
    """Check RUN.yaml, its model and its data, and show what would be trained on. Reads no weights, needs no GPU."""
    from ftscale.checks.report import check_run

    found = check_run(run, overrides or (), nodes=nodes, gpus_per_node=gpus_per_node, full=full)
    if as_json:
        print(found.as_json())
    elif found.facts:
        from ftscale.checks.show import show

        show(found)
    else:
        report(UserError(*found.errors))
    sys.exit(EXIT_USER_ERROR if found.errors else 0)


@app.command(epilog="Example: ftscale plan run.yaml --gpu a100-80gb --nodes 2 --gpus-per-node 8")
def plan(
    run: RunFile,
    overrides: Overrides = None,
    gpu: Annotated[str | None, typer.Option(help="a100-80gb, h100, l4, rtx4090, ...; this machine without it.")] = None,
    nodes: Nodes = 1,
    gpus_per_node: GpusPerNode = 1,
    interconnect: Annotated[float, typer.Option(help="GB/s between machines, a device's share.")] = 25.0,
    price: Annotated[float | None, typer.Option(help="USD for a device's hour; the table's without it.")] = None,
    full: Annotated[bool, typer.Option("--full", help="Look at all rows instead of the first 2000.")] = False,
    calibrate: Annotated[bool, typer.Option("--calibrate", help="Measure a few real steps on this machine.")] = False,
    apply: Annotated[bool, typer.Option("--apply", help="Write the recommended settings into RUN.yaml.")] = False,
    plot: Annotated[Path | None, typer.Option(help="Also draw memory by kind into this PNG file.")] = None,
    as_json: AsJson = False,
) -> None:
    """Forecast memory, time and cost of RUN.yaml, and rank what else would fit. Reads no weights, needs no GPU."""
    from ftscale.checks import read_config

    config = read_config(run, overrides or ())
    from ftscale.plan import plan_run
    from ftscale.plan.report import apply_choice, as_json_text, show

    if calibrate:
        from ftscale.plan.calibrate import calibrate_here

        print(calibrate_here(config))
    found = plan_run(
        config,
        gpu=gpu,
        nodes=nodes,
        gpus_per_node=gpus_per_node,
        interconnect_gb_s=interconnect,
        usd_per_hour=price,
        full=full,
    )
    if as_json:
        print(as_json_text(found))
    else:
        show(found)
    if plot:
        from ftscale.plan.plot import draw

        draw(found, plot)
    if apply:
        print(apply_choice(found, run))


@app.command(epilog="Example: ftscale schema > ftscale.schema.json")
def schema() -> None:
    """Print the JSON Schema of a run's configuration, for editors."""
    from ftscale.config.load import config_schema

    print(json.dumps(config_schema(), indent=2))


if __name__ == "__main__":
    main()
