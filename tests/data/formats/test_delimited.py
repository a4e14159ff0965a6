"""CSV and TSV."""

from __future__ import annotations


def test_csv_keeps_quoted_separators_quotes_and_line_breaks_and_counts_file_lines(tmp_path, read):
    path = tmp_path / "a.csv"
    path.write_bytes(b'text,label\r\n"one, ""two""",x\r\n"three\r\nfour",y\r\n\r\nfive,z\r\n\r\n')
    assert read(path) == [
        {"text": 'one, "two"', "label": "x", "_where": f"{path}:2"},
        {"text": "three\r\nfour", "label": "y", "_where": f"{path}:3"},
        {"text": "five", "label": "z", "_where": f"{path}:6"},
    ]


def test_tsv_takes_quotes_literally(tmp_path, read):
    path = tmp_path / "a.tsv"
    path.write_text('text\tlabel\n"to be\t1\nsay "hi", she said\t0\n')
    assert [(row["text"], row["label"]) for row in read(path)] == [('"to be', "1"), ('say "hi", she said', "0")]


def test_headerless_files_are_mapped_by_number_from_either_end(tmp_path, read):
    path = tmp_path / "a.csv"
    path.write_text("7,good film,1\n8,bad film,0\n")
    rows = read(path, header=False, columns={"text": 1, "label": -1})
    assert [(row["text"], row["label"], row["_where"]) for row in rows] == [
        ("good film", "1", f"{path}:1"),
        ("bad film", "0", f"{path}:2"),
    ]


def test_another_separator_can_be_set(tmp_path, read):
    path = tmp_path / "a.csv"
    path.write_text('text;label\n"a;b";1\n')
    assert read(path, separator=";") == [{"text": "a;b", "label": "1", "_where": f"{path}:2"}]


def test_a_row_with_too_few_or_too_many_fields_is_named_with_both_numbers(tmp_path, refused):
    path = tmp_path / "a.csv"
    path.write_text("text,label\nfine,1\nshort\n")
    assert f"{path}:3 has 1 field where the header has 2" in refused(path)
    path.write_text("text,label\nwell, well,1\n")
    assert f"{path}:2 has 3 fields where the header has 2" in refused(path)
    path.write_text("a,1\nb,1,2\n")
    message = refused(path, header=False, columns={"text": 0, "label": 1})
    assert f"{path}:2 has 3 fields where the first line has 2" in message


def test_a_lost_quote_is_refused_at_the_line_where_its_row_begins(tmp_path, refused):
    path = tmp_path / "a.csv"
    path.write_text('text,label\nfine,1\n"lost,1\nnext,0\n')
    assert f"{path}:3 is not CSV" in refused(path)


def test_a_field_longer_than_the_limit_of_the_csv_module_is_read(tmp_path, read):
    path = tmp_path / "a.csv"
    path.write_text("text,label\n" + "x" * 300_000 + ",1\n")
    assert len(read(path)[0]["text"]) == 300_000


def test_a_separator_of_several_characters_is_refused(tmp_path, refused):
    path = tmp_path / "a.csv"
    path.write_text("text||label\n")
    assert "data.train[0].separator = '||' must be one character" in refused(path, separator="||")


def test_empty_files_and_files_with_a_header_alone_are_refused(tmp_path, refused):
    path = tmp_path / "a.csv"
    path.write_text("")
    assert f"{str(path)!r} has no rows" in refused(path)
    path.write_text("text,label\n")
    assert f"{str(path)!r} has no rows" in refused(path)


def test_real_files_have_the_published_numbers_of_rows(shared, read):
    data = shared / "data"
    banking = read(data / "text_classification/banking77/train.csv", columns={"label": "category"})
    assert len(banking) == 10_003
    assert len({row["label"] for row in banking}) == 77
    assert banking[0] == {
        "text": "I am still waiting on my card?",
        "label": "card_arrival",
        "_where": f"{data}/text_classification/banking77/train.csv:2",
    }
    news = read(data / "text_classification/ag_news_7k/train.csv", header=False, columns={"text": 0, "label": 1})
    assert (len(news), {row["label"] for row in news}) == (5000, {"0", "1", "2", "3"})
    sst2 = read(data / "text_classification/sst2/train.tsv", header=False, columns={"text": 0, "label": 1})
    assert (len(sst2), {row["label"] for row in sst2}) == (6920, {"0", "1"})
    sick = read(
        data / "text_pair/sick/SICK_test_annotated.txt",  # CRLF
        ("text", "text_pair", "label"),
        format="tsv",
        columns={"text": "sentence_A", "text_pair": "sentence_B", "label": "entailment_judgment"},
    )
    assert (len(sick), {row["label"] for row in sick}) == (4927, {"NEUTRAL", "ENTAILMENT", "CONTRADICTION"})
    movies = read(data / "recommendation/ml-latest-small/movies.csv", ("title", "genres"))  # CRLF
    assert len(movies) == 9742
    assert movies[10] == {
        "title": "American President, The (1995)",
        "genres": "Comedy|Drama|Romance",
        "_where": f"{data}/recommendation/ml-latest-small/movies.csv:12",
    }
