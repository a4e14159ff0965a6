"""Every mistake of a user gets one clear message and exit code 2, from check as from train; nothing is written over."""

from __future__ import annotations

import gzip
import re
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import needs
import pytest
import tiny
import torch
from advice import follow

TRAIN = [
    ("a warm and funny film", "good"),
    ("an endless, lifeless mess", "bad"),
    ("the cast is a delight", "good"),
    ("i walked out after an hour", "bad"),
] * 4


@dataclass(frozen=True)
class Case:
    """Settings laid over a run that is right, what the rows' files hold instead, and what the message must say."""

    says: tuple[str, ...]
    settings: tuple[str, ...] = ()
    files: dict[str, str | bytes] = field(default_factory=dict)


SETTINGS = {
    "a setting that does not exist": Case(
        ("optimizer.lrr is not a setting", "did you mean optimizer.lr?"), ("optimizer.lrr=1",)
    ),
    "a section that is misspelt": Case(("optimzer is not a setting; did you mean optimizer?",), ("optimzer.lr=1",)),
    "another program's name of a setting": Case(
        ("learning_rate is not a setting; did you mean optimizer.lr?",), ("learning_rate=1e-4",)
    ),
    "a word for a number": Case(("train.epochs = 'many' must be a number",), ("train.epochs=many",)),
    "a number for a list": Case(("data.train = 3 must be a list",), ("data.train=3",)),
    "a number out of its range": Case(
        ("batch.global_size = 0 must be greater than 0; set a larger number",), ("batch.global_size=0",)
    ),
    "an override without a value": Case(("'optimizer.lr' must be section.key=value",), ("optimizer.lr",)),
    "an unknown task": Case(
        ("task = 'text_clasification' is not known; did you mean 'text_classification'?",),
        ("task={name: text_clasification}",),
    ),
    "a task by a misspelt name alone": Case(("did you mean 'text_classification'?",), ("task=text-classification",)),
    "an unknown optimizer": Case(
        ("optimizer.name = 'adamv' is not known; did you mean 'adam",), ("optimizer.name=adamv",)
    ),
    "a setting that the optimizer ignores": Case(
        ("optimizer.eps = 1e-08 is not a setting of lion; leave it out",), ("optimizer={name: lion, eps: 1e-8}",)
    ),
    "an unknown schedule": Case(
        ("schedule.name = 'cosin' is not known; did you mean 'cosine'?",), ("schedule.name=cosin",)
    ),
    "a schedule's option that is missing": Case(
        ("schedule.options = {} needs gamma for exponential; add it",), ("schedule.name=exponential",)
    ),
    "more warm-up than steps": Case(
        ("schedule.warmup_steps = 9 must be at most 4, the optimizer steps of the run",),
        ("schedule.warmup_steps=9", "train={epochs: 2}"),
    ),
    "an unknown adapter method": Case(
        ("adapter.method = 'lorra' is not known; did you mean 'lora'?",), ("adapter.method=lorra",)
    ),
    "an unknown field of an adapter": Case(
        ("adapter (lora) = 'lora_alfa' is not known; did you mean 'lora_alpha'?",),
        ("adapter={method: lora, lora_alfa: 8}",),
    ),
    "layers that the model does not have": Case(
        (
            "adapter.target_modules = 'nosuch' is not a module of LlamaForSequenceClassification",
            "score, up_proj, v_proj",
        ),
        ("adapter={method: lora, target_modules: [nosuch]}",),
    ),
    "one layer of several that the model does not have": Case(
        ("adapter.target_modules = 'v_projj' is not a module", "did you mean 'v_proj'?"),
        ("adapter={method: lora, target_modules: [q_proj, v_projj]}",),
    ),
    "layers that no pattern matches": Case(
        ("adapter.target_modules = 'nosuch' matches no module of LlamaForSequenceClassification", "up_proj, v_proj"),
        ("adapter={method: lora, target_modules: nosuch}",),
    ),
    "a layer to save that the model does not have": Case(
        ("adapter.modules_to_save = 'embed_token' is not a module", "did you mean 'embed_tokens'?"),
        ("adapter={method: lora, modules_to_save: [embed_token]}",),
    ),
    "shapes that the weights do not have": Case(
        ("model.overrides = {'hidden_size': 128} changes the shape of", "set model.init: random"),
        ("model.overrides={hidden_size: 128}",),
    ),
    "flat rows that the model does not take": Case(
        ("batch.layout = flat cannot be used", "set batch.layout: auto or padded"),
        ("batch.layout=flat", "model.attention=eager"),
    ),
    "an activation that does not exist": Case(
        ("head.activation = 'gelv' is not known; did you mean 'gelu'?",),
        ("head={hidden_sizes: [8], activation: gelv}",),
    ),
    "more blocks than there are": Case(
        ("trainable.last_blocks = 99 must be from 1 to 5",), ("trainable={scope: last_blocks, last_blocks: 99}",)
    ),
    "nothing left to train": Case(
        ("leaves no weight of LlamaForSequenceClassification to train",), ("trainable.freeze_patterns=['.']",)
    ),
    "a metric of a class that does not exist": Case(
        ("evaluation.metric = 'f1/goood' is not known; did you mean 'f1/good'?",), ("evaluation.metric=f1/goood",)
    ),
    "an optimizer in capitals": Case(
        ("optimizer.name = 'AdamW' is not known; did you mean 'adamw'?",), ("optimizer.name=AdamW",)
    ),
    "another program's name of an optimizer": Case(
        ("optimizer.name = 'adamw_torch' is transformers' name; set optimizer.name: adamw.",),
        ("optimizer.name=adamw_torch",),
    ),
    "a run folder that cannot be": Case(
        ("run_folder = '/dev/null/run' cannot be written (Not a directory)",), ("run_folder=/dev/null/run",)
    ),
    "a cache that cannot be": Case(
        ("data.cache_dir = '/dev/null/cache' cannot be written (Not a directory)",), ("data.cache_dir=/dev/null/cache",)
    ),
    "a place in brackets, as messages write it": Case(
        ("data.train[0].path = 'nowhere.csv' does not exist",), ("data.train[0].path=nowhere.csv",)
    ),
    "weights that the model does not have": Case(("trainable.patterns",), ("trainable={patterns: [nosuch]}",)),
    "an unknown strategy": Case(
        ("distributed.strategy = 'zero-2' is not known; did you mean 'zero2'?",), ("distributed.strategy=zero-2",)
    ),
    "an unknown tracker": Case(
        ("report.to = 'tensorbord' is not known; did you mean 'tensorboard'?",), ("report=[tensorbord]",)
    ),
    "an option that a tracker does not take": Case(
        ("report.options.wandb = 'mod' is not known; did you mean 'mode'?",),
        ("report=wandb", "report.options={wandb: {mod: offline}}"),
    ),
    "options of a tracker that is not named": Case(
        ("report.options has 'mlflow', which report.to does not name",), ("report.options={mlflow: {}}",)
    ),
    "trackers beside their earlier name": Case(
        ("train.trackers is not a setting; did you mean report?",), ("report=wandb", "train.trackers=[wandb]")
    ),
    "an unknown attention": Case(
        ("model.attention = 'sdpaa' is not known; did you mean 'sdpa'?",), ("model.attention=sdpaa",)
    ),
    "an unknown metric": Case(
        ("evaluation.metric = 'acuracy' is not known; did you mean 'accuracy'?",), ("evaluation.metric=acuracy",)
    ),
    "an evaluation to wait for without rows": Case(
        ("evaluation.patience", "need evaluation rows; set data.eval"), ("evaluation.patience=2", "data.eval=[]")
    ),
    "a quantised base without an adapter": Case(("model.quantization needs an adapter",), ("model.quantization=nf4",)),
    "a model of another kind": Case(
        ("model.name", "has no Seq2SeqLM form in transformers"),
        ("task={name: seq2seq}", "data.train.columns={source: text, target: label}", "data.eval=[]"),
    ),
    "a field of the model's config that does not exist": Case(
        ("model.overrides = 'hidden_siz' is not known; did you mean 'hidden_size'?",),
        ("model.overrides={hidden_siz: 8}",),
    ),
    "a model that is nowhere": Case(
        ("model.name = 'no-such/model' is neither a folder here nor to be had from the Hugging Face hub",),
        ("model.name=no-such/model",),
    ),
    "a source of an unknown format": Case(
        ("data.train[0].format = 'cvs' is not known; did you mean 'csv'?",), ("data.train.format=cvs",)
    ),
    "a column that does not exist": Case(
        ("data.train[0].columns.text = 'txt' is not a column of", "'text', 'label'", "did you mean 'text'?"),
        ("data.train.columns={text: txt}",),
    ),
    "a column that the task never reads": Case(
        ("data.train[0].columns.text_b is no column of the task", "did you mean text_pair?"),
        ("data.train.columns={text: text, text_b: label}",),
    ),
    "columns of two kinds of rows": Case(
        ("data.train[0].columns maps prompt, text, which the task never reads together",),
        ("task=causal_lm", "data.train.columns={prompt: text, text: text}", "data.eval=[]"),
    ),
    "a setting that the format does not use": Case(
        ("data.train[0].comment = '#' is not used for", "whose format is csv; leave it out"),
        ("data.train.comment=#",),
    ),
    "a weight of evaluation rows": Case(
        ("data.eval[0].weight = 2 is not used: each row is scored once; leave it out",), ("data.eval.weight=2",)
    ),
    "a split of a file": Case(
        ("data.train[0].split = 'test' is not used for", "name the split's file as the path"),
        ("data.train.split=test",),
    ),
    "fewer rows held out than values to keep the shares of": Case(
        ("data.eval_ratio = 0.1 cannot split the 16 rows", "Change the ratio, or name a file in data.eval"),
        ("data.eval=[]", "data.eval_ratio=0.1", "data.stratify=text"),
    ),
    "a column to stratify by that does not exist": Case(
        ("data.stratify = 'labl' is not a column the task reads", "label, text"),
        ("data.eval=[]", "data.eval_ratio=0.25", "data.stratify=labl"),
    ),
    "an encoding that does not exist": Case(("data.train[0].encoding = 'utf-9'",), ("data.train.encoding=utf-9",)),
    "rows that are longer than allowed": Case(
        ("train.csv:2", "are more than task.max_length = 2", "task.too_long: truncate or drop"),
        ("task.max_length=2", "task.too_long=raise"),
    ),
}

