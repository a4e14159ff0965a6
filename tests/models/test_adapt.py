"""Every adapter method builds and learns; names that peft does not know come with the nearest."""

import os

import pytest
import torch
from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING
from transformers import BertConfig, BertForSequenceClassification, LlamaConfig, LlamaForCausalLM

from ftscale.base.errors import UserError
from ftscale.config.schema import AdapterConfig, ModelConfig
from ftscale.models.adapt import (
    apply_adapter,
    build_peft_config,
    count_parameters,
    enable_checkpointing,
    gradient_rule,
)
from ftscale.models.freeze import set_training_mode
from ftscale.models.load import load_model
from ftscale.models.save import _attach

METHODS = {
    "lora": {"r": 4},
    "lora with dora": {"r": 4, "use_dora": True},
    "lora on all linear layers": {"r": 4, "target_modules": "all-linear"},
    "adalora": {"init_r": 4, "target_r": 2, "tinit": 1, "tfinal": 1},
    "ia3": {},
    "vera": {"r": 4},
    "oft": {"oft_block_size": 8},
    "boft": {"boft_block_size": 4},
    "hra": {"r": 4},
    "loha": {"r": 4},
    "lokr": {"r": 4},
    "ln_tuning": {},
    "prefix_tuning": {"num_virtual_tokens": 3},
    "prompt_tuning": {"num_virtual_tokens": 3},
    "p_tuning": {"num_virtual_tokens": 3, "encoder_hidden_size": 16},
    "randlora": {"r": 4},
    "fourierft": {"n_frequency": 20},
    "miss": {"r": 4},
    "road": {"group_size": 16},
    "delora": {"r": 4},
}


def llama(**fields):
    torch.manual_seed(0)
    config = {"vocab_size": 64, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
    return LlamaForCausalLM(LlamaConfig(**config, intermediate_size=48, use_cache=False, **fields))


def bert(**fields):
    torch.manual_seed(0)
    config = {"vocab_size": 64, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
    return BertForSequenceClassification(BertConfig(**config, intermediate_size=48, num_labels=4, **fields))


def step(model, *, lr=1e-2, steps=3):
    """Losses of a few optimizer steps on one batch of random tokens."""
    optimizer = torch.optim.AdamW([weight for weight in model.parameters() if weight.requires_grad], lr=lr)
    ids = torch.randint(0, 64, (2, 12), generator=torch.Generator().manual_seed(1))
    losses, rule = [], gradient_rule(model)
    for number in range(1, steps + 1):
        loss = model(input_ids=ids, attention_mask=torch.ones_like(ids), labels=ids).loss
        loss.backward()
        optimizer.step()
        rule.after_update(step=number)
        optimizer.zero_grad()
        losses.append(loss.item())
    return losses


@pytest.mark.parametrize("method", METHODS)
def test_the_method_learns_and_leaves_the_base_alone(method):
    config = AdapterConfig(method=method.split()[0], **METHODS[method])
    model = apply_adapter(llama(), config, task_type="CAUSAL_LM", num_steps=10)
    frozen = {name: weight.clone() for name, weight in model.named_parameters() if not weight.requires_grad}
    trained = {name: weight.clone() for name, weight in model.named_parameters() if weight.requires_grad}
    set_training_mode(model)
    losses = step(model, lr=3e-2)
    after = dict(model.named_parameters())
    assert losses[-1] < losses[0]
    assert all(torch.equal(after[name], weight) for name, weight in frozen.items())
    assert any(not torch.equal(after[name], weight) for name, weight in trained.items())
    share, total = count_parameters(model)
    assert 0 < share < 0.5 * total


def test_boft_leaves_the_environment_as_it_was(tmp_path, monkeypatch):
    monkeypatch.delenv("CXX", raising=False)
    before = dict(os.environ)
    model = apply_adapter(llama(), AdapterConfig(method="boft", boft_block_size=4), task_type="CAUSAL_LM")
    assert os.environ == before
    model.save_pretrained(tmp_path / "adapter")
    _attach(llama(), tmp_path / "adapter")
    assert os.environ == before


def test_lora_trains_only_lora(minilm):
    model = load_model(
        ModelConfig(name=str(minilm)),
        auto_class="AutoModelForSequenceClassification",
        settings={"num_labels": 8},
        dtype=torch.float32,
        seed=0,
    )
    model = apply_adapter(model, AdapterConfig(method="lora", r=4), task_type="SEQ_CLS", new_modules=["classifier"])
    trained = {name for name, weight in model.named_parameters() if weight.requires_grad}
    assert {name for name in trained if "lora_" not in name} == {
        "base_model.model.classifier.modules_to_save.default.weight",
        "base_model.model.classifier.modules_to_save.default.bias",
    }
    # query and value of 6 layers, A and B of rank 4 at width 384, and the head
    assert count_parameters(model)[0] == 6 * 2 * 2 * 4 * 384 + 8 * 384 + 8


def test_a_model_that_peft_does_not_know_gets_all_its_linear_layers_adapted():
    model = bert()
    model.config.model_type = "some_new_model"
    wrapped = apply_adapter(model, AdapterConfig(method="lora"), task_type="SEQ_CLS", new_modules=["classifier"])
    adapted = {name.split(".lora_A")[0].split(".")[-1] for name, _ in wrapped.named_parameters() if "lora_A" in name}
    assert adapted == {"query", "key", "value", "dense"}


def test_new_adapter_weights_depend_on_the_seed_alone():
    weights = []
    for global_seed, seed in ((1, 0), (2, 0), (1, 3)):
        base = llama()
        torch.manual_seed(global_seed)
        model = apply_adapter(base, AdapterConfig(method="lora"), task_type="CAUSAL_LM", seed=seed)
        weights.append(next(weight for name, weight in model.named_parameters() if "lora_A" in name))
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])


