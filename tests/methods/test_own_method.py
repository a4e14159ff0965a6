"""docs/add_a_method.md is right: its method trains from a file of the user's, its own weights with the model's."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import needs
import pytest
import tiny
import torch
from methods import runs
from safetensors.torch import load_file
from torch.nn.functional import cross_entropy
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from ftscale.base.errors import UserError
from ftscale.config import load_config, own_task
from ftscale.config.methods.supervised import SupervisedSettings
from ftscale.data import prepare
from ftscale.methods import build_method
from ftscale.methods.extra import FILE
from ftscale.run.prepared_data import Preparer

PAGE = tiny.ROOT / "docs/add_a_method.md"
PULL = 0.5
OTHER_CLASSES = {"name": "text_classification", "max_length": 64, "labels": ["1", "0"]}


def page_code() -> str:
    return re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)[0]


@pytest.fixture
def file(shared: Path, tmp_path: Path) -> Path:
    """A run of the page's method."""
    return run_of(shared, tmp_path)


def run_of(shared: Path, work: Path, **changes: object) -> Path:
    work.mkdir(parents=True, exist_ok=True)
    (work / "centres.py").write_text(page_code())
    method = {"file": str(work / "centres.py"), "name": "centres", "pull": PULL}
    return runs.run_of(shared, work, method, **changes)


