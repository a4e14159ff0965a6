"""Models and processors by name, and what is said when the name is wrong."""

import json
import logging
import shutil
from functools import partial

import pytest
import torch

from ftscale.base.errors import UserError
from ftscale.config.schema import ModelConfig, OptimizerConfig
from ftscale.modalities.image import Images
from ftscale.modalities.text import Text
from ftscale.models.load import (
    fit_vocabulary,
    forget_unused_renamings,
    load_model,
    load_model_config,
    load_small_twin,
)
from ftscale.optim import build_optimizer

LABELS = {"num_labels": 3, "id2label": {0: "a", 1: "b", 2: "c"}, "label2id": {"a": 0, "b": 1, "c": 2}}


def load(name, *, auto_class="AutoModelForCausalLM", settings=None, dtype=torch.float32, seed=0, **fields):
    return load_model(
        ModelConfig(name=str(name), **fields), auto_class=auto_class, settings=settings or {}, dtype=dtype, seed=seed
    )


def test_pretrained_weights_are_those_of_the_file(shared):
    from safetensors.torch import load_file

    model = load(shared / "weights/stories260K")
    file = load_file(shared / "weights/stories260K/model.safetensors")
    torch.testing.assert_close(model.model.embed_tokens.weight.data, file["model.embed_tokens.weight"])
    assert model.config.use_cache is False


def test_dtype_and_attention_are_as_asked(shared):
    model = load(shared / "weights/stories260K", dtype=torch.bfloat16, attention="eager")
    assert model.dtype == torch.bfloat16
    assert model.config._attn_implementation == "eager"


def test_random_weights_depend_on_the_seed_alone(shared):
    place = shared / "weights/stories260K"
    torch.manual_seed(1)
    first = load(place, init="random")
    torch.manual_seed(2)
    state = torch.get_rng_state()
    second = load(place, init="random")
    assert torch.equal(torch.get_rng_state(), state)
    other = load(place, init="random", seed=1)
    pretrained = load(place)
    weight = first.model.layers[0].mlp.up_proj.weight
    assert torch.equal(weight, second.model.layers[0].mlp.up_proj.weight)
    assert not torch.equal(weight, other.model.layers[0].mlp.up_proj.weight)
    assert not torch.equal(weight, pretrained.model.layers[0].mlp.up_proj.weight)


def test_a_new_classification_head_is_seeded_and_named_in_the_log(minilm, caplog):
    with caplog.at_level(logging.INFO, logger="ftscale"):
        torch.manual_seed(1)
        first = load(minilm, auto_class="AutoModelForSequenceClassification", settings=LABELS)
    torch.manual_seed(2)
    second = load(minilm, auto_class="AutoModelForSequenceClassification", settings=LABELS)
    assert "new weights: classifier.bias, classifier.weight" in caplog.text
    assert first.classifier.weight.shape == (3, 384)
    assert torch.equal(first.classifier.weight, second.classifier.weight)
    assert first.config.id2label == LABELS["id2label"]


def test_an_image_head_of_another_size_is_replaced_and_the_body_kept(shared, caplog):
    from safetensors.torch import load_file

    place = shared / "weights/mobilenet_v1_0.25_224"
    with caplog.at_level(logging.INFO, logger="ftscale"):
        model = load(place, auto_class="AutoModelForImageClassification", settings=LABELS)
    assert "new weights: classifier.bias, classifier.weight" in caplog.text
    assert model.classifier.weight.shape == (3, 256)
    body = load_file(place / "model.safetensors")
    name = "mobilenet_v1.conv_stem.convolution.weight"
    assert torch.equal(model.state_dict()[name], body[name])


