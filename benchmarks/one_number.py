"""How far a run depends on how it is cut: losses, gradient norms and final weights, ours and HF Trainer's.

    python benchmarks/one_number.py [--only TASK ...] [--dropout 0]

Every task trains a small model in fp32, 6 optimizer steps of 8 real rows each, without dropout (--dropout 0.1: with
it). It is cut into micro-batches of at most 8, 2 and 1 samples, alone and on two processes (gloo) under DDP, ZeRO-2 and
ZeRO-3, in flat and in padded rows, whole and stopped half way and resumed: as many cuts as it takes for every two
values to meet. Each is compared with the run of one process and one micro-batch: the largest relative difference of a
step's loss and of its gradient norm, and the distance of the final weights as a share of the distance that training
moved them. HF Trainer does the same with the same prepared rows and the same model, in padded rows, alone and under
DDP, where transformers has a collator for the task; sentence-transformers with its cached loss does so for embeddings.

AdamW's epsilon is 1e-3: a smaller one divides gradients that are nothing but rounding by themselves, and hides that a
gradient is too large by a factor. The models have no batch norm, whose statistics are by its definition those of a
micro-batch. Needs ../shared. Results go into benchmarks/results/one_number.json, a task at a time.
"""

from __future__ import annotations

import argparse
import csv
import itertools
import json
import math
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from defusedxml import ElementTree
from safetensors.torch import load_file
from speed import hardware, rounded, versions
from speed_works import NAMES

from ftscale.config.tasks import SETTINGS

ROOT = Path(__file__).resolve().parents[1]
SHARED = ROOT.parent / "shared"
RESULTS = ROOT / "benchmarks/results/one_number.json"
WORK = ROOT / "runs/one_number"

STEPS, HALF = 6, 3
GLOBAL_SIZE = 8
MICRO_SIZES = (GLOBAL_SIZE, 2, 1)
WORLDS = (("single", 1), ("ddp", 2), ("zero2", 2), ("zero3", 2))
STOPS = (False, True)
FIGURES = ("loss", "grad_norm", "weights")
UNTRAINED = "untrained"

PEERS = {"hf_trainer": "HF Trainer", "sentence_transformers": "sentence-transformers"}

Config = dict[str, Any]
Figures = dict[str, float]


@dataclass(frozen=True)
class Cut:
    """A way to do the same run."""

    layout: str
    micro_size: int
    world: tuple[str, int]
    """Strategy and number of processes."""
    is_resumed: bool

    @property
    def whole(self) -> str:
        """The name of the run that is not stopped."""
        strategy, processes = self.world
        return f"{self.layout}-{self.micro_size}-{strategy}-{processes}"

    @property
    def name(self) -> str:
        return self.whole + "-resumed" * self.is_resumed


@dataclass(frozen=True)
class Program:
    """What trains."""

    script: str
    """Does the jobs of a file, one rank of them."""
    layouts: Callable[[str], Sequence[str]]
    """By the task's name; none = the program does not do the task."""
    worlds: Sequence[tuple[str, int]]


def our_layouts(task: str) -> Sequence[str]:
    return ("flat", "padded") if "flat_rows" in SETTINGS[task].can else ("padded",)


def their_layouts(task: str) -> Sequence[str]:
    from speed_hf_trainer import MODELS

    return ("padded",) if task in MODELS else ()


def layouts_of_embedding(task: str) -> Sequence[str]:
    return ("padded",) if task == "embedding" else ()


PROGRAMS = {
    "ftscale": Program("one_number.py", our_layouts, WORLDS),
    "hf_trainer": Program("one_number_hf_trainer.py", their_layouts, WORLDS[:2]),
    "sentence_transformers": Program("one_number_sentence_transformers.py", layouts_of_embedding, WORLDS[:2]),
}
"""Ours, and its peers: each task has one at most."""


