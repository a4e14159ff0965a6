"""The card beside a saved model: read by the hub's own library, and its code run."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import tiny
from huggingface_hub import ModelCard

LORA = {"method": "lora", "r": 4, "target_modules": "all-linear"}


@pytest.mark.parametrize("adapter", [{"method": "none"}, LORA], ids=["full", "lora"])
def test_a_card_says_what_came_out_and_how_to_use_the_model(
    shared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, adapter: dict[str, Any]
):
    values = tiny.settings(shared, tmp_path, adapter=adapter, optimizer={"lr": 0.01})
    values["data"]["test"] = {**values["data"]["eval"], "limit": 20}
    assert tiny.command("train", tiny.write_run(tmp_path, values)).code == 0
    text = (tmp_path / "run/model/README.md").read_text()
    card = ModelCard(text).data.to_dict()
    assert card["pipeline_tag"] == "text-classification"
    assert card["library_name"] == ("transformers" if adapter["method"] == "none" else "peft")
    assert "base_model" not in card  # a folder of this machine
    assert str(shared) not in text
    result = json.loads((tmp_path / "run/result.json").read_text())
    low, high = result["intervals"]["test/accuracy"]
    accuracy = result["metrics"]["test/accuracy"]
    assert f"| accuracy | {accuracy:.4g} | {low:.4g} to {high:.4g} |" in text
    assert "| test | `dev.tsv` | 20 |" in text
    assert '"lr": 0.01' in text
    [code] = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    exec(code.replace('"run"', '"run/model"'), names)
    logits = names["model"](**names["processor"]("a good film", return_tensors="pt")).logits
    assert logits.shape == (1, 2)
    done = tiny.command("export", tmp_path / "run", tmp_path / "exported")
    assert done.code == 0
    assert (tmp_path / "exported/README.md").read_text() == text
