"""Strategies of DeepSpeed's files and of FSDP's settings."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from ftscale.init.draft import Draft
from ftscale.init.zero_file import put_strategy


def strategy(folder: Path, **values: Any) -> Draft:
    draft = Draft("TRL", "theirs.yaml", values)
    put_strategy(draft, folder=folder)
    return draft


@pytest.mark.parametrize(
    ("zero", "name"),
    [
        ({"stage": 0}, "ddp"),
        ({"stage": 1}, "zero1"),
        ({"stage": 2}, "zero2"),
        ({"stage": 2, "offload_optimizer": {"device": "cpu"}}, "zero2_offload"),
        ({"stage": 3, "offload_optimizer": {"device": "none"}}, "zero3"),
        ({"stage": 3, "offload_param": {"device": "cpu"}}, "zero3_offload"),
        ({"stage": 3, "offload_param": {"device": "nvme", "nvme_path": "/fast"}}, "zero3_nvme"),
    ],
)
def test_a_file_is_read_for_its_stage_and_offload(tmp_path: Path, zero: dict[str, Any], name: str):
    (tmp_path / "ds.json").write_text(json.dumps({"zero_optimization": zero}))
    assert strategy(tmp_path, deepspeed="ds.json").value("distributed.strategy") == name
    draft = strategy(tmp_path, deepspeed={"zero_optimization": zero})
    assert draft.value("distributed.strategy") == name
    assert draft.value("distributed.offload_dir") == ("/fast" if name == "zero3_nvme" else None)


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("ds_z3_offload_config.json", "zero3_offload"),
        ("configs/zero1.json", "zero1"),
        ("deepspeed_zero2.yaml", "zero2"),
        ("mine.json", None),
    ],
)
def test_a_file_that_is_not_there_is_known_by_its_name_or_not(tmp_path: Path, path: str, name: str | None):
    draft = strategy(tmp_path, deepspeed=path)
    assert draft.value("distributed.strategy") == name
    assert ("not found" in " ".join(draft.open)) is (name is not None)
    assert ("deepspeed" in draft.lacks) is (name is None)


@pytest.mark.parametrize(
    ("values", "name"),
    [
        ({"fsdp": "full_shard auto_wrap"}, "zero3"),
        ({"fsdp": ["shard_grad_op"]}, "zero2"),
        ({"fsdp": "full_shard offload"}, "zero3_offload"),
        ({"fsdp": True, "fsdp_config": {"offload_params": True}}, "zero3_offload"),
        ({"fsdp": "", "fsdp_config": {"min_num_params": 0}}, None),
        ({"fsdp": []}, None),
    ],
)
def test_sharding_of_fsdp_is_that_of_a_zero_stage(tmp_path: Path, values: dict[str, Any], name: str | None):
    assert strategy(tmp_path, **values).value("distributed.strategy") == name
