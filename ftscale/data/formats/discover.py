"""Which files the path of a source means, and what their format is."""

from __future__ import annotations

import glob
import os
import re
from difflib import get_close_matches
from pathlib import Path
from urllib.parse import urlsplit

from ftscale.base.errors import UserError, nearest, unknown_name
from ftscale.base.shown import SECRET
from ftscale.config.schema import SourceConfig
from ftscale.data.formats import MODULES
from ftscale.data.formats.archives import divided, files_inside, is_archive, is_file, matching
from ftscale.data.formats.base import DataFile, check_regular, is_url
from ftscale.data.formats.beir import is_beir, paths_of
from ftscale.data.formats.image_folder import SUFFIXES as IMAGE_SUFFIXES
from ftscale.data.formats.image_folder import images
from ftscale.data.formats.packed import without_packing
from ftscale.data.formats.paths import files_below, listed, nearest_path, relative_to
from ftscale.data.formats.remote import files_at
from ftscale.data.formats.splits import CARD, EVERY, folder_of_split, same_split, split_for, splits_of
from ftscale.data.formats.used import check_settings

FORMAT_OF_SUFFIX = {
    ".csv": "csv",
    ".tsv": "tsv",
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".json": "json",
    ".parquet": "parquet",
    ".xlsx": "excel",
    ".xlsm": "excel",
    ".txt": "text",
    ".conll": "conll",
    ".iob": "conll",
    ".bio": "conll",
}
DOCUMENT_SUFFIXES = (".txt", ".md")
UNREAD = {
    **dict.fromkeys((".xls", ".xlsb", ".ods"), "save it as .xlsx"),
    **dict.fromkeys((".zip", ".tar", ".7z", ".rar"), "unpack it, and name the file inside"),
}
"""Suffixes of files that no format reads, and what to do with them."""
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
    path = os.path.expanduser(source.path)
    if form == "hub" or (form == "auto" and not _pair(path) and _is_hub_id(path)):
        form = "hub"
        groups: list[tuple[str, ...]] = [(source.path,)]
    elif form == "beir" or (form == "auto" and is_beir(path)):
        form = "beir"
        if not is_beir(path):
            raise missing(path, setting=setting, what="is no folder with corpus.jsonl, queries.jsonl and qrels/")
        groups = [paths_of(source, path, setting=setting)]
    else:
        files = _files_of_split(source, path, setting) if _is_folder(path) else None
        form = _format(path, files, setting) if form == "auto" else form
        groups = _path_groups(path, form, setting, files=files, is_split=source.split not in (None, EVERY))
    check_settings(source, form, setting=setting, is_folder=_is_folder(path))
    return tuple(DataFile(paths=paths, format=form, source=source, setting=setting) for paths in groups)


def _on_the_command_line(setting: str) -> str:
    """Write `data.train[0]` as data.train.0."""
    return setting.replace("[", ".").replace("]", "")


def detect_format(path: str | Path, *, setting: str = "data.train[0]") -> str:
    """A name of `formats.MODULES`, by the suffix (under .gz, .bz2, .xz, .zst), or by what a folder holds.

    Raises UserError for a missing file, an unknown suffix, or files of several formats.
    """
    path = os.path.expanduser(path)
    if is_beir(path):
        return "beir"
    return "hub" if not _pair(path) and _is_hub_id(path) else _format(path, None, setting)


def _format(path: str, files: list[str] | None, setting: str) -> str:
    """`files`: of the folder; None = to be found."""
    return "parallel" if _pair(path) else _common_format(path, files or _files(path, setting), setting)


def missing(path: str, *, setting: str, what: str = "does not exist") -> UserError:
    """The message for a path that names nothing, with the nearest name that does exist there."""
    return UserError(f"{setting}.path = {path!r} {what}; {nearest_path(path)}{relative_to(path)}")


