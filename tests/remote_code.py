"""A model that comes with its own code, which leaves a mark where it is run."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

PROGRAM = """
from transformers import AutoModel, LlamaConfig, LlamaForSequenceClassification, LlamaModel

open({mark!r}, "a").write("ran")


class OwnConfig(LlamaConfig):
    model_type = {model_type!r}


class OwnModel(LlamaModel):
    config_class = OwnConfig


AutoModel.register(OwnConfig, OwnModel, exist_ok=True)


class OwnClassifier(LlamaForSequenceClassification):
    config_class = OwnConfig
"""


def own_model(llama: Path, folder: Path, mark: Path, *, model_type: str = "own_llama") -> Path:
    """A copy of a Llama with code of its own; of type llama, it can be had without that code too."""
    shutil.copytree(llama, folder)
    config = json.loads((folder / "config.json").read_text())
    classes = {"AutoConfig": "OwnConfig", "AutoModelForSequenceClassification": "OwnClassifier"}
    config |= {"model_type": model_type, "auto_map": {name: f"own.{own}" for name, own in classes.items()}}
    (folder / "config.json").write_text(json.dumps(config))
    write_code(folder, mark, model_type=model_type)
    return folder


def write_code(folder: Path, mark: Path, *, model_type: str = "own_llama") -> None:
    """Code that leaves this mark."""
    (folder / "own.py").write_text(PROGRAM.format(mark=str(mark), model_type=model_type))
