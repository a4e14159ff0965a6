"""Question answering against a plain rendering of SQuAD's and transformers' own scripts, and by hand."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoTokenizer, BertConfig, BertForQuestionAnswering

from ftscale import train
from ftscale.base.errors import UserError
from ftscale.config import parse_config
from ftscale.config.tasks import SETTINGS
from ftscale.data.sample import Sample
from ftscale.run.evaluate import evaluate_run
from ftscale.run.predict import predict_file, samples_by_row
from ftscale.tasks import build_task
from ftscale.tasks.answer_rows import answers_of
from ftscale.tasks.answer_spans import most_context, nearest_place
from ftscale.tasks.base import Task

SIZES = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48}
WINDOWS = {"max_length": 100, "max_question": 40, "stride": 20}


def task_of(shared: Path, *, tokenizer: str = "bert-base-uncased", **settings: Any) -> Task:
    processor = AutoTokenizer.from_pretrained(shared / f"weights/tokenizers/{tokenizer}")
    if processor.pad_token is None:
        processor.pad_token = processor.eos_token
    return build_task(SETTINGS["question_answering"](name="question_answering", **settings), processor)


def numbered(samples: list[Sample]) -> list[Sample]:
    return [replace(sample, number=number) for number, sample in enumerate(samples)]


def squad_rows(shared: Path, number: int) -> list[dict[str, Any]]:
    document = json.loads((shared / "data/qa/squad_v2_dev/dev-v2.0.json").read_text())
    rows = [
        {"question": asked["question"], "context": paragraph["context"], "answers": asked["answers"]}
        for paragraph in document["data"][0]["paragraphs"]
        for asked in paragraph["qas"]
    ]
    return rows[:number]


# ---------------------------------------------------------------- rows and windows


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ({"answers": [{"text": "a", "answer_start": 1}, {"text": "b", "answer_start": 7}]}, [("a", 1), ("b", 7)]),
        ({"answers": {"text": ["a", "b"], "answer_start": [1, 7]}}, [("a", 1), ("b", 7)]),
        ({"answers": "{'text': array(['a b'], dtype=object), 'answer_start': array([5], dtype=int32)}"}, [("a b", 5)]),
        ({"answers": '{"text": ["a"], "answer_start": [5]}'}, [("a", 5)]),
        ({"answers": ["a", "b"]}, [("a", None), ("b", None)]),
        ({"answers": []}, []),
        ({"answers": None}, []),
        ({"answers": {"text": [], "answer_start": []}}, []),
        ({"answer": "a", "answer_start": "12"}, [("a", 12)]),
        ({"answer": "a", "answer_start": 12.0}, [("a", 12)]),
        ({"answer": "  "}, []),
        ({"answer": 1918}, [("1918", None)]),
    ],
)
def test_answers_are_taken_in_the_forms_of_data_sets(row: dict[str, Any], expected: list[Any]):
    assert answers_of(row) == expected


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"answer": {"a": 1}}, "answer = .* must be a text"),
        ({"answer": "a", "answer_start": "near"}, "answer_start = 'near' must be a whole number"),
        ({"answer": "a", "answer_start": 1.5}, "answer_start = 1.5 must be a whole number"),
        ({"answers": {"text": ["a", "b"], "answer_start": [1]}}, "answers has 2 texts and 1 starts"),
    ],
)
def test_other_forms_are_refused_with_the_row(row: dict[str, Any], said: str):
    with pytest.raises(UserError, match=f"rows.csv:3: {said}"):
        answers_of({**row, "_where": "rows.csv:3"})


@pytest.mark.parametrize(
    ("text", "near", "expected"),
    [
        ("one", None, (0, 3)),
        ("one", 6, (8, 11)),  # a wrong offset: the nearest place
        ("one", 8, (8, 11)),
        ("one", 4, (0, 3)),  # as near to both: the first
        (" one ", 7, (8, 11)),
        ("three", 0, None),
        ("  ", 0, None),
    ],
)
def test_a_text_is_looked_for_near_where_it_should_be(text: str, near: int | None, expected: Any):
    assert nearest_place(text, "one two one", near) == expected


@pytest.mark.parametrize("tokenizer", ["bert-base-uncased", "qwen2"])
def test_each_window_marks_the_answer_or_says_that_it_is_not_here(shared: Path, tokenizer: str):
    task, rows = task_of(shared, tokenizer=tokenizer, **WINDOWS), squad_rows(shared, 12)
    samples = task.prepare(rows)
    found = dict.fromkeys(range(len(rows)), 0)
    assert len(samples) > 2 * len(rows)
    for sample in samples:
        [number] = range(*sample.rows)
        row, (start, end), note = rows[number], sample.label, sample.note
        assert len(sample.inputs["input_ids"]) <= WINDOWS["max_length"]
        if start == note["null"]:
            assert end == start
            continue
        text = row["context"][note["begins"][start - note["first"]] : note["stops"][end - note["first"]]]
        assert text == row["answers"][0]["text"]
        found[number] += 1
    assert all(bool(count) == bool(row["answers"]) for count, row in zip(found.values(), rows, strict=True))


def test_an_answer_that_stands_twice_is_the_one_that_is_meant(shared: Path):
    context = "Ann met Bob in Rome. Then Bob left Rome."
    rows = [{"question": "Who left?", "context": context, "answer": "Bob", "answer_start": start} for start in (8, 26)]
    samples = task_of(shared).prepare(rows)
    begins = [sample.note["begins"][sample.label[0] - sample.note["first"]] for sample in samples]
    assert begins == [8, 26]


def test_chinese_arabic_and_emoji_answers_are_whole_tokens(shared: Path):
    rows = [
        {"question": "谁?", "context": "昨天王芳去了北京。", "answer": "王芳"},
        {"question": "من؟", "context": "ذهب أحمد إلى القاهرة.", "answer": "أحمد"},
        {"question": "what?", "context": "she sent 🦜🦜 to me", "answer": "🦜🦜"},
    ]
    task = task_of(shared, tokenizer="qwen2")
    for row, sample in zip(rows, task.prepare(rows), strict=True):
        start, end = (position - sample.note["first"] for position in sample.label)
        assert row["context"][sample.note["begins"][start] : sample.note["stops"][end]] == row["answer"]


def test_an_answer_that_the_context_lacks_is_dropped_in_all_its_windows(shared: Path):
    rows = squad_rows(shared, 2)
    rows[0] = {**rows[0], "answers": [{"text": "no such words", "answer_start": 3}]}
    samples = task_of(shared, **WINDOWS).prepare(rows)
    dropped = {sample.rows[0]: {one.drop for one in samples if one.rows == sample.rows} for sample in samples}
    assert dropped == {0: {"answer_not_found"}, 1: {""}}


def test_a_question_longer_than_its_room_is_cut_dropped_or_refused(shared: Path):
    row = {"question": "why " * 50, "context": "because it rained", "answer": "it rained", "_where": "a.csv:2"}
    [sample] = task_of(shared, max_question=10).prepare([row])
    assert (sample.truncated, sample.drop, len(sample.inputs["input_ids"])) == (True, "", 10 + 3 + 3)
    assert task_of(shared, max_question=10, too_long="drop").prepare([row])[0].drop == "too_long"
    with pytest.raises(UserError, match=r"a.csv:2: 50 tokens are more than task.max_question = 10"):
        task_of(shared, max_question=10, too_long="raise").prepare([row])


def test_windows_without_room_are_refused(shared: Path):
    with pytest.raises(UserError, match="task.stride = 57 must be less than the 57 tokens"):
        task_of(shared, max_length=100, max_question=40, stride=57).prepare(squad_rows(shared, 1))
    assert task_of(shared, max_length=100, max_question=40, stride=56).prepare(squad_rows(shared, 1))


def test_a_token_belongs_to_the_window_where_it_has_most_context():
    """Windows of 5, 5 and 4 tokens from tokens 0, 2 and 4 on: their context is 0 1 2 1 0, 0 1 2 1 0 and 0 1 1 0.

    Token 3 has as much in the first as in the second; token 5 has 1 and 0.05 in the second, 1 and 0.04 in the third.
    """
    assert most_context([5, 5, 4], step=2) == [(0, 4), (2, 4), (2, 4)]
    assert most_context([7], step=0) == [(0, 7)]


# ---------------------------------------------------------------- the model's work


def model_of(task: Task) -> BertForQuestionAnswering:
    torch.manual_seed(0)
    return BertForQuestionAnswering(BertConfig(vocab_size=30522, **SIZES, **task.model_settings())).eval()


def test_the_loss_of_a_window_is_transformers_own_times_its_two_targets(shared: Path):
    """transformers' is the mean of two cross-entropies, over all positions of a row without padding."""
    task = task_of(shared, **WINDOWS)
    model, total = model_of(task), 0.0
    samples = numbered(task.prepare(squad_rows(shared, 3)))
    for sample in samples:
        batch = task.collate([sample], layout="padded", train=True)
        start, end = batch.labels.T
        total += 2 * float(model(**batch.inputs, start_positions=start, end_positions=end).loss)
    batch = task.collate(samples, layout="padded", train=True)
    assert task.count(batch) == {"loss": 2 * len(samples)}
    assert float(task.loss(model, batch)["loss"]) == pytest.approx(total, rel=1e-5)


