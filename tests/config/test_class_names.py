"""Names of classes as users write them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from ftscale.base.errors import UserError
from ftscale.config import load_config, parse_config

RUN = "task: {{name: text_classification, labels: {labels}}}\nrun_folder: r\nmodel: m\ndata: {{train: t.csv}}\n"


def names(tmp_path: Path, labels: object) -> tuple[tuple[str, ...], tuple[int, ...] | None]:
    (tmp_path / "run.yaml").write_text(RUN.format(labels=json.dumps(labels)))
    task = load_config(tmp_path / "run.yaml").task
    return task.labels, task.label_ids


@pytest.mark.parametrize(
    ("labels", "expected"),
    [
        (["yes ", "no"], (("yes", "no"), (0, 1))),
        ([0, 1, 2], (("0", "1", "2"), None)),
        (["1", "b"], (("1", "b"), None)),
        ({"0": "repair", "1": " order"}, (("repair", "order"), (0, 1))),
        ({"2": "b", "-1": "a"}, (("a", "b"), (-1, 2))),
    ],
)
def test_labels_are_a_list_or_numbers_to_names(tmp_path, labels, expected):
    assert names(tmp_path, labels) == expected


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.txt", "repair\norder\n"),
        ("b.txt", "\ufeffrepair\r\norder"),
        ("c.json", '["repair", "order"]'),
        ("d.json", '{"1": "order", "0": "repair"}'),
    ],
)
def test_labels_may_stand_in_a_file(tmp_path, monkeypatch, name, content):
    (tmp_path / name).write_bytes(content.encode())
    assert names(tmp_path, f"{tmp_path}/{name}") == (("repair", "order"), (0, 1))
    monkeypatch.chdir(tmp_path)
    assert names(tmp_path, name) == (("repair", "order"), (0, 1))


@pytest.mark.parametrize(
    ("labels", "says"),
    [
        (["a", "a "], "task.labels = ['a', 'a ']: 'a' stands in it twice"),
        (["a", " "], "name 2 is empty"),
        ({"a": "b"}, "'a' must be a whole number, which stands for a class in the files"),
        ({"0": "a", "00": "b"}, "it must give each number one name"),
        ("nowhere.txt", "it is neither a list nor a file (looked for in"),
        (3, "it must be a list of names, numbers to names, or a file of names"),
        ([True, "a"], "task.labels.0 = true must be text"),
    ],
)
def test_labels_that_are_no_names_are_refused(tmp_path, labels, says):
    with pytest.raises(UserError) as caught:
        names(tmp_path, labels)
    assert says in str(caught.value)


def test_a_file_with_an_empty_line_among_its_names_is_refused(tmp_path):
    (tmp_path / "a.txt").write_text("repair\n\norder\n")
    with pytest.raises(UserError, match="name 2 is empty"):
        names(tmp_path, f"{tmp_path}/a.txt")


def test_as_many_numbers_as_labels():
    task = {"name": "text_classification", "labels": ["a", "b"], "label_ids": [1]}
    with pytest.raises(UserError, match="label_ids has 1 numbers for 2 labels"):
        parse_config({"task": task, "run_folder": "r", "model": "m", "data": {"train": "t"}}, source="x")