def test_an_image_model_with_channels_together_takes_the_steps_of_the_plain_one(shared, tmp_path):
    from transformers import AutoModelForImageClassification

    place = shared / "weights/mobilenet_v1_0.25_224"
    plain = AutoModelForImageClassification.from_pretrained(place).eval()
    model = load(place, auto_class="AutoModelForImageClassification").eval()
    stem = model.mobilenet_v1.conv_stem.convolution.weight
    assert stem.is_contiguous(memory_format=torch.channels_last)
    assert not stem.is_contiguous()
    pixels = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    labels = torch.tensor([1, 2])
    steps = [
        (model, build_optimizer(model, OptimizerConfig(lr=1e-3, weight_decay=0.0))),
        (plain, torch.optim.AdamW(plain.parameters(), lr=1e-3, weight_decay=0.0)),
    ]
    losses = []
    for trained, optimizer in steps:
        for _ in range(3):
            loss = trained(pixel_values=pixels, labels=labels).loss
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            losses.append(loss.item())
    assert losses[:3] == pytest.approx(losses[3:], rel=1e-3)
    assert losses[2] < losses[0]
    model.save_pretrained(tmp_path)
    again = AutoModelForImageClassification.from_pretrained(tmp_path)
    assert all(torch.equal(a, b) for a, b in zip(again.parameters(), model.parameters(), strict=True))


def test_overrides_change_the_models_config(shared):
    model = load(shared / "weights/stories260K", overrides={"num_hidden_layers": 2})
    assert len(model.model.layers) == 2


def test_an_override_that_changes_pretrained_shapes_is_refused(shared):
    with pytest.raises(UserError, match=r"changes the shape of \d+ pretrained weights.*init: random"):
        load(shared / "weights/stories260K", overrides={"intermediate_size": 64})
    model = load(shared / "weights/stories260K", overrides={"intermediate_size": 64}, init="random")
    assert model.model.layers[0].mlp.up_proj.weight.shape == (64, 64)


def test_wrong_overrides_and_attention_are_reported_together_with_the_nearest_names(shared):
    config = ModelConfig(
        name=str(shared / "weights/stories260K"), overrides={"num_hiden_layers": 2}, attention="flash_attention2"
    )
    with pytest.raises(UserError) as error:
        load_model_config(config, settings={})
    assert len(error.value.problems) == 2
    assert "did you mean 'num_hidden_layers'?" in error.value.problems[0]
    assert "did you mean 'flash_attention_2'?" in error.value.problems[1]


def test_an_unknown_folder_comes_with_the_nearest_sibling(shared):
    config = ModelConfig(name=str(shared / "weights/stories26K"))
    with pytest.raises(UserError, match=r"^model.name = 'stories26K' is not known; did you mean 'stories260K'\?"):
        load_model_config(config, settings={})


def test_an_unknown_hub_id_offline_says_where_it_looked():
    with pytest.raises(UserError, match=r"model.name = 'nobody/nothing' is neither a folder here nor to be had"):
        load_model_config(ModelConfig(name="nobody/nothing"), settings={})


def test_a_folder_without_weights_asks_for_them_or_for_random_ones(shared, tmp_path):
    (tmp_path / "config.json").write_text((shared / "weights/stories260K/config.json").read_text())
    with pytest.raises(UserError, match=r"holds no weights \(model.safetensors\); .* set model.init: random"):
        load(tmp_path)


def test_pickled_weights_load_only_when_asked(shared, tmp_path):
    place = shared / "weights/stories260K"
    (tmp_path / "config.json").write_text((place / "config.json").read_text())
    expected = load(place)
    torch.save(expected.state_dict(), tmp_path / "pytorch_model.bin")
    with pytest.raises(UserError, match="allow_pickle"):
        load(tmp_path)
    model = load(tmp_path, allow_pickle=True)
    assert torch.equal(model.model.norm.weight, expected.model.norm.weight)


def test_a_model_that_has_no_form_for_the_task_is_refused(shared):
    with pytest.raises(UserError, match="has no ImageClassification form"):
        load(shared / "weights/stories260K", auto_class="AutoModelForImageClassification", settings=LABELS)


