"""What is done with a finished run: the same scores again, predictions for any input, and folders for others."""

from __future__ import annotations

import csv
import io
import json
import re
import shutil
import sys
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import tiny

from ftscale.config import parse_config
from ftscale.data.sources import read_rows
from ftscale.run.evaluate import evaluate_run
from ftscale.run.predict import CHUNK, _input, _input_source, open_predictor

TEXTS = ["a warm and funny film", "an endless mess", "fine", "the cast, for once, is a delight \u00e9", "no"] * 3
LOADER = """
import json, sys
class Blocked:
    def find_spec(self, name, path=None, target=None):
        assert name.split(".")[0] != "ftscale", "the folder needs ftscale"
sys.meta_path.insert(0, Blocked())
import torch, transformers
folder, auto_class, options, texts = sys.argv[1], sys.argv[2], json.loads(sys.argv[3]), json.loads(sys.argv[4])
tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
model = getattr(transformers, auto_class).from_pretrained(folder, **options).eval()
with torch.no_grad():
    scores = [model(**tokenizer(text, return_tensors="pt")).logits.float() for text in texts]
if auto_class == "AutoModelForSequenceClassification":
    answers = [score.softmax(-1)[0].max(0) for score in scores]
    found = [[model.config.id2label[best.item()], value.item()] for value, best in answers]
else:
    found = [[score[0, -1].argmax().item(), score[0, -1].max().item()] for score in scores]
print(json.dumps({"dtype": str(model.dtype), "class": type(model).__name__, "found": found}))
"""


