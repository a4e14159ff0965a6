"""What a file or folder of rows is: format, encoding, separator, header, and what stands in its columns."""

from __future__ import annotations

import codecs
import csv
import json
import os
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Any, Literal

from ftscale.base.errors import UserError
from ftscale.config.schema import SourceConfig
from ftscale.data.formats import load_format
from ftscale.data.formats.base import TEXT_FORMATS, DataFile, open_bytes
from ftscale.data.formats.content import wide_encoding
from ftscale.data.formats.derived import constants
from ftscale.data.formats.discover import detect_format, discover
from ftscale.data.formats.image_folder import SUFFIXES as IMAGES
from ftscale.init import fasttext
from ftscale.init.doubts import Doubts, Option, shortened
from ftscale.init.draft import words
from ftscale.init.markup import refuse_markup

SETTING = "FILE"
MOST_BYTES = 2**26
"""Of a file that are looked at for its encoding."""
MOST_LINES = 2000
MOST_ROWS = 20_000
MOST_HUB_ROWS = 2000
"""Of a data set of the hub, each of which comes over the network."""
FORMS = {"idx": "IDX images", "image_folder": "images in folders", "parallel": "lines side by side", "hub": "the hub"}
SEPARATORS = "\t,;|"
NAMES_OF = {"\t": "tab", ",": "comma", ";": "semicolon", "|": "bar"}
TAG = re.compile(r"O|[BIES]-\S+")
FEW = 0.02
"""Share of lines that may have another number of fields."""
MANY_CLASSES = 200
NAMES = frozenset(words("text sentence label category class title body question answer source target id name mr ref"))
"""Words that head a column and nothing else, so that a first line of them leaves no doubt."""


@dataclass(frozen=True)
class Column:
    """A column, with its values in the rows looked at."""

    name: str | int
    values: list[Any]

    @cached_property
    def counts(self) -> Counter[Any]:
        """How often each plain value occurs."""
        return Counter(value for value in self.values if isinstance(value, (str, int, float)))

    @property
    def is_text(self) -> bool:
        """Whether it holds texts of several words, or at least many different ones."""
        texts = [value for value in self.values if isinstance(value, str)]
        return len(texts) > len(self.values) / 2 and not self.is_number and (self.words >= 2 or not self.is_class)

    @cached_property
    def given(self) -> list[Any]:
        """The values that are not missing."""
        return [value for value in self.values if value not in (None, "")]

    @cached_property
    def is_number(self) -> bool:
        """Whether all values that are not missing are numbers."""
        return bool(self.given) and all(_is_number(value) for value in self.given)

    @property
    def is_fraction(self) -> bool:
        """Whether its values are numbers that are not all whole."""
        return self.is_number and any(not (isinstance(value, int) or float(value).is_integer()) for value in self.given)

    @property
    def is_class(self) -> bool:
        """Whether few values occur again and again."""
        few = min(MANY_CLASSES, max(2, len(self.values) / 4))
        return 1 < len(self.counts) <= few and not self.is_fraction

    @property
    def is_id(self) -> bool:
        """Whether each value is a word of its own, as numbers of rows are."""
        return self.words < 1.5 and len(self.counts) == len(self.values)

    @property
    def is_image(self) -> bool:
        """Whether it holds images, as the hub writes them, or their paths."""
        first = self.values[:100]
        return bool(first) and all(
            value.lower().endswith(IMAGES) if isinstance(value, str) else _is_image(value) for value in first
        )

    @cached_property
    def words(self) -> float:
        """Words of a text, on average."""
        texts = [value for value in self.values if isinstance(value, str)]
        return sum(len(text.split()) for text in texts) / len(texts) if texts else 0.0


@dataclass
class Look:
    """What was seen."""

    path: str
    form: str
    source: dict[str, Any]
    """Settings of the source that differ from their defaults, beside `path`."""
    doubts: Doubts
    why: list[str] = field(default_factory=list)
    """What was seen of its form, a phrase each."""
    columns: list[Column] = field(default_factory=list)
    rows: int = 0
    """Rows looked at, at most MOST_ROWS."""
    is_whole: bool = True
    """Whether these are all: of a file that is not long, and not the first of several."""

    def column(self, name: str | int) -> Column | None:
        """Return a column by its name; capitals make no difference."""
        return next((column for column in self.columns if str(column.name).lower() == str(name).lower()), None)


def look_at(path: str | Path, *, doubts: Doubts | None = None, **source: Any) -> Look:
    """Look at a file or folder. `source`: settings that are known. Raises UserError where it cannot be read."""
    text, doubts = str(path), doubts or Doubts()
    try:
        form = source.get("format") or detect_format(text, setting=SETTING)
    except UserError:
        if not Path(text).is_file():
            raise
        found = Look(text, "text", {**source, "format": "text"}, doubts)  # of another suffix; its content tells
    else:
        found = Look(text, form, dict(source), doubts)
    if found.form in TEXT_FORMATS and found.form != "parallel":
        _sniff(found)
    else:
        found.why.append(FORMS.get(found.form, found.form))
    _read(found)
    return found