def _not_inside(path: str, archive: str, setting: str) -> UserError:
    names = [file.removeprefix(f"{archive}/") for file in files_inside(archive, setting=setting)]
    close = nearest(path.removeprefix(f"{archive}/"), names, cutoff=0.6)
    fix = f"did you mean '{archive}/{close}'?" if close else f"it has {listed(names)}."
    return UserError(f"{setting}.path = {path!r} is not in the archive {archive}; {fix}")


def _is_folder(path: str) -> bool:
    """Whether a path is a folder, or an archive, which is read as one."""
    return os.path.isdir(path) or is_archive(path)


def _files_of_split(source: SourceConfig, folder: str, setting: str) -> list[str]:
    """The files of a folder, or of the split of it that is asked for. Raises UserError where one is to be chosen."""
    files = _files(folder, setting)
    splits = splits_of(folder, files, name=source.name, setting=setting)
    if source.split == EVERY:
        return files
    if source.split is None:
        if len(splits) > 1:
            raise UserError(
                f"{setting}.path = {source.path!r} holds the splits {', '.join(splits)}; set {setting}.split: "
                f"{split_for(setting, splits)}, or all for every file."
            )
        return next(iter(splits.values())) if source.name else files
    split = same_split(source.split, splits)
    if split is None and source.split == "train" and not splits:
        return files  # as `datasets` calls files without the name of a split
    if split is None:
        of = f"has the splits {', '.join(splits)}; set one" if splits else "has no splits by its names; leave it out"
        raise UserError(f"{setting}.split = {source.split!r} is no split of {source.path!r}, which {of}.")
    return splits[split]


def _path_groups(
    path: str, form: str, setting: str, *, files: list[str] | None, is_split: bool
) -> list[tuple[str, ...]]:
    """Paths that are read together: one, or two for parallel files.

    `files`: of the folder, where the path is one; `is_split`: they are only part of it.
    """
    if form == "parallel":
        return [_parallel_paths(path, setting)]
    if form == "image_folder":
        return [(folder,) for folder in _folders_of_images(path, setting, files=files if is_split else None)]
    if files is None:
        return [(file,) for file in _files(path, setting)]
    if form == "document":
        return [(file,) for file in _documents(path, files)]
    # others lie there too: a readme, the labels of IDX images
    return [(file,) for file in [file for file in files if format_of_name(file) == form] or files]


def _documents(folder: str, files: list[str]) -> list[str]:
    """The texts of a folder by their names, or all files where none is one; not its own README.md."""
    own = os.path.join(folder, CARD)
    return [file for file in files if file != own and _suffix_below(file) in DOCUMENT_SUFFIXES] or files


def _files(path: str, setting: str) -> list[str]:
    """The files of a path, a glob, a folder (hidden ones and those with a leading _ left out) or a URL, sorted."""
    if is_url(path):
        return _remote_files(path, setting)
    archive, pattern = divided(path)
    if pattern and not (found := matching(archive, pattern, setting=setting)):
        raise _not_inside(path, archive, setting)
    if pattern:
        return found
    if is_archive(path):
        found = files_inside(path, setting=setting)
        if not found:
            raise UserError(f"{setting}.path = {path!r} is an archive without files; name another.")
        return found
    if os.path.isfile(path):
        return [path]
    if os.path.isdir(path):
        found = files_below(path, hidden=(".", "_"))
        if not found:
            raise UserError(f"{setting}.path = {path!r} is an empty folder; put the data files there, or name another.")
        return [os.path.join(path, file) for file in found]
    check_regular(path, setting=setting)
    if not glob.has_magic(path):
        raise missing(path, setting=setting)
    matches = sorted(file for file in glob.glob(path, recursive=True) if os.path.isfile(file))
    if not matches:
        raise missing(path, setting=setting, what="matches no file")
    return matches


def _remote_files(path: str, setting: str) -> list[str]:
    if not path.endswith("/") and not glob.has_magic(_path_of(path)):
        return [path]
    found = files_at(path, setting=setting)
    if not found:
        raise UserError(f"{setting}.path = {path!r} matches no remote file; correct it.")
    return found


