"""`ftscale check`: what it says of real data, what it finds wrong, and that it is quick where only settings are."""

from __future__ import annotations

import contextlib
import io
import json
import shutil
import sys
from collections import Counter
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import tiny
import torch
from torch.nn import functional
from transformers import AutoModelForCausalLM, AutoTokenizer

from ftscale.checks import check_run

TEMPLATE = "{% for m in messages %}<s>{{ m.role }}: {{ m.content }}</s>{% endfor %}"


def stories(work: Path, rows: list[dict[str, Any]], shared: Path, **changes: Any) -> dict[str, Any]:
    """A causal LM on rows of a JSON lines file."""
    work.mkdir(parents=True, exist_ok=True)
    (work / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return {
        "task": {"name": "causal_lm", "max_length": 64},
        "run_folder": str(work / "run"),
        "model": str(shared / "weights/stories260K"),
        "data": {"train": str(work / "rows.jsonl"), "cache_dir": str(work / "cache")},
        "batch": {"global_size": 2, "micro_size": 1},
        **changes,
    }


PROMPTS = [
    {"prompt": "Once upon a time", "completion": " there was a cat."},
    {"prompt": "Tom had a red ball", "completion": " and a dog."},
    {"prompt": "Lily and Ben", "completion": " were playing. " * 30},
    {"prompt": "Mom said", "completion": ""},
    {"prompt": "Once upon a time", "completion": " there was a cat."},
    {"prompt": "The bird wanted", "completion": " to fly."},
]


def test_targets_are_marked_in_the_text(shared: Path, tmp_path: Path):
    file = tiny.write_run(tmp_path, stories(tmp_path, PROMPTS, shared, data={**_data(tmp_path), "max_empty": 0.5}))
    outcome = tiny.command("check", file)
    assert outcome.code == 0, outcome.stderr
    assert "<s> Once upon a time[[ there was a cat.</s>]]" in outcome.stdout
    assert "<s> Tom had a red ball[[ and a dog.</s>]]" in outcome.stdout


def _data(work: Path) -> dict[str, Any]:
    return {"train": str(work / "rows.jsonl"), "cache_dir": str(work / "cache")}


def test_figures_of_the_sample_are_counted(shared: Path, tmp_path: Path):
    settings = stories(tmp_path, PROMPTS, shared, data={**_data(tmp_path), "max_empty": 0.5})
    report = check_run(tiny.write_run(tmp_path, settings))
    assert report.errors == []
    train = report.facts["data"]["train"]
    assert (train["rows_looked_at"], train["rows"], train["kept"]) == (6, 6, 5)
    assert (train["truncated"], train["no_target"], train["dropped"]) == (1, 1, {"no_target": 1})
    assert train["duplicates"] == 1
    assert train["lengths"]["max"] == 64
    assert 0 < train["share_of_targets"] < 1
    assert train["end_supervised"] == 1.0
    assert train["doubled_special_tokens"] == 0
    assert any("repeat another exactly" in warning for warning in report.warnings)
    schedule = report.facts["schedule"]
    assert (schedule["steps_per_epoch"], schedule["total_steps"], schedule["exact"]) == (3, 9, True)
    assert schedule["batch"] == (
        "global batch 2 samples = 1 per device x 2 accumulation x 1 process, flat rows where the model takes them, "
        "else padded by length"
    )
    rates = schedule["learning_rate"]
    assert rates["start"] == pytest.approx(5e-5)
    assert rates["end"] == pytest.approx(5e-5 / 9)


def test_a_special_token_that_stands_twice_is_found(shared: Path, tmp_path: Path):
    rows = [{"text": f"<s>once upon a time {number}"} for number in range(4)]  # the tokenizer puts <s> before it again
    report = check_run(tiny.write_run(tmp_path, stories(tmp_path, rows, shared)))
    assert report.facts["data"]["train"]["doubled_special_tokens"] == 4
    assert any("special token twice in a row" in warning for warning in report.warnings)


def test_rows_in_train_and_eval_are_counted(shared: Path, tmp_path: Path):
    settings = stories(tmp_path, PROMPTS, shared)
    (tmp_path / "eval.jsonl").write_text("".join(json.dumps(row) + "\n" for row in PROMPTS[:2]))
    settings["data"] |= {"eval": str(tmp_path / "eval.jsonl"), "max_empty": 0.5}
    report = check_run(tiny.write_run(tmp_path, settings))
    assert report.facts["data"]["overlap"] == 2
    assert any("are in data.train too" in warning for warning in report.warnings)


def test_too_many_rows_without_a_target_are_an_error_as_in_training(shared: Path, tmp_path: Path):
    file = tiny.write_run(tmp_path, stories(tmp_path, PROMPTS, shared))
    outcome = tiny.command("check", file)
    assert outcome.code == 2
    says = "1 of 6 rows have no target left, more than data.max_empty = 1.0% (16.7% of "
    assert says in outcome.stdout
    assert says in tiny.command("train", file).stderr


def test_label_distribution_of_real_reviews(shared: Path, tmp_path: Path):
    report = check_run(tiny.write_run(tmp_path, tiny.settings(shared, tmp_path)), nodes=2, gpus_per_node=2)
    assert report.errors == []
    distribution = report.facts["data"]["label_distribution"]
    assert set(distribution) == {"0", "1"}
    assert sum(distribution.values()) == 64
    assert report.facts["data"]["train"]["share_of_targets"] is None
    assert report.facts["schedule"]["batch"].startswith("global batch 8 samples = 2 per device x 1 accumulation x 4")


def test_the_tokenizer_is_held_against_the_model(shared: Path, tmp_path: Path):
    settings = stories(tmp_path, [{"text": "once upon a time"}] * 3, shared)
    settings["model"] = {"name": settings["model"], "processor": str(shared / "weights/tokenizers/gpt2")}
    report = check_run(tiny.write_run(tmp_path, settings))
    assert report.facts["tokenizer"]["tokens"] == 50257
    assert report.facts["tokenizer"]["embeddings"] == 512
    assert any("49745 are new" in warning for warning in report.warnings)
    settings |= {"adapter": {"method": "lora"}}
    settings["model"] |= {"quantization": "nf4"}
    report = check_run(tiny.write_run(tmp_path, settings))
    assert any("cannot grow in a quantised model" in error for error in report.errors)


def test_json_is_the_report(shared: Path, tmp_path: Path):
    outcome = tiny.command("check", tiny.write_run(tmp_path, tiny.settings(shared, tmp_path)), "--json")
    found = json.loads(outcome.stdout)
    assert outcome.code == 0
    assert set(found) == {"errors", "warnings", "facts", "rows"}
    assert set(found["facts"]) >= {"combination", "data", "tokenizer", "schedule"}


def test_all_that_is_wrong_with_settings_and_files_comes_at_once_without_torch(shared: Path, tmp_path: Path):
    settings = tiny.settings(shared, tmp_path)
    settings["optimizer"] = {"lrr": 1}
    settings["data"]["train"]["path"] = str(tmp_path / "nowhere.tsv")
    file = tiny.write_run(tmp_path, settings)
    program = f"""
import shutil
import sys
sys.argv = ["ftscale", "check", {str(file)!r}]
from ftscale.cli import main
try:
    main()
except SystemExit as stop:
    assert stop.code == 2, stop.code
heavy = {{"torch", "transformers", "datasets", "numpy", "peft"}} & set(sys.modules)
assert not heavy, heavy
"""
    outcome = tiny.process("python", "-c", program)
    assert outcome.code == 0, outcome.stderr
    assert "optimizer.lrr is not a setting" in outcome.stderr
    assert "nowhere.tsv" in outcome.stderr


def test_a_refused_combination_and_a_missing_column_come_together(shared: Path, tmp_path: Path):
    settings = tiny.settings(shared, tmp_path, model={"name": "m", "quantization": "nf4"})
    settings["data"]["train"]["columns"] = {"text": 7, "label": 1}
    report = check_run(tiny.write_run(tmp_path, settings))
    assert len(report.errors) == 2
    assert "model.quantization needs an adapter" in report.errors[0]
    assert "data.train[0].columns.text = 7" in report.errors[1]


def test_what_train_refuses_check_refuses(shared: Path, tmp_path: Path):
    file = tiny.write_run(tmp_path, tiny.settings(shared, tmp_path, schedule={"warmup_steps": 9}))
    for command in ("check", "train"):
        outcome = tiny.command(command, file)
        assert outcome.code == 2
        assert "schedule.warmup_steps = 9 must be at most 3" in outcome.stdout + outcome.stderr


def test_columns_have_one_home():
    from ftscale.config.schema import Config
    from ftscale.config.tasks import SETTINGS
    from ftscale.tasks import build_task

    for name, settings in SETTINGS.items():
        plain = {"task": name, "run_folder": "r", "model": "m", "data": {"train": "t"}}
        assert build_task(Config.model_validate(plain).task).settings.roles is settings.columns


# ---------------------------------------------------------------- rows


def test_a_sorted_file_shows_all_its_classes(shared: Path, tmp_path: Path):
    rows = [{"text": f"row {number}", "label": "abcd"[number // 1500]} for number in range(6000)]
    settings = stories(tmp_path, rows, shared, task={"name": "text_classification", "max_length": 16})
    file = tiny.write_run(tmp_path, settings)
    train = check_run(file).facts["data"]
    shares = train["label_distribution"]
    assert (train["train"]["rows_looked_at"], train["train"]["rows"]) == (2000, 6000)
    assert sum(shares.values()) == 2000
    # a draw of 2000 of 6000 without putting back: 500 of each class, standard deviation 16
    assert all(abs(shares[name] - 500) < 80 for name in "abcd")
    assert check_run(file).facts["data"]["label_distribution"] == shares, "the draw is seeded"
    assert check_run(file, ["seed=1"]).facts["data"]["label_distribution"] != shares


def test_every_row_is_as_likely_to_be_drawn():
    from ftscale.checks.sample import Draw

    times: Counter[int] = Counter()
    for seed in range(2000):
        draw = Draw(5, seed=seed)
        for number in range(20):
            draw.add((0, {"text": number}))
        chosen = [row["text"] for _, row in draw.rows]
        assert chosen == sorted(chosen)
        assert len(set(chosen)) == 5
        times.update(chosen)
    # binomial with 2000 tries of probability 1/4: 500, standard deviation 19
    assert all(abs(times[number] - 500) < 100 for number in range(20))


def test_rows_of_test_are_read_and_compared(shared: Path, tmp_path: Path):
    settings = stories(tmp_path, PROMPTS, shared)
    (tmp_path / "test.jsonl").write_text("".join(json.dumps(row) + "\n" for row in PROMPTS[1:3]))
    settings["data"] |= {"test": str(tmp_path / "test.jsonl"), "max_empty": 0.5}
    report = check_run(tiny.write_run(tmp_path, settings))
    assert report.facts["data"]["test"]["rows"] == 2
    assert report.facts["data"]["test_overlap"] == 2
    assert any("2 of 2 rows of data.test are in data.train too" in warning for warning in report.warnings)


def test_a_row_is_known_again_among_those_that_were_not_drawn(shared: Path, tmp_path: Path):
    rows = [{"text": f"row {number}"} for number in range(2500)]
    settings = stories(tmp_path, rows, shared)
    (tmp_path / "eval.jsonl").write_text(
        "".join(json.dumps({"text": f"row {number}"}) + "\n" for number in range(2490, 2510))
    )
    settings["data"] |= {"eval": str(tmp_path / "eval.jsonl")}
    facts = check_run(tiny.write_run(tmp_path, settings)).facts["data"]
    assert (facts["train"]["rows_looked_at"], facts["overlap"]) == (2000, 10)


def test_rows_held_out_are_looked_at_apart_from_the_others(shared: Path, tmp_path: Path):
    rows = [{"text": f"once upon a time {number // 2}"} for number in range(40)]
    settings = stories(tmp_path, rows, shared, data={**_data(tmp_path), "eval_ratio": 0.25})
    facts = check_run(tiny.write_run(tmp_path, settings)).facts["data"]
    assert (facts["train"]["rows"], facts["eval"]["rows"]) == (30, 10)
    from sklearn.model_selection import train_test_split

    from ftscale.base.seeding import derive_seed

    kept, held = train_test_split(range(40), test_size=0.25, random_state=derive_seed(0, "split") % 2**32)
    assert facts["overlap"] == sum(row // 2 in {other // 2 for other in kept} for row in held) > 0


def test_several_classes_of_a_row_are_shown_as_classes(shared: Path, tmp_path: Path):
    rows = [{"text": "rain and wind", "label": ["wet", "loud"]}, {"text": "sun", "label": ["dry"]}] * 4
    task = {"name": "text_classification", "problem": "multi_label"}
    report = check_run(tiny.write_run(tmp_path, stories(tmp_path, rows, shared, task=task)))
    assert report.rows[0] == [("<s> rain and wind", False), ("['wet', 'loud']", True)]
    assert report.facts["data"]["train"]["end_supervised"] is None
    assert report.facts["data"]["train"]["share_of_targets"] is None
    assert not any("end token" in warning for warning in report.warnings)
    assert report.facts["data"]["label_distribution"] == {"loud": 4, "wet": 4, "dry": 4}


def test_images_are_spoken_of_as_images(shared: Path, tmp_path: Path):
    from PIL import Image

    for name in ("cat/1.png", "dog/1.png", "dog/2.png"):
        (tmp_path / "pictures" / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 8)).save(tmp_path / "pictures" / name)
    file = tiny.write_run(
        tmp_path,
        {
            "task": "image_classification",
            "run_folder": str(tmp_path / "run"),
            "model": str(shared / "weights/mobilenet_v1_0.25_224"),
            "data": {"train": str(tmp_path / "pictures"), "cache_dir": str(tmp_path / "cache")},
            "train": {"max_steps": 1},
            "checkpoint": {"prove": "never"},
        },
    )
    outcome = tiny.command("check", file)
    assert outcome.code == 0, outcome.stdout
    assert "data.train: 3 rows looked at, 3 kept, dropped: none, exact duplicates: 0" in outcome.stdout
    said = outcome.stdout + tiny.command("train", file).stderr
    assert [word for word in ("token", "length", "padded", "truncated") if word in said] == []
    assert "images/s" in said


# ---------------------------------------------------------------- what a tokenizer loses


def word_pieces(folder: Path, words: list[str]) -> Path:
    """A tokenizer of whole words and single letters, that knows nothing else."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    letters = [mark + letter for letter in "abcdefghijklmnopqrstuvwxyz." for mark in ("", "##")]
    vocabulary = {word: number for number, word in enumerate(["<unk>", "<s>", "</s>", *words, *letters])}
    tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.decoder = decoders.WordPiece()
    made = PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>", bos_token="<s>", eos_token="</s>")
    made.save_pretrained(folder)
    return folder


def test_unknown_tokens_and_characters_that_cannot_be_written_are_counted(shared: Path, tmp_path: Path):
    rows = [
        {"prompt": "say", "completion": " a cat"},
        {"prompt": "say", "completion": " a {cat}"},  # { cat } : two unknown tokens
        {"prompt": "s\u00e4y", "completion": " ros\u00e9"},  # two unknown words
        {"prompt": "say", "completion": " dog"},
    ]
    settings = stories(tmp_path, rows, shared)
    settings["model"] = {"name": settings["model"], "processor": str(word_pieces(tmp_path / "pieces", ["cat", "dog"]))}
    report = check_run(tiny.write_run(tmp_path, settings))
    train = report.facts["data"]["train"]
    # say a cat </s> are 3+1+1+1 tokens, say a { cat } </s> 3+1+1+1+1+1, <unk> <unk> </s> 3, say dog </s> 3+1+1
    assert train["unknown_tokens"] == pytest.approx(4 / (6 + 8 + 3 + 5))
    assert train["unknown_characters"] == {"{": 1, "}": 1, "\u00e4": 1, "\u00e9": 1}
    assert train["unwritable_targets"] == 2
    assert train["unwritable_characters"] == {"{": 1, "}": 1, "\u00e9": 1}
    told = "\n".join(report.warnings)
    assert "the targets of 2 of 4 rows have characters that the tokenizer cannot write" in told
    assert "18.2% of all tokens are unknown to the tokenizer" in told


def test_a_tokenizer_of_bytes_loses_nothing(shared: Path, tmp_path: Path):
    rows = [{"prompt": "say", "completion": "\u00e9 { \u4e2d \U0001f600\n\tend"}] * 3
    settings = stories(tmp_path, rows, shared)
    settings["model"] = {"name": settings["model"], "processor": str(shared / "weights/tokenizers/gpt2")}
    train = check_run(tiny.write_run(tmp_path, settings)).facts["data"]["train"]
    assert train["unwritable_targets"] == 0
    assert "unknown_tokens" not in train, "its token for what is unknown is its end token"


# ---------------------------------------------------------------- two steps


def test_two_steps_are_those_of_plain_torch(shared: Path, tmp_path: Path):
    """The losses of the two longest rows under SGD, recounted with transformers alone."""
    rows = [{"text": "once upon a time " * times} for times in (1, 5, 2, 4, 3)]
    settings = stories(tmp_path, rows, shared, optimizer={"name": "sgd", "lr": 0.1, "momentum": 0.0, "weight_decay": 0})
    settings |= {"train": {"max_grad_norm": 0}, "schedule": "constant"}
    settings["schedule"] = {"name": "constant"}
    report = check_run(tiny.write_run(tmp_path, settings), deep=True)
    assert report.errors == []
    steps = report.facts["steps"]
    tokenizer = AutoTokenizer.from_pretrained(shared / "weights/stories260K")
    model = AutoModelForCausalLM.from_pretrained(shared / "weights/stories260K")
    ids = [[*tokenizer(rows[place]["text"])["input_ids"], tokenizer.eos_token_id] for place in (1, 3)]
    assert steps["lengths"] == [len(item) for item in ids]
    losses = []
    for _ in range(2):
        logits = [model(torch.tensor([item])).logits[0, :-1] for item in ids]
        wanted = [torch.tensor(item[1:]) for item in ids]
        loss = functional.cross_entropy(torch.cat(logits), torch.cat(wanted))
        losses.append(loss.item())
        model.zero_grad()
        loss.backward()
        with torch.no_grad():
            for weight in model.parameters():
                weight -= 0.1 * weight.grad
    assert steps["losses"] == pytest.approx(losses, rel=1e-4)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["rows.jsonl", "run.yaml"], "nothing is written"


def test_a_model_that_does_not_fit_is_tried_in_a_smaller_form(
    shared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    from ftscale.checks import deep

    monkeypatch.setattr(deep, "free_bytes", lambda: 3e6)  # the model itself takes 260,032 x 16 bytes, and as much again
    file = tiny.write_run(tmp_path, stories(tmp_path, [{"text": "once upon a time"}] * 3, shared))
    report = check_run(file, deep=True)
    assert report.errors == []
    assert report.facts["steps"]["model"].startswith("a smaller one with random weights (num_hidden_layers 2 of 5")
    assert len(report.facts["steps"]["losses"]) == 2
    monkeypatch.setattr(deep, "free_bytes", lambda: 1e3)
    assert "does not fit into the memory" in check_run(file, deep=True).errors[0]


def test_what_only_a_step_shows_is_an_error(shared: Path, tmp_path: Path):
    settings = stories(tmp_path, [{"text": "once upon a time"}] * 3, shared, optimizer={"name": "sgd", "lr": 1e30})
    file = tiny.write_run(tmp_path, settings)
    assert check_run(file).errors == []
    [error] = check_run(file, deep=True).errors
    assert error.startswith("check --deep: ")


# ---------------------------------------------------------------- output


@pytest.mark.parametrize("encoding", ["ascii", "latin-1"])
def test_what_an_output_cannot_show_is_escaped(encoding: str, shared: Path, tmp_path: Path):
    labels = ["\u20ac", "no"] * 2
    rows = [{"text": f"na\u00efve \u4e2d {number}", "label": label} for number, label in enumerate(labels)]
    settings = stories(tmp_path, rows, shared, task={"name": "text_classification", "max_length": 32})
    settings |= {"train": {"max_steps": 1}, "checkpoint": {"prove": "never"}}
    file = tiny.write_run(tmp_path, settings)
    assert "\\u4e2d" in printed(encoding, "check", file)
    assert tiny.command("train", file).code == 0
    answers = printed(encoding, "predict", tmp_path / "run", tmp_path / "rows.jsonl").splitlines()
    assert [json.loads(answer)["text"] for answer in answers] == [row["text"] for row in rows]


def printed(encoding: str, *arguments: object) -> str:
    """What a command prints to an output of that encoding, which is an error for what it does not have."""
    from ftscale.cli import main

    raw = io.BytesIO()
    out = io.TextIOWrapper(raw, encoding=encoding, write_through=True)
    words = ["ftscale", *map(str, arguments)]
    with patch.object(sys, "argv", words), contextlib.redirect_stdout(out), contextlib.suppress(SystemExit):
        main()
    return raw.getvalue().decode(encoding)


def test_a_checkpoint_of_another_strategy_is_refused_before_the_start(shared: Path, tmp_path: Path):
    file = tiny.write_run(tmp_path, tiny.settings(shared, tmp_path, train={"max_steps": 1}))
    assert tiny.command("train", file).code == 0
    assert check_run(file, resume=True).errors == []
    [error] = check_run(file, ["distributed.strategy=zero2"], resume=True).errors
    assert error.startswith("distributed.strategy = zero2 cannot go on from checkpoint")
    assert "use single or ddp" in error
    [error] = check_run(file).errors
    assert "already holds a run; go on with it by --resume" in error
    assert check_run(file, ["distributed.strategy=zero2"], overwrite=True).errors == []


def test_a_checkpoint_that_a_job_is_writing_is_left_alone(shared: Path, tmp_path: Path):
    file = tiny.write_run(tmp_path, tiny.settings(shared, tmp_path, train={"max_steps": 1}))
    assert tiny.command("train", file).code == 0
    partial = tmp_path / "run/checkpoints/.step-00000002.partial"
    partial.mkdir()
    (partial / "state.pt").write_bytes(b"so far")
    before = tiny.contents(tmp_path / "run")
    assert check_run(file, resume=True).errors == []
    assert tiny.contents(tmp_path / "run") == before


def test_an_adapter_that_needs_numbers_is_not_refused_for_want_of_them(shared: Path, tmp_path: Path):
    """unilora counts with torch.bincount, which the meta device does not have."""
    with pytest.raises(NotImplementedError):
        torch.bincount(torch.zeros(3, dtype=torch.int64, device="meta"))
    settings = stories(tmp_path, [{"text": "once upon a time"}] * 3, shared, adapter={"method": "unilora"})
    file = tiny.write_run(tmp_path, settings)
    report = check_run(file)
    assert report.errors == []
    assert any(text.startswith("the model cannot be tried without its weights") for text in report.warnings)


def test_a_disk_without_room_is_told_before_the_run(shared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    file = tiny.write_run(tmp_path, stories(tmp_path, [{"text": "once upon a time"}] * 3, shared))
    usage = shutil.disk_usage(tmp_path)
    # four checkpoints of 260,032 weights with two moments each, and the model: 13 x 4 bytes a weight are 12.9 MiB
    for free_mib, refused in ((12, True), (14, False)):
        monkeypatch.setattr(shutil, "disk_usage", lambda place, free=free_mib: usage._replace(free=free * 2**20))
        found = check_run(file)
        assert [f"{free_mib} MiB are free there" in error for error in found.errors] == [True] * refused
        elsewhere = check_run(file, gpus_per_node=1)
        assert elsewhere.errors == []
        assert any("are free there" in warning for warning in elsewhere.warnings) == refused