@pytest.mark.parametrize("no_answer", [False, True])
def test_answers_and_scores_are_those_of_the_scripts_of_transformers_and_squad(shared: Path, no_answer: bool):
    """utils_qa.py and evaluate-v2.0.py, written down anew, on the same logits."""
    task, rows = task_of(shared, **WINDOWS, no_answer=no_answer), squad_rows(shared, 30)
    if not no_answer:
        rows = [row for row in rows if row["answers"]]
    samples, model = numbered(task.prepare(rows)), model_of(task)
    with torch.no_grad():
        model.qa_outputs.weight.mul_(60)  # logits that are far apart, as trained ones are
    evaluator, logits, answers = task.evaluator(), {}, []
    for start in range(0, len(samples), 16):
        batch = task.collate(samples[start : start + 16], layout="padded", train=False)
        outputs = task.outputs(model, batch)
        evaluator.update(outputs, batch)
        answers += task.predictions(outputs, batch)
        logits |= {
            number: (starts.numpy(), ends.numpy())
            for number, starts, ends in zip(batch.rows.tolist(), outputs["starts"], outputs["ends"], strict=True)
        }
    scores, exact, f1 = evaluator.compute(), [], []
    for row, places in zip(rows, samples_by_row(samples, len(rows)), strict=True):
        text = theirs(row["context"], [(samples[place].note, *logits[place]) for place in places], null=no_answer)
        assert task.merge([answers[place] for place in places])["prediction"] == text
        gold = [answer["text"] for answer in row["answers"]] or [""]
        exact.append(max(normal(text) == normal(one) for one in gold))
        f1.append(max(overlap(normal(text), normal(one)) for one in gold))
    assert scores["exact_match"] == pytest.approx(sum(exact) / len(rows))
    assert scores["f1"] == pytest.approx(sum(f1) / len(rows))
    assert ("best_f1" in scores) == no_answer
    assert {task.merge([answers[place]])["prediction"] == "" for place in range(3)} <= {False, no_answer}


