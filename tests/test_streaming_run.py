"""Runs on streams: the same losses on one and two ranks, and after a stop as without one."""

from __future__ import annotations

import csv
import gzip
import json
from pathlib import Path
from typing import Any

import needs
import pytest
from launching import forget_after
from strategies import jobs
from strategies.jobs import Jobs

from ftscale.config import parse_config
from ftscale.run.train import train

pytestmark = pytest.mark.slow

STEPS, HALF = 14, 5
ROWS = 40  # of each file: with steps of 8 rows the second epoch begins inside the run
STREAMS = ("json_lines", "mixed", "hub", "joined", "in_order", *("csv", "compressed") * needs.ALL)


@pytest.fixture(scope="module")
def configs(shared: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    """A run of each kind of stream, on real captions."""
    work = tmp_path_factory.mktemp("streams")
    with gzip.open(shared / "data/translation/multi30k_de-en/train.en.gz", "rt") as file:
        texts = [next(file).rstrip("\n") for _ in range(3 * ROWS)]
    write_files(work, texts)
    lines, table = {"path": str(work / "captions.jsonl")}, {"path": str(work / "captions.csv")}
    table["columns"] = {"text": "caption"}
    sources = {
        "json_lines": lines,
        "csv": table,
        "compressed": {"path": str(work / "captions.txt.gz")},
        "mixed": [lines | {"weight": 3.0}, table],
        "hub": {"path": str(work / "hub"), "format": "hub"},
        "joined": [lines, table],
        "in_order": lines,
    }
    base = jobs.captions(shared, work)
    evaluated = {name: base["data"][name] for name in ("eval", "cache_dir")}
    return {
        name: {
            **base,
            "run_folder": str(work / name),
            "task": {"name": "causal_lm", "max_length": 48, "join_texts": name == "joined"},
            "data": {
                **evaluated,
                "train": sources[name],
                "streaming": True,
                "shuffle_buffer": 24,
                "shuffle": name != "in_order",
            },
            "train": {"max_steps": STEPS},
            "evaluation": {"every": 7},
            "checkpoint": {"every": HALF, "keep": 9, "prove": "never"},
        }
        for name in STREAMS
    }


def write_files(work: Path, texts: list[str]) -> None:
    import datasets

    (work / "captions.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts[:ROWS]))
    with (work / "captions.csv").open("w", newline="") as file:
        csv.writer(file).writerows([["number", "caption"], *enumerate(texts[ROWS : 2 * ROWS])])
    with gzip.open(work / "captions.txt.gz", "wt") as file:
        file.writelines(text + "\n" for text in texts[2 * ROWS :])
    (work / "hub").mkdir()
    datasets.Dataset.from_dict({"text": texts[:ROWS]}).to_parquet(work / "hub/train-00000-of-00001.parquet")


@pytest.fixture(scope="module")
def whole(configs: dict[str, dict[str, Any]]) -> dict[str, Path]:
    """Each stream trained on without a stop, on one rank."""
    for config in configs.values():
        train(parse_config(config, source="test"))
    return {name: Path(config["run_folder"]) for name, config in configs.items()}


@pytest.fixture(scope="module")
def on_two_ranks(configs: dict[str, dict[str, Any]], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Each stream trained on by two ranks, and once more from its checkpoint."""
    runs = Jobs(tmp_path_factory.mktemp("two"))
    for name, config in configs.items():
        runs.add(name, config, strategy="ddp", resume_from=HALF)
    runs.run()
    return runs.folders


@pytest.mark.parametrize("name", STREAMS)
def test_two_ranks_see_the_losses_of_one(whole: dict[str, Path], on_two_ranks: dict[str, Path], name: str):
    one, two = whole[name], on_two_ranks[name]
    assert len(jobs.losses(two)) == STEPS
    assert jobs.losses(two) == pytest.approx(jobs.losses(one), rel=1e-5)
    assert [line["tokens"] for line in jobs.train_lines(two)] == [line["tokens"] for line in jobs.train_lines(one)]
    assert jobs.result(two)["metrics"]["loss"] == pytest.approx(jobs.result(one)["metrics"]["loss"], rel=1e-5)


@pytest.mark.parametrize("name", STREAMS)
def test_a_stopped_stream_goes_on_where_it_stood(on_two_ranks: dict[str, Path], name: str):
    folder = on_two_ranks[name]
    resumed = folder.with_name(folder.name + "-resumed")
    assert jobs.losses(resumed) == pytest.approx(jobs.losses(folder), rel=1e-6)


@pytest.mark.parametrize("name", ["mixed", "joined"])
def test_one_rank_goes_on_where_two_stood(
    configs: dict[str, dict[str, Any]], on_two_ranks: dict[str, Path], tmp_path: Path, name: str
):
    folder = tmp_path / name
    forget_after(on_two_ranks[name], folder, step=HALF)
    train(parse_config({**configs[name], "run_folder": str(folder)}, source="test"), resume=True)
    assert jobs.losses(folder) == pytest.approx(jobs.losses(on_two_ranks[name]), rel=1e-5)


def test_weights_say_how_often_a_source_is_drawn(configs: dict[str, dict[str, Any]], whole: dict[str, Path]):
    data = configs["mixed"]["data"]
    even = [source | {"weight": 1.0} for source in data["train"]]
    folder = whole["mixed"].with_name("even")
    train(parse_config({**configs["mixed"], "run_folder": str(folder), "data": {**data, "train": even}}, source="test"))
    assert jobs.losses(folder)[0] != pytest.approx(jobs.losses(whole["mixed"])[0], rel=1e-6)


def test_joined_texts_fill_their_samples(whole: dict[str, Path]):
    tokens = [line["tokens"] for line in jobs.train_lines(whole["joined"])]
    assert max(tokens) == 8 * 48
    assert sum(tokens) / len(tokens) > 0.9 * 8 * 48  # the last sample of a block is shorter


def test_a_stream_in_order_begins_with_its_first_rows(
    configs: dict[str, dict[str, Any]], whole: dict[str, Path], tmp_path: Path
):
    config = configs["in_order"]
    prepared = {**config["data"], "streaming": False}
    train(parse_config({**config, "run_folder": str(tmp_path / "run"), "data": prepared}, source="test"))
    # 40 rows are 5 steps of 8, so both cut an epoch in the same way
    assert jobs.losses(tmp_path / "run") == pytest.approx(jobs.losses(whole["in_order"]), rel=1e-5)
