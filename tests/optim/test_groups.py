"""Weight decay off biases and norms, and the head's own rate."""

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn
from transformers import BertConfig, BertForSequenceClassification, LlamaConfig, LlamaForCausalLM

from ftscale.base.errors import UserError
from ftscale.optim.groups import parameter_groups

SIZES = {"vocab_size": 50, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}


def groups_of(model, *, head_lr=None, head_names=()):
    groups = parameter_groups(model, lr=1e-3, head_lr=head_lr, weight_decay=0.1, head_names=head_names)
    names = {id(weight): name for name, weight in model.named_parameters()}
    return {group["name"]: ({names[id(weight)] for weight in group["params"]}, group) for group in groups}


@pytest.mark.parametrize(
    "model", [BertForSequenceClassification(BertConfig(**SIZES)), LlamaForCausalLM(LlamaConfig(**SIZES))]
)
def test_matrices_decay_and_biases_and_norms_do_not(model):
    groups = groups_of(model)
    decayed, group = groups["body"]
    spared, spared_group = groups["body_no_decay"]
    assert all(name.endswith(("bias", "norm.weight", "Norm.weight", "layernorm.weight")) for name in spared)
    assert all(name.endswith("weight") and "norm" not in name.lower() for name in decayed)
    assert decayed | spared == {name for name, _ in model.named_parameters()}
    assert (group["weight_decay"], spared_group["weight_decay"]) == (0.1, 0.0)


def test_a_norm_with_a_matrix_does_not_decay():
    class SpatialRMSNorm(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.ones(4, 4))

    model = nn.Sequential(nn.Linear(4, 4), SpatialRMSNorm())
    assert groups_of(model)["body_no_decay"][0] == {"0.bias", "1.weight"}


def test_frozen_weights_are_in_no_group():
    model = BertForSequenceClassification(BertConfig(**SIZES))
    model.bert.requires_grad_(False)
    groups = groups_of(model)
    assert {name for names, _ in groups.values() for name in names} == {"classifier.weight", "classifier.bias"}


def test_a_head_inside_an_adapter_learns_at_its_own_rate():
    model = BertForSequenceClassification(BertConfig(**SIZES))
    model = get_peft_model(model, LoraConfig(task_type="SEQ_CLS", r=2))
    groups = groups_of(model, head_lr=0.5, head_names=["classifier"])
    assert groups["head"][0] == {"base_model.model.classifier.modules_to_save.default.weight"}
    assert groups["head_no_decay"][0] == {"base_model.model.classifier.modules_to_save.default.bias"}
    assert {name: group["lr"] for name, (_, group) in groups.items()} == {
        "body": 1e-3,
        "head": 0.5,
        "head_no_decay": 0.5,
    }


def test_a_head_rate_without_a_head_is_an_error():
    with pytest.raises(UserError, match="optimizer.head_lr = 0.5 needs a head that trains"):
        groups_of(LlamaForCausalLM(LlamaConfig(**SIZES)), head_lr=0.5)


def test_shards_of_zero3_are_judged_by_their_true_shape():
    model = nn.Linear(4, 4)
    for weight in model.parameters():
        weight.ds_shape = weight.shape
        weight.data = torch.empty(0)
    assert groups_of(model)["body"][0] == {"weight"}
