"""Data sets of the hub, here as local folders that `datasets` opens in the same way."""

from __future__ import annotations

from pathlib import Path

import datasets
import pytest

from ftscale.base.errors import UserError
from ftscale.config.load import load_config
from ftscale.init.doubts import Doubts
from ftscale.init.guide import guide_to
from ftscale.init.hub import hub_parts
from ftscale.init.look import look_at

CARD = """---
dataset_info:
  features:
  - {name: sentence, dtype: string}
  - {name: label, dtype: {class_label: {names: {'0': bad, '1': good}}}}
  splits:
  - {name: train, num_bytes: 1000, num_examples: 80}
  - {name: validation, num_bytes: 300, num_examples: 20}
configs:
- config_name: default
  data_files:
  - {split: train, path: data/train-*}
  - {split: validation, path: data/validation-*}
---
"""


@pytest.fixture
def films(tmp_path: Path) -> Path:
    features = datasets.Features(
        {"sentence": datasets.Value("string"), "label": datasets.ClassLabel(names=["bad", "good"])}
    )
    for split, count in (("train", 80), ("validation", 20)):
        rows = {
            "sentence": [f"the film of day {n} was {'a joy' if n % 2 else 'too long'}" for n in range(count)],
            "label": [n % 2 for n in range(count)],
        }
        (tmp_path / "films/data").mkdir(parents=True, exist_ok=True)
        place = tmp_path / "films/data" / f"{split}-00000-of-00001.parquet"
        datasets.Dataset.from_dict(rows, features=features).to_parquet(place)
    (tmp_path / "films/README.md").write_text(CARD)
    return tmp_path / "films"


def test_a_folder_laid_out_as_on_the_hub_has_its_splits_and_the_names_of_its_classes(films: Path, tmp_path: Path):
    (tmp_path / "run.yaml").write_text(guide_to(films, plan=False).text)
    config = load_config(tmp_path / "run.yaml")
    [train], [held_out] = config.data.train, config.data.eval
    assert (train.path, train.split, held_out.split) == (str(films), "train", "validation")
    assert (train.columns, config.data.eval_ratio) == ({"text": "sentence"}, 0)
    assert config.task.model_dump()["labels"] == ("bad", "good")


def test_a_data_set_of_the_hub_has_its_splits_and_rows(films: Path):
    parts, rows = hub_parts(str(films), Doubts())
    assert parts.train == [{"path": str(films), "format": "hub"}]
    assert parts.others == {"eval": [{"path": str(films), "format": "hub", "split": "validation"}]}
    assert rows == 80
    found = look_at(films, format="hub")
    assert (found.rows, dict(found.columns[1].counts)) == (80, {"bad": 40, "good": 40})


def test_of_several_data_sets_one_is_asked_for(films: Path):
    named = CARD.replace("config_name: default", "config_name: long")
    short = "- config_name: short\n  data_files: [{split: train, path: data/validation-*}]\n---\n"
    (films / "README.md").write_text(named.removesuffix("---\n") + short)
    doubts = Doubts()
    assert hub_parts(str(films), doubts)[0].train[0]["name"] == "long"
    assert doubts.notes == ["long is taken of the data sets long, short; name says another."]
    asked = Doubts(lambda question, options, default: options[-1].name)
    parts, _ = hub_parts(str(films), asked)
    assert (parts.train[0]["name"], parts.others) == ("short", {})


def test_a_data_set_that_cannot_be_fetched_is_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(UserError, match=r"FILE = someone/rows is no file or .*HF_HUB_OFFLINE is set; unset it"):
        guide_to("someone/rows")