def _common_format(path: str, files: list[str], setting: str) -> str:
    formats = {file: format_of_name(file) for file in files}
    if _is_folder(path):
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
    if strange and is_url(strange) and _suffix_below(strange) == ".zip":
        raise UserError(f"{setting}.path = {path!r} is an archive; name a file in it: zip://train.csv::{path}.")
    if strange and (fix := UNREAD.get(_suffix_below(strange))):
        raise UserError(f"{setting}.path = {path!r}: {strange} is of no format that is read; {fix}.")
    if strange or not found:
        raise UserError(
            f"{setting}.format = 'auto' does not know the format of {strange or path!r} by its name; "
            f"set {setting}.format to one of {', '.join(MODULES)}."
        )
    return found[0]


def format_of_name(path: str) -> str | None:
    """A name of `formats.MODULES` by the name of a file, which need not be there; None = it does not tell."""
    name = _unpacked_name(path)
    if name.endswith(IMAGE_SUFFIXES):
        return "image_folder"
    return "idx" if IDX_IMAGES.search(name) else FORMAT_OF_SUFFIX.get(_suffix_below(path))


def _suffix_below(path: str) -> str:
    """The suffix of a file, under that of its compression, in small letters."""
    return os.path.splitext(_unpacked_name(path))[1]


def _unpacked_name(path: str) -> str:
    return without_packing(os.path.basename(_path_of(path) if is_url(path) else path).lower())


def _path_of(url: str) -> str:
    """The path of a URL without its query; of a chain (`zip://a.csv::https://...`) that of its first."""
    first = urlsplit(url.partition("::")[0])
    return first.path if first.scheme in ("http", "https") else first.netloc + first.path


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
        if not is_url(part) and not is_file(part, setting=setting):
            archive, name = divided(part)
            check_regular(part, setting=setting)
            raise _not_inside(part, archive, setting) if name else missing(part, setting=setting)
    return pair


def _folders_of_images(path: str, setting: str, *, files: list[str] | None) -> list[str]:
    """The folder of class folders: the path, or those of its split, where the split's `files` are given."""
    if not os.path.isdir(path):
        if is_archive(divided(path)[0]):
            raise UserError(f"{setting}.path = {path!r} is an archive of images; unpack it, and name the folder.")
        if not os.path.exists(path):
            raise missing(path, setting=setting)
        raise UserError(
            f"{setting}.path = {path!r} must be a folder of class folders for format image_folder; name it, or "
            "a CSV file of image paths."
        )
    if not images(path):
        suffixes = ", ".join(IMAGE_SUFFIXES)
        raise UserError(f"{setting}.path = {path!r} has no image in its class folders; it may hold {suffixes}.")
    if files is None:
        return [path]
    return _split_folders(path, [file for file in files if file.lower().endswith(IMAGE_SUFFIXES)], setting)


def _split_folders(path: str, files: list[str], setting: str) -> list[str]:
    """The folders of a split that hold these images and no others."""
    folders = sorted({found for file in files if (found := folder_of_split(file, path))})
    inside = [os.path.join(folder, image) for folder in folders for image in images(folder)]
    if sorted(inside) != sorted(files):
        raise UserError(
            f"{setting}.split: the images of the split do not lie in a folder of their own below {path!r}; put them "
            "there, or name a CSV file of image paths."
        )
    return folders


def _is_hub_id(path: str) -> bool:
    """A name without a data suffix that cannot be meant for a file here, judging by what lies around it."""
    if os.path.exists(path) or format_of_name(path) or not HUB_ID.fullmatch(path):
        return False
    owner, _, name = path.rpartition("/")
    if owner:
        return not os.path.isdir(owner)
    return not get_close_matches(name, os.listdir(), n=1, cutoff=0.7)
