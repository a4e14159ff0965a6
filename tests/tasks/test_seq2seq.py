"""Sequence to sequence: targets, losses, generation and its scores."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import pytest
import sacrebleu
import torch
from peft import LoraConfig, get_peft_model
from rouge_score.rouge_scorer import RougeScorer
from transformers import (
    AutoTokenizer,
    M2M100Config,
    M2M100ForConditionalGeneration,
    T5Config,
    T5ForConditionalGeneration,
)

from ftscale.base.errors import UserError
from ftscale.config.tasks.seq2seq import Seq2SeqSettings
from ftscale.tasks.batch import Batch
from ftscale.tasks.rows import prepare_rows
from ftscale.tasks.seq2seq import Seq2Seq, _decoder_input_ids

ROWS = [
    {"source": "Ein Hund l\u00e4uft.", "target": "A dog is running."},
    {"source": "Zwei M\u00e4nner stehen am Herd und bereiten Essen zu.", "target": "Two men cook."},
    {"source": "Nein", "target": "No"},
]


@pytest.fixture(scope="module")
def tokenizer(shared: Path):
    return AutoTokenizer.from_pretrained(shared / "weights/tokenizers/t5")


@pytest.fixture(scope="module")
def model() -> T5ForConditionalGeneration:
    torch.manual_seed(0)
    sizes = {"d_model": 16, "d_kv": 8, "d_ff": 32, "num_layers": 1, "num_decoder_layers": 1, "num_heads": 2}
    return T5ForConditionalGeneration(T5Config(vocab_size=32128, decoder_start_token_id=0, **sizes)).eval()


def build(tokenizer=None, **settings) -> Seq2Seq:
    return Seq2Seq(Seq2SeqSettings(**settings), tokenizer)


def batch_of(task: Seq2Seq, rows: list[dict], *, train=False, labelled=True) -> Batch:
    samples = [replace(sample, number=number) for number, sample in enumerate(task.prepare(rows, labelled=labelled))]
    return task.collate(samples, layout="padded", train=train)


def test_a_sample_has_the_prefixed_source_and_the_target_with_its_end(tokenizer):
    task = build(tokenizer, source_prefix="translate German to English: ")
    [sample] = task.prepare(ROWS[:1])
    ids = sample.inputs["input_ids"]
    assert tokenizer.decode(ids) == "translate German to English: Ein Hund l\u00e4uft.</s>"
    assert tokenizer.decode(sample.label) == "A dog is running.</s>"
    assert sample.counts == {"loss": len(sample.label)}
    assert sample.cost == len(ids) + len(sample.label)
    assert (sample.note, task.reference(sample)) == (["A dog is running."], "A dog is running.")


def test_of_several_references_the_first_is_learned_and_all_are_scored(model, tokenizer):
    rows = [
        {"source": "a", "target": ["A dog runs.", "The dog is running in the park.", " ", None]},
        {"source": "b", "target": ["Two men are cooking a meal together."]},
        {"source": "c", "target": "No one is there today."},
    ]
    written = ["The dog runs in the park.", "Two men cook a meal together.", "No one was there today."]
    task = build(tokenizer)
    batch = batch_of(task, rows)
    assert tokenizer.decode(task.prepare(rows)[0].label) == "A dog runs.</s>"
    assert task.target_texts(rows[0]) == ["A dog runs."]
    assert batch.notes == [rows[0]["target"][:2], rows[1]["target"], [rows[2]["target"]]]
    evaluator = task.evaluator()
    evaluator.update({**task.outputs(model, batch), "predictions": written}, batch)
    scores = evaluator.compute()
    streams = [[notes[0] for notes in batch.notes], [rows[0]["target"][1], None, None]]
    assert scores["bleu"] == pytest.approx(sacrebleu.corpus_bleu(written, streams).score)
    assert scores["chrf"] == pytest.approx(sacrebleu.corpus_chrf(written, streams).score)
    assert scores["bleu"] > sacrebleu.corpus_bleu(written, streams[:1]).score + 5
    scorer = RougeScorer(["rouge2"])
    best = [
        max(scorer.score(text, prediction)["rouge2"].fmeasure for text in notes)
        for notes, prediction in zip(batch.notes, written, strict=True)
    ]
    assert scores["rouge2"] == pytest.approx(sum(best) / 3)


@pytest.mark.parametrize("target", [[], [None], None])
def test_a_row_without_any_reference_is_refused_or_left_out(tokenizer, target):
    row = {"source": "a", "target": target, "_where": "a.jsonl:1"}
    with pytest.raises(UserError, match=r"a\.jsonl:1: target = None must be a text; mend the row, set drop"):
        build(tokenizer).prepare([row])
    [sample] = prepare_rows(build(tokenizer), [{**row, "_drop": ("missing",)}])
    assert sample.drop == "missing"


def test_without_generation_a_sample_holds_no_text(tokenizer):
    task = build(tokenizer, generate=None)
    [sample] = task.prepare(ROWS[:1])
    assert (sample.note, task.reference(sample)) == (None, "")


def test_long_sources_and_targets_are_noted_and_empty_targets_have_nothing_to_learn(tokenizer):
    rows = [{"source": "a " * 20, "target": "b"}, {"source": "a", "target": "b " * 20}, {"source": "a", "target": " "}]
    samples = build(tokenizer, max_length=8).prepare(rows)
    assert [sample.truncated for sample in samples] == [True, True, False]
    assert [sample.drop for sample in samples] == ["", "", "no_target"]
    samples = build(tokenizer, max_length=8, max_target_length=100).prepare(rows)
    assert [sample.truncated for sample in samples] == [True, False, False]
    assert [sample.drop for sample in samples] == ["", "", "no_target"]
    samples = build(tokenizer, max_length=8, too_long="drop").prepare(rows)
    assert [sample.truncated for sample in samples] == [False, False, False]
    assert [sample.drop for sample in samples] == ["too_long", "too_long", "no_target"]
    with pytest.raises(UserError, match=r"task\.max_target_length = 4"):
        build(tokenizer, max_target_length=4, too_long="raise").prepare(rows[1:])


def test_the_loss_is_the_sum_of_what_the_model_itself_would_mean(model, tokenizer):
    task = build(tokenizer)
    batch = batch_of(task, ROWS, train=True)
    theirs = model(**batch.inputs, labels=batch.labels).loss
    targets = sum(sample.targets for sample in task.prepare(ROWS))
    assert task.count(batch) == {"loss": targets}
    torch.testing.assert_close(task.loss(model, batch), {"loss": theirs * targets}, rtol=1e-5, atol=0)
    assert batch.notes == []


def test_the_loss_goes_through_an_adapter(model, tokenizer):
    import copy

    task = build(tokenizer)
    batch = batch_of(task, ROWS, train=True)
    adapted = get_peft_model(copy.deepcopy(model), LoraConfig(task_type="SEQ_2_SEQ_LM", target_modules=["q", "v"]))
    plain = task.loss(model, batch)["loss"]
    loss = task.loss(adapted, batch)["loss"]
    torch.testing.assert_close(loss, plain)  # a fresh LoRA adds nothing
    loss.backward()
    gradients = {name for name, parameter in adapted.named_parameters() if parameter.grad is not None}
    assert gradients
    assert all("lora_" in name for name in gradients)


def test_a_model_without_a_way_of_its_own_gets_the_target_moved_by_one():
    config = M2M100Config(
        vocab_size=50,
        d_model=16,
        encoder_layers=1,
        decoder_layers=1,
        encoder_attention_heads=2,
        decoder_attention_heads=2,
        encoder_ffn_dim=16,
        decoder_ffn_dim=16,
    )
    model = M2M100ForConditionalGeneration(config).eval()
    labels = torch.tensor([[7, 8, 2], [9, 2, -100]])
    assert _decoder_input_ids(model, labels).tolist() == [[2, 7, 8], [2, 9, 2]]
    source = torch.tensor([[5, 6, 2], [7, 8, 2]])
    theirs = model(input_ids=source, labels=labels).loss
    inputs = {"input_ids": source, "attention_mask": torch.ones_like(source)}
    torch.testing.assert_close(build().loss(model, Batch(inputs, torch.arange(2), labels)), {"loss": theirs * 5})


def test_evaluation_scores_losses_and_generated_texts(model, tokenizer):
    task = build(tokenizer, generate={"max_new_tokens": 5})
    batch = batch_of(task, ROWS)
    outputs = task.outputs(model, batch)
    alone = task.outputs(model, batch_of(task, ROWS[1:2]))
    assert outputs["losses"][1].item() == pytest.approx(alone["losses"][0].item(), rel=1e-5)
    assert outputs["counts"].tolist() == [sample.targets for sample in task.prepare(ROWS)]
    whole = outputs["losses"].sum()
    torch.testing.assert_close({"loss": whole}, task.loss(model, batch), rtol=1e-5, atol=0)
    evaluator = task.evaluator()
    evaluator.update({**outputs, "predictions": [row["target"] for row in ROWS]}, batch)
    scores = evaluator.compute()
    assert scores["bleu"] == pytest.approx(100.0)
    assert scores["rougeL"] == pytest.approx(1.0)
    assert scores["loss"] == pytest.approx(whole.item() / sum(outputs["counts"].tolist()), rel=1e-5)
    assert scores["perplexity"] == pytest.approx(math.exp(scores["loss"]))
    assert scores["token_accuracy"] == sum(outputs["correct"].tolist()) / sum(outputs["counts"].tolist())


def test_a_cut_target_is_scored_against_the_whole_reference(tokenizer):
    batch = batch_of(build(tokenizer, max_target_length=3), ROWS)
    assert batch.notes == [[row["target"]] for row in ROWS]


def test_without_generation_the_loss_chooses_and_nothing_is_generated(model, tokenizer):
    task = build(tokenizer, generate=None)
    outputs = task.outputs(model, batch_of(task, ROWS))
    assert "predictions" not in outputs
    evaluator = task.evaluator()
    evaluator.update(outputs, batch_of(task, ROWS))
    assert set(evaluator.compute()) == {"loss", "perplexity", "token_accuracy"}
    assert task.best_metric == "loss"
    assert task.best_metric in task.evaluator().lower_is_better
    assert build().best_metric == "bleu"
    assert build().best_metric not in build().evaluator().lower_is_better


@pytest.mark.parametrize("num_beams", [1, 3])
def test_predictions_are_the_generated_texts_with_their_log_probability(model, tokenizer, num_beams):
    task = build(tokenizer, generate={"max_new_tokens": 4, "num_beams": num_beams})
    batch = batch_of(task, ROWS, labelled=False)
    rows = task.predictions(task.outputs(model, batch), batch)
    written = model.generate(
        **batch.inputs,
        max_new_tokens=4,
        num_beams=num_beams,
        do_sample=False,
        output_scores=True,
        return_dict_in_generate=True,
    )
    assert [row["prediction"] for row in rows] == tokenizer.batch_decode(written.sequences, skip_special_tokens=True)
    beams = {"beam_indices": written.beam_indices} if num_beams > 1 else {}
    scores = model.compute_transition_scores(
        written.sequences, written.scores, normalize_logits=num_beams == 1, **beams
    )
    theirs = scores.nan_to_num(neginf=0.0).sum(dim=1) / (scores.isfinite() & (scores != 0)).sum(dim=1)
    assert [row["score"] for row in rows] == pytest.approx(theirs.tolist(), rel=1e-4)
