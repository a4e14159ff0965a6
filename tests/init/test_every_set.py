"""Every shared data set as it comes: a run.yaml that check takes and that trains, or a sentence on what it is for."""

from __future__ import annotations

import os
import shutil
import tarfile
from pathlib import Path
from typing import Any

import needs
import pytest
import tiny

from ftscale.base.errors import UserError
from ftscale.checks.report import check_run
from ftscale.config import Config
from ftscale.config.load import load_config
from ftscale.init.guide import guide_to

ROWS = 200  # of each source that are checked and trained on
WHOLE = {"text_classification/banking77", "image_classification/cifar10", "faces/data_faces"}
"""Sets whose rows are sorted by their classes."""
AG_NEWS = {"text": 1, "text_pair": 2, "label": 0}
SICK = {"text": "sentence_A", "text_pair": "sentence_B", "label": "entailment_judgment"}
NESTED = {"input": "instances.0.input", "output": "instances.0.output"}
E2E = {"source": "mr", "target": "ref"}
PROBLEM = {"prompt": "question", "completion": "answer"}
QUESTIONS = {"question": "question", "context": "context", "answers": "answers"}
SETS: dict[str, tuple[str, dict[str, Any], str, str, str | None]] = {
    # path: its task, columns, names of the files for evaluation and for the test, metric
    "causal_text/tinyshakespeare": ("causal_lm", {}, "", "", "loss"),
    "math/gsm8k": ("causal_lm", PROBLEM, "", "test.jsonl", "exact_match"),
    "sft/alpaca_1k": ("causal_lm", {}, "", "", "loss"),
    "sft/llamafactory_demo": ("causal_lm", {}, "", "", "loss"),
    "sft/llamafactory_demo/glaive_toolcall_en_demo.json": ("causal_lm", {}, "", "", "loss"),
    "sft/llamafactory_demo/identity.json": ("causal_lm", {}, "", "", "loss"),
    "sft/self_instruct_seed/seed_tasks.jsonl": ("causal_lm", NESTED, "", "", "loss"),
    "sft/self_instruct_seed/user_oriented_instructions.jsonl": ("causal_lm", NESTED, "", "", "loss"),
    "qa/squad_v1": ("question_answering", QUESTIONS, "", "", "f1"),
    "qa/squad_v2_dev": ("question_answering", QUESTIONS, "", "", "f1"),
    "qa/xquad_en/xquad.en.json": ("question_answering", QUESTIONS, "", "", "f1"),
    "ner/ncbi_disease": ("token_classification", {}, "devel.tsv", "test.tsv", "f1"),
    "table_to_text/e2e_nlg": ("seq2seq", E2E, "", "testset_w_refs.csv", "bleu"),
    "translation/multi30k_de-en": ("seq2seq", {}, "val.{de,en}.gz", "test_2016_flickr.{de,en}.gz", "bleu"),
    "text_classification/ag_news": ("text_classification", AG_NEWS, "", "", "accuracy"),
    "text_classification/ag_news_7k": (
        "text_classification",
        {"text": 0, "label": 1},
        "dev.csv",
        "test.csv",
        "accuracy",
    ),
    "text_classification/banking77": ("text_classification", {"label": "category"}, "", "test.csv", "f1_macro"),
    "text_classification/sst2": ("text_classification", {"text": 0, "label": 1}, "dev.tsv", "test.tsv", "accuracy"),
    "text_pair/sick": ("text_classification", SICK, "SICK_trial.txt", "SICK_test_annotated.txt", "f1_macro"),
    "recommendation/ml-latest-small/movies.csv": (
        "text_classification",
        {"text": "title", "label": "genres"},
        "",
        "",
        "f1_micro",
    ),
    "image_classification/mnist_t10k": ("image_classification", {}, "", "", "accuracy"),
    "image_classification/cifar10": ("image_classification", {}, "", "cifar10", "accuracy"),
    "faces/data_faces": ("image_classification", {}, "", "", "accuracy"),
}
ALWAYS = ("sft/self_instruct_seed/seed_tasks.jsonl",)
"""Sets that are trained in an ordinary run too; test_guide.py trains another."""
UNLEARNED = {  # what there is no task for yet, by what tells it
    "detection/BCCD_Dataset": r"for detection \(an XML file beside images\)",
    "detection/BCCD_Dataset/test.csv": r"for detection \(columns xmax, xmin, ymax, ymin\)",
    "detection/coco_free": r"for segmentation \(the folder panoptic beside its images\)",
    "detection/coco_free/instances_val.json": r"for detection \(images and annotations, as COCO has them\)",
    "detection/coco_free/captions_val.json": r"for captions of images \(columns image_id and caption\)",
    "detection/coco_free/panoptic_val.json": r"for segmentation \(annotations with segments, as COCO has them\)",
    "segmentation/CamVid": r"for segmentation \(the folder testannot beside its images\)",
    "speech/free-spoken-digit-dataset": r"for speech \(\d+ sound files\)",
    "speech/LJSpeech-1.1": r"for speech \(24 sound files\)",
    "speech/LJSpeech-1.1/metadata.csv": r"for speech \(metadata.csv beside a folder of sounds\)",
    "preference/llamafactory_demo": r"for learning from preferences \(columns chosen and rejected\)",
    "preference/llamafactory_demo/kto_en_demo.json": r"good and bad answers \(a column messages and a label of true",
    "recommendation/ml-latest-small": r"ratings.csv looks like data for recommendation \(columns userId and movieId\)",
    "recommendation/ml-latest-small/tags.csv": r"for recommendation \(columns userId and movieId\)",
}
UNREAD = {  # what holds no rows, or does not tell what they are for
    "recommendation/ml-latest-small/links.csv": r"does not tell its task by its columns \(movieId, imdbId, tmdbId\)",
    "text_classification/banking77/categories.json": "must be an object",
    "sft/llamafactory_demo/dataset_info.json": "must be a list of objects",
    "multiple_choice/balanced_copa": "holds XML with alternatives, which no format reads; write its rows as CSV",
    "multiple_choice/balanced_copa/balacopa-dev-all.xml": "holds XML with alternatives, which no format reads",
    "few_shot/omniglot_small": r"images_background_small1.zip is an archive; unpack it \(unzip .*\), then: ftscale",
    "faces/orl_faces.tar.gz": r"is an archive; unpack it \(mkdir data && tar -xf .*\), then: ftscale init data",
    "faces/orl_faces": r"orl_faces.tar.gz is an archive; unpack it",
}
ARCHIVES = {  # what is unpacked of each: a member in so many
    "detection/bccd.tar.gz": 20,
    "detection/coco_free.tar.gz": 1,
    "few_shot/omniglot_small.tar.gz": 1,
    "image_classification/cifar10_subset.tar.gz": 100,
    "segmentation/camvid_subset.tar.gz": 1,
    "speech/fsdd_subset.tar.gz": 100,
    "speech/ljspeech_subset.tar.gz": 1,
}
TEXTS = (".csv", ".json", ".txt", ".zip", "LICENSE")