@pytest.fixture(scope="module")
def full(shared: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that trained all weights; run.yaml lies beside it."""
    return trained(shared, tmp_path_factory.mktemp("full"))


@pytest.fixture(scope="module")
def adapted(shared: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that trained LoRA and a head."""
    return trained(shared, tmp_path_factory.mktemp("adapted"), "adapter={method: lora, r: 4}", "optimizer.lr=0.01")


def trained(shared: Path, work: Path, *overrides: str) -> Path:
    file = tiny.write_run(work, tiny.settings(shared, work))
    outcome = tiny.command("train", file, *overrides)
    assert outcome.code == 0, outcome.stderr
    return work / "run"


def predicted(*arguments: object) -> list[dict[str, Any]]:
    """What `ftscale predict` prints."""
    outcome = tiny.command("predict", *arguments)
    assert outcome.code == 0, outcome.stderr
    return [json.loads(line) for line in outcome.stdout.splitlines()]


# ---------------------------------------------------------------- evaluate


@pytest.mark.parametrize(
    "overrides",
    [
        ("evaluation.every=1",),
        ("evaluation.every=1", "adapter.method=lora", "optimizer.lr=0.02"),
        ("train.precision=bf16",),
        ("data.eval=[]", "data.eval_ratio=0.25", "data.stratify=label"),
    ],
    ids=["best of three", "adapter", "bf16", "rows held out"],
)
def test_evaluate_gives_the_metrics_of_the_run(shared: Path, tmp_path: Path, overrides: tuple[str, ...]):
    folder = trained(shared, tmp_path, *overrides)
    outcome = tiny.command("evaluate", folder, "--out", tmp_path / "metrics.json")
    assert outcome.code == 0, outcome.stderr
    metrics = json.loads(outcome.stdout)
    assert metrics == json.loads((tmp_path / "metrics.json").read_text())
    assert metrics == pytest.approx(json.loads((folder / "result.json").read_text())["metrics"], rel=1e-5)


def test_evaluate_scores_other_rows(full: Path, shared: Path, tmp_path: Path):
    rows = (shared / "data/text_classification/sst2/test.tsv").read_text().splitlines()[:50]
    other = tmp_path / "other.tsv"
    other.write_text("\n".join(rows) + "\n")
    metrics = json.loads(tiny.command("evaluate", full, "--data", other).stdout)
    answers = predicted(full, other)
    right = sum(answer["prediction"] == row.split("\t")[1] for answer, row in zip(answers, rows, strict=True))
    assert metrics["accuracy"] == pytest.approx(right / 50)


def test_several_files_are_scored_as_one(full: Path, shared: Path, tmp_path: Path):
    lines = (shared / "data/text_classification/sst2/dev.tsv").read_text().splitlines()[:40]
    parts = {"whole": lines, "a": lines[:13], "b": lines[13:]}
    for name, part in parts.items():
        (tmp_path / f"{name}.tsv").write_text("\n".join(part) + "\n")
        with open(tmp_path / f"{name}.csv", "w", newline="") as file:
            csv.writer(file, delimiter=";").writerows([("body", "class"), *(line.split("\t") for line in part)])
    whole = json.loads(tiny.command("evaluate", full, "--data", tmp_path / "whole.tsv").stdout)
    as_a_shell_leaves_a_pattern = sorted(tmp_path.glob("[ab].tsv"))
    scored = json.loads(tiny.command("evaluate", full, "--data", *as_a_shell_leaves_a_pattern).stdout)
    assert scored == pytest.approx(whole, rel=1e-5)
    reading = ("data.eval.0.separator=;", "data.eval[0].header=true", "data.eval.0.columns={text: body, label: class}")
    tables = ("--data", tmp_path / "a.csv", "--data", tmp_path / "b.csv")
    of_tables = tiny.command("evaluate", full, *tables, *reading)
    assert of_tables.code == 0, of_tables.stderr
    assert json.loads(of_tables.stdout) == pytest.approx(whole, rel=1e-5)
    refused = tiny.command("evaluate", full, tmp_path / "a.tsv")
    assert (refused.code, f"write --data {tmp_path}/a.tsv" in refused.stderr) == (2, True)


def test_a_long_evaluation_says_how_far_it_is(
    full: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
):
    from ftscale.train import evaluate

    monkeypatch.setattr(evaluate, "SAY_S", -1.0)
    evaluate_run(full, overrides=["evaluation.micro_size=1"])
    found = [int(number) for number in re.findall(r"evaluating: about (\d+) of \d+ rows", capsys.readouterr().err)]
    assert found == list(range(1, len(found) + 1))
    assert len(found) > 3


def test_evaluate_takes_settings_of_the_run(full: Path, tmp_path: Path):
    (tmp_path / "other.csv").write_bytes("body;class\ncaf\u00e9;1\nfine;0\n".encode("latin-1"))
    reading = ("header=true", "separator=;", "encoding=latin-1", "columns={text: body, label: class}")
    words = ("--data", tmp_path / "other.csv", *(f"data.eval.0.{setting}" for setting in reading))
    outcome = tiny.command("evaluate", full, *words)
    assert outcome.code == 0, outcome.stderr
    assert set(json.loads(outcome.stdout)) >= {"loss", "accuracy"}


def test_evaluate_refuses_a_label_that_training_never_saw(full: Path, tmp_path: Path):
    (tmp_path / "other.tsv").write_text("fine\t1\nfiner\t7\n")
    outcome = tiny.command("evaluate", full, "--data", tmp_path / "other.tsv")
    assert outcome.code == 2
    assert "other.tsv:2: label = '7' is not known" in outcome.stderr


# ---------------------------------------------------------------- predict


@pytest.fixture
def expected(full: Path, tmp_path: Path) -> list[tuple[str, float]]:
    """The answer for each text by itself, one row at a time."""
    file = tmp_path / "one-by-one.txt"
    file.write_text("\n".join(TEXTS))
    answers = predicted(full, file, "--batch-size", 1)
    return [(answer["prediction"], answer["score"]) for answer in answers]


def check_answers(rows: list[dict[str, Any]], expected: list[tuple[str, float]]) -> None:
    assert [row["prediction"] for row in rows] == [label for label, _ in expected]
    assert [float(row["score"]) for row in rows] == pytest.approx([score for _, score in expected], abs=1e-5)


def test_text_lines_are_answered_in_order(full: Path, tmp_path: Path, expected: list[tuple[str, float]]):
    (tmp_path / "rows.txt").write_text("\n".join(TEXTS))
    rows = predicted(full, tmp_path / "rows.txt", "--batch-size", 2)
    assert [row["text"] for row in rows] == TEXTS
    check_answers(rows, expected)


def test_csv_keeps_its_columns_and_their_order(full: Path, tmp_path: Path, expected: list[tuple[str, float]]):
    with open(tmp_path / "rows.csv", "w", newline="") as file:
        csv.writer(file).writerows([("id", "text", "who"), *((n, text, "me") for n, text in enumerate(TEXTS))])
    out = tmp_path / "answers.csv"
    assert tiny.command("predict", full, tmp_path / "rows.csv", "--out", out).code == 0
    with open(out, newline="") as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == ["id", "text", "who", "prediction", "score"]
    assert [(row["id"], row["text"]) for row in rows] == [(str(n), text) for n, text in enumerate(TEXTS)]
    check_answers(rows, expected)


def test_tsv_is_read_as_the_training_rows_were(full: Path, tmp_path: Path, expected: list[tuple[str, float]]):
    (tmp_path / "rows.tsv").write_text("".join(f"{text}\t{n}\n" for n, text in enumerate(TEXTS)))
    out = tmp_path / "answers.tsv"
    assert tiny.command("predict", full, tmp_path / "rows.tsv", "--out", out).code == 0
    rows = [line.split("\t") for line in out.read_text().splitlines()]
    assert [(text, number) for text, number, *_ in rows] == [(text, str(n)) for n, text in enumerate(TEXTS)]
    check_answers([{"prediction": row[2], "score": row[3]} for row in rows], expected)


def test_json_lines_keep_each_row_as_it_is(full: Path, tmp_path: Path, expected: list[tuple[str, float]]):
    given = [{"text": text, "more": {"n": n}} for n, text in enumerate(TEXTS)]
    given[3]["only here"] = [1, 2]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in given))
    out = tmp_path / "answers.jsonl"
    assert tiny.command("predict", full, tmp_path / "rows.jsonl", "--out", out).code == 0
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    assert [{name: row[name] for name in row if name not in ("prediction", "score")} for row in rows] == given
    check_answers(rows, expected)


