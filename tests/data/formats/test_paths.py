"""Files behind links, and what is said of a path that is not there."""

from __future__ import annotations

import pytest

from ftscale.base.errors import UserError
from ftscale.config.schema import SourceConfig
from ftscale.data.formats.paths import nearest_path
from ftscale.data.sources import source_files


def test_a_linked_folder_is_read_as_a_pattern_reads_it(tmp_path):
    (tmp_path / "far/deep").mkdir(parents=True)
    (tmp_path / "here").mkdir()
    for name in ("far/b.csv", "far/deep/c.csv", "here/a.csv"):
        (tmp_path / name).touch()
    (tmp_path / "here/link").symlink_to(tmp_path / "far")
    by_folder = source_files(SourceConfig(path=str(tmp_path / "here")))
    by_pattern = source_files(SourceConfig(path=f"{tmp_path}/here/**/*.csv"))
    assert by_folder == by_pattern
    assert [path.name for path in by_folder] == ["a.csv", "b.csv", "c.csv"]


def test_folders_that_link_to_each_other_are_read_once(tmp_path):
    for name, other in (("one", "two"), ("two", "one")):
        (tmp_path / "rows" / name).mkdir(parents=True)
        (tmp_path / "rows" / name / f"{name}.csv").touch()
        (tmp_path / "rows" / name / "other").symlink_to(tmp_path / "rows" / other)
        (tmp_path / "rows" / name / "up").symlink_to(tmp_path / "rows")
    found = [str(path.relative_to(tmp_path / "rows")) for path in source_files(SourceConfig(path=f"{tmp_path}/rows"))]
    assert found == ["one/one.csv", "one/other/two.csv", "two/other/one.csv", "two/two.csv"]


@pytest.mark.parametrize(
    ("path", "says"),
    [
        ("traim.csv", "did you mean '{folder}/train.csv'?"),
        ("train.tsv", "did you mean '{folder}/train.csv'?"),
        ("TRAIN.csv", "did you mean '{folder}/train.csv'?"),
        ("raw/traim.csv", "did you mean '{folder}/raw/train.csv.gz'?"),
        ("raww/train.csv.gz", "did you mean '{folder}/raw/train.csv.gz'?"),
        ("raww/valid.csv", "did you mean '{folder}/raw'? It has 'train.csv.gz'."),
        ("holdout.csv", "'{folder}' has 'raw', 'test.csv', 'train.csv'."),  # nothing there is like it
        ("eval.csv", "'{folder}' has 'raw', 'test.csv', 'train.csv'."),
        ("none/at/all.csv", "'{folder}' has 'raw', 'test.csv', 'train.csv'."),
    ],
)
def test_only_a_name_that_is_like_the_missing_one_is_suggested(tmp_path, path, says):
    (tmp_path / "raw").mkdir()
    for name in ("train.csv", "test.csv", "raw/train.csv.gz"):
        (tmp_path / name).touch()
    assert nearest_path(f"{tmp_path}/{path}") == says.format(folder=tmp_path)


def test_a_relative_path_says_what_it_is_relative_to(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError) as caught:
        source_files(SourceConfig(path="data/train.csv"))
    assert str(caught.value).endswith(f"The path is relative to {tmp_path}.")
    with pytest.raises(UserError) as caught:
        source_files(SourceConfig(path=f"{tmp_path}/data/train.csv"))
    assert "The path is relative" not in str(caught.value)