FILES = {
    "a label that training never saw": Case(
        (
            "eval.csv:3: label = 'goood' is not known; did you mean 'good'?",
            "It is not in task.labels, nor, where that is null, in data.train",
        ),
        files={"eval.csv": "text,label\nfine,good\nfiner,goood\n"},
    ),
    "a label that is not named": Case(
        ("train.csv:3: label = 'goood' is not known; did you mean 'good'?", "It is not in task.labels"),
        ("task.labels=[good, bad]",),
        files={"train.csv": "text,label\nfine,good\nfiner,goood\n"},
    ),
    "a test row that cannot be read": Case(
        ("test.csv:2: label = 'goood' is not known",),
        ("data.test[0].path={folder}/test.csv",),
        files={"test.csv": "text,label\nfiner,goood\n"},
    ),
    "test rows without a class": Case(
        ("test.csv has no column for 'label'",),
        ("data.test[0].path={folder}/test.csv",),
        files={"test.csv": "text,lable\nfiner,good\n"},
    ),
    "one class alone": Case(
        ("data.train has the classes ['good']: too few",), files={"train.csv": "text,label\nfine,good\nfiner,good\n"}
    ),
    "an empty file": Case(("data.train[0].path = ", "train.csv' has no rows; fill it"), files={"train.csv": ""}),
    "a header without rows": Case(("eval.csv' has no rows; fill it",), files={"eval.csv": "text,label\n"}),
    "a row without a class": Case(
        ("train.csv:3: label = '' must be a class",), files={"train.csv": "text,label\nfine,good\nfiner,\n"}
    ),
    "a list for a class": Case(
        ("train.csv:2: label = \"['good', 'bad']\" is a list", "set task.problem: multi_label"),
        files={"train.csv": "text,label\nfine,\"['good', 'bad']\"\nfiner,bad\n"},
    ),
    "gzip in gzip": Case(
        ("train.csv is compressed twice; unpack it once",),
        files={"train.csv": gzip.compress(gzip.compress(b"text,label\nfine,good\n"))},
    ),
    "a CSV row with missing fields": Case(
        ("train.csv:3 has 1 field where the header has 2; mend the line",),
        files={"train.csv": "text,label\nfine,good\nfiner\nawful,bad\n"},
    ),
    "a column that is missing": Case(
        ("has no column for 'label'", "'text', 'lable'", "set data.train[0].columns={label: lable}"),
        files={"train.csv": "text,lable\nfine,good\n"},
    ),
    "bytes that are not UTF-8": Case(
        ("data.train[0].encoding = 'utf-8' cannot decode byte 0xe9 in", "train.csv:3", "latin-1"),
        files={"train.csv": "text,label\nfine,good\ncaf\u00e9,bad\n".encode("latin-1")},
    ),
    "a quote that is never closed": Case(
        ("train.csv:3 is not CSV",), files={"train.csv": 'text,label\nfine,good\n"open,bad\n'}
    ),
}


