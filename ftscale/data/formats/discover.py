"""Which files the path of a source means, and what their format is."""

from __future__ import annotations

import glob
import os
import re
from collections.abc import Iterable
from difflib import get_close_matches
from pathlib import Path
from urllib.parse import urlsplit

import fsspec

from ftscale.config.schema import SourceConfig
from ftscale.data.formats import MODULES
from ftscale.data.formats.base import DataFile, compression_of, is_url
from ftscale.data.formats.image_folder import SUFFIXES as IMAGE_SUFFIXES
from ftscale.data.formats.image_folder import images
from ftscale.errors import UserError, unknown_name
from ftscale.shown import SECRET

FORMAT_OF_SUFFIX = {
    ".csv": "csv",
    ".tsv": "tsv",
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".json": "json",
    ".parquet": "parquet",
    ".txt": "text",
    ".conll": "conll",
    ".iob": "conll",
    ".bio": "conll",
}
IDX_IMAGES = re.compile(r"images[.-]idx3-ubyte$")
PAIR = re.compile(r"\{([^{},]+),([^{},]+)\}")
HUB_ID = re.compile(r"\w[\w.-]*(/\w[\w.-]*)?")


def discover(source: SourceConfig, *, setting: str) -> tuple[DataFile, ...]:
    """The files of a source in reading order: sorted by path. Raises UserError where there is none."""
    if SECRET in source.path:
        raise UserError(
            f"{setting}.path = {source.path!r}: {SECRET} stands for what is not written down; give the whole URL, "
            f"here or by {_on_the_command_line(setting)}.path=... on the command line."
        )
    form = source.format
    if form not in MODULES and form != "auto":
        raise UserError(unknown_name(f"{setting}.format", form, (*MODULES, "auto")))
    if form == "auto":
        form = detect_format(source.path, setting=setting)
    groups = _path_groups(source.path, form, setting)
    return tuple(DataFile(paths=paths, format=form, source=source, setting=setting) for paths in groups)


def _on_the_command_line(setting: str) -> str:
    """`data.train[0]` as data.train.0."""
    return setting.replace("[", ".").replace("]", "")


def detect_format(path: str | Path, *, setting: str = "data.train[0]") -> str:
    """A name of `formats.MODULES`, by the suffix (under .gz, .bz2, .xz, .zst), or by what a folder holds.

    Raises UserError for a missing file, an unknown suffix, or files of several formats.
    """
    path = os.path.expanduser(path)
    if _pair(path):
        return "parallel"
    if _is_hub_id(path):
        return "hub"
    return _common_format(path, _files(path, setting), setting)


def missing(path: str, *, setting: str, what: str = "does not exist") -> UserError:
    """The message for a path that names nothing, with the nearest name that does exist there."""
    known, unknown = Path(path).parent, Path(path).name
    while not known.is_dir() and known != known.parent:
        known, unknown = known.parent, known.name
    names = sorted(entry.name for entry in known.iterdir()) if known.is_dir() else []
    close = get_close_matches(unknown, names, n=1, cutoff=0.5)
    fix = f"did you mean '{known / close[0]}'?" if close else f"{str(known)!r} has {_listed(names)}."
    return UserError(f"{setting}.path = {path!r} {what}; {fix}")


def _path_groups(path: str, form: str, setting: str) -> list[tuple[str, ...]]:
    """Paths that are read together: one, or two for parallel files."""
    if form == "hub":
        return [(path,)]
    path = os.path.expanduser(path)
    if form == "parallel":
        return [_parallel_paths(path, setting)]
    if form == "image_folder":
        return [(_folder_of_images(path, setting),)]
    files = _files(path, setting)
    if os.path.isdir(path):  # others lie there too: a readme, the labels of IDX images
        files = [file for file in files if _format_of_name(file) == form] or files
    return [(file,) for file in files]


def _files(path: str, setting: str) -> list[str]:
    """The files of a path, a glob, a folder (hidden ones and those with a leading _ left out) or a URL, sorted."""
    if is_url(path):
        return _remote_files(path, setting)
    if os.path.isfile(path):
        return [path]
    if os.path.isdir(path):
        inside = (file for file in Path(path).rglob("*") if file.is_file())
        found = sorted(file for file in inside if not _is_hidden(file.relative_to(path)))
        if not found:
            raise UserError(f"{setting}.path = {path!r} is an empty folder; put the data files there, or name another.")
        return [str(file) for file in found]
    if not glob.has_magic(path):
        raise missing(path, setting=setting)
    matches = sorted(file for file in glob.glob(path, recursive=True) if os.path.isfile(file))
    if not matches:
        raise missing(path, setting=setting, what="matches no file")
    return matches


