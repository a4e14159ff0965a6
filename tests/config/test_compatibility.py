"""Combinations that are refused, one by one, and those beside them that are not."""

import subprocess
import sys
from pathlib import Path

import pytest

from ftscale.config.compatibility import TABLE, check_combination
from ftscale.config.schema import Config
from ftscale.config.strategies import STRATEGIES

RULE = {"method": {"file": str(Path(__file__).parents[1] / "methods/toys/pulled.py"), "name": "pulled"}}
LORA = {"adapter": {"method": "lora", "r": 8}}
STREAM = {"data": {"train": "rows.jsonl", "streaming": True}, "train": {"max_steps": 9}}
NF4 = {"model": {"name": "m", "quantization": "nf4"}}


def config(**sections):
    plain = {"task": "causal_lm", "run_folder": "run", "model": {"name": "m"}, "data": {"train": "rows.jsonl"}}
    return Config.model_validate({**plain, **sections})


REFUSED = {
    "quantised base without an adapter": (NF4, LORA),
    "quantised base, random weights": (
        {**LORA, "model": {"name": "m", "quantization": "int8", "init": "random"}},
        {"model": {"name": "m", "quantization": "none", "init": "random"}},
    ),
    "quantised base, ZeRO-3": (
        {**NF4, **LORA, "distributed": {"strategy": "zero3"}},
        {"distributed": {"strategy": "zero2"}},
    ),
    "adapter and trainable": ({**LORA, "trainable": {"freeze_embeddings": True}}, {"trainable": {"scope": "all"}}),
    "adalora under ZeRO": (
        {"adapter": {"method": "adalora"}, "distributed": {"strategy": "zero2"}},
        {"distributed": {"strategy": "ddp"}},
    ),
    "gradient rule of a method under ZeRO": (
        {**RULE, "distributed": {"strategy": "zero2"}},
        {"distributed": {"strategy": "ddp"}},
    ),
    "gradient rule of a method, adalora": ({**RULE, "adapter": {"method": "adalora"}}, LORA),
    "random base with an adapter, ZeRO-3": (
        {**LORA, "model": {"name": "m", "init": "random"}, "distributed": {"strategy": "zero3_offload"}},
        {"distributed": {"strategy": "zero2"}},
    ),
    "prefix tuning, activation checkpointing": (
        {"adapter": {"method": "prefix_tuning"}, "train": {"activation_checkpointing": True}},
        {"adapter": {"method": "lora"}},
    ),
    "learned prompt, flat layout": (
        {"adapter": {"method": "prompt_tuning"}, "batch": {"layout": "flat"}},
        {"batch": {"layout": "auto"}},
    ),
    "MLP head, no classification": ({"head": {"hidden_sizes": [8]}}, {"task": "text_classification"}),
    "a kept head where there is none": ({"head": {"keep": True}}, {"task": "text_classification"}),
    "last_blocks scope without a number": (
        {"trainable": {"scope": "last_blocks"}},
        {"trainable": {"scope": "last_blocks", "last_blocks": 2}},
    ),
    "a number of last blocks in another scope": (
        {"trainable": {"scope": "head", "last_blocks": 2}},
        {"trainable": {"scope": "head"}},
    ),
    "offloaded optimizer other than Adam": (
        {"optimizer": {"name": "paged_adamw_8bit"}, "distributed": {"strategy": "zero2_offload"}},
        {"distributed": {"strategy": "zero2"}},
    ),
    "stream cut by targets": (
        {**STREAM, "batch": {"unit": "targets"}},
        {**STREAM, "batch": {"unit": "samples"}},
    ),
    "stream with a share held out": (
        {**STREAM, "data": {**STREAM["data"], "eval_ratio": 0.1}},
        {**STREAM, "data": {**STREAM["data"], "eval_ratio": 0.1, "eval": "eval.jsonl"}},
    ),
    "evaluation settings without evaluation rows": (
        {"evaluation": {"before": True}},
        {"data": {"train": "rows.jsonl", "eval": "eval.jsonl"}},
    ),
    "batches of like length without a shuffle": (
        {**STREAM, "data": {**STREAM["data"], "group_by_length": True}},
        {"data": {"train": "rows.jsonl", "group_by_length": True}},
    ),
    "stream with collating workers": (
        {**STREAM, "data": {**STREAM["data"], "num_workers": 2}},
        {**STREAM, "data": {**STREAM["data"], "prepare_workers": 2}},
    ),
    "adafactor under ZeRO": (
        {"optimizer": {"name": "adafactor"}, "distributed": {"strategy": "zero2"}},
        {"optimizer": {"name": "adamw_8bit"}},
    ),
    "SGD8bit without momentum": (
        {"optimizer": {"name": "sgd_8bit", "momentum": 0}},
        {"optimizer": {"name": "sgd", "momentum": 0}},
    ),
    "stream without a number of steps": (
        {"data": {"train": "rows.jsonl", "streaming": True}},
        {"train": {"max_steps": 10}},
    ),
    "nvme without a folder": (
        {"distributed": {"strategy": "zero3_nvme"}},
        {"distributed": {"strategy": "zero3_nvme", "offload_dir": "/scratch"}},
    ),
}


def rows():
    return {row.name: row for row in TABLE}


@pytest.mark.parametrize("name", REFUSED)
def test_the_combination_is_refused_and_its_neighbour_is_not(name):
    sections, mended = REFUSED[name]
    assert check_combination(config(**sections)) == [rows()[name].text]
    assert check_combination(config(**{**sections, **mended})) == []


def test_every_refusal_of_the_table_is_tried_here():
    assert set(REFUSED) == {row.name for row in TABLE if row.verdict == "refused"}


def test_every_row_gives_its_source_and_every_refusal_a_way_out():
    for row in TABLE:
        assert row.source
        if row.verdict == "refused":
            assert any(word in row.text for word in ("set ", "use ", "leave out"))


def test_all_problems_come_at_once():
    sections = {**NF4, "head": {"hidden_sizes": [8]}, "distributed": {"strategy": "zero3"}}
    assert len(check_combination(config(**sections))) == 3


def test_a_strategy_of_the_launcher_counts_where_the_config_leaves_it_open():
    sections = config(**NF4, **LORA)
    assert check_combination(sections) == []
    assert check_combination(sections, strategy=STRATEGIES["zero3"]) == [rows()["quantised base, ZeRO-3"].text]
    said = config(**NF4, **LORA, distributed={"strategy": "ddp"})
    assert check_combination(said, strategy=STRATEGIES["zero3"]) == []


def test_the_table_needs_no_torch():
    code = "import sys, ftscale.config.compatibility; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