@pytest.fixture
def run(shared: Path, tmp_path: Path) -> Path:
    """A run that is right, on two small CSV files, in a folder of its own."""
    rows = "text,label\n" + "".join(f'"{text}",{label}\n' for text, label in TRAIN)
    (tmp_path / "train.csv").write_text(rows)
    (tmp_path / "eval.csv").write_text(rows)
    data = {
        "train": {"path": str(tmp_path / "train.csv")},
        "eval": {"path": str(tmp_path / "eval.csv")},
        "cache_dir": str(tmp_path / "cache"),
    }
    return tiny.write_run(tmp_path, tiny.settings(shared, tmp_path, data=data))


@pytest.mark.parametrize("name", SETTINGS)
def test_a_setting_is_refused(name: str, run: Path):
    case = SETTINGS[name]
    check_both(run, *case.settings, says=case.says)


@pytest.mark.parametrize("name", FILES)
def test_a_file_is_refused(name: str, run: Path):
    case = FILES[name]
    for file, content in case.files.items():
        (run.parent / file).write_bytes(content if isinstance(content, bytes) else content.encode())
    check_both(run, *case.settings, says=case.says)


def test_settings_that_are_missing_are_named(run: Path):
    run.write_text("seed: 1\n")
    outcome = check_both(run)
    check_refusal(outcome, ("task is missing; set it", "model is missing", "run_folder is missing", "data is missing"))


