from __future__ import annotations

import json
import os
import re
from pathlib import Path

import pytest

from ftscale.base.sealed import DamagedError, line_of, read_json, read_lines, sealed, unsealed, write_json

VALUE = {"status": "completed", "steps": 3, "metrics": {"loss": 0.25, "accuracy": None}, "files": {"a": [1, "ff"]}}


def test_every_flipped_bit_is_refused_or_leaves_the_content_as_it_was():
    text = json.dumps(sealed(VALUE), indent=1).encode()
    accepted = 0
    for bit in range(8 * len(text)):
        flipped = bytearray(text)
        flipped[bit // 8] ^= 1 << bit % 8
        try:
            assert unsealed(bytes(flipped), needs_hash=True) == VALUE
            accepted += 1
        except DamagedError:
            continue
    assert accepted < 8 * len(text) / 50  # blanks that became other blanks


@pytest.mark.parametrize(
    ("text", "why"),
    [
        (b"", "it is torn"),
        (b'{"a": ', "it is torn"),
        (b"\xff\xfe", "it is torn"),
        (b"[" * 100_000, "it is torn"),
        (b'{"a": 1' + b"0" * 5000 + b"}", "it is torn"),
        (b'{"a": -1' + b"0" * 309 + b"}", "it is torn"),
        (b"[1]", "it holds no object"),
        (b"null", "it holds no object"),
        (b'{"a": 1, "hash": 5}', "it has other content than when it was written"),
        (b"{}", "it has no hash of its own"),
    ],
)
def test_what_else_may_stand_in_a_file_is_damage(text: bytes, why: str):
    with pytest.raises(DamagedError, match=why):
        unsealed(text, needs_hash=True)


def test_a_folder_in_the_place_of_a_file_is_damage_and_nothing_there_is_not(tmp_path: Path):
    with pytest.raises(DamagedError, match="cannot be read"):
        read_json(tmp_path)
    with pytest.raises(FileNotFoundError):
        read_json(tmp_path / "none")


def test_numbers_that_are_not_finite_become_null_and_the_hash_is_of_what_is_read(tmp_path: Path):
    write_json(tmp_path / "a.json", {"a": float("nan"), "b": [float("inf"), (1, 2.5)], "c": {"d": -float("inf")}})
    assert read_json(tmp_path / "a.json") == {"a": None, "b": [None, [1, 2.5]], "c": {"d": None}}


def test_damaged_lines_are_counted_and_a_torn_last_one_is_not(tmp_path: Path):
    path = tmp_path / "lines.jsonl"
    good = [line_of({"step": step}) for step in range(4)]
    good[1] = good[1].replace('"step": 1', '"step": 3')
    path.write_bytes("".join(good).encode() + b"\xff\n[1]\n" + b'{"step": 4')
    assert read_lines(path) == ([{"step": 0}, {"step": 2}, {"step": 3}], 3)
    assert read_lines(tmp_path / "none") == ([], 0)


def test_a_file_is_on_the_disk_before_it_has_its_name_and_its_name_before_the_call_returns(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    done: list[tuple[str, str]] = []
    fsync, replace = os.fsync, os.replace
    where = lambda descriptor: os.path.basename(os.readlink(f"/proc/self/fd/{descriptor}"))  # noqa: E731
    monkeypatch.setattr(os, "fsync", lambda number: (done.append(("sync", where(number))), fsync(number)))
    monkeypatch.setattr(os, "replace", lambda *names: (done.append(("name", Path(names[1]).name)), replace(*names)))
    write_json(tmp_path / "run.json", {"run_id": "a"})
    partial = done[0][1]
    assert re.fullmatch(r"\.run\.json\.[0-9a-f]{16}\.partial", partial)
    assert done == [("sync", partial), ("name", "run.json"), ("sync", tmp_path.name)]