def test_the_pages_method_is_checked_trained_proved_and_asked(
    file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    if needs.ALL:
        monkeypatch.setattr(prepare, "CHUNK", 20)  # so that two processes have rows to prepare
    checked = tiny.command("check", file)
    assert checked.code == 0, checked.stderr
    assert f"method: file {tmp_path / 'centres.py'}, name centres, pull 0.5" in checked.stdout
    lines = runs.train(file, "checkpoint.prove=final", "data.prepare_workers=2", "batch.micro_size=3")
    assert all(line["loss"] == pytest.approx(line["loss/loss"] + PULL * line["loss/distance"]) for line in lines)
    assert lines[-1]["loss"] < lines[0]["loss"]
    assert [line for line in tiny.metrics(tmp_path / "run") if line.get("event") == "proved"]
    assert {path.stat().st_mode for path in (tmp_path / "run/model").glob("*.*")} == {file.stat().st_mode}
    own_task._loaded.clear()  # as another process, which has run no such file
    refused = tiny.command("predict", tmp_path / "run", tmp_path / "rows.csv")
    assert refused.code == 2
    assert "method.file = " in refused.stderr
    assert "read it, then add --trust-remote-code" in refused.stderr
    answered = tiny.command("predict", tmp_path / "run", tmp_path / "rows.csv", "--trust-remote-code")
    assert answered.code == 0, answered.stderr
    assert answered.stdout.count('"prediction": ') == len(runs.ROWS)
    exported = tiny.command("export", tmp_path / "run", tmp_path / "exported", "--trust-remote-code")
    assert exported.code == 0, exported.stderr
    assert (tmp_path / "exported" / FILE).read_bytes() == (tmp_path / "run/model" / FILE).read_bytes()
    (tmp_path / "run/model" / FILE).unlink()
    lacking = tiny.command("predict", tmp_path / "run", tmp_path / "rows.csv", "--trust-remote-code")
    assert lacking.code == 2
    assert "lacks the weights that method = centres has learned" in lacking.stderr


def test_its_steps_are_those_of_plain_torch(shared: Path, tmp_path: Path):
    work = tmp_path / "start"
    still = run_of(shared, work, optimizer={"name": "sgd", "lr": 1e-30, "momentum": 0.0, "weight_decay": 0.0})
    runs.train(still, "train.max_steps=1")  # whose model has the head and the centres that every run begins with
    tokenizer = AutoTokenizer.from_pretrained(work / "run/model")
    model = AutoModelForSequenceClassification.from_pretrained(work / "run/model").eval()
    centres = load_file(work / "run/model" / FILE)["centres.weight"].requires_grad_()
    labels = torch.tensor([label for _, label in runs.ROWS])
    losses, distances = [], []
    for _ in range(3):
        inputs = [tokenizer(text, return_tensors="pt") for text, _ in runs.ROWS]
        loss = cross_entropy(torch.cat([model(**one).logits for one in inputs]), labels)
        embeddings = torch.cat([model.model(**one).last_hidden_state.mean(dim=1) for one in inputs])
        distance = (embeddings - centres[labels]).square().mean(dim=1).mean()
        weights = [*model.parameters(), centres]
        gradients = torch.autograd.grad(loss + PULL * distance, weights)
        with torch.no_grad():
            for weight, gradient in zip(weights, gradients, strict=True):
                weight -= 0.1 * gradient
        losses.append(loss.item())
        distances.append(distance.item())
    lines = runs.train(run_of(shared, tmp_path), "batch.micro_size=3")
    assert runs.figures(lines, "loss/loss") == pytest.approx(losses, rel=1e-5)
    assert runs.figures(lines, "loss/distance") == pytest.approx(distances, rel=1e-5)
    torch.testing.assert_close(load_file(tmp_path / "run/model" / FILE)["centres.weight"], centres.detach())


@pytest.mark.parametrize("strategy", ["zero3", *map(needs.in_campaign, ["ddp", "zero2"])])
def test_its_own_weights_train_and_go_on_from_a_checkpoint_on_two_ranks(shared: Path, tmp_path: Path, strategy: str):
    checkpoint = {"prove": "never", "every": 2, "keep": 9}
    optimizer = {"name": "sgd", "lr": 0.05, "momentum": 0.9}
    changes = {"checkpoint": checkpoint, "optimizer": optimizer, "train": {"max_steps": 4}}
    whole = runs.train(run_of(shared, tmp_path / "one", **changes))
    file, settings = run_of(shared, tmp_path, **changes), [f"distributed.strategy={strategy}", "batch.micro_size=3"]
    lines = runs.train(file, *settings, processes=2)
    folder = tmp_path / "run"
    saved = load_file(folder / "model" / FILE)["centres.weight"]
    for name in ("loss", "loss/distance", "grad_norm"):
        assert runs.figures(lines, name) == pytest.approx(runs.figures(whole, name), rel=2e-4), name
    one = load_file(tmp_path / "one/run/model" / FILE)["centres.weight"]
    torch.testing.assert_close(saved, one, rtol=1e-3, atol=1e-4)
    (folder / "result.json").unlink()
    shutil.rmtree(folder / "model")
    shutil.rmtree(folder / "checkpoints/step-00000004")
    done = tiny.forked("train", file, *settings, "--resume", processes=2)
    assert done.code == 0, done.stderr[-3000:]
    assert runs.figures(tiny.steps(folder)[-2:]) == runs.figures(lines)[-2:]
    assert torch.equal(load_file(folder / "model" / FILE)["centres.weight"], saved)


def test_a_run_begins_with_the_weights_beside_its_model(shared: Path, tmp_path: Path):
    first = run_of(shared, tmp_path / "first")
    runs.train(first)
    saved = load_file(tmp_path / "first/run/model" / FILE)["centres.weight"]
    again = run_of(shared, tmp_path / "again", model=str(tmp_path / "first/run/model"))
    still = ["train.max_steps=1", "optimizer.lr=1e-30", "optimizer.weight_decay=0"]
    runs.train(again, *still)
    assert torch.equal(load_file(tmp_path / "again/run/model" / FILE)["centres.weight"], saved)
    other = run_of(shared, tmp_path / "other", model=str(tmp_path / "first/run/model"), task=OTHER_CLASSES)
    runs.train(other, *still)
    assert not torch.equal(load_file(tmp_path / "other/run/model" / FILE)["centres.weight"], saved)
    (tmp_path / "first/run/model" / FILE).write_bytes(b"")
    damaged = tiny.command("train", again, f"run_folder={tmp_path / 'other'}")
    assert damaged.code == 2
    assert "take the method that wrote it, or move the file away" in damaged.stderr


def test_a_stage_hands_them_on_also_where_its_adapter_is_merged(shared: Path, tmp_path: Path):
    adapter = {"method": "lora", "r": 2, "target_modules": "all-linear"}
    stages = [{}, {"adapter": {"method": "none"}, "optimizer": {"lr": 1e-30}}]
    done = tiny.command("train", run_of(shared, tmp_path, adapter=adapter, stages=stages))
    assert done.code == 0, done.stderr
    first, last = (load_file(tmp_path / f"run/stages/{number}/model" / FILE)["centres.weight"] for number in (1, 2))
    assert torch.equal(first, last)


def test_a_run_whose_file_has_changed_is_not_gone_on_with(file: Path, tmp_path: Path):
    runs.train(file)
    (tmp_path / "run/result.json").unlink()
    (tmp_path / "centres.py").write_text(page_code() + "\n# another text\n")
    own_task._loaded.clear()
    again = tiny.command("train", file, "--resume")
    assert again.code == 2
    assert "method.file: centres.py has changed" in again.stderr


def test_prepared_rows_are_the_tasks_unless_the_method_prepares_them(shared: Path, file: Path, tmp_path: Path):
    config, tokenizer = load_config(file), AutoTokenizer.from_pretrained(shared / "weights/stories260K")
    plain = Preparer(build_method(config.method, config.task, tokenizer)).key()
    assert Preparer(build_method(SupervisedSettings(), config.task, tokenizer)).key() == plain
    other = (
        page_code() + "\n    def prepare(self, rows, *, labelled=True):\n        return self.inner.prepare(rows[:1])\n"
    )
    (tmp_path / "other.py").write_text(other)
    config = load_config(file, [f"method.file={tmp_path / 'other.py'}"])
    own = Preparer(build_method(config.method, config.task, tokenizer))
    before = own.key()
    assert before != plain
    (tmp_path / "other.py").write_text(other + "# another text\n")
    assert own.key() != before


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("1 / 0\n", "ends in an error when it is run: ZeroDivisionError in line 1: division by zero"),
        ("x = 1\n", "must define one subclass of OwnMethodSettings, and has none"),
        (None, "is not a file; name the Python file that describes the method"),
    ],
)
def test_a_file_that_describes_no_method_is_told(file: Path, tmp_path: Path, text: str | None, says: str):
    other = tmp_path / "other.py"
    if text is not None:
        other.write_text(text)
    with pytest.raises(UserError, match=re.escape(says)):
        load_config(file, [f"method.file={other}"])


def test_a_setting_that_the_file_does_not_have_is_told_with_the_nearest(file: Path):
    with pytest.raises(UserError, match=r"method\.pul is not a setting; did you mean method\.pull"):
        load_config(file, ["method.pul=1"])


def test_a_run_folders_file_is_not_run_by_looking_at_it(file: Path, tmp_path: Path):
    """It may be anybody's, also where a setting in it asks to be looked up."""
    runs.train(file, "train.max_steps=1")
    planted, mark = tmp_path / "planted.py", tmp_path / "ran"
    planted.write_text(f"from pathlib import Path\n\nPath({str(mark)!r}).touch()\n")
    config = tmp_path / "run/config.yaml"
    config.write_text(
        config.read_text().replace(str(tmp_path / "centres.py"), str(planted)).replace("pull: 0.5", "pull: true")
    )
    for command in (["evaluate"], ["export"], ["compare"], ["predict", tmp_path / "rows.csv"]):
        name, *more = command
        tiny.command(name, tmp_path / "run", *more, *([tmp_path / "out"] if name == "export" else []))
        assert not mark.exists(), name
