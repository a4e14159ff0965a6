"""Files opened as bytes: pipes, and compressed files that hold more than anybody wrote."""

from __future__ import annotations

import bz2
import gzip
import json
import lzma
import os
from pathlib import Path

import pytest

from ftscale.base.errors import UserError
from ftscale.config.schema import SourceConfig
from ftscale.data import sources, values
from ftscale.data.formats import lines, packed
from ftscale.data.sources import read_rows

TEXT = (("text",),)


def rows(path: Path | str, *, roles=TEXT, **source) -> list[dict]:
    return list(read_rows(SourceConfig(path=str(path), **source), roles=roles))


@pytest.mark.parametrize("name", ["rows.csv", "rows.jsonl", "rows.json.gz", "rows.parquet", "rows", "train-*.csv"])
def test_a_pipe_is_refused_and_not_waited_for(tmp_path: Path, name: str):
    os.mkfifo(tmp_path / name)
    with pytest.raises(UserError, match=r"data\.train\[0\]\.path = '.*' is a pipe or a device, .*; write its content"):
        rows(tmp_path / name)


def test_a_pipe_as_one_of_two_parallel_files_or_as_the_labels_of_images_is_refused(tmp_path: Path):
    (tmp_path / "a.de").write_text("eins\n")
    os.mkfifo(tmp_path / "a.en")
    with pytest.raises(UserError, match=r"a\.en' is a pipe or a device"):
        rows(f"{tmp_path}/a.de,{tmp_path}/a.en", roles=(("source", "target"),))
    (tmp_path / "images-idx3-ubyte").write_bytes(bytes.fromhex("00000803 00000001 00000001 00000001 07"))
    os.mkfifo(tmp_path / "labels-idx1-ubyte")
    with pytest.raises(UserError, match=r"labels-idx1-ubyte' is a pipe or a device"):
        rows(tmp_path / "images-idx3-ubyte", roles=(("image", "label"),))


def test_the_size_that_an_idx_file_claims_for_an_image_is_not_reserved(tmp_path: Path):
    (tmp_path / "images-idx3-ubyte").write_bytes(bytes.fromhex("00000803 00000001 ffffffff ffffffff 07"))
    with pytest.raises(UserError, match="has images of 4294967295 x 4294967295 pixels, and 16777216 are the most"):
        rows(tmp_path / "images-idx3-ubyte", roles=(("image",),))


@pytest.mark.parametrize(("suffix", "pack"), [("gz", gzip.compress), ("bz2", bz2.compress), ("xz", lzma.compress)])
@pytest.mark.parametrize("form", ["csv", "jsonl", "json", "text"])
def test_a_compressed_bomb_is_refused_while_it_is_unpacked(
    tmp_path: Path, suffix: str, pack, form: str, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(packed, "MOST_UNPACKED", 2**20)
    ending = "txt" if form == "text" else form
    text = {"csv": "text\n", "json": "["}.get(form, "")
    word = "a" * 1000
    line = {"jsonl": f'{{"text": "{word}"}}\n', "json": f'{{"text": "{word}"}},'}.get(form, f"{word}\n")
    content = pack((text + line * (3 * 2**20 // len(line))).encode())
    assert len(content) < 16_000
    path = tmp_path / f"rows.{ending}.{suffix}"
    path.write_bytes(content)
    with pytest.raises(UserError) as caught:
        rows(path)
    assert str(caught.value) == (
        f"data.train[0].path: {path} unpacks to more than 200 times its size and 1048576 bytes; if that is right, "
        "unpack it, and name the file inside."
    )


def test_a_compressed_file_of_usual_content_is_read_to_its_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(packed, "MOST_UNPACKED", 1000)
    texts = [f"{number} {number * number}" for number in range(5000)]
    (tmp_path / "rows.txt.gz").write_bytes(gzip.compress("\n".join(texts).encode()))
    assert [row["text"] for row in rows(tmp_path / "rows.txt.gz")] == texts


@pytest.mark.parametrize("name", ["rows.csv", "rows.jsonl", "rows.txt", "rows.csv.gz"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-16"])
def test_a_line_beyond_the_limit_is_refused_by_its_number(
    tmp_path: Path, name: str, encoding: str, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(lines, "LINE_LIMIT", 1000)
    first = '{"text": "short"}' if "jsonl" in name else "text"
    content = f"{first}\n{'x' * 1001}\n".encode(encoding)
    (tmp_path / name).write_bytes(gzip.compress(content) if name.endswith("gz") else content)
    with pytest.raises(UserError, match=rf"{name}:2 has more than the 1000 bytes that a line may have; split it"):
        rows(tmp_path / name, encoding=encoding)


@pytest.mark.parametrize("over", [0, 1])
@pytest.mark.parametrize("form", ["csv", "jsonl", "json", "chat"])
def test_a_text_that_no_tokenizer_takes_at_once_is_refused_by_its_row(
    tmp_path: Path, form: str, over: int, monkeypatch: pytest.MonkeyPatch
):
    for module in (values, sources):
        monkeypatch.setattr(module, "MOST_TEXT", 1000)
    text = "x" * (1000 + over)
    path = tmp_path / f"rows.{'jsonl' if form == 'chat' else form}"
    roles = (("messages",),) if form == "chat" else TEXT
    if form == "csv":
        path.write_text(f"text\n{text}\n")
    elif form == "chat":
        turns = [{"role": "user", "content": text[:-10]}, {"role": "assistant", "content": text[-10:]}]
        characters = len("roleuserrolecontentassistantcontent")
        turns[0]["content"] = turns[0]["content"][characters:]
        path.write_text(json.dumps({"messages": turns}) + "\n")
    else:
        path.write_text(json.dumps([{"text": text}] if form == "json" else {"text": text}))
    if not over:
        assert len(rows(path, roles=roles)) == 1
        return
    with pytest.raises(UserError, match="has more than the 1000 characters that the text of one row may have"):
        rows(path, roles=roles)


@pytest.mark.parametrize("value", ["1" * 5000, "[" * 100_000, '{"a":' * 100_000], ids=["digits", "lists", "objects"])
@pytest.mark.parametrize("form", ["json", "jsonl"])
def test_json_that_python_does_not_read_is_refused_by_its_place(tmp_path: Path, form: str, value: str):
    path = tmp_path / f"rows.{form}"
    path.write_text(f'[{{"text": {value}}}]' if form == "json" else f'{{"text": {value}}}\n')
    where = str(path) if form == "json" else f"{path}:1"
    why = "a number in it has too many digits|it is nested too deeply"
    with pytest.raises(UserError, match=rf"{where} is not (one JSON value|JSON) \(({why})\); mend"):
        rows(path)
