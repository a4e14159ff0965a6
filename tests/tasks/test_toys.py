"""Each contract has a toy that needs it: terms with denominators of their own, windows of a row; what all of them keep.

The toys of learned processors, computed columns and companions have files of their own beside this one.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from tasks.berts import TEXTS, save_bert
from torch.nn.functional import cross_entropy
from transformers import AutoModelForSequenceClassification, BertConfig

from ftscale.config.schema import Config, ModelConfig
from ftscale.modalities.text import Text
from ftscale.precheck.fit import fitted
from ftscale.tasks import build_task
from tests.contract import Case, check_what_is_in_extra_never_reaches_the_model

TEACHERS = {"features": {"teacher": "teacher"}, "distil": {"teacher": {"name": "teacher"}}}
TOYS = Path(__file__).resolve().parent / "toys"


def run_of(shared: Path, work: Path, toy: str, **changes: Any) -> Path:
    """A run of a toy on film reviews; the texts are of unlike lengths."""
    values = tiny.settings(shared, work, task={"file": str(TOYS / f"{toy}.py"), "name": toy}, **changes)
    return tiny.write_run(work, values)


def train(file: Path, *settings: str, processes: int = 1) -> list[dict[str, Any]]:
    if processes == 1:
        done = tiny.command("train", file, *settings)
    else:
        done = tiny.forked("train", file, *settings, processes=processes)
    assert done.code == 0, done.stderr
    folder = next((word.partition("=")[2] for word in settings if word.startswith("run_folder")), file.parent / "run")
    return tiny.steps(Path(folder))


@pytest.mark.parametrize(
    "division",
    ["batch.micro_size=8", "batch.micro_size=3", "batch.micro_size=1", "two ranks", "a stream"],
)
def test_two_denominators_go_one_way_however_the_batch_is_cut(shared: Path, tmp_path: Path, division: str):
    file = run_of(shared, tmp_path, "two_terms")
    whole = train(file, "batch.micro_size=8", f"run_folder={tmp_path / 'whole'}")
    if division == "a stream":
        prepared = train(file, "data.shuffle=false", f"run_folder={tmp_path / 'prepared'}")
        streamed = train(file, "data.shuffle=false", "data.streaming=true", f"run_folder={tmp_path / 'streamed'}")
        whole, other = prepared, streamed
    elif division == "two ranks":
        settings = ("distributed.strategy=ddp", "batch.micro_size=2", f"run_folder={tmp_path / 'other'}")
        other = train(file, *settings, processes=2)
    else:
        other = train(file, division, f"run_folder={tmp_path / 'other'}")
    for name in ("loss", "loss/class", "loss/share", "grad_norm"):
        assert [line[name] for line in other] == pytest.approx([line[name] for line in whole], rel=2e-5), name


def test_the_first_losses_are_plain_torchs(shared: Path, tmp_path: Path):
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    rows = [("a good film", 1), ("bad", 0), ("it is what it is", 1), ("no", 0)]
    (tmp_path / "rows.csv").write_text("text,label\n" + "".join(f"{text},{label}\n" for text, label in rows))
    data = {"train": str(tmp_path / "rows.csv"), "cache_dir": str(tmp_path / "cache")}
    file = run_of(shared, tmp_path, "two_terms", data=data, batch={"global_size": 4, "micro_size": 1})
    [line] = train(file, "train.max_steps=1", "optimizer.lr=1e-12", "evaluation.keep_best=false")
    folder = tmp_path / "run/model"  # with the head that the first step met, since nothing moved
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    classes, shares, count, length = torch.zeros(()), torch.zeros(()), 0, 0
    for text, label in rows:
        inputs = tokenizer(text, return_tensors="pt")
        with torch.no_grad():
            logits = model(**inputs).logits[0]
        ids = inputs["input_ids"][0]
        if len(ids) % 2 == 0:
            classes += cross_entropy(logits[None, :2], torch.tensor([label]))
            count += 1
        shares += (logits[2] - (ids % 2 == 0).float().mean()) ** 2 * len(ids)
        length += len(ids)
    assert line["loss/class"] == pytest.approx(float(classes) / count, rel=1e-5)
    assert line["loss/share"] == pytest.approx(float(shares) / (0.1 * length), rel=1e-5)
    assert line["loss"] == pytest.approx(line["loss/class"] + 0.5 * line["loss/share"], rel=1e-6)


@pytest.mark.parametrize("streaming", ["false", "true"])
def test_windows_of_a_row_are_answered_as_one(shared: Path, tmp_path: Path, streaming: str):
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    file = run_of(shared, tmp_path, "windows")
    lines = train(file, f"data.streaming={streaming}")
    assert all(line["targets"] == 8 for line in lines)
    texts = ["a very good film that is long enough for three windows or more", "bad", "so so", ""]
    (tmp_path / "input.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    outcome = tiny.command("predict", tmp_path / "run", tmp_path / "input.jsonl", "--trust-remote-code")
    assert outcome.code == 0, outcome.stderr
    answers = [json.loads(line) for line in outcome.stdout.splitlines()]
    assert [answer["text"] for answer in answers] == texts
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "run/model")
    model = AutoModelForSequenceClassification.from_pretrained(tmp_path / "run/model").eval()
    for text, answer in zip(texts, answers, strict=True):
        ids = tokenizer(text)["input_ids"]
        windows = [torch.tensor([ids[start : start + 8]]) for start in range(0, len(ids), 8)]
        with torch.no_grad():
            scores = [float(model(window).logits.softmax(dim=-1)[0, 1]) for window in windows]
        assert answer["score"] == pytest.approx(sum(scores) / len(scores), abs=1e-5)
        assert answer["prediction"] == int(sum(scores) / len(scores) > 0.5)


def case_of(toy: str, shared: Path, work: Path) -> Case:
    """The toy with a processor, a tiny model and, where it has one, a tiny teacher."""
    settings = {"file": str(TOYS / f"{toy}.py"), "name": toy, **TEACHERS.get(toy, {})}
    config = Config(task=settings, run_folder="run", model="model", data={"train": "rows.csv"})
    rows = [{"text": text, "label": number % 2} for number, text in enumerate(TEXTS)]
    processor = ModelConfig(name=str(shared / "weights/stories260K"))
    task = build_task(config.task)
    _, task, _ = fitted(config, task, Text().load_processor(processor), task.fit(rows))
    for number, companion in enumerate(task.companions()):
        folder = save_bert(work / f"companion-{number}", hidden=24, seed=number)
        companion.module = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    model_config = BertConfig.from_pretrained(save_bert(work / "model", hidden=32, seed=1))
    model_config.update(task.model_settings())
    model = AutoModelForSequenceClassification.from_config(model_config).eval()
    return Case(task, rows, model, rows, computed={"features": (32,)} if task.computed() else {})


@pytest.mark.parametrize("toy", sorted(path.stem for path in TOYS.glob("*.py")))
def test_what_is_in_extra_never_reaches_a_toys_model(toy: str, shared: Path, tmp_path: Path):
    check_what_is_in_extra_never_reaches_the_model(case_of(toy, shared, tmp_path))


def test_docs_show_the_toys_as_they_are():
    def lines(text: str) -> str:
        return "\n".join(line.strip() for line in text.splitlines() if line.strip())

    toys = [lines(path.read_text()) for path in TOYS.glob("*.py")]
    blocks = re.findall(r"```python\n(.*?)```", (tiny.ROOT / "docs/task_extras.md").read_text(), re.DOTALL)
    assert len(blocks) == 6
    assert [block for block in blocks if not any(lines(block) in toy for toy in toys)] == []
