"""Fine-tune Hugging Face models on any number of processes.

from ftscale import load_config, train

result = train(load_config("run.yaml", ["optimizer.lr=1e-4"]))
print(result.metrics, result.model)
"""

from __future__ import annotations

import inspect
import sys
from types import ModuleType
from typing import TYPE_CHECKING

import ftscale.train  # noqa: F401
from ftscale.base.errors import UserError
from ftscale.config import Config, load_config
from ftscale.version import __version__

if TYPE_CHECKING:
    from ftscale.run.folder import Result

__all__ = ["Config", "UserError", "__version__", "load_config", "train"]


def train(config: Config, *, resume: bool = False, overwrite: bool = False) -> Result:
    """Fine-tune as `config` says, in every process of a launch or in a single one.

    `resume`: go on with the run in `config.run_folder`; `overwrite`: replace it. Returns the run's `Result`: `status`,
    `steps`, `metrics`, `best`, `duration_s`, `model` (the folder of the saved model).

    Raises:
        UserError: a mistake in the configuration, the data or the run folder; nothing has been written then.
    """
    from ftscale.base.logs import quiet_libraries, unchanged_levels
    from ftscale.base.startup import unchanged_environment

    with unchanged_environment(), unchanged_levels():
        quiet_libraries()
        from ftscale.run import train as run  # torch is imported with it, which takes seconds

        return run.train(config, resume=resume, overwrite=overwrite)


class _CalledPackage(ModuleType):
    """What `ftscale.train` is: this function and the package of the training loop, whose modules have their names."""

    __call__ = staticmethod(train)


_package = sys.modules["ftscale.train"]
_package.__class__ = _CalledPackage
_package.__signature__ = inspect.signature(train)  # type: ignore[attr-defined]
globals()["train"] = _package  # an import of a subpackage would bind it here in any case
