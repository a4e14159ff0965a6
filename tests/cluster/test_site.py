"""Site settings: where they come from, and what is wrong with them."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from ftscale.base.errors import UserError
from ftscale.cluster.site import Site, load_site


@pytest.fixture(autouse=True)
def _places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "home/.config/ftscale").mkdir(parents=True)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")


def write(path: str, text: str) -> None:
    Path(path).expanduser().write_text(text)


def test_without_files_the_defaults_hold():
    assert load_site() == Site()


def test_a_repositorys_settings_are_laid_over_ones_own():
    write("~/.config/ftscale/cluster.yaml", "partition: gpu\naccount: physics\ntime: 2-00:00:00\n")
    write("cluster.yaml", "partition: big\nsetup: [module load cuda]\n")
    site = load_site()
    assert (site.partition, site.account, site.time, site.setup) == (
        "big",
        "physics",
        "2-00:00:00",
        ("module load cuda",),
    )


def test_all_mistakes_of_all_files_are_reported_together():
    write("~/.config/ftscale/cluster.yaml", "partitoin: gpu\n")
    write("cluster.yaml", "time: tomorrow\nsignal_before_s: 5\nsilence_s: 0\n")
    with pytest.raises(UserError) as failure:
        load_site()
    text = str(failure.value)
    assert "cluster.yaml: partitoin is not a setting; did you mean partition?" in text
    assert (
        "cluster.yaml: time = 'tomorrow': must be minutes, hours:minutes:seconds or days-hours:minutes:seconds" in text
    )
    assert "signal_before_s = 5 must be 60 or more" in text
    assert "silence_s = 0 must be greater than 0" in text


def test_a_file_that_holds_no_settings_is_a_mistake():
    write("cluster.yaml", "- gpu\n")
    with pytest.raises(UserError, match="cluster.yaml: must hold keys and values, holds a list"):
        load_site()


@pytest.mark.parametrize(
    "line", ['partition: "a\\nb"', 'mail: "a\\rb"', 'sbatch: {qos: "a\\nb"}', 'sbatch: {"a b": 1}', 'scratch: "a\\0b"']
)
def test_a_value_that_would_be_several_lines_of_a_job_script_is_refused(line: str):
    write("cluster.yaml", f"{line}\n")
    with pytest.raises(UserError, match="no line ends and other control characters|is no option of sbatch"):
        load_site()


def test_the_log_says_which_files_were_read(caplog: pytest.LogCaptureFixture):
    caplog.set_level("INFO", "ftscale")
    write("~/.config/ftscale/cluster.yaml", "partition: gpu\n")
    write("cluster.yaml", "account: physics\n")
    load_site()
    own = Path("~/.config/ftscale/cluster.yaml").expanduser()
    assert caplog.messages == [f"site settings: {own}, then cluster.yaml"]


@pytest.mark.parametrize("kind", ["file", "link of another", "link to another's"])
def test_another_users_file_is_left_out_and_named(
    kind: str, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
):
    write("~/.config/ftscale/cluster.yaml", "partition: gpu\n")
    write("cluster.yaml" if kind == "file" else "theirs.yaml", "partition: big\nsetup: [touch PWN]\n")
    if kind != "file":
        Path("cluster.yaml").symlink_to("theirs.yaml")
    strange = {Path("theirs.yaml" if kind == "link to another's" else "cluster.yaml").lstat().st_ino}
    _with_owner(monkeypatch, strange)
    assert load_site() == Site(partition="gpu")
    assert "cluster.yaml is left out: it is neither this user's file nor root's" in caplog.text


def _with_owner(monkeypatch: pytest.MonkeyPatch, strange: set[int]) -> None:
    """As if user 12345 owned these files and this process's user all others."""
    stat, lstat = Path.stat, Path.lstat

    def owned(found: os.stat_result) -> os.stat_result:
        values = list(found)
        values[4] = 12345 if found.st_ino in strange else os.getuid()  # st_uid
        return os.stat_result(values)

    monkeypatch.setattr(Path, "stat", lambda path, **options: owned(stat(path, **options)))
    monkeypatch.setattr(Path, "lstat", lambda path: owned(lstat(path)))
