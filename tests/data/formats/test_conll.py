"""CoNLL."""

from __future__ import annotations

import pytest

ROLES = ("words", "tags")
CONTENT = """-DOCSTART- -X- O O

# sentence 1
EU NNP I-NP I-ORG
rejects  VBZ\tI-VP O


Peter NNP I-NP I-PER
10\u00a0000 CD I-NP O
"""


def test_words_stand_first_tags_last_and_documents_comments_and_blank_lines_divide(tmp_path, read):
    path = tmp_path / "a.conll"
    path.write_text(CONTENT)
    assert read(path, ROLES, comment="#") == [
        {"words": ["EU", "rejects"], "tags": ["I-ORG", "O"], "_where": f"{path}:4"},
        {"words": ["Peter", "10\u00a0000"], "tags": ["I-PER", "O"], "_where": f"{path}:8"},
    ]


def test_other_columns_are_chosen_by_number(tmp_path, read):
    path = tmp_path / "a.iob"
    path.write_text(CONTENT)
    row = read(path, ROLES, comment="#", columns={"tags": 2, "pos": 1})[0]
    assert (row["tags"], row["pos"]) == (["I-NP", "I-VP"], ["NNP", "VBZ"])


def test_a_separator_keeps_white_space_inside_words(tmp_path, read):
    path = tmp_path / "a.bio"
    path.write_text("New York\tB-LOC\n.\tO\n")
    assert read(path, ROLES, separator="\t")[0]["words"] == ["New York", "."]


def test_words_alone_will_do_where_no_tags_are_needed(tmp_path, read, refused):
    path = tmp_path / "a.conll"
    path.write_text("EU\nrejects\n\nPeter\n")
    assert read(path, ROLES, absent={"tags"}) == [
        {"words": ["EU", "rejects"], "_where": f"{path}:1"},
        {"words": ["Peter"], "_where": f"{path}:4"},
    ]
    assert "has no column for 'tags'" in refused(path, ROLES)


def test_a_line_with_fewer_fields_is_refused_with_its_number(tmp_path, refused):
    path = tmp_path / "a.conll"
    path.write_text("EU NNP B-ORG\nrejects O\n")
    assert f"{path}:2 has 2 fields where the first word has 3" in refused(path, ROLES)


@pytest.mark.parametrize(("name", "sentences"), [("train", 5424), ("devel", 923), ("test", 940)])
def test_ncbi_disease_has_its_sentences(shared, read, name, sentences):
    rows = read(shared / f"data/ner/ncbi_disease/{name}.tsv", ROLES, format="conll")
    assert len(rows) == sentences
    assert {tag for row in rows for tag in row["tags"]} == {"O", "B-Disease", "I-Disease"}
    assert all(len(row["words"]) == len(row["tags"]) for row in rows)
