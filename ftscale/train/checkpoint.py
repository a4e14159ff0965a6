"""Saving and restoring: written under a temporary name, synced, hashed, sealed with a manifest, renamed."""

from __future__ import annotations

import copy
import json
import shutil
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

import torch
import xxhash
from torch.utils._pytree import tree_map

from ftscale.base.errors import UserError
from ftscale.base.files import remove
from ftscale.base.hashing import hash_file
from ftscale.base.sealed import sync, write_text
from ftscale.base.seeding import derive_seed, seed_everything
from ftscale.base.tensor_files import load_tensors
from ftscale.distributed.process_state import random_state
from ftscale.distributed.runtime import Distributed
from ftscale.distributed.strategy import check_takeover
from ftscale.train import random_file
from ftscale.train.manifest import (
    Checkpoint,
    Files,
    folder_name,
    partial_folder,
    prune_checkpoints,
    seal,
)

MORE = "more.pt"
POLL_S = 0.05  # rank 0 looks so often whether the other ranks have written their parts
JOIN_S = 0.2  # ranks tell each other so often whether they are still writing, when all wait for that


class SaveError(UserError):
    """A checkpoint that could not be written; the complete ones are as they were."""


class Saver:
    """Writes a run's checkpoints, one at a time. Collective: all ranks call `save` and `wait` together.

    `identity`: what every manifest says of the run: `run_id`, `config_digest`, `versions`. `asynchronous`: `save`
    returns when the state is copied, and a thread writes it; `keep`: newest complete checkpoints that stay. `more`:
    what else rank 0 writes, the same on all ranks; None = nothing.
    """

    def __init__(
        self,
        root: Path,
        distributed: Distributed,
        *,
        identity: dict[str, Any],
        keep: int,
        asynchronous: bool,
        more: Callable[[], Any] = lambda: None,
    ) -> None:
        self.root = root
        self.distributed = distributed
        self.identity = identity
        self.keep = keep
        self.more = more
        self.asynchronous = asynchronous
        self.saved = -1
        """The step of the newest checkpoint; -1 = none."""
        self.blocked_s = 0.0
        """How long the last call of `save` kept the training waiting, in seconds."""
        self._snapshot = Snapshot()
        self._thread: threading.Thread | None = None
        self._abandoned = threading.Event()
        """A rank could not write its part; rank 0 need not wait for it."""
        self._error: Exception | None = None
        self._step = 0

    @property
    def failed(self) -> bool:
        """Whether a save in the background went wrong on this rank; `wait` raises it on all ranks."""
        return self._error is not None

    def save(
        self,
        step: int,
        progress: dict[str, Any],
        *,
        best: int | None = None,
        metric: float | None = None,
        at_once: bool = False,
    ) -> None:
        """Write `root/step-NNNNNNNN`, complete or not at all; then delete what is older than the newest `keep`.

        `progress`: JSON-able state of the loop; `best`: the step whose checkpoint stays besides; `metric`: of the last
        evaluation; `at_once`: not in the background. Raises SaveError on every rank where one could not write, the
        last save in the background included.
        """
        start = time.perf_counter()
        self.wait()
        self._step = step
        distributed, partial = self.distributed, partial_folder(self.root, step)
        self._try(self._make_folder, partial)
        self._agree()
        background = self.asynchronous and not at_once
        part = Part(partial, rank=distributed.rank, snapshot=self._snapshot if background else None)
        self._try(distributed.save_state, partial, part.write)
        if distributed.is_main and (more := self.more()) is not None:
            part.write(more, partial / MORE)
        part.write(random_file.as_bytes(random_state()), partial / random_file.file_name(distributed.rank))
        manifest = {
            "step": step,
            "metric": metric,
            "progress": progress,
            "world_size": distributed.world_size,
            "strategy": distributed.strategy.name,
            **self.identity,
        }
        if background:
            self._abandoned.clear()
            self._thread = threading.Thread(target=self._try, args=(self._complete, part, manifest, best), daemon=True)
            self._thread.start()
        else:
            self._try(part.finish)
            self._agree()
            self._try(self._seal, part, manifest, best)
            self._agree()
        self.saved = step
        self.blocked_s = time.perf_counter() - start

    def wait(self) -> None:
        """Until the save in the background is complete. Raises SaveError on every rank where one could not write."""
        if self._thread is None:
            return
        writing = True
        while writing:
            self._thread.join(timeout=JOIN_S)
            states = self.distributed.gather_objects((self._thread.is_alive(), self.failed))
            writing = any(alive for alive, _ in states)
            if any(failed for _, failed in states):
                self._abandoned.set()
        self._thread = None
        self._agree()

    def end(self) -> None:
        """Leave no thread that writes: a save in the background is over when this returns, complete or not.

        Not collective: where other ranks' parts are still missing, it is not waited for them.
        """
        if self._thread is not None:
            if self.distributed.world_size > 1:
                self._abandoned.set()
            self._thread.join()
            self._thread = None

    def _complete(self, part: Part, manifest: dict[str, Any], best: int | None) -> None:
        """Complete a checkpoint in the background: no collective here, ranks find each other's parts in the folder."""
        part.finish()
        if self.distributed.is_main:
            while len(part.all_parts()) < self.distributed.world_size:
                if self._abandoned.wait(POLL_S):
                    return
        self._seal(part, manifest, best)

    def _seal(self, part: Part, manifest: dict[str, Any], best: int | None) -> None:
        if self.distributed.is_main:
            seal(part.folder, self.root / folder_name(manifest["step"]), manifest, part.all_files())
            prune_checkpoints(self.root, keep=self.keep, best=best)

    def _make_folder(self, partial: Path) -> None:
        if self.distributed.is_main:
            remove(partial)
            partial.mkdir(parents=True)

    def _try(self, action: Callable[..., None], *arguments: Any) -> None:
        """An error is kept for `_agree`: a rank that left now would leave the others waiting for it."""
        if self._error is None:
            try:
                action(*arguments)
            except Exception as error:  # noqa: BLE001 (raised by _agree)
                self._error = error

    def _agree(self) -> None:
        """A barrier that raises on every rank where one has an error."""
        own, self._error = self._error, None
        texts = [text for text in self.distributed.gather_objects(None if own is None else _described(own)) if text]
        if not texts:
            return
        if self.distributed.is_main:
            shutil.rmtree(partial_folder(self.root, self._step), ignore_errors=True)
        if own is not None and not isinstance(own, OSError):
            raise own
        raise SaveError(
            f"the checkpoint of step {self._step} could not be written to {self.root}: {texts[0]}; free space or mend "
            "the disk, then go on with --resume: the complete checkpoints are as they were."
        )


