"""No file of a run can run code as it is read: every file of a checkpoint with a pickle in its place, in real ranks."""

from __future__ import annotations

import ast
import json
import pickle
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import launching
import pytest
import torch
from planted import Planted, plant

from ftscale.base.errors import UserError
from ftscale.base.tensor_files import load_tensors
from ftscale.distributed.nvme_state import load_swapped

ROOT = Path(__file__).resolve().parents[2]
UNPICKLERS = ("pickle", "cPickle", "_pickle", "dill", "cloudpickle", "joblib", "marshal", "shelve")


# ---------------------------------------------------------------- the code


def test_torch_loads_nothing_but_weights_and_nothing_else_unpickles():
    found = [*(ROOT / "ftscale").rglob("*.py"), *(ROOT / "benchmarks").rglob("*.py")]
    wrong = [f"{path.relative_to(ROOT)}:{line}" for path in found for line in unpickles(path.read_text())]
    assert wrong == []


@pytest.mark.parametrize(
    "text",
    [
        "import torch\ntorch.load(path)",
        "import torch\ntorch.load(path, weights_only=False)",
        "import torch as t\nt.load(path, None, flag)",
        "from torch import load\nload(path, weights_only=True)",
        "import torch\nread = torch.load",
        "import pickle\npickle.loads(data)",
        "from pickle import Unpickler",
        "import numpy\nnumpy.load(path, allow_pickle=True)",
    ],
)
def test_that_is_found_in_whichever_way_it_is_written(text: str):
    assert list(unpickles(text))


def test_plain_loading_is_not_taken_for_it():
    text = "import torch, json\ntorch.load(path, map_location='cpu', weights_only=True)\njson.load(file)"
    assert list(unpickles(text)) == []


def unpickles(text: str) -> Iterator[int]:
    """Lines that could unpickle without restriction."""
    tree = ast.parse(text)
    torches = {"torch"}
    good = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            torches |= {name.asname for name in node.names if name.name == "torch" and name.asname}
            if any(name.name.split(".")[0] in UNPICKLERS for name in node.names):
                yield node.lineno
        if isinstance(node, ast.ImportFrom) and (
            str(node.module).split(".")[0] in UNPICKLERS
            or (str(node.module).split(".")[0] == "torch" and any(name.name == "load" for name in node.names))
        ):
            yield node.lineno
        if isinstance(node, ast.Call):
            settings = {word.arg: word.value for word in node.keywords}
            if is_true(settings.get("weights_only")):
                good.add(node.func)
            if is_true(settings.get("allow_pickle")):
                yield node.lineno
    for node in ast.walk(tree):
        if not isinstance(node, ast.Attribute) or node in good:
            continue
        is_torch = isinstance(node.value, ast.Name) and node.value.id in torches
        if (is_torch and node.attr == "load") or node.attr == "read_pickle":
            yield node.lineno


def is_true(value: ast.expr | None) -> bool:
    return isinstance(value, ast.Constant) and value.value is True


# ---------------------------------------------------------------- files


@pytest.mark.parametrize("form", ["zip", "before zip", "pickle", "empty", "text"])
def test_a_file_that_is_no_tensors_is_refused_unread(tmp_path: Path, form: str):
    path, mark = tmp_path / "state.pt", tmp_path / "ran"
    if form in ("zip", "before zip"):
        torch.save({"a": Planted(mark)}, path, _use_new_zipfile_serialization=form == "zip")
    else:
        path.write_bytes({"pickle": pickle.dumps(Planted(mark)), "empty": b"", "text": b"weights\n"}[form])
    with pytest.raises(UserError, match=r"state.pt is not what ftscale writes \(.+\), so that it is not read"):
        load_tensors(path)
    assert not mark.exists()


def test_the_planted_pickle_runs_where_nothing_holds_it_back(tmp_path: Path):
    plant(tmp_path / "state.pt", tmp_path / "ran")
    torch.load(tmp_path / "state.pt", weights_only=False)
    assert (tmp_path / "ran").exists()


STRATEGIES = ("zero1", "zero2", "zero3")


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What two ranks say of each file, when they go on in the same stage and in another one."""
    work = tmp_path_factory.mktemp("planted")
    listed = [{"strategy": strategy, "work": str(work / strategy)} for strategy in STRATEGIES]
    launching.launch(Path(__file__).parents[1] / "planted_worker.py", listed, processes=2, work=work)
    return {strategy: json.loads((work / strategy / "found.json").read_text()) for strategy in STRATEGIES}


@pytest.mark.parametrize("kind", ["model_states", "more", "optim_states", "random"])
@pytest.mark.parametrize("stage", ["same", "other"])
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_a_pickle_in_a_sharded_checkpoint_does_not_run_and_every_rank_says_so(
    found: dict[str, Any], strategy: str, stage: str, kind: str
):
    about = found[strategy][stage][kind]
    assert not about["ran"]
    assert all(kind in said and "is not what ftscale writes" in said for said in about["said"]), about


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_the_whole_checkpoint_is_read_as_it_was_written(found: dict[str, Any], strategy: str):
    assert found[strategy]["same"]["losses"] == found[strategy]["after"]
    assert found[strategy]["other"]["losses"] == pytest.approx(found[strategy]["after"], rel=1e-6)


@pytest.mark.parametrize("name", ["sub-group-00000.pt", "rest.pt"])
def test_a_pickle_among_what_was_swapped_to_a_disk_does_not_run(tmp_path: Path, name: str):
    (tmp_path / "rank-00000").mkdir()
    plant(tmp_path / "rank-00000" / name, tmp_path / "ran")
    weights = [torch.nn.Parameter(torch.zeros(2))] if name != "rest.pt" else []
    zero = SimpleNamespace(
        fp32_partitioned_groups_flat=weights,
        fp16_partitioned_groups_flat_numel=[2],
        optimizer_swapper=SimpleNamespace(is_swappable_tensor=lambda numel: False),
        checkpoint_event_prologue=lambda: None,
        checkpoint_event_epilogue=lambda: None,
    )
    with pytest.raises(UserError, match=rf"{name} is not what ftscale writes \(it names (_io|io|builtins).open\)"):
        load_swapped(SimpleNamespace(optimizer=zero), tmp_path, rank=0)
    assert not (tmp_path / "ran").exists()
