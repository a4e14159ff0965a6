"""What is saved loads again, answers the same, and loads without ftscale."""

import json
import os
from pathlib import Path

import pytest
import torch
import transformers
from peft import PeftConfig, PeftModel
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    GPT2Config,
    LlamaConfig,
    T5Config,
)

from ftscale.base.errors import UserError
from ftscale.config.schema import AdapterConfig, HeadConfig, ModelConfig
from ftscale.modalities.image import Images
from ftscale.modalities.text import Text
from ftscale.models import save
from ftscale.models.adapt import apply_adapter
from ftscale.models.head import replace_head
from ftscale.models.load import fit_vocabulary, load_model, load_model_config
from ftscale.models.save import export_model, load_saved, load_saved_processor, save_model

CAUSAL = "AutoModelForCausalLM"
SEQ2SEQ = "AutoModelForSeq2SeqLM"
CLASSIFIER = "AutoModelForSequenceClassification"
IDS = torch.arange(5, 17)[None]
TEXT = Text().probe


def stories(shared, *, method=None, dtype=torch.float32, **fields):
    config = ModelConfig(name=str(shared / "weights/stories260K"), **fields)
    model = load_model(config, auto_class=CAUSAL, settings={}, dtype=dtype, seed=0)
    if method is not None:
        options = {"init_lora_weights": False} if method == "lora" else {"num_virtual_tokens": 3}
        model = apply_adapter(model, AdapterConfig(method=method, **options), task_type="CAUSAL_LM")
    return model.eval()


def classifier(minilm, *, hidden_sizes=()):
    settings = {"num_labels": 3, "id2label": {0: "a", 1: "b", 2: "c"}, "label2id": {"a": 0, "b": 1, "c": 2}}
    model = load_model(
        ModelConfig(name=str(minilm)), auto_class=CLASSIFIER, settings=settings, dtype=torch.float32, seed=0
    )
    model = replace_head(model, HeadConfig(hidden_sizes=hidden_sizes), seed=0)
    lora = AdapterConfig(method="lora", init_lora_weights=False)
    return apply_adapter(model, lora, task_type="SEQ_CLS", new_modules=["classifier"]).eval()


def logits(model):
    with torch.no_grad():
        return model(input_ids=IDS).logits


def test_a_whole_model_and_its_tokenizer_load_by_transformers_alone(shared, tmp_path):
    model = stories(shared)
    with torch.no_grad():
        model.model.norm.weight.mul_(1.5)
    tokenizer = Text().load_processor(ModelConfig(name=str(shared / "weights/stories260K")))
    save_model(model, tokenizer, tmp_path)
    plain = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert torch.equal(logits(plain), logits(model))
    assert plain.config.use_cache is True
    assert AutoTokenizer.from_pretrained(tmp_path)("Once")["input_ids"] == tokenizer("Once")["input_ids"]
    assert load_saved_processor(tmp_path).pad_token == tokenizer.pad_token
    assert (tmp_path / "model.safetensors").is_file()
    assert torch.equal(logits(load_saved(tmp_path, auto_class=CAUSAL)), logits(model))


def test_a_gathered_state_dict_is_saved_in_place_of_the_models_own(shared, tmp_path):
    model = stories(shared)
    gathered = {name: value * 2 for name, value in model.state_dict().items()}
    save_model(model, None, tmp_path, state_dict=gathered)
    norm = load_saved(tmp_path, auto_class=CAUSAL).model.norm.weight
    assert torch.equal(norm, model.model.norm.weight * 2)


def test_a_gathered_state_dict_of_an_adapter_is_saved_too(shared, tmp_path):
    model = stories(shared, method="lora")
    gathered = {name: value * 2 for name, value in model.state_dict().items()}
    save_model(model, None, tmp_path, state_dict=gathered)
    again = dict(load_saved(tmp_path, auto_class=CAUSAL).named_parameters())
    name = "base_model.model.model.layers.0.self_attn.q_proj.lora_A.default.weight"
    assert torch.equal(again[name], dict(model.named_parameters())[name] * 2)


@pytest.mark.parametrize("method", ["lora", "prefix_tuning"])
def test_an_adapter_folder_loads_by_peft_alone(shared, tmp_path, method):
    model = stories(shared, method=method)
    save_model(model, None, tmp_path)
    base = AutoModelForCausalLM.from_pretrained(shared / "weights/stories260K")
    plain = PeftModel.from_pretrained(base, tmp_path).eval()
    torch.testing.assert_close(logits(plain), logits(model))
    torch.testing.assert_close(logits(load_saved(tmp_path, auto_class=CAUSAL)), logits(model))
    assert not (tmp_path / "model.safetensors").exists()