def test_standard_input_is_lines_of_text(full: Path, expected: list[tuple[str, float]]):
    with patch.object(sys, "stdin", io.TextIOWrapper(io.BytesIO("\n".join(TEXTS).encode()))):
        rows = predicted(full, "-")
    check_answers(rows, expected)


def test_standard_input_is_read_by_the_pattern_of_the_lines_that_were_trained_on(tmp_path: Path):
    source = {"path": f"{tmp_path}/gone.txt", "pattern": r"(?P<label>\S+) (?P<body>.+)", "columns": {"text": "body"}}
    values = {"task": "text_classification", "model": "m", "run_folder": "r", "data": {"train": source}}
    config = parse_config(values, source="here")

    def texts(*reading: str) -> list[str]:
        given = io.TextIOWrapper(io.BytesIO(b"pos a fine film\nneg a mess\n"))
        with patch.object(sys, "stdin", given), _input("-") as path:
            found = _input_source(path, config, reading=reading)
            return [row["text"] for row in read_rows(found, roles=config.task.roles, absent=["label"])]

    assert texts() == ["a fine film", "a mess"]
    assert texts("input.pattern=null") == ["pos a fine film", "neg a mess"]


def test_several_inputs_have_their_answers_in_one_file(full: Path, tmp_path: Path, expected: list[tuple[str, float]]):
    tables = {"a.csv": [("n", "text"), *enumerate(TEXTS[:4])], "b.csv": [("text", "n")]}
    tables["b.csv"] += [(text, n) for n, text in enumerate(TEXTS[4:], 4)]
    for name, rows in tables.items():
        with open(tmp_path / name, "w", newline="") as file:
            csv.writer(file).writerows(rows)
    inputs, out = sorted(tmp_path.glob("*.csv")), tmp_path / "answers.csv"
    assert tiny.command("predict", full, *inputs, "--out", out, "input.encoding=utf-8").code == 0
    with open(out, newline="") as file:
        answers = list(csv.DictReader(file))
    assert [(row["n"], row["text"]) for row in answers] == [(str(n), text) for n, text in enumerate(TEXTS)]
    check_answers(answers, expected)
    again = tiny.command("predict", full, *inputs, out, "--out", out)
    assert (again.code, "is an input or a folder" in again.stderr) == (2, True)
    (tmp_path / "b.csv").write_text("text,more\nfine,1\n")
    other = tiny.command("predict", full, *inputs, "--out", out)
    assert (other.code, "has the column 'more', the first has not; write .jsonl" in other.stderr) == (2, True)
    (tmp_path / "b.csv").write_text("body\nfine\n")
    other = tiny.command("predict", full, *inputs, "--out", out)
    assert (other.code, "b.csv has no column for 'text'" in other.stderr) == (2, True)


