"""The recipes that come with ftscale: what each shows, and its text for a file of one's own."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path

from ftscale.base.errors import UserError, unknown_name
from ftscale.base.resources import resource
from ftscale.config.load import load_config

_PACKAGE = Path(__file__).resolve().parents[1]
_SCHEMA = "../ftscale.schema.json"
_IN_PACKAGE = re.compile(rf"{_PACKAGE.name}/demo/\S+")


@dataclass(frozen=True)
class Recipe:
    """A run that is ready to be given rows of one's own."""

    name: str
    task: str
    model: str
    """Hub id."""
    data: str
    """Hub ids or files of the training rows."""
    shows: str
    """The sentence at its head."""


def recipes() -> list[Recipe]:
    """All recipes, by name."""
    return [_recipe(path) for path in _files().values()]


def recipe_text(name: str) -> str:
    """The YAML of a recipe with the places of this installation: of the schema, and of the rows that come with it.

    Raises UserError with the nearest name for an unknown one.
    """
    files = _files()
    if name not in files:
        raise UserError(unknown_name("NAME", name, files))
    schema = resource("launch", Path(_SCHEMA).name).as_uri()
    text = files[name].read_text(encoding="utf-8").replace(f"$schema={_SCHEMA}", f"$schema={schema}")
    return _IN_PACKAGE.sub(lambda found: json.dumps(str(_PACKAGE.parent / found[0])), text)


def _files() -> dict[str, Path]:
    return {path.stem: path for path in sorted(resource("launch", "recipes").glob("*.yaml"))}


def _recipe(path: Path) -> Recipe:
    config = load_config(path)
    data = ", ".join(source.path for source in config.data.train)
    about = path.read_text(encoding="utf-8").splitlines()[1].removeprefix("# ")
    return Recipe(path.stem, config.task.name, config.model.name, data, about)