def test_a_classifier_adapter_comes_back_with_its_head_and_labels(minilm, tmp_path):
    model = classifier(minilm)
    save_model(model, None, tmp_path)
    again = load_saved(tmp_path, auto_class=CLASSIFIER)
    torch.testing.assert_close(logits(again), logits(model))
    assert again.config.id2label == {0: "a", 1: "b", 2: "c"}
    base = AutoModelForSequenceClassification.from_pretrained(minilm, num_labels=3)
    torch.testing.assert_close(logits(PeftModel.from_pretrained(base, tmp_path).eval()), logits(model))


def test_an_adapter_with_an_mlp_head_comes_back(minilm, tmp_path):
    model = classifier(minilm, hidden_sizes=(32,))
    save_model(model, None, tmp_path)
    torch.testing.assert_close(logits(load_saved(tmp_path, auto_class=CLASSIFIER)), logits(model))


def test_an_adapter_with_an_mlp_head_merges_into_a_plain_folder(minilm, tmp_path):
    model = classifier(minilm, hidden_sizes=(32,))
    save_model(model, None, tmp_path / "run")
    report = export_model(tmp_path / "run", tmp_path / "out", auto_class=CLASSIFIER, probe=TEXT, merge=True)
    assert report["largest_logit_change"] < 1e-4
    plain = AutoModelForSequenceClassification.from_pretrained(tmp_path / "out", trust_remote_code=True).eval()
    torch.testing.assert_close(logits(plain), logits(model), rtol=1e-4, atol=1e-4)


def test_an_adapter_on_random_weights_keeps_them_even_when_moved(shared, tmp_path):
    model = stories(shared, method="lora", init="random")
    save_model(model, None, tmp_path / "here")
    (tmp_path / "here").rename(tmp_path / "there")
    torch.testing.assert_close(logits(load_saved(tmp_path / "there", auto_class=CAUSAL)), logits(model))


def test_an_adapter_with_a_larger_vocabulary_brings_the_embeddings_along(shared, tmp_path):
    tokenizer = Text().load_processor(ModelConfig(name=str(shared / "weights/stories260K")))
    tokenizer.add_tokens(["<one>", "<two>"])
    model = stories(shared)
    fit_vocabulary(model, tokenizer, seed=0)
    lora = AdapterConfig(method="lora", init_lora_weights=False)
    model = apply_adapter(model, lora, task_type="CAUSAL_LM").eval()
    save_model(model, tokenizer, tmp_path)
    again = load_saved(tmp_path, auto_class=CAUSAL)
    ids = torch.tensor([[5, 512, 6, 513]])
    assert again(input_ids=ids).logits.shape == (1, 4, 514)
    torch.testing.assert_close(again(input_ids=ids).logits, model(input_ids=ids).logits)
    assert len(Text().load_processor(ModelConfig(name=str(tmp_path)))) == 514


def test_an_adapter_folder_as_base_model_is_refused_with_the_way_out(shared, tmp_path):
    save_model(stories(shared, method="lora"), None, tmp_path)
    with pytest.raises(UserError, match="is an adapter; merge it into its base"):
        load_model_config(ModelConfig(name=str(tmp_path)), settings={})


def test_a_bf16_model_keeps_its_dtype_and_its_float32_adapter(shared, tmp_path):
    model = stories(shared, method="lora", dtype=torch.bfloat16)
    save_model(model, None, tmp_path)
    again = load_saved(tmp_path, auto_class=CAUSAL)
    assert again.dtype == torch.bfloat16
    assert torch.equal(logits(again), logits(model))


@pytest.mark.parametrize("quantization", ["nf4", "int8"])
def test_an_adapter_on_a_quantised_base_answers_as_it_did(shared, tmp_path, quantization):
    model = stories(shared, method="lora", quantization=quantization)
    save_model(model, None, tmp_path)
    again = load_saved(tmp_path, auto_class=CAUSAL)
    assert any(weight.dtype in (torch.uint8, torch.int8) for weight in again.parameters())
    torch.testing.assert_close(logits(again), logits(model))


