"""Which tool a file is of, what is refused, and what is written."""

from __future__ import annotations

from pathlib import Path

import pytest
import tiny
from translating import translated

from ftscale.base.errors import UserError
from ftscale.init.translate import TOOLS, translate_file

KNOWN = {
    "axolotl": "base_model: a\nmicro_batch_size: 1\nlearning_rate: 1e-4\ndatasets: [{path: a.jsonl, type: alpaca}]",
    "llamafactory": "model_name_or_path: a\nstage: sft\nlora_rank: 4\ndataset: a\noutput_dir: out",
    "trl": "model_name_or_path: a\ndataset_name: b\ndataset_train_split: train\nuse_peft: true",
    "transformers": "model_name_or_path: a\ntrain_file: a.csv\ntext_column_names: a\nnum_train_epochs: 1",
}


@pytest.mark.parametrize("tool", TOOLS)
def test_a_tool_is_known_by_its_keys_and_may_be_named(tmp_path: Path, tool: str):
    done = translated(tmp_path, KNOWN[tool])
    assert done.found.tool == TOOLS[tool].NAME
    assert set(done.found.known_by) <= set(KNOWN[tool].replace(": ", "\n").split("\n"))
    assert done.found.known_by
    assert "which was known by its keys" in done.found.text
    assert translated(tmp_path, KNOWN[tool], tool=tool).found.known_by == ()


def test_a_number_that_no_float_can_hold_is_refused(tmp_path: Path):
    file = tmp_path / "theirs.json"
    file.write_text(f'{{"learning_rate": 1{"0" * 400}, "num_train_epochs": 1, "output_dir": "a"}}')
    with pytest.raises(UserError, match=r"(number of 401 digits|learning_rate = 1000.* must be a number)"):
        translate_file(file, tool="transformers", task="causal_lm")


def test_settings_that_do_not_go_together_here_are_told(tmp_path: Path):
    text = f"{KNOWN['axolotl']}\nadapter: lora\nload_in_8bit: true\ndeepspeed: zero3.json\n"
    done = translated(tmp_path, text)
    assert "model.quantization does not go with ZeRO-3" in done.said
    assert "model.quantization does not go with ZeRO-3" in " ".join(done.found.text.replace("#", "").split())


def test_unknown_keys_are_listed_with_the_nearest_and_without_their_values(tmp_path: Path):
    done = translated(tmp_path, f'{KNOWN["llamafactory"]}\nlora_targett: x\n"api_secret\\n# x": hf_abcdefgh\n')
    assert done.found.unknown == ("lora_targett (did you mean lora_target?)", "api_secret # x")
    assert "hf_abcdefgh" not in done.found.text
    assert "# - api_secret # x" in done.found.text


@pytest.mark.parametrize(
    ("text", "options", "said"),
    [
        ("colour: blue", {}, "has no key by which its tool is known; give --tool"),
        ("- a\n- b", {}, "must hold keys and values, holds list"),
        ("{}", {}, "must hold keys and values"),
        ("a: [", {}, "not valid YAML"),
        ("task: causal_lm\nrun_folder: a", {}, "is a configuration of ftscale itself"),
        ("base_model: a\nstage: sft", {}, "has keys of .* and of .*; give --tool"),
        (KNOWN["trl"], {"tool": "torchtune"}, "--tool = 'torchtune' is not known"),
        (KNOWN["trl"], {"task": "seq2sec"}, "--task = 'seq2sec' is not known; did you mean 'seq2seq'"),
        (KNOWN["trl"], {"task": "seq2seq"}, "--task = seq2seq does not fit"),
        (f"{KNOWN['trl']}\ndatasets: false", {}, "datasets of .* must be a list of sections with a path each"),
    ],
)
def test_what_cannot_be_translated_is_refused(tmp_path: Path, text: str, options: dict[str, str], said: str):
    with pytest.raises(UserError, match=said):
        translated(tmp_path, text, **options)
    assert not (tmp_path / "run.yaml").exists()


def test_what_is_no_text_file_is_refused(tmp_path: Path):
    (tmp_path / "training_args.bin").write_bytes(b"\x80\x02PK\xff")
    for path, said in (("training_args.bin", "is a pickle"), (".", "is a folder"), ("none.yaml", "does not exist")):
        with pytest.raises(UserError, match=said):
            translate_file(tmp_path / path)


def test_the_command_tells_and_overwrites_no_file_unasked(tmp_path: Path):
    (tmp_path / "theirs.yaml").write_text(KNOWN["trl"] + "\npush_to_hub: true\n")
    arguments = ("init", "--from", tmp_path / "theirs.yaml", "--out", tmp_path / "run.yaml")
    done = tiny.command(*arguments, "--processes", 4)
    assert (done.code, done.stderr) == (0, "")
    first, *_, last = done.stdout.splitlines()
    assert "is written, from TRL's configuration, known by" in first
    assert "  push_to_hub: ftscale sends nothing to a hub" in done.stdout
    assert last == f"next: ftscale check {tmp_path / 'run.yaml'}"
    before = (tmp_path / "run.yaml").read_text()
    again = tiny.command(*arguments)
    assert (again.code, "is there already" in again.stderr) == (2, True)
    assert (tmp_path / "run.yaml").read_text() == before
    assert tiny.command(*arguments, "--overwrite").code == 0
    assert (tmp_path / "run.yaml").read_text() != before