@pytest.mark.parametrize(("dtype", "expected"), [(None, torch.float32), (torch.bfloat16, torch.bfloat16)])
def test_adapters_of_a_bf16_base_are_float32_unless_asked(dtype, expected):
    model = apply_adapter(llama().bfloat16(), AdapterConfig(method="lora"), task_type="CAUSAL_LM", dtype=dtype)
    assert {weight.dtype for weight in model.parameters() if weight.requires_grad} == {expected}
    assert model.get_base_model().model.embed_tokens.weight.dtype == torch.bfloat16


def test_none_gives_the_model_back():
    model = llama()
    assert apply_adapter(model, AdapterConfig(), task_type="CAUSAL_LM") is model


def test_every_method_of_peft_is_known_by_its_name():
    for kind, config_class in PEFT_TYPE_TO_CONFIG_MAPPING.items():
        options = {"total_step": 500} if kind.value == "ADALORA" else {}
        if kind.value in ("XLORA", "CPT", "SHADOW"):
            continue  # these want more than a name: adapters to mix, token ids
        built = build_peft_config(AdapterConfig(method=kind.value.lower(), **options), task_type="CAUSAL_LM")
        assert type(built) is config_class


def test_an_unknown_method_comes_with_the_nearest():
    with pytest.raises(UserError, match="adapter.method = 'lorra' is not known; did you mean 'lora'?"):
        build_peft_config(AdapterConfig(method="lorra"), task_type="CAUSAL_LM")


def test_unknown_fields_come_with_the_nearest_all_at_once():
    with pytest.raises(UserError) as error:
        build_peft_config(AdapterConfig(method="lora", lora_alfa=1, rank=3), task_type="CAUSAL_LM")
    assert "adapter (lora) = 'lora_alfa' is not known; did you mean 'lora_alpha'?" in error.value.problems
    assert len(error.value.problems) == 2


def test_what_peft_refuses_is_the_users_error():
    config = AdapterConfig.model_validate({"method": "lora", "target_modules": ["q_proj"], "layers_to_transform": [99]})
    with pytest.raises(UserError, match=r"lora does not go with LlamaForCausalLM.*Its modules: .*q_proj"):
        apply_adapter(llama(), config, task_type="CAUSAL_LM")
    with pytest.raises(UserError, match="adapter.method = adaption_prompt|leaves the new head classifier untrained"):
        apply_adapter(bert(), AdapterConfig(method="adaption_prompt"), task_type="SEQ_CLS", new_modules=["classifier"])


def test_a_prompt_is_refused_for_a_task_that_peft_has_none_for():
    with pytest.raises(UserError, match="prompt_tuning learns a prompt, and peft has no prompts"):
        build_peft_config(AdapterConfig(method="prompt_tuning"), task_type=None)


@pytest.mark.parametrize("setting", ["target_modules", "modules_to_save", "exclude_modules"])
def test_each_module_that_is_named_must_be_there(setting: str):
    """peft passes over a name in a list as long as another one is there."""
    config = AdapterConfig.model_validate({"method": "lora", setting: ["q_proj", "q_poj", "lm_heat"]})
    with pytest.raises(UserError) as error:
        apply_adapter(llama(), config, task_type="CAUSAL_LM")
    first, second = error.value.problems
    assert first.startswith(f"adapter.{setting} = 'q_poj' is not a module of LlamaForCausalLM; did you mean 'q_proj'?")
    assert second.startswith(
        f"adapter.{setting} = 'lm_heat' is not a module of LlamaForCausalLM; did you mean 'lm_head'"
    )
    assert first.endswith(
        "The names are: down_proj, embed_tokens, gate_proj, input_layernorm, k_proj, lm_head, norm, "
        "o_proj, post_attention_layernorm, q_proj, up_proj, v_proj."
    )


def test_checkpointing_recomputes_blocks_and_gives_the_same_gradients():
    gradients, calls = [], []
    for checkpointing in (False, True):
        model = apply_adapter(llama(), AdapterConfig(method="lora", init_lora_weights=False), task_type="CAUSAL_LM")
        if checkpointing:
            enable_checkpointing(model)
        set_training_mode(model)
        count = []
        model.get_base_model().model.layers[0].input_layernorm.register_forward_hook(
            lambda *_, count=count: count.append(1)
        )
        ids = torch.arange(12)[None]
        model(input_ids=ids, labels=ids).loss.backward()
        gradients.append([weight.grad for weight in model.parameters() if weight.requires_grad])
        calls.append(len(count))
    assert calls == [1, 2]
    for plain, recomputed in zip(*gradients, strict=True):
        torch.testing.assert_close(plain, recomputed)


def test_parts_that_no_loss_comes_from_have_no_weight_that_trains():
    """Under ZeRO alone weight decay would change them."""
    bert = BertForSequenceClassification(
        BertConfig(vocab_size=64, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=48)
    )
    lora = AdapterConfig(method="lora", r=4, target_modules="all-linear")
    for model in (bert, bert.bert):
        adapted = apply_adapter(model, lora, task_type=None, unused=("pooler",))
        trained = [name for name, weight in adapted.named_parameters() if weight.requires_grad]
        assert not [name for name in trained if "pooler" in name]
        assert any("attention" in name for name in trained)
        adapted.unload()
