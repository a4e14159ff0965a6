"""Classes as files write them: names, lists, vectors of 0 and 1, numbers, a column a class; and their one order."""

from __future__ import annotations

import json
import math
from itertools import permutations
from pathlib import Path

import pytest

from ftscale.base.errors import UserError
from ftscale.config.schema import SourceConfig
from ftscale.config.tasks.text_classification import TextClassificationSettings
from ftscale.config.tasks.token_classification import TokenClassificationSettings
from ftscale.data.sources import read_rows
from ftscale.tasks import build_task
from ftscale.tasks.labels import sorted_names
from ftscale.tasks.text_classification import TextClassification
from ftscale.tasks.token_classification import TokenClassification

LISTS = [["b", "a"], [], ["c"], ["a", "b", "c"]]


def several(**settings) -> TextClassification:
    return TextClassification(TextClassificationSettings(problem="multi_label", **settings))


def classes(task: TextClassification, rows: list[dict]) -> list[list[str]]:
    """The classes of each row as the task understands them."""
    if task.settings.labels is None:
        task = TextClassification(task.settings.model_copy(update=task.fit(rows)))
    return [[task.labels[number] for number in task._label(row)] for row in rows]


def _frame(tmp_path: Path, labels: list) -> list[list[dict]]:
    """Rows with these labels as pandas writes and our readers read them: CSV, JSON lines, Parquet."""
    pandas = pytest.importorskip("pandas")
    frame = pandas.DataFrame({"text": [f"row {number}" for number in range(len(labels))], "label": labels})
    frame.to_csv(tmp_path / "a.csv", index=False)
    frame.to_json(tmp_path / "a.jsonl", orient="records", lines=True)
    frame.to_parquet(tmp_path / "a.parquet")
    paths = [tmp_path / f"a.{suffix}" for suffix in ("csv", "jsonl", "parquet")]
    return [list(read_rows(SourceConfig(path=str(path)), roles=(("text", "label"),))) for path in paths]


def test_lists_that_pandas_wrote_are_the_classes_they_were(tmp_path):
    for rows in _frame(tmp_path, LISTS):
        assert classes(several(), rows) == [sorted(row) for row in LISTS]


def test_lists_that_numpy_wrote_are_the_classes_they_were(tmp_path):
    numpy = pytest.importorskip("numpy")
    for rows in _frame(tmp_path, [numpy.array(row, dtype=object) for row in LISTS]):
        assert classes(several(), rows) == [sorted(row) for row in LISTS]


@pytest.mark.parametrize("kind", [int, float, bool, str])
def test_vectors_of_0_and_1_are_read_by_the_names_in_task_labels(tmp_path, kind):
    vectors = [[1, 0, 1], [0, 0, 0], [0, 1, 0]]
    written = [[kind(value) for value in vector] for vector in vectors]
    for rows in _frame(tmp_path, written):
        assert classes(several(labels=["a", "b", "c"]), rows) == [["a", "c"], [], ["b"]]
        with pytest.raises(
            UserError, match="a vector of 3 zeros and ones; name their classes in task.labels, in this order"
        ):
            several().fit(rows)


@pytest.mark.parametrize("written", ["1,0,1", "[1 0 1]", "[1. 0. 1.]", "[1, 0, 1]", "(1, 0, 1)", "1.0,0.0,1.0"])
def test_a_vector_in_a_cell_is_read_however_it_is_written(written):
    assert classes(several(labels=["a", "b", "c"]), [{"label": written}]) == [["a", "c"]]


def test_a_vector_of_another_length_is_refused_with_its_row():
    with pytest.raises(UserError, match=r"x:3: label has 4 numbers of 0 and 1 for the 3 classes of task\.labels"):
        classes(several(labels=["a", "b", "c"]), [{"label": [1, 0, 0, 1], "_where": "x:3"}])


def test_classes_that_are_called_0_and_1_stay_names():
    rows = [{"label": [0]}, {"label": ["1", "0"]}]
    assert classes(several(), rows) == [["0"], ["0", "1"]]
    assert classes(several(labels=["1", "0"]), rows) == [["0"], ["1", "0"]]


def test_numbers_of_classes_are_read_by_task_labels():
    rows = [{"label": [2, 0]}, {"label": "1"}, {"label": [3.0]}]
    assert classes(several(labels=["a", "b", "c", "d"]), rows) == [["a", "c"], ["b"], ["d"]]


@pytest.mark.parametrize("written", ["[a, b]", "['a', 'b'", "a, b"])
def test_a_cell_that_only_looks_like_a_list_is_no_class_with_a_bracket(written):
    if written == "a, b":
        assert classes(several(), [{"label": written}]) == [["a", "b"]]
    elif written == "[a, b]":
        with pytest.raises(UserError, match="looks like a list but cannot be read as one; write it as JSON"):
            classes(several(), [{"label": written}])


def test_a_column_a_class_is_a_vector(tmp_path):
    (tmp_path / "a.csv").write_text("toxic,text,obscene,threat\n1,x,0,1\n0,y,0,0\n0.0,z,1.0,0\n")
    task = several(labels=["toxic", "obscene", "threat"])
    rows = list(read_rows(SourceConfig(path=str(tmp_path / "a.csv")), roles=task.settings.roles))
    assert classes(task, rows) == [["toxic", "threat"], [], ["obscene"]]
    (tmp_path / "a.csv").write_text("toxic,text,obscene,threat\n1,x,2,1\n")
    with pytest.raises(UserError, match=r"a\.csv:2: obscene = '2' must be 0 or 1"):
        classes(task, list(read_rows(SourceConfig(path=str(tmp_path / "a.csv")), roles=task.settings.roles)))


