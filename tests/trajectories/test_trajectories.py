"""One number: loss and gradient do not depend on micro-batches, ranks, strategy, or stops.

Every pair of task, optimizer, strategy (with its number of processes), micro-batch and variant (without dropout, with
it, with it and padded) is run here, their whole product in the campaign (bash launch/test.sh --all).
"""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import needs
import pytest
from trajectories import runs

MICRO_SIZES = (1, 2, 8)  # 8, 4 and 1 micro-batches of a global batch of 8 on one rank
STRATEGIES = {1: ("single", "zero1", "zero2", "zero3"), 2: ("ddp", "zero1", "zero2", "zero3")}
TOLERANCE = {"sgd": 1e-5, "adamw": 1e-4}  # AdamW's first steps divide by gradients near zero and magnify rounding
OTHER_MACHINES = 1e-3  # committed trajectories come from one CPU; others round otherwise

WORLDS = [(processes, strategy) for processes, names in STRATEGIES.items() for strategy in names]
VARIANTS: dict[str, tuple[bool, str]] = {
    "plain": (False, "auto"),
    "dropout": (True, "auto"),
    "dropout, padded": (True, "padded"),
}
"""Whether the model drops, and the layout of batches."""
FEWER = () if needs.ALL else ("choices_by_likelihood", "embedding", "masked_lm", "multiple_choice", "reranking")
"""Tasks whose loss is made by the code of another task's, of which an ordinary run has a few combinations."""
TASKS = [task for task in runs.TASKS if task not in FEWER]
AXES = (TASKS, list(runs.OPTIMIZERS), WORLDS, MICRO_SIZES, list(VARIANTS))
REFERENCES = {
    kind: (*kind[:2], (1, "single"), 8, "dropout" if kind[2] else "plain")
    for kind in [*itertools.product(TASKS, runs.OPTIMIZERS, (False, True)), *((task, "sgd", True) for task in FEWER)]
}
"""By task, optimizer, and whether there is dropout: one trajectory each."""
KINDS = list(REFERENCES)
OF_FEWER = (((1, "single"), 2, "dropout, padded"), ((2, "ddp"), 2, "dropout"), ((2, "zero3"), 1, "dropout"))
COMBINATIONS = [
    *needs.meeting(*AXES, first=[key for key in REFERENCES.values() if key[0] in TASKS]),
    *(key for key in REFERENCES.values() if key[0] in FEWER),
    *((task, "sgd", *cut) for task in FEWER for cut in OF_FEWER),
]
RESUMED_MICRO = 2  # each strategy is stopped and resumed at this size; in the campaign at all

Key = tuple[str, str, tuple[int, str], int, str]
"""Task, optimizer, (processes, strategy), micro-batch, variant."""
Done = dict[Key, Path]


def test_every_pair_of_values_is_among_the_combinations():
    """In the campaign every triple."""
    for axes in itertools.combinations(range(len(AXES)), needs.MEET):
        met = {tuple(key[axis] for axis in axes) for key in COMBINATIONS if key[0] not in FEWER}
        assert met == set(itertools.product(*(AXES[axis] for axis in axes)))
    assert {key[2] for key in COMBINATIONS if is_resumed(key)} == set(WORLDS)


def is_resumed(key: Key) -> bool:
    return needs.ALL or key[3] == RESUMED_MICRO


def of_kind(done: Done, *kind: Any) -> Done:
    return {key: folder for key, folder in done.items() if (*key[:2], VARIANTS[key[4]][0]) == kind}


@pytest.fixture(scope="module")
def done(shared: Path, tmp_path_factory: pytest.TempPathFactory) -> Done:
    """Every run, made in two launches: one process, and two."""
    work = tmp_path_factory.mktemp("trajectories")
    folders: Done = {}
    jobs: dict[int, list[dict[str, Any]]] = {processes: [] for processes in STRATEGIES}
    for key in COMBINATIONS:
        task, optimizer, (processes, strategy), micro, variant = key
        drops, layout = VARIANTS[variant]
        folders[key] = work / f"{task}-{optimizer}-{processes}-{strategy}-{micro}-{variant}"
        config = runs.TASKS[task](shared, work) | {
            "run_folder": str(folders[key]),
            "optimizer": runs.OPTIMIZERS[optimizer],
            "distributed": {"strategy": strategy},
            "batch": {"global_size": 8, "micro_size": micro, "layout": layout},
        }
        if drops:
            config["model"]["overrides"] = runs.DROPOUT[task]
            config["train"]["dropout"] = "by_row"
        jobs[processes].append({"config": config, "resumes": is_resumed(key)})
    for processes, listed in jobs.items():
        runs.launch(listed, processes=processes, work=work)
    return folders


@pytest.mark.slow
@pytest.mark.parametrize(("task", "optimizer", "drops"), KINDS)
def test_loss_and_gradient_do_not_depend_on_how_a_step_is_cut_up(done: Done, task: str, optimizer: str, drops: bool):
    reference = runs.trajectory(done[REFERENCES[task, optimizer, drops]])
    differences = {
        key: runs.largest_difference(runs.trajectory(folder), reference)
        for key, folder in of_kind(done, task, optimizer, drops).items()
    }
    assert len(differences) > 1
    assert max(differences.values()) <= TOLERANCE[optimizer], differences


@pytest.mark.slow
@pytest.mark.parametrize(("task", "optimizer", "drops"), KINDS)
def test_a_stopped_and_resumed_run_goes_the_same_way(done: Done, task: str, optimizer: str, drops: bool):
    for key, folder in of_kind(done, task, optimizer, drops).items():
        if is_resumed(key):
            whole, resumed = runs.trajectory(folder), runs.trajectory(folder.with_name(folder.name + "-resumed"))
            if key[2][1] == "zero3":
                assert runs.largest_difference(resumed, whole) <= 1e-6, key
            else:
                assert resumed == whole, key


@pytest.mark.slow
@pytest.mark.parametrize("task", TASKS)
def test_dropout_changes_the_losses(done: Done, task: str):
    plain, dropped = (runs.trajectory(done[REFERENCES[task, "sgd", drops]]) for drops in (False, True))
    assert runs.largest_difference(dropped, plain) > 1e-3


@pytest.mark.slow
@pytest.mark.parametrize(("task", "optimizer"), list(dict.fromkeys(kind[:2] for kind in KINDS)))
def test_trajectories_are_the_committed_ones(shared: Path, tmp_path: Path, task: str, optimizer: str):
    config = runs.TASKS[task](shared, tmp_path) | {
        "run_folder": str(tmp_path / "run"),
        "optimizer": runs.OPTIMIZERS[optimizer],
        "train": {"max_steps": runs.COMMITTED_STEPS},
    }
    runs.launch([{"config": config, "resumes": False}], processes=1, work=tmp_path)
    path = Path(__file__).parent / f"{task}-{optimizer}.json"
    committed = [tuple(step) for step in json.loads(path.read_text())]
    assert runs.largest_difference(runs.trajectory(tmp_path / "run"), committed) <= OTHER_MACHINES
