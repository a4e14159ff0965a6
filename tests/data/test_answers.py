"""Answers beside their rows, read back by other programs: csv, pandas, pyarrow, seqeval's way of CoNLL."""

from __future__ import annotations

import csv
import datetime
import json
import random
from pathlib import Path
from typing import Any

import numpy
import pandas
import pyarrow
import pyarrow.parquet
import pytest

from ftscale.base.errors import UserError
from ftscale.config.schema import SourceConfig
from ftscale.data import answers
from ftscale.data.answers import Answer, open_answers
from ftscale.data.sources import detect_format, read_rows

LABELS = {"label", "tags"}
ADDED = {"prediction": "good", "score": 0.25}


def answer_all(source: SourceConfig, out: Path, roles: tuple[str, ...], **added: Any) -> int:
    """Write an answer to every row of a source; returns how many."""
    form = source.format if source.format != "auto" else detect_format(source.path)
    count = 0
    with open_answers(out, source=source, form=form) as write:
        for row in read_rows(source, roles=(roles,), absent=LABELS, keep_columns=True):
            write(Answer(row["_columns"], added or ADDED, words=row.get("words")))
            count += 1
    return count


def test_a_table_with_equal_and_empty_names_keeps_every_cell(tmp_path):
    header = ["text", "", "n", "n", "", "text "]
    cells = [
        [f'{row} "quoted", with\nbreaks' if place == 0 else f"{row}/{place}" for place in range(6)] for row in range(9)
    ]
    with open(tmp_path / "rows.csv", "w", newline="") as file:
        csv.writer(file).writerows([header, *cells])
    assert answer_all(SourceConfig(path=f"{tmp_path}/rows.csv"), tmp_path / "out.csv", ("text",)) == 9
    with open(tmp_path / "out.csv", newline="") as file:
        written = list(csv.reader(file))
    assert written == [[*header, "prediction", "score"], *([*row, "good", "0.25"] for row in cells)]
    answer_all(SourceConfig(path=f"{tmp_path}/rows.csv"), tmp_path / "out.jsonl", ("text",))
    first = json.loads((tmp_path / "out.jsonl").read_text().splitlines()[0])
    assert [*first] == ["text", "", "n", "n.1", ".1", "text ", "prediction", "score"]
    assert [*first.values()] == [*cells[0], "good", 0.25]


def test_tsv_comes_out_byte_for_byte_with_two_more_cells(tmp_path):
    noise = random.Random(0)
    letters = "ab\"', ;\\|\u00e9 "
    lines = ["\t".join("".join(noise.choices(letters, k=5)) for _ in range(4)) for _ in range(300)]
    (tmp_path / "rows.tsv").write_text("\n".join(["text\tb\tb\t", *lines]) + "\n")
    source = SourceConfig(path=f"{tmp_path}/rows.tsv")
    answer_all(source, tmp_path / "out.tsv", ("text",))
    assert (tmp_path / "out.tsv").read_text().split("\n") == [
        "text\tb\tb\t\tprediction\tscore",
        *(f"{line}\tgood\t0.25" for line in lines),
        "",
    ]
    again = read_rows(SourceConfig(path=f"{tmp_path}/out.tsv"), roles=(("text",),), keep_columns=True)
    assert ["\t".join(value for _, value in row["_columns"]) for row in again] == [
        f"{line}\tgood\t0.25" for line in lines
    ]


@pytest.mark.parametrize(("suffix", "separator"), [("csv", None), ("csv", ";"), ("tsv", None)])
def test_a_table_without_a_header_gets_none_and_keeps_its_separator(tmp_path, suffix, separator):
    mark = separator or {"csv": ",", "tsv": "\t"}[suffix]
    (tmp_path / f"rows.{suffix}").write_text(f"fine{mark}1\nbad{mark}2\n")
    source = SourceConfig(path=f"{tmp_path}/rows.{suffix}", header=False, separator=separator, columns={"text": 0})
    answer_all(source, tmp_path / f"out.{suffix}", ("text",))
    lines = (tmp_path / f"out.{suffix}").read_text().splitlines()
    assert lines == [f"fine{mark}1{mark}good{mark}0.25", f"bad{mark}2{mark}good{mark}0.25"]


