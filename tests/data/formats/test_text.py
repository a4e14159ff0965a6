"""Plain text."""

from __future__ import annotations

import pytest

from ftscale.data.formats import text


def test_each_line_with_text_is_a_row_without_its_end(tmp_path, read):
    path = tmp_path / "a.txt"
    path.write_bytes(b"one\r\n\r\n  two \x0c\n \t\nthree")
    assert [(row["text"], row["_where"]) for row in read(path, ("text",))] == [
        ("one", f"{path}:1"),
        ("  two \x0c", f"{path}:3"),
        ("three", f"{path}:5"),
    ]


def test_one_column_can_play_two_parts(tmp_path, read):
    path = tmp_path / "a.txt"
    path.write_text("one\n")
    rows = read(path, ("source", "target"), columns={"source": "text", "target": "text"})
    assert rows == [{"source": "one", "target": "one", "_where": f"{path}:1"}]


def test_tiny_shakespeare_has_its_lines(shared, read):
    path = shared / "data/causal_text/tinyshakespeare/input.txt"
    rows = read(path, ("text",))
    assert (len(rows), rows[-1]["text"], rows[-1]["_where"]) == (32_777, "Whiles thou art waking.", f"{path}:40000")


LABEL_FIRST = r"(?P<label>\S+?):\S+ (?P<text>.+)"


def test_the_named_groups_of_a_pattern_are_columns(tmp_path, read):
    path = tmp_path / "a.txt"
    path.write_bytes("DESC:manner How d\u00e9j\u00e0 vu ?\r\n\nNUM:date When : now ?\n".encode("latin-1"))
    assert read(path, pattern=LABEL_FIRST, encoding="latin-1") == [
        {"text": "How d\u00e9j\u00e0 vu ?", "label": "DESC", "_where": f"{path}:1"},
        {"text": "When : now ?", "label": "NUM", "_where": f"{path}:3"},
    ]
    rows = read(path, pattern=LABEL_FIRST, encoding="latin-1", columns={"text": "label", "label": "text"})
    assert rows[1]["text"] == "NUM"


def test_a_pattern_matches_the_whole_line(tmp_path, refused):
    path = tmp_path / "a.txt"
    path.write_text("x one\nx one, two\n")
    assert f"{path}:2 is 'x one, two', which" in refused(path, pattern=r"(?P<label>\w+) (?P<text>\w+)")


def test_a_group_without_a_part_in_the_match_is_a_missing_value(tmp_path, read):
    path = tmp_path / "a.txt"
    path.write_text("[x] one\ntwo\n")
    rows = read(path, pattern=r"(?:\[(?P<label>\w+)\] )?(?P<text>.+)")
    assert [(row["text"], row["label"]) for row in rows] == [("one", "x"), ("two", None)]


@pytest.mark.parametrize(
    ("pattern", "words"),
    [
        (LABEL_FIRST, "a.txt:2 is 'no label here', which data.train[0].pattern = "),
        (LABEL_FIRST, "mend the line or the pattern, or set data.train[0].pattern: null where a line is a text"),
        ("(?P<text>.+", "pattern = '(?P<text>.+' is not a regular expression (missing ) at position 11); mend it."),
        (".+", "pattern = '.+' must have a named group for each column; write e.g. (?P<label>\\S+) (?P<text>.+)."),
        ("(?P<txt>.+)", "has no column for 'text', 'label'"),
    ],
)
def test_lines_and_patterns_that_do_not_fit_are_refused(tmp_path, refused, pattern, words):
    path = tmp_path / "a.txt"
    path.write_text("A:b first\nno label here\n")
    assert words in refused(path, pattern=pattern)


def test_a_pattern_that_tries_too_many_ways_is_stopped(tmp_path, refused, monkeypatch):
    monkeypatch.setattr(text, "MATCH_LIMIT_S", 0.05)
    path = tmp_path / "a.txt"
    path.write_text("a" * 60 + "\n")
    message = refused(path, ("text",), pattern="(?P<text>(a|a)+)b")
    assert f"{path}:1 takes more than 0.05 s to be matched with data.train[0].pattern" in message


def test_a_pattern_is_refused_where_it_is_not_used(tmp_path, refused):
    path = tmp_path / "a.csv"
    path.write_text("text,label\na,1\n")
    assert "data.train[0].pattern = '.+' is not used for" in refused(path, pattern=".+")
