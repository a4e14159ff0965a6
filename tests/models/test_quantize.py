"""Bases in 4 and 8 bits: what is quantised, what is not, and that training leaves it alone."""

import pytest
import torch
from bitsandbytes.nn import Linear4bit, Linear8bitLt

from ftscale.config.schema import AdapterConfig, ModelConfig
from ftscale.models.adapt import apply_adapter, count_parameters
from ftscale.models.freeze import set_training_mode
from ftscale.models.load import load_model

LABELS = {"num_labels": 8}


def stories(shared, quantization):
    config = ModelConfig(name=str(shared / "weights/stories260K"), quantization=quantization)
    return load_model(config, auto_class="AutoModelForCausalLM", settings={}, dtype=torch.float32, seed=0)


def test_nf4_is_double_quantised_and_computes_in_the_asked_dtype(shared):
    layer = stories(shared, "nf4").model.layers[0].mlp.up_proj
    assert isinstance(layer, Linear4bit)
    assert layer.weight.quant_type == "nf4"
    assert layer.weight.quant_state.nested
    assert layer.compute_dtype == torch.float32


def test_int8_is_llm_int8(shared):
    assert isinstance(stories(shared, "int8").model.layers[0].mlp.up_proj, Linear8bitLt)


@pytest.mark.parametrize("quantization", ["nf4", "int8"])
def test_a_new_head_is_not_quantised(minilm, quantization):
    config = ModelConfig(name=str(minilm), quantization=quantization)
    model = load_model(
        config, auto_class="AutoModelForSequenceClassification", settings=LABELS, dtype=torch.float32, seed=0
    )
    assert type(model.classifier) is torch.nn.Linear
    assert isinstance(model.bert.encoder.layer[0].output.dense, Linear4bit | Linear8bitLt)


@pytest.mark.parametrize("quantization", ["nf4", "int8"])
def test_the_quantised_base_is_bit_identical_after_training_and_the_loss_falls(shared, quantization):
    model = apply_adapter(stories(shared, quantization), AdapterConfig(method="lora", r=4), task_type="CAUSAL_LM")
    before = {name: weight.clone() for name, weight in model.named_parameters() if not weight.requires_grad}
    assert any(weight.dtype in (torch.uint8, torch.int8) for weight in before.values())
    optimizer = torch.optim.AdamW([weight for weight in model.parameters() if weight.requires_grad], lr=1e-2)
    ids = torch.randint(3, 512, (2, 16), generator=torch.Generator().manual_seed(0))
    losses = []
    for _ in range(5):
        with torch.no_grad():
            model.eval()(input_ids=ids)  # an evaluation between steps changes nothing
        set_training_mode(model)
        loss = model(input_ids=ids, labels=ids).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert losses[-1] < losses[0] - 0.1
    after = dict(model.named_parameters())
    assert all(torch.equal(weight, after[name]) for name, weight in before.items())


def test_weights_of_a_4_bit_base_are_counted_one_by_one(shared):
    lora = AdapterConfig(method="lora", r=4)
    plain = count_parameters(apply_adapter(stories(shared, "none"), lora, task_type="CAUSAL_LM"))
    packed = count_parameters(apply_adapter(stories(shared, "nf4"), lora, task_type="CAUSAL_LM"))
    # 5 layers, q_proj (64 -> 64) and v_proj (64 -> 32), rank 4
    assert plain == packed == (5 * 4 * (64 + 64 + 64 + 32), 260_032 + 5 * 4 * (64 + 64 + 64 + 32))


def test_a_4_bit_layer_still_passes_gradients_after_an_evaluation(shared):
    model = apply_adapter(stories(shared, "nf4"), AdapterConfig(method="lora", r=4), task_type="CAUSAL_LM")
    ids = torch.randint(3, 512, (2, 16), generator=torch.Generator().manual_seed(0))
    gradients = []
    for evaluate in (False, True):
        if evaluate:
            with torch.no_grad():
                model.eval()(input_ids=ids)
        set_training_mode(model)
        model.zero_grad()
        model(input_ids=ids, labels=ids).loss.backward()
        gradients.append([weight.grad.clone() for weight in model.parameters() if weight.requires_grad])
    for before, after in zip(*gradients, strict=True):
        torch.testing.assert_close(after, before)
