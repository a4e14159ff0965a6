"""The command line. torch is imported by the commands that need it, not for --help."""

from __future__ import annotations

import json
import os
import socket
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ftscale.base.errors import (
    EXIT_FAULT,
    EXIT_PREEMPTED,
    EXIT_USER_ERROR,
    UserError,
    told_if_full,
    told_if_too_long,
    unknown_name,
)
from ftscale.base.launched import launched_processes, launched_rank
from ftscale.base.logs import (
    escape_output,
    note_failure,
    quiet_libraries,
    report_fault,
    setup_logging,
    stdout_for_answers,
)
from ftscale.base.sealed import finite
from ftscale.base.shown import shown
from ftscale.version import __version__

if TYPE_CHECKING:
    from ftscale.config.recipes import Recipe

app = typer.Typer(
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
TrustRemoteCode = Annotated[
    bool,
    typer.Option("--trust-remote-code", help="Run code that comes with the model, whatever the run folder says."),
]
AllowPickle = Annotated[bool, typer.Option("--allow-pickle", help="Read .bin weights of an adapter's base model.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace the run in its folder.")]


def main() -> None:
    """Run a command; the user's mistakes end in one message and exit code 2, faults in a traceback and exit code 1."""
    quiet_libraries()
    escape_output()
    try:
        with told_if_too_long(), told_if_full(lambda: "free space, then give the command again."):
            app()
    except UserError as error:
        note_failure(error, exit_code=EXIT_USER_ERROR)
        report(error)
        sys.exit(EXIT_USER_ERROR)
    except Exception as error:
        report_fault(error, exit_code=EXIT_FAULT)
        if launched_processes() > 1:
            # the others learn of it when this process is gone, and Python takes seconds to clear up
            os._exit(EXIT_FAULT)
        sys.exit(EXIT_FAULT)


def report(error: UserError) -> None:
    """Print a user's mistakes; of several processes that find the same ones, the first alone does."""
    rank, who = launched_rank(), ""
    if rank:  # the launcher ends this process as soon as the first has ended, unless that one found nothing wrong
        time.sleep(SILENCE_S)
        who = f"[rank {rank} on {socket.gethostname()}] "
    print("\n".join(f"{who}error: {problem}" for problem in error.problems), file=sys.stderr, flush=True)


def _print_version(asked: bool) -> None:
    if asked:
        print(f"ftscale {__version__}")
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and end.")
    ] = False,
) -> None:
    """Take the options that stand before a command."""


@app.command(epilog="Example: ftscale train run.yaml optimizer.lr=1e-4 train.epochs=2")
def train(
    run: RunFile,
    overrides: Overrides = None,
    resume: Resume = False,
    overwrite: Overwrite = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON at the end.")] = False,
) -> None:
    """Fine-tune as RUN.yaml says; alone, or in each process of accelerate launch, torchrun or srun."""
    from ftscale.base.signals import stop_with_launcher
    from ftscale.base.started import GoOn
    from ftscale.train.stop_request import Interrupted, StopRequest

    go_on, stop_request = GoOn(), StopRequest()
    try:
        stop_request.listen()  # before torch is imported, which takes seconds, and until the process has ended
        stop_with_launcher()
        from ftscale.precheck import read_config

        config = read_config(run, overrides or ())
        from ftscale.run.folder import first_files
        from ftscale.run.train import train as run_training

        go_on.watch(lambda: first_files(Path(config.run_folder)))
        with stdout_for_answers():
            result = run_training(config, resume=resume, overwrite=overwrite, stop_request=stop_request)
    except Interrupted:
        go_on.tell()
        sys.exit(EXIT_PREEMPTED)
    except UserError:
        stop_request.release()  # the launcher may end this process while it waits for the first to speak
        raise
    if as_json and launched_rank() == 0:
        print(json.dumps(finite(asdict(result)), indent=2), flush=True)
    if result.status == "preempted":
        go_on.tell()
        sys.exit(EXIT_PREEMPTED)


@app.command(epilog="Example: ftscale checkpoints runs/demo")
def checkpoints(run_folder: RunFolder) -> None:
    """List the checkpoints of a run: step, complete or why not, size, number of processes, metric."""
    from ftscale.config.stages import stage_folders
    from ftscale.run.folder import run_id

    identity = run_id(run_folder)
    if identity is None and not (run_folder / "checkpoints").is_dir():
        raise UserError(f"RUN_FOLDER = {run_folder} holds no run (no run.json); name the folder of one.")
    stages = stage_folders(run_folder)
    for folder in stages:
        print(f"stage {shown(folder.name)}")
        _print_checkpoints(folder, identity=run_id(folder))
    if not stages:
        _print_checkpoints(run_folder, identity=identity)


