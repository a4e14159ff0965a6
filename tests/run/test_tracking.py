"""What trackers are told of a run at its start."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import tiny

from ftscale.config import Config, load_config
from ftscale.config.load import parse_config
from ftscale.config.schema import ReportConfig
from ftscale.run.tracking import flat, named, open_trackers
from ftscale.train.tracker_kinds import TrackedRun
from ftscale.train.trackers import Trackers

PLAIN: dict[str, Any] = {
    "task": "text_classification",
    "model": "some/model",
    "run_folder": "runs/mine",
    "data": {"train": {"path": "https://reader:hunter2@example.org/rows.csv?token=hunter3", "limit": 5}},
}


def config(**changes: Any) -> Config:
    return parse_config({**PLAIN, **changes}, source="here")


class Seen(Trackers):
    """Keeps what it would begin."""

    def open(self, trackers: Any, run: TrackedRun) -> None:
        self.names, self.run = [tracker.name for tracker in trackers], run


def test_names_alone_are_a_report_to_them():
    assert config(report=["wandb", "mlflow"]).report == ReportConfig(to=("wandb", "mlflow"))
    assert config(report="trackio").report == config(report={"to": "trackio"}).report


def test_the_earlier_name_is_read_as_run_folders_have_it(tmp_path: Path):
    assert config(train={"trackers": ["wandb"], "epochs": 2}).report.to == ("wandb",)
    assert config(train={"trackers": []}, report="mlflow").report.to == ("mlflow",)


def test_a_setting_of_the_command_line_goes_beside_the_names(tmp_path: Path):
    file = tiny.write_run(tmp_path, {**PLAIN, "report": ["wandb"]})
    report = load_config(file, ["report.project=sentiment", "report.options.wandb.mode=offline"]).report
    assert report == ReportConfig(to=("wandb",), project="sentiment", options={"wandb": {"mode": "offline"}})


def test_settings_are_flat_and_hold_no_secret():
    settings = flat(config(optimizer={"lr": 3e-4}, adapter={"method": "lora", "r": 16}, report={"tags": ["tried"]}))
    assert (settings["optimizer.lr"], settings["adapter.r"], settings["seed"]) == (3e-4, 16, 0)
    assert settings["report.tags"] == '["tried"]'
    assert "https://<secret>@example.org/rows.csv?token=<secret>" in str(settings["data.train"])
    assert "hunter" not in str(settings)


def test_secrets_of_a_trackers_address_are_not_written(tmp_path: Path):
    from ftscale.config import write_config

    options = {"mlflow": {"tracking_uri": "https://me:hunter2@example.org"}}
    write_config(config(report={"to": "mlflow", "options": options}), tmp_path / "config.yaml")
    text = (tmp_path / "config.yaml").read_text()
    assert "hunter" not in text
    assert "# report.options.mlflow.tracking_uri is to be filled in" in text


@pytest.mark.parametrize(
    ("folder", "report", "expected"),
    [
        ("runs/mine", {}, ("mine", None)),
        ("runs/mine", {"name": "first", "group": "tries"}, ("first", "tries")),
        ("runs/mine/stages/1-head", {}, ("mine-1-head", "mine")),
        ("runs/mine/stages/1-head", {"name": "first"}, ("first-1-head", "first")),
    ],
)
def test_stages_are_runs_of_one_group(folder: str, report: dict[str, Any], expected: tuple[str, str | None]):
    assert named(ReportConfig(**report), Path(folder)) == expected


def test_a_run_has_one_identity_whatever_its_run_json_says(tmp_path: Path):
    seen = [Seen(), Seen(), Seen()]
    about = {"steps": 10}
    for trackers, run_id in zip(seen, ("../../x' or 1=1 --", "../../x' or 1=1 --", "b"), strict=True):
        own = config(report=["tensorboard", "tensorboard"], run_folder=str(tmp_path))
        open_trackers(trackers, own, run_id=run_id, about=about, step=4)
    first, again, other = (trackers.run for trackers in seen)
    assert seen[0].names == ["tensorboard"]
    assert first.identity == again.identity != other.identity
    assert len(first.identity) == 16
    assert int(first.identity, 16) > 0
    assert (first.step, first.config["steps"], first.folder) == (4, 10, tmp_path / "trackers")
