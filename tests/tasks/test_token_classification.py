"""Token classification: pieces of words, words without pieces, losses and entity scores."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import AutoTokenizer, BertConfig, BertForTokenClassification

from ftscale.base.errors import UserError
from ftscale.config.tasks.token_classification import TokenClassificationSettings
from ftscale.tasks.batch import Batch
from ftscale.tasks.token_classification import TokenClassification

LABELS = ("B-Disease", "I-Disease", "O")
ROWS = [
    {
        "words": ["the", "adenomatous", "polyposis", "gene"],
        "tags": ["O", "B-Disease", "I-Disease", "O"],
        "_where": "a:1",
    },
    {"words": ["no", "\u200b", "cancer"], "tags": ["O", "O", "B-Disease"], "_where": "a:6"},
]


@pytest.fixture(scope="module")
def tokenizer(shared: Path):
    return AutoTokenizer.from_pretrained(shared / "weights/tokenizers/bert-base-uncased")


def build(tokenizer=None, **settings) -> TokenClassification:
    settings = {"labels": LABELS, "scheme": "IOB2", **settings}
    return TokenClassification(TokenClassificationSettings(**settings), tokenizer)


def tiny_bert(task: TokenClassification) -> BertForTokenClassification:
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    return BertForTokenClassification(BertConfig(vocab_size=30522, **sizes, **task.model_settings())).eval()


def batch_of(task: TokenClassification, rows: list[dict], *, layout="padded", train=False, **options) -> Batch:
    samples = [replace(sample, number=number) for number, sample in enumerate(task.prepare(rows, **options))]
    return task.collate(samples, layout=layout, train=train)


def test_the_first_piece_of_each_word_has_the_label(tokenizer):
    first, second = build(tokenizer).prepare(ROWS)
    pieces = tokenizer.convert_ids_to_tokens(first.inputs["input_ids"])
    assert pieces == ["[CLS]", "the", "aden", "##oma", "##tou", "##s", "poly", "##po", "##sis", "gene", "[SEP]"]
    assert first.label == [-100, 2, 0, -100, -100, -100, 1, -100, -100, 2, -100]
    assert first.note["places"] == [1, 2, 6, 9]
    assert first.counts == {"loss": 4}
    assert second.note["places"] == [1, -1, 2]
    assert second.counts == {"loss": 2}
    assert second.note["tags"] == [2, 2, 0]


def test_words_and_tags_that_are_texts_are_split_at_white_space(tokenizer):
    lists = {"words": ["the", "gene\u00a0x", "[1]"], "tags": ["O", "B-Disease", "O"]}
    texts = {"words": "the  gene\u00a0x\t[1] ", "tags": " O B-Disease O", "_where": "a:1"}
    task = build(tokenizer)
    [of_lists], [of_texts] = task.prepare([lists]), task.prepare([texts])
    assert (of_texts.inputs, of_texts.label, of_texts.note) == (of_lists.inputs, of_lists.label, of_lists.note)
    assert build(labels=None, scheme="auto").fit([texts])["labels"] == LABELS
    assert task.show(texts, of_texts) == task.show(lists, of_lists)
    assert task.input_row(texts)["words"] == lists["words"]
    assert task.input_row({"words": "a b"})["words"] == ["a", "b"]


def test_texts_of_lists_are_lists_and_not_split(tokenizer):
    [sample] = build(tokenizer).prepare([{"words": "['a b', 'c']", "tags": "['O', 'O']"}])
    assert len(sample.note["places"]) == 2
    with pytest.raises(UserError, match=r"tags = 'O O' must be a list of strings"):
        build(tokenizer).prepare([{"words": "['a', 'b']", "tags": "O O"}])
    numbered = build(tokenizer, label_ids=(0, 1, 2))
    assert numbered.prepare([{"words": "a b", "tags": "2 0"}])[0].note["tags"] == [2, 0]


@pytest.mark.parametrize("name", ["gpt2", "qwen2"])
def test_byte_level_tokenizers_see_words_as_in_running_text(shared: Path, name: str):
    tokenizer = AutoTokenizer.from_pretrained(shared / "weights/tokenizers" / name)
    [sample] = build(tokenizer).prepare([{"words": ["the", "adenomatous", "gene"], "tags": ["O", "O", "O"]}])
    assert tokenizer.decode(sample.inputs["input_ids"]) == "the adenomatous gene"
    assert sample.inputs["input_ids"] == tokenizer("the adenomatous gene")["input_ids"]
    assert sample.note["places"][:2] == [0, 1]


def test_fitting_recognises_the_scheme_and_completes_the_tags():
    task = TokenClassification(TokenClassificationSettings())
    rows = [{"tags": ["I-X", "O"]}, {"tags": ["I-Y"]}]
    assert task.fit(rows) == {"scheme": "IOB1", "labels": ("B-X", "B-Y", "I-X", "I-Y", "O")}
    assert build().fit([{"tags": ["O", "B-Disease"]}]) == {"scheme": "IOB2", "labels": LABELS}


def test_tags_of_another_scheme_are_learnt_as_iob2(tokenizer):
    rows = [{"words": ["no", "breast", "cancer"], "tags": ["O", "B-Disease", "E-Disease"]}]
    [sample] = build(tokenizer, scheme="BIOES").prepare(rows)
    assert sample.note["tags"] == [2, 0, 1]


def test_mistakes_in_rows_are_named(tokenizer):
    task = build(tokenizer)
    with pytest.raises(UserError, match=r"f:3: 2 words against 1 tag"):
        task.prepare([{"words": ["a", "b"], "tags": ["O"], "_where": "f:3"}])
    with pytest.raises(UserError, match=r"f:3: 2 words against 3 tags"):
        task.prepare([{"words": "a b", "tags": "O O O", "_where": "f:3"}])
    with pytest.raises(UserError, match=r"f:3: words = 'a b' must be a list of strings"):
        task.prepare([{"words": "a b", "tags": ["O"], "_where": "f:3"}])
    with pytest.raises(UserError, match=r"f:3: tags = 'B-Diseas' is not known; did you mean 'B-Disease'\?"):
        task.prepare([{"words": ["a"], "tags": ["B-Diseas"], "_where": "f:3"}])
    with pytest.raises(UserError, match=r"must hold O"):
        build(labels=("B-X", "I-X"))


def test_the_loss_is_the_sum_over_first_pieces_in_both_layouts(tokenizer):
    task = build(tokenizer)
    model = tiny_bert(task)
    batch = batch_of(task, ROWS, train=True)
    theirs = model(**batch.inputs, labels=batch.labels).loss
    assert task.count(batch) == {"loss": 6}
    torch.testing.assert_close(task.loss(model, batch), {"loss": theirs * 6})
    assert batch.notes == []
    flat = batch_of(task, ROWS, layout="flat", train=True)
    assert flat.labels.tolist()[0] == [label for sample in task.prepare(ROWS) for label in sample.label]


def test_a_batch_without_any_target_has_a_loss_of_zero_that_can_go_backward(tokenizer):
    task = build(tokenizer)
    rows = [{"words": ["\u200b"], "tags": ["O"]}]
    assert task.prepare(rows)[0].drop == "no_target"
    loss = task.loss(tiny_bert(task), batch_of(task, rows))["loss"]
    loss.backward()
    assert loss.item() == 0.0


def test_words_that_were_cut_off_count_as_predicted_outside(tokenizer):
    """A model that is right wherever it sees a word still misses the entity beyond max_length."""
    task = build(tokenizer, max_length=4)
    rows = [
        {"words": ["no", "cancer", "or", "tumour"], "tags": ["O", "B-Disease", "O", "B-Disease"]},
        {"words": ["cancer", "\u200b"], "tags": ["B-Disease", "I-Disease"]},
    ]
    samples = task.prepare(rows)
    assert [(sample.truncated, sample.drop, sample.targets) for sample in samples] == [(True, "", 2), (False, "", 1)]
    batch = batch_of(task, rows)
    outputs = task.outputs(Oracle(batch.labels), batch)
    assert outputs["tags"] == [[2, 0, 2, 2], [0, 2]]
    evaluator = task.evaluator()
    evaluator.update(outputs, batch)
    scores = evaluator.compute()
    assert scores["recall"] == pytest.approx(1 / 3)  # the third entity, of a word that is nothing, is too short
    assert scores["precision"] == pytest.approx(1 / 2)
    assert scores["token_accuracy"] == pytest.approx(4 / 6)
    assert scores["loss"] == pytest.approx(0.0, abs=1e-6)


class Oracle(torch.nn.Module):
    """Answers every labelled position rightly and all others with the first class."""

    def __init__(self, labels: torch.Tensor) -> None:
        super().__init__()
        self.labels = labels

    def forward(self, **inputs: torch.Tensor):
        from types import SimpleNamespace

        logits = torch.nn.functional.one_hot(self.labels.clamp(min=0), len(LABELS)).float() * 50
        return SimpleNamespace(logits=logits)


def test_outputs_are_the_same_for_each_row_in_a_batch_of_any_order(tokenizer):
    task = build(tokenizer)
    model = tiny_bert(task)
    batch = batch_of(task, ROWS)
    outputs = task.outputs(model, batch)
    alone = task.outputs(model, batch_of(task, ROWS[1:]))
    assert outputs["tags"][1] == alone["tags"][0]
    assert outputs["losses"][1] == pytest.approx(alone["losses"][0], rel=1e-5)
    assert sum(outputs["losses"]) == pytest.approx(task.loss(model, batch)["loss"].item(), rel=1e-5)


def test_predictions_have_a_tag_for_each_word_and_the_entities():
    task = build()
    outputs = {"tags": [[2, 0, 1, 2], []], "scores": [[1.0, 0.5, 0.5, 1.0], []]}
    assert task.predictions(outputs, Batch({}, torch.arange(2))) == [
        {
            "prediction": ["O", "B-Disease", "I-Disease", "O"],
            "entities": [{"type": "Disease", "start": 1, "end": 3}],
            "score": 0.75,
        },
        {"prediction": [], "entities": [], "score": None},
    ]


def test_rows_without_tags_get_predictions(tokenizer):
    task = build(tokenizer)
    batch = batch_of(task, [{"words": ["a", "\u200b", "b"]}, {"words": []}], labelled=False)
    assert batch.labels is None
    rows = task.predictions(task.outputs(tiny_bert(task), batch), batch)
    assert [len(row["prediction"]) for row in rows] == [3, 0]
    assert rows[0]["prediction"][1] == "O"


def test_the_words_of_a_sample_are_as_the_model_read_them(tokenizer):
    first, second = build(tokenizer).prepare(ROWS)
    assert build(tokenizer).words(first) == ["the", "adenomatous", "polyposis", "gene"]
    assert build(tokenizer).words(second) == ["no", "", "cancer"]
    [cut] = build(tokenizer, max_length=5).prepare(ROWS[:1])
    assert build(tokenizer).words(cut) == ["the", "adenoma", "", ""]
