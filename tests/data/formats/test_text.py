"""Plain text."""

from __future__ import annotations


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
