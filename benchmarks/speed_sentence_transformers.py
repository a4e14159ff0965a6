"""sentence-transformers' side of benchmarks/speed.py: the same pairs, model and steps, at a setting of the grid.

    python benchmarks/speed_sentence_transformers.py RUN.yaml OUT_FOLDER SETTING_AS_JSON

`cached`: texts that are embedded together by its cached loss; 0 = its plain one, which takes the batch at once. It
makes tokens of texts as it trains.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import torch
import yaml
from datasets import Dataset
from sentence_transformers import (
    SentenceTransformer,
    SentenceTransformerTrainer,
    SentenceTransformerTrainingArguments,
    losses,
)
from speed_hf_trainer import PLAIN, Stopwatch

from ftscale.config.schema import SourceConfig
from ftscale.config.tasks import SETTINGS
from ftscale.data.sources import read_rows
from ftscale.tasks.embedding_losses import Compared, infonce


def main(run: dict[str, Any], folder: Path, setting: dict[str, Any]) -> None:
    """Train as `run` says, then score the held-out rows."""
    dtype = torch.bfloat16 if run["train"]["precision"] == "bf16" else torch.float32
    options = {"dtype": dtype, "attn_implementation": setting["attention"]}
    model = SentenceTransformer(run["model"], device="cpu", model_kwargs=options)
    model.max_seq_length = run["task"]["max_length"]
    plain = losses.MultipleNegativesRankingLoss(model)
    loss = losses.CachedMultipleNegativesRankingLoss(model, mini_batch_size=setting["cached"])
    arguments = SentenceTransformerTrainingArguments(
        output_dir=str(folder / "output"),
        num_train_epochs=run["train"]["epochs"],
        per_device_train_batch_size=run["batch"]["global_size"],
        learning_rate=run["optimizer"]["lr"],
        weight_decay=0.01,
        optim="adamw_torch_fused",
        **PLAIN,
    )
    stopwatch = Stopwatch(folder)
    SentenceTransformerTrainer(
        model=model,
        args=arguments,
        train_dataset=Dataset.from_list(pairs(run, "train")),
        loss=loss if setting["cached"] else plain,
        callbacks=[stopwatch],
    ).train()
    result = {
        "train_s": stopwatch.train_s,
        "peak_bytes": stopwatch.peak_bytes,
        "steps": stopwatch.steps,
        "tokens": None,
        "held_out_loss": score(model, pairs(run, "eval")),
    }
    (folder / "result.json").write_text(json.dumps(result))


def pairs(run: dict[str, Any], part: str) -> list[dict[str, str]]:
    """The rows as they are read, without their places."""
    rows = read_rows(SourceConfig(**run["data"][part]), roles=SETTINGS["embedding"].columns)
    return [{name: row[name] for name in ("anchor", "positive")} for row in rows]


@torch.no_grad()
def score(model: SentenceTransformer, rows: list[dict[str, str]]) -> float:
    """The loss of all held-out rows as one batch, by ftscale's function on its vectors."""
    columns = [[row[name] for row in rows] for name in ("anchor", "positive")]
    vectors = torch.stack([model.encode(texts, convert_to_tensor=True).float() for texts in columns], dim=1)
    numbers = {text: number for number, text in enumerate(dict.fromkeys([*columns[0], *columns[1]]))}
    ids = torch.tensor([[numbers[text] for text in pair] for pair in zip(*columns, strict=True)])
    ones = torch.ones(len(rows))
    compared = Compared(vectors.flatten(0, 1), [2] * len(rows), ids.flatten(), ones, ones, torch.arange(len(rows)))
    return infonce(compared, temperature=0.05, symmetric=False).mean().item()


if __name__ == "__main__":
    torch.manual_seed(0)
    main(yaml.safe_load(Path(sys.argv[1]).read_text()), Path(sys.argv[2]), json.loads(sys.argv[3]))