def _print_checkpoints(run_folder: Path, *, identity: str | None) -> None:
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    from ftscale.train.manifest import list_checkpoints

    table = Table("step", "state", "size", "processes", "metric", box=None)
    for item in list_checkpoints(run_folder / "checkpoints", run_id=identity):
        if (found := item.checkpoint) is None:
            table.add_row(item.folder.name, escape(shown(f"incomplete: {item.reason}")), "", "", "")
            continue
        metric, about = found.manifest["metric"], found.manifest
        value = "" if metric is None else f"{metric:.4f}"
        size = f"{found.size_bytes / 2**20:.1f} MiB"
        table.add_row(str(found.step), "complete", size, f"{about['world_size']} ({about['strategy']})", value)
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
    from ftscale.run.launch import launch_training

    sys.exit(
        launch_training(
            run, overrides or [], processes=processes, strategy=strategy, resume=resume, overwrite=overwrite
        )
    )


@app.command(epilog="Example: ftscale evaluate runs/demo --data test.csv")
def evaluate(
    run_folder: RunFolder,
    overrides: Overrides = None,
    data: Annotated[
        list[str] | None,
        typer.Option(help="Rows to score instead of the run's evaluation rows; several files are scored as one."),
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Also write the metrics to this JSON file.")] = None,
    trust_remote_code: TrustRemoteCode = False,
    allow_pickle: AllowPickle = False,
) -> None:
    """Score a finished run's model; settings such as data.eval.0.encoding=latin-1 are laid over the run's."""
    from ftscale.models.trust import Trust
    from ftscale.run.evaluate import evaluate_run

    trust = Trust(code=trust_remote_code, pickle=allow_pickle)
    files, settings = _files_and_settings(overrides or ())
    if files and not data:
        raise UserError(
            f"{files[0]!r} is no section.key=value, and rows to score are given by --data; write --data {files[0]}."
        )
    with stdout_for_answers():
        metrics = evaluate_run(run_folder, data=[*(data or ()), *files], overrides=settings, trust=trust)
    if launched_rank() == 0:
        text = json.dumps(metrics, indent=2)
        print(text)
        if out:
            out.write_text(text + "\n")


@app.command(epilog="Example: ftscale predict runs/demo messages.csv --out answers.csv")
def predict(
    run_folder: RunFolder,
    input_path: Annotated[
        str, typer.Argument(metavar="INPUT", help="A file or folder of any format; - = stdin: lines, or a document.")
    ],
    reading: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[INPUT ...] [input.key=value ...]",
            help="More such files, and how to read them, e.g. input.columns.text=body, input.separator=;",
        ),
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="CSV, TSV, JSONL, Parquet, CoNLL or NPY file; printed as JSON lines without it.")
    ] = None,
    scores: Annotated[str, typer.Option(help="best = of the prediction; all = of every class, as scores.")] = "best",
    batch_size: Annotated[int, typer.Option(min=1, help="Rows worked on at a time.")] = 32,
    trust_remote_code: TrustRemoteCode = False,
    allow_pickle: AllowPickle = False,
) -> None:
    """Predict for new rows, in the order of files and rows; adds prediction and score to the input's columns."""
    from ftscale.models.trust import Trust
    from ftscale.run.predict import predict_file

    if scores not in ("best", "all"):
        raise UserError(unknown_name("--scores", scores, ("best", "all")))
    files, settings = _files_and_settings(reading or ())
    predict_file(
        run_folder,
        [input_path, *files],
        reading=settings,
        out=out,
        every_score=scores == "all",
        batch_size=batch_size,
        trust=Trust(code=trust_remote_code, pickle=allow_pickle),
    )


def _files_and_settings(words: Sequence[str]) -> tuple[list[str], list[str]]:
    """Divide words into files, as a shell leaves several of a pattern, and settings of the form key=value."""
    files = [word for word in words if "=" not in word or "://" in word.partition("=")[0] or os.path.exists(word)]
    return files, [word for word in words if word not in files]