def test_a_cell_that_tsv_cannot_hold_is_refused_and_one_of_an_answer_is_escaped(tmp_path):
    (tmp_path / "rows.csv").write_text('text\n"two\nlines"\n')
    source = SourceConfig(path=f"{tmp_path}/rows.csv")
    with pytest.raises(UserError, match=r"'two\\nlines' has a line break or separator, which TSV cannot hold; write"):
        answer_all(source, tmp_path / "out.tsv", ("text",))
    assert [path.name for path in tmp_path.iterdir()] == ["rows.csv"]
    (tmp_path / "rows.csv").write_text("text\nfine\n")
    answer_all(source, tmp_path / "out.tsv", ("text",), prediction="a\tb\nc", score=1.0)
    assert (tmp_path / "out.tsv").read_text() == "text\tprediction\tscore\nfine\ta\\tb\\nc\t1.0\n"


def test_parquet_comes_out_with_its_types_and_two_more_columns(tmp_path, monkeypatch):
    monkeypatch.setattr(answers, "ROWS_AT_ONCE", 4)
    day = datetime.datetime(2024, 5, 1, 12, 30)
    columns = {
        "text": pyarrow.array([f"row {number}" for number in range(10)]),
        "n": pyarrow.array([1, None, *range(8)], pyarrow.int16()),
        "x": pyarrow.array([float("nan"), None, *map(float, range(8))], pyarrow.float32()),
        "when": pyarrow.array([day, None] * 5, pyarrow.timestamp("us", "UTC")),
        "deep": pyarrow.array(
            [{"a": [1], "b": None}] * 10, pyarrow.struct([("a", pyarrow.list_(pyarrow.int8())), ("b", "str")])
        ),
        "raw": pyarrow.array([b"\x00\xff"] * 10),
    }
    table = pyarrow.Table.from_arrays([*columns.values(), columns["n"]], names=[*columns, "n"])
    pyarrow.parquet.write_table(table, tmp_path / "rows.parquet")
    assert answer_all(SourceConfig(path=f"{tmp_path}/rows.parquet"), tmp_path / "out.parquet", ("text",)) == 10
    written = pyarrow.parquet.ParquetFile(tmp_path / "out.parquet").read()
    assert written.schema.names == [*table.schema.names, "prediction", "score"]
    for place in range(7):
        assert written.column(place).type == table.column(place).type
        assert str(written.column(place).to_pylist()) == str(table.column(place).to_pylist())
    assert written.column(7).to_pylist() == ["good"] * 10
    assert written.column(8).to_pylist() == [0.25] * 10


def test_parquet_that_datasets_wrote_stays_readable_by_it(tmp_path):
    import datasets

    features = datasets.Features({"text": datasets.Value("string"), "label": datasets.ClassLabel(names=["a", "b"])})
    datasets.Dataset.from_dict({"text": ["x", "y"], "label": [0, 1]}, features=features).to_parquet(
        tmp_path / "rows.parquet"
    )
    answer_all(SourceConfig(path=f"{tmp_path}/rows.parquet"), tmp_path / "out.parquet", ("text",))
    again = datasets.Dataset.from_parquet(str(tmp_path / "out.parquet"), cache_dir=str(tmp_path))
    assert again.to_dict() == {"text": ["x", "y"], "label": [0, 1], "prediction": ["good"] * 2, "score": [0.25] * 2}


def test_parquet_of_other_files_has_the_types_of_all_their_rows(tmp_path, monkeypatch):
    monkeypatch.setattr(answers, "ROWS_AT_ONCE", 2)
    rows = [
        {"text": "a", "n": None},
        {"text": "b", "n": None},
        {"text": "c", "n": 1},
        {"text": "d", "more": {"k": [1]}},
    ]
    rows += [{"text": "e", "n": 0.5}]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    answer_all(SourceConfig(path=f"{tmp_path}/rows.jsonl"), tmp_path / "out.parquet", ("text",))
    frame = pandas.read_parquet(tmp_path / "out.parquet")
    assert frame["n"].tolist()[2:] == [1.0, pytest.approx(float("nan"), nan_ok=True), 0.5]
    assert [*frame.columns] == ["text", "n", "more", "prediction", "score"]
    with open(tmp_path / "rows.csv", "w") as file:
        file.write("text,n\na,1\nb,\nc,x\n")
    answer_all(SourceConfig(path=f"{tmp_path}/rows.csv"), tmp_path / "out.parquet", ("text",))
    assert pyarrow.parquet.read_table(tmp_path / "out.parquet").column("n").to_pylist() == ["1", "", "x"]


def test_a_column_of_several_types_is_refused_by_parquet(tmp_path):
    (tmp_path / "rows.jsonl").write_text('{"text": "a", "n": 1}\n{"text": "b", "n": "x"}\n')
    with pytest.raises(UserError, match="the column 'n' has values of several types, which Parquet cannot hold"):
        answer_all(SourceConfig(path=f"{tmp_path}/rows.jsonl"), tmp_path / "out.parquet", ("text",))
    assert [path.name for path in tmp_path.iterdir()] == ["rows.jsonl"]