def test_in_a_run_of_documents_standard_input_and_each_file_is_one(shared: Path, tmp_path: Path):
    texts = {"good/1.eml": "a warm film\n\nand a funny one", "bad/2.eml": "an endless mess\n", "bad/3.eml": "no\nno"}
    for name, text in texts.items():
        (tmp_path / "mails" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "mails" / name).write_text(text)
    source = f"{{path: {tmp_path / 'mails'}, format: document, set: {{label: '{{folder}}'}}}}"
    folder = trained(shared, tmp_path, f"data.train=[{source}]", "data.eval=[]")
    rows = [{"text": text.removesuffix("\n")} for _, text in sorted(texts.items())]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    expected = [(row["prediction"], row["score"]) for row in predicted(folder, tmp_path / "rows.jsonl")]
    answers = predicted(folder, tmp_path / "mails")
    assert [{name: row[name] for name in ("path", "text")} for row in answers] == [
        {"path": path, **row} for path, row in zip(sorted(texts), rows, strict=True)
    ]
    check_answers(answers, expected)
    with patch.object(sys, "stdin", io.TextIOWrapper(io.BytesIO(texts["good/1.eml"].encode()))):
        [answer] = predicted(folder, "-")
    assert answer["text"] == texts["good/1.eml"]
    check_answers([answer], expected[-1:])
    lines = predicted(folder, tmp_path / "mails/bad/3.eml", "input.format=text")
    assert [row["text"] for row in lines] == ["no", "no"]


def test_a_column_of_another_name_is_said_on_the_command_line(
    full: Path, tmp_path: Path, expected: list[tuple[str, float]]
):
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps({"body": text}) + "\n" for text in TEXTS))
    outcome = tiny.command("predict", full, tmp_path / "rows.jsonl")
    assert outcome.code == 2
    assert "set input.columns={text: ITS_NAME}" in outcome.stderr
    assert "it has the columns 'body'" in outcome.stderr
    check_answers(predicted(full, tmp_path / "rows.jsonl", "input.columns={text: body}"), expected)


def test_a_table_called_txt_is_read_as_the_training_rows_were_even_when_they_are_gone(shared: Path, tmp_path: Path):
    rows = (shared / "data/text_classification/sst2/train.tsv").read_text().splitlines()[:16]
    (tmp_path / "train.txt").write_text("\n".join(rows))
    source = ("format=tsv", "limit=0", f"path={tmp_path / 'train.txt'}")
    folder = trained(shared, tmp_path, *(f"data.train.{setting}" for setting in source), "data.eval=[]")
    (tmp_path / "train.txt").rename(tmp_path / "rows.txt")
    answers = predicted(folder, tmp_path / "rows.txt")
    assert ["\t".join((row["text"], row["label"])) for row in answers] == rows
    with patch.object(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"fine\tfilm"))):
        [answer] = predicted(folder, "-")
    assert answer["text"] == "fine\tfilm", "standard input is lines of text whatever the training rows were"


def test_the_rows_of_a_long_input_are_not_all_held_at_once(full: Path):
    taken = 0

    def rows() -> Iterator[dict[str, Any]]:
        nonlocal taken
        for number in range(20_000):
            taken += 1
            yield {"text": "fine", "_columns": [("n", number)], "_where": f"row {number}"}

    with open_predictor(full, batch_size=4) as predictor:
        for given, answer in enumerate(predictor.answers(rows())):
            assert answer.as_dict()["n"] == given
            assert taken <= given + CHUNK * 4
            if given == 200:
                break