@pytest.mark.skipif(torch.cuda.is_available(), reason="half precision works on a GPU")
def test_half_precision_needs_a_gpu(run: Path):
    check_both(run, "train.precision=fp16", says=("train.precision = fp16 needs a GPU, and there is none here",))
    elsewhere = tiny.command("check", run, "train.precision=fp16", "--gpus-per-node", 1)
    assert elsewhere.code == 0, "the machines that will train may have one"


def test_bytes_of_another_encoding_are_read_where_it_is_named(run: Path):
    text = (run.parent / "train.csv").read_text().replace("warm", "caf\u00e9")
    (run.parent / "train.csv").write_bytes(text.encode("latin-1"))
    assert tiny.command("train", run, "data.train.encoding=latin-1", "train.max_steps=1").code == 0


def test_a_line_that_is_not_json_is_named_by_file_and_line(run: Path):
    (run.parent / "rows.jsonl").write_text('{"text": "fine", "label": "good"}\n{"text": "bad", "label"\n')
    check_both(run, f"data.train={run.parent / 'rows.jsonl'}", says=("rows.jsonl:2 is not JSON", "mend the line"))


def test_a_json_row_without_a_column_is_named_by_file_and_line(run: Path):
    (run.parent / "rows.jsonl").write_text('{"text": "fine", "label": "good"}\n{"txt": "bad", "label": "bad"}\n')
    says = ("rows.jsonl:2", "no column for 'text'", "{text: txt}")
    check_both(run, f"data.train={run.parent / 'rows.jsonl'}", says=says)


