"""The demo data set is what its data card says it is."""

import csv
import re
from collections import Counter, defaultdict
from itertools import pairwise
from pathlib import Path

import pytest

import ftscale.demo

FOLDER = Path(ftscale.demo.__file__).parent / "help_desk"
PER_CLASS = {"train": 40, "validation": 8, "test": 16}
LABELS = {
    "queue",
    "storage",
    "gpu",
    "network",
    "software",
    "account",
    "data_transfer",
    "billing",
}


def read(split: str) -> list[list[str]]:
    with open(FOLDER / f"{split}.csv", newline="", encoding="utf-8") as file:
        return list(csv.reader(file, strict=True))


def texts() -> list[str]:
    return [row[0] for split in PER_CLASS for row in read(split)[1:]]


def words(text: str) -> list[str]:
    return re.findall(r"[a-z0-9]+", text.lower())


def five_grams(text: str) -> set[tuple[str, ...]]:
    tokens = words(text)
    return {tuple(tokens[i : i + 5]) for i in range(len(tokens) - 4)}


@pytest.mark.parametrize("split", PER_CLASS)
def test_a_split_reads_as_csv_with_a_text_and_a_label_in_each_row(split: str) -> None:
    header, *rows = read(split)
    assert header == ["text", "label"]
    assert all(len(row) == 2 for row in rows)
    assert all(text == text.strip() and text for text, _ in rows)


@pytest.mark.parametrize("split", PER_CLASS)
def test_a_split_holds_every_class_equally_often(split: str) -> None:
    counts = Counter(label for _, label in read(split)[1:])
    assert counts == dict.fromkeys(LABELS, PER_CLASS[split])


@pytest.mark.parametrize("split", PER_CLASS)
def test_the_rows_of_a_split_are_not_sorted_by_class(split: str) -> None:
    labels = [label for _, label in read(split)[1:]]
    changes = sum(a != b for a, b in pairwise(labels))
    assert changes > len(labels) / 2


def test_there_are_at_least_500_messages() -> None:
    assert len(texts()) >= 500


def test_no_text_occurs_twice_even_without_case_and_punctuation() -> None:
    counts = Counter(" ".join(words(text)) for text in texts())
    assert [text for text, n in counts.items() if n > 1] == []


def test_no_two_texts_share_more_than_60_percent_of_their_word_five_grams() -> None:
    grams = [five_grams(text) for text in texts()]
    holders = defaultdict(list)
    for number, own in enumerate(grams):
        for gram in own:
            holders[gram].append(number)
    shared: Counter[tuple[int, int]] = Counter()
    for numbers in holders.values():
        for i, first in enumerate(numbers):
            for second in numbers[i + 1 :]:
                shared[first, second] += 1
    near = [pair for pair, n in shared.items() if n > 0.6 * min(len(grams[pair[0]]), len(grams[pair[1]]))]
    assert near == []


def test_every_file_is_ascii() -> None:
    for file in [*FOLDER.iterdir(), Path(ftscale.demo.__file__)]:
        assert file.read_bytes().isascii(), file.name


def test_every_text_has_between_3_and_80_words() -> None:
    assert [text for text in texts() if not 3 <= len(text.split()) <= 80] == []


def test_no_opening_of_four_words_is_shared_by_more_than_six_texts() -> None:
    openings = Counter(tuple(words(text)[:4]) for text in texts())
    assert [opening for opening, n in openings.items() if n > 6] == []


def test_no_text_holds_an_email_address() -> None:
    assert [text for text in texts() if re.search(r"\S@\S+\.\w", text)] == []