def test_merging_folds_the_adapter_in(shared, tmp_path):
    model = stories(shared, method="lora")
    save_model(model, None, tmp_path / "run")
    report = export_model(tmp_path / "run", tmp_path / "out", auto_class=CAUSAL, probe=TEXT, merge=True)
    plain = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    torch.testing.assert_close(logits(plain), logits(model), rtol=1e-4, atol=1e-4)
    assert not torch.allclose(logits(plain), logits(stories(shared)), atol=0.1)
    assert report["merged"] is True
    assert report["parameters"] == 260_032
    assert report["largest_logit_change"] < 1e-3


def test_merging_into_a_quantised_base_goes_through_its_dequantised_weights(shared, tmp_path):
    model = stories(shared, method="lora", quantization="nf4")
    save_model(model, None, tmp_path / "run")
    report = export_model(tmp_path / "run", tmp_path / "out", auto_class=CAUSAL, probe=TEXT, merge=True)
    plain = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert {weight.dtype for weight in plain.parameters()} == {torch.float32}
    assert "quantization_config" not in plain.config.to_dict()
    unquantised = load_saved_on_full_base(shared, tmp_path / "run")
    change = (logits(plain) - logits(model)).abs().max()
    assert change < 1e-2 < (logits(unquantised) - logits(model)).abs().max()
    assert report["largest_logit_change"] < 1e-2


TIED = {  # a tied model, and where an adapter changes its embeddings or its head
    "llama, both": ("llama", {"target_modules": ["q_proj", "embed_tokens", "lm_head"]}),
    "llama, input": ("llama", {"target_modules": ["q_proj", "embed_tokens"]}),
    "llama, output": ("llama", {"target_modules": ["q_proj", "lm_head"]}),
    "llama, whole": ("llama", {"target_modules": ["q_proj"], "modules_to_save": ["embed_tokens"]}),
    "gpt2, input": ("gpt2", {"target_modules": ["c_attn", "wte"]}),
    "t5, output": ("t5", {"target_modules": ["q", "lm_head"]}),
}


def tied_adapter(folder, name):
    """An adapter on a tied base of this kind, both saved below the folder; its logits by peft alone."""
    kind, options = TIED[name]
    sizes = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 4, "intermediate_size": 48}
    configs = {
        "llama": LlamaConfig(**sizes, vocab_size=64, tie_word_embeddings=True, initializer_range=0.3),
        "gpt2": GPT2Config(n_embd=32, n_layer=1, n_head=2, vocab_size=64, initializer_range=0.3),
        "t5": T5Config(d_model=32, d_kv=8, d_ff=48, num_layers=1, num_heads=4, vocab_size=64),
    }
    auto, task_type = (SEQ2SEQ, "SEQ_2_SEQ_LM") if kind == "t5" else (CAUSAL, "CAUSAL_LM")
    torch.manual_seed(0)
    getattr(transformers, auto).from_config(configs[kind]).save_pretrained(folder / "base")
    base = load_model(ModelConfig(name=str(folder / "base")), auto_class=auto, settings={}, dtype=torch.float32, seed=0)
    lora = AdapterConfig(method="lora", r=4, init_lora_weights=False, **options)
    model = apply_adapter(base, lora, task_type=task_type).eval()
    with torch.no_grad():
        for name, weight in model.named_parameters():
            weight.mul_(1.5 if weight.requires_grad and "modules_to_save" in name else 1)
    save_model(model, None, folder / "run")
    return auto, PeftModel.from_pretrained(getattr(transformers, auto).from_pretrained(folder / "base"), folder / "run")


def tied_logits(model):
    decoder = {"decoder_input_ids": IDS} if model.config.is_encoder_decoder else {}
    with torch.no_grad():
        return model.eval()(input_ids=IDS, **decoder).logits


@pytest.mark.parametrize("name", TIED)
def test_merging_unties_the_embeddings_that_an_adapter_changes(tmp_path, name):
    auto, adapted = tied_adapter(tmp_path, name)
    export_model(tmp_path / "run", tmp_path / "out", auto_class=auto, probe=TEXT, merge=True)
    merged = getattr(transformers, auto).from_pretrained(tmp_path / "out")
    torch.testing.assert_close(tied_logits(merged), tied_logits(adapted), rtol=1e-4, atol=1e-3)
    plain = getattr(transformers, auto).from_pretrained(tmp_path / "base")
    assert (tied_logits(merged) - tied_logits(plain)).abs().max() > 0.1