def test_a_missing_file_comes_with_the_nearest_name(run: Path):
    says = ("trian.csv' does not exist; did you mean", "train.csv'?")
    check_both(run, f"data.train={run.parent / 'trian.csv'}", says=says)


def test_a_missing_model_folder_comes_with_the_nearest_name(run: Path, shared: Path):
    says = ("model.name = 'stories260' is not known; did you mean 'stories260K'?",)
    outcome = check_both(run, f"model.name={shared / 'weights/stories260'}", says=says)
    assert outcome.stderr.count("stories260K") == 1, "the config and the tokenizer of one folder are one mistake"


def test_a_folder_without_a_tokenizer_is_told(run: Path, tmp_path: Path, shared: Path):
    model = tmp_path / "model"
    model.mkdir()
    shutil.copy(shared / "weights/stories260K/config.json", model)
    check_both(run, f"model.name={model}", says=("gives no tokenizer", "set model.processor to one that does"))


def test_a_model_that_is_nowhere_is_one_mistake(run: Path):
    check_refusal(check_both(run, "model.name=no-such/model"), ("model.name = 'no-such/model'",), problems=1)


def test_a_folder_without_weights_is_told(run: Path, tmp_path: Path, shared: Path):
    shutil.copytree(shared / "weights/stories260K", tmp_path / "model", ignore=shutil.ignore_patterns("*.safetensors"))
    name = f"model.name={tmp_path / 'model'}"
    check_both(run, name, says=("holds no weights (model.safetensors)", "set model.init: random"))
    elsewhere = tiny.command("check", run, name, "--gpus-per-node", 1)
    assert (elsewhere.code, "warning: model.name" in elsewhere.stdout) == (0, True)


def test_a_corrupt_image_is_named(run: Path, shared: Path):
    from PIL import Image

    pictures = run.parent / "pictures"
    for name in ("cat/1.png", "dog/1.png", "dog/2.png"):
        (pictures / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 8)).save(pictures / name)
    (pictures / "dog/2.png").write_bytes((pictures / "dog/1.png").read_bytes()[:40])
    check_both(
        run,
        "task={name: image_classification}",
        f"model.name={shared / 'weights/mobilenet_v1_0.25_224'}",
        f"data.train={pictures}",
        "data.eval=[]",
        says=("dog/2.png: not a readable image", "mend or remove the file"),
    )


def test_mistakes_are_reported_together(run: Path):
    outcome = tiny.command(
        "train",
        run,
        "optimizer.name=adamv",
        "schedule.name=cosin",
        "adapter.method=lorra",
        "distributed.strategy=zero-2",
        "model.quantization=nf4",
        "model.attention=sdpaa",
        "data.train.columns={text: txt}",
        "data.eval=nothing.csv",
    )
    says = ("optimizer.name", "schedule.name", "adapter.method", "distributed.strategy", "model.attention")
    check_refusal(outcome, (*says, "data.train[0].columns.text", "data.eval[0].path"), problems=7)


def test_unknown_settings_and_unknown_names_are_reported_together(run: Path):
    outcome = tiny.command("train", run, "optimizer.name=adamv", "train.epoch=3", "adapter.method=lorra")
    check_refusal(outcome, ("optimizer.name = 'adamv'", "did you mean train.epochs?", "adapter.method"), problems=3)


def test_a_config_file_that_is_missing_comes_with_the_nearest(run: Path):
    check_refusal(
        tiny.command("train", run.with_name("rum.yaml")), ("rum.yaml' does not exist; did you mean", "run.yaml")
    )