def _remote_files(path: str, setting: str) -> list[str]:
    is_folder = path.endswith("/")
    if not is_folder and not glob.has_magic(urlsplit(path).path):
        return [path]
    filesystem, inside = fsspec.core.url_to_fs(path)
    matches = filesystem.find(inside) if is_folder else filesystem.glob(inside)
    if not matches:
        raise UserError(f"{setting}.path = {path!r} matches no remote file; correct it.")
    return [filesystem.unstrip_protocol(match) for match in sorted(matches)]


def _is_hidden(inside: Path) -> bool:
    return any(part.startswith((".", "_")) for part in inside.parts)


def _common_format(path: str, files: list[str], setting: str) -> str:
    formats = {file: _format_of_name(file) for file in files}
    if os.path.isdir(path):
        formats = {file: form for file, form in formats.items() if form}
        if set(formats.values()) == {"image_folder", "text"}:  # a readme beside the images
            return "image_folder"
    found = sorted({str(form) for form in formats.values() if form})
    if len(found) > 1:
        raise UserError(
            f"{setting}.path = {path!r} holds files of several formats ({', '.join(found)}); name the files "
            f"by a pattern, e.g. {path}/*{_suffix_of(found[0])}, or set {setting}.format."
        )
    strange = next((file for file, form in formats.items() if form is None), None)
    if strange or not found:
        raise UserError(
            f"{setting}.format = 'auto' does not know the format of {strange or path!r} by its name; "
            f"set {setting}.format to one of {', '.join(MODULES)}."
        )
    return found[0]


def _format_of_name(path: str) -> str | None:
    name = os.path.basename(urlsplit(path).path if is_url(path) else path).lower()
    if compression_of(name):
        name = os.path.splitext(name)[0]
    if name.endswith(IMAGE_SUFFIXES):
        return "image_folder"
    return "idx" if IDX_IMAGES.search(name) else FORMAT_OF_SUFFIX.get(os.path.splitext(name)[1])


def _suffix_of(form: str) -> str:
    return next((suffix for suffix, name in FORMAT_OF_SUFFIX.items() if name == form), IMAGE_SUFFIXES[-1])


def _pair(path: str) -> tuple[str, str] | None:
    """The two paths of `train.de,train.en` or `train.{de,en}`; None where it is neither."""
    if os.path.exists(path):
        return None
    if PAIR.search(path):
        return PAIR.sub(r"\1", path), PAIR.sub(r"\2", path)
    parts = path.split(",")
    return (parts[0].strip(), parts[1].strip()) if len(parts) == 2 and all(parts) else None


def _parallel_paths(path: str, setting: str) -> tuple[str, str]:
    pair = _pair(path)
    if pair is None:
        raise UserError(
            f"{setting}.path = {path!r} must name two files for format parallel; write train.de,train.en or "
            "train.{de,en}: source, then target."
        )
    for part in pair:
        if not is_url(part) and not os.path.isfile(part):
            raise missing(part, setting=setting)
    return pair


def _folder_of_images(path: str, setting: str) -> str:
    if not os.path.isdir(path):
        if not os.path.exists(path):
            raise missing(path, setting=setting)
        raise UserError(
            f"{setting}.path = {path!r} must be a folder of class folders for format image_folder; name it, or "
            "a CSV file of image paths."
        )
    if not images(path):
        suffixes = ", ".join(IMAGE_SUFFIXES)
        raise UserError(f"{setting}.path = {path!r} has no image in its class folders; it may hold {suffixes}.")
    return path


def _is_hub_id(path: str) -> bool:
    """A name without a data suffix that cannot be meant for a file here, judging by what lies around it."""
    if os.path.exists(path) or _format_of_name(path) or not HUB_ID.fullmatch(path):
        return False
    owner, _, name = path.rpartition("/")
    if owner:
        return not os.path.isdir(owner)
    return not get_close_matches(name, os.listdir(), n=1, cutoff=0.7)


def _listed(names: Iterable[str], *, most: int = 8) -> str:
    names = list(names)
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return (", ".join(repr(name) for name in names[:most]) or "nothing") + more
