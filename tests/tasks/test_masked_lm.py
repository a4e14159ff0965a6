"""Masked language modelling against transformers' collator, loss and fill-mask pipeline, and by hand."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from itertools import islice
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from transformers import (
    AutoTokenizer,
    BertConfig,
    BertForMaskedLM,
    DataCollatorForLanguageModeling,
    LlamaConfig,
    T5Config,
    pipeline,
)

from ftscale import train
from ftscale.base.errors import UserError
from ftscale.config import parse_config
from ftscale.config.tasks import SETTINGS
from ftscale.data.sample import Sample
from ftscale.modalities.collate import IGNORED
from ftscale.run.evaluate import evaluate_run
from ftscale.run.export import export_run
from ftscale.run.predict import predict_file
from ftscale.tasks import build_task
from ftscale.tasks.base import Task
from ftscale.tasks.batch import Batch
from ftscale.tasks.rows import prepare_rows

SIZES = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48}
MASKED = "i lost my [MASK] and the [MASK] ##s of it."


def bert(shared: Path) -> Any:
    return AutoTokenizer.from_pretrained(shared / "weights/tokenizers/bert-base-uncased")


def task_of(shared: Path, **settings: Any) -> Task:
    return build_task(SETTINGS["masked_lm"](name="masked_lm", **settings), bert(shared))


def model_of() -> BertForMaskedLM:
    torch.manual_seed(0)
    config = BertConfig(vocab_size=30522, initializer_range=0.2, **SIZES)  # logits that are far apart
    return BertForMaskedLM(config).eval()


def numbered(samples: list[Sample], **facts: int) -> list[Sample]:
    return [replace(sample, number=number, **facts) for number, sample in enumerate(samples)]


def reviews(shared: Path, number: int) -> list[dict[str, Any]]:
    """Texts of whole words between blanks, by SST-2."""
    with open(shared / "data/text_classification/sst2/train.tsv") as lines:
        return [{"text": line.split("\t")[0], "_where": "train.tsv"} for line in islice(lines, number)]


def batch_of(task: Task, samples: list[Sample], **how: Any) -> Batch:
    return task.collate(samples, **{"layout": "padded", "train": True, **how})


# ---------------------------------------------------------------- what is hidden


def test_tokens_are_hidden_and_replaced_as_transformers_collator_does(shared: Path):
    """Shares of 300 draws over one text; transformers draws the number of hidden tokens too, ours is fixed."""
    task, tokenizer = task_of(shared), bert(shared)
    [sample] = task.prepare([{"text": " ".join(row["text"] for row in reviews(shared, 6))}])
    ids = torch.tensor(sample.inputs["input_ids"])
    ours = [batch_of(task, [replace(sample, epoch=epoch, number=0)]) for epoch in range(300)]
    collator = DataCollatorForLanguageModeling(tokenizer, seed=0)
    theirs = [collator([{"input_ids": ids.tolist()}]) for _ in range(300)]
    found = {}
    for name, drawn in (
        ("ours", [(batch.inputs["input_ids"][0], batch.labels[0]) for batch in ours]),
        ("theirs", [(batch["input_ids"][0], batch["labels"][0]) for batch in theirs]),
    ):
        read, labels = (torch.stack(list(part)) for part in zip(*drawn, strict=True))
        hidden = labels != IGNORED
        assert torch.equal(labels[hidden], ids.expand_as(labels)[hidden])
        assert not hidden[:, [0, -1]].any()
        assert torch.equal(read[~hidden], ids.expand_as(read)[~hidden])
        by_mask, kept = read[hidden] == tokenizer.mask_token_id, read[hidden] == labels[hidden]
        found[name] = [float(part.float().mean()) for part in (hidden, by_mask, kept)]
        if name == "ours":
            assert set(hidden.sum(dim=1).tolist()) == {round(0.15 * (len(ids) - 2))}
            assert hidden.sum(dim=0)[1:-1].min() > 0.07 * 300
            random = read[hidden][~by_mask & ~kept]
            assert len(random.unique()) > 0.9 * len(random)
            assert not np.isin(random.numpy(), tokenizer.all_special_ids).any()
    assert found["ours"] == pytest.approx(found["theirs"], abs=0.015)
    assert found["ours"][1:] == pytest.approx([0.8, 0.1], abs=0.015)


def test_whole_words_are_those_of_transformers_collator(shared: Path):
    """Where words and marks stand between blanks: there, tokens without a gap are one word for transformers."""
    task, tokenizer = task_of(shared, whole_words=True, mask_ratio=0.3), bert(shared)
    rows = [
        row for row in reviews(shared, 200) if all(part.isalnum() or len(part) == 1 for part in row["text"].split())
    ]
    several = 0
    for row, sample in zip(rows, numbered(task.prepare(rows)), strict=True):
        encoded = tokenizer(row["text"], return_offsets_mapping=True, return_special_tokens_mask=True)
        words, _ = DataCollatorForLanguageModeling._calc_word_ids_and_prob_mask(
            np.array([encoded["offset_mapping"]]), np.array([encoded["special_tokens_mask"]])
        )
        groups = [[at for at, own in enumerate(words[0]) if own == word] for word in sorted(set(words[0]) - {-1})]
        assert groups == [[at for at, own in enumerate(sample.label) if own == unit] for unit in range(len(groups))]
        hidden = {at for at, label in enumerate(batch_of(task, [sample]).labels[0].tolist()) if label != IGNORED}
        chosen = [group for group in groups if hidden & set(group)]
        assert hidden == {at for group in chosen for at in group}
        assert len(chosen) == max(1, int(0.3 * len(groups) + 0.5))
        several += sum(len(group) > 1 for group in chosen)
        assert sample.counts is None
    assert len(rows) > 20
    assert several > 5


def test_what_is_hidden_follows_from_seed_epoch_and_row_alone(shared: Path):
    task = task_of(shared)
    samples = numbered(task.prepare(reviews(shared, 5)), seed=3)
    whole = batch_of(task, samples)
    alone = batch_of(task, samples[4:])
    length = alone.labels.shape[1]
    assert torch.equal(whole.labels[4, :length], alone.labels[0])
    assert torch.equal(whole.inputs["input_ids"][4, :length], alone.inputs["input_ids"][0])
    flat = batch_of(task, samples, layout="flat")
    assert torch.equal(flat.labels[0], torch.cat([whole.labels[row, span] for row, span in whole.spans]))
    for other in ({"seed": 4}, {"seed": 3, "epoch": 1}):
        assert not torch.equal(batch_of(task, numbered(samples, **other)).labels, whole.labels)
    assert not torch.equal(batch_of(task, [replace(samples[4], number=7)]).labels, alone.labels)
    scored = [batch_of(task, numbered(samples, **facts), train=False).labels for facts in ({"seed": 9}, {"epoch": 2})]
    assert torch.equal(*scored)
    assert not torch.equal(scored[0], whole.labels)


def test_special_and_unknown_tokens_are_never_hidden_and_a_row_of_them_has_no_target(shared: Path):
    task = task_of(shared, mask_ratio=1.0)
    rows = [{"text": text} for text in ("a [SEP] b [MASK] 🦜 c", "🦜", "[MASK]", "", "word")]
    samples = numbered(task.prepare(rows))
    assert [sample.drop for sample in samples] == ["", "no_target", "no_target", "no_target", ""]
    assert [sample.counts["loss"] for sample in samples] == [3, 0, 0, 0, 1]
    labels = batch_of(task, samples[:1]).labels[0]
    assert task.processor.decode(labels[labels != IGNORED]) == "a b c"
    assert "[UNK]" in task.processor.decode(samples[0].inputs["input_ids"])


def test_texts_are_joined_into_full_samples(shared: Path):
    """Eleven tokens of three texts and two separators, five to a sample between its special tokens."""
    rows = [{"text": text} for text in ("one two three four", "", "unaffable five", "six")]
    blocks = [
        "[CLS] one two three four [SEP] [SEP]",
        "[CLS] una ##ffa ##ble five [SEP] [SEP]",
        "[CLS] six [SEP]",
    ]
    for whole_words in (False, True):
        task = task_of(shared, join_texts=True, max_length=7, whole_words=whole_words)
        samples = task.prepare(rows)
        texts = [" ".join(task.processor.convert_ids_to_tokens(sample.inputs["input_ids"])) for sample in samples]
        assert texts == blocks
        assert {sample.rows for sample in samples} == {(0, 4)}
        units = samples[1].label
        assert [unit == IGNORED for unit in units] == [True, False, False, False, False, True, True]
        assert len(set(units)) == (3 if whole_words else 5)
    assert not task.by_row
    assert task_of(shared).by_row
    assert [sample.rows for sample in prepare_rows(task, rows, labelled=False)] == [(0, 1), (1, 2), (2, 3), (3, 4)]


def test_rows_are_shown_with_what_the_first_epoch_hides(shared: Path):
    task = task_of(shared, mask_ratio=0.5, whole_words=True)
    [sample] = numbered(task.prepare([{"text": "unaffable people came by train"}]))
    pieces = task.show({}, sample)
    assert "".join(text for text, _ in pieces) == "[CLS] unaffable people came by train [SEP]"
    labels = batch_of(task, [sample]).labels[0]
    shown = " ".join(text.strip() for text, is_target in pieces if is_target)
    assert shown == task.processor.decode(labels[labels != IGNORED])


# ---------------------------------------------------------------- loss and scores


@pytest.mark.parametrize("train", [True, False])
def test_the_loss_is_transformers_own_on_the_same_ids_and_labels(shared: Path, train: bool):
    task, model = task_of(shared), model_of()
    batch = batch_of(task, numbered(task.prepare(reviews(shared, 6))), train=train)
    theirs = model(**batch.inputs, labels=batch.labels)
    count = int((batch.labels != IGNORED).sum())
    assert task.count(batch) == {"loss": count}
    assert task.loss(model, batch)["loss"].item() == pytest.approx(theirs.loss.item() * count, rel=1e-5)
    evaluator = task.evaluator()
    evaluator.update(task.outputs(model, batch), batch)
    chosen, loss = batch.labels != IGNORED, theirs.loss.item()
    right = (theirs.logits.argmax(-1)[chosen] == batch.labels[chosen]).float().mean().item()
    assert evaluator.compute() == pytest.approx(
        {"loss": loss, "perplexity": math.exp(loss), "token_accuracy": right}, rel=1e-5
    )


def answers(task: Task, model: torch.nn.Module, texts: list[str]) -> list[dict[str, Any]]:
    samples = numbered(task.prepare([{"text": text} for text in texts], labelled=False))
    batch = batch_of(task, samples, train=False)
    return task.predictions(task.outputs(model, batch), batch)


def test_masks_are_filled_as_by_transformers_pipeline(shared: Path):
    task, model = task_of(shared, top_k=3), model_of()
    fill = pipeline("fill-mask", model=model, tokenizer=bert(shared), top_k=3)
    texts = ["Paris is the [MASK] of France.", MASKED, "nothing is hidden"]
    one, two, none = answers(task, model, texts)
    theirs = fill(texts[0])
    assert one["prediction"] == theirs[0]["sequence"]
    assert one["score"] == pytest.approx(math.log(theirs[0]["score"]), rel=1e-4)
    for ours, expected in [(one["masks"], [theirs]), (two["masks"], fill(texts[1]))]:
        assert len(ours) == len(expected)
        for mine, other in zip(ours, expected, strict=True):
            assert [token["token"] for token in mine] == [token["token_str"] for token in other]
            assert [token["score"] for token in mine] == pytest.approx([token["score"] for token in other], rel=1e-4)
    best = [of_mask[0]["score"] for of_mask in two["masks"]]
    assert two["score"] == pytest.approx(sum(map(math.log, best)) / 2, rel=1e-4)
    assert (none["prediction"], none["masks"]) == ("nothing is hidden", [])
    assert one["pseudo_perplexity"] is two["pseudo_perplexity"] is None


@pytest.mark.parametrize("layout", ["padded", "flat"])
def test_a_text_without_a_mask_has_its_pseudo_perplexity(shared: Path, layout: Any):
    """Each token hidden alone, by the model's own logits, one text at a time."""
    task, model, tokenizer = task_of(shared), model_of(), bert(shared)
    texts = ["she came by train", MASKED, "unaffable", "🦜"]
    samples = numbered(task.prepare([{"text": text} for text in texts], labelled=False))
    batch = batch_of(task, samples, layout=layout, train=False)
    if layout == "flat":  # any model that takes flat rows: ours here reads each sample by itself
        model = by_sample(model)
    found = task.predictions(task.outputs(model, batch), batch)
    for text, answer in zip(texts[::2], found[::2], strict=True):
        ids, chances = tokenizer(text, return_tensors="pt")["input_ids"], []
        for place in range(1, ids.shape[1] - 1):
            hidden = ids.clone()
            hidden[0, place] = tokenizer.mask_token_id
            with torch.no_grad():
                chances.append(float(model_of()(hidden).logits[0, place].log_softmax(-1)[ids[0, place]]))
        assert answer["score"] == pytest.approx(sum(chances) / len(chances), rel=1e-4)
        assert answer["pseudo_perplexity"] == pytest.approx(math.exp(-answer["score"]))
        assert (answer["prediction"], answer["masks"]) == (text, [])
    assert found[1]["pseudo_perplexity"] is None
    assert found[3] == {"prediction": "", "score": None, "masks": [], "pseudo_perplexity": None}