def theirs(context: str, features: list[tuple[dict[str, Any], np.ndarray, np.ndarray]], *, null: bool) -> str:
    """The answer by utils_qa.postprocess_qa_predictions: 20 starts and ends, 30 tokens, the maximum-context rule."""
    found, least = [], None
    for note, starts, ends in features:
        score = starts[0] + ends[0]
        least = score if least is None or score < least else least
        first, count = note["first"], len(note["begins"])
        for start in np.argsort(starts)[-1:-21:-1].tolist():
            for end in np.argsort(ends)[-1:-21:-1].tolist():
                inside = first <= start < first + count and first <= end < first + count
                if not inside or end < start or end - start + 1 > 30:
                    continue
                if not note["own"][0] <= start - first < note["own"][1]:
                    continue
                text = context[note["begins"][start - first] : note["stops"][end - first]]
                found.append((float(starts[start] + ends[end]), text))
    if not found:
        return ""
    best = sorted(found, key=lambda one: one[0], reverse=True)[0]
    return "" if null and least - best[0] > 0 else best[1]


def normal(text: str) -> list[str]:
    import re
    import string

    text = "".join(letter for letter in text.lower() if letter not in set(string.punctuation))
    return re.sub(r"\b(a|an|the)\b", " ", text).split()


def overlap(guess: list[str], wanted: list[str]) -> float:
    from collections import Counter

    if not guess or not wanted:
        return float(guess == wanted)
    same = sum((Counter(guess) & Counter(wanted)).values())
    return 2 * same / (len(guess) + len(wanted)) if same else 0.0


def test_a_run_answers_by_the_threshold_of_its_best_evaluation(shared: Path, tmp_path: Path):
    """A run of a small model over questions of which some have no answer: train, test rows, evaluate, predict."""
    model = tmp_path / "model"
    AutoTokenizer.from_pretrained(shared / "weights/tokenizers/bert-base-uncased").save_pretrained(model)
    BertConfig(vocab_size=30522, **SIZES).save_pretrained(model)
    rows = {"path": str(shared / "data/qa/squad_v2_dev/dev-v2.0.json"), "rows": "data.paragraphs.qas", "limit": 24}
    config = {
        "task": {"name": "question_answering", **WINDOWS},
        "run_folder": str(tmp_path / "run"),
        "model": {"name": str(model), "init": "random"},
        "data": {"train": rows, "eval": rows, "test": rows, "cache_dir": str(tmp_path / "cache")},
        "train": {"max_steps": 2},
        "checkpoint": {"prove": "never"},
    }
    metrics = train(parse_config(config, source="the test")).metrics
    assert metrics["test/f1"] == pytest.approx(metrics["best_f1"]) != pytest.approx(metrics["f1"])
    assert evaluate_run(tmp_path / "run")["f1"] == pytest.approx(metrics["best_f1"])
    (tmp_path / "ask.jsonl").write_text(json.dumps({"question": "who?", "context": "Ann came."}) + "\n")
    predict_file(tmp_path / "run", str(tmp_path / "ask.jsonl"), out=tmp_path / "out.jsonl")
    answer = json.loads((tmp_path / "out.jsonl").read_text())
    given = answer["no_answer"] - answer["score"] <= metrics["best_f1_threshold"]
    assert answer["prediction"] == (answer["answer"] if given else "")
