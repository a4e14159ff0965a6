"""Which runs have their dropout by row, what a resume goes on with, and what is said of it."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import transformers
from launching import forget_after
from strategies import jobs
from torch import nn

from ftscale.base.errors import UserError
from ftscale.base.sealed import read_json, sealed
from ftscale.config import parse_config
from ftscale.modalities.image import Images
from ftscale.modalities.text import Text
from ftscale.models.dropout import RowDropout
from ftscale.models.layout import choose_layout
from ftscale.models.masks import Masks
from ftscale.run.dropout import choose_dropout
from ftscale.run.train import train

SMALL = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
TEXT = {**SMALL, "vocab_size": 211, "pad_token_id": 0}
SEQ2SEQ = {"vocab_size": 211, "d_model": 32, "pad_token_id": 0, "decoder_start_token_id": 0}
T5 = {**SEQ2SEQ, "d_kv": 8, "d_ff": 48, "num_layers": 2, "num_heads": 4}
SIDES = ("encoder", "decoder")
BART = {
    **SEQ2SEQ,
    **{f"{side}_{name}": size for side in SIDES for name, size in (("layers", 2), ("ffn_dim", 48))},
    **{f"{side}_attention_heads": 4 for side in SIDES},
}
BLOOM = {"vocab_size": 211, "hidden_size": 32, "n_layer": 2, "n_head": 4, "hidden_dropout": 0.1, "pad_token_id": 0}
SWIN = {"image_size": 32, "patch_size": 4, "embed_dim": 16, "depths": [1, 1], "num_heads": [2, 2], "window_size": 4}

TAKEN: dict[str, tuple[str, str, dict[str, Any]]] = {
    "attention and modules": ("BertForSequenceClassification", "BertConfig", TEXT),
    "attention of its own": ("DebertaV2ForSequenceClassification", "DebertaV2Config", TEXT),
    "attention alone": ("LlamaForCausalLM", "LlamaConfig", {**TEXT, "attention_dropout": 0.1}),
    "calls of F.dropout": ("BartForConditionalGeneration", "BartConfig", {**BART, "dropout": 0.1}),
    "calls in helper functions": ("BloomForCausalLM", "BloomConfig", BLOOM),
    "biases of positions": ("T5ForConditionalGeneration", "T5Config", T5),
    "images": (
        "ViTForImageClassification",
        "ViTConfig",
        {**SMALL, "image_size": 16, "patch_size": 8, "hidden_dropout_prob": 0.1},
    ),
}
TURNED_AWAY: dict[str, tuple[str, str, dict[str, Any], str]] = {
    "LayerDrop": (
        "BartForConditionalGeneration",
        "BartConfig",
        {**BART, "dropout": 0.1, "encoder_layerdrop": 0.5},
        "draws random numbers",
    ),
    "DropPath": ("SwinForImageClassification", "SwinConfig", {**SWIN, "drop_path_rate": 0.5}, "draws random numbers"),
    "windows of an image": (
        "SwinForImageClassification",
        "SwinConfig",
        {**SWIN, "drop_path_rate": 0.0, "attention_probs_dropout_prob": 0.1},
        "cannot be told apart",
    ),
    "experts": (
        "SwitchTransformersForConditionalGeneration",
        "SwitchTransformersConfig",
        {**T5, "num_experts": 4, "num_sparse_encoder_layers": 1, "num_sparse_decoder_layers": 1},
        "cannot be told apart",
    ),
    "jitter of a router": (
        "MixtralForCausalLM",
        "MixtralConfig",
        {**TEXT, "num_key_value_heads": 2, "num_local_experts": 2, "router_jitter_noise": 0.1},
        "draws random numbers",
    ),
}


def choose(
    model_class: str, config_class: str, fields: dict[str, Any], *, wanted: Any = "auto", device: str = "cpu"
) -> tuple[nn.Module, Masks | None]:
    torch.manual_seed(0)
    config = getattr(transformers, config_class)(**fields)
    model = getattr(transformers, model_class)(config)
    pooled, images, layout = "Sequence" in model_class, "Image" in model_class, "padded"
    if not images:
        about = {"pooled": pooled, "encoder_decoder": bool(config.is_encoder_decoder)}
        layout = choose_layout(model, wanted="auto", attention="auto", **about)
    task = SimpleNamespace(
        says=lambda name: False, acts_before_step=False, modality=Images() if images else Text(), pools=pooled
    )
    run: Any = SimpleNamespace(task=None, seed=0)
    return model, choose_dropout(model, run, task, wanted=wanted, layout=layout, device=device)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", TAKEN)
def test_a_model_whose_dropouts_are_all_reached_draws_by_row(name: str):
    _, masks = choose(*TAKEN[name])
    assert masks is not None


@pytest.mark.parametrize("name", TURNED_AWAY)
def test_a_model_with_other_chance_draws_by_process_and_one_line_says_why(name: str, caplog: pytest.LogCaptureFixture):
    *model_of, reason = TURNED_AWAY[name]
    with caplog.at_level(logging.INFO, logger="ftscale"):
        model, masks = choose(*model_of)  # type: ignore[arg-type]
    assert masks is None
    assert not any(isinstance(part, RowDropout) for part in model.modules())
    [line] = [record.getMessage() for record in caplog.records if "dropout" in record.getMessage()]
    assert line.startswith("dropout draws by process: ")
    assert reason in line
    with pytest.raises(
        UserError, match="train.dropout = by_row cannot be used: .*; set train.dropout: auto or by_proc"
    ):
        choose(*model_of, wanted="by_row")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("fields", "about"),
    [
        (TEXT, {"device": "cuda"}),
        (TEXT, {"wanted": "by_process"}),
        ({**TEXT, "hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}, {}),
    ],
    ids=["a GPU, not measured yet", "as asked", "no dropout"],
)
def test_nothing_is_changed_otherwise(fields: dict[str, Any], about: dict[str, Any]):
    model, masks = choose("BertForSequenceClassification", "BertConfig", fields, **about)
    assert masks is None
    assert not any(isinstance(part, RowDropout) for part in model.modules())
    if "device" in about:
        assert choose("BertForSequenceClassification", "BertConfig", fields, **about, wanted="by_row")[1] is not None


def test_a_choice_draws_no_number_of_the_run():
    torch.manual_seed(5)
    model = transformers.BertForSequenceClassification(transformers.BertConfig(**TEXT)).train()
    state, modes = torch.get_rng_state(), [part.training for part in model.modules()]
    task: Any = SimpleNamespace(says=lambda name: False, acts_before_step=False, modality=Text(), pools=True)
    run: Any = SimpleNamespace(task=None, seed=0)
    assert choose_dropout(model, run, task, wanted="auto", layout="padded", device="cpu") is not None
    assert torch.equal(torch.get_rng_state(), state)
    assert [part.training for part in model.modules()] == modes


# ---------------------------------------------------------------- runs


def settings(shared: Path, work: Path, **sections: Any) -> dict[str, Any]:
    """The small BERT with dropout on rows of which each stands twice in the data, in one step."""
    config = jobs.reviews(shared, work)
    config["model"]["overrides"] = {"hidden_dropout_prob": 0.1, "attention_probs_dropout_prob": 0.1}
    config["data"]["train"] |= {"limit": 8, "weight": 2}
    config["data"].pop("eval")
    config |= {"batch": {"global_size": 16, "micro_size": 16}, "train": {"max_steps": 4}, "evaluation": {}}
    config["checkpoint"] = {"every": 2, "keep": 9, "prove": "never"}
    return config | sections


def losses(config: dict[str, Any], folder: Path, *, resume: bool = False) -> list[float]:
    train(parse_config({**config, "run_folder": str(folder)}, source="test"), resume=resume)
    return [line["loss"] for line in jobs.lines(folder) if line["kind"] == "train"]


def drawn(folder: Path, step: int) -> str:
    """How dropout draws, by a checkpoint."""
    return read_json(folder / f"checkpoints/step-{step:08d}/manifest.json").get("dropout", "nothing said")


def forget_how(folder: Path) -> None:
    """The checkpoint as an older ftscale wrote it, which did not say how dropout draws."""
    [path] = (folder / "checkpoints").glob("step-*/manifest.json")
    manifest = {name: value for name, value in read_json(path).items() if name != "dropout"}
    path.write_text(json.dumps(sealed(manifest)))


def test_a_run_with_rows_that_stand_twice_in_a_step_is_the_same_in_any_cut(shared: Path, tmp_path: Path):
    config = settings(shared, tmp_path)
    whole = losses(config, tmp_path / "whole")
    cut = losses({**config, "batch": {"global_size": 16, "micro_size": 3, "layout": "padded"}}, tmp_path / "cut")
    assert cut == pytest.approx(whole, rel=1e-6)
    by_process = losses({**config, "train": {"max_steps": 4, "dropout": "by_process"}}, tmp_path / "torch")
    assert by_process != pytest.approx(whole, rel=1e-6)


def test_a_resumed_run_goes_on_as_it_began_and_one_of_an_older_version_by_process(shared: Path, tmp_path: Path):
    config = settings(shared, tmp_path)
    whole = losses(config, tmp_path / "whole")
    for name, before, after in (("new", "by_row", "by_row"), ("old", "nothing said", "by_process")):
        folder = tmp_path / name
        forget_after(tmp_path / "whole", folder, step=2)
        if name == "old":
            forget_how(folder)
        resumed = losses(config, folder, resume=True)
        assert (resumed[:2], resumed == whole) == (whole[:2], name == "new")
        assert (drawn(folder, 2), drawn(folder, 4)) == (before, after)
