"""Whether a run folder is gone on with, judged by files that may be damaged and that another run may have taken."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from launching import forget_after
from safetensors.torch import load_file
from strategies import jobs

import ftscale.run.train
from ftscale.base.errors import UserError
from ftscale.base.files import remove
from ftscale.base.sealed import sealed
from ftscale.config import Config, load_config, parse_config, write_config
from ftscale.run.folder import Result, check_run_folder, clear_run_folder, finished_result
from ftscale.run.train import _in_own_offload_dir, train
from ftscale.train.manifest import Checkpoint, read_checkpoint


@pytest.fixture(scope="module")
def config(shared: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """4 steps with a checkpoint after each."""
    captions = jobs.captions(shared, tmp_path_factory.mktemp("cache"))
    return captions | {
        "train": {"max_steps": 4},
        "evaluation": {"every": 4},
        "checkpoint": {"every": 1, "keep": 9, "prove": "never"},
    }


@pytest.fixture(scope="module")
def whole(config: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("whole") / "run"
    run(config, folder)
    return folder


def run(config: dict[str, Any], folder: Path, **options: Any) -> Result:
    return train(parse_config({**config, "run_folder": str(folder)}, source="test"), **options)


def killed(whole: Path, folder: Path) -> Path:
    """The run as a kill after its third step leaves it."""
    forget_after(whole, folder, step=3)
    return folder


def flip(path: Path, *, near: bytes, bit: int = 0) -> None:
    """Another bit in the first letter after a place in the file."""
    content = bytearray(path.read_bytes())
    place = content.index(near) + len(near)
    content[place] ^= 1 << bit
    path.write_bytes(content)


def check_same_end(folder: Path, whole: Path) -> None:
    assert jobs.result(folder)["metrics"] == jobs.result(whole)["metrics"]
    weights, expected = (load_file(place / "model/model.safetensors") for place in (folder, whole))
    assert all(torch.equal(weights[name], expected[name]) for name in expected)


# ---------------------------------------------------------------- damage


def test_every_flipped_bit_of_a_manifest_is_noticed(whole: Path, tmp_path: Path):
    folder = tmp_path / "step-00000004"
    shutil.copytree(whole / "checkpoints/step-00000004", folder)
    path = folder / "manifest.json"
    text = path.read_bytes()
    said = json.loads(text)
    accepted = []
    for bit in range(3, 8 * len(text), 29):
        flipped = bytearray(text)
        flipped[bit // 8] ^= 1 << bit % 8
        path.write_bytes(flipped)
        if not isinstance(read_checkpoint(folder, contents=False), str):
            accepted.append(bytes(flipped))
    assert all(json.loads(other) == said for other in accepted)
    path.write_bytes(text)
    assert read_checkpoint(folder) == Checkpoint(folder, {name: said[name] for name in said if name != "hash"})


def rewritten(change: Callable[[dict[str, Any]], Any]) -> Callable[[Path], None]:
    """A manifest with other fields, whose hash is right."""

    def write(folder: Path) -> None:
        manifest = json.loads((folder / "manifest.json").read_text())
        change(manifest)
        (folder / "manifest.json").write_text(json.dumps(sealed(manifest)))

    return write


def replaced(text: str) -> Callable[[Path], None]:
    return lambda folder: (folder / "manifest.json").write_text(text) and None


def remove_folder(folder: Path) -> None:
    shutil.rmtree(folder)
    folder.write_text("a file")


BAD_MANIFESTS = {
    "step": (rewritten(lambda manifest: manifest.update(step=5)), "it is of step 5"),
    "loop": (rewritten(lambda manifest: manifest["progress"].pop("loop")), "another version of ftscale wrote it"),
    "type": (rewritten(lambda manifest: manifest["progress"]["loop"].update(step="3")), "loop|step"),
    "unknown": (rewritten(lambda manifest: manifest["progress"]["loop"].update(stop=3)), "stop"),
    "schedule": (rewritten(lambda manifest: manifest["progress"]["schedule"].clear()), "another version of ftscale"),
    "strategy": (rewritten(lambda manifest: manifest.update(strategy="qingle")), "strategy 'qingle' is not known"),
    "no strategy": (rewritten(lambda manifest: manifest.pop("strategy")), "strategy: Field required"),
    "more": (rewritten(lambda manifest: manifest.update(more=1)), "more: Extra inputs"),
    "no files": (rewritten(lambda manifest: manifest.update(files={})), "it names no random-00000.safetensors"),
    "no weights": (rewritten(lambda manifest: manifest["files"].pop("state.pt")), "it names no weights"),
    "outside": (
        rewritten(lambda manifest: manifest["files"].update({"../../run.json": [1, "0" * 32]})),
        "lies outside of the checkpoint",
    ),
    "empty": (replaced("{}"), "it has no hash of its own"),
    "a list": (replaced("[1]"), "it holds no object"),
    "nested": (replaced("[" * 100_000), "the manifest is torn"),
    "a file": (remove_folder, "the manifest cannot be read"),
}


def test_whatever_stands_in_the_place_of_a_checkpoint_the_one_before_is_gone_on_from(
    config: dict[str, Any], whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    folder = killed(whole, tmp_path / "run")
    sample = folder / "checkpoints/step-00000003"
    for number, (damage, _) in enumerate(BAD_MANIFESTS.values(), start=4):
        place = sample.with_name(f"step-{number:08d}")
        shutil.copytree(sample, place)
        rewritten(lambda manifest, number=number: manifest.update(step=number))(place)
        damage(place)
    assert run(config, folder, resume=True).status == "completed"
    check_same_end(folder, whole)
    said = [line for line in capsys.readouterr().err.splitlines() if "is not complete" in line]
    assert len(said) == len(BAD_MANIFESTS)
    for line, (what, (_, why)) in zip(reversed(said), BAD_MANIFESTS.items(), strict=True):
        assert any(word in line for word in why.split("|")), (what, line)


def test_a_run_goes_on_with_a_flipped_bit_in_each_of_its_files(
    config: dict[str, Any], whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    folder = killed(whole, tmp_path / "run")
    newest = folder / "checkpoints/step-00000003"
    flip(newest / "manifest.json", near=b'"step": ')
    flip(folder / "config.yaml", near=b"lr: 0.0")
    flip(folder / "run.json", near=b'"run_id": "')
    flip(folder / "data.json", near=b": {")
    flip(folder / "metrics.jsonl", near=b'"step"')
    (folder / "lock.json").write_text("{}")
    (folder / "result.json").write_bytes(b"\xff")
    assert run(config, folder, resume=True).steps == 4
    said = capsys.readouterr().err
    check_same_end(folder, whole)
    assert [line["step"] for line in jobs.train_lines(folder)] == [2, 3, 4]
    assert jobs.losses(folder) == jobs.losses(whole)[1:]
    for file in ("config.yaml", "run.json", "data.json", "result.json"):
        assert f"{folder / file} is not what was written" in said
    assert f"1 lines of {folder / 'metrics.jsonl'} are not what was written" in said
    assert load_config(folder / "config.yaml") == load_config(whole / "config.yaml").model_copy(
        update={"run_folder": str(folder)}
    )


@pytest.mark.parametrize("name", ["config.yaml", "run.json", "data.json"])
def test_a_damaged_file_does_not_hide_that_the_settings_are_others(
    config: dict[str, Any], whole: Path, tmp_path: Path, name: str
):
    folder = killed(whole, tmp_path / "run")
    (folder / name).write_bytes(b"\xff")
    with pytest.raises(UserError, match=r"optimizer\.weight_decay: 0.01 -> 0.02; set it back"):
        run({**config, "optimizer": {**config["optimizer"], "weight_decay": 0.02}}, folder, resume=True)


def test_a_result_that_is_not_what_was_written_is_made_again(config: dict[str, Any], whole: Path, tmp_path: Path):
    folder = tmp_path / "run"
    shutil.copytree(whole, folder)
    flip(folder / "result.json", near=b'loss": ')
    assert finished_result(folder) is None
    run(config, folder, resume=True)
    check_same_end(folder, whole)
    assert finished_result(folder) is not None


# ---------------------------------------------------------------- who has the folder


def test_to_resume_what_is_not_there_is_refused_with_the_nearest_run(
    config: dict[str, Any], whole: Path, tmp_path: Path
):
    with pytest.raises(UserError, match="holds no run that --resume could go on with; leave out --resume to begin"):
        run(config, tmp_path / "run", resume=True)
    assert not (tmp_path / "run").exists()
    near = whole.with_name("rum")
    with pytest.raises(UserError, match=f"did you mean {whole}[?] Else leave out --resume"):
        run(config, near, resume=True)
    near.mkdir()
    (near / "notes.txt").write_text("not of a run")
    with pytest.raises(UserError, match="holds no run"):
        run(config, near, resume=True)
    command = tiny.command("train", tiny.write_run(tmp_path, {**config, "run_folder": str(near)}), "--resume")
    assert command.code == 2
    assert command.stderr.count("\n") == 1


@pytest.mark.parametrize("status", ["completed", "stopped"])
def test_a_start_that_another_run_has_overtaken_goes_on_with_nothing_of_it(
    config: dict[str, Any], whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, status: str
):
    """The folder is free when the second start looks, and taken when it has prepared its rows."""
    folder, prepare = tmp_path / "run", ftscale.run.train.prepare_inputs

    def overtaken(config: Any) -> Any:
        inputs = prepare(config)
        shutil.copytree(whole, folder) if status == "completed" else killed(whole, folder)
        return inputs

    monkeypatch.setattr(ftscale.run.train, "prepare_inputs", overtaken)
    with pytest.raises(UserError, match="already holds a run"):
        run({**config, "optimizer": {"name": "adamw", "lr": 0.5}}, folder)
    assert load_config(folder / "config.yaml").optimizer.lr == 0.01


def test_an_overwriting_start_that_is_killed_leaves_nothing_that_another_would_go_on_from(
    config: dict[str, Any], whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    folder = killed(whole, tmp_path / "run")

    def strike(path: Path) -> None:
        if path.name == "checkpoints":
            raise KeyboardInterrupt
        remove(path)

    monkeypatch.setattr(ftscale.run.folder, "remove", strike)
    with pytest.raises(KeyboardInterrupt):
        clear_run_folder(folder)
    with pytest.raises(UserError, match="seed: 0 -> 5"):
        run({**config, "seed": 5}, folder, resume=True)


# ---------------------------------------------------------------- links


def test_a_resume_writes_nothing_through_links_in_its_folder(config: dict[str, Any], whole: Path, tmp_path: Path):
    folder, victim = killed(whole, tmp_path / "run"), tmp_path / "bashrc"
    victim.write_text("mine\n")
    names = ["metrics.jsonl", "logs/rank-00000.log", ".lock.json", "lock.json", "result.json", "logs/failure.json"]
    names += [".run.json.partial", ".config.yaml.partial", ".result.json.partial", ".failure.json.0", "data.json"]
    names += ["checkpoints/.step-00000004.partial", "checkpoints/step-00000004", ".model.partial"]
    for name in names:
        (folder / name).unlink(missing_ok=True)
        (folder / name).symlink_to(victim)
    assert run(config, folder, resume=True).status == "completed"
    assert victim.read_text() == "mine\n"
    check_same_end(folder, whole)
    assert [line["step"] for line in jobs.train_lines(folder)] == [4]
    links = sorted(path.name for path in folder.rglob("*") if path.is_symlink())
    assert links == [
        ".config.yaml.partial",
        ".failure.json.0",
        ".model.partial",
        ".result.json.partial",
        ".run.json.partial",
        "step-00000004",
    ]


FOLDERS = ("checkpoints", "model", "logs")


def moved(folder: Path, scratch: Path) -> None:
    """As one moves the large parts of a run to another disk."""
    scratch.mkdir()
    for name in FOLDERS:
        if (folder / name).exists():
            shutil.move(folder / name, scratch / name)
        (folder / name).symlink_to(scratch / name)


def test_a_run_goes_on_with_its_folders_on_another_disk(config: dict[str, Any], whole: Path, tmp_path: Path):
    folder = killed(whole, tmp_path / "run")
    moved(folder, tmp_path / "scratch")
    assert run(config, folder, resume=True).status == "completed"
    check_same_end(folder, whole)
    assert (tmp_path / "scratch/checkpoints/step-00000004/manifest.json").is_file()
    assert (folder / "checkpoints").is_symlink()
    assert (folder / "logs").is_symlink()


def test_a_run_begins_where_its_folders_are_links_into_a_cleared_disk(
    config: dict[str, Any], whole: Path, tmp_path: Path
):
    folder, scratch = tmp_path / "run", tmp_path / "scratch"
    folder.mkdir()
    moved(folder, scratch)
    (scratch / "checkpoints").mkdir()
    assert run(config, folder).status == "completed"
    check_same_end(folder, whole)
    assert (scratch / "checkpoints/step-00000004/manifest.json").is_file()
    assert (scratch / "logs/rank-00000.log").is_file()


def test_overwriting_a_run_with_links_deletes_the_links_alone(
    config: dict[str, Any], whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    folder, scratch = killed(whole, tmp_path / "run"), tmp_path / "scratch"
    moved(folder, scratch)
    before = sorted(path.relative_to(scratch) for path in scratch.rglob("*"))
    assert run(config, folder, overwrite=True).status == "completed"
    check_same_end(folder, whole)
    assert sorted(path.relative_to(scratch) for path in scratch.rglob("*")) == before
    assert not any((folder / name).is_symlink() for name in FOLDERS)
    assert f"{folder / 'checkpoints'} is a link: what it leads to ({scratch / 'checkpoints'}) stays as it is" in (
        capsys.readouterr().err
    )


@pytest.mark.parametrize("cleared", [True, False])
def test_a_run_folder_may_be_a_link_to_another_disk(
    cleared: bool, config: dict[str, Any], whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    scratch, link = tmp_path / "scratch/run", tmp_path / "run"
    link.symlink_to(scratch)
    if not cleared:
        scratch.mkdir(parents=True)
    with pytest.raises(UserError, match="data.train"):
        run({**config, "data": {**config["data"], "train": str(tmp_path / "missing.txt")}}, link)
    assert link.is_symlink()
    assert scratch.exists() != cleared
    save = ftscale.run.train.finish

    def turned_round(*arguments: Any, **options: Any) -> Any:
        """The link leads elsewhere while the run trains."""
        link.unlink()
        link.symlink_to(tmp_path)
        return save(*arguments, **options)

    monkeypatch.setattr(ftscale.run.train, "finish", turned_round)
    result = run(config, link)
    assert result.model == str(scratch / "model")
    check_same_end(scratch, whole)
    assert not (tmp_path / "model").exists()
    assert load_config(scratch / "config.yaml").run_folder == str(scratch)


def test_a_run_folder_that_leads_to_itself_is_refused(config: dict[str, Any], tmp_path: Path):
    (tmp_path / "run").symlink_to(tmp_path / "run")
    with pytest.raises(UserError, match="is a link that leads to itself; name another folder"):
        run(config, tmp_path / "run")


def test_a_link_of_another_user_is_refused(
    config: dict[str, Any], whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    folder, lstat = killed(whole, tmp_path / "run"), Path.lstat
    moved(folder, tmp_path / "scratch")

    def of_another(path: Path) -> os.stat_result:
        values = list(lstat(path))
        values[4] = 12345 if path.name == "checkpoints" else values[4]  # st_uid
        return os.stat_result(values)

    monkeypatch.setattr(Path, "lstat", of_another)
    for options in ({"resume": True}, {"overwrite": True}):
        with pytest.raises(UserError, match="checkpoints is a link that another user has made"):
            run(config, folder, **options)


def test_weights_are_not_swapped_through_a_link(config: dict[str, Any], tmp_path: Path):
    settings = {**config, "run_folder": str(tmp_path / "run"), "distributed": {"offload_dir": str(tmp_path / "disk")}}
    parsed = parse_config(settings, source="test")
    own = Path(str(_in_own_offload_dir(parsed).offload_dir))
    assert own.parent == tmp_path / "disk"
    (tmp_path / "disk").mkdir()
    own.symlink_to(tmp_path)
    with pytest.raises(UserError, match=f"offload_dir = {own.parent}: {own.name} is a link or another user's"):
        _in_own_offload_dir(parsed)


def test_nothing_is_deleted_where_not_all_can_be(
    config: dict[str, Any], whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    folder, access = killed(whole, tmp_path / "run"), os.access
    before = sorted(folder.rglob("*"))
    kept = folder / "checkpoints/step-00000002"
    monkeypatch.setattr(os, "access", lambda path, mode: Path(path) != kept and access(path, mode))
    with pytest.raises(UserError, match=f"nothing can be deleted in {kept}, which this user may not write"):
        run(config, folder, overwrite=True)
    with pytest.raises(UserError, match="nothing can be deleted"):
        clear_run_folder(folder)
    assert sorted(folder.rglob("*")) == before


# ---------------------------------------------------------------- settings of the task


def task_of(folder: Path, task: dict[str, Any]) -> Config:
    """A configuration of the least that there is."""
    values = {"task": task, "run_folder": str(folder), "model": "some/model", "data": {"train": "rows.csv"}}
    return parse_config(values, source="test")


def resume_with(folder: Path, *, began: dict[str, Any], now: dict[str, Any]) -> None:
    folder.mkdir(exist_ok=True)
    write_config(task_of(folder, began), folder / "config.yaml")
    check_run_folder(task_of(folder, now), resume=True, overwrite=False)


@pytest.mark.parametrize(
    ("began", "now"),
    [
        ({"name": "text_classification", "labels": ["a", "b"]}, {"name": "text_classification"}),
        (
            {"name": "token_classification", "labels": ["O", "B-X", "I-X"], "scheme": "IOB2"},
            {"name": "token_classification"},
        ),
        ({"name": "causal_lm", "chat_template": "{{ messages }}"}, {"name": "causal_lm", "chat_template": "MINE"}),
        ({"name": "causal_lm", "chat_template": "alpaca"}, {"name": "causal_lm", "chat_template": "alpaca"}),
    ],
)
def test_what_the_first_start_filled_in_is_no_difference(tmp_path: Path, began: dict[str, Any], now: dict[str, Any]):
    (tmp_path / "mine.jinja").write_text("{{ messages }}")
    if now.get("chat_template") == "MINE":
        now = {**now, "chat_template": str(tmp_path / "mine.jinja")}
    resume_with(tmp_path / "run", began=began, now=now)


@pytest.mark.parametrize(
    ("began", "now", "problem"),
    [
        ({"max_length": 64}, {}, "task.max_length: 64 -> null"),
        ({"chat_template": "alpaca"}, {}, "the text of task.chat_template is not what it was"),
        ({"chat_template": "alpaca"}, {"chat_template": "chatml"}, "the text of task.chat_template is not what it was"),
        ({}, {"generate": {}}, "task.generate: null -> "),
    ],
)
def test_a_setting_that_was_taken_out_is_a_difference(
    tmp_path: Path, began: dict[str, Any], now: dict[str, Any], problem: str
):
    with pytest.raises(UserError, match=problem):
        resume_with(tmp_path / "run", began={"name": "causal_lm", **began}, now={"name": "causal_lm", **now})
