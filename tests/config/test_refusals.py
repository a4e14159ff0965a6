"""Each refused combination of the table is shown to fail or to be wrong, below the check that refuses it."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from torch import nn
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    BitsAndBytesConfig,
    LlamaConfig,
)

from ftscale.base.errors import UserError
from ftscale.config.schema import (
    AdapterConfig,
    BatchConfig,
    DataConfig,
    DistributedConfig,
    HeadConfig,
    OptimizerConfig,
    SourceConfig,
    TrainableConfig,
)
from ftscale.config.strategies import STRATEGIES
from ftscale.data.order import GlobalOrder, SourceRows
from ftscale.models.adapt import apply_adapter
from ftscale.models.freeze import freeze
from ftscale.models.head import replace_head
from ftscale.optim.optimizers import build_optimizer

LORA = AdapterConfig.model_validate({"method": "lora", "r": 2, "target_modules": ["q_proj"]})


def llama(**changes):
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    return AutoModelForCausalLM.from_config(LlamaConfig(**sizes, vocab_size=64, **changes))


def test_a_quantised_weight_takes_no_gradient(shared):
    config = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4")
    model = AutoModelForCausalLM.from_pretrained(shared / "weights/stories260K", quantization_config=config)
    weight = model.model.layers[0].self_attn.q_proj.weight
    assert weight.dtype == torch.uint8
    with pytest.raises(RuntimeError, match="floating point"):
        weight.requires_grad_(True)


def test_random_weights_are_not_quantised():
    model = llama(quantization_config=BitsAndBytesConfig(load_in_4bit=True))
    assert type(model.model.layers[0].self_attn.q_proj) is nn.Linear


def test_an_adapter_freezes_the_whole_base():
    """So what `trainable` would have said of base weights could not come true."""
    model = apply_adapter(llama(), LORA, task_type="CAUSAL_LM")
    assert not any(weight.requires_grad for name, weight in model.named_parameters() if "lora_" not in name)


def test_adalora_needs_the_gradients_that_zero_takes():
    """DeepSpeed clears `weight.grad` in its step; AdaLoRA moves ranks by it."""
    settings = {"method": "adalora", "init_r": 4, "target_r": 2, "tinit": 0, "tfinal": 1, "total_step": 10}
    adapter = AdapterConfig.model_validate({**settings, "target_modules": ["q_proj"]})
    model = apply_adapter(llama(), adapter, task_type="CAUSAL_LM")
    ids = torch.arange(8)[None]
    model(input_ids=ids, labels=ids).loss.backward()
    model.zero_grad(set_to_none=True)
    with pytest.raises((TypeError, AttributeError)):
        model.base_model.update_and_allocate(1)


def test_a_partitioned_random_base_cannot_be_saved(tmp_path):
    from ftscale.models.save import save_model

    model = apply_adapter(llama(), LORA, task_type="CAUSAL_LM")
    model.get_base_model().lm_head.weight.data = torch.empty(0)  # as ZeRO-3 leaves a weight
    with pytest.raises(AssertionError, match="sharded random base"):
        save_model(model, None, tmp_path)


def test_a_learned_prompt_reaches_only_the_first_sample_of_a_flat_row():
    """A second sample at the same positions gets other logits when it stands behind another in one row."""
    settings = {"method": "prompt_tuning", "num_virtual_tokens": 3}
    model = apply_adapter(llama(), AdapterConfig.model_validate(settings), task_type="CAUSAL_LM").eval()
    sample = torch.arange(5, 11)[None]
    with torch.no_grad():
        alone = model(input_ids=sample).logits
        row = model(input_ids=torch.cat([sample, sample], dim=1)).logits
    assert torch.allclose(row[:, :9], alone, atol=1e-5)  # three virtual tokens, then the first sample
    assert not torch.allclose(row[:, -6:], alone[:, -6:], atol=1e-3)
    assert row.shape[1] == 3 + 2 * sample.shape[1]  # one prompt for two samples


def test_a_language_model_has_no_classifier_to_replace():
    with pytest.raises(UserError, match="needs a linear classifier"):
        replace_head(llama(), HeadConfig(hidden_sizes=(8,)), seed=0)


def test_a_head_that_is_made_anew_is_not_kept():
    """transformers finds no classifier in what an MLP replaces, nor in a model that is made from its config."""
    config = LlamaConfig(hidden_size=32, num_hidden_layers=1, num_attention_heads=2, vocab_size=64, num_labels=2)
    first, second = (AutoModelForSequenceClassification.from_config(config) for _ in range(2))
    assert not torch.equal(first.score.weight, second.score.weight)
    assert not hasattr(llama(), "score")


def test_no_last_blocks_is_no_number_of_blocks():
    with pytest.raises(UserError, match="must be from 1 to 2"):
        freeze(llama(), TrainableConfig(scope="last_blocks", last_blocks=0))


def test_the_number_of_last_blocks_is_not_read_in_another_scope():
    model, other = llama(), llama()
    freeze(model, TrainableConfig(scope="all"))
    freeze(other, TrainableConfig(scope="all", last_blocks=1))
    trained = [[weight.requires_grad for weight in item.parameters()] for item in (model, other)]
    assert trained[0] == trained[1]


def test_adafactor_does_not_factor_a_flat_share():
    """ZeRO's ranks hold shares of all weights laid end to end; of one it keeps as many second moments as elements."""
    states = []
    for shape in ((64, 64), (64 * 64,)):
        weight = nn.Parameter(torch.ones(shape))
        weight.grad = torch.rand(shape)
        optimizer = build_optimizer(nn.ParameterList([weight]), OptimizerConfig(name="adafactor", lr=1e-3))
        optimizer.step()
        states.append(
            sum(value.numel() for value in optimizer.state[weight].values() if isinstance(value, torch.Tensor))
        )
    assert states[0] <= 2 * 64 + 1
    assert states[1] >= 64 * 64