def _sniff(found: Look) -> None:
    """Tell encoding, format, separator and header of a text file by its content."""
    files = discover(_source(found), setting=SETTING)
    head = _head(files[0])
    encoding = _encoding(head)
    if encoding != "utf-8":
        found.source["encoding"] = encoding
        found.why.append(f"{encoding} text")
        if encoding == "cp1252":
            found.doubts.note("encoding = cp1252 is a guess: it is not UTF-8; see whether accents come out right.")
    lines = head.decode(encoding, errors="replace").lstrip("\ufeff").splitlines()[:MOST_LINES]
    refuse_markup(found.path, "\n".join(lines[:200]))
    form = _format(lines, found)
    if form == "text" and _are_documents(found, files):
        form, found.source["set"] = "document", {"label": "{folder}"}
    if form != found.form:
        found.form = found.source["format"] = form
    found.why.insert(0, form)


def _are_documents(found: Look, files: Sequence[DataFile]) -> bool:
    """Whether each file is one text, of the class of its folder: where there are several folders inside the data's."""
    folders = {os.path.dirname(file.path) for file in files}
    if "pattern" in found.source or len(folders) < 2 or found.path.rstrip("/") in folders:
        return False
    answer = found.doubts.settle(
        f"Texts lie in {len(folders)} folders of {found.path}; is a row a whole file, or a line of one?",
        options=[Option("file", "a text, whose label is its folder"), Option("line", "a text to learn to write")],
        default="file",
        note=f"each file of {found.path} is taken for one text, whose label is its folder.",
    )
    return answer == "file"


def _head(file: DataFile) -> bytes:
    plain = DataFile(file.paths, "text", file.source, file.setting)
    with open_bytes(plain) as stream:
        return stream.read(MOST_BYTES)


def _encoding(head: bytes) -> str:
    if wide := wide_encoding(head):
        return wide
    decoder = codecs.getincrementaldecoder("utf-8")()
    try:
        decoder.decode(head)  # the last character may be cut
    except UnicodeDecodeError:
        return "cp1252" if not set(head) & {0x81, 0x8D, 0x8F, 0x90, 0x9D} else "latin-1"
    return "utf-8"


def _format(lines: list[str], found: Look) -> str:
    """The format of a text; sets separator and header of a table."""
    full = [line for line in lines if line.strip()]
    if not full:
        raise UserError(f"{SETTING} = {found.path} has no rows; name another file.")
    if full[0].lstrip()[:1] in ("{", "["):
        return "jsonl" if _is_row(full[0]) and (len(full) == 1 or _is_row(full[1])) else "json"
    if _is_tagged(lines):
        return "conll"
    if pattern := fasttext.pattern_of(full):
        found.source["pattern"] = pattern
        found.why.append("labels as fastText writes them")
        return "text"
    separator = _separator(full, found.form)
    if separator is None:
        return "text"
    form = "tsv" if separator == "\t" else "csv"
    if separator not in "\t,":
        found.source["separator"] = separator
    rows = _cells(full, separator)
    width = Counter(map(len, rows)).most_common(1)[0][0]
    whole = [row for row in rows if len(row) == width]
    header = _header(whole, found)
    if not header:
        found.source["header"] = False
    found.why += [f"{width} columns by {NAMES_OF[separator]}", "a header" if header else "no header"]
    return form


def _header(rows: list[list[str]], found: Look) -> bool:
    header = _has_header(rows)
    if _is_plain(rows[0], header=header):
        return header
    name = Path(found.path).name
    answer = found.doubts.settle(
        f"The first line of {name} is: {shortened(', '.join(rows[0]))}; is it a header or a row?",
        options=[Option("header", "it names the columns"), Option("row", "the columns have no names")],
        default="header" if header else "row",
        note=f"the first line of {name} is taken for {'a header' if header else 'a row, without a header'}; "
        f"header: {str(not header).lower()} says otherwise.",
    )
    return answer == "header"


def _is_row(line: str) -> bool:
    """Whether a line is an object, and not a whole document with its rows under `data`."""
    try:
        found = json.loads(line)
    except (ValueError, RecursionError):
        return False
    return isinstance(found, dict) and not isinstance(found.get("data"), list)


def _is_tagged(lines: list[str]) -> bool:
    """A word with its tag a line, and blank lines between sentences."""
    words = [line.split() for line in lines if line.strip() and not line.startswith("-DOCSTART-")]
    if not words or min(map(len, words)) < 2 or len({len(word) for word in words}) > 2:
        return False
    return all(TAG.fullmatch(word[-1]) for word in words) and any(not line.strip() for line in lines)