@app.command(epilog="Example: ftscale export runs/demo exported --merge --dtype bf16")
def export(
    run_folder: RunFolder,
    out: Annotated[Path, typer.Argument(metavar="OUT", help="The folder to write.")],
    merge: Annotated[bool, typer.Option("--merge", help="Merge the adapter into the base model.")] = False,
    dtype: Annotated[str | None, typer.Option(help="fp32, bf16 or fp16; the trained one by default.")] = None,
    trust_remote_code: TrustRemoteCode = False,
    allow_pickle: AllowPickle = False,
) -> None:
    """Write a plain Hugging Face folder that transformers loads without ftscale."""
    from ftscale.models.trust import Trust
    from ftscale.run.export import export_run

    trust = Trust(code=trust_remote_code, pickle=allow_pickle)
    for line in export_run(run_folder, out, merge=merge, dtype=dtype, trust=trust):
        print(shown(line))


@app.command(epilog="Example: ftscale push runs/demo me/help-desk --dry-run")
def push(
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="A run folder, or one that export wrote.")],
    repository: Annotated[str, typer.Argument(metavar="OWNER/NAME", help="The repository on the hub.")],
    public: Annotated[bool, typer.Option("--public", help="Make a new repository public; it is private else.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would be uploaded, and send nothing.")] = False,
) -> None:
    """Upload a model and its card to the Hugging Face hub."""
    from ftscale.run.push import push as push_model

    for line in push_model(folder, repository, public=public, dry_run=dry_run):
        print(shown(line))


@app.command("report", epilog="Example: ftscale report runs/a runs/b --out compared.html")
def report_runs(
    run_folders: Annotated[list[Path], typer.Argument(metavar="RUN [RUN ...]", help="Run folders.")],
    out: Annotated[
        Path | None, typer.Option(help="The file to write; report.html in the run folder, or here for several runs.")
    ] = None,
    png: Annotated[
        Path | None, typer.Option(metavar="FOLDER", help="Also write each picture into this folder.")
    ] = None,
) -> None:
    """Write the page of a run, going on or ended; of several runs a page that compares them."""
    from ftscale.report.write import write_report

    for line in write_report(run_folders, out=out, png=png):
        print(shown(line))


@app.command(epilog="Example: ftscale watch runs")
def watch(
    folder: Annotated[Path, typer.Argument(metavar="RUN_OR_FOLDER", help="A run folder, or a folder of runs.")],
    every: Annotated[float, typer.Option(min=0.1, metavar="SECONDS", help="Between two looks.")] = 2.0,
    once: Annotated[bool, typer.Option("--once", help="Print how they stand, and end.")] = False,
    web: Annotated[bool, typer.Option("--web", help="Show them in a browser of this machine instead.")] = False,
    port: Annotated[int, typer.Option(min=0, max=65535, help="Of --web; any that is free without it.")] = 0,
) -> None:
    """Show how runs go on: steps, losses, evaluations, what is left, and the state of their jobs."""
    if web:
        from ftscale.cluster.live_web import Server

        with Server(folder, port=port) as server:
            print(f"open {server.address}  (Ctrl-C ends it)", flush=True)
            with suppress(KeyboardInterrupt):
                server.serve_forever()
        return
    from ftscale.cluster.live import watch_in_terminal

    watch_in_terminal(folder, every_s=every, once=once)