def test_rows_that_are_dropped_have_a_note_instead_of_an_answer(shared: Path, tmp_path: Path):
    folder = trained(shared, tmp_path, "task.too_long=drop", "task.max_length=32")
    (tmp_path / "rows.csv").write_text(f"id,text\n1,fine\n2,{'very long ' * 40}\n3,bad\n")
    out = tmp_path / "answers.csv"
    assert tiny.command("predict", folder, tmp_path / "rows.csv", "--out", out).code == 0
    with open(out, newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(row["id"], row["note"]) for row in rows] == [("1", ""), ("2", "too_long"), ("3", "")]
    assert (rows[1]["prediction"], rows[1]["score"]) == ("", "")
    assert rows[0]["prediction"] in ("0", "1")
    assert [row["prediction"] for row in predicted(folder, tmp_path / "rows.csv")][1] is None


def test_an_input_that_breaks_half_way_leaves_the_old_answers(full: Path, tmp_path: Path):
    (tmp_path / "rows.jsonl").write_text('{"text": "fine"}\n{"text": \n')
    out = tmp_path / "answers.jsonl"
    out.write_text("old")
    outcome = tiny.command("predict", full, tmp_path / "rows.jsonl", "--out", out)
    assert (outcome.code, "rows.jsonl:2 is not JSON" in outcome.stderr) == (2, True)
    assert {path.name for path in tmp_path.iterdir()} == {"rows.jsonl", "answers.jsonl"}
    assert out.read_text() == "old"


@pytest.mark.parametrize(
    ("rows", "out", "says"),
    [
        ("text\nfine\n", "rows.csv", "is an input or a folder"),
        ("text\nfine\n", "no/answers.csv", "lies in a folder that does not exist"),
        ("text,score\nfine,1\n", "answers.csv", "input has a column 'score'"),
    ],
)
def test_predict_refuses_to_lose_anything(full: Path, tmp_path: Path, rows: str, out: str, says: str):
    (tmp_path / "rows.csv").write_text(rows)
    outcome = tiny.command("predict", full, tmp_path / "rows.csv", "--out", tmp_path / out)
    assert (outcome.code, says in outcome.stderr) == (2, True), outcome.stderr
    assert (tmp_path / "rows.csv").read_text() == rows


def test_csv_answers_to_rows_of_different_columns_are_refused(full: Path, tmp_path: Path):
    (tmp_path / "rows.jsonl").write_text('{"text": "fine"}\n{"text": "bad", "more": 1}\n')
    outcome = tiny.command("predict", full, tmp_path / "rows.jsonl", "--out", tmp_path / "answers.csv")
    assert (outcome.code, "has the column 'more', the first has not; write .jsonl" in outcome.stderr) == (2, True)


def test_images_of_a_folder_are_answered_by_path(shared: Path, tmp_path: Path):
    with tarfile.open(shared / "data/image_classification/cifar10_subset.tar.gz") as archive:
        files = [item for item in archive if item.isfile() and "train" in item.name]
        some = [item for name in ("cat", "ship") for item in [f for f in files if f"/{name}/" in f.name][:4]]
        archive.extractall(tmp_path / "cifar", members=some, filter="data")
    [pictures] = {path.parent.parent for path in (tmp_path / "cifar").rglob("*.*")}
    values = tiny.settings(
        shared,
        tmp_path,
        task={"name": "image_classification", "image_size": 64},
        model=str(shared / "weights/mobilenet_v1_0.25_224"),
        trainable={"scope": "head"},
        data={"train": {"path": str(pictures)}, "cache_dir": str(tmp_path / "cache")},
        train={"max_steps": 1},
    )
    assert tiny.command("train", tiny.write_run(tmp_path, values)).code == 0
    rows = predicted(tmp_path / "run", pictures)
    assert len(rows) == 8
    assert {row["prediction"] for row in rows} <= {"cat", "ship"}
    assert all(Path(pictures, row["image"]).is_file() for row in rows)


