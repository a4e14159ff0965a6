"""Columns without names, or without few values: what is likely is taken and said, asked for, or named by the user."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from ftscale.base.errors import UserError
from ftscale.config.load import load_config
from ftscale.init.doubts import Option
from ftscale.init.guide import Guide, guide_to

PLACES = [f"the {part} of the {thing}" for part in ("pump", "tap", "hose", "roof") for thing in ("mill", "hall")]
TEXTS = [f"{place} leaks {when}" for place in PLACES for when in ("on monday", "at noon", "by night", "again")]
NUMBER = len(TEXTS)
RATED = "".join(f"{n + 1}\t{(n * 7 % NUMBER) / 8 - 2:.2f}\t{text}\n" for n, text in enumerate(TEXTS))
"""As the snippets of VADER: a number of the row, a rating, a text; neither names nor few values."""
PAIRS = "".join(f"{text}\t{' '.join(reversed(text.split()))} now\n" for text in TEXTS)
MANY = "remark,outcome\n" + "".join(f"{text},kind {n % (NUMBER // 2)}\n" for n, text in enumerate(TEXTS))
"""Sixteen classes of two rows each."""
NUMBERS = "".join(f"{n / 7:.3f}\t{n / 3:.3f}\n" for n in range(NUMBER))


def guided(folder: Path, content: str, name: str = "rows.txt", **options: Any) -> tuple[dict[str, Any], Guide]:
    """Task, problem and columns of the run.yaml, and all that was said."""
    (folder / name).write_text(content)
    guide = guide_to(folder / name, plan=False, **options)
    (folder / "run.yaml").write_text(guide.text)
    config = load_config(folder / "run.yaml")
    task = config.task.model_dump()
    return {"task": task["name"], "problem": task.get("problem"), "columns": config.data.train[0].columns}, guide


class Answers:
    """Gives answers, and keeps the questions with the answers that they may have."""

    def __init__(self, *answers: str) -> None:
        self.answers, self.asked = list(answers), dict[str, list[str]]()

    def __call__(self, question: str, options: Sequence[Option], default: str) -> str:
        self.asked[question] = [option.name for option in options]
        return self.answers.pop(0) if self.answers else default


def test_ratings_without_names_are_what_is_to_be_learned_of_their_texts(tmp_path: Path):
    found, guide = guided(tmp_path, RATED)
    assert found == {"task": "text_classification", "problem": "regression", "columns": {"text": 2, "label": 1}}
    assert guide.unsure == (
        "the task is taken to be text_classification; causal_lm would fit as well (--task and --columns).",
        "the label is taken to be 1, which has 32 values in 32 rows.",
        "32 rows are few to learn from, and to score by.",
    )
    assert "# - the label is taken to be 1, which has 32 values in 32 rows." in guide.text


def test_a_terminal_is_asked_for_the_task_and_the_label_that_nothing_tells(tmp_path: Path):
    ask = Answers("text_classification", "0")
    found, guide = guided(tmp_path, RATED, ask=ask)
    assert found["columns"] == {"text": 2, "label": 0}
    (task, tasks), (label, labels), _ = ask.asked.items()
    assert (task.startswith("What is to be learned from"), tasks) == (True, ["causal_lm", "text_classification"])
    assert (label.startswith("Which column of"), label.endswith("is the label?"), labels) == (True, True, ["0", "1"])
    assert not any("label is taken" in note for note in guide.unsure)
    ask = Answers("row", "text_classification", "1")
    found, _ = guided(tmp_path, PAIRS, ask=ask)
    assert found == {"task": "text_classification", "problem": "single_label", "columns": {"text": 0, "label": 1}}


def test_two_columns_of_texts_are_a_source_and_its_target(tmp_path: Path):
    found, guide = guided(tmp_path, PAIRS)
    assert (found["task"], found["columns"]) == ("seq2seq", {"source": 0, "target": 1})
    assert "the task is taken to be seq2seq; causal_lm would fit as well (--task and --columns)." in guide.unsure
    found, guide = guided(tmp_path, PAIRS, task="causal_lm")
    assert (found["task"], found["columns"]) == ("causal_lm", {"text": 1})  # of a word more
    assert "the text is taken to be 1; 0 hold texts as well, which are not read." in guide.unsure


def test_classes_of_few_rows_each_are_classes(tmp_path: Path):
    found, guide = guided(tmp_path, MANY, name="rows.csv")
    columns = {"text": "remark", "label": "outcome"}
    assert found == {"task": "text_classification", "problem": "single_label", "columns": columns}
    assert "the label is taken to be outcome, which has 16 values in 32 rows." in guide.unsure


def test_the_user_may_name_the_columns(tmp_path: Path):
    found, guide = guided(tmp_path, RATED, columns="{text: 2, label: 0}")
    assert found == {"task": "text_classification", "problem": "regression", "columns": {"text": 2, "label": 0}}
    assert guide.unsure == ("32 rows are few to learn from, and to score by.",)
    found, _ = guided(tmp_path, PAIRS, columns="{prompt: 1, completion: 0}")
    assert (found["task"], found["columns"]) == ("causal_lm", {"prompt": 1, "completion": 0})
    found, _ = guided(tmp_path, MANY, name="rows.csv", columns="{text: remark}", task="causal_lm")
    assert (found["task"], found["columns"]) == ("causal_lm", {"text": "remark"})


@pytest.mark.parametrize(
    ("content", "options", "said"),
    [
        (
            NUMBERS,
            {},
            r"not tell its task by its columns \(0, 1\); name those that a task reads, e\.g\. --columns",
        ),
        (PAIRS, {"task": "text_classification"}, r"name its columns: --columns '\{text: NAME, label: NAME\}'\."),
        (
            NUMBERS,
            {"columns": "{text: 0, label: 1}"},
            r"0 as text, 1 as label of .* is not what a task reads; name all",
        ),
        (
            PAIRS,
            {"columns": "{text: 0, text_pair: 1}", "task": "text_classification"},
            r"is not what text_classification reads",
        ),
        (
            RATED,
            {"columns": "{text: 2, label: 1}", "task": "causal_lm"},
            r"label is no column of causal_lm, which",
        ),
        (RATED, {"columns": "{txt: 2}"}, r"--columns = 'txt' is not known; did you mean 'text'\?"),
        (RATED, {"columns": "{text: 7}"}, r"--columns text = '7' is not known; known: 0, 1, 2\."),
        (RATED, {"columns": "text=2"}, r"--columns = 'text=2' must say what the task calls each column"),
        (RATED, {"columns": "{text: [1]}"}, r"must say what the task calls each column"),
    ],
)
def test_what_nothing_tells_names_the_option_that_would(tmp_path: Path, content: str, options: Any, said: str):
    with pytest.raises(UserError, match=said) as refused:
        guided(tmp_path, content, **options)
    assert len(refused.value.problems) == 1


def test_labels_in_front_as_fasttext_writes_them(tmp_path: Path):
    lines = "".join(f"__label__{'wet' if n % 2 else 'dry'} {text}, it is said\n" for n, text in enumerate(TEXTS))
    found, guide = guided(tmp_path, lines)
    assert found == {"task": "text_classification", "problem": "single_label", "columns": {}}
    pattern = load_config(tmp_path / "run.yaml").data.train[0].pattern
    assert pattern == "__label__(?P<label>\\S+) (?P<text>.+)"  # of docs/data.md, as the next
    assert "labels as fastText writes them" in guide.seen
    lines += "__label__wet __label__new the cellar is full\n"
    found, _ = guided(tmp_path, lines)
    config = load_config(tmp_path / "run.yaml")
    assert (found["problem"], config.task.model_dump()["label_separator"]) == ("multi_label", " ")
    assert config.data.train[0].pattern == "(?P<label>(?:__label__\\S+ )+)(?P<text>.+)"
    found, _ = guided(tmp_path, f"{lines}a line without a label\n")
    assert found["task"] == "causal_lm"


def test_texts_in_folders_are_documents_of_the_class_of_their_folder(tmp_path: Path):
    for part, texts in (("train", TEXTS[:24]), ("test", TEXTS[24:])):
        for number, text in enumerate(texts):
            path = tmp_path / "mails" / part / ("spam" if number % 3 else "ham") / f"{number}.txt"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(f"Subject: {text}\n\nDear all,\n{text}.\n")
    guide = guide_to(tmp_path / "mails", plan=False)
    (tmp_path / "run.yaml").write_text(guide.text)
    config = load_config(tmp_path / "run.yaml")
    read = {"format": "document", "set": {"label": "{folder}"}, "path": str(tmp_path / "mails")}
    assert config.task.name == "text_classification"
    assert config.data.train[0].model_dump(exclude_defaults=True) == {**read, "split": "train"}
    assert config.data.test[0].model_dump(exclude_defaults=True) == {**read, "split": "test"}
    assert config.evaluation.metric == "accuracy"  # 16 of 24 are not three times 8
    assert f"each file of {tmp_path / 'mails'} is taken for one text, whose label is its folder." in guide.unsure
    ask = Answers("line")
    guide = guide_to(tmp_path / "mails", plan=False, ask=ask)
    assert "causal_lm" in guide.text
    assert ask.asked[next(iter(ask.asked))] == ["file", "line"]


@pytest.mark.parametrize(
    ("header", "row", "task", "columns", "loss", "metric"),
    [
        ("sentence1,sentence2,similarity", "{text},{other},{score}", "embedding", "pairs", "cosent", "spearman"),
        ("text,text_pair,score", "{text},{other},{score}", "embedding", {}, "cosent", "spearman"),
        ("question1,question2,is_duplicate", "{text},{other},{flag}", "embedding", "pairs", "cosent", "spearman"),
        ("text,label", "{text},kind {flag}", "embedding", {}, "batch_hard_triplet", "recall@1"),
        ("query,document", "{text},{other}", "embedding", "belong", None, "mrr@10"),
        ("sentence1,sentence2,score", "{text},{other},{flag}", "reranking", "pairs", None, "mrr@10"),
    ],
)
def test_texts_for_vectors_by_their_scores_classes_or_pairs(
    tmp_path: Path, header: str, row: str, task: str, columns: Any, loss: str | None, metric: str
):
    rows = [
        row.format(text=text, other=f"{text} today", score=number % 6, flag=number % 2)
        for number, text in enumerate(TEXTS)
    ]
    found, guide = guided(tmp_path, "\n".join([header, *rows]), "rows.csv", task=task)
    names = header.split(",")
    wanted = {"pairs": dict(zip(("text", "text_pair", "score"), names, strict=False)), "belong": None}
    if columns == "belong":
        assert found["columns"] == {"anchor": "query", "positive": "document"}
    else:
        expected = columns if isinstance(columns, dict) else {r: n for r, n in wanted[columns].items() if r != n}
        assert found["columns"] == expected
    config = load_config(tmp_path / "run.yaml")
    assert (config.task.loss, config.evaluation.metric) == (loss, metric)
    assert not any("is not read" in doubt for doubt in guide.unsure)


def test_a_label_that_says_which_pairs_belong_together_is_told_where_it_is_not_read(tmp_path: Path):
    rows = [f"{text},{text} today,{('entailment', 'neutral')[n % 2]}" for n, text in enumerate(TEXTS)]
    _, guide = guided(tmp_path, "\n".join(["sentence1,sentence2,label", *rows]), "rows.csv", task="embedding")
    assert any(
        doubt.startswith("label is not read: the texts of each row are taken to belong") for doubt in guide.unsure
    )


def test_scores_that_are_no_shares_are_told_to_who_wants_to_rerank(tmp_path: Path):
    rows = [f"{text},{text} today,{n % 6}" for n, text in enumerate(TEXTS)]
    _, guide = guided(tmp_path, "\n".join(["sentence1,sentence2,score", *rows]), "rows.csv", task="reranking")
    assert any(doubt.startswith("score is no share of the truth from 0 to 1") for doubt in guide.unsure)


def test_a_beir_folder_is_as_many_rows_as_were_judged(tmp_path: Path):
    folder = tmp_path / "beir"
    (folder / "qrels").mkdir(parents=True)
    for name, stem in (("corpus", "d"), ("queries", "q")):
        lines = [json.dumps({"_id": f"{stem}{n}", "text": text}) for n, text in enumerate(TEXTS)]
        (folder / f"{name}.jsonl").write_text("\n".join(lines))
    judged = [f"q{n}\td{n}\t1" for n in range(12)]
    for split in ("train", "test"):
        (folder / f"qrels/{split}.tsv").write_text("\n".join(["query-id\tcorpus-id\tscore", *judged]))
    guide = guide_to(folder, plan=False, task="embedding")
    assert "12 rows" in guide.text
    assert not any("is not read" in doubt for doubt in guide.unsure)
