"""Parallel text."""

from __future__ import annotations

import gzip
import random

import pytest

ROLES = ("source", "target")


@pytest.mark.parametrize(
    "written", ["{folder}/a.{{de,en}}", "{folder}/a.de,{folder}/a.en", "{folder}/a.de, {folder}/a.en"]
)
def test_two_files_are_named_by_a_comma_or_by_braces(tmp_path, read, written):
    (tmp_path / "a.de").write_text("eins\n\nzwei, drei\n\n")
    (tmp_path / "a.en").write_text("one\r\n\r\ntwo, three\r\n")
    assert read(written.format(folder=tmp_path), ROLES) == [
        {"source": "eins", "target": "one", "_where": f"{tmp_path}/a.de:1"},
        {"source": "zwei, drei", "target": "two, three", "_where": f"{tmp_path}/a.de:3"},
    ]


def test_files_of_unequal_length_are_refused_at_the_first_lone_line(tmp_path, refused):
    (tmp_path / "a.de").write_text("eins\nzwei\n")
    (tmp_path / "a.en").write_text("one\n")
    assert f"{tmp_path}/a.de:2 has no counterpart in {tmp_path}/a.en" in refused(f"{tmp_path}/a.{{de,en}}", ROLES)
    assert f"{tmp_path}/a.de:2 has no counterpart in {tmp_path}/a.en" in refused(f"{tmp_path}/a.{{en,de}}", ROLES)


def test_a_missing_half_is_refused_with_the_nearest_name(tmp_path, refused):
    (tmp_path / "a.de").write_text("eins\n")
    message = refused(f"{tmp_path}/a.{{de,en}}", ROLES)
    assert f"'{tmp_path}/a.en' does not exist; did you mean '{tmp_path}/a.de'?" in message


@pytest.mark.parametrize("damaged", ["de", "en"])
def test_of_two_files_the_damaged_one_is_named(tmp_path, refused, damaged):
    noise = random.Random(0)  # so that it does not compress to next to nothing
    whole = gzip.compress("".join(f"line {noise.random()}\n" for _ in range(3000)).encode())
    for language in ("de", "en"):
        (tmp_path / f"a.{language}.gz").write_bytes(whole[:-100] if language == damaged else whole)
    assert f"{tmp_path}/a.{damaged}.gz is damaged" in refused(f"{tmp_path}/a.{{de,en}}.gz", ROLES)


def test_multi30k_has_its_pairs(shared, read):
    rows = read(f"{shared}/data/translation/multi30k_de-en/train.{{de,en}}.gz", ROLES)
    assert len(rows) == 29_000
    assert rows[0]["source"] == "Zwei junge wei\u00dfe M\u00e4nner sind im Freien in der N\u00e4he vieler B\u00fcsche."
    assert rows[0]["target"] == "Two young, White males are outside near many bushes."
