"""Rows of a source under the task's names for its columns, from any format and from any position on."""

from __future__ import annotations

import json
import os
from collections.abc import Collection, Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, TypedDict

import xxhash

from ftscale.base.errors import UserError, counted
from ftscale.base.hashing import fit_to_hash_whole, hash_file, sampled_hash
from ftscale.base.shown import without_secrets
from ftscale.base.startup import begin_work
from ftscale.config.schema import SourceConfig
from ftscale.data.formats import load_format
from ftscale.data.formats.archives import divided, exists, size_of
from ftscale.data.formats.base import DataFile, Place, is_url
from ftscale.data.formats.derived import LEFT_OUT, Derived, constants
from ftscale.data.formats.discover import detect_format, discover
from ftscale.data.formats.image_folder import images
from ftscale.data.formats.remote import BrokenOffError, stamps, told_of
from ftscale.data.formats.select import Selection, select
from ftscale.data.heard import say
from ftscale.data.missing import with_none
from ftscale.data.values import MOST_TEXT, check_characters, without_made_nulls

__all__ = [
    "Position",
    "Row",
    "detect_format",
    "file_fingerprints",
    "open_stream",
    "read_rows",
    "source_files",
    "source_fingerprint",
]

Row = dict[str, Any]
"""The task's role names to values, None where one is missing, and

- `_where`: where the row stands, e.g. `data/train.csv:17`;
- `_drop`: the kinds of rows that its source leaves out, where it names any (`SourceConfig.drop`).
"""

TYPED_FORMATS = ("parquet", "hub")
"""Formats in which every object of a column has the keys of all."""
READING_SETTINGS = (
    *("columns", "set", "rows", "pattern", "header", "separator", "comment", "encoding", "limit", "name", "split"),
    *("missing_values", "drop", "sheet"),
)
DEFAULT_SETTING = "data.train[0]"


class Position(TypedDict):
    """A place in a source just after a row; JSON keeps it."""

    file: int
    """Number of the file in the source."""
    row: int
    """Rows read of the source so far."""
    place: Place
    """Place in the file, in the format's own terms."""


def read_rows(
    source: SourceConfig,
    *,
    roles: Sequence[Sequence[str]],
    setting: str = DEFAULT_SETTING,
    absent: Collection[str] = (),
    keep_columns: bool = False,
) -> Iterator[Row]:
    """Every row of a source (the first `source.limit`), in file order. See `open_stream`."""
    stream = open_stream(source, roles=roles, position=None, setting=setting, absent=absent, keep_columns=keep_columns)
    return (row for row, _ in stream)


def open_stream(
    source: SourceConfig,
    *,
    roles: Sequence[Sequence[str]],
    position: Position | None,
    setting: str = DEFAULT_SETTING,
    absent: Collection[str] = (),
    keep_columns: bool = False,
) -> Iterator[tuple[Row, Position]]:
    """Rows after a position (None = from the start), each with the position after it.

    roles: the task's alternatives of column names; the first that is there whole is given, and everything that
    `source.columns` and `source.set` name. absent: roles that may be lacking, as labels are of rows to predict on.
    keep_columns: every column of the row stands under `_columns` too, as pairs of the file's own name and the value
    as it came; a column without a name is called by what it is to the task, or else by its number.
    An `image` that is a relative path is given relative to the folder of its file.

    Finding a position takes constant time in uncompressed CSV, TSV, JSON lines, text, CoNLL, parallel and IDX files
    (byte offset), and at most one row group in Parquet. In compressed files and UTF-16 the position is a line
    number and reading skips so many lines; JSON is parsed whole; a hub data set is skipped by `datasets`.

    Raises UserError, naming file and line, for whatever the user can mend in the data.
    """
    begin_work()
    files = discover(source, setting=setting)
    start, count = (position["file"], position["row"]) if position else (0, 0)
    if start >= len(files):
        raise UserError(f"{setting}.path = {source.path!r} has fewer files than when the position was saved.")
    if source.limit and count >= source.limit:
        return
    for number, file in enumerate(files[start:], start):
        if _is_empty(file):
            continue
        place = position["place"] if position and number == start else None
        try:
            for row, here in _file_rows(file, place=place, roles=roles, absent=absent, keep_columns=keep_columns):
                count += 1
                yield row, {"file": number, "row": count, "place": here}
                if count == source.limit:
                    return
        except BrokenOffError as error:
            raise UserError(f"{error.problems[0]} {counted(count, 'row')} of the source came before.") from error
    if count == 0:
        raise UserError(f"{setting}.path = {source.path!r} has no rows; fill it, or name another file.")