def test_an_attention_that_is_not_installed_is_refused_with_the_reason(shared):
    with pytest.raises(UserError, match=r"model.attention = 'flash_attention_2' does not work here .*FlashAttention2"):
        load(shared / "weights/stories260K", attention="flash_attention_2")


def test_modelling_code_of_the_folder_runs_only_when_trusted(tmp_path):
    (tmp_path / "config.json").write_text(
        '{"model_type": "own", "auto_map": {"AutoConfig": "configuration_own.OwnConfig"}}'
    )
    (tmp_path / "configuration_own.py").write_text(
        "from transformers import PreTrainedConfig\n\n\nclass OwnConfig(PreTrainedConfig):\n    model_type = 'own'\n"
    )
    with pytest.raises(UserError, match="model.trust_remote_code = false"):
        load_model_config(ModelConfig(name=str(tmp_path)), settings={})
    trusted = load_model_config(ModelConfig(name=str(tmp_path), trust_remote_code=True), settings={})
    assert trusted.model_type == "own"


def plant(place, folder, *, file, auto, base):
    """A copy of a model's folder that names code of its own for `auto`, derived from `base`: it makes folder/ran."""
    shutil.copytree(place, folder)
    module = f"{auto.lower()}_planted"
    (folder / f"{module}.py").write_text(
        f"import os\n\nfrom transformers import {base}\n\nos.mkdir({str(folder / 'ran')!r})\n\n\n"
        f"class Planted({base}):\n    pass\n"
    )
    named = f"{module}.Planted"
    settings = json.loads((folder / file).read_text())
    settings["auto_map"] = {auto: [None, named] if auto == "AutoTokenizer" else named}
    (folder / file).write_text(json.dumps(settings))


def load_twin(config):
    return load_small_twin(config, auto_class="AutoModelForCausalLM", settings={})


def load_quantised_under_a_new_head(config):
    config = config.model_copy(update={"quantization": "nf4"})
    auto_class = "AutoModelForSequenceClassification"
    return load_model(config, auto_class=auto_class, settings=LABELS, dtype=torch.float32, seed=0)


LLAMA, MOBILENET = "weights/stories260K", "weights/mobilenet_v1_0.25_224"
PLANTS = {  # what is loaded: the folder, its file that names the code, for what, derived from what, and by what
    "config": (LLAMA, "config.json", "AutoConfig", "LlamaConfig", partial(load_model_config, settings={})),
    "model": (
        LLAMA,
        "config.json",
        "AutoModelForCausalLM",
        "LlamaForCausalLM",
        partial(load_model, auto_class="AutoModelForCausalLM", settings={}, dtype=torch.float32, seed=0),
    ),
    "quantised model": (
        LLAMA,
        "config.json",
        "AutoModelForSequenceClassification",
        "LlamaForSequenceClassification",
        load_quantised_under_a_new_head,
    ),
    "twin": (LLAMA, "config.json", "AutoModelForCausalLM", "LlamaForCausalLM", load_twin),
    "tokenizer": (
        LLAMA,
        "tokenizer_config.json",
        "AutoTokenizer",
        "PreTrainedTokenizerFast",
        Text().load_processor,
    ),
    "image processor": (
        MOBILENET,
        "preprocessor_config.json",
        "AutoImageProcessor",
        "MobileNetV1ImageProcessorPil",
        Images().load_processor,
    ),
}


@pytest.mark.parametrize("what", PLANTS)
def test_code_planted_in_a_folder_runs_only_when_trusted(shared, tmp_path, what):
    place, file, auto, base, loading = PLANTS[what]
    ran = []
    for trusted in (False, True):
        folder = tmp_path / f"planted_{trusted}"
        plant(shared / place, folder, file=file, auto=auto, base=base)
        loading(ModelConfig(name=str(folder), trust_remote_code=trusted))
        ran.append((folder / "ran").exists())
    assert ran == [False, True]


