"""Steps of a job in a container: Apptainer's command before ftscale's, or the options that pyxis adds to srun."""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Iterable, Iterator
from glob import has_magic
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, ValidationError

from ftscale.base.errors import UserError
from ftscale.config import Config
from ftscale.config.problems import problems_of
from ftscale.config.section import OneLine, Section
from ftscale.config.stages import stages_of
from ftscale.config.yaml_text import read_yaml
from ftscale.data.cache import cache_folder
from ftscale.data.formats.base import is_url

URLS = {"apptainer": ("docker", "library", "oras"), "pyxis": ("docker",)}
"""Schemes of images that a runtime fetches by itself."""
FOLDER_VARIABLES = ("HF_HOME", "HF_HUB_CACHE", "HF_DATASETS_CACHE", "TORCH_EXTENSIONS_DIR", "TMPDIR")
"""Variables of the environment that name a folder which libraries read or write."""
HUB = "~/.cache/huggingface"  # where HF_HOME is not set
_MOUNT = re.compile(r"/[^,:]*(:/[^,:]*(:[^,:]+)?)?")


def _mount(value: str) -> str:
    if not _MOUNT.fullmatch(value):
        raise ValueError(
            "must be a path from / on, alone or as path:path_inside or path:path_inside:ro, without commas"
        )
    return value


def _option(value: str) -> str:
    if not value.startswith("-"):
        raise ValueError("must begin with a hyphen, with its value after =, e.g. --env=NAME=1")
    return value


def _image(value: str) -> str:
    if not value or value.startswith("-"):
        raise ValueError("must be a file or a docker:// URL")
    return value


class Container(Section):
    """The container that the steps of jobs run in; the job script itself, and srun, stay outside of it."""

    runtime: Literal["apptainer", "pyxis"]
    """apptainer = `apptainer exec` before the command; pyxis = the plugin of Slurm that starts enroot."""
    image: Annotated[OneLine, AfterValidator(_image)]
    """A .sif (Apptainer; or a folder of it) or .sqsh file (pyxis), or a docker:// URL; ftscale is on its path."""
    mounts: tuple[Annotated[OneLine, AfterValidator(_mount)], ...] = ()
    """Further folders to be seen inside: /data, or /data:/inside, or /data:/inside:ro. The run folder, the working
    folder, data, models, caches and HF_HOME are always."""
    options: tuple[Annotated[OneLine, AfterValidator(_option)], ...] = ()
    """Further options of `apptainer exec`, or of srun by pyxis, e.g. [--rocm]."""


def read_container(text: str) -> Container | None:
    """The container that a job script names, as YAML: `{runtime: apptainer, image: /images/ftscale.sif}`; "" = none.

    Raises UserError with all the problems of its settings.
    """
    if not text:
        return None
    data = read_yaml(text, source="CONTAINER")
    try:
        return Container.model_validate(data)
    except ValidationError as error:
        given = data if isinstance(data, dict) else {}
        raise UserError(
            *(f"CONTAINER: {problem}" for problem in problems_of(error, model=Container, data=given))
        ) from error


def as_variable(container: Container | None) -> str:
    """The text of which `read_container` makes the same container, with the image's whole path."""
    if container is None:
        return ""
    settings = container.model_dump(exclude_defaults=True)
    return json.dumps({**settings, "image": _whole(container.image)})


def container_problems(container: Container) -> list[str]:
    """What is wrong with the image, as far as this machine can tell."""
    image, known = container.image, URLS[container.runtime]
    if is_url(image):
        scheme = image.partition("://")[0]
        names = ", ".join(f"{name}://" for name in known)
        return [] if scheme in known else [f"container.image = {image}: {container.runtime} takes files and {names}."]
    path = Path(_whole(image))
    if path.is_file() or (container.runtime == "apptainer" and path.is_dir()):
        return (
            [] if os.access(path, os.R_OK) else [f"container.image = {image} cannot be read; change its permissions."]
        )
    how = "apptainer build ftscale.sif launch/ftscale.def" if container.runtime == "apptainer" else "enroot import"
    return [f"container.image = {image} is no file here; name one (`{how}` makes it), or docker://NAME."]


