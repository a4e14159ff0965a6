"""Text classification: labels, pairs, lengths, losses and scores."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from transformers import AutoTokenizer, BertConfig, BertForSequenceClassification

from ftscale.config.schema import TextClassificationSettings
from ftscale.errors import UserError
from ftscale.tasks.text_classification import TextClassification

WEATHER = [
    {"text": "rain all day", "label": "wet", "_where": "w.csv:2"},
    {"text": "a hot and cloudless afternoon", "label": "dry", "_where": "w.csv:3"},
    {"text": "drizzle", "label": "wet", "_where": "w.csv:4"},
]


@pytest.fixture(scope="module")
def tokenizer(shared: Path):
    return AutoTokenizer.from_pretrained(shared / "weights/tokenizers/bert-base-uncased")


def tiny_bert(task: TextClassification) -> BertForSequenceClassification:
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=30522,
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=32,
        **task.model_settings(),
    )
    return BertForSequenceClassification(config).eval()


def fitted(rows: list[dict], **settings) -> TextClassification:
    task = TextClassification(TextClassificationSettings(**settings))
    return TextClassification(task.settings.model_copy(update=task.fit(rows)))


def batch_of(task: TextClassification, rows: list[dict], tokenizer, **options) -> dict:
    samples = task.prepare(rows, tokenizer, **options)
    numbered = [{**sample, "row": row, "epoch": 0, "seed": 0} for row, sample in enumerate(samples)]
    return task.collator(tokenizer, layout="padded", train=False)(numbered)


def test_class_names_are_sorted_and_numbers_by_value():
    assert fitted(WEATHER).labels == ("dry", "wet")
    assert fitted([{"label": value} for value in (10, "9", 2.0, "10")]).labels == ("2", "9", "10")


def test_one_class_alone_is_refused():
    with pytest.raises(UserError, match=r"\['wet'\]: too few"):
        fitted(WEATHER[:1])


def test_a_label_that_training_never_saw_is_named_with_its_row_and_the_nearest_one(tokenizer):
    row = {"text": "rain", "label": "wett", "_where": "eval.csv:7"}
    with pytest.raises(UserError, match=r"eval\.csv:7: label = 'wett' is not known; did you mean 'wet'\?"):
        fitted(WEATHER).prepare([row], tokenizer)


@pytest.mark.parametrize("label", [None, "", "  ", math.nan])
def test_a_missing_label_is_named_with_its_row(tokenizer, label):
    with pytest.raises(UserError, match=r"eval\.csv:7: label = .* must be a class"):
        fitted(WEATHER).prepare([{"text": "rain", "label": label, "_where": "eval.csv:7"}], tokenizer)


def test_a_row_without_text_is_named(tokenizer):
    with pytest.raises(UserError, match=r"x\.csv:3: text = None must be a text"):
        fitted(WEATHER).prepare([{"text": None, "label": "wet", "_where": "x.csv:3"}], tokenizer)


def test_a_pair_is_one_sample_with_a_separator_between(tokenizer):
    task = fitted(WEATHER)
    [sample] = task.prepare([{"text": "rain", "text_pair": "sun", "label": "wet"}], tokenizer)
    assert tokenizer.decode(sample["input_ids"]) == "[CLS] rain [SEP] sun [SEP]"
    assert sample["length"] == 5
    assert sample["labels"] == 1


def test_token_types_of_a_pair_reach_the_model(minilm):
    tokenizer = AutoTokenizer.from_pretrained(minilm)
    task = fitted(WEATHER)
    batch = batch_of(task, [{"text": "rain", "text_pair": "sun", "label": "wet"}, WEATHER[1]][:1], tokenizer)
    assert batch["token_type_ids"].tolist() == [[0, 0, 0, 1, 1]]


def test_long_rows_are_cut_dropped_or_refused_as_asked(tokenizer):
    notes = {}
    for too_long in ("truncate", "drop"):
        samples = fitted(WEATHER, max_length=5, too_long=too_long).prepare(WEATHER, tokenizer)
        notes[too_long] = [sample["note"] for sample in samples]
        assert [sample["length"] for sample in samples] == [5, 5, 5]
        assert samples[1]["input_ids"][-1] == tokenizer.sep_token_id
    assert notes == {"truncate": ["", "truncated", ""], "drop": ["", "too_long", ""]}
    with pytest.raises(UserError, match=r"w\.csv:3: 8 tokens are more than task\.max_length = 5"):
        fitted(WEATHER, max_length=5, too_long="raise").prepare(WEATHER, tokenizer)


def test_an_empty_text_is_the_end_token_where_the_tokenizer_adds_nothing(shared: Path):
    gpt2 = AutoTokenizer.from_pretrained(shared / "weights/tokenizers/gpt2")
    [sample] = fitted(WEATHER).prepare([{"text": "", "label": "wet"}], gpt2)
    assert sample["input_ids"] == [gpt2.eos_token_id]


def test_the_loss_is_the_sum_of_what_the_model_itself_would_mean(tokenizer):
    task = fitted(WEATHER)
    model = tiny_bert(task)
    batch = batch_of(task, WEATHER, tokenizer)
    theirs = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"], labels=batch["labels"]).loss
    assert batch["labels"].tolist() == [1, 0, 1]
    assert task.count(batch) == 3
    torch.testing.assert_close(task.loss(model, batch), theirs * 3)


def test_several_classes_come_as_a_list_or_joined_and_may_be_none(tokenizer):
    rows = [{"text": "a", "label": ["x", "y"]}, {"text": "b", "label": "y| z"}, {"text": "c", "label": []}]
    rows.append({"text": "d", "label": ""})
    task = fitted(rows, problem="multi_label", label_separator="|")
    model = tiny_bert(task)
    batch = batch_of(task, rows, tokenizer)
    assert task.labels == ("x", "y", "z")
    assert batch["labels"].tolist() == [[1, 1, 0], [0, 1, 1], [0, 0, 0], [0, 0, 0]]
    assert task.count(batch) == 4
    theirs = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"], labels=batch["labels"]).loss
    torch.testing.assert_close(task.loss(model, batch), theirs * 4)


def test_a_number_is_learnt_by_squared_error(tokenizer):
    rows = [{"text": "a", "label": "1.5"}, {"text": "b", "label": 4}]
    task = fitted(rows, problem="regression")
    model = tiny_bert(task)
    batch = batch_of(task, rows, tokenizer)
    theirs = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"], labels=batch["labels"]).loss
    torch.testing.assert_close(task.loss(model, batch), theirs * 2)
    assert task.best_metric == ("pearson", True)
    with pytest.raises(UserError, match=r"s\.tsv:9: label = 'high' must be a number"):
        task.prepare([{"text": "a", "label": "high", "_where": "s.tsv:9"}], tokenizer)


def test_the_evaluator_counts_a_repeated_row_once_and_means_the_loss_over_rows(tokenizer):
    task = fitted(WEATHER)
    evaluator = task.evaluator()
    batch = {"labels": torch.tensor([1, 0, 1]), "row": torch.tensor([2, 0, 1])}
    outputs = {"logits": torch.tensor([[0.0, 1.0], [0.0, 1.0], [0.0, 1.0]]), "losses": torch.tensor([1.0, 4.0, 1.0])}
    evaluator.update(outputs, batch)
    evaluator.update(outputs, batch)
    scores = evaluator.compute()
    assert scores["loss"] == pytest.approx(2.0)
    assert scores["accuracy"] == pytest.approx(2 / 3)
    assert scores["f1/wet"] == pytest.approx(0.8)
    assert scores["f1_macro"] == pytest.approx(0.4)
    assert scores["mcc"] == 0.0


def test_predictions_are_names_and_probabilities(tokenizer):
    logits = torch.tensor([[0.0, math.log(3)], [math.log(3), 0.0]])
    assert fitted(WEATHER).predictions({"logits": logits}, {}, tokenizer) == [
        {"prediction": "wet", "score": pytest.approx(0.75)},
        {"prediction": "dry", "score": pytest.approx(0.75)},
    ]
    several = fitted([{"label": "x,y"}], problem="multi_label")
    assert several.predictions({"logits": torch.tensor([[math.log(3), -1.0], [-1.0, -1.0]])}, {}, tokenizer) == [
        {"prediction": ["x"], "score": [pytest.approx(0.75)]},
        {"prediction": [], "score": []},
    ]
    number = fitted([], problem="regression")
    assert number.predictions({"logits": torch.tensor([[2.5]])}, {}, tokenizer) == [{"prediction": 2.5, "score": None}]


def test_rows_without_labels_can_be_prepared(tokenizer):
    batch = batch_of(fitted(WEATHER), [{"text": "rain"}, {"text": "two words"}], tokenizer, labelled=False)
    assert "labels" not in batch
    assert batch["attention_mask"].tolist() == [[1, 1, 1, 0], [1, 1, 1, 1]]


def test_the_flat_layout_lays_samples_end_to_end(tokenizer):
    task = fitted(WEATHER)
    samples = [{**sample, "row": row} for row, sample in enumerate(task.prepare(WEATHER, tokenizer))]
    batch = task.collator(tokenizer, layout="flat", train=True)(samples)
    assert batch["input_ids"].tolist() == [sum((sample["input_ids"] for sample in samples), [])]
    assert batch["position_ids"].tolist() == [[0, 1, 2, 3, 4, *range(8), *range(len(samples[2]["input_ids"]))]]
    assert batch["cu_seq_lens_q"].tolist()[:3] == [0, 5, 13]
    assert batch["cu_seq_lens_q"].dtype == torch.int32
    assert batch["max_length_q"] == 8
    assert "attention_mask" not in batch
