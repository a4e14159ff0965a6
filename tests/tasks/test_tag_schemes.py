"""Tag schemes recognised and written as IOB2, and impossible sequences refused by name."""

from __future__ import annotations

import pytest

from ftscale.base.errors import UserError
from ftscale.tasks.tag_schemes import complete_tags, recognise, to_iob2

IOB2 = ["B-PER", "I-PER", "B-PER", "O", "B-LOC"]
SAME_ENTITIES = {
    "IOB2": IOB2,
    "IOB1": ["I-PER", "I-PER", "B-PER", "O", "I-LOC"],
    "BIOES": ["B-PER", "E-PER", "S-PER", "O", "S-LOC"],
}


@pytest.mark.parametrize(("scheme", "tags"), SAME_ENTITIES.items())
def test_a_scheme_is_recognised_and_gives_the_same_iob2(scheme, tags):
    assert recognise([("x:1", ["O"]), ("x:2", tags)]) == scheme
    assert to_iob2(tags, scheme=scheme, place="x:2") == IOB2


def test_neighbours_of_two_types_need_no_beginning_in_iob1():
    assert to_iob2(["I-PER", "I-LOC", "B-LOC", "I-LOC"], scheme="IOB1", place="") == [
        "B-PER",
        "B-LOC",
        "B-LOC",
        "I-LOC",
    ]


def test_a_longer_bioes_entity_keeps_its_inside():
    tags = ["B-PER", "I-PER", "E-PER", "B-PER", "E-PER"]
    assert to_iob2(tags, scheme="BIOES", place="") == ["B-PER", "I-PER", "I-PER", "B-PER", "I-PER"]


def test_a_mixture_of_iob1_and_iob2_is_refused_with_both_places():
    with pytest.raises(UserError, match=r"x:1: tag 1, 'I-PER'\).*x:2: tag 2, 'B-PER'"):
        recognise([("x:1", ["I-PER"]), ("x:2", ["O", "B-PER"])])


@pytest.mark.parametrize(
    ("scheme", "tags", "message"),
    [
        ("IOB2", ["O", "I-PER"], r"x:5: tag 2, 'I-PER', after 'O' is not possible in IOB2"),
        ("IOB2", ["I-PER"], r"tag 1, 'I-PER', after the beginning"),
        ("IOB2", ["B-PER", "I-LOC"], r"tag 2, 'I-LOC', after 'B-PER'"),
        ("IOB2", ["S-PER"], r"tag 1, 'S-PER', after the beginning is not possible in IOB2"),
        ("BIOES", ["B-PER", "O"], r"tag 2, 'O', after 'B-PER'"),
        ("BIOES", ["B-PER", "B-PER"], r"tag 2, 'B-PER', after 'B-PER'"),
        ("BIOES", ["O", "I-PER"], r"tag 2, 'I-PER', after 'O'"),
        ("BIOES", ["S-PER", "E-PER"], r"tag 2, 'E-PER', after 'S-PER'"),
        ("BIOES", ["B-PER", "E-LOC"], r"tag 2, 'E-LOC', after 'B-PER'"),
        ("BIOES", ["B-PER"], r"the end after 'B-PER'"),
    ],
)
def test_an_impossible_sequence_is_refused_by_place_and_tag(scheme, tags, message):
    with pytest.raises(UserError, match=message):
        to_iob2(tags, scheme=scheme, place="x:5")


@pytest.mark.parametrize("tag", ["PER", "B-", "X-PER", ""])
def test_what_is_no_tag_is_refused(tag):
    with pytest.raises(UserError, match=r"x:5: tag .* must be O, or B-, I-, E- or S- and a type"):
        recognise([("x:5", [tag])])


def test_known_types_get_both_tags():
    assert complete_tags(["B-GPE-LOC", "O"]) == ("B-GPE-LOC", "I-GPE-LOC", "O")
