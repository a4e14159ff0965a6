"""Token classification: pieces of words, words without pieces, losses and entity scores."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import AutoTokenizer, BertConfig, BertForTokenClassification

from ftscale.config.schema import TokenClassificationSettings
from ftscale.errors import UserError
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


def build(**settings) -> TokenClassification:
    return TokenClassification(TokenClassificationSettings(**{"labels": LABELS, "scheme": "IOB2", **settings}))


def tiny_bert(task: TokenClassification) -> BertForTokenClassification:
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    return BertForTokenClassification(BertConfig(vocab_size=30522, **sizes, **task.model_settings())).eval()


def batch_of(
    task: TokenClassification, rows: list[dict], tokenizer, *, layout="padded", train=False, **options
) -> dict:
    samples = [{**sample, "row": row} for row, sample in enumerate(task.prepare(rows, tokenizer, **options))]
    return task.collator(tokenizer, layout=layout, train=train)(samples)


def test_the_first_piece_of_each_word_has_the_label(tokenizer):
    first, second = build().prepare(ROWS, tokenizer)
    pieces = tokenizer.convert_ids_to_tokens(first["input_ids"])
    assert pieces == ["[CLS]", "the", "aden", "##oma", "##tou", "##s", "poly", "##po", "##sis", "gene", "[SEP]"]
    assert first["labels"] == [-100, 2, 0, -100, -100, -100, 1, -100, -100, 2, -100]
    assert first["places"] == [1, 2, 6, 9]
    assert first["targets"] == 4
    assert second["places"] == [1, -1, 2]
    assert second["targets"] == 2
    assert second["tags"] == [2, 2, 0]


@pytest.mark.parametrize("name", ["gpt2", "qwen2"])
def test_byte_level_tokenizers_see_words_as_in_running_text(shared: Path, name: str):
    tokenizer = AutoTokenizer.from_pretrained(shared / "weights/tokenizers" / name)
    [sample] = build().prepare([{"words": ["the", "adenomatous", "gene"], "tags": ["O", "O", "O"]}], tokenizer)
    assert tokenizer.decode(sample["input_ids"]) == "the adenomatous gene"
    assert sample["input_ids"] == tokenizer("the adenomatous gene")["input_ids"]
    assert sample["places"][:2] == [0, 1]


def test_fitting_recognises_the_scheme_and_completes_the_tags():
    task = TokenClassification(TokenClassificationSettings())
    rows = [{"tags": ["I-X", "O"]}, {"tags": ["I-Y"]}]
    assert task.fit(rows) == {"scheme": "IOB1", "labels": ("B-X", "B-Y", "I-X", "I-Y", "O")}
    assert build().fit([{"tags": ["O", "B-Disease"]}]) == {"scheme": "IOB2", "labels": LABELS}


def test_tags_of_another_scheme_are_learnt_as_iob2(tokenizer):
    rows = [{"words": ["no", "breast", "cancer"], "tags": ["O", "B-Disease", "E-Disease"]}]
    [sample] = build(scheme="BIOES").prepare(rows, tokenizer)
    assert sample["tags"] == [2, 0, 1]


def test_mistakes_in_rows_are_named(tokenizer):
    task = build()
    with pytest.raises(UserError, match=r"f:3: 2 words against 1 tag"):
        task.prepare([{"words": ["a", "b"], "tags": ["O"], "_where": "f:3"}], tokenizer)
    with pytest.raises(UserError, match=r"f:3: words = 'a b' must be a list of strings"):
        task.prepare([{"words": "a b", "tags": ["O"], "_where": "f:3"}], tokenizer)
    with pytest.raises(UserError, match=r"f:3: tags = 'B-Diseas' is not known; did you mean 'B-Disease'\?"):
        task.prepare([{"words": ["a"], "tags": ["B-Diseas"], "_where": "f:3"}], tokenizer)
    with pytest.raises(UserError, match=r"must hold O"):
        build(labels=("B-X", "I-X"))


def test_the_loss_is_the_sum_over_first_pieces_in_both_layouts(tokenizer):
    task = build()
    model = tiny_bert(task)
    batch = batch_of(task, ROWS, tokenizer, train=True)
    theirs = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"], labels=batch["labels"]).loss
    assert task.count(batch) == 6
    torch.testing.assert_close(task.loss(model, batch), theirs * 6)
    assert "references" not in batch
    flat = batch_of(task, ROWS, tokenizer, layout="flat", train=True)
    assert flat["labels"].tolist()[0] == [
        label for sample in task.prepare(ROWS, tokenizer) for label in sample["labels"]
    ]


def test_a_batch_without_any_target_has_a_loss_of_zero_that_can_go_backward(tokenizer):
    task = build()
    rows = [{"words": ["\u200b"], "tags": ["O"]}]
    assert task.prepare(rows, tokenizer)[0]["note"] == "no_target"
    loss = task.loss(tiny_bert(task), batch_of(task, rows, tokenizer))
    loss.backward()
    assert loss.item() == 0.0


def test_words_that_were_cut_off_count_as_predicted_outside(tokenizer):
    """A model that is right wherever it sees a word still misses the entity beyond max_length."""
    task = build(max_length=4)
    rows = [
        {"words": ["no", "cancer", "or", "tumour"], "tags": ["O", "B-Disease", "O", "B-Disease"]},
        {"words": ["cancer", "\u200b"], "tags": ["B-Disease", "I-Disease"]},
    ]
    samples = task.prepare(rows, tokenizer)
    assert [(sample["note"], sample["targets"]) for sample in samples] == [("truncated", 2), ("", 1)]
    batch = batch_of(task, rows, tokenizer)
    outputs = task.outputs(Oracle(batch["labels"]), batch, tokenizer)
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
    task = build()
    model = tiny_bert(task)
    batch = batch_of(task, ROWS, tokenizer)
    outputs = task.outputs(model, batch, tokenizer)
    alone = task.outputs(model, batch_of(task, ROWS[1:], tokenizer), tokenizer)
    assert outputs["tags"][1] == alone["tags"][0]
    assert outputs["losses"][1] == pytest.approx(alone["losses"][0], rel=1e-5)
    assert sum(outputs["losses"]) == pytest.approx(outputs["loss"].item(), rel=1e-5)


def test_predictions_have_a_tag_for_each_word_and_the_entities(tokenizer):
    task = build()
    outputs = {"tags": [[2, 0, 1, 2], []], "scores": [[1.0, 0.5, 0.5, 1.0], []]}
    assert task.predictions(outputs, {}, tokenizer) == [
        {
            "prediction": ["O", "B-Disease", "I-Disease", "O"],
            "entities": [{"type": "Disease", "start": 1, "end": 3}],
            "score": 0.75,
        },
        {"prediction": [], "entities": [], "score": None},
    ]


def test_rows_without_tags_get_predictions(tokenizer):
    task = build()
    batch = batch_of(task, [{"words": ["a", "\u200b", "b"]}, {"words": []}], tokenizer, labelled=False)
    rows = task.predictions(task.outputs(tiny_bert(task), batch, tokenizer), batch, tokenizer)
    assert [len(row["prediction"]) for row in rows] == [3, 0]
    assert rows[0]["prediction"][1] == "O"