def works() -> dict[str, Config]:
    """What each task trains, and on which rows."""
    qa, captions = SHARED / "data/qa/squad_v1/test-v1.1.json", SHARED / "data/translation/multi30k_de-en"
    bert = str(WORK / "models/bert")
    return {
        "causal_lm": _work(
            {"max_length": 128}, SHARED / "weights/stories260K", captions / "train.en.gz", format="text"
        ),
        "embedding": _work(
            {"max_length": 64},
            bert,
            qa,
            rows="data.paragraphs.qas",
            columns={"anchor": "question", "positive": "context"},
        ),
        "image_classification": _work({}, WORK / "models/vit", WORK / "images.csv"),
        "masked_lm": _work(
            {"max_length": 64, "whole_words": True},
            bert,
            SHARED / "data/text_classification/sst2/train.tsv",
            header=False,
            columns={"text": 0},
        ),
        "multiple_choice": _work({"max_length": 64}, bert, WORK / "choices.jsonl"),
        "question_answering": _work(
            {"max_length": 96, "max_question": 40, "stride": 16}, bert, qa, rows="data.paragraphs.qas"
        ),
        "reranking": _work({"max_length": 64}, bert, WORK / "ranked.jsonl"),
        "seq2seq": _work(
            {"max_length": 64, "generate": None}, WORK / "models/t5", captions / "train.{de,en}.gz", format="parallel"
        ),
        "text_classification": _work(
            {"max_length": 64},
            bert,
            SHARED / "data/text_classification/sst2/train.tsv",
            header=False,
            columns={"text": 0, "label": 1},
        ),
        "token_classification": _work(
            {"max_length": 64}, bert, SHARED / "data/ner/ncbi_disease/train.tsv", format="conll"
        ),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=list(SETTINGS), default=list(SETTINGS), metavar="TASK")
    parser.add_argument("--dropout", type=float, default=0.0, help="every dropout of the models; 0 = none")
    parser.add_argument("--worker", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.worker:
        work_off(arguments.worker)
        return
    known = works()
    if strange := [task for task in arguments.only if task not in known]:
        parser.error(f"no small run of {', '.join(strange)}; describe it in works()")
    write_inputs()
    for task in arguments.only:
        run = configuration(task, known[task], dropout=arguments.dropout)
        described = json.dumps(run).replace(str(ROOT / "runs"), "runs").replace(str(SHARED), "../shared")
        record = {
            **{name: found for name in PROGRAMS if (found := measure(name, task, run))},
            "work": json.loads(described),
            "command": f"python benchmarks/one_number.py --only {task} --dropout {arguments.dropout:g}",
            "hardware": hardware(),
            "versions": versions(),
        }
        add_result(task if not arguments.dropout else f"{task}, dropout {arguments.dropout:g}", record)
    show(json.loads(RESULTS.read_text()))


def measure(name: str, task: str, run: Config) -> dict[str, Any] | None:
    """Do all cuts of a task's run with a program, and compare them; None where it does not do the task."""
    program, folder = PROGRAMS[name], WORK / task / name
    layouts = program.layouts(task)
    if not layouts:
        return None
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    if name == "hf_trainer":
        write_rows(run, folder)
    cuts = pairs(layouts, MICRO_SIZES, program.worlds, STOPS)
    listed: dict[int, list[dict[str, Any]]] = {}
    for processes, job in jobs(cuts, run, folder):
        listed.setdefault(processes, []).append(job)
    for processes, of_processes in listed.items():
        launch(program.script, of_processes, processes=processes, folder=folder)
    return compared(cuts, folder)


# ---------------------------------------------------------------- cuts


def pairs(*axes: Sequence[Any]) -> list[Cut]:
    """Cuts in which every two values of two axes meet; the first is the one of all axes' first values."""
    product = list(itertools.product(*axes))

    def shown(values: tuple[Any, ...]) -> set[Any]:
        return set(itertools.combinations(enumerate(values), 2))

    chosen, unseen = [product[0]], set().union(*map(shown, product)) - shown(product[0])
    while unseen:
        chosen.append(max(product, key=lambda values: len(unseen & shown(values))))
        unseen -= shown(chosen[-1])
    return [Cut(*values) for values in chosen]


def jobs(cuts: list[Cut], run: Config, folder: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """The runs, each with its number of processes: one of nothing, and one of each cut that may be stopped."""
    # so small a rate changes no weight
    untrained = {**run, "optimizer": {**run["optimizer"], "lr": 1e-30}, "train": {**run["train"], "max_steps": 1}}
    resumed = {cut.whole for cut in cuts if cut.is_resumed}
    for name, (cut, base) in ({UNTRAINED: (cuts[0], untrained)} | {cut.whole: (cut, run) for cut in cuts}).items():
        strategy, processes = cut.world
        config = {
            **base,
            "run_folder": str(folder / name),
            "batch": {"global_size": GLOBAL_SIZE, "micro_size": cut.micro_size, "layout": cut.layout},
            "distributed": {"strategy": strategy},
            "checkpoint": {"every": HALF if name in resumed else 0, "keep": 9, "prove": "never"},
        }
        yield processes, {"config": config, "resumes": name in resumed}


def launch(script: str, listed: list[dict[str, Any]], *, processes: int, folder: Path) -> None:
    """Do the jobs one after another in the same processes. Raises RuntimeError where one fails."""
    file, output = folder / f"jobs-{processes}.json", folder / f"jobs-{processes}.log"
    file.write_text(json.dumps(listed))
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(processes)]
    command = [sys.executable, *launcher, str(Path(__file__).with_name(script)), "--worker", str(file)]
    variables = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "tests")]),
        "OMP_NUM_THREADS": "1",
        "DS_ACCELERATOR": "cpu",
        "HF_HUB_OFFLINE": "1",
    }
    with output.open("w") as log:
        if subprocess.run(command, env=variables, stdout=log, stderr=log).returncode:
            raise RuntimeError(f"{' '.join(command)} failed; see {output}")


