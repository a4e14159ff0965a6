"""Settings do in a real run what they say: small real models, real data, one process."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import needs
import numpy as np
import pytest
import tiny
import torch
from launching import forget_after
from safetensors.torch import load_file
from strategies import jobs

from ftscale.base.errors import UserError
from ftscale.config import parse_config
from ftscale.optim.optimizers import OPTIMIZERS
from ftscale.optim.schedules import NAMES, WITHOUT_WARMUP
from ftscale.run.folder import Result
from ftscale.run.prepared_data import prepare_inputs
from ftscale.run.train import train
from ftscale.train.manifest import complete_checkpoints

ROOT = Path(__file__).resolve().parents[1]
SCHEDULE_OPTIONS = {
    "cosine_with_min_lr": {"min_lr": 1e-4},
    "cosine_warmup_with_min_lr": {"min_lr": 1e-4},
    "warmup_stable_decay": {"num_decay_steps": 2},
    "exponential": {"gamma": 0.8},
}


def run(config: dict[str, Any], folder: Path, *, resume: bool = False, **sections: Any) -> Result:
    """Train in this process, into the folder."""
    return train(parse_config({**config, **sections, "run_folder": str(folder)}, source="test"), resume=resume)


@pytest.fixture
def captions(shared: Path, tmp_path: Path) -> dict[str, Any]:
    """A quick run: the 260 K Llama on captions."""
    config = jobs.captions(shared, tmp_path)
    checkpoint = {"every": 9, "prove": "never"}
    return config | {"train": {"max_steps": 3}, "batch": {"global_size": 8}, "checkpoint": checkpoint}


# ---------------------------------------------------------------- optimizers and schedules


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_every_optimizer_trains(captions: dict[str, Any], shared: Path, tmp_path: Path, name: str):
    run(captions, tmp_path / "run", optimizer={"name": name, "lr": 1e-3}, schedule={"name": "constant"})
    losses = jobs.losses(tmp_path / "run")
    assert len(losses) == 3
    assert all(0 < loss < 20 for loss in losses)
    before = load_file(shared / "weights/stories260K/model.safetensors")
    after = load_file(tmp_path / "run/model/model.safetensors")
    matrices = [name for name, weight in before.items() if weight.ndim == 2 and name in after]
    assert len(matrices) > 30
    assert all(not torch.equal(after[name], before[name]) for name in matrices)


@pytest.mark.parametrize("name", NAMES)
def test_every_schedule_trains_and_goes_on_after_a_stop(captions: dict[str, Any], tmp_path: Path, name: str):
    schedule = {"name": name, "options": SCHEDULE_OPTIONS.get(name, {})}
    if name not in WITHOUT_WARMUP:
        schedule["warmup_steps"] = 2
    checkpoint = {"every": 3, "keep": 9, "prove": "never"}
    sections = {"schedule": schedule, "train": {"max_steps": 6}, "checkpoint": checkpoint}
    whole, half = tmp_path / "whole", tmp_path / "half"
    run(captions, whole, **sections)
    rates = [line["lr"] for line in jobs.train_lines(whole)]
    assert max(rates) == pytest.approx(jobs.ADAM["lr"])
    assert (rates[0] < rates[2]) == (name not in WITHOUT_WARMUP)
    forget_after(whole, half, step=3)
    run(captions, half, resume=True, **sections)
    assert [line["lr"] for line in jobs.train_lines(half)] == pytest.approx(rates, rel=1e-12)
    assert jobs.losses(half) == pytest.approx(jobs.losses(whole), rel=1e-6)


@pytest.mark.slow
@pytest.mark.campaign
def test_8bit_adam_learns_as_well_as_adamw(captions: dict[str, Any], shared: Path, tmp_path: Path):
    text = shared / "data/translation/multi30k_de-en"
    data = {
        "cache_dir": str(tmp_path / "cache"),
        "train": {"path": str(text / "train.en.gz"), "format": "text", "limit": 1600},
        "eval": {"path": str(text / "val.en.gz"), "format": "text", "limit": 300},
    }
    last, held_out = {}, {}
    for name in ("adamw", "adamw_8bit"):
        result = run(
            captions,
            tmp_path / name,
            data=data,
            optimizer={"name": name, "lr": 2e-3},
            schedule={"name": "cosine", "warmup_steps": 10},
            train={"max_steps": 200},
            evaluation={},
            checkpoint={},
        )
        last[name] = np.mean(jobs.losses(tmp_path / name)[-50:])
        held_out[name] = result.metrics["loss"]
    assert last["adamw_8bit"] == pytest.approx(last["adamw"], rel=0.02)
    assert held_out["adamw_8bit"] == pytest.approx(held_out["adamw"], rel=0.02)
    assert held_out["adamw"] < 2.3 < jobs.losses(tmp_path / "adamw")[0]
    optimizer = torch.load(_last_checkpoint(tmp_path / "adamw_8bit") / "state.pt", weights_only=True)["optimizer"]
    assert Counter(value.dtype for value in jobs.tensors(optimizer["state"]))[torch.uint8] > 40


@pytest.mark.slow
@pytest.mark.campaign
def test_pretraining_helps(shared: Path, tmp_path: Path):
    from ftscale.config import load_config

    text = shared / "data/translation/multi30k_de-en"
    losses = {}
    for init in ("pretrained", "random"):
        settings = [
            f"model.name={shared / 'weights/stories260K'}",
            f"model.init={init}",
            f"data.train={{path: {text / 'train.en.gz'}, format: text}}",
            f"data.eval={{path: {text / 'val.en.gz'}, format: text}}",
            f"data.cache_dir={tmp_path / 'cache'}",
            f"run_folder={tmp_path / init}",
        ]
        losses[init] = train(load_config(ROOT / "launch/recipes/captions.yaml", settings)).metrics["loss"]
    assert losses["pretrained"] < 1.9
    assert losses["random"] > 2.2


# ---------------------------------------------------------------- what trains


def test_a_frozen_body_keeps_its_weights_and_its_batch_statistics(shared: Path, tmp_path: Path):
    config = jobs.digits(shared, tmp_path, trainable={"scope": "head"}, train={"max_steps": 3}, evaluation={})
    run(config, tmp_path / "run")
    before = load_file(shared / "weights/mobilenet_v1_0.25_224/model.safetensors")
    after = load_file(tmp_path / "run/model/model.safetensors")
    body = [name for name in before if not name.startswith("classifier")]
    assert sum("running_var" in name for name in body) > 20
    assert all(torch.equal(after[name], before[name]) for name in body)
    assert after["classifier.weight"].abs().max() > 0


def test_the_last_blocks_and_the_head_train_alone(shared: Path, tmp_path: Path):
    llama = shared / "weights/stories260K"
    config = jobs.reviews(shared, tmp_path, model={"name": str(llama)}, train={"max_steps": 3})
    run(config, tmp_path / "run", trainable={"scope": "last_blocks", "last_blocks": 2})
    before, after = load_file(llama / "model.safetensors"), load_file(tmp_path / "run/model/model.safetensors")
    changed = {name for name in after if name not in before or not torch.equal(after[name], before[name])}
    assert "score.weight" in changed
    assert {name.split(".")[2] for name in changed if ".layers." in name} == {"3", "4"}
    assert all(".layers." in name or name == "score.weight" for name in changed)


def test_an_mlp_head_trains_is_saved_and_answers_again(shared: Path, tmp_path: Path):
    from ftscale.run.evaluate import evaluate_run
    from ftscale.run.predict import predict_file

    config = jobs.reviews(shared, tmp_path, train={"max_steps": 3})
    result = run(config, tmp_path / "run", head={"hidden_sizes": [16, 8], "activation": "relu", "dropout": 0.0})
    weights = load_file(tmp_path / "run/model/model.safetensors")
    shapes = {tuple(weight.shape) for name, weight in weights.items() if name.startswith("classifier")}
    assert {(16, 64), (8, 16), (2, 8)} <= shapes
    assert evaluate_run(tmp_path / "run")["loss"] == pytest.approx(result.metrics["loss"], rel=1e-5)
    reviews = tmp_path / "reviews.txt"
    reviews.write_text("a fine film\na dull one\n")
    assert predict_file(tmp_path / "run", str(reviews), out=tmp_path / "out.jsonl") == 2
    answers = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert all(answer["prediction"] in ("0", "1") and 0.5 <= answer["score"] <= 1 for answer in answers)


# ---------------------------------------------------------------- evaluation


@pytest.fixture
def rising(captions: dict[str, Any]) -> dict[str, Any]:
    """A run whose evaluation gets worse with each step from the second on."""
    return captions | {
        "optimizer": {"name": "adamw", "lr": 0.06, "eps": 1e-3},
        "schedule": {"name": "constant_with_warmup", "warmup_steps": 4},
        "train": {"max_steps": 8, "max_grad_norm": 0},
        "data": {**captions["data"], "test": captions["data"]["eval"]},
    }


def test_patience_ends_a_run_with_its_best_weights(rising: dict[str, Any], tmp_path: Path):
    result = run(rising, tmp_path / "run", evaluation={"every": 1, "patience": 2})
    values = evaluated(tmp_path / "run")
    best = min(values, key=values.get)
    assert result.status == "stopped_early"
    assert result.steps == best + 2 < 8
    assert result.best == {"step": best, "metric": "loss", "value": values[best]}
    assert result.metrics["loss"] == values[best]
    assert result.metrics["test/loss"] == pytest.approx(values[best], rel=1e-6)
    assert [line["event"] for line in jobs.lines(tmp_path / "run") if line.get("event") not in (None, "saved")] == [
        "stopped_early"
    ]


def test_without_keep_best_a_run_ends_with_its_last_weights(rising: dict[str, Any], tmp_path: Path):
    result = run(rising, tmp_path / "run", evaluation={"every": 1, "keep_best": False})
    values = evaluated(tmp_path / "run")
    assert result.steps == 8
    assert result.metrics["loss"] == values[8] > min(values.values())
    assert result.metrics["test/loss"] == pytest.approx(values[8], rel=1e-6)


def test_a_run_that_only_gets_worse_ends_with_the_weights_before_it(
    rising: dict[str, Any], shared: Path, tmp_path: Path
):
    worse = rising | {"optimizer": {"name": "sgd", "lr": 5.0}, "schedule": {"name": "constant"}}
    result = run(worse, tmp_path / "run", evaluation={"every": 1, "before": True}, train={"max_steps": 2})
    values = evaluated(tmp_path / "run")
    assert list(values) == [0, 1, 2]
    assert result.best["step"] == 0
    assert result.metrics["test/loss"] == pytest.approx(values[0], rel=1e-6)
    before = load_file(shared / "weights/stories260K/model.safetensors")
    after = load_file(tmp_path / "run/model/model.safetensors")
    assert all(torch.equal(after[name], before[name]) for name in after)


def test_higher_is_better_turns_the_choice_around(rising: dict[str, Any], tmp_path: Path):
    evaluation = {"every": 1, "metric": "perplexity", "higher_is_better": True}
    result = run(rising, tmp_path / "run", evaluation=evaluation, train={"max_steps": 4})
    values = evaluated(tmp_path / "run")
    assert result.best["step"] == max(values, key=values.get)


def test_the_checkpoint_of_the_lowest_error_is_kept(shared: Path, tmp_path: Path):
    config = jobs.regression(shared, tmp_path, labels={}, num_rows=16)
    config["data"] |= {"eval": config["data"]["train"]}
    config |= {"optimizer": {"name": "sgd", "lr": 0.5}, "train": {"max_steps": 4}}
    result = run(config, tmp_path / "run", evaluation={"every": 1, "metric": "mae"})
    rows = [line for line in jobs.lines(tmp_path / "run") if line["kind"] == "eval"]
    errors = {line["step"]: line["mae"] for line in rows}
    assert result.best["value"] == min(errors.values()) < max(errors.values())
    assert errors[result.best["step"]] == min(errors.values())


def test_the_metric_of_an_unknown_class_is_refused_with_the_nearest(shared: Path, tmp_path: Path):
    config = jobs.reviews(shared, tmp_path)
    with pytest.raises(UserError, match="evaluation.metric.*'f1/7'.*did you mean 'f1/"):
        run(config, tmp_path / "run", evaluation={"every": 1, "metric": "f1/7"})


# ---------------------------------------------------------------- data


def test_epochs_can_be_fractions(captions: dict[str, Any], tmp_path: Path):
    data = {**captions["data"], "train": {**captions["data"]["train"], "limit": 40}}
    result = run(captions, tmp_path / "run", data=data, train={"epochs": 1.4}, evaluation={})
    assert result.steps == 7
    assert sorted(evaluated(tmp_path / "run")) == [5, 7]


def test_a_stratified_share_keeps_the_shares_of_the_labels(shared: Path, tmp_path: Path):
    config = jobs.reviews(shared, tmp_path)
    train_source = {**config["data"]["train"], "limit": 400}
    data = {"cache_dir": str(tmp_path / "cache"), "train": train_source, "eval_ratio": 0.25, "stratify": "label"}
    parsed = parse_config({**config, "run_folder": str(tmp_path / "run"), "data": data}, source="test")
    inputs = prepare_inputs(parsed)
    kept, held = inputs.train, inputs.evaluation
    assert (len(kept), len(held)) == (300, 100)
    assert sum(held.labels) / 100 == pytest.approx(sum(kept.labels) / 300, abs=0.005)
    texts = Counter(map(tuple, kept.dataset["input_ids"])) + Counter(map(tuple, held.dataset["input_ids"]))
    whole = prepare_inputs(parsed.model_copy(update={"data": parsed.data.model_copy(update={"eval_ratio": 0.0})}))
    assert texts == Counter(map(tuple, whole.train.dataset["input_ids"]))


def test_weights_say_how_often_the_rows_of_a_source_are_read(captions: dict[str, Any], tmp_path: Path):
    texts = {"twice": ["two " * number for number in range(1, 9)], "half": ["half " * number for number in range(1, 9)]}
    sources = []
    for (name, rows), weight in zip(texts.items(), (2.0, 0.5), strict=True):
        (tmp_path / f"{name}.txt").write_text("".join(f"{row.strip()}\n" for row in rows))
        sources.append({"path": str(tmp_path / f"{name}.txt"), "weight": weight})
    data = {"cache_dir": str(tmp_path / "cache"), "train": sources}
    config = {**captions, "data": data, "batch": {"global_size": 4}, "train": {"epochs": 1}}
    inputs = prepare_inputs(parse_config({**config, "run_folder": str(tmp_path / "run")}, source="test"))
    result = run(config, tmp_path / "run", evaluation={})
    assert result.steps == 5  # 8 rows twice and 4 of 8, in batches of 4
    read = sum(line["targets"] for line in jobs.train_lines(tmp_path / "run"))
    twice, half = (inputs.train.reports[place].targets for place in (0, 1))
    assert 2 * twice < read < 2 * twice + half


@pytest.mark.slow
def test_workers_change_nothing(captions: dict[str, Any], shared: Path, tmp_path: Path):
    source = {**captions["data"]["train"], "limit": 1100}  # more than one chunk for the workers that tokenise
    losses = []
    for workers, prepare_workers in ((0, 1), (2, 2 if needs.ALL else 1)):
        data = {
            "cache_dir": str(tmp_path / f"cache-{workers}"),
            "train": source,
            "num_workers": workers,
            "prepare_workers": prepare_workers,
        }
        run(captions, tmp_path / f"run-{workers}", data=data, evaluation={}, train={"max_steps": 5})
        losses.append(jobs.losses(tmp_path / f"run-{workers}"))
    assert losses[0] == losses[1]


# ---------------------------------------------------------------- faults


@pytest.mark.slow
def test_a_loss_that_is_not_finite_ends_the_run_and_harms_no_checkpoint(shared: Path, tmp_path: Path):
    config = jobs.regression(shared, tmp_path, labels={18: 1e30}, checkpoint={"every": 1, "prove": "never"})
    (tmp_path / "run.json").write_text(json.dumps({**config, "run_folder": str(tmp_path / "run")}))
    done = tiny.forked("train", tmp_path / "run.json")
    assert done.code == 1
    assert "optimizer step 5: the loss is not finite; nothing of it was applied" in done.stderr
    [event] = [line for line in jobs.lines(tmp_path / "run") if line.get("event") == "bad_batch"]
    assert (event["step"], event["what"], event["action"]) == (5, "the loss is not finite", "stop")
    assert jobs.result(tmp_path / "run")["status"] == "failed"
    assert [item.step for item in complete_checkpoints(tmp_path / "run/checkpoints")] == [3, 4]
    weights = torch.load(_last_checkpoint(tmp_path / "run") / "state.pt", weights_only=True)["weights"]
    assert all(torch.isfinite(weight).all() for weight in weights.values())


# ---------------------------------------------------------------- helpers


def evaluated(folder: Path) -> dict[int, float]:
    """The loss on the evaluation rows after each step that they were scored at."""
    return {line["step"]: line["loss"] for line in jobs.lines(folder) if line["kind"] == "eval" and "loss" in line}


def _last_checkpoint(folder: Path) -> Path:
    return complete_checkpoints(folder / "checkpoints")[-1].folder
