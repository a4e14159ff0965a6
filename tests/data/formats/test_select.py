"""Columns and roles."""

from __future__ import annotations

import pytest

from ftscale.config.schema import SourceConfig
from ftscale.data.formats.select import role_problems

PAIR, SINGLE = ("text", "text_pair", "label"), ("text", "label")


def _csv(folder, content: str) -> str:
    path = folder / "a.csv"
    path.write_text(content)
    return str(path)


def test_the_first_alternative_that_is_there_whole_is_given_and_the_rest_dropped(tmp_path, read):
    path = _csv(tmp_path, "id,label,text,text_pair\n1,x,a,b\n")
    assert read(path, PAIR, SINGLE) == [{"text": "a", "text_pair": "b", "label": "x", "_where": f"{path}:2"}]
    assert read(path, SINGLE, PAIR) == [{"text": "a", "label": "x", "_where": f"{path}:2"}]


def test_mapped_columns_are_kept_beside_those_of_the_task(tmp_path, read):
    path = _csv(tmp_path, "id,label,text\n1,x,a\n")
    assert read(path, SINGLE, columns={"group": "id"})[0]["group"] == "1"


def test_an_alternative_that_uses_the_mapping_goes_before_one_that_does_not(tmp_path, read):
    path = _csv(tmp_path, "text,q,a\nwhole,why,so\n")
    rows = read(path, ("text",), ("prompt", "completion"), columns={"prompt": "q", "completion": "a"})
    assert rows == [{"prompt": "why", "completion": "so", "_where": f"{path}:2"}]


def test_a_mapped_column_wins_over_one_that_has_the_name_of_the_role(tmp_path, read):
    path = _csv(tmp_path, "text,label,gold\na,0,1\n")
    assert read(path, columns={"label": "gold"})[0]["label"] == "1"


def test_labels_may_be_absent_where_none_are_needed_even_mapped_ones(tmp_path, read):
    path = _csv(tmp_path, "text\na\n")
    rows = read(path, PAIR, SINGLE, absent={"label"}, columns={"label": "category"})
    assert rows == [{"text": "a", "_where": f"{path}:2"}]
    path = _csv(tmp_path, "text,label\na,1\n")
    assert read(path, absent={"label"})[0]["label"] == "1"


@pytest.mark.parametrize(
    ("header", "settings", "words"),
    [
        ("text,labels", {}, "no column for 'label'"),
        ("text,labels", {}, "it has the columns 'text', 'labels'; set data.train[0].columns={label: labels}."),
        ("text,labels", {}, "the task needs text + label"),
        ("text;label", {}, "set data.train[0].separator if these are several columns"),
        ("text,label", {"columns": {"label": "lbel"}}, "data.train[0].columns.label = 'lbel' is not a column of"),
        ("text,label", {"columns": {"label": 2}}, "data.train[0].columns.label = 2 must be below 2"),
        ("a,b", {"header": False}, "has 2 columns without names; set data.train[0].columns={text: 0, label: 1}."),
        ("text,label,label", {}, "has 2 columns called 'label'; choose one by its number"),
    ],
)
def test_columns_that_do_not_fit_are_refused_with_those_there_are(tmp_path, refused, header, settings, words):
    marks = sum(header.count(mark) for mark in ",")
    assert words in refused(_csv(tmp_path, header + "\na" + ",1" * marks + "\n"), **settings)


def test_a_number_names_no_column_of_json(tmp_path, refused):
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": "a", "label": 1}\n')
    assert "data.train[0].columns.text = 0 must be a name" in refused(path, columns={"text": 0})


@pytest.mark.parametrize(
    ("columns", "roles", "says"),
    [
        (
            {"text": "a", "text_b": "b"},
            (PAIR, SINGLE),
            "columns.text_b is no column of the task, which reads text, text_pair, label; did you mean text_pair?",
        ),
        (
            {"lbel": "l"},
            (SINGLE,),
            "columns.lbel is no column of the task, which reads text, label; did you mean label?",
        ),
        (
            {"tokens": "w"},
            (("words", "tags"),),
            "columns.tokens is no column of the task, which reads words, tags;",
        ),
        (
            {"prompt": "q", "text": "t"},
            (("prompt", "completion"), ("text",)),
            "columns maps prompt, text, which the task never reads together (it reads prompt + completion or text)",
        ),
    ],
)
def test_names_that_the_task_never_reads_are_refused_with_the_nearest(columns, roles, says):
    [problem] = role_problems(SourceConfig(path="a", columns=columns), roles=roles, setting="data.train[0]")
    assert problem.startswith(f"data.train[0].{says}")


def test_columns_that_the_task_or_another_setting_reads_are_no_problem():
    every = SourceConfig(path="a", columns={"text": 0, "text_pair": 1}, set={"label": "x"})
    assert role_problems(every, roles=(PAIR, SINGLE), setting="x") == []
    group = SourceConfig(path="a", columns={"group": "id"})
    assert role_problems(group, roles=(SINGLE,), setting="x", also=["group"]) == []


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        (
            {"set": {"labels": "x"}},
            "x.set.labels is no column of the task, which reads text, label; did you mean label?",
        ),
        (
            {"set": {"label": "x"}, "columns": {"label": "y"}},
            "x.set.label and x.columns.label both say what label is; leave one of them out.",
        ),
        (
            {"drop": ["unreadable"]},
            "x.drop = unreadable is for images, of which the task reads none (it reads text, label); leave it out.",
        ),
    ],
)
def test_constants_and_kinds_of_rows_that_do_not_fit_the_task_are_refused(settings, says):
    assert role_problems(SourceConfig(path="a", **settings), roles=(SINGLE,), setting="x") == [says]