def by_sample(model: BertForMaskedLM) -> torch.nn.Module:
    from ftscale.models.layout import choose_layout

    assert choose_layout(model, wanted="flat", attention="auto", pooled=False, encoder_decoder=False) == "flat"
    return model


# ---------------------------------------------------------------- what is refused


def test_what_a_tokenizer_or_a_row_cannot_do_is_one_sentence(shared: Path):
    qwen = AutoTokenizer.from_pretrained(shared / "weights/tokenizers/qwen2")
    with pytest.raises(UserError, match="has no mask token"):
        build_task(SETTINGS["masked_lm"](name="masked_lm"), qwen)
    slow = SimpleNamespace(mask_token_id=4, is_fast=False, name_or_path="slow")
    with pytest.raises(UserError, match="task.whole_words = true needs a tokenizer that tells words"):
        build_task(SETTINGS["masked_lm"](name="masked_lm", whole_words=True), slow)
    rows = [{"text": "the <mask> of it", "_where": "new.txt:3"}]
    with pytest.raises(UserError, match=r"new.txt:3: text has <mask>, and a mask of this model is written \[MASK\]"):
        task_of(shared).prepare(rows, labelled=False)
    assert task_of(shared).prepare(rows)[0].drop == ""
    with pytest.raises(UserError, match="task.max_length = 2 must be more than the 2 special tokens"):
        task_of(shared, max_length=2, join_texts=True).prepare(rows)
    with pytest.raises(ValueError, match="must be at most 1 together"):
        SETTINGS["masked_lm"](name="masked_lm", mask_replace_ratio=0.95)


