"""A run.yaml for the real data sets: the settings are right, check takes them, and two steps are trained."""

from __future__ import annotations

from pathlib import Path

import pytest
import tiny

from ftscale.base.errors import UserError
from ftscale.config import Config
from ftscale.config.load import load_config
from ftscale.init.guide import guide_to
from ftscale.precheck import quick_problems

SETS = {  # path, its task, what its columns are called, how it is read
    "causal_text/tinyshakespeare/input.txt": ("causal_lm", {}, {}),
    "math/gsm8k/train.jsonl": ("causal_lm", {"prompt": "question", "completion": "answer"}, {}),
    "sft/alpaca_1k/alpaca_1k.json": ("causal_lm", {}, {}),
    "sft/llamafactory_demo/alpaca_en_demo.json": ("causal_lm", {}, {}),
    "sft/llamafactory_demo/glaive_toolcall_en_demo.json": ("causal_lm", {}, {}),
    "ner/ncbi_disease/train.tsv": ("token_classification", {}, {"format": "conll"}),
    "table_to_text/e2e_nlg/devset.csv": ("seq2seq", {"source": "mr", "target": "ref"}, {}),
    "translation/multi30k_de-en/train.{de,en}.gz": ("seq2seq", {}, {}),
    "text_classification/ag_news/test.csv": ("text_classification", {"text": 2, "label": 0}, {"header": False}),
    "text_classification/ag_news_7k/train.csv": ("text_classification", {"text": 0, "label": 1}, {"header": False}),
    "text_classification/banking77/train.csv": ("text_classification", {"label": "category"}, {}),
    "text_classification/sst2/train.tsv": ("text_classification", {"text": 0, "label": 1}, {"header": False}),
    "text_pair/sick/SICK_train.txt": (
        "text_classification",
        {"text": "sentence_A", "text_pair": "sentence_B", "label": "entailment_judgment"},
        {"format": "tsv"},
    ),
    "image_classification/mnist_t10k/t10k-images-idx3-ubyte.gz": ("image_classification", {}, {}),
}
OTHERS = {  # what no task of ftscale's learns from
    "preference/llamafactory_demo/dpo_en_demo.json": "has the columns chosen and rejected",
    "qa/xquad_en/xquad.en.json": "does not tell its task by its columns",
    "recommendation/ml-latest-small/ratings.csv": "does not tell its task by its columns",
    "faces/orl_faces.tar.gz": "is a tar archive, whatever its name says; unpack it",
    "text_classification/banking77/categories.json": "must be an object",
}


def guided(path: Path, out: Path, **options: str) -> Config:
    out.write_text(guide_to(path, **options).text)
    return load_config(out)


@pytest.mark.parametrize("name", SETS)
def test_a_real_data_set_is_known_and_its_run_yaml_is_taken(shared: Path, tmp_path: Path, name: str):
    out = tmp_path / "run.yaml"
    model = shared / "weights" / ("mobilenet_v1_0.25_224" if "mnist" in name else "stories260K")
    config = guided(shared / "data" / name, out, model=str(model))
    task, columns, form = SETS[name]
    [source] = config.data.train
    assert (config.task.name, source.columns) == (task, columns)
    assert source.model_dump(include={"header", "format"}) == {"header": True, "format": "auto", **form}
    assert bool(config.data.eval) != bool(config.data.eval_ratio)
    _, problems = quick_problems(out)
    assert problems == []


@pytest.mark.parametrize("name", OTHERS)
def test_what_no_task_learns_from_is_refused_in_a_sentence(shared: Path, name: str):
    with pytest.raises(UserError, match=OTHERS[name]):
        guide_to(shared / "data" / name)