def test_lines_of_text_stand_for_words_and_sources(shared: Path, tmp_path: Path):
    tagging = tiny.settings(
        shared,
        tmp_path,
        task={"name": "token_classification", "max_length": 64},
        data={
            "train": {"path": str(shared / "data/ner/ncbi_disease/devel.tsv"), "format": "conll", "limit": 32},
            "cache_dir": str(tmp_path / "cache"),
        },
        model={"name": str(tiny_bert(shared, tmp_path)), "init": "random"},
        train={"max_steps": 1},
    )
    assert tiny.command("train", tiny.write_run(tmp_path, tagging)).code == 0
    (tmp_path / "rows.txt").write_text("breast cancer is a disease\nno\n")
    rows = predicted(tmp_path / "run", tmp_path / "rows.txt")
    assert [len(row["prediction"]) for row in rows] == [5, 1]

    lines = ["breast\tNN\tB-Disease", "cancer\tNN\tI-Disease", "\u200b\tSYM\tO", "", "no\tDT\tO"]
    (tmp_path / "rows.conll").write_text("\n".join(lines) + "\n")
    reading = ("input.format=conll", 'input.separator="\\t"')
    outcome = tiny.command(
        "predict", tmp_path / "run", tmp_path / "rows.conll", *reading, "--out", tmp_path / "o.conll"
    )
    assert outcome.code == 0, outcome.stderr
    written = [line.split("\t") for line in (tmp_path / "o.conll").read_text().splitlines() if line]
    assert ["\t".join(cells[:3]) for cells in written] == [line for line in lines if line]
    best = [
        (tag, pytest.approx(score, abs=1e-5))
        for words in (["breast", "cancer"], ["no"])
        for tag, score in by_transformers(tmp_path / "run/model", words)
    ]
    assert [(tag, float(score)) for *_, tag, score in written if score != "_"] == best
    assert written[2][3:] == ["O", "_"]
    answers = predicted(tmp_path / "run", tmp_path / "rows.conll", *reading, "--scores", "all")
    assert answers[0]["scores"][2] is None
    tags = answers[0]["scores"][0]
    assert (max(tags.items(), key=lambda item: item[1]), sum(tags.values())) == (best[0], pytest.approx(1))


def by_transformers(folder: Path, words: list[str]) -> list[tuple[str, float]]:
    """The tag of each word by its first token, and its probability, as transformers alone says."""
    import torch
    from transformers import AutoModelForTokenClassification, AutoTokenizer

    tokenizer, model = AutoTokenizer.from_pretrained(folder), AutoModelForTokenClassification.from_pretrained(folder)
    encoded = tokenizer(words, is_split_into_words=True, return_tensors="pt")
    with torch.no_grad():
        scores, ids = model(**encoded).logits[0].softmax(-1).max(-1)
    places = [encoded.word_ids(0).index(number) for number in range(len(words))]
    return [(model.config.id2label[ids[place].item()], scores[place].item()) for place in places]


def test_scores_of_every_class_are_those_of_the_model_alone(full: Path, tmp_path: Path):
    import torch
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(full / "model")
    model = AutoModelForSequenceClassification.from_pretrained(full / "model").eval()
    (tmp_path / "rows.txt").write_text("\n".join(TEXTS[:5]))
    for answer in predicted(full, tmp_path / "rows.txt", "--scores", "all"):
        with torch.no_grad():
            expected = model(**tokenizer(answer["text"], return_tensors="pt")).logits[0].softmax(-1).tolist()
        assert [*answer["scores"]] == [model.config.id2label[number] for number in range(2)]
        assert [*answer["scores"].values()] == pytest.approx(expected, abs=1e-5)
        assert answer["scores"][answer["prediction"]] == answer["score"] == max(answer["scores"].values())
    outcome = tiny.command("predict", full, tmp_path / "rows.txt", "--scores", "every")
    assert (outcome.code, "--scores = 'every' is not known" in outcome.stderr) == (2, True)
    outcome = tiny.command("predict", full, tmp_path / "rows.txt", "--out", tmp_path / "o.conll")
    assert (outcome.code, "is for tags of words, not for task = text_classification" in outcome.stderr) == (2, True)