WORDS = [("EU", "NNP", "B-ORG"), ("rejects", "VBZ", "O"), ("calls", "NNS", "O")]
TAGS = {"prediction": ["B-ORG", "O", "O"], "entities": [], "score": 0.5}
SCORES = {"scores": [{"B-ORG": 0.75, "O": 0.25}, {"B-ORG": 0.125, "O": 0.875}, None]}


@pytest.mark.parametrize(("separator", "mark"), [(None, " "), (None, "\t"), ("\t", "\t"), ("|", "|")])
def test_conll_comes_out_with_a_tag_and_its_probability_behind_each_line(tmp_path, separator, mark):
    (tmp_path / "rows.conll").write_text(
        "\n".join(mark.join(word) for word in WORDS) + "\n\n" + mark.join(WORDS[0]) + "\n"
    )
    source = SourceConfig(path=f"{tmp_path}/rows.conll", separator=separator)
    with open_answers(tmp_path / "out.conll", source=source, form="conll") as write:
        for row in read_rows(source, roles=(("words", "tags"),), keep_columns=True):
            number = len(row["words"])
            added = {
                name: value[:number] for name, value in (TAGS | SCORES).items() if name in ("prediction", "scores")
            }
            write(Answer(row["_columns"], added, words=row["words"]))
    assert (tmp_path / "out.conll").read_text().split("\n") == [
        mark.join(["EU", "NNP", "B-ORG", "B-ORG", "0.750000"]),
        mark.join(["rejects", "VBZ", "O", "O", "0.875000"]),
        mark.join(["calls", "NNS", "O", "O", "_"]),
        "",
        mark.join(["EU", "NNP", "B-ORG", "B-ORG", "0.750000"]),
        "",
        "",
    ]


def test_columns_of_conll_are_called_by_what_they_are(tmp_path):
    words, kinds, tags = zip(*WORDS, strict=True)
    (tmp_path / "rows.conll").write_text("\n".join(" ".join(word) for word in WORDS) + "\n")
    source = SourceConfig(path=f"{tmp_path}/rows.conll")
    [row] = read_rows(source, roles=(("words", "tags"),), keep_columns=True)
    assert dict(row["_columns"]) == {
        "words": ["EU", "rejects", "calls"],
        "1": ["NNP", "VBZ", "NNS"],
        "tags": ["B-ORG", "O", "O"],
    }


def test_conll_of_other_files_needs_a_cell_a_word(tmp_path):
    out = tmp_path / "out.conll"
    (tmp_path / "rows.jsonl").write_text('{"words": ["EU", "rejects", "calls"], "pos": ["N", "V", "N"]}\n')
    answer_all(SourceConfig(path=f"{tmp_path}/rows.jsonl"), out, ("words", "tags"), **TAGS, **SCORES)
    assert out.read_text() == "EU N B-ORG 0.750000\nrejects V O 0.875000\ncalls N O _\n\n"
    (tmp_path / "rows.jsonl").write_text('{"words": ["EU", "rejects", "calls"], "id": 7}\n')
    with pytest.raises(UserError, match="the column 'id' has no cell for each word; write .jsonl or .parquet"):
        answer_all(SourceConfig(path=f"{tmp_path}/rows.jsonl"), out, ("words", "tags"), **TAGS, **SCORES)


def test_vectors_alone_are_an_array(tmp_path: Path):
    """As numpy reads it; a row without a vector is NaN, also before the first that has one."""
    vectors = [None, [0.5, 1.0], [0.25, -2.0], None]
    with open_answers(tmp_path / "out.npy", source=SourceConfig(path="-"), form="jsonl") as write:
        for vector in vectors:
            write(Answer([("text", "a")], {"prediction": vector, "score": None}))
    found = numpy.load(tmp_path / "out.npy")
    nothing = [numpy.nan, numpy.nan]
    numpy.testing.assert_equal(found, numpy.array([nothing, [0.5, 1], [0.25, -2], nothing], dtype=numpy.float32))


def test_an_array_of_what_is_no_vector_is_refused(tmp_path: Path):
    with (
        pytest.raises(UserError, match=r"out.npy: an array holds vectors; write .csv"),
        open_answers(tmp_path / "out.npy", source=SourceConfig(path="-"), form="jsonl") as write,
    ):
        write(Answer([("text", "a")], ADDED))
    assert not list(tmp_path.iterdir())