@app.command(epilog="Example: ftscale check run.yaml --nodes 2 --gpus-per-node 4")
def check(
    run: RunFile,
    overrides: Overrides = None,
    nodes: Nodes = 1,
    gpus_per_node: Annotated[
        int | None, typer.Option(min=1, help="Devices, and processes, of a machine; this machine as it is without it.")
    ] = None,
    full: Annotated[bool, typer.Option("--full", help="Prepare all rows instead of a draw of 2000.")] = False,
    deep: Annotated[
        bool, typer.Option("--deep", help="Also take two steps of the model, on the two longest samples.")
    ] = False,
    resume: Resume = False,
    overwrite: Overwrite = False,
    as_json: AsJson = False,
) -> None:
    """Check RUN.yaml, its model and its data, and show what would be trained on. Needs no GPU; reads no weights."""
    from ftscale.checks.report import check_run

    with stdout_for_answers():
        found = check_run(
            run,
            overrides or (),
            nodes=nodes,
            gpus_per_node=gpus_per_node,
            resume=resume,
            overwrite=overwrite,
            full=full,
            deep=deep,
        )
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
    full: Annotated[bool, typer.Option("--full", help="Look at all rows instead of a draw of 2000.")] = False,
    calibrate: Annotated[bool, typer.Option("--calibrate", help="Measure a few real steps on this machine.")] = False,
    apply: Annotated[bool, typer.Option("--apply", help="Write the recommended settings into RUN.yaml.")] = False,
    plot: Annotated[Path | None, typer.Option(help="Also draw memory by kind into this PNG file.")] = None,
    as_json: AsJson = False,
) -> None:
    """Forecast memory, time and cost of RUN.yaml, and rank what else would fit. Reads no weights, needs no GPU."""
    from ftscale.precheck import read_config

    config = read_config(run, overrides or ())
    from ftscale.plan import plan_run
    from ftscale.plan.report import apply_choice, as_json_text, show

    if calibrate:
        from ftscale.plan.calibrate import calibrate_here

        with stdout_for_answers():
            said = calibrate_here(config)
        print(said, file=sys.stderr if as_json else sys.stdout)
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
def schema(
    resume: Annotated[bool, typer.Option("--resume", help="Print which settings --resume may change instead.")] = False,
    page: Annotated[bool, typer.Option("--page", help="Print every setting as a page of Markdown instead.")] = False,
) -> None:
    """Print the JSON Schema of a run's configuration, for editors."""
    from ftscale.config.load import config_schema
    from ftscale.config.resume import resume_table
    from ftscale.config.settings_page import settings_page

    if page and resume:
        raise UserError("--page and --resume print two different things; give one.")
    if page:
        print(settings_page(), end="")
    else:
        print(resume_table() if resume else json.dumps(config_schema(), indent=2))


@app.command(epilog="Example: ftscale init --from llama3_lora_sft.yaml --processes 4")
def init(
    rows: Annotated[
        str | None,
        typer.Argument(metavar="[FILE]", help="Rows to write a RUN.yaml for: a file, a folder, a hub data set."),
    ] = None,
    other: Annotated[
        Path | None, typer.Option("--from", metavar="FILE", help="YAML or JSON file of another tool, to translate.")
    ] = None,
    tool: Annotated[
        str | None, typer.Option(help="transformers, trl, llamafactory or axolotl; by the file's keys without it.")
    ] = None,
    task: Annotated[str | None, typer.Option(help="The task, where the file does not tell it.")] = None,
    columns: Annotated[
        str | None, typer.Option(help="FILE's columns by what the task calls them, e.g. '{text: 2, label: 1}'.")
    ] = None,
    model: Annotated[str | None, typer.Option(help="The model for FILE: a hub id or a folder.")] = None,
    processes: Annotated[
        int | None, typer.Option(min=1, help="Processes that the other tool ran on, for the global batch.")
    ] = None,
    yes: Annotated[bool, typer.Option("--yes", help="Ask nothing: take what is likely, and write it down.")] = False,
    plan: Annotated[bool, typer.Option(help="Ask ftscale plan whether the model fits this machine.")] = True,
    out: Annotated[Path, typer.Option(help="The file to write.")] = Path("run.yaml"),
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the file.")] = False,
) -> None:
    """Write a commented RUN.yaml for a file of rows, or from a configuration of transformers, TRL, LLaMA-Factory, ...

    Each line says why it is there; what is not sure is asked on a terminal, or else stands at the end, as does what has
    no counterpart.
    """
    from ftscale.init.written import check_free, write_file

    if (rows is None) == (other is None):
        raise UserError("ftscale init needs either FILE, rows to learn from, or --from FILE of another tool; give one.")
    found: Any
    if other is not None:
        for option, value, what in (("--model", model, "the model"), ("--columns", columns, "the columns")):
            if value is not None:
                raise UserError(f"{option} = {value} is for FILE; with --from the other tool's file names {what}.")
        from ftscale.init.translate import translate_file

        found = translate_file(other, tool=tool, task=task, processes=processes)
    else:
        assert rows is not None
        if tool is not None or processes is not None:
            raise UserError("--tool and --processes are for --from; leave them out.")
        check_free(out, overwrite=overwrite)
        from ftscale.init.doubts import on_terminal
        from ftscale.init.guide import guide_to

        found = guide_to(rows, task=task, columns=columns, model=model, ask=on_terminal(yes=yes), plan=plan)
    write_file(found.text, out, overwrite=overwrite)
    print(shown("\n".join(found.told(out))))