def test_scores_of_every_class_hold_those_below_the_threshold(shared: Path, tmp_path: Path):
    rows = ["text,label", "fine,\"['a', 'b']\"", "bad,[]", "odd,['c']"] * 3
    (tmp_path / "train.csv").write_text("\n".join([rows[0], *(row for row in rows if row != rows[0])]) + "\n")
    data = {"train": f"{tmp_path}/train.csv", "cache_dir": str(tmp_path / "cache")}
    task = {"name": "text_classification", "problem": "multi_label"}
    values = tiny.settings(shared, tmp_path, task=task, data=data, train={"max_steps": 1})
    assert tiny.command("train", tiny.write_run(tmp_path, values)).code == 0
    out = tmp_path / "answers.parquet"
    assert tiny.command("predict", tmp_path / "run", tmp_path / "train.csv", "--scores", "all", "--out", out).code == 0
    import pyarrow.parquet

    answers = pyarrow.parquet.read_table(out).to_pylist()
    assert [(row["text"], row["label"]) for row in answers[:3]] == [
        ("fine", "['a', 'b']"),
        ("bad", "[]"),
        ("odd", "['c']"),
    ]
    for answer in answers:
        assert [*answer["scores"]] == ["a", "b", "c"]
        above = {name: value for name, value in answer["scores"].items() if value > 0.5}
        assert (answer["prediction"], answer["score"]) == ([*above], [*above.values()])


@pytest.mark.parametrize("problem", ["regression"])
def test_tasks_without_classes_have_no_scores_of_them(shared: Path, tmp_path: Path, problem: str):
    (tmp_path / "train.csv").write_text("text,label\nfine,0.5\nbad,1\n" * 1)
    data = {"train": f"{tmp_path}/train.csv", "cache_dir": str(tmp_path / "cache")}
    task = {"name": "text_classification", "problem": problem}
    values = tiny.settings(shared, tmp_path, task=task, data=data, train={"max_steps": 1})
    assert tiny.command("train", tiny.write_run(tmp_path, values)).code == 0
    outcome = tiny.command("predict", tmp_path / "run", tmp_path / "train.csv", "--scores", "all")
    assert (outcome.code, "--scores = all is for tasks with classes" in outcome.stderr) == (2, True)


def test_rows_without_a_text_are_refused_or_have_a_note_instead_of_an_answer(full: Path, tmp_path: Path):
    (tmp_path / "rows.jsonl").write_text('{"text": "fine", "n": NaN}\n{"text": NaN, "n": 1}\n')
    outcome = tiny.command("predict", full, tmp_path / "rows.jsonl")
    assert (outcome.code, "rows.jsonl:2: text = None must be a text" in outcome.stderr) == (2, True)
    answers = predicted(full, tmp_path / "rows.jsonl", "input.drop=[missing]")
    assert [(row["note"], row["prediction"] is None, row["score"] is None) for row in answers] == [
        ("", False, False),
        ("missing", True, True),
    ]
    assert str(answers[0]["n"]) == "nan", "a row comes out as it came in"


def test_a_column_that_the_task_never_reads_is_refused(full: Path, tmp_path: Path):
    outcome = tiny.command("evaluate", full, "data.eval.0.columns={text: 0, label: 1, text_b: 1}")
    assert (outcome.code, "data.eval[0].columns.text_b is no column of the task" in outcome.stderr) == (2, True)
    (tmp_path / "rows.csv").write_text("a,b\nfine,film\n")
    outcome = tiny.command("predict", full, tmp_path / "rows.csv", "input.columns={text: a, text_b: b}")
    assert (outcome.code, "input.columns.text_b is no column of the task" in outcome.stderr) == (2, True)
    assert "did you mean text_pair?" in outcome.stderr


def tiny_bert(shared: Path, work: Path) -> Path:
    from transformers import BertConfig

    model = work / "tiny-bert"
    shutil.copytree(shared / "weights/tokenizers/bert-base-uncased", model)
    sizes = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 64}
    BertConfig(**sizes).save_pretrained(model)
    return model


# ---------------------------------------------------------------- export


def load_elsewhere(
    folder: Path, auto_class: str = "AutoModelForSequenceClassification", **options: Any
) -> dict[str, Any]:
    """What transformers alone answers, in a process that cannot import ftscale."""
    outcome = tiny.process("python", "-c", LOADER, folder, auto_class, json.dumps(options), json.dumps(TEXTS))
    assert outcome.code == 0, outcome.stderr
    return json.loads(outcome.stdout.splitlines()[-1])


