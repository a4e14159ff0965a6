"""Tag schemes of entities: IOB1, IOB2 and BIOES recognised and written as IOB2."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Literal

from ftscale.base.errors import UserError

Scheme = Literal["IOB1", "IOB2", "BIOES"]
OUTSIDE = "O"
PREFIXES: dict[str, str] = {"IOB1": "BI", "IOB2": "BI", "BIOES": "BIES"}


def recognise(rows: Iterable[tuple[str, Sequence[str]]]) -> Scheme:
    """The scheme of tag sequences, each with the place it is from.

    BIOES where any tag begins with E- or S-; IOB1 where an entity begins with I- (in IOB1 B- only parts neighbours of
    one type); else IOB2. Raises UserError where some entities begin with I- and others with a B- that IOB1 forbids.
    """
    inside_start = begin_start = ""
    for place, tags in rows:
        previous = ""
        for number, tag in enumerate(tags, start=1):
            prefix, entity_type = split_tag(tag, place=place)
            if prefix in ("E", "S"):
                return "BIOES"
            if prefix == "I" and previous != entity_type:
                inside_start = inside_start or f"{place}: tag {number}, {tag!r}"
            if prefix == "B" and previous != entity_type:
                begin_start = begin_start or f"{place}: tag {number}, {tag!r}"
            previous = entity_type
    if inside_start and begin_start:
        raise UserError(
            f"task.scheme = 'auto' cannot tell the tags: an entity begins with I- ({inside_start}) as in IOB1, another "
            f"with B- ({begin_start}) as in IOB2; mend the tags, or set task.scheme: IOB1 to take both as beginnings."
        )
    return "IOB1" if inside_start else "IOB2"


def to_iob2(tags: Sequence[str], *, scheme: Scheme, place: str) -> list[str]:
    """The same entities in IOB2. Raises UserError for a sequence that the scheme does not allow, naming the tag."""
    result = []
    before = ("", "")  # prefix and type of the tag before
    for number, tag in enumerate((*tags, OUTSIDE), start=1):
        prefix, entity_type = split_tag(tag, place=place)
        if (prefix and prefix not in PREFIXES[scheme]) or not _may_follow(before, (prefix, entity_type), scheme):
            raise UserError(_impossible(tags, number, scheme=scheme, place=place))
        starts = prefix in ("B", "S") or (scheme == "IOB1" and before[1] != entity_type)
        result.append(f"{'B' if starts else 'I'}-{entity_type}" if prefix else OUTSIDE)
        before = (prefix, entity_type)
    return result[:-1]


def split_tag(tag: str, *, place: str) -> tuple[str, str]:
    """`B-PER` to ("B", "PER"), `O` to ("", ""). Raises UserError for what is no tag."""
    if tag == OUTSIDE:
        return "", ""
    prefix, dash, entity_type = tag.partition("-")
    if not dash or not entity_type or prefix not in PREFIXES["BIOES"]:
        raise UserError(f"{place}: tag {tag!r} must be O, or B-, I-, E- or S- and a type, e.g. B-PER; mend the row.")
    return prefix, entity_type


def complete_tags(tags: Iterable[str]) -> tuple[str, ...]:
    """O, and B- and I- of every type among IOB2 tags, sorted: a later row may have a longer entity of a known type."""
    types = {tag.partition("-")[2] for tag in tags} - {""}
    return tuple(sorted({OUTSIDE, *(f"{prefix}-{entity_type}" for entity_type in types for prefix in "BI")}))


def _may_follow(before: tuple[str, str], tag: tuple[str, str], scheme: Scheme) -> bool:
    prefix, entity_type = tag
    if scheme == "IOB1":
        return True
    if scheme == "IOB2":
        return prefix != "I" or before[1] == entity_type
    is_open = before[0] in ("B", "I")  # BIOES: an open entity must go on with its own I or E
    return (prefix in ("I", "E") and before[1] == entity_type) if is_open else prefix not in ("I", "E")


def _impossible(tags: Sequence[str], number: int, *, scheme: Scheme, place: str) -> str:
    before = repr(tags[number - 2]) if number > 1 else "the beginning"
    what = f"tag {number}, {tags[number - 1]!r}," if number <= len(tags) else "the end"
    return f"{place}: {what} after {before} is not possible in {scheme}; mend the tags, or set task.scheme."
