"""Which files are for what, by their names and columns."""

from __future__ import annotations

from pathlib import Path

import pytest

from ftscale.base.errors import UserError
from ftscale.init.doubts import Doubts
from ftscale.init.parts import part_of, parts_of, run_name

TABLE = "text,label\na man sat down,a\n"


def told(folder: Path, *names: str, of: str | None = None) -> tuple[dict[str, list[str]], list[str]]:
    """The names of each part's files, and what is noted."""
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(TABLE)
    doubts = Doubts()
    parts = parts_of(str(folder if of is None else folder / of), doubts)
    found = {"train": parts.train, **parts.others}
    return {part: [Path(source["path"]).name for source in sources] for part, sources in found.items()}, doubts.notes


@pytest.mark.parametrize(
    ("name", "part"),
    [
        ("train.csv", "train"),
        ("SICK_trial.txt", "eval"),
        ("devel.tsv", "eval"),
        ("val.de.gz", "eval"),
        ("test_2016_flickr.en.gz", "test"),
        ("testset_w_refs.csv", "test"),
        ("contest.csv", None),
        ("train_test_all.csv", None),
        ("rows.csv", None),
    ],
)
def test_a_part_is_told_by_a_word_of_the_name(name: str, part: str | None):
    assert part_of(name) == part


def test_files_beside_a_training_file_are_its_other_parts(tmp_path: Path):
    parts, notes = told(tmp_path, "train.csv", "dev.csv", "test.csv", "other.tsv", of="train.csv")
    assert (parts, notes) == ({"train": ["train.csv"], "eval": ["dev.csv"], "test": ["test.csv"]}, [])
    parts, notes = told(tmp_path, of="test.csv")
    assert parts == {"train": ["test.csv"]}
    assert notes == ["test.csv is for the test by its name, and trained on all the same; train.csv lies beside it."]
    assert told(tmp_path, "rows.csv", of="rows.csv")[0] == {"train": ["rows.csv"]}


def test_of_a_folder_the_files_of_one_format_are_taken(tmp_path: Path):
    parts, notes = told(tmp_path, "train.csv", "test.csv", "README.md", "classes.txt", "notes.txt")
    assert parts == {"train": ["train.csv"], "test": ["test.csv"]}
    assert notes == [f"of {tmp_path} the csv files are taken, and not README.md, classes.txt, notes.txt."]


def test_files_of_no_part_are_taken_where_their_columns_are_the_same(tmp_path: Path):
    for name in ("a.jsonl", "b.jsonl"):
        (tmp_path / name).write_text('{"text": "it rained all day"}\n')
    assert [source["path"] for source in parts_of(str(tmp_path), Doubts()).train] == [str(tmp_path)]
    (tmp_path / "c.jsonl").write_text('{"question": "who"}\n')
    parts, notes = told(tmp_path)
    assert parts == {"train": ["a.jsonl", "b.jsonl"]}
    assert "have different columns; a.jsonl, b.jsonl are taken, the largest." in notes[0]
    asked = Doubts(lambda question, options, default: options[-1].name)
    assert [source["path"] for source in parts_of(str(tmp_path), asked).train] == [str(tmp_path / "c.jsonl")]


def test_files_of_two_languages_are_pairs(tmp_path: Path):
    names = [f"{part}.{language}" for part in ("train", "val") for language in ("de", "en")]
    parts, _ = told(tmp_path, *names)
    assert parts == {"train": ["train.{de,en}"], "eval": ["val.{de,en}"]}
    parts, notes = told(tmp_path, of="train.de")
    assert parts == {"train": ["train.de"], "eval": ["val.de"]}
    assert "train.{de,en} is the pair of it" in notes[0]


def test_images_are_taken_from_the_folder_that_holds_more_than_one_class(tmp_path: Path):
    for name in ("pets/animals/cat/1.png", "pets/animals/dog/1.png", "more/x/cat/1.png", "more/x/dog/a/1.png"):
        (tmp_path / name).parent.mkdir(parents=True)
        (tmp_path / name).write_bytes(b"\x89PNG")
    assert parts_of(str(tmp_path / "pets"), Doubts()).train == [{"path": str(tmp_path / "pets/animals")}]
    doubts = Doubts()
    assert parts_of(str(tmp_path / "more"), doubts).train == [{"path": str(tmp_path / "more/x")}]
    assert "and not a folder inside that" in doubts.notes[0]


def test_an_empty_folder_is_told(tmp_path: Path):
    with pytest.raises(UserError, match="is an empty folder"):
        parts_of(str(tmp_path), Doubts())


def test_a_run_is_called_after_its_folder_where_the_file_is_a_part():
    assert [run_name(path) for path in ("data/sst2/train.tsv", "a/messages.csv", "x/my rows", "user/rows")] == [
        "sst2",
        "messages",
        "my-rows",
        "rows",
    ]
