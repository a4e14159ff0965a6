"""An MLP in place of the classifier, and a saved folder that needs no ftscale."""

import subprocess
import sys

import pytest
import torch
from transformers import LlamaConfig, LlamaForSequenceClassification, RobertaConfig, RobertaForSequenceClassification

from ftscale.base.errors import UserError
from ftscale.config.schema import HeadConfig, ModelConfig
from ftscale.models.head import auto_class_of, head_module_names, replace_head
from ftscale.models.load import load_model
from ftscale.models.save import load_saved, save_model

AUTO = "AutoModelForSequenceClassification"
SIZES = {"vocab_size": 50, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}

LOAD_WITHOUT_FTSCALE = """
import sys
from importlib.abc import MetaPathFinder

class Block(MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == "ftscale":
            raise ImportError("ftscale is not here")

sys.meta_path.insert(0, Block())
import torch
from transformers import AutoModelForSequenceClassification
model = AutoModelForSequenceClassification.from_pretrained(sys.argv[1], trust_remote_code=True).eval()
torch.save(model(input_ids=torch.arange(5, 15)[None]).logits.detach(), sys.argv[2])
assert not any(name.split(".")[0] == "ftscale" for name in sys.modules)
"""


def minilm_with_head(minilm, *, seed=0, **head):
    model = load_model(
        ModelConfig(name=str(minilm)), auto_class=AUTO, settings={"num_labels": 8}, dtype=torch.float32, seed=0
    )
    return replace_head(model, HeadConfig(**head), seed=seed)


def test_the_head_has_the_asked_layers(minilm):
    head = minilm_with_head(minilm, hidden_sizes=(64, 32), activation="relu", dropout=0.25).classifier
    assert [(layer.in_features, layer.out_features) for layer in (head, *head.layers)] == [(384, 64), (64, 32), (32, 8)]
    assert head.dropout.p == 0.25
    hidden = torch.randn(3, 384)
    first = torch.relu(torch.nn.functional.linear(hidden, head.weight, head.bias))
    expected = head.layers[1](torch.relu(head.layers[0](first)))
    torch.testing.assert_close(head.eval()(hidden), expected)


def test_no_hidden_sizes_leave_the_models_own_head(minilm):
    assert type(minilm_with_head(minilm).classifier) is torch.nn.Linear


def test_the_head_depends_on_the_seed_alone(minilm):
    torch.manual_seed(1)
    first = minilm_with_head(minilm, hidden_sizes=(8,)).classifier.weight
    torch.manual_seed(2)
    assert torch.equal(first, minilm_with_head(minilm, hidden_sizes=(8,)).classifier.weight)
    assert not torch.equal(first, minilm_with_head(minilm, hidden_sizes=(8,), seed=1).classifier.weight)


@pytest.mark.parametrize(
    ("model_class", "config_class", "module"),
    [
        (LlamaForSequenceClassification, LlamaConfig, "score"),
        (RobertaForSequenceClassification, RobertaConfig, "classifier.out_proj"),
    ],
)
def test_the_classifier_is_found_whatever_its_name(model_class, config_class, module):
    model = model_class(config_class(**SIZES, num_labels=3, pad_token_id=0))
    replace_head(model, HeadConfig(hidden_sizes=(8,)), seed=0)
    assert model.config.mlp_head["module"] == module
    assert model(input_ids=torch.arange(5)[None]).logits.shape == (1, 3)


def test_a_vision_models_classifier_is_replaced_too(shared):
    model = load_model(
        ModelConfig(name=str(shared / "weights/mobilenet_v1_0.25_224")),
        auto_class="AutoModelForImageClassification",
        settings={"num_labels": 10},
        dtype=torch.float32,
        seed=0,
    )
    assert head_module_names(model) == ["classifier"]
    replace_head(model, HeadConfig(hidden_sizes=(32,)), seed=0)
    assert model(pixel_values=torch.randn(1, 3, 64, 64)).logits.shape == (1, 10)


def test_an_unknown_activation_comes_with_the_nearest(minilm):
    with pytest.raises(UserError, match="head.activation = 'gellu' is not known; did you mean 'gelu'?"):
        minilm_with_head(minilm, hidden_sizes=(8,), activation="gellu")


def test_the_auto_class_follows_from_the_models_class():
    assert auto_class_of("SegformerForImageClassification") == "AutoModelForImageClassification"


def test_the_saved_folder_loads_by_transformers_where_ftscale_is_missing(minilm, tmp_path):
    model = minilm_with_head(minilm, hidden_sizes=(64,)).eval()
    save_model(model, None, tmp_path / "model")
    subprocess.run(
        [sys.executable, "-I", "-c", LOAD_WITHOUT_FTSCALE, str(tmp_path / "model"), str(tmp_path / "logits.pt")],
        check=True,
        cwd=tmp_path,
        env={"HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path / "home"), "OMP_NUM_THREADS": "1"},
    )
    expected = model(input_ids=torch.arange(5, 15)[None]).logits
    torch.testing.assert_close(torch.load(tmp_path / "logits.pt"), expected)


def test_without_the_folders_code_loading_stops_instead_of_guessing_a_head(minilm, tmp_path):
    from transformers import AutoModelForSequenceClassification

    save_model(minilm_with_head(minilm, hidden_sizes=(64,)), None, tmp_path)
    with pytest.raises(RuntimeError, match="mismatch"):
        AutoModelForSequenceClassification.from_pretrained(tmp_path, trust_remote_code=False)


def test_ftscale_reads_its_own_folder_without_running_code_from_it(minilm, tmp_path):
    model = minilm_with_head(minilm, hidden_sizes=(64, 32)).eval()
    save_model(model, None, tmp_path)
    (tmp_path / "modeling_mlp_head.py").write_text("raise SystemExit('this must not run')")
    again = load_saved(tmp_path, auto_class=AUTO)
    ids = torch.arange(5, 15)[None]
    torch.testing.assert_close(again(input_ids=ids).logits, model(input_ids=ids).logits)


def test_a_saved_head_trains_further_and_is_not_put_twice(minilm, tmp_path):
    model = minilm_with_head(minilm, hidden_sizes=(64,)).eval()
    save_model(model, None, tmp_path)
    config = ModelConfig(name=str(tmp_path))
    again = load_model(config, auto_class=AUTO, settings={"num_labels": 8}, dtype=torch.float32, seed=1).eval()
    ids = torch.arange(5, 15)[None]
    torch.testing.assert_close(again(input_ids=ids).logits, model(input_ids=ids).logits)
    with pytest.raises(UserError, match="the model has one already"):
        replace_head(again, HeadConfig(hidden_sizes=(8,)), seed=0)
