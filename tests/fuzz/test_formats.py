"""Whatever lies in a data file, its reader gives rows or says in a sentence why not."""

from __future__ import annotations

import encodings.aliases
import gzip
import io
import zipfile
from pathlib import Path
from typing import Any

import pytest
from fuzz.anything import as_json, budget, damaged, json_values, refused
from hypothesis import given
from hypothesis import strategies as st

from ftscale.config import parse_config
from ftscale.config.schema import SourceConfig
from ftscale.config.tasks import SETTINGS
from ftscale.data.sources import read_rows

ENCODINGS = sorted({*encodings.aliases.aliases.values(), "undefined", "idna", "punycode", "rot13", "no-such", "utf\0"})
ROWS = '{"text": "ab", "label": "x"}\n{"text": "c\\u00e4", "label": 3}\n'


def _parquet() -> bytes:
    import pyarrow as pa
    import pyarrow.parquet as pq

    sink = io.BytesIO()
    pq.write_table(pa.table({"text": ["a", "b"], "label": [1, 2]}), sink)
    return sink.getvalue()


def _zip() -> bytes:
    made = io.BytesIO()
    with zipfile.ZipFile(made, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(zipfile.ZipInfo("a.csv"), "text,label\na,x\n")
    return made.getvalue()


FILES: dict[str, tuple[str, bytes]] = {
    "csv": ("text_classification", b'text,label\n"a ""b""",x\nc,\n'),
    "tsv": ("text_classification", b"text\tlabel\na\tx\nb\ty\n"),
    "jsonl": ("text_classification", ROWS.encode()),
    "json": ("text_classification", b'{"data": [{"text": "a", "label": 1}]}'),
    "txt": ("causal_lm", "a\n\nbä\r\n".encode()),
    "conll": ("token_classification", b"# c\na O\nb B-x\n\nc O\n"),
    "parquet": ("text_classification", _parquet()),
    "eml": ("causal_lm", "Subject: a\r\n\r\nbä\r\n".encode()),
    "zip": ("text_classification", _zip()),
    "csv.gz": ("text_classification", gzip.compress(b"text,label\na,x\n", mtime=0)),
}
READ_AS = {".eml": {"format": "document"}}
"""Settings of a source whose name does not tell its format."""


def _read(path: Path, task: str, **settings: Any) -> list[dict[str, Any]]:
    settings = {**READ_AS.get(path.suffix, {}), **settings}
    source = SourceConfig.model_validate({"path": str(path), **settings})
    return list(read_rows(source, roles=SETTINGS[task].columns))


@pytest.mark.parametrize("suffix", FILES)
def test_a_damaged_file_of_any_format_is_read_or_refused(tmp_path: Path, suffix: str):
    task, content = FILES[suffix]
    path = tmp_path / f"rows.{suffix}"
    path.write_bytes(content)
    assert len(_read(path, task)) >= 1

    @budget(15)
    @given(damaged(content))
    def read(content: bytes) -> None:
        path.write_bytes(content)
        with refused():
            _read(path, task)

    read()


def test_damaged_idx_images_and_parallel_texts_are_read_or_refused(tmp_path: Path):
    images = b"\0\0\x08\x03" + b"".join(size.to_bytes(4, "big") for size in (2, 2, 2)) + bytes(8)
    labels = b"\0\0\x08\x01" + (2).to_bytes(4, "big") + bytes(2)
    names = ("train-images-idx3-ubyte", "train-labels-idx1-ubyte")

    @budget(20)
    @given(damaged(images) | st.just(images), damaged(labels) | st.just(labels))
    def read_idx(images: bytes, labels: bytes) -> None:
        for name, content in zip(names, (images, labels), strict=True):
            (tmp_path / name).write_bytes(content)
        with refused():
            _read(tmp_path / names[0], "image_classification")

    @budget(20)
    @given(damaged(b"a\nb\n"), damaged(b"c\nd\n"))
    def read_pair(source: bytes, target: bytes) -> None:
        (tmp_path / "a.de").write_bytes(source)
        (tmp_path / "a.en").write_bytes(target)
        with refused():
            _read(tmp_path / "a.{de,en}", "seq2seq")

    read_idx()
    read_pair()


def test_any_encoding_reads_a_file_or_is_refused(tmp_path: Path):
    @budget(60)
    @given(st.sampled_from(ENCODINGS) | st.text(max_size=8), st.sampled_from(sorted(FILES)), st.booleans())
    def read(encoding: str, suffix: str, other: bool) -> None:
        task, content = FILES[suffix]
        path = tmp_path / f"rows.{suffix}"
        path.write_bytes("text,label\nä,x\n".encode("utf-16") if other else content)
        with refused():
            _read(path, task, encoding=encoding)

    read()


def test_any_readme_of_a_data_folder_is_read_or_refused(tmp_path: Path):
    (tmp_path / "train.jsonl").write_text(ROWS)

    @budget(30)
    @given(json_values, json_values, st.booleans())
    def read(configs: Any, files: Any, whole: bool) -> None:
        said = configs if whole else [{"config_name": "a", "data_files": files, "default": True}, configs]
        (tmp_path / "README.md").write_bytes(b"---\nconfigs: " + as_json(said) + b"\n---\n")
        with refused():
            _read(tmp_path, "text_classification")

    read()


def test_any_setting_of_a_source_reads_a_file_or_is_refused(tmp_path: Path):
    names = sorted(set(SourceConfig.model_fields) - {"path"})

    @budget(60)
    @given(st.sampled_from(sorted(FILES)), st.dictionaries(st.sampled_from(names), json_values, max_size=2))
    def read(suffix: str, settings: dict[str, Any]) -> None:
        task, content = FILES[suffix]
        (tmp_path / f"rows.{suffix}").write_bytes(content)
        source = {"path": str(tmp_path / f"rows.{suffix}"), **READ_AS.get(f".{suffix}", {}), **settings}
        with refused():
            parsed = parse_config(
                {"task": task, "model": "m", "run_folder": "r", "data": {"train": source}}, source="test"
            )
            if parsed.data.train[0].format != "hub":
                list(read_rows(parsed.data.train[0], roles=SETTINGS[task].columns))

    read()
