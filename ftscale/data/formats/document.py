"""Documents: each file is one row, its whole text in the column `text`."""

from __future__ import annotations

import glob
import os
from collections.abc import Iterator, Sequence

from ftscale.base.shown import without_secrets
from ftscale.data.formats.base import HEAD_BYTES, DataFile, Place, Record, is_url, open_bytes
from ftscale.data.formats.lines import check_text, decoded
from ftscale.data.values import MOST_TEXT

MOST_BYTES = 4 * MOST_TEXT
"""Of a file, of which no more is read: a character takes four bytes at most in UTF-8, UTF-16 and UTF-32."""


def columns(file: DataFile) -> tuple[str, ...]:
    """The column `text`, and before it the `path` of each file where the source is a folder or a pattern."""
    return ("text",) if file.path == os.path.expanduser(file.source.path) else ("path", "text")


def records(file: DataFile, *, place: Place | None, wanted: Sequence[int]) -> Iterator[Record]:
    r"""One record a file: its path below the folder or the fixed part of the pattern, its text.

    Lines end with `\n`, also those that ended with `\r\n`; the end of the last is left out, and a byte-order mark. A
    place is `{"record": 1}`. Raises UserError for a file of more than `MOST_BYTES`, and for one that is no text.
    """
    if place is not None:
        return
    with open_bytes(file) as stream:
        content = stream.read(MOST_BYTES + 1)
    if len(content) > MOST_BYTES:
        raise file.error(
            f"has more than the {MOST_BYTES} bytes that a document may have; split it, or set {file.setting}.format: "
            "text where each of its lines is a row."
        )
    check_text(file, content[:HEAD_BYTES], file.path)
    text = decoded(file, content).replace("\r\n", "\n").removesuffix("\n")
    values = [{"path": _path_below(file), "text": text}[name] for name in columns(file)]
    yield [values[column] for column in wanted], file.path, {"record": 1}


def _path_below(file: DataFile) -> str:
    """The path of a file below the folder of its source, or below what stands before the pattern; a URL whole."""
    if is_url(file.path):
        return without_secrets(file.path)
    folder = os.path.expanduser(file.source.path)
    while glob.has_magic(folder):
        folder = os.path.dirname(folder)
    return os.path.relpath(file.path, folder or os.curdir).replace(os.sep, "/")
