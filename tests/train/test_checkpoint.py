from __future__ import annotations

import errno
import json
import os
import pickle
import random
import shutil
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from ftscale.base.errors import UserError
from ftscale.config.schema import DistributedConfig
from ftscale.distributed.runtime import Distributed
from ftscale.train.checkpoint import Part, SaveError, Saver, Snapshot, load_checkpoint, load_more
from ftscale.train.manifest import (
    Checkpoint,
    complete_checkpoints,
    latest_checkpoint,
    list_checkpoints,
    partial_folder,
    prune_checkpoints,
)


@pytest.fixture
def distributed():
    made = Distributed(DistributedConfig(strategy="single"), precision="fp32", max_grad_norm=1.0)
    torch.manual_seed(0)
    module = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.BatchNorm1d(4), torch.nn.Linear(4, 2))
    module[0].weight.requires_grad_(False)
    made.prepare(
        module,
        torch.optim.AdamW([weight for weight in module.parameters() if weight.requires_grad]),
        unused_weights=False,
    )
    yield made
    made.close()


def step(distributed: Distributed) -> float:
    distributed.backward(distributed.module(torch.randn(8, 4)).square().sum(), last=True)
    return distributed.step()


def save_and_wait(writer: Saver, number: int) -> None:
    writer.save(number, {"loop": number})
    writer.wait()


class Planted:
    """What makes a folder where it is unpickled."""

    def __init__(self, made: Path) -> None:
        self.made = made

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.made),)


def saver(root: Path, distributed: Distributed, *, asynchronous: bool = False, keep: int = 9) -> Saver:
    identity = {"run_id": "this", "config_digest": "d", "versions": {}}
    return Saver(root, distributed, identity=identity, keep=keep, asynchronous=asynchronous)


def save(root: Path, distributed: Distributed, number: int, **options: Any) -> Checkpoint:
    saver(root, distributed, **options).save(number, {"loop": number})
    found = latest_checkpoint(root)
    assert found is not None
    assert found.step == number
    return found


def steps(root: Path) -> list[int]:
    return [item.step for item in complete_checkpoints(root)]


# ---------------------------------------------------------------- what is in it


def test_weights_optimizer_buffers_and_random_numbers_come_back(tmp_path, distributed):
    step(distributed)
    checkpoint = save(tmp_path, distributed, 1)
    expected = [step(distributed) for _ in range(3)]
    weights = {name: value.clone() for name, value in distributed.module.state_dict().items()}
    load_checkpoint(checkpoint, distributed)
    assert [step(distributed) for _ in range(3)] == expected
    assert all(torch.equal(value, weights[name]) for name, value in distributed.module.state_dict().items())


def test_numbers_drawn_by_python_and_numpy_come_back(tmp_path, distributed):
    def drawn() -> list[float]:
        return [random.random(), random.gauss(0.0, 1.0), float(np.random.rand()), float(np.random.normal())]

    random.seed(5)
    np.random.seed(5)
    drawn()
    checkpoint = save(tmp_path, distributed, 1)
    expected = drawn()
    random.seed(6)
    np.random.seed(6)
    load_checkpoint(checkpoint, distributed)
    assert drawn() == expected


def test_code_planted_in_the_state_is_refused_and_not_run(tmp_path, distributed):
    checkpoint = save(tmp_path, distributed, 1)
    state = torch.load(checkpoint.folder / "state.pt", weights_only=True)
    torch.save({**state, "more": Planted(tmp_path / "ran")}, checkpoint.folder / "state.pt")
    with pytest.raises((pickle.UnpicklingError, UserError)):
        load_checkpoint(checkpoint, distributed)
    assert not (tmp_path / "ran").exists()


def test_code_planted_in_what_else_was_saved_is_refused_and_not_run(tmp_path, distributed):
    checkpoint = save(tmp_path, distributed, 1)
    torch.save({"importance": Planted(tmp_path / "ran")}, checkpoint.folder / "more.pt")
    with pytest.raises((pickle.UnpicklingError, UserError)):
        load_more(checkpoint)
    assert not (tmp_path / "ran").exists()


def test_frozen_weights_are_not_written(tmp_path, distributed):
    checkpoint = save(tmp_path, distributed, 1)
    stored = torch.load(checkpoint.folder / "state.pt", weights_only=True)["weights"]
    assert "0.weight" not in stored
    assert {"0.bias", "2.weight", "1.running_mean"} <= stored.keys()


# ---------------------------------------------------------------- in the background


def test_a_background_save_holds_the_state_of_its_step_whatever_training_does_meanwhile(
    tmp_path, distributed, monkeypatch
):
    write, trained = Part._write, threading.Event()

    def write_later(part: Part, value: Any, path: Path) -> None:
        if threading.current_thread() is not threading.main_thread():
            trained.wait()
        write(part, value, path)

    monkeypatch.setattr(Part, "_write", write_later)
    step(distributed)
    background = saver(tmp_path, distributed, asynchronous=True)
    background.save(1, {"loop": 1})
    expected = [step(distributed) for _ in range(3)]
    trained.set()
    background.wait()
    [checkpoint] = complete_checkpoints(tmp_path)
    load_checkpoint(checkpoint, distributed)
    assert [step(distributed) for _ in range(3)] == expected


