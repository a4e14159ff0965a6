"""What the fuzz tests have found, case by case: each is refused in a sentence, or read."""

from __future__ import annotations

import json
import shutil
import struct
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import LlamaConfig, LlamaForCausalLM

from ftscale.base.errors import UserError
from ftscale.config import parse_config
from ftscale.config.schema import ModelConfig, SourceConfig
from ftscale.config.tasks import SETTINGS
from ftscale.config.yaml_text import read_scalar, read_yaml
from ftscale.data.sources import read_rows
from ftscale.modalities.text import Text
from ftscale.models.load import load_model
from ftscale.models.save import load_saved, save_model
from ftscale.precheck.settings import folder_problems
from ftscale.tasks.rows import number_of
from ftscale.tasks.written_lists import parse_list

LLAMA = LlamaConfig(vocab_size=16, hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=2)


def _read(path: Path, content: bytes, task: str = "text_classification", **settings: str) -> list:
    path.write_bytes(content)
    return list(read_rows(SourceConfig(path=str(path), **settings), roles=SETTINGS[task].columns))


@pytest.mark.parametrize("encoding", ["rot13", "zlib", "base64", "hex", "undefined", "utf\0"])
@pytest.mark.parametrize(
    ("name", "content"), [("a.csv", b"text,label\na,x\n"), ("a.json", b'[{"text":"a","label":1}]')]
)
def test_an_encoding_that_is_none_of_texts_is_refused(tmp_path: Path, encoding: str, name: str, content: bytes):
    with pytest.raises(UserError, match="is not an encoding that Python knows; use e.g. utf-8"):
        _read(tmp_path / name, content, encoding=encoding)


@pytest.mark.parametrize("name", ["a.jsonl", "a.json"])
@pytest.mark.parametrize(
    ("content", "says"), [("[" * 100_000, "it is nested too deeply"), ("1" * 5000, "has too many digits")]
)
def test_json_that_costs_its_reader_too_much_is_refused(tmp_path: Path, name: str, content: str, says: str):
    with pytest.raises(UserError, match=rf"{name}.* is not .*JSON.*{says}"):
        _read(tmp_path / name, b'{"text": ' + content.encode() + b"}\n")


def test_idx_images_of_more_pixels_than_there_are_bytes_are_refused(tmp_path: Path):
    path = tmp_path / "train-images-idx3-ubyte"
    with pytest.raises(UserError, match="has images of 2147483648 x 2147483648 pixels, and 16777216 are the most"):
        _read(path, struct.pack(">4I", 0x803, 1, 2**31, 2**31), "image_classification", columns={"label": "image"})
    with pytest.raises(UserError, match="has images of 0 x 5 pixels"):
        _read(path, struct.pack(">4I", 0x803, 2**31, 0, 5), "image_classification", columns={"label": "image"})


def test_a_number_beyond_what_a_float_holds_is_no_label():
    with pytest.raises(UserError, match="must be a number"):
        number_of({"label": 10**400}, "label")


@pytest.mark.parametrize("text", ["{[1]}", "{{}: 1}", "['\\N{x}' 'b']"])
def test_a_text_that_python_cannot_make_a_list_of_is_none(text: str):
    assert parse_list(text) is None


def test_yaml_of_too_many_digits_or_levels_is_refused():
    with pytest.raises(UserError, match="not valid YAML: a number of 5000 digits"):
        read_yaml("a: " + "1" * 5000, source="x")
    with pytest.raises(UserError, match="nested deeper than 64 levels"):
        read_yaml("[" * 2000, source="x")
    with pytest.raises(UserError, match="'1111.*': a number of 5000 digits; 32 are the most; correct it"):
        read_scalar("1" * 5000)


def test_class_names_in_json_without_a_floor_are_refused(tmp_path: Path):
    (tmp_path / "labels.json").write_text("[" * 100_000)
    task = {"name": "text_classification", "labels": str(tmp_path / "labels.json")}
    with pytest.raises(UserError, match="the file cannot be read"):
        parse_config({"task": task, "model": "m", "run_folder": "r", "data": {"train": "t.csv"}}, source="test")


