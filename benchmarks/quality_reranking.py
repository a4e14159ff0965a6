"""Reranking on top of retrieval: the ten nearest paragraphs by vectors, put in order by a cross-encoder.

    python benchmarks/quality.py --only retrieval
    python benchmarks/quality_reranking.py [--seeds 5] [--threads 1] [--at-once 1]

Of each seed of quality.py's `retrieval`: its vectors find the ten nearest paragraphs of each question. A cross-
encoder is trained on questions of the training file, with their three nearest wrong paragraphs as negatives, and
puts the ten of each held-out question in order. Vectors and search are sentence-transformers' on the saved folder;
a question whose paragraph is not among the ten counts as zero, before and after. `reranking` in
benchmarks/results/quality.json has both.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from quality import SHARED, WORK, Entry, note, run, write_lines
from sentence_transformers import SentenceTransformer, util

FOUND, NEGATIVES, QUESTIONS = 10, 3, 3000
METRICS = ("mrr@10", "recall@1", "ndcg@10")
FILES = {"train": "squad_v1/test-v1.1.json", "eval": "xquad_en/xquad.en.json"}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--at-once", type=int, default=1)
    arguments = parser.parse_args()
    with ThreadPoolExecutor(arguments.at_once) as pool:
        seeds = range(arguments.seeds)
        runs = list(pool.map(lambda seed: reranked(seed, threads=arguments.threads), seeds))
    return 0 if note("reranking", entry(0), runs, threads=arguments.threads) else 1


def entry(seed: int) -> Entry:
    """The cross-encoder's run, from the model that gave the vectors."""
    folder = WORK / f"reranking-lists-{seed}"
    return Entry(
        "msmarco_reranking",
        (
            f"model.name={WORK / f'retrieval-{seed}/model'}",
            "task.max_length=192",
            "train.precision=bf16",
            *(f"data.{part}={folder / f'{part}.jsonl'}" for part in FILES),
        ),
        "mrr@10",
        beside=METRICS[1:],
        seeds=5,
    )


def reranked(seed: int, *, threads: int) -> dict[str, Any]:
    """A seed's scores over all held-out questions, by vectors and after the cross-encoder."""
    folder = WORK / f"reranking-lists-{seed}"
    places = write_lists(folder, seed=seed)
    record = run("reranking", entry(seed), seed=seed, threads=threads)
    found = [place for place in places if place < FOUND]
    values = {metric: value * len(found) / len(places) for metric, value in record["values"].items()}
    values |= {
        "by vectors: mrr@10": sum(1 / (place + 1) for place in found) / len(places),
        "by vectors: recall@1": found.count(0) / len(places),
    }
    return {**record, "value": values["mrr@10"], "values": {name: round(value, 4) for name, value in values.items()}}


def write_lists(folder: Path, *, seed: int) -> list[int]:
    """Rows for both parts; of each held-out question the place of its paragraph by vectors."""
    model = SentenceTransformer(str(WORK / f"retrieval-{seed}/model"), device="cpu")
    places: list[int] = []
    for part, name in FILES.items():
        questions, right, paragraphs = read(SHARED / "data/qa" / name)
        if part == "train":
            chosen = random.Random(seed).sample(range(len(questions)), QUESTIONS)
            questions, right = [questions[number] for number in chosen], [right[number] for number in chosen]
        asked, texts = (model.encode(of, convert_to_tensor=True) for of in (questions, paragraphs))
        hits = util.semantic_search(asked, texts, top_k=len(paragraphs))
        rows: list[dict[str, object]] = []
        for question, answer, ranked in zip(questions, right, hits, strict=True):
            order = [int(hit["corpus_id"]) for hit in ranked]
            place = order.index(answer)
            wrong = [paragraphs[number] for number in order[:FOUND] if number != answer]
            row = {"anchor": question, "positive": paragraphs[answer]}
            if part == "train":
                rows.append({**row, "negative": wrong[:NEGATIVES]})
                continue
            places.append(place)
            if place < FOUND:
                rows.append({**row, "negative": wrong})
        write_lines(folder / f"{part}.jsonl", rows)
    return places


def read(path: Path) -> tuple[list[str], list[int], list[str]]:
    """Questions, the number of the paragraph of each, and the paragraphs, each once."""
    questions: list[str] = []
    right: list[int] = []
    numbers: dict[str, int] = {}
    for article in json.loads(path.read_text())["data"]:
        for part in article["paragraphs"]:
            number = numbers.setdefault(part["context"], len(numbers))
            for asked in part["qas"]:
                questions.append(asked["question"])
                right.append(number)
    return questions, right, list(numbers)


if __name__ == "__main__":
    sys.exit(main())
