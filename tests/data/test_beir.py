"""A BEIR folder: what was judged as rows, and the rest of its documents where a run is scored."""

from __future__ import annotations

from pathlib import Path

import pytest

from ftscale.base.errors import UserError
from ftscale.config.schema import SourceConfig
from ftscale.config.tasks import SETTINGS
from ftscale.data.sources import open_stream, read_rows

ROLES = SETTINGS["embedding"].columns


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "corpus.jsonl").write_text(
        '{"_id": "d1", "title": "Ants", "text": "They dig."}\n{"_id": "d2", "text": "Bees fly."}\n'
        '{"_id": "d3", "title": "", "text": "Cows stand."}\n'
    )
    (tmp_path / "queries.jsonl").write_text(
        '{"_id": "q1", "text": "who digs"}\n{"_id": "7", "text": "who flies", "metadata": {}}\n'
    )
    (tmp_path / "qrels").mkdir()
    (tmp_path / "qrels/train.tsv").write_text("query-id\tcorpus-id\tscore\nq1\td1\t2\n")
    (tmp_path / "qrels/test.tsv").write_text("query-id\tcorpus-id\tscore\n7\td2\t1\n7\td1\t0\n")
    return tmp_path


def rows_of(folder: Path, setting: str, **settings: str) -> list[tuple[str | None, str, str]]:
    rows = read_rows(SourceConfig(path=str(folder), **settings), roles=ROLES, setting=setting)
    return [(row["anchor"], row["positive"], row["score"]) for row in rows]


def test_judgements_are_rows(folder: Path):
    assert rows_of(folder, "data.train[0]", split="train") == [("who digs", "Ants They dig.", "2")]


def test_to_score_with_all_documents_are_there(folder: Path):
    assert rows_of(folder, "data.eval[0]", split="test") == [
        ("who flies", "Bees fly.", "1"),
        ("who flies", "Ants They dig.", "0"),
        (None, "Cows stand.", 0),
    ]


def test_reading_goes_on_behind_a_place(folder: Path):
    source = SourceConfig(path=str(folder), split="test", format="beir")
    rows = list(open_stream(source, roles=ROLES, position=None, setting="data.eval[0]"))
    rest = list(open_stream(source, roles=ROLES, position=rows[0][1], setting="data.eval[0]"))
    assert rest == rows[1:]


@pytest.mark.parametrize(
    ("split", "problem"),
    [
        (None, "holds the splits test, train; set data.eval[0].split: test."),
        ("dev", "data.eval[0].split = 'dev' is none of the splits test, train; set data.eval[0].split: test."),
    ],
)
def test_a_split_is_to_be_chosen(folder: Path, split: str | None, problem: str):
    with pytest.raises(UserError) as error:
        rows_of(folder, "data.eval[0]", **({} if split is None else {"split": split}))
    assert str(error.value).endswith(problem)


def test_a_judgement_without_a_score_is_told(folder: Path):
    (folder / "qrels/train.tsv").write_text("query-id\tcorpus-id\tscore\nq1\td1\n")
    with pytest.raises(UserError, match=r"train.tsv:2"):
        rows_of(folder, "data.train[0]", split="train")


def test_a_judged_text_that_is_not_there_is_named(folder: Path):
    (folder / "qrels/train.tsv").write_text("query-id\tcorpus-id\tscore\nq1\td9\t1\n")
    with pytest.raises(UserError, match=r"train.tsv:2 has 'd9', which is not in .*corpus.jsonl; mend the row"):
        rows_of(folder, "data.train[0]", split="train")