def test_bitsandbytes_has_no_sgd_without_momentum():
    from bitsandbytes.optim import SGD8bit

    with pytest.raises(NotImplementedError):
        SGD8bit([nn.Parameter(torch.zeros(4))], lr=0.1, momentum=0.0)


def test_a_stream_has_no_length(tmp_path):
    from ftscale.data.sources import read_rows

    (tmp_path / "rows.txt").write_text("a\nb\n")
    rows = read_rows(SourceConfig(path=str(tmp_path / "rows.txt")), roles=(("text",),))
    with pytest.raises(TypeError):
        len(rows)


def test_without_evaluation_rows_nothing_is_chosen(shared, tmp_path):
    """A run without them ends with no metric, so that nothing could be chosen by one, or waited for."""
    import json

    import tiny

    values = tiny.settings(shared, tmp_path)
    del values["data"]["eval"]
    assert tiny.command("train", tiny.write_run(tmp_path, values)).code == 0
    result = json.loads((tmp_path / "run/result.json").read_text())
    assert (result["metrics"], result["best"]) == ({}, None)


def test_a_row_that_is_not_prepared_has_no_targets(tmp_path):
    from ftscale.data.sources import read_rows

    (tmp_path / "rows.txt").write_text("a\nb\n")
    row = next(read_rows(SourceConfig(path=str(tmp_path / "rows.txt")), roles=(("text",),)))
    assert "targets" not in row


def test_a_split_needs_all_rows(tmp_path):
    """Which rows are held out depends on how many there are."""
    from ftscale.data.prepare import split_rows

    held = []
    for count in (20, 40):
        path = tmp_path / f"{count}.txt"
        path.write_text("".join(f"row {number}\n" for number in range(count)))
        source = SourceConfig(path=str(path))
        data = DataConfig.model_validate({"train": str(path), "eval_ratio": 0.2})
        held.append(split_rows([source], data=data, roles=(("text",),), seed=0)[0])
    assert held[0] != {row for row in held[1] if row < 20}


def test_without_a_shuffle_sorted_batches_lose_the_files_order():
    lengths = np.array([5, 1, 4, 2, 3, 6])
    order = GlobalOrder(
        np.ones(6, dtype=int),
        [SourceRows(0, 6, 1.0)],
        batch=BatchConfig(global_size=2),
        shuffle=False,
        seed=0,
        lengths=lengths,
    )
    assert np.concatenate(order.epoch(0)).tolist() != list(range(6))


def _in_a_group(index: int) -> bool:
    return torch.distributed.is_initialized()


class _Asks(torch.utils.data.Dataset):
    def __len__(self) -> int:
        return 1

    def __getitem__(self, index: int) -> bool:
        return _in_a_group(index)


def test_a_worker_process_is_in_no_group():
    loader = torch.utils.data.DataLoader(_Asks(), num_workers=1, multiprocessing_context="spawn", batch_size=None)
    assert [bool(answer) for answer in loader] == [False]


def test_deepspeed_needs_a_folder_for_nvme():
    from ftscale.distributed.engine import deepspeed_plugin

    with pytest.raises(UserError, match="offload_dir"):
        deepspeed_plugin(STRATEGIES["zero3_nvme"], DistributedConfig(), precision="bf16", max_grad_norm=1.0)


def test_models_of_this_file_are_alike():
    """The comparisons above stand on it."""
    assert all(
        torch.equal(a, b) for a, b in zip(llama().parameters(), copy.deepcopy(llama()).parameters(), strict=True)
    )