class Part:
    """What one rank writes of a checkpoint, with sizes and hashes; with a `snapshot`, `write` only takes copies."""

    def __init__(self, folder: Path, *, rank: int, snapshot: Snapshot | None) -> None:
        self.folder = folder
        self._rank = rank
        self._snapshot = snapshot
        self._kept: list[tuple[Any, Path]] = []
        self._files: Files = {}
        self._error: OSError | None = None
        if snapshot is not None:
            snapshot.restart()

    def write(self, value: Any, path: Path) -> None:
        """Have `value` written to `path` by torch.save, bytes as they are.

        An error is raised by `finish`, outside of collectives.
        """
        if self._snapshot is not None:
            self._kept.append((self._snapshot.take(value), path))
            return
        try:
            self._write(value, path)
        except OSError as error:
            self._error = self._error or error

    def finish(self) -> None:
        """Everything on the disk, read back and compared, and named in this rank's list of files."""
        for value, path in self._kept:
            self._write(value, path)
        if self._error is not None:
            raise self._error
        names = {name: self.folder / name for name in self._files}
        sync(names.values())
        for name, path in names.items():
            if hash_file(path) != self._files[name][1]:
                raise OSError(f"{path} was read back with other content than was written")
        own = self.folder / f".files-{self._rank:05d}.json"
        write_text(own, json.dumps(self._files))

    def all_parts(self) -> list[Path]:
        """The lists of files of the ranks that have finished."""
        return sorted(self.folder.glob(".files-*.json"))

    def all_files(self) -> Files:
        """The files of all ranks, and what a library has written besides; the lists themselves are gone then."""
        files: Files = {}
        for path in self.all_parts():
            files |= json.loads(path.read_text())
            path.unlink()
        for path in sorted(item for item in self.folder.rglob("*") if item.is_file()):
            name = path.relative_to(self.folder).as_posix()
            if name not in files:
                sync([path])
                files[name] = (path.stat().st_size, hash_file(path))
        return files

    def _write(self, value: Any, path: Path) -> None:
        with path.open("xb") as file:  # never through a link
            hashing = _HashingFile(file)
            try:
                if isinstance(value, bytes):
                    hashing.write(value)
                else:
                    torch.save(value, hashing)
            except Exception as error:
                # torch's writer replaces the error of the file by one of its own
                raise hashing.error or error from None
        self._files[path.relative_to(self.folder).as_posix()] = (hashing.size, hashing.digest.hexdigest())