@app.command(epilog="Example: ftscale recipes sst2 > run.yaml")
def recipes(
    name: Annotated[str | None, typer.Argument(metavar="[NAME]", help="The recipe to print as a RUN.yaml.")] = None,
    as_json: AsJson = False,
) -> None:
    """List the recipes that come with ftscale, or print one of them."""
    from ftscale.config.recipes import recipe_text
    from ftscale.config.recipes import recipes as all_recipes

    if name is not None and as_json:
        raise UserError("--json is for the list of recipes; a recipe itself is YAML: leave it out.")
    if name is not None:
        print(recipe_text(name), end="")
    elif as_json:
        print(json.dumps([asdict(recipe) for recipe in all_recipes()], indent=2))
    else:
        _print_recipes(all_recipes())


def _print_recipes(found: list[Recipe]) -> None:
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    table = Table("name", "what it shows; task: model on data", box=None, pad_edge=False)
    for recipe in found:
        about = escape(f"{recipe.shows}\n{recipe.task}: {recipe.model} on {recipe.data}")
        table.add_row(recipe.name, about)
    Console().print(table, highlight=False)
    print("\nftscale recipes NAME > run.yaml writes one; its first lines say which rows it wants.")


@app.command(epilog="Example: ftscale doctor --json > report.json")
def doctor(as_json: AsJson = False) -> None:
    """Tell what this machine has for training, a line each, with what to do about what it lacks."""
    from ftscale.doctor import report as doctors

    findings = doctors.examine()
    print(doctors.as_json(findings) if as_json else doctors.as_text(findings))
    sys.exit(0 if doctors.can_train(findings) else EXIT_USER_ERROR)


# ---------------------------------------------------------------- Slurm


@app.command(epilog="Example: ftscale submit run.yaml --nodes 4 --gpus-per-node 8 --time 24:00:00")
def submit(
    run: RunFile,
    overrides: Overrides = None,
    nodes: Annotated[int, typer.Option(min=1, help="Nodes of the job.")] = 1,
    gpus_per_node: Annotated[int | None, typer.Option(min=0, help="GPUs of each; the site's by default.")] = None,
    processes: Annotated[int, typer.Option(min=0, help="Processes a node; 0 = one a GPU.")] = 0,
    launcher: Annotated[str, typer.Option(help="torchrun, accelerate (one a node) or srun (none).")] = "torchrun",
    time: Annotated[str | None, typer.Option(help="Time limit, as sbatch takes it.")] = None,
    partition: Annotated[str | None, typer.Option(help="Partition; the site's by default.")] = None,
    account: Annotated[str | None, typer.Option(help="Account; the site's by default.")] = None,
    sbatch: Annotated[list[str] | None, typer.Option(help="A further option of sbatch, key=value; repeatable.")] = None,
    seeds: Annotated[int, typer.Option(min=0, help="An array of so many runs that differ in their seed.")] = 0,
    grid: Annotated[list[str] | None, typer.Option(help="An array over setting=value,value; repeatable.")] = None,
    array: Annotated[str | None, typer.Option(help="Members of the array to run, e.g. 0-5%2; all by default.")] = None,
    chain: Annotated[int, typer.Option(min=0, help="So many jobs in a row, for sites without requeue.")] = 0,
    elastic: Annotated[bool, typer.Option("--elastic", help="May start on fewer nodes, with the same batch.")] = False,
    resume: Resume = False,
    plan: Annotated[bool, typer.Option(help="Refuse a run that does not fit the site's GPUs.")] = True,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the job script and do nothing.")] = False,
) -> None:
    """Check RUN.yaml, write its job script into the run folder and submit it to Slurm."""
    from ftscale.cluster.submit import Request
    from ftscale.cluster.submit import submit as submit_run

    request = Request(
        nodes=nodes,
        gpus_per_node=gpus_per_node,
        processes=processes,
        launcher=launcher,
        time=time,
        partition=partition,
        account=account,
        sbatch=tuple(sbatch or ()),
        array=array,
        seeds=seeds,
        grid=tuple(grid or ()),
        chain=chain,
        elastic=elastic,
        resume=resume,
        plan=plan,
    )
    setup_logging()
    submission = submit_run(run, overrides or (), request, dry_run=dry_run)
    print(submission.script if dry_run else submission.told)