def test_no_export_is_left_whose_logits_moved_by_more_than_rounding(tmp_path, monkeypatch):
    auto, _ = tied_adapter(tmp_path, "llama, both")
    monkeypatch.setattr(save, "_untie", lambda model: None)
    with pytest.raises(UserError, match="--merge is not possible with this model: its logits would differ by"):
        export_model(tmp_path / "run", tmp_path / "out", auto_class=auto, probe=TEXT, merge=True)
    assert not (tmp_path / "out").exists()


def test_the_adapter_names_the_revision_of_its_base(shared, tmp_path):
    config = ModelConfig(name=str(shared / "weights/stories260K"))
    base = load_model(config, auto_class=CAUSAL, settings={}, dtype=torch.float32, seed=0)
    save_model(apply_adapter(base, AdapterConfig(method="lora"), task_type="CAUSAL_LM", revision="v1"), None, tmp_path)
    assert PeftConfig.from_pretrained(tmp_path).revision == "v1"


def load_saved_on_full_base(shared, folder):
    base = AutoModelForCausalLM.from_pretrained(shared / "weights/stories260K")
    return PeftModel.from_pretrained(base, folder).eval()


def test_export_in_bf16_reports_what_it_costs(shared, tmp_path):
    save_model(stories(shared), None, tmp_path / "run")
    report = export_model(tmp_path / "run", tmp_path / "out", auto_class=CAUSAL, probe=TEXT, dtype="bf16")
    assert report["dtype"] == "bfloat16"
    assert 1e-4 < report["largest_logit_change"] < 0.5
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "out").dtype == torch.bfloat16


def test_an_image_model_exports(shared, tmp_path):
    auto = "AutoModelForImageClassification"
    config = ModelConfig(name=str(shared / "weights/mobilenet_v1_0.25_224"))
    model = load_model(config, auto_class=auto, settings={"num_labels": 4}, dtype=torch.float32, seed=0)
    save_model(model, Images().load_processor(config), tmp_path / "run")
    report = export_model(tmp_path / "run", tmp_path / "out", auto_class=auto, probe=Images().probe)
    assert report["largest_logit_change"] == 0.0
    assert type(load_saved_processor(tmp_path / "out")).__name__ == "MobileNetV1ImageProcessorPil"


def test_wrong_exports_are_reported_together(shared, tmp_path):
    save_model(stories(shared), None, tmp_path / "run")
    with pytest.raises(UserError) as error:
        export_model(tmp_path / "run", tmp_path, auto_class=CAUSAL, probe=TEXT, merge=True, dtype="bf17")
    assert [problem.split(" ")[0] for problem in error.value.problems] == ["--dtype", "--merge", "OUT"]
    assert "did you mean 'bf16'?" in error.value.problems[0]


def test_a_prompt_cannot_be_merged(shared, tmp_path):
    save_model(stories(shared, method="prompt_tuning"), None, tmp_path / "run")
    with pytest.raises(UserError, match="--merge does not go with an adapter that learns a prompt"):
        export_model(tmp_path / "run", tmp_path / "out", auto_class=CAUSAL, probe=TEXT, merge=True)


def test_a_missing_base_model_names_the_place_to_mend(shared, tmp_path):
    save_model(stories(shared, method="lora"), None, tmp_path)
    path = tmp_path / "adapter_config.json"
    path.write_text(path.read_text().replace("stories260K", "gone"))
    with pytest.raises(UserError, match="the base model .*gone.* cannot be loaded"):
        load_saved(tmp_path, auto_class=CAUSAL)


def test_a_folder_without_a_model_is_the_users_error(tmp_path):
    with pytest.raises(UserError, match="holds neither config.json nor adapter_config.json"):
        load_saved(tmp_path, auto_class=CAUSAL)


# ---------------------------------------------------------------- planted code, power cuts


def plant(folder, *, auto, module, base, file="config.json"):
    """Have a folder name code of its own for `auto`, derived from `base`: it makes folder/ran."""
    # a model finds its class by the class of its config, so that must be the usual one
    planted = f"Planted = {base}" if auto == "AutoConfig" else f"class Planted({base}):\n    pass"
    (folder / f"{module}.py").write_text(
        f"import os\n\nfrom transformers import {base}\n\n"
        f"os.makedirs({str(folder / 'ran')!r}, exist_ok=True)\n\n\n{planted}\n"
    )
    named = f"{module}.Planted"
    settings = json.loads((folder / file).read_text())
    settings["auto_map"] = {auto: [None, named] if auto == "AutoTokenizer" else named}
    (folder / file).write_text(json.dumps(settings))