def exported(folder: Path, out: Path, *options: str) -> str:
    outcome = tiny.command("export", folder, out, *options)
    assert outcome.code == 0, outcome.stderr
    assert outcome.stdout.startswith(f"model in {out}\n")
    return outcome.stdout


def test_a_plain_export_answers_the_same_without_ftscale(full: Path, tmp_path: Path, expected: list[tuple[str, float]]):
    exported(full, tmp_path / "out")
    elsewhere = load_elsewhere(tmp_path / "out")
    assert elsewhere["class"] == "LlamaForSequenceClassification"
    check_answers([{"prediction": label, "score": score} for label, score in elsewhere["found"]], expected)


def test_a_merged_adapter_answers_the_same_without_ftscale_and_peft(adapted: Path, tmp_path: Path):
    told = exported(adapted, tmp_path / "out", "--merge")
    assert float(told.split("largest change of a logit: ")[1]) < 1e-4
    assert not (tmp_path / "out/adapter_config.json").exists()
    (tmp_path / "rows.txt").write_text("\n".join(TEXTS))
    answers = [(row["prediction"], row["score"]) for row in predicted(adapted, tmp_path / "rows.txt")]
    elsewhere = load_elsewhere(tmp_path / "out")
    check_answers([{"prediction": label, "score": score} for label, score in elsewhere["found"]], answers)


def test_an_adapter_by_itself_loads_on_its_base(adapted: Path, tmp_path: Path):
    exported(adapted, tmp_path / "out")
    assert (tmp_path / "out/adapter_config.json").is_file()
    assert not (tmp_path / "out/model.safetensors").exists()


def test_an_export_in_another_type_has_it(full: Path, tmp_path: Path, expected: list[tuple[str, float]]):
    told = exported(full, tmp_path / "out", "--dtype", "bf16")
    assert 0 < float(told.split("largest change of a logit: ")[1]) < 0.1
    elsewhere = load_elsewhere(tmp_path / "out")
    assert elsewhere["dtype"] == "torch.bfloat16"
    assert [score for _, score in elsewhere["found"]] == pytest.approx([score for _, score in expected], abs=0.02)


def test_merging_into_a_quantised_base_tells_the_largest_change(shared: Path, tmp_path: Path):
    captions = {"path": str(shared / "data/translation/multi30k_de-en/val.en.gz"), "format": "text", "limit": 32}
    values = tiny.settings(
        shared,
        tmp_path,
        task={"name": "causal_lm", "max_length": 64},
        model={"name": str(shared / "weights/stories260K"), "quantization": "nf4"},
        adapter={"method": "lora", "r": 4, "target_modules": "all-linear"},
        data={"train": captions, "cache_dir": str(tmp_path / "cache")},
    )
    assert tiny.command("train", tiny.write_run(tmp_path, values)).code == 0
    told = exported(tmp_path / "run", tmp_path / "out", "--merge")
    assert 0 < float(told.split("largest change of a logit: ")[1]) < 1
    elsewhere = load_elsewhere(tmp_path / "out", "AutoModelForCausalLM")
    assert (elsewhere["class"], elsewhere["dtype"]) == ("LlamaForCausalLM", "torch.float32")


def test_export_writes_over_nothing(full: Path, tmp_path: Path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out/own.txt").write_text("mine")
    outcome = tiny.command("export", full, tmp_path / "out")
    assert (outcome.code, "is not an empty folder; name a new one" in outcome.stderr) == (2, True)
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["own.txt"]


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (("--merge",), "--merge needs an adapter"),
        (("--dtype", "bf61"), "--dtype = 'bf61' is not known; did you mean 'bf16'?"),
    ],
)
def test_export_refuses(full: Path, tmp_path: Path, options: tuple[str, ...], says: str):
    outcome = tiny.command("export", full, tmp_path / "out", *options)
    assert (outcome.code, says in outcome.stderr) == (2, True), outcome.stderr
    assert not (tmp_path / "out").exists()
