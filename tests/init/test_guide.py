"""A run.yaml for a file of rows: its settings, its reasons, and what it is not sure of."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import tiny

from ftscale.base.errors import UserError
from ftscale.config import Config
from ftscale.config.load import load_config
from ftscale.init.guide import guide_to


def guided(path: Path, out: Path, **options: Any) -> Config:
    out.write_text(guide_to(path, **{"plan": False, **options}).text)
    return load_config(out)


def test_splits_metric_length_and_model_follow_from_the_rows(shared: Path, tmp_path: Path):
    sst2 = guided(shared / "data/text_classification/sst2/train.tsv", tmp_path / "a.yaml")
    assert [Path(source.path).name for source in (*sst2.data.eval, *sst2.data.test)] == ["dev.tsv", "test.tsv"]
    assert (sst2.evaluation.metric, sst2.model.name) == ("accuracy", "sentence-transformers/all-MiniLM-L6-v2")
    assert sst2.task.model_dump()["max_length"] == 96
    banks = guided(shared / "data/text_classification/banking77/train.csv", tmp_path / "b.yaml")
    assert (banks.evaluation.metric, banks.data.stratify, banks.data.eval_ratio) == ("f1_macro", "label", 0.1)
    german = tmp_path / "deutsch.csv"
    german.write_text("text,label\n" + "".join(f"Der Zug nach Köln fährt heute nicht {n},{n % 2}\n" for n in range(40)))
    config = guided(german, tmp_path / "c.yaml")
    assert (config.model.name, config.batch.global_size, config.train.epochs) == (
        "sentence-transformers/paraphrase-multilingual-MiniLM-L12-v2",
        8,
        20,
    )
    scores = tmp_path / "scores.csv"
    scores.write_text("text,score\n" + "".join(f"it is the number {n} of them,{n / 7}\n" for n in range(40)))
    config = guided(scores, tmp_path / "d.yaml")
    assert (config.task.model_dump()["problem"], config.evaluation.metric) == ("regression", "pearson")


def test_a_task_may_be_named_and_must_fit(shared: Path, tmp_path: Path):
    data = shared / "data"
    config = guided(data / "math/gsm8k/train.jsonl", tmp_path / "a.yaml", task="seq2seq")
    assert config.data.train[0].columns == {"source": "question", "target": "answer"}
    config = guided(data / "text_classification/banking77/train.csv", tmp_path / "b.yaml", task="masked_lm")
    assert (config.task.name, config.evaluation.metric, config.optimizer.head_lr) == ("masked_lm", "loss", None)
    with pytest.raises(UserError, match=r"--task = token_classification does not fit .*, whose columns are question"):
        guide_to(data / "math/gsm8k/train.jsonl", task="token_classification")
    with pytest.raises(UserError, match=r"--task = 'seq2sec' is not known; did you mean 'seq2seq'"):
        guide_to(data / "math/gsm8k/train.jsonl", task="seq2sec")


def test_what_it_is_not_sure_of_is_told_and_written_down(shared: Path):
    guide = guide_to(shared / "data/text_classification/ag_news/test.csv", plan=False)
    assert guide.unsure == (
        "test.csv is for the test by its name, and trained on all the same.",
        "the label is taken to be 0, by its few values.",
        "the texts of columns 1 and 2 are read together, as a pair.",
    )
    assert "# - the label is taken to be 0, by its few values." in guide.text
    guide = guide_to(shared / "data/text_pair/sick", plan=False)
    assert guide.unsure == ("the label is taken to be entailment_judgment; relatedness_score could be one as well.",)


def test_numbers_get_the_names_that_lie_beside_them(shared: Path, tmp_path: Path):
    config = guided(shared / "data/text_classification/ag_news", tmp_path / "a.yaml")
    names = ("World", "Sports", "Business", "Sci/Tech")
    assert (config.task.model_dump()["labels"], config.task.model_dump()["label_ids"]) == (names, (1, 2, 3, 4))


def test_good_answers_of_preferences_are_learned_where_they_are_chats_or_texts(shared: Path, tmp_path: Path):
    turns = [{"role": "user", "content": "who are you"}, {"role": "assistant", "content": "nobody at all"}]
    chats, texts = tmp_path / "chats.jsonl", tmp_path / "texts.jsonl"
    chats.write_text(json.dumps({"chosen": turns, "rejected": turns[:1]}) + "\n")
    texts.write_text(json.dumps({"prompt": "who are you", "chosen": "nobody at all", "rejected": "go away"}) + "\n")
    out = tmp_path / "run.yaml"
    assert guided(chats, out, task="causal_lm").data.train[0].columns == {"messages": "chosen"}
    assert guided(texts, out, task="causal_lm").data.train[0].columns == {"completion": "chosen"}
    with pytest.raises(UserError, match=r"--task = causal_lm does not fit"):
        guided(shared / "data/preference/llamafactory_demo/dpo_en_demo.json", out, task="causal_lm")


def test_a_plan_measures_the_rows_and_says_what_fits(shared: Path, tmp_path: Path):
    guide = guide_to(shared / "data/sft/llamafactory_demo/identity.json", model=str(shared / "weights/stories260K"))
    (tmp_path / "run.yaml").write_text(guide.text)
    config = load_config(tmp_path / "run.yaml")
    # 91 rows of 30 words at most, in a vocabulary of 512 tokens and behind the preamble of Alpaca's template
    assert (config.task.model_dump()["max_length"], config.task.model_dump()["chat_template"]) == (480, "alpaca")
    assert (config.adapter.method, config.optimizer.lr) == ("none", 1e-3)
    assert re.search(r"--model; 0\.\d GiB of [\d.]+ GiB of this machine without a GPU by ftscale plan", guide.text)
    assert re.search(r"30 steps; .* about 1 min", " ".join(guide.text.split()).replace("# ", ""))


def test_a_model_that_is_not_for_the_task_is_refused(shared: Path):
    with pytest.raises(UserError, match="stories260K' has no Seq2SeqLM form"):
        guide_to(shared / "data/table_to_text/e2e_nlg/devset.csv", model=str(shared / "weights/stories260K"))


def test_the_command_writes_what_trains(shared: Path, tmp_path: Path):
    out = tmp_path / "run.yaml"
    data = shared / "data/text_classification/sst2/train.tsv"
    done = tiny.command("init", data, "--out", out, "--model", shared / "weights/stories260K", "--no-plan")
    assert (done.code, done.stderr) == (0, "")
    assert "no header, parts train, eval, test by the names of the files beside it; 6920 rows" in done.stdout
    assert done.stdout.splitlines()[-1] == f"next: ftscale check {out}"
    small = [f"data.{part}.0.limit=32" for part in ("train", "eval", "test")]
    fast = [*small, f"data.cache_dir={tmp_path / 'cache'}", f"run_folder={tmp_path / 'run'}", "train.max_steps=2"]
    assert tiny.command("train", out, *fast, "checkpoint.prove=never").code == 0
    assert len(tiny.steps(tmp_path / "run")) == 2


def test_a_file_that_is_there_is_told_before_anything_is_looked_at(tmp_path: Path):
    (tmp_path / "run.yaml").write_text("mine")
    done = tiny.command("init", tmp_path / "no such file", "--out", tmp_path / "run.yaml")
    assert (done.code, "is there already" in done.stderr) == (2, True)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ((), "needs either FILE, rows to learn from, or --from FILE"),
        (("rows.csv", "--from", "theirs.yaml"), "needs either FILE"),
        (("rows.csv", "--processes", "4"), "--tool and --processes are for --from"),
        (("--from", "theirs.yaml", "--model", "m"), "--model = m is for FILE"),
    ],
)
def test_options_that_do_not_go_together_are_refused(arguments: tuple[str, ...], said: str):
    done = tiny.command("init", *arguments)
    assert (done.code, said in done.stderr) == (2, True)
