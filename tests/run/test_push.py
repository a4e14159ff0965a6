"""`ftscale push`: what would be sent, and what the hub's client says. Nothing is sent here."""

from __future__ import annotations

from pathlib import Path

import pytest
from huggingface_hub.utils import filter_repo_objects

from ftscale.base.errors import UserError
from ftscale.run.push import plain, push


@pytest.fixture
def model(tmp_path: Path) -> Path:
    folder = tmp_path / "exported"
    (folder / "1_Pooling").mkdir(parents=True)
    files = {
        "config.json": "{}",
        "README.md": "# a card",
        "1_Pooling/config.json": "{}",
        "model[1].safetensors": "x" * 2048,
    }
    for name, text in files.items():
        (folder / name).write_text(text)
    return folder


def test_a_dry_run_names_what_would_be_sent(model: Path, tmp_path: Path):
    secret = tmp_path / "secret"
    secret.write_text("a key")
    (model / "weights.bin").symlink_to(secret)
    (model / "more").symlink_to(tmp_path)
    (model / ".cache").mkdir()
    (model / ".cache/token").write_text("hf_1")
    lines = list(push(model, "me/mine", dry_run=True))
    sent = [line.split()[1] for line in lines[:-1]]
    assert sent == ["1_Pooling/config.json", "README.md", "config.json", "model[1].safetensors"]
    assert lines[-1] == "4 files of 0.0 MiB would be uploaded to me/mine (private, if it is new); nothing was sent."
    assert "(public, if it is new)" in list(push(model, "me/mine", dry_run=True, public=True))[-1]


def test_a_model_without_a_card_is_told(model: Path):
    (model / "README.md").unlink()
    assert "has no README.md" in next(push(model, "me/mine", dry_run=True))


def test_a_name_is_a_pattern_of_itself_alone():
    """By the filter of the hub's own client."""
    names = ["a*b.bin", "model[1].bin", "what?.bin", "plain.bin", "1_Pooling/config.json"]
    others = ["axb.bin", "model1.bin", "whatx.bin", "1_Pooling/config_json"]
    for name in names:
        assert list(filter_repo_objects([*names, *others], allow_patterns=[plain(name)])) == [name]


@pytest.mark.parametrize("name", ["mine", "me/mine/too", "me//mine", "me/", "../x", "a" * 300 + "/b", "me/mi ne"])
def test_a_bad_name_is_refused(model: Path, name: str):
    with pytest.raises(UserError, match="REPOSITORY = "):
        list(push(model, name, dry_run=True))


def test_a_folder_without_a_model_is_refused(tmp_path: Path):
    with pytest.raises(UserError, match="holds no model .* name a run folder"):
        list(push(tmp_path, "me/mine", dry_run=True))


def test_without_a_network_nothing_is_sent(model: Path, monkeypatch: pytest.MonkeyPatch):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(UserError, match="HF_HUB_OFFLINE is set"):
        list(push(model, "me/mine"))
