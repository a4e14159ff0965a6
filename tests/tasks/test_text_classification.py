"""Text classification: labels, pairs, lengths, losses and scores."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from transformers import AutoTokenizer, BertConfig, BertForSequenceClassification

from ftscale.base.errors import UserError
from ftscale.config.tasks.text_classification import TextClassificationSettings
from ftscale.tasks.batch import Batch
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


def fitted(rows: list[dict], tokenizer=None, **settings) -> TextClassification:
    task = TextClassification(TextClassificationSettings(**settings))
    return TextClassification(task.settings.model_copy(update=task.fit(rows)), tokenizer)


def batch_of(task: TextClassification, rows: list[dict], **options) -> Batch:
    return task.collate(task.prepare(rows, **options), layout="padded", train=False)


def own_mean(model: BertForSequenceClassification, batch: Batch) -> torch.Tensor:
    """The loss that the model itself makes, a mean over the samples."""
    return model(**batch.inputs, labels=batch.labels).loss


def test_class_names_are_sorted_and_numbers_by_value():
    assert fitted(WEATHER).labels == ("dry", "wet")
    assert fitted([{"label": value} for value in (10, "9", 2.0, "10")]).labels == ("2", "9", "10")


def test_one_class_alone_is_refused():
    with pytest.raises(UserError, match=r"\['wet'\]: too few"):
        fitted(WEATHER[:1])


def test_a_label_that_training_never_saw_is_named_with_its_row_and_the_nearest_one(tokenizer):
    row = {"text": "rain", "label": "wett", "_where": "eval.csv:7"}
    with pytest.raises(UserError, match=r"eval\.csv:7: label = 'wett' is not known; did you mean 'wet'\?"):
        fitted(WEATHER, tokenizer).prepare([row])


@pytest.mark.parametrize("label", [None, "", "  ", math.nan])
def test_a_missing_label_is_named_with_its_row(tokenizer, label):
    with pytest.raises(UserError, match=r"eval\.csv:7: label = .* must be a class"):
        fitted(WEATHER, tokenizer).prepare([{"text": "rain", "label": label, "_where": "eval.csv:7"}])


def test_a_row_without_text_is_named(tokenizer):
    with pytest.raises(UserError, match=r"x\.csv:3: text = None must be a text"):
        fitted(WEATHER, tokenizer).prepare([{"text": None, "label": "wet", "_where": "x.csv:3"}])


def test_a_pair_is_one_sample_with_a_separator_between(tokenizer):
    [sample] = fitted(WEATHER, tokenizer).prepare([{"text": "rain", "text_pair": "sun", "label": "wet"}])
    assert tokenizer.decode(sample.inputs["input_ids"]) == "[CLS] rain [SEP] sun [SEP]"
    assert sample.cost == 5
    assert sample.label == 1


def test_token_types_of_a_pair_reach_the_model(minilm):
    task = fitted(WEATHER, AutoTokenizer.from_pretrained(minilm))
    batch = batch_of(task, [{"text": "rain", "text_pair": "sun", "label": "wet"}])
    assert batch.inputs["token_type_ids"].tolist() == [[0, 0, 0, 1, 1]]


def test_long_rows_are_cut_dropped_or_refused_as_asked(tokenizer):
    for too_long, truncated, drop in (("truncate", True, ""), ("drop", False, "too_long")):
        samples = fitted(WEATHER, tokenizer, max_length=5, too_long=too_long).prepare(WEATHER)
        assert [sample.truncated for sample in samples] == [False, truncated, False]
        assert [sample.drop for sample in samples] == ["", drop, ""]
        assert [sample.cost for sample in samples] == [5, 5, 5]
        assert samples[1].inputs["input_ids"][-1] == tokenizer.sep_token_id
    with pytest.raises(UserError, match=r"w\.csv:3: 8 tokens are more than task\.max_length = 5"):
        fitted(WEATHER, tokenizer, max_length=5, too_long="raise").prepare(WEATHER)


def test_an_empty_text_is_the_end_token_where_the_tokenizer_adds_nothing(shared: Path):
    gpt2 = AutoTokenizer.from_pretrained(shared / "weights/tokenizers/gpt2")
    [sample] = fitted(WEATHER, gpt2).prepare([{"text": "", "label": "wet"}])
    assert sample.inputs["input_ids"] == [gpt2.eos_token_id]


def test_the_loss_is_the_sum_of_what_the_model_itself_would_mean(tokenizer):
    task = fitted(WEATHER, tokenizer)
    model = tiny_bert(task)
    batch = batch_of(task, WEATHER)
    assert batch.labels.tolist() == [1, 0, 1]
    assert task.count(batch) == {"loss": 3}
    torch.testing.assert_close(task.loss(model, batch), {"loss": own_mean(model, batch) * 3})


def test_several_classes_come_as_a_list_or_joined_and_may_be_none(tokenizer):
    rows = [{"text": "a", "label": ["x", "y"]}, {"text": "b", "label": "y| z"}, {"text": "c", "label": []}]
    rows.append({"text": "d", "label": ""})
    task = fitted(rows, tokenizer, problem="multi_label", label_separator="|")
    model = tiny_bert(task)
    batch = batch_of(task, rows)
    assert task.labels == ("x", "y", "z")
    assert batch.labels.tolist() == [[1, 1, 0], [0, 1, 1], [0, 0, 0], [0, 0, 0]]
    assert task.count(batch) == {"loss": 4}
    torch.testing.assert_close(task.loss(model, batch), {"loss": own_mean(model, batch) * 4})


def test_a_number_is_learnt_by_squared_error(tokenizer):
    rows = [{"text": "a", "label": "1.5"}, {"text": "b", "label": 4}]
    task = fitted(rows, tokenizer, problem="regression")
    model = tiny_bert(task)
    batch = batch_of(task, rows)
    torch.testing.assert_close(task.loss(model, batch), {"loss": own_mean(model, batch) * 2})
    assert task.best_metric == "pearson"
    assert "pearson" not in task.evaluator().lower_is_better
    with pytest.raises(UserError, match=r"s\.tsv:9: label = 'high' must be a number"):
        task.prepare([{"text": "a", "label": "high", "_where": "s.tsv:9"}])


def test_the_evaluator_counts_a_repeated_row_once_and_means_the_loss_over_rows():
    task = fitted(WEATHER)
    evaluator = task.evaluator()
    batch = Batch({}, torch.tensor([2, 0, 1]), torch.tensor([1, 0, 1]))
    outputs = {"logits": torch.tensor([[0.0, 1.0], [0.0, 1.0], [0.0, 1.0]]), "losses": torch.tensor([1.0, 4.0, 1.0])}
    evaluator.update(outputs, batch)
    evaluator.update(outputs, batch)
    scores = evaluator.compute()
    assert scores["loss"] == pytest.approx(2.0)
    assert scores["accuracy"] == pytest.approx(2 / 3)
    assert scores["f1/wet"] == pytest.approx(0.8)
    assert scores["f1_macro"] == pytest.approx(0.4)
    assert scores["mcc"] == 0.0


def test_predictions_are_names_and_probabilities():
    logits = torch.tensor([[0.0, math.log(3)], [math.log(3), 0.0]])
    two, one = Batch({}, torch.arange(2)), Batch({}, torch.arange(1))
    assert fitted(WEATHER).predictions({"logits": logits}, two) == [
        {"prediction": "wet", "score": pytest.approx(0.75)},
        {"prediction": "dry", "score": pytest.approx(0.75)},
    ]
    several = fitted([{"label": "x,y"}], problem="multi_label")
    assert several.predictions({"logits": torch.tensor([[math.log(3), -1.0], [-1.0, -1.0]])}, two) == [
        {"prediction": ["x"], "score": [pytest.approx(0.75)]},
        {"prediction": [], "score": []},
    ]
    number = fitted([], problem="regression")
    assert number.predictions({"logits": torch.tensor([[2.5]])}, one) == [{"prediction": 2.5, "score": None}]


def test_rows_without_labels_can_be_prepared(tokenizer):
    batch = batch_of(fitted(WEATHER, tokenizer), [{"text": "rain"}, {"text": "two words"}], labelled=False)
    assert batch.labels is None
    assert batch.inputs["attention_mask"].tolist() == [[1, 1, 1, 0], [1, 1, 1, 1]]


def test_the_flat_layout_lays_samples_end_to_end(tokenizer):
    task = fitted(WEATHER, tokenizer)
    samples = task.prepare(WEATHER)
    inputs = task.collate(samples, layout="flat", train=True).inputs
    ids = [sample.inputs["input_ids"] for sample in samples]
    assert inputs["input_ids"].tolist() == [sum(ids, [])]
    assert inputs["position_ids"].tolist() == [[0, 1, 2, 3, 4, *range(8), *range(len(ids[2]))]]
    assert inputs["cu_seq_lens_q"].tolist()[:3] == [0, 5, 13]
    assert inputs["cu_seq_lens_q"].dtype == torch.int32
    assert inputs["max_length_q"] == 8
    assert "attention_mask" not in inputs
