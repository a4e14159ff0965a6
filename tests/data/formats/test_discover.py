"""Which files a path means."""

from __future__ import annotations

import pytest

from ftscale.base.errors import UserError
from ftscale.config.schema import SourceConfig
from ftscale.data.sources import detect_format, source_files


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("a.csv", "csv"),
        ("a.CSV.gz", "csv"),
        ("a.tsv.xz", "tsv"),
        ("a.jsonl.zst", "jsonl"),
        ("a.ndjson", "jsonl"),
        ("a.json.bz2", "json"),
        ("a.parquet", "parquet"),
        ("a.XLSX", "excel"),
        ("a.txt", "text"),
        ("a.conll", "conll"),
        ("a.iob", "conll"),
        ("t10k-images-idx3-ubyte.gz", "idx"),
        ("odd,name.csv", "csv"),
    ],
)
def test_the_format_is_told_by_the_name(tmp_path, name, expected):
    (tmp_path / name).touch()
    assert detect_format(tmp_path / name) == expected


@pytest.mark.parametrize(
    ("name", "fix"),
    [
        ("a.XLS", "save it as .xlsx."),
        ("a.tar.gz", "unpack it, and name the file inside."),
        ("a.pos", "set data.train[0].format to one of csv, tsv, jsonl"),
    ],
)
def test_a_name_of_no_format_is_refused_with_what_to_do(tmp_path, name, fix):
    (tmp_path / name).touch()
    with pytest.raises(UserError) as caught:
        detect_format(tmp_path / name)
    assert f"{tmp_path / name}" in str(caught.value)
    assert fix in str(caught.value)


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("PolyAI/banking77", "hub"),
        ("no-such-data-set-here", "hub"),
        ("https://example.org/a.csv.gz?download=1", "csv"),
        ("s3://bucket/a.parquet", "parquet"),
        ("x.{de,en}.gz", "parallel"),
    ],
)
def test_what_is_no_local_file_is_told_by_its_form(tmp_path, monkeypatch, path, expected):
    monkeypatch.chdir(tmp_path)
    assert detect_format(path) == expected


def test_globs_and_folders_are_sorted_and_leave_out_what_is_hidden(tmp_path):
    for name in ("b.csv", "a.csv", "c.txt", "sub/0.csv", ".x.csv", "_SUCCESS"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()

    def names(path: str, **settings: str) -> list[str]:
        found = source_files(SourceConfig(path=f"{tmp_path}{path}", **settings))
        return [str(file.relative_to(tmp_path)) for file in found]

    assert names("/*.csv") == ["a.csv", "b.csv"]
    assert names("/**/*.csv") == ["a.csv", "b.csv", "sub/0.csv"]
    assert names("", format="csv") == ["a.csv", "b.csv", "sub/0.csv"]
    assert names("/sub") == ["sub/0.csv"]


@pytest.mark.parametrize(
    ("path", "words"),
    [
        ("/trai.csv", "did you mean '{folder}/train.csv'?"),
        ("/daat/x.csv", "did you mean '{folder}/data'?"),
        ("/train*.json", "matches no file; did you mean '{folder}/train.csv'?"),
        ("/empty", "is an empty folder"),
        ("/data/x.what", "data.eval[1].format = 'auto' does not know the format of '{folder}/data/x.what'"),
        ("", "holds files of several formats (csv, jsonl)"),
    ],
)
def test_a_path_that_names_no_file_is_refused_with_what_is_there(tmp_path, path, words):
    for folder in ("data", "empty"):
        (tmp_path / folder).mkdir()
    for name in ("train.csv", "other.jsonl", "data/x.what"):
        (tmp_path / name).touch()
    with pytest.raises(UserError) as caught:
        source_files(SourceConfig(path=f"{tmp_path}{path}"), setting="data.eval[1]")
    assert words.format(folder=tmp_path) in str(caught.value)
    assert str(caught.value).startswith("data.eval[1].")


def test_a_misspelt_local_folder_is_not_looked_for_on_the_hub(tmp_path, monkeypatch):
    (tmp_path / "data/train").mkdir(parents=True)
    (tmp_path / "train_rows").mkdir()
    monkeypatch.chdir(tmp_path)
    for path, meant in (("data/trai", "data/train"), ("train_row", "train_rows")):
        with pytest.raises(UserError, match=f"does not exist; did you mean '{meant}'"):
            detect_format(path)


def test_an_unknown_format_is_refused_with_the_nearest(tmp_path):
    with pytest.raises(UserError, match=r"data.train\[0\].format = 'jsnl' is not known; did you mean 'jsonl'"):
        source_files(SourceConfig(path=str(tmp_path), format="jsnl"))