def test_a_row_whose_mask_is_cut_off_has_no_answer(shared: Path):
    task = task_of(shared, max_length=6)
    long, short = task.prepare(
        [{"text": "one two three four [MASK]"}, {"text": "one [MASK] two three four"}], labelled=False
    )
    assert (long.drop, long.truncated) == ("mask_cut_off", True)
    assert (short.drop, short.truncated) == ("", True)


@pytest.mark.parametrize(
    ("model_config", "said"),
    [
        (T5Config(), r"is an encoder-decoder \(t5\)"),
        (BertConfig(is_decoder=True), r"is a decoder \(bert\)"),
        (BertConfig(), None),
        (LlamaConfig(), None),  # refused when it is loaded: transformers has no such form of it
    ],
)
def test_a_model_that_does_not_read_both_sides_is_refused(model_config: Any, said: str | None):
    config = parse_config(
        {"task": "masked_lm", "run_folder": "r", "model": "m", "data": {"train": "t.txt"}}, source="the test"
    )
    problems = build_task(config.task).model_problems(config, model_config)
    assert len(problems) == bool(said)
    if said:
        with pytest.raises(UserError, match=said):
            raise UserError(*problems)


# ---------------------------------------------------------------- a run


def test_a_run_is_scored_asked_and_exported(shared: Path, tmp_path: Path):
    """Plain texts through train, evaluate, predict and export; the pipeline fills the exported model's masks alike."""
    model = tmp_path / "model"
    bert(shared).save_pretrained(model)
    BertConfig(vocab_size=30522, initializer_range=0.2, **SIZES).save_pretrained(model)
    rows = tmp_path / "rows.txt"
    rows.write_text("".join(f"{row['text']}\n" for row in reviews(shared, 24)))
    config = {
        "task": {"name": "masked_lm", "whole_words": True, "top_k": 2},
        "run_folder": str(tmp_path / "run"),
        "model": {"name": str(model), "init": "random"},
        "data": {"train": str(rows), "eval": str(rows), "cache_dir": str(tmp_path / "cache")},
        "train": {"max_steps": 2},
        "checkpoint": {"prove": "never"},
    }
    metrics = train(parse_config(config, source="the test")).metrics
    assert evaluate_run(tmp_path / "run") == pytest.approx(
        {name: metrics[name] for name in ("loss", "perplexity", "token_accuracy")}, rel=1e-5
    )
    (tmp_path / "new.txt").write_text(f"{MASKED}\nshe came by train\n")
    for name in ("out.jsonl", "out.csv", "out.parquet"):
        assert predict_file(tmp_path / "run", str(tmp_path / "new.txt"), out=tmp_path / name) == 2
    masked, whole = map(json.loads, (tmp_path / "out.jsonl").read_text().splitlines())
    export_run(tmp_path / "run", tmp_path / "exported")
    theirs = pipeline("fill-mask", model=str(tmp_path / "exported"), top_k=2)(MASKED)
    assert [[one["token"] for one in of] for of in masked["masks"]] == [
        [one["token_str"] for one in of] for of in theirs
    ]
    assert whole["pseudo_perplexity"] == pytest.approx(math.exp(-whole["score"]))
    assert (whole["text"], whole["prediction"]) == ("she came by train", "she came by train")