def test_a_config_that_is_not_yaml_is_named_by_its_line(run: Path):
    run.write_text(run.read_text() + "seed: [1, 2\n")
    check_refusal(tiny.command("train", run), ("run.yaml", "line "))


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("evaluate", "nothing"), "RUN_FOLDER = nothing holds no run"),
        (("predict", "nothing", "rows.csv"), "RUN_FOLDER = nothing holds no run"),
        (("predict", "nothing", "rows.csv", "--out", "rows.xlsx"), "--out = rows.xlsx must end in .csv, .tsv, .jsonl"),
        (("export", "nothing", "exported"), "RUN_FOLDER = nothing holds no run"),
        (("launch", "nothing.yaml", "--strategy", "zero-2"), "strategy = 'zero-2' is not known; did you mean 'zero2'?"),
        (("launch", "run.yaml", "--strategy", "single", "--processes", "2"), "--strategy single is for one process"),
    ],
)
def test_a_command_refuses(arguments: tuple[str, ...], says: str):
    check_refusal(tiny.command(*arguments), (says,))


# ---------------------------------------------------------------- the run folder


@pytest.fixture
def done(run: Path) -> Path:
    """The run, trained for two steps."""
    assert tiny.command("train", run, "train.max_steps=2").code == 0
    return run


def test_a_folder_that_holds_a_run_is_not_written_over(done: Path):
    def refused(*arguments: str, says: tuple[str, ...], change: Callable[[], Any] | None = None) -> None:
        before = tiny.contents(done.parent / "run")
        if change:
            change()
        check_both(done, "train.max_steps=2", *arguments, says=says, fresh=False)
        assert tiny.contents(done.parent / "run") == before

    refused(says=("already holds a run", "--resume", "--overwrite"))
    refused("--resume", "optimizer.eps=1e-4", says=("cannot resume", "optimizer.eps: null -> 0.0001; set it back"))
    refused(
        "--resume",
        "adapter.method=lora",
        "data.train.limit=8",
        says=('adapter.method: "none" -> "lora"', "data.train.0.limit: 0 -> 8"),
    )
    run_folder = str(done.parent / "run")
    refused(f"model.name={run_folder}", says=(f"run_folder = {run_folder} is the folder of model.name too",))
    refused("--resume", "model.name=other", says=("model.name: ", '-> "other"'))
    refused("--overwrite", "optimizer.name=adamv", says=("did you mean 'adam",))
    refused(  # found when the model is built
        "--overwrite", "head={hidden_sizes: [4]}", "trainable={patterns: [nosuch]}", says=("trainable.patterns",)
    )
    file = done.parent / "train.csv"
    refused(
        "--resume",
        says=("cannot resume", f"data.train[0].path: {file} has changed; put the data back"),
        change=lambda: file.write_text(file.read_text().replace("funny", "silly")),
    )


def test_what_does_not_change_the_result_may_change_on_resume(done: Path):
    settings = ("train.log_every=1", "batch.micro_size=2", "evaluation.every=1")
    assert tiny.command("train", done, "train.max_steps=2", "--resume", *settings).code == 0


def test_overwrite_replaces_the_run(done: Path):
    (done.parent / "run/own.txt").write_text("not of the run")
    assert tiny.command("train", done, "train.max_steps=1", "--overwrite").code == 0
    assert [line["step"] for line in tiny.steps(done.parent / "run")] == [1]
    assert sorted(path.name for path in (done.parent / "run/checkpoints").iterdir()) == ["step-00000001"]
    assert (done.parent / "run/own.txt").is_file()


# ---------------------------------------------------------------- in processes of their own


def test_the_program_ends_with_code_2_and_nothing_but_the_message(run: Path):
    outcome = tiny.process("ftscale", "train", run, "optimizer.lrr=1")
    assert (outcome.code, outcome.stdout) == (2, "")
    [line] = outcome.stderr.splitlines()
    assert line.startswith(
        f"error: {run} and the command line: optimizer.lrr is not a setting; did you mean optimizer.lr?"
    )