def source_files(source: SourceConfig, *, setting: str = DEFAULT_SETTING) -> list[Path]:
    """Local files of a source in reading order (of parallel text: source, target); none for URLs and the hub.

    Raises UserError with the nearest existing name where there is no such file.
    """
    return [Path(path) for path in _all_paths(discover(source, setting=setting)) if not is_url(path)]


def source_fingerprint(
    source: SourceConfig, *, setting: str = DEFAULT_SETTING, roles: Sequence[Sequence[str]] = ()
) -> str:
    """A hash that changes with the rows: of the files' contents and of the settings by which they are read.

    A source over 1 GiB is known by the paths, sizes and times of change of its files; a remote one by what its
    file system tells of it; a hub data set by its name. Moving smaller files leaves the hash as it is, unless rows
    hold paths of images. Where `roles` have images, those that rows name by a path count as files too.
    """
    files = discover(source, setting=setting)
    settings = source.model_dump(mode="json", include=set(READING_SETTINGS))
    digest = xxhash.xxh3_128(json.dumps([files[0].format, settings], sort_keys=True).encode())
    if source.set:  # names of folders and files are in the rows then
        digest.update(json.dumps([constants(file) for file in files], sort_keys=True).encode())
    if files[0].format in ("image_folder", "hub") or "image" in source.columns:
        path = source.path if files[0].format == "hub" else os.path.abspath(source.path)
        digest.update(path.encode())
    if inside := [name for file in files for path in file.paths if (name := divided(path)[1])]:
        digest.update(json.dumps(inside).encode())
    paths = _all_paths(files)
    local = [path for path in paths if not is_url(path)]
    hash_whole = fit_to_hash_whole(local)
    root = os.path.commonpath([os.path.dirname(path) for path in local]) if local else ""
    for path in paths:
        if is_url(path):
            _add_remote_file(digest, path, setting=setting)
        else:
            _add_file(digest, path, root=root, whole=hash_whole)
    for path, fingerprint in _image_fingerprints(source, files, setting=setting, roles=roles).items():
        digest.update(f"{path}\0{fingerprint}\0".encode())
    return digest.hexdigest()


def file_fingerprints(
    source: SourceConfig, *, setting: str = DEFAULT_SETTING, roles: Sequence[Sequence[str]] = ()
) -> dict[str, str]:
    """A hash of each file of a source, by its path, that changes with the file's content; none for the hub.

    Files of a source over 1 GiB are known by their sizes and by three MiB of each: at its start, middle and end.
    Where `roles` have images, those that rows name by a path come too: over 1 GiB, by size and time of change.
    """
    files = discover(source, setting=setting)
    paths = _all_paths(files)
    whole = fit_to_hash_whole(path for path in paths if not is_url(path))
    own = {without_secrets(path): _file_fingerprint(path, whole=whole, setting=setting) for path in paths}
    return own | _image_fingerprints(source, files, setting=setting, roles=roles)


def _file_fingerprint(path: str, *, whole: bool, setting: str) -> str:
    if is_url(path):
        digest = xxhash.xxh3_128()
        _add_remote_file(digest, path, setting=setting)
        return digest.hexdigest()
    return hash_file(path) if whole else sampled_hash(path)