def test_at_most_one_save_is_in_flight_and_all_become_complete(tmp_path, distributed):
    background = saver(tmp_path, distributed, asynchronous=True)
    for number in (1, 2, 3):
        background.save(number, {"loop": number})
        assert steps(tmp_path)[: number - 1] == list(range(1, number))
    background.wait()
    assert steps(tmp_path) == [1, 2, 3]


def test_a_failed_background_save_is_known_and_raised(tmp_path, distributed, monkeypatch):
    save(tmp_path, distributed, 1)
    fill(monkeypatch)
    background = saver(tmp_path, distributed, asynchronous=True)
    background.save(2, {"loop": 2})
    background._thread.join()
    assert background.failed
    with pytest.raises(SaveError, match=r"the checkpoint of step 2 could not be written to .*No space left"):
        background.wait()
    assert steps(tmp_path) == [1]
    assert not partial_folder(tmp_path, 2).exists()


def test_a_snapshot_keeps_tied_tensors_tied_and_uses_its_memory_again():
    weight = torch.arange(4.0)
    snapshot = Snapshot()
    taken = snapshot.take({"a": weight, "b": [weight, weight + 1]})
    assert taken["a"] is taken["b"][0]
    shapes = snapshot.take([{"a": weight.shape}])
    assert isinstance(shapes[0]["a"], torch.Size)
    weight += 10
    assert taken["a"].tolist() == [0.0, 1.0, 2.0, 3.0]
    memory = taken["a"].data_ptr()
    snapshot.restart()
    again = snapshot.take({"a": weight})
    assert again["a"].data_ptr() == memory
    assert again["a"].tolist() == [10.0, 11.0, 12.0, 13.0]


# ---------------------------------------------------------------- the disk


def synced_path(file: Any) -> Path:
    """Of what is given to os.fsync."""
    return Path(os.readlink(f"/proc/self/fd/{file if isinstance(file, int) else file.fileno()}"))