def work_off(file: Path) -> None:
    """One rank of ftscale's runs: each job, and those that resume once more from their middle."""
    import torch
    from launching import forget_after

    from ftscale import train
    from ftscale.config import parse_config

    torch.set_num_threads(1)
    for job in json.loads(file.read_text()):
        config = job["config"]
        train(parse_config(config, source="benchmarks/one_number.py"))
        if job["resumes"]:
            whole = Path(config["run_folder"])
            half = whole.with_name(whole.name + "-resumed")
            if os.environ["RANK"] == "0":
                forget_after(whole, half, step=HALF)
            train(parse_config({**config, "run_folder": str(half)}, source="benchmarks/one_number.py"), resume=True)


def compared(cuts: list[Cut], folder: Path) -> dict[str, Any]:
    """By what each cut differs from the first."""
    reference, untrained = folder / cuts[0].name, folder / UNTRAINED
    found = {cut.name: rounded(differences(folder / cut.name, reference, untrained)) for cut in cuts[1:]}
    largest = {figure: max(each[figure] for each in found.values()) for figure in FIGURES}
    return {"largest": largest, "cuts": found}


def differences(one: Path, reference: Path, untrained: Path) -> Figures:
    """By what two runs differ, relative to the second."""
    steps = [trajectory(one), trajectory(reference)]
    assert len(steps[0]) == len(steps[1]) == STEPS, one
    of_steps = {
        name: max(abs(ours[name] / theirs[name] - 1) for ours, theirs in zip(*steps, strict=True))
        for name in ("loss", "grad_norm")
    }
    return {**of_steps, "weights": distance(one, reference) / distance(reference, untrained)}


def trajectory(folder: Path) -> list[dict[str, float]]:
    """The optimizer steps of a run."""
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [line for line in lines if line["kind"] == "train"]


def distance(one: Path, other: Path) -> float:
    """Euclidean distance of all weights of two runs' models."""
    ours, theirs = weights(one), weights(other)
    assert ours.keys() == theirs.keys(), (one, other)
    return math.sqrt(sum((ours[name] - theirs[name]).double().square().sum().item() for name in ours))


def weights(folder: Path) -> dict[str, Any]:
    return {
        name: tensor for file in (folder / "model").glob("*.safetensors") for name, tensor in load_file(file).items()
    }


# ---------------------------------------------------------------- what is trained


def configuration(task: str, work: Config, *, dropout: float) -> Config:
    """The run's settings but for its folder and its cut."""
    from transformers import CONFIG_MAPPING

    written = json.loads((Path(work["model"]) / "config.json").read_text())
    fields = CONFIG_MAPPING[written["model_type"]](**written).to_dict()
    overrides = {name: dropout for name, value in fields.items() if "drop" in name and isinstance(value, float)}
    return {
        "task": {"name": task, **work["task"]},
        "model": {"name": work["model"], "overrides": overrides},
        "data": {"train": work["train"], "cache_dir": str(WORK / "cache")},
        "optimizer": {"name": "adamw", "lr": 0.01, "eps": 1e-3},
        "train": {"max_steps": STEPS, "precision": "fp32"},
    }