def _image_fingerprints(
    source: SourceConfig, files: Sequence[DataFile], *, setting: str, roles: Sequence[Sequence[str]]
) -> dict[str, str]:
    """A hash of each local image that rows name by its path; none where images lie in the rows or are the rows."""
    if files[0].format in ("image_folder", "idx", "hub") or not any("image" in names for names in roles):
        return {}
    others = source.columns.keys() - {"image"}
    rows = read_rows(source, roles=(("image",),), setting=setting, absent=others)
    named = {row["image"] for row in rows if isinstance(row["image"], str)}
    paths = sorted(path for path in named if os.path.isfile(path))  # one that is not there is told when it is opened
    if fit_to_hash_whole(paths):
        return {path: hash_file(path) for path in paths}
    stats = {path: os.stat(path) for path in paths}
    return {path: f"{stat.st_size}-{stat.st_mtime_ns}" for path, stat in stats.items()}


def _all_paths(files: Sequence[DataFile]) -> list[str]:
    """Every single file; those of an image folder and the labels of IDX images too."""
    form = files[0].format
    if form == "hub":
        return []
    if form == "image_folder":
        return [os.path.join(file.path, image) for file in files for image in images(file.path)]
    if form == "idx":
        from ftscale.data.formats.idx import labels_path

        pairs = ((file.path, labels_path(file.path)) for file in files)
        return _containers(path for pair in pairs for path in pair if exists(path, setting=files[0].setting))
    return _containers(path for file in files for path in file.paths)


def _containers(paths: Iterable[str]) -> list[str]:
    """The files on disk of paths, each once: of those that lead into an archive, the archive."""
    return list(dict.fromkeys(divided(path)[0] for path in paths))


def _add_remote_file(digest: xxhash.xxh3_128, path: str, *, setting: str) -> None:
    """What tells a remote file besides its URL, whose secrets may be others at a resume.

    Where nothing tells its content but its size, the whole URL goes in.
    """
    told = stamps(told_of(path, setting=setting))
    digest.update(json.dumps([without_secrets(path), told, path if len(told) == 1 else ""]).encode())


def _add_file(digest: xxhash.xxh3_128, path: str, *, root: str, whole: bool) -> None:
    stat = os.stat(path)
    if not whole:
        digest.update(f"{os.path.abspath(path)}\0{stat.st_size}\0{stat.st_mtime_ns}\0".encode())
        return
    digest.update(f"{os.path.relpath(path, root or '.')}\0{stat.st_size}\0".encode())
    with open(path, "rb") as stream:
        while block := stream.read(2**20):
            digest.update(block)


def _file_rows(
    file: DataFile, *, place: Place | None, roles: Sequence[Sequence[str]], absent: Collection[str], keep_columns: bool
) -> Iterator[tuple[Row, Place]]:
    columns = load_format(file.format).columns(file)
    choose = partial(select, file, roles=roles, absent=absent)
    if columns is None:
        rows = _object_rows(file, place, choose, keep_columns=keep_columns)
    else:
        rows = _table_rows(file, place, choose(columns), kept=columns if keep_columns else ())
    folder = _folder(file)
    missing_values, drop = file.source.missing_values, file.source.drop
    is_remote, is_typed = is_url(file.path), file.format in TYPED_FORMATS
    shown_path = without_secrets(file.path)
    for row, here in rows:
        if is_remote:
            row["_where"] = without_secrets(row["_where"])
        for name in (names := [name for name in row if name[:1] != "_"]):
            value = row[name]
            if type(value) is not str or not value.isascii() or len(value) > MOST_TEXT:  # most pass, and each comes by
                check_characters(value, name, where=row["_where"])
            if type(value) is not str or missing_values:
                row[name] = with_none(value, missing_values=missing_values)
        if "image" in row:
            row["image"] = _image(row["image"], folder)
        elif is_typed:
            without_made_nulls(row, names, setting=file.setting, path=shown_path)
        if drop:
            row["_drop"] = drop
        yield row, here


def _is_empty(file: DataFile) -> bool:
    """Whether a local file has no byte, which is said: it may be one that was never written."""
    if file.format in ("hub", "image_folder") or any(
        is_url(path) or size_of(path, setting=file.setting) for path in file.paths
    ):
        return False
    say(f"{file.path} is empty (0 bytes) and passed over; see whether it was written")
    return True