class Disk:
    """What would be left after a power cut: contents of files, and names in folders, as they were last synced."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.files: dict[Path, bytes] = {}
        self.names: dict[Path, set[str]] = {}
        self.sealed: list[bool] = []
        """Of each checkpoint that got its final name, whether all of it was on the disk by then."""
        self._fsync, self._rename = os.fsync, os.rename
        patch.setattr(os, "fsync", self.fsync)
        patch.setattr(os, "rename", self.rename)

    def fsync(self, descriptor: Any) -> None:
        self._fsync(descriptor)
        path = synced_path(descriptor)
        if path.is_dir():
            self.names[path] = {item.name for item in path.iterdir()}
        else:
            self.files[path] = path.read_bytes()

    def rename(self, old: Any, new: Any) -> None:
        if Path(new).name.startswith("step-"):
            self.sealed.append(self.holds(Path(old)))
        self._rename(old, new)

    def holds(self, folder: Path) -> bool:
        """Whether a folder, with a manifest in it, is on the disk as it is now."""
        items = sorted(folder.iterdir())
        synced = all(self.files.get(path) == path.read_bytes() for path in items)
        return synced and self.names.get(folder) == {path.name for path in items} and folder / "manifest.json" in items


@pytest.mark.parametrize("asynchronous", [False, True], ids=["at once", "in the background"])
def test_a_checkpoint_is_on_the_disk_before_it_has_its_name(tmp_path, distributed, monkeypatch, asynchronous):
    writer = saver(tmp_path, distributed, asynchronous=asynchronous)
    writer.more = lambda: {"importance": torch.ones(3)}
    disk = Disk(monkeypatch)
    save_and_wait(writer, 1)
    assert disk.sealed == [True]
    assert "step-00000001" in disk.names.get(tmp_path, ()), "the name itself is on the disk when the save returns"


def test_what_a_library_writes_into_a_checkpoint_is_on_the_disk_too(tmp_path, monkeypatch):
    disk = Disk(monkeypatch)
    (tmp_path / "script.py").write_text("print()\n")
    files = Part(tmp_path, rank=0, snapshot=None).all_files()
    assert disk.files == {tmp_path / "script.py": b"print()\n"}
    assert files["script.py"][0] == 8


@pytest.mark.parametrize("asynchronous", [False, True], ids=["at once", "in the background"])
def test_a_disk_that_keeps_other_bytes_than_were_written_is_noticed(tmp_path, distributed, monkeypatch, asynchronous):
    save(tmp_path, distributed, 1)
    fsync = os.fsync

    def damaging(descriptor: Any) -> None:
        fsync(descriptor)
        path = synced_path(descriptor)
        if path.name == "state.pt":
            damage(path.parent, "flipped")

    monkeypatch.setattr(os, "fsync", damaging)
    writer = saver(tmp_path, distributed, asynchronous=asynchronous)
    with pytest.raises(SaveError, match=r"step 2 could not be written .*state\.pt was read back with other content"):
        save_and_wait(writer, 2)
    assert steps(tmp_path) == [1]


# ---------------------------------------------------------------- damage


def fill(monkeypatch: pytest.MonkeyPatch) -> None:
    """A disk that is full after the first 1,000 bytes of a file."""
    write = Part._write

    class Full:
        def __init__(self, file: Any) -> None:
            self.file = file

        def write(self, data: Any) -> int:
            if self.file.tell() + len(data) > 1000:
                raise OSError(errno.ENOSPC, "No space left on device")
            return self.file.write(data)

    def limited(self: Part, value: Any, path: Path) -> None:
        opened: Callable[..., Any] = Path.open
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Path, "open", lambda place, mode="r", **options: _Context(Full(opened(place, mode))))
            write(self, value, path)

    monkeypatch.setattr(Part, "_write", limited)


class _Context:
    def __init__(self, value: Any) -> None:
        self.value = value

    def __enter__(self) -> Any:
        return self.value

    def __exit__(self, *_: Any) -> None:
        self.value.file.close()


def test_a_disk_that_fills_leaves_the_checkpoint_before_and_says_so(tmp_path, distributed, monkeypatch):
    save(tmp_path, distributed, 1)
    fill(monkeypatch)
    with pytest.raises(SaveError, match=r"step 2 could not be written to .*No space left on device; free space"):
        saver(tmp_path, distributed).save(2, {"loop": 2})
    assert steps(tmp_path) == [1]
    assert not partial_folder(tmp_path, 2).exists()


def damage(folder: Path, how: str) -> None:
    state, manifest = folder / "state.pt", folder / "manifest.json"
    if how == "truncated":
        state.write_bytes(state.read_bytes()[:-10])
    elif how == "flipped":
        content = bytearray(state.read_bytes())
        content[len(content) // 2] ^= 1
        state.write_bytes(content)
    elif how == "missing":
        state.unlink()
    elif how == "no manifest":
        manifest.unlink()
    elif how == "of another run":
        manifest.write_text(json.dumps({**json.loads(manifest.read_text()), "run_id": "another"}))
    else:
        manifest.write_text('{"step": ')


DAMAGES = {
    "truncated": "state.pt has",
    "flipped": "state.pt has other content than when it was written",
    "missing": "state.pt is missing",
    "no manifest": "no manifest",
    "torn manifest": "the manifest is torn",
    "of another run": "it belongs to another run",
}


@pytest.mark.parametrize("how", DAMAGES)
def test_a_damaged_checkpoint_is_set_aside_and_the_one_before_is_taken(tmp_path, distributed, how):
    save(tmp_path, distributed, 1)
    damage(save(tmp_path, distributed, 2).folder, how)
    [first, second] = list_checkpoints(tmp_path, run_id="this")
    assert (first.checkpoint is not None, second.checkpoint) == (True, None)
    assert second.reason.startswith(DAMAGES[how])
    found = latest_checkpoint(tmp_path, run_id="this")
    assert found is not None
    assert found.step == 1
    assert (tmp_path / "incomplete" / "step-00000002").is_dir()
    assert steps(tmp_path) == [1]
    assert [item.reason for item in list_checkpoints(tmp_path)] == ["", "it was set aside"]


def test_a_half_written_folder_is_no_checkpoint_and_is_set_aside(tmp_path, distributed):
    folder = partial_folder(tmp_path, 3)
    folder.mkdir(parents=True)
    (folder / "state.pt").write_bytes(b"half")
    assert [item.reason for item in list_checkpoints(tmp_path)] == ["it was not finished"]
    assert latest_checkpoint(tmp_path) is None
    assert (tmp_path / "incomplete" / "step-00000003" / "state.pt").read_bytes() == b"half"
    assert save(tmp_path, distributed, 3).manifest["world_size"] == 1


def test_a_folder_of_the_same_step_is_replaced(tmp_path, distributed):
    shutil.rmtree(save(tmp_path, distributed, 1).folder / "state.pt", ignore_errors=True)
    step(distributed)
    assert save(tmp_path, distributed, 1).step == 1


# ---------------------------------------------------------------- what is kept


def test_the_newest_and_the_best_are_kept(tmp_path, distributed):
    for number in (1, 2, 3, 4, 5):
        save(tmp_path, distributed, number)
    prune_checkpoints(tmp_path, keep=2, best=2)
    assert steps(tmp_path) == [2, 4, 5]


def test_a_torn_checkpoint_does_not_count_among_the_newest(tmp_path, distributed):
    for number in (1, 2):
        save(tmp_path, distributed, number)
    damage(save(tmp_path, distributed, 3).folder, "truncated")
    prune_checkpoints(tmp_path, keep=1, best=None)
    assert steps(tmp_path) == [2]


def test_saving_deletes_what_is_too_old_only_when_the_new_one_is_complete(tmp_path, distributed, monkeypatch):
    writer = saver(tmp_path, distributed, keep=1)
    writer.save(1, {"loop": 1})
    with monkeypatch.context() as patch:
        fill(patch)
        with pytest.raises(SaveError):
            writer.save(2, {"loop": 2})
    assert steps(tmp_path) == [1]
    writer.save(3, {"loop": 3})
    assert steps(tmp_path) == [3]