def write_rows(run: Config, folder: Path) -> None:
    """The prepared rows as transformers' collators take them, and what the task sets of the model's config."""
    from ftscale.config import parse_config
    from ftscale.run.prepared_data import prepare_inputs

    inputs = prepare_inputs(parse_config({**run, "run_folder": str(folder / "run")}, source=str(folder)))
    assert inputs.train is not None
    rows = [{NAMES[name]: row[name] for name in NAMES if name in row} for row in inputs.train.dataset]
    if run["task"]["name"] == "question_answering":
        for row in rows:
            row["start_positions"], row["end_positions"] = row.pop("labels")
    (folder / "train.json").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "model_settings.json").write_text(json.dumps(inputs.task.model_settings()))


def write_inputs() -> None:
    """Small models of random weights, with real tokenizers; images of ten classes; the choices of Balanced COPA."""
    import torch
    import transformers

    if (WORK / "images.csv").exists():
        return
    tokenizers = SHARED / "weights/tokenizers"
    sizes = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 128}
    t5 = {"d_model": 32, "d_kv": 16, "d_ff": 64, "num_layers": 2, "num_heads": 2, "decoder_start_token_id": 0}
    made = {
        "bert": (transformers.BertModel, transformers.BertConfig(**sizes)),
        "t5": (transformers.T5ForConditionalGeneration, transformers.T5Config(**t5)),
        "vit": (transformers.ViTModel, transformers.ViTConfig(image_size=32, patch_size=8, **sizes)),
    }
    shutil.rmtree(WORK, ignore_errors=True)
    shutil.copytree(tokenizers / "bert-base-uncased", WORK / "models/bert")
    shutil.copytree(tokenizers / "t5", WORK / "models/t5")
    transformers.ViTImageProcessor(size={"height": 32, "width": 32}).save_pretrained(WORK / "models/vit")
    for name, (model_class, config) in made.items():
        torch.manual_seed(0)
        model_class(config).save_pretrained(WORK / "models" / name)
    root = ElementTree.parse(SHARED / "data/multiple_choice/balanced_copa/balacopa-dev-all.xml").getroot()
    rows = [
        {
            "context": item.findtext("p"),
            "question": f"What was the {item.get('asks-for')} of this?",
            "choices": [item.findtext("a1"), item.findtext("a2")],
            "label": int(item.attrib["most-plausible-alternative"]) - 1,
        }
        for item in root
    ]
    (WORK / "choices.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    with (WORK / "ranked.jsonl").open("w") as file:
        for row in rows:
            right, wrong = row["choices"][row["label"]], row["choices"][1 - row["label"]]
            file.write(json.dumps({"anchor": row["context"], "positive": right, "negative": [wrong]}) + "\n")
    shutil.unpack_archive(SHARED / "data/image_classification/cifar10_subset.tar.gz", WORK, filter="data")
    images = WORK / "cifar10/train"
    with (WORK / "images.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["image", "label"])
        classes = [[(path, folder.name) for path in sorted(folder.iterdir())] for folder in sorted(images.iterdir())]
        writer.writerows(itertools.chain(*zip(*classes, strict=True)))


def _work(task: dict[str, Any], model: str | Path, path: Path, **source: Any) -> Config:
    """A run over the first rows of a file, of which each is seen at most once."""
    return {"task": task, "model": str(model), "train": {"path": str(path), "limit": STEPS * GLOBAL_SIZE, **source}}


# ---------------------------------------------------------------- results


def add_result(name: str, record: dict[str, Any]) -> None:
    """Put a task into the results file, whatever else stands in it."""
    results = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    results[name] = record
    RESULTS.write_text(json.dumps(dict(sorted(results.items())), indent=1) + "\n")


def show(records: dict[str, dict[str, Any]]) -> None:
    """The largest differences of each task, as docs/measured.md has them."""
    print("\n| task | loss | gradient norm | weights | peer | its loss | gradient norm | weights |")
    print("|---|---|---|---|---|---|---|---|")
    for name, record in records.items():
        peer = next((peer for peer in PEERS if record.get(peer)), None)
        sides = (record["ftscale"], record[peer] if peer else None)
        ours, theirs = ([f"{side['largest'][figure]:.0e}" if side else "-" for figure in FIGURES] for side in sides)
        print(f"| {' | '.join([name, *ours, PEERS.get(peer, '-'), *theirs])} |")


if __name__ == "__main__":
    main()