def _table_rows(
    file: DataFile, place: Place | None, chosen: Selection, *, kept: tuple[str | int, ...]
) -> Iterator[tuple[Row, Place]]:
    read = list(chosen.columns)
    cells_of: list[tuple[Derived, slice]] = []
    for item in chosen.derived:
        cells_of.append((item, slice(len(read), len(read) + len(item.columns))))
        read += item.columns
    width = len(read)
    called = _called(kept, chosen)
    for values, where, here in load_format(file.format).records(file, place=place, wanted=(*read, *range(len(kept)))):
        row = dict(zip(chosen.roles, values, strict=False))
        row["_where"] = where
        for item, cells in cells_of:
            row[item.role] = item.make(values[cells], where)
        if kept:
            row["_columns"] = list(zip(called, values[width:], strict=True))
        yield row, here


_Looked = tuple[Selection, list[tuple[str, str | int]], bool]
"""What is taken of objects of some keys: the selection, roles with their keys, whether nothing is lacking."""


def _object_rows(
    file: DataFile, place: Place | None, choose: partial[Selection], *, keep_columns: bool
) -> Iterator[tuple[Row, Place]]:
    looked_at: dict[tuple[str | int, ...], _Looked] = {}  # each set of keys is looked at once
    records = load_format(file.format).records
    may_lack = not LEFT_OUT.isdisjoint(file.source.drop)
    usual: tuple[str, ...] = ()  # the roles of the file's first row
    if place is not None and may_lack:
        first, where, _ = next(records(file, place=None, wanted=()))
        usual = choose(tuple(first), where=where).all_roles
    for value, where, here in records(file, place=place, wanted=()):
        available = tuple(value)
        looked = looked_at.get(available)
        if looked is None:
            if len(looked_at) == 256:
                looked_at.clear()
            chosen, is_whole = _chosen(available, where, choose, usual if may_lack else ())
            keys = [(role, available[column]) for role, column in zip(chosen.roles, chosen.columns, strict=True)]
            looked = looked_at[available] = (chosen, keys, is_whole)
            usual = usual or chosen.all_roles
        chosen, keys, is_whole = looked
        row = {role: value[key] for role, key in keys}
        for item in chosen.derived:
            row[item.role] = item.make([value[available[column]] for column in item.columns], where)
        if not is_whole or ("missing" in file.source.drop and row.keys() < set(usual)):
            row = {**dict.fromkeys(usual), **row}
        row["_where"] = where
        if keep_columns:
            row["_columns"] = list(zip(_called(available, chosen), value.values(), strict=True))
        yield row, here


def _chosen(
    available: tuple[str | int, ...], where: str, choose: partial[Selection], usual: tuple[str, ...]
) -> tuple[Selection, bool]:
    """The columns of an object, and whether it has all that it should.

    `usual`: roles of a row that is left out where the object lacks one; none = it is refused.
    """
    try:
        return choose(available, where=where), True
    except UserError:
        if not usual:
            raise
        return choose(available, where=where, roles=(usual,), absent=usual), False


def _called(columns: tuple[str | int, ...], chosen: Selection) -> list[str]:
    """The names of columns; one without is called by what it is to the task, or else by its number."""
    roles: dict[str | int, str] = (
        {columns[column]: role for role, column in zip(*chosen[:2], strict=True)} if columns else {}
    )
    return [column if isinstance(column, str) else roles.get(column, str(column)) for column in columns]


def _folder(file: DataFile) -> str:
    """What relative paths of images in the file are relative to."""
    if is_url(file.path):
        return file.path.rpartition("/")[0]
    path = os.path.abspath(file.path)
    return path if file.format == "image_folder" else os.path.dirname(path)


def _image(value: Any, folder: str) -> Any:
    """A path (or URL) or bytes, of what a file holds: either, or datasets' {"bytes": ..., "path": ...}."""
    if isinstance(value, dict):
        value = value.get("bytes") or value.get("path")
    if value == "":
        return None
    if isinstance(value, str) and not is_url(value):
        return os.path.join(folder, value)
    return value