def test_a_tokenizer_without_pad_token_pads_with_its_end_token(shared, caplog):
    with caplog.at_level(logging.INFO, logger="ftscale"):
        tokenizer = Text().load_processor(ModelConfig(name=str(shared / "weights/stories260K")))
    assert tokenizer.pad_token == tokenizer.eos_token
    assert "no pad token" in caplog.text


def test_the_image_processor_needs_pillow_alone(shared):
    config = ModelConfig(name="ignored", processor=str(shared / "weights/mobilenet_v1_0.25_224"))
    processor = Images().load_processor(config)
    assert type(processor).__name__ == "MobileNetV1ImageProcessorPil"


def test_a_folder_without_tokenizer_is_refused(shared):
    config = ModelConfig(name=str(shared / "weights/mobilenet_v1_0.25_224"))
    with pytest.raises(UserError, match="gives no tokenizer.*set model.processor"):
        Text().load_processor(config)


def test_a_larger_tokenizer_enlarges_the_embedding_with_seeded_rows(shared, caplog):
    place = shared / "weights/stories260K"
    tokenizer = Text().load_processor(ModelConfig(name=str(place)))
    tokenizer.add_tokens(["<one>", "<two>"])
    models = [load(place), load(place)]
    before = models[0].get_input_embeddings().weight.clone()
    with caplog.at_level(logging.INFO, logger="ftscale"):
        for number, model in enumerate(models):
            torch.manual_seed(number)
            fit_vocabulary(model, tokenizer, seed=0)
    first, second = (model.get_input_embeddings().weight for model in models)
    assert "enlarged from 512 to 514 rows" in caplog.text
    assert first.shape == (514, 64)
    assert torch.equal(first, second)
    assert torch.equal(first[:512], before)
    assert models[0].lm_head.weight is first


def test_a_quantised_embedding_cannot_be_enlarged(shared):
    place = shared / "weights/stories260K"
    tokenizer = Text().load_processor(ModelConfig(name=str(place)))
    tokenizer.add_tokens(["<one>"])
    with pytest.raises(UserError, match="has 513 tokens and the model 512 embeddings"):
        fit_vocabulary(load(place, quantization="nf4"), tokenizer, seed=0)


def test_code_of_the_models_own_is_found_for_random_weights_too(shared, tmp_path):
    import json

    folder = tmp_path / "model"
    shutil.copytree(shared / "weights/stories260K", folder)
    code = "from transformers import LlamaForCausalLM\n\n\nclass Own(LlamaForCausalLM):\n    pass\n"
    (folder / "modeling_own.py").write_text(code)
    settings = json.loads((folder / "config.json").read_text())
    settings["auto_map"] = {"AutoModelForCausalLM": "modeling_own.Own"}
    (folder / "config.json").write_text(json.dumps(settings))
    about = {"auto_class": "AutoModelForCausalLM", "settings": {}, "dtype": torch.float32, "seed": 0}
    for init in ("random", "pretrained"):
        config = ModelConfig(name=str(folder), init=init, trust_remote_code=True)
        assert type(load_model(config, **about)).__name__ == "Own"


def test_weights_are_saved_under_the_names_that_they_were_loaded_by(tmp_path):
    """transformers undoes in saving what `_weight_conversions` holds; under ZeRO-3 loading leaves all of them there."""
    from safetensors import safe_open
    from transformers import BertConfig, BertForMaskedLM
    from transformers.conversion_mapping import get_model_conversion_mapping

    def saved(model, name):
        model.save_pretrained(tmp_path / name)
        with safe_open(tmp_path / name / "model.safetensors", "pt") as file:
            return set(file.keys())

    sizes = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1, "intermediate_size": 8}
    model = BertForMaskedLM(BertConfig(vocab_size=20, **sizes))
    plain = saved(model, "plain")
    assert "bert.embeddings.LayerNorm.weight" in plain
    model._weight_conversions = get_model_conversion_mapping(model)
    assert "bert.embeddings.LayerNorm.gamma" in saved(model, "all"), "transformers no longer needs this"
    forget_unused_renamings(model)
    assert saved(model, "used") == plain
