"""What a task or a method is stays in its own files.

Nothing else names one of them, an Auto class, a column or a kind of processor.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

from ftscale.config.methods import METHODS
from ftscale.config.tasks import SETTINGS

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "ftscale"
AT_HOME = ("tasks", "config/tasks", "methods", "config/methods", "modalities")

COLUMNS = {role for settings in SETTINGS.values() for alternative in settings.columns for role in alternative}
KINDS = {"tokenizer", "image_processor", "AutoTokenizer", "AutoImageProcessor", "AutoProcessor"}
NAMES = {*SETTINGS, *METHODS, *COLUMNS, *KINDS}
AUTO_CLASS = re.compile(r"AutoModelFor\w+")

OF_OTHERS = "the tasks of ours, and the columns, that another tool's settings speak of"
GUESSED = "the task of ours that a file of rows is for, by its columns, and what is usual for it"

ALLOWED = {
    # place: what it names there, and why
    "checks/report.py": ({"tokenizer", "text", "source"}, "keys of the report"),
    "checks/show.py": ({"tokenizer", "target", "text"}, "keys of the report"),
    "cluster/container.py": ({"image"}, "what a container is made of"),
    "cluster/live_web.py": ({"score"}, "a column of the table"),
    "cluster/submit.py": ({"output"}, "an option of sbatch"),
    "config/matrix.py": ({"text_classification"}, "the table's columns are computed from a plain run, of any task"),
    "config/problems.py": ({"input"}, "a key of pydantic's errors"),
    "data/answers.py": ({"input"}, "the setting of what is predicted on"),
    "data/prepare.py": ({"target"}, "a word of a sentence"),
    "data/values.py": ({"tools"}, "the one column that holds JSON in a text"),
    "data/chat.py": (
        {"messages", "conversations", "prompt", "completion", "output", "input", "instruction", "tools"},
        "the forms in which files hold a conversation",
    ),
    "data/formats/__init__.py": ({"text"}, "a name of a format"),
    "data/formats/base.py": ({"text"}, "a name of a format"),
    "data/formats/beir.py": ({"anchor", "positive", "score", "text"}, "what a BEIR folder holds"),
    "data/formats/discover.py": ({"text"}, "a name of a format"),
    "data/formats/document.py": ({"text"}, "what a document holds"),
    "data/formats/idx.py": ({"image", "label"}, "what an IDX file holds"),
    "data/formats/image_folder.py": ({"image", "label"}, "what a folder of images holds"),
    "data/formats/parallel.py": ({"source", "target"}, "what two files of lines hold"),
    "data/formats/select.py": (
        {"words", "tags", "label", "image"},
        "what a CoNLL file holds, and where others have no label; only images may be unreadable",
    ),
    "data/formats/text.py": ({"text"}, "what a file of lines holds"),
    "data/formats/used.py": ({"text"}, "a name of a format"),
    "data/sources.py": ({"image"}, "the one column whose values are places of files"),
    "demo/__main__.py": ({"text", "label", "AutoTokenizer"}, "the demo's own file and model"),
    "doctor/report.py": ({"text"}, "a key of the report"),
    "init/look.py": ({"text", "label"}, "a name of a format, and what a folder says of its documents"),
    "init/axolotl.py": (
        {"causal_lm", "completion", "conversations", "input", "instruction", "messages", "output", "text", "tools"},
        OF_OTHERS,
    ),
    "init/choose.py": ({"causal_lm", "image_classification", "seq2seq", "token_classification"}, GUESSED),
    "init/columns.py": (
        {
            "anchor",
            "answer",
            "answer_start",
            "answers",
            "causal_lm",
            "choices",
            "completion",
            "context",
            "conversations",
            "embedding",
            "image",
            "image_classification",
            "input",
            "instruction",
            "label",
            "masked_lm",
            "messages",
            "multiple_choice",
            "negative",
            "output",
            "positive",
            "prompt",
            "question",
            "score",
            "question_answering",
            "reranking",
            "seq2seq",
            "source",
            "tags",
            "target",
            "text",
            "text_classification",
            "text_pair",
            "token_classification",
            "tools",
            "words",
        },
        GUESSED,
    ),
    "init/fit.py": ({"label"}, GUESSED),
    "init/guide.py": ({"causal_lm", "image_classification", "label"}, GUESSED),
    "init/labels.py": ({"text_classification"}, GUESSED),
    "init/lengths.py": (
        {
            "choices",
            "completion",
            "context",
            "input",
            "instruction",
            "output",
            "prompt",
            "question",
            "source",
            "target",
            "text",
            "text_pair",
            "words",
        },
        GUESSED,
    ),
    "init/limits.py": (
        {
            "causal_lm",
            "embedding",
            "image_classification",
            "multiple_choice",
            "question_answering",
            "reranking",
            "seq2seq",
            "token_classification",
        },
        GUESSED,
    ),
    "init/sources.py": ({"image_classification", "label"}, GUESSED),
    "init/training.py": (
        {
            "causal_lm",
            "embedding",
            "image_classification",
            "masked_lm",
            "multiple_choice",
            "question_answering",
            "reranking",
            "seq2seq",
            "text_classification",
            "token_classification",
        },
        GUESSED,
    ),
    "init/doubts.py": ({"answer"}, "a word of a prompt"),
    "init/unlearned.py": ({"completion", "conversations", "label", "messages"}, GUESSED),
    "init/huggingface.py": (
        {
            "question",
            "causal_lm",
            "choices",
            "context",
            "image",
            "image_classification",
            "label",
            "masked_lm",
            "multiple_choice",
            "seq2seq",
            "source",
            "tags",
            "target",
            "text",
            "text_classification",
            "text_pair",
            "token_classification",
            "words",
        },
        OF_OTHERS,
    ),
    "init/llamafactory.py": (
        {"causal_lm", "conversations", "input", "instruction", "messages", "output", "prompt", "tags", "text", "tools"},
        OF_OTHERS,
    ),
    "init/trainer.py": ({"image_classification", "text_classification", "token_classification"}, OF_OTHERS),
    "init/translate.py": ({"causal_lm"}, OF_OTHERS),
    "init/trl.py": ({"causal_lm", "text"}, OF_OTHERS),
    "data/formats/derived.py": (
        {"target", "choices", "negative"},
        "a list of columns is of several texts there, and of 0 and 1 elsewhere",
    ),
    "plan/report.py": ({"choices"}, "a key of the report"),
    "report/charts.py": ({"label", "text"}, "a column of the records of rows; a kind of mark"),
    "report/page.py": ({"score", "source"}, "the unit of a picture; a column of a table"),
    "report/rows.py": (
        {"input", "label", "score", "tags", "text", "words"},
        "columns of the records of rows; what labels may be",
    ),
    "run/model_card.py": ({"AutoImageProcessor", "AutoTokenizer"}, "what a reader of the card loads"),
    "run/predict.py": ({"words", "text", "input"}, "an answer in CoNLL needs the words; a format; a setting"),
    "run/new_source.py": ({"input", "text"}, "the setting of what is predicted on; a format"),
    "run/tracking.py": ({"tags"}, "what trackers call the words that a run is found by"),
    "train/row_records.py": ({"input", "label", "score", "words"}, "columns of the records of rows"),
    "train/tracker_kinds.py": ({"tags"}, "what trackers call the words that a run is found by"),
    "models/save.py": ({"AutoTokenizer", "AutoImageProcessor"}, "a saved folder tells by its files what it holds"),
}


def test_what_a_task_is_is_named_in_its_own_files_alone():
    unexpected = {
        f"{place}:{line}: {name!r}" for place, line, name in _named() if name not in ALLOWED.get(place, (set(), ""))[0]
    }
    assert unexpected == set()


def test_what_is_allowed_is_there():
    there = {(place, name) for place, _, name in _named()}
    gone = {(place, name) for place, (names, _) in ALLOWED.items() for name in names} - there
    assert gone == set(), "take it out of the list"


def test_what_is_looked_for_is_found():
    assert {"text", "label", "words", "tags", "source", "target", "image", "messages"} <= COLUMNS
    code = 'load("AutoModelForCausalLM"); task.name == "causal_lm"; row["label"]; method.name == "supervised"'
    found = [name for _, name in _names_in(ast.parse(code))]
    assert found == ["AutoModelForCausalLM", "causal_lm", "label", "supervised"]


def _named() -> Iterator[tuple[str, int, str]]:
    for path in sorted(PACKAGE.rglob("*.py")):
        place = path.relative_to(PACKAGE).as_posix()
        if not place.startswith(tuple(f"{folder}/" for folder in AT_HOME)):
            for line, name in _names_in(ast.parse(path.read_text())):
                yield place, line, name


def _names_in(tree: ast.Module) -> Iterator[tuple[int, str]]:
    """Texts and names in the code of a task, a method, a column, an Auto class or a processor; no docstrings."""
    for node in ast.walk(tree):
        name = None
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            name = node.value
        elif isinstance(node, ast.Name):
            name = node.id if node.id in KINDS and node.id.startswith("Auto") else None
        if name is not None and (name in NAMES or AUTO_CLASS.fullmatch(name)):
            yield node.lineno, name