class Snapshot:
    """Copies of tensors on the CPU, in memory that the next snapshot uses again."""

    def __init__(self) -> None:
        self._memory: list[torch.Tensor] = []
        self._used = 0
        self._copied: dict[tuple[Any, ...], torch.Tensor] = {}

    def restart(self) -> None:
        """Begin a new snapshot: what the last one gave out will be written over."""
        self._used = 0
        self._copied = {}

    def take(self, value: Any) -> Any:
        """The same nested containers with copies of all that they hold."""
        # a shape is no container: tree_map would make a plain tuple of it
        return tree_map(self._leaf, value, is_leaf=lambda part: isinstance(part, torch.Size))

    def _leaf(self, value: Any) -> Any:
        return self._tensor(value) if isinstance(value, torch.Tensor) else copy.deepcopy(value)

    def _tensor(self, tensor: torch.Tensor) -> torch.Tensor:
        tensor = tensor.detach()
        key = (tensor.data_ptr(), tensor.shape, tensor.stride(), tensor.dtype, tensor.device)
        if tensor.numel() == 0 or key not in self._copied:  # tied weights stay tied
            self._copied[key] = self._room(tensor).copy_(tensor)
        return self._copied[key]

    def _room(self, tensor: torch.Tensor) -> torch.Tensor:
        index, self._used = self._used, self._used + 1
        if index < len(self._memory):
            room = self._memory[index]
            if room.shape == tensor.shape and room.dtype == tensor.dtype:
                return room
            del self._memory[index:]
        self._memory.append(torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=tensor.is_cuda))
        return self._memory[-1]


class _HashingFile:
    """A file that hashes what is written to it."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self.digest = xxhash.xxh3_128()
        self.size = 0
        self.error: OSError | None = None

    def write(self, data: Any) -> int:
        view = memoryview(data).cast("B")
        self.digest.update(view)
        self.size += len(view)
        try:
            self._file.write(view)
        except OSError as error:
            self.error = error
            raise
        return len(view)

    def flush(self) -> None:
        self._file.flush()


def load_checkpoint(checkpoint: Checkpoint, distributed: Distributed) -> None:
    """Restore weights, optimizer, loss scale and random states; the number of processes may be another. Collective.

    A rank without a random state of its own there gets one made from its seed and the step. Raises UserError where the
    state cannot be taken over by this strategy or number of processes.
    """
    check_takeover(
        str(checkpoint.folder),
        made_by=(checkpoint.manifest["strategy"], checkpoint.manifest["world_size"]),
        here=(distributed.strategy, distributed.world_size),
    )
    distributed.load_state(checkpoint.folder)
    own = checkpoint.folder / random_file.file_name(distributed.rank)
    if own.is_file():
        random_file.load_random_state(own)
    else:
        seed_everything(derive_seed(torch.initial_seed(), "resumed", checkpoint.step))


def load_more(checkpoint: Checkpoint) -> Any:
    """What the saver's `more` gave; None where it gave nothing."""
    path = checkpoint.folder / MORE
    return load_tensors(path) if path.is_file() else None


def _described(error: Exception) -> str:
    return error.strerror or str(error) if isinstance(error, OSError) else f"{type(error).__name__}: {error}"