@pytest.fixture(scope="module")
def data(shared: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The shared data, with a part of what lies in archives unpacked where a user would put it."""
    place = tmp_path_factory.mktemp("data")
    for folder in sorted((shared / "data").iterdir()):
        if folder.is_dir():
            (place / folder.name).mkdir()
            for entry in folder.iterdir():
                (place / folder.name / entry.name).symlink_to(entry)
    for archive, one_in in ARCHIVES.items():
        _unpack(shared / "data" / archive, place / Path(archive).parent, one_in=one_in)
    _unpack(shared / "data/faces/orl_faces.tar.gz", place / "faces", one_in=1)
    _unpack(place / "faces/orl_faces/orl_faces.tar.gz", place / "faces", one_in=1)
    return place


def _unpack(archive: Path, into: Path, *, one_in: int) -> None:
    with tarfile.open(archive) as tar:
        members = [member for member in tar.getmembers() if member.isfile()]
        few = [member for n, member in enumerate(members) if n % one_in == 0 or member.name.endswith(TEXTS)]
        tar.extractall(into, members=few, filter="data")


def guided(data: Path, shared: Path, name: str, out: Path) -> tuple[Config, list[str]]:
    """The run.yaml for a set, with a small model of its kind, and settings that make a run short."""
    task, more = SETS[name][0], [f"data.cache_dir={out.parent / 'cache'}", f"run_folder={out.parent / 'run'}"]
    model = shared / "weights" / ("mobilenet_v1_0.25_224" if task == "image_classification" else "stories260K")
    if task == "seq2seq":
        model, more = _tiny_t5(shared, out.parent), [*more, "model.init=random"]
    if task == "causal_lm":
        more.append("task.max_length=512")  # of its 512 tokens a text takes twice as many as init reckons by words
    out.write_text(guide_to(data / name, model=str(model), plan=False).text)
    config = load_config(out)
    limits = [] if name in WHOLE else [f"data.{part}.{n}.limit={ROWS}" for part, n in _sources(config)]
    return config, [*limits, *more]


def _tiny_t5(shared: Path, work: Path) -> Path:
    from transformers import T5Config

    shutil.copytree(shared / "weights/tokenizers/t5", work / "t5")
    sizes = {"d_model": 32, "d_kv": 16, "d_ff": 64, "num_layers": 2, "num_heads": 2}
    T5Config(**sizes, decoder_start_token_id=0).save_pretrained(work / "t5")
    return work / "t5"


def _sources(config: Config) -> list[tuple[str, int]]:
    parts = {"train": config.data.train, "eval": config.data.eval, "test": config.data.test}
    return [(part, number) for part, sources in parts.items() for number in range(len(sources))]


@pytest.mark.parametrize("name", SETS)
def test_a_data_set_is_known_and_check_takes_its_run_yaml(data: Path, shared: Path, tmp_path: Path, name: str):
    config, short = guided(data, shared, name, tmp_path / "run.yaml")
    task, columns, evaluation, test, metric = SETS[name]
    assert (config.task.name, config.data.train[0].columns) == (task, columns)
    names = [
        ",".join(os.path.basename(source.path) for source in part) for part in (config.data.eval, config.data.test)
    ]
    assert names == [evaluation, test]
    assert (config.evaluation.metric, bool(config.data.eval_ratio)) == (metric, not evaluation)
    assert check_run(tmp_path / "run.yaml", short).errors == []


@pytest.mark.parametrize("name", [name if name in ALWAYS else needs.in_campaign(name) for name in SETS])
def test_a_data_set_trains_two_steps(data: Path, shared: Path, tmp_path: Path, name: str):
    _, short = guided(data, shared, name, tmp_path / "run.yaml")
    fast = ["train.max_steps=2", "checkpoint.prove=never", "batch.global_size=4", "data.eval=[]", "data.test=[]"]
    done = tiny.command("train", tmp_path / "run.yaml", *short, *fast, "data.eval_ratio=0", "evaluation.metric=null")
    assert (done.code, done.stderr if done.code else "") == (0, "")
    assert len(tiny.steps(tmp_path / "run")) == 2


@pytest.mark.parametrize("name", UNLEARNED)
def test_data_of_a_task_that_there_is_not_are_told_by_what_they_are_for(data: Path, name: str):
    with pytest.raises(UserError, match=UNLEARNED[name]) as refused:
        guide_to(data / name, plan=False)
    assert "for which ftscale has no task yet; nearest: " in str(refused.value)


@pytest.mark.parametrize("name", UNREAD)
def test_what_holds_no_rows_is_refused_with_what_to_do(data: Path, name: str):
    with pytest.raises(UserError, match=UNREAD[name]):
        guide_to(data / name, plan=False)
