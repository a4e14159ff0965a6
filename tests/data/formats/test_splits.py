"""The files of a split, beside what `datasets` itself takes for it."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from ftscale.config.schema import SourceConfig
from ftscale.data.sources import source_files

LAYOUTS = {
    "shards": ["data/train-00000-of-00002.csv", "data/train-00001-of-00002.csv", "data/dev-00000-of-00001.csv"],
    "shards beside others": ["data/train-00000-of-00001.csv", "data/my_split-00000-of-00001.csv", "test.csv"],
    "a folder a split": ["train/a.csv", "train/deep/b.csv", "validation/a.csv", "test-1/a.csv"],
    "folders with more in their names": ["my_train/a.csv", "eval data/b.csv", "other/c.csv"],
    "file names": ["train.csv", "valid.csv", "test_2.csv", "my-train-set.csv"],
    "file names in folders": ["a/train.csv", "b/train.csv", "b/dev.csv"],
    "a folder wins over a file name": ["train/test.csv", "validation/train.csv", "test.csv"],
    "words that only begin alike": ["training.csv", "testing.csv", "trainer.csv", "contest.csv", "devices.csv"],
    "no split": ["a.csv", "b.csv"],
}
README = """---
configs:
- config_name: one
  data_files:
  - {split: train, path: "first/*.csv"}
  - {split: validation, path: ["second/a.csv", "second/b*.csv"]}
- config_name: two
  default: true
  data_dir: second
  data_files: [{split: train, path: "**/*.csv"}, {split: extra, path: c.csv}]
- config_name: three
  data_files: "*/b*.csv"
---
# A card
"""
CARDED = ["first/a.csv", "first/deep/x.csv", "second/a.csv", "second/b1.csv", "second/c.csv", "test.csv"]


def _make(folder: Path, names: list[str]) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("text,label\na,1\n")


def _theirs(folder: Path, name: str | None = None) -> dict[str, list[str]]:
    from datasets import load_dataset_builder

    builder = load_dataset_builder(str(folder), name, cache_dir=str(folder.parent / "cache"))
    return {str(split): sorted(map(str, files)) for split, files in builder.config.data_files.items()}


def _ours(folder: Path, split: str, **settings: str) -> list[str]:
    return sorted(map(str, source_files(SourceConfig(path=str(folder), split=split, **settings))))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_split_has_the_files_that_datasets_takes(tmp_path, layout):
    folder = tmp_path / "data set"
    _make(folder, LAYOUTS[layout])
    theirs = _theirs(folder)
    assert {split: _ours(folder, split) for split in theirs} == theirs
    assert len(_ours(folder, "all")) == len(LAYOUTS[layout])


@pytest.mark.parametrize("name", [None, "one", "two", "three"])
def test_the_card_of_a_folder_names_its_configurations_and_splits(tmp_path, name):
    folder = tmp_path / "carded"
    _make(folder, CARDED)
    (folder / "README.md").write_text(README)
    theirs = _theirs(folder, name)
    settings = {} if name is None else {"name": name}
    assert {split: _ours(folder, split, **settings) for split in theirs} == theirs


def test_rows_of_the_other_splits_are_not_read(tmp_path, read):
    pandas = pytest.importorskip("pandas")
    (tmp_path / "data").mkdir()
    for split, number in (("train", 24), ("validation", 12), ("test", 12)):
        frame = pandas.DataFrame({"text": [f"{split} {row}" for row in range(number)], "label": [0, 1] * (number // 2)})
        frame.to_parquet(tmp_path / f"data/{split}-00000-of-00001.parquet")
    assert [row["text"] for row in read(tmp_path, split="train")] == [f"train {row}" for row in range(24)]
    assert len(read(tmp_path, split="dev")) == 12  # as `datasets` calls the same split in other layouts
    assert len(read(tmp_path, split="all")) == 48


def test_images_of_a_split_have_the_classes_below_its_folder(tmp_path, read, refused):
    for name in ("train/cat/1.png", "train/dog/2.png", "test/dog/3.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("L", (1, 1)).save(tmp_path / name)
    rows = read(tmp_path, ("image", "label"), split="train")
    assert [(Path(row["image"]).name, row["label"]) for row in rows] == [("1.png", "cat"), ("2.png", "dog")]
    assert "holds the splits train, test; set data.train[0].split: train" in refused(tmp_path, ("image", "label"))


@pytest.mark.parametrize(
    ("names", "settings", "words"),
    [
        (["train.csv", "test.csv"], {}, "holds the splits train, test; set data.train[0].split: train, or all"),
        (["train.csv", "test.csv"], {"split": "tests"}, "which has the splits train, test; set one"),
        (["a.csv"], {"split": "test"}, "which has no splits by its names; leave it out"),
        (["a.csv"], {"name": "one"}, "has no README.md that names any; leave it out"),
    ],
)
def test_a_split_that_must_be_chosen_or_is_none_is_refused(tmp_path, refused, names, settings, words):
    _make(tmp_path, names)
    assert words in refused(tmp_path, **settings)


@pytest.mark.parametrize(
    ("name", "settings", "words"),
    [
        ("a.csv", {"split": "test"}, "split = 'test' is not used for"),
        ("a.csv", {"name": "x"}, "name = 'x' is not used for"),
        ("a.csv", {"comment": "#"}, "comment = '#' is not used for"),
        ("a.jsonl", {"separator": ";"}, "separator = ';' is not used for"),
        ("a.jsonl", {"header": False}, "header = False is not used for"),
        ("a.parquet", {"encoding": "latin-1"}, "encoding = 'latin-1' is not used for"),
        ("a.txt", {"header": False}, "header = False is not used for"),
    ],
)
def test_a_setting_that_the_format_does_not_use_is_refused(tmp_path, refused, name, settings, words):
    (tmp_path / name).write_text('{"text": "a", "label": 1}\n')
    message = refused(tmp_path / name, **settings)
    assert f"data.train[0].{words}" in message
    assert "leave it out" in message