def test_splits_metric_length_and_model_follow_from_the_rows(shared: Path, tmp_path: Path):
    sst2 = guided(shared / "data/text_classification/sst2/train.tsv", tmp_path / "a.yaml")
    assert [Path(source.path).name for source in (*sst2.data.eval, *sst2.data.test)] == ["dev.tsv", "test.tsv"]
    assert (sst2.evaluation.metric, sst2.model.name) == ("accuracy", "distilbert/distilroberta-base")
    assert sst2.task.model_dump()["max_length"] == 96
    banks = guided(shared / "data/text_classification/banking77/train.csv", tmp_path / "b.yaml")
    assert (banks.evaluation.metric, banks.data.stratify, banks.data.eval_ratio) == ("f1_macro", "label", 0.05)
    german = tmp_path / "deutsch.csv"
    german.write_text("text,label\n" + "".join(f"Der Zug nach Köln fährt heute nicht {n},{n % 2}\n" for n in range(40)))
    config = guided(german, tmp_path / "c.yaml")
    assert (config.model.name, config.batch.global_size, config.train.epochs) == ("FacebookAI/xlm-roberta-base", 16, 10)
    scores = tmp_path / "scores.csv"
    scores.write_text("text,score\n" + "".join(f"it is the number {n} of them,{n / 7}\n" for n in range(40)))
    config = guided(scores, tmp_path / "d.yaml")
    assert (config.task.model_dump()["problem"], config.evaluation.metric) == ("regression", None)


def test_a_task_may_be_named_and_must_fit(shared: Path, tmp_path: Path):
    data = shared / "data"
    config = guided(data / "math/gsm8k/train.jsonl", tmp_path / "a.yaml", task="seq2seq")
    assert config.data.train[0].columns == {"source": "question", "target": "answer"}
    config = guided(data / "preference/llamafactory_demo/dpo_en_demo.json", tmp_path / "b.yaml", task="causal_lm")
    assert config.data.train[0].columns == {}
    with pytest.raises(UserError, match=r"--task = token_classification does not fit .*, whose columns are question"):
        guide_to(data / "math/gsm8k/train.jsonl", task="token_classification")
    with pytest.raises(UserError, match="--task = 'seq2sec' is not known; did you mean 'seq2seq'"):
        guide_to(data / "math/gsm8k/train.jsonl", task="seq2sec")


def test_what_it_is_not_sure_of_is_told_and_written_down(shared: Path):
    guide = guide_to(shared / "data/text_classification/ag_news/test.csv")
    assert [sentence.split(";")[0] for sentence in guide.unsure] == [
        "the text is taken to be 2",
        "the label is taken to be 0, by its few values.",
        "task.problem: the 4 numbers of 0 (1 to 4) are taken for classes",
    ]
    assert "# - the text is taken to be 2; 1 hold texts as well, which are not read." in guide.text


def test_a_length_is_within_the_positions_of_a_model_that_is_there(shared: Path, tmp_path: Path):
    path = shared / "data/sft/llamafactory_demo/glaive_toolcall_en_demo.json"
    config = guided(path, tmp_path / "run.yaml", model=str(shared / "weights/stories260K"))
    assert config.task.model_dump()["max_length"] == 512
    assert guided(path, tmp_path / "run.yaml").task.model_dump()["max_length"] > 512


def test_the_command_writes_what_trains(shared: Path, tmp_path: Path):
    out = tmp_path / "run.yaml"
    data = shared / "data/text_classification/sst2/train.tsv"
    done = tiny.command("init", data, "--out", out, "--model", shared / "weights/stories260K")
    assert (done.code, done.stderr) == (0, "")
    assert "tsv, 2 columns by tab, no header; 6920 rows; text_classification of text = 0, label = 1" in done.stdout
    assert done.stdout.splitlines()[-1] == f"next: ftscale check {out}"
    small = [f"data.{part}.0.limit=32" for part in ("train", "eval", "test")]
    fast = [*small, f"data.cache_dir={tmp_path / 'cache'}", f"run_folder={tmp_path / 'run'}", "train.max_steps=2"]
    assert tiny.command("train", out, *fast, "checkpoint.prove=never").code == 0
    assert len(tiny.steps(tmp_path / "run")) == 2


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
