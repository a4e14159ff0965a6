"""A start of Python that is quick, and an environment that is kept."""

from __future__ import annotations

import atexit
import gc
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

_NO_COMPILER = "TORCHDYNAMO_DISABLE"  # torch's own variable, read at each torch.compile
_starting = False
_collects_later = False


def start_quickly() -> None:
    """Leave out, until `begin_work`, what takes a third of the time of imports and of Python's own end.

    Python's collector looks for garbage, of which there is none yet; and torch imports its compiler for the few
    functions that bitsandbytes, which peft imports, wraps in torch.compile and calls on no GPU or CPU. That is told by
    the environment, so what starts a process that computes calls `begin_work` first.
    """
    global _starting, _collects_later
    _collects_later = True
    gc.disable()
    atexit.register(gc.freeze)
    if _NO_COMPILER not in os.environ:
        _starting = True
        os.environ[_NO_COMPILER] = "1"


def begin_work() -> None:
    """Undo `start_quickly` for what is made from here on; the libraries' objects stay out of the collector's work.

    Called where what lasts begins: reading rows, loading a model, training, waiting.
    """
    global _starting, _collects_later
    if _starting:
        _starting = False
        os.environ.pop(_NO_COMPILER, None)
    if _collects_later:
        _collects_later = False
        gc.freeze()
        gc.enable()


def keep_few_kernels() -> None:
    """Have oneDNN keep 256 of the kernels that it compiles for shapes of products, where the environment says nothing.

    It keeps 1,024 by itself, and flat rows are of another length in each step: MiniLM in bfloat16 on a CPU compiles 40
    a step, a third of a MiB each, which are hardly used again. 256 are more than the shapes of one step.
    """
    os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "256")


@contextmanager
def unchanged_environment() -> Iterator[None]:
    """Have the variables of the environment at the end as they are now, whatever is called within.

    peft's BOFT leaves CXX=gcc behind where its CUDA kernel cannot be compiled. DeepSpeed's operators are compiled anew
    for another compiler, for minutes, by this process and then by the next one that has none.
    """
    before = dict(os.environ)
    try:
        yield
    finally:
        restore_environment(before)


def found_environment() -> dict[str, str]:
    """The variables of the environment, without the one that `start_quickly` has set."""
    return {name: value for name, value in os.environ.items() if not (_starting and name == _NO_COMPILER)}


def restore_environment(before: Mapping[str, str]) -> None:
    """Have these variables and no others."""
    for name in os.environ.keys() - before.keys():
        del os.environ[name]
    os.environ.update(before)


def leave_out_working_folder() -> None:
    """Have the Pythons that are started from here on, also by `-m`, import nothing from the working folder.

    A user's random.py there would be taken for Python's own. Does nothing where ftscale itself lies in that folder, nor
    in Python 3.10, which does not know the variable.
    """
    if Path(__file__).resolve().parents[2] != Path.cwd().resolve():
        os.environ["PYTHONSAFEPATH"] = "1"
