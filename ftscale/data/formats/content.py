"""What a file that should hold text holds instead, by its first bytes."""

from __future__ import annotations

import json

UNPACK = "unpack it, and name the file inside"
OLD_OFFICE = b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1"
CONTENTS: tuple[tuple[bytes, str, str], ...] = (
    (b"PAR1\x15", "a Parquet file", "set {setting}.format: parquet"),
    (b"7z\xbc\xaf\x27\x1c", "a 7-Zip archive", UNPACK),
    (b"Rar!\x1a\x07", "a RAR archive", UNPACK),
    (OLD_OFFICE, "an old Excel or Word file, or one with a password", "save it as .xlsx without a password, or as CSV"),
    (b"ARROW1\x00\x00", "an Arrow file", "write it as Parquet"),
    (b"SQLite format 3\x00", "an SQLite database", "export its table as CSV"),
    (b"%PDF-", "a PDF", "export its text"),
    (b"\x93NUMPY", "a NumPy array", "write it as Parquet or JSON lines"),
    (b"\x80\x02", "a Python pickle", "write it as Parquet or JSON lines"),
    (b"\x80\x03", "a Python pickle", "write it as Parquet or JSON lines"),
    (b"\x80\x04", "a Python pickle", "write it as Parquet or JSON lines"),
    (b"\x80\x05", "a Python pickle", "write it as Parquet or JSON lines"),
    (b"\x89HDF\r\n\x1a\n", "an HDF5 file", "write it as Parquet or JSON lines"),
    (b"version https://git-lfs.github.com/spec/", "a pointer of Git LFS, not the file itself", "run git lfs pull"),
)
"""First bytes, what they are the first bytes of, and what to do with it."""

ZIP = (b"PK\x03\x04", b"PK\x05\x06")
DOCUMENT = (b"[Content_Types].xml", b"xl/", b"word/", b"ppt/", b"_rels/.rels", b"docProps/", b"mimetype")
"""The first names inside a zip archive that is a document: a workbook, a text, a book."""
TAR_MARK = slice(257, 262)
MARKS_OF_UTF = (
    (b"\xff\xfe\x00\x00", "utf-32"),
    (b"\x00\x00\xfe\xff", "utf-32"),
    (b"\xff\xfe", "utf-16"),
    (b"\xfe\xff", "utf-16"),
)


def foreign_content(head: bytes, *, setting: str) -> str | None:
    """What the file is instead of text, and what to do; None where nothing speaks against text."""
    for first, what, fix in CONTENTS:
        if head.startswith(first):
            return f"is {what}, whatever its name says; {fix.format(setting=setting)}."
    if head.startswith(ZIP):
        if is_document(head):
            return f"is an Excel workbook, or another Office file, whatever its name says; set {setting}.format: excel."
        return f"is a zip archive, whatever its name says; {UNPACK}."
    if head[TAR_MARK] == b"ustar":
        return f"is a tar archive, whatever its name says; {UNPACK}."
    return None


def is_document(head: bytes) -> bool:
    """Whether a zip archive, by its first bytes, is a workbook or another document, and not one of files."""
    return head[30:].startswith(DOCUMENT)  # behind 30 bytes stands the first file's name


def has_bare_returns(head: bytes) -> bool:
    """Whether lines end in a carriage return alone, as on the Macintosh of old."""
    return b"\r" in head.strip(b"\r\n") and b"\n" not in head


def wide_encoding(head: bytes) -> str | None:
    """The name of the UTF-16 or UTF-32 that a text is in, by its mark or its zeros; None where it has neither."""
    for mark, name in MARKS_OF_UTF:
        if head.startswith(mark):
            return name
    start = head[:256]  # of a text of Western letters every second byte is zero
    for name, zeros, others in (("utf-16-le", start[1::2], start[::2]), ("utf-16-be", start[::2], start[1::2])):
        if len(zeros) >= 4 and zeros.count(0) > 0.8 * len(zeros) and not others.count(0):
            return name
    return None


def not_json(error: Exception) -> str:
    """Why Python's reader did not take a text for JSON: `error`, a ValueError or RecursionError, is what it raised."""
    if isinstance(error, json.JSONDecodeError):
        return f"{error.msg} at character {error.colno}"
    return "it is nested too deeply" if isinstance(error, RecursionError) else "a number in it has too many digits"