@app.command(epilog="Example: ftscale status runs/mine")
def status(run_folder: RunFolder) -> None:
    """Tell how a submitted run is doing: its job, its step, and why it was started again."""
    from ftscale.cluster.watch import status_lines

    print(shown("\n".join(status_lines(run_folder))))


@app.command(epilog="Example: ftscale logs -f runs/mine")
def logs(
    run_folder: RunFolder,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on until the run's jobs have ended.")] = False,
    rank: Annotated[int | None, typer.Option(min=0, help="The log of this rank instead of the job's.")] = None,
) -> None:
    """Print the log of a run's newest job, or of one of its ranks."""
    from ftscale.cluster.watch import follow as follow_log
    from ftscale.cluster.watch import log_file

    if not follow:
        print(shown(log_file(run_folder, rank=rank).read_text(encoding="utf-8", errors="replace")), end="")
        return
    for text in follow_log(run_folder, rank=rank):
        print(shown(text), end="", flush=True)


@app.command(epilog="Example: ftscale cancel runs/mine")
def cancel(
    run_folder: RunFolder,
    now: Annotated[bool, typer.Option("--now", help="At once, without a checkpoint.")] = False,
) -> None:
    """End a run's jobs after a checkpoint."""
    from ftscale.cluster.watch import cancel as cancel_run

    print(shown("\n".join(cancel_run(run_folder, now=now))))


@app.command(epilog="Example: ftscale resubmit runs/mine time=48:00:00")
def resubmit(
    run_folder: RunFolder,
    options: Annotated[list[str] | None, typer.Argument(metavar="[key=value ...]", help="Options of sbatch.")] = None,
) -> None:
    """Submit a run's job again; it goes on from the newest checkpoint."""
    from ftscale.cluster.submit import resubmit as resubmit_run

    print(resubmit_run(run_folder, options or ()).told)


@app.command(epilog="Example: ftscale table runs/mine/seed-*")
def table(run_folders: Annotated[list[Path], typer.Argument(metavar="RUN_FOLDERS")]) -> None:
    """Print the results of several runs, with mean and deviation over seeds."""
    from ftscale.cluster.table import as_text, result_table

    print(shown(as_text(result_table(run_folders))))


@app.command(hidden=True)
def job(
    run: RunFile,
    overrides: Overrides = None,
    launcher: Annotated[str, typer.Option()] = "torchrun",
    processes: Annotated[int, typer.Option(min=0)] = 0,
    on_stop: Annotated[str, typer.Option()] = "requeue",
    elastic: Annotated[str, typer.Option()] = "no",
    max_restarts: Annotated[int, typer.Option(min=0)] = 50,
    silence_s: Annotated[float, typer.Option(min=1)] = 1800,
    scratch: Annotated[str, typer.Option()] = "",
    min_free_gib: Annotated[float, typer.Option(min=0)] = 1,
    max_clock_skew_s: Annotated[float, typer.Option(min=0)] = 5,
    interface: Annotated[str, typer.Option()] = "",
    container: Annotated[str, typer.Option()] = "",
) -> None:
    """What the job scripts of slurm/ run on their first node."""
    from ftscale.cluster.job import JobSettings, run_job

    settings = JobSettings(
        launcher=launcher,
        processes=processes,
        on_stop=on_stop,
        elastic=elastic,
        max_restarts=max_restarts,
        silence_s=silence_s,
        scratch=scratch,
        min_free_gib=min_free_gib,
        max_clock_skew_s=max_clock_skew_s,
        interface=interface,
        container=container,
    )
    sys.exit(run_job(run, overrides or (), settings))


@app.command(hidden=True)
def node(
    arguments: Annotated[list[str], typer.Argument()],
    launcher: Annotated[str, typer.Option()],
    processes: Annotated[int, typer.Option(min=1)],
) -> None:
    """Start a node's processes of `ftscale ARGUMENTS` through a launcher."""
    from ftscale.cluster.node import launch_node

    sys.exit(launch_node(launcher, processes=processes, arguments=arguments))


@app.command(hidden=True)
def node_check(
    folder: Annotated[Path, typer.Argument()],
    run: RunFile,
    overrides: Overrides = None,
    scratch: Annotated[str, typer.Option()] = "",
    min_free_gib: Annotated[float, typer.Option(min=0)] = 1,
) -> None:
    """The health check of one node of a job."""
    from ftscale.cluster.health import check_node

    check_node(folder, run, overrides or (), scratch=scratch, min_free_gib=min_free_gib)


if __name__ == "__main__":
    main()
