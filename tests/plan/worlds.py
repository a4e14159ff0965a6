"""Hand-written model configurations of published sizes, and small runs to plan."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from ftscale.config import Config, parse_config

LLAMAS: dict[str, dict[str, int]] = {
    "7b": {"hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32, "num_attention_heads": 32},
    "65b": {"hidden_size": 8192, "intermediate_size": 22016, "num_hidden_layers": 80, "num_attention_heads": 64},
    "70b": {
        "hidden_size": 8192,
        "intermediate_size": 28672,
        "num_hidden_layers": 80,
        "num_attention_heads": 64,
        "num_key_value_heads": 8,
    },
    "small": {
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 7,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
    },
}


def llama(name: str, folder: Path, shared: Path, *, vocab_size: int = 32000) -> Path:
    """A folder with config.json and a real tokenizer, no weights."""
    folder.mkdir(parents=True, exist_ok=True)
    for file in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(shared / "weights/stories260K" / file, folder / file)
    config = {"model_type": "llama", "architectures": ["LlamaForCausalLM"], "vocab_size": vocab_size}
    config |= {"max_position_embeddings": 4096, "bos_token_id": 1, "eos_token_id": 2, **LLAMAS[name]}
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def run_of(folder: Path, work: Path, /, **sections: Any) -> dict[str, Any]:
    """Settings of a run whose every sample is 512 tokens long unless `task` says otherwise."""
    rows = work / "rows.jsonl"
    if not rows.is_file():
        words = "once upon a time there was a little girl who had a red ball and a dog "
        rows.write_text("".join(json.dumps({"text": f"{number} {words * 80}"}) + "\n" for number in range(8)))
    return {
        "task": {"name": "causal_lm", "max_length": 512},
        "run_folder": str(work / "run"),
        "model": {"name": str(folder)},
        "data": {"train": str(rows), "cache_dir": str(work / "cache")},
        "batch": {"global_size": 1, "micro_size": 1},
        "train": {"precision": "bf16", "epochs": 1},
        **sections,
    }


def config_of(values: dict[str, Any]) -> Config:
    return parse_config(values, source="test")
