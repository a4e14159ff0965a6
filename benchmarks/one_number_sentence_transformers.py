"""sentence-transformers' side of benchmarks/one_number.py: the same pairs, model and cuts, one rank of it.

    torchrun --nproc_per_node 2 benchmarks/one_number_sentence_transformers.py --worker JOBS.json

A process's share of the global batch is one batch of its cached loss, which embeds as many texts at a time as ftscale's
micro-batch has, and gathers the vectors of the other processes. Writes metrics.jsonl and model/ of each run, as ftscale
does.
"""

from __future__ import annotations

import os
from pathlib import Path

from datasets import Dataset
from one_number_hf_trainer import Config, common, do_jobs
from sentence_transformers import (
    SentenceTransformer,
    SentenceTransformerTrainer,
    SentenceTransformerTrainingArguments,
)
from sentence_transformers.sentence_transformer import losses
from sentence_transformers.sentence_transformer.modules import Normalize, Pooling, Transformer
from speed_sentence_transformers import pairs


def build(config: Config, folder: Path) -> SentenceTransformerTrainer:
    """A trainer of a run that is to write into `folder`."""
    task, batch = config["task"], config["batch"]
    body = Transformer(
        config["model"]["name"], config_kwargs=config["model"]["overrides"], max_seq_length=task["max_length"]
    )
    parts = [body, Pooling(body.get_embedding_dimension()), Normalize()]
    model = SentenceTransformer(modules=parts, device="cpu")
    arguments = SentenceTransformerTrainingArguments(
        per_device_train_batch_size=batch["global_size"] // int(os.environ["WORLD_SIZE"]), **common(config, folder)
    )
    loss = losses.CachedMultipleNegativesRankingLoss(
        model, mini_batch_size=batch["micro_size"], gather_across_devices=True
    )
    rows = Dataset.from_list(pairs(config, "train"))
    return SentenceTransformerTrainer(model=model, args=arguments, train_dataset=rows, loss=loss)


if __name__ == "__main__":
    do_jobs(build, description=__doc__)