def test_code_planted_beside_a_saved_config_is_not_run(shared, tmp_path):
    save_model(stories(shared), None, tmp_path)
    plant(tmp_path, auto="AutoConfig", module="saved_config", base="LlamaConfig")
    load_saved(tmp_path, auto_class=CAUSAL)
    assert not (tmp_path / "ran").exists()


def test_code_planted_beside_a_saved_model_is_not_run(shared, tmp_path):
    save_model(stories(shared), None, tmp_path / "run")
    plant(tmp_path / "run", auto=CAUSAL, module="saved_model", base="LlamaForCausalLM")
    load_saved(tmp_path / "run", auto_class=CAUSAL)
    assert not (tmp_path / "run/ran").exists()
    export_model(tmp_path / "run", tmp_path / "out", auto_class=CAUSAL, probe=TEXT)
    assert not (tmp_path / "run/ran").exists()


def test_code_planted_beside_the_base_of_an_adapter_is_not_run(shared, tmp_path):
    save_model(stories(shared), None, tmp_path / "base")
    save_model(stories(shared, method="lora"), None, tmp_path / "run")
    plant(tmp_path / "base", auto=CAUSAL, module="saved_base", base="LlamaForCausalLM")
    planted = (tmp_path / "base/config.json").read_text()
    (tmp_path / "run/base_config/config.json").write_text(planted)
    adapter = json.loads((tmp_path / "run/adapter_config.json").read_text())
    adapter["base_model_name_or_path"] = str(tmp_path / "base")
    (tmp_path / "run/adapter_config.json").write_text(json.dumps(adapter))
    load_saved(tmp_path / "run", auto_class=CAUSAL)
    assert not (tmp_path / "base/ran").exists()
    export_model(tmp_path / "run", tmp_path / "out", auto_class=CAUSAL, probe=TEXT, merge=True)
    assert not (tmp_path / "base/ran").exists()


def test_code_planted_beside_a_saved_tokenizer_is_not_run(shared, tmp_path):
    tokenizer = Text().load_processor(ModelConfig(name=str(shared / "weights/stories260K")))
    tokenizer.save_pretrained(tmp_path)
    file = "tokenizer_config.json"
    plant(tmp_path, auto="AutoTokenizer", module="saved_tokenizer", base="PreTrainedTokenizerFast", file=file)
    assert load_saved_processor(tmp_path)("Once")["input_ids"] == tokenizer("Once")["input_ids"]
    assert not (tmp_path / "ran").exists()


def test_code_planted_beside_a_saved_image_processor_is_not_run(shared, tmp_path):
    config = ModelConfig(name="ignored", processor=str(shared / "weights/mobilenet_v1_0.25_224"))
    Images().load_processor(config).save_pretrained(tmp_path)
    base, file = "MobileNetV1ImageProcessorPil", "preprocessor_config.json"
    plant(tmp_path, auto="AutoImageProcessor", module="saved_images", base=base, file=file)
    assert type(load_saved_processor(tmp_path)).__name__ == base
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("method", [None, "lora"])
def test_all_files_of_a_saved_model_and_of_its_export_are_as_the_umask_says(shared, tmp_path, method):
    before = os.umask(0o027)
    try:
        save_model(stories(shared, method=method), None, tmp_path / "model")
        export_model(tmp_path / "model", tmp_path / "out", auto_class=CAUSAL, probe=TEXT, merge=method is not None)
    finally:
        os.umask(before)
    modes = {path: path.stat().st_mode & 0o777 for path in tmp_path.rglob("*") if path.is_file()}
    assert len([path for path in modes if path.suffix == ".safetensors"]) == 2
    assert set(modes.values()) == {0o640}


def test_a_saved_model_is_on_the_disk_before_it_has_its_name(shared, tmp_path, monkeypatch):
    synced, fsync, rename, missing = {}, os.fsync, os.rename, []

    def noted(file):
        fsync(file)
        path = Path(os.readlink(f"/proc/self/fd/{file if isinstance(file, int) else file.fileno()}"))
        if path.is_file():
            synced[path] = path.read_bytes()

    def checked(old, new):
        files = [path for path in Path(old).rglob("*") if path.is_file()]
        missing.append([path.name for path in files if synced.get(path) != path.read_bytes()])
        rename(old, new)

    monkeypatch.setattr(os, "fsync", noted)
    monkeypatch.setattr(os, "rename", checked)
    save_model(stories(shared, method="lora"), None, tmp_path / "model")
    assert missing == [[]]
    assert {path.name for path in synced} >= {"adapter_model.safetensors", "adapter_config.json", "config.json"}
