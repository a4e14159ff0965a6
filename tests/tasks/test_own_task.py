"""docs/add_a_task.md is right: its task trains from a file of the user's, and as two files of the package's."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest
import tiny
import torch
from torch.nn.functional import huber_loss

from ftscale.base.errors import UserError
from ftscale.config import load_config, own_task
from ftscale.data import prepare
from ftscale.tasks import build_task
from ftscale.tasks.batch import Batch

PAGE = tiny.ROOT / "docs/add_a_task.md"


def page_code() -> str:
    [code] = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)
    return code


@pytest.fixture
def run(shared: Path, tmp_path: Path) -> Path:
    """A run of the page's task: its file, its rows, its settings."""
    (tmp_path / "score.py").write_text(page_code())
    rows = "".join(f"a film number {n} with {'good ' * (n % 5)}scenes,{n % 5}\n" for n in range(40))
    (tmp_path / "rows.csv").write_text("text,rating\n" + rows)
    values = tiny.settings(
        shared,
        tmp_path,
        task={"file": str(tmp_path / "score.py"), "name": "score", "delta": 0.5},
        data={
            "train": str(tmp_path / "rows.csv"),
            "eval": {"path": str(tmp_path / "rows.csv"), "limit": 10},
            "cache_dir": str(tmp_path / "c"),
        },
    )
    return tiny.write_run(tmp_path, values)


def test_the_pages_task_is_checked_trained_proved_and_asked(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(prepare, "CHUNK", 20)  # so that two processes have rows to prepare
    checked = tiny.command("check", run)
    assert checked.code == 0, checked.stderr
    assert f"task: file {tmp_path / 'score.py'}, name score, delta 0.5, max_length None" in checked.stdout
    done = tiny.command("train", run, "checkpoint.prove=final", "data.prepare_workers=2")
    assert done.code == 0, done.stderr
    assert [line for line in tiny.metrics(tmp_path / "run") if line.get("event") == "proved"]
    assert load_config(tmp_path / "run/config.yaml").task == load_config(run).task
    own_task._loaded.clear()  # as another process, which has run no such file
    refused = tiny.command("predict", tmp_path / "run", tmp_path / "rows.csv")
    assert refused.code == 2
    assert "whose code is run only where you say so; read it, then add --trust-remote-code" in refused.stderr
    answered = tiny.command("predict", tmp_path / "run", tmp_path / "rows.csv", "--trust-remote-code")
    assert answered.code == 0, answered.stderr
    assert answered.stdout.count('"prediction": ') == 40


def test_its_loss_is_torchs_over_the_scores_of_the_model(run: Path):
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    config = load_config(run)
    tokenizer = AutoTokenizer.from_pretrained(config.model.name)
    tokenizer.pad_token = tokenizer.eos_token
    task = build_task(config.task, tokenizer)
    model = AutoModelForSequenceClassification.from_pretrained(config.model.name, num_labels=1).eval()
    model.config.pad_token_id = tokenizer.pad_token_id
    samples = task.prepare([{"text": "a good film", "rating": 4}, {"text": "bad", "rating": "0.5"}])
    batch = task.collate(samples, layout="padded", train=True)
    assert isinstance(batch, Batch)
    plain = [model(**tokenizer(text, return_tensors="pt")).logits[0, 0] for text in ("a good film", "bad")]
    expected = huber_loss(torch.stack(plain), torch.tensor([4.0, 0.5]), reduction="sum", delta=0.5)
    torch.testing.assert_close(task.loss(model, batch)["loss"], expected)


def test_a_run_whose_file_has_changed_is_not_gone_on_with(run: Path, tmp_path: Path):
    assert tiny.command("train", run, "train.max_steps=2").code == 0
    (tmp_path / "run/result.json").unlink()
    moved = tmp_path / "elsewhere" / "score.py"
    moved.parent.mkdir()
    moved.write_text(page_code() + "\n# another text\n")
    again = tiny.command("train", run, f"task.file={moved}", "train.max_steps=2", "--resume")
    assert again.code == 2
    assert "task.file" in again.stderr
    assert "score.py has changed" in again.stderr
    moved.write_text(page_code())
    again = tiny.command("train", run, f"task.file={moved}", "train.max_steps=2", "--resume")
    assert again.code == 0, again.stderr


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("1 / 0\n", "ends in an error when it is run: ZeroDivisionError in line 1: division by zero"),
        ("x = 1\n", "must define one subclass of OwnTaskSettings, and has none"),
        (None, "is not a file; name the Python file that describes the task"),
    ],
)
def test_a_file_that_describes_no_task_is_told(run: Path, tmp_path: Path, text: str | None, says: str):
    other = tmp_path / "other.py"
    if text is not None:
        other.write_text(text)
    with pytest.raises(UserError, match=re.escape(says)):
        load_config(run, [f"task.file={other}"])


def test_a_setting_that_the_file_does_not_have_is_told_with_the_nearest(run: Path):
    with pytest.raises(UserError, match=r"task\.delda is not a setting; did you mean task\.delta"):
        load_config(run, ["task.delda=1"])


def test_a_run_folders_file_is_not_run_by_looking_at_it(run: Path, tmp_path: Path):
    """It may be anybody's: neither comparing runs nor evaluating one runs its code."""
    assert tiny.command("train", run, "train.max_steps=2").code == 0
    planted, mark = tmp_path / "planted.py", tmp_path / "ran"
    planted.write_text(f"from pathlib import Path\n\nPath({str(mark)!r}).touch()\n")
    config = tmp_path / "run/config.yaml"
    config.write_text(config.read_text().replace(str(tmp_path / "score.py"), str(planted)))
    for command in (["evaluate"], ["export"], ["compare"], ["predict", tmp_path / "rows.csv"]):
        name, *more = command
        tiny.command(name, tmp_path / "run", *more, *([tmp_path / "out"] if name == "export" else []))
        assert not mark.exists(), name


def test_two_files_of_its_name_make_a_task_of_the_package(run: Path, tmp_path: Path):
    """Extracted from the page, in a copy of the package, without another edit."""
    code = page_code()
    head, rest = code.split("class ScoreSettings(OwnTaskSettings):")
    settings, task = rest.split("class Score(Task):")
    package = tmp_path / "copy" / "ftscale"
    shutil.copytree(tiny.ROOT / "ftscale", package, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("launch", "ds_configs", "slurm"):
        (tmp_path / "copy" / name).symlink_to(tiny.ROOT / name)
    (package / "config/tasks/score.py").write_text(
        "from typing import ClassVar, Literal\n\nfrom pydantic import PositiveFloat, PositiveInt\n\n"
        f"from ftscale.config.tasks.base import TaskSettings\n\n\nclass ScoreSettings(TaskSettings):{settings}"
    )
    (package / "tasks/score.py").write_text(
        head.replace("from ftscale.config.own_task import OwnTaskSettings\n", "") + f"class Score(Task):{task}"
    )
    values = run.read_text().replace(f"  file: {tmp_path / 'score.py'}\n", "")
    (tmp_path / "package.yaml").write_text(values)
    program = f"import sys; sys.path.insert(0, {str(tmp_path / 'copy')!r}); from ftscale.__main__ import run; run()"
    done = tiny.process("python", "-c", program, "train", tmp_path / "package.yaml")
    assert done.code == 0, done.stderr[-3000:]
    assert "evaluation at step 3" in done.stderr
