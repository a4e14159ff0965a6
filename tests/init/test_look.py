"""Encoding, format, separator and header of files, told by their content."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pytest

from ftscale.base.errors import UserError
from ftscale.init.look import Look, look_at

SAID = ["the cat sat down", "a dog ran off", "it rained all day", "nobody came", "we went home", "they sang songs"] * 4
LABELLED = "".join(f"{text} {number},{number % 2}\n" for number, text in enumerate(SAID))


def look(folder: Path, content: str | bytes, name: str = "rows.csv") -> Look:
    (folder / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    return look_at(folder / name)


@pytest.mark.parametrize(
    ("content", "name", "source"),
    [
        (f"text,label\n{LABELLED}", "rows.csv", {}),
        (LABELLED, "rows.csv", {"header": False}),
        (f"text;label\n{LABELLED.replace(',', ';')}", "rows.csv", {"separator": ";"}),
        (f"text\tlabel\n{LABELLED.replace(',', chr(9))}", "rows.txt", {"format": "tsv"}),
        (LABELLED.replace(",", "|"), "rows.csv", {"separator": "|", "header": False}),
        (f"text\tlabel\n{LABELLED.replace(',', chr(9))}", "rows.csv", {"format": "tsv"}),
        ('{"text": "a", "label": 1}\n{"text": "b", "label": 2}\n', "rows.json", {"format": "jsonl"}),
        (json.dumps([{"text": "a"}, {"text": "b"}]), "rows.json", {}),
        ("Once, there was\na king.\n\nHe lived, as kings do,\nin a house.\n", "rows.txt", {}),
        ("EU\tB-ORG\nrejects\tO\n\nIt\tO\nsaid\tO\n", "rows.tsv", {"format": "conll"}),
        ("EU NNP B-ORG\nrejects VB O\n\nIt PRP O\nsaid VB O\n", "rows.conll", {}),
    ],
)
def test_a_file_is_known_by_its_content(tmp_path: Path, content: str, name: str, source: dict[str, Any]):
    found = look(tmp_path, content, name)
    assert found.source == source
    assert found.rows == (2 if "json" in name or "EU" in content else 4 if "king" in content else len(SAID))


def test_encodings_are_told_and_one_that_is_a_guess_is_said_so(tmp_path: Path):
    text = f"text,label\nüber den Fluß,1\n{LABELLED}"
    assert look(tmp_path, text.encode("utf-16")).source == {"encoding": "utf-16"}
    found = look(tmp_path, text.encode("latin-1"))
    assert found.source == {"encoding": "cp1252"}
    assert "cp1252 is a guess" in found.doubts.notes[0]
    assert found.columns[0].values[0] == "über den Fluß"
    assert look(tmp_path, text.encode("utf-8-sig")).source == {}
    assert look(tmp_path, gzip.compress(text.encode()), "rows.csv.gz").source == {}


def test_a_first_line_that_may_be_either_is_said_so(tmp_path: Path):
    assert look(tmp_path, f"text,label\n{LABELLED}").doubts.notes == []
    assert "taken for a header" in look(tmp_path, f"what,kind\n{LABELLED}").doubts.notes[0]
    words = "".join(f"{text},{'yes' if number % 2 else 'no'}\n" for number, text in enumerate(SAID))
    found = look(tmp_path, words)
    assert (found.source, "without a header" in found.doubts.notes[0]) == ({"header": False}, True)


@pytest.mark.parametrize(
    ("content", "name", "said"),
    [
        (b"", "rows.csv", "has no rows"),
        (b"\n\n", "rows.txt", "has no rows"),
        (b"\x1f\x8b\x08\x00", "rows.csv", "gzip"),
        (b"PK\x03\x04", "rows.csv", "is damaged or no zip archive"),
    ],
)
def test_what_has_no_rows_is_refused(tmp_path: Path, content: bytes, name: str, said: str):
    with pytest.raises(UserError, match=said):
        look(tmp_path, content, name)
    with pytest.raises(UserError, match="does not exist"):
        look_at(tmp_path / "none.csv")
