"""Finds launch/, ds_configs/ and slurm/: beside the package in a checkout, inside it when installed from a wheel."""

from __future__ import annotations

from pathlib import Path

from ftscale.base.errors import UserError, unknown_name

_PACKAGE = Path(__file__).resolve().parents[1]
_FOLDERS = ("launch", "ds_configs", "slurm")


def resource(*parts: str) -> Path:
    """The path of a shipped file or folder: `resource("ds_configs", "zero2.json")`.

    Raises FileNotFoundError for what is not shipped.
    """
    assert parts[0] in _FOLDERS, parts
    path = _root().joinpath(*parts)
    if not path.exists():
        raise FileNotFoundError(f"{'/'.join(parts)} is not part of this installation of ftscale (looked in {_root()})")
    return path


def strategies() -> tuple[str, ...]:
    """The names of the strategies in launch/accelerate/, sorted."""
    return tuple(sorted(path.stem for path in resource("launch", "accelerate").glob("*.yaml")))


def strategy_file(name: str) -> Path:
    """The `accelerate launch` config file of a named strategy. Raises UserError for an unknown one."""
    if name not in strategies():
        raise UserError(unknown_name("strategy", name, strategies()))
    return resource("launch", "accelerate", f"{name}.yaml")


def _root() -> Path:
    checkout = _PACKAGE.parent
    # a checkout first: an editable install leaves copies in site-packages that do not follow the files
    if (checkout / "pyproject.toml").is_file() and all((checkout / folder).is_dir() for folder in _FOLDERS):
        return checkout
    return _PACKAGE / "_resources"