def runtime_problems(container: Container) -> list[str]:
    """What this node lacks. What srun knows of pyxis, only srun can tell."""
    if container.runtime == "apptainer" and shutil.which("apptainer") is None:
        return [f"container.runtime = apptainer is not on the path of {os.uname().nodename}; load it under `setup`."]
    return []


def bound_folders(config: Config, *, more: Iterable[str] = ()) -> list[str]:
    """The folders that a run reads and writes, each by its name and by where its links lead, none below another.

    more: further paths, "" = none. What is not there yet is given by the nearest folder above it. Raises UserError for
    a folder that cannot be named in a list of mounts.
    """
    named = {name: os.environ[name] for name in FOLDER_VARIABLES if os.environ.get(name)}
    paths = [os.getcwd(), *more, *named.values(), *([] if "HF_HOME" in named else [HUB])]
    for part in (config, *(stage.config for stage in stages_of(config))):
        paths += _paths(part)
    whole = {_whole(path) for path in paths if path}
    found = {folder for path in whole for folder in (_folder(path), _folder(os.path.realpath(path)))} - {"/"}
    if wrong := sorted(folder for folder in found if set(folder) & set(",:")):
        raise UserError(*(f"{folder} holds a comma or a colon, which part mounts: rename it." for folder in wrong))
    return sorted(folder for folder in found if not any(str(above) in found for above in Path(folder).parents))


def program(container: Container, folders: Iterable[str], *, gpus: bool) -> tuple[list[str], list[str]]:
    """What starts ftscale inside: further options of srun, and the words before ftscale's own.

    folders: seen inside by the same names, where the container's own mounts do not name them.
    """
    own = [mount if mount.count(":") else f"{mount}:{mount}" for mount in container.mounts]
    inside = {mount.split(":")[1] for mount in own}
    mounts = ",".join([*(f"{folder}:{folder}" for folder in folders if folder not in inside), *own])
    image, here = _whole(container.image), os.getcwd()
    if container.runtime == "pyxis":
        options = [f"--container-image={image}", f"--container-mounts={mounts}", f"--container-workdir={here}"]
        # an image's entrypoint may be ftscale itself
        return [*options, "--no-container-entrypoint", *container.options], ["ftscale"]
    nvidia = ["--nv"] if gpus and "--rocm" not in container.options else []
    # exec, which has no shell between: signals reach ftscale
    words = ["apptainer", "exec", *nvidia, "--bind", mounts, "--pwd", here, *container.options, image, "ftscale"]
    return [], words


def _paths(config: Config) -> Iterator[str]:
    """Paths that a configuration names, and some texts that are none."""
    yield from (config.run_folder, str(cache_folder(config.data)), config.distributed.offload_dir or "")
    for source in (*config.data.train, *config.data.eval, *config.data.test):
        if source.format != "hub" and not is_url(source.path):
            yield source.path
    # models, processors, files of tasks and methods, lists of labels
    yield from (text for text in _texts(config.model_dump(mode="json")) if _is_path(text))


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, (dict, list)):
        for item in value.values() if isinstance(value, dict) else value:
            yield from _texts(item)


def _is_path(text: str) -> bool:
    return "\n" not in text and os.path.exists(os.path.expanduser(text))


def _whole(path: str) -> str:
    """The path from / on; a URL as it is."""
    return path if is_url(path) else os.path.abspath(os.path.expanduser(path))


def _folder(path: str) -> str:
    """The nearest folder that is there: the path itself, or one above it and above its first wildcard."""
    place = Path(path)
    while has_magic(str(place)) or "{" in str(place) or not place.is_dir():
        place = place.parent
    return str(place)