def test_a_folder_whose_name_no_file_system_takes_is_refused():
    [problem] = folder_problems("run_folder", Path("\ud83d"))
    assert "surrogates not allowed" in problem


# ---------------------------------------------------------------- models


@pytest.fixture
def whole(tmp_path: Path) -> Path:
    save_model(LlamaForCausalLM(LLAMA), None, tmp_path / "whole")
    return tmp_path / "whole"


@pytest.fixture
def adapter(whole: Path, tmp_path: Path) -> Path:
    base = LlamaForCausalLM.from_pretrained(whole)
    save_model(get_peft_model(base, LoraConfig(r=2, target_modules=["q_proj"])), None, tmp_path / "adapter")
    return tmp_path / "adapter"


@pytest.mark.parametrize("content", [b"", b"\0" * 8, b"\xff" * 64, b'\x10\0\0\0\0\0\0\0{"a": not json}}'])
def test_damaged_safetensors_are_refused(whole: Path, adapter: Path, content: bytes):
    (whole / "model.safetensors").write_bytes(content)
    about = {"auto_class": "AutoModelForCausalLM", "settings": {}, "dtype": torch.float32, "seed": 0}
    with pytest.raises(UserError, match="has damaged weights .*; copy or download them again"):
        load_model(ModelConfig(name=str(whole)), **about)
    with pytest.raises(UserError, match="holds no model that can be loaded"):
        load_saved(whole, auto_class="AutoModelForCausalLM")


def test_an_adapter_of_an_unknown_kind_or_without_weights_is_refused(adapter: Path, tmp_path: Path):
    shutil.copytree(adapter, tmp_path / "other")
    about = json.loads((adapter / "adapter_config.json").read_text())
    (adapter / "adapter_config.json").write_text(json.dumps({**about, "peft_type": "NO_SUCH"}))
    with pytest.raises(UserError, match=r"holds no model that can be loaded \(.*NO_SUCH"):
        load_saved(adapter, auto_class="AutoModelForCausalLM")
    (tmp_path / "other/adapter_model.safetensors").unlink()
    with pytest.raises(UserError, match=r"holds no model that can be loaded"):
        load_saved(tmp_path / "other", auto_class="AutoModelForCausalLM")


@pytest.mark.parametrize("content", ["[]", "3", '{"model_max_length": "many"}', "[" * 100_000])
def test_a_tokenizer_config_that_is_none_is_refused(shared: Path, tmp_path: Path, content: str):
    shutil.copytree(shared / "weights/stories260K", tmp_path / "model")
    (tmp_path / "model/tokenizer_config.json").write_text(content)
    with pytest.raises(UserError, match="gives no tokenizer"):
        Text().load_processor(ModelConfig(name=str(tmp_path / "model")))


@pytest.mark.parametrize("name", ["../../x", "/abs", "a/b", "a\0"])
def test_a_chat_template_whose_name_is_no_files_is_refused_before_training(shared: Path, tmp_path: Path, name: str):
    shutil.copytree(shared / "weights/stories260K", tmp_path / "model")
    path = tmp_path / "model/tokenizer_config.json"
    templates = [{"name": "default", "template": "x"}, {"name": name, "template": "y"}]
    path.write_text(json.dumps({**json.loads(path.read_text()), "chat_template": templates}))
    with pytest.raises(UserError, match="has a chat template called .*no name of a file"):
        Text().load_processor(ModelConfig(name=str(tmp_path / "model")))


def test_a_damaged_column_in_the_footer_of_a_parquet_file_does_not_end_the_process(tmp_path: Path):
    path = tmp_path / "a.parquet"
    pyarrow.parquet.write_table(pyarrow.table({"text": ["a", "b"], "label": [1, 2]}), path)
    content = bytearray(path.read_bytes())
    content[-539] ^= 1  # of the type of the first column's values, which pyarrow 26 answers by std::terminate
    with pytest.raises(UserError, match="is damaged or not Parquet"):
        _read(path, bytes(content))
