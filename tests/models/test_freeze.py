"""Which weights train, and that the rest is in eval mode."""

import pytest
import torch
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    LlamaConfig,
    LlamaForCausalLM,
    T5Config,
    T5ForConditionalGeneration,
)

from ftscale.base.errors import UserError
from ftscale.config.schema import AdapterConfig, ModelConfig, TrainableConfig
from ftscale.models.adapt import apply_adapter
from ftscale.models.freeze import freeze, set_training_mode
from ftscale.models.load import load_model


def bert():
    return BertForSequenceClassification(
        BertConfig(
            vocab_size=50,
            hidden_size=16,
            num_hidden_layers=3,
            num_attention_heads=2,
            intermediate_size=32,
            num_labels=4,
        )
    )


def trained(model):
    return {name for name, weight in model.named_parameters() if weight.requires_grad}


def test_scope_head_trains_the_classifier_alone():
    model = bert()
    freeze(model, TrainableConfig(scope="head"))
    assert trained(model) == {"classifier.weight", "classifier.bias"}


def test_scope_last_blocks_trains_the_head_and_those_blocks():
    model = bert()
    freeze(model, TrainableConfig(scope="last_blocks", last_blocks=2))
    parts = {".".join(name.split(".")[:4]) for name in trained(model)}
    assert parts == {"classifier.weight", "classifier.bias", "bert.encoder.layer.1", "bert.encoder.layer.2"}


def test_what_no_loss_comes_from_is_frozen_unless_it_is_named():
    model = bert().bert
    freeze(model, TrainableConfig(), unused=("pooler",))
    every = {name for name, _ in model.named_parameters()}
    assert trained(model) == {name for name in every if not name.startswith("pooler.")}
    freeze(model, TrainableConfig(patterns=["pooler"]), unused=("pooler",))
    assert trained(model) == every


def test_last_blocks_of_a_seq2seq_model_are_the_decoders():
    config = T5Config(vocab_size=50, d_model=16, d_kv=8, d_ff=32, num_layers=2, num_heads=2)
    model = T5ForConditionalGeneration(config)  # its output is tied to the embedding, called shared
    freeze(model, TrainableConfig(scope="last_blocks", last_blocks=1))
    assert {".".join(name.split(".")[:3]) for name in trained(model)} == {"decoder.block.1", "shared.weight"}


def test_more_blocks_than_there_are_is_an_error():
    with pytest.raises(UserError, match="trainable.last_blocks = 4 must be from 1 to 3"):
        freeze(bert(), TrainableConfig(scope="last_blocks", last_blocks=4))


def test_frozen_embeddings_freeze_a_tied_output_too():
    config = LlamaConfig(
        vocab_size=50,
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
        tie_word_embeddings=True,
    )
    model = LlamaForCausalLM(config)
    freeze(model, TrainableConfig(freeze_embeddings=True))
    everything = {name for name, _ in model.named_parameters()}
    assert everything - trained(model) == {"model.embed_tokens.weight"}
    assert not model.lm_head.weight.requires_grad


def test_patterns_add_and_freeze_patterns_win():
    model = bert()
    freeze(
        model, TrainableConfig(scope="head", patterns=(r"layer\.0\.attention",), freeze_patterns=(r"bias$", "query"))
    )
    assert trained(model) == {
        "classifier.weight",
        "bert.encoder.layer.0.attention.self.key.weight",
        "bert.encoder.layer.0.attention.self.value.weight",
        "bert.encoder.layer.0.attention.output.dense.weight",
        "bert.encoder.layer.0.attention.output.LayerNorm.weight",
    }


def test_patterns_without_a_match_come_all_at_once_with_the_nearest_weight():
    with pytest.raises(UserError) as error:
        freeze(bert(), TrainableConfig(patterns=("clasifier.weight",), freeze_patterns=("(",)))
    first, second = error.value.problems
    assert first == "trainable.patterns = 'clasifier.weight' matches no weight; did you mean 'classifier.weight'?"
    assert second.startswith("trainable.freeze_patterns = '(' is not a regular expression")


def test_nothing_to_train_is_an_error():
    with pytest.raises(UserError, match="leaves no weight of BertForSequenceClassification to train"):
        freeze(bert(), TrainableConfig(freeze_patterns=(".",)))


def test_frozen_parts_are_in_eval_mode_and_trained_ones_in_train_mode():
    model = bert()
    freeze(model, TrainableConfig(scope="last_blocks", last_blocks=1))
    set_training_mode(model)
    layers = model.bert.encoder.layer
    assert not model.bert.embeddings.dropout.training
    assert not layers[1].output.dropout.training
    assert layers[2].output.dropout.training
    assert model.dropout.training
    set_training_mode(model)
    assert not layers[1].training


def test_a_frozen_body_keeps_its_batch_norm_statistics(shared):
    model = load_model(
        ModelConfig(name=str(shared / "weights/mobilenet_v1_0.25_224")),
        auto_class="AutoModelForImageClassification",
        settings={"num_labels": 10},
        dtype=torch.float32,
        seed=0,
    )
    freeze(model, TrainableConfig(scope="head"))
    statistics = {name: value.clone() for name, value in model.named_buffers()}
    set_training_mode(model)
    images = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    model(pixel_values=images)
    assert all(torch.equal(value, statistics[name]) for name, value in model.named_buffers())
    model.train()
    model(pixel_values=images)
    assert not all(torch.equal(value, statistics[name]) for name, value in model.named_buffers())


def test_blocks_with_an_adapter_train_and_the_embeddings_do_not():
    model = apply_adapter(bert(), AdapterConfig(method="lora"), task_type="SEQ_CLS", new_modules=["classifier"])
    set_training_mode(model)
    base = model.get_base_model().bert
    attention = base.encoder.layer[0].attention.self
    assert attention.dropout.training
    assert attention.query.lora_dropout["default"].training
    assert not base.embeddings.dropout.training
    assert not attention.query.base_layer.training