@pytest.mark.parametrize("label", [["a"], "['a', 'b']", {"a": 1}])
def test_a_list_is_no_class_where_there_is_one_a_row(label):
    task = TextClassification(TextClassificationSettings())
    with pytest.raises(UserError, match="is a list; mend the row, or set task.problem: multi_label"):
        task.fit([{"label": label}, {"label": "x"}])


@pytest.mark.parametrize("name", ["text_classification", "image_classification"])
@pytest.mark.parametrize(
    ("labels", "written", "expected"),
    [
        (["repair", "order"], [0, "1", 1.0, "1.0"], [0, 1, 1, 1]),
        ({0: "repair", 1: "order"}, [1, "0"], [1, 0]),
        ({3: "order", 1: "repair"}, [3, 1, "repair"], [1, 0, 0]),
        ({"0": "repair", "1": "order"}, [1, "order"], [1, 1]),
        (["2", "1"], ["2", 1], [0, 1]),  # names that are numbers are names
    ],
)
def test_task_labels_may_name_the_numbers_that_files_write(name, labels, written, expected):
    from ftscale.config.schema import Config
    from ftscale.tasks.labels import class_id, class_name

    about = {"name": name, "labels": labels}
    task = build_task(Config(task=about, run_folder="run", model="model", data={"train": "rows.csv"}).task)
    rows = [{"label": value} for value in written]
    found = [class_id(row, "label", class_name(row, "label"), labels=task.labels, ids=task.ids) for row in rows]
    assert found == expected


def test_classes_of_the_rows_have_no_numbers_of_their_own():
    task = TextClassification(TextClassificationSettings())
    task = TextClassification(task.settings.model_copy(update=task.fit([{"label": "wet"}, {"label": "dry"}])))
    with pytest.raises(UserError, match="label = '1' is not known"):
        task._label({"label": 1})
    again = TextClassificationSettings.model_validate(task.settings.model_dump())
    assert again == task.settings


@pytest.mark.parametrize("tags", [[0, 1, 2], ["0", "1", "2"], [0.0, 1.0, 2.0], "[0, 1, 2]", "[0 1 2]"])
def test_tags_may_be_the_numbers_of_task_labels(tags):
    task = TokenClassification(TokenClassificationSettings(labels=["O", "B-PER", "I-PER"]))
    assert task._tags({"tags": tags}) == ["O", "B-PER", "I-PER"]
    assert task.fit([{"tags": tags}]) == {"scheme": "IOB2", "labels": ("O", "B-PER", "I-PER")}


def test_tags_that_are_numbers_need_names():
    with pytest.raises(UserError, match=r"x:1: tags = \[0, 3\] are numbers; name the tags in their order in task"):
        TokenClassification(TokenClassificationSettings()).fit([{"tags": [0, 3], "_where": "x:1"}])
    task = TokenClassification(TokenClassificationSettings(labels=["O", "B-PER"]))
    with pytest.raises(UserError, match=r"x:1: tag 3 is none of the numbers 0 to 1 of task\.labels"):
        task._tags({"tags": [0, 3], "_where": "x:1"})


@pytest.mark.parametrize("label", [None, math.nan, "", [None], [math.nan]])
def test_a_missing_label_is_no_class(label):
    task = TextClassification(TextClassificationSettings(labels=["a", "b"]))
    with pytest.raises(UserError, match="x:1: label"):
        task._label({"label": label, "_where": "x:1"})


def test_written_lists_are_read_back_as_python_json_and_numpy_write_them():
    numpy = pytest.importorskip("numpy")
    from ftscale.tasks.written_lists import parse_list

    names = ["it's", 'a "b"', "c, d", "\u00e9"]
    assert parse_list(str(names)) == parse_list(json.dumps(names)) == parse_list(str(numpy.array(names))) == names
    assert parse_list(repr(numpy.array(names, dtype=object))) == names
    assert parse_list(str(numpy.array([1.0, 0.5]))) == [1.0, 0.5]
    assert parse_list(str({"b", "a"})) == parse_list(str(frozenset("ab"))) == parse_list("('a', 'b')") == ["a", "b"]
    assert parse_list("[]") == []
    for text in ("a", "[a, b]", "[a", "", "('a')", "{'a': 1}", "[" * 5000 + "]" * 5000):
        assert parse_list(text) is None, text[:20]


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (("nan", "3", "1", "2"), ("1", "2", "3", "nan")),
        (("NaN", "-nan", "10", "9"), ("-nan", "10", "9", "NaN")),
        (("10", "9", "-1"), ("-1", "9", "10")),
        (("1", "1.0", "01"), ("01", "1", "1.0")),
        (("inf", "-inf", "5", "infinity"), ("-inf", "5", "inf", "infinity")),
        (("10", "9", "a"), ("10", "9", "a")),
        (("0", "-0", "0.0"), ("-0", "0", "0.0")),
    ],
)
def test_classes_have_one_order(names, expected):
    assert {sorted_names(order) for order in permutations(names)} == {expected}


def test_a_set_of_any_hash_seed_is_put_in_one_order():
    class InsertionOrder(str):
        """A name whose hash the test chooses, as PYTHONHASHSEED does."""

        __slots__ = ("number",)

        def __hash__(self) -> int:
            return self.number

    orders = set()
    for numbers in permutations(range(4)):
        names = []
        for name, number in zip(("nan", "3", "1", "2"), numbers, strict=True):
            made = InsertionOrder(name)
            made.number = number
            names.append(made)
        orders.add(tuple(map(str, sorted_names(names))))
    assert orders == {("1", "2", "3", "nan")}
