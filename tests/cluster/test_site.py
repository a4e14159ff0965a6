"""Site settings: where they come from, and what is wrong with them."""

from __future__ import annotations

from pathlib import Path

import pytest

from ftscale.cluster.site import Site, load_site
from ftscale.errors import UserError


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