def _separator(lines: list[str], form: str) -> str | None:
    """The separator by which lines have equally many fields, two or more; the suffix's own goes first."""
    own = {"csv": ",", "tsv": "\t"}.get(form, "")
    best: tuple[int, str] | None = None
    for separator in (own + SEPARATORS) if own else SEPARATORS:
        rows = _cells(lines, separator)
        if not rows:
            continue
        width, count = Counter(map(len, rows)).most_common(1)[0]
        if width < 2 or count < (1 - FEW) * len(rows) or (form == "text" and separator == "," and len(lines) < 3):
            continue
        if separator == own:
            return separator
        if best is None or width > best[0]:
            best = (width, separator)
    return best[1] if best else (own or None)


def _cells(lines: list[str], separator: str) -> list[list[str]]:
    quoting: Literal[0, 3] = csv.QUOTE_NONE if separator == "\t" else csv.QUOTE_MINIMAL
    try:
        return [row for row in csv.reader(lines[:-1] or lines, delimiter=separator, quoting=quoting) if row]
    except csv.Error:
        return []


def _has_header(rows: list[list[str]]) -> bool:
    """Whether the first row has names: short and different, no number over numbers, no class over classes."""
    first, others = rows[0], rows[1:]
    if not others or len(set(first)) < len(first) or any(not cell.strip() or _is_number(cell) for cell in first):
        return False
    if any(len(cell) > 60 or len(cell.split()) > 5 for cell in first):
        return False
    for cell, *column in zip(first, *others, strict=True):
        if all(map(_is_number, column)):
            return True
        values = set(column)
        if len(values) <= len(column) / 4 and cell in values:
            return False
    return True


def _is_plain(first: list[str], *, header: bool) -> bool:
    """Whether the first line leaves no doubt about being a header, or none."""
    if header:
        return any(part in NAMES for cell in first for part in re.split(r"[\W_]+", cell.lower()))
    return any(_is_number(cell) or len(cell) > 60 for cell in first)


def _is_number(value: Any) -> bool:
    if isinstance(value, bool):
        return False
    if isinstance(value, (int, float)):
        return True
    try:
        float(value)
    except (TypeError, ValueError):
        return False
    return not set(str(value).strip().lower()) & set("infa_")


def _rows_inside(row: Any) -> str:
    """Where the rows are of a document as SQuAD's, whose items hold paragraphs with questions; "" = it is none."""
    paragraphs = row.get("paragraphs") if isinstance(row, dict) else None
    if not isinstance(paragraphs, list) or not paragraphs or not isinstance(paragraphs[0], dict):
        return ""
    return "data.paragraphs.qas" if "qas" in paragraphs[0] else ""


def _is_image(value: Any) -> bool:
    return isinstance(value, dict) and {"bytes", "path"} == value.keys()


def _source(found: Look) -> SourceConfig:
    return SourceConfig(path=found.path, **found.source)


def _read(found: Look) -> None:
    """Read rows as a run would, and lay them into columns."""
    file, *more = files = discover(_source(found), setting=SETTING)
    if file.format == "document":
        _read_documents(found, files)
        return
    module = load_format(file.format)
    names = module.columns(file)
    wanted = [] if names is None else range(len(names))
    if file.format == "json" and "rows" not in found.source:
        first = next(iter(module.records(file, place=None, wanted=wanted)), None)
        if place := _rows_inside(first[0] if first else None):
            found.source["rows"] = place
            found.why.append(f"rows in {place}")
            [file] = discover(_source(found), setting=SETTING)
    most = MOST_HUB_ROWS if file.format == "hub" else MOST_ROWS
    rows = [values for values, _, _ in islice(module.records(file, place=None, wanted=wanted), most + 1)]
    found.is_whole = len(rows) <= most and not more
    rows = rows[:most]
    if file.format == "beir":  # documents that nobody judged are none to train on
        rows = [row for row in rows if row[0] is not None]
    found.rows = len(rows)
    if not rows:
        raise UserError(f"{SETTING} = {found.path} has no rows; name another file.")
    if names is not None:
        found.columns = [Column(name, [row[place] for row in rows]) for place, name in enumerate(names)]
    elif all(isinstance(row, dict) for row in rows):
        keys = dict.fromkeys(key for row in rows for key in row)
        found.columns = [Column(key, [row[key] for row in rows if row.get(key) is not None]) for key in keys]
    else:
        found.columns = []


def _read_documents(found: Look, files: Sequence[DataFile]) -> None:
    """Read a text a file, and what `set` makes of each file's name."""
    found.is_whole, found.rows = len(files) <= MOST_ROWS, min(len(files), MOST_ROWS)
    module, read = load_format("document"), files[:MOST_ROWS]
    # the text is the last of a document's columns
    texts = [text for file in read for [text], _, _ in module.records(file, place=None, wanted=[-1])]
    found.columns = [Column("text", texts)]
    found.columns += [Column(role, [constants(file)[role] for file in read]) for role in found.source.get("set", {})]
