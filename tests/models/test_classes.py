"""A fine-tuned head under other names: rows follow their names, and a head of other classes is not taken over."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer, BertConfig, RobertaConfig
from transformers import AutoModelForTokenClassification as Tokens

from ftscale.config.schema import ModelConfig
from ftscale.models.classes import judge_head
from ftscale.models.load import load_model
from ftscale.tasks.labels import label_settings

AUTO = "AutoModelForSequenceClassification"
SIZES = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
IDS = torch.arange(5, 17)[None]


def saved(folder: Path, labels: list[str] | None, *, kind: Any = BertConfig, auto: Any = None, **fields: Any) -> Any:
    """A plain transformers classifier, saved there; its classes have these names."""
    named = label_settings(labels) if labels else {}
    torch.manual_seed(0)
    model = (auto or AutoModelForSequenceClassification).from_config(kind(**SIZES, **named, **fields)).eval()
    model.save_pretrained(folder)
    return model


def load(folder: Path, labels: list[str], *, seed: int = 0, keep: bool = False, **settings: Any) -> Any:
    settings = {**label_settings(labels), **settings} if labels else settings
    config = ModelConfig(name=str(folder))
    loaded = load_model(config, auto_class=AUTO, settings=settings, dtype=torch.float32, seed=seed, keep_head=keep)
    return loaded.eval()


@torch.no_grad()
def logits(model: Any) -> torch.Tensor:
    return model(input_ids=IDS).logits[0]


def same(first: torch.Tensor, second: torch.Tensor) -> bool:
    """Whether they are equal to rounding: loaded weights may lie otherwise in memory, and be summed otherwise."""
    return torch.allclose(first, second, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("kind", [BertConfig, RobertaConfig])
def test_rows_of_the_head_follow_their_names(tmp_path: Path, kind: Any):
    model = saved(tmp_path, ["yes", "no", "maybe"], kind=kind)
    again = load(tmp_path, ["maybe", "no", "yes"])
    assert same(logits(again), logits(model)[[2, 1, 0]])
    assert again.config.id2label == {0: "maybe", 1: "no", 2: "yes"}
    assert same(logits(load(tmp_path, ["yes", "no", "maybe"])), logits(model))


def test_features_that_are_as_many_as_the_classes_stay_where_they_are(tmp_path: Path):
    labels = [f"class {number}" for number in range(32)]  # as many as the model is wide
    model = saved(tmp_path, labels, kind=RobertaConfig)
    again = load(tmp_path, labels[::-1])
    torch.testing.assert_close(logits(again), logits(model).flip(0))


def test_other_names_of_the_same_number_get_a_new_head_that_the_seed_alone_decides(tmp_path: Path, caplog):
    model = saved(tmp_path, ["yes", "no"])
    first, second, other = (load(tmp_path, ["cat", "dog"], seed=seed) for seed in (0, 0, 1))
    assert torch.equal(first.classifier.weight, second.classifier.weight)
    assert not torch.equal(first.classifier.weight, model.classifier.weight)
    assert not torch.equal(first.classifier.weight, other.classifier.weight)
    assert first.classifier.weight.std().item() == pytest.approx(model.config.initializer_range, rel=0.3)
    assert torch.equal(first.bert.pooler.dense.weight, model.bert.pooler.dense.weight)
    assert "its classes are yes, no, not cat, dog; set head.keep: true" in caplog.text


def test_the_old_head_is_kept_where_asked_for(tmp_path: Path, caplog):
    model = saved(tmp_path, ["yes", "no"])
    again = load(tmp_path, ["ja", "nein"], keep=True)
    assert same(logits(again), logits(model))
    assert again.config.id2label == {0: "ja", 1: "nein"}
    assert "is kept (head.keep = true)" in caplog.text


def test_a_head_without_names_is_kept_and_it_is_said(tmp_path: Path, caplog):
    model = saved(tmp_path, None, num_labels=2)
    assert same(logits(load(tmp_path, ["no", "yes"])), logits(model))
    assert "have no names: its rows are taken for no, yes" in caplog.text
    caplog.clear()
    load(tmp_path, ["0", "1"])
    assert "no names" not in caplog.text


def test_the_head_of_another_task_is_not_taken_over_by_its_shape(tmp_path: Path, caplog):
    model = saved(tmp_path, ["O", "B-x"], auto=Tokens)
    again = load(tmp_path, ["O", "B-x"])
    assert not torch.equal(again.classifier.weight, model.classifier.weight)
    assert "it comes from a BertForTokenClassification" in caplog.text


def test_one_number_is_not_the_score_of_a_class(tmp_path: Path):
    regression = {"num_labels": 1, "problem_type": "regression"}
    model = saved(tmp_path, ["toxic"], problem_type="multi_label_classification")
    assert not same(logits(load(tmp_path, [], **regression)), logits(model))
    assert same(logits(load(tmp_path, ["toxic"], problem_type="multi_label_classification")), logits(model))
    model = saved(tmp_path, None, **regression)
    assert same(logits(load(tmp_path, [], **regression)), logits(model))
    assert not same(logits(load(tmp_path, ["toxic"], problem_type="multi_label_classification")), logits(model))


def test_a_base_without_a_classifier_is_not_spoken_of():
    config = BertConfig(**SIZES, architectures=["BertForMaskedLM"])
    assert judge_head(config, label_settings(["a", "b"]), auto_class=AUTO, keep=False).said == ""


def test_training_goes_on_with_the_labels_of_the_model_before(shared: Path, tmp_path: Path):
    """A run with task.labels: [yes, no], trained on with labels unset: the accuracy stays."""
    words = {"yes": "the film was a delight", "no": "an endless mess"}
    rows = [{"text": f"{text} {number}", "label": label} for number in range(8) for label, text in words.items()]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    data = {"train": str(tmp_path / "rows.jsonl"), "eval": str(tmp_path / "rows.jsonl")}
    settings = tiny.settings(shared, tmp_path, data={**data, "cache_dir": str(tmp_path / "cache")})
    settings |= {"train": {"max_steps": 12}, "optimizer": {"lr": 0.01}, "evaluation": {"every": 12}}
    settings["task"]["labels"] = ["yes", "no"]
    assert tiny.command("train", tiny.write_run(tmp_path, settings)).code == 0
    assert accuracies(tmp_path / "run") == [1.0]
    del settings["task"]["labels"]
    settings |= {"model": str(tmp_path / "run/model"), "run_folder": str(tmp_path / "more")}
    settings |= {"optimizer": {"lr": 1e-9}, "train": {"max_steps": 1}, "evaluation": {"every": 1, "before": True}}
    assert tiny.command("train", tiny.write_run(tmp_path, settings)).code == 0
    assert accuracies(tmp_path / "more") == [1.0, 1.0]
    model = AutoModelForSequenceClassification.from_pretrained(tmp_path / "more/model").eval()
    assert model.config.id2label == {0: "yes", 1: "no"}
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "more/model")
    with torch.no_grad():
        best = [model(**tokenizer(row["text"], return_tensors="pt")).logits[0].argmax().item() for row in rows]
    assert [model.config.id2label[number] for number in best] == [row["label"] for row in rows]
    other = (tmp_path / "rows.jsonl").read_text().replace('"yes"', '"ja"').replace('"no"', '"nein"')
    (tmp_path / "rows.jsonl").write_text(other)
    outcome = tiny.command("check", tmp_path / "run.yaml")
    assert "warning: the model's head is replaced by a new one: its classes are yes, no, not ja, nein" in outcome.stdout


def accuracies(run_folder: Path) -> list[float]:
    return [line["accuracy"] for line in tiny.metrics(run_folder) if line["kind"] == "eval"]
