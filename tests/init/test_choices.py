"""Files of multiple choice are recognised in the forms of known data sets."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pytest

from ftscale.config.yaml_text import read_yaml
from ftscale.init.columns import rows_of
from ftscale.init.guide import guide_to
from ftscale.init.look import look_at

ENDINGS = [f"ending{number}" for number in range(4)]
SWAG = {
    "video-id": "v1",
    "fold-ind": "12",
    "sent1": "A man sits.",
    "sent2": "He",
    **dict.fromkeys(ENDINGS, "sings a song"),
}
COMMONSENSE = {"stem": "Where is milk?", "choices": [{"label": "A", "text": "fridge"}, {"label": "B", "text": "oven"}]}
HUB = {"id": "q", "question": "Where is milk?", "choices": {"label": ["A", "B"], "text": ["fridge", "oven"]}}
CHOICE = {"premise": "The sun rose.", "choice1": "It was light.", "choice2": "It was dark.", "question": "effect"}
SCIQ = {"question": "What is wet?", "correct_answer": "water", "support": "Water is wet.", "distractor1": "sand"}

FORMS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    # of a row: the columns that are read
    "swag": (SWAG | {"label": 1}, {"context": "sent1", "question": "sent2", "choices": ENDINGS, "label": "label"}),
    "hellaswag": (
        {"ctx_a": "A man", "ctx": "A man sits. He", "endings": ["sings", "sleeps"], "label": "1"},
        {"question": "ctx", "choices": "endings", "label": "label"},
    ),
    "race": (
        {"article": "Ann went home.", "question": "Where is Ann?", "options": ["home", "away"], "answer": "A"},
        {"context": "article", "question": "question", "choices": "options", "label": "answer"},
    ),
    "commonsense_qa": (
        {"question": COMMONSENSE, "answerKey": "A"},
        {"question": "question.stem", "choices": "question.choices", "label": "answerKey"},
    ),
    "arc": (HUB | {"answerKey": "B"}, {"question": "question", "choices": "choices", "label": "answerKey"}),
    "piqa": (
        {"goal": "Open a jar", "sol1": "turn the lid", "sol2": "throw it far", "label": 0},
        {"question": "goal", "choices": ["sol1", "sol2"], "label": "label"},
    ),
    "copa": (
        CHOICE | {"label": 0},
        {
            "context": "premise",
            "question": "What was the {question} of this?",
            "choices": ["choice1", "choice2"],
            "label": "label",
        },
    ),
    "social_iqa": (
        {"context": "Ann fell.", "question": "How is Ann?", "answerA": "hurt", "answerB": "glad", "answerC": "tall"}
        | {"label": "1"},
        {"context": "context", "question": "question", "choices": ["answerA", "answerB", "answerC"], "label": "label"},
    ),
    "sciq": (
        SCIQ | {"distractor2": "dust", "distractor3": "ash"},
        {
            "context": "support",
            "question": "question",
            "choices": ["correct_answer", "distractor1", "distractor2", "distractor3"],
            "label": "correct_answer",
        },
    ),
    "table": (
        {"question": "What flies?", "A": "a stone", "B": "a kite", "C": "a shoe", "answer": "B"},
        {"question": "question", "choices": ["A", "B", "C"], "label": "answer"},
    ),
}


@pytest.mark.parametrize("name", FORMS)
def test_a_file_is_recognised_by_its_columns(name: str, tmp_path: Path):
    row, columns = FORMS[name]
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(f"{json.dumps(row)}\n" for _ in range(8)))
    rows = rows_of(look_at(path), None)
    assert (rows.task, rows.columns) == ("multiple_choice", columns)


@pytest.mark.parametrize(
    ("row", "task"),
    [
        (
            {"question": "What is wet?", "context": "Water is wet.", "answers": [{"text": "Water", "answer_start": 0}]},
            "question_answering",
        ),
        ({"question": "How many are two and two?", "answer": "They are four altogether."}, "causal_lm"),
    ],
)
def test_other_questions_are_not_taken_for_it(row: dict[str, Any], task: str, tmp_path: Path):
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(f"{json.dumps(row)}\n" for _ in range(8)))
    assert rows_of(look_at(path), None).task == task


def test_a_guide_is_written_for_a_table(tmp_path: Path):
    row, columns = FORMS["table"]
    with open(tmp_path / "rows.csv", "w", newline="") as file:
        table = csv.DictWriter(file, row)
        table.writeheader()
        table.writerows(row | {"question": f"What flies {number} miles?"} for number in range(60))
    guide = guide_to(tmp_path / "rows.csv", plan=False)
    settings = read_yaml(guide.text, source="the guide")
    assert settings["task"] in ("multiple_choice", {"name": "multiple_choice"})
    assert settings["data"]["train"]["columns"] == columns
    assert settings["evaluation"]["metric"] == "accuracy"
