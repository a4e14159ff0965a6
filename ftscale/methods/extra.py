"""The weights of a method's extra modules, beside the saved model in a file of their own."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from ftscale.base.errors import UserError
from ftscale.base.files import follow_umask
from ftscale.base.logs import log
from ftscale.base.sealed import sync
from ftscale.methods.base import Method
from ftscale.tasks.base import Task

FILE = "extra_modules.safetensors"
PREFIX = "extra."
"""Of their names in the state of what trains."""
MADE_FOR = "made_for"
"""In the file's header: what the weights belong to, since their shapes alone do not tell a class from another."""


def save_extra(state: Mapping[str, Tensor], folder: Path, method: Method) -> None:
    """Write those of all trained weights that belong to extra modules; nothing where there are none."""
    weights = {
        name.removeprefix(PREFIX): value.contiguous() for name, value in state.items() if name.startswith(PREFIX)
    }
    if weights:
        save_file(weights, folder / FILE, metadata={MADE_FOR: _made_for(method)})
        follow_umask(folder)
        sync([folder / FILE])


def copy_extra(source: Path, target: Path, task: Task, *, also: Sequence[str] = ()) -> None:
    """Take the weights, and what the task saves besides, along where a folder's model is written anew to another.

    `also`: further files. Links are left out: a run folder may be anybody's, and they may lead to what only its reader
    may see.
    """
    own = [source / name for name in (FILE, *task.extras, *also) if not (source / name).is_symlink()]
    for path in sorted(path for place in own for path in (place, *place.rglob("*"))):
        if path.is_file() and not path.is_symlink():
            copy = target / path.relative_to(source)
            copy.parent.mkdir(exist_ok=True)
            shutil.copyfile(path, copy)
            sync([copy])


def load_extra(method: Method, folder: Path) -> bool:
    """Bring back what `save_extra` wrote for this method and these classes; returns whether there was such a file.

    Raises UserError where it is damaged, or the method makes other weights now.
    """
    path = folder / FILE
    if not len(method.extra) or not path.is_file():
        return False
    try:
        with safe_open(path, framework="pt") as file:
            made_for = (file.metadata() or {}).get(MADE_FOR)
        if made_for != _made_for(method):
            log.info("%s is of another method or other classes: the method's own weights are new", path)
            return False
        method.extra.load_state_dict(load_file(path))
    except (SafetensorError, OSError, RuntimeError) as error:
        raise UserError(
            f"{str(path)!r} does not hold the weights that the method makes ({str(error).splitlines()[-1].strip()}); "
            "take the method that wrote it, or move the file away to begin with new ones."
        ) from error
    return True


def _made_for(method: Method) -> str:
    """The method's name, and what the task asks of a model: the classes in their order."""
    return json.dumps([method.own.name, method.model_settings()], sort_keys=True, default=str)
