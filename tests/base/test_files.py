"""What is written where others may have put links, and what is deleted."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from ftscale.base.files import (
    follow_umask,
    open_new,
    open_to_append,
    partial_path,
    remove,
    remove_partials,
    without_link,
)
from ftscale.base.sealed import write_text


@pytest.fixture
def victim(tmp_path: Path) -> Path:
    path = tmp_path / "bashrc"
    path.write_text("mine\n")
    return path


def test_a_new_file_is_none_that_a_link_leads_to(victim: Path, tmp_path: Path):
    (tmp_path / "link").symlink_to(victim)
    with pytest.raises(FileExistsError):
        open_new(tmp_path / "link")
    (tmp_path / "dangling").symlink_to(tmp_path / "made")
    with pytest.raises(FileExistsError):
        open_new(tmp_path / "dangling")
    assert not (tmp_path / "made").exists()
    assert victim.read_text() == "mine\n"


@pytest.mark.parametrize("make", [lambda path, victim: path.symlink_to(victim), lambda path, victim: os.mkfifo(path)])
def test_lines_are_never_written_through_a_link_or_into_a_pipe(make, victim: Path, tmp_path: Path):
    path = tmp_path / "metrics.jsonl"
    make(path, victim)
    for line in ("one\n", "two\n"):
        with open_to_append(path) as file:
            file.write(line)
    assert path.read_text() == "one\ntwo\n"
    assert not path.is_symlink()
    assert victim.read_text() == "mine\n"


def test_a_file_replaces_a_link_in_its_place(victim: Path, tmp_path: Path):
    path = tmp_path / "run.json"
    path.symlink_to(victim)
    write_text(path, "{}", mode=0o600)
    assert (path.read_text(), victim.read_text()) == ("{}", "mine\n")
    assert path.stat().st_mode & 0o777 == 0o600
    assert sorted(item.name for item in tmp_path.iterdir()) == ["bashrc", "run.json"]


def test_a_file_that_cannot_be_written_leaves_nothing_behind(tmp_path: Path):
    (tmp_path / "run.json").mkdir()
    with pytest.raises(IsADirectoryError):
        write_text(tmp_path / "run.json", "{}")
    assert [item.name for item in tmp_path.iterdir()] == ["run.json"]


def test_of_a_link_the_link_alone_is_deleted(victim: Path, tmp_path: Path):
    folder, link = tmp_path / "folder", tmp_path / "link"
    folder.mkdir()
    (folder / "inside").symlink_to(victim)
    link.symlink_to(folder)
    remove(link)
    assert (folder / "inside").is_symlink()
    remove(folder)
    remove(folder)
    assert [item.name for item in tmp_path.iterdir()] == ["bashrc"]
    assert without_link(victim).read_text() == "mine\n"


def test_what_killed_writers_left_goes_and_nothing_else(tmp_path: Path):
    kept = tmp_path / "model"
    names = {partial_path(kept).name for _ in range(100)}
    assert len(names) == 100
    for path in (partial_path(kept), partial_path(tmp_path / "other")):
        path.mkdir()
    remove_partials(kept)
    assert [item.name.split(".")[1] for item in tmp_path.iterdir()] == ["other"]


@pytest.mark.parametrize(("mask", "mode"), [(0o022, 0o644), (0o002, 0o664), (0o077, 0o600)])
def test_files_that_others_made_private_have_the_permissions_of_those_around_them(tmp_path: Path, mask: int, mode: int):
    (tmp_path / "below").mkdir()
    paths = [tmp_path / "weights", tmp_path / "below/config", tmp_path / "wide"]
    for path, made in zip(paths, (0o600, 0o600, 0o666), strict=True):
        path.touch()
        path.chmod(made)
    before = os.umask(mask)
    try:
        follow_umask(tmp_path)
    finally:
        os.umask(before)
    assert [path.stat().st_mode & 0o777 for path in paths] == [mode] * 3
    assert len(list(tmp_path.rglob("*"))) == 4
