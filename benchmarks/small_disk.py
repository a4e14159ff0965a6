"""A small file system that a run folder lies on, and what befalls disks: full, read-only, slow. Takes root."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

PATIENCE_S = 600.0  # with processes that are still leaving


class SmallDisk:
    """An ext4 file system in a file, mounted at `folder`; a tmpfs where there are no loop devices."""

    def __init__(self, folder: Path, *, size_bytes: int) -> None:
        self.folder = folder
        folder.mkdir(parents=True)
        descriptor, name = tempfile.mkstemp(suffix=".img")
        self._image = Path(name)
        os.truncate(descriptor, size_bytes)
        os.close(descriptor)
        self.can_fail = _succeeds("mkfs.ext4", "-q", "-m", "0", str(self._image)) and self._mount()
        if not self.can_fail:
            self._image.unlink()
            _run("mount", "-t", "tmpfs", "-o", f"size={size_bytes}", "tmpfs", str(folder))

    @property
    def _filler(self) -> Path:
        return self.folder / "filler"

    def fill(self, *, but: int) -> None:
        """Leave so many bytes free."""
        with suppress(OSError), self._filler.open("wb") as file:  # a run may be quicker and take the rest
            file.write(bytes(max(shutil.disk_usage(self.folder).free - but, 0)))

    def make_read_only(self) -> None:
        """As after an error of the device, open files included; `mend` makes it as it was."""
        device = subprocess.run(["findmnt", "-no", "SOURCE", str(self.folder)], capture_output=True, text=True)
        (Path("/sys/fs/ext4") / Path(device.stdout.strip()).name / "trigger_fs_error").write_text("1")

    def freeze(self, seconds: float) -> None:
        """Whoever writes waits that long."""
        _run("fsfreeze", "--freeze", str(self.folder))
        try:
            time.sleep(seconds)
        finally:
            _run("fsfreeze", "--unfreeze", str(self.folder))

    def free(self) -> None:
        """There is room again."""
        self._filler.unlink(missing_ok=True)

    def mend(self) -> None:
        """Files can be written again. Waits for processes that still have some open."""
        deadline = time.monotonic() + PATIENCE_S
        while not _succeeds("umount", str(self.folder)) and time.monotonic() < deadline:
            time.sleep(0.1)
        subprocess.run(["e2fsck", "-fy", str(self._image)], capture_output=True, check=False)  # 1 = it has mended
        assert self._mount()

    def remove(self) -> None:
        """The file system and all that is on it."""
        _run("umount", "-l", str(self.folder))
        self._image.unlink(missing_ok=True)

    def _mount(self) -> bool:
        return _succeeds("mount", "-o", "loop,errors=remount-ro", str(self._image), str(self.folder))


@contextmanager
def small_disk(folder: Path, *, size_bytes: int) -> Iterator[SmallDisk]:
    """A disk that is gone at the end."""
    disk = SmallDisk(folder, size_bytes=size_bytes)
    try:
        yield disk
    finally:
        disk.remove()


def _succeeds(*command: str) -> bool:
    try:
        return subprocess.run(command, capture_output=True, check=False).returncode == 0
    except FileNotFoundError:
        return False


def _run(*command: str) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)}: {done.stderr.strip()}")