@pytest.mark.slow
@pytest.mark.parametrize(
    ("setting", "says"),
    [
        ("optimizer.name=adamv", "optimizer.name = 'adamv' is not known"),  # found by the launching process
        # by all
        needs.in_campaign("train.precision=fp16", "train.precision = fp16 needs a GPU"),
    ],
)
def test_launch_keeps_the_code_and_prints_a_mistake_once(run: Path, setting: str, says: str):
    outcome = tiny.process("ftscale", "launch", run, setting, "--processes", 2)
    check_refusal(outcome, (says,))
    assert "torch" not in outcome.stderr, "torchrun's banner"
    assert not (run.parent / "run").exists()


@pytest.mark.slow
@pytest.mark.parametrize(
    "launcher",
    [
        needs.in_campaign(("torchrun", "--nproc_per_node", "2", "--standalone")),
        needs.in_campaign(
            ("accelerate", "launch", "--config_file", "launch/accelerate/ddp.yaml", "--num_processes", "2")
        ),
    ],
    ids=["torchrun", "accelerate"],
)
def test_under_a_launcher_a_mistake_is_printed_once(run: Path, launcher: tuple[str, ...]):
    outcome = tiny.process(*launcher, "-m", "ftscale", "train", run, "optimizer.name=adamv")
    assert outcome.code != 0
    assert outcome.stderr.count("error: optimizer.name = 'adamv' is not known; did you mean 'adam") == 1
    assert "UserError" not in outcome.stderr


def check_both(run: Path, *settings: str, says: tuple[str, ...] = (), fresh: bool = True) -> tiny.Outcome:
    """`ftscale train` refuses, and `ftscale check` too, by the same sentences; nothing is written. Gives train's.

    Where a sentence has advice for a machine, it is followed, and check gets further.
    """
    words = [setting.replace("{folder}", str(run.parent)) for setting in settings]
    trained, checked = tiny.command("train", run, *words), tiny.command("check", run, *words)
    check_refusal(trained, says)
    assert checked.code == 2, checked.stdout
    assert [line for line in errors_of(trained) if line not in errors_of(checked)] == [], errors_of(checked)
    if fresh:
        assert not (run.parent / "run").exists()
    for sentence in errors_of(trained):
        if (advised := follow(sentence, words)) is not None:
            mended = tiny.command("check", run, *advised)
            assert sentence not in errors_of(mended), f"{advised} does not help"
            assert "Traceback" not in mended.stderr, mended.stderr
    return trained


def errors_of(outcome: tiny.Outcome) -> list[str]:
    """Its `error:` lines; a report of check has them at its end."""
    return [line for line in (outcome.stdout + outcome.stderr).splitlines() if line.startswith("error: ")]


def check_refusal(outcome: tiny.Outcome, says: tuple[str, ...], *, problems: int | None = None) -> None:
    """Exit code 2, no traceback, and one `error:` line for each problem."""
    assert outcome.code == 2, outcome.stderr
    assert "Traceback" not in outcome.stderr
    errors = [line for line in outcome.stderr.splitlines() if line.startswith("error: ")]
    told = "\n".join(errors)
    assert [piece for piece in says if piece not in told] == [], told
    if problems is not None:
        assert len(errors) == problems, told


LONG = "a" * 300


@pytest.mark.parametrize(
    "arguments",
    [
        ("check", "RUN", f"model={LONG}"),
        ("train", "RUN", f"data.train.0.path={LONG}.csv"),
        ("train", "RUN", f"run_folder={LONG}"),
        ("check", "RUN", f"task.file={LONG}.py"),
        ("plan", f"{LONG}.yaml"),
        ("status", LONG),
    ],
    ids=lambda arguments: " ".join(word[:16] for word in arguments),
)
def test_a_name_that_no_file_can_have_is_told(shared: Path, tmp_path: Path, arguments: tuple[str, ...]):
    file = tiny.write_run(tmp_path, tiny.settings(shared, tmp_path))
    done = tiny.command(*(file if word == "RUN" else word for word in arguments))
    assert done.code == 2
    assert re.search(
        r"^error: a{40}\.\.\. \(30\d characters\) is longer than the name of a file", done.stderr, re.MULTILINE
    )
    assert "Traceback" not in done.stderr
