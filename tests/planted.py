"""A pickle that runs code as it is read, put in the place of a file, and what tells whether it ran."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

from ftscale.base.hashing import hash_file
from ftscale.base.sealed import sealed
from ftscale.train.manifest import MANIFEST


class Planted:
    """Makes a file when it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Any, ...]:
        return open, (str(self.mark), "w")


def plant(path: Path, mark: Path) -> None:
    """In the place of the file, where it stands in every value of it."""
    torch.save({"weights": Planted(mark), "optimizer_state_dict": Planted(mark), "module": Planted(mark)}, path)


def reseal(checkpoint: Path) -> None:
    """The manifest as whoever can write the folder can make it: right again."""
    manifest = json.loads((checkpoint / MANIFEST).read_text())
    files = {name: ((checkpoint / name).stat().st_size, hash_file(checkpoint / name)) for name in manifest["files"]}
    (checkpoint / MANIFEST).write_text(json.dumps(sealed({**manifest, "files": files})))
