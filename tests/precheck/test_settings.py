"""What is judged before any row is read: folders to write, the kind of the model, names of metrics."""

from __future__ import annotations

import os
import re
import tempfile
from pathlib import Path
from typing import Any

import pytest
import tiny
from transformers import BertConfig, BertLMHeadModel

from ftscale.base.errors import UserError
from ftscale.config import parse_config
from ftscale.precheck import check_config, folder_problems, machine_problems, metric_problems
from ftscale.tasks import build_task

NOBODY = 65534


@pytest.mark.parametrize("folder", ["/dev/null", "/dev/null/run", "/proc/run", "/" + "long" * 100])
def test_a_folder_that_cannot_be_made_is_told(folder: str):
    """Also to root, who may make any but these."""
    with pytest.raises(OSError, match=r".") as failed:
        os.makedirs(f"{folder}/checkpoints")
    reason = failed.value.strerror
    [problem] = folder_problems("run_folder", Path(folder))
    assert problem == (
        f"run_folder = '{folder}' cannot be written ({reason}); change the permissions, or set run_folder to another "
        "folder."
    )


def test_a_folder_that_can_be_made_is_left_unmade(tmp_path: Path):
    assert folder_problems("run_folder", tmp_path / "a/b/c") == []
    assert list(tmp_path.iterdir()) == []


def test_a_folder_without_permission_is_told():
    with tempfile.TemporaryDirectory() as place:
        Path(place).chmod(0o755)
        folder = Path(place, "closed")
        folder.mkdir(mode=0o555)
        is_root = os.geteuid() == 0
        if is_root:  # who may write everywhere
            os.seteuid(NOBODY)
        try:
            [problem] = folder_problems("run_folder", folder / "run")
        finally:
            if is_root:
                os.seteuid(0)
    assert "cannot be written (Permission denied)" in problem


def test_every_folder_of_a_run_is_tried(shared: Path, tmp_path: Path):
    settings = tiny.settings(shared, tmp_path, run_folder="/dev/null/a")
    settings["data"]["cache_dir"] = "/dev/null/b"
    settings["distributed"] = {"strategy": "zero3_nvme", "offload_dir": "/dev/null/c"}
    problems = machine_problems(parse_config(settings, source="f"))
    assert [problem.split(" = ")[0] for problem in problems] == [
        "run_folder",
        "data.cache_dir",
        "distributed.offload_dir",
    ]


def test_an_encoder_does_not_write_unless_it_is_made_to(minilm: Path, shared: Path, tmp_path: Path):
    settings = tiny.settings(shared, tmp_path, task="causal_lm", model=str(minilm))
    for part in ("train", "eval"):
        settings["data"][part] = settings["data"][part] | {"columns": {"text": 0}}
    with pytest.raises(UserError) as error:
        check_config(parse_config(settings, source="f"))
    [problem] = error.value.problems
    assert problem.startswith("task.name = causal_lm needs a model that reads from left to right")
    assert "is an encoder (bert)" in problem
    settings["model"] = {"name": str(minilm), "overrides": {"is_decoder": True}}
    check_config(parse_config(settings, source="f"))
    # transformers' own attention: a token changes those before it, unless is_decoder
    import torch

    for is_decoder in (False, True):
        torch.manual_seed(0)
        sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
        model = BertLMHeadModel(BertConfig(vocab_size=20, is_decoder=is_decoder, **sizes)).eval()
        first, second = (model(torch.tensor([[1, 2, last]])).logits[0, 0] for last in (3, 4))
        assert torch.equal(first, second) == is_decoder


def test_a_metric_of_every_class_is_known_and_others_are_not(shared: Path, tmp_path: Path):
    task = {"name": "text_classification", "labels": ["goal", "no goal"]}
    for metric, wrong in (("f1/no goal", None), ("accuracy", None), ("f1/goall", "'f1/goal'"), ("AUC", "known: ")):
        values = tiny.settings(shared, tmp_path, task=task, evaluation={"metric": metric})
        config = parse_config(values, source="f")
        problems = metric_problems(config, build_task(config.task))
        assert bool(problems) == bool(wrong)
        assert not wrong or wrong in problems[0]


@pytest.mark.parametrize(
    ("section", "says"),
    [
        ({"adapter": {"method": "lora", "target_modules": ["q_projj"]}}, "'q_projj' is not a module of Llama"),
        ({"adapter": {"method": "lora", "target_modules": "q_proj"}}, "'q_proj' matches no module of Llama"),
        ({"adapter": {"method": "lora", "modules_to_save": ["scoree"]}}, "did you mean 'score'?"),
        ({"trainable": {"patterns": ["nosuch"]}}, "trainable.patterns = 'nosuch' matches no weight"),
        ({"trainable": {"scope": "last_blocks", "last_blocks": 6}}, "must be from 1 to 5"),
        ({"adapter": {"method": "lora", "target_modules": r".*\.[qv]_proj", "modules_to_save": ["score"]}}, ""),
        ({"adapter": {"method": "lora", "target_modules": "all-linear"}}, ""),
        ({"adapter": {"method": "adaption_prompt", "target_modules": "self_attn", "adapter_len": 2}}, ""),
        ({"trainable": {"scope": "last_blocks", "last_blocks": 5}}, ""),
    ],
)
def test_parts_of_the_model_are_named_before_the_data_is_prepared(
    section: dict[str, Any], says: str, shared: Path, tmp_path: Path
):
    config = parse_config(tiny.settings(shared, tmp_path, **section), source="f")
    if not says:
        check_config(config)
        return
    with pytest.raises(UserError, match=re.escape(says)):
        check_config(config)
